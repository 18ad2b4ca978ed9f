//! The SQLite file of a part of the gateway: the one that `state.store` names, or that of `batch.store`. One thread owns a connection; callers await its answers, so no request and no task
//! waits for the disk on its own thread. A write is on the disk when it is answered. Rooms bring their tables and their jobs.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::sqlite_file;

/// Jobs that wait for the thread: some for each of a thousand rollouts.
const QUEUE: usize = 4096;
/// Longest wait for what is queued at the end of the process: longer than the busy timeout of one second.
const CLOSING: Duration = Duration::from_secs(2);
/// Longest wait for one read or write, on a disk that is busy. A disk that hangs must not keep a candidate from being aborted.
const PATIENCE: Duration = Duration::from_secs(5);
/// Mark of the file in its header (`SpwR`), by which a database of another program is told apart.
const APPLICATION: i64 = 0x5370_7752;
/// Name of `state.store`, for errors.
pub(crate) const STATE_STORE: &str = "state.store";
/// Version of the tables.
const VERSION: i64 = 1;

/// Failure of the file.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{key}: {}: {reason} (the folder must be writable, and one gateway at a time uses a file)", path.display())]
pub struct FileError {
    /// Key of the configuration that names the file.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Fault of the file.
    pub reason: String,
}

impl FileError {
    pub(crate) fn new(key: &'static str, path: &Path, reason: &dyn std::fmt::Display) -> Self {
        Self { key, path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Fault of a job, before it has the name of the file.
pub(crate) enum Fault<E> {
    Sqlite(rusqlite::Error),
    Other(E),
}

impl<E> From<rusqlite::Error> for Fault<E> {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// Open file with its thread.
pub(crate) struct StateFile {
    key: &'static str,
    path: PathBuf,
    /// Dropped to end the thread.
    jobs: Mutex<Option<SyncSender<Job>>>,
    /// Closed once the thread has ended.
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

impl StateFile {
    /// Opens the file that the `key` of the configuration names, makes it where there is none, and makes `tables` (SQL) in it.
    /// `thread` is the name of its thread.
    ///
    /// # Errors
    ///
    /// [`FileError`] where the file is damaged, of another program or not writable.
    pub(crate) fn open(key: &'static str, path: &Path, tables: &str, thread: &str) -> Result<Self, FileError> {
        let failed = |reason: &dyn std::fmt::Display| FileError::new(key, path, reason);
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| failed(&e))?;
        }
        let mut file = open(path, tables).map_err(|e| failed(&e))?;
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        let (running, ended) = oneshot::channel::<()>();
        let work = move || {
            while let Ok(job) = queue.recv() {
                job(&mut file);
            }
            drop(file);
            drop(running);
        };
        std::thread::Builder::new().name(thread.to_owned()).spawn(work).map_err(|e| failed(&e))?;
        Ok(Self { key, path: path.to_owned(), jobs: Mutex::new(Some(jobs)), ended: Mutex::new(Some(ended)) })
    }

    /// Validates a file as [`Self::open`] does, without making or changing anything.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub(crate) fn judge(key: &'static str, path: &Path) -> Result<(), FileError> {
        if path.exists() {
            let judged = sqlite_file::open_unchanged(path).and_then(|file| judge(&file));
            return judged.map_err(|e| FileError::new(key, path, &e));
        }
        sqlite_file::judge_absent(path).map_err(|reason| FileError::new(key, path, &reason))
    }

    /// Runs a job on the thread.
    pub(crate) async fn run<T: Send + 'static, E: From<FileError> + Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, Fault<E>> + Send + 'static,
    ) -> Result<T, E> {
        let failed = |reason: &dyn std::fmt::Display| Err(FileError::new(self.key, &self.path, reason).into());
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |file| {
            // A caller that has gone needs no answer.
            let _ = answer.send(job(file));
        });
        let sent = match &*self.jobs.lock() {
            Some(jobs) => jobs.try_send(job),
            None => Err(TrySendError::Disconnected(job)),
        };
        match sent {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                return failed(&format!("the disk is slow: {QUEUE} reads and writes wait for it"));
            }
            Err(TrySendError::Disconnected(_)) => return failed(&"the store is closed"),
        }
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(Fault::Sqlite(error)))) => failed(&error),
            Ok(Ok(Err(Fault::Other(error)))) => Err(error),
            Ok(Err(_)) => failed(&"the store is closed"),
            Err(_) => failed(&"the disk does not answer"),
        }
    }

    /// Makes the disk hang until the sender is dropped.
    #[cfg(test)]
    pub(crate) fn hang(&self) -> std::sync::mpsc::Sender<()> {
        let (hanging, released) = std::sync::mpsc::channel::<()>();
        let job: Job = Box::new(move |_| {
            let _ = released.recv();
        });
        assert!(self.jobs.lock().as_ref().is_some_and(|jobs| jobs.try_send(job).is_ok()));
        hanging
    }

    /// Waits for what is queued, for a bounded time, and closes the file.
    ///
    /// # Errors
    ///
    /// [`FileError`] where the last writes took too long.
    pub(crate) async fn close(&self) -> Result<(), FileError> {
        drop(self.jobs.lock().take());
        let Some(ended) = self.ended.lock().take() else { return Ok(()) };
        match tokio::time::timeout(CLOSING, ended).await {
            Ok(_) => Ok(()),
            Err(_) => Err(FileError::new(self.key, &self.path, &"the last writes took too long")),
        }
    }
}

/// Opens a file for writing; makes its tables.
fn open(path: &Path, tables: &str) -> rusqlite::Result<Connection> {
    let file = Connection::open(path)?;
    file.busy_timeout(Duration::from_secs(1))?;
    judge(&file)?;
    file.pragma_update(None, "journal_mode", "WAL")?;
    // A transition must not be undone by a loss of power: a candidate would get requests after its abort, and a revoked key be
    // valid again.
    file.pragma_update(None, "synchronous", "FULL")?;
    file.pragma_update(None, "application_id", APPLICATION)?;
    file.pragma_update(None, "user_version", VERSION)?;
    file.execute_batch(tables)?;
    Ok(file)
}

/// Refuses files that are damaged, of another program or of a later version.
fn judge(file: &Connection) -> rusqlite::Result<()> {
    let refuse = |reason: String| {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOTADB);
        Err(rusqlite::Error::SqliteFailure(code, Some(reason)))
    };
    let pragma = |name: &str| file.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 =
        file.query_row("SELECT count(*) FROM sqlite_schema WHERE type = 'table'", [], |row| row.get(0))?;
    if application != APPLICATION && (application != 0 || tables > 0) {
        return refuse("it is a database of another program; name a file of its own".to_owned());
    }
    if application == APPLICATION && version > VERSION {
        return refuse(format!(
            "it was written by a later version of the gateway ({version}, this one reads {VERSION})"
        ));
    }
    let checked = file.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    let fault = checked.map_or_else(|e| Some(e.to_string()), |checked| Some(checked).filter(|checked| checked != "ok"));
    if let Some(fault) = fault {
        return refuse(format!("it is damaged ({fault}); restore it, or remove it to begin anew"));
    }
    Ok(())
}
