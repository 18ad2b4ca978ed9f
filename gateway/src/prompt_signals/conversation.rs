//! Reader of the conversation in a request, whatever the form of its API. Texts are kept whole or not at all, within bounds: of one
//! that is too long it is known that it is. Members that the gateway does not know are skipped; a member that is read and appears
//! twice makes the conversation unreadable, because a server could read the other one.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::protocol::Operation;

/// Earlier texts of the user that are kept, the last ones.
const MOST_EARLIER: usize = 16;
/// Mark between the parts of a message, which some servers put on lines of their own and others write without a break.
pub(super) const SEAM: char = '\u{1f}';
/// Bytes of a word that is read, such as a role.
const MOST_WORD: usize = 64;

/// Longest texts that are kept, in bytes; 0 for texts that nobody reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wants {
    /// Last text of the user.
    pub(super) last: usize,
    /// All texts of the user together.
    pub(super) user: usize,
    /// All texts together.
    pub(super) all: usize,
    /// Each earlier text of the user.
    pub(super) earlier: usize,
}

impl Wants {
    fn most(self) -> usize {
        self.last.max(self.user).max(self.all).max(self.earlier)
    }
}

/// Reason why a text cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoText {
    /// There is none.
    Absent,
    /// It is longer than the bound.
    TooLong,
}

/// Text that is kept whole, or of which only the length was too large.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kept {
    text: String,
    is_long: bool,
}

impl Kept {
    /// Appends a text behind a separator.
    fn push(&mut self, part: &str, separator: char, most: usize) {
        if part.is_empty() || self.is_long {
            return;
        }
        let break_before = usize::from(!self.text.is_empty());
        if self.text.len() + break_before + part.len() > most {
            self.give_up();
            return;
        }
        if break_before > 0 {
            self.text.push(separator);
        }
        self.text.push_str(part);
    }

    fn append(&mut self, other: &Self, separator: char, most: usize) {
        if other.is_long {
            self.give_up();
        } else {
            self.push(&other.text, separator, most);
        }
    }

    fn give_up(&mut self) {
        *self = Self { text: String::new(), is_long: true };
    }

    /// True if there is no more than blanks.
    fn is_blank(&self) -> bool {
        !self.is_long && self.text.trim().is_empty()
    }

    /// The text with its parts on lines of their own, where it is there and has at most so many bytes.
    pub(super) fn read(&self, most: usize) -> Result<Cow<'_, str>, NoText> {
        self.parts(most).map(|text| if text.contains(SEAM) { text.replace(SEAM, "\n").into() } else { text.into() })
    }

    /// The text with [`SEAM`] between its parts, where it is there and has at most so many bytes.
    pub(super) fn parts(&self, most: usize) -> Result<&str, NoText> {
        if self.is_long || self.text.len() > most {
            Err(NoText::TooLong)
        } else if self.is_blank() {
            Err(NoText::Absent)
        } else {
            Ok(&self.text)
        }
    }
}

/// Conversation of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Conversation {
    /// Characters of all texts.
    pub(super) characters: u64,
    /// Texts of the user; one beside a result of a tool is none of its own.
    pub(super) turns: u64,
    /// True if it ends with a call of a tool or its result.
    pub(super) is_tool_loop: bool,
    /// Last text of the user.
    pub(super) last: Kept,
    /// All texts of the user.
    pub(super) user: Kept,
    /// All texts.
    pub(super) all: Kept,
    /// Earlier texts of the user that were answered.
    pub(super) earlier: VecDeque<Kept>,
    /// Last text of the user beside a result of a tool.
    beside: Kept,
    /// True if the last text of the user was answered.
    is_answered: bool,
    /// True if the body has the member in which its API writes the conversation.
    is_there: bool,
    /// True if a prompt is made of tokens, whose text is not known.
    is_opaque: bool,
}

impl Conversation {
    /// Reads the body of a request; `None` where it has no conversation that can be read.
    pub(super) fn read(operation: Operation, body: &[u8], wants: Wants) -> Option<Self> {
        let members = members(operation);
        let mut conversation = Self::default();
        let mut reader = serde_json::Deserializer::from_slice(body);
        Body { conversation: &mut conversation, members, wants }.deserialize(&mut reader).ok()?;
        reader.end().ok()?;
        if conversation.turns == 0 {
            conversation.last = std::mem::take(&mut conversation.beside);
        }
        (conversation.is_there && !conversation.is_opaque).then_some(conversation)
    }

    /// Adds a message.
    fn add(&mut self, message: Part, default: Role, wants: Wants) {
        let role = message.role(default);
        self.characters = self.characters.saturating_add(message.characters);
        for text in [&message.text, &message.result] {
            self.all.append(text, '\n', wants.all);
        }
        match role {
            Role::Instructions => return,
            Role::User if !message.text.is_blank() => {
                self.user.append(&message.text, '\n', wants.user);
                if message.is_result {
                    self.beside = bounded(message.text, wants.last);
                } else {
                    self.turn(message.text, wants);
                }
            }
            Role::User | Role::Tool => {}
            Role::Model => self.is_answered = true,
        }
        self.is_tool_loop = role == Role::Tool || message.is_result || message.is_call;
    }

    fn turn(&mut self, text: Kept, wants: Wants) {
        self.turns = self.turns.saturating_add(1);
        let before = std::mem::replace(&mut self.last, bounded(text, wants.last.max(wants.earlier)));
        if std::mem::take(&mut self.is_answered) && self.turns > 1 && wants.earlier > 0 {
            if self.earlier.len() == MOST_EARLIER {
                self.earlier.pop_front();
            }
            self.earlier.push_back(bounded(before, wants.earlier));
        }
    }
}

/// A text, of which nothing is kept if it is longer than the bound.
fn bounded(mut text: Kept, most: usize) -> Kept {
    if text.text.len() > most {
        text.give_up();
    }
    text
}

/// True if requests of the operation have a conversation.
pub(super) fn has_conversation(operation: Operation) -> bool {
    !members(operation).is_empty()
}

/// Members of a body in which the API of an operation writes the conversation, with their meaning.
fn members(operation: Operation) -> &'static [(&'static str, Member)] {
    match operation {
        Operation::Chat => &[("messages", Member::Messages)],
        Operation::Messages => &[("messages", Member::Messages), ("system", Member::Instructions)],
        Operation::Completions => &[("prompt", Member::Prompt), ("system", Member::Instructions)],
        Operation::Responses => &[("input", Member::Messages), ("instructions", Member::Instructions)],
        // In the form of either API.
        Operation::CountTokens => &[
            ("messages", Member::Messages),
            ("system", Member::Instructions),
            ("input", Member::Messages),
            ("instructions", Member::Instructions),
        ],
        _ => &[],
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    /// Messages, or the text of one of the user.
    Messages,
    /// Text of the user, perhaps in parts.
    Prompt,
    Instructions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Instructions,
    User,
    Model,
    Tool,
}

/// Message, or part of one.
#[derive(Debug, Default)]
struct Part {
    kind: String,
    role: String,
    text: Kept,
    /// Text of the results of tools.
    result: Kept,
    /// Text under `data`, which is one only in a source of that kind.
    data: Kept,
    /// Characters of that.
    data_characters: u64,
    characters: u64,
    is_result: bool,
    is_call: bool,
    /// True if there are numbers in place of text.
    is_opaque: bool,
}

impl Part {
    fn of(text: &str, most: usize) -> Self {
        let mut part = Self { characters: characters(text), ..Self::default() };
        part.text.push(text, SEAM, most);
        part
    }

    fn merge(&mut self, inner: Self, most: usize) {
        self.text.append(&inner.text, SEAM, most);
        self.result.append(&inner.result, SEAM, most);
        self.characters = self.characters.saturating_add(inner.characters);
        self.is_result |= inner.is_result;
        self.is_call |= inner.is_call;
        self.is_opaque |= inner.is_opaque;
    }

    /// Judges what the part is by its type, once all members were read.
    fn settled(mut self, most: usize) -> Self {
        let kind = self.kind.as_str();
        if kind == "text" {
            let data = std::mem::take(&mut self.data);
            self.characters = self.characters.saturating_add(self.data_characters);
            self.text.append(&data, SEAM, most);
        }
        let is_result =
            kind.ends_with("tool_result") || kind.ends_with("_call_output") || kind == "mcp_approval_response";
        self.is_call |= kind.ends_with("tool_use") || kind.ends_with("_call") || kind == "mcp_approval_request";
        if is_result {
            self.is_result = true;
            let text = std::mem::take(&mut self.text);
            self.result.append(&text, SEAM, most);
        }
        self
    }

    fn role(&self, default: Role) -> Role {
        match self.role.as_str() {
            "user" => Role::User,
            "assistant" | "model" => Role::Model,
            "tool" | "function" => Role::Tool,
            // Items of the Responses API that are no messages.
            "" if self.is_result => Role::Tool,
            "" if self.is_call || self.kind == "reasoning" => Role::Model,
            "" => default,
            _ => Role::Instructions,
        }
    }
}

fn characters(text: &str) -> u64 {
    u64::try_from(text.chars().count()).unwrap_or(u64::MAX)
}

struct Body<'c> {
    conversation: &'c mut Conversation,
    members: &'static [(&'static str, Member)],
    wants: Wants,
}

impl<'de> DeserializeSeed<'de> for Body<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Body<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (conversation, wants) = (self.conversation, self.wants);
        let mut seen = 0_u32;
        while let Some(key) = map.next_key_seed(Word)? {
            let Some((n, (_, member))) = (0..).zip(self.members).find(|(_, (name, _))| *name == key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            once(&mut seen, n)?;
            match member {
                Member::Messages => {
                    conversation.is_there = true;
                    map.next_value_seed(Messages { conversation: &mut *conversation, wants })?;
                }
                Member::Prompt => {
                    conversation.is_there = true;
                    let prompt = map.next_value_seed(PartSeed { most: wants.most() })?;
                    conversation.is_opaque = prompt.is_opaque;
                    conversation.add(prompt, Role::User, wants);
                }
                Member::Instructions => {
                    let instructions = map.next_value_seed(PartSeed { most: wants.most() })?;
                    conversation.add(Part { role: String::new(), ..instructions }, Role::Instructions, wants);
                }
            }
        }
        Ok(())
    }
}

/// Notes that the member of this number was read.
fn once<E: de::Error>(seen: &mut u32, number: u32) -> Result<(), E> {
    let bit = 1 << number;
    if *seen & bit != 0 {
        return Err(E::custom("a member appears twice"));
    }
    *seen |= bit;
    Ok(())
}

/// List of messages, or the text of one.
struct Messages<'c> {
    conversation: &'c mut Conversation,
    wants: Wants,
}

impl<'de> DeserializeSeed<'de> for Messages<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Messages<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("messages or a text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        self.conversation.add(Part::of(text, self.wants.most()), Role::User, self.wants);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(message) = list.next_element_seed(PartSeed { most: self.wants.most() })? {
            self.conversation.add(message, Role::User, self.wants);
        }
        Ok(())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.conversation.is_there = false;
        Ok(())
    }
}

/// Reads a message, a part of one, or a list of parts; `most` is the length of the longest text that is kept.
#[derive(Clone, Copy)]
struct PartSeed {
    most: usize,
}

impl<'de> DeserializeSeed<'de> for PartSeed {
    type Value = Part;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Part, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PartSeed {
    type Value = Part;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message, a text or parts of one")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Part, E> {
        Ok(Part::default())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Part, E> {
        Ok(Part { is_opaque: true, ..Part::default() })
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Part, E> {
        Ok(Part { is_opaque: true, ..Part::default() })
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Part, E> {
        Ok(Part { is_opaque: true, ..Part::default() })
    }

    fn visit_unit<E: de::Error>(self) -> Result<Part, E> {
        Ok(Part::default())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Part, E> {
        Ok(Part::of(text, self.most))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Part, A::Error> {
        let mut all = Part::default();
        while let Some(part) = list.next_element_seed(self)? {
            all.merge(part, self.most);
        }
        Ok(all)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Part, A::Error> {
        const READ: [&str; 9] =
            ["type", "role", "content", "text", "refusal", "output", "source", "data", "tool_calls"];
        let (mut part, mut seen) = (Part::default(), 0_u32);
        while let Some(key) = map.next_key_seed(Word)? {
            if let Some((n, _)) = (0..).zip(READ).find(|(_, name)| *name == key) {
                once(&mut seen, n)?;
            }
            match key.as_str() {
                "type" => part.kind = map.next_value_seed(Word)?,
                "role" => part.role = map.next_value_seed(Word)?,
                "content" | "text" | "refusal" | "output" | "source" => {
                    let inner = map.next_value_seed(self)?;
                    part.merge(inner, self.most);
                }
                "data" => {
                    let inner = map.next_value_seed(self)?;
                    (part.data, part.data_characters) = (inner.text, inner.characters);
                }
                "tool_calls" | "function_call" => part.is_call |= map.next_value_seed(IsSome)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(part.settled(self.most))
    }
}

/// Reads a short string; empty for a longer one and for anything else.
struct Word;

impl<'de> DeserializeSeed<'de> for Word {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Word {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<String, E> {
        Ok(String::new())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<String, E> {
        Ok(String::new())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<String, E> {
        Ok(String::new())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<String, E> {
        Ok(String::new())
    }

    fn visit_unit<E: de::Error>(self) -> Result<String, E> {
        Ok(String::new())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(if text.len() <= MOST_WORD { text.to_owned() } else { String::new() })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<String, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(String::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(String::new())
    }
}

/// Tells a value that is neither null nor empty.
struct IsSome;

impl<'de> DeserializeSeed<'de> for IsSome {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for IsSome {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: de::Error>(self, is: bool) -> Result<bool, E> {
        Ok(is)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_unit<E: de::Error>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<bool, E> {
        Ok(!text.is_empty())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<bool, A::Error> {
        let mut is_some = false;
        while list.next_element::<IgnoredAny>()?.is_some() {
            is_some = true;
        }
        Ok(is_some)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let mut is_some = false;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            is_some = true;
        }
        Ok(is_some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Wants = Wants { last: 100, user: 100, all: 100, earlier: 100 };

    fn read(operation: Operation, body: &str) -> Option<Conversation> {
        Conversation::read(operation, body.as_bytes(), ALL)
    }

    fn text(kept: &Kept) -> Result<String, NoText> {
        kept.read(100).map(Cow::into_owned)
    }

    #[test]
    fn conversations_of_all_apis_are_read() {
        for (operation, body) in [
            (
                Operation::Chat,
                r#"{"messages":[{"role":"system","content":"You."},{"role":"user","content":"One"},{"role":"assistant","content":"A"},{"content":[{"type":"text","text":"Hel"},{"type":"image_url","image_url":{"url":"x"}},{"text":"lo"}],"role":"user"}],"prompt":"other"}"#,
            ),
            (
                Operation::Messages,
                r#"{"system":[{"type":"text","text":"You."}],"messages":[{"role":"user","content":"One"},{"role":"assistant","content":[{"type":"text","text":"A"}]},{"role":"user","content":[{"type":"text","text":"Hel"},{"type":"document","source":{"data":"lo","type":"text"}}]}]}"#,
            ),
            (
                Operation::Responses,
                r#"{"instructions":"You.","input":[{"role":"user","content":"One"},{"type":"message","role":"assistant","content":[{"type":"output_text","text":"A"}]},{"role":"user","content":[{"type":"input_text","text":"Hel"},{"type":"input_text","text":"lo"}]}]}"#,
            ),
            (
                Operation::CountTokens,
                r#"{"system":"You.","messages":[{"role":"user","content":"One"},{"role":"assistant","content":"A"},{"role":"user","content":["Hel","lo"]}]}"#,
            ),
        ] {
            let found = read(operation, body).unwrap_or_else(|| panic!("{body}"));
            assert_eq!(text(&found.last), Ok("Hel\nlo".to_owned()), "{body}");
            assert_eq!(text(&found.user), Ok("One\nHel\nlo".to_owned()), "{body}");
            assert_eq!((found.characters, found.turns, found.is_tool_loop), (13, 2, false), "{body}");
            let earlier: Vec<_> = found.earlier.iter().map(|earlier| text(earlier).unwrap()).collect();
            assert_eq!(earlier, ["One"], "{body}");
            let all = text(&found.all).unwrap();
            let mut all: Vec<&str> = all.lines().collect();
            all.sort_unstable();
            assert_eq!(all, ["A", "Hel", "One", "You.", "lo"], "{body}");
        }
        for (operation, body) in [
            (Operation::Completions, r#"{"prompt":"Hello"}"#),
            (Operation::Completions, r#"{"system":"","prompt":["Hello"]}"#),
            (Operation::Responses, r#"{"input":"Hello"}"#),
        ] {
            let found = read(operation, body).unwrap_or_else(|| panic!("{body}"));
            assert_eq!((text(&found.last), found.turns, found.characters), (Ok("Hello".to_owned()), 1, 5), "{body}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_no_conversation() {
        let deep = format!("{{\"messages\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        for (operation, body) in [
            (Operation::Chat, "{}"),
            (Operation::Chat, "[1]"),
            (Operation::Chat, r#"{"messages":null}"#),
            (Operation::Chat, r#"{"messages":[{"role":"user","content":"a"}]"#),
            (Operation::Chat, r#"{"messages":[{"role":"user","content":"a"}]} {}"#),
            (Operation::Chat, r#"{"messages":[{"role":"user","content":"a","content":"b"}]}"#),
            (Operation::Chat, r#"{"messages":[{"role":"user","content":"a"}],"messages":[]}"#),
            (Operation::Chat, r#"{"prompt":"a"}"#),
            (Operation::Chat, &deep),
            (Operation::Completions, r#"{"prompt":[[1,2],[3]]}"#),
            (Operation::Completions, r#"{"prompt":["a",[3]]}"#),
            (Operation::Embeddings, r#"{"input":"a"}"#),
            (Operation::Other, r#"{"messages":[{"role":"user","content":"a"}]}"#),
        ] {
            assert_eq!(read(operation, body), None, "{}", &body[..body.len().min(80)]);
        }
        assert!(Conversation::read(Operation::Chat, b"\xff{}", ALL).is_none());
    }

    #[test]
    fn the_text_of_the_user_stays_in_a_tool_loop() {
        for (operation, body) in [
            (
                Operation::Chat,
                r#"{"messages":[{"role":"user","content":"Weather?"},{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]}]}"#,
            ),
            (
                Operation::Chat,
                r#"{"messages":[{"role":"user","content":"Weather?"},{"role":"assistant","tool_calls":[{"id":"1"}]},{"role":"tool","tool_call_id":"1","content":"Rain"}]}"#,
            ),
            (
                Operation::Messages,
                r#"{"messages":[{"role":"user","content":"Weather?"},{"role":"assistant","content":[{"type":"tool_use","id":"1","input":{"text":"x"}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"1","content":[{"type":"text","text":"Rain"}]},{"type":"text","text":"A reminder"}]}]}"#,
            ),
            (
                Operation::Responses,
                r#"{"input":[{"role":"user","content":"Weather?"},{"type":"function_call","call_id":"1","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"1","output":"Rain"}]}"#,
            ),
            (
                Operation::Responses,
                r#"{"input":[{"role":"user","content":"Weather?"},{"type":"function_call","call_id":"1","name":"f","arguments":"{}"}]}"#,
            ),
        ] {
            let found = read(operation, body).unwrap_or_else(|| panic!("{body}"));
            assert_eq!((text(&found.last), found.turns), (Ok("Weather?".to_owned()), 1), "{body}");
            assert!(found.is_tool_loop, "{body}");
            if body.contains("Rain") {
                assert!(text(&found.all).unwrap().contains("Rain"), "{body}");
                assert!(!text(&found.user).unwrap().contains("Rain"), "{body}");
            }
        }
        let ended = r#"{"messages":[{"role":"user","content":"Weather?"},{"role":"assistant","tool_calls":[{"id":"1"}]},{"role":"tool","content":"Rain"},{"role":"assistant","content":"It rains.","tool_calls":[]},{"role":"user","content":"Thanks"},{"role":"system","content":"Be brief."}]}"#;
        let found = read(Operation::Chat, ended).unwrap();
        assert_eq!((text(&found.last), found.is_tool_loop, found.turns), (Ok("Thanks".to_owned()), false, 2));
        // Without another text, that beside a result is the last.
        let beside = r#"{"messages":[{"role":"user","content":[{"type":"tool_result","content":"Rain"},{"type":"text","text":"And?"}]}]}"#;
        let found = read(Operation::Messages, beside).unwrap();
        assert_eq!((text(&found.last), found.turns, found.is_tool_loop), (Ok("And?".to_owned()), 0, true));
    }

    #[test]
    fn texts_are_kept_whole_or_not_at_all() {
        let long = "x".repeat(101);
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":"{long}"}},{{"role":"assistant","content":"A"}},{{"role":"user","content":"short"}}]}}"#
        );
        let found = read(Operation::Chat, &body).unwrap();
        assert_eq!(text(&found.last), Ok("short".to_owned()));
        assert_eq!(found.last.parts(4), Err(NoText::TooLong));
        assert_eq!((text(&found.user), text(&found.all)), (Err(NoText::TooLong), Err(NoText::TooLong)));
        assert_eq!(text(found.earlier.front().unwrap()), Err(NoText::TooLong));
        assert_eq!(found.characters, 107);
        let blank = read(Operation::Chat, r#"{"messages":[{"role":"user","content":" \n"}]}"#).unwrap();
        assert_eq!((text(&blank.last), blank.turns), (Err(NoText::Absent), 0));
        let many: Vec<_> = (0..100)
            .flat_map(|n| {
                let user = serde_json::json!({"role": "user", "content": n.to_string()});
                [user, serde_json::json!({"role": "assistant", "content": "A"})]
            })
            .collect();
        let found = read(Operation::Chat, &serde_json::json!({"messages": many}).to_string()).unwrap();
        assert_eq!((found.turns, found.earlier.len()), (100, MOST_EARLIER));
        assert_eq!((found.last.parts(9), found.earlier.back().unwrap().parts(9)), (Ok("99"), Ok("98")));
    }
}
