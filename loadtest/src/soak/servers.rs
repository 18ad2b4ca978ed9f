//! Servers behind the gateway, in this process: each answers by the path that it is asked for, some badly on purpose.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// Bytes of an answer that slow clients read.
pub(super) const LARGE: usize = 512 << 10;
/// Events of a streamed chat.
const EVENTS: usize = 8;
/// Time that a server of few places needs for an answer.
const SERVICE: Duration = Duration::from_millis(60);

type Body = BoxBody<Bytes, std::io::Error>;

/// Kind of a server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Answers everything at once, over HTTP/1.1.
    Sound,
    /// Every fourth request gets 502 or no answer at all.
    Flaky,
    /// Every tenth answer is late.
    Late,
    /// Takes a while for each answer.
    Busy,
    /// HTTP/2: gRPC calls, and the exports of a tracer.
    Grpc,
}

/// Starts a server on loopback; it ends with the runtime.
pub(super) async fn start(kind: Kind) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let asked = asked.clone();
            let service = service_fn(move |request| answer(kind, asked.fetch_add(1, Ordering::Relaxed), request));
            tokio::spawn(async move {
                let stream = TokioIo::new(stream);
                if kind == Kind::Grpc {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(stream, service).await;
                } else {
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await;
                }
            });
        }
    });
    address
}

async fn answer(kind: Kind, asked: usize, request: Request<Incoming>) -> std::io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    match kind {
        Kind::Flaky if asked.is_multiple_of(8) => return Err(std::io::Error::other("hangs up")),
        Kind::Flaky if asked % 8 == 4 => return Ok(whole(502, "text/plain", "bad gateway".into())),
        Kind::Late if asked.is_multiple_of(10) => tokio::time::sleep(Duration::from_millis(400)).await,
        Kind::Busy => tokio::time::sleep(SERVICE).await,
        Kind::Grpc => return Ok(call()),
        _ => {}
    }
    let is_streamed = memchr(&body, b"\"stream\":true");
    Ok(match head.uri.path() {
        path if path.ends_with("/chat/completions") && is_streamed => chat_events(),
        path if path.ends_with("/chat/completions") => whole(200, "application/json", chat()),
        path if path.ends_with("/embeddings") => whole(200, "application/json", EMBEDDING.into()),
        "/upload" => whole(200, "text/plain", body.len().to_string()),
        "/large" => whole(200, "application/octet-stream", "x".repeat(LARGE)),
        _ => whole(200, "text/plain", "ok".into()),
    })
}

fn memchr(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

const EMBEDDING: &str = r#"{"object":"list","model":"m","data":[{"object":"embedding","index":0,"embedding":[0.5,0.5]}],"usage":{"prompt_tokens":3,"total_tokens":3}}"#;

fn chat() -> String {
    let message = r#"{"role":"assistant","content":"hello"}"#;
    format!(
        r#"{{"id":"c","object":"chat.completion","model":"m","choices":[{{"index":0,"message":{message},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}}}"#
    )
}

fn whole(status: u16, kind: &'static str, text: String) -> Response<Body> {
    let body = http_body_util::Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    Response::builder().status(status).header("content-type", kind).body(body).unwrap()
}

/// A chat whose events come one after another.
fn chat_events() -> Response<Body> {
    let (parts, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for n in 0..EVENTS {
            let event = format!(
                "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{n}\"}}}}]}}\n\n"
            );
            // The client has left.
            if parts.send(event).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let _ = parts.send("data: [DONE]\n\n".to_owned()).await;
    });
    let frames = futures::stream::unfold(receiver, |mut receiver: tokio::sync::mpsc::Receiver<String>| async move {
        let part = receiver.recv().await?;
        Some((Ok(Frame::data(Bytes::from(part))), receiver))
    });
    let body = BodyExt::boxed(StreamBody::new(frames));
    Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
}

/// An empty message and a good status in the trailers.
fn call() -> Response<Body> {
    let mut end = HeaderMap::new();
    end.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(Bytes::from_static(&[0; 5]))), Ok(Frame::trailers(end))];
    let body = BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)));
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}
