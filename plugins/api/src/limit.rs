//! Limits of filters. A filter declares rules; the gateway keeps their levels, here or in a shared store. Rules of filters
//! next to each other are judged together, and settled when the answer has ended.

use std::num::NonZeroU32;
use std::sync::Arc;

use http::HeaderName;
use spillway_config::schema::OnExceeded;
use spillway_config::values::Rate;

use crate::RequestView;

/// Value of a request by which a rule counts.
pub trait LimitKey: Send + Sync {
    /// Computes the value; `None` if the request has none, in which case the client's address is used.
    fn of(&self, x: &RequestView<'_>) -> Option<String>;
}

/// Requests that share a level.
#[derive(Clone)]
pub enum LimitBy {
    /// All requests of one consumer; an anonymous caller counts by its address.
    Consumer,
    /// All consumers of one tenant; an anonymous caller counts by its address.
    Tenant,
    /// One API key or token; an anonymous caller counts by its address.
    ApiKey,
    /// One client address; of IPv6 the first 64 bits.
    ClientAddress,
    /// All requests of the route.
    Route,
    /// The model that the body names.
    Model,
    /// Requests with one value of a header.
    Header(HeaderName),
    /// Requests with one computed value.
    Value(Arc<dyn LimitKey>),
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
    /// Limit of tokens, read and written.
    pub tokens: Option<Quota>,
    /// Most requests at the same time.
    pub concurrency: Option<NonZeroU32>,
    /// Treatment of a request over a limit.
    pub on_exceeded: OnExceeded,
}
