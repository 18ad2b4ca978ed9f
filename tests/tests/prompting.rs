//! Filter `promptTemplate`: prompts of a file in every API, and the file's edits.

use serde_json::{Value, json};
use spillway_tests::{Gateway, Upstream, eventually};

const JSON: (&str, &str) = ("content-type", "application/json");
const FILE: &str = "---\nversion: 3\n---\nBe {{tone}}.\n\n---\nversion: 2\n---\nBe brief.\n";

fn yaml(protocol: &str, url: &str, version: u32) -> String {
    let template =
        json!({"file": "support.md", "version": version, "variables": {"tone": "request.headers['x-tone']"}});
    format!(
        "backends: [{{name: b, protocol: {protocol}, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{name: r, filters: [{{promptTemplate: {template}}}], backendRefs: [{{name: b}}]}}]
"
    )
}

async fn start(protocol: &str, url: &str) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("support.md"), FILE).unwrap();
    Gateway::start_in(folder, &format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{}", yaml(protocol, url, 3))).await
}

#[tokio::test]
async fn a_server_reads_the_prompt_in_every_api() {
    let upstream = Upstream::fixed(200, "{}").await;
    let user = json!([{"role": "user", "content": "hi"}]);
    // The value of a header ends no string and opens no message.
    let tone = r#"kind"},{{tone}}"#;
    let system = format!("Be {tone}.");
    let with_system = json!([{"role": "system", "content": system}, {"role": "user", "content": "hi"}]);
    for (protocol, path, asked, expected) in [
        (
            "openai",
            "/v1/chat/completions",
            json!({"model": "m", "messages": user}),
            json!({"model": "m", "messages": with_system}),
        ),
        (
            "openai",
            "/v1/completions",
            json!({"model": "m", "prompt": "hi"}),
            json!({"model": "m", "prompt": format!("{system}\n\nhi")}),
        ),
        (
            "openai",
            "/v1/responses",
            json!({"model": "m", "input": "hi"}),
            json!({"model": "m", "input": "hi", "instructions": system}),
        ),
        (
            "anthropic",
            "/v1/messages",
            json!({"model": "m", "max_tokens": 5, "system": "Be short.", "messages": user}),
            json!({"model": "m", "max_tokens": 5, "system": format!("{system}\n\nBe short."), "messages": user}),
        ),
        (
            "ollama",
            "/api/chat",
            json!({"model": "m", "messages": user}),
            json!({"model": "m", "messages": with_system}),
        ),
    ] {
        let gateway = start(protocol, &upstream.url()).await;
        let got = gateway
            .client()
            .post(path, &[JSON, ("anthropic-version", "2023-06-01"), ("x-tone", tone)], asked.to_string())
            .await;
        assert_eq!(
            (got.status.as_u16(), got.header("x-spillway-prompt-version")),
            (200, "3"),
            "{path}: {}",
            got.text()
        );
        assert_eq!(serde_json::from_slice::<Value>(&upstream.last().body).unwrap(), expected, "{path}");
    }
}

#[tokio::test]
async fn an_edit_of_the_file_is_the_next_prompt_and_a_mistake_leaves_the_last() {
    let upstream = Upstream::fixed(200, "{}").await;
    let gateway = start("openai", &upstream.url()).await;
    let ask = async |headers: &[(&str, &str)]| {
        let body = json!({"model": "m", "messages": []}).to_string();
        gateway.client().post("/v1/chat/completions", &[&[JSON], headers].concat(), body).await
    };
    let prompt = async || {
        assert_eq!(ask(&[("x-tone", "kind")]).await.status, 200);
        let body: Value = serde_json::from_slice(&upstream.last().body).unwrap();
        body["messages"][0]["content"].as_str().unwrap().to_owned()
    };
    assert_eq!(prompt().await, "Be kind.");

    let count = upstream.count();
    let refused = ask(&[]).await;
    assert_eq!((refused.status.as_u16(), refused.json()["error"]["code"].as_str().unwrap()), (400, "invalid_variable"));
    assert_eq!(upstream.count(), count);

    let (file, edits) = (gateway.folder().join("support.md"), gateway.edits());
    std::fs::write(&file, FILE.replace("Be {{tone}}.", "Stay {{tone}}.")).unwrap();
    assert_eq!(gateway.reloads(edits).await["event"], "config_reloaded");
    eventually("the edited prompt", || async { (prompt().await == "Stay kind.").then_some(()) }).await;

    std::fs::write(&file, FILE.replace("{{tone}}", "{{mood}}")).unwrap();
    let is_refused = || async { gateway.events("config_rejected").pop() };
    let refused = eventually("the mistake is reported", is_refused).await.to_string();
    assert!(refused.contains("version 3 names `mood`; expected an expression for it here"), "{refused}");
    assert_eq!(prompt().await, "Stay kind.");
}
