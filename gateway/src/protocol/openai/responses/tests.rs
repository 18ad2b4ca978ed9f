use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::{Value, json};
use spillway_filter::Refusal;

use super::{Answer, responses};
use crate::protocol::chat::{Call, ChatRequest, Choice, FinishReason, ResponseFormat, ToolChoice, Usage};
use crate::protocol::dialect::{AnswerHead, WriteAnswer};
use crate::protocol::operation::Operation;
use crate::protocol::registry::OPENAI;

fn read(body: &Value) -> Result<ChatRequest, Refusal> {
    responses(body.to_string().as_bytes())
}

/// Members of the answer that repeat the request.
fn echoed(request: &ChatRequest) -> Value {
    serde_json::from_str(&format!("{{{}}}", request.echoed)).unwrap()
}

#[test]
fn input_becomes_a_conversation() {
    let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "time", "arguments": "{}"});
    let request = read(&json!({
        "model": "m", "instructions": "Be brief.", "input": [
            {"role": "user", "content": "Hi"},
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [{"type": "output_text", "text": "Wait.", "annotations": []}]},
            call("call_1"), call("call_2"),
            {"type": "function_call_output", "call_id": "call_1", "output": "noon"},
            {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "one"}]},
            call("call_3"),
        ],
    }))
    .unwrap();
    let messages: Vec<_> =
        request.messages.iter().map(|m| (m.role, &*m.content, m.tool_calls.len(), m.tool_call_id.as_deref())).collect();
    let expected = [
        ("system", "Be brief.", 0, None),
        ("user", "Hi", 0, None),
        ("system", "a\nb", 0, None),
        ("assistant", "Wait.", 2, None),
        ("tool", "noon", 0, Some("call_1")),
        ("tool", "one", 0, Some("call_2")),
        ("assistant", "", 1, None),
    ];
    assert_eq!(messages, expected);
    assert_eq!(request.ignored.header().unwrap(), "input[2]");
    assert!(request.unsupported.is_none());
    let plain = read(&json!({"model": "m", "input": "Hi"})).unwrap();
    assert_eq!((plain.messages.len(), plain.messages[0].role, &*plain.messages[0].content), (1, "user", "Hi"));
}

#[test]
fn fields_are_read_and_repeated() {
    let format = json!({"type": "json_schema", "name": "n", "strict": true, "schema": {"type": "object"}});
    let tools = json!([{"type": "function", "name": "time", "description": "d", "parameters": {"type": "object"}, "strict": true}]);
    let request = read(&json!({
        "model": "m", "input": "x", "max_output_tokens": 7, "temperature": 0.5, "top_p": 0.25, "stream": true,
        "metadata": {"a": "b\n"}, "store": false, "user": "u", "text": {"format": format},
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"], "top_logprobs": 2,
    }))
    .unwrap();
    assert_eq!((request.max_tokens, request.temperature, request.top_p), (Some(7), Some(0.5), Some(0.25)));
    assert_eq!((request.stream, request.logprobs, request.top_logprobs), (true, true, 2));
    assert_eq!(request.response_format, ResponseFormat::JsonSchema(r#"{"type":"object"}"#.into()));
    let echo = echoed(&request);
    assert_eq!(echo["text"], json!({"format": format, "verbosity": "medium"}));
    assert_eq!((&echo["metadata"], &echo["user"]), (&json!({"a": "b\n"}), &json!("u")));
    assert_eq!((&echo["store"], &echo["temperature"], &echo["tools"]), (&json!(false), &json!(0.5), &json!([])));

    let choice = json!({"type": "function", "name": "time"});
    let request =
        read(&json!({"model": "m", "input": "x", "tools": tools, "tool_choice": choice, "parallel_tool_calls": false}))
            .unwrap();
    assert_eq!((request.tools.len(), request.tools[0].is_strict, request.one_tool_call), (1, true, true));
    assert_eq!(request.tool_choice, ToolChoice::Named("time".into()));
    let echo = echoed(&request);
    assert_eq!((&echo["tools"], &echo["tool_choice"], &echo["parallel_tool_calls"]), (&tools, &choice, &json!(false)));
    assert!(!request.echoed.contains('\n'), "a line break would end an event");
}

#[test]
fn invalid_fields_are_refused_by_name() {
    for (fields, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 5}), "input"),
        (json!({"input": [5]}), "input[0]"),
        (json!({"input": [{"role": "tool", "content": "x"}]}), "input[0].role"),
        (json!({"input": [{"role": "user"}]}), "input[0].content"),
        (json!({"input": [{"role": "user", "content": [{"text": "x"}]}]}), "input[0].content[0]"),
        (json!({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}), "input[0].call_id"),
        (json!({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}), "input[0]"),
        (json!({"input": [{"type": "function_call_output", "call_id": "c"}]}), "input[0].output"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"metadata": {"a": 1}}), "metadata"),
        (json!({"text": {"format": {"type": "json_schema", "schema": {}}}}), "text.format.name"),
        (json!({"text": {"format": {"type": "json_schema", "name": "n"}}}), "text.format.schema"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"top_logprobs": 21}), "top_logprobs"),
    ] {
        let mut body = json!({"model": "m", "input": "x"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let refusal = read(&body).unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(param)), "{body}");
    }
}

#[test]
fn what_the_model_cannot_do_bars_it_by_name() {
    let image = json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]);
    for (fields, param) in [
        (json!({"store": true}), "store"),
        (json!({"background": true}), "background"),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"input": image}), "input[0].content[0].type"),
        (json!({"input": [{"type": "item_reference", "id": "i"}]}), "input[0].type"),
        (json!({"input": [{"type": "computer_call", "id": "i"}]}), "input[0].type"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tool_choice": {"type": "file_search"}}), "tool_choice.type"),
        (json!({"text": {"format": {"type": "grammar"}}}), "text.format.type"),
        (json!({"moderation": {}}), "moderation"),
    ] {
        let mut body = json!({"model": "m", "input": "x"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let unsupported = read(&body).unwrap().unsupported.unwrap();
        assert_eq!(unsupported.param.as_deref(), Some(param), "{body}");
    }
    let hints = json!({"model": "m", "input": "x", "truncation": "auto", "reasoning": {"effort": "low"}, "text": {"verbosity": "low"}, "service_tier": "flex", "speed": 1});
    let header = read(&hints).unwrap().ignored.header().unwrap();
    assert_eq!(header, "text.verbosity, truncation, service_tier, reasoning.effort, speed");
    let quiet = json!({"model": "m", "input": "x", "reasoning": {"effort": "none"}, "truncation": "disabled", "stream_options": {"include_obfuscation": false}, "max_tool_calls": 3});
    assert!(read(&quiet).unwrap().ignored.header().is_none());
}

fn answer(echoed: &str) -> Answer {
    let (operation, id) = (Operation::Responses, uuid::Uuid::from_u128(1));
    Answer::begin(AnswerHead { operation, id, created: 7, model: "m", include_usage: true, prompt_tokens: 9, echoed })
}

/// Events of a stream: the name in front of each, and its data.
fn events(out: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(out).unwrap();
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').unwrap();
        let value: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), value["type"].as_str());
        value
    };
    text.split_terminator("\n\n").map(event).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap().trim_start_matches("response.")).collect()
}

const TOLD: Usage = Usage {
    prompt_tokens: 3,
    completion_tokens: 2,
    cached_tokens: Some(1),
    cache_written_tokens: None,
    cache_written_1h_tokens: None,
    reasoning_tokens: None,
};

#[test]
fn text_and_calls_are_streamed_item_by_item() {
    let (mut answer, mut out) = (answer(r#""store":false"#), BytesMut::new());
    answer.first(&mut out, 0);
    answer.piece(&mut out, 0, "Hi \"you\"", None, 0);
    answer.piece(&mut out, 0, "\n!", None, 0);
    let call = Call { id: "call_1".into(), name: "time".into(), arguments: r#"{"a":1}"#.into() };
    answer.call(&mut out, 0, 0, &call);
    answer.ended(&mut out, 0, FinishReason::ToolCalls);
    answer.last(&mut out, TOLD);
    let events = events(&out);
    let expected = [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ];
    assert_eq!(kinds(&events), expected);
    for (n, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], n);
    }
    assert_eq!(events[0]["response"]["output"], json!([]));
    assert_eq!(
        (&events[0]["response"]["status"], &events[0]["response"]["store"]),
        (&json!("in_progress"), &json!(false))
    );
    assert_eq!((&events[5]["delta"], &events[5]["logprobs"]), (&json!("\n!"), &json!([])));
    assert_eq!(events[6]["text"], "Hi \"you\"\n!");
    assert_eq!((&events[9]["output_index"], &events[9]["item"]["arguments"]), (&json!(1), &json!("")));
    let last = &events[13]["response"];
    assert_eq!(last["output"], json!([events[8]["item"], events[12]["item"]]));
    assert_eq!((&last["status"], &last["usage"]["total_tokens"]), (&json!("completed"), &json!(5)));
    assert_eq!(last["usage"]["input_tokens_details"], json!({"cache_write_tokens": 0, "cached_tokens": 1}));
}

#[test]
fn an_answer_that_is_cut_says_so() {
    let (mut writer, mut out) = (answer(""), BytesMut::new());
    writer.first(&mut out, 0);
    writer.piece(&mut out, 0, "a", None, 0);
    writer.ended(&mut out, 0, FinishReason::Length);
    writer.last(&mut out, TOLD);
    let told = events(&out);
    let last = told.last().unwrap();
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.incomplete"), &json!("incomplete")));
    assert_eq!(last["response"]["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");

    let (mut writer, mut out) = (answer(""), BytesMut::new());
    writer.first(&mut out, 0);
    writer.piece(&mut out, 0, "a", None, 0);
    writer.failed(&mut out, &Refusal::invalid("engine_error", "m"));
    let told = events(&out);
    assert_eq!(kinds(&told)[5..], ["error", "failed"]);
    assert_eq!((&told[5]["message"], &told[5]["error"]["message"]), (&json!("m"), &json!("m")));
    let last = &told[6]["response"];
    assert_eq!((&last["status"], &last["error"]["code"]), (&json!("failed"), &json!("server_error")));
    assert_eq!(last["output"][0]["content"][0]["text"], "a", "what was said is not taken back");
}

#[test]
fn a_whole_answer_is_the_last_event_of_its_stream() {
    for (text, calls) in [("Hi", 0), ("", 0), ("", 1), ("Hi", 2)] {
        let call = |n: usize| Call { id: format!("call_{n}"), name: "f".into(), arguments: "{}".into() };
        let calls: Vec<Call> = (0..calls).map(call).collect();
        let reason = if calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls };
        let (mut streamed, mut out) = (answer(r#""tools":[]"#), BytesMut::new());
        streamed.first(&mut out, 0);
        if !text.is_empty() {
            streamed.piece(&mut out, 0, text, None, 0);
        }
        for (n, call) in calls.iter().enumerate() {
            streamed.call(&mut out, 0, n, call);
        }
        streamed.ended(&mut out, 0, reason);
        streamed.last(&mut out, TOLD);
        let mut last = events(&out).pop().unwrap()["response"].take();
        out.clear();
        let choice = Choice { text: text.into(), calls, finish_reason: reason, ..Choice::default() };
        answer(r#""tools":[]"#).whole(&mut out, &[choice], TOLD);
        let mut whole: Value = serde_json::from_slice(&out).unwrap();
        for value in [&mut last, &mut whole] {
            assert!(value["completed_at"].take().is_u64());
        }
        assert_eq!(last, whole);
    }
}

#[test]
fn a_stream_is_observed_as_it_was_written_wherever_it_is_cut() {
    let (mut writer, mut out) = (answer(r#""instructions":"Never \"usage\": 5""#), BytesMut::new());
    writer.first(&mut out, 0);
    writer.piece(&mut out, 0, "Hi \u{e9}", None, 0);
    writer.piece(&mut out, 0, "!", None, 0);
    writer.call(&mut out, 0, 0, &Call { id: "c".into(), name: "f".into(), arguments: "{}".into() });
    writer.ended(&mut out, 0, FinishReason::ToolCalls);
    writer.last(&mut out, TOLD);
    let kind = (http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/event-stream"));
    let now = std::time::Instant::now();
    for cut in 0..out.len() {
        let mut observer = OPENAI.observe(&[kind.clone()].into_iter().collect()).unwrap();
        observer.feed(&out[..cut], now);
        observer.feed(&out[cut..], now);
        let seen = observer.finish();
        let usage = seen.usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens), (3, 2, Some(1)), "{cut}");
        assert!(seen.is_whole && !seen.has_failed, "{cut}");
        assert_eq!(seen.id.as_deref(), Some("resp_00000000000000000000000000000001"), "{cut}");
    }
    // A stream that is left early is counted by its text.
    let half = &out[..out.len() / 2];
    let mut observer = OPENAI.observe(&[kind].into_iter().collect()).unwrap();
    observer.feed(half, now);
    assert!(observer.finish().usage.is_none() && observer.observation().written.bytes > 0);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = responses(&body);
    }

    #[test]
    fn any_shape_is_read_or_refused(input in shape(), tools in shape(), text in shape(), choice in shape()) {
        let body = json!({"model": "m", "input": input, "tools": tools, "text": text, "tool_choice": choice, "metadata": input, "reasoning": text, "include": tools});
        if let Ok(request) = read(&body) {
            prop_assert!(!request.echoed.contains('\n'));
            prop_assert!(echoed(&request).is_object());
        }
    }
}

/// JSON with the names that the reader knows, in any place.
fn shape() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "type",
        "role",
        "content",
        "text",
        "name",
        "call_id",
        "arguments",
        "output",
        "format",
        "schema",
        "function",
    ]);
    let words = prop::sample::select(vec![
        "message",
        "user",
        "function_call",
        "function_call_output",
        "input_text",
        "function",
        "json_schema",
        "x\n",
    ]);
    let leaf = prop_oneof![words.prop_map(Value::from), any::<i64>().prop_map(Value::from), Just(Value::Null)];
    leaf.prop_recursive(4, 24, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((names.clone(), inner), 0..5).prop_map(|pairs| Value::Object(
                pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            )),
        ]
    })
}
