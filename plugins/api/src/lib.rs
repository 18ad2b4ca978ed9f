//! What a filter is: one step of a route's chain, what it may see of an exchange, what it may change.
//! It knows no proxy and no runtime: the gateway shows it requests through the views here and does what it answers.
//! Filters enter through the [`Registry`], which gives the configuration language their names, schemas and checks.

mod headers;
mod http_client;
mod limit;
mod refusal;
mod registry;
mod state;

pub use headers::{HeaderEdit, Headers, Template};
pub use http_client::{Call, HttpClient, HttpError, NoHttp};
pub use limit::{LimitBy, LimitKey, LimitSpec, Quota};
pub use refusal::{ErrorKind, Refusal};
pub use registry::{BuildContext, ExpressionCheck, FilterFactory, Registry, define};
pub use spillway_config::FieldError;
pub use state::SharedStates;

use std::net::IpAddr;
use std::pin::Pin;

use http::{HeaderName, HeaderValue};

/// When in the life of a request a filter runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before the caller is identified and before a byte of the body is read.
    Guard,
    /// When caller and route are known.
    Route,
}

/// What a filter decides.
pub enum Flow {
    /// The request goes on.
    Continue,
    /// The request is answered here.
    Answer(Box<Answer>),
    /// The request ends here.
    Refuse(Box<Refusal>),
    /// The filter must wait for something; only such a filter pays for a box. The wait is bounded by the filter, and
    /// dropping it cancels.
    Wait(Waiting),
}

/// What a filter that waits comes to.
pub type Waiting = Pin<Box<dyn Future<Output = Waited> + Send>>;

/// The end of a wait.
#[derive(Debug, Default)]
pub struct Waited {
    /// The request ends here.
    pub refusal: Option<Box<Refusal>>,
    /// The request ends here too, with this answer in place of an error of the gateway's own.
    pub answer: Option<Box<Answer>>,
    /// What was waited for did not come, whatever was decided without it: it is counted.
    pub failure: Option<String>,
    /// Headers that are put on the request for the filters that follow and the backend, in place of a caller's own.
    pub request_headers: Vec<(HeaderName, HeaderValue)>,
}

/// An answer that a filter makes in place of a server.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// HTTP status.
    pub status: http::StatusCode,
    /// Headers besides those that every answer has.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// Body.
    pub body: bytes::Bytes,
}

/// Who calls, once that is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Caller<'a> {
    /// The consumer's name.
    pub consumer: &'a str,
    /// Whom it belongs to.
    pub tenant: &'a str,
    /// What its token lets it do; empty for an API key.
    pub scopes: &'a [String],
    /// What its token says, `null` for an API key.
    pub claims: &'a serde_json::Value,
}

/// What a filter sees of a request before it goes anywhere.
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a http::Method,
    /// The path, without query.
    pub path: &'a str,
    /// The host that the request is for, with its port where it names one.
    pub host: Option<&'a str>,
    /// Whether the caller spoke TLS, to us or to a trusted proxy.
    pub secure: bool,
    /// The request header as it came.
    pub headers: &'a http::HeaderMap,
    /// The address of the client.
    pub client: IpAddr,
    /// Who calls: `None` at [`Stage::Guard`] and for an anonymous caller.
    pub caller: Option<Caller<'a>>,
    /// Name of the route.
    pub route: &'a str,
    /// The query, without `?`; empty where there is none.
    pub query: &'a str,
    /// The model that the body names; `None` where nothing read it.
    pub model: Option<&'a str>,
    /// The body; `None` where it is not held (see [`Filter::needs_body`]).
    pub body: Option<&'a [u8]>,
}

/// What header values may name in braces.
#[derive(Debug, Clone, Copy)]
pub struct Variables<'a> {
    /// `{backend}`: the backend, or `builtin/MODEL`.
    pub backend: &'a str,
    /// `{route}`.
    pub route: &'a str,
    /// `{requestId}`.
    pub request_id: &'a str,
    /// The page that a browser asks for (`Origin`); no variable of a header value.
    pub origin: Option<&'a http::HeaderValue>,
    /// Whether the caller spoke TLS; no variable of a header value.
    pub secure: bool,
}

/// Copies of requests for a second backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mirror<'a> {
    /// The backend's name.
    pub backend: &'a str,
    /// Share of the requests, from 0 to 1.
    pub share: f64,
    /// Longest time of a copy, to the last byte of its answer.
    pub timeout: std::time::Duration,
    /// Copies at the same time.
    pub max_in_flight: u32,
    /// Bytes of a body.
    pub max_body: u64,
}

/// One step of a route's filter chain. Built at reload and shared by all requests.
pub trait Filter: Send + Sync {
    /// When it runs.
    fn stage(&self) -> Stage {
        Stage::Route
    }
    /// The rule that it stands for; the gateway keeps it, and `on_request` is not called.
    fn limit(&self) -> Option<&LimitSpec> {
        None
    }
    /// Whether it reads the body, which is held for it then.
    fn needs_body(&self) -> bool {
        false
    }
    /// Headers that it alone may set on requests: a caller's own are removed on every route.
    fn owned_headers(&self) -> &[HeaderName] {
        &[]
    }
    /// Asks the gateway to send copies of requests to a second backend.
    fn mirror(&self) -> Option<Mirror<'_>> {
        None
    }
    /// Judges the request.
    fn on_request(&self, _: &mut RequestView<'_>) -> Flow {
        Flow::Continue
    }
    /// Changes the header that is sent to an endpoint; called for each attempt.
    fn on_upstream_request(&self, _: &mut dyn Headers, _: &Variables<'_>) {}
    /// Changes the target (path and query) that is sent to an endpoint; called for each attempt. `None` leaves it.
    fn upstream_target(&self, _: &http::uri::PathAndQuery) -> Option<http::uri::PathAndQuery> {
        None
    }
    /// Whether it answers what browsers ask before a request (CORS preflight): such a question is then taken to the
    /// route of the request that it asks for. Only for [`Stage::Guard`].
    fn answers_preflight(&self) -> bool {
        false
    }
    /// Changes the header that is sent to the client.
    fn on_response(&self, _: &mut dyn Headers, _: &Variables<'_>) {}
}
