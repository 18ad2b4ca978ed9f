//! A caller with a list of models, and calls that reach other models beside the one that they name: calls about a server as a
//! whole, methods and parameters that a server reads in its own way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

use spillway_tests::{Gateway, RawSocket, Upstream, new_key, opening};

/// Gateway with a consumer that may use the model `mine`, and its key.
async fn start(rest: &str) -> (Gateway, String) {
    let (key, digest) = new_key();
    let consumer = format!("consumers: [{{name: acme, models: [mine], keys: [{{sha256: {digest}}}]}}]\n");
    (Gateway::start(&(consumer + rest)).await, format!("Bearer {key}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_about_a_whole_server_is_not_for_the_caller_whatever_its_body_names() {
    let server = Upstream::fixed(200, "{}").await;
    let (gateway, key) = start(&format!(
        "backends: [{{name: b, protocol: oip, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: b}}]}}]
",
        server.url()
    ))
    .await;
    for path in [
        "/v2/repository/models/other/load",
        "/v2/repository/models/mine/unload",
        "/v2/systemsharedmemory/region/a/register",
        "/v2/trace/setting",
    ] {
        let answer = gateway.client().post(path, &[("authorization", &key)], r#"{"model":"mine"}"#).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
    }
    assert_eq!(server.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_models_of_an_ollama_server_are_not_the_callers_to_change() {
    let server = Upstream::fixed(200, "{}").await;
    let (gateway, key) = start(&format!(
        "backends: [{{name: box, protocol: ollama, endpoints: [{{url: \"{0}\"}}]}}, {{name: app, protocol: http, endpoints: [{{url: \"{0}\"}}]}}]
routes:
  - {{name: app, hostnames: [app.test], backendRefs: [{{name: app}}]}}
  - {{name: r, backendRefs: [{{name: box}}]}}
",
        server.url()
    ))
    .await;
    let client = gateway.client();
    let headers = [("authorization", key.as_str())];
    for (method, path, body) in [
        // The server copies what the gateway did not look at, and `mine` then is the other model.
        ("POST", "/api/copy", r#"{"model":"mine","source":"other","destination":"mine"}"#),
        ("POST", "/api/create", r#"{"model":"mine","from":"other"}"#),
        ("DELETE", "/api/delete", r#"{"model":"mine"}"#),
        ("POST", "/api/pull", r#"{"model":"mine"}"#),
        ("POST", "/api/push", r#"{"model":"mine"}"#),
        ("POST", "/api/blobs/sha256:1", r#"{"model":"mine"}"#),
        ("HEAD", "/api/blobs/sha256:1", ""),
    ] {
        let answer = client.send(client.request(method, path, &headers, body)).await;
        assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text());
    }
    assert_eq!(server.count(), 0);
    let shown = client.post("/api/show", &headers, r#"{"model":"mine"}"#).await;
    assert_eq!(shown.status, 200, "{}", shown.text());
    // Where no models are called, the path is one of the application's.
    let app = [("authorization", key.as_str()), ("host", "app.test")];
    assert_eq!(client.post("/api/copy", &app, "{}").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn torchserve_predicts_by_any_method_and_so_the_list_applies_to_all() {
    let server = Upstream::fixed(200, "{}").await;
    let (gateway, key) = start(&format!(
        "backends: [{{name: torch, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: torch}}]}}]
",
        server.url()
    ))
    .await;
    let client = gateway.client();
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for (path, expected) in
            [("/predictions/mine", 200), ("/predictions/other", 404), ("/predictions/other/2.0", 404)]
        {
            let answer = client.send(client.request(method, path, &[("authorization", &key)], "")).await;
            assert_eq!(answer.status, expected, "{method} {path}");
        }
    }
    assert_eq!(server.count(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_names_its_model_once() {
    let server = Upstream::fixed(200, "{}").await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: voice, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: dear, matches: [{{model: dear}}], filters: [{{cel: {{deny: \"request.method == 'GET'\", status: 403, message: no}}}}], backendRefs: [{{name: voice}}]}}
  - {{name: r, backendRefs: [{{name: voice}}]}}
",
        server.url()
    ))
    .await;
    for (query, expected) in
        [("model=dear", 403), ("model=dear&model=cheap", 400), ("m%6fdel=dear&x=1&model=cheap", 400)]
    {
        let request = opening(&format!("/v1/realtime?{query}"), "");
        let mut socket = RawSocket::send_to(gateway.address, request.as_bytes()).await;
        let head = socket.head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {expected} ")), "{query}: {head}");
    }
    assert_eq!(server.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_only_the_rewritten_path_names_is_judged_too() {
    let server = Upstream::fixed(200, "{}").await;
    let (gateway, key) = start(&format!(
        "backends: [{{name: b, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: named, matches: [{{path: {{prefix: /team}}, model: special}}], backendRefs: [{{name: b}}]}}
  - {{name: rest, matches: [{{path: {{prefix: /team}}}}], filters: [{{urlRewrite: {{replacePrefix: /}}}}], backendRefs: [{{name: b}}]}}
",
        server.url()
    ))
    .await;
    let client = gateway.client();
    let headers = [("authorization", key.as_str())];
    for (method, path) in [("GET", "/team/v2/models/other"), ("POST", "/team/v2/models/other/infer")] {
        let answer = client.send(client.request(method, path, &headers, "")).await;
        assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text());
    }
    assert_eq!(server.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_the_tag_that_every_name_has_is_the_same_name_in_all_apis_of_an_ollama_server() {
    let server = Upstream::fixed(200, "{}").await;
    let (gateway, key) = start(&format!(
        "backends: [{{name: box, protocol: ollama, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: dear, authentication: optional, matches: [{{model: dear}}], filters: [{{cel: {{deny: \"request.method == 'POST'\", status: 403, message: no}}}}], backendRefs: [{{name: box}}]}}
  - {{name: r, authentication: optional, backendRefs: [{{name: box}}]}}
",
        server.url()
    ))
    .await;
    let client = gateway.client();
    let body = |model: &str| format!("{{\"model\":\"{model}\",\"max_tokens\":1,\"messages\":[],\"prompt\":\"\"}}");
    for path in ["/api/chat", "/v1/chat/completions", "/v1/completions", "/v1/messages"] {
        for model in ["dear", "dear:latest"] {
            let answer = client.post(path, &[], body(model)).await;
            assert_eq!(answer.status, 403, "{path} {model}: {}", answer.text());
        }
        let mine = client.post(path, &[("authorization", &key)], body("mine:latest")).await;
        assert_eq!(mine.status, 200, "{path}: {}", mine.text());
        assert!(String::from_utf8_lossy(&server.last().body).contains("mine:latest"), "the server gets what came");
    }
    assert_eq!(server.count(), 4);
}
