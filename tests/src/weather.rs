//! Scripted servers of two APIs that call the tool `weather` of a request, and answer when they have its result: whole, or in
//! a stream whose events cut the arguments.

use serde_json::{Value, json};

use crate::{Reply, Seen, reply};

/// Server of Chat Completions that calls the tool of a request, and answers when it has the result.
pub async fn weather_by_chat(seen: Seen) -> Option<Reply> {
    let asked: Value = serde_json::from_slice(&seen.body).unwrap();
    let has_result = asked["messages"].as_array().unwrap().iter().any(|message| message["role"] == "tool");
    let call = json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Rome\"}"}});
    let (message, reason) = if has_result {
        (json!({"role": "assistant", "content": "It rains in Rome."}), "stop")
    } else {
        (json!({"role": "assistant", "content": null, "tool_calls": [call]}), "tool_calls")
    };
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15});
    if asked["stream"] != true {
        let choice = json!({"index": 0, "message": message, "finish_reason": reason});
        let answer = json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage});
        return Some(reply(200, &[("content-type", "application/json")], answer.to_string()));
    }
    let part = |delta: Value, reason: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        let part = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]});
        format!("data: {part}\n\n")
    };
    let mut text = part(json!({"role": "assistant", "content": null}), Value::Null);
    if has_result {
        for word in ["It ", "rains ", "in Rome."] {
            text += &part(json!({"content": word}), Value::Null);
        }
    } else {
        let begin =
            json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}});
        text += &part(json!({"tool_calls": [begin]}), Value::Null);
        for piece in ["{\"city\"", ":\"Rome\"}"] {
            text += &part(json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}), Value::Null);
        }
    }
    text += &part(json!({}), reason.into());
    let last = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": usage});
    text += &format!("data: {last}\n\ndata: [DONE]\n\n");
    Some(reply(200, &[("content-type", "text/event-stream")], text))
}

/// Server of the Messages API that does the same.
pub async fn weather_by_messages(seen: Seen) -> Option<Reply> {
    let asked: Value = serde_json::from_slice(&seen.body).unwrap();
    let is_result = |block: &Value| block["type"] == "tool_result";
    let blocks = |message: &Value| message["content"].as_array().is_some_and(|blocks| blocks.iter().any(is_result));
    let has_result = asked["messages"].as_array().unwrap().iter().any(blocks);
    let (block, reason) = if has_result {
        (json!({"type": "text", "text": "It rains in Rome."}), "end_turn")
    } else {
        (json!({"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}), "tool_use")
    };
    let usage = json!({"input_tokens": 10, "output_tokens": 5});
    let mut message = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [block],
        "stop_reason": reason, "stop_sequence": null, "usage": usage});
    if asked["stream"] != true {
        return Some(reply(200, &[("content-type", "application/json")], message.to_string()));
    }
    message["content"] = json!([]);
    message["stop_reason"] = Value::Null;
    message["usage"]["output_tokens"] = 1.into();
    let (begin, deltas) = if has_result {
        let text = |piece: &str| json!({"type": "text_delta", "text": piece});
        (json!({"type": "text", "text": ""}), ["It ", "rains ", "in Rome."].map(text).to_vec())
    } else {
        let part = |piece: &str| json!({"type": "input_json_delta", "partial_json": piece});
        let mut begin = block.clone();
        begin["input"] = json!({});
        (begin, ["", "{\"city\"", ":\"Rome\"}"].map(part).to_vec())
    };
    let mut events = vec![
        json!({"type": "message_start", "message": message}),
        json!({"type": "content_block_start", "index": 0, "content_block": begin}),
        json!({"type": "ping"}),
    ];
    events.extend(deltas.into_iter().map(|delta| json!({"type": "content_block_delta", "index": 0, "delta": delta})));
    events.push(json!({"type": "content_block_stop", "index": 0}));
    let delta = json!({"stop_reason": reason, "stop_sequence": null});
    events.push(json!({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 5}}));
    events.push(json!({"type": "message_stop"}));
    let text: String =
        events.iter().map(|data| format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap())).collect();
    Some(reply(200, &[("content-type", "text/event-stream")], text))
}
