//! Messages of HTTP/1 put together from parts, good and odd ones, for the targets that compare our readers with hyper's.
#![allow(dead_code, reason = "requests and answers share the parts")]

use libfuzzer_sys::arbitrary::{self, Arbitrary};

/// Piece of text: one that readers are known to differ on, or any bytes.
#[derive(Arbitrary, Debug)]
pub enum Piece<'a> {
    Word(u8),
    Bytes(&'a [u8]),
}

impl Piece<'_> {
    pub fn of<'s>(&'s self, words: &[&'static str]) -> &'s [u8] {
        match self {
            Self::Word(n) => words[usize::from(*n) % words.len()].as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// Field of a head or of trailers.
#[derive(Arbitrary, Debug)]
pub struct Field<'a> {
    name: Piece<'a>,
    colon: u8,
    value: Piece<'a>,
    /// Mostly the end of a line.
    end: u8,
}

/// How the end of a body is told.
#[derive(Arbitrary, Debug)]
pub enum Framing<'a> {
    None,
    /// `Content-Length`, so many more than there are, written in one of some ways.
    Length {
        more: i8,
        written: u8,
    },
    Chunked {
        coding: u8,
        sizes: Vec<Chunk<'a>>,
        last: Piece<'a>,
        trailers: Vec<Field<'a>>,
        end: u8,
    },
    /// Both, in this order.
    Both {
        first_length: bool,
        length: u16,
    },
}

#[derive(Arbitrary, Debug)]
pub struct Chunk<'a> {
    bytes: &'a [u8],
    /// So many more than there are, said in the line.
    more: i8,
    written: u8,
    extension: Piece<'a>,
    end: u8,
}

const NAMES: [&str; 22] = [
    "Host",
    "X",
    "Content-Length",
    "content-length ",
    "Content_Length",
    "Transfer-Encoding",
    "transfer-encoding",
    "TE",
    "Trailer",
    "Connection",
    "Keep-Alive",
    "Expect",
    "Upgrade",
    " Host",
    "",
    "X\t",
    "Content-Length\0",
    "Cookie",
    "X:Y",
    "Content-Type",
    "\u{e9}",
    "proxy-connection",
];
const VALUES: [&str; 28] = [
    "a",
    "",
    "0",
    "5",
    "+5",
    "5, 5",
    "5,6",
    "0x5",
    " 5",
    "05",
    "18446744073709551616",
    "chunked",
    "Chunked",
    "gzip, chunked",
    "chunked, chunked",
    "identity",
    "chunked;q=1",
    "\tchunked",
    "close",
    "keep-alive",
    "close, x",
    "100-continue",
    "a\tb",
    "a\r\n b",
    "a\0b",
    "\u{e9}",
    "h2c",
    "a\rb",
];
const COLONS: [&str; 5] = [": ", ":", " : ", ":\t", ""];
const ENDS: [&str; 6] = ["\r\n", "\r\n", "\r\n", "\n", "\r", "\r\r\n"];
const CODINGS: [&str; 8] =
    ["chunked", "chunked", "CHUNKED", " chunked ", "gzip, chunked", "chunked, ", "chunked\t", "xchunked"];
const LASTS: [&str; 6] = ["0", "00", "0;a=b", "0 ", "0;a=\"b\\\"\"", "-0"];
const EXTENSIONS: [&str; 12] =
    ["", "", ";a", ";a=b", " ; a = \"b\"", ";", ";=", " ", "\t;a", ";a=\"\n\"", ";a\r", ";\u{e9}"];

fn pick(words: &'static [&'static str], n: u8) -> &'static [u8] {
    words[usize::from(n) % words.len()].as_bytes()
}

pub fn end_of_line(n: u8) -> &'static [u8] {
    pick(&ENDS, n)
}

pub fn fields(fields: &[Field<'_>], out: &mut Vec<u8>) {
    for field in fields {
        for part in [field.name.of(&NAMES), pick(&COLONS, field.colon), field.value.of(&VALUES), end_of_line(field.end)]
        {
            out.extend_from_slice(part);
        }
    }
}

fn length(body: &[u8], more: i8, written: u8) -> String {
    let length = (body.len() as i64).saturating_add(i64::from(more));
    match written % 8 {
        1 => format!("{length} "),
        2 => format!("0{length}"),
        3 => format!("+{length}"),
        4 => format!("{length}, {length}"),
        5 => format!("{length}\t"),
        _ => length.to_string(),
    }
}

impl Framing<'_> {
    /// Writes the field that tells of the body.
    pub fn field(&self, body: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::None => {}
            Self::Length { more, written } => {
                out.extend(format!("Content-Length: {}\r\n", length(body, *more, *written)).bytes());
            }
            Self::Chunked { coding, .. } => {
                out.extend([b"Transfer-Encoding: ", pick(&CODINGS, *coding), b"\r\n"].concat());
            }
            Self::Both { first_length, length } => {
                let length = format!("Content-Length: {length}\r\n");
                let coding = "Transfer-Encoding: chunked\r\n";
                let (first, second) = if *first_length { (&*length, coding) } else { (coding, &*length) };
                out.extend([first, second].concat().bytes());
            }
        }
    }

    /// Writes the body.
    pub fn body(&self, body: &[u8], out: &mut Vec<u8>) {
        let Self::Chunked { sizes, last, .. } = self else { return out.extend_from_slice(body) };
        for chunk in sizes {
            let size =
                (chunk.bytes.len() as i64).saturating_add(i64::from(if chunk.more < 100 { 0 } else { chunk.more }));
            let line = match chunk.written % 6 {
                1 => format!("{size:X}"),
                2 => format!("000{size:x}"),
                3 => format!("0x{size:x}"),
                _ => format!("{size:x}"),
            };
            let break_line = end_of_line(chunk.end);
            for part in [line.as_bytes(), chunk.extension.of(&EXTENSIONS), break_line, chunk.bytes, break_line] {
                out.extend_from_slice(part);
            }
        }
        out.extend_from_slice(last.of(&LASTS));
        out.extend_from_slice(b"\r\n");
        out.extend(self.trailers());
    }

    /// Trailers, with the line behind them.
    pub fn trailers(&self) -> Vec<u8> {
        let Self::Chunked { trailers, end, .. } = self else { return Vec::new() };
        let mut out = Vec::new();
        fields(trailers, &mut out);
        out.extend_from_slice(end_of_line(*end));
        out
    }
}
