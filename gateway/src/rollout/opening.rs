//! Opening of the store that `state.store` names, and its validation for `spillway check`.

use std::path::Path;
use std::sync::Arc;

use spillway_config::schema::StateStore;

use super::store::{RedisStore, RolloutStore, SqliteStore, StoreError};
use crate::state_file::{FileError, STATE_STORE};
use crate::tls::TlsError;

/// Failure to prepare the rollouts of a configuration.
#[derive(Debug, thiserror::Error)]
pub enum RolloutsError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Authorities of the server that cannot be read.
    #[error("state.store.redis.caFile: {0}")]
    Authorities(#[from] TlsError),
    /// Another store than the one that is open.
    #[error("`state.store` cannot be changed while the gateway runs and has had a rollout: restart it")]
    Changed,
}

/// Opens the store of a configuration. A server need not be reachable.
pub(super) async fn open(written: &StateStore) -> Result<Arc<dyn RolloutStore>, RolloutsError> {
    match written {
        StateStore::File(path) => {
            let (path, shown) = (Path::to_owned(path), Path::to_owned(path));
            let opened = tokio::task::spawn_blocking(move || SqliteStore::open(&path)).await;
            let opened = opened.map_err(|e| StoreError::from(FileError::new(STATE_STORE, &shown, &e)))??;
            Ok(Arc::new(opened))
        }
        StateStore::Shared(shared) => {
            let file = shared.redis.ca_file.as_ref();
            let authorities = file.map(|file| crate::tls::read_authorities(file)).transpose()?;
            Ok(Arc::new(RedisStore::new(&shared.redis, authorities)?))
        }
    }
}

/// Validates the store of a configuration as [`open`] does, without making or changing anything.
pub(super) async fn judge(written: &StateStore) -> Result<(), RolloutsError> {
    let StateStore::File(path) = written else { return Ok(()) };
    let (path, shown) = (Path::to_owned(path), Path::to_owned(path));
    let judged = tokio::task::spawn_blocking(move || SqliteStore::judge(&path)).await;
    Ok(judged.unwrap_or_else(|e| Err(FileError::new(STATE_STORE, &shown, &e).into()))?)
}
