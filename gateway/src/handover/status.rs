//! Hand-overs as operators ask for them and see them.

use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::telemetry::rfc3339_millis;

/// Orders that wait: one is carried out or refused at once.
const ORDERS: usize = 8;

/// Reason why no hand-over begins.
#[derive(Debug, thiserror::Error)]
pub enum NoHandOver {
    /// The gateway does not serve yet.
    #[error("the gateway is starting")]
    Starting,
    /// Another hand-over is under way.
    #[error("a hand-over to process {0} is under way")]
    UnderWay(u32),
    /// The process has handed over, or ends.
    #[error("this process has handed over, or ends")]
    Leaving,
    /// The container would end with the process.
    #[error(
        "this is process 1 of its container, which ends with it: start a container of the new version in its place"
    )]
    FirstProcess,
    /// Routes come from elsewhere too.
    #[error(
        "a new process would serve before it knows what `discovery` finds: start another one beside this, and end this one \
         once the other is ready"
    )]
    Discovers,
    /// The new process cannot be started.
    #[error("{0}")]
    NotStarted(String),
}

/// Order to begin a hand-over; the answer is the number of the new process.
pub type HandOverOrder = oneshot::Sender<Result<u32, NoHandOver>>;

/// Hand-over that failed.
#[derive(Debug, Clone, Serialize)]
struct FailedHandOver {
    pid: u32,
    at: String,
    error: String,
}

/// Hand-overs of this process, for operators.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HandOverReport {
    /// Number of the process that serves: this one, until it has handed over.
    pid: u32,
    /// Number of the process that is to follow it; `null` where no hand-over is under way.
    successor: Option<u32>,
    /// Last hand-over that failed.
    failed: Option<FailedHandOver>,
}

/// Hand-overs of this process.
#[derive(Debug)]
pub struct HandOvers {
    orders: mpsc::Sender<HandOverOrder>,
    report: Mutex<HandOverReport>,
}

impl HandOvers {
    /// Hand-overs of a new process, with the receiver of its orders.
    pub fn new() -> (Self, mpsc::Receiver<HandOverOrder>) {
        let (orders, receiver) = mpsc::channel(ORDERS);
        let report = HandOverReport { pid: std::process::id(), successor: None, failed: None };
        (Self { orders, report: Mutex::new(report) }, receiver)
    }

    /// Begins a hand-over; returns the number of the new process.
    ///
    /// # Errors
    ///
    /// [`NoHandOver`] where none begins.
    pub async fn begin(&self) -> Result<u32, NoHandOver> {
        let (order, answer) = oneshot::channel();
        self.orders.send(order).await.map_err(|_| NoHandOver::Leaving)?;
        answer.await.unwrap_or(Err(NoHandOver::Leaving))
    }

    /// Hand-overs so far.
    pub fn report(&self) -> HandOverReport {
        self.report.lock().clone()
    }

    /// Records that a new process was started.
    pub fn started(&self, pid: u32) {
        self.report.lock().successor = Some(pid);
    }

    /// Records that a new process serves.
    pub fn handed_over(&self, pid: u32) {
        let mut report = self.report.lock();
        (report.pid, report.successor) = (pid, None);
    }

    /// Records that a new process failed.
    pub fn failed(&self, pid: u32, error: String) {
        let mut report = self.report.lock();
        report.successor = None;
        report.failed = Some(FailedHandOver { pid, at: rfc3339_millis(SystemTime::now()), error });
    }
}
