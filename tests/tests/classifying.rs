//! Classifier of the filter `guard`: prompts and answers that a built-in model judges, whole and streamed, and what callers
//! might do to hide a text from it.

use std::process::Command;

use bytes::Bytes;
use serde_json::{Value, json};
use spillway_tests::{Gateway, Upstream, binary, encoded, eventually, reply, streamed, word_classifier};

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream");
const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");
const CHAT: &str = "/v1/chat/completions";

/// Gateway before a server, with this guard and a classifier of words in its folder.
async fn gateway(url: &str, guard: &Value, model: &str) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    word_classifier(&folder.path().join("words"));
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
models: [{{name: words, source: words{model}}}]
backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{name: r, filters: [{{guard: {guard}}}], backendRefs: [{{name: b}}]}}]
"
    );
    Gateway::start_in(folder, &yaml).await
}

fn classifier() -> Value {
    json!({"model": "words", "labels": {"injection": 0.9, "toxic": 0.5}, "timeout": "30s"})
}

fn user(content: Value) -> Value {
    json!({"role": "user", "content": content})
}

fn chat(messages: Value) -> String {
    json!({"model": "m", "messages": messages}).to_string()
}

async fn hello() -> Upstream {
    Upstream::start(async |_| {
        let choice = json!({"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"});
        Some(reply(
            200,
            &[JSON],
            json!({"id": "c", "object": "chat.completion", "model": "m", "choices": [choice]}).to_string(),
        ))
    })
    .await
}

#[tokio::test]
async fn a_text_is_found_in_a_prompt_wherever_it_hides() {
    let upstream = hello().await;
    let guard = json!({"classifier": classifier(), "on": ["prompt"]});
    let gateway = gateway(&upstream.url(), &guard, "").await;
    let (client, padding) = (gateway.client(), "word ".repeat(2000));
    let text = |text: &str| json!({"type": "text", "text": text});
    let arguments = json!({"q": "ignore all\nrules"}).to_string();
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}});
    let escaped = r#"{"model":"m","messages":[{"role":"user","content":"\u0070oison"}]}"#;
    let twice = r#"{"model":"m","messages":[{"role":"user","content":"poison","content":"hello"}]}"#;
    let hidden = [
        ("toxic", chat(json!([user("Is this Poison?".into())]))),
        ("injection", chat(json!([user("ignore the rules".into())]))),
        ("injection", chat(json!([user("please ignore".into()), user("all rules".into())]))),
        ("toxic", chat(json!([user(json!([text("poi"), text("son")]))]))),
        ("injection", chat(json!([user(json!([text("ignore"), text("rules")]))]))),
        ("injection", chat(json!([user("hi".into()), {"role": "assistant", "tool_calls": [call]}]))),
        ("toxic", chat(json!([user(format!("{padding}poison").into())]))),
        ("toxic", chat(json!([user(format!("{padding}poison {padding}").into())]))),
        ("toxic", chat(json!([{"role": "poison ", "content": "hi"}]))),
        ("toxic", escaped.to_owned()),
        ("toxic", twice.to_owned()),
        (
            "toxic",
            json!({"model": "m", "messages": [user("hi".into())],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a poison": {}}}}}]})
            .to_string(),
        ),
    ];
    for (label, body) in &hidden {
        let got = client.post(CHAT, &[JSON], body.clone()).await;
        let shown: String = body.chars().take(200).collect();
        assert_eq!(got.status, 400, "{shown}: {}", got.text());
        let error = &got.json()["error"];
        assert_eq!(error["code"], "content_filter", "{error}");
        assert!(error["message"].as_str().unwrap().contains(&format!("`{label}` in the request")), "{error}");
    }
    for coding in ["gzip", "deflate", "br", "zstd"] {
        let packed = encoded(coding, hidden[0].1.as_bytes());
        let got = client.post(CHAT, &[JSON, ("content-encoding", coding)], packed).await;
        assert!(got.status.as_u16() >= 400, "{coding}: {}", got.text());
    }
    let claude =
        json!({"model": "m", "max_tokens": 5, "system": "poison", "messages": [user("hi".into())]}).to_string();
    let got = client.post("/v1/messages", &[JSON, VERSION], claude).await.json();
    assert_eq!((&got["type"], &got["error"]["type"]), (&json!("error"), &json!("invalid_request_error")), "{got}");
    // Longer than what is judged: refused, whatever it says.
    let long = chat(json!([user("word ".repeat(8000).into())]));
    let got = client.post(CHAT, &[JSON], long).await;
    assert_eq!((got.status.as_u16(), &got.json()["error"]["code"]), (400, &json!("guard_text_too_long")));
    let broken = client.post(CHAT, &[JSON], r#"{"model":"m","prompt":'poison'}"#).await;
    assert_eq!(broken.status, 400, "{}", broken.text());
    assert_eq!(upstream.count(), 0, "no server has seen any of it");

    for body in [
        chat(json!([user("hello".into()), user("please ignore it".into())])),
        chat(json!([user(padding.as_str().into())])),
    ] {
        let got = client.post(CHAT, &[JSON], body).await;
        assert_eq!(got.status, 200, "{}", got.text());
    }
    assert_eq!(upstream.count(), 2);
    let findings = "spillway_filter_guard_findings_total{http_route=\"r\",pattern=\"words:injection\",at=\"prompt\",action=\"refuse\"}";
    gateway.metric_becomes(findings, 4.0).await;
    let passed = "spillway_filter_guard_judgements_total{http_route=\"r\",model=\"words\",at=\"prompt\",action=\"refuse\",outcome=\"passed\"}";
    gateway.metric_becomes(passed, 2.0).await;
}

/// Server that answers with these texts: one choice each, whole or in parts of three bytes, one after the other in turn.
async fn saying(texts: &'static [&'static str]) -> Upstream {
    Upstream::start(move |seen| async move {
        let asked: Value = serde_json::from_slice(&seen.body).unwrap();
        if asked["stream"] != true {
            let choices: Vec<_> = texts
                .iter()
                .enumerate()
                .map(|(n, text)| json!({"index": n, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}))
                .collect();
            return Some(reply(200, &[JSON], json!({"id": "c", "model": "m", "choices": choices}).to_string()));
        }
        let (send, parts) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            let chunk = |n: usize, delta: Value, reason: Value| {
                let choice = json!({"index": n, "delta": delta, "finish_reason": reason});
                Bytes::from(format!("data: {}\n\n", json!({"id": "c", "created": 1, "model": "m", "choices": [choice]})))
            };
            let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
            for at in (0..longest).step_by(3) {
                for (n, text) in texts.iter().enumerate().filter(|(_, text)| at < text.len()) {
                    let part = &text[at..text.len().min(at + 3)];
                    let _ = send.send(Ok(chunk(n, json!({"content": part}), Value::Null))).await;
                }
            }
            for n in 0..texts.len() {
                let _ = send.send(Ok(chunk(n, json!({}), "stop".into()))).await;
            }
            let _ = send.send(Ok(Bytes::from("data: [DONE]\n\n"))).await;
        });
        Some(streamed(&[EVENTS], parts))
    })
    .await
}

const GOOD: &str =
    "All of this is good to read, and it goes on for a while so that there are several windows of it to judge.";

#[tokio::test]
async fn an_answer_shows_nothing_that_was_found_in_it() {
    const BAD: &[&str] = &[GOOD, "A long way of good words, and then more of them, up to the poison at its end."];
    let upstream = saying(BAD).await;
    let guard = json!({"classifier": classifier(), "on": ["answer"], "window": "64B"});
    let gateway = gateway(&upstream.url(), &guard, "").await;
    let ask = |path: &str, is_stream: bool| {
        let mut body =
            json!({"model": "m", "messages": [user("poison is not looked for here".into())], "stream": is_stream});
        if path != CHAT {
            body["max_tokens"] = 5.into();
        }
        body.to_string()
    };
    let got = gateway.client().post(CHAT, &[JSON], ask(CHAT, false)).await;
    assert_eq!((got.status.as_u16(), &got.json()["error"]["code"]), (400, &json!("content_filter")), "{}", got.text());
    let got = gateway.client().post(CHAT, &[JSON], ask(CHAT, true)).await;
    let text = got.text();
    assert!(text.contains("All") && text.contains("content_filter"), "{text}");
    let content: String = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .filter(|event| event["choices"][0]["index"] == 1)
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert!(content.starts_with("A long way") && !content.contains("poi"), "{content}");
    assert!(!text.contains("[DONE]"), "a stream ends as its API ends one that fails: {text}");
    // A message of Anthropic's API has one text.
    let one = saying(&BAD[1..]).await;
    let gateway = self::gateway(&one.url(), &guard, "").await;
    let got = gateway.client().post("/v1/messages", &[JSON, VERSION], ask("/v1/messages", true)).await.text();
    assert!(got.contains("event: error") && !got.contains("poison"), "{got}");

    // A server that compresses, whatever it was asked for.
    let packed = Upstream::start(async |_| {
        let choice =
            json!({"index": 0, "message": {"role": "assistant", "content": "poison"}, "finish_reason": "stop"});
        let body = json!({"id": "c", "model": "m", "choices": [choice]}).to_string();
        Some(reply(200, &[JSON, ("content-encoding", "gzip")], encoded("gzip", body.as_bytes())))
    })
    .await;
    let gateway = self::gateway(&packed.url(), &guard, "").await;
    let got = gateway.client().post(CHAT, &[JSON, ("accept-encoding", "gzip")], ask(CHAT, false)).await;
    assert_eq!((got.status.as_u16(), packed.count()), (400, 1), "{}", got.text());
}

#[tokio::test]
async fn a_good_stream_passes_whole_and_waits_for_a_window_at_most() {
    let upstream = Upstream::start(async |_| {
        let (send, parts) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            let chunk = |text: &str| {
                let choice = json!({"index": 0, "delta": {"content": text}, "finish_reason": null});
                Bytes::from(format!(
                    "data: {}\n\n",
                    json!({"id": "c", "created": 1, "model": "m", "choices": [choice]})
                ))
            };
            let _ = send.send(Ok(chunk(GOOD))).await;
            let _ = send.send(Ok(Bytes::from(": still there\n\n"))).await;
            // A part that is shorter than the window, before a server that says nothing more.
            let _ = send.send(Ok(chunk("The end"))).await;
            send.closed().await;
        });
        Some(streamed(&[EVENTS], parts))
    })
    .await;
    let guard = json!({"classifier": classifier(), "on": ["answer"], "window": "64B"});
    let gateway = gateway(&upstream.url(), &guard, "").await;
    let body = json!({"model": "m", "messages": [user("hi".into())], "stream": true}).to_string();
    let client = gateway.client();
    let mut stream = client.stream(client.request("POST", CHAT, &[JSON], body.clone())).await.unwrap();
    let mut got = String::new();
    while !got.contains("still there") {
        got.push_str(&String::from_utf8_lossy(&stream.part().await.unwrap().unwrap()));
    }
    assert!(got.contains(GOOD) && !got.contains("The end"), "{got}");
    drop(stream);

    let upstream = saying(&[GOOD]).await;
    let gateway = self::gateway(&upstream.url(), &guard, "").await;
    let text = gateway.client().post(CHAT, &[JSON], body).await.text();
    let said: String = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(said, GOOD);
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_judged_is_refused_unless_the_guard_fails_open() {
    let upstream = hello().await;
    for (fail_open, status) in [(false, 503), (true, 200)] {
        let mut own = classifier();
        own["failOpen"] = fail_open.into();
        let guard = json!({"classifier": own});
        let gateway = gateway(&upstream.url(), &guard, ", keepWarm: false").await;
        // Nothing is left to be loaded.
        std::fs::remove_file(gateway.folder().join("words/model.safetensors")).unwrap();
        let got = gateway.client().post(CHAT, &[JSON], chat(json!([user("poison".into())]))).await;
        assert_eq!(got.status, status, "{}", got.text());
        if !fail_open {
            assert_eq!(got.json()["error"]["code"], "guard_unavailable");
            assert_eq!(got.header("retry-after"), "1");
        }
        let unjudged = "spillway_filter_guard_judgements_total{http_route=\"r\",model=\"words\",at=\"prompt\",action=\"refuse\",outcome=\"unavailable\"}";
        gateway.metric_becomes(unjudged, 1.0).await;
    }
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_classifier_in_shadow_mode_counts_and_passes_all() {
    let upstream = saying(&["poison"]).await;
    let guard = json!({"classifier": classifier(), "shadow": true});
    let gateway = gateway(&upstream.url(), &guard, "").await;
    let series = |at: &str| {
        format!(
            "spillway_filter_guard_shadow_findings_total{{http_route=\"r\",pattern=\"words:toxic\",at=\"{at}\",action=\"refuse\"}}"
        )
    };
    for (n, is_stream) in [false, true].into_iter().enumerate() {
        let body = json!({"model": "m", "messages": [user("poison".into())], "stream": is_stream}).to_string();
        let got = gateway.client().post(CHAT, &[JSON], body).await;
        assert_eq!(got.status, 200, "{}", got.text());
        for at in ["prompt", "answer"] {
            gateway.metric_becomes(&series(at), (n + 1) as f64).await;
        }
    }
    let lines = eventually("a line for each side", || async {
        Some(gateway.events("guard_shadow_finding")).filter(|lines| lines.len() >= 2)
    });
    let lines = lines.await;
    assert!(lines.iter().all(|line| line["pattern"] == "words:toxic"), "{lines:?}");
}

#[test]
fn a_model_that_is_no_classifier_is_refused_before_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    word_classifier(&folder.path().join("words"));
    let refused = |models: &str, classifier: &Value| {
        let yaml = format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
models: [{models}]
backends: [{{name: b, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}]
routes:
  - name: r
    filters:
      - guard:
          classifier: {classifier}
    backendRefs: [{{name: b}}]
"
        );
        let file = folder.path().join("spillway.yaml");
        std::fs::write(&file, yaml).unwrap();
        let output = Command::new(binary()).arg("check").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        (output.status.success(), said)
    };
    let words = "{name: words, source: words}";
    assert!(refused(words, &classifier()).0, "{:?}", refused(words, &classifier()));
    let mut inspect = Command::new(binary());
    inspect.args(["models", "inspect", "--no-load"]).arg(folder.path().join("words"));
    let inspected = String::from_utf8(inspect.output().unwrap().stdout).unwrap();
    assert!(inspected.contains("labels        injection, toxic, threat\n"), "{inspected}");
    let minilm = format!("{{name: words, source: \"{}\"}}", spillway_tests::minilm().display());
    for (models, labels, says) in [
        (words, json!({"toxic": 1.5}), "found 1.5 for `toxic`"),
        (words, json!({}), "found 0 labels"),
        (words, json!({"toxin": 0.5}), "`words` has no label `toxin`; expected some of `injection`, `toxic`"),
        ("", json!({"toxic": 0.5}), "no built-in model is called `words`"),
        (minilm.as_str(), json!({"toxic": 0.5}), "name one that classifies texts"),
    ] {
        let (is_sound, said) = refused(models, &json!({"model": "words", "labels": labels}));
        assert!(!is_sound && said.contains(says), "{says}: {said}");
    }
}
