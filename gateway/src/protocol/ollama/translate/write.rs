//! Answers as they are written: whole ones, and the lines that streams share with them. Times are left out: servers of other
//! APIs do not tell them.

use std::time::SystemTime;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::protocol::ollama::answer::{Shape, rfc3339};
use crate::protocol::openai::translate::{Logprobs, logprobs_of};
use crate::protocol::translate::{Asked, Finish, Part, Reply, TokenLogprob, Tokens, Unreadable};

/// Content of a line of an answer.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Text.
    pub(super) text: String,
    /// Reasoning.
    pub(super) thinking: String,
    /// Tool calls as they are written.
    pub(super) calls: Vec<Value>,
    /// Log probabilities of the tokens of the text.
    pub(super) logprobs: Vec<TokenLogprob>,
}

/// Line that does not end an answer by `model`.
pub(super) fn line(shape: Shape, model: &str, said: Said) -> Map<String, Value> {
    let Said { text, thinking, calls, logprobs } = said;
    let mut line = Map::new();
    line.insert("model".to_owned(), model.into());
    line.insert("created_at".to_owned(), rfc3339(SystemTime::now()).into());
    match shape {
        Shape::Chat => {
            let mut message = Map::new();
            message.insert("role".to_owned(), "assistant".into());
            message.insert("content".to_owned(), text.into());
            if !thinking.is_empty() {
                message.insert("thinking".to_owned(), thinking.into());
            }
            if !calls.is_empty() {
                message.insert("tool_calls".to_owned(), calls.into());
            }
            line.insert("message".to_owned(), message.into());
        }
        Shape::Generate => {
            line.insert("response".to_owned(), text.into());
            if !thinking.is_empty() {
                line.insert("thinking".to_owned(), thinking.into());
            }
        }
    }
    if let Some(logprobs) = logprobs_of(&logprobs).map(Logprobs::into_content) {
        line.insert("logprobs".to_owned(), json!(logprobs));
    }
    line.insert("done".to_owned(), false.into());
    line
}

/// Turns a line into the last one of an answer.
pub(super) fn end(line: &mut Map<String, Value>, finish: &Finish, tokens: Tokens) {
    line.insert("done".to_owned(), true.into());
    let reason = if *finish == Finish::Length { "length" } else { "stop" };
    line.insert("done_reason".to_owned(), reason.into());
    line.insert("prompt_eval_count".to_owned(), tokens.input.unwrap_or(0).into());
    line.insert("eval_count".to_owned(), tokens.output.unwrap_or(0).into());
}

/// Tool call, the `index`-th of its answer. Arguments that the length of the answer has cut are no JSON, and left out.
pub(super) fn call(index: usize, id: &str, name: &str, arguments: &str, is_cut: bool) -> Result<Value, Unreadable> {
    let arguments = match serde_json::from_str::<Map<String, Value>>(arguments) {
        Ok(arguments) => arguments,
        Err(_) if is_cut || arguments.trim().is_empty() => Map::new(),
        Err(_) => return Err(Unreadable("a tool call of the backend has arguments that are no JSON object")),
    };
    Ok(json!({"id": id, "function": {"index": index, "name": name, "arguments": arguments}}))
}

/// Writes a whole answer.
pub(super) fn reply(shape: Shape, reply: &Reply, asked: &Asked) -> Result<Bytes, Unreadable> {
    let is_cut = reply.finish == Finish::Length;
    let mut said = Said { logprobs: reply.logprobs.clone(), ..Said::default() };
    for part in &reply.parts {
        match part {
            Part::Text(text) | Part::Refusal(text) => said.text.push_str(text),
            Part::Thinking { text, .. } => said.thinking.push_str(text),
            Part::ToolCall { id, name, arguments } => {
                said.calls.push(call(said.calls.len(), id, name, arguments, is_cut)?);
            }
            // The API has no place for proofs of reasoning.
            Part::RedactedThinking(_) => {}
            Part::Image(_) | Part::ToolResult { .. } | Part::Other { .. } => {}
        }
    }
    let mut line = line(shape, reply.model.as_deref().unwrap_or(&asked.model), said);
    end(&mut line, &reply.finish, reply.tokens.unwrap_or_default());
    Ok(crate::protocol::json(&line))
}
