//! Streaming JSON reader that reports the few values of an answer that telemetry and limits need, and counts its text. It
//! keeps nothing but the token that a part cuts, itself cut at 256 bytes, and of a stream the beginning that its events share.
//! Invalid JSON is no error and reports nothing. Memory is allocated only for a value that is reported, and for that beginning.
//!
//! Servers of this API answer in other shapes too, on their other paths: chat and text completions, Responses, Anthropic's
//! Messages, and the own paths of llama.cpp and Ollama. One table of containers and keys reads them all.

use super::keys::{Container, KnownKey};
use super::message_type::MessageType;
use crate::protocol::chat::{Observation, ObservedError, Usage};
use crate::protocol::text_end::text_end;

/// Nested containers whose meaning is tracked; deeper ones are only counted. The deepest that matter hold the arguments of
/// a tool call, which may be JSON of any depth.
const TRACKED_DEPTH: usize = 24;

/// Longest key or value that is read, in bytes. Ids and model names are shorter.
const MAX_TOKEN: usize = 256;

/// Keys of an error that has no object of its own (`{"object": "error"}` of older vLLM, `{"type": "error"}` of the Responses
/// API). Any other key before an error belongs to an answer.
const ERROR_KEYS: [&[u8]; 7] = [b"error", b"type", b"object", b"code", b"message", b"param", b"status"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Between tokens.
    Between,
    /// In a string; `escaped` after a backslash.
    Text { escaped: bool },
    /// In a number, `true`, `false` or `null`.
    Bare,
}

/// Counts of one object of usage.
#[derive(Debug, Clone, Copy, Default)]
struct UsageSeen {
    prompt: Option<u64>,
    input: Option<u64>,
    cache_read: Option<u64>,
    cache_created: Option<u64>,
    output: Option<u64>,
    total: Option<u64>,
    cached: Option<u64>,
    cache_written: Option<u64>,
    cache_written_1h: Option<u64>,
    reasoning: Option<u64>,
}

impl UsageSeen {
    /// Counts of the Messages API, whose prompt is a sum, with those of `earlier` events that this one leaves out.
    fn and_earlier(self, earlier: Self) -> Self {
        if self.input.or(self.cache_read).or(self.cache_created).is_none() {
            return self;
        }
        Self {
            input: self.input.or(earlier.input),
            cache_read: self.cache_read.or(earlier.cache_read),
            cache_created: self.cache_created.or(earlier.cache_created),
            ..self
        }
    }

    /// Tokens read, those in the cache included.
    fn read(&self) -> Option<u64> {
        let of_messages = || {
            let of_the_cache = self.cache_read.unwrap_or(0).saturating_add(self.cache_created.unwrap_or(0));
            self.input.map(|input| input.saturating_add(of_the_cache))
        };
        let rest = || self.total.map(|total| total.saturating_sub(self.output.unwrap_or(0)));
        self.prompt.or_else(of_messages).or_else(rest)
    }

    /// Tokens written.
    fn written(&self) -> Option<u64> {
        self.output.or_else(|| self.total.map(|total| total.saturating_sub(self.read().unwrap_or(total))))
    }
}

/// String or bare word that was read to its end.
#[derive(Debug, Clone, Copy)]
struct Token<'t> {
    /// The bytes; `None` where they are not wanted, or too many.
    bytes: Option<&'t [u8]>,
    /// Number of its bytes in any case.
    length: usize,
}

/// Longest beginning of an event that is remembered, in bytes. It has ids, a time and a model's name.
const MAX_BEGINNING: usize = 512;

/// Beginning of an event up to its first text, and the state of the reader behind it. The events of a stream mostly begin
/// alike: of such an event only the rest is read.
#[derive(Debug)]
struct Beginning {
    bytes: [u8; MAX_BEGINNING],
    length: usize,
    depth: usize,
    containers: [(Container, bool); TRACKED_DEPTH],
    key: KnownKey,
    has_answer: bool,
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
    /// True if the string being read is text of the answer.
    is_text: bool,
    /// Hexadecimal digits that an escape still needs, and the character that they have written so far.
    escape: (u8, u32),
    /// True if the object being read has told what led to the answer.
    has_reasoning: bool,
    usage: UsageSeen,
    /// Usage of the events before this one.
    earlier: UsageSeen,
    /// True if the value being read has told the tokens written.
    has_told_output: bool,
    /// True before the first byte of a value.
    is_fresh: bool,
    /// True while the value being read has told nothing but names and what its predecessors had told.
    is_plain: bool,
    /// Beginning of the last value that began in another way than the one before it.
    beginning: Option<Box<Beginning>>,
    /// Type of the message of a socket that is being read; `None` where no such messages are read.
    pub(super) message: Option<MessageType>,
    /// True once the text or the tool calls of an answer have appeared.
    pub(super) has_content: bool,
    /// True once a list, or a member of an object that no error has, has appeared before any error.
    pub(super) has_answer: bool,
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
            is_text: false,
            escape: (0, 0),
            has_reasoning: false,
            usage: UsageSeen::default(),
            earlier: UsageSeen::default(),
            has_told_output: false,
            // The first value of a stream, and the only one of a plain answer, is read in any case.
            is_fresh: false,
            is_plain: true,
            beginning: None,
            message: None,
            has_content: false,
            has_answer: false,
            is_complete: false,
        }
    }
}

impl Scanner {
    /// Prepares for the next message of a socket, each of which is read from its first byte.
    pub(super) fn restart(&mut self) {
        self.reset();
        self.is_fresh = false;
        self.earlier = UsageSeen::default();
        self.message = Some(MessageType::default());
    }

    /// Prepares for the next value. The bytes of the token need no clearing.
    pub(super) fn reset(&mut self) {
        self.mode = Mode::Between;
        self.depth = 0;
        self.key = KnownKey::Other;
        self.expects_key = false;
        self.escape = (0, 0);
        self.usage = UsageSeen::default();
        self.has_told_output = false;
        self.is_fresh = true;
        self.is_plain = true;
        self.has_content = false;
        self.has_answer = false;
        self.is_complete = false;
    }

    /// Reads a part.
    pub(super) fn feed(&mut self, whole: &[u8], seen: &mut Observation) {
        let mut part = whole;
        let mut is_first = std::mem::take(&mut self.is_fresh) && !whole.is_empty();
        if is_first && let Some(rest) = self.pass_beginning(whole, seen) {
            part = rest;
            is_first = false;
        }
        loop {
            if self.mode == Mode::Between {
                part = self.pass_punctuation(part);
            }
            let Some((&byte, rest)) = part.split_first() else { return };
            match self.mode {
                Mode::Between if byte == b'"' => {
                    if is_first && self.begins_text() {
                        is_first = false;
                        self.remember(whole.get(..whole.len() - part.len()).unwrap_or_default(), seen);
                    }
                    part = self.begin_string(rest, seen);
                }
                Mode::Between if byte.is_ascii_alphanumeric() || byte == b'-' => part = self.begin_bare(part, seen),
                Mode::Between => {
                    self.between(byte, seen);
                    part = rest;
                }
                Mode::Text { escaped: true } => {
                    self.keep(&[byte]);
                    if byte == b'u' {
                        self.escape = (4, 0);
                    } else {
                        self.count(1, seen);
                    }
                    self.mode = Mode::Text { escaped: false };
                    part = rest;
                }
                Mode::Text { escaped: false } if self.escape.0 > 0 => {
                    if self.digit(byte, seen) {
                        part = rest;
                    }
                }
                Mode::Text { escaped: false } => part = self.string(part, seen),
                Mode::Bare => {
                    if matches!(byte, b',' | b']' | b'}' | b':' | b'"' | b' ' | b'\t' | b'\n' | b'\r' | b'[' | b'{') {
                        self.mode = Mode::Between;
                        let kept = self.token;
                        self.bare(self.kept(&kept), seen);
                    } else {
                        self.keep(&[byte]);
                        part = rest;
                    }
                }
            }
        }
    }

    /// Passes over the beginning of a value that began as the last one did, and returns what follows. Whatever that beginning
    /// tells was told before.
    fn pass_beginning<'p>(&mut self, part: &'p [u8], seen: &Observation) -> Option<&'p [u8]> {
        let known = self.beginning.as_ref().filter(|_| seen.error.is_none())?;
        let rest = part.strip_prefix(known.bytes.get(..known.length)?)?;
        (self.depth, self.key, self.has_answer) = (known.depth, known.key, known.has_answer);
        self.containers = known.containers;
        self.has_reasoning = false;
        Some(rest)
    }

    /// Remembers the beginning of a value, of which the first text follows. One that tells more than names, or whose meaning
    /// depends on what came before, is read each time.
    fn remember(&mut self, beginning: &[u8], seen: &Observation) {
        let resets_reasoning =
            matches!(self.top(), Some((Container::Delta | Container::Message | Container::Content, true)));
        let depends_on_more = !resets_reasoning || self.has_content || self.expects_key || seen.error.is_some();
        if !self.is_plain || depends_on_more || beginning.len() > MAX_BEGINNING {
            return;
        }
        let known = self.beginning.get_or_insert_with(|| {
            let containers = [(Container::Other, false); TRACKED_DEPTH];
            let bytes = [0; MAX_BEGINNING];
            Box::new(Beginning { bytes, length: 0, depth: 0, containers, key: KnownKey::Other, has_answer: false })
        });
        let Some(bytes) = known.bytes.get_mut(..beginning.len()) else { return };
        bytes.copy_from_slice(beginning);
        (known.length, known.depth, known.containers) = (beginning.len(), self.depth, self.containers);
        (known.key, known.has_answer) = (self.key, self.has_answer);
    }

    /// Passes over blanks, commas and colons, and returns what follows.
    fn pass_punctuation<'p>(&mut self, mut part: &'p [u8]) -> &'p [u8] {
        loop {
            match part.first() {
                Some(b' ' | b'\t' | b'\n' | b'\r') => {}
                Some(b',') => self.expects_key = self.top().is_some_and(|(_, is_object)| is_object),
                Some(b':') => self.expects_key = false,
                _ => return part,
            }
            part = part.get(1..).unwrap_or_default();
        }
    }

    /// Begins a string, and reads it at once where the part has its end and no escape before that. Returns what follows.
    fn begin_string<'p>(&mut self, part: &'p [u8], seen: &mut Observation) -> &'p [u8] {
        let keeps = self.is_wanted();
        self.is_text = self.begins_text();
        let end = text_end::<false>(part);
        if let Some((text, [b'"', after @ ..])) = part.split_at_checked(end) {
            self.count(end, seen);
            let bytes = Some(text).filter(|text| keeps && text.len() <= MAX_TOKEN);
            self.text(Token { bytes, length: end }, seen);
            return after;
        }
        (self.mode, self.keeps, self.length) = (Mode::Text { escaped: false }, keeps, 0);
        part
    }

    /// Begins a bare word, and reads it at once where the part has its end. Returns what follows.
    fn begin_bare<'p>(&mut self, part: &'p [u8], seen: &mut Observation) -> &'p [u8] {
        let is_inside = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
        let end = part.iter().position(|byte| !is_inside(byte)).unwrap_or(part.len());
        if let Some((word, rest @ [b',' | b']' | b'}', ..])) = part.split_at_checked(end) {
            self.bare(Token { bytes: Some(word).filter(|word| word.len() <= MAX_TOKEN), length: end }, seen);
            return rest;
        }
        (self.mode, self.keeps, self.length) = (Mode::Bare, true, 0);
        part
    }

    /// Token whose bytes were kept in a copy of [`Self::token`].
    fn kept<'t>(&self, kept: &'t [u8; MAX_TOKEN]) -> Token<'t> {
        Token { bytes: kept.get(..self.length).filter(|_| self.keeps), length: self.length }
    }

    /// Reads a string up to its end or the next escape. Returns what follows.
    fn string<'p>(&mut self, part: &'p [u8], seen: &mut Observation) -> &'p [u8] {
        let end = text_end::<false>(part);
        let (text, tail) = part.split_at_checked(end).unwrap_or((part, b""));
        self.keep(text);
        self.count(text.len(), seen);
        match tail.split_first() {
            None => tail,
            Some((b'"', after)) => {
                self.mode = Mode::Between;
                let kept = self.token;
                self.text(self.kept(&kept), seen);
                after
            }
            Some((backslash, after)) => {
                self.keep(&[*backslash]);
                self.mode = Mode::Text { escaped: true };
                after
            }
        }
    }

    /// Reads a digit of an escaped character. False for a byte that is none.
    fn digit(&mut self, byte: u8, seen: &mut Observation) -> bool {
        let (missing, before) = self.escape;
        let Some(digit) = char::from(byte).to_digit(16) else {
            self.escape = (0, 0);
            return false;
        };
        self.keep(&[byte]);
        let code = before << 4 | digit;
        self.escape = (missing.saturating_sub(1), code);
        if missing == 1 {
            // Half of a pair is half of four bytes.
            let length = match code {
                0..=0x7F => 1,
                0x80..=0x7FF | 0xD800..=0xDFFF => 2,
                _ => 3,
            };
            self.count(length, seen);
        }
        true
    }

    /// Counts decoded bytes of a string, if that is text of the answer.
    fn count(&self, bytes: usize, seen: &mut Observation) {
        if self.is_text {
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            seen.written.bytes = seen.written.bytes.saturating_add(bytes);
        }
    }

    fn between(&mut self, byte: u8, seen: &mut Observation) {
        match byte {
            b'{' | b'[' => self.open(byte == b'{', seen),
            b'}' | b']' => self.close(seen),
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

    /// True if the string that begins is to be kept. Of text only the length matters.
    fn is_wanted(&self) -> bool {
        self.top().is_some_and(|(container, _)| {
            self.expects_key
                || matches!(
                    (container, self.key),
                    (Container::Root | Container::Answer | Container::Message, KnownKey::Id | KnownKey::Model)
                        | (Container::Choice, KnownKey::FinishReason)
                        | (Container::Root | Container::Delta, KnownKey::StopReason)
                        | (Container::Root | Container::Error, KnownKey::Kind | KnownKey::Code)
                        | (Container::Root, KnownKey::Status | KnownKey::Object)
                )
        })
    }

    /// True if the string that begins is text of the answer.
    fn begins_text(&self) -> bool {
        let Some((container, _)) = self.top() else { return false };
        if container == Container::Free {
            return true;
        }
        let is_repeated = self.key == KnownKey::Reasoning && self.has_reasoning;
        !self.expects_key && !is_repeated && self.key.is_text_in(container)
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.keeps
            && let Some(room) = self.token.get_mut(self.length..)
        {
            let kept = bytes.len().min(room.len());
            if let (Some(room), Some(kept)) = (room.get_mut(..kept), bytes.get(..kept)) {
                room.copy_from_slice(kept);
            }
        }
        self.length = self.length.saturating_add(bytes.len());
    }

    fn open(&mut self, is_object: bool, seen: &mut Observation) {
        let parent = self.top().map(|(container, _)| container);
        let container = match parent {
            None if self.depth > 0 => Container::Other,
            parent => Container::under(parent, self.key, is_object),
        };
        seen.is_known_shape |= container.shows_shape();
        // A list, or an answer in any shape, whatever stands before it.
        self.has_answer |= container.shows_shape() || (self.depth == 0 && !is_object);
        match container {
            Container::Usage => self.usage = UsageSeen::default(),
            Container::Error => {
                self.is_plain = false;
                seen.error.get_or_insert_with(ObservedError::default);
            }
            Container::Delta | Container::Message | Container::Content if is_object => self.has_reasoning = false,
            _ => {}
        }
        if is_object && parent == Some(Container::ToolCalls) {
            self.has_text(seen);
        }
        if let Some(slot) = self.containers.get_mut(self.depth) {
            *slot = (container, is_object);
        }
        self.depth = self.depth.saturating_add(1);
        self.key = KnownKey::Other;
        self.expects_key = is_object;
    }

    fn close(&mut self, seen: &mut Observation) {
        let closed = self.top().map(|(container, _)| container);
        self.is_plain &= !matches!(closed, Some(Container::Root | Container::Usage));
        self.depth = self.depth.saturating_sub(1);
        self.key = KnownKey::Other;
        self.expects_key = false;
        match closed {
            Some(Container::Root) => {
                self.is_complete = true;
                self.tell_usage(seen);
                // Text behind the usage in the same event is part of it.
                if std::mem::take(&mut self.has_told_output) {
                    seen.reported = seen.written;
                }
            }
            Some(Container::Usage) => self.tell_usage(seen),
            _ => {}
        }
    }

    /// Reports the usage that was read. Some servers report the usage so far with every event, others the tokens read in the
    /// first event and the tokens written in the last; no count becomes less on the way.
    fn tell_usage(&mut self, seen: &mut Observation) {
        let told = std::mem::take(&mut self.usage).and_earlier(self.earlier);
        if told.input.or(told.cache_read).or(told.cache_created).is_some() {
            self.earlier = told;
        }
        let (read, written) = (told.read(), told.written());
        if read.is_none() && written.is_none() {
            return;
        }
        let usage = seen.usage.get_or_insert_with(Usage::default);
        usage.prompt_tokens = usage.prompt_tokens.max(read.unwrap_or(0));
        usage.cached_tokens = told.cached.or(told.cache_read).or(usage.cached_tokens);
        usage.cache_written_tokens = told.cache_written.or(told.cache_created).or(usage.cache_written_tokens);
        usage.cache_written_1h_tokens = told.cache_written_1h.or(usage.cache_written_1h_tokens);
        usage.reasoning_tokens = told.reasoning.or(usage.reasoning_tokens);
        if let Some(written) = written {
            usage.completion_tokens = usage.completion_tokens.max(written);
            seen.reported = seen.written;
            self.has_told_output = true;
        }
    }

    /// Text or a tool call has appeared.
    fn has_text(&mut self, seen: &mut Observation) {
        if !std::mem::replace(&mut self.has_content, true) {
            seen.written.events = seen.written.events.saturating_add(1);
        }
    }

    /// A string has ended.
    fn text(&mut self, token: Token<'_>, seen: &mut Observation) {
        let Some((container, is_object)) = self.top() else { return };
        if std::mem::take(&mut self.is_text) {
            self.has_reasoning |= self.key == KnownKey::Reasoning && token.length > 0;
            // Text right under the root is that of an event.
            seen.is_known_shape |= container == Container::Root;
            self.has_answer |= container == Container::Root;
            if token.length > 0 {
                self.has_text(seen);
            }
        }
        if self.expects_key && is_object {
            let name = token.bytes;
            // A name with an escape may be any, and a server might read another type than the one that is seen here.
            if let (Some(message), Container::Root) = (&mut self.message, container)
                && name.is_none_or(|name| name.contains(&b'\\'))
            {
                message.named(None);
            }
            self.key = name.map_or(KnownKey::Other, KnownKey::of);
            if !self.has_answer && container == Container::Root && seen.error.is_none() {
                self.has_answer = !name.is_some_and(|name| ERROR_KEYS.contains(&name));
            }
            return;
        }
        let text = || token.bytes.and_then(unescaped).filter(|text| !text.is_empty());
        let is_quiet = matches!(self.key, KnownKey::Id | KnownKey::Model | KnownKey::Other)
            || (matches!(self.key, KnownKey::Object | KnownKey::Kind) && !is_special(token.bytes));
        self.is_plain &= is_quiet;
        match (container, self.key) {
            // The first ones count: they are the same in every event, or empty in a leading one.
            (Container::Root | Container::Answer | Container::Message, KnownKey::Id) if seen.id.is_none() => {
                seen.id = text();
            }
            (Container::Root | Container::Answer | Container::Message, KnownKey::Model) if seen.model.is_none() => {
                seen.model = text();
            }
            (Container::Choice, KnownKey::FinishReason)
            | (Container::Root | Container::Delta, KnownKey::StopReason) => {
                seen.finish_reason = text().or(seen.finish_reason.take());
            }
            (Container::Root, KnownKey::Kind | KnownKey::Object) => {
                if let (Some(message), KnownKey::Kind) = (&mut self.message, self.key) {
                    message.named(token.bytes);
                }
                kind(token.bytes, seen);
            }
            (Container::Root, KnownKey::Status) => {
                seen.is_deferred |= matches!(token.bytes, Some(b"queued" | b"in_progress"));
            }
            (Container::Error, KnownKey::Kind) => seen.error.get_or_insert_default().kind = text().unwrap_or_default(),
            (Container::Error, KnownKey::Code) => seen.error.get_or_insert_default().code = text(),
            // Some servers report an error as plain text.
            (Container::Root, KnownKey::Error) if token.length > 0 => {
                seen.error.get_or_insert_default();
            }
            (Container::Root, KnownKey::Code) => {
                if let Some(error) = &mut seen.error
                    && error.code.is_none()
                {
                    error.code = text();
                }
            }
            _ => {}
        }
    }

    /// A number or a word has ended.
    fn bare(&mut self, token: Token<'_>, seen: &mut Observation) {
        let Some((container, _)) = self.top() else { return };
        let word = || token.bytes.and_then(|token| std::str::from_utf8(token).ok());
        let number = || word().and_then(|word| word.parse::<u64>().ok());
        let told = match (container, self.key) {
            (Container::Usage, KnownKey::PromptTokens) | (Container::Root, KnownKey::PromptCount) => {
                &mut self.usage.prompt
            }
            (Container::Usage, KnownKey::OutputTokens) | (Container::Root, KnownKey::OutputCount) => {
                &mut self.usage.output
            }
            (Container::Usage, KnownKey::InputTokens) => &mut self.usage.input,
            (Container::Usage, KnownKey::CacheRead) => &mut self.usage.cache_read,
            (Container::Usage, KnownKey::CacheCreated) => &mut self.usage.cache_created,
            (Container::Usage, KnownKey::TotalTokens) => &mut self.usage.total,
            (Container::Usage | Container::Details, KnownKey::CachedTokens) => &mut self.usage.cached,
            (Container::Usage | Container::Details, KnownKey::CacheWritten) => &mut self.usage.cache_written,
            (Container::Details, KnownKey::CacheWrittenForAnHour) => &mut self.usage.cache_written_1h,
            (Container::Details, KnownKey::ReasoningTokens) => &mut self.usage.reasoning,
            (Container::Root, KnownKey::Done) => {
                self.is_plain = false;
                seen.is_whole |= token.bytes == Some(b"true");
                return;
            }
            (Container::Error, KnownKey::Code) if number().is_some() => {
                let code = word().map(str::to_owned);
                seen.error.get_or_insert_default().code = code;
                return;
            }
            (Container::Root, KnownKey::Code) if number().is_some() => {
                self.is_plain = false;
                let code = word().map(str::to_owned);
                if let Some(error) = &mut seen.error {
                    error.code = error.code.take().or(code);
                }
                return;
            }
            (Container::Free, _) => {
                self.is_plain = false;
                let bytes = u64::try_from(token.length).unwrap_or(u64::MAX);
                seen.written.bytes = seen.written.bytes.saturating_add(bytes);
                return;
            }
            _ => return,
        };
        self.is_plain = false;
        *told = number().or(*told);
    }
}

/// True for a type of an event or an object that tells something by itself.
fn is_special(kind: Option<&[u8]>) -> bool {
    matches!(
        kind,
        Some(b"response.completed" | b"response.incomplete" | b"response.failed" | b"message_stop" | b"error")
    )
}

/// Takes note of the type of an event or an object.
fn kind(token: Option<&[u8]>, seen: &mut Observation) {
    match token {
        Some(b"error") => {
            seen.error.get_or_insert_default();
        }
        kind if is_special(kind) => seen.is_whole = true,
        kind => {
            if let Some(error) = seen.error.as_mut().filter(|error| error.kind.is_empty()) {
                error.kind = kind.and_then(unescaped).unwrap_or_default();
            }
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
