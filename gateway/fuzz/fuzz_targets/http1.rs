//! Connections of HTTP/1 with requests that are put together from good and odd parts, read by the session of a listener and by
//! hyper's server. Each request that the session reads in full is one that hyper reads: the same method, target, fields, body
//! and trailers, and so the same beginning of the next one. The session may refuse what hyper takes, never the reverse.
//!
//! A single difference is allowed: a target that is neither a path nor a URL, or has bytes that no URI has. The session hands it on, and
//! the pipeline refuses or escapes it (`gateway/src/pipeline/target`). What follows it on its connection is not compared.
#![no_main]

mod rendered;

use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use prometheus_client::metrics::counter::Counter;
use rendered::{Field, Framing, Piece, end_of_line, fields};
use spillway::downstream::{Http1Session, Transport, WriteBounded};
use spillway::message::ResponseHead;
use spillway::telemetry::{ListenerMetrics, Metrics};
use tokio::io::AsyncWriteExt;

/// Bytes of a head that both readers take.
const MOST: u64 = 8 << 10;

#[derive(Arbitrary, Debug)]
struct Message<'a> {
    before: u8,
    method: Piece<'a>,
    target: Piece<'a>,
    version: Piece<'a>,
    line_end: u8,
    fields: Vec<Field<'a>>,
    framing: Framing<'a>,
    more_fields: Vec<Field<'a>>,
    body: &'a [u8],
    end: u8,
}

const METHODS: [&str; 8] = ["GET", "POST", "HEAD", "CONNECT", "OPTIONS", "get", "M-SEARCH", "GET "];
const TARGETS: [&str; 12] =
    ["/", "/a?b=c", "*", "http://a.test/x", "a.test:443", "/%2e%2e/", "//a", "/a#b", "/a\"b", "/\u{e9}", "", "/ x"];
const VERSIONS: [&str; 8] = ["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.1 ", "HTTP/2.0", "http/1.1", "HTTP/1.10", ""];

impl Message<'_> {
    fn render(&self, out: &mut Vec<u8>) {
        if self.before > 240 {
            out.extend_from_slice(end_of_line(self.before));
        }
        for part in [self.method.of(&METHODS), b" ", self.target.of(&TARGETS), b" ", self.version.of(&VERSIONS)] {
            out.extend_from_slice(part);
        }
        out.extend_from_slice(end_of_line(self.line_end));
        out.extend_from_slice(b"Host: a.test\r\n");
        fields(&self.fields, out);
        self.framing.field(self.body, out);
        fields(&self.more_fields, out);
        out.extend_from_slice(end_of_line(self.end));
        self.framing.body(self.body, out);
    }
}

/// Request that was read to its end.
#[derive(Debug, Clone, PartialEq)]
struct Read {
    method: String,
    target: Vec<u8>,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
}

fn listed<'f>(
    fields: impl IntoIterator<Item = (&'f http::HeaderName, &'f http::HeaderValue)>,
) -> Vec<(String, Vec<u8>)> {
    let mut listed: Vec<_> =
        fields.into_iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect();
    // The order of fields of one name says something, that of names does not.
    listed.sort_by(|(a, _), (b, _)| a.cmp(b));
    listed
}

static METRICS: LazyLock<Arc<ListenerMetrics>> = LazyLock::new(|| Metrics::new().listener("fuzz"));

/// Requests that the session reads in full.
async fn by_session(bytes: &[u8]) -> Vec<Read> {
    let (client, server) = UnixStream::pair().expect("a pair of sockets");
    for end in [&client, &server] {
        end.set_nonblocking(true).expect("a socket that does not block");
    }
    let mut client = tokio::net::UnixStream::from_std(client).expect("a runtime");
    // The session wants a TCP stream; to read and write, another stream socket is as good.
    let server = std::net::TcpStream::from(std::os::fd::OwnedFd::from(server));
    let server = Transport::Plain(tokio::net::TcpStream::from_std(server).expect("a runtime"));
    let stream = WriteBounded::new(server, Duration::from_secs(60), Counter::default());
    let mut session = Http1Session::new(stream, MOST, METRICS.clone());
    client.write_all(bytes).await.expect("room in the socket");
    client.shutdown().await.expect("a socket that is open");
    let mut all = Vec::new();
    while let Ok(true) = session.read_request().await {
        let head = session.head().clone();
        let mut body = Vec::new();
        loop {
            match session.read_body().await {
                Ok(Some(part)) => body.extend_from_slice(&part),
                Ok(None) => break,
                Err(_) => return all,
            }
        }
        all.push(Read {
            method: head.method.to_string(),
            target: head.raw_path().to_vec(),
            fields: listed(head.headers.iter()),
            body,
            trailers: listed(&session.trailers().unwrap_or_default()),
        });
        let mut answer = ResponseHead::new(http::StatusCode::NOT_FOUND, 1);
        answer.append_header("content-length", "0").expect("a header");
        if session.write_head(&answer).await.is_err() || !matches!(session.finish().await, Ok(true)) {
            break;
        }
    }
    all
}

/// Requests that hyper reads in full.
async fn by_hyper(bytes: &[u8]) -> Vec<Read> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    client.write_all(bytes).await.expect("room in the stream");
    client.shutdown().await.expect("a stream that is open");
    let all = Arc::new(Mutex::new(Vec::new()));
    let seen = all.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let (head, body) = request.into_parts();
            if let Ok(collected) = body.collect().await {
                let trailers = collected.trailers().cloned().unwrap_or_else(HeaderMap::new);
                seen.lock().expect("one thread").push(Read {
                    method: head.method.to_string(),
                    target: head.uri.to_string().into_bytes(),
                    fields: listed(&head.headers),
                    body: collected.to_bytes().to_vec(),
                    trailers: listed(&trailers),
                });
            }
            // No other answer to CONNECT leaves the connection as it is.
            let mut answer = Response::new(Empty::<Bytes>::new());
            *answer.status_mut() = http::StatusCode::NOT_FOUND;
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.half_close(true).header_read_timeout(None).max_headers(usize::from(spillway::framing::MAX_FIELDS));
    let _ = builder.serve_connection(TokioIo::new(server), service).await;
    drop(client);
    Arc::into_inner(all).expect("the service has ended").into_inner().expect("one thread")
}

/// Target as a URI, if it has a form that the pipeline takes.
fn uri_of(target: &[u8]) -> Option<Uri> {
    let uri = Uri::try_from(target).ok()?;
    (target.starts_with(b"/") || target == b"*" || uri.scheme().is_some()).then_some(uri)
}

fuzz_target!(|messages: Vec<Message<'_>>| {
    let mut bytes = Vec::new();
    for message in messages.iter().take(4) {
        message.render(&mut bytes);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().expect("a runtime");
    let (ours, theirs) = runtime.block_on(async { (by_session(&bytes).await, by_hyper(&bytes).await) });
    for (n, mine) in ours.iter().enumerate() {
        let Some(uri) = uri_of(&mine.target) else { return };
        let expected = theirs.get(n).unwrap_or_else(|| panic!("hyper refuses {mine:?} of {}", bytes.escape_ascii()));
        assert_eq!(uri.to_string().as_bytes(), expected.target, "{}", bytes.escape_ascii());
        let mine = Read { target: expected.target.clone(), ..mine.clone() };
        assert_eq!(mine, *expected, "{}", bytes.escape_ascii());
    }
});
