//! A JSON reader that takes bytes as they come, keeps nothing but the token it is in (cut at 256 bytes), and reports the
//! few values of OpenAI's answers that telemetry and limits need. It judges nothing: what is no JSON tells nothing.
//! It allocates only for a value that it reports.

use crate::protocol::chat::{Observation, ObservedError, Usage};

/// Containers within each other whose place is known; what is deeper is only counted.
/// `choices`, a choice, its delta and the list of tool calls are the deepest that matter.
const PLACES: usize = 5;

/// Longest key or value that is read.
const MAX_TOKEN: usize = 256;

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Choices,
    Choice,
    /// `delta` of a stream or `message` of a whole answer.
    Delta,
    ToolCalls,
    Usage,
    Details,
    Error,
    Other,
}

/// A key that means something in some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Id,
    Model,
    Choices,
    Delta,
    FinishReason,
    /// Text of the answer, under any of its names.
    Content,
    ToolCalls,
    Usage,
    PromptTokens,
    CompletionTokens,
    Details,
    CachedTokens,
    ReasoningTokens,
    Error,
    Kind,
    Code,
    Other,
}

impl Key {
    fn of(name: &[u8]) -> Self {
        match name {
            b"id" => Self::Id,
            b"model" => Self::Model,
            b"choices" => Self::Choices,
            b"delta" | b"message" => Self::Delta,
            b"finish_reason" => Self::FinishReason,
            b"content" | b"text" | b"reasoning_content" | b"reasoning" | b"refusal" => Self::Content,
            b"tool_calls" => Self::ToolCalls,
            b"usage" => Self::Usage,
            b"prompt_tokens" => Self::PromptTokens,
            b"completion_tokens" => Self::CompletionTokens,
            b"prompt_tokens_details" | b"completion_tokens_details" => Self::Details,
            b"cached_tokens" => Self::CachedTokens,
            b"reasoning_tokens" => Self::ReasoningTokens,
            b"error" => Self::Error,
            b"type" => Self::Kind,
            b"code" => Self::Code,
            _ => Self::Other,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Between tokens.
    Between,
    /// In a string; whether the last byte was a backslash.
    Text { escaped: bool },
    /// In a number, `true`, `false` or `null`.
    Bare,
}

/// Reads one JSON value after another.
#[derive(Debug)]
pub(super) struct Scanner {
    mode: Mode,
    /// Containers that are open, also those whose place is not known.
    depth: usize,
    places: [(Place, bool); PLACES],
    key: Key,
    expects_key: bool,
    /// Whether the string being read is kept, and what was kept of the token.
    keeps: bool,
    token: [u8; MAX_TOKEN],
    /// Length of the token, also of what was not kept.
    length: usize,
    usage: Usage,
    has_usage: bool,
    /// The text or the tool calls of an answer have appeared.
    pub(super) has_content: bool,
    /// A whole object has been read.
    pub(super) is_complete: bool,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            mode: Mode::Between,
            depth: 0,
            places: [(Place::Other, false); PLACES],
            key: Key::Other,
            expects_key: false,
            keeps: false,
            token: [0; MAX_TOKEN],
            length: 0,
            usage: Usage::default(),
            has_usage: false,
            has_content: false,
            is_complete: false,
        }
    }
}

impl Scanner {
    /// Begins anew; the token's bytes need no clearing.
    pub(super) fn reset(&mut self) {
        self.mode = Mode::Between;
        self.depth = 0;
        self.key = Key::Other;
        self.expects_key = false;
        self.has_content = false;
        self.is_complete = false;
    }

    /// Reads a part.
    pub(super) fn feed(&mut self, mut part: &[u8], seen: &mut Observation) {
        while let Some((&byte, rest)) = part.split_first() {
            match self.mode {
                Mode::Between => {
                    self.between(byte, seen);
                    part = rest;
                }
                Mode::Text { escaped: true } => {
                    self.keep(&[byte]);
                    self.mode = Mode::Text { escaped: false };
                    part = rest;
                }
                Mode::Text { escaped: false } => {
                    let end = memchr::memchr2(b'"', b'\\', part).unwrap_or(part.len());
                    let (text, tail) = part.split_at_checked(end).unwrap_or((part, b""));
                    self.keep(text);
                    part = match tail.split_first() {
                        None => tail,
                        Some((b'"', after)) => {
                            self.mode = Mode::Between;
                            self.text(seen);
                            after
                        }
                        Some((backslash, after)) => {
                            self.keep(&[*backslash]);
                            self.mode = Mode::Text { escaped: true };
                            after
                        }
                    };
                }
                Mode::Bare => {
                    if matches!(byte, b',' | b']' | b'}' | b':' | b'"' | b' ' | b'\t' | b'\n' | b'\r' | b'[' | b'{') {
                        self.mode = Mode::Between;
                        self.bare(seen);
                    } else {
                        self.keep(&[byte]);
                        part = rest;
                    }
                }
            }
        }
    }

    fn between(&mut self, byte: u8, seen: &mut Observation) {
        match byte {
            b'"' => {
                self.mode = Mode::Text { escaped: false };
                self.length = 0;
                self.keeps = self.is_wanted();
            }
            b'{' | b'[' => self.open(byte == b'{', seen),
            b'}' | b']' => self.close(seen),
            b',' => self.expects_key = self.top().is_some_and(|(_, is_object)| is_object),
            b':' => self.expects_key = false,
            b' ' | b'\t' | b'\n' | b'\r' => {}
            _ => {
                self.mode = Mode::Bare;
                self.length = 0;
                self.keeps = true;
                self.keep(&[byte]);
            }
        }
    }

    /// The container that is open, where its place is known.
    fn top(&self) -> Option<(Place, bool)> {
        self.places.get(self.depth.checked_sub(1)?).copied()
    }

    /// Whether the string that begins is worth keeping. Of content only the length matters.
    fn is_wanted(&self) -> bool {
        self.top().is_some_and(|(place, _)| {
            self.expects_key
                || matches!(
                    (place, self.key),
                    (Place::Root, Key::Id | Key::Model)
                        | (Place::Choice, Key::FinishReason)
                        | (Place::Error, Key::Kind | Key::Code)
                )
        })
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.keeps
            && let Some(room) = self.token.get_mut(self.length..)
        {
            for (to, from) in room.iter_mut().zip(bytes) {
                *to = *from;
            }
        }
        self.length = self.length.saturating_add(bytes.len());
    }

    /// The token, unless it was too long to be kept.
    fn token(&self) -> Option<&[u8]> {
        self.token.get(..self.length).filter(|_| self.keeps)
    }

    fn open(&mut self, is_object: bool, seen: &mut Observation) {
        let place = match (self.top().map(|(place, _)| place), self.key) {
            (None, _) if self.depth == 0 && is_object => Place::Root,
            (Some(Place::Root), Key::Choices) if !is_object => Place::Choices,
            (Some(Place::Root), Key::Usage) if is_object => {
                self.usage = Usage::default();
                self.has_usage = false;
                Place::Usage
            }
            (Some(Place::Root), Key::Error) if is_object => {
                seen.error.get_or_insert_with(ObservedError::default);
                Place::Error
            }
            (Some(Place::Choices), _) if is_object => Place::Choice,
            (Some(Place::Choice), Key::Delta) if is_object => Place::Delta,
            (Some(Place::Delta), Key::ToolCalls) if !is_object => Place::ToolCalls,
            (Some(Place::ToolCalls), _) if is_object => {
                self.has_content = true;
                Place::Other
            }
            (Some(Place::Usage), Key::Details) if is_object => Place::Details,
            _ => Place::Other,
        };
        if let Some(slot) = self.places.get_mut(self.depth) {
            *slot = (place, is_object);
        }
        self.depth = self.depth.saturating_add(1);
        self.key = Key::Other;
        self.expects_key = is_object;
    }

    fn close(&mut self, seen: &mut Observation) {
        let closed = self.top().map(|(place, _)| place);
        self.depth = self.depth.saturating_sub(1);
        self.key = Key::Other;
        self.expects_key = false;
        match closed {
            Some(Place::Root) => self.is_complete = true,
            // The last one counts: some servers tell it anew with every event.
            Some(Place::Usage) if self.has_usage => seen.usage = Some(self.usage),
            _ => {}
        }
    }

    /// A string has ended.
    fn text(&mut self, seen: &mut Observation) {
        let Some((place, is_object)) = self.top() else { return };
        if self.expects_key && is_object {
            self.key = self.token().map_or(Key::Other, Key::of);
            return;
        }
        let text = || self.token().and_then(unescaped).filter(|text| !text.is_empty());
        match (place, self.key) {
            // The first ones count: they are the same in every event, or empty in a leading one.
            (Place::Root, Key::Id) if seen.id.is_none() => seen.id = text(),
            (Place::Root, Key::Model) if seen.model.is_none() => seen.model = text(),
            (Place::Choice, Key::FinishReason) => seen.finish_reason = text().or(seen.finish_reason.take()),
            (Place::Choice | Place::Delta, Key::Content) if self.length > 0 => self.has_content = true,
            (Place::Error, Key::Kind) => seen.error.get_or_insert_default().kind = text().unwrap_or_default(),
            (Place::Error, Key::Code) => seen.error.get_or_insert_default().code = text(),
            // Some servers tell an error as a plain text.
            (Place::Root, Key::Error) => {
                seen.error.get_or_insert_default();
            }
            _ => {}
        }
    }

    /// A number or a word has ended.
    fn bare(&mut self, seen: &mut Observation) {
        let Some((place, _)) = self.top() else { return };
        let word = || self.token().and_then(|token| std::str::from_utf8(token).ok());
        let number = || word().and_then(|word| word.parse::<u64>().ok());
        match (place, self.key) {
            (Place::Usage, Key::PromptTokens) => {
                if let Some(count) = number() {
                    self.usage.prompt_tokens = count;
                    self.has_usage = true;
                }
            }
            (Place::Usage, Key::CompletionTokens) => {
                if let Some(count) = number() {
                    self.usage.completion_tokens = count;
                    self.has_usage = true;
                }
            }
            (Place::Details, Key::CachedTokens) => self.usage.cached_tokens = number(),
            (Place::Details, Key::ReasoningTokens) => self.usage.reasoning_tokens = number(),
            (Place::Error, Key::Code) if number().is_some() => {
                let code = word().map(str::to_owned);
                seen.error.get_or_insert_default().code = code;
            }
            _ => {}
        }
    }
}

/// The text of a string token.
fn unescaped(token: &[u8]) -> Option<String> {
    if memchr::memchr(b'\\', token).is_none() {
        return std::str::from_utf8(token).ok().map(str::to_owned);
    }
    let mut quoted = Vec::with_capacity(token.len().saturating_add(2));
    quoted.push(b'"');
    quoted.extend_from_slice(token);
    quoted.push(b'"');
    serde_json::from_slice(&quoted).ok()
}
