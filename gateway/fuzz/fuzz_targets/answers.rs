//! Answers of HTTP/1 that are put together from good and odd parts, read by the conversation with a server and by hyper's
//! client. An answer that the conversation reads to its end is one that hyper reads: the same status, body and trailers.
//! The conversation may refuse what hyper takes, never the reverse. A connection is kept only behind an answer that is all there.
//!
//! Differences that are allowed, where hyper refuses:
//! - A transfer coding under HTTP/1.0. RFC 9112, 6.1, lets a recipient read such an answer and close the connection after it.
//! - Lines of trailers that end with a bare line feed, which both readers take in heads (RFC 9112, 2.2).
#![no_main]

mod connect;
mod rendered;

pub(crate) use spillway::{message, wire};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use rendered::{Field, Framing, Piece, end_of_line, fields};
use tokio::io::AsyncWriteExt;

/// Bytes of all heads of an answer.
const MOST: u64 = 8 << 10;

#[derive(Arbitrary, Debug)]
struct Answer<'a> {
    early: Vec<Piece<'a>>,
    status: Piece<'a>,
    line_end: u8,
    fields: Vec<Field<'a>>,
    framing: Framing<'a>,
    more_fields: Vec<Field<'a>>,
    body: &'a [u8],
    end: u8,
    after: &'a [u8],
}

const STATUSES: [&str; 14] = [
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200 ",
    "HTTP/1.1 200",
    "HTTP/1.0 200 OK",
    "HTTP/1.1 204 No Content",
    "HTTP/1.1 304 -",
    "HTTP/1.1 404 \u{e9}",
    "HTTP/1.1 099 x",
    "HTTP/1.1 2000 x",
    "HTTP/1.1 101 x",
    "HTTP/1.1 999 x",
    "HTTP/2 200 OK",
    "HTTP/1.1  200 OK",
    "HTTP/1.1 503 Service Unavailable",
];
const EARLY: [&str; 4] = [
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
    "HTTP/1.1 100 x\r\nContent-Length: 5\r\n\r\n",
    "HTTP/1.1 102 x\r\nTransfer-Encoding: chunked\r\n\r\n",
];

impl Answer<'_> {
    fn render(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for early in self.early.iter().take(2) {
            out.extend_from_slice(early.of(&EARLY));
        }
        out.extend_from_slice(self.status.of(&STATUSES));
        out.extend_from_slice(end_of_line(self.line_end));
        fields(&self.fields, &mut out);
        self.framing.field(self.body, &mut out);
        fields(&self.more_fields, &mut out);
        out.extend_from_slice(end_of_line(self.end));
        self.framing.body(self.body, &mut out);
        out.extend_from_slice(self.after);
        out
    }
}

/// Answer that the conversation reads to its end.
async fn by_conversation(method: Method, bytes: &[u8]) -> Option<connect::Answer> {
    let (mut server, client) = tokio::io::duplex(1 << 20);
    server.write_all(bytes).await.expect("room in the stream");
    server.shutdown().await.expect("a stream that is open");
    connect::read(method, client, MOST).await
}

/// Answer that hyper reads to its end.
async fn by_hyper(method: Method, bytes: &[u8]) -> Option<(u16, Vec<u8>, HeaderMap)> {
    // hyper takes bytes that come before its request for a fault: they are sent behind it.
    let (mut server, client) = tokio::io::duplex(1 << 20);
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.allow_spaces_after_header_name_in_responses(true).allow_obsolete_multiline_headers_in_responses(true);
    builder.max_headers(spillway::connect::MAX_FIELDS);
    let (mut sender, connection) = builder.handshake(TokioIo::new(client)).await.ok()?;
    let driver = tokio::spawn(connection.with_upgrades());
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = method;
    let answer = sender.send_request(request);
    let answering = async {
        let mut byte = [0];
        let _ = tokio::io::AsyncReadExt::read(&mut server, &mut byte).await;
        server.write_all(bytes).await.expect("room in the stream");
        server.shutdown().await.expect("a stream that is open");
        server
    };
    let (answer, _server) = tokio::join!(answer, answering);
    let read = async {
        let (head, body) = answer.ok()?.into_parts();
        let collected = body.collect().await.ok()?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Some((head.status.as_u16(), collected.to_bytes().to_vec(), trailers))
    };
    let read = read.await;
    driver.abort();
    read
}

fuzz_target!(|input: (bool, Answer<'_>)| {
    let (is_head, answer) = input;
    let bytes = answer.render();
    let method = if is_head { Method::HEAD } else { Method::GET };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let ours = runtime.block_on(by_conversation(method.clone(), &bytes));
    let theirs = runtime.block_on(by_hyper(method.clone(), &bytes));
    let Some(connect::Answer { head, body, trailers, can_reuse }) = ours else { return };
    // Another protocol begins behind it.
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return;
    }
    if head.version == Version::HTTP_10 && head.headers.contains_key(header::TRANSFER_ENCODING) {
        return assert!(!can_reuse, "{}", bytes.escape_ascii());
    }
    if can_reuse {
        let cut = runtime.block_on(by_conversation(method, &bytes[..bytes.len() - 1]));
        assert!(cut.is_none(), "a byte too many: {}", bytes.escape_ascii());
    }
    let trailers_read = answer.framing.trailers();
    let has_bare_line_feed = trailers_read
        .iter()
        .enumerate()
        .any(|(n, byte)| *byte == b'\n' && n.checked_sub(1).is_none_or(|before| trailers_read[before] != b'\r'));
    if theirs.is_none() && has_bare_line_feed {
        return;
    }
    let theirs = theirs.unwrap_or_else(|| panic!("hyper refuses {}", bytes.escape_ascii()));
    assert_eq!((head.status.as_u16(), body, trailers), theirs, "{}", bytes.escape_ascii());
});
