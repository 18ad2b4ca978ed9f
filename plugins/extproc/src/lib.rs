//! `externalProcessing`: a server sees requests and answers on their way, and changes them or answers itself, by Envoy's protocol
//! (`envoy.service.ext_proc.v3.ExternalProcessor`). A processor that runs with Envoy runs here unmodified, but for what the documentation
//! of the filter leaves out: trailers, routing by its changes, and bodies of requests that are sent before they are whole.

mod answering;
mod messages;
mod mutation;
mod session;
mod watching;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::values::{Duration, quoted_url};
use spillway_filter::{
    Answer, BuildContext, Counter, CounterSpec, ErrorKind, FieldError, Fields, Filter, FilterFactory, Flow, GrpcClient,
    GrpcServer, HeaderChange, Refusal, RequestView, Waited, define,
};

use crate::answering::{Answering, joined, parts_of};
use crate::messages::{BodySendMode, CommonResponse, HeaderMap, HeaderValue, HttpHeaders, ImmediateResponse, Struct};
use crate::session::{Facts, Failed, Half, Modes, Processed, Session, Word, changed_body};
use crate::watching::Watching;

/// Method of the protocol.
const METHOD: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// Header by which a processor names endpoints (`docs/proposals/004-endpoint-picker-protocol` of the Gateway API inference
/// extension).
const PICKED: HeaderName = HeaderName::from_static("x-gateway-destination-endpoint");

/// Most endpoints of a pick.
const MOST_PICKED: usize = 16;

/// Bytes of a message that are not of the body which it carries.
const AROUND_BODY: usize = 1 << 10;

/// Decision while the processor fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum OnFailure {
    /// The caller gets an error with the status 502.
    #[default]
    Closed,
    /// The exchange goes on without the processor.
    Open,
}

/// Whether headers are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum SendHeaders {
    /// Sent.
    #[default]
    Send,
    /// Not sent.
    Skip,
}

/// How a body is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum SendBody {
    /// Not at all.
    #[default]
    None,
    /// In parts, each of which is answered by itself. Event streams are sent in whole events.
    Streamed,
    /// In one message.
    Buffered,
    /// In one message, or as much of it as fits.
    BufferedPartial,
    /// In parts, which the processor may answer when and in as many parts as it likes.
    FullDuplexStreamed,
}

impl SendBody {
    fn mode(self) -> BodySendMode {
        match self {
            Self::None => BodySendMode::None,
            Self::Streamed => BodySendMode::Streamed,
            Self::Buffered => BodySendMode::Buffered,
            Self::BufferedPartial => BodySendMode::BufferedPartial,
            Self::FullDuplexStreamed => BodySendMode::FullDuplexStreamed,
        }
    }
}

/// TLS towards a processor.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProcessorTls {
    /// True if the processor's certificate is not verified, as endpoint pickers sign theirs themselves. Whoever can answer at the
    /// address, or stand between, then sees and changes requests and answers: only for a network that nobody else is on.
    #[serde(default)]
    insecure_skip_verify: bool,
}

/// Lets a server see and change requests and answers by Envoy's protocol (ext_proc).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExternalProcessing {
    /// Address of the processor: `grpc://HOST:PORT`, or `grpcs://HOST:PORT` for TLS.
    url: String,
    /// TLS of `grpcs`.
    tls: Option<ProcessorTls>,
    /// Whether the headers of requests are sent.
    #[serde(default)]
    request_headers: SendHeaders,
    /// How bodies of requests are sent. They are read whole before.
    #[serde(default)]
    request_body: SendBody,
    /// Whether the headers of answers are sent.
    #[serde(default)]
    response_headers: SendHeaders,
    /// How bodies of answers are sent.
    #[serde(default)]
    response_body: SendBody,
    /// Headers of requests that are not sent.
    #[serde(default = "hidden")]
    hidden_headers: Vec<String>,
    /// Facts of requests that are sent as attributes: `request.path`, `request.url_path`, `request.query`, `request.method`,
    /// `request.host`, `request.scheme`, `source.address`.
    #[serde(default)]
    request_attributes: Vec<String>,
    /// Longest wait for what the processor says of a message.
    #[serde(default = "timeout")]
    timeout: Duration,
    /// Longest wait that the processor may ask for in place of `timeout`. Left out, it may not.
    max_timeout: Option<Duration>,
    /// Decision while the processor is unavailable, too slow, or speaks another protocol.
    #[serde(default)]
    on_failure: OnFailure,
    /// True if the processor may say for each request what is sent of it, once it has seen the headers. Bodies of requests are then
    /// read whole, whatever it says.
    #[serde(default)]
    allow_mode_override: bool,
    /// True if the processor only watches: nothing is awaited, what it says is not read, and messages for which it is too slow are left out.
    #[serde(default)]
    observe_only: bool,
    /// True if the processor picks the endpoint of each request, as the endpoint pickers of Kubernetes' inference pools do: by the
    /// header `x-gateway-destination-endpoint`, which has one `ADDRESS:PORT` or several, the best first. No other endpoint of the
    /// route's backends gets the request. Where the processor answers 429 or 503, or none of those has room, the route does what it does
    /// while it is saturated.
    #[serde(default)]
    picks_endpoints: bool,
    /// Longest message in either direction, in bytes.
    #[serde(default = "max_message_bytes")]
    max_message_bytes: u32,
}

fn hidden() -> Vec<String> {
    ["authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"].map(str::to_owned).into()
}

fn timeout() -> Duration {
    Duration::millis(200)
}

fn max_message_bytes() -> u32 {
    4 << 20
}

/// The filter's factory.
pub fn factory() -> Box<dyn FilterFactory> {
    define("externalProcessing", |config: &ExternalProcessing| compile(config).err().unwrap_or_default(), build)
}

/// Failures that no refusal or failure of a request tells of.
const ANSWER_FAILURES: CounterSpec = CounterSpec {
    name: "spillway_filter_external_processing_answer_failures",
    help: "Answers on whose way to the client an external processor failed",
    labels: &[],
};

/// Compiled settings.
pub(crate) struct Settings {
    server: GrpcServer,
    request_headers: bool,
    modes: Modes,
    hidden: Vec<HeaderName>,
    attributes: Vec<Attribute>,
    timeout: std::time::Duration,
    max_timeout: Option<std::time::Duration>,
    is_open: bool,
    allow_mode_override: bool,
    observe_only: bool,
    picks_endpoints: bool,
    max_message: usize,
    answer_failures: Counter,
}

impl Settings {
    /// Longest body in one message.
    fn max_body(&self) -> usize {
        self.max_message.saturating_sub(AROUND_BODY)
    }

    /// Reports what went wrong with the processor.
    fn report(&self, why: &str) {
        tracing::debug!(event = "external_processing_failed", server = self.server.address, reason = why);
    }
}

/// Fact of a request that is sent as an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attribute {
    Path,
    UrlPath,
    Query,
    Method,
    Host,
    Scheme,
    SourceAddress,
}

impl Attribute {
    const ALL: [(&'static str, Self); 7] = [
        ("request.path", Self::Path),
        ("request.url_path", Self::UrlPath),
        ("request.query", Self::Query),
        ("request.method", Self::Method),
        ("request.host", Self::Host),
        ("request.scheme", Self::Scheme),
        ("source.address", Self::SourceAddress),
    ];
}

fn compile(config: &ExternalProcessing) -> Result<Settings, Vec<FieldError>> {
    let mut errors = Vec::new();
    let server = server(&config.url).map_err(|error| errors.push(error)).unwrap_or_default();
    if config.tls.is_some() && server.starts_with("http:") {
        errors.push(FieldError::at(["tls"], "has no effect with a `grpc` URL: write `grpcs`, or remove it"));
    }
    let longest = |time: &Duration| !time.0.is_zero() && time.0.as_secs() <= 60;
    if !longest(&config.timeout) {
        errors.push(FieldError::at(["timeout"], "must be above zero and at most 60s: every request waits for it"));
    }
    if config.max_timeout.as_ref().is_some_and(|time| !longest(time) || time.0 < config.timeout.0) {
        errors.push(FieldError::at(["maxTimeout"], "must be at least `timeout` and at most 60s"));
    }
    if !(64 << 10..=64 << 20).contains(&config.max_message_bytes) {
        errors.push(FieldError::at(["maxMessageBytes"], "must be from 65536 to 67108864"));
    }
    let mut hidden = Vec::new();
    for name in &config.hidden_headers {
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) => hidden.push(name),
            Err(_) => errors.push(FieldError::at(["hiddenHeaders"], format!("`{name}` is not a header name"))),
        }
    }
    let mut attributes = Vec::new();
    for written in &config.request_attributes {
        match Attribute::ALL.iter().find(|(name, _)| name == written) {
            Some((_, attribute)) => attributes.push(*attribute),
            None => {
                let known: Vec<&str> = Attribute::ALL.iter().map(|(name, _)| *name).collect();
                let message = format!("`{written}` is not an attribute that is sent; these are: {}", known.join(", "));
                errors.push(FieldError::at(["requestAttributes"], message));
            }
        }
    }
    let waits = [("requestBody", config.request_body), ("responseBody", config.response_body)];
    for (key, _) in
        waits.iter().filter(|(_, body)| config.observe_only && !matches!(body, SendBody::None | SendBody::Streamed))
    {
        errors.push(FieldError::at([*key], "with `observeOnly` a body is sent as `streamed` or not at all (`none`)"));
    }
    if config.observe_only && config.allow_mode_override {
        let message = "has no effect with `observeOnly`: what the processor says is not read. Remove one of them";
        errors.push(FieldError::at(["allowModeOverride"], message));
    }
    if config.observe_only && config.picks_endpoints {
        let message = "has no effect with `observeOnly`: what the processor says is not read. Remove one of them";
        errors.push(FieldError::at(["picksEndpoints"], message));
    }
    let skips = config.request_headers == SendHeaders::Skip && config.response_headers == SendHeaders::Skip;
    if skips && waits.iter().all(|(_, body)| *body == SendBody::None) {
        errors.push(FieldError { path: Vec::new(), message: "nothing is sent to the processor".to_owned() });
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Settings {
        server: GrpcServer {
            address: server,
            verifies_certificate: !config.tls.as_ref().is_some_and(|tls| tls.insecure_skip_verify),
        },
        request_headers: config.request_headers == SendHeaders::Send,
        modes: Modes {
            request_body: config.request_body.mode(),
            response_headers: config.response_headers == SendHeaders::Send,
            response_body: config.response_body.mode(),
        },
        hidden,
        attributes,
        timeout: config.timeout.0,
        max_timeout: config.max_timeout.as_ref().map(|time| time.0),
        is_open: config.on_failure == OnFailure::Open,
        allow_mode_override: config.allow_mode_override,
        observe_only: config.observe_only,
        picks_endpoints: config.picks_endpoints,
        max_message: usize::try_from(config.max_message_bytes).unwrap_or(usize::MAX),
        answer_failures: Counter::default(),
    })
}

/// Address of the processor as HTTP has it.
fn server(written: &str) -> Result<String, FieldError> {
    let url = url::Url::parse(written).ok().filter(|url| {
        matches!(url.scheme(), "grpc" | "grpcs")
            && url.has_host()
            && url.port().is_some()
            && matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.username().is_empty()
            && url.password().is_none()
    });
    let Some((url, host)) = url.as_ref().and_then(|url| Some((url, url.host_str()?))) else {
        let quoted = quoted_url(written);
        let message =
            format!("{quoted} is not the address of a processor: write grpc://HOST:PORT or grpcs://HOST:PORT");
        return Err(FieldError::at(["url"], message));
    };
    let scheme = if url.scheme() == "grpcs" { "https" } else { "http" };
    Ok(format!("{scheme}://{host}:{}", url.port().unwrap_or_default()))
}

fn build(config: ExternalProcessing, cx: &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError> {
    let mut settings = compile(&config).map_err(|mut errors| errors.remove(0))?;
    settings.answer_failures = cx.counter(ANSWER_FAILURES, &[])?;
    cx.grpc.prepare(&settings.server);
    Ok(Arc::new(Processing { settings: Arc::new(settings), grpc: cx.grpc.clone() }))
}

/// The filter.
struct Processing {
    settings: Arc<Settings>,
    grpc: Arc<dyn GrpcClient>,
}

impl Filter for Processing {
    fn needs_body(&self) -> bool {
        let is_sent = self.settings.modes.request_body != BodySendMode::None && !self.settings.observe_only;
        is_sent || self.settings.allow_mode_override
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        let stream = self.grpc.open(&self.settings.server, METHOD, self.settings.max_message);
        let mut session = Session::new(stream, self.settings.clone(), facts(x, &self.settings));
        let headers = self.settings.request_headers.then(|| head(x, &self.settings));
        if self.settings.observe_only {
            if let Some(headers) = headers {
                let message = session.show_headers(Half::Request, headers);
                session.tell(message);
            }
            return Flow::Observe(Box::new(Watching::new(session)));
        }
        let mut fields = x.headers.clone();
        if self.settings.picks_endpoints {
            // A processor that adds to the header must not take over what the caller wrote into it.
            fields.remove(&PICKED);
        }
        let request = Request {
            headers,
            fields,
            body: self.needs_body().then(|| Bytes::copy_from_slice(x.body.unwrap_or_default())),
        };
        let settings = self.settings.clone();
        Flow::Wait(Box::pin(async move {
            let processed = request.process(session).await;
            let picked = if settings.picks_endpoints { processed.and_then(picked) } else { processed };
            picked.unwrap_or_else(|failed| {
                settings.report(&failed.0);
                let refusal = (!settings.is_open).then(|| Box::new(refused()));
                let failure = Some(format!("{}: {}", settings.server.address, failed.0));
                Waited { refusal, failure, ..Waited::default() }
            })
        }))
    }
}

/// Request on its way to the processor.
struct Request {
    headers: Option<HttpHeaders>,
    /// Headers that its changes are applied to.
    fields: Fields,
    /// Body; `None` if it is not read.
    body: Option<Bytes>,
}

impl Request {
    async fn process(mut self, mut session: Session) -> Result<Waited, Failed> {
        let mut waited = Waited::default();
        let before = self.body.clone().unwrap_or_default();
        let mut body = before.clone();
        let is_duplex = session.modes.request_body == BodySendMode::FullDuplexStreamed && !body.is_empty();
        if let Some(headers) = self.headers.take_if(|_| !is_duplex) {
            match session.headers(Half::Request, headers).await? {
                Word::Nothing => return Ok(waited),
                Word::Answer(answer) => return Ok(answered(&answer)),
                Word::Change(change) => {
                    self.change_headers(&change, &mut waited);
                    if change.status == 1 {
                        session.modes.request_body = BodySendMode::None;
                        body = changed_body(*change, body)?;
                    }
                }
            }
        }
        if !body.is_empty() {
            match self.process_body(&mut session, body, &mut waited).await? {
                Processed::Body(changed) => body = changed,
                Processed::Answer(answer) => return Ok(answered(&answer)),
            }
        }
        if body != before {
            waited.rewrite.body = Some(body);
        }
        if !session.is_over && !session.modes.skips_answer() {
            waited.rewrite.processor = Some(Box::new(Answering(session)));
        }
        Ok(waited)
    }

    async fn process_body(
        &mut self,
        session: &mut Session,
        body: Bytes,
        waited: &mut Waited,
    ) -> Result<Processed, Failed> {
        let most = session.settings.max_body();
        match session.modes.request_body {
            BodySendMode::None => Ok(Processed::Body(body)),
            BodySendMode::Streamed => session.streamed(Half::Request, body, true).await,
            BodySendMode::FullDuplexStreamed => {
                let (headers, mut said) = (self.headers.take(), None);
                let processed = session.duplex_request(headers, body, &mut |change| said = Some(change)).await?;
                if let Some(change) = said {
                    self.change_headers(&change, waited);
                }
                Ok(processed)
            }
            BodySendMode::Buffered if body.len() > most => Err(session.too_long()),
            BodySendMode::Buffered | BodySendMode::BufferedPartial => {
                let (shown, rest) = (body.slice(..body.len().min(most)), body.slice(body.len().min(most)..));
                match session.body(Half::Request, shown.clone(), rest.is_empty()).await? {
                    Word::Nothing => Ok(Processed::Body(body)),
                    Word::Answer(answer) => Ok(Processed::Answer(answer)),
                    Word::Change(change) => {
                        self.change_headers(&change, waited);
                        Ok(Processed::Body(joined(changed_body(*change, shown)?, &rest)))
                    }
                }
            }
        }
    }

    /// Applies changes to the headers, and notes what they come to.
    fn change_headers(&mut self, change: &CommonResponse, waited: &mut Waited) {
        let Some(mutation) = &change.header_mutation else { return };
        let changed = mutation::apply(mutation, &mut self.fields);
        for name in changed.names.iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()) {
            let values = self.fields.get_all(&name).cloned().collect();
            waited.rewrite.request_headers.push(HeaderChange { name, values });
        }
        if waited.failure.is_none() {
            waited.failure = changed.left_out;
        }
    }
}

/// Takes over the endpoints that the processor has picked.
fn picked(waited: Waited) -> Result<Waited, Failed> {
    let sheds = |answer: &Answer| matches!(answer.status.as_u16(), 429 | 503);
    if waited.answer.as_deref().is_some_and(sheds) {
        return Ok(Waited { endpoints: Some(Vec::new()), ..Waited::default() });
    }
    if waited.answer.is_some() || waited.served.is_some() {
        return Ok(waited);
    }
    let values =
        waited.rewrite.request_headers.iter().rfind(|change| change.name == PICKED).map(|change| &change.values);
    let addresses =
        values.into_iter().flatten().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    let endpoints: Vec<SocketAddr> =
        addresses.filter_map(|address| address.trim().parse().ok()).take(MOST_PICKED).collect();
    if endpoints.is_empty() {
        return Err(Failed(format!("it has picked no endpoint: `{PICKED}` has no address with a port")));
    }
    Ok(Waited { endpoints: Some(endpoints), ..waited })
}

/// End of a request that the processor has answered.
fn answered(answer: &ImmediateResponse) -> Waited {
    let (status, fields, body) = parts_of(answer);
    let headers = fields.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let answer = Some(Box::new(Answer { status, headers, body }));
    if status.is_success() || status.is_redirection() {
        Waited { served: answer, ..Waited::default() }
    } else {
        Waited { answer, ..Waited::default() }
    }
}

/// Head of a request for the processor.
fn head(x: &RequestView<'_>, settings: &Settings) -> HttpHeaders {
    let target = target(x);
    let pseudo = [
        (":method", x.method.as_str().as_bytes()),
        (":scheme", scheme(x).as_bytes()),
        (":authority", x.host.unwrap_or_default().as_bytes()),
        (":path", target.as_bytes()),
    ];
    let has_body = match x.body {
        Some(body) => !body.is_empty(),
        None => x
            .headers
            .get(header::CONTENT_LENGTH)
            .map_or_else(|| x.headers.contains_key(header::TRANSFER_ENCODING), |length| length.as_bytes() != b"0"),
    };
    HttpHeaders { headers: Some(headers_of(pseudo, x.headers, &settings.hidden)), end_of_stream: !has_body }
}

fn scheme(x: &RequestView<'_>) -> &'static str {
    if x.secure { "https" } else { "http" }
}

/// Path with the query.
fn target(x: &RequestView<'_>) -> String {
    if x.query.is_empty() { x.path.to_owned() } else { format!("{}?{}", x.path, x.query) }
}

/// Headers as the protocol has them. Names are in lower case, values in `raw_value`.
pub(crate) fn headers_of<const N: usize>(
    pseudo: [(&str, &[u8]); N],
    fields: &Fields,
    hidden: &[HeaderName],
) -> HeaderMap {
    let value = |key: &str, value: &[u8]| HeaderValue {
        key: key.to_owned(),
        value: String::new(),
        raw_value: Bytes::copy_from_slice(value),
    };
    let pseudo = pseudo.iter().map(|(name, text)| value(name, text));
    let shown = fields.iter().filter(|(name, _)| !hidden.contains(name) && **name != header::HOST);
    HeaderMap { headers: pseudo.chain(shown.map(|(name, text)| value(name.as_str(), text.as_bytes()))).collect() }
}

/// Facts that go with the headers.
fn facts(x: &RequestView<'_>, settings: &Settings) -> Facts {
    let metadata = Struct::of([
        ("route", Some(x.route)),
        ("consumer", x.caller.map(|caller| caller.consumer)),
        ("tenant", x.caller.map(|caller| caller.tenant)),
        ("model", x.model),
    ]);
    let (target, client) = (target(x), x.client.to_string());
    let attributes = Struct::of(settings.attributes.iter().map(|attribute| match attribute {
        Attribute::Path => ("request.path", Some(target.as_str())),
        Attribute::UrlPath => ("request.url_path", Some(x.path)),
        Attribute::Query => ("request.query", Some(x.query)),
        Attribute::Method => ("request.method", Some(x.method.as_str())),
        Attribute::Host => ("request.host", x.host),
        Attribute::Scheme => ("request.scheme", Some(scheme(x))),
        Attribute::SourceAddress => ("source.address", Some(client.as_str())),
    }));
    Facts { metadata, served: None, attributes }
}

/// Refusal while the processor fails. What it said is for the log alone.
pub(crate) fn refused() -> Refusal {
    Refusal::new(
        StatusCode::BAD_GATEWAY,
        ErrorKind::Upstream,
        "external_processing_failed",
        "a server that processes the requests of this route has failed; try again",
    )
}
