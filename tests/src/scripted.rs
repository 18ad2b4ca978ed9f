//! Scripted servers of two model APIs, which think, say hello, and call the tool of a request.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{Reply, Seen, reply, streamed};

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream; charset=utf-8");

/// JSON of a request's body.
///
/// # Panics
/// The body is no JSON.
pub fn asked(seen: &Seen) -> Value {
    serde_json::from_slice(&seen.body).unwrap()
}

/// Answer in parts of a few bytes each.
pub fn in_bits(text: String) -> Reply {
    let (parts, receiver) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        for part in text.as_bytes().chunks(7) {
            if parts.send(Ok(Bytes::copy_from_slice(part))).await.is_err() {
                return;
            }
        }
    });
    streamed(&[EVENTS], receiver)
}

/// Event of Anthropic's API.
pub fn event(kind: &str, mut data: Value) -> String {
    data["type"] = kind.into();
    format!("event: {kind}\ndata: {data}\n\n")
}

/// Server of the Messages API: thinks, says hello, and calls the tool of the request if there is one.
pub async fn claude(seen: Seen) -> Option<Reply> {
    let asked = asked(&seen);
    if seen.path != "/v1/messages" {
        return Some(reply(
            404,
            &[JSON],
            "{\"type\":\"error\",\"error\":{\"type\":\"not_found_error\",\"message\":\"no\"}}",
        ));
    }
    let has_tools = asked["tools"].is_array();
    let usage = json!({"input_tokens": 5, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 30, "output_tokens": 12});
    let reason = if has_tools { "tool_use" } else { "end_turn" };
    let call = json!({"type": "tool_use", "id": "t9", "name": "f", "input": {"city": "Rome"}});
    if asked["stream"] != true {
        let mut content = vec![
            json!({"type": "thinking", "thinking": "hm hm", "signature": "c2ln"}),
            json!({"type": "redacted_thinking", "data": "eHl6"}),
            json!({"type": "text", "text": "Hello ü."}),
        ];
        if has_tools {
            content.push(call);
        }
        let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": content,
            "stop_reason": reason, "stop_sequence": null, "usage": usage});
        return Some(reply(200, &[JSON, ("anthropic-ratelimit-requests-limit", "7")], message.to_string()));
    }
    let start = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [], "stop_reason": null,
        "usage": {"input_tokens": 5, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 30, "output_tokens": 1}});
    let block =
        |index: u32, block: Value| event("content_block_start", json!({"index": index, "content_block": block}));
    let delta = |index: u32, delta: Value| event("content_block_delta", json!({"index": index, "delta": delta}));
    let stop = |index: u32| event("content_block_stop", json!({"index": index}));
    let mut text = event("message_start", json!({"message": start})) + &event("ping", json!({}));
    text += &block(0, json!({"type": "thinking", "thinking": "", "signature": ""}));
    for piece in ["hm ", "hm"] {
        text += &delta(0, json!({"type": "thinking_delta", "thinking": piece}));
    }
    text += &(delta(0, json!({"type": "signature_delta", "signature": "c2ln"})) + &stop(0));
    text += &(block(1, json!({"type": "redacted_thinking", "data": "eHl6"})) + &stop(1));
    text += &block(2, json!({"type": "text", "text": ""}));
    for piece in ["Hello ", "ü", "."] {
        text += &delta(2, json!({"type": "text_delta", "text": piece}));
    }
    text += &stop(2);
    if has_tools {
        text += &block(3, json!({"type": "tool_use", "id": "t9", "name": "f", "input": {}}));
        for piece in ["{\"city\"", ": \"Rome\"}"] {
            text += &delta(3, json!({"type": "input_json_delta", "partial_json": piece}));
        }
        text += &stop(3);
    }
    text += &event(
        "message_delta",
        json!({"delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": 12}}),
    );
    text += &event("message_stop", json!({}));
    Some(in_bits(text))
}

/// Server of chat completions that does the same.
pub async fn gpt(seen: Seen) -> Option<Reply> {
    let asked = asked(&seen);
    if seen.path != "/v1/chat/completions" {
        return Some(reply(404, &[JSON], "{\"error\":{\"message\":\"no\"}}"));
    }
    let has_tools = asked["tools"].is_array();
    let usage = json!({"prompt_tokens": 40, "completion_tokens": 12, "total_tokens": 52, "prompt_tokens_details": {"cached_tokens": 30}});
    let reason = if has_tools { "tool_calls" } else { "stop" };
    if asked["stream"] != true {
        let call =
            json!({"id": "t9", "type": "function", "function": {"name": "f", "arguments": "{\"city\": \"Rome\"}"}});
        let mut message = json!({"role": "assistant", "content": "Hello ü.", "reasoning_content": "hm hm"});
        if has_tools {
            message["tool_calls"] = json!([call]);
        }
        let answer = json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-x",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage});
        return Some(reply(200, &[JSON, ("x-ratelimit-limit-requests", "7")], answer.to_string()));
    }
    let chunk = |delta: Value, reason: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        format!(
            "data: {}\n\n",
            json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x", "choices": [choice]})
        )
    };
    let mut text = chunk(json!({"role": "assistant", "content": ""}), Value::Null) + ": ping\n\n";
    for piece in ["hm ", "hm"] {
        text += &chunk(json!({"reasoning_content": piece}), Value::Null);
    }
    for piece in ["Hello ", "ü", "."] {
        text += &chunk(json!({"content": piece}), Value::Null);
    }
    if has_tools {
        text += &chunk(
            json!({"tool_calls": [{"index": 0, "id": "t9", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
            Value::Null,
        );
        for piece in ["{\"city\"", ": \"Rome\"}"] {
            text += &chunk(json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}), Value::Null);
        }
    }
    text += &chunk(json!({}), reason.into());
    text += &format!("data: {}\n\ndata: [DONE]\n\n", json!({"id": "chatcmpl-1", "choices": [], "usage": usage}));
    Some(in_bits(text))
}
