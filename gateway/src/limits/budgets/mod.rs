//! Budgets of a day or a month. What is spent is counted in memory and written behind by a thread of its own, a batch at
//! a time, to an SQLite file; a request never waits for that. What was forgotten here is read again, for which a request
//! waits a bounded time. What a crash loses is what the last batch had not yet.
//! It owns that file and the counts; its inputs are amounts, its output whether they fit.

mod file;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ahash::RandomState;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use spillway_config::schema::Period;
use tokio::sync::Notify;

use file::File;

/// Longest wait of a request for what its caller had spent.
const READ_WAIT: Duration = Duration::from_secs(1);
/// Accounts that wait to be read; what finds no place is read with the next batch.
const READS: usize = 1024;
/// Longest wait for the last batch at the end of the process.
const LAST_BATCH: Duration = Duration::from_secs(2);
/// Seconds of a day.
const DAY: u64 = 86_400;

/// The file of budgets cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("state.budgets.sqlite: {}: {reason} (the folder must be writable, and one gateway at a time uses a file)", path.display())]
pub struct BudgetError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// What is spent of one budget.
pub(super) struct Account {
    consumer: String,
    period: Period,
    spent: Mutex<Spent>,
    changed: AtomicBool,
    /// Whether what the file has of it is counted in; nothing of it is written before.
    read: AtomicBool,
    when_read: Notify,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Spent {
    /// Which day or month, counted from 1970.
    window: u64,
    tokens: u64,
    nanos: u64,
}

/// Tokens and billionths of a dollar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) tokens: u64,
    pub(super) nanos: u64,
}

/// The day or month of a time, counted from 1970, and when the next one begins.
pub(super) fn window(period: Period, now: u64) -> (u64, u64) {
    let day = now / DAY;
    match period {
        Period::Day => (day, (day + 1) * DAY),
        Period::Month => {
            let (year, month) = civil(day);
            let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
            (year * 12 + month - 1, first_day(next.0, next.1) * DAY)
        }
    }
}

/// Year and month of a day since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
fn civil(day: u64) -> (u64, u64) {
    let z = day + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month)
}

/// Days from 1970 to the first of a month (the same, days_from_civil).
fn first_day(year: u64, month: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5;
    let (era, of_era) = (year / 400, year % 400);
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Seconds from 1970 to now.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl Account {
    fn new(consumer: &str, period: Period, spent: Spent, read: bool) -> Self {
        Self {
            consumer: consumer.to_owned(),
            period,
            spent: Mutex::new(spent),
            changed: AtomicBool::new(false),
            read: AtomicBool::new(read),
            when_read: Notify::new(),
        }
    }

    /// Counts in what the file has of it, if anything, beside what was taken since.
    fn count_in(&self, before: Option<Spent>) {
        if let Some(before) = before {
            let mut spent = self.spent.lock();
            if before.window > spent.window {
                *spent = before;
            } else if before.window == spent.window {
                spent.tokens = spent.tokens.saturating_add(before.tokens);
                spent.nanos = spent.nanos.saturating_add(before.nanos);
            }
        }
        self.read.store(true, Ordering::Release);
        self.when_read.notify_waiters();
    }

    /// Waits until what was spent before is counted in; not longer than a request may wait for a file. After that it is
    /// counted in when it comes.
    pub(super) async fn known(&self) {
        let read = self.when_read.notified();
        if !self.read.load(Ordering::Acquire) {
            let _ = tokio::time::timeout(READ_WAIT, read).await;
        }
    }

    /// Takes an amount if all of it fits into `most`. `None` in `most` is no bound.
    pub(super) fn take(&self, amount: Amount, most: (Option<u64>, Option<u64>), now: u64) -> bool {
        let mut spent = self.spent.lock();
        spent.enter(window(self.period, now).0);
        let tokens = spent.tokens.saturating_add(amount.tokens);
        let nanos = spent.nanos.saturating_add(amount.nanos);
        // A budget that is spent takes nothing more, not even what costs nothing.
        let full = |spent: u64, after: u64, most: Option<u64>| most.is_some_and(|most| spent >= most || after > most);
        if full(spent.tokens, tokens, most.0) || full(spent.nanos, nanos, most.1) {
            return false;
        }
        (spent.tokens, spent.nanos) = (tokens, nanos);
        self.changed.store(true, Ordering::Release);
        true
    }

    /// Corrects what was taken in the window of `taken_at` to what was used.
    pub(super) fn settle(&self, taken: Amount, used: Amount, taken_at: u64) {
        let mut spent = self.spent.lock();
        let of_old_window = spent.window != window(self.period, taken_at).0;
        // What was taken before midnight is gone with its window; what was used after it is the new window's.
        let taken = if of_old_window { Amount::default() } else { taken };
        spent.tokens = spent.tokens.saturating_sub(taken.tokens).saturating_add(used.tokens);
        spent.nanos = spent.nanos.saturating_sub(taken.nanos).saturating_add(used.nanos);
        self.changed.store(true, Ordering::Release);
    }

    /// What is spent in the window of `now`.
    pub(super) fn spent(&self, now: u64) -> Amount {
        let mut spent = self.spent.lock();
        spent.enter(window(self.period, now).0);
        Amount { tokens: spent.tokens, nanos: spent.nanos }
    }
}

impl Spent {
    fn enter(&mut self, window: u64) {
        // A clock that is set back does not open a spent budget again.
        if window > self.window {
            *self = Self { window, tokens: 0, nanos: 0 };
        }
    }
}

type Key = (String, Period);

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

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_795_521_600; // 2026-11-24T12:00:00Z

    fn tokens(tokens: u64) -> Amount {
        Amount { tokens, nanos: 0 }
    }

    fn install(budgets: &Budgets, path: &Path) {
        budgets.install(budgets.open(path).unwrap().unwrap());
    }

    #[test]
    fn days_and_months_begin_at_midnight_utc() {
        assert_eq!(window(Period::Day, NOON).1, NOON + 12 * 3600);
        assert_eq!(window(Period::Month, NOON).1, 1_796_083_200, "2026-12-01");
        let december = window(Period::Month, 1_796_083_200);
        assert_eq!(december.0, window(Period::Month, NOON).0 + 1);
        assert_eq!(december.1, 1_798_761_600, "2027-01-01");
        assert_eq!(window(Period::Month, 1_709_164_800).1, 1_709_251_200, "2024-02-29 ends February");
    }

    #[test]
    fn a_budget_is_taken_whole_or_not_and_begins_anew() {
        let budgets = Budgets::new(8, Counter::default());
        let account = budgets.account("a", Period::Day);
        let most = (Some(100), None);
        assert!(account.take(tokens(60), most, NOON));
        assert!(!account.take(tokens(60), most, NOON));
        account.settle(tokens(60), tokens(10), NOON);
        assert!(account.take(tokens(90), most, NOON));
        assert!(!account.take(tokens(0), most, NOON), "it is spent");
        let tomorrow = NOON + DAY;
        assert!(account.take(tokens(100), most, tomorrow));
        account.settle(tokens(90), tokens(5), NOON);
        assert_eq!(account.spent(tomorrow).tokens, 105, "what yesterday's request used after midnight is today's");
        assert!(!account.take(tokens(1), most, NOON), "a clock that goes back opens nothing");
    }

    #[test]
    fn what_is_spent_survives_a_restart() {
        let now = unix_now();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/budgets.db");
        let budgets = Budgets::new(8, Counter::default());
        install(&budgets, &path);
        let amount = Amount { tokens: 7, nanos: 11 };
        assert!(budgets.account("a", Period::Month).take(amount, (None, None), now));
        assert!(budgets.account("a", Period::Day).take(tokens(1), (None, None), now));
        budgets.close();
        let again = Budgets::new(8, Counter::default());
        let held = again.account("a", Period::Month);
        install(&again, &path);
        assert_eq!(held.spent(now), amount);
        assert_eq!(again.account("a", Period::Day).spent(now), tokens(1));
        assert!(again.open(&folder.path().join("other.db")).is_err());
    }

    #[tokio::test]
    async fn what_is_forgotten_in_memory_is_read_again() {
        let now = unix_now();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budgets.db");
        let budgets = Budgets::new(4, Counter::default());
        install(&budgets, &path);
        assert!(budgets.account("a", Period::Month).take(tokens(7), (None, None), now));
        // Once it is written and nobody holds it, it goes where others need its place.
        while budgets.accounts.lock().table.contains_key(&("a".to_owned(), Period::Month)) {
            for n in 0..8 {
                budgets.account(&n.to_string(), Period::Day);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let again = budgets.account("a", Period::Month);
        assert!(again.take(tokens(2), (None, None), now), "it is counted before it is known too");
        again.known().await;
        assert_eq!(again.spent(now), tokens(9));
        drop(again);
        budgets.close();
        // More than fit into memory are read when they are asked for.
        let small = Budgets::new(0, Counter::default());
        install(&small, &path);
        let account = small.account("a", Period::Month);
        account.known().await;
        assert_eq!(account.spent(now), tokens(9));
        small.close();
        // A configuration's accounts are made before the file is installed.
        let small = Budgets::new(0, Counter::default());
        let opened = small.open(&path).unwrap().unwrap();
        let account = small.account("a", Period::Month);
        small.install(opened);
        assert!(account.take(tokens(1), (None, None), now));
        account.known().await;
        assert_eq!(account.spent(now), tokens(10));
    }

    #[test]
    fn what_changed_last_is_written_however_many_wait_to_be_read_and_whoever_ends_it() {
        let now = unix_now();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budgets.db");
        for n in 0..4 {
            let budgets = Budgets::new(0, Counter::default());
            install(&budgets, &path);
            // Every account has to be read first, and more of them are asked for than the thread can know of at once.
            let accounts: Vec<_> =
                (0..2 * READS).map(|n| budgets.account(&format!("consumer {n}"), Period::Month)).collect();
            for account in &accounts {
                assert!(account.take(tokens(1), (None, None), now));
            }
            if n % 2 == 0 {
                budgets.close();
            } else {
                let ended = budgets.writer.lock().take().map(|writer| writer.ended).unwrap();
                assert!(ended.recv().is_err(), "the thread ends with its owner");
            }
        }
        let (rows, _) = File::open(&path).unwrap().read_some(usize::MAX).unwrap();
        assert_eq!(rows.len(), 2 * READS);
        assert!(rows.iter().all(|(_, spent)| spent.tokens == 4), "{:?}", rows.iter().find(|(_, s)| s.tokens != 4));
    }

    #[test]
    fn an_opened_file_that_is_not_installed_changes_nothing() {
        let now = unix_now();
        let folder = tempfile::tempdir().unwrap();
        let budgets = Budgets::new(8, Counter::default());
        let rejected = budgets.open(&folder.path().join("rejected.db")).unwrap().unwrap();
        assert!(budgets.account("a", Period::Day).take(tokens(1), (None, None), now));
        drop(rejected.writer.commands);
        assert!(rejected.writer.ended.recv().is_err(), "its thread ends");
        let (rows, _) = File::open(&folder.path().join("rejected.db")).unwrap().read_some(8).unwrap();
        assert!(rows.is_empty(), "{rows:?}");
        install(&budgets, &folder.path().join("budgets.db"));
        assert!(budgets.open(&folder.path().join("budgets.db")).unwrap().is_none());
    }

    #[test]
    fn a_file_that_cannot_be_used_is_told_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budgets.db");
        std::fs::write(&path, "this is no database, but a text that is long enough to be one").unwrap();
        let error = Budgets::new(8, Counter::default()).open(&path).err().unwrap().to_string();
        assert!(error.contains("budgets.db"), "{error}");
    }
}
