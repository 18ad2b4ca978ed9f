//! Store of files and batches: an SQLite file for what is said of them, for lines and for their results, and a folder with the
//! bytes of each file. A line ends in one transaction with its result, so that a process which dies loses no result and leaves
//! none twice. Only the user of the gateway may read the folder.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, ToSql, Transaction, TransactionBehavior, params};

use super::record::{BatchRecord, BatchUsage, FileRecord, Status};
use crate::state_file::{Fault, FileError, StateFile};
use crate::telemetry::Label;

/// Name of the folder in the configuration, for errors.
const KEY: &str = "batch.store";
/// Name of the SQLite file.
const FILE: &str = "batch.db";
/// Name of the folder with the bytes of files.
const FILES: &str = "files";
/// Name of the file whose lock the process holds that answers lines.
const LOCK: &str = "lock";
/// Most lines that one transaction writes or deletes: milliseconds of the thread of the store.
pub(super) const CHUNK: usize = 2_000;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS files (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, purpose TEXT NOT NULL,
        bytes INTEGER NOT NULL, expires INTEGER NOT NULL, document TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS files_of ON files (owner, seq);
    CREATE TABLE IF NOT EXISTS batches (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, status TEXT NOT NULL,
        ended INTEGER, document TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS batches_of ON batches (owner, seq);
    CREATE TABLE IF NOT EXISTS lines (
        batch TEXT NOT NULL, line INTEGER NOT NULL, at INTEGER NOT NULL, length INTEGER NOT NULL, rank INTEGER NOT NULL,
        state INTEGER NOT NULL, tries INTEGER NOT NULL, result BLOB, PRIMARY KEY (batch, line)) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS lines_by_state ON lines (batch, state, rank, line);";

/// State of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineState {
    /// It waits.
    Pending = 0,
    /// It is being answered.
    Running = 1,
    /// It was answered with success.
    Completed = 2,
    /// It ended in another way.
    Failed = 3,
}

impl LineState {
    fn number(self) -> i64 {
        self as i64
    }
}

/// Line of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    /// Number, from 1.
    pub(super) number: u64,
    /// Place of its first byte in the input file.
    pub(super) at: u64,
    /// Bytes without the line feed.
    pub(super) length: u64,
    /// Lines of one rank share their model and the begin of their prompt.
    pub(super) rank: i64,
    /// Times that it was answered with an error that may pass.
    pub(super) tries: u32,
}

/// End of a line.
#[derive(Debug, Clone)]
pub(super) struct EndedLine {
    pub(super) number: u64,
    pub(super) state: LineState,
    /// Line of the file of results, without its line feed.
    pub(super) result: Vec<u8>,
    /// Tokens that the answer reports.
    pub(super) usage: BatchUsage,
}

/// Refusal or failure of the store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The SQLite file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of the folder failed.
    #[error("{KEY}: {}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Fault.
        reason: String,
    },
    /// Another consumer's, or nobody's.
    #[error("not found")]
    Unknown,
    /// An unfinished batch reads the file.
    #[error("the file is the input of a batch that has not ended")]
    InUse,
    /// As many files are being sent as may at a time.
    #[error("too many files are being sent")]
    Uploading,
    /// The consumer has as many files, bytes or batches as it may.
    #[error("{0}")]
    Full(String),
}

/// Part of a list.
#[derive(Debug, Clone)]
pub struct Page {
    /// Id behind which the part begins.
    pub after: Option<String>,
    /// Most entries.
    pub limit: u32,
    /// True for the oldest first.
    pub ascending: bool,
    /// Only files of this purpose.
    pub purpose: Option<String>,
}

/// Bounds of what is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) bytes: u64,
    pub(super) bytes_of_all: u64,
    pub(super) files: u32,
    pub(super) batches: u32,
}

/// Open store.
pub(super) struct Store {
    folder: PathBuf,
    /// Connection of the task that answers lines.
    file: StateFile,
    /// Connection of callers, so that a flood of theirs holds up no line.
    callers: StateFile,
}

/// Lock of the process that answers lines. The system releases it when the process ends, however it ends.
pub(super) struct RunnerLock(File);

impl Drop for RunnerLock {
    fn drop(&mut self) {
        // The lock also ends with the descriptor.
        let _ = self.0.unlock();
    }
}

type Job<T> = Result<T, Fault<StoreError>>;

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

impl Store {
    /// Opens a folder, and makes it where there is none.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let failed = |path: &Path, e: &io::Error| StoreError::Io { path: path.to_owned(), reason: e.to_string() };
        let files = folder.join(FILES);
        DirBuilder::new().recursive(true).mode(0o700).create(&files).map_err(|e| failed(&files, &e))?;
        let open = |thread| StateFile::open(KEY, &folder.join(FILE), TABLES, thread);
        Ok(Self { file: open("batches")?, callers: open("batch-callers")?, folder: folder.to_owned() })
    }

    /// Validates a folder as [`Self::open`] does, without making or changing anything.
    pub(super) fn judge(folder: &Path) -> Result<(), StoreError> {
        Ok(StateFile::judge(KEY, &folder.join(FILE))?)
    }

    /// The folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Path of the bytes of a file. Ids are made by the gateway; one of a caller is looked up first.
    pub(super) fn path(&self, id: &str) -> PathBuf {
        self.folder.join(FILES).join(id)
    }

    /// Failure of a file of the folder.
    pub(super) fn failed(&self, id: &str, e: &io::Error) -> StoreError {
        StoreError::Io { path: self.path(id), reason: e.to_string() }
    }

    /// Makes the file for new bytes.
    pub(super) fn create(&self, id: &str) -> Result<File, StoreError> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path(id));
        made.map_err(|e| self.failed(id, &e))
    }

    /// Takes the lock of the process that answers lines; `None` while another one has it.
    pub(super) fn lock(&self) -> Result<Option<RunnerLock>, StoreError> {
        let path = self.folder.join(LOCK);
        let failed = |e: &io::Error| StoreError::Io { path: path.clone(), reason: e.to_string() };
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(|e| failed(&e))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(RunnerLock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(failed(&e)),
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Job<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.file.run(job).await
    }

    /// As [`Self::run`], for a caller.
    async fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Job<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.callers.run(job).await
    }

    /// Adds a file whose bytes are written, within the bounds of its consumer and of all.
    pub(super) async fn add_file(&self, file: FileRecord, bounds: Bounds) -> Result<(), StoreError> {
        self.ask(move |db| {
            let whole = begin(db)?;
            let sum = |of: &str, owner: &dyn ToSql| -> rusqlite::Result<(u64, u64)> {
                let query = format!("SELECT count(*), coalesce(sum(bytes), 0) FROM files WHERE {of}");
                whole.query_row(&query, [owner], |row| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?))))
            };
            let (count, bytes) = sum("owner = ?1", &file.owner)?;
            let (_, of_all) = sum("?1 IS NOT NULL", &file.owner)?;
            let full = if count >= u64::from(bounds.files) {
                Some(format!("{count} files are stored, as many as a consumer may have (`batch.maxFiles`)"))
            } else if bytes.saturating_add(file.bytes) > bounds.bytes {
                Some(format!("{bytes} bytes are stored, and at most {} may be (`batch.maxStored`)", bounds.bytes))
            } else if of_all.saturating_add(file.bytes) > bounds.bytes_of_all {
                Some("there is no room for further files of any consumer (`batch.maxStoredByAll`)".to_owned())
            } else {
                None
            };
            if let Some(full) = full {
                return Err(Fault::Other(StoreError::Full(full)));
            }
            insert_file(&whole, &file)?;
            Ok(whole.commit()?)
        })
        .await
    }

    /// The consumer's file with an id.
    pub(super) async fn file(&self, owner: &str, id: &str) -> Result<FileRecord, StoreError> {
        let key = (id.to_owned(), owner.to_owned());
        self.ask(move |db| {
            let found = "SELECT document FROM files WHERE id = ?1 AND owner = ?2";
            let found = db.query_row(found, key, document).optional()?;
            found.ok_or(Fault::Other(StoreError::Unknown))
        })
        .await
    }

    /// Part of the list of a consumer's files, and whether more follow.
    pub(super) async fn files(&self, owner: &str, page: Page) -> Result<(Vec<FileRecord>, bool), StoreError> {
        let owner = owner.to_owned();
        self.ask(move |db| list(db, "files", &owner, &page)).await
    }

    /// Forgets a consumer's file; the bytes are deleted after that.
    pub(super) async fn delete_file(&self, owner: &str, id: &str) -> Result<(), StoreError> {
        let key = (id.to_owned(), owner.to_owned());
        self.ask(move |db| {
            let whole = begin(db)?;
            if is_read(&whole, &key.0)? {
                return Err(Fault::Other(StoreError::InUse));
            }
            let gone = whole.execute("DELETE FROM files WHERE id = ?1 AND owner = ?2", key)?;
            if gone == 0 {
                return Err(Fault::Other(StoreError::Unknown));
            }
            Ok(whole.commit()?)
        })
        .await?;
        self.remove_bytes(id).await;
        Ok(())
    }

    /// Deletes the bytes of a file that is forgotten. What cannot be deleted now is when the store is opened again.
    pub(super) async fn remove_bytes(&self, id: &str) {
        if let Err(e) = tokio::fs::remove_file(self.path(id)).await
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(event = "batch_file_not_deleted", file = %self.path(id).display(), reason = %e);
        }
    }

    /// Adds a batch, within the bounds of its consumer. Its input must still be there.
    pub(super) async fn add_batch(&self, batch: BatchRecord, bounds: Bounds) -> Result<(), StoreError> {
        self.ask(move |db| {
            let whole = begin(db)?;
            let open = "SELECT count(*) FROM batches WHERE owner = ?1 AND ended IS NULL";
            let open = unsigned(whole.query_row(open, [&batch.owner], |row| row.get(0))?);
            if open >= u64::from(bounds.batches) {
                let full =
                    format!("{open} batches have not ended, as many as a consumer may have (`batch.maxBatches`)");
                return Err(Fault::Other(StoreError::Full(full)));
            }
            let input = "SELECT 1 FROM files WHERE id = ?1 AND owner = ?2";
            if !whole.prepare(input)?.exists(params![batch.input_file, batch.owner])? {
                return Err(Fault::Other(StoreError::Unknown));
            }
            let insert = "INSERT INTO batches (id, owner, status, ended, document) VALUES (?1, ?2, ?3, NULL, ?4)";
            whole.execute(insert, params![batch.id, batch.owner, batch.status.as_str(), written(&batch)])?;
            Ok(whole.commit()?)
        })
        .await
    }

    /// The consumer's batch with an id.
    pub(super) async fn batch(&self, owner: &str, id: &str) -> Result<BatchRecord, StoreError> {
        let key = (id.to_owned(), owner.to_owned());
        self.ask(move |db| {
            let found = "SELECT document FROM batches WHERE id = ?1 AND owner = ?2";
            let found = db.query_row(found, key, document).optional()?;
            found.ok_or(Fault::Other(StoreError::Unknown))
        })
        .await
    }

    /// Part of the list of a consumer's batches, and whether more follow.
    pub(super) async fn batches(&self, owner: &str, page: Page) -> Result<(Vec<BatchRecord>, bool), StoreError> {
        let owner = owner.to_owned();
        self.ask(move |db| list(db, "batches", &owner, &page)).await
    }

    /// Batches that have not ended, the oldest first.
    pub(super) async fn unfinished(&self) -> Result<Vec<BatchRecord>, StoreError> {
        self.run(|db| {
            let mut rows = db.prepare("SELECT document FROM batches WHERE ended IS NULL ORDER BY seq")?;
            let all = rows.query_map([], document)?.collect::<Result<_, _>>()?;
            Ok(all)
        })
        .await
    }

    /// Changes a batch that has not ended by `change`, and returns it as it is then.
    pub(super) async fn change(
        &self,
        id: &str,
        change: impl FnOnce(&mut BatchRecord) + Send + 'static,
    ) -> Result<BatchRecord, StoreError> {
        let id = id.to_owned();
        self.run(move |db| {
            let whole = begin(db)?;
            let found = "SELECT document FROM batches WHERE id = ?1";
            let found: Option<BatchRecord> = whole.query_row(found, [&id], document).optional()?;
            let mut batch = found.ok_or(Fault::Other(StoreError::Unknown))?;
            if !batch.status.is_over() {
                change(&mut batch);
                put(&whole, &batch)?;
                whole.commit()?;
            }
            Ok(batch)
        })
        .await
    }

    /// Makes the lines that a dead process had taken wait again.
    pub(super) async fn release_all(&self) -> Result<(), StoreError> {
        let (pending, running) = (LineState::Pending.number(), LineState::Running.number());
        self.run(move |db| {
            db.execute("UPDATE lines SET state = ?1 WHERE state = ?2", [pending, running])?;
            Ok(())
        })
        .await
    }

    /// Forgets the lines of a batch whose reading did not end.
    pub(super) async fn clear_lines(&self, batch: &str) -> Result<(), StoreError> {
        loop {
            let id = batch.to_owned();
            let gone = self.run(move |db| Ok(delete_lines(db, &id)?)).await?;
            if gone < CHUNK {
                return Ok(());
            }
        }
    }

    /// Adds lines of a batch.
    pub(super) async fn add_lines(&self, batch: &str, lines: Vec<Line>) -> Result<(), StoreError> {
        let batch = batch.to_owned();
        self.run(move |db| {
            let whole = begin(db)?;
            {
                let mut insert = whole.prepare("INSERT INTO lines VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, NULL)")?;
                for line in lines {
                    let (number, at, length) = (signed(line.number), signed(line.at), signed(line.length));
                    insert.execute(params![batch, number, at, length, line.rank, LineState::Pending.number()])?;
                }
            }
            Ok(whole.commit()?)
        })
        .await
    }

    /// Takes lines that wait, those of one rank together.
    pub(super) async fn take(&self, batch: &str, most: usize) -> Result<Vec<Line>, StoreError> {
        let batch = batch.to_owned();
        self.run(move |db| {
            let whole = begin(db)?;
            let lines: Vec<Line> = {
                let query = "SELECT line, at, length, rank, tries FROM lines WHERE batch = ?1 AND state = ?2
                             ORDER BY rank, line LIMIT ?3";
                let mut rows = whole.prepare(query)?;
                let most = signed(u64::try_from(most).unwrap_or(u64::MAX));
                rows.query_map(params![batch, LineState::Pending.number(), most], line)?.collect::<Result<_, _>>()?
            };
            set_state(&whole, &batch, lines.iter().map(|line| (line.number, line.tries)), LineState::Running)?;
            whole.commit()?;
            Ok(lines)
        })
        .await
    }

    /// Makes lines wait again that were taken.
    pub(super) async fn release(&self, batch: &str, lines: Vec<Line>) -> Result<(), StoreError> {
        if lines.is_empty() {
            return Ok(());
        }
        let batch = batch.to_owned();
        self.run(move |db| {
            let whole = begin(db)?;
            set_state(&whole, &batch, lines.iter().map(|line| (line.number, line.tries)), LineState::Pending)?;
            Ok(whole.commit()?)
        })
        .await
    }

    /// Ends lines with their results, and counts them in their batch by `count`. A line that has ended before stays as it is
    /// and is not counted.
    pub(super) async fn end_lines(
        &self,
        batch: &str,
        ended: Arc<Vec<EndedLine>>,
        count: impl Fn(&mut BatchRecord, &EndedLine) + Send + 'static,
    ) -> Result<Option<BatchRecord>, StoreError> {
        let id = batch.to_owned();
        self.run(move |db| {
            let whole = begin(db)?;
            let found = "SELECT document FROM batches WHERE id = ?1";
            let found: Option<BatchRecord> = whole.query_row(found, [&id], document).optional()?;
            // A batch that was deleted or has ended takes no result.
            let Some(mut batch) = found.filter(|batch| !batch.status.is_over()) else { return Ok(None) };
            {
                let update = "UPDATE lines SET state = ?3, result = ?4 WHERE batch = ?1 AND line = ?2 AND state < ?5";
                let mut update = whole.prepare(update)?;
                for line in &*ended {
                    let over = LineState::Completed.number();
                    let row = params![id, signed(line.number), line.state.number(), line.result, over];
                    if update.execute(row)? > 0 {
                        count(&mut batch, line);
                    }
                }
            }
            put(&whole, &batch)?;
            whole.commit()?;
            Ok(Some(batch))
        })
        .await
    }

    /// Lines of a batch that have not ended, in the order of the file.
    pub(super) async fn not_ended(&self, batch: &str) -> Result<Vec<Line>, StoreError> {
        let batch = batch.to_owned();
        self.run(move |db| {
            let query = "SELECT line, at, length, rank, tries FROM lines WHERE batch = ?1 AND state < ?2
                         ORDER BY line LIMIT ?3";
            let mut rows = db.prepare(query)?;
            let most = signed(u64::try_from(CHUNK).unwrap_or(u64::MAX));
            let all = rows.query_map(params![batch, LineState::Completed.number(), most], line)?;
            Ok(all.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Results of lines in a state behind a line, in the order of the file: the number of the last one, and the results. Some
    /// megabytes at most.
    pub(super) async fn results(
        &self,
        batch: &str,
        state: LineState,
        behind: u64,
    ) -> Result<(u64, Vec<Vec<u8>>), StoreError> {
        /// Most bytes at once, unless one result alone is longer.
        const AT_ONCE: usize = 4 << 20;
        let batch = batch.to_owned();
        self.run(move |db| {
            let query = "SELECT line, result FROM lines WHERE batch = ?1 AND state = ?2 AND line > ?3 ORDER BY line";
            let mut rows = db.prepare(query)?;
            let mut rows = rows.query(params![batch, state.number(), signed(behind)])?;
            let (mut last, mut results, mut bytes) = (behind, Vec::new(), 0usize);
            while let Some(row) = rows.next()? {
                let result: Vec<u8> = row.get(1)?;
                bytes = bytes.saturating_add(result.len());
                last = unsigned(row.get(0)?);
                results.push(result);
                if bytes >= AT_ONCE || results.len() >= CHUNK {
                    break;
                }
            }
            Ok((last, results))
        })
        .await
    }

    /// Ends a batch by `change`, with the files of its results, in one transaction.
    pub(super) async fn end_batch(
        &self,
        id: &str,
        files: Vec<FileRecord>,
        change: impl FnOnce(&mut BatchRecord) + Send + 'static,
    ) -> Result<BatchRecord, StoreError> {
        let batch = id.to_owned();
        let ended = self.run(move |db| {
            let whole = begin(db)?;
            let found = "SELECT document FROM batches WHERE id = ?1";
            let found: Option<BatchRecord> = whole.query_row(found, [&batch], document).optional()?;
            let mut batch = found.ok_or(Fault::Other(StoreError::Unknown))?;
            change(&mut batch);
            for file in &files {
                insert_file(&whole, file)?;
            }
            put(&whole, &batch)?;
            whole.commit()?;
            Ok(batch)
        });
        let ended = ended.await?;
        self.clear_lines(id).await?;
        Ok(ended)
    }

    /// Forgets files whose time is over and that no open batch reads, and batches that ended before `ended_before`. Deletes
    /// the bytes.
    pub(super) async fn expire(&self, now: u64, ended_before: u64) -> Result<(), StoreError> {
        let gone: Vec<String> = self
            .run(move |db| {
                let whole = begin(db)?;
                let gone: Vec<String> = {
                    let query = "SELECT id FROM files WHERE expires <= ?1 LIMIT ?2";
                    let mut rows = whole.prepare(query)?;
                    let most = signed(u64::try_from(CHUNK).unwrap_or(u64::MAX));
                    rows.query_map([signed(now), most], |row| row.get(0))?.collect::<Result<_, _>>()?
                };
                let mut deleted = Vec::new();
                for id in gone {
                    if !is_read(&whole, &id)? {
                        whole.execute("DELETE FROM files WHERE id = ?1", [&id])?;
                        deleted.push(id);
                    }
                }
                whole.execute("DELETE FROM batches WHERE ended <= ?1", [signed(ended_before)])?;
                whole.commit()?;
                Ok(deleted)
            })
            .await?;
        for id in gone {
            self.remove_bytes(&id).await;
        }
        Ok(())
    }

    /// Deletes bytes that belong to no file: those of an upload or of results that a dead process was writing.
    pub(super) async fn sweep(&self) -> Result<(), StoreError> {
        let folder = self.folder.join(FILES);
        let failed = |e: &io::Error| StoreError::Io { path: folder.clone(), reason: e.to_string() };
        let mut entries = tokio::fs::read_dir(&folder).await.map_err(|e| failed(&e))?;
        while let Some(entry) = entries.next_entry().await.map_err(|e| failed(&e))? {
            let Ok(id) = entry.file_name().into_string() else { continue };
            let key = id.clone();
            let is_known =
                self.run(move |db| Ok(db.prepare("SELECT 1 FROM files WHERE id = ?1")?.exists([key])?)).await?;
            if !is_known {
                self.remove_bytes(&id).await;
            }
        }
        Ok(())
    }

    /// Batches by their states, files, and the bytes of these.
    pub(super) async fn figures(&self) -> Result<(Vec<(String, u64)>, u64, u64), StoreError> {
        self.run(|db| {
            let mut rows = db.prepare("SELECT status, count(*) FROM batches GROUP BY status")?;
            let states = rows.query_map([], |row| Ok((row.get(0)?, unsigned(row.get(1)?))))?;
            let states = states.collect::<Result<Vec<_>, _>>()?;
            let files = "SELECT count(*), coalesce(sum(bytes), 0) FROM files";
            let (files, bytes) = db.query_row(files, [], |row| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?))))?;
            Ok((states, files, bytes))
        })
        .await
    }

    /// Closes the SQLite file.
    pub(super) async fn close(&self) {
        for file in [&self.callers, &self.file] {
            if let Err(e) = file.close().await {
                tracing::error!(event = "batches_not_written", file = %e.path.display(), reason = e.reason);
            }
        }
    }
}

/// Begins a transaction that writes. It waits for another one now, not when it has read what that one changes.
fn begin(db: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    db.transaction_with_behavior(TransactionBehavior::Immediate)
}

/// True if a batch that has not ended reads the file.
fn is_read(db: &Connection, file: &str) -> rusqlite::Result<bool> {
    let query = "SELECT 1 FROM batches WHERE ended IS NULL AND json_extract(document, '$.input_file') = ?1";
    db.prepare(query)?.exists([file])
}

fn insert_file(db: &Connection, file: &FileRecord) -> rusqlite::Result<()> {
    let insert = "INSERT INTO files (id, owner, purpose, bytes, expires, document) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let (bytes, expires) = (signed(file.bytes), signed(file.expires_at));
    db.execute(insert, params![file.id, file.owner, file.purpose, bytes, expires, written(file)])?;
    Ok(())
}

/// Writes a batch, with the time of its end once it has ended.
fn put(db: &Connection, batch: &BatchRecord) -> rusqlite::Result<()> {
    let ended = match batch.status {
        Status::Failed => batch.failed_at,
        Status::Completed => batch.completed_at,
        Status::Expired => batch.expired_at,
        Status::Cancelled => batch.cancelled_at,
        Status::Validating | Status::InProgress | Status::Finalizing | Status::Cancelling => None,
    };
    let update = "UPDATE batches SET status = ?2, ended = ?3, document = ?4 WHERE id = ?1";
    db.execute(update, params![batch.id, batch.status.as_str(), ended.map(signed), written(batch)])?;
    Ok(())
}

fn set_state(
    db: &Connection,
    batch: &str,
    lines: impl Iterator<Item = (u64, u32)>,
    state: LineState,
) -> rusqlite::Result<()> {
    let update = "UPDATE lines SET state = ?3, tries = ?4 WHERE batch = ?1 AND line = ?2 AND state < ?5";
    let mut update = db.prepare(update)?;
    for (number, tries) in lines {
        update.execute(params![batch, signed(number), state.number(), tries, LineState::Completed.number()])?;
    }
    Ok(())
}

/// Deletes some lines of a batch; returns how many.
fn delete_lines(db: &Connection, batch: &str) -> rusqlite::Result<usize> {
    let delete = "DELETE FROM lines WHERE batch = ?1 AND line IN (SELECT line FROM lines WHERE batch = ?1 LIMIT ?2)";
    db.execute(delete, params![batch, signed(u64::try_from(CHUNK).unwrap_or(u64::MAX))])
}

fn line(row: &Row<'_>) -> rusqlite::Result<Line> {
    Ok(Line {
        number: unsigned(row.get(0)?),
        at: unsigned(row.get(1)?),
        length: unsigned(row.get(2)?),
        rank: row.get(3)?,
        tries: row.get(4)?,
    })
}

/// Part of a list of documents, and whether more follow.
fn list<T: serde::de::DeserializeOwned>(db: &Connection, table: &str, owner: &str, page: &Page) -> Job<(Vec<T>, bool)> {
    let (order, beyond) = if page.ascending { ("ASC", ">") } else { ("DESC", "<") };
    let behind = match &page.after {
        None => None,
        Some(id) => {
            let query = format!("SELECT seq FROM {table} WHERE id = ?1 AND owner = ?2");
            let found = db.query_row(&query, [id.as_str(), owner], |row| row.get::<_, i64>(0)).optional()?;
            Some(found.ok_or(Fault::Other(StoreError::Unknown))?)
        }
    };
    let purpose = if table == "files" { "AND (?3 IS NULL OR purpose = ?3)" } else { "AND ?3 IS NULL" };
    let query = format!(
        "SELECT document FROM {table} WHERE owner = ?1 AND (?2 IS NULL OR seq {beyond} ?2) {purpose}
         ORDER BY seq {order} LIMIT ?4"
    );
    let mut rows = db.prepare(&query)?;
    let most = i64::from(page.limit).saturating_add(1);
    let mut all =
        rows.query_map(params![owner, behind, page.purpose, most], document)?.collect::<Result<Vec<T>, _>>()?;
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    let has_more = all.len() > limit;
    all.truncate(limit);
    Ok((all, has_more))
}

fn written(record: &impl serde::Serialize) -> String {
    // Records have text keys and no values that JSON lacks.
    serde_json::to_string(record).unwrap_or_default()
}

fn document<T: serde::de::DeserializeOwned>(row: &Row<'_>) -> rusqlite::Result<T> {
    let text: String = row.get(0)?;
    serde_json::from_str(&text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}
