//! Facts of a request's body that routing, limits and telemetry need, whatever its dialect: the fields under the names that
//! OpenAI, vLLM, llama.cpp, TGI and Ollama know. Only ambiguity is refused here, where two readers could read different
//! values; the server that answers validates the rest.

mod form;
mod parts;
mod prefix;
mod scan;
mod stream_options;
#[cfg(test)]
mod tests;
mod without;

use std::borrow::Cow;
use std::ops::Range;

use spillway_filter::Refusal;

pub use form::{form_model, is_form, is_utf8};
use parts::PromptParts;
pub use prefix::prompt_prefix;
use scan::{NameMatch, Scan, ValueKind, Wrong, compare_names};
pub use stream_options::BodyEdit;
pub use without::without;

use super::refusals::duplicate;

/// Longest name of a model in bytes, because the name becomes part of logs, spans and messages.
const MAX_MODEL_BYTES: usize = 256;

/// Facts of a body that the gateway needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Peek<'a> {
    /// Model that the body names.
    pub model: Option<Cow<'a, str>>,
    /// Range of the value of `model` in the body.
    pub model_at: Option<Range<usize>>,
    /// True if the answer is wanted as a stream; `None` where the body does not say.
    pub stream: Option<bool>,
    /// Edit by which the body of a stream asks for its usage; `None` where it asks already, or for no stream.
    pub usage_edit: Option<BodyEdit>,
    /// Most tokens of one answer: the largest number under any name that servers know.
    pub max_tokens: Option<u64>,
    /// Answers that a server may write: `n` or `best_of` for each prompt; 1 at least.
    pub answers: u64,
    /// Text of the prompt in bytes.
    pub prompt_bytes: u64,
    /// Images in the prompt.
    pub images: u64,
    /// Sounds in the prompt.
    pub sounds: u64,
}

/// Meaning of a field for the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Model,
    Stream,
    /// Options of a stream, of which `include_usage` is read. They must not appear twice, because servers act on them.
    StreamOptions,
    /// Object with options, of which Ollama's `num_predict` is read.
    Options,
    /// Most tokens of an answer.
    MaxTokens,
    /// Number of answers.
    Answers,
    /// Prompt, or list of prompts.
    Prompt,
    /// Text that a model reads.
    Text,
    /// JSON that a model reads as it is.
    Json,
}

/// Fields that are read. Of the names for the most tokens of an answer, the last three are those of llama.cpp, TGI and
/// Ollama.
const FIELDS: [(&str, Field); 22] = [
    ("model", Field::Model),
    ("stream", Field::Stream),
    ("stream_options", Field::StreamOptions),
    ("options", Field::Options),
    ("messages", Field::Text),
    ("prompt", Field::Prompt),
    ("input", Field::Text),
    ("instructions", Field::Text),
    ("system", Field::Text),
    ("query", Field::Text),
    ("documents", Field::Text),
    ("n", Field::Answers),
    ("best_of", Field::Answers),
    ("max_tokens", Field::MaxTokens),
    ("max_completion_tokens", Field::MaxTokens),
    ("max_output_tokens", Field::MaxTokens),
    ("n_predict", Field::MaxTokens),
    ("max_new_tokens", Field::MaxTokens),
    ("num_predict", Field::MaxTokens),
    ("suffix", Field::Text),
    ("tools", Field::Json),
    ("functions", Field::Json),
];

/// Bits of the fields of [`FIELDS`] whose names have this length.
#[allow(clippy::indexing_slicing, reason = "a wrong index fails the build")]
const LENGTHS: [u32; scan::LONGEST_NAME + 1] = {
    let mut lengths = [0; scan::LONGEST_NAME + 1];
    let mut index = 0;
    while index < FIELDS.len() {
        lengths[FIELDS[index].0.len()] |= 1 << index;
        index += 1;
    }
    lengths
};

/// True if a reader that ignores the Content-Type could parse the body as a JSON object. The reader may guess the encoding
/// by the first bytes (RFC 4627, 3) and skip a byte order mark.
pub fn looks_like_json(body: &[u8]) -> bool {
    let blank = |byte: &&u8| matches!(**byte, b' ' | b'\n' | b'\t' | b'\r' | 0 | 0xEF | 0xBB | 0xBF | 0xFE | 0xFF);
    body.iter().find(|byte| !blank(byte)) == Some(&b'{')
}

/// Reads the facts of a body, which must be one JSON object. A field that is read must not appear twice, because a server
/// could read the other value. With `is_strict`, names and values that some servers read and the gateway does not are
/// refused too.
pub fn peek(body: &[u8], is_strict: bool) -> Result<Peek<'_>, Refusal> {
    let mut reader =
        BodyReader { is_strict, peek: Peek { answers: 1, ..Peek::default() }, seen: 0, prompts: 1, wrong: None };
    match reader.read(body) {
        Ok(()) => {}
        Err(NotRead::NoObject) => return Err(Refusal::invalid("invalid_json", "The body must be a JSON object.")),
        Err(NotRead::Wrong(wrong)) => {
            let message = format!("The body is not valid JSON: {}.", wrong.in_body(body));
            return Err(Refusal::invalid("invalid_json", message));
        }
    }
    match reader.wrong {
        Some(refusal) => Err(refusal),
        None => {
            if reader.peek.stream != Some(true) {
                reader.peek.usage_edit = None;
            }
            reader.peek.answers = reader.peek.answers.saturating_mul(reader.prompts);
            Ok(reader.peek)
        }
    }
}

enum NotRead {
    NoObject,
    Wrong(Wrong),
}

impl From<Wrong> for NotRead {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong)
    }
}

struct BodyReader<'a> {
    is_strict: bool,
    peek: Peek<'a>,
    /// Bit for each field of [`FIELDS`] that the body has.
    seen: u32,
    prompts: u64,
    /// First invalid field. Reported only if the rest of the body is valid JSON.
    wrong: Option<Refusal>,
}

impl<'a> BodyReader<'a> {
    fn refuse(&mut self, refusal: Refusal) {
        self.wrong.get_or_insert(refusal);
    }

    fn read(&mut self, body: &'a [u8]) -> Result<(), NotRead> {
        let mut scan = Scan::new(body)?;
        if !matches!(scan.next(), Some(b'{')) {
            // Another JSON value and invalid JSON have errors of their own.
            scan.skip()?;
            scan.end()?;
            return Err(NotRead::NoObject);
        }
        scan.enter()?;
        self.peek.usage_edit = Some(stream_options::of_body(scan.at()));
        let mut is_first = true;
        while let Some((name, has_escapes)) = scan.name(is_first)? {
            is_first = false;
            self.check_name(&scan, &name, has_escapes);
            match scan.text(name, has_escapes).and_then(|name| self.field(&name)) {
                Some((name, field)) => self.value(&mut scan, name, field)?,
                None => {
                    scan.skip()?;
                }
            }
        }
        scan.end()?;
        Ok(())
    }

    /// Refuses names with control characters if `is_strict`, because readers in C end a name at its first zero. JSON can
    /// write control characters as escapes only.
    fn check_name(&mut self, scan: &Scan<'a>, name: &Range<usize>, has_escapes: bool) {
        if !(self.is_strict && has_escapes) {
            return;
        }
        let quoted = scan.slice(name.start - 1..name.end + 1);
        if serde_json::from_slice::<String>(quoted).is_ok_and(|name| name.chars().any(char::is_control)) {
            let message = "The body has a name with a control character, which some servers end there: write the name \
                           without it.";
            self.refuse(Refusal::invalid("ambiguous_parameter", message));
        }
    }

    /// Looks up the field of this name; `None` where its value is not to be read.
    fn field(&mut self, name: &str) -> Option<(&'static str, Field)> {
        // Only a name beyond ASCII can be longer than the one it folds to, so the length rules out most names.
        let of_length = |length| LENGTHS.get(length).copied().unwrap_or(0);
        let mut candidates = if name.is_ascii() { of_length(name.len()) } else { u32::MAX };
        while let Some(index) = candidates.checked_ilog2() {
            candidates ^= 1 << index;
            let Some((known, field)) = FIELDS.get(usize::try_from(index).unwrap_or(usize::MAX)) else { continue };
            match compare_names(name, known) {
                NameMatch::Same => {
                    let bit = 1 << index;
                    if self.seen & bit != 0 {
                        self.refuse(duplicate(known));
                        return None;
                    }
                    self.seen |= bit;
                    return Some((known, *field));
                }
                NameMatch::Folded if self.is_strict => {
                    self.refuse(folded(name, known));
                    return None;
                }
                NameMatch::Folded => return None,
                NameMatch::Other => {}
            }
        }
        None
    }

    fn value(&mut self, scan: &mut Scan<'a>, name: &'static str, field: Field) -> Result<(), Wrong> {
        scan.next();
        let start = scan.at();
        match field {
            Field::Prompt | Field::Text => {
                let mut parts = PromptParts::default();
                scan.count(&mut parts)?;
                self.peek.prompt_bytes = self.peek.prompt_bytes.saturating_add(parts.text);
                self.peek.images = self.peek.images.saturating_add(parts.images);
                self.peek.sounds = self.peek.sounds.saturating_add(parts.sounds);
                if field == Field::Prompt {
                    self.prompts = parts.texts.max(1);
                }
            }
            Field::Model => {
                let kind = scan.skip()?;
                let at = start..scan.at();
                match model_value(scan.slice(at.clone()), kind, name, self.is_strict) {
                    Ok(model) => (self.peek.model, self.peek.model_at) = (model, Some(at)),
                    Err(refusal) => self.refuse(refusal),
                }
            }
            Field::Stream => {
                if let ValueKind::Bool(stream) = scan.skip()? {
                    self.peek.stream = Some(stream);
                }
            }
            Field::StreamOptions => {
                let kind = scan.skip()?;
                let at = start..scan.at();
                self.peek.usage_edit = stream_options::of_options(scan.slice(at.clone()), at, kind);
            }
            Field::Options => {
                if scan.skip()? == ValueKind::Object {
                    let nested = max_tokens_within(scan.slice(start..scan.at()));
                    self.peek.max_tokens = self.peek.max_tokens.max(nested);
                }
            }
            Field::Json => {
                if scan.skip()? != ValueKind::Null {
                    let bytes = u64::try_from(scan.at().saturating_sub(start)).unwrap_or(u64::MAX);
                    self.peek.prompt_bytes = self.peek.prompt_bytes.saturating_add(bytes);
                }
            }
            Field::MaxTokens | Field::Answers => {
                let count = match scan.skip()? {
                    ValueKind::Number => count(scan.slice(start..scan.at())),
                    ValueKind::Null => None,
                    // Some readers convert "900" to 900, and others `true` to 1.
                    _ if self.is_strict => {
                        let message = format!("`{name}` must be a whole number.");
                        self.refuse(Refusal::invalid("invalid_type", message).param(name));
                        None
                    }
                    _ => None,
                };
                if field == Field::Answers {
                    self.peek.answers = self.peek.answers.max(count.unwrap_or(1));
                } else {
                    self.peek.max_tokens = self.peek.max_tokens.max(count);
                }
            }
        }
        Ok(())
    }
}

/// Name of a model as the value of a field; `None` for null.
fn model_value<'a>(
    raw: &'a [u8],
    kind: ValueKind,
    field: &'static str,
    is_strict: bool,
) -> Result<Option<Cow<'a, str>>, Refusal> {
    let name = match kind {
        ValueKind::Null => return Ok(None),
        // An escape has up to six bytes and decodes to at least one.
        ValueKind::Text(_) if raw.len() > MAX_MODEL_BYTES * 6 + 2 => None,
        ValueKind::Text(false) => {
            raw.get(1..raw.len() - 1).and_then(|name| std::str::from_utf8(name).ok()).map(Cow::Borrowed)
        }
        ValueKind::Text(true) => serde_json::from_slice::<String>(raw).ok().map(Cow::Owned),
        _ => return Err(wrong_model("invalid_type", "a string", field)),
    };
    let name = name.ok_or_else(|| too_long(field))?;
    check_value(&name, is_strict, field)?;
    Ok(Some(name))
}

/// Name in a body, and the range of the value that it was read from.
type PlacedName<'a> = (Cow<'a, str>, Range<usize>);

/// Model that the top level of a body names under `field`. The body has passed [`peek`]; a field that is
/// there twice or in another spelling is refused, because servers read one of them.
pub fn model_under<'a>(body: &'a [u8], field: &'static str) -> Result<Option<PlacedName<'a>>, Refusal> {
    let invalid = |wrong: Wrong| {
        Refusal::invalid("invalid_json", format!("The body is not valid JSON: {}.", wrong.in_body(body)))
    };
    let mut found = None;
    let mut scan = Scan::new(body).map_err(invalid)?;
    scan.next();
    scan.enter().map_err(invalid)?;
    let mut is_first = true;
    while let Some((name, has_escapes)) = scan.name(is_first).map_err(invalid)? {
        is_first = false;
        let name = scan.text(name, has_escapes);
        let is_same = match name.as_deref().map_or(NameMatch::Other, |name| compare_names(name, field)) {
            NameMatch::Other => false,
            NameMatch::Same => true,
            NameMatch::Folded => return Err(folded(name.as_deref().unwrap_or_default(), field)),
        };
        scan.next();
        let start = scan.at();
        let kind = scan.skip().map_err(invalid)?;
        if is_same && found.replace((start..scan.at(), kind)).is_some() {
            return Err(duplicate(field));
        }
    }
    let Some((at, kind)) = found else { return Ok(None) };
    let name = model_value(body.get(at.clone()).unwrap_or_default(), kind, field, true)?;
    Ok(name.map(|name| (name, at)))
}

/// Refusal of a field whose name servers that ignore case would read as this one.
fn folded(name: &str, known: &'static str) -> Refusal {
    let message = format!(
        "`{name}` is not `{known}`, but servers that ignore the case of names would read it as that: write `{known}`, or \
         leave it out."
    );
    Refusal::invalid("ambiguous_parameter", message).param(known)
}

fn wrong_model(code: &'static str, what: &str, field: &'static str) -> Refusal {
    Refusal::invalid(code, format!("`{field}` must be {what}.")).param(field)
}

fn too_long(field: &'static str) -> Refusal {
    wrong_model("invalid_value", &format!("at most {MAX_MODEL_BYTES} bytes long"), field)
}

/// Refuses names of models that are too long. With `is_strict` also names that some servers shorten: several trim blanks,
/// and readers in C end a text at its first zero.
pub(super) fn check_model(name: &str, is_strict: bool) -> Result<(), Refusal> {
    check_value(name, is_strict, "model")
}

fn check_value(name: &str, is_strict: bool, field: &'static str) -> Result<(), Refusal> {
    if name.len() > MAX_MODEL_BYTES {
        return Err(too_long(field));
    }
    if is_strict && (name.trim() != name || name.chars().any(char::is_control)) {
        let what = "a name without control characters, and without blanks around it";
        return Err(wrong_model("invalid_value", what, field));
    }
    Ok(())
}

/// Parses a number of tokens or answers. Servers read `1e2` and `100.0` as 100, and a negative number as no bound, which is
/// `None` here.
fn count(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(count) = text.parse::<u64>() {
        return Some(count);
    }
    let number: f64 = text.parse().ok()?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not below zero; a cast saturates")]
    (number >= 0.0).then(|| number.ceil() as u64)
}

/// Most tokens of an answer by the `num_predict` of an object that was passed over.
fn max_tokens_within(options: &[u8]) -> Option<u64> {
    let mut scan = Scan::new(options).ok()?;
    scan.enter().ok()?;
    let (mut most, mut is_first) = (None, true);
    while let Ok(Some((name, has_escapes))) = scan.name(is_first) {
        is_first = false;
        let is_count = scan.text(name, has_escapes).is_some_and(|name| name == "num_predict");
        scan.next();
        let start = scan.at();
        if scan.skip().ok()? == ValueKind::Number && is_count {
            most = most.max(count(scan.slice(start..scan.at())));
        }
    }
    most
}

/// Range of the value of `model` in a body that the gateway wrote.
pub(in crate::protocol) fn model_at(body: &[u8]) -> Option<Range<usize>> {
    peek(body, false).ok()?.model_at
}
