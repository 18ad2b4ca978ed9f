//! Callers of one model API before servers of another: what the server gets, what the caller reads, and what it pays.

use serde_json::{Value, json};
use spillway_tests::{
    Gateway, LlamaServer, Seen, Upstream, asked, claude, encoded, event, eventually, gpt, in_bits, reply, script,
};

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream; charset=utf-8");
const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

fn before(protocol: &str, upstream: &Upstream, backend: &str, route: &str) -> String {
    format!(
        "backends: [{{name: b, protocol: {protocol}, endpoints: [{{url: \"{}\"}}]{backend}}}]
routes: [{{name: r, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: b}}]{route}}}]
",
        upstream.url()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_client_before_a_server_of_anthropics_api() {
    let upstream = Upstream::start(claude).await;
    let credentials = ", model: claude-x, credentials: {header: x-api-key, secret: {env: TEST_SECRET}}";
    let gateway = Gateway::start(&before("anthropic", &upstream, credentials, "")).await;
    let told = script("translated.py", &gateway, &["gpt", "openai", "text", "rich", "thinking"]).await;
    let usage = json!({"prompt_tokens": 40, "completion_tokens": 12, "total_tokens": 52,
        "prompt_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 5}});
    let whole_blocks = json!([
        {"type": "thinking", "thinking": "hm hm", "signature": "c2ln"}, {"type": "redacted_thinking", "data": "eHl6"}
    ]);
    let pieces = json!([
        {"type": "thinking", "thinking": "hm "}, {"type": "thinking", "thinking": "hm"},
        {"type": "thinking", "thinking": "", "signature": "c2ln"}, {"type": "redacted_thinking", "data": "eHl6"}
    ]);
    let expected = |blocks: &Value, calls: Value, reason: &str| json!({"text": "Hello ü.", "reasoning": "hm hm", "blocks": blocks, "calls": calls, "reason": reason, "usage": usage});
    assert_eq!(told[0]["whole"], expected(&whole_blocks, json!([]), "stop"));
    assert_eq!(told[0]["streamed"], expected(&pieces, json!([]), "stop"));
    let calls = |arguments: &str| json!([{"id": "t9", "name": "f", "arguments": arguments}]);
    assert_eq!(told[1]["whole"], expected(&whole_blocks, calls("{\"city\":\"Rome\"}"), "tool_calls"));
    assert_eq!(told[1]["streamed"], expected(&pieces, calls("{\"city\": \"Rome\"}"), "tool_calls"));
    let seen = upstream.seen.lock().unwrap().clone();
    let head = &seen[0].headers;
    assert_eq!(
        (head["x-api-key"].as_bytes(), head["anthropic-version"].as_bytes()),
        (&b"upstream-secret"[..], &b"2023-06-01"[..])
    );
    assert!(!head.contains_key("authorization") && head["accept-encoding"] == "identity", "{head:?}");
    assert_eq!(
        asked(&seen[0]),
        json!({"model": "claude-x", "max_tokens": 64, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]})
    );
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let image =
        json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}});
    assert_eq!(
        asked(&seen[2]),
        json!({
            "model": "claude-x", "max_tokens": 4096, "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "r"}]},
                    {"type": "text", "text": "so?"}]}
            ],
            "tools": [{"name": "f", "description": "F", "input_schema": schema}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
            "stop_sequences": ["END"], "metadata": {"user_id": "u"},
            "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": schema}}
        })
    );
    // The answer went back as it came, with its proofs.
    let again = asked(&seen[6]);
    assert_eq!(
        again["messages"][1]["content"],
        json!([
            {"type": "thinking", "thinking": "hm hm", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "eHl6"},
            {"type": "text", "text": "Hello ü."}
        ])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_anthropic_client_before_a_server_of_openais_api() {
    let upstream = Upstream::start(gpt).await;
    let credentials = ", model: gpt-x, credentials: {bearer: {env: TEST_SECRET}}";
    let gateway = Gateway::start(&before("openai", &upstream, credentials, "")).await;
    let told = script("translated.py", &gateway, &["claude", "anthropic", "text", "rich", "thinking"]).await;
    let mut content = vec![
        json!({"type": "thinking", "thinking": "hm hm", "signature": ""}),
        json!({"type": "text", "text": "Hello ü."}),
    ];
    let usage = json!({"input_tokens": 10, "cache_read_input_tokens": 30, "output_tokens": 12});
    let expected = |content: &Vec<Value>, reason: &str| {
        json!({"type": "message", "role": "assistant", "model": "claude", "content": content,
            "stop_reason": reason, "stop_sequence": null, "usage": usage})
    };
    assert_eq!(told[0]["whole"], expected(&content, "end_turn"));
    assert_eq!(told[0]["streamed"], expected(&content, "end_turn"));
    content.push(json!({"type": "tool_use", "id": "t9", "name": "f", "input": {"city": "Rome"}}));
    assert_eq!(told[1]["whole"], expected(&content, "tool_use"));
    assert_eq!(told[1]["streamed"], expected(&content, "tool_use"));
    assert_eq!(told[1]["dropped"], "system[0].cache_control");
    let seen = upstream.seen.lock().unwrap().clone();
    let head = &seen[0].headers;
    assert_eq!(head["authorization"], "Bearer upstream-secret");
    assert!(!head.contains_key("x-api-key") && !head.contains_key("anthropic-version"), "{head:?}");
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    assert_eq!(
        asked(&seen[3]),
        json!({
            "model": "gpt-x",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]},
                {"role": "assistant", "content": null,
                    "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}]},
                {"role": "tool", "tool_call_id": "t1", "content": "r"}
            ],
            "tools": [{"type": "function", "function": {"name": "f", "description": "F", "parameters": schema}}],
            "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 64, "stop": ["END"],
            "reasoning_effort": "high",
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": true}},
            "user": "u", "stream": true, "stream_options": {"include_usage": true}
        })
    );
    assert_eq!(asked(&seen[6])["messages"][1]["reasoning_content"], "hm hm", "a proof that is none does not go back");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_anthropic_client_before_a_real_llama_cpp_server() {
    let server = LlamaServer::start(1);
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: b}}]}}]
",
        server.url
    ))
    .await;
    let told = script("translated.py", &gateway, &["smollm2", "anthropic", "text"]).await;
    for message in [&told[0]["whole"], &told[0]["streamed"]] {
        assert_eq!(message["content"][0]["type"], "text", "{message}");
        assert!(message["usage"]["output_tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{message}");
        assert!(["end_turn", "max_tokens"].contains(&message["stop_reason"].as_str().unwrap()), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_keep_their_details_and_lose_credentials() {
    let fails = |body: &'static str, stream: String| {
        move |seen: Seen| {
            let stream = stream.clone();
            async move {
                if asked(&seen)["stream"] == true { Some(in_bits(stream)) } else { Some(reply(400, &[JSON], body)) }
            }
        }
    };
    let broken = event("message_start", json!({"message": {"id": "m", "model": "c", "content": []}}))
        + &event("error", json!({"error": {"type": "overloaded_error", "message": "Overloaded"}}));
    let body = "{\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"prompt is too long for upstream-secret\"}}";
    let claude = Upstream::start(fails(body, broken)).await;
    let credentials = ", credentials: {header: x-api-key, secret: {env: TEST_SECRET}}";
    let gateway = Gateway::start(&before("anthropic", &claude, credentials, "")).await;
    let told = script("translated.py", &gateway, &["m", "openai", "errors"]).await;
    assert_eq!((&told[0]["class"], &told[0]["status"]), (&json!("BadRequestError"), &json!(400)), "{}", told[0]);
    let message = told[0]["message"].as_str().unwrap();
    assert!(message.contains("prompt is too long for ***************") && !message.contains("secret"), "{message}");
    assert!(told[1]["streamed"].as_str().unwrap().contains("Overloaded"), "{}", told[1]);
    let body = "{\"error\":{\"message\":\"too long\",\"type\":\"invalid_request_error\",\"param\":\"messages\",\"code\":\"context_length_exceeded\"}}";
    let broken = "data: {\"error\":{\"message\":\"the engine died\",\"code\":500}}\n\n".to_owned();
    let gpt = Upstream::start(fails(body, broken)).await;
    let gateway = Gateway::start(&before("openai", &gpt, "", ", retry: {attempts: 0}")).await;
    let told = script("translated.py", &gateway, &["m", "anthropic", "errors"]).await;
    assert_eq!(
        (&told[0]["class"], &told[0]["code"]),
        (&json!("BadRequestError"), &json!("context_length_exceeded")),
        "{}",
        told[0]
    );
}

fn chat(more: Value) -> String {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

fn message(more: Value) -> String {
    let mut body = json!({"max_tokens": 9});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    chat(body)
}

#[tokio::test]
async fn what_has_no_counterpart_is_refused_by_name_or_dropped_and_named() {
    let upstream = Upstream::start(claude).await;
    let gateway = Gateway::start(&before("anthropic", &upstream, "", "")).await;
    let client = gateway.client();
    for (fields, param) in [
        (json!({"n": 2}), "n"),
        (json!({"seed": 7}), "seed"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"modalities": ["audio"]}), "modalities"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}),
            "messages[0].content[0]",
        ),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0]"),
        (json!({"frobnicate": 1}), "frobnicate"),
    ] {
        let answer = client.post("/v1/chat/completions", &[JSON], chat(fields.clone())).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["error"]["param"].clone()),
            (400, json!(param)),
            "{fields}: {}",
            answer.text()
        );
    }
    assert_eq!(upstream.count(), 0);
    let harmless = json!({"n": 1, "logprobs": false, "tools": [], "presence_penalty": 0, "store": false, "response_format": {"type": "text"}});
    let answer = client.post("/v1/chat/completions", &[JSON], chat(harmless)).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-spillway-dropped")), (200, ""), "{}", answer.text());
    let unknown = client.post("/v1/embeddings", &[JSON], "{\"model\":\"m\",\"input\":\"x\"}").await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.json()["error"]["code"].clone()),
        (404, json!("unsupported_endpoint"))
    );
    let gateway =
        Gateway::start(&before("anthropic", &upstream, ", dropFields: [seed, temperature, frobnicate]", "")).await;
    let body = chat(json!({"seed": 7, "temperature": 0.5, "frobnicate": {"x": 1}, "prompt_cache_key": "k"}));
    let answer = gateway.client().post("/v1/chat/completions", &[JSON], body).await;
    assert_eq!(
        answer.header("x-spillway-dropped"),
        "prompt_cache_key, temperature, seed, frobnicate",
        "{}",
        answer.text()
    );
    assert_eq!(
        asked(&upstream.last()).as_object().unwrap().keys().collect::<Vec<_>>(),
        ["model", "max_tokens", "messages"]
    );
}

#[tokio::test]
async fn a_route_names_the_apis_of_its_callers() {
    let upstream = Upstream::start(claude).await;
    let gateway = Gateway::start(&before("anthropic", &upstream, "", ", protocols: [anthropic]")).await;
    let client = gateway.client();
    let refused = client.post("/v1/chat/completions", &[JSON], chat(json!({}))).await;
    assert_eq!(
        (refused.status.as_u16(), refused.json()["error"]["code"].clone()),
        (404, json!("unsupported_endpoint"))
    );
    let answer = client.post("/v1/messages", &[JSON, VERSION], message(json!({}))).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn bytes_of_the_same_api_pass_with_the_model_renamed_and_cost_the_same() {
    let upstream = Upstream::start(claude).await;
    let backend = ", model: claude-x";
    let gateway = Gateway::start(&before("anthropic", &upstream, backend, "")).await;
    let client = gateway.client();
    for stream in [false, true] {
        let body = message(
            json!({"stream": stream, "thinking": {"type": "enabled", "budget_tokens": 1024}, "something_new": 1}),
        );
        let answer = client.post("/v1/messages", &[JSON, ("anthropic-beta", "x")], body.clone()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().contains("c2ln") && !answer.header("request-id").is_empty(), "{}", answer.text());
        let seen = upstream.last();
        assert_eq!(String::from_utf8(seen.body.to_vec()).unwrap(), body.replace("\"m\"", "\"claude-x\""));
        assert_eq!(
            (&seen.headers["anthropic-version"], &seen.headers["anthropic-beta"]),
            (&"2023-06-01".parse().unwrap(), &"x".parse().unwrap())
        );
        let foreign = client.post("/v1/chat/completions", &[JSON], chat(json!({"stream": stream}))).await;
        assert_eq!((foreign.status.as_u16(), foreign.header("anthropic-ratelimit-requests-limit")), (200, ""));
        assert_eq!(foreign.headers.get_all("content-length").iter().count(), usize::from(!stream));
    }
    let lines =
        eventually("four lines", || async { Some(gateway.events("access")).filter(|lines| lines.len() == 4) }).await;
    for line in &lines {
        assert_eq!((&line["promptTokens"], &line["completionTokens"]), (&json!(40), &json!(12)), "{line}");
        assert_eq!((&line["modelAnswered"], &line["servedBy"]), (&json!("claude-x"), &json!("b")), "{line}");
    }
}

#[tokio::test]
async fn compressed_and_broken_answers() {
    let whole = |seen: &Seen| asked(seen)["stream"] != true;
    for coding in ["gzip", "deflate", "br", "zstd"] {
        let upstream = Upstream::start(move |seen| async move {
            let plain = claude(seen.clone()).await.unwrap();
            let body = http_body_util::BodyExt::collect(plain.into_body()).await.unwrap().to_bytes();
            let kind = if whole(&seen) { JSON } else { EVENTS };
            Some(reply(200, &[kind, ("content-encoding", coding), ("etag", "x")], encoded(coding, &body)))
        })
        .await;
        let gateway = Gateway::start(&before("anthropic", &upstream, "", ", retry: {attempts: 0}")).await;
        for stream in [false, true] {
            let answer = gateway.client().post("/v1/chat/completions", &[JSON], chat(json!({"stream": stream}))).await;
            assert!(answer.text().contains("Hello"), "{coding} {stream}: {}", answer.text());
            assert_eq!((answer.header("content-encoding"), answer.header("etag")), ("", ""));
            assert_eq!(answer.status, 200, "{coding} {stream}");
        }
    }
    let start = event("message_start", json!({"message": {"id": "m", "model": "c", "content": []}}));
    for (text, code) in [
        (start.clone(), "upstream_reset"),
        (
            start.clone() + "data: {\"type\":\"content_block_delta\",\"index\":9,\"delta\":{}}\n\n",
            "upstream_answer_unreadable",
        ),
        (start + "data: not json\n\n", "upstream_answer_unreadable"),
    ] {
        let upstream = Upstream::start(move |_| {
            let text = text.clone();
            async move { Some(in_bits(text)) }
        })
        .await;
        let gateway = Gateway::start(&before("anthropic", &upstream, "", "")).await;
        let answer = gateway.client().post("/v1/chat/completions", &[JSON], chat(json!({"stream": true}))).await;
        assert!(answer.text().contains(code) && !answer.text().contains("[DONE]"), "{code}: {}", answer.text());
    }
    for body in ["<html>", "{}", "[]", ""] {
        let upstream = Upstream::start(move |_| async move { Some(reply(200, &[JSON], body)) }).await;
        let gateway = Gateway::start(&before("anthropic", &upstream, "", "")).await;
        let answer = gateway.client().post("/v1/chat/completions", &[JSON], chat(json!({}))).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["error"]["code"].clone()),
            (502, json!("upstream_answer_unreadable")),
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_request_that_its_only_target_cannot_take_waits_for_no_slot_and_does_not_spill() {
    let (held, gone) = (Upstream::start(|_| std::future::pending()).await, Upstream::start(gpt).await);
    for saturated in ["", ", whenSaturated: {queue: {maxWait: 1s}}", ", whenSaturated: {spillTo: gpt}"] {
        let gateway = Gateway::start(&format!(
            "backends:
- {{name: claude, protocol: anthropic, endpoints: [{{url: \"{}\"}}], capacity: {{maxInFlight: 1}}}}
- {{name: gpt, protocol: openai, endpoints: [{{url: \"{}\"}}]}}
routes: [{{name: r, backendRefs: [{{name: claude}}]{saturated}}}]
",
            held.url(),
            gone.url()
        ))
        .await;
        let (before, client) = (held.count(), gateway.client());
        let first = tokio::spawn(async move { client.post("/v1/chat/completions", &[JSON], chat(json!({}))).await });
        eventually("the slot is taken", || async { (held.count() > before).then_some(()) }).await;
        let biased = chat(json!({"logit_bias": {"1": 5}}));
        let answer = gateway.client().post("/v1/chat/completions", &[JSON], biased).await;
        assert_eq!(answer.status, 400, "{saturated}: {}", answer.text());
        assert_eq!(answer.json()["error"]["param"], "logit_bias", "{saturated}: {}", answer.text());
        first.abort();
    }
    assert_eq!(gone.count(), 0);
}

#[tokio::test]
async fn an_answer_that_is_too_long_to_be_translated_is_refused_by_the_limit() {
    // Of 100 KiB, whole or as a stream, compressed where the caller has a user.
    let upstream = Upstream::start(|seen| async move {
        let long = "x".repeat(100 << 10);
        if asked(&seen)["stream"] == true {
            let piece =
                json!({"type": "input_json_delta", "partial_json": format!("{{\"x\":\"{}", "x".repeat(1 << 10))});
            let delta = event("content_block_delta", json!({"index": 0, "delta": piece}));
            let call = json!({"type": "tool_use", "id": "t", "name": "f", "input": {}});
            let mut all = event("message_start", json!({"message": {"id": "m", "model": "c", "content": []}}));
            all += &event("content_block_start", json!({"index": 0, "content_block": call}));
            return Some(reply(200, &[EVENTS], all + &delta.repeat(100)));
        }
        let content = json!([{"type": "text", "text": long}]);
        let usage = json!({"input_tokens": 1, "output_tokens": 1});
        let answer = json!({"id": "m", "type": "message", "role": "assistant", "content": content, "model": "c",
            "stop_reason": "end_turn", "usage": usage});
        let body = answer.to_string().into_bytes();
        Some(match asked(&seen)["metadata"].is_object() {
            true => reply(200, &[JSON, ("content-encoding", "gzip")], encoded("gzip", &body)),
            false => reply(200, &[JSON], body),
        })
    })
    .await;
    let start = async |limits: &str| {
        let yaml = before("anthropic", &upstream, limits, "").replace("matches: [{path: {prefix: /v1}}], ", "");
        Gateway::start(&yaml).await
    };
    let (bounded, wide) = (start(", limits: {maxTranslatedBytes: 64KiB}").await, start("").await);
    let message = json!([{"role": "user", "content": "hi"}]);
    for (path, body) in [
        ("/v1/chat/completions", json!({"model": "m", "messages": message})),
        ("/v1/responses", json!({"model": "m", "input": "hi"})),
        ("/v1/responses", json!({"model": "m", "input": "hi", "stream": true})),
        ("/api/chat", json!({"model": "m", "messages": message, "stream": true})),
    ] {
        let answer = bounded.client().post(path, &[JSON], body.to_string()).await;
        let status = if body["stream"] == true { 200 } else { 502 };
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text());
        assert!(answer.text().contains("`limits.maxTranslatedBytes`"), "{path} {body}: {}", answer.text());
        let answer = wide.client().post(path, &[JSON], body.to_string()).await;
        assert!(!answer.text().contains("maxTranslatedBytes"), "{path} {body}: {}", answer.text());
    }
    bounded.metric_becomes("spillway_translated_answers_too_large_total{http_route=\"r\"}", 4.0).await;
    eventually("the refusals are logged", || async {
        let lines = bounded.events("access");
        (lines.iter().filter(|line| line["errorCode"] == "upstream_answer_too_large").count() == 4).then_some(())
    })
    .await;
    // Of a compressed answer, the bytes that it decodes to.
    let body = json!({"model": "m", "messages": message, "user": "u"}).to_string();
    let answer = bounded.client().post("/v1/chat/completions", &[JSON], body.clone()).await;
    assert_eq!((answer.status.as_u16(), answer.text().contains("`limits.maxTranslatedBytes`")), (502, true));
    assert_eq!(answer.json()["error"]["code"], "upstream_answer_too_large", "{}", answer.text());
    bounded.metric_becomes("spillway_translated_answers_too_large_total{http_route=\"r\"}", 5.0).await;
    assert_eq!(wide.client().post("/v1/chat/completions", &[JSON], body).await.status, 200);
}

#[tokio::test]
async fn a_request_moves_on_to_a_server_of_another_api() {
    let full = Upstream::fixed(503, "{}").await;
    let (claude, gpt) = (Upstream::start(claude).await, Upstream::start(gpt).await);
    let gateway = Gateway::start(&format!(
        "backends:
- {{name: full, protocol: openai, endpoints: [{{url: \"{}\"}}]}}
- {{name: claude, protocol: anthropic, endpoints: [{{url: \"{}\"}}]}}
- {{name: gpt, protocol: openai, endpoints: [{{url: \"{}\"}}]}}
routes:
- {{name: r, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: full}}, {{name: claude, priority: 1}}]}}
- {{name: s, matches: [{{path: {{prefix: /spill/v1}}}}], filters: [{{urlRewrite: {{replacePrefix: /v1}}}}], backendRefs: [{{name: full}}], whenSaturated: {{spillTo: claude}}}}
",
        full.url(),
        claude.url(),
        gpt.url()
    ))
    .await;
    for (path, served) in [("/v1/chat/completions", ""), ("/spill/v1/chat/completions", "claude")] {
        for stream in [false, true] {
            let answer = gateway.client().post(path, &[JSON], chat(json!({"stream": stream}))).await;
            assert!(answer.status == 200 && answer.text().contains("Hello"), "{path}: {}", answer.text());
            assert_eq!(answer.header("x-spillway-served-by"), served, "{path}");
        }
    }
    let answer = gateway.client().post("/v1/messages", &[JSON, VERSION], message(json!({}))).await;
    assert!(answer.status == 200 && answer.json()["type"] == "message", "{}", answer.text());
    // What only the API of the stand-in lacks is no fault of the request, which its own servers answer once they have room.
    let spilled = chat(json!({"seed": 7}));
    let answer = gateway.client().post("/spill/v1/chat/completions", &[JSON], spilled).await;
    assert!(answer.status == 503 && answer.text().contains("`seed` is not supported there"), "{}", answer.text());
    let embeddings = json!({"model": "m", "input": "a"}).to_string();
    let answer = gateway.client().post("/spill/v1/embeddings", &[JSON], embeddings).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
}

/// Errors as servers write them into an answer with status 200, with the status that belongs to each.
const REPORTED: [(&str, &str, u16); 7] = [
    ("openai", r#"{"error":{"message":"died of upstream-secret","type":"server_error","code":500}}"#, 500),
    ("openai", r#"{"error":"died of upstream-secret"}"#, 500),
    ("openai", r#"{"object":"error","message":"died of upstream-secret","type":"BadRequestError","code":400}"#, 400),
    ("openai", r#"{"id":"x","choices":null,"error":{"message":"died of upstream-secret","code":"502"}}"#, 502),
    (
        "openai",
        r#"{"id":"x","choices":[],"error":{"message":"died of upstream-secret","type":"not_found_error"}}"#,
        404,
    ),
    (
        "anthropic",
        r#"{"type":"error","error":{"type":"api_error","message":"died of upstream-secret"},"request_id":"r"}"#,
        500,
    ),
    ("anthropic", r#"{"error":{"type":"invalid_request_error","message":"died of upstream-secret"}}"#, 400),
];

fn told(text: &str) -> bool {
    text.contains("died of ***************") && !text.contains("upstream-secret")
}

#[tokio::test]
async fn an_error_in_an_answer_with_status_200_keeps_its_message_in_the_shape_of_the_caller() {
    let credentials = ", credentials: {bearer: {env: TEST_SECRET}}";
    for (protocol, body, status) in REPORTED {
        let upstream = Upstream::start(move |seen| async move {
            let stream = asked(&seen)["stream"] == true;
            Some(if stream { in_bits(format!("data: {body}\n\n")) } else { reply(200, &[JSON], body) })
        })
        .await;
        let route = ", retry: {attempts: 0}";
        let yaml = before(protocol, &upstream, credentials, route).replace("prefix: /v1", "prefix: /");
        let yaml = if protocol == "openai" {
            yaml.replace("protocol: openai", "protocol: openai, apis: [chat]")
        } else {
            yaml
        };
        let gateway = Gateway::start(&yaml).await;
        let client = gateway.client();
        for path in ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"] {
            let is_own = path == "/v1/chat/completions" && protocol == "openai"
                || path == "/v1/messages" && protocol == "anthropic";
            let ask = async |stream: bool| {
                let body = match path {
                    "/v1/responses" => json!({"model": "m", "input": "hi", "stream": stream}).to_string(),
                    _ => message(json!({"stream": stream})),
                };
                let body = if path == "/api/chat" { body.replace("\"max_tokens\":9,", "") } else { body };
                client.post(path, &[JSON, VERSION], body).await
            };
            let (whole, streamed) = (ask(false).await, ask(true).await);
            // What passes as an answer is not looked at.
            let passes = is_own && body.starts_with("{\"id\"");
            assert!(passes || told(&whole.text()), "{path}: {body}: {}", whole.text());
            assert!(told(&streamed.text()), "{path}: {body}: {}", streamed.text());
            if !is_own {
                assert_eq!(whole.status.as_u16(), status, "{path}: {body}: {}", whole.text());
                let error = &whole.json()["error"];
                let is_shaped = if path == "/api/chat" { error.is_string() } else { error["message"].is_string() };
                assert!(is_shaped, "{path}: {}", whole.text());
            }
            assert_eq!(streamed.status, 200, "{path}: {body}");
        }
        // One that is the server's fault counts as a failure of its endpoint.
        let last = gateway.endpoint(&upstream.url()).await["lastError"].to_string();
        assert_eq!(last.contains(&status.to_string()), status >= 500, "{body}: {last}");
    }
}

#[tokio::test]
async fn an_error_in_an_answer_with_status_200_goes_elsewhere_first() {
    for (protocol, body, status) in REPORTED.into_iter().filter(|(_, _, status)| *status >= 500) {
        let broken = Upstream::start(move |seen| async move {
            let stream = asked(&seen)["stream"] == true;
            Some(if stream { in_bits(format!("data: {body}\n\n")) } else { reply(200, &[JSON], body) })
        })
        .await;
        let well = Upstream::start(move |seen| async move {
            if protocol == "openai" { gpt(seen).await } else { claude(seen).await }
        })
        .await;
        let yaml = format!(
            "backends: [{{name: b, protocol: {protocol}, loadBalancing: {{policy: roundRobin}}, endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]}}]
routes: [{{name: r, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: b}}], retry: {{attempts: 1, budget: 1}}}}]
",
            broken.url(),
            well.url()
        );
        let gateway = Gateway::start(&yaml).await;
        let path = if protocol == "openai" { "/v1/messages" } else { "/v1/chat/completions" };
        for stream in [false, true, false, true] {
            let answer = gateway.client().post(path, &[JSON, VERSION], message(json!({"stream": stream}))).await;
            assert_eq!(answer.status, 200, "{body} {status}: {}", answer.text());
            assert!(answer.text().contains("Hello"), "{body}: {}", answer.text());
        }
        assert!(broken.count() >= 2, "{body}: {}", broken.count());
    }
}

#[tokio::test]
async fn a_late_error_in_a_stream_keeps_its_message_and_loses_credentials() {
    let begun = "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hel\"}}]}\n\n";
    for body in [
        "{\"error\":{\"message\":\"died of upstream-secret\"}}",
        "{\"object\":\"error\",\"message\":\"died of upstream-secret\"}",
    ] {
        let upstream = Upstream::start(move |_| async move { Some(in_bits(format!("{begun}data: {body}\n\n"))) }).await;
        let gateway =
            Gateway::start(&before("openai", &upstream, ", credentials: {bearer: {env: TEST_SECRET}}", "")).await;
        for path in ["/v1/messages", "/v1/chat/completions"] {
            let answer = gateway.client().post(path, &[JSON, VERSION], message(json!({"stream": true}))).await;
            let text = answer.text();
            assert!(text.contains("Hel") && told(&text), "{path}: {text}");
        }
    }
}

#[tokio::test]
async fn a_compressed_stream_is_read_in_any_coding() {
    for coding in ["gzip", "deflate", "br", "zstd"] {
        let upstream = Upstream::start(move |seen| async move {
            let plain = gpt(seen).await?;
            let text = http_body_util::BodyExt::collect(plain.into_body()).await.ok()?.to_bytes();
            Some(reply(200, &[EVENTS, ("content-encoding", coding)], encoded(coding, &text)))
        })
        .await;
        let gateway = Gateway::start(&before("openai", &upstream, "", "")).await;
        let answer = gateway.client().post("/v1/messages", &[JSON, VERSION], message(json!({"stream": true}))).await;
        let text = answer.text();
        assert_eq!((answer.status.as_u16(), answer.header("content-encoding")), (200, ""), "{coding}: {text}");
        assert!(text.contains("Hello") && text.contains("message_stop"), "{coding}: {text}");
        assert_eq!(upstream.last().headers["accept-encoding"], "identity");
        let is_output = |line: &&str| line.starts_with("gen_ai_client_token_usage_sum") && line.contains("\"output\"");
        eventually("the tokens are counted", || async {
            let counted = gateway.shown("/metrics").await;
            counted.lines().find(is_output).filter(|line| line.ends_with(" 12.0")).map(|_| ())
        })
        .await;
    }
    // What is not in the coding that it names is cut, and says so.
    for coding in ["br", "zstd"] {
        let upstream = Upstream::start(move |_| async move {
            Some(reply(200, &[EVENTS, ("content-encoding", coding)], "data: plain text\n\n"))
        })
        .await;
        let gateway = Gateway::start(&before("openai", &upstream, "", ", retry: {attempts: 0}")).await;
        let answer = gateway.client().post("/v1/messages", &[JSON, VERSION], message(json!({"stream": true}))).await;
        assert!(answer.text().contains("upstream_answer_unreadable"), "{coding}: {} {}", answer.status, answer.text());
    }
}

#[tokio::test]
async fn bytes_behind_the_end_of_a_compressed_stream_do_not_break_it_but_a_missing_end_does() {
    for (kind, is_whole) in [("junk", true), ("junk apart", true), ("cut", false)] {
        let upstream = Upstream::start(move |seen| async move {
            let plain = gpt(seen).await?;
            let text = http_body_util::BodyExt::collect(plain.into_body()).await.ok()?.to_bytes();
            let mut body = encoded("gzip", &text);
            let (parts, receiver) = tokio::sync::mpsc::channel(2);
            match kind {
                "cut" => body.truncate(body.len() / 2),
                "junk" => body.extend_from_slice(b"no member of gzip"),
                _ => {}
            }
            parts.send(Ok(body.into())).await.ok()?;
            if kind == "junk apart" {
                parts.send(Ok("no member of gzip".into())).await.ok()?;
            }
            Some(spillway_tests::streamed(&[EVENTS, ("content-encoding", "gzip")], receiver))
        })
        .await;
        let gateway = Gateway::start(&before("openai", &upstream, "", ", retry: {attempts: 0}")).await;
        let answer = gateway.client().post("/v1/messages", &[JSON, VERSION], message(json!({"stream": true}))).await;
        let text = answer.text();
        assert_eq!(
            (text.contains("message_stop"), text.contains("event: error")),
            (is_whole, !is_whole),
            "{kind}: {text}"
        );
    }
}

/// Stream of chat completions whose two tool calls alternate.
async fn alternating(_: Seen) -> Option<spillway_tests::Reply> {
    let call = |index: u32, more: Value| {
        let mut call = json!({"index": index});
        call.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let choice = json!({"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": null});
        format!(
            "data: {}\n\n",
            json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})
        )
    };
    let begin = |index, id: &str, name: &str| {
        call(index, json!({"id": id, "type": "function", "function": {"name": name, "arguments": ""}}))
    };
    let piece = |index, text: &str| call(index, json!({"function": {"arguments": text}}));
    let mut text = begin(0, "t0", "f") + &begin(1, "t1", "g");
    text += &(piece(0, "{\"city\":")
        + &piece(1, "{\"x\"")
        + &piece(0, "\"Rome\"")
        + &piece(1, ":[1,2]")
        + &piece(0, "}")
        + &piece(1, "}"));
    text += &begin(2, "t2", "h");
    text += &piece(2, "{}");
    text += "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\ndata: [DONE]\n\n";
    Some(in_bits(text))
}

#[tokio::test(flavor = "multi_thread")]
async fn tool_calls_that_alternate_reach_the_caller_one_after_another() {
    let upstream = Upstream::start(alternating).await;
    let gateway =
        Gateway::start(&before("openai", &upstream, ", apis: [chat]", "").replace("prefix: /v1", "prefix: /")).await;
    let client = gateway.client();
    let expected = [("t0", "f", json!({"city": "Rome"})), ("t1", "g", json!({"x": [1, 2]})), ("t2", "h", json!({}))];
    // Anthropic's own client.
    let told = script("translated.py", &gateway, &["m", "anthropic", "calls"]).await;
    let calls: Vec<_> =
        expected.iter().map(|(id, name, input)| json!({"id": id, "name": name, "input": input})).collect();
    assert_eq!(told[0]["calls"], json!(calls), "{}", told[0]);
    assert_eq!(told[0]["stop"], "tool_use");
    let responses = json!({"model": "m", "input": "hi", "stream": true}).to_string();
    let answer = client.post("/v1/responses", &[JSON], responses).await.text();
    let last = answer.lines().rev().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let items = serde_json::from_str::<Value>(last).unwrap()["response"]["output"].clone();
    assert_eq!(items.as_array().map(Vec::len), Some(3), "{answer}");
    for (item, (id, name, input)) in items.as_array().unwrap().iter().zip(&expected) {
        assert_eq!((&item["call_id"], &item["name"]), (&json!(id), &json!(name)), "{answer}");
        assert_eq!(serde_json::from_str::<Value>(item["arguments"].as_str().unwrap()).unwrap(), *input);
    }
    let answer = client.post("/api/chat", &[JSON], chat(json!({}))).await.text();
    let calls: Vec<Value> = answer
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["message"].get("tool_calls").cloned())
        .flat_map(|calls| calls.as_array().unwrap().clone())
        .collect();
    let calls: Vec<_> =
        calls.iter().map(|call| (call["function"]["name"].clone(), call["function"]["arguments"].clone())).collect();
    assert_eq!(calls, expected.map(|(_, name, input)| (json!(name), input)), "{answer}");
}

#[tokio::test]
async fn dropped_fields_are_taken_out_of_requests_that_pass_and_named() {
    let upstream = Upstream::start(gpt).await;
    let drops = ", dropFields: [temperature, top_p, options.seed]";
    let gateway = Gateway::start(&before("openai", &upstream, &format!("{drops}, model: gpt-x"), "")).await;
    let client = gateway.client();
    let body = "{\"temperature\": 1, \"model\" : \"m\",\"options\":{\"seed\":1, \"x\":2},\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":true, \"top_p\":0.5}";
    let answer = client.post("/v1/chat/completions", &[JSON, ("content-digest", "sha-256=:x:")], body).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("x-spillway-dropped")),
        (200, "temperature, options.seed, top_p")
    );
    let seen = upstream.last();
    let got = std::str::from_utf8(&seen.body).unwrap();
    assert_eq!(got, "{ \"stream_options\":{\"include_usage\":true},\"model\" : \"gpt-x\",\"options\":{\"x\":2},\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":true}".replace("{ \"stream", "{\"stream"));
    assert_eq!(seen.headers["content-length"], got.len().to_string());
    assert!(!seen.headers.contains_key("content-digest"));
    // The usage that nobody asked for does not reach the caller, whose text is whole.
    assert!(answer.text().contains("[DONE]") && !answer.text().contains("prompt_tokens"), "{}", answer.text());
    // A body without them, and one that is compressed, and long ones.
    let answer = client.post("/v1/chat/completions", &[JSON], chat(json!({}))).await;
    assert_eq!((answer.header("x-spillway-dropped"), asked(&upstream.last())["model"].clone()), ("", json!("gpt-x")));
    let long = chat(json!({"temperature": 0.1, "user": "u".repeat(1 << 20)}));
    let packed = encoded("gzip", long.as_bytes());
    for (headers, body) in [(&[JSON][..], long.clone().into_bytes()), (&[JSON, ("content-encoding", "gzip")], packed)] {
        let answer = client.post("/v1/chat/completions", headers, body).await;
        assert_eq!(answer.header("x-spillway-dropped"), "temperature", "{}", answer.text());
        let got = asked(&upstream.last());
        assert_eq!(got["user"].as_str().map(str::len), Some(1 << 20));
        assert!(got.get("temperature").is_none());
    }
}
