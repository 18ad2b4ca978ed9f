//! Errors about built-in models whose keys can never take effect.

use crate::common;

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

#[test]
fn aliases_that_never_lead_to_a_model_are_errors() {
    let told = |consumer: &str, routes: &str| {
        let yaml = format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
models: [{{name: m, source: m.gguf}}]
backends: [{{name: b, protocol: openai, models: [\"gpt-*\"], endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}]
consumers: [{{name: c, keysFile: k, {consumer}}}]
routes: [{routes}]
"
        );
        common::errors(&yaml).join("\n")
    };
    let both = "{backendRefs: [{name: b}, {model: m}], modelAlias: {small: m}}";
    for (consumer, says) in [
        ("modelAlias: {a: a}", "`a` stands for itself"),
        ("modelAlias: {a: b, b: gpt-4}", "`b` is an alias too, and none stands for another"),
        ("modelAlias: {\"a*\": gpt-4}", "`*` has no meaning here"),
        ("modelAlias: {a: \"gpt-*\"}", "`*` has no meaning here"),
        ("modelAlias: {a: \"\"}", "an empty name is no model"),
        ("models: [a], modelAlias: {a: gpt-4}", "does not allow `gpt-4`"),
        ("models: [\"gpt-*\"], modelAlias: {a: gpt-4}", "does not allow `a`"),
        ("modelAlias: {a: claude}", "no route has a target that serves `claude`"),
    ] {
        let told = told(consumer, both);
        assert!(told.contains(says), "{consumer}: {told}");
    }
    for consumer in ["modelAlias: {a: gpt-4}", "modelAlias: {a: m, gpt-4: small}", "models: [a, m], modelAlias: {a: m}"]
    {
        assert!(!told(consumer, both).contains("modelAlias"), "{consumer}: {}", told(consumer, both));
    }
    let matched = "{matches: [{model: \"gpt-4*\"}], backendRefs: [{name: b}]}";
    assert!(told("modelAlias: {a: gpt-3}", matched).contains("serves `gpt-3`"));
    assert!(!told("modelAlias: {a: gpt-4o}", matched).contains("serves"));
}

#[test]
fn questions_for_models_that_show_nothing_are_errors() {
    let told = |backend: &str| {
        let yaml = format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: b, {backend}, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}]
routes: [{{backendRefs: [{{name: b}}]}}]
"
        );
        common::errors(&yaml).join("\n")
    };
    for (backend, says) in [
        ("modelList: {}", "which has no list of models"),
        ("protocol: oip, modelList: {}", "which has no list of models"),
        ("protocol: openai, model: m, modelList: {}", "no effect beside `model`"),
        ("protocol: openai, models: [m], modelList: {}", "`models` names each model already"),
        ("protocol: openai, modelList: {every: 10ms}", "expected 1s or more"),
        ("protocol: openai, modelList: {timeout: 0s}", "no server answers in 0s"),
        ("protocol: openai, modelList: {path: models}", "not the path of a list"),
        ("protocol: openai, modelList: {path: \"/m?x=1\"}", "not the path of a list"),
        ("protocol: ollama, models: [\"llama3:latest\"]", "expected `llama3`"),
        ("protocol: ollama, models: [\"library/Llama3\"]", "expected `llama3`"),
    ] {
        assert!(told(backend).contains(says), "{backend}: {}", told(backend));
    }
    for backend in [
        "protocol: openai, modelList: {}",
        "protocol: anthropic, modelList: {every: 1h}",
        "protocol: ollama, models: [\"llama3*\", \"hf.co/lab/m:q4\"], modelList: {path: /api/tags}",
        "protocol: openai, models: [Llama3]",
    ] {
        assert_eq!(told(backend), "", "{backend}");
    }
}

#[test]
fn names_that_ollama_reads_as_others_are_errors_in_matches_too() {
    let told = |model: &str| {
        let yaml = format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: b, protocol: ollama, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}]
routes: [{{matches: [{{model: \"{model}\"}}], backendRefs: [{{name: b}}]}}]
"
        );
        common::errors(&yaml).join("\n")
    };
    for (model, form) in [("Llama3", "llama3"), ("llama3:latest", "llama3"), ("m:local", "m"), ("Lab/*", "lab/*")] {
        assert!(told(model).contains(&format!("expected `{form}`")), "{model}: {}", told(model));
    }
    for model in ["llama3", "llama3:8b", "*", "lab/*"] {
        assert_eq!(told(model), "", "{model}");
    }
}
