//! OpenAI's Responses API: answered by a built-in model, directly and as a spill, and passed to backends with its usage read.

use serde_json::{Value, json};
use spillway_tests::{
    Gateway, TEMPLATE_WITH_TOOLS, Upstream, eventually, model, reply, script, streamed, with_template,
};

fn inside(file: &std::path::Path, context: u32) -> String {
    format!(
        "models: [{{name: smollm2, source: \"{}\", contextLength: {context}, maxSequences: 4, maxQueueWait: 60s}}]
routes: [{{matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: smollm2}}]}}]
",
        file.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_is_answered_by_the_model_inside() {
    let gateway = Gateway::start(&inside(&model(), 256)).await;
    let told = script("openai_responses.py", &gateway, &["smollm2"]).await;
    let (whole, streamed) = (&told[0], &told[1]);
    assert_eq!(
        (&whole["status"], &whole["model"], &whole["id"]),
        (&"completed".into(), &"smollm2".into(), &"resp_".into())
    );
    assert_eq!((&whole["stored"], &whole["metadata"]), (&json!(false), &json!({"who": "test"})));
    assert_eq!(whole["instructions"], "Be brief.");
    assert_eq!(whole["input"], json!(["response.input_tokens", true]), "the tokens of the prompt, counted before");
    assert_eq!(streamed["text"], "The capital of France is Paris.");
    assert_eq!((&streamed["final"], &streamed["counted"]), (&streamed["text"], &json!(true)), "{streamed}");
    let kinds = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(streamed["kinds"], json!(kinds));
    assert_eq!((&told[2]["helper"], &told[2]["deltas"]), (&streamed["text"], &streamed["text"]));
    assert_eq!((&told[3]["city"], &told[3]["format"]), (&json!(true), &json!("json_schema")));
    assert_eq!(told[4]["more"], true, "an answer is a part of the next turn: {}", told[4]);
    assert_eq!(told[5]["asynchronous"], json!([streamed["text"], streamed["text"], streamed["text"]]));
    let refused: Vec<_> = told[6..].iter().map(|told| (told["refused"].as_str().unwrap(), &told["param"])).collect();
    let expected = [
        ("unknown model", json!("model")),
        ("stored", json!("store")),
        ("previous", json!("previous_response_id")),
        ("image", json!("input[0].content[0].type")),
        ("tool of the provider", json!("tools[0].type")),
        ("retrieved", Value::Null),
    ];
    assert_eq!(refused, expected.iter().map(|(name, param)| (*name, param)).collect::<Vec<_>>());
    assert_eq!(told.last().unwrap()["code"], "unsupported_endpoint");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_gets_the_calls_that_it_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tools.gguf");
    with_template(&model(), &file, Some(TEMPLATE_WITH_TOOLS));
    let gateway = Gateway::start(&inside(&file, 1024)).await;
    let told = script("openai_responses_tools.py", &gateway, &["smollm2"]).await;
    let told = &told[0];
    assert_eq!((&told["items"], &told["name"]), (&json!(["function_call"]), &json!("weather")));
    assert!(["Paris", "Rome"].contains(&told["arguments"]["city"].as_str().unwrap()), "{told}");
    assert_eq!((&told["streamed"], &told["answered"]), (&told["arguments"], &json!("message")));
    let kinds = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(told["kinds"], json!(kinds));
}

/// A route to one server, which spills to the model inside.
fn spilling(server: &str) -> String {
    format!(
        "models: [{{name: smollm2, source: \"{}\", contextLength: 256, maxSequences: 2, maxQueueWait: 60s}}]
backends: [{{name: fleet, protocol: openai, endpoints: [{{url: \"{server}\"}}]}}]
routes:
  - name: r
    matches: [{{path: {{prefix: /v1}}}}]
    backendRefs: [{{name: fleet}}]
    whenSaturated: {{spillTo: smollm2}}
",
        model().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_spills_unless_the_model_inside_cannot_answer_it() {
    let full = Upstream::fixed(503, "full").await;
    let gateway = Gateway::start(&spilling(&full.url())).await;
    let client = gateway.client();
    let ask = async |fields: Value| {
        let mut body = json!({"model": "gpt-5", "input": "Hi", "max_output_tokens": 4});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        client.post("/v1/responses", &[], body.to_string()).await
    };
    let spilled = ask(json!({})).await;
    assert_eq!((spilled.status.as_u16(), spilled.header("x-spillway-served-by")), (200, "builtin/smollm2"));
    assert_eq!((&spilled.json()["object"], &spilled.json()["model"]), (&json!("response"), &json!("smollm2")));
    let streamed = ask(json!({"stream": true, "truncation": "auto"})).await;
    assert_eq!(streamed.header("content-type"), "text/event-stream; charset=utf-8");
    assert_eq!(streamed.header("x-spillway-dropped"), "truncation");
    assert!(streamed.text().contains("event: response.created\n"), "{}", streamed.text());
    for fields in [json!({"store": true}), json!({"background": true}), json!({"tools": [{"type": "web_search"}]})] {
        let refused = ask(fields.clone()).await;
        assert_eq!(refused.status, 503, "{fields}");
        let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(fields.as_object().unwrap().keys().next().unwrap()), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backend_stores_is_asked_of_it() {
    let server = Upstream::start(|seen| async move {
        let body = format!(
            r#"{{"id":"resp_1","object":"response","status":"completed","output":[],"asked":"{} {}"}}"#,
            seen.method, seen.path
        );
        Some(reply(200, &[("content-type", "application/json")], body))
    })
    .await;
    let gateway = Gateway::start(&spilling(&server.url())).await;
    let client = gateway.client();
    for (method, path) in [
        ("GET", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("POST", "/v1/responses/input_tokens"),
    ] {
        let body = if method == "POST" { "{}" } else { "" };
        let answer = client.send(client.request(method, path, &[], body)).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["asked"]), (200, &json!(format!("{method} {path}"))));
    }
    let stored = json!({"model": "m", "input": "x", "store": true, "previous_response_id": "resp_0"});
    client.post("/v1/responses", &[], stored.to_string()).await;
    assert_eq!(
        serde_json::from_slice::<Value>(&server.last().body).unwrap(),
        stored,
        "towards a server all fields pass"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usage_of_every_end_is_charged_and_a_cut_stream_ends_with_an_error_event() {
    let usage = r#""usage":{"input_tokens":40,"input_tokens_details":{"cached_tokens":8},"output_tokens":60,"output_tokens_details":{"reasoning_tokens":7},"total_tokens":100}"#;
    let server = Upstream::start(move |seen| async move {
        let asked: Value = serde_json::from_slice(&seen.body).unwrap();
        let end = asked["input"].as_str().unwrap().to_owned();
        let created = "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"id\":\"resp_1\",\"object\":\"response\",\"status\":\"in_progress\",\"model\":\"m\",\"output\":[],\"usage\":null}}\n\n";
        let delta = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"sequence_number\":1,\"item_id\":\"i\",\"output_index\":0,\"content_index\":0,\"delta\":\"Hello\",\"logprobs\":[]}\n\n";
        let last = format!("event: response.{end}\ndata: {{\"type\":\"response.{end}\",\"sequence_number\":2,\"response\":{{\"id\":\"resp_1\",\"object\":\"response\",\"status\":\"{end}\",\"model\":\"m\",\"output\":[],{usage}}}}}\n\n");
        let (parts, received) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move {
            for part in [created, delta] {
                let _ = parts.send(Ok(part.into())).await;
            }
            if end == "cut" {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                let _ = parts.send(Err(std::io::Error::other("cut"))).await;
                return;
            }
            let _ = parts.send(Ok(last.into())).await;
        });
        Some(streamed(&[("content-type", "text/event-stream")], received))
    })
    .await;
    let gateway = Gateway::start(&spilling(&server.url())).await;
    let client = gateway.client();
    for (ends, end) in ["completed", "incomplete", "failed"].into_iter().enumerate() {
        let body = json!({"model": "m", "input": end, "stream": true});
        let answer = client.post("/v1/responses", &[], body.to_string()).await;
        assert!(answer.text().contains(&format!("response.{end}")), "{}", answer.text());
        let counted = f64::from(u32::try_from(ends + 1).unwrap());
        for (kind, tokens) in [("input", 40.0), ("output", 60.0)] {
            eventually("the usage is counted", || async {
                let shown = gateway.shown("/metrics").await;
                let sum: f64 = shown
                    .lines()
                    .filter(|line| {
                        line.starts_with("gen_ai_client_token_usage_sum") && line.contains(&format!("\"{kind}\""))
                    })
                    .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                    .sum();
                ((sum - tokens * counted).abs() < 0.5).then_some(())
            })
            .await;
        }
    }
    let body = json!({"model": "m", "input": "cut", "stream": true});
    let cut = client.post("/v1/responses", &[], body.to_string()).await;
    let last = cut.text().split_terminator("\n\n").last().unwrap().to_owned();
    let data = last.strip_prefix("event: error\ndata: ").unwrap_or_else(|| panic!("{last}"));
    let event: Value = serde_json::from_str(data).unwrap();
    assert_eq!((&event["type"], &event["error"]["message"]), (&json!("error"), &event["message"]));
}
