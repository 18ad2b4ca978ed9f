//! Strict reader of the beginning and end of HTTP/1 requests (RFC 9112). [`Framer`] reads each byte of a connection once,
//! before anything else does, and stops at the first byte that breaks the grammar or a limit.
//!
//! The reader is a pure state machine: no I/O, no clock and no memory that grows with the input. Its only decision is where
//! heads, parts of bodies and messages end; the session (`downstream/http1.rs`) parses the fields of a head behind it. Both must
//! agree on which bytes are a whole message: `framing/tests/` compares them, and `gateway/fuzz` does so on any bytes.

use std::io;
use std::ops::Range;

use http::StatusCode;

#[cfg(test)]
mod tests;

/// Most fields of a head, and of trailers.
pub const MAX_FIELDS: u16 = 256;

/// Most bytes of the line that begins a chunk: its size and extensions. The longest extensions in use, signatures of chunks,
/// have about 90 bytes.
pub const MAX_CHUNK_LINE: u16 = 1024;

/// Most bytes of trailers, whatever the limit of a head.
pub const MAX_TRAILERS: u64 = 64 << 10;

/// Largest length of a body or chunk in bytes. Other parsers keep lengths as signed 64-bit integers.
const MAX_LENGTH: u64 = i64::MAX as u64;

/// Violation of the grammar or of a limit by a request. The connection cannot be used any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The request line alone is longer than `maxHeaderBytes`.
    #[error("the request line is longer than the listener's `limits.maxHeaderBytes`")]
    TargetTooLong,
    /// The request line and fields are longer than `maxHeaderBytes`.
    #[error("the request line and header are longer than the listener's `limits.maxHeaderBytes`")]
    HeadTooLong,
    /// More than [`MAX_FIELDS`] fields.
    #[error("the request has more than {MAX_FIELDS} header fields")]
    TooManyFields,
    /// The request line is not `METHOD SP TARGET SP HTTP/1.0` or `HTTP/1.1` (RFC 9112, 3).
    #[error("the request line is not `METHOD TARGET HTTP/1.1`")]
    RequestLine,
    /// A version of HTTP that is neither 1.0 nor 1.1, such as that of the preface of HTTP/2 (RFC 9113, 3.4).
    #[error(
        "the request is of a version of HTTP that this listener does not speak: it speaks 1.1 and 1.0; HTTP/2 without TLS \
         needs a listener with `protocol: h2c`, and with TLS one with `protocol: https`"
    )]
    Version,
    /// A field is not `NAME: VALUE`, or has a byte that is not allowed there (RFC 9112, 5).
    #[error("a header field is not `NAME: VALUE`")]
    Field,
    /// A line that does not end with CR LF (RFC 9112, 2.2).
    #[error("a line does not end with CR LF")]
    LineEnd,
    /// `Content-Length` is not one number, given once (RFC 9112, 6.3).
    #[error("Content-Length is not one decimal number, given once")]
    Length,
    /// Both `Content-Length` and `Transfer-Encoding` (RFC 9112, 6.1).
    #[error("the request has both Content-Length and Transfer-Encoding: where its body ends is not certain")]
    TwoLengths,
    /// `Transfer-Encoding` without `chunked` at its end, given twice, or under HTTP/1.0 (RFC 9112, 6.1 and 6.3).
    #[error("Transfer-Encoding does not end with `chunked`, is given twice, or the request is of HTTP/1.0")]
    Coding,
    /// A coding before `chunked` (RFC 9112, 6.1).
    #[error("the only transfer coding that is accepted is `chunked`")]
    UnknownCoding,
    /// The line of a chunk is not `SIZE[;EXTENSIONS]` (RFC 9112, 7.1).
    #[error("the line that begins a chunk is not a hexadecimal size with extensions")]
    ChunkLine,
    /// The line of a chunk is longer than [`MAX_CHUNK_LINE`].
    #[error("the line that begins a chunk is longer than {MAX_CHUNK_LINE} bytes")]
    ChunkLineTooLong,
    /// The data of a chunk is not followed by CR LF (RFC 9112, 7.1).
    #[error("the data of a chunk is longer or shorter than its size says")]
    ChunkEnd,
    /// A trailer is not `NAME: VALUE` (RFC 9112, 7.1.2).
    #[error("a trailer field is not `NAME: VALUE`")]
    Trailer,
    /// The trailers are longer than `maxHeaderBytes`, or more than [`MAX_FIELDS`].
    #[error(
        "the trailers are longer than the listener's `limits.maxHeaderBytes` or 64 KiB, or more than {MAX_FIELDS} fields"
    )]
    TrailersTooLong,
}

impl Violation {
    /// Status of the response: 431 (RFC 6585, 5), 414, 501 (RFC 9112, 6.1), 505 or 400.
    pub fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLong | Self::TooManyFields | Self::TrailersTooLong => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::UnknownCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// Code of the error in the response.
    pub fn code(self) -> &'static str {
        match self {
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLong | Self::TooManyFields | Self::TrailersTooLong => "header_too_large",
            Self::UnknownCoding => "unsupported_transfer_coding",
            Self::Length | Self::TwoLengths | Self::Coding => "ambiguous_framing",
            Self::ChunkLine | Self::ChunkLineTooLong | Self::ChunkEnd | Self::Trailer => "malformed_body",
            Self::Version => "unsupported_http_version",
            Self::RequestLine | Self::Field | Self::LineEnd => "malformed_request",
        }
    }
}

impl From<Violation> for io::Error {
    fn from(violation: Violation) -> Self {
        Self::new(io::ErrorKind::InvalidData, violation)
    }
}

/// Part of a request that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FramerState {
    /// Before a request line; empty lines are skipped (RFC 9112, 2.2).
    Start,
    StartLf,
    Method,
    /// In the target; true once a byte of it was seen.
    Target(bool),
    /// In the version, after so many bytes of it.
    Version(u8),
    LineCr,
    LineLf,
    /// At the beginning of a line of the head or trailers.
    Field,
    Name,
    Value,
    /// In the value of `Content-Length`.
    Length(Digits),
    /// In the value of `Transfer-Encoding`.
    Coding,
    ValueLf,
    EndLf,
    /// In a body with a length, before so many further bytes.
    Fixed(u64),
    /// In the size of a chunk, after so many digits.
    Size(u8),
    Extension(Extension),
    SizeLf,
    /// In the data of a chunk, before so many further bytes.
    Data(u64),
    DataCr,
    DataLf,
    Failed(Violation),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Digits {
    Before,
    In(u64),
    After(u64),
}

/// Position in `*( BWS ";" BWS NAME [ BWS "=" BWS ( TOKEN / QUOTED ) ] )` (RFC 9112, 7.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    /// White space that a semicolon must follow.
    Semicolon,
    /// Behind the semicolon.
    Begin,
    Name,
    /// White space behind the name.
    Named,
    /// Behind the equals sign.
    Equals,
    Token,
    Quoted,
    Escaped,
    /// Behind a value.
    Closed,
}

/// Name or token that arrives in pieces, in lower case, as far as it is compared.
#[derive(Debug, Clone, Copy, Default)]
struct TokenBuffer {
    bytes: [u8; 17],
    length: u8,
}

impl TokenBuffer {
    fn of(name: &[u8]) -> Self {
        let mut word = Self::default();
        name.iter().for_each(|byte| word.push(*byte));
        word
    }

    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(usize::from(self.length)) {
            *slot = byte.to_ascii_lowercase();
        }
        self.length = self.length.saturating_add(1);
    }

    fn is(&self, word: &[u8]) -> bool {
        self.bytes.get(..usize::from(self.length)) == Some(word)
    }
}

/// End of the body of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    None,
    Length(u64),
    Chunked,
}

/// Place of a field in the bytes of its head, empty lines before it included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldPlace {
    start: u32,
    colon: u32,
    end: u32,
}

impl FieldPlace {
    /// Range of the name.
    pub fn name(self) -> Range<usize> {
        index(self.start)..index(self.colon)
    }

    /// Range of the value, with the blanks around it.
    pub fn value(self) -> Range<usize> {
        index(self.colon) + 1..index(self.end)
    }
}

fn index(place: u32) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX - 1)
}

fn place(at: u64) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Reader of one connection.
#[derive(Debug)]
pub struct Framer {
    state: FramerState,
    /// Most bytes of a head, and of trailers.
    most: u64,
    /// Bytes of the head or trailers so far.
    used: u64,
    /// Fields of the head or trailers so far.
    fields: u16,
    /// Places of the fields of the last head, until the next one begins.
    places: Vec<FieldPlace>,
    /// Bytes of the chunk's line so far.
    line: u16,
    in_trailers: bool,
    is_http10: bool,
    /// True once the request line has ended.
    line_ended: bool,
    body: Body,
    word: TokenBuffer,
    /// True if the transfer coding is a list.
    coding_list: bool,
    /// True if white space has followed the transfer coding.
    coding_gap: bool,
    /// Size of the chunk whose line is being read.
    chunk: u64,
}

const BEFORE_VERSION: &[u8] = b"HTTP/1.";
const LENGTH: &[u8] = b"content-length";
const CODING: &[u8] = b"transfer-encoding";

impl Framer {
    /// Reader at the beginning of a connection. A head, and likewise trailers, may have `most` bytes.
    pub fn new(most: u64) -> Self {
        Self {
            state: FramerState::Start,
            most,
            used: 0,
            fields: 0,
            places: Vec::new(),
            line: 0,
            in_trailers: false,
            is_http10: false,
            line_ended: false,
            body: Body::None,
            word: TokenBuffer::default(),
            coding_list: false,
            coding_gap: false,
            chunk: 0,
        }
    }

    /// Number of body bytes that come next and need no reading; 0 where the next byte must be read.
    pub fn opaque(&self) -> u64 {
        match self.state {
            FramerState::Fixed(left) | FramerState::Data(left) => left,
            _ => 0,
        }
    }

    /// Passes over `count` bytes of a body, at most [`Self::opaque`].
    pub fn skip(&mut self, count: u64) {
        match &mut self.state {
            FramerState::Fixed(left) => {
                *left = left.saturating_sub(count);
                if *left == 0 {
                    self.begin();
                }
            }
            FramerState::Data(left) => {
                *left = left.saturating_sub(count);
                if *left == 0 {
                    self.state = FramerState::DataCr;
                }
            }
            _ => {}
        }
    }

    /// True between requests: every byte read belongs to a whole one.
    pub fn is_between(&self) -> bool {
        self.state == FramerState::Start && self.used == 0
    }

    /// Violation that ended the reading.
    pub fn violation(&self) -> Option<Violation> {
        match self.state {
            FramerState::Failed(violation) => Some(violation),
            _ => None,
        }
    }

    /// True while a body is being read.
    pub fn is_in_body(&self) -> bool {
        self.in_trailers
            || matches!(
                self.state,
                FramerState::Fixed(_)
                    | FramerState::Size(..)
                    | FramerState::Extension(_)
                    | FramerState::SizeLf
                    | FramerState::Data(_)
                    | FramerState::DataCr
                    | FramerState::DataLf
            )
    }

    /// Reads bytes of a head. Returns how many of them belong to it, and whether it has ended with them.
    pub fn scan_head(&mut self, bytes: &[u8]) -> Result<(usize, bool), Violation> {
        let mut at = 0;
        while at < bytes.len() {
            self.step(bytes, &mut at).inspect_err(|violation| self.state = FramerState::Failed(*violation))?;
            if self.is_between() || self.is_in_body() {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    /// Places of the fields of the head that was read last.
    pub fn places(&self) -> &[FieldPlace] {
        &self.places
    }

    /// True at trailers, or at the empty line in place of them.
    pub fn is_in_trailers(&self) -> bool {
        self.in_trailers
    }

    /// Reads bytes of the framing of a body, up to the next bytes that need no reading, to the beginning of trailers, or to the
    /// end of the message. Returns how many were read.
    pub fn scan_framing(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let (mut at, in_trailers) = (0, self.in_trailers);
        while at < bytes.len() && self.opaque() == 0 && !self.is_between() && self.in_trailers == in_trailers {
            self.step(bytes, &mut at).inspect_err(|violation| self.state = FramerState::Failed(*violation))?;
        }
        Ok(at)
    }

    /// Reads at least one of the bytes from `at` on, and moves `at` behind the bytes read.
    fn step(&mut self, bytes: &[u8], at: &mut usize) -> Result<(), Violation> {
        let rest = bytes.get(*at..).unwrap_or_default();
        match self.state {
            FramerState::Fixed(left) | FramerState::Data(left) => {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                self.skip(u64::try_from(here).unwrap_or(left));
                *at += here;
                Ok(())
            }
            FramerState::Size(..)
            | FramerState::Extension(_)
            | FramerState::SizeLf
            | FramerState::DataCr
            | FramerState::DataLf => {
                self.chunk(rest.first().copied().unwrap_or_default())?;
                *at += 1;
                Ok(())
            }
            FramerState::Failed(violation) => Err(violation),
            _ => self.head(rest, at),
        }
    }

    /// Reads bytes of a head or of trailers, and counts them.
    fn head(&mut self, bytes: &[u8], at: &mut usize) -> Result<(), Violation> {
        let most = if self.in_trailers { self.most.min(MAX_TRAILERS) } else { self.most };
        let room = usize::try_from(most.saturating_sub(self.used)).unwrap_or(usize::MAX);
        let bytes = bytes.get(..room).unwrap_or(bytes);
        if bytes.is_empty() {
            return Err(match (self.in_trailers, self.line_ended) {
                (true, _) => Violation::TrailersTooLong,
                (false, true) => Violation::HeadTooLong,
                (false, false) => Violation::TargetTooLong,
            });
        }
        if self.used == 0 {
            self.places.clear();
        }
        let mut read = 0;
        while let Some(rest @ [byte, ..]) = bytes.get(read..) {
            let run = self.run(rest)?;
            if run > 0 {
                read += run;
                *at += run;
                self.used = self.used.saturating_add(u64::try_from(run).unwrap_or(u64::MAX));
                continue;
            }
            self.used = self.used.saturating_add(1);
            self.head_byte(*byte)?;
            read += 1;
            *at += 1;
            if self.is_between() || matches!(self.state, FramerState::Fixed(_) | FramerState::Size(_)) {
                break;
            }
        }
        Ok(())
    }

    /// Passes over a run of bytes of the same kind, such as a value, a name or the target, and returns its length; 0 where
    /// the next byte is to be read by itself.
    fn run(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let end_of_line = |run: usize| if bytes.get(run..run + 2) == Some(b"\r\n") { 2 } else { 0 };
        match self.state {
            FramerState::Field => {
                let length = run_of(bytes, TOKEN);
                let Some((name @ [_, ..], [b':', ..])) = bytes.split_at_checked(length) else { return Ok(0) };
                self.count_field()?;
                self.begin_field(self.used);
                self.end_name(self.used.saturating_add(u64::try_from(length).unwrap_or(u64::MAX)));
                self.state = if name.len() == LENGTH.len() || name.len() == CODING.len() {
                    self.word = TokenBuffer::of(name);
                    self.named()?
                } else {
                    FramerState::Value
                };
                Ok(length + 1)
            }
            FramerState::Value => {
                let value = run_of_value(bytes);
                let end = end_of_line(value);
                if end > 0 {
                    self.end_field(self.used.saturating_add(u64::try_from(value).unwrap_or(u64::MAX)));
                    self.state = FramerState::Field;
                }
                Ok(value + end)
            }
            FramerState::Name => {
                let name = run_of(bytes, TOKEN);
                if self.word.length <= 17 {
                    bytes.iter().take(name.min(18)).for_each(|byte| self.word.push(*byte));
                }
                Ok(name)
            }
            FramerState::Method => {
                let method = run_of(bytes, TOKEN);
                let is_ended = bytes.get(method) == Some(&b' ');
                if is_ended {
                    self.state = FramerState::Target(false);
                }
                Ok(method + usize::from(is_ended))
            }
            FramerState::Target(begun) => {
                let target = run_of(bytes, TARGET);
                let is_ended = (begun || target > 0) && bytes.get(target) == Some(&b' ');
                self.state = if is_ended { FramerState::Version(0) } else { FramerState::Target(begun || target > 0) };
                Ok(target + usize::from(is_ended))
            }
            FramerState::Version(0) if bytes.starts_with(b"HTTP/1.1\r\n") => {
                self.line_ended = true;
                self.state = FramerState::Field;
                Ok(10)
            }
            _ => Ok(0),
        }
    }

    /// Takes note that a field of a head begins at an offset in the head.
    fn begin_field(&mut self, at: u64) {
        if !self.in_trailers {
            let start = place(at);
            self.places.push(FieldPlace { start, colon: start, end: start });
        }
    }

    /// Takes note of the end of a field's name, which is its colon.
    fn end_name(&mut self, at: u64) {
        if let Some(field) = self.places.last_mut().filter(|_| !self.in_trailers) {
            field.colon = place(at);
        }
    }

    /// Takes note of the end of a field's value.
    fn end_field(&mut self, at: u64) {
        if let Some(field) = self.places.last_mut().filter(|_| !self.in_trailers) {
            field.end = place(at);
        }
    }

    /// Offset of the byte that was read last.
    fn last(&self) -> u64 {
        self.used.saturating_sub(1)
    }

    fn count_field(&mut self) -> Result<(), Violation> {
        if self.fields >= MAX_FIELDS {
            return Err(if self.in_trailers { Violation::TrailersTooLong } else { Violation::TooManyFields });
        }
        self.fields += 1;
        Ok(())
    }

    fn head_byte(&mut self, byte: u8) -> Result<(), Violation> {
        self.state = match (self.state, byte) {
            (FramerState::Start, b'\r') => FramerState::StartLf,
            (FramerState::Start, _) if is(byte, TOKEN) => FramerState::Method,
            (FramerState::Start, b'\n') => return Err(Violation::LineEnd),
            (FramerState::Start, _) => return Err(Violation::RequestLine),
            (FramerState::StartLf, b'\n') => FramerState::Start,
            (FramerState::Method, b' ') => FramerState::Target(false),
            (FramerState::Method, _) if is(byte, TOKEN) => FramerState::Method,
            (FramerState::Target(true), b' ') => FramerState::Version(0),
            (FramerState::Version(7), b'0' | b'1') => {
                self.is_http10 = byte == b'0';
                FramerState::LineCr
            }
            (FramerState::Version(n), _) if BEFORE_VERSION.get(usize::from(n)) == Some(&byte) => {
                FramerState::Version(n + 1)
            }
            // Behind `HTTP/`, or behind `HTTP/1.`.
            (FramerState::Version(5 | 7), b'0'..=b'9') => return Err(Violation::Version),
            (FramerState::LineCr, b'\r') => FramerState::LineLf,
            (FramerState::LineLf, b'\n') => {
                self.line_ended = true;
                FramerState::Field
            }
            (FramerState::Field, b'\r') => FramerState::EndLf,
            (FramerState::Field, _) if is(byte, TOKEN) => {
                self.count_field()?;
                self.begin_field(self.last());
                self.word = TokenBuffer::default();
                // No other letter begins a name that matters.
                match byte {
                    b'C' | b'c' | b'T' | b't' => self.word.push(byte),
                    _ => self.word.length = u8::MAX,
                }
                FramerState::Name
            }
            (FramerState::Name, b':') => {
                self.end_name(self.last());
                self.named()?
            }
            (FramerState::Value, b'\r') => {
                self.end_field(self.last());
                FramerState::ValueLf
            }
            (FramerState::Length(digits), _) => return self.length(digits, byte),
            (FramerState::Coding, _) => return self.coding(byte),
            (FramerState::ValueLf, b'\n') => FramerState::Field,
            (FramerState::EndLf, b'\n') => return self.ended(),
            (
                FramerState::StartLf
                | FramerState::LineCr
                | FramerState::LineLf
                | FramerState::ValueLf
                | FramerState::EndLf,
                _,
            ) => {
                return Err(Violation::LineEnd);
            }
            (FramerState::Method | FramerState::Target(_) | FramerState::Version(_), _) => {
                return Err(Violation::RequestLine);
            }
            (_, b'\n') => return Err(Violation::LineEnd),
            _ if self.in_trailers => return Err(Violation::Trailer),
            _ => return Err(Violation::Field),
        };
        Ok(())
    }

    /// Returns the state behind the colon of a name. The names of trailers have no effect on the framing.
    fn named(&mut self) -> Result<FramerState, Violation> {
        if self.in_trailers {
            return Ok(FramerState::Value);
        }
        if self.word.is(LENGTH) {
            return match self.body {
                Body::None => Ok(FramerState::Length(Digits::Before)),
                Body::Length(_) => Err(Violation::Length),
                Body::Chunked => Err(Violation::TwoLengths),
            };
        }
        if self.word.is(CODING) {
            self.word = TokenBuffer::default();
            return match self.body {
                _ if self.is_http10 => Err(Violation::Coding),
                Body::None => Ok(FramerState::Coding),
                Body::Length(_) => Err(Violation::TwoLengths),
                Body::Chunked => Err(Violation::Coding),
            };
        }
        Ok(FramerState::Value)
    }

    fn length(&mut self, digits: Digits, byte: u8) -> Result<(), Violation> {
        let next = match (digits, byte) {
            (Digits::Before, b' ' | b'\t') => Digits::Before,
            (Digits::Before, b'0'..=b'9') => Digits::In(u64::from(byte - b'0')),
            (Digits::In(length), b'0'..=b'9') => {
                let length = length.checked_mul(10).and_then(|length| length.checked_add(u64::from(byte - b'0')));
                Digits::In(length.filter(|length| *length <= MAX_LENGTH).ok_or(Violation::Length)?)
            }
            (Digits::In(length) | Digits::After(length), b' ' | b'\t') => Digits::After(length),
            (Digits::In(length) | Digits::After(length), b'\r') => {
                self.body = Body::Length(length);
                self.end_field(self.last());
                self.state = FramerState::ValueLf;
                return Ok(());
            }
            _ => return Err(Violation::Length),
        };
        self.state = FramerState::Length(next);
        Ok(())
    }

    fn coding(&mut self, byte: u8) -> Result<(), Violation> {
        match byte {
            b'\r' => {
                if !self.word.is(b"chunked") {
                    return Err(Violation::Coding);
                }
                if self.coding_list {
                    return Err(Violation::UnknownCoding);
                }
                self.body = Body::Chunked;
                self.end_field(self.last());
                self.state = FramerState::ValueLf;
            }
            b',' => {
                self.coding_list = true;
                self.coding_gap = false;
                self.word = TokenBuffer::default();
            }
            b' ' | b'\t' => self.coding_gap = self.word.length > 0,
            _ if is(byte, VALUE) => {
                // White space inside a coding makes it another word.
                if std::mem::take(&mut self.coding_gap) {
                    self.word.push(b' ');
                }
                self.word.push(byte);
            }
            _ => return Err(Violation::Coding),
        }
        Ok(())
    }

    /// Ends a head, or trailers and with them the message, at an empty line.
    fn ended(&mut self) -> Result<(), Violation> {
        if self.in_trailers {
            self.begin();
            return Ok(());
        }
        match self.body {
            Body::None | Body::Length(0) => self.begin(),
            Body::Length(length) => self.state = FramerState::Fixed(length),
            Body::Chunked => self.state = FramerState::Size(0),
        }
        Ok(())
    }

    fn begin(&mut self) {
        *self = Self { places: std::mem::take(&mut self.places), ..Self::new(self.most) };
    }

    /// Reads a byte of the framing of chunks, outside their data.
    fn chunk(&mut self, byte: u8) -> Result<(), Violation> {
        match (self.state, byte) {
            (FramerState::DataCr, b'\r') => {
                self.state = FramerState::DataLf;
                return Ok(());
            }
            (FramerState::DataLf, b'\n') => {
                self.state = FramerState::Size(0);
                (self.line, self.chunk) = (0, 0);
                return Ok(());
            }
            (FramerState::DataCr | FramerState::DataLf, _) => return Err(Violation::ChunkEnd),
            (FramerState::SizeLf, b'\n') => {
                if self.chunk > 0 {
                    self.state = FramerState::Data(self.chunk);
                } else {
                    (self.in_trailers, self.used, self.fields) = (true, 0, 0);
                    self.state = FramerState::Field;
                }
                return Ok(());
            }
            (FramerState::SizeLf, _) => return Err(Violation::LineEnd),
            _ => {}
        }
        self.line += 1;
        if self.line > MAX_CHUNK_LINE {
            return Err(Violation::ChunkLineTooLong);
        }
        use Extension::{Begin, Closed, Equals, Escaped, Name, Named, Quoted, Semicolon, Token};
        self.state = match (self.state, byte) {
            (FramerState::Size(digits), _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                let size = self.chunk.checked_mul(16).map(|size| size | digit);
                self.chunk = size.filter(|size| *size <= MAX_LENGTH && digits < 16).ok_or(Violation::ChunkLine)?;
                FramerState::Size(digits + 1)
            }
            (FramerState::Size(0), _) => return Err(Violation::ChunkLine),
            (FramerState::Size(..) | FramerState::Extension(Name | Token | Closed), b'\r') => FramerState::SizeLf,
            // White space behind a name may precede `=` or another extension; elsewhere only another extension.
            (FramerState::Size(..) | FramerState::Extension(Semicolon | Token | Closed), b' ' | b'\t') => {
                FramerState::Extension(Semicolon)
            }
            (FramerState::Size(..) | FramerState::Extension(Semicolon | Name | Named | Token | Closed), b';') => {
                FramerState::Extension(Begin)
            }
            (FramerState::Extension(Begin), b' ' | b'\t') => FramerState::Extension(Begin),
            (FramerState::Extension(Begin | Name), _) if is(byte, TOKEN) => FramerState::Extension(Name),
            (FramerState::Extension(Name | Named), b' ' | b'\t') => FramerState::Extension(Named),
            (FramerState::Extension(Name | Named), b'=') => FramerState::Extension(Equals),
            (FramerState::Extension(Equals), b' ' | b'\t') => FramerState::Extension(Equals),
            (FramerState::Extension(Equals), b'"') => FramerState::Extension(Quoted),
            (FramerState::Extension(Equals | Token), _) if is(byte, TOKEN) => FramerState::Extension(Token),
            (FramerState::Extension(Quoted), b'"') => FramerState::Extension(Closed),
            (FramerState::Extension(Quoted), b'\\') => FramerState::Extension(Escaped),
            (FramerState::Extension(Quoted | Escaped), _) if is(byte, VALUE) => FramerState::Extension(Quoted),
            _ => return Err(Violation::ChunkLine),
        };
        Ok(())
    }
}

/// Class of the bytes of a token: names, methods (RFC 9110, 5.6.2).
const TOKEN: u8 = 1;
/// Class of the bytes of a target. Wider than RFC 3986: the parser behind escapes bytes that a URI may not have.
const TARGET: u8 = 2;
/// Class of the bytes of a field's value (RFC 9110, 5.5).
const VALUE: u8 = 4;

/// Classes of each byte, as a set of the bits above.
static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte = 0u8;
    loop {
        let token = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        let target = byte > b' ' && byte != 0x7f;
        let value = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        #[allow(clippy::indexing_slicing, reason = "a byte is less than 256")]
        {
            classes[byte as usize] =
                if token { TOKEN } else { 0 } | if target { TARGET } else { 0 } | if value { VALUE } else { 0 };
        }
        if byte == u8::MAX {
            return classes;
        }
        byte += 1;
    }
}

fn is(byte: u8, class: u8) -> bool {
    CLASSES.get(usize::from(byte)).is_some_and(|classes| classes & class != 0)
}

fn run_of(bytes: &[u8], class: u8) -> usize {
    bytes.iter().take_while(|byte| is(**byte, class)).count()
}

/// Number of bytes at the beginning that a value may have, compared eight at a time.
fn run_of_value(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let (words, _) = bytes.as_chunks::<8>();
    let plain = words.iter().take_while(|word| {
        let word = u64::from_ne_bytes(**word);
        // Bytes below a space, and DEL, have a high bit here (S. E. Anderson, "Bit Twiddling Hacks", hasless and haszero).
        let controls = word.wrapping_sub(ONES * 0x20) & !word;
        let without_del = word ^ (ONES * 0x7f);
        let del = without_del.wrapping_sub(ONES) & !without_del;
        (controls | del) & HIGH == 0
    });
    let plain = plain.count() * 8;
    plain + run_of(bytes.get(plain..).unwrap_or_default(), VALUE)
}
