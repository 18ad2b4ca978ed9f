//! Keys in the SQLite file of `state.store`, for one gateway.

use std::path::Path;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::{Change, Contents, KeyStore, KeyStoreError, Written};
use crate::state_file::{Fault, STATE_STORE, StateFile};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS api_keys (id TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS api_keys_revision (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL);";

/// Store in an SQLite file.
pub(in crate::identity::issued) struct SqliteKeys(StateFile);

impl SqliteKeys {
    /// Opens a file, and makes it where there is none.
    pub(super) fn open(path: &Path) -> Result<Self, KeyStoreError> {
        Ok(Self(StateFile::open(STATE_STORE, path, TABLES, "api-keys")?))
    }

    /// Validates a file as [`Self::open`] does, without making or changing anything.
    pub(super) fn judge(path: &Path) -> Result<(), KeyStoreError> {
        Ok(StateFile::judge(STATE_STORE, path)?)
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, Fault<KeyStoreError>> + Send + 'static,
    ) -> Result<T, KeyStoreError> {
        self.0.run(job).await
    }
}

fn revision(file: &Connection) -> rusqlite::Result<u64> {
    let read = file.query_row("SELECT revision FROM api_keys_revision", [], |row| row.get::<_, i64>(0)).optional()?;
    Ok(read.map_or(0, |revision| u64::try_from(revision).unwrap_or(0)))
}

#[async_trait]
impl KeyStore for SqliteKeys {
    async fn revision(&self) -> Result<u64, KeyStoreError> {
        self.run(|file| Ok(revision(file)?)).await
    }

    async fn load(&self) -> Result<Contents, KeyStoreError> {
        self.run(|file| {
            let batch = file.transaction()?;
            let revision = revision(&batch)?;
            let mut rows = batch.prepare("SELECT id, document FROM api_keys")?;
            let documents = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
            Ok(Contents { revision, documents })
        })
        .await
    }

    async fn change(&self, change: &Change) -> Result<Written, KeyStoreError> {
        let Change { id, before, after, most } = change.clone();
        let first = i64::try_from(super::first_revision()).unwrap_or(0);
        self.run(move |file| {
            let batch = file.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let there = "SELECT document FROM api_keys WHERE id = ?1";
            let there: Option<String> = batch.query_row(there, [&id], |row| row.get(0)).optional()?;
            if there != before {
                return Ok(Written::Differs);
            }
            let count: i64 = batch.query_row("SELECT count(*) FROM api_keys", [], |row| row.get(0))?;
            if before.is_none() && count >= i64::from(most) {
                return Ok(Written::Full);
            }
            match after {
                Some(after) => batch.execute("INSERT OR REPLACE INTO api_keys VALUES (?1, ?2)", params![id, after])?,
                None => batch.execute("DELETE FROM api_keys WHERE id = ?1", [&id])?,
            };
            batch.execute(
                "INSERT INTO api_keys_revision VALUES (1, ?1) ON CONFLICT (one) DO UPDATE SET revision = revision + 1",
                [first],
            )?;
            let revision = revision(&batch)?;
            batch.commit()?;
            Ok(Written::Done(revision))
        })
        .await
    }

    async fn close(&self) {
        if let Err(e) = self.0.close().await {
            tracing::error!(event = "keys_not_written", file = %e.path.display(), reason = e.reason);
        }
    }
}
