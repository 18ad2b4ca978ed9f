//! The compiled configuration: immutable, indexed, cheap to read. A request takes one and sees it from start to end.
//! It holds references to state that outlives it (endpoints, models, limits) and owns none of it.
//! It is made from a checked `spillway_config::schema::Config` by [`compile`] and from nothing else.

mod caller_headers;
mod compile;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

pub use caller_headers::{CallerHeaders, claims_to_be_ours, same_name};
pub use compile::{Compiler, SnapshotError};

use crate::balancing::Care;
use crate::builtin::Models;
use crate::commit_steps::CommitSteps;
use crate::downstream::Downstream;
use crate::identity::Authenticator;
use crate::limits::{Limits, Prices};
use crate::routing::RouteTable;
use crate::telemetry::{CertificateSample, Tracer};
use crate::topology::Backend;

/// The compiled configuration.
pub struct Snapshot {
    /// Which requests go where.
    pub routes: RouteTable,
    /// API keys and whose they are.
    pub identity: Authenticator,
    /// Headers that tell backends the consumer and the tenant.
    pub identity_headers: [Option<HeaderName>; 2],
    /// Headers of a caller that do not pass to servers.
    pub caller_headers: CallerHeaders,
    /// What tokens cost.
    pub prices: Prices,
    /// Where traces go.
    pub tracer: Tracer,
    /// Whether each request is logged.
    pub access_log: bool,
    /// What is to be looked after beside the requests; taken when the snapshot begins to run.
    pub cares: parking_lot::Mutex<Vec<Care>>,
    /// Every backend, for the operators' view.
    pub backends: Vec<Arc<Backend>>,
    /// Every model inside.
    pub models: Models,
    /// Share of one request in the memory for answers that wait for their clients, in bytes.
    pub buffered_answers_per_request: u64,
    /// State of all answers to clients, kept over reloads.
    pub downstream: Arc<Downstream>,
    /// How long requests may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// The configuration as operators see it, without secrets and digests.
    pub shown: serde_json::Value,
    /// Changes with every snapshot of the process.
    pub generation: u64,
    /// What metrics say of the certificates that are shown to backends.
    pub certificates: Vec<CertificateSample>,
    /// What its rules are made with.
    pub limits: Limits,
    /// What it does to state that outlives it: run once, when it begins to run.
    pub commit_steps: CommitSteps,
}
