//! Filter `transform`: requests and answers whose JSON is changed on the way, in every API, whole and streamed.

use bytes::Bytes;
use serde_json::{Value, json};
use spillway_tests::{Gateway, Upstream, encoded, eventually, reply, streamed};

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream");
const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

fn yaml(protocol: &str, url: &str, more: &str, transform: &Value) -> String {
    format!(
        "backends: [{{name: b, protocol: {protocol}, endpoints: [{{url: \"{url}\"}}]{more}}}]
routes: [{{name: r, filters: [{{transform: {transform}}}], backendRefs: [{{name: b}}]}}]
"
    )
}

#[tokio::test]
async fn a_server_reads_the_changed_request_in_every_api() {
    let upstream = Upstream::fixed(200, "{}").await;
    let change = json!({"request": {"prependSystem": "Be brief.", "set": {"/seed": 7}, "remove": ["/user"]}});
    let user = json!([{"role": "user", "content": "hi"}]);
    let with_system = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]);
    for (protocol, path, asked, expected) in [
        (
            "openai",
            "/v1/chat/completions",
            json!({"model": "m", "user": "u", "messages": user}),
            json!({"model": "m", "messages": with_system, "seed": 7}),
        ),
        (
            "openai",
            "/v1/completions",
            json!({"model": "m", "prompt": ["hi"]}),
            json!({"model": "m", "prompt": ["Be brief.\n\nhi"], "seed": 7}),
        ),
        (
            "openai",
            "/v1/responses",
            json!({"model": "m", "input": "hi"}),
            json!({"model": "m", "input": "hi", "seed": 7, "instructions": "Be brief."}),
        ),
        (
            "openai",
            "/v1/embeddings",
            json!({"model": "m", "input": "hi"}),
            json!({"model": "m", "input": "hi", "seed": 7}),
        ),
        (
            "anthropic",
            "/v1/messages",
            json!({"model": "m", "max_tokens": 5, "system": "Be kind.", "messages": user}),
            json!({"model": "m", "max_tokens": 5, "system": "Be brief.\n\nBe kind.", "messages": user, "seed": 7}),
        ),
        (
            "ollama",
            "/api/chat",
            json!({"model": "m", "messages": user}),
            json!({"model": "m", "messages": with_system, "seed": 7}),
        ),
        (
            "ollama",
            "/api/generate",
            json!({"model": "m", "prompt": "hi", "raw": true}),
            json!({"model": "m", "prompt": "Be brief.\n\nhi", "raw": true, "seed": 7}),
        ),
    ] {
        let gateway = Gateway::start(&yaml(protocol, &upstream.url(), "", &change)).await;
        let before = upstream.count();
        // What the caller chooses, such as a coding, does not get it around the change.
        for (coding, body) in
            [("identity", asked.to_string().into_bytes()), ("gzip", encoded("gzip", asked.to_string().as_bytes()))]
        {
            let headers = [JSON, VERSION, ("content-encoding", coding)];
            let headers = if coding == "identity" { &headers[..2] } else { &headers[..] };
            let got = gateway.client().post(path, headers, body).await;
            assert_eq!(got.status, 200, "{path}: {}", got.text());
            let seen = upstream.last();
            assert_eq!(serde_json::from_slice::<Value>(&seen.body).unwrap(), expected, "{path} {coding}");
            assert_eq!(seen.headers["content-length"], seen.body.len().to_string());
        }
        assert_eq!(upstream.count() - before, 2);
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_changed_does_not_reach_a_server() {
    let upstream = Upstream::fixed(200, "{}").await;
    let gateway =
        Gateway::start(&yaml("openai", &upstream.url(), "", &json!({"request": {"prependSystem": "Be brief."}}))).await;
    for (path, body) in [
        ("/v1/completions", json!({"model": "m", "prompt": [1, 2, 3]})),
        ("/v1/chat/completions", json!({"model": "m", "messages": "hi"})),
        ("/v1/responses", json!({"model": "m", "input": "hi", "instructions": ["x"]})),
    ] {
        let got = gateway.client().post(path, &[JSON], body.to_string()).await;
        assert_eq!(
            (got.status.as_u16(), got.json()["error"]["code"].as_str().unwrap()),
            (400, "unsupported_body"),
            "{path}"
        );
    }
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let handshake = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", key),
    ];
    let got = gateway.client().send(gateway.client().request("GET", "/v1/realtime?model=m", &handshake, "")).await;
    assert_eq!((got.status.as_u16(), got.json()["error"]["code"].as_str().unwrap()), (403, "socket_not_judged"));
    assert_eq!(upstream.count(), 0);
}

fn answer(is_stream: bool) -> String {
    let usage = json!({"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18});
    let object = |delta: &str, usage: &Value| {
        let choice = json!({"index": 0, delta: {"role": "assistant", "content": "é"}, "finish_reason": "stop"});
        json!({"id": "c", "model": "m", "choices": [choice], "system_fingerprint": "fp", "usage": usage})
    };
    if is_stream {
        let chunk = format!("data: {}\n\n", object("delta", &Value::Null));
        format!("{}: note\n\ndata: {}\n\ndata: [DONE]\n\n", chunk.repeat(3), object("delta", &usage))
    } else {
        object("message", &usage).to_string()
    }
}

#[tokio::test]
async fn a_caller_reads_the_changed_answer_and_pays_for_the_whole() {
    let upstream = Upstream::start(async |seen| {
        let asked: Value = serde_json::from_slice(&seen.body).unwrap();
        let is_stream = asked["stream"] == true;
        let kind = if is_stream { EVENTS } else { JSON };
        if seen.path == "/v1/completions" {
            return Some(reply(
                400,
                &[kind, ("etag", "\"1\"")],
                "{\"error\":{\"message\":\"no\"},\"system_fingerprint\":\"fp\"}",
            ));
        }
        // A server that compresses although it is asked not to.
        let headers = [kind, ("etag", "\"1\""), ("content-encoding", "gzip")];
        let text = answer(is_stream);
        Some(if asked["seed"] == 1 {
            reply(200, &headers, encoded("gzip", text.as_bytes()))
        } else {
            reply(200, &headers[..2], text)
        })
    })
    .await;
    let change = json!({"response": {"remove": ["/system_fingerprint", "/usage"], "set": {"/served": true}}});
    let gateway = Gateway::start(&yaml("openai", &upstream.url(), "", &change)).await;
    let strip = |text: String| {
        let (without, more) = (text.replace(",\"system_fingerprint\":\"fp\"", ""), ",\"served\":true}");
        let usage = ",\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":7,\"total_tokens\":18}}";
        without.replace(usage, more).replace(",\"usage\":null}", more)
    };
    for is_stream in [false, true] {
        for seed in [0, 1] {
            let body = json!({"model": "m", "messages": [], "stream": is_stream, "seed": seed, "stream_options": {"include_usage": true}});
            let headers = [JSON, ("accept-encoding", "gzip"), ("range", "bytes=0-1")];
            let got = gateway.client().post("/v1/chat/completions", &headers, body.to_string()).await;
            assert_eq!(got.text(), strip(answer(is_stream)), "stream {is_stream}, seed {seed}");
            assert_eq!((got.header("etag"), got.header("content-encoding")), ("", ""));
            let length = if is_stream { String::new() } else { got.text().len().to_string() };
            assert_eq!(got.header("content-length"), length);
            let seen = upstream.last();
            assert_eq!(seen.headers["accept-encoding"], "identity");
            assert!(!seen.headers.contains_key("range"), "a part cannot be changed");
        }
    }
    let got = gateway.client().post("/v1/completions", &[JSON], json!({"model": "m", "prompt": "x"}).to_string()).await;
    assert!(got.text().contains("system_fingerprint"), "errors pass as they are");
    assert_eq!(got.header("etag"), "\"1\"");
    let lines = eventually("lines", || async { Some(gateway.events("access")).filter(|lines| lines.len() == 5) }).await;
    assert!(lines[..4].iter().all(|line| line["completionTokens"] == 7 && line["promptTokens"] == 11), "{lines:?}");
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_whole_is_an_error_and_no_half_answer() {
    let upstream = Upstream::start(async |seen| {
        let (parts, body) = tokio::sync::mpsc::channel(4);
        let is_cut = seen.path.ends_with("cut");
        tokio::spawn(async move {
            let _ = parts.send(Ok(Bytes::from("{\"a\":\""))).await;
            for _ in 0..if is_cut { 2 } else { 40 } {
                let _ = parts.send(Ok(Bytes::from("x".repeat(64 << 10)))).await;
            }
            let last = if is_cut { Err(std::io::Error::other("cut")) } else { Ok(Bytes::from("\"}")) };
            let _ = parts.send(last).await;
        });
        Some(streamed(&[JSON], body))
    })
    .await;
    let change = json!({"response": {"set": {"/b": 1}}});
    let limits = ", limits: {maxTranslatedBytes: 1MiB}";
    let gateway = Gateway::start(&yaml("http", &upstream.url(), limits, &change)).await;
    let got = gateway.client().get("/long").await;
    assert_eq!((got.status.as_u16(), got.json()["code"].as_str().unwrap()), (502, "upstream_answer_too_large"));
    let got = gateway.client().get("/cut").await;
    assert_eq!((got.status.as_u16(), got.json()["code"].as_str().unwrap()), (502, "upstream_reset"), "{}", got.text());
    let limits = ", limits: {maxTranslatedBytes: 4MiB}";
    let gateway = Gateway::start(&yaml("http", &upstream.url(), limits, &change)).await;
    let got = gateway.client().get("/long").await;
    assert!(got.text().ends_with("x\",\"b\":1}"), "{}", got.status);
    assert_eq!(got.text().len(), 6 + (40 << 16) + 2 + 6);
    assert_eq!(gateway.metric("spillway_buffered_answer_bytes").await, 0.0, "what was held is given back");
}
