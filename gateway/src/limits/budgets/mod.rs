//! Budgets of a day or a month. What is spent is counted in memory and written behind by a thread of its own, a batch at
//! a time, to an SQLite file; a request never waits for that. What was forgotten here is read again, for which a request
//! waits a bounded time. What a crash loses is what the last batch had not yet.
//! It owns that file and the counts; its inputs are amounts, its output whether they fit.

mod account;
mod calendar;
mod file;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use ahash::RandomState;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use spillway_config::schema::Period;

pub(super) use account::{Account, Amount};
pub(super) use calendar::window;

use account::Spent;
use file::File;

/// Accounts that wait to be read; what finds no place is read with the next batch.
const READS: usize = 1024;
/// Longest wait for the last batch at the end of the process.
const LAST_BATCH: Duration = Duration::from_secs(2);

/// The file of budgets cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("state.budgets.sqlite: {}: {reason} (the folder must be writable, and one gateway at a time uses a file)", path.display())]
pub struct BudgetError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

type Key = (String, Period);

/// True if this process may make files in a folder.
fn may_write(folder: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(folder.as_os_str().as_bytes()) else { return false };
    // SAFETY: the call gets a pointer to a string with its end that lives until it returns.
    unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) == 0 }
}

/// The accounts that are in memory.
#[derive(Default)]
struct Accounts {
    table: HashMap<Key, Arc<Account>, RandomState>,
    /// Whether the file may have accounts that are not here.
    more_in_file: bool,
}

/// All budgets and their file.
pub(super) struct Budgets {
    accounts: Arc<Mutex<Accounts>>,
    most: usize,
    pub(super) failures: Counter,
    writer: Mutex<Option<Writer>>,
}

/// The thread that reads and writes the file. It ends when `commands` is dropped, after a last batch.
struct Writer {
    path: PathBuf,
    commands: SyncSender<Command>,
    /// Is disconnected when the thread has ended.
    ended: Receiver<()>,
}

enum Command {
    /// The file is counted on.
    Begin,
    Read(Arc<Account>),
}

/// A file of budgets that is not counted on yet.
pub(super) struct Opened {
    writer: Writer,
    rows: Vec<(Key, Spent)>,
    more_in_file: bool,
}

impl Budgets {
    pub(super) fn new(most: usize, failures: Counter) -> Self {
        Self { accounts: Arc::default(), most, failures, writer: Mutex::new(None) }
    }

    /// Opens the file and reads what was spent; `None` where that was done. Nothing is counted on before it is installed.
    pub(super) fn open(&self, path: &Path) -> Result<Option<Opened>, BudgetError> {
        let failed = |e: &dyn std::fmt::Display| BudgetError { path: path.to_owned(), reason: e.to_string() };
        match &*self.writer.lock() {
            Some(writer) if writer.path == path => return Ok(None),
            Some(_) => return Err(failed(&"the file cannot be changed while the gateway runs: restart it")),
            None => {}
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| failed(&e))?;
        }
        let file = File::open(path).map_err(|e| failed(&e))?;
        let (rows, more_in_file) = file.read_some(self.most).map_err(|e| failed(&e))?;
        let (commands, wanted) = sync_channel(READS);
        let (running, ended) = sync_channel(1);
        let (accounts, failures) = (self.accounts.clone(), self.failures.clone());
        let keep = move || {
            file.keep(&accounts, &failures, &wanted);
            drop(running);
        };
        std::thread::Builder::new().name("budgets".into()).spawn(keep).map_err(|e| failed(&e))?;
        Ok(Some(Opened { writer: Writer { path: path.to_owned(), commands, ended }, rows, more_in_file }))
    }

    /// Judges a file as [`Self::open`] does, without making or changing anything.
    pub(super) fn judge(path: &Path) -> Result<(), BudgetError> {
        let failed = |e: &dyn std::fmt::Display| BudgetError { path: path.to_owned(), reason: e.to_string() };
        if path.exists() {
            return File::judge(path).map_err(|e| failed(&e));
        }
        let Some(found) = path.ancestors().skip(1).find(|folder| folder.exists()) else { return Ok(()) };
        if !found.is_dir() {
            return Err(failed(&format!("{} is not a folder", found.display())));
        }
        if !may_write(found) {
            return Err(failed(&format!("nothing may be written in {}", found.display())));
        }
        Ok(())
    }

    /// Counts on a file from now on.
    pub(super) fn install(&self, opened: Opened) {
        let mut writer = self.writer.lock();
        let mut accounts = self.accounts.lock();
        accounts.more_in_file |= opened.more_in_file;
        if opened.more_in_file {
            // Rules were made before: what the file has of them may be among the rows that were not read.
            accounts.table.values().for_each(|account| account.read.store(false, Ordering::Release));
        }
        for ((consumer, period), spent) in opened.rows {
            match accounts.table.entry((consumer, period)) {
                // A rule was made before the file was installed: what it has taken since comes on top.
                Entry::Occupied(account) => account.get().count_in(Some(spent)),
                Entry::Vacant(place) => {
                    let account = Account::new(&place.key().0, period, spent, true);
                    place.insert(Arc::new(account));
                }
            }
        }
        // It is the first command: there is a place.
        let _ = opened.writer.commands.try_send(Command::Begin);
        *writer = Some(opened.writer);
    }

    /// What is spent of a consumer's budget. What was forgotten here is read from the file again, beside the caller.
    pub(super) fn account(&self, consumer: &str, period: Period) -> Arc<Account> {
        let mut accounts = self.accounts.lock();
        if accounts.table.len() >= self.most {
            // Consumers made from claims come without end: what no rule holds and is written may go.
            let before = accounts.table.len();
            accounts.table.retain(|_, account| {
                let unwritten = account.changed.load(Ordering::Acquire) || !account.read.load(Ordering::Acquire);
                Arc::strong_count(account) > 1 || unwritten
            });
            accounts.more_in_file |= accounts.table.len() < before;
        }
        let is_whole = !accounts.more_in_file;
        match accounts.table.entry((consumer.to_owned(), period)) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(place) => {
                let account = Arc::new(Account::new(consumer, period, Spent::default(), is_whole));
                place.insert(account.clone());
                drop(accounts);
                if !is_whole && let Some(writer) = &*self.writer.lock() {
                    let _ = writer.commands.try_send(Command::Read(account.clone()));
                }
                account
            }
        }
    }

    /// Writes what is left to be written, for a bounded time.
    pub(super) fn close(&self) {
        let Some(Writer { path, commands, ended }) = self.writer.lock().take() else { return };
        drop(commands);
        if ended.recv_timeout(LAST_BATCH) == Err(RecvTimeoutError::Timeout) {
            tracing::error!(event = "budgets_not_written", file = %path.display(), "the last batch was not written in time");
        }
    }
}
