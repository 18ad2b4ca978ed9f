//! Callers of OpenAI's Responses API and of Ollama's API before servers of other APIs.

use serde_json::{Value, json};
use spillway_tests::{
    Gateway, LlamaServer, Seen, Upstream, asked, claude, event, eventually, gpt, in_bits, reply, script,
};

const JSON: (&str, &str) = ("content-type", "application/json");

fn before(url: &str, backend: &str) -> String {
    format!(
        "backends: [{{name: b, endpoints: [{{url: \"{url}\"}}], {backend}}}]
routes: [{{name: r, backendRefs: [{{name: b}}]}}]
"
    )
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
}

/// Answer as the client of the Responses API shows it.
fn response(items: Value, model: &str, usage: &Value, instructions: Value) -> Value {
    json!({"items": items, "status": "completed", "model": model, "usage": usage, "store": false, "instructions": instructions})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_responses_client_before_a_server_of_anthropics_api() {
    let upstream = Upstream::start(claude).await;
    let gateway = Gateway::start(&before(&upstream.url(), "protocol: anthropic, model: claude-x")).await;
    let told = script("dialects.py", &gateway, &["gpt", "responses", "text", "rich", "thinking"]).await;
    let usage = json!({"input_tokens": 40, "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 5},
        "output_tokens": 12, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 52});
    let said = json!([{"reasoning": "hm hm", "proof": "spillway:signature:c2ln"},
        {"reasoning": "", "proof": "spillway:redacted:eHl6"}, {"text": ["Hello ü."]}]);
    let expected = response(said.clone(), "gpt", &usage, json!("Be brief."));
    assert_eq!((&told[0]["whole"], &told[0]["streamed"]), (&expected, &expected));
    assert_eq!((&told[0]["text"], &told[0]["joined"]), (&json!("Hello ü."), &json!("Hello ü.")));
    assert_eq!(told[0]["counted"], true, "{}", told[0]);
    let kinds = told[0]["kinds"].as_array().unwrap();
    assert!(kinds.contains(&json!("reasoning_summary_text.delta")) && kinds.contains(&json!("completed")), "{kinds:?}");
    let with_call = |arguments: &str| {
        let mut said = said.clone();
        said.as_array_mut().unwrap().push(json!({"call_id": "t9", "name": "f", "arguments": arguments}));
        response(said, "gpt", &usage, json!("Be brief."))
    };
    assert_eq!(told[1]["whole"], with_call("{\"city\":\"Rome\"}"));
    assert_eq!(told[1]["streamed"], with_call("{\"city\": \"Rome\"}"));
    let seen = upstream.seen.lock().unwrap().clone();
    assert_eq!(
        asked(&seen[0]),
        json!({"model": "claude-x", "max_tokens": 64, "temperature": 0, "system": [{"type": "text", "text": "Be brief."}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]})
    );
    let image =
        json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}});
    assert_eq!(
        asked(&seen[3]),
        json!({
            "model": "claude-x", "max_tokens": 4096, "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "r"}]}]}
            ],
            "tools": [{"name": "f", "description": "F", "input_schema": schema(), "strict": true}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true}, "metadata": {"user_id": "u"},
            "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": schema()}}
        })
    );
    // The answer went back as it came, with its proofs.
    assert_eq!(
        asked(seen.last().unwrap())["messages"][1]["content"],
        json!([
            {"type": "thinking", "thinking": "hm hm", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "eHl6"},
            {"type": "text", "text": "Hello ü."}
        ])
    );
    let lines =
        eventually("lines", || async { Some(gateway.events("access")).filter(|lines| lines.len() == 12) }).await;
    assert!(lines.iter().all(|line| line["promptTokens"] == 40 && line["completionTokens"] == 12), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_responses_client_before_a_server_without_that_api() {
    let upstream = Upstream::start(gpt).await;
    let gateway = Gateway::start(&before(&upstream.url(), "protocol: openai, apis: [chat], model: gpt-x")).await;
    let told = script("dialects.py", &gateway, &["m", "responses", "text", "rich", "thinking"]).await;
    let usage = json!({"input_tokens": 40, "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 0},
        "output_tokens": 12, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 52});
    let said = json!([{"reasoning": "hm hm", "proof": null}, {"text": ["Hello ü."]}]);
    let expected = response(said, "m", &usage, json!("Be brief."));
    assert_eq!((&told[0]["whole"], &told[0]["streamed"]), (&expected, &expected));
    assert_eq!(
        told[1]["whole"]["items"][2],
        json!({"call_id": "t9", "name": "f", "arguments": "{\"city\": \"Rome\"}"})
    );
    assert_eq!(told[1]["whole"], told[1]["streamed"]);
    let seen = upstream.seen.lock().unwrap().clone();
    assert!(seen.iter().all(|seen| seen.path == "/v1/chat/completions"));
    let body = asked(&seen[3]);
    assert_eq!(body["messages"][2]["tool_calls"][0]["function"]["arguments"], "{\"x\": 1}");
    assert_eq!(body["response_format"]["json_schema"]["name"], "city");
    assert_eq!(asked(seen.last().unwrap())["messages"][1]["reasoning_content"], "hm hm");
    // Without the key the server gets the request as it came.
    let passing = Gateway::start(&before(&upstream.url(), "protocol: openai")).await;
    let body = "{\"model\":\"m\",\"input\":\"hi\",\"store\":true}";
    passing.client().post("/v1/responses", &[JSON], body).await;
    passing.client().post("/v1/responses/input_tokens", &[JSON], body).await;
    let seen = upstream.seen.lock().unwrap().clone();
    let [.., created, counted] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!((created.path.as_str(), counted.path.as_str()), ("/v1/responses", "/v1/responses/input_tokens"));
    assert_eq!((&*created.body, &*counted.body), (body.as_bytes(), body.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ollama_client_before_a_server_of_openais_api() {
    let upstream = Upstream::start(gpt).await;
    let gateway = Gateway::start(&before(&upstream.url(), "protocol: openai, model: gpt-x")).await;
    let told = script("dialects.py", &gateway, &["m:latest", "ollama", "text", "rich", "thinking"]).await;
    let expected = |calls: Value| {
        json!({"text": "Hello ü.", "thinking": "hm hm", "calls": calls, "reason": "stop", "model": "m",
        "prompt": 40, "written": 12})
    };
    for n in [0, 1, 3, 4] {
        assert_eq!((&told[n]["whole"], &told[n]["streamed"]), (&expected(json!([])), &expected(json!([]))), "{n}");
        assert_eq!(told[n]["done"], 1);
    }
    let calls = json!([{"name": "f", "arguments": {"city": "Rome"}}]);
    assert_eq!((&told[2]["whole"], &told[2]["streamed"]), (&expected(calls.clone()), &expected(calls)));
    let seen = upstream.seen.lock().unwrap().clone();
    assert_eq!(
        asked(&seen[0]),
        json!({"model": "gpt-x", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 64})
    );
    let (system, user) = (json!({"role": "system", "content": "Be brief."}), json!({"role": "user", "content": "hi"}));
    assert_eq!(asked(&seen[2])["messages"], json!([system, user]));
    let picture = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}});
    let call = json!({"id": "call_0", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}});
    assert_eq!(
        asked(&seen[4]),
        json!({
            "model": "gpt-x",
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "look"}, picture]},
                {"role": "assistant", "content": null, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_0", "content": "r"}
            ],
            "tools": [{"type": "function", "function": {"name": "f", "description": "F", "parameters": schema()}}],
            "temperature": 0.5, "stop": ["END"],
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema()}},
            "reasoning_effort": "high"
        })
    );
    assert_eq!(asked(seen.last().unwrap())["messages"][1]["reasoning_content"], "hm hm");
    let lines =
        eventually("lines", || async { Some(gateway.events("access")).filter(|lines| lines.len() == 10) }).await;
    assert!(lines.iter().all(|line| line["promptTokens"] == 40 && line["completionTokens"] == 12), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ollama_client_before_a_server_of_anthropics_api() {
    let upstream = Upstream::start(claude).await;
    let gateway = Gateway::start(&before(&upstream.url(), "protocol: anthropic, model: claude-x")).await;
    let told = script("dialects.py", &gateway, &["m", "ollama", "text", "rich", "thinking"]).await;
    for told in &told {
        for said in [&told["whole"], &told["streamed"]] {
            assert_eq!((&said["text"], &said["thinking"]), (&json!("Hello ü."), &json!("hm hm")));
            assert_eq!((&said["model"], &said["prompt"], &said["written"]), (&json!("m"), &json!(40), &json!(12)));
        }
    }
    assert_eq!(told[2]["streamed"]["calls"], json!([{"name": "f", "arguments": {"city": "Rome"}}]));
    assert_eq!(told[2]["whole"]["calls"], told[2]["streamed"]["calls"]);
    let seen = upstream.seen.lock().unwrap().clone();
    let body = asked(&seen[4]);
    assert_eq!(
        body["messages"][1]["content"][0],
        json!({"type": "tool_use", "id": "call_0", "name": "f", "input": {"x": 1}})
    );
    assert_eq!(body["output_config"], json!({"format": {"type": "json_schema", "schema": schema()}, "effort": "high"}));
    assert_eq!((&body["stop_sequences"], &body["temperature"]), (&json!(["END"]), &json!(0.5)));
    assert_eq!(asked(seen.last().unwrap())["thinking"], json!({"type": "adaptive"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_in_the_form_of_the_caller() {
    let broken = event("message_start", json!({"message": {"id": "m", "model": "c", "content": []}}))
        + &event("error", json!({"error": {"type": "overloaded_error", "message": "Overloaded"}}));
    let body = "{\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"prompt is too long\"}}";
    let upstream =
        Upstream::start(move |seen: Seen| {
            let broken = broken.clone();
            async move {
                if asked(&seen)["stream"] == true { Some(in_bits(broken)) } else { Some(reply(400, &[JSON], body)) }
            }
        })
        .await;
    let gateway = Gateway::start(&before(&upstream.url(), "protocol: anthropic")).await;
    for api in ["responses", "ollama"] {
        let told = script("dialects.py", &gateway, &["m", api, "errors"]).await;
        assert_eq!(told[0]["status"], 400, "{told:?}");
        assert!(told[0]["message"].as_str().unwrap().contains("prompt is too long"), "{told:?}");
        assert!(told[1]["streamed"].as_str().unwrap().contains("Overloaded"), "{told:?}");
    }
    // A stream that breaks ends in the form of the caller.
    let start = event("message_start", json!({"message": {"id": "m", "model": "c", "content": []}}));
    for text in [start.clone(), start + "data: not json\n\n"] {
        let upstream = Upstream::start(move |_| {
            let text = text.clone();
            async move { Some(in_bits(text)) }
        })
        .await;
        let gateway = Gateway::start(&before(&upstream.url(), "protocol: anthropic")).await;
        let body = "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}";
        let answer = gateway.client().post("/api/chat", &[JSON], body).await;
        assert_eq!(answer.header("content-type"), "application/x-ndjson");
        let last: Value = serde_json::from_str(answer.text().lines().last().unwrap()).unwrap();
        assert!(last["error"].is_string(), "{}", answer.text());
        let answer =
            gateway.client().post("/v1/responses", &[JSON], "{\"model\":\"m\",\"input\":\"x\",\"stream\":true}").await;
        assert!(
            answer.text().contains("event: error") && !answer.text().contains("response.completed"),
            "{}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn what_has_no_counterpart_is_refused_in_the_form_of_the_caller() {
    let upstream = Upstream::start(claude).await;
    let gateway =
        Gateway::start(&before(&upstream.url(), "protocol: anthropic, models: [m], dropFields: [options.seed]")).await;
    let client = gateway.client();
    let answer =
        client.post("/v1/responses", &[JSON], "{\"model\":\"m\",\"input\":\"x\",\"previous_response_id\":\"r\"}").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (400, &json!("previous_response_id")));
    let message = "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]";
    let answer =
        client.post("/api/chat", &[JSON], format!("{{\"model\":\"m\",{message},\"options\":{{\"min_p\":0.5}}}}")).await;
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"].as_str().unwrap().contains("options.min_p"), "{}", answer.text());
    let body = format!("{{\"model\":\"m\",{message},\"options\":{{\"seed\":5}},\"keep_alive\":1,\"stream\":false}}");
    let answer = client.post("/api/chat", &[JSON], body).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-spillway-dropped")), (200, "keep_alive, options.seed"));
    for (path, body) in
        [("/api/embed", "{\"model\":\"m\",\"input\":\"x\"}"), ("/v1/embeddings", "{\"model\":\"m\",\"input\":\"x\"}")]
    {
        let answer = client.post(path, &[JSON], body).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
        assert!(answer.text().contains("anthropic"), "{path}: {}", answer.text());
    }
    for (path, body, list) in [
        ("/api/chat", format!("{{\"model\":\"x\",{message}}}"), "/api/tags"),
        ("/v1/responses", "{\"model\":\"x\",\"input\":\"x\"}".to_owned(), "/v1/models"),
    ] {
        let answer = client.post(path, &[JSON], body).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
        assert!(answer.text().contains(&format!("GET {list} lists")), "{path}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_clients_before_a_real_llama_cpp_server() {
    let server = LlamaServer::start(1);
    let gateway = Gateway::start(&before(&server.url, "protocol: openai, apis: [chat]")).await;
    let told = script("dialects.py", &gateway, &["smollm2", "responses", "text"]).await;
    assert!(!told[0]["text"].as_str().unwrap().is_empty() && told[0]["counted"] == true, "{}", told[0]);
    assert_eq!(told[0]["streamed"]["items"][0]["text"][0], told[0]["text"]);
    assert!(!told[0]["joined"].as_str().unwrap().is_empty(), "{}", told[0]);
    let told = script("dialects.py", &gateway, &["smollm2", "ollama", "text"]).await;
    for told in told {
        assert!(!told["streamed"]["text"].as_str().unwrap().is_empty() && told["done"] == 1, "{told}");
        assert!(told["streamed"]["written"].as_u64().is_some_and(|tokens| tokens > 0), "{told}");
    }
}
