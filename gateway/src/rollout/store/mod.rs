//! Stores of rollouts: an SQLite file for one gateway, a Redis server for several. A store keeps records, histories,
//! decided identities, the judge's state at the begin of the present step, and the counts of each gateway.
//!
//! A rollout is led by one gateway, which gathers all counts, decides, and writes. A store without other gateways always grants the
//! lead. Every write carries the lead's fencing number, so a gateway that lost the lead cannot overwrite its successor.

mod redis;
mod sqlite;
#[cfg(test)]
mod tests;

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::HistoryEntry;
use super::stored::{Counts, Decided, Stored};
use crate::redis_client::ClientError;
use crate::state_file::FileError;
use crate::state_server::Unreachable;

pub use self::redis::RedisStore;
pub use self::sqlite::SqliteStore;

/// Time for which what is stored about a rollout is kept after its route was last seen: a year and a month, because a decided
/// identity that is forgotten begins again.
pub(super) const KEPT: Duration = Duration::from_secs(400 * 86_400);
/// Decided identities that are kept of each rollout, the latest.
pub(super) const KEPT_DECISIONS: u32 = 64;

/// Failure of a store.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The server does not answer.
    #[error("state.store.redis: {0}; weights stay as they are and no step is taken until it answers")]
    Unreachable(String),
    /// The client of the server cannot be made.
    #[error("state.store.redis: {0}")]
    Client(#[from] std::sync::Arc<ClientError>),
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A stored document cannot be read.
    #[error("state.store: {what} is damaged: {reason}; remove it from the store to begin anew")]
    Damaged {
        /// Document.
        what: String,
        /// Fault.
        reason: String,
    },
    /// The counts of too many gateways are stored.
    #[error(
        "state.store.redis: the counts of too many gateways are stored for the rollout `{0}`; do processes restart in a loop?"
    )]
    Full(String),
    /// Another gateway leads this rollout by now.
    #[error("another gateway leads the rollout `{0}`; nothing was changed, try again")]
    NotLeader(String),
}

impl From<Unreachable> for StoreError {
    fn from(error: Unreachable) -> Self {
        Self::Unreachable(error.0)
    }
}

/// Counts of the present step by one gateway.
pub type GatewayCounts = (String, Counts);

/// Store of rollouts.
#[async_trait]
pub trait RolloutStore: Send + Sync + 'static {
    /// Name of this gateway in the store.
    fn gateway(&self) -> &str;

    /// Names of the rollouts of a store that no other gateway shares; none where others may have rollouts of their own there.
    async fn names(&self) -> Result<Vec<String>, StoreError>;

    /// State of a rollout with its history.
    async fn load(&self, name: &str) -> Result<Option<Stored>, StoreError>;

    /// Writes the state of a rollout that this gateway leads, and appends `entries` to its history. `stored.record.history` is
    /// not written. The identity of a record that is decided is kept among the decided ones, in the same transaction.
    async fn save(&self, stored: &Stored, entries: &[HistoryEntry]) -> Result<(), StoreError>;

    /// Decision about an identity of a rollout, if there is one.
    async fn decided(&self, name: &str, identity: &str) -> Result<Option<Decided>, StoreError>;

    /// Writes this gateway's counts under a key ([`Counts`] of one step), in place of those before.
    async fn publish(&self, name: &str, key: &str, counts: &Counts) -> Result<(), StoreError>;

    /// Counts of all gateways under a key, this one's included.
    async fn gather(&self, name: &str, key: &str) -> Result<Vec<GatewayCounts>, StoreError>;

    /// Acquires or renews the lead of a rollout; its fencing number while this gateway leads. To be called about once a
    /// second.
    async fn lead(&self, name: &str) -> Result<Option<u64>, StoreError>;

    /// Takes the lead from whoever has it, for a command that came to this gateway. The old leader's next write fails.
    async fn take_lead(&self, name: &str) -> Result<u64, StoreError>;

    /// Releases the lead of a rollout.
    async fn release(&self, name: &str) -> Result<(), StoreError>;

    /// Removes counts of other keys than the present ones of these rollouts, and what is stored about rollouts that are not
    /// among them and ended long ago. `present` has names with their counts key.
    async fn tidy(&self, present: &[(String, String)], now: f64) -> Result<(), StoreError>;

    /// Releases all leads and writes what is left, for a bounded time.
    async fn close(&self);
}

/// Documents of one write.
struct Documents {
    stored: String,
    entries: Vec<String>,
    /// Decision about the record's identity, where the record is decided.
    decided: Option<String>,
}

impl Documents {
    fn of(stored: &Stored, entries: &[HistoryEntry]) -> Result<Self, StoreError> {
        let record = &stored.record;
        let decided = record.decided.then(|| Decided {
            state: record.state,
            at: record.ended_at.unwrap_or(record.updated_at),
            run: record.run,
            reason: record.reason.clone(),
        });
        let without_history = if record.history.is_empty() {
            None
        } else {
            let mut copy = stored.clone();
            copy.record.history.clear();
            Some(copy)
        };
        Ok(Self {
            stored: write(without_history.as_ref().unwrap_or(stored))?,
            entries: entries.iter().map(write).collect::<Result<_, _>>()?,
            decided: decided.as_ref().map(write).transpose()?,
        })
    }
}

fn write<T: Serialize>(document: &T) -> Result<String, StoreError> {
    let damaged = |e: serde_json::Error| StoreError::Damaged { what: "a document".to_owned(), reason: e.to_string() };
    serde_json::to_string(document).map_err(damaged)
}

fn read<T: DeserializeOwned>(what: &str, document: &[u8]) -> Result<T, StoreError> {
    let damaged = |e: serde_json::Error| StoreError::Damaged { what: what.to_owned(), reason: e.to_string() };
    serde_json::from_slice(document).map_err(damaged)
}
