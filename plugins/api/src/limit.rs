//! Limits of filters. A filter declares rules; the gateway keeps their levels, here or in a shared store. Rules of filters
//! next to each other are judged together, and settled when the answer has ended.

use std::num::NonZeroU32;
use std::sync::Arc;

use http::HeaderName;
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::schema::OnExceeded;
use spillway_config::values::Rate;

use crate::RequestView;

/// Value of a request by which a rule counts.
pub trait LimitKey: Send + Sync {
    /// Computes the value; `None` if the request has none, in which case the client's address is used.
    fn of(&self, x: &RequestView<'_>) -> Option<String>;
}

/// Amount that a request takes of a rule of requests.
pub trait LimitCost: Send + Sync {
    /// Computes the amount; 0 takes nothing, and more than the burst takes all of it.
    fn of(&self, x: &RequestView<'_>) -> u32;
}

/// Requests that share a limit.
///
/// As configured, header and value are texts: `LimitBy<String, String>`. [`Self::compile`] makes rules of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "By", description = "Requests that share a limit.")]
pub enum LimitBy<Header = HeaderName, Value = Arc<dyn LimitKey>> {
    /// All requests of one consumer; an anonymous caller counts by its address.
    Consumer,
    /// All consumers of one tenant; an anonymous caller counts by its address.
    Tenant,
    /// One API key or token; an anonymous caller counts by its address.
    ApiKey,
    /// All requests from one address; of IPv6 the first 64 bits.
    ClientAddress,
    /// All requests of the route.
    Route,
    /// All requests for one model.
    Model,
    /// All requests with one value of this header; requests without it count by client address.
    Header(Header),
    /// All requests for which this CEL expression has one value; requests without a value count by client address.
    Value(Value),
}

impl<Header, Value> LimitBy<Header, Value> {
    /// Compiles header and value.
    ///
    /// # Errors
    /// The error of `header` or `value`.
    pub fn compile<E>(
        &self,
        header: impl FnOnce(&Header) -> Result<HeaderName, E>,
        value: impl FnOnce(&Value) -> Result<Arc<dyn LimitKey>, E>,
    ) -> Result<LimitBy, E> {
        Ok(match self {
            Self::Consumer => LimitBy::Consumer,
            Self::Tenant => LimitBy::Tenant,
            Self::ApiKey => LimitBy::ApiKey,
            Self::ClientAddress => LimitBy::ClientAddress,
            Self::Route => LimitBy::Route,
            Self::Model => LimitBy::Model,
            Self::Header(name) => LimitBy::Header(header(name)?),
            Self::Value(text) => LimitBy::Value(value(text)?),
        })
    }
}

/// Rate, and burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Units in a period.
    pub rate: Rate,
    /// Most units at once.
    pub burst: NonZeroU32,
}

/// Rule of limits; each limit that is present applies.
#[derive(Clone)]
pub struct LimitSpec {
    /// Requests that share a level.
    pub by: LimitBy,
    /// Name of `by` in messages and metrics: `consumer`, `header x-user`. Limits of one route share a level if subject, unit
    /// and period are equal.
    pub subject: String,
    /// Limit of requests.
    pub requests: Option<Quota>,
    /// Amount that a request takes of `requests`; 1 for each if left out. It is judged when caller and body are known.
    pub cost: Option<Arc<dyn LimitCost>>,
    /// Limit of tokens, read and written.
    pub tokens: Option<Quota>,
    /// Most requests at the same time.
    pub concurrency: Option<NonZeroU32>,
    /// Treatment of a request over a limit.
    pub on_exceeded: OnExceeded,
}
