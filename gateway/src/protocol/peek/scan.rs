//! Strict reader of JSON that builds nothing: it passes over bytes once, finds the end of each value, and counts the size of
//! prompts. Routing and token limits read every body with it, so a byte costs one or two nanoseconds whatever the body.
//! Accepted is JSON that RFC 8259 allows and serde_json reads: UTF-8, no lone surrogates, numbers that a double can hold,
//! 128 levels. The tests compare both readers.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use super::parts::{PromptParts, part_of};
use crate::protocol::text_end::text_end;

/// Most nested containers in a value of the outermost object. With that object they are as many as serde_json reads.
const DEPTH: u32 = 126;

/// Longest name that means anything, in bytes.
pub(super) const LONGEST_NAME: usize = 24;

/// Syntax error of a body, with the offset of the byte at which it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wrong {
    what: &'static str,
    at: usize,
}

impl Wrong {
    /// Formats the error with its line and column, both from 1 as editors count.
    pub(super) fn in_body(self, body: &[u8]) -> impl fmt::Display {
        let before = body.get(..self.at).unwrap_or(body);
        let line = memchr::memchr_iter(b'\n', before).count() + 1;
        let start = memchr::memrchr(b'\n', before).map_or(0, |last| last + 1);
        // The end has no column of its own and is reported as that of the last byte.
        let column = before.len() - start + usize::from(self.at < body.len());
        let what = self.what;
        fmt::from_fn(move |f| write!(f, "{what} at line {line} column {column}"))
    }
}

/// Kind of a value that was passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueKind {
    Null,
    Bool(bool),
    Number,
    /// String; true if it has escapes.
    Text(bool),
    List,
    Object,
}

/// Containers that are open around a value.
struct Nesting {
    /// A bit for each container, the innermost last: set for an object.
    objects: u128,
    /// A bit for each container: set where its entries count as parts of the prompt.
    counted: u128,
    depth: u32,
}

impl Nesting {
    fn push(&mut self, is_object: bool, counts: bool) {
        self.objects = self.objects << 1 | u128::from(is_object);
        self.counted = self.counted << 1 | u128::from(counts);
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.objects >>= 1;
        self.counted >>= 1;
        self.depth -= 1;
    }

    fn is_in_object(&self) -> bool {
        self.objects & 1 == 1
    }

    fn is_in_list(&self) -> bool {
        self.depth > 0 && self.objects & 1 == 0
    }

    fn counts(&self) -> bool {
        self.counted & 1 == 1
    }
}

/// Reader at a position in a body.
pub(super) struct Scan<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    /// Reader at the beginning of a body, which must be UTF-8.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Wrong> {
        match simdutf8::basic::from_utf8(bytes) {
            Ok(text) => Ok(Self { text, bytes, at: 0 }),
            // Says nothing of the place.
            Err(_) => {
                let at = std::str::from_utf8(bytes).err().map_or(0, |e| e.valid_up_to());
                Err(Wrong { what: "invalid unicode code point", at })
            }
        }
    }

    fn wrong<T>(&self, what: &'static str) -> Result<T, Wrong> {
        Err(Wrong { what, at: self.at })
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Passes over blanks and returns the byte behind them, without passing over that.
    pub(super) fn next(&mut self) -> Option<u8> {
        loop {
            match self.peek() {
                Some(b' ' | b'\n' | b'\t' | b'\r') => self.at += 1,
                byte => return byte,
            }
        }
    }

    /// Bytes of a range.
    pub(super) fn slice(&self, range: Range<usize>) -> &'a [u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// Offset of the next byte.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Enters an object, which must be next.
    pub(super) fn enter(&mut self) -> Result<(), Wrong> {
        if self.next() == Some(b'{') {
            self.at += 1;
            return Ok(());
        }
        self.wrong("expected an object")
    }

    /// Passes over the next name of an object and its colon. Returns the range of the name and whether it has escapes;
    /// `None` at the end of the object.
    pub(super) fn name(&mut self, is_first: bool) -> Result<Option<(Range<usize>, bool)>, Wrong> {
        match self.next() {
            Some(b'}') => {
                self.at += 1;
                return Ok(None);
            }
            Some(b',') if !is_first => {
                self.at += 1;
                if self.next() == Some(b'}') {
                    return self.wrong("trailing comma");
                }
            }
            None => return self.wrong("EOF while parsing an object"),
            _ if !is_first => return self.wrong("expected `,` or `}`"),
            _ => {}
        }
        self.key().map(Some)
    }

    fn key(&mut self) -> Result<(Range<usize>, bool), Wrong> {
        match self.next() {
            Some(b'"') => {}
            None => return self.wrong("EOF while parsing an object"),
            _ => return self.wrong("key must be a string"),
        }
        let start = self.at + 1;
        let (_, has_escapes) = self.string()?;
        let name = start..self.at - 1;
        match self.next() {
            Some(b':') => self.at += 1,
            None => return self.wrong("EOF while parsing an object"),
            _ => return self.wrong("expected `:`"),
        }
        Ok((name, has_escapes))
    }

    /// Checks that nothing but blanks follows.
    pub(super) fn end(&mut self) -> Result<(), Wrong> {
        match self.next() {
            None => Ok(()),
            Some(_) => self.wrong("trailing characters"),
        }
    }

    /// Passes over one value.
    pub(super) fn skip(&mut self) -> Result<ValueKind, Wrong> {
        self.value(None)
    }

    /// Passes over one value and counts it as part of a prompt.
    pub(super) fn count(&mut self, parts: &mut PromptParts) -> Result<ValueKind, Wrong> {
        self.value(Some(parts))
    }

    /// Passes over one value, without recursion: hostile bodies nest as deep as they may.
    fn value(&mut self, mut parts: Option<&mut PromptParts>) -> Result<ValueKind, Wrong> {
        let mut nesting = Nesting { objects: 0, counted: 0, depth: 0 };
        let mut counts = parts.is_some();
        let mut first = None;
        loop {
            let Some(byte) = self.next() else { return self.wrong("EOF while parsing a value") };
            let kind = match byte {
                b'{' | b'[' => {
                    let is_object = byte == b'{';
                    let kind = if is_object { ValueKind::Object } else { ValueKind::List };
                    first.get_or_insert(kind);
                    if let Some(inner) = self.open(is_object, counts, &mut nesting, parts.as_deref_mut())? {
                        counts = inner;
                        continue;
                    }
                    kind
                }
                b'"' => {
                    let (length, has_escapes) = self.string()?;
                    if counts && let Some(parts) = parts.as_deref_mut() {
                        parts.add_text(length);
                    }
                    ValueKind::Text(has_escapes)
                }
                b'-' | b'0'..=b'9' => {
                    let count = self.numbers(nesting.is_in_list())?;
                    if counts && let Some(parts) = parts.as_deref_mut() {
                        parts.add_tokens(count);
                    }
                    ValueKind::Number
                }
                b't' => self.word(b"true", ValueKind::Bool(true))?,
                b'f' => self.word(b"false", ValueKind::Bool(false))?,
                b'n' => self.word(b"null", ValueKind::Null)?,
                _ => return self.wrong("expected value"),
            };
            first.get_or_insert(kind);
            match self.close(&mut nesting, parts.as_deref_mut())? {
                Some(next) => counts = next,
                None => return Ok(first.unwrap_or(kind)),
            }
        }
    }

    /// Opens a list or object, up to its first value. Returns whether that value counts; `None` for an empty container,
    /// whose closing bracket is left for [`Self::close`].
    #[inline(always)]
    fn open(
        &mut self,
        is_object: bool,
        counts: bool,
        nesting: &mut Nesting,
        parts: Option<&mut PromptParts>,
    ) -> Result<Option<bool>, Wrong> {
        if nesting.depth >= DEPTH {
            return self.wrong("recursion limit exceeded");
        }
        self.at += 1;
        nesting.push(is_object, counts);
        match self.next() {
            Some(b'}') if is_object => Ok(None),
            Some(b']') if !is_object => Ok(None),
            Some(_) => self.next_entry(is_object, counts, nesting, parts).map(Some),
            None => self.unfinished(is_object),
        }
    }

    /// Closes every container that ends behind a value. Returns whether the next value counts; `None` where the outermost
    /// value has ended.
    #[inline(always)]
    fn close(&mut self, nesting: &mut Nesting, mut parts: Option<&mut PromptParts>) -> Result<Option<bool>, Wrong> {
        while nesting.depth > 0 {
            let is_object = nesting.is_in_object();
            match self.next() {
                Some(b',') => {
                    self.at += 1;
                    let closing = if is_object { b'}' } else { b']' };
                    if self.next() == Some(closing) {
                        return self.wrong("trailing comma");
                    }
                    return self.next_entry(is_object, nesting.counts(), nesting, parts.as_deref_mut()).map(Some);
                }
                Some(b'}') if is_object => {}
                Some(b']') if !is_object => {}
                Some(_) => {
                    return self.wrong(if is_object { "expected `,` or `}`" } else { "expected `,` or `]`" });
                }
                None => return self.unfinished(is_object),
            }
            self.at += 1;
            nesting.pop();
        }
        Ok(None)
    }

    /// Begins an entry of the innermost container, and passes over its name in an object. Returns whether its value counts.
    #[inline(always)]
    fn next_entry(
        &mut self,
        is_object: bool,
        counts: bool,
        nesting: &Nesting,
        parts: Option<&mut PromptParts>,
    ) -> Result<bool, Wrong> {
        if is_object {
            return self.inner_name(counts, parts);
        }
        if nesting.depth == 1
            && let Some(parts) = parts
        {
            self.element(parts);
        }
        Ok(counts)
    }

    #[cold]
    fn unfinished<T>(&self, is_object: bool) -> Result<T, Wrong> {
        self.wrong(if is_object { "EOF while parsing an object" } else { "EOF while parsing a list" })
    }

    /// Passes over the name of a field inside a value. Returns whether the value of the field counts.
    fn inner_name(&mut self, counts: bool, parts: Option<&mut PromptParts>) -> Result<bool, Wrong> {
        let (name, has_escapes) = self.key()?;
        let Some(parts) = parts.filter(|_| counts) else { return Ok(false) };
        Ok(self.text(name, has_escapes).is_some_and(|name| part_of(&name, parts)))
    }

    /// Counts an element of the outermost list, if it is a text or a list of tokens.
    fn element(&self, parts: &mut PromptParts) {
        if matches!(self.peek(), Some(b'"' | b'[')) {
            parts.texts = parts.texts.saturating_add(1);
        }
    }

    /// Decodes a name; `None` for one that is longer than any that means something.
    pub(super) fn text(&self, range: Range<usize>, has_escapes: bool) -> Option<Cow<'a, str>> {
        // An escape has up to six bytes and decodes to at least one.
        let longest = if has_escapes { LONGEST_NAME * 6 } else { LONGEST_NAME };
        if range.len() > longest {
            return None;
        }
        if !has_escapes {
            return self.text.get(range).map(Cow::Borrowed);
        }
        serde_json::from_slice::<String>(self.slice(range.start - 1..range.end + 1)).ok().map(Cow::Owned)
    }

    fn word(&mut self, word: &'static [u8], kind: ValueKind) -> Result<ValueKind, Wrong> {
        let there = self.bytes.get(self.at..).unwrap_or_default();
        let same = there.iter().zip(word).take_while(|(a, b)| a == b).count();
        self.at += same;
        if same == word.len() {
            return Ok(kind);
        }
        self.wrong(if self.at == self.bytes.len() { "EOF while parsing a value" } else { "expected ident" })
    }

    /// Passes over a string. Returns its decoded length in bytes, and whether it has escapes.
    fn string(&mut self) -> Result<(u64, bool), Wrong> {
        self.at += 1;
        let (mut length, mut has_escapes) = (0u64, false);
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let run = text_end::<true>(rest);
            self.at += run;
            length = length.saturating_add(u64::try_from(run).unwrap_or(u64::MAX));
            match rest.get(run) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok((length, has_escapes));
                }
                Some(b'\\') => {
                    has_escapes = true;
                    length = length.saturating_add(self.escape()?);
                }
                Some(_) => {
                    return self.wrong("control character (\\u0000-\\u001F) found while parsing a string");
                }
                None => return self.wrong("EOF while parsing a string"),
            }
        }
    }

    /// Passes over an escape. Returns its decoded length in bytes.
    fn escape(&mut self) -> Result<u64, Wrong> {
        self.at += 1;
        let Some(byte) = self.peek() else { return self.wrong("EOF while parsing a string") };
        match byte {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {
                self.at += 1;
                Ok(1)
            }
            b'u' => {
                self.at += 1;
                match self.hex()? {
                    0..=0x7F => Ok(1),
                    0x80..=0x7FF => Ok(2),
                    0xD800..=0xDBFF => {
                        if self.bytes.get(self.at..self.at.saturating_add(2)) != Some(b"\\u") {
                            return self.wrong("lone leading surrogate in hex escape");
                        }
                        self.at += 2;
                        match self.hex()? {
                            0xDC00..=0xDFFF => Ok(4),
                            _ => self.wrong("lone leading surrogate in hex escape"),
                        }
                    }
                    0xDC00..=0xDFFF => self.wrong("lone trailing surrogate in hex escape"),
                    _ => Ok(3),
                }
            }
            _ => self.wrong("invalid escape"),
        }
    }

    fn hex(&mut self) -> Result<u32, Wrong> {
        let Some(digits) = self.bytes.get(self.at..self.at.saturating_add(4)) else {
            self.at = self.bytes.len();
            return self.wrong("EOF while parsing a string");
        };
        let mut code = 0;
        for digit in digits {
            let Some(value) = char::from(*digit).to_digit(16) else { return self.wrong("invalid escape") };
            code = code << 4 | value;
        }
        self.at += 4;
        Ok(code)
    }

    fn digits(&mut self) -> usize {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let count = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        self.at += count;
        count
    }

    /// Passes over a number, and over those that follow in a list without a blank; gives how many.
    fn numbers(&mut self, in_list: bool) -> Result<u64, Wrong> {
        let mut count = 0;
        loop {
            self.number()?;
            count += 1;
            match self.bytes.get(self.at..self.at.saturating_add(2)) {
                Some([b',', b'-' | b'0'..=b'9']) if in_list => self.at += 1,
                _ => return Ok(count),
            }
        }
    }

    fn number(&mut self) -> Result<(), Wrong> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let leads_with_zero = self.peek() == Some(b'0');
        let whole = self.digits();
        if whole == 0 || (leads_with_zero && whole > 1) {
            return self.wrong(if self.at == self.bytes.len() {
                "EOF while parsing a value"
            } else {
                "invalid number"
            });
        }
        let next = self.peek();
        if whole <= 300 && !matches!(next, Some(b'.' | b'e' | b'E')) {
            return Ok(());
        }
        if next == Some(b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return self.wrong(if self.at == self.bytes.len() {
                    "EOF while parsing a value"
                } else {
                    "invalid number"
                });
            }
        }
        let mut exponent = 0u32;
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            let is_small = self.peek() == Some(b'-');
            if is_small || self.peek() == Some(b'+') {
                self.at += 1;
            }
            let begin = self.at;
            if self.digits() == 0 {
                return self.wrong(if self.at == self.bytes.len() {
                    "EOF while parsing a value"
                } else {
                    "invalid number"
                });
            }
            if !is_small {
                // An exponent beyond 32 bits is beyond any double.
                exponent = self.text.get(begin..self.at).and_then(|text| text.parse().ok()).unwrap_or(u32::MAX);
            }
        }
        // A double ends at 10^308, so a number below 10^307 needs no parsing.
        if whole.saturating_add(usize::try_from(exponent).unwrap_or(usize::MAX)) > 307 {
            let text = std::str::from_utf8(self.slice(start..self.at)).unwrap_or_default();
            if text.parse::<f64>().is_ok_and(f64::is_infinite) {
                return self.wrong("number out of range");
            }
        }
        Ok(())
    }
}

/// Result of comparing a name in a body with one that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameMatch {
    /// Equal names.
    Same,
    /// Names that are equal to a reader that ignores case.
    Folded,
    /// Different names.
    Other,
}

/// Compares names as Go's `encoding/json` does: exactly, then under Unicode's simple case folding. Under that, two characters
/// beyond ASCII fold to ASCII letters: U+017F (long s) and U+212A (Kelvin sign).
pub(super) fn compare_names(name: &str, known: &str) -> NameMatch {
    // No character is shorter than the ASCII letter that it folds to.
    if name.len() == known.len() {
        // Most names differ in their first letter.
        return match name.eq_ignore_ascii_case(known) {
            true if name == known => NameMatch::Same,
            true => NameMatch::Folded,
            false => NameMatch::Other,
        };
    }
    if name.len() < known.len() || name.is_ascii() {
        return NameMatch::Other;
    }
    let folded = name.chars().map(|c| match c {
        '\u{17F}' => 's',
        '\u{212A}' => 'k',
        c => c.to_ascii_lowercase(),
    });
    if folded.eq(known.chars()) { NameMatch::Folded } else { NameMatch::Other }
}
