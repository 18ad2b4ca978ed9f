//! Readers of the texts in requests and answers of the APIs of models, whatever their form: only what is said, and in what
//! turn. Unknown members are skipped, so a field that the gateway does not know hides nothing. Memory is bounded: of each text
//! the beginning is kept and the rest is counted.

use std::collections::VecDeque;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use spillway_patterns::{redacted, without_cut_end};

/// Bytes of a text that are kept.
pub(super) const MOST_TEXT: usize = 4 << 10;

/// Beginning of a text, with the length of all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Text {
    /// Beginning.
    pub start: String,
    /// Characters of the whole text.
    pub characters: u64,
}

impl Text {
    /// Appends a part.
    pub(super) fn push(&mut self, part: &str) {
        let room = MOST_TEXT.saturating_sub(self.start.len());
        let end = part.floor_char_boundary(room.min(part.len()));
        self.start.push_str(part.get(..end).unwrap_or_default());
        self.characters = self.characters.saturating_add(u64::try_from(part.chars().count()).unwrap_or(u64::MAX));
    }

    fn append(&mut self, other: &Self) {
        let all = self.characters.saturating_add(other.characters);
        self.push(&other.start);
        self.characters = all;
    }

    /// True if there is more than the beginning.
    pub(super) fn is_cut(&self) -> bool {
        self.characters > u64::try_from(self.start.chars().count()).unwrap_or(u64::MAX)
    }

    /// Beginning as it may be kept: of a text that was cut without its last part.
    pub(super) fn kept(&self, redacts: bool) -> String {
        let text = if self.is_cut() { without_cut_end(&self.start) } else { &self.start };
        if redacts { redacted(text) } else { text.to_owned() }
    }

    /// True if there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.characters == 0
    }
}

/// Text of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Prompt {
    /// Characters of all texts.
    pub characters: u64,
    /// Last text of the user.
    pub last: Text,
    /// Text of the user before it.
    pub before: Option<Text>,
    /// True if an assistant has answered between the two.
    pub is_answered: bool,
    /// True if an assistant has answered the last one.
    has_answer: bool,
    /// Last turns of the conversation; `None` where they are not asked for.
    pub turns: Option<VecDeque<Turn>>,
    /// Instructions beside the conversation.
    pub instructions: Text,
}

/// Text of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    /// Role as the request names it.
    pub role: Box<str>,
    /// Text.
    pub text: Text,
}

/// Turns of a conversation that are kept, the last ones.
const MOST_TURNS: usize = 64;

impl Prompt {
    fn turn(&mut self, role: Role, name: &str, text: Text) {
        self.characters = self.characters.saturating_add(text.characters);
        if role == Role::Instructions {
            self.instructions.append(&text);
        } else if let Some(turns) = &mut self.turns {
            if turns.len() == MOST_TURNS {
                turns.pop_front();
            }
            turns.push_back(Turn { role: name.into(), text: text.clone() });
        }
        match role {
            Role::User if !text.is_empty() => {
                let last = std::mem::replace(&mut self.last, text);
                self.before = Some(last).filter(|last| !last.is_empty());
                self.is_answered = std::mem::take(&mut self.has_answer);
            }
            Role::Assistant => self.has_answer = true,
            Role::User | Role::Other | Role::Instructions => {}
        }
    }

    /// Reads the body of a request; `None` for one that is no JSON object.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        Self::default().read_body(body)
    }

    /// As [`Self::read`], with the turns of the conversation.
    pub(super) fn read_turns(body: &[u8]) -> Option<Self> {
        Self { turns: Some(VecDeque::new()), ..Self::default() }.read_body(body)
    }

    fn read_body(self, body: &[u8]) -> Option<Self> {
        let mut prompt = self;
        let mut reader = serde_json::Deserializer::from_slice(body);
        Body(&mut prompt).deserialize(&mut reader).ok()?;
        Some(prompt)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    User,
    Assistant,
    Other,
    /// Instructions beside the conversation.
    Instructions,
}

impl Role {
    /// Name in OpenTelemetry's conventions.
    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Other | Self::Instructions => "system",
        }
    }
}

/// Text of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Said {
    /// Text.
    pub text: Text,
    /// True if the answer says by its form that it is a refusal.
    pub is_refusal: bool,
    /// Sum of the log probabilities of its tokens.
    pub logprobs: f64,
    /// Tokens with a log probability.
    pub tokens: u64,
    /// Reason for which the answer ended, where it is told.
    pub finish: Option<String>,
}

impl Said {
    /// Reads an answer: one value, an event stream, or a value in each line. A part that cannot be read is left out.
    pub(super) fn read(body: &[u8]) -> Self {
        let mut said = Self::default();
        if said.value(body) {
            return said;
        }
        said = Self::default();
        for line in body.split(|byte| matches!(byte, b'\n' | b'\r')) {
            let line = line.strip_prefix(b"data:").unwrap_or(line).trim_ascii();
            if line.first() == Some(&b'{') {
                said.value(line);
            }
        }
        said
    }

    fn value(&mut self, json: &[u8]) -> bool {
        let Ok(chunk) = serde_json::from_slice::<Chunk>(json) else { return false };
        self.chunk(chunk);
        true
    }

    fn chunk(&mut self, chunk: Chunk) {
        // Events of the Responses API other than pieces of text repeat what came before, the last one all of it.
        let kind = chunk.kind.0.as_str();
        if kind.starts_with("response.") {
            if kind == "response.output_text.delta" {
                self.text.append(&chunk.delta.text);
            } else if kind == "response.refusal.delta" {
                self.refusal(&chunk.delta.text);
            }
            return;
        }
        for choice in chunk.choices.0.into_iter().chain([chunk.own]) {
            self.text.append(&choice.text);
            for message in [&choice.message, &choice.delta] {
                self.text.append(&message.text);
                self.refusal(&message.refusal);
            }
            self.logprobs += choice.logprobs.sum;
            self.tokens += choice.logprobs.tokens;
            self.finish = choice.finish.or(self.finish.take());
        }
        for message in [&chunk.message, &chunk.delta, &chunk.content, &chunk.output, &chunk.response] {
            self.text.append(&message.text);
            self.refusal(&message.refusal);
        }
        self.finish = chunk.delta.finish.or(self.finish.take());
    }

    fn refusal(&mut self, text: &Text) {
        if !text.is_empty() {
            self.is_refusal = true;
            self.text.append(text);
        }
    }
}

/// Body of a request.
struct Body<'p>(&'p mut Prompt);

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
        while let Some(key) = map.next_key::<Word>()? {
            match key.0.as_str() {
                // `documents` of reranking stand beside `query`, which is what the user asks.
                "messages" | "input" | "prompt" | "query" => {
                    map.next_value_seed(Turns { prompt: self.0, role: Role::User })?
                }
                "system" | "instructions" => {
                    map.next_value_seed(Turns { prompt: self.0, role: Role::Instructions })?;
                }
                "documents" => map.next_value_seed(Turns { prompt: self.0, role: Role::Other })?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Messages, texts, or tokens, of which only the texts are read.
struct Turns<'p> {
    prompt: &'p mut Prompt,
    /// Role of texts that name none.
    role: Role,
}

impl<'de> DeserializeSeed<'de> for Turns<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Visits of values without text.
macro_rules! without_text {
    ($value:expr) => {
        fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any value")
        }
    };
}

impl<'de> Visitor<'de> for Turns<'_> {
    type Value = ();
    without_text!(());
    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        let mut whole = Text::default();
        whole.push(text);
        self.prompt.turn(self.role, self.role.name(), whole);
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Turns { prompt: self.prompt, role: self.role })?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut role, mut text) = (self.role, Text::default());
        let mut name = None;
        while let Some(key) = map.next_key::<Word>()? {
            match key.0.as_str() {
                "role" => {
                    let word = map.next_value::<Word>()?.0;
                    role = match word.as_str() {
                        "user" | "human" => Role::User,
                        "assistant" | "model" => Role::Assistant,
                        _ => Role::Other,
                    };
                    name = Some(word).filter(|word| !word.is_empty());
                }
                "content" | "text" => text.append(&map.next_value::<Piece>()?.text),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        self.prompt.turn(role, name.as_deref().unwrap_or(role.name()), text);
        Ok(())
    }
}

/// Short string; empty for anything else.
#[derive(Default)]
struct Word(String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Word;
            without_text!(Word::default());
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Word, E> {
                Ok(Word(text.get(..text.floor_char_boundary(64)).unwrap_or_default().to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Word, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Word::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Word, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Word::default())
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// Text in a string, in parts, or in a message.
#[derive(Default)]
struct Piece {
    text: Text,
    refusal: Text,
    finish: Option<String>,
}

impl<'de> Deserialize<'de> for Piece {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Piece;
            without_text!(Piece::default());
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Piece, E> {
                let mut piece = Piece::default();
                piece.text.push(text);
                Ok(piece)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Piece, A::Error> {
                let mut all = Piece::default();
                while let Some(part) = list.next_element::<Piece>()? {
                    all.text.append(&part.text);
                    all.refusal.append(&part.refusal);
                }
                Ok(all)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Piece, A::Error> {
                let mut all = Piece::default();
                while let Some(key) = map.next_key::<Word>()? {
                    match key.0.as_str() {
                        "content" | "text" => {
                            let part = map.next_value::<Piece>()?;
                            all.text.append(&part.text);
                            all.refusal.append(&part.refusal);
                        }
                        "refusal" => all.refusal.append(&map.next_value::<Piece>()?.text),
                        "stop_reason" => all.finish = Some(map.next_value::<Word>()?.0).filter(|word| !word.is_empty()),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// Value of an answer: all of it, or an event of its stream. A member that is of another form than expected has no text.
#[derive(Default)]
struct Chunk {
    kind: Word,
    choices: Choices,
    /// Members of a choice that stand beside the choices, in APIs without them.
    own: Choice,
    message: Piece,
    delta: Piece,
    content: Piece,
    output: Piece,
    response: Piece,
}

impl<'de> Deserialize<'de> for Chunk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Chunk;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Chunk, A::Error> {
                let mut chunk = Chunk::default();
                while let Some(key) = map.next_key::<Word>()? {
                    match key.0.as_str() {
                        "type" => chunk.kind = map.next_value()?,
                        "choices" => chunk.choices = map.next_value()?,
                        "message" => chunk.message = map.next_value()?,
                        "delta" => chunk.delta = map.next_value()?,
                        "content" => chunk.content = map.next_value()?,
                        "output" => chunk.output = map.next_value()?,
                        "response" => chunk.response = map.next_value()?,
                        "logprobs" => chunk.own.logprobs = map.next_value()?,
                        "stop_reason" | "done_reason" => chunk.own.finish = finish(map.next_value()?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(chunk)
            }
        }
        deserializer.deserialize_map(Read)
    }
}

fn finish(word: Word) -> Option<String> {
    Some(word.0).filter(|word| !word.is_empty())
}

/// Choices, of which the first is read: others answer the same prompt.
#[derive(Default)]
struct Choices(Option<Choice>);

impl<'de> Deserialize<'de> for Choices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Choices;
            without_text!(Choices::default());
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Choices, E> {
                Ok(Choices::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Choices, A::Error> {
                let mut first = None;
                while let Some(choice) = list.next_element::<Choice>()? {
                    if choice.index == 0 && first.is_none() {
                        first = Some(choice);
                    }
                }
                Ok(Choices(first))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Choices, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Choices::default())
            }
        }
        deserializer.deserialize_any(Read)
    }
}

#[derive(Default)]
struct Choice {
    index: u64,
    text: Text,
    message: Piece,
    delta: Piece,
    logprobs: Logprobs,
    finish: Option<String>,
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Choice;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a choice")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Choice, A::Error> {
                let mut choice = Choice::default();
                while let Some(key) = map.next_key::<Word>()? {
                    match key.0.as_str() {
                        "index" => choice.index = map.next_value()?,
                        "text" => choice.text = map.next_value::<Piece>()?.text,
                        "message" => choice.message = map.next_value()?,
                        "delta" => choice.delta = map.next_value()?,
                        "logprobs" => choice.logprobs = map.next_value()?,
                        "finish_reason" => choice.finish = finish(map.next_value()?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(choice)
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// Log probabilities of the tokens of an answer, in any of the forms of the APIs: a list of objects with `logprob`, that list in
/// `content`, or numbers in `token_logprobs`.
#[derive(Default)]
struct Logprobs {
    sum: f64,
    tokens: u64,
}

impl Logprobs {
    fn add(&mut self, other: &Self) {
        self.sum += other.sum;
        self.tokens += other.tokens;
    }

    fn of(value: f64) -> Self {
        if value.is_finite() { Self { sum: value.clamp(-1e3, 0.0), tokens: 1 } } else { Self::default() }
    }
}

impl<'de> Deserialize<'de> for Logprobs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Logprobs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("log probabilities")
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Logprobs, E> {
                Ok(Logprobs::default())
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Logprobs, E> {
                Ok(Logprobs::default())
            }
            fn visit_unit<E: de::Error>(self) -> Result<Logprobs, E> {
                Ok(Logprobs::default())
            }
            #[allow(clippy::cast_precision_loss, reason = "a log probability is small")]
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Logprobs, E> {
                Ok(Logprobs::of(value as f64))
            }
            #[allow(clippy::cast_precision_loss, reason = "a log probability is small")]
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Logprobs, E> {
                Ok(Logprobs::of(value as f64))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Logprobs, E> {
                Ok(Logprobs::of(value))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Logprobs, A::Error> {
                let mut all = Logprobs::default();
                while let Some(one) = list.next_element::<Logprobs>()? {
                    all.add(&one);
                }
                Ok(all)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Logprobs, A::Error> {
                let mut all = Logprobs::default();
                while let Some(key) = map.next_key::<Word>()? {
                    match key.0.as_str() {
                        "content" | "logprob" | "token_logprobs" => all.add(&map.next_value::<Logprobs>()?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(json: &str) -> Prompt {
        Prompt::read(json.as_bytes()).unwrap()
    }

    #[test]
    fn prompts_of_all_apis_are_read() {
        for json in [
            r#"{"model":"m","messages":[{"role":"system","content":"You."},{"role":"user","content":"Hello"}]}"#,
            r#"{"messages":[{"content":[{"type":"text","text":"Hel"},{"type":"image_url","image_url":{"url":"x"}},{"text":"lo"}],"role":"user"}],"system":"You."}"#,
            r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"Hello"}]}],"instructions":"You."}"#,
            r#"{"input":"Hello","instructions":[{"text":"You."}]}"#,
            r#"{"prompt":"Hello","system":"You.","stream":true}"#,
            r#"{"input":["You.","Hello"]}"#,
            r#"{"query":"Hello","documents":[{"text":"You."}]}"#,
        ] {
            let read = prompt(json);
            assert_eq!((read.last.start.as_str(), read.characters), ("Hello", 9), "{json}");
        }
        assert_eq!(prompt(r#"{"input":[[1,2],[3]]}"#), Prompt::default());
        assert_eq!(Prompt::read(b"[1]"), None);
        assert_eq!(Prompt::read(b"\xff{}"), None);
        let deep = format!("{{\"messages\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(Prompt::read(deep.as_bytes()), None);
        let giant = format!("{{\"prompt\":\"{}\"}}", "ä".repeat(100_000));
        let read = prompt(&giant);
        assert_eq!((read.characters, read.last.start.len()), (100_000, MOST_TEXT));
    }

    #[test]
    fn turns_are_told_apart() {
        let read = prompt(
            r#"{"messages":[{"role":"user","content":"one"},{"role":"assistant","content":"a"},{"role":"user","content":"two"}]}"#,
        );
        assert_eq!(
            (read.before.unwrap().start.as_str(), read.last.start.as_str(), read.is_answered),
            ("one", "two", true)
        );
    }

    #[test]
    fn answers_of_all_apis_are_read_whole_and_streamed() {
        let stream = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hel\"}}]}\n\ndata: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"no\"}}]}\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"lo\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
        let responses = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"Hello\"}\n\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"content\":[{\"text\":\"Hello\"}]}]}}\n\n";
        let anthropic = "data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\n\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n";
        let ollama = "{\"message\":{\"role\":\"assistant\",\"content\":\"Hel\"},\"done\":false}\n{\"message\":{\"content\":\"lo\"},\"done\":true,\"done_reason\":\"stop\"}\n";
        for body in [
            r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"text":"Hello","finish_reason":"stop"}]}"#,
            stream,
            r#"{"output":[{"type":"reasoning"},{"type":"message","content":[{"type":"output_text","text":"Hello"}]}]}"#,
            responses,
            r#"{"type":"message","role":"assistant","content":[{"type":"text","text":"Hello"}],"stop_reason":"end_turn"}"#,
            anthropic,
            r#"{"message":{"role":"assistant","content":"Hello"},"done":true}"#,
            r#"{"response":"Hello","done":true}"#,
            ollama,
        ] {
            let said = Said::read(body.as_bytes());
            assert_eq!((said.text.start.as_str(), said.is_refusal), ("Hello", false), "{body}");
        }
        assert_eq!(Said::read(anthropic.as_bytes()).finish.as_deref(), Some("end_turn"));
        assert_eq!(Said::read(ollama.as_bytes()).finish.as_deref(), Some("stop"));
    }

    #[test]
    fn refusals_and_log_probabilities_are_read() {
        let said = Said::read(br#"{"choices":[{"message":{"content":null,"refusal":"No."}}]}"#);
        assert!(said.is_refusal && said.text.start == "No.");
        for body in [
            r#"{"choices":[{"logprobs":{"content":[{"token":"a","logprob":-1.0,"top_logprobs":[{"logprob":-9}]},{"logprob":-2}]}}]}"#,
            r#"{"choices":[{"text":"","logprobs":{"token_logprobs":[null,-1.0,-2.0]}}]}"#,
            r#"{"response":"","logprobs":[{"logprob":-1.0},{"logprob":-2.0}]}"#,
        ] {
            let said = Said::read(body.as_bytes());
            assert_eq!((said.logprobs, said.tokens), (-3.0, 2), "{body}");
        }
        let garbage: Vec<u8> = (0..=255).cycle().take(5_000).collect();
        assert_eq!(Said::read(&garbage), Said::default());
    }
}
