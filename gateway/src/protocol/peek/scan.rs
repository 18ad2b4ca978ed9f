//! A strict reader of JSON that builds nothing: it passes over bytes once, says where a value ends, and counts of a prompt
//! what it holds. Limits of tokens and routing read every body with it, so that it takes a nanosecond or two for a byte
//! whatever the body is made of. It takes what RFC 8259 allows and serde_json takes: UTF-8, no lone surrogates, numbers
//! that a double can hold, 128 levels. The tests hold it to serde_json.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use super::parts::{Parts, part_of};

/// Containers within each other in a value of the outermost object: with that as many as serde_json reads.
const DEPTH: u32 = 126;

/// The longest name that means anything, in bytes.
pub(super) const LONGEST_NAME: usize = 24;

/// Error of a body, with the offset of the byte at which it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wrong {
    what: &'static str,
    at: usize,
}

impl Wrong {
    /// The place as editors count it: lines and columns from 1.
    pub(super) fn in_body(self, body: &[u8]) -> impl fmt::Display {
        let before = body.get(..self.at).unwrap_or(body);
        let line = memchr::memchr_iter(b'\n', before).count() + 1;
        let start = memchr::memrchr(b'\n', before).map_or(0, |last| last + 1);
        // The end has no column of its own: it is told as that of the last byte.
        let column = before.len() - start + usize::from(self.at < body.len());
        let what = self.what;
        fmt::from_fn(move |f| write!(f, "{what} at line {line} column {column}"))
    }
}

/// A value that was passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Number,
    /// True if it has escapes.
    Text(bool),
    List,
    Object,
}

/// True if a byte ends a run of plain text in a string: a quote, a backslash, a control character.
const fn ends_text(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// A place in a body.
pub(super) struct Scan<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    /// At the beginning of a body, which must be UTF-8.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Wrong> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Self { text, bytes, at: 0 }),
            Err(e) => Err(Wrong { what: "invalid unicode code point", at: e.valid_up_to() }),
        }
    }

    fn wrong<T>(&self, what: &'static str) -> Result<T, Wrong> {
        Err(Wrong { what, at: self.at })
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// The next byte that is no blank, which is not passed over.
    pub(super) fn next(&mut self) -> Option<u8> {
        loop {
            match self.peek() {
                Some(b' ' | b'\n' | b'\t' | b'\r') => self.at += 1,
                byte => return byte,
            }
        }
    }

    /// The bytes of a range.
    pub(super) fn slice(&self, range: Range<usize>) -> &'a [u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// Where the reader is.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Enters an object, which must be there.
    pub(super) fn enter(&mut self) -> Result<(), Wrong> {
        if self.next() == Some(b'{') {
            self.at += 1;
            return Ok(());
        }
        self.wrong("expected an object")
    }

    /// The next name in an object and whether it has escapes, up to and with the colon; `None` at the end of the object.
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

    /// Nothing but blanks may follow.
    pub(super) fn end(&mut self) -> Result<(), Wrong> {
        match self.next() {
            None => Ok(()),
            Some(_) => self.wrong("trailing characters"),
        }
    }

    /// Passes over one value.
    pub(super) fn skip(&mut self) -> Result<Kind, Wrong> {
        self.value(None)
    }

    /// Passes over one value and counts what it holds as a part of a prompt.
    pub(super) fn count(&mut self, parts: &mut Parts) -> Result<Kind, Wrong> {
        self.value(Some(parts))
    }

    /// Passes over one value, without recursion: hostile bodies nest as deep as they may.
    fn value(&mut self, mut parts: Option<&mut Parts>) -> Result<Kind, Wrong> {
        // A bit for each container that is open: whether it is an object, and whether what is in it counts.
        let (mut objects, mut counted, mut depth) = (0u128, 0u128, 0u32);
        let mut counts = parts.is_some();
        let mut first = None;
        loop {
            let Some(byte) = self.next() else { return self.wrong("EOF while parsing a value") };
            let kind = match byte {
                b'{' | b'[' => {
                    let is_object = byte == b'{';
                    if depth >= DEPTH {
                        return self.wrong("recursion limit exceeded");
                    }
                    self.at += 1;
                    depth += 1;
                    objects = objects << 1 | u128::from(is_object);
                    counted = counted << 1 | u128::from(counts);
                    let kind = if is_object { Kind::Object } else { Kind::List };
                    first.get_or_insert(kind);
                    match self.next() {
                        // Empty: closed below.
                        Some(b'}') if is_object => {}
                        Some(b']') if !is_object => {}
                        Some(_) if is_object => {
                            counts = self.inner_name(counts, parts.as_deref_mut())?;
                            continue;
                        }
                        Some(_) => {
                            if depth == 1
                                && let Some(parts) = parts.as_deref_mut()
                            {
                                self.element(parts);
                            }
                            continue;
                        }
                        None => {
                            return self.wrong(if is_object {
                                "EOF while parsing an object"
                            } else {
                                "EOF while parsing a list"
                            });
                        }
                    }
                    kind
                }
                b'"' => {
                    let (length, has_escapes) = self.string()?;
                    if counts && let Some(parts) = parts.as_deref_mut() {
                        parts.add_text(length);
                    }
                    Kind::Text(has_escapes)
                }
                b'-' | b'0'..=b'9' => {
                    let count = self.numbers(depth > 0 && objects & 1 == 0)?;
                    if counts && let Some(parts) = parts.as_deref_mut() {
                        parts.add_tokens(count);
                    }
                    Kind::Number
                }
                b't' => self.word(b"true", Kind::Bool(true))?,
                b'f' => self.word(b"false", Kind::Bool(false))?,
                b'n' => self.word(b"null", Kind::Null)?,
                _ => return self.wrong("expected value"),
            };
            first.get_or_insert(kind);
            // A value has ended, and with it what ends behind it.
            loop {
                if depth == 0 {
                    return Ok(first.unwrap_or(kind));
                }
                let is_object = objects & 1 == 1;
                match self.next() {
                    Some(b',') => {
                        self.at += 1;
                        counts = counted & 1 == 1;
                        let closes = if is_object { b'}' } else { b']' };
                        if self.next() == Some(closes) {
                            return self.wrong("trailing comma");
                        }
                        if is_object {
                            counts = self.inner_name(counts, parts.as_deref_mut())?;
                        } else if depth == 1
                            && let Some(parts) = parts.as_deref_mut()
                        {
                            self.element(parts);
                        }
                        break;
                    }
                    Some(b'}') if is_object => {}
                    Some(b']') if !is_object => {}
                    Some(_) => {
                        return self.wrong(if is_object { "expected `,` or `}`" } else { "expected `,` or `]`" });
                    }
                    None => {
                        return self.wrong(if is_object {
                            "EOF while parsing an object"
                        } else {
                            "EOF while parsing a list"
                        });
                    }
                }
                self.at += 1;
                (objects, counted, depth) = (objects >> 1, counted >> 1, depth - 1);
            }
        }
    }

    /// The name of a field inside a value; says whether its value counts.
    fn inner_name(&mut self, counts: bool, parts: Option<&mut Parts>) -> Result<bool, Wrong> {
        let (name, has_escapes) = self.key()?;
        let Some(parts) = parts.filter(|_| counts) else { return Ok(false) };
        Ok(self.text(name, has_escapes).is_some_and(|name| part_of(&name, parts)))
    }

    /// An element of the outermost list begins.
    fn element(&self, parts: &mut Parts) {
        if matches!(self.peek(), Some(b'"' | b'[')) {
            parts.texts = parts.texts.saturating_add(1);
        }
    }

    /// A name as it is meant; `None` where it is longer than any that means something.
    pub(super) fn text(&self, range: Range<usize>, has_escapes: bool) -> Option<Cow<'a, str>> {
        // An escape of six bytes stands for one at least.
        let longest = if has_escapes { LONGEST_NAME * 6 } else { LONGEST_NAME };
        if range.len() > longest {
            return None;
        }
        if !has_escapes {
            return self.text.get(range).map(Cow::Borrowed);
        }
        serde_json::from_slice::<String>(self.slice(range.start - 1..range.end + 1)).ok().map(Cow::Owned)
    }

    fn word(&mut self, word: &'static [u8], kind: Kind) -> Result<Kind, Wrong> {
        let there = self.bytes.get(self.at..).unwrap_or_default();
        let same = there.iter().zip(word).take_while(|(a, b)| a == b).count();
        self.at += same;
        if same == word.len() {
            return Ok(kind);
        }
        self.wrong(if self.at == self.bytes.len() { "EOF while parsing a value" } else { "expected ident" })
    }

    /// Passes over a string. Gives its length as text, and whether it has escapes.
    fn string(&mut self) -> Result<(u64, bool), Wrong> {
        self.at += 1;
        let (mut length, mut has_escapes) = (0u64, false);
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let run = text_run(rest);
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

    /// Passes over an escape; gives the bytes of text that it stands for.
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
                // What is no number of 32 bits is as good as without end.
                exponent = self.text.get(begin..self.at).and_then(|text| text.parse().ok()).unwrap_or(u32::MAX);
            }
        }
        // Less than 10^307: a double ends at 10^308.
        if whole.saturating_add(usize::try_from(exponent).unwrap_or(usize::MAX)) > 307 {
            let text = std::str::from_utf8(self.slice(start..self.at)).unwrap_or_default();
            if text.parse::<f64>().is_ok_and(f64::is_infinite) {
                return self.wrong("number out of range");
            }
        }
        Ok(())
    }
}

/// How many bytes of plain text there are.
fn text_run(rest: &[u8]) -> usize {
    /// Bytes that are looked at one by one: most strings are short.
    const SHORT: usize = 32;
    let ends = |byte: &u8| ends_text(*byte);
    let head = rest.get(..SHORT).unwrap_or(rest);
    if let Some(end) = head.iter().position(ends) {
        return end;
    }
    let tail = rest.get(head.len()..).unwrap_or_default();
    let quoted = memchr::memchr2(b'"', b'\\', tail).unwrap_or(tail.len());
    let text = tail.get(..quoted).unwrap_or(tail);
    // Looked at in blocks, which the compiler makes vectors of.
    for (n, block) in text.chunks(256).enumerate() {
        if block.iter().fold(false, |found, byte| found | (*byte < 0x20)) {
            let inside = block.iter().position(ends).unwrap_or(0);
            return head.len() + n * 256 + inside;
        }
    }
    head.len() + quoted
}

/// How a name in a body compares with one that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// The name is the one looked for.
    Same,
    /// A reader that ignores case takes it for that name.
    Folded,
    /// The name is another one.
    Other,
}

/// Compares a name as Go's `encoding/json` does where it does not find it exactly: under Unicode's simple case folding, in
/// which two characters beyond ASCII fold to a letter of it: U+017F (long s) and U+212A (the sign of Kelvin).
pub(super) fn spelling(name: &str, known: &str) -> Spelling {
    // What folds to a letter of ASCII is no shorter than that.
    if name.len() == known.len() {
        return match (name == known, name.eq_ignore_ascii_case(known)) {
            (true, _) => Spelling::Same,
            (false, true) => Spelling::Folded,
            (false, false) => Spelling::Other,
        };
    }
    if name.len() < known.len() || name.is_ascii() {
        return Spelling::Other;
    }
    let folded = name.chars().map(|c| match c {
        '\u{17F}' => 's',
        '\u{212A}' => 'k',
        c => c.to_ascii_lowercase(),
    });
    if folded.eq(known.chars()) { Spelling::Folded } else { Spelling::Other }
}
