//! Spill: when the servers are full or gone, the built-in model answers, and the answer says so.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use spillway_tests::{Client, Gateway, LlamaServer, Upstream, eventually, jaeger, model};

fn fleet(urls: &[&str], capacity: &str, more: &str) -> String {
    let endpoints: Vec<String> = urls.iter().map(|url| format!("{{url: \"{url}\"}}")).collect();
    format!(
        "backends:
  - name: fleet
    protocol: openai
    model: fleet-model
    endpoints: [{}]
    capacity: {{{capacity}}}
models: [{{name: smollm2, source: \"{}\", contextLength: 256, maxSequences: 8, maxQueueWait: 60s}}]
routes:
  - name: chat
    matches: [{{path: {{prefix: /v1}}}}]
    backendRefs: [{{name: fleet}}]
    whenSaturated: {{spillTo: smollm2}}
{more}",
        endpoints.join(", "),
        model().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn two_saturated_servers_and_the_rest_is_answered_inside() {
    let (a, b) = (LlamaServer::start(1), LlamaServer::start(1));
    let gateway = Gateway::start(&fleet(&[&a.url, &b.url], "maxInFlight: 1", "")).await;
    let asked = (0..10).map(|n| {
        let client = gateway.client();
        tokio::spawn(async move {
            let body = serde_json::json!({
                "model": "anything", "temperature": 0, "max_tokens": 24, "stream": n % 2 == 0,
                "messages": [{"role": "user", "content": format!("Write a sentence about the number {n}.")}]
            });
            client.post("/v1/chat/completions", &[], body.to_string()).await
        })
    });
    let answers: Vec<_> = futures::future::join_all(asked).await.into_iter().map(Result::unwrap).collect();
    let mut served = BTreeMap::new();
    for answer in &answers {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let by = answer.header("x-spillway-served-by").to_owned();
        if by == "builtin/smollm2" {
            assert!(answer.text().contains("\"model\":\"smollm2\""), "the body names the model that answered");
        }
        *served.entry(by).or_insert(0) += 1;
    }
    assert!(served.get("").is_some_and(|n| *n >= 2), "the servers take what they can: {served:?}");
    assert!(served.get("builtin/smollm2").is_some_and(|n| *n >= 2), "the rest is answered inside: {served:?}");
    let spilled = gateway.metric("spillway_spills_total{http_route=\"chat\",reason=\"saturated\"}").await;
    assert_eq!(Some(&(spilled as usize)), served.get("builtin/smollm2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_in_mid_load_costs_only_what_it_was_streaming() {
    let (mut a, b) = (LlamaServer::start(2), LlamaServer::start(2));
    let gateway = Gateway::start(&fleet(&[&a.url, &b.url], "maxInFlight: 2", "")).await;
    let asked: Vec<_> = (0..12)
        .map(|n| {
            let client = gateway.client();
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(200 * n)).await;
                let body = serde_json::json!({
                    "model": "x", "temperature": 0, "max_tokens": 48, "stream": true,
                    "messages": [{"role": "user", "content": "Write a story about a dog."}]
                });
                client.post("/v1/chat/completions", &[], body.to_string()).await
            })
        })
        .collect();
    tokio::time::sleep(std::time::Duration::from_millis(900)).await;
    a.kill();
    let mut broken = 0;
    for answer in futures::future::join_all(asked).await {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        // A stream that was under way ends with an error event; nothing else may.
        broken += usize::from(!answer.text().trim_end().ends_with("data: [DONE]"));
    }
    assert!(broken <= 2, "{broken} streams were cut, and the server had two places");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_may_refuse_the_lesser_answer_and_what_cannot_spill_does_not() {
    let full = Upstream::fixed(503, "full").await;
    let gateway = Gateway::start(&fleet(&[&full.url()], "maxFullFor: 10s", "")).await;
    let client = gateway.client();
    let refused = client.chat("x", &[("x-spillway-fallback", "never")]).await;
    assert_eq!(refused.status, 503);
    assert!(!refused.header("retry-after").is_empty());
    let spilled = client.chat("x", &[]).await;
    assert_eq!((spilled.status.as_u16(), spilled.header("x-spillway-served-by")), (200, "builtin/smollm2"));
    let tools = r#"{"model":"x","messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function","function":{"name":"f"}}]}"#;
    let refused = client.post("/v1/chat/completions", &[], tools).await;
    assert_eq!(refused.status, 503, "what the model inside cannot do is treated as if there were no spill");
    let long = serde_json::json!({"model": "x", "messages": [{"role": "user", "content": "word ".repeat(400)}]});
    assert_eq!(client.post("/v1/chat/completions", &[], long.to_string()).await.status, 503);
    assert_eq!(client.post("/v1/embeddings", &[], r#"{"model":"x","input":"x"}"#).await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_no_form_of_the_answer_bars_no_spill() {
    let full = Upstream::fixed(503, "full").await;
    let gateway = Gateway::start(&fleet(&[&full.url()], "maxFullFor: 10s", "")).await;
    let client = gateway.client();
    let ask = async |fields: serde_json::Value| {
        let messages = serde_json::json!([{"role": "user", "content": "hi"}]);
        let mut body = serde_json::json!({"model": "x", "messages": messages, "max_tokens": 4});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        client.post("/v1/chat/completions", &[], body.to_string()).await
    };
    for (fields, dropped) in [
        (serde_json::json!({"verbosity": "low", "reasoning_effort": "high"}), "verbosity, reasoning_effort"),
        (serde_json::json!({"chat_template_kwargs": {"enable_thinking": false}}), "chat_template_kwargs"),
        (
            serde_json::json!({"stream": true, "stream_options": {"continuous_usage_stats": true}}),
            "stream_options.continuous_usage_stats",
        ),
        (serde_json::json!({"some new field": [1]}), "some%20new%20field"),
        (serde_json::json!({"max_new_tokens": 4, "user": "u"}), "max_new_tokens"),
    ] {
        let answer = ask(fields).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-spillway-dropped")), (200, dropped), "{}", answer.text());
        assert_eq!(answer.header("x-spillway-served-by"), "builtin/smollm2");
    }
    assert_eq!(ask(serde_json::json!({"user": "u"})).await.header("x-spillway-dropped"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_spill_is_told_why() {
    let full = Upstream::fixed(503, "full").await;
    let file = fleet(&[&full.url()], "maxFullFor: 10s", "").replace("maxSequences: 8", "unknownFields: refuse");
    let gateway = Gateway::start(&file).await;
    let client = gateway.client();
    for (headers, body, reason, field) in [
        (
            &[][..],
            r#"{"messages":[{"role":"user","content":"hi"}],"verbosity":"low"}"#,
            "unsupported_field",
            "verbosity",
        ),
        (
            &[],
            r#"{"messages":[{"role":"user","content":"hi"}],"guided_regex":"a"}"#,
            "unsupported_field",
            "guided_regex",
        ),
        (&[], r#"{"messages":[{"role":"user","content":"hi"}],"temperature":9}"#, "invalid_request", "temperature"),
        (&[("x-spillway-fallback", "never")], r#"{"messages":[{"role":"user","content":"hi"}]}"#, "caller_refuses", ""),
    ] {
        let refused = client.post("/v1/chat/completions", headers, body).await;
        assert_eq!(refused.status, 503, "{}", refused.text());
        let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
        let named = if field.is_empty() { "`x-spillway-fallback` is `never`".to_owned() } else { format!("`{field}`") };
        assert!(message.contains(&named), "{message}");
        let line = eventually("the request is logged", || async {
            gateway.events("access").into_iter().find(|line| {
                line["notSpilled"] == reason && line["notSpilledField"].as_str().unwrap_or_default() == field
            })
        });
        assert_eq!(line.await["status"], 503);
    }
    let series = "spillway_unspilled_total{http_route=\"chat\",reason=\"unsupported_field\"}";
    gateway.metric_becomes(series, 2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_down_are_stood_in_for() {
    let gateway = Gateway::start(&fleet(&[&Upstream::nobody().await], "maxInFlight: 4", "")).await;
    let answer = gateway.client().chat("x", &[]).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-spillway-served-by")), (200, "builtin/smollm2"));
    gateway.metric_becomes("spillway_spills_total{http_route=\"chat\",reason=\"unavailable\"}", 1.0).await;
    let line = eventually("the request is logged", || async { gateway.events("access").last().cloned() }).await;
    assert_eq!((&line["spilled"], &line["modelAsked"]), (&"unavailable".into(), &"x".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_over_its_limit_gets_the_lesser_answer_where_it_may() {
    let server = Upstream::fixed(200, "{}").await;
    // SHA-256 of `a` and `b`.
    let more = "    filters: [{rateLimit: {by: consumer, requests: 1/h, onExceeded: spill}}]
    spill: {models: [\"gpt-*\"], maxPromptTokens: 60}
consumers:
  - {name: a, keys: [{sha256: ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb}]}
  - {name: b, models: [\"gpt-*\"], keys: [{sha256: 3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d}]}
";
    let gateway = Gateway::start(&fleet(&[&server.url()], "", more)).await;
    let client = gateway.client();
    let by = async |model: &str, headers: &[(&str, &str)]| {
        let answer = client.chat(model, headers).await;
        (answer.status.as_u16(), answer.header("x-spillway-served-by").to_owned())
    };
    let (inside, refused) = ((200, "builtin/smollm2".to_owned()), (429, String::new()));
    assert_eq!(by("gpt-4", &[("x-api-key", "a")]).await, (200, String::new()), "within its limit");
    assert_eq!(by("gpt-4", &[("x-api-key", "a")]).await, inside);
    assert_eq!(by("other", &[("x-api-key", "a")]).await, refused, "the route lets only gpt-* spill");
    assert_eq!(by("gpt-4", &[("x-api-key", "a"), ("x-spillway-fallback", "never")]).await, refused);
    let long = serde_json::json!({"model": "gpt-4", "messages": [{"role": "user", "content": "word ".repeat(80)}]});
    assert_eq!(client.post("/v1/chat/completions", &[("x-api-key", "a")], long.to_string()).await.status, 429);
    assert_eq!(by("gpt-4", &[("x-api-key", "b")]).await, (200, String::new()));
    assert_eq!(by("gpt-4", &[("x-api-key", "b")]).await, refused, "it may not use the model that would answer");
    assert_eq!(server.count(), 2);
    gateway.metric_becomes("spillway_spills_total{http_route=\"chat\",reason=\"over_limit\"}", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_budget_gives_the_lesser_answer_and_counts_what_that_used() {
    let server = Upstream::fixed(200, "{}").await;
    let more = "consumers:
  - name: a
    limits: {budget: {tokens: 1, per: day, onExceeded: spill}}
    keys: [{sha256: ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb}]
";
    let gateway = Gateway::start(&fleet(&[&server.url()], "", more)).await;
    let client = gateway.client();
    let spent = "spillway_budget_spent{budget=\"consumer a\",per=\"day\",unit=\"tokens\"}";
    let mut before = 0.0;
    for _ in 0..2 {
        let answer = client.chat("gpt-4", &[("x-api-key", "a")]).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-spillway-served-by")), (200, "builtin/smollm2"));
        let used = answer.json()["usage"]["total_tokens"].as_f64().unwrap();
        gateway.metric_becomes(spent, before + used).await;
        before += used;
    }
    assert!(before > 30.0, "{before}");
    // A request that announces no use reserves nothing, and is judged all the same.
    let nothing = r#"{"model": "gpt-4", "max_tokens": 0, "query": "a", "documents": ["b"]}"#;
    let answer = client.post("/v1/rerank", &[("x-api-key", "a")], nothing).await;
    assert_eq!((answer.status.as_u16(), server.count()), (429, 0), "{}", answer.text());
}

struct Jaeger(Child);

impl Drop for Jaeger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spilled_request_is_one_whole_trace_in_jaeger() {
    let query = Client::new(([127, 0, 0, 1], 16686).into());
    let jaeger = Jaeger(
        Command::new(jaeger()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap(),
    );
    eventually("Jaeger listens", || async {
        let collector = tokio::net::TcpStream::connect("127.0.0.1:4317").await.is_ok();
        (collector && tokio::net::TcpStream::connect("127.0.0.1:16686").await.is_ok()).then_some(())
    })
    .await;
    let full = Upstream::fixed(503, "full").await;
    let tracing = "telemetry: {tracing: {otlp: {endpoint: \"http://127.0.0.1:4317\"}}}\n";
    let gateway = Gateway::start(&fleet(&[&full.url()], "maxInFlight: 4", tracing)).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let answer = gateway.client().chat("gpt-x", &[("traceparent", &parent)]).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-spillway-served-by")), (200, "builtin/smollm2"));
    assert!(full.last().headers["traceparent"].to_str().unwrap().starts_with(&format!("00-{trace}-")));
    let spans: Vec<serde_json::Value> = eventually("the trace is in Jaeger", || async {
        let answer = query.get(&format!("/api/traces/{trace}")).await;
        let spans = answer.json()["data"][0]["spans"].as_array().cloned().unwrap_or_default();
        (spans.len() >= 7).then_some(spans)
    })
    .await;
    let named = |name: &str| {
        spans.iter().find(|span| span["operationName"] == name).unwrap_or_else(|| {
            panic!("no span {name} in {:?}", spans.iter().map(|s| s["operationName"].clone()).collect::<Vec<_>>())
        })
    };
    let tag = |span: &serde_json::Value, key: &str| {
        let tags = span["tags"].as_array().unwrap();
        tags.iter().find(|tag| tag["key"] == key).map(|tag| tag["value"].clone()).unwrap_or_default()
    };
    let parent_of = |span: &serde_json::Value| span["references"][0]["spanID"].as_str().unwrap_or_default().to_owned();
    let server = named("POST chat");
    assert_eq!(parent_of(server), "b7ad6b7169203331", "the caller's span is continued");
    assert_eq!(tag(server, "spillway.spilled"), true);
    assert_eq!(tag(server, "spillway.spill.reason"), "saturated");
    assert_eq!(tag(server, "gen_ai.request.model"), "gpt-x");
    assert_eq!(tag(server, "gen_ai.response.model"), "smollm2");
    assert_eq!(tag(server, "http.response.status_code"), 200);
    assert!(tag(server, "gen_ai.usage.input_tokens").as_i64().unwrap() > 0);
    assert!(tag(server, "gen_ai.response.time_to_first_chunk").as_f64().unwrap() > 0.0);
    let id = server["spanID"].as_str().unwrap();
    for child in ["admission", "chat gpt-x", "chat smollm2"] {
        assert_eq!(parent_of(named(child)), id, "{child}");
    }
    let engine = named("chat smollm2")["spanID"].as_str().unwrap().to_owned();
    for child in ["queue", "prefill", "decode"] {
        assert_eq!(parent_of(named(child)), engine, "{child}");
    }
    // A collector that is gone costs no request.
    drop(jaeger);
    assert_eq!(gateway.client().chat("x", &[]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_under_a_prefix_of_its_own_spills_and_asks_the_model_as_any_other() {
    let full = Upstream::fixed(429, "full").await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: fleet, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
models: [{{name: smollm2, source: \"{}\", contextLength: 256, maxQueueWait: 60s}}]
routes:
  - name: direct
    matches: [{{path: {{prefix: /direct}}}}]
    filters: [{{urlRewrite: {{replacePrefix: /}}}}]
    backendRefs: [{{model: smollm2}}]
  - name: team
    matches: [{{path: {{prefix: /llm}}}}]
    filters: [{{urlRewrite: {{replacePrefix: /v1}}}}]
    backendRefs: [{{name: fleet}}]
    whenSaturated: {{spillTo: smollm2}}
",
        full.url(),
        model().display()
    ))
    .await;
    let body =
        serde_json::json!({"model": "smollm2", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]});
    for path in ["/direct/v1/chat/completions", "/llm/chat/completions"] {
        let answer = gateway.client().post(path, &[], body.to_string()).await;
        let by = answer.header("x-spillway-served-by").to_owned();
        assert_eq!((answer.status.as_u16(), by.as_str()), (200, "builtin/smollm2"), "{path}: {}", answer.text());
    }
    assert_eq!(full.last().path, "/v1/chat/completions");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_change_what_a_spill_reads_and_answers() {
    let full = Upstream::fixed(429, "full").await;
    let transform = serde_json::json!({
        "request": {"set": {"/max_tokens": 3, "/temperature": 0}, "prependSystem": "Be brief."},
        "response": {"set": {"/service": "s"}, "remove": ["/usage"]},
    });
    let more = format!("    filters: [{{transform: {transform}}}]");
    let gateway = Gateway::start(&fleet(&[&full.url()], "maxFullFor: 10s", &more)).await;
    let client = gateway.client();
    for is_stream in [false, true] {
        let messages = serde_json::json!([{"role": "user", "content": "Write a long story."}]);
        let body = serde_json::json!({"model": "x", "messages": messages, "stream": is_stream});
        let answer = client.post("/v1/chat/completions", &[], body.to_string()).await;
        let text = answer.text();
        assert_eq!((answer.status.as_u16(), answer.header("x-spillway-served-by")), (200, "builtin/smollm2"), "{text}");
        let objects: Vec<serde_json::Value> = if is_stream {
            assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
            let data = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
            data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
        } else {
            assert_eq!(answer.header("content-length"), text.len().to_string());
            vec![answer.json()]
        };
        assert!(objects.iter().all(|object| object["service"] == "s" && object["usage"].is_null()), "{text}");
    }
    let lines = eventually("lines", || async { Some(gateway.events("access")).filter(|lines| lines.len() == 2) }).await;
    let counted: Vec<_> = lines.iter().map(|line| line["completionTokens"].clone()).collect();
    assert_eq!(counted, [3, 3], "the request is the changed one, and its tokens count");
}
