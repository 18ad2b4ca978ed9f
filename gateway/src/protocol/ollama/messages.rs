//! Reader of the messages of a conversation. Calls have no ids in this API; those that are made up here connect a call with
//! its result where a template needs that.

use serde_json::Value;
use serde_json::value::RawValue;
use spillway_engine::ToolCall;

use crate::protocol::chat::Message;
use crate::protocol::members::{Members, entries, text};
use crate::protocol::openai::request::findings::Findings;
use crate::protocol::openai::request::tools::{MAX_TOOLS, is_name};
use crate::protocol::refusals::shown;

/// Most messages in one request, as in Chat Completions.
const MAX_MESSAGES: usize = 2048;
/// Longest JSON text of the arguments of a call, in bytes.
const MAX_ARGUMENTS: usize = 256 << 10;

/// Reads the value of `messages`.
pub(super) fn read(messages: &RawValue, findings: &mut Findings) -> Vec<Message> {
    let Some(list) = entries(messages, MAX_MESSAGES) else {
        findings.wrong_type("messages", "must be a list of messages");
        return Vec::new();
    };
    if list.list.is_empty() {
        findings.wrong("empty_array", "messages", "must have at least one message");
    }
    if list.has_more {
        findings.wrong("array_above_max_length", "messages", format!("must have at most {MAX_MESSAGES} messages"));
    }
    let mut read = Reader { findings, calls: 0, answered: 0 };
    let message = |(n, message): (usize, &RawValue)| read.message(&format!("messages[{n}]"), message);
    list.list.into_iter().enumerate().map(message).collect()
}

struct Reader<'f> {
    findings: &'f mut Findings,
    /// Calls so far.
    calls: usize,
    /// Results so far.
    answered: usize,
}

impl Reader<'_> {
    fn message(&mut self, at: &str, written: &RawValue) -> Message {
        let Some(mut members) = Members::of(written) else {
            self.findings.wrong("invalid_type", at.to_owned(), "must be an object, with each field once");
            return Message { role: "user", ..Message::default() };
        };
        let role = match members.take_text("role").as_deref() {
            Some("system") => "system",
            Some("user") => "user",
            Some("assistant") => "assistant",
            Some("tool") => "tool",
            _ => {
                self.findings.wrong("invalid_value", format!("{at}.role"), "must be system, user, assistant or tool");
                "user"
            }
        };
        let content = members.take("content").map(text);
        if content == Some(None) {
            self.findings.wrong("invalid_type", format!("{at}.content"), "must be a string");
        }
        images(at, &mut members, self.findings);
        let tool_calls = members.take("tool_calls").map(|calls| self.tool_calls(at, calls)).unwrap_or_default();
        let tool_call_id = (role == "tool").then(|| self.result(&mut members));
        // Thinking of an earlier answer is no part of its text, and templates have no slot for the name of a tool.
        for name in ["thinking", "tool_name", "tool_call_id"] {
            members.take(name);
        }
        for (name, _) in members.rest() {
            self.findings.ignore(format!("{at}.{}", shown(&name)));
        }
        Message { role, content: content.flatten().unwrap_or_default().into_owned(), tool_calls, tool_call_id }
    }

    /// Id of the call whose result a message carries: that which it names, else that of the next call without a result.
    fn result(&mut self, members: &mut Members<'_>) -> String {
        let id = members.take_text("tool_call_id").filter(|id| !id.is_empty()).map(Into::into);
        let next = id_of(self.answered);
        self.answered = self.answered.saturating_add(1);
        id.unwrap_or(next)
    }

    fn tool_calls(&mut self, at: &str, written: &RawValue) -> Vec<ToolCall> {
        let Some(list) = entries(written, MAX_TOOLS).filter(|list| !list.has_more) else {
            let what = format!("must be a list of at most {MAX_TOOLS} calls");
            self.findings.wrong("invalid_type", format!("{at}.tool_calls"), what);
            return Vec::new();
        };
        let mut calls = Vec::with_capacity(list.list.len());
        for (n, call) in list.list.into_iter().enumerate() {
            match self.tool_call(call) {
                Some(call) => calls.push(call),
                None => {
                    let what = "must have a `function` with its `name` and its `arguments` as an object";
                    self.findings.wrong("invalid_value", format!("{at}.tool_calls[{n}]"), what);
                }
            }
        }
        calls
    }

    fn tool_call(&mut self, written: &RawValue) -> Option<ToolCall> {
        let mut call = Members::of(written)?;
        let mut function = Members::of(call.take("function")?)?;
        let name = function.take_text("name").filter(|name| is_name(name))?.into_owned();
        let arguments = match function.take("arguments") {
            Some(arguments) if arguments.get().len() <= MAX_ARGUMENTS => {
                serde_json::from_str::<Value>(arguments.get()).ok().filter(Value::is_object)?.to_string()
            }
            Some(_) => return None,
            None => "{}".to_owned(),
        };
        let id = call.take_text("id").filter(|id| !id.is_empty()).map_or_else(|| id_of(self.calls), Into::into);
        self.calls = self.calls.saturating_add(1);
        Some(ToolCall { id, name, arguments })
    }
}

fn id_of(n: usize) -> String {
    format!("call_{n}")
}

/// Reports images, which the built-in model does not read.
pub(super) fn images(at: &str, members: &mut Members<'_>, findings: &mut Findings) {
    let Some(images) = members.take("images") else { return };
    if !entries(images, 1).is_some_and(|images| images.list.is_empty()) {
        let param = if at.is_empty() { "images".to_owned() } else { format!("{at}.images") };
        findings.unsupported("unsupported_value", param, "the built-in model reads text, not images");
    }
}
