//! Stores of keys that are made at run time: the SQLite file of `state.store` for one gateway, its Redis server for several. A
//! store keeps one document for each key and a revision, which every change moves; it reads no document.

mod redis;
mod sqlite;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use spillway_config::schema::StateStore;

pub(super) use self::redis::RedisKeys;
pub(super) use self::sqlite::SqliteKeys;
use crate::redis_client::ClientError;
use crate::state_file::{FileError, STATE_STORE};
use crate::state_server::Unreachable;
use crate::tls::TlsError;

/// Failure of a store.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// The server does not answer.
    #[error("state.store.redis: {0}")]
    Unreachable(String),
    /// The client of the server cannot be made.
    #[error("state.store.redis: {0}")]
    Client(#[from] Arc<ClientError>),
    /// Authorities of the server that cannot be read.
    #[error("state.store.redis.caFile: {0}")]
    Authorities(#[from] Arc<TlsError>),
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<Unreachable> for KeyStoreError {
    fn from(error: Unreachable) -> Self {
        Self::Unreachable(error.0)
    }
}

/// All keys of a store.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// Number that every change moves.
    pub(super) revision: u64,
    /// Ids and documents.
    pub(super) documents: Vec<(String, String)>,
}

/// Change of one key.
#[derive(Debug, Clone)]
pub(super) struct Change {
    /// Id of the key.
    pub(super) id: String,
    /// Document that is there; `None` for a new key.
    pub(super) before: Option<String>,
    /// Document that replaces it; `None` removes the key.
    pub(super) after: Option<String>,
    /// Most keys that may exist.
    pub(super) most: u32,
}

/// Effect of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// Stored, under this revision.
    Done(u64),
    /// There are as many keys as may exist; nothing is changed.
    Full,
    /// Another document is there than `before`; nothing is changed.
    Differs,
}

/// Store of keys.
#[async_trait]
pub(super) trait KeyStore: Send + Sync + 'static {
    /// Number that every change moves. It never takes a value again, also not in a store that has lost its content.
    async fn revision(&self) -> Result<u64, KeyStoreError>;

    /// All keys, with the revision that they belong to.
    async fn load(&self) -> Result<Contents, KeyStoreError>;

    /// Makes a change, whole or not at all.
    async fn change(&self, change: &Change) -> Result<Written, KeyStoreError>;

    /// Closes the store, for a bounded time.
    async fn close(&self);
}

/// Opens the store of a configuration. A server need not be reachable.
pub(super) async fn open(written: &StateStore) -> Result<Arc<dyn KeyStore>, KeyStoreError> {
    match written {
        StateStore::File(path) => {
            let file = Path::to_owned(path);
            let opened = tokio::task::spawn_blocking(move || SqliteKeys::open(&file)).await;
            Ok(Arc::new(opened.map_err(|e| FileError::new(STATE_STORE, path, &e))??))
        }
        StateStore::Shared(shared) => {
            let file = shared.redis.ca_file.as_ref();
            let authorities = file.map(|file| crate::tls::read_authorities(file)).transpose().map_err(Arc::new)?;
            Ok(Arc::new(RedisKeys::new(&shared.redis, authorities)?))
        }
    }
}

/// Validates the store of a configuration as [`open`] does, without making or changing anything.
pub(super) async fn judge(written: &StateStore) -> Result<(), KeyStoreError> {
    let StateStore::File(path) = written else { return Ok(()) };
    let file = Path::to_owned(path);
    let judged = tokio::task::spawn_blocking(move || SqliteKeys::judge(&file)).await;
    judged.map_err(|e| FileError::new(STATE_STORE, path, &e))?
}

/// First revision of a store, drawn at random: one that has lost its content does not count up to a known one again.
fn first_revision() -> u64 {
    u64::from(rand::random::<u32>()) << 16
}
