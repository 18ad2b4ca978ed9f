//! SQLite file of rollouts, for one gateway. One thread owns the connection; callers await its answers, so no request and no
//! task waits for the disk on its own thread. A write is on the disk when it is answered.
//!
//! A file has one owner: the gateway that claimed it last. Another one that still has it open is refused at its next write.

use std::path::Path;

use async_trait::async_trait;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::de::DeserializeOwned;

use super::{GatewayCounts, KEPT, KEPT_DECISIONS, RolloutStore, StoreError};
use crate::rollout::record::{HISTORY, HistoryEntry};
use crate::rollout::stored::{Counts, Decided, Stored};
use crate::state_file::{self, STATE_STORE, StateFile};

/// Name of the gateway in the file: there is one.
const GATEWAY: &str = "local";

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS rollout_owner (one INTEGER PRIMARY KEY CHECK (one = 1), fence INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS rollouts (
        name TEXT PRIMARY KEY, document TEXT NOT NULL, seen_at REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS rollout_history (
        number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, entry TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS rollout_history_of ON rollout_history (name, number);
    CREATE TABLE IF NOT EXISTS rollout_decided (
        name TEXT NOT NULL, identity TEXT NOT NULL, at REAL NOT NULL, document TEXT NOT NULL,
        PRIMARY KEY (name, identity)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS rollout_counts (
        name TEXT NOT NULL, counted TEXT NOT NULL, gateway TEXT NOT NULL, document TEXT NOT NULL,
        PRIMARY KEY (name, counted, gateway)) WITHOUT ROWID;";

type Fault = state_file::Fault<StoreError>;

/// Store in an SQLite file.
pub struct SqliteStore {
    file: StateFile,
    /// Fencing number with which this process owns the file.
    fence: Mutex<Option<u64>>,
}

impl SqliteStore {
    /// Opens a file, and makes it where there is none. Nothing is claimed before the first [`RolloutStore::lead`].
    ///
    /// # Errors
    ///
    /// [`StoreError::File`] where the file is damaged, of another program or not writable.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { file: StateFile::open(STATE_STORE, path, TABLES, "rollouts")?, fence: Mutex::new(None) })
    }

    /// Validates a file as [`Self::open`] does, without making or changing anything.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn judge(path: &Path) -> Result<(), StoreError> {
        Ok(StateFile::judge(STATE_STORE, path)?)
    }

    /// Runs a job on the thread of the file.
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.file.run(job).await
    }

    /// Makes the disk hang until the sender is dropped.
    #[cfg(test)]
    pub(in crate::rollout) fn hang(&self) -> std::sync::mpsc::Sender<()> {
        self.file.hang()
    }

    async fn claim(&self) -> Result<u64, StoreError> {
        let fence = self
            .run(|file| {
                let batch = file.transaction_with_behavior(TransactionBehavior::Immediate)?;
                batch.execute(
                    "INSERT INTO rollout_owner VALUES (1, 1) ON CONFLICT (one) DO UPDATE SET fence = fence + 1",
                    [],
                )?;
                let fence = owner(&batch)?.unwrap_or(1);
                batch.commit()?;
                Ok(fence)
            })
            .await?;
        *self.fence.lock() = Some(fence);
        Ok(fence)
    }
}

/// Fencing number of the file's owner.
fn owner(file: &Connection) -> rusqlite::Result<Option<u64>> {
    let fence = file.query_row("SELECT fence FROM rollout_owner", [], |row| row.get::<_, i64>(0)).optional()?;
    Ok(fence.map(|fence| u64::try_from(fence).unwrap_or(0)))
}

fn read<T: DeserializeOwned>(what: &str, document: &str) -> Result<T, Fault> {
    super::read(what, document.as_bytes()).map_err(Fault::Other)
}

fn keep_history(batch: &Transaction<'_>, name: &str, entries: &[String]) -> rusqlite::Result<()> {
    let mut row = batch.prepare("INSERT INTO rollout_history (name, entry) VALUES (?1, ?2)")?;
    for entry in entries {
        row.execute(params![name, entry])?;
    }
    batch.execute(
        "DELETE FROM rollout_history WHERE name = ?1 AND number NOT IN (
            SELECT number FROM rollout_history WHERE name = ?1 ORDER BY number DESC LIMIT ?2)",
        params![name, i64::try_from(HISTORY).unwrap_or(i64::MAX)],
    )?;
    Ok(())
}

#[async_trait]
impl RolloutStore for SqliteStore {
    fn gateway(&self) -> &str {
        GATEWAY
    }

    async fn names(&self) -> Result<Vec<String>, StoreError> {
        self.run(|file| {
            let mut rows = file.prepare("SELECT name FROM rollouts ORDER BY name")?;
            Ok(rows.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn load(&self, name: &str) -> Result<Option<Stored>, StoreError> {
        let name = name.to_owned();
        self.run(move |file| {
            let document = "SELECT document FROM rollouts WHERE name = ?1";
            let document: Option<String> = file.query_row(document, [&name], |row| row.get(0)).optional()?;
            let Some(document) = document else { return Ok(None) };
            let mut stored: Stored = read(&format!("the rollout `{name}`"), &document)?;
            let mut rows = file.prepare("SELECT entry FROM rollout_history WHERE name = ?1 ORDER BY number")?;
            for entry in rows.query_map([&name], |row| row.get::<_, String>(0))? {
                let entry: String = entry?;
                stored.record.history.push(read(&format!("the history of the rollout `{name}`"), &entry)?);
            }
            Ok(Some(stored))
        })
        .await
    }

    async fn save(&self, stored: &Stored, entries: &[HistoryEntry]) -> Result<(), StoreError> {
        let documents = super::Documents::of(stored, entries)?;
        let (fence, record) = (stored.fence, &stored.record);
        let (name, identity, at) = (record.name.clone(), record.identity.clone(), record.updated_at);
        self.run(move |file| {
            let batch = file.transaction_with_behavior(TransactionBehavior::Immediate)?;
            if owner(&batch)? != Some(fence) {
                return Err(Fault::Other(StoreError::NotLeader(name)));
            }
            batch
                .execute("INSERT OR REPLACE INTO rollouts VALUES (?1, ?2, ?3)", params![name, documents.stored, at])?;
            keep_history(&batch, &name, &documents.entries)?;
            if let Some(decided) = documents.decided {
                let row = "INSERT OR REPLACE INTO rollout_decided VALUES (?1, ?2, ?3, ?4)";
                batch.execute(row, params![name, identity, at, decided])?;
                batch.execute(
                    "DELETE FROM rollout_decided WHERE name = ?1 AND identity NOT IN (
                        SELECT identity FROM rollout_decided WHERE name = ?1 ORDER BY at DESC LIMIT ?2)",
                    params![name, KEPT_DECISIONS],
                )?;
            }
            batch.commit()?;
            Ok(())
        })
        .await
    }

    async fn decided(&self, name: &str, identity: &str) -> Result<Option<Decided>, StoreError> {
        let (name, identity) = (name.to_owned(), identity.to_owned());
        self.run(move |file| {
            let document = "SELECT document FROM rollout_decided WHERE name = ?1 AND identity = ?2";
            let found: Option<String> = file.query_row(document, [&name, &identity], |row| row.get(0)).optional()?;
            found.map(|document| read(&format!("a decision about the rollout `{name}`"), &document)).transpose()
        })
        .await
    }

    async fn publish(&self, name: &str, key: &str, counts: &Counts) -> Result<(), StoreError> {
        let document = super::write(counts)?;
        let (name, key, fence) = (name.to_owned(), key.to_owned(), *self.fence.lock());
        self.run(move |file| {
            if owner(file)? != fence {
                return Err(Fault::Other(StoreError::NotLeader(name)));
            }
            let row = "INSERT OR REPLACE INTO rollout_counts VALUES (?1, ?2, ?3, ?4)";
            file.execute(row, params![name, key, GATEWAY, document])?;
            Ok(())
        })
        .await
    }

    async fn gather(&self, name: &str, key: &str) -> Result<Vec<GatewayCounts>, StoreError> {
        let (name, key) = (name.to_owned(), key.to_owned());
        self.run(move |file| {
            let mut rows =
                file.prepare("SELECT gateway, document FROM rollout_counts WHERE name = ?1 AND counted = ?2")?;
            let mut counts = Vec::new();
            for row in rows.query_map([&name, &key], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))? {
                let (gateway, document): (String, String) = row?;
                counts.push((gateway, read(&format!("the counts of the rollout `{name}`"), &document)?));
            }
            Ok(counts)
        })
        .await
    }

    async fn lead(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let fence = *self.fence.lock();
        let Some(fence) = fence else { return self.take_lead(name).await.map(Some) };
        let owner = self.run(|file| Ok(owner(file)?)).await?;
        Ok(Some(fence).filter(|fence| owner == Some(*fence)))
    }

    async fn take_lead(&self, _: &str) -> Result<u64, StoreError> {
        let fence = *self.fence.lock();
        let owner = self.run(|file| Ok(owner(file)?)).await?;
        match fence {
            Some(fence) if owner == Some(fence) => Ok(fence),
            _ => self.claim().await,
        }
    }

    async fn release(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn tidy(&self, present: &[(String, String)], now: f64) -> Result<(), StoreError> {
        let present = present.to_vec();
        self.run(move |file| {
            let batch = file.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for (name, key) in &present {
                batch.execute("UPDATE rollouts SET seen_at = ?2 WHERE name = ?1", params![name, now])?;
                batch.execute("DELETE FROM rollout_counts WHERE name = ?1 AND counted <> ?2", [name, key])?;
            }
            batch.execute("DELETE FROM rollouts WHERE seen_at < ?1", [now - KEPT.as_secs_f64()])?;
            for table in ["rollout_history", "rollout_decided", "rollout_counts"] {
                batch.execute(&format!("DELETE FROM {table} WHERE name NOT IN (SELECT name FROM rollouts)"), [])?;
            }
            batch.commit()?;
            Ok(())
        })
        .await
    }

    async fn close(&self) {
        if let Err(e) = self.file.close().await {
            tracing::error!(event = "rollouts_not_written", file = %e.path.display(), reason = e.reason);
        }
    }
}
