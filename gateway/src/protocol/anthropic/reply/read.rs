//! Reader of a whole message of a server.

use super::shapes::{ReadBlock, ReadMessage, finish_of};
use crate::protocol::translate::{Part, Reply, Unreadable, read_json};

/// Reads a message. Blocks of unknown types are left out: they answer features that no translated request asks for.
pub(in crate::protocol::anthropic) fn read(body: &[u8]) -> Result<Reply, Unreadable> {
    let message: ReadMessage = read_json(body)?;
    let is_error = message.kind.as_deref() == Some("error");
    if is_error || message.id.is_none() && message.stop_reason.is_none() && message.content.is_empty() {
        return Err(Unreadable("the backend's answer is no message of the Messages API"));
    }
    Ok(Reply {
        id: message.id,
        model: message.model,
        parts: message.content.into_iter().filter_map(part_of).collect(),
        logprobs: Vec::new(),
        finish: finish_of(message.stop_reason.as_deref().unwrap_or_default(), message.stop_sequence),
        further: Vec::new(),
        tokens: message.usage.map(Into::into),
    })
}

fn part_of(mut block: ReadBlock) -> Option<Part> {
    Some(match block.kind.as_str() {
        "text" => Part::Text(block.text?),
        "thinking" => {
            let signature = block.signature.filter(|signature| !signature.is_empty());
            Part::Thinking { text: block.thinking.unwrap_or_default(), signature }
        }
        "redacted_thinking" => Part::RedactedThinking(block.data?),
        "tool_use" => {
            let arguments = serde_json::Value::Object(block.take_input()).to_string();
            Part::ToolCall { id: block.id?, name: block.name?, arguments }
        }
        _ => return None,
    })
}
