//! Tools, as the official client sees them: a required call is made, and its arguments match the schema.

use spillway_tests::{Gateway, TEMPLATE_WITH_TOOLS, model, script, with_template};

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_gets_the_calls_that_it_asks_for() {
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
    let strict = serde_json::json!({
        "model": "smollm2", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "time", "strict": true, "parameters": {"type": "object"}}}]
    });
    let free = gateway.client().post("/v1/chat/completions", &[], strict.to_string()).await;
    assert_eq!((free.status.as_u16(), free.header("x-spillway-dropped")), (200, ""), "{}", free.text());
    let mut wrong = strict.clone();
    wrong["tools"][0]["function"]["parameters"] = serde_json::json!({"type": "nothing"});
    let refused = gateway.client().post("/v1/chat/completions", &[], wrong.to_string()).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["error"]["param"]),
        (400, &"tools".into()),
        "{}",
        refused.text()
    );
    let told = script("openai_tools.py", &gateway, &["smollm2"]).await;
    for (told, name) in told[..3].iter().zip([None, Some("weather"), Some("time")]) {
        assert_eq!((&told["calls"], &told["sound"]), (&1.into(), &true.into()), "{told}");
        assert_eq!((&told["reason"], &told["content"]), (&"tool_calls".into(), &serde_json::Value::Null), "{told}");
        assert!(name.is_none_or(|name| told["name"] == name), "{told}");
        let streamed = &told["streamed"];
        assert_eq!((&streamed["name"], &streamed["arguments"]), (&told["name"], &told["arguments"]), "{told}");
        assert_eq!((&streamed["reason"], &streamed["id"]), (&"tool_calls".into(), &true.into()), "{told}");
    }
    let turn = &told[3];
    assert_eq!(turn["answered"], true, "{turn}");
    let reason = match (turn["called"].as_bool(), turn["tokens"].as_u64()) {
        (Some(true), _) => "tool_calls",
        (_, Some(24)) => "length",
        _ => "stop",
    };
    assert_eq!(turn["reason"], reason, "{turn}");
    assert!(turn["prompt"].as_u64().unwrap() > 60, "the tools, the call and its result are a part of it: {turn}");
    assert_eq!(turn["none"], serde_json::Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_clients_of_four_apis_get_several_calls_at_once_and_send_their_results() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tools.gguf");
    with_template(&model(), &file, Some(TEMPLATE_WITH_TOOLS));
    let gateway = Gateway::start(&format!(
        "models: [{{name: smollm2, source: \"{}\", contextLength: 2048, maxSequences: 2, maxQueueWait: 60s}}]
routes: [{{matches: [{{path: {{prefix: /v1}}}}, {{path: {{prefix: /api}}}}], backendRefs: [{{model: smollm2}}]}}]
",
        file.display()
    ))
    .await;
    let told = script("several_calls.py", &gateway, &["smollm2"]).await;
    let both = serde_json::json!([{"city": "Paris"}, {"city": "Rome"}]);
    for (told, api) in told.iter().zip(["chat", "responses", "messages", "ollama"]) {
        assert_eq!((&told["api"], &told["whole"], &told["streamed"]), (&api.into(), &both, &both), "{told}");
    }
    assert_eq!(told.len(), 4);
}
