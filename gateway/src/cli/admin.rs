//! The command line as a client of the admin address of a running gateway.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use spillway_config::values::ServerUrl;

/// Most bytes of an answer that are read.
const MAX_ANSWER: usize = 64 << 20;
/// Time for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Which gateway is asked, and what opens it.
#[derive(Args, Clone)]
pub(super) struct AdminArguments {
    /// The admin address of the gateway.
    #[arg(long, value_name = "URL", env = "SPILLWAY_ADMIN", default_value = "http://127.0.0.1:9901")]
    admin: ServerUrl,
    /// The token (admin.token); better given by the variable, since arguments are seen by all on a machine.
    #[arg(long, value_name = "TOKEN", env = "SPILLWAY_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

impl AdminArguments {
    /// The address.
    pub(super) fn url(&self) -> &ServerUrl {
        &self.admin
    }

    /// The body of a page.
    pub(super) async fn get(&self, path: &str) -> Result<Bytes, String> {
        self.ask(Method::GET, path).await
    }

    /// Changes something.
    pub(super) async fn post(&self, path: &str) -> Result<Bytes, String> {
        self.ask(Method::POST, path).await
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Bytes, String> {
        match tokio::time::timeout(TIMEOUT, self.exchange(method, path)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("{} did not answer within {} s", self.admin, TIMEOUT.as_secs())),
        }
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<Bytes, String> {
        let wrong = |what: &dyn std::fmt::Display| format!("{}: {what}", self.admin);
        let stream =
            tokio::net::TcpStream::connect((self.admin.host.as_str(), self.admin.port)).await.map_err(|e| {
                wrong(&format!(
                    "{e} (is the gateway running, with `admin: {{address: ...}}`? `--admin URL` names another)"
                ))
            })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| wrong(&e))?;
        let connection = tokio::spawn(connection);
        let authority = self.admin.to_string();
        if self.admin.https {
            return Err(wrong(&"the admin address speaks http"));
        }
        let host = authority.strip_prefix("http://").unwrap_or(&authority);
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        request = request.header("x-spillway-admin", "1");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| wrong(&e))?;
        let answer = sender.send_request(request).await.map_err(|e| wrong(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| wrong(&e))?.to_bytes();
        connection.abort();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = problem.get("detail").and_then(|detail| detail.as_str()).unwrap_or_default();
        Err(wrong(&format!("{status} {detail}")))
    }
}
