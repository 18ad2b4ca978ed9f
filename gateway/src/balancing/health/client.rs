//! Requests of health checks and scrapes, each over a connection of its own: a pooled connection would hide that no new one
//! can be opened. TLS has the authorities and the certificate of the backend, and HTTP/2 is spoken where the backend does.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use spillway_config::values::ServerUrl;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::client::TlsStream;

use super::error::{ProbeAnswer, ProbeError};
use super::http1;
use crate::credentials::Credential;
use crate::tls::UpstreamTls;

/// Value of `user-agent`.
const AGENT: &str = concat!("spillway/", env!("CARGO_PKG_VERSION"), " health-check");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: &str = "grpc-status";
/// Bytes before each gRPC message: a flag for compression, and the length.
const PREFIX: usize = 5;

/// An endpoint as checks and scrapes connect to it.
#[derive(Clone)]
pub(crate) struct Server {
    /// Address of the server.
    pub(crate) socket: SocketAddr,
    /// URL of the endpoint.
    pub(crate) url: ServerUrl,
    /// Credential for the server.
    pub(crate) credentials: Option<Credential>,
    /// TLS of the backend, used where the URL says `https`.
    pub(crate) tls: Arc<UpstreamTls>,
    /// True if the server speaks HTTP/2.
    pub(crate) http2: bool,
    /// Headers that the API of the server wants, beside the credential.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        self.socket == other.socket
            && self.url == other.url
            && self.credentials == other.credentials
            && self.tls.digest == other.tls.digest
            && self.http2 == other.http2
            && self.headers == other.headers
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Server {
    /// Opens a connection, and for https a TLS session on it.
    pub(super) async fn connect(&self) -> Result<(), ProbeError> {
        let stream = self.open().await?;
        if self.url.https {
            self.secure(stream).await?;
        }
        Ok(())
    }

    async fn open(&self) -> Result<TcpStream, ProbeError> {
        TcpStream::connect(self.socket).await.map_err(ProbeError::Connect)
    }

    async fn secure(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, ProbeError> {
        let name = ServerName::try_from(self.tls.name(&self.url.host).to_owned()).map_err(ProbeError::ServerName)?;
        let connector = tokio_rustls::TlsConnector::from(self.tls.config.clone());
        connector.connect(name, stream).await.map_err(ProbeError::Tls)
    }

    /// Sends a `POST` with this body, or a `GET` without one, and reads the answer up to `most` bytes. Callers bound the
    /// time.
    pub(super) async fn send(&self, path: &str, body: Option<String>, most: usize) -> Result<ProbeAnswer, ProbeError> {
        if !self.http2 {
            let request = self.http1_request(path, body.as_deref())?;
            let mut stream = self.open().await?;
            if !self.url.https {
                return http1::exchange(&mut stream, &request, most).await;
            }
            return http1::exchange(&mut self.secure(stream).await?, &request, most).await;
        }
        let body = body.map(|body| (JSON, Bytes::from(body)));
        let (answer, _connection) = self.request(path, body).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), most).collect().await;
        Ok((status, body.map(|body| body.to_bytes()).map_err(ProbeError::Body)))
    }

    /// Calls a method of a gRPC service with one message and returns the message of the answer, of at most `most` bytes
    /// (gRPC over HTTP2, github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
    pub(super) async fn call<Q, A>(&self, path: &str, message: &Q, most: usize) -> Result<A, ProbeError>
    where
        Q: prost::Message,
        A: prost::Message + Default,
    {
        // The messages are those of the health protocol: none has 4 GiB.
        let length = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
        let mut framed = BytesMut::with_capacity(PREFIX + message.encoded_len());
        framed.put_u8(0);
        framed.put_u32(length);
        message.encode(&mut framed).map_err(ProbeError::Encode)?;
        let (answer, _connection) = self.request(path, Some((GRPC, framed.freeze()))).await?;
        let (head, body) = answer.into_parts();
        if head.status != StatusCode::OK {
            return Err(ProbeError::Status(head.status.as_u16()));
        }
        let body = Limited::new(body, most).collect().await.map_err(ProbeError::Body)?;
        // An answer without a message has its status in the head.
        let code =
            body.trailers().and_then(|trailers| trailers.get(GRPC_STATUS)).or_else(|| head.headers.get(GRPC_STATUS));
        match code.map(HeaderValue::as_bytes) {
            Some(b"0") => {}
            Some(code) => return Err(ProbeError::GrpcStatus(String::from_utf8_lossy(code).into_owned())),
            None => return Err(ProbeError::NoGrpcStatus),
        }
        let body = body.to_bytes();
        let message = match body.split_at_checked(PREFIX) {
            Some(([0, length @ ..], rest)) if usize_of(length) == Some(rest.len()) => rest,
            _ => return Err(ProbeError::NoGrpcMessage),
        };
        A::decode(message).map_err(ProbeError::Decode)
    }

    /// Bytes of a `POST` with this body, or of a `GET` without one.
    fn http1_request(&self, path: &str, body: Option<&str>) -> Result<Vec<u8>, ProbeError> {
        let path = path.parse::<PathAndQuery>().map_err(|e| ProbeError::Request(e.into()))?;
        let method = if body.is_none() { "GET" } else { "POST" };
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.authority()).into_bytes();
        if let Some(body) = body {
            let length = body.len();
            let fields = format!("content-type: application/json\r\ncontent-length: {length}\r\n");
            request.extend_from_slice(fields.as_bytes());
        }
        let credential = self.credentials.iter().map(|Credential { name, value }| (name, value));
        for (name, value) in credential.chain(self.headers.iter().map(|(name, value)| (name, value))) {
            request.extend_from_slice(name.as_str().as_bytes());
            request.extend_from_slice(b": ");
            request.extend_from_slice(value.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(format!("connection: close\r\nuser-agent: {AGENT}\r\n\r\n").as_bytes());
        request.extend_from_slice(body.unwrap_or_default().as_bytes());
        Ok(request)
    }

    /// Host and port, as requests name them.
    fn authority(&self) -> String {
        let host = &self.url.host;
        if host.contains(':') { format!("[{host}]:{}", self.url.port) } else { format!("{host}:{}", self.url.port) }
    }

    /// Sends a request over a connection of its own, which lives as long as the guard beside the answer.
    async fn request(
        &self,
        path: &str,
        body: Option<(HeaderValue, Bytes)>,
    ) -> Result<(http::Response<Incoming>, AbortOnDrop), ProbeError> {
        let stream = self.open().await?;
        if !self.url.https {
            return self.converse(TokioIo::new(stream), self.http2, path, body).await;
        }
        let stream = self.secure(stream).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if self.http2 && !http2 && body.as_ref().is_some_and(|(kind, _)| *kind == GRPC) {
            return Err(ProbeError::NoHttp2);
        }
        self.converse(TokioIo::new(stream), http2, path, body).await
    }

    async fn converse<S>(
        &self,
        stream: S,
        http2: bool,
        path: &str,
        body: Option<(HeaderValue, Bytes)>,
    ) -> Result<(http::Response<Incoming>, AbortOnDrop), ProbeError>
    where
        S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    {
        let authority = self.authority();
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
        if let Some(Credential { name, value }) = &self.credentials {
            request = request.header(name, value);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if !http2 {
            request = request.header(header::HOST, authority).header(header::CONNECTION, "close");
        }
        let request = request.header(header::USER_AGENT, AGENT).body(Full::new(body)).map_err(ProbeError::Request)?;
        if http2 {
            let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
            let (mut sender, connection) = client.map_err(ProbeError::Http)?;
            let connection = AbortOnDrop(tokio::spawn(connection).abort_handle());
            Ok((sender.send_request(request).await.map_err(ProbeError::Http)?, connection))
        } else {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(stream).await.map_err(ProbeError::Http)?;
            let connection = AbortOnDrop(tokio::spawn(connection).abort_handle());
            Ok((sender.send_request(request).await.map_err(ProbeError::Http)?, connection))
        }
    }
}

fn usize_of(big_endian: &[u8]) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(big_endian.try_into().ok()?)).ok()
}
