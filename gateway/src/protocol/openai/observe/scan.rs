//! Streaming JSON reader that reports the few values of OpenAI's answers that telemetry and limits need. It keeps nothing
//! but the token that it is in, cut at 256 bytes. Invalid JSON is no error and reports nothing. Memory is allocated only for
//! a value that is reported.

use crate::protocol::chat::{Observation, ObservedError, Usage};

/// Nested containers whose meaning is tracked; deeper ones are only counted. The deepest that matter are the root,
/// `choices`, a choice, its delta and the list of tool calls.
const TRACKED_DEPTH: usize = 5;

/// Longest key or value that is read, in bytes. Ids and model names are shorter.
const MAX_TOKEN: usize = 256;

/// Meaning of a list or object, by its position in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
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

/// Key that means something in some container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KnownKey {
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

impl KnownKey {
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
    /// In a string; `escaped` after a backslash.
    Text { escaped: bool },
    /// In a number, `true`, `false` or `null`.
    Bare,
}

/// Reader of one JSON value after another.
#[derive(Debug)]
pub(super) struct Scanner {
    mode: Mode,
    /// Open containers, also those too deep to be tracked.
    depth: usize,
    containers: [(Container, bool); TRACKED_DEPTH],
    key: KnownKey,
    expects_key: bool,
    /// True if the token being read is kept in `token`.
    keeps: bool,
    /// First bytes of the token being read.
    token: [u8; MAX_TOKEN],
    /// Length of the token, also of what was not kept.
    length: usize,
    usage: Usage,
    has_usage: bool,
    /// True once the text or the tool calls of an answer have appeared.
    pub(super) has_content: bool,
    /// True once a whole object has been read.
    pub(super) is_complete: bool,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            mode: Mode::Between,
            depth: 0,
            containers: [(Container::Other, false); TRACKED_DEPTH],
            key: KnownKey::Other,
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
    /// Prepares for the next value. The bytes of the token need no clearing.
    pub(super) fn reset(&mut self) {
        self.mode = Mode::Between;
        self.depth = 0;
        self.key = KnownKey::Other;
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

    /// Innermost open container, where it is tracked.
    fn top(&self) -> Option<(Container, bool)> {
        self.containers.get(self.depth.checked_sub(1)?).copied()
    }

    /// True if the string that begins is to be kept. Of content only the length matters.
    fn is_wanted(&self) -> bool {
        self.top().is_some_and(|(container, _)| {
            self.expects_key
                || matches!(
                    (container, self.key),
                    (Container::Root, KnownKey::Id | KnownKey::Model)
                        | (Container::Choice, KnownKey::FinishReason)
                        | (Container::Error, KnownKey::Kind | KnownKey::Code)
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

    /// Token that has been read, unless it was too long to be kept.
    fn token(&self) -> Option<&[u8]> {
        self.token.get(..self.length).filter(|_| self.keeps)
    }

    fn open(&mut self, is_object: bool, seen: &mut Observation) {
        let container = match (self.top().map(|(container, _)| container), self.key) {
            (None, _) if self.depth == 0 && is_object => Container::Root,
            (Some(Container::Root), KnownKey::Choices) if !is_object => Container::Choices,
            (Some(Container::Root), KnownKey::Usage) if is_object => {
                self.usage = Usage::default();
                self.has_usage = false;
                Container::Usage
            }
            (Some(Container::Root), KnownKey::Error) if is_object => {
                seen.error.get_or_insert_with(ObservedError::default);
                Container::Error
            }
            (Some(Container::Choices), _) if is_object => Container::Choice,
            (Some(Container::Choice), KnownKey::Delta) if is_object => Container::Delta,
            (Some(Container::Delta), KnownKey::ToolCalls) if !is_object => Container::ToolCalls,
            (Some(Container::ToolCalls), _) if is_object => {
                self.has_content = true;
                Container::Other
            }
            (Some(Container::Usage), KnownKey::Details) if is_object => Container::Details,
            _ => Container::Other,
        };
        if let Some(slot) = self.containers.get_mut(self.depth) {
            *slot = (container, is_object);
        }
        self.depth = self.depth.saturating_add(1);
        self.key = KnownKey::Other;
        self.expects_key = is_object;
    }

    fn close(&mut self, seen: &mut Observation) {
        let closed = self.top().map(|(container, _)| container);
        self.depth = self.depth.saturating_sub(1);
        self.key = KnownKey::Other;
        self.expects_key = false;
        match closed {
            Some(Container::Root) => self.is_complete = true,
            // The last one counts: some servers report the usage so far with every event.
            Some(Container::Usage) if self.has_usage => seen.usage = Some(self.usage),
            _ => {}
        }
    }

    /// A string has ended.
    fn text(&mut self, seen: &mut Observation) {
        let Some((container, is_object)) = self.top() else { return };
        if self.expects_key && is_object {
            self.key = self.token().map_or(KnownKey::Other, KnownKey::of);
            return;
        }
        let text = || self.token().and_then(unescaped).filter(|text| !text.is_empty());
        match (container, self.key) {
            // The first ones count: they are the same in every event, or empty in a leading one.
            (Container::Root, KnownKey::Id) if seen.id.is_none() => seen.id = text(),
            (Container::Root, KnownKey::Model) if seen.model.is_none() => seen.model = text(),
            (Container::Choice, KnownKey::FinishReason) => seen.finish_reason = text().or(seen.finish_reason.take()),
            (Container::Choice | Container::Delta, KnownKey::Content) if self.length > 0 => self.has_content = true,
            (Container::Error, KnownKey::Kind) => seen.error.get_or_insert_default().kind = text().unwrap_or_default(),
            (Container::Error, KnownKey::Code) => seen.error.get_or_insert_default().code = text(),
            // Some servers report an error as plain text.
            (Container::Root, KnownKey::Error) => {
                seen.error.get_or_insert_default();
            }
            _ => {}
        }
    }

    /// A number or a word has ended.
    fn bare(&mut self, seen: &mut Observation) {
        let Some((container, _)) = self.top() else { return };
        let word = || self.token().and_then(|token| std::str::from_utf8(token).ok());
        let number = || word().and_then(|word| word.parse::<u64>().ok());
        match (container, self.key) {
            (Container::Usage, KnownKey::PromptTokens) => {
                if let Some(count) = number() {
                    self.usage.prompt_tokens = count;
                    self.has_usage = true;
                }
            }
            (Container::Usage, KnownKey::CompletionTokens) => {
                if let Some(count) = number() {
                    self.usage.completion_tokens = count;
                    self.has_usage = true;
                }
            }
            (Container::Details, KnownKey::CachedTokens) => self.usage.cached_tokens = number(),
            (Container::Details, KnownKey::ReasoningTokens) => self.usage.reasoning_tokens = number(),
            (Container::Error, KnownKey::Code) if number().is_some() => {
                let code = word().map(str::to_owned);
                seen.error.get_or_insert_default().code = code;
            }
            _ => {}
        }
    }
}

/// Decodes the escapes of a string token.
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
