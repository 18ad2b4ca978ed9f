//! `routes`: matches, filters, targets, and actions when there is no room.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{EncodedSlashes, Quality, Rollout};
use crate::values::{Duration, Size, Status};

/// Requests that match go through the filters to one of the backends.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// Name in logs, metrics and traces; needed when a file has more than one route.
    #[serde(default)]
    pub name: Option<String>,
    /// Names of the listeners whose requests the route serves; all listeners of the file when left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<String>,
    /// Hosts that the route serves, exact or `*.example.com`; all when left out.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// A request matches when one of these does; everything when left out.
    #[serde(default)]
    pub matches: Vec<Match>,
    /// Treatment of paths with `%2F` or `%5C`, such as GitLab's `/projects/group%2Fname` or npm's `/@scope%2Fname`; as
    /// the listener says when left out.
    #[serde(default)]
    pub encoded_slashes: Option<EncodedSlashes>,
    /// Identification of callers; `required` when the file names consumers or authentication, else `none`.
    #[serde(default)]
    pub authentication: Option<RouteAuthentication>,
    /// Callers that may use the route, of those that are identified; all when left out. Others get 404.
    #[serde(default)]
    pub access: Option<Access>,
    /// Treatment of calls by consumers with a list of `models` of which the gateway does not know what model they are about;
    /// `refuse` (403) when left out. The gateway knows it of the APIs that it speaks, and of paths of TensorFlow Serving,
    /// TorchServe and Azure's deployments. With `pass` a model that a JSON body or a form names is judged, and what names none
    /// passes: for applications, and for servers on which every caller may use every model.
    #[serde(default)]
    pub unknown_calls: UnknownCalls,
    /// Model APIs that callers may speak on the route, whatever its servers speak; all when left out. A request of another
    /// one gets 404.
    #[serde(default)]
    pub protocols: Option<Vec<CallerProtocol>>,
    /// Steps that a request passes in this order.
    #[serde(default)]
    pub filters: Vec<FilterEntry>,
    /// Targets of the requests, by weight. Needed unless a filter answers by itself: `respond` or `redirect`. A request that
    /// such a route does not answer gets 404.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
    /// Further names of the built-in models in `backendRefs`: the name that clients send, and the name of the model.
    #[serde(default)]
    pub model_alias: BTreeMap<String, String>,
    /// New version of one of the targets, which gets a growing share of the requests while it is judged.
    #[serde(default)]
    pub rollout: Option<Rollout>,
    /// Keeps each caller on one backend of a weighted split.
    #[serde(default)]
    pub sticky: Option<Sticky>,
    /// Actions when no endpoint has room.
    #[serde(default)]
    pub when_saturated: Option<WhenSaturated>,
    /// Actions when no endpoint is available or all attempts failed; like `whenSaturated` when left out.
    #[serde(default)]
    pub when_unavailable: Option<WhenUnavailable>,
    /// Protocols to which a request may be upgraded (`Upgrade`), by their names in HTTP; only WebSocket when left out, none
    /// with an empty list. Other upgrades are not asked for: the request goes on without them. `h2c`, `h2` and `TLS` are
    /// never passed, since another version of HTTP in a tunnel would evade every rule of this file.
    #[serde(default = "Route::default_upgrades")]
    pub upgrades: Vec<String>,
    /// Time limits.
    #[serde(default)]
    pub timeouts: RouteTimeouts,
    /// Further tries when an attempt fails before the first byte of its answer.
    #[serde(default)]
    pub retry: Retry,
    /// Limits on the requests that `spillTo` may answer; all that it can answer when left out.
    #[serde(default)]
    pub spill: Option<SpillLimits>,
    /// Continues a stream that breaks after its first byte from the text so far, with a mark in the stream. Another
    /// endpoint of the route with room continues it, else the model that `whenUnavailable` spills to. The endpoint must
    /// continue an assistant's last message; vLLM, SGLang and llama.cpp do. Without either the stream ends with an
    /// error event.
    #[serde(default)]
    pub resume: bool,
    /// True to answer the lines of batches of its callers too, with capacity that they leave free; needs `batch`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub batch: bool,
    /// Watch over what callers ask and what targets answer; none when left out.
    #[serde(default)]
    pub quality: Option<Quality>,
    /// Size limits.
    #[serde(default)]
    pub limits: BodyLimits,
}

impl Route {
    fn default_upgrades() -> Vec<String> {
        vec!["websocket".to_owned()]
    }
}

/// Model API that callers speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CallerProtocol {
    /// The OpenAI API.
    Openai,
    /// Anthropic's Messages API.
    Anthropic,
}

/// Conditions of a match. Every one that is given must be met.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Match {
    /// The path.
    pub path: Option<PathMatch>,
    /// The method, such as POST.
    pub method: Option<String>,
    /// Headers that must be there.
    pub headers: Vec<HeaderMatch>,
    /// Parameters that the query must have, such as `version` in `/things?version=2`.
    pub query_params: Vec<QueryMatch>,
    /// The model named in the body; `*` stands for any characters.
    pub model: Option<String>,
    /// A CEL expression over `request` (method, path, query, host, headers, clientAddress), `prompt` (language, characters, tokens,
    /// turns, reasked, toolLoop) and `signals` that must be true. One that reads `prompt` or `signals` is decided when the body
    /// was read.
    pub when: Option<String>,
}

/// Callers that may use a route, of those that are identified. Every rule here must be met.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Access {
    /// Consumers, of which the caller must be one.
    pub consumers: Vec<String>,
    /// Tenants, of which the caller must belong to one.
    pub tenants: Vec<String>,
    /// Scopes that the token of the caller must all have (claim `scope` or `scp`). An API key has none.
    pub scopes: Vec<String>,
}

/// How a path is matched.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole elements at its beginning: /v1 matches /v1 and /v1/chat, not /v10.
    Prefix(String),
    /// A regular expression over the whole path.
    Regex(String),
}

/// A header that must have such a value: exactly one of `exact` and `regex`. Of several with the name one is enough.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// Header name, in any case.
    pub name: String,
    /// Value, exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// A regular expression over the whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// A parameter of the query that must have such a value: exactly one of `exact` and `regex`. Names and values are compared decoded
/// (`%41` is `A`, `+` is a blank), and of several parameters with the name the first one counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueryMatch {
    /// Name of the parameter.
    pub name: String,
    /// Value, exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// A regular expression over the whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// Identification of callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RouteAuthentication {
    /// A known caller only.
    Required,
    /// A known or an anonymous caller; a bad credential is refused.
    Optional,
    /// Credentials are not read, and are treated as `callerCredentials` says.
    None,
}

/// Step of a route's filter chain: `{NAME: CONFIGURATION}`.
#[derive(Debug, Clone)]
pub struct FilterEntry {
    /// Name of the filter.
    pub name: String,
    /// Configuration, decoded by the filter.
    pub config: serde_json::Value,
}

impl<'de> Deserialize<'de> for FilterEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = serde_json::Map::<String, serde_json::Value>::deserialize(deserializer)?;
        let mut entries = map.into_iter();
        match (entries.next(), entries.next()) {
            (Some((name, config)), None) => Ok(Self { name, config }),
            _ => Err(de::Error::custom("a filter is one key, its name, with its configuration")),
        }
    }
}

impl Serialize for FilterEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map([(&self.name, &self.config)])
    }
}

impl JsonSchema for FilterEntry {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Filter".into()
    }
    /// The catalogue of filters replaces this by one branch for each filter.
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "object", "minProperties": 1, "maxProperties": 1 })
    }
}

/// A backend or a model with its share of the requests: exactly one of `name` and `model`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// A backend.
    #[serde(default)]
    pub name: Option<String>,
    /// Built-in model.
    #[serde(default)]
    pub model: Option<String>,
    /// Share of the requests relative to its neighbours of the same priority; 0 takes none.
    #[serde(default = "one")]
    pub weight: u32,
    /// Tier: a higher number takes requests only when no lower one is available or has room.
    #[serde(default)]
    pub priority: u32,
    /// Changes of headers for this backend alone, behind those of the route: `requestHeaders` and `responseHeaders`. A backend that
    /// `spillTo` or `mirror` names has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<TargetFilter>,
}

/// Filter of one target: `{NAME: CONFIGURATION}`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(transparent)]
pub struct TargetFilter(pub FilterEntry);

impl TargetFilter {
    /// Names of the filters that one target may have: those that change headers and decide nothing.
    pub const NAMES: [&'static str; 2] = ["requestHeaders", "responseHeaders"];
}

impl JsonSchema for TargetFilter {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TargetFilter".into()
    }
    /// The catalogue of filters replaces this by one branch for each filter.
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "object", "minProperties": 1, "maxProperties": 1 })
    }
}

fn one() -> u32 {
    1
}

/// Assignment of each caller to one backend of a weighted split.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sticky {
    /// Header whose value is assigned to a backend.
    pub header: String,
}

/// Actions when no endpoint has room, in this order.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WhenSaturated {
    /// The route's other backends of the same priority are tried first.
    pub try_others: bool,
    /// Queue in which requests wait for a slot first.
    pub queue: Option<Queue>,
    /// Built-in model or backend that answers instead.
    pub spill_to: Option<String>,
    /// Refusal as the last action.
    pub reject: Option<Reject>,
}

impl Default for WhenSaturated {
    fn default() -> Self {
        Self { try_others: true, queue: None, spill_to: None, reject: None }
    }
}

/// Requests that wait for a slot at an endpoint: those of the highest consumer `priority` first, tenants in turn, the
/// oldest of a tenant first; once the queue has not been empty for `maxWait`, the newest first. One that cannot be
/// reached in time, as far as the recent rate tells, is moved on at once.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Queue {
    /// Longest wait of a request.
    pub max_wait: Duration,
    /// Requests that wait at the same time.
    #[serde(default = "Queue::default_depth")]
    pub max_depth: NonZeroU32,
}

impl Queue {
    /// The greatest `maxDepth` that is accepted.
    pub const MOST: u32 = 10_000;

    fn default_depth() -> NonZeroU32 {
        NonZeroU32::MIN.saturating_add(99)
    }
}

/// Limits on the requests that `spillTo` may answer: those that meet every rule here. The others are treated as if
/// there were no spill.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SpillLimits {
    /// Longest prompt in tokens: of the built-in model, or a quarter of the bytes where a backend answers.
    pub max_prompt_tokens: Option<NonZeroU32>,
    /// Models that callers name; `*` stands for any characters. All when left out.
    pub models: Option<Vec<String>>,
    /// Tenants; all callers, anonymous ones too, when left out.
    pub tenants: Option<Vec<String>>,
    /// How many in a hundred, drawn at random; all when left out.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: Option<f64>,
    /// Condition in CEL on the request; where it is false or has no value, the request does not spill. All when left out.
    pub when: Option<String>,
}

impl SpillLimits {
    /// True if the condition names something.
    pub(crate) fn asks_for(&self, name: &str) -> bool {
        self.when.as_deref().is_some_and(|when| when.contains(name))
    }
}

/// Actions when no endpoint is available, in this order.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WhenUnavailable {
    /// Built-in model or backend that answers instead.
    pub spill_to: Option<String>,
    /// Refusal as the last action.
    pub reject: Option<Reject>,
}

/// Refusal of a request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Reject {
    /// 429 or 503.
    pub status: Status,
    /// `Retry-After` of the refusal, where no queue has measured how fast slots are released.
    pub retry_after: Duration,
}

impl Default for Reject {
    fn default() -> Self {
        Self { status: Status(503), retry_after: Duration::seconds(1) }
    }
}

/// Time limits of a request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RouteTimeouts {
    /// Time from the arrival of the request to the last byte of its answer.
    pub request: Duration,
    /// Time limit of an attempt: until the head of an event stream, else until the last byte.
    pub backend_request: Option<Duration>,
    /// From the arrival to the first content of an event stream; of a further try from its beginning. While nothing went
    /// to the client, a backend that does not keep it is left for another. Comments by which a server keeps its stream alive
    /// go to the client as they come, and after the first no other backend is tried.
    pub first_token: Option<Duration>,
    /// Time without a byte either way after which a socket is closed; pings and pongs count. `request` limits a socket only
    /// up to the answer that opens it.
    pub socket_idle: Duration,
    /// Time after which a socket is closed, however busy; none when left out.
    pub socket_lifetime: Option<Duration>,
}

impl Default for RouteTimeouts {
    fn default() -> Self {
        Self {
            request: Duration::seconds(600),
            backend_request: None,
            first_token: None,
            socket_idle: Duration::seconds(300),
            socket_lifetime: None,
        }
    }
}

/// Further tries when an attempt fails before the first byte of its answer.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retry {
    /// Tries after the first one.
    pub attempts: u32,
    /// Failures that are retried.
    pub on: Vec<RetryOn>,
    /// Time between tries.
    pub backoff: Backoff,
    /// Further tries and hedges as a share of the requests of the last seconds, beside a few that are always allowed.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub budget: f64,
    /// Second attempt beside a slow first one; the answer that begins first is used, the other cancelled.
    pub hedge: Option<Hedge>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 1,
            on: vec![RetryOn::ConnectFailure, RetryOn::Reset],
            backoff: Backoff::default(),
            budget: 0.2,
            hedge: None,
        }
    }
}

/// A second attempt beside a slow first one: for model calls that are not streamed, and for idempotent methods. It takes
/// from the budget for retries and goes to an endpoint that has room and was not tried.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hedge {
    /// Time for the head of an answer after which the next attempt begins.
    pub after: Duration,
    /// Attempts beside the first.
    #[serde(default = "Hedge::default_max")]
    pub max: NonZeroU32,
}

impl Hedge {
    fn default_max() -> NonZeroU32 {
        NonZeroU32::MIN
    }
}

/// A reason to try again: `connectFailure`, `reset` or a status from 500 to 599 or 429.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryOn {
    /// No connection could be opened.
    ConnectFailure,
    /// The connection broke before any byte of the answer.
    Reset,
    /// The answer had this status.
    Status(u16),
}

impl<'de> Deserialize<'de> for RetryOn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match (text.as_str(), text.parse::<u16>()) {
            ("connectFailure", _) => Ok(Self::ConnectFailure),
            ("reset", _) => Ok(Self::Reset),
            (_, Ok(status @ (429 | 500..=599))) => Ok(Self::Status(status)),
            _ => Err(de::Error::custom(format!(
                "`{text}` is not a reason to retry: write connectFailure, reset, \"429\" or a status from \"500\" to \"599\""
            ))),
        }
    }
}

impl Serialize for RetryOn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::ConnectFailure => serializer.serialize_str("connectFailure"),
            Self::Reset => serializer.serialize_str("reset"),
            Self::Status(code) => serializer.collect_str(code),
        }
    }
}

impl JsonSchema for RetryOn {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RetryOn".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string", "pattern": "^(connectFailure|reset|429|5[0-9][0-9])$",
            "description": "connectFailure, reset, \"429\" or a status from \"500\" to \"599\"."
        })
    }
}

/// Time between tries: a random part of a time that doubles from `base` up to `max`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Backoff {
    /// Before the second try.
    pub base: Duration,
    /// At most.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::millis(25), max: Duration::seconds(1) }
    }
}

/// Size limits of a request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BodyLimits {
    /// Bytes of the body; a longer one is refused with 413.
    pub max_body: Size,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self { max_body: Size::mib(20) }
    }
}

/// Treatment of calls whose model the gateway does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UnknownCalls {
    /// Refused with 403.
    #[default]
    Refuse,
    /// Passed, unless a JSON body or a form names a model that the consumer may not use.
    Pass,
}
