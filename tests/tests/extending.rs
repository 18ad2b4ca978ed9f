//! Filters of one's own: the gateway of `plugins/examples`, with the configuration that `docs/extend/filter.md` shows.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

use std::process::Command;

use serde_json::{Value, json};
use spillway_tests::{Gateway, Upstream, binary, example_binary, reply, repository};

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

/// Configuration of the example, with this server.
fn configuration(server: &str) -> String {
    let yaml = read("plugins/examples/gateway.yaml");
    yaml.replace("127.0.0.1:8080", "127.0.0.1:0").replace("http://127.0.0.1:9001", server)
}

fn conversation(messages: usize) -> String {
    json!({"model": "m", "messages": vec![json!({"role": "user", "content": "hi"}); messages]}).to_string()
}

async fn server() -> Upstream {
    let answer = json!({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []});
    Upstream::start(move |_| {
        let answer = reply(200, &[("content-type", "application/json")], answer.to_string());
        async move { Some(answer) }
    })
    .await
}

#[test]
fn the_page_shows_the_configuration_and_the_program_of_the_example() {
    let page = read("docs/extend/filter.md");
    for path in ["plugins/examples/gateway.yaml", "plugins/examples/src/main.rs"] {
        let text = read(path);
        assert!(page.contains(&text), "docs/extend/filter.md does not show {path}:\n{text}");
    }
}

#[tokio::test]
async fn filters_of_a_user_decide_on_requests_and_change_answers() {
    let upstream = server().await;
    let gateway = Gateway::start_example(tempfile::tempdir().unwrap(), &configuration(&upstream.url())).await;
    let client = gateway.client();
    let answer = client.post("/v1/chat/completions", &[("content-type", "application/json")], conversation(2)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("sunset"), "Fri, 31 Dec 2027 23:59:59 GMT");
    assert_eq!(answer.header("link"), "<https://example.com/v2>; rel=\"sunset\"");
    assert_eq!(upstream.count(), 1);

    let answer = client.post("/v1/chat/completions", &[("content-type", "application/json")], conversation(3)).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    let error: Value = answer.json();
    assert_eq!((&error["error"]["code"], &error["error"]["param"]), (&json!("too_many_messages"), &json!("messages")));
    assert_eq!(answer.header("sunset"), "Fri, 31 Dec 2027 23:59:59 GMT", "refusals are answers as well");
    assert_eq!(upstream.count(), 1, "what a filter refuses reaches no server");
    let refused = "spillway_filter_refusals_total{http_route=\"chat\",filter=\"messageLimit\"}";
    gateway.metric_becomes(refused, 1.0).await;
}

#[tokio::test]
async fn filters_of_a_user_are_checked_reloaded_and_shown_in_the_schema() {
    let upstream = server().await;
    let yaml = configuration(&upstream.url());
    let gateway = Gateway::start_example(tempfile::tempdir().unwrap(), &yaml).await;
    let written = std::fs::read_to_string(gateway.config()).unwrap();

    std::fs::write(gateway.config(), written.replace("maxMessages: 2", "maxMessages: 3")).unwrap();
    let event = gateway.reloads(0).await;
    assert_eq!(event["event"], "config_reloaded", "{event}");
    let kinds = [("content-type", "application/json")];
    let answer = gateway.client().post("/v1/chat/completions", &kinds, conversation(3)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());

    std::fs::write(gateway.config(), written.replace("Fri, 31 Dec 2027 23:59:59 GMT", "some day")).unwrap();
    let event = gateway.reloads(1).await;
    assert_eq!(event["event"], "config_rejected", "{event}");
    assert!(event["reason"].as_str().unwrap().contains("expected a date such as"), "{event}");

    let check = |program: std::path::PathBuf| {
        let out =
            Command::new(program).args(["check", "spillway.yaml"]).current_dir(gateway.folder()).output().unwrap();
        (
            out.status.success(),
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)),
        )
    };
    let (good, said) = check(example_binary());
    assert!(!good && said.contains("expected a date such as"), "{said}");
    std::fs::write(gateway.config(), &written).unwrap();
    let (good, said) = check(example_binary());
    assert!(good, "{said}");
    let (good, said) = check(binary());
    assert!(!good && said.contains("messageLimit"), "spillway itself knows no such filter: {said}");

    let schema = Command::new(example_binary()).arg("schema").output().unwrap();
    let schema = String::from_utf8(schema.stdout).unwrap();
    assert!(schema.contains("Most messages of a conversation.") && schema.contains("\"rateLimit\""));
}
