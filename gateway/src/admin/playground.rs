//! Playground: a chat of an operator with a route. The request goes the way of any other, through a session within the
//! process, as the caller whose key the operator types in: its filters, limits and budgets hold, and it is logged and
//! counted. The key is passed on and kept nowhere.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;
use serde_json::Value;
use spillway_config::schema::{EncodedSlashes, ListenerLimits};
use spillway_filter::Fields;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::lasting::LastingAnswer;
use crate::downstream::{ClientSession, Http1Session, Transport, WriteBounded};
use crate::exchange::{ConnectionInfo, ListenerFacts};
use crate::gateway::Gateway;
use crate::pipeline;
use crate::routing::HeadContext;
use crate::telemetry::{ListenerMetrics, Metrics};

/// Chats at a time: two operators who compare two routes each.
const MAX_CHATS: usize = 4;
/// Longest body of a chat, in bytes: a long conversation with a picture.
pub(super) const MAX_BODY: usize = 1 << 20;
/// Longest chat: five minutes, in which slow models write some thousand tokens.
const LONGEST: Duration = Duration::from_secs(300);
/// Name of the listener that chats come from, which no configuration has.
const LISTENER: &str = "playground";
/// Path of a chat where the route names none.
const CHAT: &str = "/v1/chat/completions";
/// Header of the operator's request with the key of the caller.
pub(super) const KEY: HeaderName = HeaderName::from_static("x-spillway-playground-key");
/// Header of an answer that is the route's, and not the admin address's own.
const FROM_ROUTE: HeaderName = HeaderName::from_static("x-spillway-playground");
/// Headers of the route's answer that pass, beside those of [`PREFIXES`].
const PASSED: [HeaderName; 2] = [header::CONTENT_TYPE, header::RETRY_AFTER];
/// Beginnings of the names of further headers that pass.
const PREFIXES: [&str; 4] = ["x-request-id", "x-spillway-", "ratelimit", "traceparent"];

/// Chat that is asked for.
pub struct Chat {
    /// Name of the route.
    pub route: String,
    /// Host of the request; that of the route where it is `None`.
    pub host: Option<String>,
    /// Path of the request; that of the route where it is `None`.
    pub path: Option<String>,
    /// Address of the operator.
    pub client: IpAddr,
    /// Key of the caller.
    pub key: Option<HeaderValue>,
    /// Body of the request.
    pub body: Bytes,
}

/// Reason why a chat is not begun.
#[derive(Debug, thiserror::Error)]
pub enum NoChat {
    /// The gateway has not begun to serve.
    #[error("the gateway is starting; /readyz says when it serves")]
    Starting,
    /// The configuration does not allow it.
    #[error("the playground is off; `admin.playground: true` allows it")]
    Off,
    /// No route has the name.
    #[error("there is no such route; /api/overview lists them")]
    Route,
    /// As many chats run as may.
    #[error("{MAX_CHATS} chats run already; try again when one has ended")]
    Busy,
    /// Another route, or none, would take the request.
    #[error(
        "a request to `{path}` of `{host}` for this model goes to {}; name host and path by `?host=` and `&path=`",
        taken.as_ref().map_or("no route".to_owned(), |taken| format!("the route `{taken}`"))
    )]
    OtherRoute {
        /// Host that was tried.
        host: String,
        /// Path that was tried.
        path: String,
        /// Route that takes the request.
        taken: Option<String>,
    },
    /// The body, the host or the path cannot be sent.
    #[error("{0}")]
    Malformed(String),
    /// There was no answer.
    #[error("the route gave no answer: {0}")]
    Failed(String),
}

/// Chats of the process, as many as may run at a time.
pub struct Playground {
    permits: Arc<Semaphore>,
    /// Of no listener that anybody sees.
    metrics: Arc<ListenerMetrics>,
}

impl Default for Playground {
    fn default() -> Self {
        let metrics = Metrics::new().listener(LISTENER);
        Self { permits: Arc::new(Semaphore::new(MAX_CHATS)), metrics }
    }
}

/// Model that a body names.
#[derive(Deserialize)]
struct Asked {
    model: Option<String>,
}

/// Task that ends with what holds this.
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Answer that is passed on.
struct Passing {
    body: Incoming,
    _client: Running,
    _lasting: LastingAnswer,
}

impl Playground {
    /// Sends a chat, and passes its answer on as it comes.
    pub(super) async fn chat(
        &self,
        gateway: &Arc<Gateway>,
        chat: Chat,
        lasting: LastingAnswer,
    ) -> Result<Response, NoChat> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| NoChat::Busy)?;
        let client = chat.client;
        let request = request(gateway, chat)?;
        let failed = |e: &dyn std::error::Error| NoChat::Failed(e.to_string());
        let (inside, outside) = UnixStream::pair().map_err(|e| failed(&e))?;
        tokio::spawn(serve(gateway.clone(), inside, client, self.metrics.clone(), permit));
        let (mut sender, connection) = http1::handshake(TokioIo::new(outside)).await.map_err(|e| failed(&e))?;
        // An error of the connection is one of the answer, too.
        let client = Running(tokio::spawn(async move { _ = connection.await }));
        let (head, body) = sender.send_request(request).await.map_err(|e| failed(&e))?.into_parts();
        let passing = Passing { body, _client: client, _lasting: lasting };
        let parts = stream::unfold(Some(passing), |passing: Option<Passing>| async move {
            let mut passing = passing?;
            loop {
                match passing.body.frame().await? {
                    Ok(frame) => match frame.into_data() {
                        Ok(data) => return Some((Ok(data), Some(passing))),
                        // Trailers say nothing that a page shows.
                        Err(_) => continue,
                    },
                    Err(e) => return Some((Err(e), None)),
                }
            }
        });
        let mut answer = Response::new(Body::from_stream(parts));
        *answer.status_mut() = head.status;
        for (name, value) in &head.headers {
            if PASSED.contains(name) || PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix)) {
                answer.headers_mut().append(name.clone(), value.clone());
            }
        }
        answer.headers_mut().insert(FROM_ROUTE, HeaderValue::from_static("route"));
        Ok(answer)
    }
}

/// Request of a chat, once it is clear that its route takes it.
fn request(gateway: &Gateway, chat: Chat) -> Result<Request<Full<Bytes>>, NoChat> {
    let snapshot = gateway.snapshot.load_full();
    if !snapshot.routes.has(&chat.route) {
        return Err(NoChat::Route);
    }
    let asked: Asked = serde_json::from_slice(&chat.body)
        .map_err(|e| NoChat::Malformed(format!("the body is no chat ({e}); expected an object of JSON")))?;
    let (own_host, own_path) = way(&snapshot.shown.read(), &chat.route);
    let (host, path) = (chat.host.unwrap_or(own_host), chat.path.unwrap_or(own_path));
    let host_value = HeaderValue::from_str(&host)
        .map_err(|_| NoChat::Malformed("`host` has a character that no host may have".to_owned()))?;
    let mut fields = Fields::default();
    fields.insert(header::HOST, host_value.clone());
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let (only_path, query) = path.split_once('?').unwrap_or((&path, ""));
    let context = HeadContext { query, client: chat.client };
    // Of the listeners that serve the route one is enough that leads to it.
    let mut taken = None;
    for table in snapshot.routes.tables_with(&chat.route) {
        let candidates = table.candidates(Some(&host), only_path, &Method::POST, &fields, context);
        taken = candidates.by_model(asked.model.as_deref()).map(|route| route.name.clone());
        // What the chat says may lead to any of them.
        if candidates.ask_for_prompt() && candidates.routes().any(|route| route.name == chat.route) {
            taken = Some(chat.route.clone());
        }
        if taken.as_ref() == Some(&chat.route) {
            break;
        }
    }
    if taken.as_ref() != Some(&chat.route) {
        return Err(NoChat::OtherRoute { host, path, taken });
    }
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, host_value)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("spillway-playground/", env!("CARGO_PKG_VERSION")));
    if let Some(mut key) = chat.key {
        let name = snapshot.identity.key_header();
        if *name == header::AUTHORIZATION {
            key = HeaderValue::from_bytes(&[b"Bearer ", key.as_bytes()].concat())
                .map_err(|_| NoChat::Malformed("the key has a character that no key may have".to_owned()))?;
        }
        key.set_sensitive(true);
        request = request.header(name, key);
    }
    request.body(Full::new(chat.body)).map_err(|e| NoChat::Malformed(format!("`path`: {e}")))
}

/// Host and path by which a route is reached, by the configuration as operators see it: its first host, and its first match
/// that asks for nothing else.
fn way(shown: &Value, route: &str) -> (String, String) {
    let named = |known: &&Value| known.get("name").and_then(Value::as_str) == Some(route);
    let route = shown.get("routes").and_then(Value::as_array).and_then(|routes| routes.iter().find(named));
    let list = |key: &str| route.and_then(|route| route.get(key)?.as_array()).map(Vec::as_slice).unwrap_or_default();
    let host = list("hostnames").first().and_then(Value::as_str).unwrap_or("localhost");
    let host = host.strip_prefix('*').map_or_else(|| host.to_owned(), |suffix| format!("playground{suffix}"));
    let is_empty = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    };
    let asks_for_nothing_else = |matched: &&Value| {
        let is_post = matched.get("method").and_then(Value::as_str).is_none_or(|method| method == "POST");
        is_post && is_empty(matched.get("headers")) && is_empty(matched.get("when"))
    };
    let path = list("matches").iter().find(asks_for_nothing_else).and_then(|matched| matched.get("path"));
    let part = |key: &str| path.and_then(|path| path.get(key)?.as_str());
    let path = match (part("exact"), part("prefix")) {
        (Some(exact), _) => exact.to_owned(),
        (None, Some(prefix)) if !CHAT.starts_with(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            format!("{}{CHAT}", prefix.strip_suffix("/v1").unwrap_or(prefix))
        }
        (None, _) => CHAT.to_owned(),
    };
    (host, path)
}

/// Serves the request that comes over a socket within the process.
async fn serve(
    gateway: Arc<Gateway>,
    stream: UnixStream,
    client: IpAddr,
    metrics: Arc<ListenerMetrics>,
    permit: OwnedSemaphorePermit,
) {
    let facts = ListenerFacts {
        name: LISTENER.into(),
        encoded_slashes: EncodedSlashes::default(),
        health_path: None,
        loop_header: true,
        via: false,
        limits: ListenerLimits::default(),
        trusted: None,
    };
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let connection = ConnectionInfo::new(SocketAddr::new(client, 0), here, None, facts);
    let stream = WriteBounded::new(Transport::Inside(stream), connection.limits.write_timeout.0, Counter::default());
    let session = Http1Session::new(stream, connection.limits.max_header_bytes.0, metrics);
    let mut session = ClientSession::http1(session);
    let serving = async {
        let Some(http1) = session.as_http1() else { return };
        // The other end is of this process: a request that cannot be read is one that was given up.
        if !matches!(http1.read_request().await, Ok(true)) {
            return;
        }
        http1.close_after();
        pipeline::handle(&gateway, &connection, &mut session).await;
        if let Some(http1) = session.as_http1() {
            let _ = http1.finish().await;
        }
    };
    if tokio::time::timeout(LONGEST, serving).await.is_ok() {
        session.shutdown().await;
    }
    drop(permit);
}

/// Key that an operator has typed in.
pub(super) fn key(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(KEY).filter(|key| !key.is_empty()).cloned()
}

impl NoChat {
    /// Status of the answer that says so.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Starting | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Off => StatusCode::FORBIDDEN,
            Self::Route => StatusCode::NOT_FOUND,
            Self::OtherRoute { .. } => StatusCode::CONFLICT,
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Failed(_) => StatusCode::BAD_GATEWAY,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_way_to_a_route_is_that_of_its_first_plain_match() {
        for (route, host, path) in [
            (json!({"name": "r"}), "localhost", CHAT),
            (json!({"name": "r", "hostnames": ["a.test", "b.test"], "matches": []}), "a.test", CHAT),
            (json!({"name": "r", "hostnames": ["*.a.test"]}), "playground.a.test", CHAT),
            (json!({"name": "r", "matches": [{"path": {"exact": "/chat"}}]}), "localhost", "/chat"),
            (json!({"name": "r", "matches": [{"path": {"prefix": "/"}}]}), "localhost", CHAT),
            (json!({"name": "r", "matches": [{"path": {"prefix": "/v1"}}]}), "localhost", CHAT),
            (
                json!({"name": "r", "matches": [{"path": {"prefix": "/team/"}}]}),
                "localhost",
                "/team/v1/chat/completions",
            ),
            (json!({"name": "r", "matches": [{"path": {"prefix": "/a/v1"}}]}), "localhost", "/a/v1/chat/completions"),
            (json!({"name": "r", "matches": [{"path": {"regex": "/x.*"}}]}), "localhost", CHAT),
            (
                json!({"name": "r", "matches": [
                    {"path": {"exact": "/a"}, "headers": [{"name": "x", "exact": "y"}]},
                    {"path": {"exact": "/b"}, "method": "GET"},
                    {"path": {"exact": "/c"}, "when": "true"},
                    {"path": {"exact": "/d"}, "headers": [], "when": null, "method": "POST", "model": "m"},
                ]}),
                "localhost",
                "/d",
            ),
        ] {
            let shown = json!({"routes": [{"name": "other", "hostnames": ["no.test"]}, route]});
            assert_eq!(way(&shown, "r"), (host.to_owned(), path.to_owned()), "{route}");
        }
        assert_eq!(way(&Value::Null, "r"), ("localhost".to_owned(), CHAT.to_owned()));
    }
}
