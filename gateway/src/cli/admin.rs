//! Client of the admin address of a running gateway, for the command line.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use spillway_config::values::ServerUrl;

/// Longest answer that is read, in bytes: the metrics of a large fleet take some megabytes.
const MAX_ANSWER: usize = 64 << 20;
/// Time for one answer: the admin address answers from memory, and waits for a store some seconds at most.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Reason why a command that asks a running gateway fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// No answer in time.
    #[error("{0} did not answer within {within} s", within = TIMEOUT.as_secs())]
    Timeout(ServerUrl),
    /// No connection.
    #[error(
        "{address}: {source} (is the gateway running, with `admin: {{address: ...}}`? `--admin URL` names another)"
    )]
    Connect { address: ServerUrl, source: std::io::Error },
    /// An address of https.
    #[error("{0}: the admin address speaks http")]
    Https(ServerUrl),
    /// The request cannot be written.
    #[error("{address}: {source}")]
    Request { address: ServerUrl, source: http::Error },
    /// The connection broke, or the answer is no HTTP.
    #[error("{address}: {source}")]
    Http { address: ServerUrl, source: hyper::Error },
    /// The answer is too long, or broke off.
    #[error("{address}: {source}")]
    Body { address: ServerUrl, source: Box<dyn std::error::Error + Send + Sync> },
    /// The gateway refused the request.
    #[error("{address}: {status} {detail}")]
    Refused { address: ServerUrl, status: StatusCode, detail: String },
    /// The answer is not the expected JSON.
    #[error("{address}: {source}")]
    Content { address: ServerUrl, source: serde_json::Error },
    /// No route of that name is watched.
    #[error("the route `{route}` is not watched; expected {}: give it `quality`", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    NoRoute { route: String, known: Vec<String> },
    /// A file cannot be written.
    #[error("{}: {source}", path.display())]
    File { path: std::path::PathBuf, source: std::io::Error },
    /// The terminal cannot be used.
    #[error(transparent)]
    Terminal(#[from] std::io::Error),
}

/// Address of the gateway that is asked, and the token for it.
#[derive(Args, Clone)]
pub(super) struct AdminArguments {
    /// The admin address of the gateway.
    #[arg(long, value_name = "URL", env = "SPILLWAY_ADMIN", default_value = "http://127.0.0.1:9901")]
    admin: ServerUrl,
    /// The token (admin.token); better given by the variable, since arguments are seen by all on a machine.
    #[arg(long, value_name = "TOKEN", env = "SPILLWAY_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// Gateway that is asked for a page, and the form in which the page is shown.
#[derive(Args)]
pub(super) struct PageArguments {
    #[command(flatten)]
    pub(super) admin: AdminArguments,
    /// Print JSON, as the admin address answers.
    #[arg(long)]
    pub(super) json: bool,
}

/// A name as a segment of a path: all bytes that could end one are escaped.
pub(super) fn segment(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(escape).collect()
}

impl AdminArguments {
    /// Admin address of the gateway.
    pub(super) fn url(&self) -> &ServerUrl {
        &self.admin
    }

    /// Gets the body of a page.
    pub(super) async fn get(&self, path: &str) -> Result<Bytes, ClientError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Requests a change; returns the body of the answer.
    pub(super) async fn post(&self, path: &str) -> Result<Bytes, ClientError> {
        self.ask(Method::POST, path, Bytes::new()).await
    }

    /// As [`Self::post`], with a body of JSON.
    pub(super) async fn post_json(&self, path: &str, body: &serde_json::Value) -> Result<Bytes, ClientError> {
        self.ask(Method::POST, path, body.to_string().into()).await
    }

    /// Requests that something is removed; returns the body of the answer.
    pub(super) async fn delete(&self, path: &str) -> Result<Bytes, ClientError> {
        self.ask(Method::DELETE, path, Bytes::new()).await
    }

    /// Parses the JSON body of a page.
    pub(super) fn parse<T: serde::de::DeserializeOwned>(&self, page: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(page).map_err(|source| ClientError::Content { address: self.admin.clone(), source })
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        match tokio::time::timeout(TIMEOUT, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Timeout(self.admin.clone())),
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let address = || self.admin.clone();
        let http = |source| ClientError::Http { address: address(), source };
        if self.admin.https {
            return Err(ClientError::Https(address()));
        }
        let stream = tokio::net::TcpStream::connect((self.admin.host.as_str(), self.admin.port))
            .await
            .map_err(|source| ClientError::Connect { address: address(), source })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        let connection = tokio::spawn(connection);
        let authority = self.admin.to_string();
        let host = authority.strip_prefix("http://").unwrap_or(&authority);
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        request = request.header("x-spillway-admin", "1");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request =
            request.body(Full::new(body)).map_err(|source| ClientError::Request { address: address(), source })?;
        let answer = sender.send_request(request).await.map_err(http)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|source| ClientError::Body { address: address(), source })?.to_bytes();
        connection.abort();
        if status.is_success() {
            return Ok(body);
        }
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = problem.get("detail").and_then(|detail| detail.as_str()).unwrap_or_default().to_owned();
        Err(ClientError::Refused { address: address(), status, detail })
    }
}
