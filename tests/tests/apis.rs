//! Every call of the table of `docs/apis.md` before every kind of backend, and features of conversations that no other file
//! tries.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use serde_json::{Value, json};
use spillway_tests::{
    Answer, BACKENDS, Call, Client, CrossEncoder, Fate, Gateway, Kind, Reply, Seen, Upstream, calls, eventually,
    http2_over, minilm, model, reply, whole_answer,
};

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream");
const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

/// Service of the Open Inference Protocol.
const INFERENCE: &str = "/inference.GRPCInferenceService/";

/// Column of the servers of other kinds.
const HTTP: usize = BACKENDS.len() - 1;

/// A server of all APIs.
async fn serves(seen: Seen) -> Option<Reply> {
    let grpc = seen.headers.get("content-type").is_some_and(|kind| kind == "application/grpc");
    let states = |path: &str| path.ends_with("Ready") || path.ends_with("Live");
    Some(match &*seen.path {
        path if grpc && states(path) => {
            let holds = Bytes::from_static(b"\0\0\0\0\x02\x08\x01");
            reply(200, &[("content-type", "application/grpc"), ("grpc-status", "0")], holds)
        }
        path if grpc && path.starts_with(INFERENCE) => {
            let empty = Bytes::from_static(b"\0\0\0\0\0");
            reply(200, &[("content-type", "application/grpc"), ("grpc-status", "0")], empty)
        }
        "/v1/embeddings" => reply(200, &[JSON], "{\"data\":[{\"index\":0,\"embedding\":[1]}]}"),
        path if path.ends_with("_tokens") => reply(200, &[JSON], "{\"input_tokens\":1}"),
        "/v2/models/minilm/infer" => reply(200, &[JSON], "{\"outputs\":[]}"),
        "/v2/models/minilm" => reply(200, &[JSON], "{\"name\":\"minilm\"}"),
        _ if grpc => reply(200, &[("content-type", "application/grpc"), ("grpc-status", "0")], Bytes::new()),
        "/v1/messages" => reply(200, &[JSON], claude(&json!([{"type": "text", "text": "hi"}]), "end_turn").to_string()),
        _ => reply(200, &[JSON], gpt(&json!({"role": "assistant", "content": "hi"}), "stop").to_string()),
    })
}

fn claude(content: &Value, reason: &str) -> Value {
    json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "x", "content": content, "stop_reason": reason,
        "stop_sequence": null, "usage": {"input_tokens": 1, "output_tokens": 1}})
}

fn gpt(message: &Value, reason: &str) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "x",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})
}

/// Servers over both versions of HTTP, and a gateway that sends a call to the backend that its header `x-backend` names:
/// the number of a column, or `http2`.
struct Every {
    http1: Upstream,
    http2: Upstream,
    gateway: Gateway,
}

impl Every {
    async fn start() -> Self {
        let (http1, http2) = (Upstream::start(serves).await, Upstream::start_http2(serves).await);
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("judge")).unwrap();
        CrossEncoder::new().write(&folder.path().join("judge"));
        let (mut backends, mut routes) = (String::new(), String::new());
        let servers = BACKENDS.iter().enumerate().skip(1).map(|(n, protocol)| (n.to_string(), *protocol));
        for (name, protocol) in servers.chain([("http2".to_owned(), "http")]) {
            let speaks_http2 = name == "http2" || protocol == "oip-grpc";
            let url = if speaks_http2 { http2.url() } else { http1.url() };
            backends += &format!(
                "  - {{name: b{name}, protocol: {protocol}, http2: {speaks_http2}, endpoints: [{{url: \"{url}\"}}]}}\n"
            );
            routes += &Self::route(&name, &format!("{{name: b{name}}}"));
        }
        routes += &Self::route("0", "{model: smollm2}, {model: minilm}, {model: judge}");
        let config = format!(
            "listeners:
  - {{name: http, address: \"127.0.0.1:0\"}}
  - {{name: grpc, address: \"127.0.0.1:0\", protocol: h2c}}
models:
  - {{name: smollm2, source: \"{}\", contextLength: 256, maxQueueWait: 60s}}
  - {{name: minilm, source: \"{}\", task: embedding, maxQueueWait: 60s}}
  - {{name: judge, source: judge, task: rerank, maxQueueWait: 60s}}
backends:
{backends}routes:
{routes}",
            model().display(),
            minilm().display()
        );
        let gateway = Gateway::start_in(folder, &config).await;
        Self { http1, http2, gateway }
    }

    fn route(name: &str, backends: &str) -> String {
        let header = format!("headers: [{{name: x-backend, exact: \"{name}\"}}]");
        format!(
            "  - {{name: azure-{name}, matches: [{{path: {{prefix: /openai}}, {header}}}], filters: [{{urlRewrite: {{azureOpenai: true}}}}], \
             backendRefs: [{backends}]}}
  - {{name: r{name}, matches: [{{{header}}}], backendRefs: [{backends}]}}
"
        )
    }

    /// Makes a call before the backend of a column; returns its fate.
    async fn fate(&self, call: &Call, column: usize) -> Result<Fate, String> {
        let is_grpc = matches!(call.kind, Kind::Grpc(_));
        let server =
            if BACKENDS[column] == "oip-grpc" || (is_grpc && column == HTTP) { &self.http2 } else { &self.http1 };
        let (seen, logged) = (server.count(), self.gateway.events("access").len());
        let name = if is_grpc && column == HTTP { "http2".to_owned() } else { column.to_string() };
        let (answer, body) = self.ask(call, &name).await;
        let line = eventually("the call is logged", || async {
            let lines = self.gateway.events("access");
            (lines.len() > logged).then(|| lines.last().unwrap().clone())
        })
        .await;
        let told = format!("{} {} {line}", answer.status, answer.text());
        let is_good = answer.status.is_success() && (!is_grpc || ["", "0"].contains(&answer.header("grpc-status")));
        if server.count() == seen {
            if is_good {
                return Ok(Fate::Answered);
            }
            let how = format!("{} {}", line["status"], line["errorCode"].as_str().unwrap_or_default());
            return Ok(Fate::Refused(how.leak()));
        }
        let seen = server.last();
        let is_socket = call.kind == Kind::Socket;
        let is_rewritten = call.target.starts_with("/openai") && seen.path.starts_with("/v1/chat/completions");
        let is_same = (seen.path == call.target || is_rewritten)
            && seen.body == body
            && seen.method == call.method
            && (!is_socket || seen.headers.contains_key("upgrade"));
        match (is_good, is_same) {
            (true, true) => Ok(Fate::Passes),
            (true, false) if seen.path != call.target && !is_rewritten => Ok(Fate::Translated),
            _ => Err(format!("{told}: the server saw {} {}", seen.method, seen.path)),
        }
    }

    /// Sends a call; returns its answer, and the body that it had.
    async fn ask(&self, call: &Call, backend: &str) -> (Answer, Bytes) {
        let mut headers = vec![("x-backend", backend)];
        headers.extend(call.is_anthropic.then_some(VERSION));
        match call.kind {
            Kind::Http(kind, body) => {
                headers.extend((!kind.is_empty()).then_some(("content-type", kind)));
                let client = Client::new(self.gateway.listener("http"));
                (client.send(client.request(call.method, call.target, &headers, body)).await, body.into())
            }
            Kind::Socket => {
                headers.extend([("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")]);
                headers.push(("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="));
                let client = Client::new(self.gateway.listener("http"));
                (client.send(client.request(call.method, call.target, &headers, "")).await, Bytes::new())
            }
            Kind::Grpc(message) => {
                let length = u32::try_from(message.len()).unwrap().to_be_bytes();
                let body = Bytes::from([&[0], &length[..], message].concat());
                (grpc(self.gateway.listener("grpc"), call.target, &headers, body.clone()).await, body)
            }
        }
    }
}

async fn grpc(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
    let mut client = http2_over(tokio::net::TcpStream::connect(address).await.unwrap()).await;
    let mut request = http::Request::post(format!("http://a.test{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    whole_answer(client.send_request(request.body(Full::new(body)).unwrap()).await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_meets_every_backend_as_the_table_says() {
    let every = Every::start().await;
    let mut wrong = Vec::new();
    for call in calls() {
        for (column, expected) in call.fates.into_iter().enumerate() {
            let fate = every.fate(call, column).await;
            if fate != Ok(expected) {
                wrong.push(format!("{} before {}: {fate:?}, not {expected:?}", call.name(), BACKENDS[column]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A gateway before one server.
async fn before(protocol: &str, server: &Upstream) -> Gateway {
    Gateway::start(&format!(
        "backends: [{{name: b, protocol: {protocol}, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: b}}], retry: {{attempts: 0}}}}]
",
        server.url()
    ))
    .await
}

fn pretty(body: &Value) -> String {
    serde_json::to_string_pretty(body).unwrap()
}

/// Requests of each API with all that it can ask for; spaces and the order of members show whether a body was written anew.
fn rich() -> [(&'static str, &'static str, Value, &'static str); 4] {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let function = json!({"name": "f", "description": "F", "parameters": schema});
    let picture = "iVBORw0KGgo=";
    let url = format!("data:image/png;base64,{picture}");
    let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
    [
        (
            "openai",
            "/v1/chat/completions",
            json!({
                "model": "m", "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": url}}]},
                    {"role": "assistant", "content": null, "tool_calls": [call("a"), call("b")], "reasoning_content": "hm"},
                    {"role": "tool", "tool_call_id": "a", "content": "1"}, {"role": "tool", "tool_call_id": "b", "content": "2"}],
                "tools": [{"type": "function", "function": function}], "parallel_tool_calls": true,
                "tool_choice": {"type": "function", "function": {"name": "f"}}, "reasoning_effort": "high", "logprobs": true,
                "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}, "something_new": 1,
                "stream_options": {"include_usage": true},
            }),
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":\"hm\"},\"finish_reason\":null}]}\n\n\
             data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0},{\"index\":1}]},\"logprobs\":{\"content\":[]},\"finish_reason\":\"content_filter\"}]}\n\n\
             data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1,\"prompt_tokens_details\":{\"cached_tokens\":8}}}\n\ndata: [DONE]\n\n",
        ),
        (
            "openai",
            "/v1/responses",
            json!({
                "model": "m", "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": url}]}, {"type": "reasoning", "summary": []},
                    {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "a", "output": "1"}],
                "tools": [{"type": "function", "name": "f", "parameters": schema}, {"type": "web_search"}], "parallel_tool_calls": true,
                "tool_choice": {"type": "function", "name": "f"}, "reasoning": {"effort": "high"}, "top_logprobs": 2,
                "text": {"format": {"type": "json_schema", "name": "c", "schema": schema}}, "store": true, "something_new": 1,
            }),
            "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0}\n\n\
             event: response.incomplete\ndata: {\"type\":\"response.incomplete\",\"sequence_number\":1,\"response\":{\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n",
        ),
        (
            "anthropic",
            "/v1/messages",
            json!({
                "model": "m", "max_tokens": 9, "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture}}]},
                    {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                        {"type": "tool_use", "id": "a", "name": "f", "input": {}}, {"type": "tool_use", "id": "b", "name": "f", "input": {}}]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "1"}, {"type": "tool_result", "tool_use_id": "b"}]}],
                "tools": [{"name": "f", "input_schema": schema}, {"type": "web_search_20260209", "name": "web_search"}],
                "tool_choice": {"type": "tool", "name": "f"}, "thinking": {"type": "adaptive"},
                "output_config": {"format": {"type": "json_schema", "schema": schema}}, "something_new": 1,
            }),
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":1,\"cache_read_input_tokens\":8}}}\n\n\
             event: something_new\ndata: {\"type\":\"something_new\"}\n\n\
             event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"pause_turn\"},\"usage\":{\"output_tokens\":1}}\n\n\
             event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        ),
        (
            "ollama",
            "/api/chat",
            json!({
                "model": "m", "messages": [
                    {"role": "user", "content": "look", "images": [picture]},
                    {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [{"function": {"name": "f", "arguments": {}}}, {"function": {"name": "f", "arguments": {}}}]},
                    {"role": "tool", "content": "1", "tool_name": "f"}],
                "tools": [{"type": "function", "function": function}], "think": "high", "format": schema, "logprobs": true,
                "options": {"num_ctx": 4096}, "something_new": 1,
            }),
            "{\"message\":{\"role\":\"assistant\",\"thinking\":\"hm\"},\"done\":false}\n\
             {\"message\":{\"role\":\"assistant\",\"tool_calls\":[]},\"done\":true,\"done_reason\":\"length\",\"prompt_eval_count\":9,\"eval_count\":1}\n",
        ),
    ]
}

#[tokio::test]
async fn requests_of_a_servers_own_api_pass_byte_for_byte() {
    for (protocol, path, mut body, stream) in rich() {
        let whole = "{ \"an\": \"answer\", \"of\" : [\"its own\"] }";
        let server = Upstream::start(move |seen| async move {
            let text = String::from_utf8_lossy(&seen.body).into_owned();
            let kind = if path.starts_with("/api") { ("content-type", "application/x-ndjson") } else { EVENTS };
            Some(match () {
                () if text.contains("\"fails\"") => {
                    reply(422, &[JSON], "{ \"error\": {\"message\": \"no such thing\"} }")
                }
                () if text.contains("\"stream\": true") => reply(200, &[kind], stream),
                () => reply(200, &[JSON], whole),
            })
        })
        .await;
        let gateway = before(protocol, &server).await;
        for (mode, status, expected) in [
            (json!({"stream": false}), 200, whole),
            (json!({"stream": true}), 200, stream),
            (json!({"stream": false, "user": "fails"}), 422, "{ \"error\": {\"message\": \"no such thing\"} }"),
        ] {
            body.as_object_mut().unwrap().extend(mode.as_object().unwrap().clone());
            let sent = pretty(&body);
            let answer = gateway.client().post(path, &[JSON, VERSION], sent.clone()).await;
            assert_eq!((answer.status.as_u16(), &*answer.text()), (status, expected), "{path} {mode}");
            assert_eq!(
                (server.last().path.as_str(), &server.last().body[..]),
                (path, sent.as_bytes()),
                "{path} {mode}"
            );
            assert_eq!(answer.header("x-spillway-dropped"), "", "{path}");
        }
    }
}

/// Calls of the two answers of a server, by API.
fn two_calls(is_claude: bool) -> Value {
    let call = |id: &str, city: &str| {
        if is_claude {
            json!({"type": "tool_use", "id": id, "name": "f", "input": {"city": city}})
        } else {
            let arguments = json!({"city": city}).to_string();
            json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}})
        }
    };
    json!([call("a", "Rome"), call("b", "Oslo")])
}

#[tokio::test]
async fn calls_choices_and_ends_are_translated() {
    let schema = json!({"type": "object"});
    let server =
        Upstream::start(|_| async { Some(reply(200, &[JSON], claude(&two_calls(true), "tool_use").to_string())) })
            .await;
    let gateway = before("anthropic", &server).await;
    let asked = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "parallel_tool_calls": true,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}}});
    let answer = gateway.client().post("/v1/chat/completions", &[JSON], asked.to_string()).await;
    let choice = &answer.json()["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["tool_calls"]), (&json!("tool_calls"), &two_calls(false)));
    let sent: Value = serde_json::from_slice(&server.last().body).unwrap();
    assert_eq!(sent["tool_choice"], json!({"type": "tool", "name": "f"}));

    let server = Upstream::start(|_| async {
        let message = json!({"role": "assistant", "content": null, "tool_calls": two_calls(false)});
        Some(reply(200, &[JSON], gpt(&message, "tool_calls").to_string()))
    })
    .await;
    let gateway = before("openai", &server).await;
    let asked = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "f", "input_schema": schema}], "tool_choice": {"type": "tool", "name": "f"}});
    let answer = gateway.client().post("/v1/messages", &[JSON, VERSION], asked.to_string()).await;
    assert_eq!((&answer.json()["stop_reason"], &answer.json()["content"]), (&json!("tool_use"), &two_calls(true)));
    let sent: Value = serde_json::from_slice(&server.last().body).unwrap();
    assert_eq!(sent["tool_choice"], json!({"type": "function", "function": {"name": "f"}}));
    ends_are_translated().await;
}

/// Each reason for which an answer ends, in both directions.
async fn ends_are_translated() {
    for (of_claude, of_gpt) in
        [("end_turn", "stop"), ("max_tokens", "length"), ("refusal", "content_filter"), ("stop_sequence", "stop")]
    {
        let server = Upstream::start(move |_| async move {
            let text = json!([{"type": "text", "text": "hi"}]);
            Some(reply(200, &[JSON], claude(&text, of_claude).to_string()))
        })
        .await;
        let gateway = before("anthropic", &server).await;
        let asked = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).to_string();
        let answer = gateway.client().post("/v1/chat/completions", &[JSON], asked.clone()).await;
        assert_eq!(answer.json()["choices"][0]["finish_reason"], of_gpt, "{of_claude}");
        if of_claude == "stop_sequence" {
            continue;
        }
        let server = Upstream::start(move |_| async move {
            Some(reply(200, &[JSON], gpt(&json!({"role": "assistant", "content": "hi"}), of_gpt).to_string()))
        })
        .await;
        let gateway = before("openai", &server).await;
        let asked = asked.replacen('{', "{\"max_tokens\":9,", 1);
        let answer = gateway.client().post("/v1/messages", &[JSON, VERSION], asked).await;
        assert_eq!(answer.json()["stop_reason"], of_claude, "{of_gpt}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn built_in_models_have_features_of_each_api() {
    let gateway = Gateway::start(&format!(
        "models: [{{name: smollm2, source: \"{}\", contextLength: 256, maxSequences: 4, maxQueueWait: 60s}}]
routes: [{{backendRefs: [{{model: smollm2}}]}}]
",
        model().display()
    ))
    .await;
    let client = gateway.client();
    let ask = async |path: &str, body: Value| {
        let answer = client.post(path, &[JSON], body.to_string()).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        (answer.header("x-spillway-dropped").to_owned(), answer.json())
    };
    let question = json!([{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]);
    let chat = |tokens: u32| json!({"model": "smollm2", "temperature": 0, "max_tokens": tokens, "messages": question});
    for (tokens, reason) in [(2, "length"), (40, "stop")] {
        let (_, told) = ask("/v1/chat/completions", chat(tokens)).await;
        assert_eq!(told["choices"][0]["finish_reason"], reason, "{told}");
        let ollama = json!({"model": "smollm2", "stream": false, "messages": question,
            "options": {"temperature": 0, "num_predict": tokens}, "logprobs": true, "top_logprobs": 2});
        let (_, told) = ask("/api/chat", ollama).await;
        assert_eq!(told["done_reason"], reason, "{told}");
        let tokens = told["logprobs"].as_array().unwrap();
        let text: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert_eq!(told["message"]["content"], text, "{told}");
        assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2), "{told}");
    }
    let responses = json!({"model": "smollm2", "input": question, "temperature": 0, "max_output_tokens": 16,
        "top_logprobs": 2, "include": ["message.output_text.logprobs"]});
    let mut cached = 0;
    for _ in 0..2 {
        let (_, told) = ask("/v1/responses", responses.clone()).await;
        let part = &told["output"][0]["content"][0];
        let tokens = part["logprobs"].as_array().unwrap();
        let text: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert_eq!((&part["text"], &told["status"]), (&json!(text), &json!("completed")), "{told}");
        cached = told["usage"]["input_tokens_details"]["cached_tokens"].as_u64().unwrap();
    }
    assert!(cached > 0, "the same prompt was read before");
    let mut short = responses;
    short["max_output_tokens"] = 2.into();
    let (_, told) = ask("/v1/responses", short).await;
    assert_eq!(
        (&told["status"], &told["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    let schema = json!({"type": "object", "properties": {"large": {"type": "boolean"}}, "required": ["large"]});
    let mut message = chat(60);
    message["output_config"] = json!({"format": {"type": "json_schema", "schema": schema}});
    message["something_new"] = 1.into();
    let (dropped, told) = ask("/v1/messages", message).await;
    let text = told["content"][0]["text"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(text).unwrap()["large"].is_boolean(), "{told}");
    assert_eq!(dropped, "something_new");
    assert!(told["usage"]["cache_read_input_tokens"].as_u64() > Some(0), "{told}");
}
