//! Filter `guard`: what patterns find in prompts and answers, whole and streamed, by servers of every API.

use bytes::Bytes;
use serde_json::{Value, json};
use spillway_tests::{Gateway, Upstream, event, eventually, reply, streamed};

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream");
const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");
const CARD: &str = "4111 1111 1111 1111";

fn yaml(protocol: &str, url: &str, guard: &Value) -> String {
    format!(
        "backends: [{{name: b, protocol: {protocol}, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{name: r, filters: [{{guard: {guard}}}], backendRefs: [{{name: b}}]}}]
"
    )
}

/// Server that says what it was asked, whole or letter by letter, in OpenAI's and Anthropic's API.
async fn echo() -> Upstream {
    Upstream::start(async |seen| {
        let asked: Value = serde_json::from_slice(&seen.body).unwrap();
        let content = &asked["messages"][0]["content"];
        // One text, or blocks of it.
        let text = content.as_str().or(content[0]["text"].as_str()).unwrap();
        let said = format!("You said {text}.");
        let letters: Vec<String> = said.chars().map(String::from).collect();
        let is_anthropic = seen.path == "/v1/messages";
        if asked["stream"] != true {
            let message = json!({"role": "assistant", "content": said});
            let usage = json!({"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8});
            let openai = json!({"id": "c", "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage});
            let content = json!([{"type": "text", "text": said}]);
            let anthropic = json!({"id": "msg_1", "type": "message", "role": "assistant", "content": content, "model": "m",
                "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 5}});
            return Some(reply(200, &[JSON], if is_anthropic { anthropic } else { openai }.to_string()));
        }
        let mut events = Vec::new();
        if is_anthropic {
            let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m",
                "usage": {"input_tokens": 3, "output_tokens": 1}});
            events.push(event("message_start", json!({"message": message})));
            events.push(event("content_block_start", json!({"index": 0, "content_block": {"type": "text", "text": ""}})));
            let delta = |letter: &String| json!({"index": 0, "delta": {"type": "text_delta", "text": letter}});
            events.extend(letters.iter().map(|letter| event("content_block_delta", delta(letter))));
            events.push(event("content_block_stop", json!({"index": 0})));
            events.push(event("message_delta", json!({"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}})));
            events.push(event("message_stop", json!({})));
        } else {
            let chunk = |delta: Value, reason: Value| {
                let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
                format!("data: {}\n\n", json!({"id": "c", "created": 1, "model": "m", "choices": [choice]}))
            };
            events.extend(letters.iter().map(|letter| chunk(json!({"content": letter}), Value::Null)));
            events.push(chunk(json!({}), "stop".into()));
            events.push("data: [DONE]\n\n".to_owned());
        }
        let (send, parts) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            for event in events {
                if send.send(Ok(Bytes::from(event))).await.is_err() {
                    return;
                }
            }
        });
        Some(streamed(&[EVENTS], parts))
    })
    .await
}

/// Text of an answer in either API, whole or streamed.
fn said(text: &str) -> String {
    let whole = |value: &Value| {
        let message = value.pointer("/choices/0/message/content").or(value.pointer("/content/0/text"));
        let part = message.or(value.pointer("/choices/0/delta/content")).or(value.pointer("/delta/text"));
        part.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    match serde_json::from_str(text) {
        Ok(value) => whole(&value),
        Err(_) => text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
            .map(|value| whole(&value))
            .collect(),
    }
}

fn request(path: &str, text: &str, is_stream: bool) -> String {
    let messages = json!([{"role": "user", "content": text}]);
    let mut body = json!({"model": "m", "messages": messages, "stream": is_stream});
    if path == "/v1/messages" {
        body["max_tokens"] = 50.into();
    }
    body.to_string()
}

#[tokio::test]
async fn a_server_never_sees_what_is_masked_and_its_caller_reads_it_again() {
    let upstream = echo().await;
    let guard = json!({"patterns": [{"kind": "card", "action": "mask"}, {"kind": "email"}]});
    for (protocol, path) in [
        ("openai", "/v1/chat/completions"),
        ("anthropic", "/v1/messages"),
        ("openai", "/v1/messages"),
        ("anthropic", "/v1/chat/completions"),
    ] {
        let gateway = Gateway::start(&yaml(protocol, &upstream.url(), &guard)).await;
        for is_stream in [false, true] {
            let body = request(path, &format!("{CARD} of jane@example.com"), is_stream);
            let got = gateway.client().post(path, &[JSON, VERSION], body).await;
            let seen = String::from_utf8(upstream.last().body.to_vec()).unwrap();
            assert!(!seen.contains("1111") && !seen.contains("jane") && seen.contains("[card-1] of [email]"), "{seen}");
            let text = got.text();
            assert_eq!(said(&text), format!("You said {CARD} of [email]."), "{path} before {protocol}: {text}");
        }
    }
}

#[tokio::test]
async fn a_card_in_an_answer_is_not_shown_however_it_is_cut() {
    let upstream = Upstream::start(async |seen| {
        let asked: Value = serde_json::from_slice(&seen.body).unwrap();
        if asked["stream"] != true {
            return Some(reply(200, &[JSON], json!({"choices": [{"text": format!("It is {CARD}.")}]}).to_string()));
        }
        let (send, parts) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            for part in ["It is 41", "11 1111 1", "111 1111", ". Bye"] {
                let chunk = json!({"choices": [{"index": 0, "text": part, "finish_reason": null}]});
                // Events come in pieces of their own.
                for piece in format!("data: {chunk}\n\n").as_bytes().chunks(9) {
                    let _ = send.send(Ok(Bytes::copy_from_slice(piece))).await;
                }
            }
            // A server that ends without the end of its last event.
            let _ = send.send(Ok(Bytes::from("data: [DONE]\n"))).await;
        });
        Some(streamed(&[EVENTS], parts))
    })
    .await;
    for action in ["redact", "refuse"] {
        let guard = json!({"patterns": [{"kind": "card", "action": action}], "on": ["answer"]});
        let gateway = Gateway::start(&yaml("openai", &upstream.url(), &guard)).await;
        let ask = async |is_stream: bool| {
            let body = json!({"model": "m", "prompt": "card?", "stream": is_stream});
            gateway.client().post("/v1/completions", &[JSON], body.to_string()).await
        };
        let (whole, stream) = (ask(false).await, ask(true).await);
        let (text, events) = (whole.text(), stream.text());
        assert!(!text.contains("1111") && !events.contains("1111"), "{text} {events}");
        let texts = |events: &str| -> String {
            let data = events.lines().filter_map(|line| line.strip_prefix("data: "));
            let values = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
            values.filter_map(|value| value["choices"][0]["text"].as_str().map(str::to_owned)).collect()
        };
        if action == "redact" {
            assert_eq!(text, r#"{"choices":[{"text":"It is [card]."}]}"#);
            assert_eq!(texts(&events), "It is [card]. Bye", "{events}");
            assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
        } else {
            assert_eq!(
                (whole.status.as_u16(), whole.json()["error"]["code"].as_str().unwrap()),
                (400, "content_filter")
            );
            assert!(events.contains("\"content_filter\"") && !events.contains("Bye"), "{events}");
            assert!("It is".starts_with(texts(&events).trim_end()), "{events}");
        }
    }
}

#[tokio::test]
async fn a_prompt_that_is_refused_reaches_no_server_in_any_form() {
    let upstream = Upstream::fixed(200, "{}").await;
    let guard =
        json!({"patterns": [{"name": "project", "regex": "(?i)project orca", "action": "refuse"}, {"kind": "card"}]});
    let gateway = Gateway::start(&yaml("openai", &upstream.url(), &guard)).await;
    let form = format!("--x\r\ncontent-disposition: form-data; name=\"prompt\"\r\n\r\n{CARD}\r\n--x--\r\n");
    for (path, kind, body) in [
        ("/v1/chat/completions", "application/json", request("", "tell me of Project Orca", false)),
        ("/v1/completions", "application/json", json!({"model": "m", "prompt": "project\u{20}orca"}).to_string()),
        ("/v1/completions", "application/json", r#"{"model":"m","prompt":"\u0070roject orca"}"#.to_owned()),
        ("/v1/embeddings", "application/json", json!({"model": "m", "input": ["x", "PROJECT ORCA"]}).to_string()),
        ("/v1/audio/transcriptions", "multipart/form-data; boundary=x", form),
    ] {
        let got = gateway.client().post(path, &[("content-type", kind)], body).await;
        let error = got.json();
        assert_eq!(
            (got.status.as_u16(), error["error"]["code"].as_str()),
            (400, Some("content_filter")),
            "{path}: {error}"
        );
        assert!(!error.to_string().to_lowercase().contains("orca"), "{error}");
    }
    let logprobs = json!({"model": "m", "prompt": "x", "logprobs": 3}).to_string();
    let got = gateway.client().post("/v1/completions", &[JSON], logprobs).await;
    assert_eq!(got.json()["error"]["param"], "logprobs");
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_shadow_counts_and_passes_all_and_an_edit_elsewhere_keeps_the_count() {
    let upstream = echo().await;
    let guard = json!({"patterns": [{"kind": "card", "action": "refuse"}], "shadow": true});
    let gateway = Gateway::start(&yaml("openai", &upstream.url(), &guard)).await;
    let path = "/v1/chat/completions";
    let series = |name: &str, at: &str| {
        format!("spillway_filter_{name}_total{{http_route=\"r\",pattern=\"card\",at=\"{at}\",action=\"refuse\"}}")
    };
    for (n, is_stream) in [false, true].into_iter().enumerate() {
        let got = gateway.client().post(path, &[JSON], request(path, CARD, is_stream)).await;
        assert_eq!(said(&got.text()), format!("You said {CARD}."));
        for at in ["prompt", "answer"] {
            gateway.metric_becomes(&series("guard_shadow_findings", at), (n + 1) as f64).await;
        }
    }
    let logged = eventually("a line for each side", || async {
        Some(gateway.events("guard_shadow_finding")).filter(|lines| lines.len() >= 2)
    });
    let logged = logged.await;
    assert_eq!(logged.len(), 2, "one for each side: {logged:?}");
    assert!(logged.iter().all(|line| !line.to_string().contains("1111")), "{logged:?}");

    let written = std::fs::read_to_string(gateway.config()).unwrap();
    std::fs::write(gateway.config(), format!("{written}prices: [{{model: x, input: 1, output: 1}}]\n")).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    assert_eq!(gateway.metric(&series("guard_shadow_findings", "answer")).await, 2.0);
    std::fs::write(gateway.config(), written.replace("\"shadow\":true", "\"shadow\":false")).unwrap();
    assert_eq!(gateway.reloads(1).await["event"], "config_reloaded");
    let got = gateway.client().post(path, &[JSON], request(path, CARD, false)).await;
    assert_eq!(got.status, 400, "{}", got.text());
    gateway.metric_becomes(&series("guard_findings", "prompt"), 1.0).await;
    let text = gateway.shown("/metrics").await;
    assert!(!text.contains("guard_shadow_findings"), "what no filter holds is gone");
}
