use bytes::BytesMut;
use http::Method;
use proptest::prelude::*;
use serde_json::{Value, json};
use spillway_engine::Task;
use spillway_filter::Refusal;

use super::{Ollama, answer, embed, request};
use crate::protocol::chat::{Call, ChatRequest, Choice, EncodeInput, FinishReason, PromptInput, ResponseFormat, Usage};
use crate::protocol::dialect::{AnswerHead, AnswerTimes, BuiltinCard, Dialect, FixedAsk, ModelCard, WriteAnswer};
use crate::protocol::operation::Operation;

fn chat(fields: Value) -> Result<ChatRequest, Refusal> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request::chat(body.to_string().as_bytes())
}

fn generate(fields: Value) -> Result<ChatRequest, Refusal> {
    let mut body = json!({"model": "m:latest", "prompt": "Hi"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request::generate(body.to_string().as_bytes())
}

#[test]
fn a_conversation_is_read() {
    let request = chat(json!({
        "model": "m:latest", "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "Hi", "images": []},
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
                {"function": {"name": "time", "arguments": {"zone": "UTC"}}}, {"id": "x", "function": {"name": "time"}},
            ]},
            {"role": "tool", "tool_name": "time", "content": "noon"},
            {"role": "tool", "tool_call_id": "x", "content": "one"},
        ],
        "tools": [{"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}],
    }))
    .unwrap();
    assert_eq!(request.model.as_deref(), Some("m"), "the tag that every name has");
    assert!(request.stream, "an answer is streamed unless `stream` is false");
    let calls = &request.messages[2].tool_calls;
    assert_eq!((&*calls[0].id, &*calls[0].arguments), ("call_0", r#"{"zone":"UTC"}"#));
    assert_eq!((&*calls[1].id, &*calls[1].arguments), ("x", "{}"));
    let results: Vec<_> = request.messages[3..].iter().map(|m| m.tool_call_id.as_deref().unwrap()).collect();
    assert_eq!(results, ["call_0", "x"]);
    assert_eq!(request.tools.len(), 1);
    assert!(request.unsupported.is_none() && request.ignored.first().is_none());
}

#[test]
fn options_are_read_and_have_the_defaults_of_the_api() {
    let plain = chat(json!({"stream": false})).unwrap();
    assert_eq!((plain.temperature, plain.top_k, plain.top_p, plain.max_tokens), (Some(0.8), Some(40), Some(0.9), None));
    assert!(!plain.stream);
    let options = json!({
        "temperature": 0, "top_p": 0.5, "top_k": 3.0, "min_p": 0.1, "seed": 7, "num_predict": 5, "stop": "x",
        "repeat_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -0.5, "num_ctx": 4096, "mirostat": 0,
    });
    let request = chat(json!({"options": options, "keep_alive": "5m", "speed": 1})).unwrap();
    assert_eq!(
        (request.temperature, request.top_p, request.top_k, request.min_p),
        (Some(0.0), Some(0.5), Some(3), Some(0.1))
    );
    assert_eq!((request.seed, request.max_tokens, &*request.stop), (Some(7), Some(5), &["x".to_owned()][..]));
    assert_eq!((request.repetition_penalty, request.presence_penalty), (Some(1.2), Some(0.5)));
    assert_eq!(request.frequency_penalty, Some(-0.5));
    assert_eq!(request.ignored.header().unwrap(), "options.num_ctx, keep_alive, speed");
    let free = chat(json!({"options": {"num_predict": -1, "top_k": 0, "seed": -1, "stop": ["", "a"]}})).unwrap();
    assert_eq!((free.max_tokens, free.top_k, free.seed, free.stop.len()), (None, None, None, 1));
}

#[test]
fn formats_are_read() {
    for (format, expected) in [
        (json!(""), ResponseFormat::Text),
        (json!("json"), ResponseFormat::JsonObject),
        (json!({"type": "object"}), ResponseFormat::JsonSchema(r#"{"type":"object"}"#.into())),
    ] {
        assert_eq!(chat(json!({"format": format})).unwrap().response_format, expected);
    }
}

#[test]
fn prompts_go_through_the_template_unless_they_are_raw() {
    // The Python client sends all fields.
    let request =
        generate(json!({"system": "s", "suffix": "", "template": "", "context": [], "images": null, "raw": false}))
            .unwrap();
    let messages: Vec<_> = request.messages.iter().map(|m| (m.role, &*m.content)).collect();
    assert_eq!(messages, [("system", "s"), ("user", "Hi")]);
    assert!(request.prompt.is_none() && request.unsupported.is_none());
    let raw = generate(json!({"raw": true, "system": "s"})).unwrap();
    assert_eq!((raw.prompt, raw.messages.len()), (Some(PromptInput::Text("Hi".into())), 0));
    assert_eq!(raw.ignored.header().unwrap(), "system");
}

#[test]
fn invalid_fields_are_refused_by_name() {
    for (fields, param) in [
        (json!({"messages": null}), "messages"),
        (json!({"messages": "x"}), "messages"),
        (json!({"messages": [5]}), "messages[0]"),
        (json!({"messages": [{"role": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "messages[0].content"),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]}),
            "messages[0].tool_calls[0]",
        ),
        (json!({"stream": 1}), "stream"),
        (json!({"options": []}), "options"),
        (json!({"options": {"temperature": 3}}), "options.temperature"),
        (json!({"options": {"top_k": 1.5}}), "options.top_k"),
        (json!({"options": {"stop": 1}}), "options.stop"),
        (json!({"format": "xml"}), "format"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"top_logprobs": 21}), "top_logprobs"),
    ] {
        let refusal = chat(fields.clone()).unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(param)), "{fields}");
    }
    assert_eq!(generate(json!({"prompt": 5})).unwrap_err().param.as_deref(), Some("prompt"));
}

#[test]
fn what_the_model_cannot_do_bars_it_by_name() {
    for (fields, param) in [
        (json!({"think": true}), "think"),
        (json!({"think": "high"}), "think"),
        (json!({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}), "messages[0].images"),
        (json!({"tools": [{"type": "function", "function": {"name": "f"}}], "format": "json"}), "format"),
    ] {
        assert_eq!(chat(fields.clone()).unwrap().unsupported.unwrap().param.as_deref(), Some(param), "{fields}");
    }
    assert!(chat(json!({"think": false})).unwrap().unsupported.is_none());
    for (fields, param) in [
        (json!({"suffix": "x"}), "suffix"),
        (json!({"template": "x"}), "template"),
        (json!({"context": [1]}), "context"),
        (json!({"images": ["aGk="]}), "images"),
    ] {
        assert_eq!(generate(fields.clone()).unwrap().unsupported.unwrap().param.as_deref(), Some(param), "{fields}");
    }
}

fn writer(shape: answer::Shape) -> answer::Answer {
    let (operation, id) = (Operation::Chat, uuid::Uuid::from_u128(1));
    let head = AnswerHead { operation, id, created: 7, model: "m", include_usage: false, prompt_tokens: 9, echoed: "" };
    let mut writer = answer::Answer::begin(shape, head);
    let ms = std::time::Duration::from_millis;
    writer.timed(AnswerTimes { total: ms(3), prefill: ms(1), decode: ms(2) });
    writer
}

/// Lines of a stream, without their times of creation.
fn lines(out: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(out).unwrap();
    assert!(text.ends_with('\n'));
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().remove("created_at");
        value
    };
    text.lines().map(line).collect()
}

const TOLD: Usage = Usage {
    prompt_tokens: 3,
    completion_tokens: 2,
    cached_tokens: Some(1),
    cache_written_tokens: None,
    cache_written_1h_tokens: None,
    reasoning_tokens: None,
};

fn last(more: &Value, reason: &str) -> Value {
    let mut line = json!({
        "model": "m", "done": true, "done_reason": reason, "total_duration": 3_000_000, "load_duration": 0,
        "prompt_eval_count": 3, "prompt_eval_duration": 1_000_000, "eval_count": 2, "eval_duration": 2_000_000,
    });
    line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    line
}

#[test]
fn answers_have_the_shape_that_clients_read() {
    let (mut chat, mut out) = (writer(answer::Shape::Chat), BytesMut::new());
    chat.first(&mut out, 0);
    chat.piece(&mut out, 0, "Hi\n", None, 0);
    chat.call(&mut out, 0, 1, &Call { id: "call_1".into(), name: "time".into(), arguments: r#"{"a":1}"#.into() });
    chat.ended(&mut out, 0, FinishReason::ToolCalls);
    chat.last(&mut out, TOLD);
    let call = json!({"id": "call_1", "function": {"index": 1, "name": "time", "arguments": {"a": 1}}});
    let expected = [
        json!({"model": "m", "message": {"role": "assistant", "content": "Hi\n"}, "done": false}),
        json!({"model": "m", "message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done": false}),
        last(&json!({"message": {"role": "assistant", "content": ""}}), "stop"),
    ];
    assert_eq!(lines(&out), expected);

    let (mut text, mut out) = (writer(answer::Shape::Generate), BytesMut::new());
    text.piece(&mut out, 0, "Hi", None, 0);
    text.ended(&mut out, 0, FinishReason::Length);
    text.last(&mut out, TOLD);
    let expected = [json!({"model": "m", "response": "Hi", "done": false}), last(&json!({"response": ""}), "length")];
    assert_eq!(lines(&out), expected);

    let mut out = BytesMut::new();
    let choice = Choice { text: "Hi".into(), finish_reason: FinishReason::Stop, ..Choice::default() };
    writer(answer::Shape::Generate).whole(&mut out, &[choice], TOLD);
    out.extend_from_slice(b"\n");
    assert_eq!(lines(&out), [last(&json!({"response": "Hi"}), "stop")]);

    let mut out = BytesMut::new();
    writer(answer::Shape::Chat).failed(&mut out, &Refusal::invalid("x", "no \"good\""));
    assert_eq!(out, "{\"error\":\"no \\\"good\\\"\"}\n");
}

#[test]
fn embeddings_are_read_and_written_in_both_shapes() {
    let texts = |request: &crate::protocol::chat::EncodeRequest| request.inputs.clone();
    let new =
        embed::read(br#"{"model":"m:latest","input":["a","b"],"truncate":true,"options":{},"dimensions":2}"#).unwrap();
    assert_eq!(texts(&new), [EncodeInput::Text("a".into()), EncodeInput::Text("b".into())]);
    assert_eq!((new.model.as_deref(), new.dimensions, new.ignored.first()), (Some("m"), Some(2), None));
    let vectors = [(vec![0.5, 1.0], false), (vec![1.0, 0.0], false)];
    let body = embed::write("m", &new, &vectors, 4);
    assert_eq!(body, r#"{"model":"m","embeddings":[[0.5,1.0],[1.0,0.0]],"prompt_eval_count":4}"#);
    let old = embed::read(br#"{"model":"m","prompt":"a"}"#).unwrap();
    assert_eq!(embed::write("m", &old, &vectors[..1], 2), r#"{"embedding":[0.5,1.0]}"#);
    for (body, param) in [
        (r#"{"model":"m"}"#, "input"),
        (r#"{"input":[]}"#, "input"),
        (r#"{"input":[""]}"#, "input"),
        (r#"{"input":[1]}"#, "input"),
        (r#"{"input":"a","prompt":"b"}"#, "prompt"),
        (r#"{"prompt":""}"#, "prompt"),
        (r#"{"input":"a","dimensions":0}"#, "dimensions"),
    ] {
        assert_eq!(embed::read(body.as_bytes()).unwrap_err().param.as_deref(), Some(param), "{body}");
    }
}

#[test]
fn paths_are_shared_with_other_servers() {
    for (method, path, operation) in [
        (Method::POST, "/api/chat", Some(Operation::Chat)),
        (Method::POST, "/api/generate", Some(Operation::Completions)),
        (Method::POST, "/api/embed", Some(Operation::Embeddings)),
        (Method::POST, "/api/embeddings", Some(Operation::Embeddings)),
        (Method::GET, "/api/tags", Some(Operation::Models)),
        (Method::POST, "/api/show", Some(Operation::Other)),
        (Method::DELETE, "/api/delete", Some(Operation::ManageModels)),
        (Method::POST, "/api/copy", Some(Operation::ManageModels)),
        (Method::HEAD, "/api/blobs/sha256:1", Some(Operation::ManageModels)),
        (Method::HEAD, "/", Some(Operation::Other)),
        (Method::GET, "/", None),
        (Method::GET, "/api/chat", None),
        (Method::POST, "/api/chats", None),
        (Method::POST, "/api/", None),
    ] {
        let known = Ollama.operation(&method, path);
        assert_eq!(known.map(|known| known.operation), operation, "{method} {path}");
        assert!(known.is_none_or(|known| !known.is_own_path));
    }
}

#[test]
fn questions_about_a_model_are_answered_without_it() {
    let card = BuiltinCard { id: "m", created: 7, task: Task::Generate, calls_tools: true, info: None };
    let ask = |method: Method, path: &str, body: &str| {
        Ollama.fixed_answer(&FixedAsk { method: &method, path, body: body.as_bytes() }, &card)
    };
    let value = |answer: Option<Result<bytes::Bytes, Refusal>>| -> Value {
        serde_json::from_slice(&answer.unwrap().unwrap()).unwrap()
    };
    assert!(value(ask(Method::GET, "/api/version", ""))["version"].is_string());
    assert_eq!(value(ask(Method::GET, "/api/ps", "")), json!({"models": []}));
    let shown = value(ask(Method::POST, "/api/show", "{}"));
    assert_eq!(
        (&shown["capabilities"], &shown["modified_at"]),
        (&json!(["completion", "tools"]), &json!("1970-01-01T00:00:07.000000000Z"))
    );
    assert_eq!(value(ask(Method::POST, "/api/generate", r#"{"model":"m","prompt":""}"#))["done_reason"], "load");
    assert_eq!(value(ask(Method::POST, "/api/chat", r#"{"model":"m","messages":[]}"#))["message"]["content"], "");
    assert!(ask(Method::POST, "/api/chat", r#"{"messages":[{}]}"#).is_none());
    assert!(ask(Method::POST, "/api/generate", r#"{"prompt":"x"}"#).is_none());
    for path in ["/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/sha256:1"] {
        let refusal = ask(Method::POST, path, "{}").unwrap().unwrap_err();
        assert!(refusal.status == 501 && refusal.message.contains("under `models`"), "{path}");
    }
    let tags: Value =
        serde_json::from_slice(&Ollama.model_list(&[ModelCard { id: "m", created: 0 }]).unwrap()).unwrap();
    assert_eq!((&tags["models"][0]["name"], tags["models"][0]["digest"].as_str().unwrap().len()), (&json!("m"), 64));
}

#[test]
fn a_stream_is_observed_as_it_was_written_wherever_it_is_cut() {
    for shape in [answer::Shape::Chat, answer::Shape::Generate] {
        let (mut writer, mut out) = (writer(shape), BytesMut::new());
        writer.piece(&mut out, 0, "Hi \u{e9}", None, 0);
        writer.piece(&mut out, 0, "!", None, 0);
        writer.ended(&mut out, 0, FinishReason::Length);
        writer.last(&mut out, TOLD);
        let kind = (http::header::CONTENT_TYPE, http::HeaderValue::from_static(super::LINES));
        let now = std::time::Instant::now();
        for cut in 0..out.len() {
            let mut observer = Ollama.observe(&[kind.clone()].into_iter().collect()).unwrap();
            observer.feed(&out[..cut], now);
            observer.feed(&out[cut..], now);
            let seen = observer.finish();
            let usage = seen.usage.unwrap();
            assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3, 2), "{cut}");
            assert_eq!((seen.finish_reason.as_deref(), seen.is_whole), (Some("length"), true), "{cut}");
            assert_eq!((seen.written.events, seen.written.bytes), (2, 6), "{cut}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (request::chat(&body), request::generate(&body), embed::read(&body), request::only_loads(&body));
    }

    #[test]
    fn any_text_survives(text in any::<String>()) {
        let mut out = BytesMut::new();
        writer(answer::Shape::Chat).piece(&mut out, 0, &text, None, 0);
        prop_assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        let value: Value = serde_json::from_slice(&out).unwrap();
        prop_assert_eq!(value["message"]["content"].as_str(), Some(&*text));
    }
}
