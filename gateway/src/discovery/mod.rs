//! Listeners, routes and endpoints from elsewhere than the file: the Gateway API and inference pools of a Kubernetes cluster.
//!
//! The room reads objects, translates them into parts of a configuration, offers these to the path of edits, and writes
//! statuses. It owns the objects and the lease of the leader. It compiles nothing and serves nothing: what an offer makes of
//! the running configuration is decided in `reload`, which takes it whole or, part by part, leaves out what does not hold.

#[cfg(feature = "kubernetes")]
mod leader;
#[cfg(feature = "kubernetes")]
pub mod objects;
#[cfg(feature = "kubernetes")]
mod run;
#[cfg(feature = "kubernetes")]
pub mod status;
#[cfg(feature = "kubernetes")]
pub mod translate;
#[cfg(feature = "kubernetes")]
mod watch;

use spillway_config::{Further, RefusedPart};
use tokio::sync::oneshot;

#[cfg(feature = "kubernetes")]
pub use run::{ApiServer, Discovery, DiscoveryError};

/// Parts for the running configuration, in the place of those of the offer before.
#[derive(Debug)]
pub struct Offer {
    /// All parts.
    pub further: Further,
    /// Receiver of the outcome.
    pub reply: oneshot::Sender<Outcome>,
}

/// Outcome of an offer.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Parts that were left out.
    pub refused: Vec<RefusedPart>,
    /// Reasons why nothing of the offer was taken; the parts of the offer before are kept.
    pub errors: Vec<String>,
}
