//! Parts of texts in the events of a stream: which strings continue a text that began before, and where texts end, in the API of
//! each model server.

use serde_json::Value;

use crate::json_edit::Pointer;

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Delta {
    /// Place of the string in the event.
    pub(crate) pointer: Pointer,
    /// Text that it continues.
    pub(crate) channel: String,
    /// Part of the answer that the text belongs to, such as a choice; a text of another channel in it begins behind this one.
    pub(crate) group: String,
    /// The part.
    pub(crate) text: String,
}

/// Texts that have ended before an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// None.
    Nothing,
    /// Texts of one group.
    Group(String),
    /// All.
    All,
}

impl Ended {
    /// True if the texts of a group have ended. The calls of a choice end with it.
    pub(crate) fn has(&self, group: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::Group(ended) => {
                group.strip_prefix(ended.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
            }
            Self::All => true,
        }
    }
}

/// Parts of texts in an event, and the texts that have ended before it.
pub(crate) fn read(event: &Value) -> (Vec<Delta>, Ended) {
    let mut deltas = Vec::new();
    if let Some(choices) = event.get("choices").and_then(Value::as_array) {
        let mut ended = Ended::Nothing;
        for (n, choice) in choices.iter().enumerate() {
            let group = format!("choice {}", choice.get("index").unwrap_or(&Value::Null));
            collect(choice, &format!("/choices/{n}"), &["text"], &group, &mut deltas);
            if let Some(delta) = choice.get("delta") {
                let at = format!("/choices/{n}/delta");
                collect(delta, &at, &["content", "reasoning_content", "reasoning", "refusal"], &group, &mut deltas);
                let calls = delta.get("tool_calls").and_then(Value::as_array);
                for (m, call) in calls.into_iter().flatten().enumerate() {
                    let which = format!("{group} call {}", call.get("index").unwrap_or(&Value::Null));
                    let function = call.get("function").unwrap_or(&Value::Null);
                    collect(function, &format!("{at}/tool_calls/{m}/function"), &["arguments"], &which, &mut deltas);
                }
            }
            if choice.get("finish_reason").is_some_and(|reason| !reason.is_null()) {
                ended = if choices.len() == 1 { Ended::Group(group) } else { Ended::All };
            }
        }
        return (deltas, ended);
    }
    let kind = event.get("type").and_then(Value::as_str).unwrap_or_default();
    let number = |name: &str| event.get(name).unwrap_or(&Value::Null).to_string();
    if kind.starts_with("content_block_") {
        let group = format!("block {}", number("index"));
        if let Some(delta) = event.get("delta") {
            collect(delta, "/delta", &["text", "thinking", "partial_json"], &group, &mut deltas);
        }
        let ended = if kind == "content_block_stop" { Ended::Group(group) } else { Ended::Nothing };
        return (deltas, ended);
    }
    if kind.starts_with("response.") {
        let group = format!("item {}", number("item_id"));
        if kind.ends_with(".delta") {
            collect(event, "", &["delta"], &format!("{group} {} {kind}", number("content_index")), &mut deltas);
            return (deltas, Ended::Nothing);
        }
        // An event that shows the whole of a text comes behind its parts.
        return (
            deltas,
            if kind.ends_with(".done") || kind == "response.completed" { Ended::All } else { Ended::Nothing },
        );
    }
    if event.get("done").is_some() || event.get("message").is_some_and(|message| message.get("role").is_some()) {
        let group = "answer";
        if let Some(message) = event.get("message") {
            collect(message, "/message", &["content", "thinking"], group, &mut deltas);
        }
        collect(event, "", &["response", "thinking"], group, &mut deltas);
        let is_done = event.get("done") == Some(&Value::Bool(true));
        return (deltas, if is_done { Ended::All } else { Ended::Nothing });
    }
    // Streams of other servers (llama.cpp, TGI, Triton, transcriptions): parts under the names that those know.
    collect(event, "", &["delta", "content", "text", "text_output", "reasoning_content"], kind, &mut deltas);
    if let Some(token) = event.get("token") {
        collect(token, "/token", &["text"], "token", &mut deltas);
    }
    let is_last = event.get("stop") == Some(&Value::Bool(true))
        || event.get("generated_text").is_some_and(Value::is_string)
        || kind.ends_with(".done");
    let is_over = is_last || kind == "message_stop" || event.get("error").is_some();
    (deltas, if is_over { Ended::All } else { Ended::Nothing })
}

/// Adds the members of an object that are strings.
fn collect(object: &Value, at: &str, names: &[&str], group: &str, deltas: &mut Vec<Delta>) {
    for name in names {
        if let Some(text) = object.get(*name).and_then(Value::as_str)
            && let Ok(pointer) = Pointer::parse(&format!("{at}/{name}"))
        {
            let channel = format!("{group} {name}");
            deltas.push(Delta { pointer, channel, group: group.to_owned(), text: text.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_api_has_its_parts_of_texts() {
        let group = |name: &str| Ended::Group(name.to_owned());
        for (event, expected, ended) in [
            (
                json!({"choices": [{"index": 1, "delta": {"role": "assistant", "content": "a", "reasoning_content": "b"}, "finish_reason": null}]}),
                vec![("/choices/0/delta/content", "a"), ("/choices/0/delta/reasoning_content", "b")],
                Ended::Nothing,
            ),
            (
                json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 2, "function": {"arguments": "{"}}]}}]}),
                vec![("/choices/0/delta/tool_calls/0/function/arguments", "{")],
                Ended::Nothing,
            ),
            (json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), vec![], group("choice 0")),
            (
                json!({"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}),
                vec![("/choices/0/text", "a")],
                group("choice 0"),
            ),
            (json!({"choices": [], "usage": {}}), vec![], Ended::Nothing),
            (
                json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}}),
                vec![("/delta/text", "a")],
                Ended::Nothing,
            ),
            (json!({"type": "content_block_stop", "index": 0}), vec![], group("block 0")),
            (json!({"type": "message_stop"}), vec![], Ended::All),
            (
                json!({"type": "response.output_text.delta", "item_id": "i", "content_index": 0, "delta": "a"}),
                vec![("/delta", "a")],
                Ended::Nothing,
            ),
            (json!({"type": "response.output_text.done", "text": "a"}), vec![], Ended::All),
            (json!({"type": "response.in_progress"}), vec![], Ended::Nothing),
            (
                json!({"message": {"role": "assistant", "content": "a"}, "done": false}),
                vec![("/message/content", "a")],
                Ended::Nothing,
            ),
            (json!({"response": "a", "done": true}), vec![("/response", "a")], Ended::All),
            (json!({"error": {"message": "x"}}), vec![], Ended::All),
            (json!({"content": "a", "stop": true}), vec![("/content", "a")], Ended::All),
            (
                json!({"token": {"id": 1, "text": "a"}, "generated_text": null}),
                vec![("/token/text", "a")],
                Ended::Nothing,
            ),
            (json!({"type": "transcript.text.delta", "delta": "a"}), vec![("/delta", "a")], Ended::Nothing),
        ] {
            let (deltas, found) = read(&event);
            let places: Vec<_> = deltas.iter().map(|delta| (delta.pointer.to_string(), delta.text.as_str())).collect();
            let expected: Vec<_> = expected.into_iter().map(|(at, text)| (at.to_owned(), text)).collect();
            assert_eq!((places, found), (expected, ended), "{event}");
        }
    }
}
