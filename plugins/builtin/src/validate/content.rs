//! Content of a model's answer, in the API of each server: the text that callers read as the answer, without thoughts and calls of
//! tools.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::deltas;

/// Longest content of a stream, in bytes: it is kept until it is judged.
const MAX_CONTENT: usize = 1 << 20;
/// Most choices of a stream.
const MAX_CHOICES: usize = 128;

/// Content of one choice of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Text so far.
    pub(super) text: String,
    /// True if the choice calls a tool, with or without a text.
    pub(super) calls: bool,
}

/// Contents of a whole answer; `None` for an answer that has no place for one, such as a count of tokens.
pub(super) fn of_answer(answer: &Value) -> Option<Vec<Content>> {
    if let Some(choices) = answer.get("choices").and_then(Value::as_array) {
        return Some(choices.iter().map(of_choice).collect());
    }
    let is_list = |value: &&Value| !value.as_array().is_none_or(Vec::is_empty);
    // Anthropic's blocks; items of the Responses API, whose messages have parts.
    if let Some(blocks) = answer.get("content").or_else(|| answer.get("output")).and_then(Value::as_array) {
        let mut content = Content::default();
        for block in blocks {
            let parts = block.get("content").and_then(Value::as_array);
            for part in parts.into_iter().flatten().chain([block]) {
                if matches!(kind(part), "text" | "output_text") {
                    content.text.push_str(text(part, "text"));
                }
            }
            content.calls |= matches!(kind(block), "tool_use" | "function_call" | "custom_tool_call");
        }
        return Some(vec![content]);
    }
    if let Some(message) = answer.get("message") {
        let calls = message.get("tool_calls").filter(is_list).is_some();
        return Some(vec![Content { text: text(message, "content").to_owned(), calls }]);
    }
    if let Some(text) = answer.get("response").and_then(Value::as_str) {
        return Some(vec![Content { text: text.to_owned(), calls: false }]);
    }
    let is_count = ["input_tokens", "tokens", "count"].iter().any(|name| answer.get(name).is_some());
    (!is_count).then(|| vec![Content::default()])
}

fn of_choice(choice: &Value) -> Content {
    let message = choice.get("message").unwrap_or(&Value::Null);
    let calls = message.get("tool_calls").is_some_and(|calls| calls.as_array().is_some_and(|calls| !calls.is_empty()));
    let calls = calls || message.get("function_call").is_some_and(Value::is_object);
    Content { text: [text(message, "content"), text(choice, "text")].concat(), calls }
}

fn kind(value: &Value) -> &str {
    text(value, "type")
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Contents of a stream that are not judged yet.
#[derive(Debug, Default)]
pub(super) struct Contents {
    choices: BTreeMap<String, Content>,
    held: usize,
}

/// A stream holds more than is kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Contents {
    /// Adds an event, and returns the contents that end with it.
    ///
    /// # Errors
    ///
    /// The stream holds more content or choices than are kept.
    pub(super) fn add(&mut self, event: &Value) -> Result<Vec<Content>, TooLong> {
        for delta in deltas::read(event).0 {
            let choice = if delta.group.starts_with("choice ") {
                // A call belongs to its choice: `choice 0 call 1`.
                delta.group.split(" call ").next().unwrap_or_default()
            } else {
                ANSWER
            };
            let is_call = delta.group.contains(" call ")
                || delta.channel.ends_with(" partial_json")
                || delta.channel.contains("_arguments.delta");
            let is_content = [" content", " text", " response"].iter().any(|end| delta.channel.ends_with(end))
                || delta.channel.contains(" response.output_text.delta");
            if !is_call && !is_content {
                continue;
            }
            let content = self.choice(choice)?;
            content.calls |= is_call;
            if is_content && !is_call {
                content.text.push_str(&delta.text);
                self.held += delta.text.len();
            }
        }
        if event.pointer("/message/tool_calls/0").is_some() {
            self.choice(ANSWER)?.calls = true;
        }
        if event.pointer("/content_block/type").and_then(Value::as_str) == Some("tool_use") {
            self.choice(ANSWER)?.calls = true;
        }
        if self.held > MAX_CONTENT {
            return Err(TooLong);
        }
        self.ended(event)
    }

    fn choice(&mut self, name: &str) -> Result<&mut Content, TooLong> {
        if !self.choices.contains_key(name) && self.choices.len() >= MAX_CHOICES {
            return Err(TooLong);
        }
        Ok(self.choices.entry(name.to_owned()).or_default())
    }

    /// Contents that end with an event.
    fn ended(&mut self, event: &Value) -> Result<Vec<Content>, TooLong> {
        if let Some(choices) = event.get("choices").and_then(Value::as_array) {
            let is_ended = |choice: &&Value| choice.get("finish_reason").is_some_and(|reason| !reason.is_null());
            let names = choices
                .iter()
                .filter(is_ended)
                .map(|choice| format!("choice {}", choice.get("index").unwrap_or(&Value::Null)));
            return Ok(names.map(|name| self.choices.remove(&name).unwrap_or_default()).collect());
        }
        let is_last = matches!(kind(event), "message_stop" | "response.completed" | "response.incomplete")
            || event.get("done") == Some(&Value::Bool(true));
        if !is_last {
            return Ok(Vec::new());
        }
        self.choice(ANSWER)?;
        Ok(self.rest())
    }

    /// Contents that have not ended, at the end of the stream.
    pub(super) fn rest(&mut self) -> Vec<Content> {
        std::mem::take(&mut self.choices).into_values().collect()
    }
}

/// Name of the one content of an answer that has no choices.
const ANSWER: &str = "answer";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn content(text: &str, calls: bool) -> Content {
        Content { text: text.to_owned(), calls }
    }

    #[test]
    fn each_api_has_its_content() {
        for (answer, expected) in [
            (
                json!({"choices": [{"message": {"content": "a"}}, {"message": {"content": null, "tool_calls": [{}]}}]}),
                Some(vec![content("a", false), content("", true)]),
            ),
            (json!({"choices": [{"text": "a"}]}), Some(vec![content("a", false)])),
            (
                json!({"content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
                Some(vec![content("ab", false)]),
            ),
            (json!({"content": [{"type": "tool_use", "input": {}}]}), Some(vec![content("", true)])),
            (
                json!({"output": [{"type": "reasoning"}, {"type": "message", "content": [{"type": "output_text", "text": "a"}]}]}),
                Some(vec![content("a", false)]),
            ),
            (json!({"output": [{"type": "function_call"}]}), Some(vec![content("", true)])),
            (json!({"message": {"role": "assistant", "content": "a"}}), Some(vec![content("a", false)])),
            (json!({"response": "a"}), Some(vec![content("a", false)])),
            (json!({"input_tokens": 7}), None),
            (json!({}), Some(vec![content("", false)])),
        ] {
            assert_eq!(of_answer(&answer), expected, "{answer}");
        }
    }

    #[test]
    fn the_content_of_a_stream_ends_with_its_last_event() {
        let delta = |index: u32, delta: Value, reason: Value| json!({"choices": [{"index": index, "delta": delta, "finish_reason": reason}]});
        for (events, expected) in [
            (
                vec![
                    delta(0, json!({"content": "a"}), Value::Null),
                    delta(1, json!({"reasoning_content": "x"}), Value::Null),
                    delta(0, json!({"content": "b"}), Value::Null),
                    delta(1, json!({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}), Value::Null),
                    delta(0, json!({}), json!("stop")),
                    delta(1, json!({}), json!("tool_calls")),
                ],
                vec![content("ab", false), content("", true)],
            ),
            (vec![delta(0, json!({}), json!("stop"))], vec![content("", false)]),
            (
                vec![
                    json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "x"}}),
                    json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "a"}}),
                    json!({"type": "content_block_stop", "index": 1}),
                    json!({"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": "b"}}),
                    json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}),
                    json!({"type": "message_stop"}),
                ],
                vec![content("ab", false)],
            ),
            (
                vec![
                    json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t"}}),
                    json!({"type": "message_stop"}),
                ],
                vec![content("", true)],
            ),
            (
                vec![
                    json!({"type": "response.output_text.delta", "item_id": "i", "content_index": 0, "delta": "a"}),
                    json!({"type": "response.output_text.done", "text": "a"}),
                    json!({"type": "response.completed", "response": {}}),
                ],
                vec![content("a", false)],
            ),
            (
                vec![
                    json!({"type": "response.function_call_arguments.delta", "item_id": "i", "delta": "{"}),
                    json!({"type": "response.completed", "response": {}}),
                ],
                vec![content("", true)],
            ),
            (
                vec![
                    json!({"message": {"role": "assistant", "content": "a", "thinking": "x"}, "done": false}),
                    json!({"message": {"role": "assistant", "content": "b"}, "done": true}),
                ],
                vec![content("ab", false)],
            ),
            (vec![json!({"response": "a", "done": true})], vec![content("a", false)]),
        ] {
            let mut contents = Contents::default();
            let ended: Vec<Content> = events.iter().flat_map(|event| contents.add(event).unwrap()).collect();
            assert_eq!(ended, expected, "{events:?}");
            assert_eq!(contents.rest(), []);
        }
    }

    #[test]
    fn what_is_kept_of_a_stream_is_bounded() {
        let delta = |index: usize, text: &str| json!({"choices": [{"index": index, "delta": {"content": text}}]});
        let (mut contents, part) = (Contents::default(), "x".repeat(MAX_CONTENT / 4));
        let added: Vec<_> = (0..5).map(|_| contents.add(&delta(0, &part)).is_ok()).collect();
        assert_eq!(added, [true, true, true, true, false]);
        let mut contents = Contents::default();
        assert!((0..MAX_CHOICES).all(|n| contents.add(&delta(n, "x")).is_ok()));
        assert_eq!(contents.add(&delta(MAX_CHOICES, "x")), Err(TooLong));
    }
}
