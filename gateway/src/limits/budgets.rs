//! Budgets of a day or a month. What is spent is counted in memory and written behind by a thread of its own, a batch at
//! a time, to an SQLite file; a request never waits for it. What a crash loses is what the last batch had not yet.
//! It owns that file and the counts; its inputs are amounts, its output whether they fit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ahash::RandomState;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use rusqlite::{Connection, params};
use spillway_config::schema::Period;

/// How often what was spent is written.
const WRITE_EVERY: Duration = Duration::from_millis(500);
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
    changed: std::sync::atomic::AtomicBool,
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
        self.changed.store(true, std::sync::atomic::Ordering::Release);
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
        self.changed.store(true, std::sync::atomic::Ordering::Release);
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

type Accounts = Mutex<HashMap<(String, Period), Arc<Account>, RandomState>>;

/// All budgets and their file.
pub(super) struct Budgets {
    accounts: Arc<Accounts>,
    most: usize,
    pub(super) failures: Counter,
    writer: Mutex<Option<Writer>>,
}

struct Writer {
    path: PathBuf,
    stop: SyncSender<SyncSender<()>>,
}

impl Budgets {
    pub(super) fn new(most: usize, failures: Counter) -> Self {
        Self { accounts: Arc::default(), most, failures, writer: Mutex::new(None) }
    }

    /// Opens the file, once for a process, and reads what was spent.
    pub(super) fn open(&self, path: &Path) -> Result<(), BudgetError> {
        let mut writer = self.writer.lock();
        if writer.as_ref().is_some_and(|writer| writer.path == path) {
            return Ok(());
        }
        let failed = |e: &dyn std::fmt::Display| BudgetError { path: path.to_owned(), reason: e.to_string() };
        if writer.is_some() {
            return Err(failed(&"the file cannot be changed while the gateway runs: restart it"));
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| failed(&e))?;
        }
        let file = open_file(path).map_err(|e| failed(&e))?;
        read_all(&file, &self.accounts).map_err(|e| failed(&e))?;
        let (stop, stopped) = sync_channel(1);
        let (accounts, failures) = (self.accounts.clone(), self.failures.clone());
        std::thread::Builder::new()
            .name("budgets".into())
            .spawn(move || write_behind(file, &accounts, &failures, &stopped))
            .map_err(|e| failed(&e))?;
        *writer = Some(Writer { path: path.to_owned(), stop });
        Ok(())
    }

    /// What is spent of a consumer's budget.
    pub(super) fn account(&self, consumer: &str, period: Period) -> Arc<Account> {
        let mut accounts = self.accounts.lock();
        if accounts.len() >= self.most {
            // Consumers made from claims come without end: what no rule holds and is written may go.
            accounts.retain(|_, account| {
                Arc::strong_count(account) > 1 || account.changed.load(std::sync::atomic::Ordering::Acquire)
            });
        }
        let new = || {
            Arc::new(Account {
                consumer: consumer.to_owned(),
                period,
                spent: Mutex::default(),
                changed: std::sync::atomic::AtomicBool::new(false),
            })
        };
        accounts.entry((consumer.to_owned(), period)).or_insert_with(new).clone()
    }

    /// Writes what is left to be written, for a bounded time.
    pub(super) fn close(&self) {
        let Some(writer) = self.writer.lock().take() else { return };
        let (done, wait) = sync_channel(1);
        if writer.stop.try_send(done).is_ok() {
            let _ = wait.recv_timeout(LAST_BATCH);
        }
    }
}

fn open_file(path: &Path) -> rusqlite::Result<Connection> {
    let file = Connection::open(path)?;
    file.busy_timeout(Duration::from_secs(1))?;
    file.pragma_update(None, "journal_mode", "WAL")?;
    file.pragma_update(None, "synchronous", "NORMAL")?;
    file.execute_batch(
        "CREATE TABLE IF NOT EXISTS budgets (
            consumer TEXT NOT NULL, period TEXT NOT NULL, window INTEGER NOT NULL,
            tokens INTEGER NOT NULL, nanos INTEGER NOT NULL, PRIMARY KEY (consumer, period)) WITHOUT ROWID",
    )?;
    Ok(file)
}

fn read_all(file: &Connection, accounts: &Accounts) -> rusqlite::Result<()> {
    let mut accounts = accounts.lock();
    let mut rows = file.prepare("SELECT consumer, period, window, tokens, nanos FROM budgets")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let period = if row.get::<_, String>(1)? == "day" { Period::Day } else { Period::Month };
        let count = |at| row.get::<_, i64>(at).map(|n| u64::try_from(n).unwrap_or(0));
        let spent = Spent { window: count(2)?, tokens: count(3)?, nanos: count(4)? };
        let consumer: String = row.get(0)?;
        match accounts.get(&(consumer.clone(), period)) {
            // A rule was made before the file was read: nothing can have been spent yet.
            Some(account) => *account.spent.lock() = spent,
            None => {
                let account = Account {
                    consumer: consumer.clone(),
                    period,
                    spent: Mutex::new(spent),
                    changed: std::sync::atomic::AtomicBool::new(false),
                };
                accounts.insert((consumer, period), Arc::new(account));
            }
        }
    }
    Ok(())
}

/// Writes what has changed until it is told to stop or its owner is gone.
fn write_behind(mut file: Connection, accounts: &Accounts, failures: &Counter, stopped: &Receiver<SyncSender<()>>) {
    let mut failing = false;
    loop {
        let stop = stopped.recv_timeout(WRITE_EVERY);
        let changed: Vec<Arc<Account>> = accounts
            .lock()
            .values()
            .filter(|account| account.changed.swap(false, std::sync::atomic::Ordering::AcqRel))
            .cloned()
            .collect();
        match write(&mut file, &changed) {
            Ok(()) => failing = false,
            Err(e) => {
                failures.inc();
                for account in &changed {
                    account.changed.store(true, std::sync::atomic::Ordering::Release);
                }
                if !failing {
                    tracing::error!(event = "budgets_not_written", reason = %e, "they are counted on in memory");
                }
                failing = true;
            }
        }
        match stop {
            Ok(done) => {
                let _ = done.send(());
                return;
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn write(file: &mut Connection, changed: &[Arc<Account>]) -> rusqlite::Result<()> {
    if changed.is_empty() {
        return Ok(());
    }
    let batch = file.transaction()?;
    {
        let mut row = batch.prepare("INSERT OR REPLACE INTO budgets VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for account in changed {
            let spent = *account.spent.lock();
            let period = if account.period == Period::Day { "day" } else { "month" };
            let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            row.execute(params![
                account.consumer,
                period,
                count(spent.window),
                count(spent.tokens),
                count(spent.nanos)
            ])?;
        }
    }
    batch.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_795_521_600; // 2026-11-24T12:00:00Z

    fn tokens(tokens: u64) -> Amount {
        Amount { tokens, nanos: 0 }
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/budgets.db");
        let budgets = Budgets::new(8, Counter::default());
        budgets.open(&path).unwrap();
        let amount = Amount { tokens: 7, nanos: 11 };
        assert!(budgets.account("a", Period::Month).take(amount, (None, None), NOON));
        assert!(budgets.account("a", Period::Day).take(tokens(1), (None, None), NOON));
        budgets.close();
        let again = Budgets::new(8, Counter::default());
        let held = again.account("a", Period::Month);
        again.open(&path).unwrap();
        assert_eq!(held.spent(NOON), amount);
        assert_eq!(again.account("a", Period::Day).spent(NOON), tokens(1));
        assert!(again.open(&folder.path().join("other.db")).is_err());
    }

    #[test]
    fn a_file_that_cannot_be_used_is_told_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budgets.db");
        std::fs::write(&path, "this is no database, but a text that is long enough to be one").unwrap();
        let error = Budgets::new(8, Counter::default()).open(&path).unwrap_err().to_string();
        assert!(error.contains("budgets.db"), "{error}");
    }
}
