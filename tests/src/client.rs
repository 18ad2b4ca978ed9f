//! HTTP/1.1 client: whole answers, or an answer part by part.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Reason for which there is no answer: nobody took the connection, or it broke.
pub type NoAnswer = Box<dyn std::error::Error + Send + Sync>;

type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

/// Client of one address; each request has a connection of its own.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// True if the body was cut off.
    pub cut: bool,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// An answer that is still arriving.
pub struct Stream {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    _connection: Connection,
}

struct Connection {
    task: tokio::task::AbortHandle,
    _sender: SendRequest<Body>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stream {
    /// Receives the next part; `None` at the end, an error when the connection breaks.
    pub async fn part(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match self.body.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some(Ok(data)),
                    Err(_) => continue,
                },
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    /// Address of the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    async fn open(&self) -> Result<Opened, NoAnswer> {
        let stream = TcpStream::connect(self.address).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let task = tokio::spawn(async move {
            let _ = connection.await;
        })
        .abort_handle();
        Ok(Opened { sender, task })
    }

    /// Sends a request and returns the head of its answer.
    pub async fn stream(&self, request: Request<Body>) -> Result<Stream, NoAnswer> {
        let Opened { mut sender, task } = self.open().await?;
        let response: Response<Incoming> = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        Ok(Stream {
            status: head.status,
            headers: head.headers,
            body,
            _connection: Connection { task, _sender: sender },
        })
    }

    /// Sends a request and returns its whole answer.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        self.try_send(request).await.expect("an answer")
    }

    /// As [`Self::send`], for a request that may get no answer.
    pub async fn try_send(&self, request: Request<Body>) -> Result<Answer, NoAnswer> {
        let mut stream = self.stream(request).await?;
        let mut body = Vec::new();
        let mut cut = false;
        while let Some(part) = stream.part().await {
            match part {
                Ok(part) => body.extend_from_slice(&part),
                Err(_) => {
                    cut = true;
                    break;
                }
            }
        }
        Ok(Answer { status: stream.status, headers: std::mem::take(&mut stream.headers), body: body.into(), cut })
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path, &[], Bytes::new())).await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        self.send(self.request("POST", path, headers, body)).await
    }

    /// Makes a request whose body has a declared length.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Request<Body> {
        self.head(method, path, headers).body(Full::new(body.into()).map_err(|never| match never {}).boxed()).unwrap()
    }

    /// Makes a request with a chunked body.
    pub fn chunked(&self, path: &str, headers: &[(&str, &str)], chunks: Vec<Bytes>) -> Request<Body> {
        let frames = futures::stream::iter(chunks.into_iter().map(|chunk| Ok(Frame::data(chunk))));
        self.head("POST", path, headers).body(BodyExt::boxed(StreamBody::new(frames))).unwrap()
    }

    fn head(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> http::request::Builder {
        let mut builder = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            builder = builder.header("host", self.address.to_string());
        }
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder
    }

    /// Sends a chat request.
    pub async fn chat(&self, model: &str, headers: &[(&str, &str)]) -> Answer {
        let body = serde_json::json!({
            "model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4, "temperature": 0
        });
        let mut all = vec![("content-type", "application/json")];
        all.extend_from_slice(headers);
        self.post("/v1/chat/completions", &all, body.to_string()).await
    }
}

struct Opened {
    sender: SendRequest<Body>,
    task: tokio::task::AbortHandle,
}
