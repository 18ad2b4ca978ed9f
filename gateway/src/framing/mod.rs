//! A strict reader of where HTTP/1 requests begin and end (RFC 9112). It sees each byte of a connection once, before the
//! session that parses requests does, and stops at the first byte that breaks the grammar or a limit.
//!
//! A pure state machine: no I/O, no clock and no memory that grows with what a client sends. It decides only where a
//! message ends; what the fields mean is left to the parser behind it. It must never take for whole what that parser takes
//! for a part, or the other way round: `framing/tests.rs` compares the two, `gateway/fuzz` does so without end.

use std::io;

use http::StatusCode;

#[cfg(test)]
mod tests;

/// Most fields of a head, and of trailers. Pingora parses into an array of so many.
pub const MAX_FIELDS: u16 = 256;

/// Most bytes of the line that begins a chunk: its size and extensions. Signatures of chunks, the longest extensions in
/// use, take about 90.
pub const MAX_CHUNK_LINE: u16 = 1024;

/// Most bytes of trailers, whatever a head may have. Pingora reads no more.
pub const MAX_TRAILERS: u64 = 64 << 10;

/// Largest length of a body or chunk in bytes. Other parsers keep lengths as signed 64-bit integers.
const MAX_LENGTH: u64 = i64::MAX as u64;

/// A request that breaks the grammar or a limit. The connection cannot be used any further.
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
    /// A field is not `NAME: VALUE`, or has a byte that may not be there (RFC 9112, 5).
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
    #[error("the only transfer coding that is taken is `chunked`")]
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
    /// Status of the answer: 431 (RFC 6585, 5), 414, 501 (RFC 9112, 6.1) or 400.
    pub fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLong | Self::TooManyFields | Self::TrailersTooLong => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::UnknownCoding => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// Code of the answer's error.
    pub fn code(self) -> &'static str {
        match self {
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLong | Self::TooManyFields | Self::TrailersTooLong => "header_too_large",
            Self::UnknownCoding => "unsupported_transfer_coding",
            Self::Length | Self::TwoLengths | Self::Coding => "ambiguous_framing",
            Self::ChunkLine | Self::ChunkLineTooLong | Self::ChunkEnd | Self::Trailer => "malformed_body",
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
enum State {
    /// Before a request line; empty lines are skipped (RFC 9112, 2.2).
    Start,
    StartLf,
    Method,
    /// The target; whether a byte of it was seen.
    Target(bool),
    /// The version, so many bytes of it were seen.
    Version(u8),
    LineCr,
    LineLf,
    /// The beginning of a line of the head or trailers.
    Field,
    Name,
    Value,
    /// The value of `Content-Length`.
    Length(Digits),
    /// The value of `Transfer-Encoding`.
    Coding,
    ValueLf,
    EndLf,
    /// Bytes of a body with a length that are still to come.
    Fixed(u64),
    /// The size of a chunk: so many digits were seen.
    Size(u8),
    Extension(Extension),
    SizeLf,
    /// Bytes of a chunk that are still to come.
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

/// A place in `*( BWS ";" BWS NAME [ BWS "=" BWS ( TOKEN / QUOTED ) ] )` (RFC 9112, 7.1.1).
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

/// A name or token that is compared while it comes, in pieces.
#[derive(Debug, Clone, Copy, Default)]
struct Word {
    bytes: [u8; 17],
    length: u8,
}

impl Word {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(usize::from(self.length)) {
            *place = byte.to_ascii_lowercase();
        }
        self.length = self.length.saturating_add(1);
    }

    fn is(&self, word: &[u8]) -> bool {
        self.bytes.get(..usize::from(self.length)) == Some(word)
    }
}

/// How the body of a request ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    None,
    Length(u64),
    Chunked,
}

/// The reader of one connection.
#[derive(Debug)]
pub struct Framer {
    state: State,
    /// Bytes that a head, or trailers, may have.
    most: u64,
    /// Bytes of the head or trailers so far.
    used: u64,
    /// Fields of the head or trailers so far.
    fields: u16,
    /// Bytes of the chunk's line so far.
    line: u16,
    in_trailers: bool,
    is_http10: bool,
    /// True if the version of the request line was seen.
    line_ended: bool,
    body: Body,
    word: Word,
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
    /// A reader at the beginning of a connection. A head, and likewise trailers, may have `most` bytes.
    pub fn new(most: u64) -> Self {
        Self {
            state: State::Start,
            most,
            used: 0,
            fields: 0,
            line: 0,
            in_trailers: false,
            is_http10: false,
            line_ended: false,
            body: Body::None,
            word: Word::default(),
            coding_list: false,
            coding_gap: false,
            chunk: 0,
        }
    }

    /// Bytes of a body that come next whatever they are; 0 where the next byte must be looked at.
    pub fn opaque(&self) -> u64 {
        match self.state {
            State::Fixed(left) | State::Data(left) => left,
            _ => 0,
        }
    }

    /// Passes over `count` bytes of a body, of at most [`Self::opaque`].
    pub fn skip(&mut self, count: u64) {
        match &mut self.state {
            State::Fixed(left) => {
                *left = left.saturating_sub(count);
                if *left == 0 {
                    self.begin();
                }
            }
            State::Data(left) => {
                *left = left.saturating_sub(count);
                if *left == 0 {
                    self.state = State::DataCr;
                }
            }
            _ => {}
        }
    }

    /// True if no request is unfinished: all that was read belongs to whole ones.
    pub fn is_between(&self) -> bool {
        self.state == State::Start && self.used == 0
    }

    /// Violation with which reading has ended.
    pub fn violation(&self) -> Option<Violation> {
        match self.state {
            State::Failed(violation) => Some(violation),
            _ => None,
        }
    }

    /// True if a body is being read.
    pub fn is_in_body(&self) -> bool {
        self.in_trailers
            || matches!(
                self.state,
                State::Fixed(_)
                    | State::Size(..)
                    | State::Extension(_)
                    | State::SizeLf
                    | State::Data(_)
                    | State::DataCr
                    | State::DataLf
            )
    }

    /// Reads on and returns how many of `bytes`, which are not none, may be handed on: all, or those up to the end of a
    /// message, or those before a violation, with which the next call fails. At least the first byte of a message is
    /// handed on, so that whoever waits for the next request learns that there is one before it fails.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        if let State::Failed(violation) = self.state {
            return Err(violation);
        }
        let was_between = self.is_between();
        let mut at = 0;
        while at < bytes.len() {
            if let Err(violation) = self.step(bytes, &mut at) {
                self.state = State::Failed(violation);
                return match at {
                    0 if was_between => Ok(1),
                    0 => Err(violation),
                    _ => Ok(at),
                };
            }
            // A message has ended here: what comes behind it is not read together with it.
            if self.is_between() {
                break;
            }
        }
        Ok(at)
    }

    /// Reads at least one of the bytes from `at` on, and moves `at` behind what was read.
    fn step(&mut self, bytes: &[u8], at: &mut usize) -> Result<(), Violation> {
        let rest = bytes.get(*at..).unwrap_or_default();
        match self.state {
            State::Fixed(left) | State::Data(left) => {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                self.skip(u64::try_from(here).unwrap_or(left));
                *at += here;
                Ok(())
            }
            State::Size(..) | State::Extension(_) | State::SizeLf | State::DataCr | State::DataLf => {
                self.chunk(rest.first().copied().unwrap_or_default())?;
                *at += 1;
                Ok(())
            }
            State::Failed(violation) => Err(violation),
            _ => self.head(rest, at),
        }
    }

    /// Reads on in a head or in trailers, which are counted.
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
            if self.is_between() || matches!(self.state, State::Fixed(_) | State::Size(_)) {
                break;
            }
        }
        Ok(())
    }

    /// Passes over bytes that come together: most are of values, names and the target. 0 where the next byte is to be
    /// looked at by itself.
    fn run(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let end_of_line = |run: usize| if bytes.get(run..run + 2) == Some(b"\r\n") { 2 } else { 0 };
        match self.state {
            State::Field => {
                let name = run_of(bytes, TOKEN);
                let is = |word: &[u8]| bytes.get(..name).is_some_and(|name| name.eq_ignore_ascii_case(word));
                if name == 0 || bytes.get(name) != Some(&b':') || is(LENGTH) || is(CODING) {
                    return Ok(0);
                }
                self.count_field()?;
                self.state = State::Value;
                Ok(name + 1)
            }
            State::Value => {
                let value = run_of_value(bytes);
                let end = end_of_line(value);
                if end > 0 {
                    self.state = State::Field;
                }
                Ok(value + end)
            }
            State::Name => {
                let name = run_of(bytes, TOKEN);
                if self.word.length <= 17 {
                    bytes.iter().take(name.min(18)).for_each(|byte| self.word.push(*byte));
                }
                Ok(name)
            }
            State::Method => Ok(run_of(bytes, TOKEN)),
            State::Target(_) => {
                let target = run_of(bytes, TARGET);
                if target > 0 {
                    self.state = State::Target(true);
                }
                Ok(target)
            }
            State::Version(0) if bytes.starts_with(b"HTTP/1.1\r\n") => {
                self.line_ended = true;
                self.state = State::Field;
                Ok(10)
            }
            _ => Ok(0),
        }
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
            (State::Start, b'\r') => State::StartLf,
            (State::Start, _) if is(byte, TOKEN) => State::Method,
            (State::Start, b'\n') => return Err(Violation::LineEnd),
            (State::Start, _) => return Err(Violation::RequestLine),
            (State::StartLf, b'\n') => State::Start,
            (State::Method, b' ') => State::Target(false),
            (State::Method, _) if is(byte, TOKEN) => State::Method,
            (State::Target(true), b' ') => State::Version(0),
            (State::Version(7), b'0' | b'1') => {
                self.is_http10 = byte == b'0';
                State::LineCr
            }
            (State::Version(n), _) if BEFORE_VERSION.get(usize::from(n)) == Some(&byte) => State::Version(n + 1),
            (State::LineCr, b'\r') => State::LineLf,
            (State::LineLf, b'\n') => {
                self.line_ended = true;
                State::Field
            }
            (State::Field, b'\r') => State::EndLf,
            (State::Field, _) if is(byte, TOKEN) => {
                self.count_field()?;
                self.word = Word::default();
                // No other letter begins a name that is looked for.
                match byte {
                    b'C' | b'c' | b'T' | b't' => self.word.push(byte),
                    _ => self.word.length = u8::MAX,
                }
                State::Name
            }
            (State::Name, b':') => self.named()?,
            (State::Value, b'\r') => State::ValueLf,
            (State::Length(digits), _) => return self.length(digits, byte),
            (State::Coding, _) => return self.coding(byte),
            (State::ValueLf, b'\n') => State::Field,
            (State::EndLf, b'\n') => return self.ended(),
            (State::StartLf | State::LineCr | State::LineLf | State::ValueLf | State::EndLf, _) => {
                return Err(Violation::LineEnd);
            }
            (State::Method | State::Target(_) | State::Version(_), _) => return Err(Violation::RequestLine),
            (_, b'\n') => return Err(Violation::LineEnd),
            _ if self.in_trailers => return Err(Violation::Trailer),
            _ => return Err(Violation::Field),
        };
        Ok(())
    }

    /// A name has ended with its colon. Trailers say nothing of the framing.
    fn named(&mut self) -> Result<State, Violation> {
        if self.in_trailers {
            return Ok(State::Value);
        }
        if self.word.is(LENGTH) {
            return match self.body {
                Body::None => Ok(State::Length(Digits::Before)),
                Body::Length(_) => Err(Violation::Length),
                Body::Chunked => Err(Violation::TwoLengths),
            };
        }
        if self.word.is(CODING) {
            self.word = Word::default();
            return match self.body {
                _ if self.is_http10 => Err(Violation::Coding),
                Body::None => Ok(State::Coding),
                Body::Length(_) => Err(Violation::TwoLengths),
                Body::Chunked => Err(Violation::Coding),
            };
        }
        Ok(State::Value)
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
                self.state = State::ValueLf;
                return Ok(());
            }
            _ => return Err(Violation::Length),
        };
        self.state = State::Length(next);
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
                self.state = State::ValueLf;
            }
            b',' => {
                self.coding_list = true;
                self.coding_gap = false;
                self.word = Word::default();
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

    /// An empty line ends a head, or trailers and with them the message.
    fn ended(&mut self) -> Result<(), Violation> {
        if self.in_trailers {
            self.begin();
            return Ok(());
        }
        match self.body {
            Body::None | Body::Length(0) => self.begin(),
            Body::Length(length) => self.state = State::Fixed(length),
            Body::Chunked => self.state = State::Size(0),
        }
        Ok(())
    }

    fn begin(&mut self) {
        *self = Self::new(self.most);
    }

    /// Reads a byte of what stands around the data of chunks.
    fn chunk(&mut self, byte: u8) -> Result<(), Violation> {
        match (self.state, byte) {
            (State::DataCr, b'\r') => {
                self.state = State::DataLf;
                return Ok(());
            }
            (State::DataLf, b'\n') => {
                self.state = State::Size(0);
                (self.line, self.chunk) = (0, 0);
                return Ok(());
            }
            (State::DataCr | State::DataLf, _) => return Err(Violation::ChunkEnd),
            (State::SizeLf, b'\n') => {
                if self.chunk > 0 {
                    self.state = State::Data(self.chunk);
                } else {
                    (self.in_trailers, self.used, self.fields) = (true, 0, 0);
                    self.state = State::Field;
                }
                return Ok(());
            }
            (State::SizeLf, _) => return Err(Violation::LineEnd),
            _ => {}
        }
        self.line += 1;
        if self.line > MAX_CHUNK_LINE {
            return Err(Violation::ChunkLineTooLong);
        }
        use Extension::{Begin, Closed, Equals, Escaped, Name, Named, Quoted, Semicolon, Token};
        self.state = match (self.state, byte) {
            (State::Size(digits), _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                let size = self.chunk.checked_mul(16).map(|size| size | digit);
                self.chunk = size.filter(|size| *size <= MAX_LENGTH && digits < 16).ok_or(Violation::ChunkLine)?;
                State::Size(digits + 1)
            }
            (State::Size(0), _) => return Err(Violation::ChunkLine),
            (State::Size(..) | State::Extension(Name | Token | Closed), b'\r') => State::SizeLf,
            // White space behind a name may be followed by `=` or by another extension; behind the rest by that only.
            (State::Size(..) | State::Extension(Semicolon | Token | Closed), b' ' | b'\t') => {
                State::Extension(Semicolon)
            }
            (State::Size(..) | State::Extension(Semicolon | Name | Named | Token | Closed), b';') => {
                State::Extension(Begin)
            }
            (State::Extension(Begin), b' ' | b'\t') => State::Extension(Begin),
            (State::Extension(Begin | Name), _) if is(byte, TOKEN) => State::Extension(Name),
            (State::Extension(Name | Named), b' ' | b'\t') => State::Extension(Named),
            (State::Extension(Name | Named), b'=') => State::Extension(Equals),
            (State::Extension(Equals), b' ' | b'\t') => State::Extension(Equals),
            (State::Extension(Equals), b'"') => State::Extension(Quoted),
            (State::Extension(Equals | Token), _) if is(byte, TOKEN) => State::Extension(Token),
            (State::Extension(Quoted), b'"') => State::Extension(Closed),
            (State::Extension(Quoted), b'\\') => State::Extension(Escaped),
            (State::Extension(Quoted | Escaped), _) if is(byte, VALUE) => State::Extension(Quoted),
            _ => return Err(Violation::ChunkLine),
        };
        Ok(())
    }
}

/// A byte of a token: names, methods (RFC 9110, 5.6.2).
const TOKEN: u8 = 1;
/// A byte of a target. Wider than RFC 3986: the parser behind escapes what a URI may not have.
const TARGET: u8 = 2;
/// A byte of a field's value (RFC 9110, 5.5).
const VALUE: u8 = 4;

/// Which of the classes above a byte is of.
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

/// The bytes at the beginning that may be in a value, eight at a time.
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
