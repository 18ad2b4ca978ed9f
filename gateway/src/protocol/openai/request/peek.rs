//! The few fields of a body that routing, limits and telemetry need, for any of OpenAI's APIs. It judges only what it
//! must to be read in one way by everybody; whether the rest makes sense is for the server that answers.

use std::borrow::Cow;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use spillway_filter::Refusal;

use super::parts::Parts;
use super::values::{Flat, Probe, Skip, Text};
use super::{duplicate, object};

/// Longest name of a model: it becomes part of logs, spans and messages.
const MAX_MODEL_BYTES: usize = 256;

/// What routing needs of a body.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Peek<'a> {
    /// The model named.
    pub model: Option<Cow<'a, str>>,
    /// Whether the answer shall be an event stream.
    pub stream: bool,
    /// Whether the stream shall end with its usage.
    pub include_usage: bool,
    /// Most tokens of the answer, under any of the names it has.
    pub max_tokens: Option<u64>,
    /// Text of the prompt in bytes.
    pub prompt_bytes: u64,
    /// Images in the prompt.
    pub images: u64,
    /// Sounds in the prompt.
    pub sounds: u64,
}

/// Reads what routing needs. The body must be one JSON object in which none of the fields read stands twice, so that no
/// server behind us can read another one than we did.
pub fn peek(body: &[u8]) -> Result<Peek<'_>, Refusal> {
    let mut reader = Reader::default();
    object(body, &mut reader)?;
    match reader.wrong {
        Some(refusal) => Err(refusal),
        None => Ok(reader.peek),
    }
}

#[derive(Default)]
struct Reader<'a> {
    peek: Peek<'a>,
    seen: Vec<&'static str>,
    wrong: Option<Refusal>,
}

impl<'a> Reader<'a> {
    fn refuse(&mut self, refusal: Refusal) {
        self.wrong.get_or_insert(refusal);
    }

    fn model(&mut self, value: Probe<'a>) {
        match value {
            Probe::Null => {}
            Probe::Text(name) if name.len() <= MAX_MODEL_BYTES => self.peek.model = Some(name),
            Probe::Text(_) => self.refuse(
                Refusal::invalid("invalid_value", format!("`model` must be at most {MAX_MODEL_BYTES} bytes long."))
                    .param("model"),
            ),
            _ => self.refuse(Refusal::invalid("invalid_type", "`model` must be a string.").param("model")),
        }
    }
}

/// The fields that are read; the name is what a duplicate is known by.
fn known(key: &str) -> Option<&'static str> {
    const KNOWN: [&str; 11] = [
        "model",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "messages",
        "prompt",
        "input",
        "query",
        "documents",
    ];
    KNOWN.into_iter().find(|known| *known == key)
}

impl<'a> Visitor<'a> for &mut Reader<'a> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }
    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(key)) = map.next_key()? {
            let Some(name) = known(&key) else {
                map.next_value::<Skip>()?;
                continue;
            };
            if self.seen.contains(&name) {
                self.refuse(duplicate(name));
                map.next_value::<Skip>()?;
                continue;
            }
            self.seen.push(name);
            match name {
                "messages" | "prompt" | "input" | "query" | "documents" => {
                    let parts: Parts = map.next_value()?;
                    self.peek.prompt_bytes = self.peek.prompt_bytes.saturating_add(parts.text);
                    self.peek.images = self.peek.images.saturating_add(parts.images);
                    self.peek.sounds = self.peek.sounds.saturating_add(parts.sounds);
                }
                "model" => {
                    let value = map.next_value()?;
                    self.model(value);
                }
                "stream" => self.peek.stream = map.next_value::<Probe<'a>>()? == Probe::Bool(true),
                "stream_options" => {
                    let options: Probe<'a> = map.next_value()?;
                    self.peek.include_usage = options.field("include_usage") == Some(&Flat::Bool(true));
                }
                // Where several are given, the newest name wins, as servers have it.
                newest => match map.next_value::<Probe<'a>>()? {
                    Probe::Unsigned(count) if newest != "max_tokens" || self.peek.max_tokens.is_none() => {
                        self.peek.max_tokens = Some(count);
                    }
                    _ => {}
                },
            }
        }
        Ok(())
    }
}
