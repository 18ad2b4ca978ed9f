//! State of one request and its answer. The slots, permits, reservations and spans in it are released by `Drop`, so that no
//! path can leak them.

mod body;
mod body_budget;
mod connection;
mod forwarded;
mod observers;
mod rewriting;
mod taps;
mod viewed;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};
use smallvec::SmallVec;
use spillway_filter::{Answer, Caller, Fields, HeaderChange, Refusal, RequestView, Variables};
use spillway_statistics::Version;
use tokio::time::Instant as Deadline;

use crate::balancing::Endpoint;
use crate::batch::{LineMark, Seat};
use crate::builtin::Excuse;
use crate::clock;
use crate::downstream::WriteLimits;
use crate::identity::{CallerProof, Consumer, CredentialError, ModelAlias, Token};
use crate::limits::{Credential, Estimate, Ledger, Payer};
use crate::message::{RequestHead, ResponseHead};
use crate::off_loop::OffLoop;
use crate::prompt_signals::JudgedPrompt;
use crate::protocol::{BodyEdit, Dialect, GRPC, OLLAMA, Observe, ResolvedOperation, Written, render};
use crate::queueing::{Retrying, WakingSlot};
use crate::rollout::{LiveRollout, Observation, Pair};
use crate::snapshot::Snapshot;
use crate::telemetry::{NotSpilled, SocketEnd, Span, SpillReason};
use crate::tls::ClientCertificate;
use crate::topology::Route;
use crate::tunnel::Upgrade;
pub use body::{
    CodingLayer, HeldBody, Hold, RequestBody, expects_continue, hold, malformed, malformed_refusal, too_slow,
};
pub use body_budget::{BodyBudget, BodyShare, too_large, too_large_refusal};
pub use connection::{ConnectionInfo, ListenerFacts, TlsInfo};
pub use forwarded::{Origin, TrustedProxies};
pub use observers::{Observers, RefusedPart};
pub use rewriting::{Rewriting, RewrittenEnd};
pub use taps::Taps;
pub use viewed::{Viewed, version};

/// End of a request that no endpoint or model answers.
#[derive(Debug)]
pub enum End {
    /// Refusal, rendered in the dialect of the request.
    Refuse(Box<Refusal>),
    /// Answer that a filter made.
    Answer(Box<Answer>),
    /// No answer, because the client is gone.
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

/// Source of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ServedBy {
    /// The gateway itself, which refused or answered.
    #[default]
    Gateway,
    /// An endpoint of a backend.
    Backend(Arc<str>),
    /// A built-in model; the text is `builtin/NAME`.
    Model(Arc<str>),
}

/// Failed attempt of a request, or an endpoint that could not be tried.
#[derive(Debug, Clone)]
pub struct FailedAttempt {
    /// Address of the endpoint.
    pub endpoint: String,
    /// Cause, for logs.
    pub cause: &'static str,
    /// Time limit that was over, as in the configuration.
    pub limit: Option<&'static str>,
}

/// Errors of servers (5xx) that do not count yet: another endpoint may repeat them, and then the request is at fault.
#[derive(Default)]
pub enum Doubt {
    /// No server has answered with an error.
    #[default]
    None,
    /// An endpoint has; no other was tried since.
    Pending(DoubtedError),
    /// Two endpoints have.
    Repeated,
}

/// Error of a server that another endpoint may repeat.
pub struct DoubtedError {
    /// Name of the backend.
    pub backend: Arc<str>,
    /// Endpoint that answered with the error.
    pub endpoint: Arc<Endpoint>,
    /// Begin of the attempt, as [`crate::clock::now_millis`] reads it.
    pub began: u64,
}

/// Facts of a request that are logged and measured when it has ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Status sent, 0 when none was.
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes_out: u64,
    /// Bytes of a server's body that were read, whether the client read them or not.
    pub bytes_answered: u64,
    /// Attempts at endpoints.
    pub attempts: u32,
    /// Address of the endpoint that answered.
    pub endpoint: Option<String>,
    /// Last attempt that failed.
    pub failed: Option<FailedAttempt>,
    /// Limit that left no room for the request, as in the configuration.
    pub limit: Option<&'static str>,
    /// Source of the answer.
    pub served_by: ServedBy,
    /// Index of the target of the route whose answer it is; `None` for other answers.
    pub target: Option<usize>,
    /// Time in a queue; `None` where the request did not wait.
    pub queued: Option<Duration>,
    /// Time with servers and built-in models before the head of the answer, as far as it is known: of a server that answers,
    /// only with `telemetry.serverTiming`.
    pub at_targets: Duration,
    /// Reason for which a built-in model or stand-in answers; `None` where the route's own backends do.
    pub spilled: Option<SpillReason>,
    /// Reason for which the spill of the route did not take the request, and the field at fault if there is one.
    pub not_spilled: Option<(NotSpilled, Option<String>)>,
    /// True if the event stream broke and was continued.
    pub resumed: bool,
    /// Status of the error that a server reported in the body of an answer with a status of success.
    pub reported: Option<u16>,
    /// Code of the error that was sent.
    pub error_code: Option<&'static str>,
    /// Model that answered.
    pub model_answered: Option<String>,
    /// Finish reason of the answer.
    pub finish_reason: Option<String>,
    /// Id of the answer, as its server told it.
    pub response_id: Option<String>,
    /// Id of the answer as the caller read it, where that is another: one that was translated, or of the server whose stream
    /// another continued.
    pub shown_id: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the prompt that the server had in its KV cache.
    pub cached_tokens: Option<u64>,
    /// Tokens of the prompt that the server has written to its cache.
    pub cache_written_tokens: Option<u64>,
    /// Tokens written to a cache that are kept for an hour.
    pub cache_written_1h_tokens: Option<u64>,
    /// Tokens written.
    pub completion_tokens: Option<u64>,
    /// Text that has passed and that no usage covers.
    pub unreported: Written,
    /// True if the text of the answer was found in it: `unreported` is then all that no usage covers.
    pub is_text_known: bool,
    /// True if the answer is written later, where nobody counts it.
    pub is_deferred: bool,
    /// True if the answer is an error in place of text, whatever its status says.
    pub is_error: bool,
    /// Time from arrival to the first content.
    pub first_token: Option<Duration>,
    /// Time until the server's answer was read whole, where the client took longer to read it.
    pub answered_in: Option<Duration>,
    /// Time of the attempt in which its server was not read, because the client did not read.
    pub pause: ReadPause,
    /// True if the client left before the end.
    pub client_gone: bool,
    /// True if the client left while a server or a built-in model worked on its request: the prompt counts as read.
    pub left_at_work: bool,
    /// True if a server has answered whole and no turn came to read that: the server's work counts as for an answer.
    pub is_answer_unread: bool,
    /// Excuse of a built-in model for its failure.
    pub excuse: Option<Excuse>,
    /// True if the answer ended early after its head was sent.
    pub broken: bool,
    /// Facts of the socket that an upgrade opened.
    pub socket: Option<SocketOutcome>,
}

/// Time in which the server of an answer is not read, because too much of the answer waits for its client.
#[derive(Debug, Default)]
pub struct ReadPause {
    since: Option<Instant>,
    before: Duration,
}

impl ReadPause {
    /// Begins a pause, unless one lasts.
    pub fn begin(&mut self) {
        self.since.get_or_insert_with(clock::instant);
    }

    /// Ends the pause; returns true if there was one.
    pub fn end(&mut self) -> bool {
        let lasted = self.since.take().map(|since| clock::instant().saturating_duration_since(since));
        self.before += lasted.unwrap_or_default();
        lasted.is_some()
    }

    /// Sum of all pauses, which are over with it.
    pub fn take(&mut self) -> Duration {
        self.end();
        std::mem::take(&mut self.before)
    }
}

/// Facts of a socket that are logged and measured when it has ended.
#[derive(Debug, Clone, Copy)]
pub struct SocketOutcome {
    /// Time from the arrival of the request to the answer that opened the socket.
    pub opened_after: Duration,
    /// Bytes of the client.
    pub bytes_in: u64,
    /// Reason of the end; `None` while it is open.
    pub end: Option<SocketEnd>,
}

impl Outcome {
    /// Forgets what an attempt before has read of another answer.
    pub fn begin_answer(&mut self) {
        self.bytes_answered = 0;
        (self.prompt_tokens, self.completion_tokens) = (None, None);
        (self.cached_tokens, self.cache_written_tokens, self.cache_written_1h_tokens) = (None, None, None);
        (self.model_answered, self.finish_reason, self.response_id) = (None, None, None);
        self.shown_id = None;
        self.unreported = Written::default();
        (self.is_text_known, self.is_deferred, self.is_error) = (false, false, false);
        (self.first_token, self.excuse) = (None, None);
    }

    /// Counts time with a server or built-in model.
    pub fn was_at_target(&mut self, took: Duration) {
        self.at_targets = self.at_targets.saturating_add(took);
    }

    /// Records that the server told an error in an answer of success, which other servers would have sent with this status.
    pub fn note_reported(&mut self, status: Option<u16>) {
        self.reported = status;
        self.error_code = Some("upstream_error");
    }
}

/// Facts of a request that the gateway reads from its body, or from its path where that names the model.
#[derive(Debug, Default)]
pub struct Asked {
    /// Model that the request asks for: the one that it names, or the one that an alias of the caller stands for.
    pub model: Option<String>,
    /// Name in the request, where that is an alias of the caller.
    pub alias: Option<Box<SentAlias>>,
    /// True if `model` is in the form in which a server that reads several spellings as one compares names.
    pub is_folded: bool,
    /// True if the answer is wanted as an event stream.
    pub stream: bool,
    /// Tokens that the request is expected to use.
    pub expected: Estimate,
    /// Range of the value of `model` in the body; of a gRPC message that of the whole field.
    pub model_at: Option<std::ops::Range<usize>>,
    /// Edit by which the request asks for the usage of its stream, in APIs where it must ask; `None` where the caller does.
    pub usage_edit: Option<BodyEdit>,
    /// Form in which the request names the model.
    pub naming: Naming,
}

/// Name of a model's in a request that is an alias of the caller.
#[derive(Debug)]
pub struct SentAlias {
    /// Name that the caller sent.
    pub name: String,
    /// Model that it stands for.
    pub alias: Arc<ModelAlias>,
}

impl Asked {
    /// Name of the model as the caller sent it.
    pub fn sent(&self) -> Option<&str> {
        self.alias.as_ref().map(|sent| &*sent.name).or(self.model.as_deref())
    }
}

/// Form in which a request names its model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Naming {
    /// String in JSON.
    #[default]
    Json,
    /// Value of a form.
    Form,
    /// Segment of the path.
    Path,
    /// Field of a gRPC message.
    Message,
}

/// Limits that were checked before the body of a request was read: the rules that need only its head and its caller.
#[derive(Debug, Clone, Copy, Default)]
pub struct Judged {
    /// True if the caller's own rules were.
    pub own: bool,
    /// True if the rules of the route were.
    pub route: bool,
    /// Range of the reservations in the ledger, first and end.
    pub taken: (usize, usize),
}

/// Request and its answer.
pub struct Exchange {
    /// Configuration that the request sees from start to end.
    pub snapshot: Arc<Snapshot>,
    /// Time at which the header had arrived.
    pub started: Instant,
    /// Id of the request, kept from the caller when sane.
    pub request_id: HeaderValue,
    /// Address of the client.
    pub client: IpAddr,
    /// Address of the client as a header value.
    pub client_text: HeaderValue,
    /// True if the caller used TLS, to the gateway or to a trusted proxy.
    pub secure: bool,
    /// Verified certificate of the client.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// Origin of the page that a browser sends the request for (`Origin`).
    pub origin: Option<HeaderValue>,
    /// Longest time between two parts of a body that is passed on.
    pub body_pause: Duration,
    /// Longest time for the client to read a part of an answer.
    pub write_timeout: Duration,
    /// Server span.
    pub span: Span,
    /// Route, once it is final.
    pub route: Option<Arc<Route>>,
    /// Operation of the method and path.
    pub resolved: ResolvedOperation,
    /// Dialect of errors: that of the path, or of the route once it is known.
    pub dialect: &'static dyn Dialect,
    /// True for a gRPC call, whose caller reads errors as gRPC statuses whatever the path is.
    pub is_grpc: bool,
    /// Time that the caller gives its gRPC call, from its arrival on; `None` without `grpc-timeout`.
    pub callers_time: Option<Duration>,
    /// Consumer that the caller was identified as.
    pub caller: Option<Arc<Consumer>>,
    /// Header with the credential that identified the caller.
    pub identified_by: Option<HeaderName>,
    /// Identity of the caller's key or token, for limits.
    pub credential: Option<Credential>,
    /// Claims of the caller's token, if there is one.
    pub token: Option<Arc<Token>>,
    /// True if the request has a header with a name that some servers cannot tell from another one.
    pub odd_headers: bool,
    /// True if the caller prefers an error to a spill.
    pub refuses_fallback: bool,
    /// Gateways that the request has passed, this one included; `None` where the listener does not look for loops.
    pub hops: Option<HeaderValue>,
    /// True if requests to servers are signed with `Via`.
    pub signs_via: bool,
    /// Headers that filters add to the request for its backend.
    pub request_headers: Vec<(HeaderName, HeaderValue)>,
    /// Addresses of the only endpoints that may have the request, the best first, where a filter has picked.
    pub picked: Option<Arc<[SocketAddr]>>,
    /// Changes of filters to the headers of this request, for its backend.
    pub header_changes: Vec<HeaderChange>,
    /// Upgrade that the client asks for and the route passes.
    pub upgrade: Option<Box<Upgrade>>,
    /// Body of the request.
    pub body: RequestBody,
    /// Facts of the body or path; `None` where neither was read.
    pub asked: Option<Asked>,
    /// Conversation, as far as it decided the route; `None` where it decided nothing.
    pub prompt: Option<Box<JudgedPrompt>>,
    /// Slot and retry permit of the current attempt, until its server's answer was read whole.
    pub place: Option<AttemptSlot>,
    /// Version of the route's rollout that the request was given to, while versions are compared.
    pub rollout: Option<Box<RolloutPart>>,
    /// Reservations of the request.
    pub ledger: Ledger,
    /// Limits that were checked before the body was read.
    pub judged: Judged,
    /// Threads that read large bodies.
    pub off_loop: Arc<OffLoop>,
    /// Facts that are logged and measured at the end.
    pub outcome: Outcome,
    /// Caller and operation as a number, by which errors of servers are told apart; 0 until the first attempt.
    pub caller_key: u64,
    /// Errors of servers that do not count yet.
    pub doubt: Doubt,
    /// Reason for which a credential was refused.
    pub authentication_failed: Option<CredentialError>,
    /// Filter whose limit is exceeded and its refusal, where the route spills such requests.
    pub over_limit: Option<(String, Box<Refusal>)>,
    /// Filter that ended the request.
    pub refused_by: Option<String>,
    /// Observers of filters that follow the exchange.
    pub observers: Observers,
    /// Rewriters of filters that change the answer; `None` where no filter does.
    pub rewriting: Option<Box<Rewriting>>,
    /// Mark and places of a line of a batch; `None` for other requests.
    pub line: Option<Box<ExchangeLine>>,
    /// True for a request of the gateway's own, which counts for nobody.
    pub is_probe: bool,
    /// Taps on the answer of an exchange that is looked at.
    pub taps: Option<Box<Taps>>,
    /// Guard that counts the request as running.
    pub running: Option<RouteInFlight>,
    /// Reader of the answer's id in the bytes for the caller, until it was read; `None` where they need no second look.
    pub id_reader: Option<Box<dyn Observe>>,
    /// Last bytes of the answer's body that went to the client; line feeds before the first.
    last_bytes: [u8; 3],
}

/// Line of a batch on its way.
pub struct ExchangeLine {
    /// Its mark.
    pub mark: Arc<LineMark>,
    /// Its places at an endpoint or a built-in model.
    pub seats: SmallVec<[Seat; 2]>,
}

impl Exchange {
    /// Begins the exchange of a request with these headers.
    pub fn begin(
        snapshot: Arc<Snapshot>,
        connection: &ConnectionInfo,
        headers: &Fields,
        request_id: HeaderValue,
        span: Span,
        off_loop: Arc<OffLoop>,
    ) -> Self {
        let from = connection.origin(headers);
        Self {
            snapshot,
            started: clock::instant(),
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
            resolved: ResolvedOperation::OTHER,
            dialect: ResolvedOperation::OTHER.dialect,
            is_grpc: false,
            callers_time: None,
            caller: None,
            identified_by: None,
            credential: None,
            token: None,
            odd_headers: false,
            refuses_fallback: false,
            hops: None,
            signs_via: connection.via,
            request_headers: Vec::new(),
            picked: None,
            header_changes: Vec::new(),
            upgrade: None,
            body: RequestBody::Unread,
            asked: None,
            prompt: None,
            place: None,
            rollout: None,
            ledger: Ledger::default(),
            judged: Judged::default(),
            off_loop,
            outcome: Outcome::default(),
            caller_key: 0,
            doubt: Doubt::None,
            authentication_failed: None,
            over_limit: None,
            refused_by: None,
            observers: Observers::default(),
            rewriting: None,
            line: connection.line.clone().map(|mark| Box::new(ExchangeLine { mark, seats: SmallVec::new() })),
            is_probe: false,
            taps: None,
            running: None,
            id_reader: None,
            last_bytes: *b"\n\n\n",
        }
    }

    /// Resolves the operation of the request by its path, once that has been normalised or refused.
    pub fn resolve(&mut self, method: &Method, path: &str) {
        self.resolve_as(ResolvedOperation::of(method, path));
    }

    /// Sets the operation of the request.
    pub fn resolve_as(&mut self, resolved: ResolvedOperation) {
        self.resolved = resolved;
        self.dialect = resolved.dialect;
    }

    /// Dialect in which the caller reads refusals, and the end of an answer that breaks.
    pub fn error_dialect(&self) -> &'static dyn Dialect {
        if self.is_grpc { GRPC } else { self.dialect }
    }

    /// Head and body of a refusal, as its caller reads it.
    pub fn render(&self, refusal: &Refusal) -> (ResponseHead, Bytes) {
        let rendered = render(refusal, self.error_dialect(), self.request_id.to_str().unwrap_or_default());
        let mut head = ResponseHead::new(rendered.status, 8);
        let _ = head.insert_header(header::CONTENT_TYPE, rendered.content_type);
        for (name, value) in rendered.headers {
            let _ = head.insert_header(name, value);
        }
        (head, rendered.body)
    }

    /// Caller in the form that filters see.
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

    /// Request with this head in the form that filters see.
    pub fn request_view<'a>(&'a self, head: &'a RequestHead) -> RequestView<'a> {
        let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        RequestView {
            method: &head.method,
            path: head.uri.path(),
            host: host.or_else(|| head.uri.host()),
            secure: self.secure,
            headers: &head.headers,
            client: self.client,
            caller: self.caller_view(),
            route: self.route.as_ref().map_or("", |route| &route.name),
            query: head.uri.query().unwrap_or_default(),
            model: self.asked.as_ref().and_then(|asked| asked.model.as_deref()),
            is_repeatable: self.resolved.operation.is_repeatable(),
            system: self.resolved.system_place(),
            prompt_tokens: self.asked.as_ref().map(|asked| asked.expected.input),
            body: match &self.body {
                RequestBody::Held(held) => Some(&held.bytes),
                RequestBody::Unread => None,
            },
        }
    }

    /// Names that its answer costs something under.
    pub fn payer(&self) -> Payer<'_> {
        let (consumer, tenant) = self.caller.as_ref().map_or(("", ""), |caller| (&*caller.name, &*caller.tenant));
        Payer { consumer, tenant, route: self.route.as_ref().map_or("", |route| route.name.as_str()) }
    }

    /// Model that the name in the request stands for, where that is an alias of the caller.
    pub fn alias(&self) -> Option<&ModelAlias> {
        Some(&*self.asked.as_ref()?.alias.as_ref()?.alias)
    }

    /// Puts the model in the place of a name of the caller's own. True if the request had such a name.
    pub fn resolve_alias(&mut self) -> bool {
        let (Some(caller), Some(asked)) = (&self.caller, &mut self.asked) else { return false };
        // An alias stands for a model, never for another alias.
        if asked.alias.is_some() {
            return false;
        }
        let Some(name) = asked.model.as_mut() else { return false };
        let Some(alias) = caller.alias(name) else { return false };
        let name = std::mem::replace(name, alias.served.to_string());
        asked.alias = Some(Box::new(SentAlias { name, alias: alias.clone() }));
        true
    }

    /// Puts the name of the model into the one form of a server that reads several spellings as one. True if that is another.
    pub fn fold_model(&mut self) -> bool {
        let Some(asked) = self.asked.as_mut() else { return false };
        asked.is_folded = true;
        let Some(name) = asked.model.as_mut() else { return false };
        let folded = OLLAMA.folded_model(name);
        let is_other = folded != *name;
        *name = folded;
        is_other
    }

    /// True if the caller may use the model that the request asks for, by that name.
    pub fn may_use_asked(&self) -> bool {
        let (Some(caller), Some(asked)) = (&self.caller, &self.asked) else { return true };
        let model = asked.model.as_deref();
        let may_use = caller.may_use(model) || (asked.is_folded && caller.may_use_folded(model));
        // Another spelling is no other name.
        may_use && asked.alias.as_ref().is_none_or(|sent| caller.may_use(Some(&sent.name)))
    }

    /// Name of the model as the caller sent it.
    pub fn model_sent(&self) -> Option<&str> {
        self.asked.as_ref()?.sent()
    }

    /// Variables that header values may use.
    pub fn variables<'a>(&'a self, route: &'a Route, backend: &'a str, viewed: &'a Viewed<'a>) -> Variables<'a> {
        Variables {
            backend,
            status: None,
            exchange: Some(viewed),
            route: &route.name,
            request_id: self.request_id.to_str().unwrap_or_default(),
            origin: self.origin.as_ref(),
            secure: self.secure,
        }
    }

    /// Changes a part of the answer's body as the filters say, and shows what goes to the client now, which is returned.
    pub async fn pass(&mut self, part: Bytes) -> Bytes {
        let part = match &mut self.rewriting {
            None => part,
            // Boxed, because the answers of few routes are changed.
            Some(rewriting) => Box::pin(rewriting.pass(part, &self.snapshot.downstream)).await,
        };
        self.show(&part);
        part
    }

    /// As [`Self::pass`], for the last part of an event stream.
    pub async fn pass_last(&mut self, part: Bytes) -> Bytes {
        let part = self.pass(part).await;
        let Ok(ended) = self.end_rewriting().await else { return part };
        self.show(&ended.body);
        if ended.body.is_empty() { part } else { [part, ended.body].concat().into() }
    }

    /// Ends the changes of filters to the answer.
    ///
    /// # Errors
    ///
    /// The refusal in place of an answer that was read whole.
    pub async fn end_rewriting(&mut self) -> Result<RewrittenEnd, Box<Refusal>> {
        let Some(rewriting) = &mut self.rewriting else { return Ok(RewrittenEnd::default()) };
        Box::pin(rewriting.end(&self.off_loop)).await
    }

    /// Counts a part of the answer's body that goes to the client, and shows it to the observers.
    pub fn show(&mut self, part: &[u8]) {
        let length = u64::try_from(part.len()).unwrap_or(0);
        self.outcome.bytes_out = self.outcome.bytes_out.saturating_add(length);
        for byte in part.get(part.len().saturating_sub(self.last_bytes.len())..).unwrap_or_default() {
            let [_, second, third] = self.last_bytes;
            self.last_bytes = [second, third, *byte];
        }
        if let Some(taps) = &mut self.taps {
            taps.part(part);
        }
        self.observers.response_body(part);
        if self.id_reader.is_some() {
            self.read_id(part);
        }
    }

    /// Looks for the id of the answer in a part that goes to the client.
    #[cold]
    fn read_id(&mut self, part: &[u8]) {
        let Some(reader) = &mut self.id_reader else { return };
        reader.feed(part, self.started);
        if let Some(id) = &reader.observation().id {
            self.outcome.shown_id = Some(id.clone());
            self.id_reader = None;
        }
    }

    /// Begins to look for the id that the caller reads in an answer with these headers, where callers may label it.
    pub fn look_for_id(&mut self, headers: &Fields) {
        if self.route.as_ref().is_some_and(|route| route.labels.is_some()) {
            self.id_reader = self.dialect.observe(headers);
        }
    }

    /// True if the part of an event stream that the client has may end within an event.
    pub fn is_within_event(&self) -> bool {
        let [_, before, last] = self.last_bytes;
        !matches!((before, last), (b'\n', b'\n') | (b'\r', b'\r')) && self.last_bytes != *b"\n\r\n"
    }

    /// True if the client has a part of a line whose end it has not.
    pub fn is_within_line(&self) -> bool {
        let [.., last] = self.last_bytes;
        last != b'\n'
    }

    /// Shows a part of the request's body to the observers before it goes to a server.
    pub fn show_request_body(&mut self, part: &[u8]) -> Result<(), Box<Refusal>> {
        self.observers.request_body(part).map_err(|refused| self.refused_by_observer(refused))
    }

    /// Records the filter that refused a part of the request's body.
    pub fn refused_by_observer(&mut self, refused: RefusedPart) -> Box<Refusal> {
        self.refused_by = Some(refused.filter);
        refused.refusal
    }

    /// Source of the answer as text; empty for the gateway itself.
    pub fn served_by(&self) -> &str {
        match &self.outcome.served_by {
            ServedBy::Gateway => "",
            ServedBy::Backend(name) | ServedBy::Model(name) => name,
        }
    }

    /// Tells the judge of the route's rollout the time of the first content of a stream at once: the stream may outlive the step.
    #[cold]
    pub fn tell_first_token(&mut self, target: &str) {
        let is_stream = self.asked.as_ref().is_some_and(|asked| asked.stream);
        let (Some(first), None, true) = (self.outcome.first_token, self.outcome.spilled, is_stream) else { return };
        // A pair is judged when both of its sides are there.
        let tells = |part: &&mut Box<RolloutPart>| part.pair.is_none() && part.live.version_of(target) == part.version;
        let Some(part) = self.rollout.as_mut().filter(tells) else { return };
        if std::mem::replace(&mut part.is_first_token_told, true) {
            return;
        }
        let first_token = Some(first.as_secs_f32());
        part.live.observe(Observation { first_token, is_part: true, ..part.observation() });
    }

    /// Tells the judge of the route's rollout that a target has opened a socket, or failed to before another one did: the socket
    /// may outlive the step. What is told at its end is a failure that it had when open.
    #[cold]
    pub fn tell_socket(&mut self, target: &str) {
        let Some(part) = &mut self.rollout else { return };
        let is_own = part.live.version_of(target) == part.version;
        let is_error = std::mem::take(&mut part.has_failed);
        if is_own || is_error {
            let latency = self.outcome.socket.filter(|_| !is_error).map(|socket| socket.opened_after.as_secs_f32());
            part.live.observe(Observation { is_error, latency, ..part.observation() });
        }
    }

    /// Ends a request whose client left while a server or a built-in model worked on it.
    pub fn left_at_work(&mut self) -> End {
        self.outcome.left_at_work = true;
        End::ClientGone
    }

    /// Limits of a write to the client that must end by `deadline`.
    pub fn write_limits(&self, deadline: Deadline) -> WriteLimits<'_> {
        WriteLimits { timeout: self.write_timeout, deadline, downstream: &self.snapshot.downstream }
    }

    /// End of the time for the whole request: the route's, or the caller's where that is shorter.
    pub fn deadline(&self, route: &Route) -> Deadline {
        let time = self.callers_time.map_or(route.request_timeout, |time| time.min(route.request_timeout));
        Deadline::from_std(self.started + time)
    }

    /// Proof by which the caller is known; `None` for an anonymous one.
    pub fn caller_proof(&self) -> Option<CallerProof> {
        match (&self.token, &self.identified_by, &self.certificate) {
            (Some(token), ..) => Some(CallerProof::Token(token.clone())),
            (None, Some(_), _) => self.credential.map(CallerProof::Key),
            (None, None, certificate) => certificate.clone().map(CallerProof::Certificate),
        }
    }

    /// True if the caller gives the request less time than the route does.
    pub fn is_callers_deadline(&self, route: &Route) -> bool {
        self.callers_time.is_some_and(|time| time < route.request_timeout)
    }
}

/// Part that a request has in a rollout.
pub struct RolloutPart {
    /// Rollout of the route.
    pub live: Arc<LiveRollout>,
    /// Version that was drawn.
    pub version: Version,
    /// Number of the weight under which it was drawn.
    pub epoch: u32,
    /// Number of the unit that the judge counts the request for.
    pub unit: u64,
    /// True if an attempt at a target of the version failed, or none was available.
    pub has_failed: bool,
    /// Time from the arrival until the last attempt's server had answered whole, however slowly the client reads.
    pub answered_in: Option<Duration>,
    /// True once the judge knows the time of the first content.
    pub is_first_token_told: bool,
    /// Pair with the answer of a shadow, and the time from the arrival until the copy for it began.
    pub pair: Option<(Arc<Pair>, Duration)>,
}

impl RolloutPart {
    /// Observation of the request, without figures yet.
    pub fn observation(&self) -> Observation {
        Observation::new(self.version, self.epoch, self.unit)
    }
}

/// Slot of an attempt at its endpoint, and its retry permit.
pub struct AttemptSlot {
    /// Slot at the endpoint.
    pub slot: WakingSlot,
    /// Permit of the retry budget; `None` for the first attempt.
    pub retrying: Option<Retrying>,
}

/// Guard that counts a running request of a route.
pub struct RouteInFlight(Arc<crate::telemetry::RouteMetrics>);

impl RouteInFlight {
    /// Counts the request until the guard is dropped.
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

/// True if a request of this method may be sent twice (RFC 9110, 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}
