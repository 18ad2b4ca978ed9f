//! `consumers[].limits`, `prices` and `state`: how much may be used, what it costs, where it is counted.

use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, Rate, Secret};

/// What happens to a request that is over a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnExceeded {
    /// It is refused with 429.
    #[default]
    Reject,
    /// It is answered by the `whenSaturated.spillTo` of its route, and refused where that cannot. It holds at most
    /// `models[].overLimitShare` of a model's sequences and never waits for one.
    Spill,
    /// It passes and is counted in `spillway_limit_shadow_refusals_total`, so that a limit can be tried on live traffic.
    Shadow,
}

/// What a consumer may use, all its keys together; or a tenant, all its consumers together.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConsumerLimits {
    /// How many requests in how long.
    pub requests: Option<Rate>,
    /// How many requests may come at once; as many as `requests` names when left out.
    pub burst: Option<NonZeroU32>,
    /// How many tokens, read and written, in how long.
    pub tokens: Option<Rate>,
    /// How many tokens may be taken at once; as many as `tokens` names when left out. A request that asks for more is
    /// refused with 400.
    pub token_burst: Option<NonZeroU32>,
    /// How many requests may run at the same time.
    pub concurrency: Option<NonZeroU32>,
    /// What may be used up in a day or a month.
    pub budget: Option<Budget>,
    /// What happens to a request that is over `requests`, `tokens` or `concurrency`.
    pub on_exceeded: OnExceeded,
}

/// What may be used up in a day or a month (UTC). When it is spent, requests are refused with `insufficient_quota`, unless
/// `onExceeded` says otherwise.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Budget {
    /// Tokens, read and written.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// US dollars, by `prices`.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub usd: Option<f64>,
    /// When it begins anew.
    pub per: Period,
    /// What happens to a request when it is spent.
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

/// What a model costs, in US dollars for a million tokens.
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
    /// Tokens written.
    #[schemars(range(min = 0.0))]
    pub output: f64,
}

/// Where what outlives a request or the process is kept.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct State {
    /// Budgets.
    pub budgets: BudgetState,
    /// Levels of limits; in this process when left out.
    pub limits: Option<LimitState>,
}

/// Where budgets are kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BudgetState {
    /// An SQLite file; made when it is not there.
    pub sqlite: PathBuf,
}

impl Default for BudgetState {
    fn default() -> Self {
        Self { sqlite: PathBuf::from("state/budgets.db") }
    }
}

/// Where levels of limits are kept.
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
    /// Its address: redis://HOST:PORT/DATABASE, or rediss:// for TLS.
    pub url: String,
    /// Authorities that a server with TLS is believed by; those of the system when left out.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Its password.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Put before every key, so that several groups of gateways may use one server.
    #[serde(default = "key_prefix")]
    pub key_prefix: String,
    /// Longest wait for it; then a request is judged by what this gateway knows.
    #[serde(default = "redis_timeout")]
    pub timeout: Duration,
    /// What happens while it is not there.
    #[serde(default)]
    pub on_failure: OnStoreFailure,
}

fn key_prefix() -> String {
    "spillway".to_owned()
}

fn redis_timeout() -> Duration {
    Duration::millis(50)
}

/// What happens while a shared store is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnStoreFailure {
    /// Each gateway goes on with its share of every limit: the limit divided by the gateways that were last seen.
    #[default]
    Local,
}
