//! Scripted upstream: answers as a test configures it and records its requests.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// A recorded request.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

pub type Reply = Response<BoxBody<Bytes, std::io::Error>>;

/// Server on loopback.
pub struct Upstream {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Upstream {
    /// Answers every request with the result of `reply`; `None` closes the connection without an answer.
    pub async fn start<F, R>(reply: F) -> Self
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Option<Reply>> + Send + 'static,
    {
        Self::start_on("127.0.0.1:0".parse().unwrap(), reply).await
    }

    /// As [`Self::start`], on a given address.
    pub async fn start_on<F, R>(address: SocketAddr, reply: F) -> Self
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Option<Reply>> + Send + 'static,
    {
        Self::serve(TcpListener::bind(address).await.unwrap(), false, reply)
    }

    /// As [`Self::start`], over HTTP/2 without TLS.
    pub async fn start_http2<F, R>(reply: F) -> Self
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Option<Reply>> + Send + 'static,
    {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), true, reply)
    }

    fn serve<F, R>(listener: TcpListener, is_http2: bool, reply: F) -> Self
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Option<Reply>> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, reply) = (seen.clone(), Arc::new(reply));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (log, reply) = (log.clone(), reply.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (log, reply) = (log.clone(), reply.clone());
                        async move {
                            let (head, body) = request.into_parts();
                            let body = body.collect().await.map_err(std::io::Error::other)?;
                            let trailers = body.trailers().cloned().unwrap_or_default();
                            // Over HTTP/2 the authority is a part of it.
                            let path = match head.uri.path_and_query() {
                                Some(path) if is_http2 => path.to_string(),
                                _ => head.uri.to_string(),
                            };
                            let seen = Seen {
                                method: head.method.to_string(),
                                path,
                                headers: head.headers,
                                body: body.to_bytes(),
                                trailers,
                            };
                            log.lock().unwrap().push(seen.clone());
                            reply(seen).await.ok_or_else(|| std::io::Error::other("closed on purpose"))
                        }
                    });
                    let stream = TokioIo::new(stream);
                    let _ = if is_http2 {
                        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        server.serve_connection(stream, service).await
                    } else {
                        hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await
                    };
                });
            }
        });
        Self { address, seen, task }
    }

    /// Answers every request with a status and a body.
    pub async fn fixed(status: u16, body: &'static str) -> Self {
        Self::start(move |_| async move { Some(reply(status, &[], body)) }).await
    }

    /// Answers every request on this address with 200 and a body.
    pub async fn fixed_on(address: SocketAddr, body: &'static str) -> Self {
        Self::start_on(address, move |_| async move { Some(reply(200, &[], body)) }).await
    }

    /// Answers with length and digest of the request body.
    pub async fn digest() -> Self {
        Self::start(|seen| async move { Some(reply(200, &[], digest(&seen.body))) }).await
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().cloned().expect("a request")
    }

    /// Returns a URL without a listener.
    pub async fn nobody() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Length and digest of a body.
pub fn digest(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    format!("{} {:016x}", body.len(), hasher.finish())
}

/// Makes an answer with a whole body.
pub fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::new(body.into()).map_err(|never| match never {}).boxed()).unwrap()
}

/// Makes an answer whose parts come from a channel; sending an error cuts it off.
pub fn streamed(headers: &[(&str, &str)], parts: tokio::sync::mpsc::Receiver<Result<Bytes, std::io::Error>>) -> Reply {
    let frames = futures::stream::unfold(parts, |mut parts| async move {
        let part = parts.recv().await?;
        Some((part.map(hyper::body::Frame::data), parts))
    });
    let mut builder = Response::builder().status(200);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(BodyExt::boxed(http_body_util::StreamBody::new(SyncStream(Box::pin(frames))))).unwrap()
}

type Frames = std::pin::Pin<Box<dyn futures::Stream<Item = Result<hyper::body::Frame<Bytes>, std::io::Error>> + Send>>;

/// `BoxBody` requires `Sync`; a stream is only ever polled through `&mut`.
struct SyncStream(Frames);

// SAFETY: nothing reads the stream through a shared reference.
unsafe impl Sync for SyncStream {}

impl futures::Stream for SyncStream {
    type Item = Result<hyper::body::Frame<Bytes>, std::io::Error>;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}
