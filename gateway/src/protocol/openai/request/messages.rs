//! Reader of the conversation of a chat request: text by role, with the tool calls, which is all that the built-in model
//! reads. Content that it cannot read (images, sounds) is reported by name, never dropped in silence.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::findings::Findings;
use super::format::Raw;
use super::tools;
use super::values::{BorrowedText, Probe, Skip, SkipVisitor};
use crate::protocol::chat::Message;
use crate::protocol::refusals::shown;

/// Most messages in one request, as in OpenAI's API.
pub(super) const MAX_MESSAGES: usize = 2048;

/// Longest id of a tool call, in bytes. Servers write about 30.
const MAX_CALL_ID: usize = 256;

/// Reader of the value of `messages`.
pub(super) struct Messages<'f>(pub(super) &'f mut Findings);

impl<'de> DeserializeSeed<'de> for Messages<'_> {
    type Value = Vec<Message>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Methods of a visitor for every value that is not expected, which is read, forgotten and refused.
macro_rules! refuse_others {
    ($self:ident, $then:expr) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value")
        }
        fn visit_unit<E>($self) -> Result<Self::Value, E> {
            Ok($then)
        }
        fn visit_bool<E>($self, _: bool) -> Result<Self::Value, E> {
            Ok($then)
        }
        fn visit_u64<E>($self, _: u64) -> Result<Self::Value, E> {
            Ok($then)
        }
        fn visit_i64<E>($self, _: i64) -> Result<Self::Value, E> {
            Ok($then)
        }
        fn visit_f64<E>($self, _: f64) -> Result<Self::Value, E> {
            Ok($then)
        }
    };
}

impl<'de> Visitor<'de> for Messages<'_> {
    type Value = Vec<Message>;

    refuse_others!(self, self.not_a_list());

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(self.not_a_list())
    }
    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Self::Value, A::Error> {
        SkipVisitor.visit_map(object)?;
        Ok(self.not_a_list())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut messages = Vec::new();
        while messages.len() < MAX_MESSAGES {
            let one = OneMessage { at: messages.len(), findings: &mut *self.0 };
            match list.next_element_seed(one)? {
                Some(message) => messages.push(message),
                None => break,
            }
        }
        if messages.is_empty() {
            self.0.wrong("empty_array", "messages", "must have at least one message");
        }
        let mut further = false;
        while list.next_element::<Skip>()?.is_some() {
            further = true;
        }
        if further {
            self.0.wrong("array_above_max_length", "messages", format!("must have at most {MAX_MESSAGES} messages"));
        }
        Ok(messages)
    }
}

impl Messages<'_> {
    fn not_a_list(self) -> Vec<Message> {
        self.0.wrong("invalid_type", "messages", "must be a list of messages");
        Vec::new()
    }
}

struct OneMessage<'f> {
    at: usize,
    findings: &'f mut Findings,
}

impl<'de> DeserializeSeed<'de> for OneMessage<'_> {
    type Value = Message;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Message, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl OneMessage<'_> {
    fn not_an_object(self) -> Message {
        self.findings.wrong("invalid_type", format!("messages[{}]", self.at), "must be an object");
        Message { role: "user", ..Message::default() }
    }

    fn role(&mut self, role: &Probe<'_>) -> &'static str {
        let param = format!("messages[{}].role", self.at);
        match role {
            Probe::Text(role) => match &**role {
                "system" | "developer" => "system",
                "user" => "user",
                "assistant" => "assistant",
                "tool" => "tool",
                "function" => {
                    let why = "the built-in model does not know functions, which tools have replaced";
                    self.findings.unsupported("unsupported_value", param, why);
                    "user"
                }
                _ => {
                    self.findings.wrong("invalid_value", param, "must be system, developer, user, assistant or tool");
                    "user"
                }
            },
            _ => {
                self.findings.wrong("invalid_type", param, "must be a string");
                "user"
            }
        }
    }

    fn call_id(&mut self, id: &Probe<'_>) -> Option<String> {
        match id {
            Probe::Null => None,
            Probe::Text(id) if (1..=MAX_CALL_ID).contains(&id.len()) => Some(id.clone().into_owned()),
            _ => {
                let param = format!("messages[{}].tool_call_id", self.at);
                self.findings.wrong("invalid_type", param, format!("must be a string of 1 to {MAX_CALL_ID} bytes"));
                None
            }
        }
    }

    /// Reports a field of a message that is not read, unless its value asks for nothing. Only fields with a part of what was
    /// said bar an answer.
    fn other(&mut self, key: &str, value: &Probe<'_>) {
        let is_empty = matches!(value, Probe::Null | Probe::List(0, _) | Probe::Object(0, _) | Probe::Bool(false));
        // Templates have no slot for a name. Reasoning, refusals and citations of an earlier answer are no part of its text.
        let has_no_effect = matches!(
            key,
            "name" | "refusal" | "annotations" | "reasoning" | "reasoning_content" | "reasoning_details" | "id"
        );
        if is_empty || has_no_effect {
            return;
        }
        let param = format!("messages[{}].{}", self.at, shown(key));
        if matches!(key, "audio" | "function_call" | "prefix" | "partial") {
            self.findings.unsupported("unsupported_parameter", param, "the built-in model does not read this");
        } else {
            self.findings.ignore(param);
        }
    }
}

impl<'de> Visitor<'de> for OneMessage<'_> {
    type Value = Message;

    refuse_others!(self, self.not_an_object());

    fn visit_str<E>(self, _: &str) -> Result<Message, E> {
        Ok(self.not_an_object())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Message, A::Error> {
        SkipVisitor.visit_seq(list)?;
        Ok(self.not_an_object())
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Message, A::Error> {
        let (mut role, mut content, mut function_call) = (None, None, false);
        let (mut calls, mut call_id): (Option<Raw>, Option<Option<String>>) = (None, None);
        while let Some(BorrowedText(key)) = map.next_key()? {
            match &*key {
                "role" if role.is_none() => role = Some(self.role(&map.next_value()?)),
                "content" if content.is_none() => {
                    content = Some(map.next_value_seed(Content { at: self.at, findings: &mut *self.findings })?);
                }
                "tool_calls" if calls.is_none() => calls = Some(map.next_value()?),
                "tool_call_id" if call_id.is_none() => call_id = Some(self.call_id(&map.next_value()?)),
                "role" | "content" | "tool_calls" | "tool_call_id" => {
                    map.next_value::<Skip>()?;
                    let param = format!("messages[{}].{key}", self.at);
                    self.findings.wrong("duplicate_parameter", param, "appears more than once");
                }
                _ => {
                    let value: Probe<'_> = map.next_value()?;
                    function_call |= &*key == "function_call" && value != Probe::Null;
                    self.other(&key, &value);
                }
            }
        }
        let role = role.unwrap_or_else(|| {
            self.findings.wrong("missing_required_parameter", format!("messages[{}].role", self.at), "is missing");
            "user"
        });
        let tool_calls = calls.map(|raw| tools::calls(&raw, self.at, self.findings)).unwrap_or_default();
        let tool_call_id = call_id.flatten();
        for (is_given, field, belongs) in
            [(!tool_calls.is_empty(), "tool_calls", "assistant"), (tool_call_id.is_some(), "tool_call_id", "tool")]
        {
            if is_given && role != belongs {
                let param = format!("messages[{}].{field}", self.at);
                self.findings.wrong("invalid_value", param, format!("belongs to a message of the role {belongs}"));
            }
        }
        if role == "tool" && tool_call_id.is_none() {
            let param = format!("messages[{}].tool_call_id", self.at);
            self.findings.wrong("missing_required_parameter", param, "is missing");
        }
        // A message that calls tools may have no text.
        let content = content.flatten().unwrap_or_else(|| {
            if !(role == "assistant" && (function_call || !tool_calls.is_empty())) {
                let param = format!("messages[{}].content", self.at);
                self.findings.wrong("missing_required_parameter", param, "is missing");
            }
            String::new()
        });
        Ok(Message { role, content, tool_calls, tool_call_id })
    }
}

/// Reader of the content of a message: text, parts, or `null`, which is `None`.
struct Content<'f> {
    at: usize,
    findings: &'f mut Findings,
}

impl<'de> DeserializeSeed<'de> for Content<'_> {
    type Value = Option<String>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Content<'_> {
    fn wrong_type(self) -> Option<String> {
        let param = format!("messages[{}].content", self.at);
        self.findings.wrong("invalid_type", param, "must be a string or a list of parts");
        Some(String::new())
    }
}

impl<'de> Visitor<'de> for Content<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(self.wrong_type())
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(self.wrong_type())
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(self.wrong_type())
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(self.wrong_type())
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.to_owned()))
    }
    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Self::Value, A::Error> {
        SkipVisitor.visit_map(object)?;
        Ok(self.wrong_type())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut content = String::new();
        let mut n = 0usize;
        while let Some(part) = list.next_element::<ContentPart<'de>>()? {
            let param = || format!("messages[{}].content[{n}]", self.at);
            match (part.kind.as_deref(), part.text) {
                (Some("text"), Some(text)) => {
                    if n > 0 {
                        content.push('\n');
                    }
                    content.push_str(&text);
                }
                (Some("text"), None) => {
                    self.findings.wrong("missing_required_parameter", param() + ".text", "must be a string");
                }
                (Some(kind), _) => {
                    let message = format!("the built-in model reads text, not `{}`", shown(kind));
                    self.findings.unsupported("unsupported_value", param() + ".type", message);
                }
                (None, _) => self.findings.wrong("missing_required_parameter", param() + ".type", "must be a string"),
            }
            n = n.saturating_add(1);
        }
        if n == 0 {
            self.findings.wrong("empty_array", format!("messages[{}].content", self.at), "must have at least one part");
        }
        Ok(Some(content))
    }
}

/// Part of a message. Fields of the wrong type are `None`, as are both of a part that is no object.
#[derive(Default)]
struct ContentPart<'a> {
    kind: Option<Cow<'a, str>>,
    text: Option<Cow<'a, str>>,
}

impl<'de> Deserialize<'de> for ContentPart<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentPartVisitor)
    }
}

struct ContentPartVisitor;

impl<'de> Visitor<'de> for ContentPartVisitor {
    type Value = ContentPart<'de>;

    refuse_others!(self, ContentPart::default());

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(ContentPart::default())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        SkipVisitor.visit_seq(list)?;
        Ok(ContentPart::default())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut part = ContentPart::default();
        while let Some(BorrowedText(key)) = map.next_key()? {
            match &*key {
                "type" | "text" => {
                    let Probe::Text(value) = map.next_value()? else { continue };
                    if key == "type" {
                        part.kind = Some(value);
                    } else {
                        part.text = Some(value);
                    }
                }
                _ => {
                    map.next_value::<Skip>()?;
                }
            }
        }
        Ok(part)
    }
}
