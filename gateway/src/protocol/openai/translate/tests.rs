//! Tests of the translation of chat completions, and of conversations and streams that go there and back.

use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::protocol::anthropic::Messages;
use crate::protocol::translate::{
    Delta, Effort, Finish, Format, Image, ImageSource, Part, Role, ServerWords, Setting, ToolPick, ToolSpec, Turn,
    deltas_of,
};

/// API of both sides.
trait Both: CallerApi + ServerApi {}

impl<T: CallerApi + ServerApi> Both for T {}

fn apis() -> [&'static dyn Both; 2] {
    [&ChatCompletions, &Messages]
}

fn read_chat(body: &Value) -> Result<Conversation, Refusal> {
    ChatCompletions.read_request(body.to_string().as_bytes())
}

fn written(api: &dyn Both, conversation: &Conversation) -> Result<Value, Refusal> {
    let request = api.write_request(conversation, ("m", ServerWords::default()), &mut Lossy::new(&[]))?;
    Ok(serde_json::from_slice(&request.body).unwrap())
}

/// Deltas of a stream that comes in parts of `size` bytes.
fn deltas(api: &dyn Both, stream: &[u8], size: usize) -> (Vec<Delta>, Result<bool, Unreadable>) {
    let (mut reader, mut read) = (api.read_stream(1), Vec::new());
    for part in stream.chunks(size.max(1)) {
        if let Err(error) = reader.feed(part, &mut |delta| read.push(delta)) {
            return (read, Err(error));
        }
    }
    let ended = reader.finish(&mut |delta| read.push(delta));
    (read, ended)
}

fn stream_of(api: &dyn Both, deltas: Vec<Delta>) -> Vec<u8> {
    let asked = Asked { model: "m".into(), stream: true, include_usage: true, ..Asked::default() };
    let (mut writer, mut out) = (api.write_stream(&asked), BytesMut::new());
    for delta in deltas {
        writer.write(delta, &mut out).unwrap();
    }
    out.to_vec()
}

const STREAM: &str = concat!(
    "data: {\"id\":\"c1\",\"model\":\"gpt\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\r\n\r\n",
    ": keep-alive\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":\"hm \\u00fc\"}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"},\"logprobs\":{\"content\":[{\"token\":\"Hello\",\"logprob\":-0.5,\"bytes\":[72],\"top_logprobs\":[]}]}}]}\n\n",
    "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"other\"}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"t1\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"\"}}]}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"x\\\":\"}}]}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"1}\"}}]}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":1,\"id\":\"t2\",\"function\":{\"name\":\"g\",\"arguments\":\"{}\"}}]}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":4,\"prompt_tokens_details\":{\"cached_tokens\":7}}}\n\n",
    "data: [DONE]\n\n",
);

#[test]
fn a_stream_of_a_server_is_read_wherever_it_is_cut() {
    let (whole, ended) = deltas(&ChatCompletions, STREAM.as_bytes(), usize::MAX);
    assert_eq!(ended, Ok(true));
    assert!(matches!(&whole[0], Delta::Start { id: Some(id), .. } if id == "c1"), "{whole:?}");
    assert_eq!((&whole[1], &whole[2]), (&Delta::Ping, &Delta::Thinking("hm ü".into())));
    assert!(matches!(&whole[3], Delta::Text { text, logprobs } if text == "Hello" && logprobs.len() == 1));
    assert_eq!(whole.last(), Some(&Delta::End));
    for size in 1..200 {
        assert_eq!(deltas(&ChatCompletions, STREAM.as_bytes(), size), (whole.clone(), Ok(true)), "in parts of {size}");
    }
    let without_done = STREAM.strip_suffix("data: [DONE]\n\n").unwrap();
    assert_eq!(deltas(&ChatCompletions, without_done.as_bytes(), 9), (whole, Ok(true)));
    let cut = &STREAM[..STREAM.find("finish_reason").unwrap()];
    assert_ne!(deltas(&ChatCompletions, cut.as_bytes(), 9).1, Ok(true));
}

/// Content of a stream, without what differs between the forms in which APIs say it.
fn meaning(deltas: Vec<Delta>) -> (String, Option<Finish>) {
    let (mut said, mut finish) = (String::new(), None);
    for delta in deltas {
        match delta {
            Delta::Text { text, .. } => said += &format!("text {text}\n"),
            Delta::Thinking(text) => said += &format!("thinking {text}\n"),
            Delta::Signature(text) => said += &format!("signature {text}\n"),
            Delta::RedactedThinking(text) => said += &format!("redacted {text}\n"),
            Delta::ToolCall { index, id, name } => said += &format!("call {index} {id} {name}\n"),
            Delta::Arguments { index, text } => said += &format!("arguments {index} {text}\n"),
            Delta::Finish(reason) => finish = Some(reason),
            Delta::Ping => said += "ping\n",
            Delta::End => said += "end\n",
            Delta::Error(error) => said += &format!("error {} {}\n", error.status, error.message),
            Delta::Start { id, model, .. } => said += &format!("start {id:?} {model:?}\n"),
            Delta::Refusal(_) | Delta::TextEnd | Delta::ThinkingEnd | Delta::Choice(_) | Delta::Usage(_) => {}
        }
    }
    (said, finish)
}

#[test]
fn streams_keep_their_meaning_in_the_other_api() {
    let anthropic = crate::protocol::anthropic::tests::STREAM;
    for (from, stream) in [(0, STREAM), (1, anthropic)] {
        let (read, _) = deltas(apis()[from], stream.as_bytes(), 11);
        for api in apis() {
            let there = stream_of(api, read.clone());
            let (back, ended) = deltas(api, &there, 5);
            assert_eq!(ended, Ok(true));
            assert_eq!(meaning(back), meaning(read.clone()), "{}", String::from_utf8_lossy(&there));
        }
    }
}

#[test]
fn whole_answers_keep_their_meaning_in_the_other_api() {
    let body = json!({
        "id": "c1", "model": "gpt", "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
            "role": "assistant", "content": "Hello",
            "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "d"}],
            "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}]}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 7}}
    });
    let reply = ChatCompletions.read_reply(body.to_string().as_bytes()).unwrap();
    for api in apis() {
        let there = api.write_reply(&reply, &Asked::default()).unwrap();
        assert_eq!(api.read_reply(&there).unwrap(), reply, "{}", String::from_utf8_lossy(&there));
        let (streamed, ended) = deltas(api, &stream_of(api, deltas_of(reply.clone())), 3);
        assert_eq!((meaning(streamed), ended), (meaning(deltas_of(reply.clone())), Ok(true)));
    }
    for bad in ["", "[]", "{}", "{\"choices\":[]}", "{\"choices\":1}"] {
        assert!(ChatCompletions.read_reply(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn mistakes_are_named() {
    for (fields, param) in [
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "x", "content": ""}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].tool_call_id"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tool_choice": "some"}), "tool_choice"),
        (json!({"stop": [1]}), "stop"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (json!({"stream": 1}), "stream"),
    ] {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let refusal = read_chat(&body).err().unwrap_or_else(|| panic!("{fields}"));
        assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(param)), "{fields}");
    }
    let deep = format!("{{\"messages\": {}1{}}}", "[".repeat(4000), "]".repeat(4000));
    assert!(ChatCompletions.read_request(deep.as_bytes()).is_err());
    let bad_call = json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls":
        [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{\"x\":"}}]}]});
    let refusal = written(apis()[1], &read_chat(&bad_call).unwrap()).unwrap_err();
    assert_eq!(refusal.param.as_deref(), Some("messages[1].tool_calls"));
}

fn text() -> impl Strategy<Value = String> {
    "[a-zü\"\\\\\\n ]{0,8}x"
}

fn user_part() -> impl Strategy<Value = Part> {
    let base64 = "[a-zA-Z0-9+/]{1,8}".prop_map(|data| ImageSource::Base64 { media_type: "image/png".into(), data });
    let url = "https://[a-z]{1,8}".prop_map(ImageSource::Url);
    prop_oneof![text().prop_map(Part::Text), prop_oneof![base64, url].prop_map(|source| Part::Image(Image { source })),]
}

fn user() -> impl Strategy<Value = Vec<Part>> {
    let result = ("[a-z0-9]{1,6}", proptest::collection::vec(text().prop_map(Part::Text), 1..3))
        .prop_map(|(id, parts)| Part::ToolResult { id, parts, is_error: false });
    (proptest::collection::vec(result, 0..3), proptest::collection::vec(user_part(), 1..3))
        .prop_map(|(results, own)| results.into_iter().chain(own).collect())
}

fn assistant() -> impl Strategy<Value = Vec<Part>> {
    let thinking = prop_oneof![
        (text(), "[a-z]{1,6}").prop_map(|(text, signature)| Part::Thinking { text, signature: Some(signature) }),
        text().prop_map(Part::RedactedThinking),
    ];
    let call = ("[a-z0-9]{1,6}", "[a-z]{1,6}", 0u32..9).prop_map(|(id, name, x)| Part::ToolCall {
        id,
        name,
        arguments: format!("{{\"x\":{x}}}"),
    });
    (proptest::collection::vec(thinking, 0..3), text(), proptest::collection::vec(call, 0..3))
        .prop_map(|(thinking, text, calls)| thinking.into_iter().chain([Part::Text(text)]).chain(calls).collect())
}

fn settings() -> impl Strategy<Value = Vec<Setting>> {
    let schema =
        Format::JsonSchema { name: Some("answer".into()), schema: json!({"type": "object"}), strict: Some(true) };
    let all = vec![
        Setting::MaxTokens(7),
        Setting::Temperature(serde_json::Number::from_f64(0.25).unwrap()),
        Setting::TopP(serde_json::Number::from_f64(0.5).unwrap()),
        Setting::Stop(vec!["a".into(), "b".into()]),
        Setting::User("u".into()),
        Setting::Effort(Effort::High),
        Setting::Format(schema),
    ];
    proptest::sample::subsequence(all, 0..7)
}

fn conversation() -> impl Strategy<Value = Conversation> {
    let turns = proptest::collection::vec((user(), assistant()), 1..4);
    let pick = proptest::option::of(proptest::sample::select(vec![
        ToolPick::Auto,
        ToolPick::None,
        ToolPick::Required,
        ToolPick::Named("f".into()),
    ]));
    (proptest::option::of(text()), turns, user(), settings(), pick, any::<bool>(), any::<bool>()).prop_map(
        |(system, turns, last, settings, pick, stream, one)| {
            let turn = |role, parts| Turn { role, parts, at: String::new() };
            let mut all: Vec<Turn> =
                system.map(|text| turn(Role::System, vec![Part::Text(text)])).into_iter().collect();
            for (user, assistant) in turns {
                all.extend([turn(Role::User, user), turn(Role::Assistant, assistant)]);
            }
            all.push(turn(Role::User, last));
            let parameters = json!({"type": "object", "properties": {}}).as_object().cloned();
            let tool = ToolSpec::Function { name: "f".into(), description: Some("F".into()), parameters, strict: None };
            let one_tool_call = one && pick.is_some() && pick != Some(ToolPick::None);
            let mut conversation = Conversation {
                model: Some("m".into()),
                turns: all,
                tools: vec![tool],
                tool_pick: pick,
                one_tool_call,
                stream,
                include_usage: stream,
                ..Conversation::default()
            };
            for setting in settings {
                conversation.settings.push("x", setting);
            }
            conversation
        },
    )
}

/// Role and parts of a turn.
type SaidTurn = (String, Vec<Part>);

/// Content of a conversation: turns of one role in a row are one.
fn said(conversation: &Conversation) -> (Vec<SaidTurn>, Vec<String>, String) {
    let mut turns: Vec<SaidTurn> = Vec::new();
    for turn in &conversation.turns {
        let role = format!("{:?}", turn.role);
        match turns.last_mut() {
            Some((last, parts)) if *last == role => parts.extend(turn.parts.clone()),
            _ => turns.push((role, turn.parts.clone())),
        }
    }
    let setting = |setting: &Setting| match setting {
        // A name is only in one of the APIs, and the most tokens are in every request of the other.
        Setting::Format(Format::JsonSchema { schema, .. }) => format!("schema {schema}"),
        Setting::MaxTokens(4096) => String::new(),
        other => format!("{other:?}"),
    };
    let mut settings: Vec<String> = conversation.settings.iter().map(|named| setting(&named.setting)).collect();
    settings.retain(|setting| !setting.is_empty());
    settings.sort();
    let Conversation { tools, tool_pick, one_tool_call, stream, .. } = conversation;
    (turns, settings, format!("{tools:?} {tool_pick:?} {one_tool_call} {stream}"))
}

proptest! {
    #[test]
    fn conversations_keep_their_meaning_there_and_back(conversation in conversation()) {
        let expected = said(&conversation);
        let mut now = conversation;
        for api in apis().into_iter().chain(apis()) {
            let body = written(api, &now).unwrap();
            now = api.read_request(body.to_string().as_bytes()).unwrap();
            prop_assert_eq!(&said(&now), &expected, "{}", body);
        }
    }

    #[test]
    fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 1usize..20) {
        let _ = ChatCompletions.read_request(&bytes);
        let _ = ChatCompletions.read_reply(&bytes);
        let _ = ChatCompletions.read_error(StatusCode::BAD_GATEWAY, &bytes);
        prop_assert_eq!(deltas(&ChatCompletions, &bytes, size).0, deltas(&ChatCompletions, &bytes, usize::MAX).0);
    }

    #[test]
    fn any_chunks_are_judged(
        chunks in proptest::collection::vec(proptest::sample::select(vec![
            r#"{"choices":[{"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":4294967295,"function":{"name":"g"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}}]}"#,
            r#"{"choices":[{"delta":{"thinking_blocks":[{"type":"thinking","thinking":"x","signature":"y"}]}}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":"stop","stop_reason":"END"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":18446744073709551615}}"#,
            r#"{"error":"x"}"#, r#"{"error":{"code":503}}"#, "[DONE]", "{}",
        ]), 0..12),
        size in 1usize..40,
    ) {
        let stream: String = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
        let (read, ended) = deltas(&ChatCompletions, stream.as_bytes(), size);
        // Ids of calls without one are new each time.
        prop_assert_eq!(ended, deltas(&ChatCompletions, stream.as_bytes(), usize::MAX).1);
        for api in apis() {
            let (mut writer, mut out) = (api.write_stream(&Asked::default()), BytesMut::new());
            for delta in read.clone() {
                if writer.write(delta, &mut out).is_err() {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_long_name_of_a_server_does_not_grow_its_stream_with_every_chunk() {
    let long = "n".repeat(200 << 10);
    for (id, model) in [(&*long, "m"), ("c1", &*long)] {
        let start = json!({"id": id, "model": model, "choices": []});
        let piece = json!({"choices": [{"index": 0, "delta": {"content": "a"}}]});
        let mut stream = format!("data: {start}\n\n");
        for _ in 0..100 {
            stream += &format!("data: {piece}\n\n");
        }
        let (mut reader, asked) = (apis()[0].read_stream(1), Asked { model: "asked".into(), ..Asked::default() });
        let (mut writer, mut out) = (apis()[0].write_stream(&asked), BytesMut::new());
        reader.feed(stream.as_bytes(), &mut |delta| writer.write(delta, &mut out).unwrap()).unwrap();
        let text = std::str::from_utf8(&out).unwrap();
        assert!(text.len() < 64 << 10 && text.contains("\"asked\"") == (model == long), "{}", text.len());
    }
}
