//! Filter interface: a step of a route's chain, its view of an exchange, and the changes it may make. Knows no proxy
//! and no runtime: the gateway shows requests through the views here and executes the filter's decision. Filters are
//! registered in the [`Registry`], which provides their names, schemas and checks to the configuration language.

mod answers;
mod classifier;
mod compression;
mod counter;
mod embedder;
mod events;
mod exchange;
mod fields;
mod grpc_client;
mod headers;
mod http_client;
mod limit;
mod observer;
mod pricing;
mod processor;
mod refusal;
mod registry;
mod rewriter;
mod state;
pub mod testing;

pub use answers::{
    AnswerKey, AnswerPut, AnswerStore, AnswerStores, Generation, KeptAnswers, Looked, Looking, NotPurged, Purging,
    StoredAnswer,
};
pub use classifier::{Classifier, Classifiers, Classifying, Judgement, NoClassifiers, NotClassified};
pub use compression::{CodingSpec, CompressionSpec, ContentCoding};
pub use counter::{Counter, CounterSample, CounterSpec, Counters};
pub use embedder::{Embedded, Embedder, Embedders, Embedding, NoEmbedders, NotEmbedded, Vectors};
pub use events::{EventSplitter, JSON_LINES, MAX_EVENT, ResponseEvent};
pub use exchange::ExchangeView;
pub use fields::{FieldName, Fields, NameSet, Values};
pub use grpc_client::{Exchanged, GrpcClient, GrpcError, GrpcServer, GrpcStream, NoGrpc, Pending};
pub use headers::{HeaderChange, HeaderEdit, Headers, Template};
pub use http_client::{Call, HttpClient, HttpError, NoHttp};
pub use limit::{LimitBy, LimitCost, LimitKey, LimitSpec, Quota};
pub use observer::{ExchangeEnd, Observer};
pub use pricing::{NoPrices, Pricing, TokenUse};
pub use processor::{AnswerEdit, Processor, Reads};
pub use refusal::{ErrorKind, Refusal};
pub use registry::{BuildContext, ExpressionCheck, FilterFactory, Registry, absent, define, define_compiled};
pub use rewriter::{AnswerHead, EventChange, Rewrite, Rewriter};
pub use spillway_config::{ExpressionPlace, FieldError, SignalKind, SignalName, nearest};
pub use state::SharedStates;

use std::net::IpAddr;
use std::pin::Pin;

use http::{HeaderName, HeaderValue};

/// Point in the life of a request at which a filter runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before the caller is identified and before a byte of the body is read, where the head decides the route. Where
    /// the model in the body decides it, the body is read before, and the caller may be identified.
    Guard,
    /// After caller and route are known.
    Route,
}

/// Decision of a filter.
pub enum Flow {
    /// Continues with the next filter.
    Continue,
    /// Continues with the next filter and follows the exchange; only a filter that follows pays for a box.
    Observe(Box<dyn Observer>),
    /// Continues with the next filter, with another body of the request, or with changes to its answer.
    Rewrite(Box<Rewrite>),
    /// Answers the request here.
    Answer(Box<Answer>),
    /// Refuses the request.
    Refuse(Box<Refusal>),
    /// Waits for a result; only a filter that waits pays for a box. The filter bounds the wait, and dropping it
    /// cancels.
    Wait(Waiting),
}

/// Future of a filter that waits.
pub type Waiting = Pin<Box<dyn Future<Output = Waited> + Send>>;

/// Result of a wait.
#[derive(Debug, Default)]
pub struct Waited {
    /// Further delay before the result takes effect. The gateway keeps the time, until the deadline of the request and while its
    /// client stays.
    pub delay: std::time::Duration,
    /// Refusal that ends the request.
    pub refusal: Option<Box<Refusal>>,
    /// Answer that ends the request, in place of an error of the gateway's own.
    pub answer: Option<Box<Answer>>,
    /// Answer to the request, as [`Flow::Answer`].
    pub served: Option<Box<Answer>>,
    /// Observer of the exchange if the request passes.
    pub observer: Option<Box<dyn Observer>>,
    /// Failure of the awaited server, whatever was decided without it; counted in the metrics.
    pub failure: Option<String>,
    /// Headers that are set on the request for later filters and the backend, replacing the caller's.
    pub request_headers: Vec<(HeaderName, HeaderValue)>,
    /// Addresses of the only endpoints that may have the request, the best first; none of them: no endpoint has room for it, and what
    /// the route does while it is saturated follows. `None` leaves the choice to the balancing of the backend.
    pub endpoints: Option<Vec<std::net::SocketAddr>>,
    /// Changes to the bodies of the exchange if the request passes.
    pub rewrite: Rewrite,
}

/// Answer of a filter in place of a server's.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// HTTP status.
    pub status: http::StatusCode,
    /// Headers besides those that every answer has.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// Body.
    pub body: bytes::Bytes,
}

/// Identity of the caller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Caller<'a> {
    /// Name of the consumer.
    pub consumer: &'a str,
    /// Tenant of the consumer.
    pub tenant: &'a str,
    /// Scopes of the token; empty for an API key.
    pub scopes: &'a [String],
    /// Claims of the token; `null` for an API key.
    pub claims: &'a serde_json::Value,
}

/// Place of the system prompt in the body of a call that asks a model for text, in the form of the caller's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemPlace {
    /// Message with the role `system` at the beginning of `messages` (OpenAI's and Ollama's chats).
    Messages,
    /// Field `system`, a string or blocks of text (Anthropic's Messages API, also where only tokens are counted).
    System,
    /// Field `instructions` (OpenAI's Responses API, also where only tokens are counted).
    Instructions,
    /// Field `system` beside `prompt`; with `raw`, servers read `prompt` alone (Ollama's `/api/generate`).
    SystemOrPrompt,
    /// None: the text goes in front of `prompt`, a string or a list of strings (OpenAI's completions).
    Prompt,
}

/// Request as a filter sees it before it is forwarded.
pub struct RequestView<'a> {
    /// HTTP method.
    pub method: &'a http::Method,
    /// Path without query.
    pub path: &'a str,
    /// Host of the request, with the port if it names one.
    pub host: Option<&'a str>,
    /// True if the caller used TLS, to the gateway or to a trusted proxy.
    pub secure: bool,
    /// Request headers as received.
    pub headers: &'a Fields,
    /// Address of the client.
    pub client: IpAddr,
    /// Caller; `None` for an anonymous caller, and for one that is not identified yet at [`Stage::Guard`].
    pub caller: Option<Caller<'a>>,
    /// Name of the route.
    pub route: &'a str,
    /// Query without `?`; empty if there is none.
    pub query: &'a str,
    /// Model named by the body; `None` if the body was not read or names none.
    pub model: Option<&'a str>,
    /// True for a call of a model API whose answer depends on what it says, and which changes nothing at its server: text,
    /// vectors, rankings, tensors.
    pub is_repeatable: bool,
    /// Place of the system prompt in the body; `None` for a call that asks for no text, or that the gateway does not know.
    pub system: Option<SystemPlace>,
    /// Estimate of the tokens in the prompt, as limits of tokens count it; `None` if the body was not read.
    pub prompt_tokens: Option<u64>,
    /// Body; `None` if it is not held (see [`Filter::needs_body`]).
    pub body: Option<&'a [u8]>,
}

/// Variables of header values, written in braces.
#[derive(Debug, Clone, Copy)]
pub struct Variables<'a> {
    /// `{backend}`: the backend, or `builtin/MODEL`.
    pub backend: &'a str,
    /// `{route}`.
    pub route: &'a str,
    /// `{requestId}`.
    pub request_id: &'a str,
    /// Origin of a browser's page (`Origin`), for hooks alone: no name in braces stands for it.
    pub origin: Option<&'a http::HeaderValue>,
    /// True if the caller used TLS, for hooks alone: no name in braces stands for it.
    pub secure: bool,
    /// Status of the answer; `None` on the way of a request.
    pub status: Option<http::StatusCode>,
    /// The exchange, for hooks that compute a value; `None` in tests of filters that need none.
    pub exchange: Option<&'a dyn ExchangeView>,
}

/// Server whose answer goes to the caller, and the caller's side of it, as filters of answers see them.
pub struct ServerView<'a> {
    /// True if the gateway speaks TLS to the server.
    pub https: bool,
    /// Host of the server's URL: a name, or an address (IPv6 without brackets).
    pub host: &'a str,
    /// Port of the server's URL.
    pub port: u16,
    /// `Host` of the request as the server got it; `None` if it got none.
    pub sent_host: Option<&'a str>,
    /// `Host` of the request as the caller sent it.
    pub caller_host: Option<&'a str>,
    /// True if the caller used TLS, to the gateway or to a trusted proxy.
    pub secure: bool,
    /// Path under which callers reach a path of the server; `None` where the route changes no path, and where that is not
    /// certain.
    pub caller_path: &'a dyn Fn(&str) -> Option<String>,
}

/// Copies of requests for a second backend, whose answers are discarded. The gateway sends them.
#[derive(Debug, Clone, PartialEq)]
pub struct MirrorSpec {
    /// Name of the backend.
    pub backend: String,
    /// Share of the requests, from 0 to 1.
    pub share: f64,
    /// Longest time of a copy, to the last byte of its answer.
    pub timeout: std::time::Duration,
    /// Most copies at the same time.
    pub max_in_flight: u32,
    /// Longest body of a copied request, in bytes.
    pub max_body: u64,
}

/// Step of a route's filter chain. Built at reload and shared by all requests.
pub trait Filter: Send + Sync {
    /// Stage at which the filter runs.
    fn stage(&self) -> Stage {
        Stage::Route
    }
    /// Limits of the requests that pass the filter. The gateway keeps their levels and judges them before `on_request`,
    /// which is called for a request that they allow. Limits that need the caller or the body are judged at
    /// [`Stage::Route`], whatever the stage of the filter.
    fn limits(&self) -> &[LimitSpec] {
        &[]
    }
    /// True if the filter acts by its limits, its mirrors and its compression alone: no hook is called, and its limits are
    /// judged together with those of the filters next to it.
    fn only_declares(&self) -> bool {
        false
    }
    /// True if the filter reads the body, which is then held for it.
    fn needs_body(&self) -> bool {
        false
    }
    /// Headers that only this filter may set on requests: the caller's are removed on every route.
    fn owned_headers(&self) -> &[HeaderName] {
        &[]
    }
    /// Compression of the answers of the route.
    fn compression(&self) -> Option<&CompressionSpec> {
        None
    }
    /// Decides by the headers of an answer whether it is compressed, for any client.
    fn compresses(&self, _answer: &Fields) -> bool {
        true
    }
    /// Copies of requests that the gateway sends to other backends.
    fn mirrors(&self) -> &[MirrorSpec] {
        &[]
    }
    /// Decides whether a request that was drawn for a copy is copied to `backend`.
    fn mirrors_request(&self, _: &RequestView<'_>, _backend: &str) -> bool {
        true
    }
    /// Decides on the request. Where the model in the body decides the route, a filter at [`Stage::Guard`] may be asked
    /// twice. Before the body is read, only a refusal by all candidate routes counts.
    fn on_request(&self, _: &mut RequestView<'_>) -> Flow {
        Flow::Continue
    }
    /// Changes the headers sent to an endpoint; called for each attempt.
    fn on_upstream_request(&self, _: &mut dyn Headers, _: &Variables<'_>) {}
    /// Changes the target (path and query) sent to an endpoint; called for each attempt. `None` keeps it.
    fn upstream_target(&self, _: &http::uri::PathAndQuery) -> Option<http::uri::PathAndQuery> {
        None
    }
    /// Path under which callers reach `path` of the server, where [`Self::upstream_target`] changed that of a request from
    /// `request`: the way back. `None` where that is not certain; the path is then kept.
    fn caller_path(&self, _request: &str, _path: &str) -> Option<String> {
        None
    }
    /// True if the filter answers CORS preflights: such a request is then routed like the request that it announces.
    /// Only for [`Stage::Guard`].
    fn answers_preflight(&self) -> bool {
        false
    }
    /// Forgets the answers that the filter keeps, and those that are on their way to be kept, for an operator. With `dry_run` it
    /// only counts them. `None` for a filter that keeps none. The filter bounds the wait.
    fn purge(&self, _dry_run: bool) -> Option<Purging> {
        None
    }
    /// Changes the headers of a server's answer. Called before [`Self::on_response`] of all filters, and not for answers of
    /// filters, built-in models and the gateway.
    fn on_server_response(&self, _: &mut dyn Headers, _: &ServerView<'_>) {}
    /// Changes the headers sent to the client.
    fn on_response(&self, _: &mut dyn Headers, _: &Variables<'_>) {}
}
