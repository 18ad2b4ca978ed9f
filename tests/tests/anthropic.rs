//! Anthropic's Messages API for callers: the official client before a built-in model, and the shapes of errors, limits and
//! lists.

use serde_json::{Value, json};
use spillway_tests::{Gateway, TEMPLATE_WITH_TOOLS, Upstream, model, reply, script, with_template};

const VERSION: (&str, &str) = ("anthropic-version", "2026-10-21");

fn builtin(more: &str) -> String {
    format!(
        "models: [{{name: smollm2, source: \"{}\", contextLength: 512, maxSequences: 4, maxQueueWait: 60s}}]
routes: [{{name: r, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: smollm2}}]{more}}}]
",
        model().display()
    )
}

fn message(model: &str, more: &Value) -> String {
    let mut body = json!({"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_talks_to_a_built_in_model() {
    let gateway = Gateway::start(&builtin("")).await;
    let told = script("anthropic_client.py", &gateway, &["smollm2", "text", "stops", "refusals", "models"]).await;
    let text = &told[0];
    assert_eq!(text["whole"], text["streamed"], "{text}");
    let whole = &text["whole"];
    assert_eq!(
        (&whole["type"], &whole["role"], &whole["model"]),
        (&json!("message"), &json!("assistant"), &json!("smollm2"))
    );
    assert!(whole["content"][0]["text"].as_str().unwrap().contains("Paris"), "{whole}");
    assert!(text["ids"].as_array().unwrap().iter().all(|id| id.as_str().unwrap().starts_with("msg_")));
    let usage = &whole["usage"];
    let read = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap_or(0);
    assert_eq!(
        (&text["count"], &text["start"]),
        (&json!(read), &json!(read)),
        "the count is that of the usage: {text}"
    );
    assert_eq!((&text["request_id"], &text["served_by"]), (&json!(true), &json!("builtin/smollm2")));
    let mut stops = told[1].clone();
    for answer in ["whole", "streamed"] {
        // The second question finds the first one in the cache.
        assert!(stops[answer].as_object_mut().unwrap().remove("usage").is_some());
    }
    assert_eq!(stops["whole"], stops["streamed"], "{stops}");
    assert_eq!(
        (&stops["whole"]["stop_reason"], &stops["whole"]["stop_sequence"], &stops["short"]),
        (&json!("stop_sequence"), &json!("France"), &json!("max_tokens")),
        "{stops}"
    );
    for (told, (name, class, kind)) in told[2..7].iter().zip([
        ("image", "BadRequestError", "invalid_request_error"),
        ("thinking", "BadRequestError", "invalid_request_error"),
        ("model", "NotFoundError", "not_found_error"),
        ("prefill", "BadRequestError", "invalid_request_error"),
        ("max_tokens", "BadRequestError", "invalid_request_error"),
    ]) {
        assert_eq!(
            (&told["name"], &told["class"], &told["type"]),
            (&json!(name), &json!(class), &json!(kind)),
            "{told}"
        );
        assert!(told["id"].is_string() && told["id"] == told["body_id"], "{told}");
    }
    assert!(told[2]["message"].as_str().unwrap().contains("`image`"), "{}", told[2]);
    assert_eq!(told[7], json!({"ids": ["smollm2"], "more": false, "one": "smollm2"}));
    assert_eq!(told[8]["missing"]["type"], "not_found_error", "{}", told[8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_gets_the_tool_calls_that_it_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tools.gguf");
    with_template(&model(), &file, Some(TEMPLATE_WITH_TOOLS));
    let gateway = Gateway::start(&format!(
        "models: [{{name: smollm2, source: \"{}\", contextLength: 1024, maxSequences: 2, maxQueueWait: 60s}}]
routes: [{{matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: smollm2}}]}}]
",
        file.display()
    ))
    .await;
    let told = script("anthropic_client.py", &gateway, &["smollm2", "tools"]).await;
    for call in &told[..2] {
        assert_eq!(
            (&call["reason"], &call["kind"], &call["name"]),
            (&json!("tool_use"), &json!("tool_use"), &json!("weather"))
        );
        assert!(["Paris", "Rome"].contains(&call["input"]["city"].as_str().unwrap()), "{call}");
        assert_eq!(call["streamed"], json!(["tool_use", "weather", call["input"]]), "{call}");
    }
    assert!(told[2]["content"].as_array().unwrap().iter().all(|kind| kind == "text"), "{}", told[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_spills_into_a_built_in_model_and_reads_errors_in_its_own_shape() {
    let full = Upstream::start(|_| async { Some(reply(529, &[], "{}")) }).await;
    let config = |more: &str| {
        format!(
            "backends: [{{name: b, protocol: anthropic, endpoints: [{{url: \"{}\"}}]}}]
models: [{{name: smollm2, source: \"{}\", contextLength: 256, maxSequences: 4, maxQueueWait: 60s}}]
routes: [{{name: r, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: b}}]{more}}}]
",
            full.url(),
            model().display()
        )
    };
    let gateway = Gateway::start(&config(", whenSaturated: {spillTo: smollm2}")).await;
    for stream in [false, true] {
        let body = message("claude", &json!({"stream": stream}));
        let answer = gateway.client().post("/v1/messages", &[VERSION], body).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-spillway-served-by")), (200, "builtin/smollm2"));
        assert!(answer.text().contains("\"model\":\"smollm2\""), "{}", answer.text());
    }
    let refused = gateway
        .client()
        .post("/v1/messages", &[VERSION, ("x-spillway-fallback", "never")], message("m", &json!({})))
        .await;
    assert_eq!((refused.status.as_u16(), refused.json()["error"]["type"].clone()), (529, json!("overloaded_error")));
    assert!(!refused.header("retry-after").is_empty());
    let large = gateway.client().post("/v1/messages", &[VERSION], "x".repeat(21 << 20)).await;
    assert_eq!((large.status.as_u16(), large.json()["error"]["type"].clone()), (413, json!("request_too_large")));
    let missing = gateway.client().post("/v1/nothing", &[VERSION], "{}").await;
    assert!(missing.json()["error"].is_object(), "{}", missing.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_lists_are_shown_as_the_caller_reads_them() {
    let limits = ", filters: [{rateLimit: {by: clientAddress, requests: 2/h, tokens: 100000/h}}]";
    let gateway = Gateway::start(&builtin(limits)).await;
    let client = gateway.client();
    let answer = client.post("/v1/messages", &[VERSION], message("smollm2", &json!({}))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("anthropic-ratelimit-requests-limit"), "2");
    assert_eq!(answer.header("anthropic-ratelimit-requests-remaining"), "1");
    assert!(answer.header("anthropic-ratelimit-tokens-reset").ends_with('Z'), "{:?}", answer.headers);
    assert_eq!(
        (answer.header("x-ratelimit-limit-requests"), answer.header("request-id")),
        ("", answer.header("x-request-id"))
    );
    let listed = client.get("/v1/models").await;
    assert_eq!(listed.json()["object"], "list");
    let refused = client.post("/v1/messages", &[VERSION], message("smollm2", &json!({}))).await;
    assert_eq!((refused.status.as_u16(), refused.json()["error"]["type"].clone()), (429, json!("rate_limit_error")));
}
