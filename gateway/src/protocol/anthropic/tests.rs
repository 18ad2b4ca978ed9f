//! Tests of the Messages API: requests of callers for a built-in model, answers, and streams cut anywhere.

use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::protocol::ANTHROPIC;
use crate::protocol::chat::{FinishReason, ToolChoice, Usage};
use crate::protocol::translate::{Delta, Finish, Part, Tokens};

fn chat(body: &Value) -> Result<ChatRequest, Refusal> {
    ANTHROPIC.read_chat(Operation::Messages, body.to_string().as_bytes()).unwrap()
}

fn with(fields: Value) -> Value {
    let mut body = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn a_built_in_model_gets_what_it_can_do() {
    let request = chat(&with(json!({
        "system": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "system", "content": "Now faster."},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "c"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "r"}]},
                {"type": "text", "text": "d"}]}
        ],
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["END"], "stream": true,
        "tools": [{"name": "f", "description": "F", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
        "thinking": {"type": "disabled"}, "metadata": {"user_id": "u"}, "output_config": {"effort": "low"}
    })))
    .unwrap();
    let messages: Vec<_> = request.messages.iter().map(|m| (m.role, m.content.as_str(), m.tool_calls.len())).collect();
    assert_eq!(
        messages,
        [
            ("system", "Be\nbrief.", 0),
            ("user", "a\nb", 0),
            ("system", "Now faster.", 0),
            ("assistant", "c", 1),
            ("tool", "r", 0),
            ("user", "d", 0)
        ]
    );
    assert_eq!(request.messages[4].tool_call_id.as_deref(), Some("t1"));
    assert_eq!((request.tool_choice, request.one_tool_call, request.stream), (ToolChoice::Required, true, true));
    assert_eq!(request.tools[0].function, r#"{"name":"f","description":"F","parameters":{"type":"object"}}"#);
    assert_eq!((request.max_tokens, request.top_k, request.temperature), (Some(9), Some(5), Some(0.5)));
    assert_eq!(request.stop, ["END"]);
    assert!(request.unsupported.is_none());
    assert_eq!(request.ignored.header().unwrap(), "system[1].cache_control, output_config.effort");
}

#[test]
fn what_a_built_in_model_cannot_do_is_named() {
    let image = json!({"type": "image", "source": {"type": "url", "url": "https://x"}});
    for (fields, param) in [
        (json!({"messages": [{"role": "user", "content": [image]}]}), "messages[0]"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), "thinking"),
        (json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}), "tools[0]"),
        (json!({"container": "c"}), "container"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}), "messages"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}),
            "messages[0].content[0]",
        ),
    ] {
        let refusal = chat(&with(fields.clone())).unwrap().unsupported.unwrap_or_else(|| panic!("{fields}"));
        assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(param)), "{fields}");
    }
    for (fields, param) in [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": "9"}), "max_tokens"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 1}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}), "messages[0].content[0].text"),
        (
            json!({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": "x"}]}]}),
            "messages[0].content[0].input",
        ),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": 7}), "temperature"),
        (json!({"tool_choice": {"type": "tool", "name": "x"}}), "tool_choice.name"),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice.type"),
        (json!({"system": 1}), "system"),
        (json!({"stop_sequences": [1]}), "stop_sequences"),
    ] {
        let refusal = chat(&with(fields.clone())).err().unwrap_or_else(|| panic!("{fields}"));
        assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(param)), "{fields}");
    }
    for body in ["", "[]", "{", "\u{0}", "{\"messages\": 1e999}"] {
        assert!(ANTHROPIC.read_chat(Operation::Messages, body.as_bytes()).unwrap().is_err(), "{body}");
    }
    let deep = format!("{{\"max_tokens\": 1, \"messages\": {}1{}}}", "[".repeat(4000), "]".repeat(4000));
    assert!(ANTHROPIC.read_chat(Operation::Messages, deep.as_bytes()).unwrap().is_err());
}

fn head(operation: Operation) -> AnswerHead<'static> {
    let id = uuid::Uuid::from_u128(1);
    AnswerHead { operation, id, created: 7, model: "m", include_usage: true, prompt_tokens: 9, echoed: "" }
}

#[test]
fn the_stream_of_a_built_in_model_has_the_events_of_the_api() {
    let mut answer = ANTHROPIC.write_answer(head(Operation::Chat)).unwrap();
    let mut out = BytesMut::new();
    answer.first(&mut out, 0);
    answer.piece(&mut out, 0, "Hel\"lo", None, 0);
    let call = crate::protocol::Call { id: "t".into(), name: "f".into(), arguments: "{\"x\":1}".into() };
    answer.call(&mut out, 0, 0, &call);
    answer.ended(&mut out, 0, FinishReason::ToolCalls);
    let usage = Usage {
        prompt_tokens: 9,
        completion_tokens: 4,
        cached_tokens: Some(5),
        cache_written_tokens: None,
        cache_written_1h_tokens: None,
        reasoning_tokens: None,
    };
    answer.last(&mut out, usage);
    let expected = concat!(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_00000000000000000000000000000001\",",
        "\"type\":\"message\",\"role\":\"assistant\",\"model\":\"m\",\"content\":[],\"stop_reason\":null,",
        "\"stop_sequence\":null,\"usage\":{\"input_tokens\":9,\"output_tokens\":0}}}\n\n",
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hel\\\"lo\"}}\n\n",
        "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"f\",\"input\":{}}}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"x\\\":1}\"}}\n\n",
        "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":1}\n\n",
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\",\"stop_sequence\":null},",
        "\"usage\":{\"input_tokens\":4,\"cache_read_input_tokens\":5,\"output_tokens\":4}}\n\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    );
    assert_eq!(String::from_utf8_lossy(&out), expected);
}

/// Deltas of a stream that comes in parts of `size` bytes.
fn deltas(stream: &[u8], size: usize) -> (Vec<Delta>, Result<bool, Unreadable>) {
    let (mut reader, mut read) = (Messages.read_stream(1), Vec::new());
    for part in stream.chunks(size.max(1)) {
        if let Err(error) = reader.feed(part, &mut |delta| read.push(delta)) {
            return (read, Err(error));
        }
    }
    let ended = reader.finish(&mut |delta| read.push(delta));
    (read, ended)
}

/// Stream of a server with everything in it.
pub(in crate::protocol) const STREAM: &str = concat!(
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",",
    "\"model\":\"claude\",\"content\":[],\"stop_reason\":null,\"usage\":{\"input_tokens\":3,\"cache_read_input_tokens\":7,\"output_tokens\":1}}}\r\n\r\n",
    "event: ping\ndata: {\"type\": \"ping\"}\n\n",
    "data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}}\n\n",
    "data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"hm ü\"}}\n\n",
    "data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"signature_delta\",\"signature\":\"sig==\"}}\n\n",
    "data: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
    "data: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"redacted_thinking\",\"data\":\"xyz\"}}\n\n",
    "data: {\"type\":\"content_block_stop\",\"index\":1}\n\n",
    "data: {\"type\":\"content_block_start\",\"index\":2,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
    "data: {\"type\":\"content_block_delta\",\"index\":2,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\n\n",
    "data: {\"type\":\"something_new\",\"index\":2}\n\n",
    "data: {\"type\":\"content_block_stop\",\"index\":2}\n\n",
    "data: {\"type\":\"content_block_start\",\"index\":3,\"content_block\":{\"type\":\"tool_use\",\"id\":\"t1\",\"name\":\"f\",\"input\":{}}}\n\n",
    "data: {\"type\":\"content_block_delta\",\"index\":3,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"\"}}\n\n",
    "data: {\"type\":\"content_block_delta\",\"index\":3,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"x\\\":1}\"}}\n\n",
    "data: {\"type\":\"content_block_stop\",\"index\":3}\n\n",
    "data: {\"type\":\"content_block_start\",\"index\":4,\"content_block\":{\"type\":\"tool_use\",\"id\":\"t2\",\"name\":\"g\",\"input\":{}}}\n\n",
    "data: {\"type\":\"content_block_stop\",\"index\":4}\n\n",
    "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":12}}\n\n",
    "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
);

#[test]
fn a_stream_of_a_server_is_read_wherever_it_is_cut() {
    let (whole, ended) = deltas(STREAM.as_bytes(), usize::MAX);
    assert_eq!(ended, Ok(true));
    let tokens = |input, cache_read, output| Tokens { input, cache_read, output, ..Tokens::default() };
    let call = |index, id: &str, name: &str| Delta::ToolCall { index, id: id.into(), name: name.into() };
    let expected = [
        Delta::Start {
            id: Some("msg_1".into()),
            model: Some("claude".into()),
            tokens: Some(tokens(Some(10), Some(7), Some(1))),
        },
        Delta::Ping,
        Delta::Thinking("hm ü".into()),
        Delta::Signature("sig==".into()),
        Delta::ThinkingEnd,
        Delta::RedactedThinking("xyz".into()),
        Delta::Text { text: "Hello".into(), logprobs: vec![] },
        Delta::TextEnd,
        call(0, "t1", "f"),
        Delta::Arguments { index: 0, text: "{\"x\":1}".into() },
        call(1, "t2", "g"),
        Delta::Arguments { index: 1, text: "{}".into() },
        Delta::Usage(tokens(Some(10), Some(7), Some(12))),
        Delta::Finish(Finish::ToolCalls),
        Delta::End,
    ];
    assert_eq!(whole, expected);
    for size in 1..200 {
        assert_eq!(deltas(STREAM.as_bytes(), size), (whole.clone(), Ok(true)), "in parts of {size}");
    }
    for end in 0..STREAM.len() {
        let (part, ended) = deltas(&STREAM.as_bytes()[..end], 7);
        let is_whole = part.last() == Some(&Delta::End);
        assert!(ended == Ok(is_whole) || ended.is_err(), "cut at {end}: {ended:?}");
        let same = part.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        assert!(same + 1 >= part.len(), "cut at {end}");
    }
}

#[test]
fn errors_of_a_stream_end_it() {
    let stream = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\ndata: {\"type\":\"ping\"}\n\n";
    let (read, ended) = deltas(stream.as_bytes(), 5);
    let [Delta::Error(error)] = read.as_slice() else { panic!("{read:?}") };
    assert_eq!((error.status.as_u16(), error.message.as_str(), ended), (529, "Overloaded", Ok(true)));
    for bad in ["data: x\n\n", "data: {\"type\":\"content_block_delta\",\"index\":7,\"delta\":{}}\n\n"] {
        assert!(deltas(bad.as_bytes(), 3).1.is_err(), "{bad}");
    }
    let long = format!("data: {}\n\n", "x".repeat(300 << 10));
    assert!(deltas(long.as_bytes(), 1 << 12).1.is_err(), "an event without end");
}

#[test]
fn a_whole_message_is_read_and_written() {
    let body = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "d"},
            {"type": "text", "text": "Hello"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"x": [1, 2.5]}}
        ],
        "stop_reason": "stop_sequence", "stop_sequence": "END",
        "usage": {"input_tokens": 3, "cache_creation_input_tokens": 2, "cache_read_input_tokens": 5, "output_tokens": 4}
    });
    let reply = Messages.read_reply(body.to_string().as_bytes()).unwrap();
    assert_eq!(reply.tokens.unwrap().input, Some(10));
    assert_eq!(reply.finish, Finish::StopString(Some("END".into())));
    let written: Value = serde_json::from_slice(&Messages.write_reply(&reply, &Asked::default()).unwrap()).unwrap();
    assert_eq!(written, body);
    for bad in ["", "[]", "{}", "{\"content\":1}", "\"x\""] {
        assert!(Messages.read_reply(bad.as_bytes()).is_err(), "{bad}");
    }
    let cut = Part::ToolCall { id: "t".into(), name: "f".into(), arguments: "{\"x\": ".into() };
    let mut reply = Reply { parts: vec![cut], finish: Finish::Length, ..Reply::default() };
    assert!(Messages.write_reply(&reply, &Asked::default()).is_ok());
    reply.finish = Finish::ToolCalls;
    assert!(Messages.write_reply(&reply, &Asked::default()).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 1usize..20) {
        let _ = ANTHROPIC.read_chat(Operation::Messages, &bytes);
        let _ = Messages.read_reply(&bytes);
        prop_assert_eq!(deltas(&bytes, size).0, deltas(&bytes, usize::MAX).0);
    }

    #[test]
    fn any_events_are_judged(
        kinds in proptest::collection::vec(proptest::sample::select(vec![
            r#"{"type":"message_start","message":{}}"#,
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"a"}}"#,
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t","name":"f"}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"b"}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{}"}}"#,
            r#"{"type":"content_block_stop","index":0}"#,
            r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":18446744073709551615,"input_tokens":18446744073709551615,"cache_read_input_tokens":9}}"#,
            r#"{"type":"message_stop"}"#, r#"{"type":"error","error":"x"}"#, r#"{"type":"ping"}"#, "{}", ": hello",
        ]), 0..12),
        size in 1usize..40,
    ) {
        let stream: String = kinds.iter().map(|kind| format!("data: {kind}\n\n")).collect();
        let (parts, ended) = deltas(stream.as_bytes(), size);
        prop_assert_eq!((parts.clone(), ended), deltas(stream.as_bytes(), usize::MAX));
        let (mut writer, mut out) = (Messages.write_stream(&Asked::default()), BytesMut::new());
        for delta in parts {
            if writer.write(delta, &mut out).is_err() {
                break;
            }
        }
    }
}

#[test]
fn events_that_leave_out_counts_of_earlier_ones_change_nothing_of_the_prompt() {
    let stream = "data: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"usage\":{\"input_tokens\":5,\"cache_read_input_tokens\":30}}}\n\n\
        data: {\"type\":\"message_delta\",\"usage\":{\"input_tokens\":6,\"output_tokens\":1}}\n\n\
        data: {\"type\":\"message_delta\",\"usage\":{\"cache_creation_input_tokens\":5,\"output_tokens\":7}}\n\n";
    let (all, _) = deltas(stream.as_bytes(), 9);
    let told = all.into_iter().filter_map(|delta| match delta {
        Delta::Usage(tokens) => Some((tokens.input, tokens.cache_read, tokens.cache_written, tokens.output)),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [(Some(36), Some(30), None, Some(1)), (Some(41), Some(30), Some(5), Some(7))]);
}
