//! Errors about built-in models whose keys can never take effect.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

fn told(model: &str) -> Vec<String> {
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
models: [{{name: m, source: m.gguf, {model}}}]
routes: [{{backendRefs: [{{model: m}}]}}]
"
    );
    common::errors(&yaml)
}

#[test]
fn what_can_never_take_effect_is_an_error() {
    for (model, says) in [
        ("idleUnload: 5m", "takes effect only with `keepWarm: false`"),
        ("keepWarm: true, idleUnload: 5m", "takes effect only with `keepWarm: false`"),
        ("keepWarm: false, idleUnload: 0s", "before it has answered anything"),
        ("memory: 64MiB, kvCache: 64MiB", "leaves nothing of `memory`"),
        ("kvCache: 64MiB, task: embedding", "takes effect only where a model writes text"),
        ("task: talk", "unknown value `talk` for `task`; expected `chat`, `embedding` or `rerank`"),
    ] {
        let told = told(model);
        assert!(told.iter().any(|line| line.starts_with("2: ") && line.contains(says)), "{model}: {told:?}");
    }
    for model in [
        "keepWarm: false",
        "keepWarm: false, idleUnload: 5m, task: chat, tokenPause: 20ms",
        "memory: 1GiB, task: embedding",
        "memory: 1GiB, kvCache: 64MiB",
    ] {
        assert!(told(model).is_empty(), "{model}: {:?}", told(model));
    }
}
