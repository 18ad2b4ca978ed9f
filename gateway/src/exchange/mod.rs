//! All that one request and its answer carry and hold. What it holds (slots, permits, takings, spans) is released by
//! `Drop`, so that no path can forget it.

mod body;
mod body_budget;
mod connection;
mod forwarded;
mod observers;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use spillway_filter::{Answer, Caller, Refusal, Variables};
use tokio::time::Instant as Deadline;

use crate::downstream::WriteLimits;
use crate::framing::Violation;
use crate::identity::{Consumer, CredentialError, Token};
use crate::limits::{Credential, Estimate, Ledger};
use crate::off_loop::OffLoop;
use crate::protocol::{Dialect, Resolved};
use crate::queueing::{Retrying, Taken};
use crate::snapshot::Snapshot;
use crate::telemetry::{Span, SpillReason};
use crate::tls::ClientCertificate;
use crate::topology::Route;
pub use body::{HeldBody, Hold, RequestBody, expects_continue, hold, malformed, malformed_refusal, too_slow};
pub use body_budget::{BodyBudget, BodyShare, too_large};
pub use connection::{ConnectionInfo, ListenerFacts, TlsInfo};
pub use forwarded::{Origin, TrustedProxies};
pub use observers::{Observers, RefusedPart};

/// How a request ends before it was answered by an endpoint or a model.
#[derive(Debug)]
pub enum End {
    /// With a refusal in the caller's API shape.
    Refuse(Box<Refusal>),
    /// With an answer that a filter made.
    Answer(Box<Answer>),
    /// The client is gone; nobody reads an answer.
    ClientGone,
}

impl End {
    /// Ends with a refusal.
    pub fn refuse(refusal: Refusal) -> Self {
        Self::Refuse(Box::new(refusal))
    }
}

impl From<Box<Refusal>> for End {
    fn from(refusal: Box<Refusal>) -> Self {
        Self::Refuse(refusal)
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::refuse(refusal)
    }
}

/// Who answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ServedBy {
    /// Nobody: the gateway itself refused or answered.
    #[default]
    Gateway,
    /// An endpoint of a backend.
    Backend(Arc<str>),
    /// A model inside; the text is `builtin/NAME`.
    Model(Arc<str>),
}

/// What is told of a request when it has ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Status sent, 0 when none was.
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes_out: u64,
    /// Bytes of a server's body that were read, whether the client took them or not.
    pub bytes_answered: u64,
    /// Attempts at endpoints.
    pub attempts: u32,
    /// Address of the endpoint that answered.
    pub endpoint: Option<String>,
    /// Who answered.
    pub served_by: ServedBy,
    /// Time in a queue, if it waited in one.
    pub queued: Option<Duration>,
    /// Why somebody else than the route's own backends answers.
    pub spilled: Option<SpillReason>,
    /// Whether a stream that died was continued.
    pub resumed: bool,
    /// Code of the error that was sent.
    pub error_code: Option<&'static str>,
    /// Model that answered.
    pub model_answered: Option<String>,
    /// Why the answer ended.
    pub finish_reason: Option<String>,
    /// Id of the answer.
    pub response_id: Option<String>,
    /// Tokens read.
    pub prompt_tokens: Option<u64>,
    /// Of those, the ones that the upstream had in its cache.
    pub cached_tokens: Option<u64>,
    /// Tokens written.
    pub completion_tokens: Option<u64>,
    /// Events with content that have passed, for an answer that tells no usage: servers send one for a token.
    pub content_events: u64,
    /// Arrival to the first content.
    pub first_token: Option<Duration>,
    /// Time until the server's answer was read whole, where the client took longer than that.
    pub answered_in: Option<Duration>,
    /// Whether the client left before the end.
    pub client_gone: bool,
    /// True if the client left while a server or a built-in model worked on its request: the prompt counts as read.
    pub left_at_work: bool,
    /// Whether the answer ended early after its head was sent.
    pub broken: bool,
}

/// What the body asks for, as far as the gateway must know it.
#[derive(Debug, Default)]
pub struct Asked {
    /// The model named.
    pub model: Option<String>,
    /// Whether the answer shall be an event stream.
    pub stream: bool,
    /// What the answer is expected to use.
    pub expected: Estimate,
    /// Where the value of its `model` stands in the body.
    pub model_at: Option<std::ops::Range<usize>>,
}

/// Which rules of limits were judged, and taken from, before the body of a request was read: those that need only its head
/// and its caller.
#[derive(Debug, Clone, Copy, Default)]
pub struct Judged {
    /// The caller's own.
    pub own: bool,
    /// The rules of the route.
    pub route: bool,
    /// Where the ledger has what was taken: from this entry on, before that one.
    pub taken: (usize, usize),
}

/// One request and its answer.
pub struct Exchange {
    /// The configuration that this request sees from start to end.
    pub snapshot: Arc<Snapshot>,
    /// When its header had arrived.
    pub started: Instant,
    /// Its id, kept from the caller when sane.
    pub request_id: HeaderValue,
    /// Address of the client.
    pub client: IpAddr,
    /// The same as a header value.
    pub client_text: HeaderValue,
    /// Whether the caller spoke TLS, to us or to a trusted proxy.
    pub secure: bool,
    /// The certificate that the client showed, verified.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// The page that a browser asks for (`Origin`).
    pub origin: Option<HeaderValue>,
    /// Time between two parts of a body that is passed on.
    pub body_pause: Duration,
    /// Time for the client to take a part of an answer.
    pub write_timeout: Duration,
    /// The server span.
    pub span: Span,
    /// The route, once it is final.
    pub route: Option<Arc<Route>>,
    /// Operation that its method and path ask for.
    pub resolved: Resolved,
    /// Dialect of its errors: that of the path, or of the route once it is known.
    pub dialect: &'static dyn Dialect,
    /// Who calls, if that is known.
    pub caller: Option<Arc<Consumer>>,
    /// The header that showed who calls.
    pub identified_by: Option<HeaderName>,
    /// What tells the caller's key or token from others.
    pub credential: Option<Credential>,
    /// What the caller's token says, if it showed one.
    pub token: Option<Arc<Token>>,
    /// A header of the request has a name that some servers cannot tell from another one.
    pub odd_headers: bool,
    /// The caller would rather have an error than a lesser answer.
    pub refuses_fallback: bool,
    /// Headers that filters put on the request for its backend.
    pub request_headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: RequestBody,
    /// What the body asks for; `None` when nothing read it.
    pub asked: Option<Asked>,
    /// Slot and retry permit of the current attempt, until its server's answer was read whole.
    pub place: Option<Place>,
    /// What this request took from limits.
    pub ledger: Ledger,
    /// Which rules were judged before its body was read.
    pub judged: Judged,
    /// Where large bodies are read.
    pub off_loop: Arc<OffLoop>,
    /// What is told of it at the end.
    pub outcome: Outcome,
    /// Why a credential was refused.
    pub authentication_failed: Option<CredentialError>,
    /// The filter whose limit it is over and what to say, where its route shall give the lesser answer.
    pub over_limit: Option<(String, Box<Refusal>)>,
    /// The filter that ended it.
    pub refused_by: Option<String>,
    /// Observers of filters that follow it.
    pub observers: Observers,
    /// Counts it as running.
    pub running: Option<RouteInFlight>,
}

impl Exchange {
    /// A new exchange.
    pub fn begin(
        snapshot: Arc<Snapshot>,
        connection: &ConnectionInfo,
        headers: &HeaderMap,
        request_id: HeaderValue,
        span: Span,
        off_loop: Arc<OffLoop>,
    ) -> Self {
        let from = connection.origin(headers);
        Self {
            snapshot,
            started: Instant::now(),
            request_id,
            client: from.client,
            client_text: from.text,
            secure: from.secure,
            certificate: connection.tls.as_ref().and_then(|tls| tls.client.clone()),
            origin: headers.get(header::ORIGIN).cloned(),
            body_pause: connection.limits.body_timeout.0,
            write_timeout: connection.limits.write_timeout.0,
            span,
            route: None,
            resolved: Resolved::OTHER,
            dialect: Resolved::OTHER.dialect,
            caller: None,
            identified_by: None,
            credential: None,
            token: None,
            odd_headers: false,
            refuses_fallback: false,
            request_headers: Vec::new(),
            body: RequestBody::Unread,
            asked: None,
            place: None,
            ledger: Ledger::default(),
            judged: Judged::default(),
            off_loop,
            outcome: Outcome::default(),
            authentication_failed: None,
            over_limit: None,
            refused_by: None,
            observers: Observers::default(),
            running: None,
        }
    }

    /// Resolves what the request asks for. Called once, when its path has been put into one form or refused.
    pub fn resolve(&mut self, method: &Method, path: &str) {
        self.resolved = Resolved::of(method, path);
        self.dialect = self.resolved.dialect;
    }

    /// Who calls, as filters see it.
    pub fn caller_view(&self) -> Option<Caller<'_>> {
        const NO_CLAIMS: &serde_json::Value = &serde_json::Value::Null;
        let token = self.token.as_deref();
        self.caller.as_deref().map(|consumer| Caller {
            consumer: &consumer.name,
            tenant: &consumer.tenant,
            scopes: token.map_or(&[], |token| &token.scopes),
            claims: token.map_or(NO_CLAIMS, |token| &token.claims),
        })
    }

    /// What header values may name.
    pub fn variables<'a>(&'a self, route: &'a Route, backend: &'a str) -> Variables<'a> {
        Variables {
            backend,
            route: &route.name,
            request_id: self.request_id.to_str().unwrap_or_default(),
            origin: self.origin.as_ref(),
            secure: self.secure,
        }
    }

    /// Notes a part of the answer's body that goes to the client, and shows it to the observers.
    pub fn pass(&mut self, part: &[u8]) {
        let length = u64::try_from(part.len()).unwrap_or(0);
        self.outcome.bytes_out = self.outcome.bytes_out.saturating_add(length);
        self.observers.response_body(part);
    }

    /// Shows a part of the request's body to the observers before it goes to a server.
    pub fn show_request_body(&mut self, part: &[u8]) -> Result<(), Box<Refusal>> {
        self.observers.request_body(part).map_err(|refused| self.refused_by_observer(refused))
    }

    /// Notes which filter refused a part of the request's body.
    pub fn refused_by_observer(&mut self, refused: RefusedPart) -> Box<Refusal> {
        self.refused_by = Some(refused.filter);
        refused.refusal
    }

    /// Who answered, as text.
    pub fn served_by(&self) -> &str {
        match &self.outcome.served_by {
            ServedBy::Gateway => "",
            ServedBy::Backend(name) | ServedBy::Model(name) => name,
        }
    }

    /// Ends a request whose client left while a server or a built-in model worked on it.
    pub fn left_at_work(&mut self) -> End {
        self.outcome.left_at_work = true;
        End::ClientGone
    }

    /// Limits of a write to the client that must be over by `deadline`.
    pub fn write_limits(&self, deadline: Deadline) -> WriteLimits<'_> {
        WriteLimits { timeout: self.write_timeout, deadline, downstream: &self.snapshot.downstream }
    }

    /// When the route's time for the whole request is over.
    pub fn deadline(&self, route: &Route) -> Deadline {
        Deadline::from_std(self.started + route.request_timeout)
    }
}

/// The slot of an attempt at its endpoint, and its part of the budget for retries.
pub struct Place {
    /// The slot.
    pub slot: Taken,
    /// Counts it as a further try, where it is one.
    pub retrying: Option<Retrying>,
}

/// One running request of a route.
pub struct RouteInFlight(Arc<crate::telemetry::RouteMetrics>);

impl RouteInFlight {
    /// Counts it.
    pub fn enter(metrics: &Arc<crate::telemetry::RouteMetrics>) -> Self {
        metrics.in_flight.inc();
        Self(metrics.clone())
    }
}

impl Drop for RouteInFlight {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

/// Whether a request of this method may be sent twice (RFC 9110, 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

/// The violation of the framing that an error of a session carries.
pub fn violation_of(error: &pingora::Error) -> Option<Violation> {
    error.root_cause().downcast_ref::<io::Error>()?.get_ref()?.downcast_ref().copied()
}
