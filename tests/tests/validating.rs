//! Filter `validate`: requests and answers by JSON Schemas, whole and streamed.

use bytes::Bytes;
use serde_json::{Value, json};
use spillway_tests::{Gateway, Upstream, event, reply, streamed};

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream");
const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

async fn start(protocol: &str, url: &str, validate: &Value) -> Gateway {
    let city = json!({"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}});
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("city.json"), city.to_string()).unwrap();
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: b, protocol: {protocol}, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{name: r, filters: [{{validate: {validate}}}], backendRefs: [{{name: b}}]}}]
"
    );
    Gateway::start_in(folder, &yaml).await
}

/// Server that says what it was asked, whole or in two parts, in OpenAI's and Anthropic's API.
async fn echo() -> Upstream {
    Upstream::start(async |seen| {
        let asked: Value = serde_json::from_slice(&seen.body).unwrap();
        let said = asked["messages"][0]["content"].as_str().unwrap().to_owned();
        let is_anthropic = seen.path == "/v1/messages";
        if asked["stream"] != true {
            let message = json!({"role": "assistant", "content": said});
            let openai = json!({"id": "c", "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]});
            let anthropic = json!({"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": said}],
                "model": "m", "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 5}});
            return Some(reply(200, &[JSON], if is_anthropic { anthropic } else { openai }.to_string()));
        }
        let (one, two) = said.split_at(said.len() / 2);
        let events = if is_anthropic {
            let delta = |text: &str| event("content_block_delta", json!({"index": 0, "delta": {"type": "text_delta", "text": text}}));
            let start = json!({"message": {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m", "usage": {"input_tokens": 3, "output_tokens": 1}}});
            let block = json!({"index": 0, "content_block": {"type": "text", "text": ""}});
            let last = json!({"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}});
            vec![
                event("message_start", start),
                event("content_block_start", block),
                delta(one),
                delta(two),
                event("content_block_stop", json!({"index": 0})),
                event("message_delta", last),
                event("message_stop", json!({})),
            ]
        } else {
            let chunk = |delta: Value, reason: Value| {
                let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
                format!("data: {}\n\n", json!({"id": "c", "created": 1, "model": "m", "choices": [choice]}))
            };
            let part = |text: &str| chunk(json!({"content": text}), Value::Null);
            vec![part(one), part(two), chunk(json!({}), "stop".into()), "data: [DONE]\n\n".to_owned()]
        };
        let (send, parts) = tokio::sync::mpsc::channel(8);
        for event in events {
            send.send(Ok(Bytes::from(event))).await.unwrap();
        }
        Some(streamed(&[EVENTS], parts))
    })
    .await
}

#[tokio::test]
async fn a_request_that_is_not_valid_reaches_no_server() {
    let upstream = Upstream::fixed(200, "{}").await;
    let gateway = start("http", &upstream.url(), &json!({"request": {"file": "city.json"}})).await;
    let ask = async |body: &'static str| gateway.client().post("/cities", &[JSON], body).await;
    assert_eq!(ask("{\"city\":\"Bonn\"}").await.status, 200);
    assert_eq!(gateway.client().get("/cities").await.status, 200);
    let count = upstream.count();
    for body in ["{\"city\":7}", "{}", "{\"city\":\"Bonn\",\"city\":7}"] {
        let got = ask(body).await;
        assert_eq!((got.status.as_u16(), got.json()["code"].as_str().unwrap()), (400, "request_not_valid"), "{body}");
    }
    assert!(ask("{\"city\":7}").await.text().contains("at `/city`: expected string, found number"));
    assert_eq!(upstream.count(), count);
}

#[tokio::test]
async fn an_answer_that_is_not_valid_reaches_no_caller() {
    for (body, status) in [("{\"city\":\"Bonn\"}", 200), ("{\"city\":7}", 502), ("<p>Bonn</p>", 502)] {
        let upstream = Upstream::fixed(200, body).await;
        let gateway = start("http", &upstream.url(), &json!({"response": {"file": "city.json"}})).await;
        let got = gateway.client().get("/cities/1").await;
        assert_eq!(got.status, status, "{}", got.text());
        assert_eq!(got.text().contains(body), status == 200, "{}", got.text());
        assert_eq!(got.text().contains("answer_not_valid"), status == 502);
    }
    let upstream = Upstream::fixed(404, "none").await;
    let gateway = start("http", &upstream.url(), &json!({"response": {"file": "city.json"}})).await;
    let got = gateway.client().get("/cities/1").await;
    assert_eq!((got.status.as_u16(), got.text().as_str()), (404, "none"), "errors pass");
}

#[tokio::test]
async fn the_text_of_a_model_is_checked_before_its_end() {
    let upstream = echo().await;
    let validate = json!({"response": {"file": "city.json", "of": "content"}});
    for (protocol, path) in [("openai", "/v1/chat/completions"), ("anthropic", "/v1/messages")] {
        let gateway = start(protocol, &upstream.url(), &validate).await;
        for (said, is_valid) in [("{\"city\":\"Bonn\"}", true), ("{\"city\":7}", false), ("It is Bonn.", false)] {
            for stream in [false, true] {
                let body = json!({"model": "m", "max_tokens": 9, "stream": stream, "messages": [{"role": "user", "content": said}]});
                let got = gateway.client().post(path, &[JSON, VERSION], body.to_string()).await;
                let (text, what) = (got.text(), format!("{path} {said} {stream}: {}", got.text()));
                assert_eq!(got.status == 502, !is_valid && !stream, "{what}");
                let told = if stream {
                    "a filter of the route refused the rest"
                } else {
                    "the answer of the server is not valid"
                };
                assert_eq!(text.contains(told), !is_valid, "{what}");
                // The end of a stream is that of an error.
                let has_end = text.contains("[DONE]") || text.contains("message_stop");
                assert_eq!(has_end, is_valid && stream, "{what}");
            }
        }
        // What asks for no text passes.
        assert_eq!(gateway.client().get("/v1/models").await.status, 200);
    }
}
