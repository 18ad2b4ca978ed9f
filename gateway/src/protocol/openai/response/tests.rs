use bytes::BytesMut;
use proptest::prelude::*;
use spillway_engine::TokenProbability;

use super::*;
use crate::protocol::dialect::ModelCard;

const HEAD: &str =
    r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m\"x","choices":["#;

fn written(include_usage: bool) -> String {
    let mut answer = Answer::new(Shape::Chat, "chatcmpl-1".into(), 7, "m\"x".into(), include_usage);
    let mut out = BytesMut::new();
    answer.first(&mut out, 0);
    answer.piece(&mut out, 0, "Hi \"you\"\n\u{1}é", None, 0);
    answer.ended(&mut out, 0, FinishReason::Stop);
    answer.last(&mut out, Usage { prompt_tokens: 3, cached_tokens: Some(1), completion_tokens: 2, ..Usage::default() });
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn a_stream_is_what_the_official_clients_read() {
    let expected = [
        format!(r#"{HEAD}{{"index":0,"delta":{{"role":"assistant","content":""}},"finish_reason":null}}]}}"#),
        format!(r#"{HEAD}{{"index":0,"delta":{{"content":"Hi \"you\"\n\u0001é"}},"finish_reason":null}}]}}"#),
        format!(r#"{HEAD}{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}"#),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(written(false), expected.join("\n\n"));
}

#[test]
fn usage_comes_last_where_it_was_asked_for() {
    let events = written(true);
    let events: Vec<&str> = events.split_terminator("\n\n").collect();
    let [text @ .., usage, done] = &events[..] else { panic!("{events:?}") };
    assert_eq!(text.len(), 3);
    assert!(text.iter().all(|event| event.starts_with(HEAD) && event.ends_with(r#"}],"usage":null}"#)), "{text:?}");
    let expected = r#"],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}}}"#;
    assert_eq!(usage.strip_prefix(HEAD), Some(expected));
    assert_eq!(*done, "data: [DONE]");
}

#[test]
fn a_whole_answer_is_one_object() {
    let mut out = BytesMut::new();
    let choice = Choice { text: "Hi\n".into(), finish_reason: FinishReason::Length, ..Choice::default() };
    let spent = Usage { prompt_tokens: 3, cached_tokens: Some(0), completion_tokens: 2, ..Usage::default() };
    Answer::new(Shape::Chat, "chatcmpl-1".into(), 7, "m".into(), false).whole(&mut out, &[choice], spent);
    let expected = concat!(
        r#"{"id":"chatcmpl-1","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"#,
        r#""message":{"role":"assistant","content":"Hi\n","refusal":null},"logprobs":null,"#,
        r#""finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"#,
        r#""prompt_tokens_details":{"cached_tokens":0}}}"#
    );
    assert_eq!(out, expected);
}

#[test]
fn probabilities_have_the_shape_that_clients_decode() {
    let likely = |bytes: &[u8], log_probability| TokenProbability { token: 1, bytes: bytes.into(), log_probability };
    let written = [WrittenToken {
        chosen: likely(b"a", -0.5),
        likeliest: vec![likely(b"a", -0.5), likely(b"\xe2\x82", f32::NEG_INFINITY)],
    }];
    let content = concat!(
        r#"{"content":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[{"token":"a","logprob":-0.5,"#,
        "\"bytes\":[97]},{\"token\":\"\u{FFFD}\",\"logprob\":-9999.0,\"bytes\":[226,130]}]}],\"refusal\":null}"
    );
    let mut answer = Answer::new(Shape::Chat, "chatcmpl-1".into(), 7, "m\"x".into(), false);
    let mut out = BytesMut::new();
    answer.piece(&mut out, 2, "a", Some(&written), 0);
    let event =
        format!(r#"{HEAD}{{"index":2,"delta":{{"content":"a"}},"logprobs":{content},"finish_reason":null}}]}}"#);
    assert_eq!(out, format!("{event}\n\n"));
    out.clear();
    let choice = || Choice {
        text: "a".into(),
        written: Some(written.to_vec()),
        finish_reason: FinishReason::Stop,
        ..Choice::default()
    };
    answer.whole(&mut out, &[choice(), choice()], Usage::default());
    let whole = String::from_utf8(out.to_vec()).unwrap();
    for n in 0..2 {
        let message = r#""message":{"role":"assistant","content":"a","refusal":null}"#;
        let choice = format!(r#"{{"index":{n},{message},"logprobs":{content},"finish_reason":"stop"}}"#);
        assert!(whole.contains(&choice), "{whole}");
    }
}

#[test]
fn calls_have_the_shape_that_clients_decode() {
    let call = Call { id: "call_1".into(), name: "time".into(), arguments: r#"{"zone":"UTC"}"#.into() };
    let mut answer = Answer::new(Shape::Chat, "chatcmpl-1".into(), 7, "m\"x".into(), false);
    let mut out = BytesMut::new();
    answer.call(&mut out, 0, 1, &call);
    let function = r#""type":"function","function":{"name":"time","arguments":"{\"zone\":\"UTC\"}"}"#;
    let event = format!(
        r#"{HEAD}{{"index":0,"delta":{{"tool_calls":[{{"index":1,"id":"call_1",{function}}}]}},"finish_reason":null}}]}}"#
    );
    assert_eq!(out, format!("{event}\n\n"));
    out.clear();
    let choice = Choice { calls: vec![call], finish_reason: FinishReason::ToolCalls, ..Choice::default() };
    answer.whole(&mut out, &[choice], Usage::default());
    let message = format!(
        r#""message":{{"role":"assistant","content":null,"refusal":null,"tool_calls":[{{"id":"call_1",{function}}}]}}"#
    );
    let whole = String::from_utf8(out.to_vec()).unwrap();
    assert!(whole.contains(&message) && whole.contains(r#""finish_reason":"tool_calls""#), "{whole}");
}

#[test]
fn completions_have_their_own_shape() {
    let likely = |bytes: &[u8]| TokenProbability { token: 1, bytes: bytes.into(), log_probability: -0.5 };
    let token = |bytes: &[u8]| WrittenToken { chosen: likely(bytes), likeliest: vec![likely(b"x")] };
    let mut answer = Answer::new(Shape::Text, "cmpl-1".into(), 7, "m".into(), false);
    let mut out = BytesMut::new();
    answer.first(&mut out, 0);
    assert!(out.is_empty(), "a text has no role");
    let told = answer.piece(&mut out, 0, "aé", Some(&[token("aé".as_bytes())]), 3);
    assert_eq!(told, 2);
    answer.ended(&mut out, 0, FinishReason::Length);
    let head = r#"data: {"id":"cmpl-1","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"#;
    let logprobs = r#"{"tokens":["aé"],"token_logprobs":[-0.5],"top_logprobs":[{"x":-0.5}],"text_offset":[3]}"#;
    let expected = [
        format!(r#"{head}"text":"aé","logprobs":{logprobs},"finish_reason":null}}]}}"#),
        format!(r#"{head}"text":"","logprobs":null,"finish_reason":"length"}}]}}"#),
        String::new(),
    ];
    assert_eq!(out, expected.join("\n\n"));
    out.clear();
    let written = Some(vec![token(b"a"), token(b"b")]);
    let choice = Choice { text: "ab".into(), written, finish_reason: FinishReason::Stop, ..Choice::default() };
    answer.whole(&mut out, &[choice], Usage::default());
    let whole = String::from_utf8(out.to_vec()).unwrap();
    let start = r#"{"id":"cmpl-1","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":"ab","logprobs":"#;
    assert!(whole.starts_with(start) && whole.contains(r#""text_offset":[0,1]"#), "{whole}");
}

#[test]
fn models_are_listed() {
    let card = || ModelCard { id: "m", created: 7 };
    let one = r#"{"object":"model","id":"m","created":7,"owned_by":"spillway"}"#;
    assert_eq!(model(card()), one);
    assert_eq!(model_list(&[card(), card()]), format!(r#"{{"object":"list","data":[{one},{one}]}}"#));
    assert_eq!(model_list(&[]), r#"{"object":"list","data":[]}"#);
}

proptest! {
    #[test]
    fn any_text_survives(text in any::<String>(), id in any::<String>(), model in any::<String>()) {
        let mut out = BytesMut::new();
        Answer::new(Shape::Chat, id.clone(), 1, model.clone(), false).piece(&mut out, 0, &text, None, 0);
        let event = out.strip_prefix(b"data: ").unwrap().strip_suffix(b"\n\n").unwrap();
        // A line break in an event would end it.
        prop_assert!(!event.contains(&b'\n') && !event.contains(&b'\r'));
        let value: serde_json::Value = serde_json::from_slice(event).unwrap();
        prop_assert_eq!(value["choices"][0]["delta"]["content"].as_str(), Some(&*text));
        prop_assert_eq!((value["id"].as_str(), value["model"].as_str()), (Some(&*id), Some(&*model)));
    }
}
