//! Reader of the input of the Responses API: items that become the messages of a conversation. Calls of one turn, and the
//! text before them, become one message, as in Chat Completions.

use serde_json::value::RawValue;
use spillway_engine::ToolCall;

use crate::protocol::chat::Message;
use crate::protocol::members::{Members, entries, text};
use crate::protocol::openai::request::findings::Findings;
use crate::protocol::openai::request::tools::{MAX_TOOLS, is_name};
use crate::protocol::refusals::shown;

/// Most items in one request, as many as messages of Chat Completions.
const MAX_ITEMS: usize = 2048;
/// Most parts of the content of one item.
const MAX_PARTS: usize = 2048;
/// Longest id of a call in bytes. Servers write about 30.
const MAX_CALL_ID: usize = 256;

/// Adds the instructions of the request, which come before its input.
pub(super) fn instruct(messages: &mut Vec<Message>, text: String) {
    messages.push(message("system", text));
}

fn message(role: &'static str, content: String) -> Message {
    Message { role, content, ..Message::default() }
}

/// Reads the value of `input`: a text or a list of items.
pub(super) fn read(input: &RawValue, messages: &mut Vec<Message>, findings: &mut Findings) {
    if let Some(text) = text(input) {
        return messages.push(message("user", text.into_owned()));
    }
    let Some(items) = entries(input, MAX_ITEMS) else {
        return findings.wrong("invalid_type", "input", "must be a string or a list of items");
    };
    if items.list.is_empty() {
        findings.wrong("empty_array", "input", "must have at least one item");
    }
    if items.has_more {
        findings.wrong("array_above_max_length", "input", format!("must have at most {MAX_ITEMS} items"));
    }
    for (n, item) in items.list.into_iter().enumerate() {
        let mut reader = Item { at: format!("input[{n}]"), messages: &mut *messages, findings: &mut *findings };
        match Members::of(item) {
            Some(members) => reader.read(members),
            None => reader.wrong("", "must be an object, with each field once"),
        }
    }
}

/// Reader of one item.
struct Item<'r> {
    /// Path of the item in the request.
    at: String,
    messages: &'r mut Vec<Message>,
    findings: &'r mut Findings,
}

impl Item<'_> {
    fn wrong(&mut self, field: &str, what: &str) {
        self.findings.wrong("invalid_value", format!("{}{field}", self.at), what);
    }

    fn read(&mut self, mut item: Members<'_>) {
        let kind = item.take_text("type");
        match kind.as_deref() {
            // Messages may have no type.
            None | Some("message") => self.message(item),
            Some("function_call") => self.call(item),
            Some("function_call_output") => self.result(item),
            // Reasoning of an earlier answer is no part of its text.
            Some("reasoning") => self.findings.ignore(self.at.clone()),
            Some("item_reference") => {
                let why = "the built-in model keeps no items: send the item itself";
                self.findings.unsupported("unsupported_value", format!("{}.type", self.at), why);
            }
            Some(kind) => {
                let why = format!("the built-in model reads messages and function calls, not `{}`", shown(kind));
                self.findings.unsupported("unsupported_value", format!("{}.type", self.at), why);
            }
        }
    }

    fn message(&mut self, mut item: Members<'_>) {
        let role = match item.take_text("role").as_deref() {
            Some("system" | "developer") => "system",
            Some("user") => "user",
            Some("assistant") => "assistant",
            _ => return self.wrong(".role", "must be system, developer, user or assistant"),
        };
        let Some(content) = item.take("content") else {
            return self.findings.wrong("missing_required_parameter", format!("{}.content", self.at), "is missing");
        };
        let content = self.content(content, ".content");
        self.messages.push(message(role, content));
    }

    /// Reads text, or parts with text, which are joined by a line break.
    fn content(&mut self, content: &RawValue, field: &str) -> String {
        if let Some(text) = text(content) {
            return text.into_owned();
        }
        let Some(parts) = entries(content, MAX_PARTS).filter(|parts| !parts.has_more) else {
            self.wrong(field, &format!("must be a string or a list of at most {MAX_PARTS} parts"));
            return String::new();
        };
        let mut joined = String::new();
        for (n, part) in parts.list.into_iter().enumerate() {
            let mut part = Members::of(part).unwrap_or_default();
            let said = match part.take_text("type").as_deref() {
                Some("input_text" | "output_text" | "text") => part.take_text("text"),
                Some("refusal") => part.take_text("refusal"),
                Some(kind) => {
                    let why = format!("the built-in model reads text, not `{}`", shown(kind));
                    self.findings.unsupported("unsupported_value", format!("{}{field}[{n}].type", self.at), why);
                    continue;
                }
                None => None,
            };
            let Some(said) = said else {
                self.wrong(&format!("{field}[{n}]"), "must have a `type`, and its text");
                continue;
            };
            if n > 0 {
                joined.push('\n');
            }
            joined.push_str(&said);
        }
        joined
    }

    fn call_id(&mut self, item: &mut Members<'_>) -> Option<String> {
        let id = item.take_text("call_id").filter(|id| (1..=MAX_CALL_ID).contains(&id.len()));
        if id.is_none() {
            self.wrong(".call_id", &format!("must be a string of 1 to {MAX_CALL_ID} bytes"));
        }
        id.map(Into::into)
    }

    fn call(&mut self, mut item: Members<'_>) {
        let Some(id) = self.call_id(&mut item) else { return };
        let name = item.take_text("name").filter(|name| is_name(name));
        let (Some(name), Some(arguments)) = (name, item.take_text("arguments")) else {
            return self.wrong("", "must have the `name` of a function and its `arguments` as text");
        };
        let call = ToolCall { id, name: name.into_owned(), arguments: arguments.into_owned() };
        match self.messages.last_mut().filter(|last| last.role == "assistant") {
            Some(last) if last.tool_calls.len() >= MAX_TOOLS => {
                self.wrong("", &format!("is one of more than {MAX_TOOLS} calls of one turn"));
            }
            Some(last) => last.tool_calls.push(call),
            None => self.messages.push(Message { tool_calls: vec![call], ..message("assistant", String::new()) }),
        }
    }

    fn result(&mut self, mut item: Members<'_>) {
        let Some(id) = self.call_id(&mut item) else { return };
        let Some(output) = item.take("output") else {
            return self.findings.wrong("missing_required_parameter", format!("{}.output", self.at), "is missing");
        };
        let content = self.content(output, ".output");
        self.messages.push(Message { tool_call_id: Some(id), ..message("tool", content) });
    }
}
