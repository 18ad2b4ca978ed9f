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

#[test]
fn names_that_no_target_can_answer_are_reported() {
    let told = |route: &str| {
        let yaml = format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
models: [{{name: m, source: m.gguf}}]
backends: [{{name: b, protocol: openai, models: [\"gpt-*\", x], endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}]
routes: [{{{route}}}]
"
        );
        let (errors, warnings) = common::told(&yaml);
        errors.into_iter().chain(warnings).collect::<Vec<_>>().join("\n")
    };
    for (route, says) in [
        ("backendRefs: [{model: m}], modelAlias: {small: n}", "unknown model of `backendRefs` `n`"),
        ("backendRefs: [{name: b}], modelAlias: {small: m}", "unknown model of `backendRefs` `m`"),
        ("backendRefs: [{model: m}], modelAlias: {m: m}", "`m` is the name of a built-in model of this route"),
        ("matches: [{model: large}], backendRefs: [{model: m}]", "no target of this route serves `large`"),
        ("matches: [{model: y}], backendRefs: [{model: m}, {name: b}]", "no target of this route serves `y`"),
        ("matches: [{model: gp}], backendRefs: [{name: b}]", "no target of this route serves `gp`"),
    ] {
        let told = told(route);
        assert!(told.contains(says), "{route}: {told}");
    }
    for route in [
        "matches: [{model: m}], backendRefs: [{model: m}]",
        "matches: [{model: small}], backendRefs: [{model: m}], modelAlias: {small: m}",
        "matches: [{model: gpt-4}, {model: x}, {model: m}], backendRefs: [{model: m}, {name: b}]",
        "matches: [{model: \"y*\"}], backendRefs: [{model: m}]",
    ] {
        assert!(!told(route).contains("serves"), "{route}: {}", told(route));
    }
}
