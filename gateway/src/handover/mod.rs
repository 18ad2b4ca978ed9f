//! Hand-over of a running gateway to a new process, so that the program can be replaced without a failed request.
//!
//! The running process starts the program anew ([`Successor`]) with its sockets that listen, and goes on. The new process
//! ([`Predecessor`] is its view of the old one) reads the configuration, loads its models, says that it is ready and waits.
//! Then the old one writes what it knows to the stores, lets the new one begin, takes no further connection and ends with its
//! last request. Until that moment nothing of the old process has changed, so a new one that fails leaves it as it was.
//!
//! The room owns the messages between the two processes, the sockets that were passed to this one ([`Inherited`]), by an old
//! process or by systemd, and what operators see of hand-overs ([`HandOvers`]). It knows no request, store or configuration.

mod inherited;
mod predecessor;
mod program;
mod status;
mod successor;
pub mod systemd;

use std::sync::Arc;

pub use inherited::{InheritError, Inherited, Place, inherit};
pub use predecessor::{Gone, Predecessor};
pub use program::Program;
pub use status::{HandOverOrder, HandOverReport, HandOvers, NoHandOver};
pub use successor::{HandOverError, Successor};

/// Variable by which a process knows its predecessor: version, inode and number of the descriptor of the messages, then each
/// socket as `NUMBER=PLACE`, separated by `;`.
const VARIABLE: &str = "SPILLWAY_HAND_OVER";
/// Version of [`VARIABLE`] and of the messages. A program that does not know it starts without a predecessor, finds the
/// addresses in use and ends.
const VERSION: &str = "1";

/// Message of the new process: ready to begin.
const READY: &str = "ready";
/// Message of the old process: the stores are written, begin.
const BEGIN: &str = "begin";
/// Message of the new process: it takes connections.
const SERVING: &str = "serving";
/// Beginning of the message of the new process with the reason why it ends.
const FAILED: &str = "failed ";
/// Longest message, in bytes; the reason of a failure is cut.
const MAX_MESSAGE: usize = 16 << 10;

/// Origin of this process: the program that runs, and what was passed to it.
pub struct Launch {
    /// Program, to be started anew.
    pub program: Program,
    /// Sockets that were passed to the process.
    pub inherited: Arc<Inherited>,
    /// Process that hands over to this one.
    pub predecessor: Option<Predecessor>,
}

impl Launch {
    /// Tells the predecessor, if there is one, why this process ends.
    pub fn failed(&self, reason: &dyn std::fmt::Display) {
        if let Some(predecessor) = &self.predecessor {
            predecessor.failed(&reason.to_string());
        }
    }
}
