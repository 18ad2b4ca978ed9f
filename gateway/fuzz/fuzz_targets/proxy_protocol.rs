//! Any bytes as the beginning of a connection from a listed proxy: the verdict and the bytes that are read are the same in one
//! piece and in parts (the first byte says how large). What is accepted is what a plain reading of proxy-protocol.txt says, its
//! header ends where the specification ends it, and a header that is cut anywhere is no header.
#![no_main]

#[path = "../../src/listener/proxy_protocol.rs"]
mod proxy_protocol;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt;
use libfuzzer_sys::fuzz_target;
use proxy_protocol::ProxyError;
use tokio::io::{AsyncRead, ReadBuf};

/// Stream of the bytes left, at most `size` of them a read.
struct Parts<'b> {
    left: &'b [u8],
    size: usize,
}

impl AsyncRead for Parts<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (part, left) = self.left.split_at(self.size.min(into.remaining()).min(self.left.len()));
        into.put_slice(part);
        self.left = left;
        Poll::Ready(Ok(()))
    }
}

/// Client that the header names, or the kind of the refusal, and the number of bytes read.
fn read(bytes: &[u8], size: usize) -> (Result<Option<SocketAddr>, &'static str>, usize) {
    let mut stream = Parts { left: bytes, size };
    let read = proxy_protocol::read(&mut stream).now_or_never().expect("the stream never waits");
    let read = read.map_err(|e| match e {
        ProxyError::Io(_) => "cut",
        ProxyError::Missing => "missing",
        ProxyError::Malformed(why) => {
            assert!(!why.is_empty());
            "malformed"
        }
    });
    (read, bytes.len() - stream.left.len())
}

/// Client and length of a line of version 1, by the words of its specification (2.1).
fn line(bytes: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let end = bytes.windows(2).take(106).position(|pair| pair == b"\r\n")?;
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    let words: Vec<&str> = text.split(' ').collect();
    let client = match words[..] {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", "TCP4", from, to, port, to_port] => {
            to.parse::<Ipv4Addr>().ok()?;
            to_port.parse::<u16>().ok()?;
            Some((from.parse::<Ipv4Addr>().ok()?, port.parse().ok()?).into())
        }
        ["PROXY", "TCP6", from, to, port, to_port] => {
            to.parse::<Ipv6Addr>().ok()?;
            to_port.parse::<u16>().ok()?;
            Some((from.parse::<Ipv6Addr>().ok()?, port.parse().ok()?).into())
        }
        _ => return None,
    };
    Some((client, end + 2))
}

/// Client and length of a header of version 2 (2.2): 12 bytes of signature, version and command, family, length, addresses.
fn binary(bytes: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let rest = bytes.strip_prefix(b"\r\n\r\n\0\r\nQUIT\n")?;
    let [command @ (0x20 | 0x21), family, high, low, rest @ ..] = rest else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let addresses = rest.get(..length)?;
    let port = |at: usize| Some(u16::from_be_bytes([*addresses.get(at)?, *addresses.get(at + 1)?]));
    let client = match (command, family >> 4) {
        (0x20, _) => None,
        (_, 1) => Some((<[u8; 4]>::try_from(addresses.get(..4)?).ok()?, port(8)?).into()),
        (_, 2) => Some((<[u8; 16]>::try_from(addresses.get(..16)?).ok()?, port(32)?).into()),
        _ => None,
    };
    Some((client, 16 + length))
}

fuzz_target!(|input: &[u8]| {
    let [size, bytes @ ..] = input else { return };
    let whole = read(bytes, usize::MAX);
    assert_eq!(whole, read(bytes, usize::from(*size).max(1)));
    let (Ok(client), end) = whole else { return };
    assert_eq!(line(bytes).or_else(|| binary(bytes)), Some((client, end)), "{}", bytes[..end].escape_ascii());
    assert_eq!(read(&bytes[..end], usize::MAX), whole, "what follows has no say");
    for cut in 0..end {
        assert_eq!(read(&bytes[..cut], usize::MAX), (Err("cut"), cut));
    }
});
