//! What a filter is: one step of a route's chain, what it may see of an exchange, what it may change.
//! It knows no proxy and no runtime: the gateway shows it requests through the views here and does what it answers.
//! Filters enter through the [`Registry`], which gives the configuration language their names, schemas and checks.

mod headers;
mod ledger;
mod refusal;
mod registry;
mod state;

pub use headers::{HeaderEdit, Headers, Template};
pub use ledger::{Ledger, LimitStatus, Reservation};
pub use refusal::{ErrorKind, Refusal};
pub use registry::{BuildContext, FilterFactory, Registry, define};
pub use spillway_config::FieldError;
pub use state::SharedStates;

use std::net::IpAddr;

/// When in the life of a request a filter runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before the caller is identified and before a byte of the body is read.
    Guard,
    /// When caller and route are known.
    Route,
}

/// What a filter decides.
#[derive(Debug)]
pub enum Flow {
    /// The request goes on.
    Continue,
    /// The request ends here.
    Refuse(Box<Refusal>),
}

/// Who calls, once that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller<'a> {
    /// The consumer's name.
    pub consumer: &'a str,
    /// Whom it belongs to.
    pub tenant: &'a str,
}

/// What a filter sees of a request before it goes anywhere.
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a http::Method,
    /// The path, without query.
    pub path: &'a str,
    /// The request header as it came.
    pub headers: &'a http::HeaderMap,
    /// The address of the client.
    pub client: IpAddr,
    /// Who calls: `None` at [`Stage::Guard`] and for an anonymous caller.
    pub caller: Option<Caller<'a>>,
    /// What this request has taken from limits so far.
    pub ledger: &'a mut Ledger,
}

/// What header values may name in braces.
#[derive(Debug, Clone, Copy)]
pub struct Variables<'a> {
    /// `{backend}`: the backend, or `builtin/MODEL`.
    pub backend: &'a str,
    /// `{route}`.
    pub route: &'a str,
    /// `{requestId}`.
    pub request_id: &'a str,
}

/// Copies of requests for a second backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mirror<'a> {
    /// The backend's name.
    pub backend: &'a str,
    /// Share of the requests, from 0 to 1.
    pub share: f64,
    /// Longest time of a copy, to the last byte of its answer.
    pub timeout: std::time::Duration,
    /// Copies at the same time.
    pub max_in_flight: u32,
    /// Bytes of a body.
    pub max_body: u64,
}

/// One step of a route's filter chain. Built at reload and shared by all requests.
pub trait Filter: Send + Sync {
    /// When it runs.
    fn stage(&self) -> Stage {
        Stage::Route
    }
    /// Asks the gateway to send copies of requests to a second backend.
    fn mirror(&self) -> Option<Mirror<'_>> {
        None
    }
    /// Judges the request.
    fn on_request(&self, _: &mut RequestView<'_>) -> Flow {
        Flow::Continue
    }
    /// Changes the header that is sent to an endpoint; called for each attempt.
    fn on_upstream_request(&self, _: &mut dyn Headers, _: &Variables<'_>) {}
    /// Changes the header that is sent to the client.
    fn on_response(&self, _: &mut dyn Headers, _: &Variables<'_>) {}
}
