//! One question to an endpoint over a connection of its own: a pooled one would hide that no new connection can be opened.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

/// Who asks.
const AGENT: &str = concat!("spillway/", env!("CARGO_PKG_VERSION"), " health-check");

/// An endpoint as it is asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Server {
    /// Where it is.
    pub(crate) socket: SocketAddr,
    /// Its `Host`.
    pub(crate) host: String,
    /// What opens it.
    pub(crate) credentials: Option<HeaderValue>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Server {
    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Result<TcpStream, String> {
        TcpStream::connect(self.socket).await.map_err(|e| format!("cannot connect: {e}"))
    }

    /// Sends a request with this body, none for a `GET`, and reads the answer up to `most` bytes. There is no time limit
    /// here: callers have one over all of it.
    pub(crate) async fn ask(
        &self,
        path: &str,
        body: Option<String>,
        most: usize,
    ) -> Result<(StatusCode, Result<Bytes, String>), String> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        let _connection = AbortOnDrop(tokio::spawn(connection).abort_handle());
        let mut request = match body {
            None => Request::get(path),
            Some(_) => Request::post(path).header(header::CONTENT_TYPE, "application/json"),
        };
        if let Some(credentials) = &self.credentials {
            request = request.header(header::AUTHORIZATION, credentials);
        }
        let request = request
            .header(header::HOST, &self.host)
            .header(header::USER_AGENT, AGENT)
            .header(header::CONNECTION, "close")
            .body(Full::new(body.map_or_else(Bytes::new, Bytes::from)))
            .map_err(|e| e.to_string())?;
        let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), most).collect().await;
        Ok((status, body.map(|body| body.to_bytes()).map_err(|e| e.to_string())))
    }
}
