//! Whole completions, read from servers and written for callers.

use bytes::Bytes;
use serde_json::{Value, json};

use super::shapes::{
    ReadCall, ReadChoice, ReadCompletion, ReadMessage, ThinkingBlock, Usage, finish_of, logprobs_of, reason_of,
};
use crate::protocol::translate::{
    Asked, Finish, FurtherChoice, MAX_CALLS, MAX_CHOICES, Part, Reply, Unreadable, read_json, set,
};

/// Id of an answer or a call whose server told none.
pub(in crate::protocol) fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::new_v4().simple())
}

/// Reads a completion. Of its log probabilities those of the first choice count.
pub(super) fn read(body: &[u8]) -> Result<Reply, Unreadable> {
    let mut completion: ReadCompletion = read_json(body)?;
    if completion.choices.len() > MAX_CHOICES {
        return Err(Unreadable("the backend's answer has more than 128 choices"));
    }
    completion.choices.sort_by_key(|choice| choice.index);
    let mut choices = completion.choices.into_iter();
    let Some(mut choice) = choices.next() else {
        return Err(Unreadable("the backend's answer has no choice"));
    };
    let logprobs = choice.logprobs.take().and_then(|logprobs| logprobs.content).unwrap_or_default();
    let FurtherChoice { parts, finish, .. } = read_choice(choice, 0)?;
    let further = choices.zip(1..).map(|(choice, index)| read_choice(choice, index)).collect::<Result<_, _>>()?;
    Ok(Reply {
        id: completion.id,
        model: completion.model,
        parts,
        logprobs: logprobs.into_iter().map(Into::into).collect(),
        finish,
        further,
        tokens: completion.usage.map(Into::into),
    })
}

/// Reads the choice of a number.
fn read_choice(choice: ReadChoice, index: usize) -> Result<FurtherChoice, Unreadable> {
    let parts = parts_of(choice.delta.unwrap_or_default())?;
    let is_refused = parts.iter().any(|part| matches!(part, Part::Refusal(_)));
    let finish = finish_of(choice.finish_reason.as_deref().unwrap_or_default(), choice.stop_reason.as_ref());
    let finish = if is_refused && finish == Finish::Stop { Finish::Refusal } else { finish };
    Ok(FurtherChoice { index, parts, finish })
}

fn parts_of(message: ReadMessage) -> Result<Vec<Part>, Unreadable> {
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let blocks = message.thinking_blocks.unwrap_or_default();
    let mut parts: Vec<Part> = blocks.into_iter().filter_map(part_of_thinking).collect();
    if parts.is_empty() {
        let reasoning = filled(message.reasoning_content).or(filled(message.reasoning));
        parts.extend(reasoning.map(|text| Part::Thinking { text, signature: None }));
    }
    parts.extend(filled(message.content).map(Part::Text));
    parts.extend(filled(message.refusal).map(Part::Refusal));
    let calls = message.tool_calls.unwrap_or_default();
    if calls.len() > MAX_CALLS {
        return Err(Unreadable("the backend's answer has more than 128 tool calls"));
    }
    parts.extend(calls.into_iter().filter_map(part_of_call));
    Ok(parts)
}

/// Part of a block of reasoning; `None` for an unknown one.
fn part_of_thinking(block: ThinkingBlock) -> Option<Part> {
    match block.kind.as_str() {
        "redacted_thinking" => block.data.map(Part::RedactedThinking),
        "thinking" => {
            let signature = block.signature.filter(|signature| !signature.is_empty());
            Some(Part::Thinking { text: block.thinking.unwrap_or_default(), signature })
        }
        _ => None,
    }
}

fn part_of_call(call: ReadCall) -> Option<Part> {
    let function = call.function?;
    let id = call.id.filter(|id| !id.is_empty()).unwrap_or_else(|| new_id("call_"));
    Some(Part::ToolCall { id, name: function.name?, arguments: function.arguments.unwrap_or_default() })
}

/// Writes a whole completion.
pub(super) fn write(reply: &Reply, asked: &Asked) -> Bytes {
    let (mut text, mut refusal, mut reasoning) = (String::new(), None::<String>, String::new());
    let (mut blocks, mut calls) = (Vec::new(), Vec::new());
    for part in &reply.parts {
        match part {
            Part::Text(piece) => text.push_str(piece),
            Part::Refusal(piece) => refusal.get_or_insert_default().push_str(piece),
            Part::Thinking { text, signature } => {
                reasoning.push_str(text);
                blocks.push(ThinkingBlock {
                    kind: "thinking".to_owned(),
                    thinking: Some(text.clone()),
                    signature: signature.clone(),
                    data: None,
                });
            }
            Part::RedactedThinking(data) => {
                let kind = "redacted_thinking".to_owned();
                blocks.push(ThinkingBlock { kind, data: Some(data.clone()), ..ThinkingBlock::default() });
            }
            Part::ToolCall { id, name, arguments } => {
                calls.push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}));
            }
            Part::Image(_) | Part::ToolResult { .. } | Part::Other { .. } => {}
        }
    }
    let content = if text.is_empty() && !calls.is_empty() { Value::Null } else { text.into() };
    let mut message = json!({"role": "assistant", "content": content, "refusal": refusal});
    if !reasoning.is_empty() {
        set(&mut message, "reasoning_content", reasoning);
    }
    if !blocks.is_empty() {
        set(&mut message, "thinking_blocks", json!(blocks));
    }
    if !calls.is_empty() {
        set(&mut message, "tool_calls", calls);
    }
    let choice = json!({
        "index": 0,
        "message": message,
        "logprobs": logprobs_of(&reply.logprobs),
        "finish_reason": reason_of(&reply.finish),
    });
    let completion = json!({
        "id": reply.id.clone().unwrap_or_else(|| new_id("chatcmpl-")),
        "object": "chat.completion",
        "created": crate::clock::unix_now(),
        "model": reply.model.as_deref().unwrap_or(&asked.model),
        "choices": [choice],
        "usage": Usage::from(reply.tokens.unwrap_or_default()),
    });
    crate::protocol::json(&completion)
}
