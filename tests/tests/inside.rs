//! Built-in model: answers official clients, isolates callers, and refuses unsupported requests.

use spillway_tests::{Gateway, Seen, Upstream, eventually, model, reply, script, with_template};

fn inside(more: &str) -> String {
    format!(
        "models: [{{name: smollm2, source: \"{}\", contextLength: 256, maxSequences: 4, maxQueueWait: 60s{more}}}]
routes: [{{matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: smollm2}}]}}]
",
        model().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_is_answered_by_the_model_inside() {
    let gateway = Gateway::start(&inside("")).await;
    let told = script("openai_client.py", &gateway, &["smollm2"]).await;
    assert_eq!(told[0]["whole"], "The capital of France is Paris.");
    assert_eq!((&told[0]["finish"], &told[0]["model"]), (&"stop".into(), &"smollm2".into()));
    assert_eq!(told[1]["streamed"], told[0]["whole"], "streamed or not, the same answer");
    assert_eq!(told[1]["usage"], told[0]["usage"]);
    assert_eq!(told[2]["models"], serde_json::json!(["smollm2"]));
    assert_eq!(told[3], serde_json::json!({"refused": "unknown model", "code": "model_not_found", "param": "model"}));
    assert_eq!(told[4]["param"], "temperature");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_conversations_at_once_are_not_mixed_up() {
    let gateway = Gateway::start(&inside("")).await;
    let ask = |word: &'static str| {
        let client = gateway.client();
        async move {
            let body = serde_json::json!({
                "model": "smollm2", "temperature": 0, "max_tokens": 12,
                "messages": [{"role": "user", "content": format!("What is the capital of {word}? Answer in one sentence.")}]
            });
            let answer = client.post("/v1/chat/completions", &[], body.to_string()).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
        }
    };
    let alone = [ask("France").await, ask("Italy").await, ask("Germany").await];
    let together = futures::join!(ask("France"), ask("Italy"), ask("Germany"), ask("France"));
    assert_eq!([&together.0, &together.1, &together.2, &together.3], [&alone[0], &alone[1], &alone[2], &alone[0]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_the_model_while_it_reads_and_while_it_writes() {
    let gateway = Gateway::start(&inside("")).await;
    let client = gateway.client();
    let long = "word ".repeat(150);
    for (content, wait_for_text) in [(long.as_str(), false), ("Count to one hundred.", true)] {
        let body = serde_json::json!({
            "model": "smollm2", "stream": true, "max_tokens": 200, "messages": [{"role": "user", "content": content}]
        });
        let request = client.request("POST", "/v1/chat/completions", &[], body.to_string());
        let asked = tokio::spawn({
            let client = client.clone();
            async move {
                let mut stream = client.stream(request).await.unwrap();
                while stream.part().await.is_some() {}
            }
        });
        let series = "spillway_engine_active_sequences{model=\"smollm2\"}";
        gateway.metric_becomes(series, 1.0).await;
        if wait_for_text {
            let before = gateway.metric("spillway_engine_generated_tokens_total{model=\"smollm2\"}").await;
            eventually("it writes", || async {
                (gateway.metric("spillway_engine_generated_tokens_total{model=\"smollm2\"}").await > before)
                    .then_some(())
            })
            .await;
        }
        asked.abort();
        gateway.metric_becomes(series, 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_chat_template_continues_texts_and_holds_no_conversation() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("base.gguf");
    with_template(&model(), &file, None);
    let gateway = Gateway::start(&format!(
        "models: [{{name: base, source: \"{}\", contextLength: 256}}]
routes: [{{matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: base}}]}}]
",
        file.display()
    ))
    .await;
    let client = gateway.client();
    let chat = client.chat("base", &[]).await;
    assert_eq!(chat.status, 400, "{}", chat.text());
    assert!(chat.text().contains("template"), "{}", chat.text());
    let body = r#"{"model":"base","prompt":"The capital of France is","max_tokens":3,"temperature":0}"#;
    let text = client.post("/v1/completions", &[], body).await;
    assert_eq!(text.status, 200, "{}", text.text());
    assert!(text.json()["choices"][0]["text"].as_str().unwrap().contains("Paris"), "{}", text.text());
    let long = serde_json::json!({"model": "base", "prompt": "word ".repeat(400)});
    let refused = client.post("/v1/completions", &[], long.to_string()).await;
    let error = &refused.json()["error"];
    assert_eq!((&error["code"], &error["param"]), (&"context_length_exceeded".into(), &"prompt".into()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn structured_answers_end_with_the_asked_properties() {
    let gateway = Gateway::start(&inside("")).await;
    let schema = serde_json::json!({"type": "object", "required": ["name", "age", "share"], "properties": {
        "name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}}});
    let asked = (0..20).map(|seed| {
        let (client, schema) = (gateway.client(), schema.clone());
        async move {
            let body = serde_json::json!({
                "model": "smollm2", "seed": seed, "max_tokens": 120,
                "messages": [{"role": "user", "content": "Describe a person as JSON."}],
                "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
            });
            client.post("/v1/chat/completions", &[], body.to_string()).await
        }
    });
    for answer in futures::future::join_all(asked).await {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let choice = answer.json()["choices"][0].clone();
        assert_eq!(choice["finish_reason"], "stop", "{choice}");
        let text = choice["message"]["content"].as_str().unwrap();
        assert!(!text.contains("\n\n"), "{text}");
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 3, "{text}");
        let share = value["share"].as_f64().unwrap();
        assert!(share > 0.0 && share <= 0.5 && (0..=150).contains(&value["age"].as_i64().unwrap()), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_asked_for_is_picked_by_name() {
    let server = Upstream::start(|seen: Seen| async move {
        let asked: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        let body = serde_json::json!({"object": "chat.completion", "model": asked["model"], "choices": []});
        Some(reply(200, &[("content-type", "application/json")], body.to_string()))
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: listed, protocol: openai, models: [\"gpt-*\", exact], endpoints: [{{url: \"{url}\"}}]}}
  - {{name: any, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}
models:
  - {{name: one, source: \"{model}\", contextLength: 256, maxQueueWait: 60s}}
  - {{name: lab/two, source: \"{model}\", contextLength: 256, maxQueueWait: 60s}}
routes:
  - name: both
    matches: [{{path: {{prefix: /v1}}}}]
    modelAlias: {{gpt-4o-mini: one}}
    backendRefs: [{{model: one}}, {{model: lab/two}}, {{name: listed}}]
  - name: shares
    hostnames: [shares.test]
    matches: [{{path: {{prefix: /v1}}}}]
    backendRefs: [{{model: one}}, {{name: any}}]
  - {{name: closed, matches: [{{path: {{exact: /v1/chat/completions}}, model: only-here}}], backendRefs: [{{name: any}}]}}
",
        url = server.url(),
        model = model().display()
    ))
    .await;
    let client = gateway.client();
    let ask = async |host: &str, model: &str, more: serde_json::Value| {
        let messages = serde_json::json!([{"role": "user", "content": "hi"}]);
        let mut body = serde_json::json!({"model": model, "max_tokens": 1, "messages": messages});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let headers = [("host", host), ("content-type", "application/json")];
        let answer = client.post("/v1/chat/completions", &headers, body.to_string()).await;
        (answer.status.as_u16(), answer.header("x-spillway-served-by").to_owned(), answer.text())
    };
    // Often enough that no draw is lucky.
    for _ in 0..8 {
        for (name, by) in [("one", "builtin/one"), ("lab/two", "builtin/lab/two")] {
            let (status, served_by, text) = ask("a.test", name, serde_json::json!({})).await;
            assert_eq!((status, served_by.as_str()), (200, by), "{name}: {text}");
        }
        let (status, _, text) = ask("a.test", "unknown", serde_json::json!({})).await;
        assert!(status == 404 && text.contains("model_not_found"), "{text}");
    }
    // The alias is a name of `one`, and of the backend that serves such names; a built-in model that stands in answers others.
    let mut by = std::collections::BTreeSet::new();
    for _ in 0..20 {
        for (host, name) in
            [("a.test", "gpt-4o-mini"), ("a.test", "gpt-5"), ("shares.test", "x"), ("shares.test", "one")]
        {
            let (status, served_by, text) = ask(host, name, serde_json::json!({})).await;
            assert_eq!(status, 200, "{text}");
            by.insert((name, served_by));
        }
        // What a built-in model cannot do goes to the backend, where that serves the name.
        let (status, served_by, text) = ask("shares.test", "x", serde_json::json!({"guided_regex": "a"})).await;
        assert_eq!((status, served_by.as_str()), (200, ""), "{text}");
    }
    let by: Vec<_> = by.iter().map(|(name, by)| (*name, by.as_str())).collect();
    assert_eq!(
        by,
        [
            ("gpt-4o-mini", ""),
            ("gpt-4o-mini", "builtin/one"),
            ("gpt-5", ""),
            ("gpt-5", "builtin/lab/two"),
            ("gpt-5", "builtin/one"),
            ("one", ""),
            ("one", "builtin/one"),
            ("x", ""),
            ("x", "builtin/one"),
        ]
    );
    let listed = client.get("/v1/models").await.json();
    let ids: Vec<_> = listed["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["one", "gpt-4o-mini", "lab/two", "exact", "only-here"]);
    for id in ["one", "gpt-4o-mini", "lab/two", "lab%2Ftwo", "only-here"] {
        let card = client.get(&format!("/v1/models/{id}")).await;
        assert_eq!(card.json()["id"].as_str(), Some(&*id.replace("%2F", "/")), "{}", card.text());
        let head = client.send(client.request("HEAD", &format!("/v1/models/{id}"), &[], "")).await;
        assert_eq!(head.status, 200, "{id}");
    }
    assert_eq!(client.get("/v1/models/gpt-5").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_cannot_do_is_refused_by_name() {
    let gateway = Gateway::start(&inside("")).await;
    let client = gateway.client();
    let ask = async |fields: serde_json::Value| {
        let mut body = serde_json::json!({"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = client.post("/v1/chat/completions", &[], body.to_string()).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        let error = answer.json()["error"].clone();
        (error["code"].as_str().unwrap().to_owned(), error["param"].as_str().unwrap_or_default().to_owned())
    };
    let long = serde_json::json!({"messages": [{"role": "user", "content": "word ".repeat(400)}]});
    assert_eq!(ask(long).await.0, "context_length_exceeded");
    assert_eq!(ask(serde_json::json!({"n": 5})).await.1, "n");
    // The demo model has 49152 tokens.
    let unknown = ask(serde_json::json!({"logit_bias": {"49152": 1}})).await;
    assert_eq!((unknown.0.as_str(), unknown.1.as_str()), ("invalid_value", "logit_bias"));
    assert_eq!(ask(serde_json::json!({"tools": [{"type": "function", "function": {"name": "f"}}]})).await.1, "tools");
    let image = serde_json::json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]});
    assert_eq!(ask(image).await.1, "messages[0].content[0].type");
    let answer = client.post("/v1/chat/completions", &[], "{\"model\":").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (400, &"invalid_json".into()));
    assert_eq!(client.post("/v1/embeddings", &[], r#"{"model":"smollm2","input":"x"}"#).await.status, 400);
    assert_eq!(gateway.client().chat("smollm2", &[]).await.status, 200, "nothing was harmed");
}
