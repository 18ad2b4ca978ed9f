//! Clients of the mix. Each sends its next request when the last one is over and a pause has passed, and knows which answers
//! its requests may get.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::request::Builder;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Tally, World, servers};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests over one HTTP/2 connection.
const STREAMS: usize = 40;
/// Bytes of an upload.
const UPLOAD: usize = 3 << 20;

/// Ways to send one request; each returns the status, or what is wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Over a connection that is kept.
    Kept,
    /// Over a connection of its own.
    Fresh,
    /// Over TLS and HTTP/2, some at a time.
    Streams,
    /// A gRPC call over HTTP/2 without TLS.
    Grpc,
    /// Leaves when the first part of the answer is there.
    Leaves,
    /// Reads the answer in small parts with pauses.
    Slow,
}

/// A part of the mix.
struct Part {
    name: &'static str,
    way: Way,
    path: &'static str,
    body: Content,
    /// Statuses beside 200 that the mix itself provokes.
    provoked: &'static [u16],
    /// Clients at a time.
    clients: usize,
    pause: Duration,
}

/// Body of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    None,
    Chat,
    Stream,
    Text,
    Upload,
}

const fn part(name: &'static str, way: Way, path: &'static str, body: Content, clients: usize, pause: u64) -> Part {
    Part { name, way, path, body, provoked: &[], clients, pause: Duration::from_millis(pause) }
}

const V1: &str = "/v1/chat/completions";

/// The mix. 429: a limit, of wrong keys too; 429 and 503: the servers and the built-in model have no room; 401: a wrong key.
static MIX: &[Part] = &[
    part("plain, kept connection", Way::Kept, "/plain", Content::None, 2, 20),
    part("plain, fresh connection", Way::Fresh, "/plain", Content::None, 2, 30),
    part("TLS, HTTP/2", Way::Streams, "/plain", Content::None, 1, 200),
    part("chat, whole", Way::Kept, V1, Content::Chat, 2, 40),
    part("chat, streamed", Way::Fresh, V1, Content::Stream, 2, 40),
    part("embeddings", Way::Kept, "/v1/embeddings", Content::Text, 1, 50),
    Part {
        provoked: &[429, 503],
        ..part("built-in model", Way::Fresh, "/inside/v1/chat/completions", Content::Chat, 1, 200)
    },
    Part {
        provoked: &[429, 503],
        ..part("few places, spilling", Way::Fresh, "/few/v1/chat/completions", Content::Stream, 5, 200)
    },
    Part { provoked: &[429], ..part("limited key", Way::Kept, "/limited", Content::None, 2, 30) },
    Part { provoked: &[401, 429], ..part("wrong key", Way::Kept, "/closed", Content::None, 1, 200) },
    part("canary", Way::Kept, "/canary", Content::None, 1, 30),
    part("mirrored", Way::Kept, "/mirrored", Content::Text, 1, 40),
    part("hedged", Way::Kept, "/hedged", Content::None, 1, 30),
    part("retried", Way::Kept, "/retried", Content::None, 2, 30),
    part("leaves early", Way::Leaves, V1, Content::Stream, 1, 60),
    part("slow reader", Way::Slow, "/large", Content::None, 2, 100),
    part("upload", Way::Fresh, "/upload", Content::Upload, 1, 500),
    part("gRPC", Way::Grpc, "/soak.Service/Call", Content::None, 1, 100),
];

/// Starts all clients of the mix; they end when the world stops.
pub(super) fn start(world: &Arc<World>) -> (Vec<Arc<Tally>>, tokio::task::JoinSet<()>) {
    let mut clients = tokio::task::JoinSet::new();
    let mut tallies = Vec::new();
    for part in MIX {
        let tally = Arc::new(Tally::new(part.name));
        tallies.push(tally.clone());
        for _ in 0..part.clients {
            clients.spawn(run(world.clone(), part, tally.clone()));
        }
    }
    (tallies, clients)
}

async fn run(world: Arc<World>, part: &'static Part, tally: Arc<Tally>) {
    let mut kept = None;
    while !world.stop.load(Ordering::Relaxed) {
        let asked = async {
            match part.way {
                Way::Streams => streams(&world, part, &tally).await,
                Way::Grpc => call(&world, part).await.map(|status| tally.count(status, part.provoked)),
                _ => one(&world, part, &mut kept).await.map(|status| tally.count(status, part.provoked)),
            }
        };
        let wrong = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(done) => done.err(),
            Err(_) => Some(format!("no answer within {PATIENCE:?}")),
        };
        if let Some(wrong) = wrong {
            tally.wrong(wrong);
            kept = None;
        }
        tokio::time::sleep(part.pause).await;
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn request(world: &World, part: &Part) -> Request<Full<Bytes>> {
    let key = match part.path {
        "/limited" => &world.limited,
        "/closed" => "wrong",
        _ => &world.key,
    };
    let head = Request::builder().uri(part.path).header("host", "soak.test").header("x-api-key", key);
    with_body(head, part.body)
}

fn with_body(head: Builder, content: Content) -> Request<Full<Bytes>> {
    let (kind, text) = match content {
        Content::None => return head.body(Full::default()).unwrap(),
        Content::Chat | Content::Stream => {
            let streamed = if content == Content::Stream { ",\"stream\":true" } else { "" };
            let messages = r#""messages":[{"role":"user","content":"Say hello."}]"#;
            ("application/json", format!(r#"{{"model":"m",{messages},"max_tokens":4,"temperature":0{streamed}}}"#))
        }
        Content::Text => ("application/json", r#"{"model":"m","input":"three words here"}"#.to_owned()),
        Content::Upload => ("application/octet-stream", "x".repeat(UPLOAD)),
    };
    head.method("POST").header("content-type", kind).body(Full::from(text)).unwrap()
}

type Sender = http1::SendRequest<Full<Bytes>>;

async fn connect(port: u16) -> Result<Sender, String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(text)?;
    stream.set_nodelay(true).map_err(text)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends a request over HTTP/1.1 and judges its answer.
async fn one(world: &World, part: &Part, kept: &mut Option<Sender>) -> Result<u16, String> {
    if part.way == Way::Slow {
        return read_slowly(world, part).await;
    }
    let mut sender = match kept.take() {
        Some(sender) if !sender.is_closed() => sender,
        _ => connect(world.plain).await?,
    };
    sender.ready().await.map_err(text)?;
    let answer = sender.send_request(request(world, part)).await.map_err(text)?;
    let status = answer.status().as_u16();
    let mut body = answer.into_body();
    if part.way == Way::Leaves {
        let first = body.frame().await.ok_or("an answer without a part")?;
        return first.map(|_| status).map_err(text);
    }
    judge(part, status, body).await?;
    if part.way == Way::Kept {
        *kept = Some(sender);
    }
    Ok(status)
}

/// Reads a whole answer and judges it.
async fn judge(part: &Part, status: u16, body: Incoming) -> Result<(), String> {
    let body = body.collect().await.map_err(text)?.to_bytes();
    let said = String::from_utf8_lossy(&body);
    let is_right = match part.body {
        // Full, and not failed.
        _ if status == 503 => said.contains("\"overloaded\""),
        _ if status != 200 => true,
        Content::None => said == "ok",
        Content::Chat => said.contains("\"choices\""),
        Content::Stream => said.trim_end().ends_with("data: [DONE]"),
        Content::Text => said.contains("embedding") || said == "ok",
        Content::Upload => said == UPLOAD.to_string(),
    };
    if is_right { Ok(()) } else { Err(format!("{status} with {}", said.chars().take(200).collect::<String>())) }
}

/// Reads a large answer with pauses and counts its bytes.
async fn read_slowly(world: &World, part: &Part) -> Result<u16, String> {
    let mut stream = TcpStream::connect(("127.0.0.1", world.plain)).await.map_err(text)?;
    let head = format!(
        "GET {} HTTP/1.1\r\nhost: soak.test\r\nx-api-key: {}\r\nconnection: close\r\n\r\n",
        part.path, world.key
    );
    stream.write_all(head.as_bytes()).await.map_err(text)?;
    let (mut buffer, mut answer) = (vec![0; 16 << 10], Vec::new());
    loop {
        match stream.read(&mut buffer).await.map_err(text)? {
            0 => break,
            n => answer.extend_from_slice(&buffer[..n]),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or("no head")?;
    let status = std::str::from_utf8(&answer[9..12]).map_err(text)?.parse().map_err(text)?;
    if status == 200 && answer.len() - head - 4 != servers::LARGE {
        return Err(format!("{} bytes of {}", answer.len() - head - 4, servers::LARGE));
    }
    Ok(status)
}

/// Opens an HTTP/2 connection over TLS and sends requests over it, four at a time.
async fn streams(world: &World, part: &Part, tally: &Tally) -> Result<(), String> {
    let stream = TcpStream::connect(("127.0.0.1", world.secure)).await.map_err(text)?;
    let name = rustls::pki_types::ServerName::try_from("soak.test").map_err(text)?;
    let stream = tokio_rustls::TlsConnector::from(world.tls.clone()).connect(name, stream).await.map_err(text)?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(text)?;
    let connection = tokio::spawn(connection);
    for _ in 0..STREAMS / 4 {
        let asked = (0..4).map(|_| {
            let mut sender = sender.clone();
            async move {
                let uri = format!("https://soak.test{}", part.path);
                let head = Request::builder().uri(uri).header("x-api-key", &world.key);
                let answer = sender.send_request(with_body(head, part.body)).await.map_err(text)?;
                let status = answer.status().as_u16();
                judge(part, status, answer.into_body()).await?;
                Ok::<_, String>(status)
            }
        });
        for status in futures::future::join_all(asked).await {
            tally.count(status?, part.provoked);
        }
    }
    drop(sender);
    let _ = connection.await;
    Ok(())
}

/// Makes a gRPC call over a connection of its own; its status is in the trailers.
async fn call(world: &World, part: &Part) -> Result<u16, String> {
    let stream = TcpStream::connect(("127.0.0.1", world.h2c)).await.map_err(text)?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(text)?;
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://soak.test{}", part.path))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-api-key", &world.key)
        .body(Full::new(Bytes::from_static(&[0; 5])))
        .unwrap();
    let answer = sender.send_request(request).await.map_err(text)?;
    let status = answer.status().as_u16();
    let whole = answer.into_body().collect().await.map_err(text)?;
    let trailers: HeaderMap = whole.trailers().cloned().unwrap_or_default();
    drop(sender);
    let _ = connection.await;
    match trailers.get("grpc-status") {
        Some(code) if code == "0" => Ok(status),
        other => Err(format!("grpc-status {other:?} in the trailers")),
    }
}

/// Statuses with their counts, as a text.
pub(super) fn statuses(counts: &BTreeMap<u16, usize>) -> String {
    let counts: Vec<String> = counts.iter().map(|(status, count)| format!("{status}: {count}")).collect();
    counts.join(", ")
}
