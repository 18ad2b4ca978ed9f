//! `backends`: groups of servers and the connections to them. The choice of an endpoint is in `balancing`.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::CertificateFiles;
use super::balancing::{Capacity, CircuitBreaker, HealthCheck, LoadBalancing, OutlierDetection};
use crate::values::{Duration, FilePath, Secret, ServerUrl, Size};

/// API of conversations of OpenAI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OpenAiApi {
    /// Chat completions, `/v1/chat/completions`.
    Chat,
    /// The Responses API, `/v1/responses`.
    Responses,
    /// The older completions, `/v1/completions`.
    Completions,
    /// Tokens of a conversation by vLLM's `/tokenize`.
    Tokenize,
}

/// A named group of servers that answer alike.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backend {
    /// Name that routes refer to; one namespace with the models.
    pub name: String,
    /// Protocol of the servers.
    #[serde(default)]
    pub protocol: BackendProtocol,
    /// APIs of texts that servers of `protocol: openai` have; `[chat, completions, responses]` when left out. Requests of the
    /// Responses API and of the older completions are translated to chat completions where the list lacks `responses` or
    /// `completions`. With `tokenize` questions of Anthropic's callers for a count of tokens go to `/tokenize`, else to
    /// `/v1/responses/input_tokens`. Other calls of OpenAI's API, such as `/v1/embeddings`, pass whatever stands here.
    #[serde(default)]
    pub apis: Option<Vec<OpenAiApi>>,
    /// The servers. A host name means every address that it resolves to, and is resolved again while the gateway runs.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// A file with further servers, a list as in `endpoints` (YAML or JSON), which other programs may rewrite at any
    /// time: each change has the effect of an edit of this file.
    #[serde(default)]
    pub endpoints_file: Option<FilePath>,
    /// The model name that the servers know, when it differs from the one that clients send.
    #[serde(default)]
    pub model: Option<String>,
    /// Models that the servers serve, by the names that clients send; `*` stands for any characters. A request that names
    /// another goes to another target of its route. All when left out.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    /// Question to the servers which models they have, for the lists of models that callers read; they are not asked when left
    /// out. For servers of OpenAI's, Anthropic's and Ollama's API. The names are for lists alone: no request goes elsewhere by
    /// them.
    #[serde(default)]
    pub model_list: Option<ModelList>,
    /// Credentials that replace those of the caller.
    #[serde(default)]
    pub credentials: Option<Credentials>,
    /// Fields of requests that these servers do not get, such as `temperature` for models that refuse it, with dots between the
    /// names of objects within each other (`options.seed`). They are taken out of bodies in JSON. Of requests that are
    /// translated from another API, a field without counterpart keeps them from these servers unless it is listed here. An
    /// answer names the fields that were dropped in `x-spillway-dropped`.
    #[serde(default)]
    pub drop_fields: Vec<String>,
    /// Name under which these servers read the most tokens of an answer, in requests that are translated from another API: those
    /// of callers of the same API pass as they are. OpenAI's newest models refuse `max_tokens`, and some servers know no other.
    /// When left out, `max_completion_tokens` where all endpoints are OpenAI's or Azure's (`api.openai.com`,
    /// `*.openai.azure.com`, `*.services.ai.azure.com` and the like), else `max_tokens`. Only for `protocol: openai`.
    #[serde(default)]
    pub max_tokens_field: Option<MaxTokensField>,
    /// Value of `reasoning_effort` by which the models of these servers reason not at all, or least: `none` from GPT-5.1 on,
    /// `minimal` for GPT-5, `low` for older ones. Callers of other APIs who ask for no reasoning get it. When left out, these
    /// servers get no field then, reason as they do without one, and the answer names the caller's field as dropped. Only for
    /// `protocol: openai`.
    #[serde(default)]
    pub no_reasoning: Option<NoReasoning>,
    /// Asks the servers for the usage at the end of a stream (`stream_options.include_usage`), where a chat or a completion of
    /// OpenAI's API is streamed and its caller does not ask. The chunk that answers it is kept from that caller. True when
    /// left out; false for servers that refuse the field. Only for `protocol: openai` and `ollama`; requests that are translated
    /// for them ask too.
    #[serde(default)]
    pub stream_usage: Option<bool>,
    /// Treatment of credentials that callers send in `authorization`, `x-api-key`, `api-key` or a header of
    /// `authentication.apiKey`; `remove` when left out. With `pass` they reach the servers, except keys and tokens of this
    /// gateway itself. Copies (`mirror`) and requests that the backend takes for another (`spillTo`) never carry them.
    #[serde(default)]
    pub caller_credentials: Option<CallerCredentials>,
    /// Choice of an endpoint.
    #[serde(default)]
    pub load_balancing: LoadBalancing,
    /// Active health check; none when left out.
    #[serde(default)]
    pub health_check: Option<HealthCheck>,
    /// Ejection of endpoints by their answers; on with these defaults when left out.
    #[serde(default)]
    pub outlier_detection: OutlierDetection,
    /// Limits at which an endpoint counts as full.
    #[serde(default)]
    pub capacity: Capacity,
    /// Limits on all that goes to the backend together.
    #[serde(default)]
    pub circuit_breaker: CircuitBreaker,
    /// Time limits of one attempt.
    #[serde(default)]
    pub timeouts: BackendTimeouts,
    /// Limits on what an endpoint may send.
    #[serde(default)]
    pub limits: BackendLimits,
    /// TLS towards endpoints whose URL says https.
    #[serde(default)]
    pub tls: BackendTls,
    /// HTTP/2 towards the endpoints: over TLS where the server chooses it by ALPN, else without asking.
    #[serde(default)]
    pub http2: bool,
    /// True if the endpoints come from elsewhere than the file, where there may be none at times.
    #[serde(skip)]
    pub discovered: bool,
}

/// Name of a field for the most tokens of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MaxTokensField {
    /// The older name, which every other server than OpenAI's knows.
    MaxTokens,
    /// The newer name, which OpenAI's models know.
    MaxCompletionTokens,
}

/// Effort of a model that is to reason least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum NoReasoning {
    /// No reasoning.
    None,
    /// As good as none.
    Minimal,
    /// Little.
    Low,
}

impl NoReasoning {
    /// Word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Minimal => "minimal",
            Self::Low => "low",
        }
    }
}

/// Question to the servers of a backend which models they have.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ModelList {
    /// Path of the list; that of the API when left out: `/v1/models`, or `/api/tags` of Ollama's.
    pub path: Option<String>,
    /// Time between two questions to one endpoint. New models of a server are rare.
    pub every: Duration,
    /// Longest time of one question, all pages of the answer together.
    pub timeout: Duration,
    /// Most names that are kept of one endpoint, in the order of its list. Names have at most 256 bytes.
    pub max_models: NonZeroU32,
}

impl Default for ModelList {
    fn default() -> Self {
        // The largest public lists have some hundred models.
        let max_models = NonZeroU32::MIN.saturating_add(999);
        Self { path: None, every: Duration::seconds(300), timeout: Duration::seconds(10), max_models }
    }
}

/// Treatment of the credentials that callers send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CallerCredentials {
    /// Removed by the gateway.
    #[default]
    Remove,
    /// Passed to the servers, for callers with accounts of their own there.
    Pass,
}

/// TLS towards the endpoints of a backend. Their certificates are always verified, name included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackendTls {
    /// Server name (SNI) that the certificate must have; the host of the URL when left out.
    pub sni: Option<String>,
    /// The authorities that may have signed it, in PEM; those of the system when left out.
    pub ca_file: Option<FilePath>,
    /// Authorities from elsewhere than a file, in place of those.
    #[serde(skip)]
    pub authorities: Option<PemAuthorities>,
    /// Certificate and key that the gateway presents.
    pub client_certificate: Option<CertificateFiles>,
}

/// Authorities that are no file, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct PemAuthorities {
    /// Name in messages.
    pub name: String,
    /// Certificates of the authorities.
    pub pem: Arc<[u8]>,
}

impl fmt::Debug for PemAuthorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PemAuthorities({})", self.name)
    }
}

/// Protocol of the servers of a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum BackendProtocol {
    /// The OpenAI API.
    Openai,
    /// Anthropic's Messages API.
    Anthropic,
    /// The API of Ollama, whose servers speak OpenAI's too.
    Ollama,
    /// The Open Inference Protocol, version 2, over HTTP: KServe, Triton, MLServer.
    Oip,
    /// The Open Inference Protocol, version 2, over gRPC. Needs `http2: true`.
    #[serde(rename = "oip-grpc")]
    OipGrpc,
    /// Plain HTTP.
    #[default]
    Http,
}

impl BackendProtocol {
    /// True for the API of a model.
    pub fn calls_models(self) -> bool {
        self != Self::Http
    }
}

/// Server of a backend.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// Scheme, host and port.
    pub url: ServerUrl,
    /// Share of the requests relative to its neighbours; 0 takes none.
    #[serde(default = "one")]
    pub weight: u32,
    /// Tier: the lowest takes the requests while it has room, and higher ones take the rest. A tier of which less than
    /// 5/7 is available passes a part of the requests on. For zones: 0 for endpoints in the zone of the gateway.
    #[serde(default)]
    pub priority: u32,
}

fn one() -> u32 {
    1
}

/// Credentials that are sent upstream: `bearer`, or `header` with `secret`.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Credentials {
    /// Sent as `Authorization: Bearer …`.
    pub bearer: Option<Secret>,
    /// Header in which `secret` is sent, such as `x-api-key` for Anthropic's API.
    pub header: Option<String>,
    /// Value of `header`.
    pub secret: Option<Secret>,
}

/// Time limits of one attempt at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackendTimeouts {
    /// To open a connection.
    pub connect: Duration,
    /// From the end of the request to the head of the answer. When left out, 60s with `protocol: http`; a model may think
    /// as long as the `timeouts.request` of the route.
    pub first_byte: Option<Duration>,
    /// Between two reads of the answer's body, and for the server to take each part of the request. When left out, 60s;
    /// a model may pause in its answer as long as the `timeouts.request` of the route.
    pub idle: Option<Duration>,
}

/// Limits on what an endpoint may send, over HTTP/1 and HTTP/2 alike.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackendLimits {
    /// Bytes of the header of an answer, with the early answers (1xx) before it; and of its trailers. At most 256 fields
    /// each and 16 early answers. An answer beyond it is 502; one whose trailers are is broken off. Of a header or trailers
    /// over HTTP/2 about twice as much is kept while it is read, and at eight times the connection ends. The default takes
    /// twice what listeners take from clients.
    pub max_header_bytes: Size,
    /// Bytes of an answer that is read whole to be translated for a caller of another API, as it came and decoded, or to be
    /// changed by a filter; and of what waits of a translated stream, such as the arguments of a tool call. An answer beyond it is 502
    /// (`upstream_answer_too_large`), and a stream ends with that error. The default is the text of two million tokens.
    pub max_translated_bytes: Size,
}

impl Default for BackendLimits {
    fn default() -> Self {
        Self { max_header_bytes: Size::kib(64), max_translated_bytes: Size::mib(8) }
    }
}

impl Default for BackendTimeouts {
    fn default() -> Self {
        Self { connect: Duration::seconds(1), first_byte: None, idle: None }
    }
}
