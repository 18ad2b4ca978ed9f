//! Tests of the translation of the Responses API: requests for servers of two other APIs, and answers that come back as input.

use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::protocol::translate::{
    Delta, Finish, Lossy, Part, Role, ServerApi, ServerWords, Setting, TokenLogprob, Tokens, deltas_of, kind_of,
};
use crate::protocol::{ANTHROPIC, OPENAI};

fn with(fields: &Value) -> Value {
    let mut body = json!({"model": "m", "input": "hi"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn read(fields: &Value) -> Result<Conversation, Refusal> {
    Responses.read_request(with(fields).to_string().as_bytes())
}

/// Body for a server of an API, and the fields that it does not get.
fn written(api: &dyn ServerApi, conversation: &Conversation, drop: &[String]) -> Result<(Value, String), Refusal> {
    let mut lossy = Lossy::new(drop);
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

/// Data of the events of a stream.
fn events(out: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(out).unwrap();
    let events = text.split("\n\n").filter(|event| event.starts_with("event: "));
    let read = events.map(|event| {
        let (name, data) = event.split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"]);
        data
    });
    read.collect()
}

fn stream_of(deltas: Vec<Delta>) -> Vec<Value> {
    let (mut writer, mut out) = (Responses.write_stream(&Asked::default()), BytesMut::new());
    for delta in deltas {
        writer.write(delta, &mut out).unwrap();
    }
    events(&out)
}

fn rich() -> Value {
    let schema = json!({"type": "object"});
    json!({
        "instructions": "Be brief.",
        "input": [
            {"role": "developer", "content": "Now."},
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}],
                "encrypted_content": "spillway:signature:c2ln"},
            {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "spillway:redacted:eHl6"},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [
                {"type": "output_text", "text": "ok", "annotations": [], "logprobs": []}]},
            {"type": "function_call", "call_id": "t1", "name": "f", "arguments": "{\"x\":1}"},
            {"type": "function_call", "call_id": "t2", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "t1", "output": "r"},
            {"type": "function_call_output", "call_id": "t2", "output": [{"type": "input_text", "text": "s"}]}
        ],
        "tools": [{"type": "function", "name": "f", "description": "F", "parameters": schema, "strict": true}],
        "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": false,
        "max_output_tokens": 9, "temperature": 0.5, "top_p": 0.9, "user": "u", "stream": true,
        "stream_options": {"include_obfuscation": false},
        "reasoning": {"effort": "high", "summary": "auto"}, "include": ["reasoning.encrypted_content"],
        "text": {"format": {"type": "json_schema", "name": "city", "schema": schema, "strict": true}},
        "metadata": {"a": "b"}, "store": false, "background": false
    })
}

#[test]
fn a_request_says_the_same_to_servers_of_both_apis() {
    let request = read(&rich()).unwrap();
    let (body, dropped) = written(chat(), &request, &[]).unwrap();
    let schema = json!({"type": "object"});
    let call = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}});
    assert_eq!(
        body,
        json!({
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be brief."}, {"role": "system", "content": "Now."},
                {"role": "user", "content": [{"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]},
                {"role": "assistant", "content": "ok", "reasoning_content": "hm",
                    "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                        {"type": "redacted_thinking", "data": "eHl6"}],
                    "tool_calls": [call("t1", "{\"x\":1}"), call("t2", "{}")]},
                {"role": "tool", "tool_call_id": "t1", "content": "r"},
                {"role": "tool", "tool_call_id": "t2", "content": "s"}
            ],
            "tools": [{"type": "function", "function": {"name": "f", "description": "F", "parameters": schema, "strict": true}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": false,
            "max_tokens": 9, "temperature": 0.5, "top_p": 0.9,
            "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": true}},
            "reasoning_effort": "high", "user": "u", "stream": true, "stream_options": {"include_usage": true}
        })
    );
    assert_eq!(dropped, "input[1].content[1].detail, reasoning.summary, metadata");
    let (body, _) = written(messages(), &request, &[]).unwrap();
    assert_eq!(
        body["messages"][1]["content"],
        json!([
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"}, {"type": "redacted_thinking", "data": "eHl6"},
            {"type": "text", "text": "ok"}, {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
            {"type": "tool_use", "id": "t2", "name": "f", "input": {}}
        ])
    );
    assert_eq!((&body["messages"][2]["content"][1]["tool_use_id"], &body["max_tokens"]), (&json!("t2"), &json!(9)));
    assert_eq!(body["output_config"], json!({"format": {"type": "json_schema", "schema": schema}, "effort": "high"}));
}

#[test]
fn state_and_what_only_a_provider_has_is_refused_by_name_and_dropped_where_listed() {
    for (fields, param) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"store": true}), "store"),
        (json!({"background": true}), "background"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"context_management": [{"type": "compaction"}]}), "context_management"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0]"),
        (json!({"tool_choice": {"type": "web_search"}}), "tool_choice"),
        (json!({"text": {"format": {"type": "grammar"}}}), "text.format"),
        (json!({"reasoning": {"context": "all"}}), "reasoning.context"),
        (json!({"something_new": 1}), "something_new"),
    ] {
        let request = read(&fields).unwrap();
        for api in [chat(), messages()] {
            let refusal = written(api, &request, &[]).err().unwrap_or_else(|| panic!("{fields}"));
            assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(param)), "{fields}");
            let listed = [param.to_owned()];
            assert_eq!(written(api, &request, &listed).unwrap().1, param, "{fields}");
        }
    }
    for (item, param) in [
        (json!({"type": "item_reference", "id": "x"}), "input[0]"),
        (json!({"type": "web_search_call", "id": "x"}), "input[0]"),
        (json!({"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}), "input[0].content[0]"),
        (json!({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}), "input[0].content[0]"),
    ] {
        let request = read(&json!({"input": [item]})).unwrap();
        let refusal = written(messages(), &request, &[]).unwrap_err();
        assert_eq!(refusal.param.as_deref(), Some(param), "{item}");
    }
}

#[test]
fn mistakes_are_named() {
    for (fields, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 1}), "input"),
        (json!({"input": ["x"]}), "input[0]"),
        (json!({"input": [{"role": "x", "content": "y"}]}), "input[0].role"),
        (json!({"input": [{"role": "user"}]}), "input[0].content"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}), "input[0].content[0].text"),
        (json!({"input": [{"type": "function_call", "name": "f"}]}), "input[0].call_id"),
        (json!({"input": [{"type": "function_call_output", "call_id": "f"}]}), "input[0].output"),
        (json!({"input": [{"type": "reasoning", "summary": [{}]}]}), "input[0].summary[0].text"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
        (json!({"tool_choice": "some"}), "tool_choice"),
        (json!({"text": {"format": {"type": "json_schema"}}}), "text.format.schema"),
        (json!({"include": [1]}), "include"),
        (json!({"stream": 1}), "stream"),
        (json!({"max_output_tokens": -1}), "max_output_tokens"),
    ] {
        let refusal = read(&fields).err().unwrap_or_else(|| panic!("{fields}"));
        assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(param)), "{fields}");
    }
    let deep = format!("{{\"input\": {}1{}}}", "[".repeat(4000), "]".repeat(4000));
    assert!(Responses.read_request(deep.as_bytes()).is_err());
}

#[test]
fn hints_and_probabilities() {
    let request =
        read(&json!({"top_logprobs": 2, "include": ["message.output_text.logprobs", "file_search_call.results"],
        "truncation": "auto", "text": {"verbosity": "low"}, "service_tier": "auto"}))
        .unwrap();
    let (body, dropped) = written(chat(), &request, &[]).unwrap();
    assert_eq!((&body["logprobs"], &body["top_logprobs"]), (&json!(true), &json!(2)));
    assert_eq!(dropped, "include[1], text.verbosity, service_tier, truncation");
    let foreign = json!({"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"});
    let request = read(&json!({"input": [{"role": "user", "content": "a"}, foreign]})).unwrap();
    assert_eq!(written(messages(), &request, &[]).unwrap().1, "input[1].encrypted_content");
}

fn reply() -> Reply {
    let call = |n: u32| Part::ToolCall { id: format!("t{n}"), name: "f".into(), arguments: "{\"x\":1}".into() };
    Reply {
        id: Some("msg_1".into()),
        model: Some("claude".into()),
        parts: vec![
            Part::Thinking { text: "hm".into(), signature: Some("c2ln".into()) },
            Part::RedactedThinking("eHl6".into()),
            Part::Text("Hello ü".into()),
            call(1),
            call(2),
        ],
        finish: Finish::ToolCalls,
        tokens: Some(Tokens {
            input: Some(40),
            cache_read: Some(30),
            cache_written: Some(5),
            output: Some(12),
            reasoning: Some(3),
        }),
        ..Reply::default()
    }
}

/// Object of an answer without its times.
fn timeless(mut answer: Value) -> Value {
    for name in ["created_at", "completed_at"] {
        assert!(answer[name].is_u64(), "{answer}");
        answer.as_object_mut().unwrap().remove(name);
    }
    answer
}

#[test]
fn an_answer_comes_back_as_input_with_its_proofs() {
    let echoed = read(&json!({"instructions": "Be brief.", "store": false})).unwrap().echoed;
    let asked = Asked { model: "m".into(), echoed, ..Asked::default() };
    let answer: Value = serde_json::from_slice(&Responses.write_reply(&reply(), &asked).unwrap()).unwrap();
    assert_eq!(
        (&answer["status"], &answer["model"], &answer["store"]),
        (&json!("completed"), &json!("claude"), &json!(false))
    );
    assert_eq!(answer["instructions"], "Be brief.");
    assert_eq!(
        answer["usage"],
        json!({"input_tokens": 40, "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 5},
            "output_tokens": 12, "output_tokens_details": {"reasoning_tokens": 3}, "total_tokens": 52})
    );
    let again = read(&json!({"input": answer["output"]})).unwrap();
    assert_eq!(again.turns.len(), 1);
    assert_eq!((again.turns[0].role, &again.turns[0].parts), (Role::Assistant, &reply().parts));
    let streamed = stream_of(deltas_of(reply()));
    let last = streamed.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    let whole: Value = serde_json::from_slice(&Responses.write_reply(&reply(), &Asked::default()).unwrap()).unwrap();
    assert_eq!(timeless(last["response"].clone()), timeless(whole));
}

/// Statuses of the items of an answer that its length cut.
fn items_of_a_cut_answer() -> Vec<String> {
    let call = |index: usize| Delta::ToolCall { index, id: "t".into(), name: "f".into() };
    let events = stream_of(vec![call(0), call(1), Delta::Finish(Finish::Length), Delta::End]);
    let output = events.last().unwrap()["response"]["output"].as_array().unwrap().clone();
    output.iter().map(|item| item["status"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_is_kept_has_a_bound() {
    let mut writer = Responses.write_stream(&Asked::default());
    let piece = || Delta::Text { text: "x".repeat(1 << 20), logprobs: Vec::new() };
    let written = (0..9).map(|_| writer.write(piece(), &mut BytesMut::new()));
    assert_eq!(written.filter(Result::is_ok).count(), 7);
    // So have the parts and items that say nothing.
    let mut writer = Responses.write_stream(&Asked::default());
    let empty = |n: usize| {
        if n.is_multiple_of(2) { Delta::RedactedThinking(String::new()) } else { Delta::Refusal("x".into()) }
    };
    let mut all = (0..200_000).map(|n| writer.write(empty(n), &mut BytesMut::new()));
    assert!(all.any(|written| written.is_err()));
}

#[test]
fn the_events_of_a_stream() {
    let kinds = |deltas| -> Vec<String> {
        let events = stream_of(deltas);
        events.iter().enumerate().for_each(|(n, event)| assert_eq!(event["sequence_number"], n, "{event}"));
        events.iter().map(|event| event["type"].as_str().unwrap().trim_start_matches("response.").to_owned()).collect()
    };
    let deltas = vec![
        Delta::Thinking("h".into()),
        Delta::Thinking("m".into()),
        Delta::Signature("s".into()),
        Delta::Text { text: "a".into(), logprobs: Vec::new() },
        Delta::Ping,
        Delta::TextEnd,
        Delta::Refusal("no".into()),
        Delta::ToolCall { index: 0, id: "t".into(), name: "f".into() },
        Delta::Arguments { index: 0, text: "{}".into() },
        Delta::Finish(Finish::Length),
        Delta::End,
        Delta::End,
    ];
    assert_eq!(
        kinds(deltas),
        [
            "created",
            "in_progress",
            "output_item.added",
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "content_part.added",
            "refusal.delta",
            "refusal.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "incomplete"
        ]
    );
    let error = ApiError {
        status: StatusCode::TOO_MANY_REQUESTS,
        kind: kind_of(StatusCode::TOO_MANY_REQUESTS),
        message: "slow".into(),
        code: None,
        param: None,
    };
    let failed =
        stream_of(vec![Delta::Text { text: "a".into(), logprobs: Vec::new() }, Delta::Error(error), Delta::End]);
    let [.., error, last] = failed.as_slice() else { panic!("{failed:?}") };
    assert_eq!((&error["type"], &error["error"]["message"]), (&json!("error"), &json!("slow")));
    assert_eq!(
        (&last["type"], &last["response"]["error"]["code"]),
        (&json!("response.failed"), &json!("rate_limit_exceeded"))
    );
    let refused = stream_of(vec![Delta::Finish(Finish::Refusal), Delta::End]);
    assert_eq!(refused.last().unwrap()["response"]["incomplete_details"]["reason"], "content_filter");
    let cut = items_of_a_cut_answer();
    assert_eq!(cut, ["completed", "incomplete"], "the last item alone is cut");
    let mut writer = Responses.write_stream(&Asked::default());
    let stray = Delta::Arguments { index: 3, text: "{}".into() };
    assert!(writer.write(stray, &mut BytesMut::new()).is_err());
}

fn delta() -> impl Strategy<Value = Delta> {
    let text = "[a-zü\"\\\\\\n]{0,6}";
    prop_oneof![
        text.prop_map(|text| Delta::Text { text, logprobs: Vec::new() }),
        Just(Delta::TextEnd),
        text.prop_map(Delta::Refusal),
        text.prop_map(Delta::Thinking),
        "[a-z]{1,4}".prop_map(Delta::Signature),
        Just(Delta::ThinkingEnd),
        text.prop_map(Delta::RedactedThinking),
        (0usize..4, text).prop_map(|(index, id)| Delta::ToolCall { index, id, name: "f".into() }),
        (0usize..4, text).prop_map(|(index, text)| Delta::Arguments { index, text }),
        Just(Delta::Ping),
        Just(Delta::Finish(Finish::Length)),
        Just(Delta::Usage(Tokens { output: Some(u64::MAX), input: Some(u64::MAX), ..Tokens::default() })),
    ]
}

proptest! {
    /// Each item and part begins once and ends once, and the last event repeats what the pieces said.
    #[test]
    fn any_deltas_make_a_whole_stream(deltas in proptest::collection::vec(delta(), 0..20)) {
        let (mut writer, mut out, mut said) = (Responses.write_stream(&Asked::default()), BytesMut::new(), String::new());
        for delta in deltas.into_iter().chain([Delta::End]) {
            let text = match &delta {
                Delta::Text { text, .. } => text.clone(),
                _ => String::new(),
            };
            if writer.write(delta, &mut out).is_ok() {
                said += &text;
            }
        }
        let events = events(&out);
        let count = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
        for (begin, end) in [("response.output_item.added", "response.output_item.done"),
            ("response.content_part.added", "response.content_part.done"),
            ("response.reasoning_summary_part.added", "response.reasoning_summary_part.done")] {
            prop_assert_eq!(count(begin), count(end));
        }
        prop_assert!(events.iter().enumerate().all(|(n, event)| event["sequence_number"] == n));
        let output = &events.last().unwrap()["response"]["output"];
        prop_assert_eq!(count("response.output_item.added"), output.as_array().unwrap().len());
        let parts = output.as_array().unwrap().iter().filter_map(|item| item["content"].as_array()).flatten();
        let repeated: String = parts.filter_map(|part| part["text"].as_str()).collect();
        prop_assert_eq!(repeated, said);
    }

    #[test]
    fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Responses.read_request(&bytes);
    }
}

#[test]
fn probabilities_are_listed() {
    let likely = || crate::protocol::translate::Likely { token: "a".into(), logprob: -0.5, bytes: Some(vec![97]) };
    let logprobs = vec![TokenLogprob { chosen: likely(), likeliest: vec![likely()] }];
    let reply = Reply { parts: vec![Part::Text("a".into())], logprobs: logprobs.clone(), ..Reply::default() };
    let answer: Value = serde_json::from_slice(&Responses.write_reply(&reply, &Asked::default()).unwrap()).unwrap();
    let one = json!({"token": "a", "logprob": -0.5, "bytes": [97]});
    let mut expected = one.clone();
    expected["top_logprobs"] = json!([one]);
    assert_eq!(answer["output"][0]["content"][0]["logprobs"], json!([expected]));
    let streamed = stream_of(vec![Delta::Text { text: "a".into(), logprobs }, Delta::End]);
    let delta = streamed.iter().find(|event| event["type"] == "response.output_text.delta").unwrap();
    assert_eq!(delta["logprobs"], json!([expected]));
    let settings = read(&json!({"top_logprobs": 1})).unwrap().settings;
    assert_eq!(settings.find(|setting| if let Setting::Logprobs(n) = setting { Some(*n) } else { None }), Some(1));
}
