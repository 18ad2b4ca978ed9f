//! Tests of the translation of Ollama's API: requests for servers of two other APIs, and answers in lines.

use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::protocol::translate::{Delta, Finish, Lossy, Part, ServerApi, ServerWords, Tokens, deltas_of, kind_of};
use crate::protocol::{ANTHROPIC, OPENAI};

const PNG: &str = "iVBORw0KGgo=";

fn with(fields: &Value) -> Value {
    let mut body = json!({"model": "m:latest", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn read(fields: &Value) -> Result<Conversation, Refusal> {
    Chat.read_request(with(fields).to_string().as_bytes())
}

fn written(api: &dyn ServerApi, conversation: &Conversation) -> Result<(Value, String), Refusal> {
    let mut lossy = Lossy::new(&[]);
    let request = api.write_request(conversation, ("m", ServerWords::default()), &mut lossy)?;
    let dropped = lossy.header().map(|header| header.to_str().unwrap().to_owned());
    Ok((serde_json::from_slice(&request.body).unwrap(), dropped.unwrap_or_default()))
}

fn chat() -> &'static dyn ServerApi {
    OPENAI.conversations().unwrap()
}

fn messages() -> &'static dyn ServerApi {
    ANTHROPIC.conversations().unwrap()
}

fn lines(out: &[u8]) -> Vec<Value> {
    out.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect()
}

fn stream_of(api: &dyn CallerApi, deltas: Vec<Delta>) -> Vec<Value> {
    let (mut writer, mut out) = (api.write_stream(&Asked { model: "m".into(), ..Asked::default() }), BytesMut::new());
    for delta in deltas {
        writer.write(delta, &mut out).unwrap();
    }
    lines(&out)
}

#[test]
fn a_conversation_says_the_same_to_servers_of_both_apis() {
    let schema = json!({"type": "object"});
    let request = read(&json!({
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "look", "images": [PNG]},
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
                {"function": {"name": "f", "arguments": {"x": 1}}},
                {"id": "own", "function": {"index": 1, "name": "g", "arguments": {}}}]},
            {"role": "tool", "tool_name": "g", "content": "of g"},
            {"role": "tool", "content": "of f"}
        ],
        "tools": [{"type": "function", "function": {"name": "f", "description": "F", "parameters": schema}}],
        "format": schema, "think": "high", "keep_alive": "5m", "logprobs": true, "top_logprobs": 2,
        "options": {"temperature": 0.5, "top_p": 0.9, "top_k": 5.0, "min_p": 0.1, "seed": 7, "num_predict": 9, "num_ctx": 4096,
            "stop": ["END", ""], "repeat_penalty": 1.1, "presence_penalty": 0, "typical_p": 1.0}
    }))
    .unwrap();
    assert_eq!((request.model.as_deref(), request.stream), (Some("m"), true));
    let (body, dropped) = written(chat(), &request).unwrap();
    assert_eq!(
        body,
        json!({
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{PNG}")}}]},
                {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                    {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
                    {"id": "own", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "own", "content": "of g"},
                {"role": "tool", "tool_call_id": "call_0", "content": "of f"}
            ],
            "tools": [{"type": "function", "function": {"name": "f", "description": "F", "parameters": schema}}],
            "temperature": 0.5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "top_k": 5, "max_tokens": 9, "seed": 7,
            "stop": ["END"], "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
            "reasoning_effort": "high", "logprobs": true, "top_logprobs": 2,
            "stream": true, "stream_options": {"include_usage": true}
        })
    );
    assert_eq!(dropped, "options.num_ctx, keep_alive");
    let refusal = written(messages(), &request).unwrap_err();
    assert_eq!(refusal.param.as_deref(), Some("options.min_p"));
    let plain =
        read(&json!({"stream": false, "think": true, "options": {"num_predict": -1, "top_k": 0, "seed": -1}})).unwrap();
    let (body, _) = written(messages(), &plain).unwrap();
    assert_eq!(
        (&body["thinking"], &body["max_tokens"], &body["stream"]),
        (&json!({"type": "adaptive"}), &json!(4096), &Value::Null)
    );
    assert!(body.get("top_k").is_none() && body.get("seed").is_none());
}

#[test]
fn a_prompt_is_a_message() {
    let generate = |fields: Value| {
        let mut body = json!({"model": "m", "prompt": "hi", "suffix": "", "system": "", "template": "", "context": [], "raw": false,
            "images": [], "format": "", "stream": false, "options": {}});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Generate.read_request(body.to_string().as_bytes())
    };
    let (body, dropped) = written(chat(), &generate(json!({"system": "s", "format": "json"})).unwrap()).unwrap();
    assert_eq!(
        (body, dropped.as_str()),
        (
            json!({"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}],
                "response_format": {"type": "json_object"}}),
            ""
        )
    );
    for (fields, param) in [
        (json!({"suffix": "x"}), "suffix"),
        (json!({"template": "x"}), "template"),
        (json!({"context": [1]}), "context"),
        (json!({"raw": true}), "raw"),
        (json!({"width": 100}), "width"),
        (json!({"options": {"mirostat": 2}}), "options.mirostat"),
    ] {
        let refusal = written(chat(), &generate(fields.clone()).unwrap()).err().unwrap_or_else(|| panic!("{fields}"));
        assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(param)), "{fields}");
    }
    assert_eq!(generate(json!({"prompt": ""})).unwrap_err().param.as_deref(), Some("prompt"));
}

#[test]
fn mistakes_are_named() {
    for (fields, param) in [
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 1}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "images": ["aGk="]}]}), "messages[0].images[0]"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]}),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"format": "xml"}), "format"),
        (json!({"think": "some"}), "think"),
        (json!({"options": {"top_k": 1.5}}), "options.top_k"),
        (json!({"options": {"stop": [1]}}), "options.stop"),
        (json!({"stream": 1}), "stream"),
    ] {
        let refusal = read(&fields).err().unwrap_or_else(|| panic!("{fields}"));
        assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(param)), "{fields}");
    }
    let deep = format!("{{\"messages\": {}1{}}}", "[".repeat(4000), "]".repeat(4000));
    assert!(Chat.read_request(deep.as_bytes()).is_err());
}

fn reply() -> Reply {
    let call = |n: u32| Part::ToolCall { id: format!("t{n}"), name: "f".into(), arguments: "{\"x\": 1}".into() };
    Reply {
        model: Some("gpt".into()),
        parts: vec![
            Part::Thinking { text: "hm".into(), signature: Some("s".into()) },
            Part::RedactedThinking("d".into()),
            Part::Text("Hello ü".into()),
            call(1),
            call(2),
        ],
        finish: Finish::ToolCalls,
        tokens: Some(Tokens { input: Some(40), output: Some(12), ..Tokens::default() }),
        ..Reply::default()
    }
}

#[test]
fn answers_in_lines_and_whole() {
    let whole: Value = serde_json::from_slice(&Chat.write_reply(&reply(), &Asked::default()).unwrap()).unwrap();
    let call = |n: usize, id: &str| json!({"id": id, "function": {"index": n, "name": "f", "arguments": {"x": 1}}});
    assert_eq!(
        whole["message"],
        json!({"role": "assistant", "content": "Hello ü", "thinking": "hm", "tool_calls": [call(0, "t1"), call(1, "t2")]})
    );
    let ends = |last: &Value| {
        assert_eq!(
            (&last["done"], &last["done_reason"], &last["model"]),
            (&json!(true), &json!("stop"), &json!("gpt"))
        );
        assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (&json!(40), &json!(12)));
    };
    ends(&whole);
    let streamed = stream_of(&Chat, deltas_of(reply()));
    let messages: Vec<&Value> = streamed.iter().map(|line| &line["message"]).collect();
    assert_eq!(messages[0], &json!({"role": "assistant", "content": "", "thinking": "hm"}));
    assert_eq!(messages[1], &json!({"role": "assistant", "content": "Hello ü"}));
    assert_eq!(messages[2]["tool_calls"], json!([call(0, "t1")]));
    assert_eq!(messages[3]["tool_calls"], json!([call(1, "t2")]));
    assert_eq!(streamed.len(), 5);
    ends(&streamed[4]);
    let plain = Reply { parts: reply().parts[..3].to_vec(), ..reply() };
    let generated: Value = serde_json::from_slice(&Generate.write_reply(&plain, &Asked::default()).unwrap()).unwrap();
    assert_eq!((&generated["response"], &generated["thinking"]), (&json!("Hello ü"), &json!("hm")));
    let streamed = stream_of(&Generate, deltas_of(plain));
    assert_eq!((&streamed[0]["thinking"], &streamed[1]["response"]), (&json!("hm"), &json!("Hello ü")));
}

#[test]
fn what_is_kept_has_a_bound() {
    let mut writer = Chat.write_stream(&Asked::default());
    writer.write(Delta::ToolCall { index: 0, id: "t".into(), name: "f".into() }, &mut BytesMut::new()).unwrap();
    let piece = || Delta::Arguments { index: 0, text: "x".repeat(1 << 20) };
    let written = (0..9).map(|_| writer.write(piece(), &mut BytesMut::new()));
    assert_eq!(written.filter(Result::is_ok).count(), 8);
}

#[test]
fn ends_of_a_stream() {
    let call = || Delta::ToolCall { index: 0, id: "t".into(), name: "f".into() };
    let cut =
        vec![call(), Delta::Arguments { index: 0, text: "{\"x\":".into() }, Delta::Finish(Finish::Length), Delta::End];
    let lines = stream_of(&Chat, cut);
    assert_eq!(lines[0]["message"]["tool_calls"][0]["function"]["arguments"], json!({}));
    assert_eq!(lines[1]["done_reason"], "length");
    let mut writer = Chat.write_stream(&Asked::default());
    let mut out = BytesMut::new();
    writer.write(call(), &mut out).unwrap();
    writer.write(Delta::Arguments { index: 0, text: "[".into() }, &mut out).unwrap();
    assert!(writer.write(Delta::Finish(Finish::ToolCalls), &mut out).is_err());
    assert!(writer.write(Delta::Arguments { index: 4, text: "{".into() }, &mut out).is_err());
    let error = ApiError {
        status: StatusCode::BAD_GATEWAY,
        kind: kind_of(StatusCode::BAD_GATEWAY),
        message: "died".into(),
        code: None,
        param: None,
    };
    assert_eq!(Chat.write_error(&error, ""), (StatusCode::BAD_GATEWAY, "{\"error\":\"died\"}".into()));
    let lines = stream_of(&Chat, vec![Delta::Ping, Delta::Error(error), Delta::End]);
    assert_eq!((&lines[0]["message"]["content"], &lines[1]), (&json!(""), &json!({"error": "died"})));
    assert_eq!(lines.len(), 2);
}

fn delta() -> impl Strategy<Value = Delta> {
    let text = "[a-zü\"\\\\\\n]{0,6}";
    prop_oneof![
        text.prop_map(|text| Delta::Text { text, logprobs: Vec::new() }),
        text.prop_map(Delta::Thinking),
        "[a-z]{1,4}".prop_map(Delta::Signature),
        (0usize..4).prop_map(|index| Delta::ToolCall { index, id: "t".into(), name: "f".into() }),
        (0usize..4, "[{}1]{0,2}").prop_map(|(index, text)| Delta::Arguments { index, text }),
        Just(Delta::Ping),
        Just(Delta::Finish(Finish::Length)),
    ]
}

proptest! {
    /// Every line is JSON, one ends the stream, and the pieces are there in their order.
    #[test]
    fn any_deltas_make_lines(deltas in proptest::collection::vec(delta(), 0..20)) {
        let (mut writer, mut out, mut said) = (Chat.write_stream(&Asked::default()), BytesMut::new(), String::new());
        for delta in deltas {
            let text = if let Delta::Text { text, .. } = &delta { text.clone() } else { String::new() };
            if writer.write(delta, &mut out).is_ok() {
                said += &text;
            } else {
                return Ok(());
            }
        }
        if writer.write(Delta::End, &mut out).is_err() {
            return Ok(());
        }
        let lines = lines(&out);
        prop_assert_eq!(lines.iter().filter(|line| line["done"] == true).count(), 1);
        prop_assert!(lines.last().unwrap()["done"] == true);
        let text: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
        prop_assert_eq!(text, said);
    }

    #[test]
    fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Chat.read_request(&bytes);
        let _ = Generate.read_request(&bytes);
    }
}
