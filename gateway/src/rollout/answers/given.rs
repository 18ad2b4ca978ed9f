//! Texts and tool calls of an answer, whatever its API, whole or streamed.

#![allow(clippy::indexing_slicing, reason = "a value of JSON is null where it has no such key")]

use std::collections::BTreeMap;

use serde_json::Value;

/// Finish reasons with which a model, or a filter of its server, keeps an answer back.
pub const REFUSED: [&str; 3] = ["content_filter", "refusal", "safety"];

/// Arguments of a tool call.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Arguments {
    /// Text that should be JSON.
    Text(String),
    /// JSON that the answer has as such.
    Value(Value),
    /// Text of a tool that takes any.
    Free(String),
}

/// Tool call of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    /// Name of the tool.
    pub name: String,
    /// Arguments.
    pub arguments: Arguments,
}

/// Choice of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Choice {
    /// Text.
    pub text: String,
    /// Tool calls, by their numbers.
    pub calls: BTreeMap<u64, Call>,
    /// True if it is a refusal by its form.
    pub is_refusal: bool,
}

/// Answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Given(pub BTreeMap<u64, Choice>);

impl Given {
    /// Reads a whole answer: one value, an event stream, or a value in each line; `None` where a part of it cannot be read, and
    /// for an answer that reports an error.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let mut given = Self::default();
        if let Ok(value) = serde_json::from_slice::<Value>(body) {
            given.value(&value)?;
            return Some(given);
        }
        for line in body.split(|byte| matches!(byte, b'\n' | b'\r')) {
            let line = line.strip_prefix(b"data:").unwrap_or(line).trim_ascii();
            if line.first() == Some(&b'{') {
                given.value(&serde_json::from_slice(line).ok()?)?;
            }
        }
        Some(given)
    }

    /// Texts of all choices.
    pub(super) fn text(&self) -> String {
        self.0.values().map(|choice| choice.text.as_str()).collect()
    }

    fn choice(&mut self, index: u64) -> &mut Choice {
        self.0.entry(index).or_default()
    }

    /// Reads a whole answer or an event of one; `None` for an error.
    fn value(&mut self, value: &Value) -> Option<()> {
        if value["error"].is_object() || value["error"].is_string() || value["type"] == "error" {
            return None;
        }
        let kind = value["type"].as_str().unwrap_or_default();
        if let Some(event) = kind.strip_prefix("response.") {
            // The last event has all of the answer.
            return match event {
                "completed" | "incomplete" => self.value(&value["response"]),
                "failed" => None,
                _ => Some(()),
            };
        }
        match kind {
            "content_block_start" => self.block(number(&value["index"]), &value["content_block"]),
            "content_block_delta" => self.block_delta(number(&value["index"]), &value["delta"]),
            "message_delta" => self.choice(0).is_refusal |= value["delta"]["stop_reason"] == "refusal",
            _ => {}
        }
        for choice in array(&value["choices"]) {
            self.choice_of_chat(choice);
        }
        for (n, item) in array(&value["output"]).enumerate() {
            self.item(numbered(n), item);
        }
        if let Some(content) = value["content"].as_array() {
            for (n, block) in content.iter().enumerate() {
                self.block(numbered(n), block);
            }
            self.choice(0).is_refusal |= value["stop_reason"] == "refusal";
        }
        // Ollama: pieces of a text, and calls that are whole.
        if let Some(text) = value["response"].as_str().or(value["message"]["content"].as_str()) {
            self.choice(0).text.push_str(text);
        }
        let before = numbered(self.0.get(&0).map_or(0, |choice| choice.calls.len()));
        for (n, call) in array(&value["message"]["tool_calls"]).enumerate() {
            self.call_of_chat(0, before + numbered(n), call);
        }
        Some(())
    }

    /// Choice of Chat Completions or Completions, whole or a piece.
    fn choice_of_chat(&mut self, value: &Value) {
        let index = number(&value["index"]);
        let choice = self.choice(index);
        choice.is_refusal |= value["finish_reason"].as_str().is_some_and(|reason| REFUSED.contains(&reason));
        choice.text.push_str(value["text"].as_str().unwrap_or_default());
        for message in [&value["message"], &value["delta"]] {
            let choice = self.choice(index);
            choice.text.push_str(message["content"].as_str().unwrap_or_default());
            choice.is_refusal |= message["refusal"].as_str().is_some_and(|refusal| !refusal.is_empty());
            for (n, call) in array(&message["tool_calls"]).enumerate() {
                self.call_of_chat(index, call["index"].as_u64().unwrap_or(numbered(n)), call);
            }
            if message["function_call"].is_object() {
                self.call(index, 0, &message["function_call"], "arguments");
            }
        }
    }

    fn call_of_chat(&mut self, choice: u64, n: u64, call: &Value) {
        if call["custom"].is_object() {
            self.call(choice, n, &call["custom"], "input");
        } else {
            self.call(choice, n, &call["function"], "arguments");
        }
    }

    /// Call, or a piece of one whose name came before.
    fn call(&mut self, choice: u64, n: u64, call: &Value, member: &str) {
        let is_free = member == "input";
        let empty = || if is_free { Arguments::Free(String::new()) } else { Arguments::Text(String::new()) };
        let calls = &mut self.choice(choice).calls;
        let own = calls.entry(n).or_insert_with(|| Call { name: String::new(), arguments: empty() });
        own.name.push_str(call["name"].as_str().unwrap_or_default());
        match (&call[member], &mut own.arguments) {
            (Value::String(piece), Arguments::Text(text) | Arguments::Free(text)) => text.push_str(piece),
            (Value::Null, _) | (_, Arguments::Free(_)) => {}
            (value, arguments) => *arguments = Arguments::Value(value.clone()),
        }
    }

    /// Block of an answer of the Messages API. Calls of tools that its servers run themselves have another type.
    fn block(&mut self, n: u64, block: &Value) {
        match block["type"].as_str() {
            Some("text") => self.choice(0).text.push_str(block["text"].as_str().unwrap_or_default()),
            Some("tool_use") => {
                let name = block["name"].as_str().unwrap_or_default().to_owned();
                let call = Call { name, arguments: Arguments::Value(block["input"].clone()) };
                self.choice(0).calls.insert(n, call);
            }
            _ => {}
        }
    }

    fn block_delta(&mut self, n: u64, delta: &Value) {
        match delta["type"].as_str() {
            Some("text_delta") => self.choice(0).text.push_str(delta["text"].as_str().unwrap_or_default()),
            Some("input_json_delta") => {
                let piece = delta["partial_json"].as_str().unwrap_or_default();
                let Some(call) = self.choice(0).calls.get_mut(&n) else { return };
                match &mut call.arguments {
                    Arguments::Text(text) => text.push_str(piece),
                    // The stream begins with an empty object, in whose place the pieces come, the first of them empty.
                    _ if piece.is_empty() => {}
                    arguments => *arguments = Arguments::Text(piece.to_owned()),
                }
            }
            _ => {}
        }
    }

    /// Item of an answer of the Responses API. Calls of tools that its servers run themselves have other types.
    fn item(&mut self, n: u64, item: &Value) {
        match item["type"].as_str() {
            Some("message") => {
                for part in array(&item["content"]) {
                    let choice = self.choice(0);
                    choice.text.push_str(part["text"].as_str().unwrap_or_default());
                    choice.is_refusal |= part["type"] == "refusal";
                }
            }
            Some("function_call") => self.call(0, n, item, "arguments"),
            Some("custom_tool_call") => self.call(0, n, item, "input"),
            _ => {}
        }
    }
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn numbered(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Event stream of these values.
    fn events(values: &[Value]) -> String {
        values.iter().map(|value| format!("data: {value}\n\n")).collect::<String>() + "data: [DONE]\n\n"
    }

    #[test]
    fn texts_of_all_apis_are_read_whole_and_streamed() {
        let piece = |text: &str| json!({"choices": [{"index": 0, "delta": {"content": text}}]});
        let block = |text: &str| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
        let item = json!({"type": "message", "content": [{"type": "output_text", "text": "{\"a\": 1}"}]});
        let responses = json!({"output": [{"type": "reasoning", "summary": []}, item]});
        for body in [
            json!({"choices": [{"index": 0, "message": {"content": "{\"a\": 1}"}}]}).to_string(),
            json!({"choices": [{"index": 0, "text": "{\"a\": 1}"}]}).to_string(),
            events(&[piece("{\"a\""), piece(": 1}")]),
            responses.to_string(),
            events(&[
                json!({"type": "response.output_text.delta", "delta": "{\"a\": 1}"}),
                json!({"type": "response.completed", "response": responses}),
            ]),
            json!({"type": "message", "content": [{"type": "text", "text": "{\"a\": 1}"}], "stop_reason": "end_turn"})
                .to_string(),
            events(&[
                json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
                block("{\"a\""),
                block(": 1}"),
            ]),
            json!({"message": {"content": "{\"a\": 1}"}, "done": true}).to_string(),
            "{\"message\":{\"content\":\"{\\\"a\\\"\"}}\n{\"message\":{\"content\":\": 1}\"},\"done\":true}\n"
                .to_owned(),
            "{\"response\":\"{\\\"a\\\"\"}\n{\"response\":\": 1}\",\"done\":true}\n".to_owned(),
        ] {
            let given = Given::read(body.as_bytes()).unwrap();
            assert_eq!(given.0[&0].text, "{\"a\": 1}", "{body}");
            assert!(given.0[&0].calls.is_empty() && !given.0[&0].is_refusal, "{body}");
        }
    }

    #[test]
    fn calls_of_all_apis_are_read_whole_and_streamed() {
        let text = |text: &str| Arguments::Text(text.to_owned());
        let whole = json!({"name": "f", "arguments": "{\"a\": 1}"});
        let piece = |call: Value| json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]});
        let item = json!({"type": "function_call", "name": "f", "arguments": "{\"a\": 1}"});
        let begun = json!({"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": "f", "input": {}}});
        let more = |json: &str| json!({"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": json}});
        for (body, arguments) in [
            (
                json!({"choices": [{"message": {"content": null, "tool_calls": [{"function": whole}]}}]}).to_string(),
                text("{\"a\": 1}"),
            ),
            (json!({"choices": [{"message": {"function_call": whole}}]}).to_string(), text("{\"a\": 1}")),
            (
                events(&[
                    piece(json!({"index": 0, "function": {"name": "f", "arguments": ""}})),
                    piece(json!({"index": 0, "function": {"arguments": "{\"a\""}})),
                    piece(json!({"index": 0, "function": {"arguments": ": 1}"}})),
                ]),
                text("{\"a\": 1}"),
            ),
            (json!({"output": [item]}).to_string(), text("{\"a\": 1}")),
            (events(&[json!({"type": "response.completed", "response": {"output": [item]}})]), text("{\"a\": 1}")),
            (
                json!({"content": [{"type": "tool_use", "name": "f", "input": {"a": 1}}]}).to_string(),
                Arguments::Value(json!({"a": 1})),
            ),
            (events(&[begun.clone(), more(""), more("{\"a\""), more(": 1}")]), text("{\"a\": 1}")),
            (events(&[begun, more("")]), Arguments::Value(json!({}))),
            (
                json!({"message": {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}})
                    .to_string(),
                Arguments::Value(json!({"a": 1})),
            ),
            (
                json!({"choices": [{"message": {"tool_calls": [{"custom": {"name": "f", "input": "any"}}]}}]})
                    .to_string(),
                Arguments::Free("any".to_owned()),
            ),
        ] {
            let given = Given::read(body.as_bytes()).unwrap();
            let calls: Vec<&Call> = given.0[&0].calls.values().collect();
            assert_eq!(calls, [&Call { name: "f".to_owned(), arguments }], "{body}");
        }
        let two = piece(json!({"index": 1, "function": {"name": "g", "arguments": "{}"}}));
        let both = events(&[piece(json!({"index": 0, "function": {"name": "f", "arguments": "{}"}})), two]);
        let names: Vec<String> =
            Given::read(both.as_bytes()).unwrap().0[&0].calls.values().map(|call| call.name.clone()).collect();
        assert_eq!(names, ["f", "g"]);
    }

    #[test]
    fn refusals_are_known_and_errors_are_no_answers() {
        for body in [
            json!({"choices": [{"message": {"refusal": "No."}}]}),
            json!({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}),
            json!({"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}]}),
            json!({"content": [], "stop_reason": "refusal"}),
        ] {
            assert!(Given::read(body.to_string().as_bytes()).unwrap().0[&0].is_refusal, "{body}");
        }
        for body in
            ["{\"error\": {\"message\": \"m\"}}", "data: {\"choices\"\n\n", "data: {\"type\": \"response.failed\"}\n\n"]
        {
            assert_eq!(Given::read(body.as_bytes()), None, "{body}");
        }
        let garbage: Vec<u8> = (0..=255).cycle().take(5_000).collect();
        assert_eq!(Given::read(&garbage), Some(Given::default()));
    }
}
