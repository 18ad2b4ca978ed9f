//! Budgets of a day or a month. Amounts are counted in memory; a thread writes them to an SQLite file in batches, and
//! no request waits for that. An account that was dropped from memory is read again, for which a request waits a
//! bounded time. A crash loses what was spent since the last batch. The module owns the file and the counts; inputs are
//! amounts, the output is whether they fit.

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
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use ahash::RandomState;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use spillway_config::schema::Period;

pub(super) use account::{Account, Amount};
pub(super) use calendar::{until_next_window, window};

use account::WindowSpend;
use file::File;

use crate::sqlite_file;

/// Most accounts that wait to be read at once; further ones are read with the next batch.
const READS: usize = 1024;
/// Longest wait for the last batch at the end of the process, seconds: longer than SQLite's busy timeout of one.
const LAST_BATCH: Duration = Duration::from_secs(2);
/// Pause of an exchange while the queue of commands is full: the thread empties it in milliseconds.
const EXCHANGE_PAUSE: Duration = Duration::from_millis(5);

/// Reason why the file of budgets cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("state.budgets.sqlite: {}: {reason} (the folder must be writable, and one gateway at a time uses a file)", path.display())]
pub struct BudgetError {
    /// The file.
    pub path: PathBuf,
    /// Fault of the file.
    pub reason: String,
}

type BudgetKey = (String, Period);

/// Accounts in memory.
#[derive(Default)]
struct Accounts {
    table: HashMap<BudgetKey, Arc<Account>, RandomState>,
    /// True if the file may have accounts that are not in memory.
    more_in_file: bool,
}

/// All budgets and their file.
pub(super) struct Budgets {
    accounts: Arc<Mutex<Accounts>>,
    most: usize,
    pub(super) failures: Counter,
    writer: Mutex<Option<BudgetWriter>>,
}

/// Thread that reads and writes the file. The thread ends when `commands` is dropped, after a last batch.
struct BudgetWriter {
    path: PathBuf,
    commands: SyncSender<FileCommand>,
    /// Disconnected once the thread has ended.
    ended: Receiver<()>,
}

enum FileCommand {
    /// Starts reading and writing: the snapshot is adopted.
    Begin,
    /// Reads an account.
    Read(Arc<Account>),
    /// Writes what was spent and reads what another process has spent, then says whether that was done.
    Exchange(SyncSender<bool>),
}

/// Open file of budgets that is not in use yet.
pub(super) struct OpenedBudgets {
    writer: BudgetWriter,
    rows: Vec<(BudgetKey, WindowSpend)>,
    more_in_file: bool,
}

impl Budgets {
    pub(super) fn new(most: usize, failures: Counter) -> Self {
        Self { accounts: Arc::default(), most, failures, writer: Mutex::new(None) }
    }

    /// Opens the file and reads what was spent; `None` if it is open. The file is not in use before it is installed.
    pub(super) fn open(&self, path: &Path) -> Result<Option<OpenedBudgets>, BudgetError> {
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
        Ok(Some(OpenedBudgets { writer: BudgetWriter { path: path.to_owned(), commands, ended }, rows, more_in_file }))
    }

    /// Validates a file as [`Self::open`] does, without making or changing anything.
    pub(super) fn judge(path: &Path) -> Result<(), BudgetError> {
        let failed = |e: &dyn std::fmt::Display| BudgetError { path: path.to_owned(), reason: e.to_string() };
        if path.exists() {
            return File::judge(path).map_err(|e| failed(&e));
        }
        sqlite_file::judge_absent(path).map_err(|reason| failed(&reason))
    }

    /// Uses a file from now on.
    pub(super) fn install(&self, opened: OpenedBudgets) {
        let mut writer = self.writer.lock();
        let mut accounts = self.accounts.lock();
        accounts.more_in_file |= opened.more_in_file;
        if opened.more_in_file {
            // Accounts of rules made before may be among the rows that were not read.
            accounts.table.values().for_each(|account| account.read.store(false, Ordering::Release));
        }
        for ((consumer, period), spent) in opened.rows {
            match accounts.table.entry((consumer, period)) {
                // The rule was made before the file was installed: what it has reserved since then comes on top.
                Entry::Occupied(account) => account.get().count_in(Some(spent)),
                Entry::Vacant(vacant) => {
                    let account = Account::new(&vacant.key().0, period, spent, true);
                    vacant.insert(Arc::new(account));
                }
            }
        }
        // The queue has room for a first command.
        let _ = opened.writer.commands.try_send(FileCommand::Begin);
        *writer = Some(opened.writer);
    }

    /// Finds the account of a consumer's budget. One that is not in memory is read from the file, while the caller goes
    /// on.
    pub(super) fn account(&self, consumer: &str, period: Period) -> Arc<Account> {
        let mut accounts = self.accounts.lock();
        if accounts.table.len() >= self.most {
            // Claims make consumers without bound: an account that is written and that no rule holds is dropped.
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
            Entry::Vacant(vacant) => {
                let account = Arc::new(Account::new(consumer, period, WindowSpend::default(), is_whole));
                vacant.insert(account.clone());
                drop(accounts);
                if !is_whole && let Some(writer) = &*self.writer.lock() {
                    let _ = writer.commands.try_send(FileCommand::Read(account.clone()));
                }
                account
            }
        }
    }

    /// Writes what was spent, and reads what another process has spent, for a bounded time. False where that failed.
    pub(super) fn exchange(&self) -> bool {
        let Some(commands) = self.writer.lock().as_ref().map(|writer| writer.commands.clone()) else { return true };
        let (done, wait) = sync_channel(1);
        // Commands that wait are read within the interval of a batch.
        let until = Instant::now() + LAST_BATCH;
        let mut command = FileCommand::Exchange(done);
        loop {
            match commands.try_send(command) {
                Ok(()) => return wait.recv_timeout(until.saturating_duration_since(Instant::now())) == Ok(true),
                Err(TrySendError::Full(returned)) if Instant::now() < until => {
                    command = returned;
                    std::thread::sleep(EXCHANGE_PAUSE);
                }
                Err(_) => return false,
            }
        }
    }

    /// Writes the last batch, for a bounded time.
    pub(super) fn close(&self) {
        let Some(BudgetWriter { path, commands, ended }) = self.writer.lock().take() else { return };
        drop(commands);
        if ended.recv_timeout(LAST_BATCH) == Err(RecvTimeoutError::Timeout) {
            tracing::error!(event = "budgets_not_written", file = %path.display(), "the last batch was not written in time");
        }
    }
}
