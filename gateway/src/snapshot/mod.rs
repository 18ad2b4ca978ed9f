//! Compiled configuration: immutable, indexed, cheap to read. A request loads one snapshot and keeps it from start to end.
//! A snapshot holds references to state that outlives it (endpoints, models, limits) and owns none of that state.
//! [`Compiler`] makes snapshots from a validated `spillway_config::schema::Config`; nothing else does.

mod caller_headers;
mod compile;
mod compile_backend;
mod compile_rollouts;
mod compile_route;
mod shown;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use spillway_config::schema::HandOver;

pub use caller_headers::{CallerHeaders, claims_to_be_ours, same_name};
pub use compile::{Compiler, SnapshotError};
pub use shown::ShownConfig;

use crate::balancing::BackgroundTasks;
use crate::builtin::Models;
use crate::cache::SharedAnswers;
use crate::commit_steps::CommitSteps;
use crate::downstream::Downstream;
use crate::identity::Authenticator;
use crate::limits::{Limits, Prices};
use crate::prompt_signals::PromptSignals;
use crate::routing::RouteTable;
use crate::telemetry::{CertificateSample, ComputedFields, LogExport, LoggedHeaders, Tracer};
use crate::topology::{Backend, BatchPlan, FeedbackPlan};

/// Compiled configuration.
pub struct Snapshot {
    /// Table that finds the route of a request.
    pub routes: RouteTable,
    /// Signals of conversations that its routes read.
    pub signals: Arc<PromptSignals>,
    /// Labels of answers; `None` where the configuration takes none.
    pub feedback: Option<Arc<FeedbackPlan>>,
    /// Where files and batches are taken.
    pub batch: Option<Arc<BatchPlan>>,
    /// Credentials of callers, and the consumers that they identify.
    pub identity: Authenticator,
    /// Headers that carry the consumer and the tenant to backends.
    pub identity_headers: [Option<HeaderName>; 2],
    /// Headers of a caller that do not pass to servers.
    pub caller_headers: CallerHeaders,
    /// Prices of tokens.
    pub prices: Arc<Prices>,
    /// Tracer with its exporter.
    pub tracer: Tracer,
    /// Export of the log.
    pub log_export: LogExport,
    /// True if each request is logged.
    pub access_log: bool,
    /// True if metrics are OpenMetrics text.
    pub open_metrics: bool,
    /// Headers that lines of requests show; `None` where there are none.
    pub logged_headers: Option<Box<LoggedHeaders>>,
    /// Fields and attributes that expressions make; `None` where there are none.
    pub fields: Option<Box<ComputedFields>>,
    /// True if answers say how long they took (`telemetry.serverTiming`).
    pub server_timing: bool,
    /// Checks, scrapes and DNS to start when the snapshot is active.
    pub background_tasks: parking_lot::Mutex<Vec<BackgroundTasks>>,
    /// All backends, for the admin API.
    pub backends: Vec<Arc<Backend>>,
    /// All built-in models.
    pub models: Models,
    /// Share of one request in the memory for answers that wait for their clients, in bytes.
    pub buffered_answers_per_request: u64,
    /// State of all answers to clients, kept over reloads.
    pub downstream: Arc<Downstream>,
    /// Time for running requests after SIGTERM.
    pub drain_timeout: Duration,
    /// Time after SIGTERM for which requests are still taken.
    pub shutdown_delay: Duration,
    /// Times of a hand-over to a new process.
    pub hand_over: HandOver,
    /// The configuration as the admin API shows it, without secrets and digests.
    pub shown: ShownConfig,
    /// Number of the snapshot in this process, from 1 on.
    pub generation: u64,
    /// Certificates that the gateway presents to backends, for metrics.
    pub certificates: Vec<CertificateSample>,
    /// Levels and budgets of its rules.
    pub limits: Limits,
    /// Store of the answers that several gateways share; `None` where the configuration has none.
    pub answers: Option<Arc<SharedAnswers>>,
    /// Changes to state that outlives the snapshot: run once, when the snapshot becomes active.
    pub commit_steps: CommitSteps,
}
