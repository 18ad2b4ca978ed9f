//! Names of models in answers: a caller reads the name that it sent, in every API, whole or streamed, whatever name the server
//! knows.

use serde_json::{Value, json};
use spillway_tests::{Gateway, Reply, Seen, Upstream, encoded, new_key, reply};

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream; charset=utf-8");
const LINES: (&str, &str) = ("content-type", "application/x-ndjson");
const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

/// Name that the caller sends, and the one that the server knows.
const CALLERS: &str = "my \"small\" model";
const SERVERS: &str = "lab/m-1";

/// Answer on a path by a server that names the model as it was asked.
fn answer(path: &str, is_stream: bool, model: &str) -> ((&'static str, &'static str), String) {
    // Names inside of the text and of arguments are the model's own words.
    let text = format!("{{\"model\":\"{SERVERS}\"}}");
    let arguments = json!({"model": SERVERS});
    let data = |value: Value| format!("data: {value}\n\n");
    let typed = |kind: &str, mut value: Value| {
        value["type"] = kind.into();
        format!("event: {kind}\ndata: {value}\n\n")
    };
    match (path, is_stream) {
        ("/v1/chat/completions", false) => {
            let message = json!({"role": "assistant", "content": text});
            // Behind the choices, as llama.cpp has it.
            let choices = json!([{"index": 0, "message": message, "finish_reason": "stop"}]);
            (JSON, format!("{{\"choices\":{choices},\"model\":{},\"id\":\"c\",\"created\":1}}", json!(model)))
        }
        ("/v1/chat/completions", true) => {
            let chunk = |delta: Value, reason: Value| {
                let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
                data(json!({"id": "c", "created": 1, "model": model, "choices": [choice]}))
            };
            let said = chunk(json!({"content": text}), Value::Null).repeat(3);
            (EVENTS, said + &chunk(json!({}), "stop".into()) + "data: [DONE]\n\n")
        }
        ("/v1/embeddings", _) => {
            let vectors = json!([{"object": "embedding", "index": 0, "embedding": vec![0.25; 30000]}]);
            (JSON, format!("{{\"object\":\"list\",\"data\":{vectors},\"model\":{}}}", json!(model)))
        }
        ("/v1/messages", false) => {
            let content = json!([{"type": "text", "text": text}, {"type": "tool_use", "id": "t", "name": "f", "input": arguments}]);
            let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "content": content, "model": model,
                "stop_reason": "tool_use", "usage": {"input_tokens": 1, "output_tokens": 1}});
            (JSON, message.to_string())
        }
        ("/v1/messages", true) => {
            let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": model,
                "usage": {"input_tokens": 1, "output_tokens": 1}});
            let mut all = typed("message_start", json!({"message": message}));
            all += &typed("content_block_start", json!({"index": 0, "content_block": {"type": "text", "text": ""}}));
            all += &typed("content_block_delta", json!({"index": 0, "delta": {"type": "text_delta", "text": text}}));
            all += &typed("content_block_stop", json!({"index": 0}));
            all +=
                &typed("message_delta", json!({"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}));
            (EVENTS, all + &typed("message_stop", json!({})))
        }
        ("/v1/responses", false) => (JSON, json!({"id": "r", "model": model, "output": []}).to_string()),
        ("/v1/responses", true) => {
            let response =
                json!({"id": "r", "status": "completed", "model": model, "output": [], "metadata": arguments});
            let mut all = typed("response.created", json!({"response": response}));
            all += &typed("response.output_text.delta", json!({"item_id": "m1", "delta": text}));
            (EVENTS, all + &typed("response.completed", json!({"response": response, "sequence_number": 2})))
        }
        ("/api/chat", _) => {
            let call = json!({"function": {"name": "f", "arguments": arguments}});
            let message = json!({"role": "assistant", "content": text, "tool_calls": [call]});
            let line = json!({"model": model, "message": message, "done": true}).to_string();
            if is_stream { (LINES, format!("{line}\n{line}\n")) } else { (JSON, line) }
        }
        (path, _) => panic!("{path}"),
    }
}

async fn serve(seen: Seen) -> Option<Reply> {
    let asked: Value = serde_json::from_slice(&seen.body).unwrap();
    let (kind, text) = answer(&seen.path, asked["stream"] == true, asked["model"].as_str().unwrap());
    Some(reply(200, &[kind, ("etag", "\"1\"")], text))
}

fn request(path: &str, is_stream: bool) -> Value {
    let messages = json!([{"role": "user", "content": "hi"}]);
    match path {
        "/v1/embeddings" => json!({"model": CALLERS, "input": "hi"}),
        "/v1/responses" => json!({"model": CALLERS, "input": "hi", "stream": is_stream}),
        _ => json!({"model": CALLERS, "messages": messages, "max_tokens": 9, "stream": is_stream}),
    }
}

fn yaml(protocol: &str, upstream: &Upstream) -> String {
    format!(
        "backends: [{{name: b, protocol: {protocol}, model: {SERVERS}, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: b}}]}}]
",
        upstream.url()
    )
}

#[tokio::test]
async fn a_caller_reads_the_name_that_it_sent_in_every_api() {
    let upstream = Upstream::start(serve).await;
    let servers = [
        ("openai", &["/v1/chat/completions", "/v1/embeddings", "/v1/responses"][..]),
        ("anthropic", &["/v1/messages"]),
        ("ollama", &["/api/chat", "/v1/chat/completions"]),
    ];
    for (protocol, paths) in servers {
        let gateway = Gateway::start(&yaml(protocol, &upstream)).await;
        for path in paths {
            for is_stream in [false, true] {
                let headers = [JSON, VERSION, ("accept-encoding", "gzip")];
                let got = gateway.client().post(path, &headers, request(path, is_stream).to_string()).await;
                let seen = upstream.last();
                let asked: Value = serde_json::from_slice(&seen.body).unwrap();
                assert_eq!(asked["model"], SERVERS);
                assert_eq!(seen.headers["accept-encoding"], "identity");
                let (_, expected) = answer(path, is_stream, CALLERS);
                assert_eq!(got.text(), expected, "{path} before {protocol}, stream {is_stream}");
                assert_eq!(got.header("etag"), "", "the bytes are others");
            }
        }
        // Its own name is not taken for that of the caller where both are the same.
        let mut body = request(paths[0], false);
        body["model"] = SERVERS.into();
        let got = gateway.client().post(paths[0], &[JSON, VERSION], body.to_string()).await;
        assert_eq!((got.text(), got.header("etag")), (answer(paths[0], false, SERVERS).1, "\"1\""));
    }
}

#[tokio::test]
async fn a_translated_answer_names_the_model_as_its_caller_did() {
    let upstream = Upstream::start(serve).await;
    for (protocol, path) in [("openai", "/v1/messages"), ("anthropic", "/v1/chat/completions")] {
        let gateway = Gateway::start(&yaml(protocol, &upstream)).await;
        for is_stream in [false, true] {
            let got = gateway.client().post(path, &[JSON, VERSION], request(path, is_stream).to_string()).await;
            let name = json!(CALLERS).to_string();
            assert!(got.text().contains(&format!("\"model\":{name}")), "{path}, stream {is_stream}: {}", got.text());
            assert!(!got.text().contains(&format!("\"model\":\"{SERVERS}\"")), "{}", got.text());
        }
    }
}

#[tokio::test]
async fn a_caller_reads_its_own_name_for_a_model_in_every_api() {
    let upstream = Upstream::start(serve).await;
    let (key, digest) = new_key();
    let servers = [
        ("openai", &["/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"][..]),
        ("anthropic", &["/v1/messages", "/v1/chat/completions"]),
        ("ollama", &["/api/chat", "/v1/chat/completions", "/v1/messages"]),
    ];
    for (protocol, paths) in servers {
        let gateway = Gateway::start(&format!(
            "consumers: [{{name: acme, keys: [{{sha256: {digest}}}], modelAlias: {{{}: {SERVERS}}}}}]
backends: [{{name: b, protocol: {protocol}, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: b}}]}}]
",
            json!(CALLERS),
            upstream.url()
        ))
        .await;
        for path in paths {
            for is_stream in [false, true] {
                let headers = [JSON, VERSION, ("authorization", &format!("Bearer {key}")), ("accept-encoding", "gzip")];
                let got = gateway.client().post(path, &headers, request(path, is_stream).to_string()).await;
                let seen = upstream.last();
                let asked: Value = serde_json::from_slice(&seen.body).unwrap();
                assert_eq!(asked["model"], SERVERS);
                let (said, name) = (got.text(), json!(CALLERS).to_string());
                if seen.path == *path {
                    assert_eq!(
                        said,
                        answer(path, is_stream, CALLERS).1,
                        "{path} before {protocol}, stream {is_stream}"
                    );
                } else {
                    assert!(said.contains(&format!("\"model\":{name}")), "{path} before {protocol}: {said}");
                    assert!(!said.contains(&format!("\"model\":\"{SERVERS}\"")), "{path} before {protocol}: {said}");
                }
            }
        }
    }
}

#[tokio::test]
async fn other_names_errors_and_answers_in_a_coding_pass_as_they_are() {
    let path = "/v1/chat/completions";
    let version = answer(path, false, "lab/m-1-2026-11-29").1;
    let error = json!({"error": {"message": "no", "model": SERVERS}, "model": SERVERS}).to_string();
    let packed = encoded("gzip", answer(path, false, SERVERS).1.as_bytes());
    for (status, headers, body) in [
        (200, vec![JSON], version.into_bytes()),
        (400, vec![JSON], error.into_bytes()),
        (200, vec![("content-type", "text/plain")], format!("{{\"model\":\"{SERVERS}\"}}").into_bytes()),
        (200, vec![JSON, ("content-encoding", "gzip")], packed),
    ] {
        let (sent, shown) = (body.clone(), headers.clone());
        let upstream = Upstream::start(move |_| {
            let answer = reply(status, &headers, body.clone());
            async move { Some(answer) }
        })
        .await;
        let gateway = Gateway::start(&yaml("openai", &upstream)).await;
        let got = gateway.client().post(path, &[JSON], request(path, false).to_string()).await;
        assert_eq!((got.status.as_u16(), &got.body[..]), (status, &sent[..]), "{shown:?}");
    }
}

#[tokio::test]
async fn an_answer_in_place_of_another_names_the_model_that_gave_it() {
    let full = Upstream::fixed(503, "full").await;
    let stand_in = Upstream::start(serve).await;
    let gateway = Gateway::start(&format!(
        "backends:
- {{name: full, protocol: openai, model: big, endpoints: [{{url: \"{}\"}}]}}
- {{name: stand-in, protocol: openai, model: {SERVERS}, endpoints: [{{url: \"{}\"}}]}}
routes: [{{name: r, backendRefs: [{{name: full}}], whenSaturated: {{spillTo: stand-in}}}}]
",
        full.url(),
        stand_in.url()
    ))
    .await;
    for is_stream in [false, true] {
        let path = "/v1/chat/completions";
        let got = gateway.client().post(path, &[JSON], request(path, is_stream).to_string()).await;
        assert_eq!(got.header("x-spillway-served-by"), "stand-in");
        assert_eq!(got.text(), answer(path, is_stream, SERVERS).1);
    }
}
