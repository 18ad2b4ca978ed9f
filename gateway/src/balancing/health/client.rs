//! One question to an endpoint over a connection of its own: a pooled one would hide that no new connection can be opened.
//! It speaks as the backend does: TLS with the same authorities and certificate, HTTP/2 where that is spoken.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use spillway_config::values::ServerUrl;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::tls::UpstreamTls;

/// Who asks.
const AGENT: &str = concat!("spillway/", env!("CARGO_PKG_VERSION"), " health-check");

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
        let stream = self.open().await?;
        if !self.url.https {
            return self.converse(TokioIo::new(stream), self.http2, path, body, most).await;
        }
        let stream = self.secure(stream).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        self.converse(TokioIo::new(stream), http2, path, body, most).await
    }

    async fn converse<S>(
        &self,
        stream: S,
        http2: bool,
        path: &str,
        body: Option<String>,
        most: usize,
    ) -> Result<Answer, String>
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
        let mut request = match body {
            None => Request::get(uri),
            Some(_) => Request::post(uri).header(header::CONTENT_TYPE, "application/json"),
        };
        if let Some(credentials) = &self.credentials {
            request = request.header(header::AUTHORIZATION, credentials);
        }
        if !http2 {
            request = request.header(header::HOST, authority).header(header::CONNECTION, "close");
        }
        let request = request
            .header(header::USER_AGENT, AGENT)
            .body(Full::new(body.map_or_else(Bytes::new, Bytes::from)))
            .map_err(|e| e.to_string())?;
        let wrong = |e: hyper::Error| e.to_string();
        if http2 {
            let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
            let (mut sender, connection) = client.map_err(wrong)?;
            let _connection = AbortOnDrop(tokio::spawn(connection).abort_handle());
            read(sender.send_request(request).await.map_err(wrong)?, most).await
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(wrong)?;
            let _connection = AbortOnDrop(tokio::spawn(connection).abort_handle());
            read(sender.send_request(request).await.map_err(wrong)?, most).await
        }
    }
}

/// Reads an answer while its connection lives.
async fn read(answer: http::Response<hyper::body::Incoming>, most: usize) -> Result<Answer, String> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), most).collect().await;
    Ok((status, body.map(|body| body.to_bytes()).map_err(|e| e.to_string())))
}
