//! Exchange as filters see it that compute header values. Looks nothing up before it is asked.

use http::HeaderName;
use spillway_filter::{ExchangeView, RequestView};

use super::Exchange;
use crate::message::RequestHead;
use crate::topology::Route;

/// Exchange of a request with its target.
#[derive(Clone, Copy)]
pub struct Viewed<'a> {
    /// Head of the request.
    pub head: &'a RequestHead,
    /// The exchange.
    pub exchange: &'a Exchange,
    /// Index of the target among those of the route; `None` where another one has the request, or none.
    pub target: Option<usize>,
    /// True if the caller's credentials are passed to the server.
    pub passes_credentials: bool,
}

/// Version of the route's rollout that a target is; empty without a rollout, and for what is no target of the route.
pub fn version(route: &Route, target: Option<usize>) -> &'static str {
    match (&route.rollout, target) {
        (Some(rollout), Some(target)) if rollout.candidate == target => "candidate",
        (Some(_), Some(_)) => "stable",
        _ => "",
    }
}

impl ExchangeView for Viewed<'_> {
    fn request(&self) -> RequestView<'_> {
        self.exchange.request_view(self.head)
    }

    fn version(&self) -> &'static str {
        self.exchange.route.as_ref().map_or("", |route| version(route, self.target))
    }

    fn is_secret(&self, name: &HeaderName) -> bool {
        !self.passes_credentials && self.exchange.snapshot.caller_headers.may_hold_credential(name)
    }
}
