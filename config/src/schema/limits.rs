//! `consumers[].limits`, `prices` and `state`: limits, prices, and the stores of counts.

use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::QualityState;
use crate::values::{Duration, FilePath, Rate, Secret, Size, StatePath};

/// Treatment of a request that is over a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnExceeded {
    /// Refused with 429.
    #[default]
    Reject,
    /// Answered by the `whenSaturated.spillTo` of its route, and refused where that cannot. Such requests hold at most
    /// `models[].overLimitShare` of a model's sequences and never wait for one.
    Spill,
    /// Passed, and counted in `spillway_limit_shadow_refusals_total`, so that a limit can be tried on live traffic.
    Shadow,
}

/// Limits of a consumer, over all its keys; of a tenant, over all its consumers; or of one key that was made at run time.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConsumerLimits {
    /// Requests in a period.
    pub requests: Option<Rate>,
    /// Requests that may come at once; as many as `requests` names when left out.
    pub burst: Option<NonZeroU32>,
    /// Tokens, read and written, in a period.
    pub tokens: Option<Rate>,
    /// Tokens that may be reserved at once; as many as `tokens` names when left out. A request that asks for more is
    /// refused with 400.
    pub token_burst: Option<NonZeroU32>,
    /// Requests that may run at the same time.
    pub concurrency: Option<NonZeroU32>,
    /// Budget of a day or a month.
    pub budget: Option<Budget>,
    /// Treatment of a request that is over `requests`, `tokens` or `concurrency`.
    pub on_exceeded: OnExceeded,
}

impl ConsumerLimits {
    /// Finds what decodes and makes no sense: the keys below the limits at which it stands, with the fault and what to write
    /// instead. `can_spill` is true where a route of the file spills, `is_priced` where models have prices.
    pub fn faults(&self, can_spill: bool, is_priced: bool) -> Vec<(&'static [&'static str], &'static str)> {
        let mut faults: Vec<(&'static [&'static str], &'static str)> = Vec::new();
        let mut fault = |at, message, is_there| {
            if is_there {
                faults.push((at, message));
            }
        };
        fault(
            &["burst"],
            "no effect without `requests`, of which this is how many may come at once: add that, or remove this",
            self.burst.is_some() && self.requests.is_none(),
        );
        fault(
            &["tokenBurst"],
            "no effect without `tokens`, of which this is how many may be taken at once: add that, or remove this",
            self.token_burst.is_some() && self.tokens.is_none(),
        );
        let is_too_high = |rate: Option<Rate>| rate.is_some_and(|rate| (rate.period / rate.count.get()).is_zero());
        let too_high = "this rate is too high to be kept; expected at most one in a nanosecond";
        fault(&["requests"], too_high, is_too_high(self.requests));
        fault(&["tokens"], too_high, is_too_high(self.tokens));
        let nobody = "no effect: no route of this file spills; give one `whenSaturated.spillTo`, or write `reject`";
        fault(&["onExceeded"], nobody, self.on_exceeded == OnExceeded::Spill && !can_spill);
        let Some(budget) = &self.budget else { return faults };
        fault(&["budget", "onExceeded"], nobody, budget.on_exceeded == OnExceeded::Spill && !can_spill);
        fault(
            &["budget"],
            "this budget limits nothing; expected `tokens`, `usd` or both",
            budget.tokens.is_none() && budget.usd.is_none(),
        );
        fault(
            &["budget", "usd"],
            "no effect, because no model has a price: give `prices`, or `priceCatalogue: true`",
            budget.usd.is_some() && !is_priced,
        );
        let is_no_sum = |usd: f64| !usd.is_finite() || usd < 0.0;
        fault(&["budget", "usd"], "not a sum of money; expected zero or more", budget.usd.is_some_and(is_no_sum));
        faults
    }
}

/// Budget of a day or a month (UTC). When it is spent, requests are refused with `insufficient_quota`, unless
/// `onExceeded` says otherwise.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Budget {
    /// Tokens, read and written.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// US dollars, by `prices` and the catalogue of prices.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub usd: Option<f64>,
    /// Period after which the budget is full again.
    pub per: Period,
    /// Treatment of a request when the budget is spent.
    #[serde(default)]
    pub on_exceeded: OnExceeded,
}

/// A time of the calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From the first of a month on.
    Month,
}

/// Price of a model, in US dollars for a million tokens.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Price {
    /// The model that answered, else the one asked for; `*` stands for any characters. The first entry that fits counts.
    pub model: String,
    /// Tokens read.
    #[schemars(range(min = 0.0))]
    pub input: f64,
    /// Tokens read that the upstream had in its cache; as `input` when left out.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub cached_input: Option<f64>,
    /// Tokens read that the upstream wrote to its cache for later requests; as `input` when left out.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub cache_write: Option<f64>,
    /// Tokens read that the upstream wrote to its cache for an hour (`ttl: 1h` of Anthropic's API, whose usage tells them apart);
    /// as `cacheWrite` when left out.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub cache_write_1h: Option<f64>,
    /// Tokens written.
    #[schemars(range(min = 0.0))]
    pub output: f64,
}

/// Stores of what outlives a request or the process.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct State {
    /// State of rollouts, and the API keys that are made at run time. Not opened unless a route has a rollout or the file has
    /// `authentication.keysByApi`.
    pub store: StateStore,
    /// Budgets.
    pub budgets: BudgetState,
    /// Levels of limits; in this process when left out.
    pub limits: Option<LimitState>,
    /// Answers of the filters `cache` that have `store: shared`.
    pub cache: Option<CacheState>,
    /// Sketches of `routes[].quality`.
    pub quality: QualityState,
}

/// Place of what the gateway must not forget: an SQLite file, or a server that several gateways share.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum StateStore {
    /// SQLite file; created when it does not exist.
    File(StatePath),
    /// Redis or Valkey server. Of the gateways that share it one decides, and the others follow.
    Shared(SharedStore),
}

impl Default for StateStore {
    fn default() -> Self {
        Self::File(PathBuf::from("state/spillway.db").into())
    }
}

/// Redis or Valkey server that several gateways share.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SharedStore {
    /// The server. While it is unreachable, no rollout goes a step up.
    pub redis: RedisState,
}

/// Store of budgets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BudgetState {
    /// SQLite file; created when it does not exist.
    pub sqlite: StatePath,
}

impl Default for BudgetState {
    fn default() -> Self {
        Self { sqlite: PathBuf::from("state/budgets.db").into() }
    }
}

/// Store of the levels of limits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitState {
    /// A Redis or Valkey server that several gateways share.
    pub redis: RedisState,
}

/// A Redis or Valkey server that several gateways share.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisState {
    /// Address of the server: redis://HOST:PORT/DATABASE, or rediss:// for TLS.
    pub url: String,
    /// Authorities that are trusted for a server with TLS, in PEM; those of the system when left out.
    #[serde(default)]
    pub ca_file: Option<FilePath>,
    /// Password of the server.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Prefix of every key, so that several groups of gateways may use one server.
    #[serde(default = "key_prefix")]
    pub key_prefix: String,
    /// Longest wait for the server; then this gateway decides by its own counts.
    #[serde(default = "redis_timeout")]
    pub timeout: Duration,
    /// Behaviour while the server is unreachable.
    #[serde(default)]
    pub on_failure: OnStoreFailure,
}

fn key_prefix() -> String {
    "spillway".to_owned()
}

fn redis_timeout() -> Duration {
    Duration::millis(50)
}

/// Store of the answers of filters `cache`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheState {
    /// A Redis or Valkey server that several gateways share. While it is unreachable or slow, every request is a miss. Bound its
    /// memory by its own `maxmemory` and an eviction policy.
    pub redis: CacheRedis,
}

/// A Redis or Valkey server for answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheRedis {
    /// Address of the server: redis://HOST:PORT/DATABASE, or rediss:// for TLS.
    pub url: String,
    /// Authorities that are trusted for a server with TLS, in PEM; those of the system when left out.
    #[serde(default)]
    pub ca_file: Option<FilePath>,
    /// Password of the server.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Prefix of every key, so that several groups of gateways may use one server.
    #[serde(default = "key_prefix")]
    pub key_prefix: String,
    /// Longest wait of a request for the server; then it is a miss, and so are the next ones until the server answers again.
    #[serde(default = "redis_timeout")]
    pub timeout: Duration,
    /// Most requests that look for an answer at the same time; further ones are misses.
    #[serde(default = "max_lookups")]
    pub max_lookups: NonZeroU32,
    /// Most answers that wait to be written; further ones are not kept.
    #[serde(default = "max_pending_writes")]
    pub max_pending_writes: NonZeroU32,
    /// Most memory of the answers that wait to be written; what does not fit in is not kept.
    #[serde(default = "max_pending_bytes")]
    pub max_pending_bytes: Size,
}

/// A lookup takes about a millisecond: enough for 100,000 requests in a second.
fn max_lookups() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(255)
}

fn max_pending_writes() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(1023)
}

/// As many answers of the longest that `maxEntry` has by default as a burst may bring.
fn max_pending_bytes() -> Size {
    Size(32 << 20)
}

/// Behaviour while a shared store is unreachable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnStoreFailure {
    /// Each gateway goes on with its share of every limit: the limit divided by the gateways that were last seen.
    #[default]
    Local,
}
