//! What a filter that limits asks for. It names a rule; the gateway keeps its levels, here or in a shared store, judges
//! all rules of a request together and settles them when the answer has ended.

use std::num::NonZeroU32;
use std::sync::Arc;

use http::HeaderName;
use spillway_config::schema::OnExceeded;
use spillway_config::values::Rate;

use crate::RequestView;

/// A value of a request that a rule counts by.
pub trait LimitKey: Send + Sync {
    /// The value; `None` where the request has none, and then the client's address stands for it.
    fn of(&self, x: &RequestView<'_>) -> Option<String>;
}

/// Who shares a level.
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
    /// The value of a header.
    Header(HeaderName),
    /// A value computed from the request.
    Value(Arc<dyn LimitKey>),
}

/// Units in a time, and how many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// How many in how long.
    pub rate: Rate,
    /// How many at once.
    pub burst: NonZeroU32,
}

/// A rule of limits: each unit that is given is kept.
#[derive(Clone)]
pub struct LimitSpec {
    /// Who shares a level.
    pub by: LimitBy,
    /// How `by` is called in messages and names: `consumer`, `header x-user`.
    pub subject: String,
    /// Requests.
    pub requests: Option<Quota>,
    /// Tokens, read and written.
    pub tokens: Option<Quota>,
    /// Requests at the same time.
    pub concurrency: Option<NonZeroU32>,
    /// What happens to a request that is over.
    pub on_exceeded: OnExceeded,
}
