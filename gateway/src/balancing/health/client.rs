//! One question to an endpoint over a connection of its own: a pooled one would hide that no new connection can be opened.
//! It speaks as the backend does: TLS with the same authorities and certificate, HTTP/2 where that is spoken.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use spillway_config::values::ServerUrl;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::tls::UpstreamTls;

/// Who asks.
const AGENT: &str = concat!("spillway/", env!("CARGO_PKG_VERSION"), " health-check");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: &str = "grpc-status";
/// Before each gRPC message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// An endpoint as it is asked.
#[derive(Clone)]
pub(crate) struct Server {
    /// Where it is.
    pub(crate) socket: SocketAddr,
    /// What it is called.
    pub(crate) url: ServerUrl,
    /// What opens it.
    pub(crate) credentials: Option<HeaderValue>,
    /// How its TLS is judged, where its URL says https.
    pub(crate) tls: Arc<UpstreamTls>,
    /// Whether it speaks HTTP/2.
    pub(crate) http2: bool,
}

impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        self.socket == other.socket
            && self.url == other.url
            && self.credentials == other.credentials
            && self.tls.digest == other.tls.digest
            && self.http2 == other.http2
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer: its status, and its body or why that could not be read.
type Answer = (StatusCode, Result<Bytes, String>);

impl Server {
    /// Opens a connection, and for https a TLS session on it.
    pub(crate) async fn connect(&self) -> Result<(), String> {
        let stream = self.open().await?;
        if self.url.https {
            self.secure(stream).await?;
        }
        Ok(())
    }

    async fn open(&self) -> Result<TcpStream, String> {
        TcpStream::connect(self.socket).await.map_err(|e| format!("cannot connect: {e}"))
    }

    async fn secure(&self, stream: TcpStream) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
        let name = ServerName::try_from(self.tls.name(&self.url.host).to_owned()).map_err(|e| e.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(self.tls.config.clone());
        connector.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))
    }

    /// Sends a request with this body, none for a `GET`, and reads the answer up to `most` bytes. There is no time limit
    /// here: callers have one over all of it.
    pub(crate) async fn ask(&self, path: &str, body: Option<String>, most: usize) -> Result<Answer, String> {
        let body = body.map(|body| (JSON, Bytes::from(body)));
        let (answer, _connection) = self.send(path, body).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), most).collect().await;
        Ok((status, body.map(|body| body.to_bytes()).map_err(|e| e.to_string())))
    }

    /// Calls a method of a gRPC service with one message and gives the one that it answers with, of at most `most` bytes.
    /// (gRPC over HTTP2, github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.)
    pub(crate) async fn call<Q, A>(&self, path: &str, message: &Q, most: usize) -> Result<A, String>
    where
        Q: prost::Message,
        A: prost::Message + Default,
    {
        let length = u32::try_from(message.encoded_len()).map_err(|e| e.to_string())?;
        let mut framed = BytesMut::with_capacity(PREFIX + message.encoded_len());
        framed.put_u8(0);
        framed.put_u32(length);
        message.encode(&mut framed).map_err(|e| e.to_string())?;
        let (answer, _connection) = self.send(path, Some((GRPC, framed.freeze()))).await?;
        let (head, body) = answer.into_parts();
        if head.status != StatusCode::OK {
            return Err(format!("status {}", head.status.as_u16()));
        }
        let body = Limited::new(body, most).collect().await.map_err(|e| e.to_string())?;
        // An answer without a message has its status in the head.
        let code =
            body.trailers().and_then(|trailers| trailers.get(GRPC_STATUS)).or_else(|| head.headers.get(GRPC_STATUS));
        match code.map(HeaderValue::as_bytes) {
            Some(b"0") => {}
            Some(code) => return Err(format!("gRPC status {}", String::from_utf8_lossy(code))),
            None => return Err("an answer without a gRPC status".to_owned()),
        }
        let body = body.to_bytes();
        let message = match body.split_at_checked(PREFIX) {
            Some(([0, length @ ..], rest)) if usize_of(length) == Some(rest.len()) => rest,
            _ => return Err("no gRPC message".to_owned()),
        };
        A::decode(message).map_err(|e| e.to_string())
    }

    /// Sends a request over a connection of its own, which lives as long as what is given beside the answer.
    async fn send(
        &self,
        path: &str,
        body: Option<(HeaderValue, Bytes)>,
    ) -> Result<(http::Response<Incoming>, AbortOnDrop), String> {
        let stream = self.open().await?;
        if !self.url.https {
            return self.converse(TokioIo::new(stream), self.http2, path, body).await;
        }
        let stream = self.secure(stream).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if self.http2 && !http2 && body.as_ref().is_some_and(|(kind, _)| *kind == GRPC) {
            return Err("the server does not speak HTTP/2, which gRPC needs".to_owned());
        }
        self.converse(TokioIo::new(stream), http2, path, body).await
    }

    async fn converse<S>(
        &self,
        stream: S,
        http2: bool,
        path: &str,
        body: Option<(HeaderValue, Bytes)>,
    ) -> Result<(http::Response<Incoming>, AbortOnDrop), String>
    where
        S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    {
        let host = if self.url.host.contains(':') { format!("[{}]", self.url.host) } else { self.url.host.clone() };
        let authority = format!("{host}:{}", self.url.port);
        let uri = match (http2, self.url.https) {
            (false, _) => path.to_owned(),
            (true, true) => format!("https://{authority}{path}"),
            (true, false) => format!("http://{authority}{path}"),
        };
        let mut request = if body.is_none() { Request::get(uri) } else { Request::post(uri) };
        let body = match body {
            None => Bytes::new(),
            Some((kind, body)) => {
                if kind == GRPC {
                    request = request.header(header::TE, "trailers");
                }
                request = request.header(header::CONTENT_TYPE, kind);
                body
            }
        };
        if let Some(credentials) = &self.credentials {
            request = request.header(header::AUTHORIZATION, credentials);
        }
        if !http2 {
            request = request.header(header::HOST, authority).header(header::CONNECTION, "close");
        }
        let request = request.header(header::USER_AGENT, AGENT).body(Full::new(body)).map_err(|e| e.to_string())?;
        let wrong = |e: hyper::Error| e.to_string();
        if http2 {
            let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
            let (mut sender, connection) = client.map_err(wrong)?;
            let connection = AbortOnDrop(tokio::spawn(connection).abort_handle());
            Ok((sender.send_request(request).await.map_err(wrong)?, connection))
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(wrong)?;
            let connection = AbortOnDrop(tokio::spawn(connection).abort_handle());
            Ok((sender.send_request(request).await.map_err(wrong)?, connection))
        }
    }
}

fn usize_of(big_endian: &[u8]) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(big_endian.try_into().ok()?)).ok()
}
