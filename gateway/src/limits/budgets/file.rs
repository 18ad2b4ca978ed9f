//! SQLite file of budgets. One thread reads accounts on demand and adds what was spent in batches. Two processes may do so at
//! a time, of which one hands over to the other: a batch adds to what is there, and each process reads what the other one has
//! added. The module owns the connection; inputs are accounts and commands.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use spillway_config::schema::Period;

use super::account::{Added, WindowSpend};
use super::calendar::{DAY, window};
use super::{Account, Accounts, BudgetKey, FileCommand};
use crate::clock::unix_now;
use crate::sqlite_file;

/// Interval of batches, and so the most that a crash loses: half a second.
const WRITE_EVERY: Duration = Duration::from_millis(500);
/// Days and months that are kept in the file after their end: two months of each, so that a clock that jumped loses
/// nothing.
const KEPT: (u64, u64) = (62, 2);

/// Open file, used by one thread at a time.
pub(super) struct File {
    file: Connection,
    /// SQLite's number of the content, which changes when another process writes (`PRAGMA data_version`).
    seen: i64,
}

fn name(period: Period) -> &'static str {
    if period == Period::Day { "day" } else { "month" }
}

impl File {
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let file = Connection::open(path)?;
        file.busy_timeout(Duration::from_secs(1))?;
        file.pragma_update(None, "journal_mode", "WAL")?;
        file.pragma_update(None, "synchronous", "NORMAL")?;
        file.execute_batch(
            "CREATE TABLE IF NOT EXISTS budgets (
                consumer TEXT NOT NULL, period TEXT NOT NULL, window INTEGER NOT NULL,
                tokens INTEGER NOT NULL, nanos INTEGER NOT NULL, PRIMARY KEY (consumer, period)) WITHOUT ROWID",
        )?;
        // Before anything is read: what another process writes from now on is read again.
        let seen = data_version(&file)?;
        Ok(Self { file, seen })
    }

    /// Validates that a file holds budgets and may be written, without changing anything.
    pub(super) fn judge(path: &Path) -> rusqlite::Result<()> {
        let file = sqlite_file::open_unchanged(path)?;
        let there = "SELECT count(*) FROM sqlite_schema WHERE name = 'budgets'";
        if file.query_row(there, [], |row| row.get::<_, i64>(0))? > 0 {
            file.prepare("SELECT consumer, period, window, tokens, nanos FROM budgets")?;
        }
        Ok(())
    }

    /// Reads at most `most` accounts, the bound of those in memory; true if there are more.
    pub(super) fn read_some(&self, most: usize) -> rusqlite::Result<(Vec<(BudgetKey, WindowSpend)>, bool)> {
        let mut rows = self.file.prepare("SELECT consumer, period, window, tokens, nanos FROM budgets")?;
        let mut rows = rows.query([])?;
        let mut read = Vec::new();
        while let Some(row) = rows.next()? {
            if read.len() == most {
                return Ok((read, true));
            }
            read.push(spend_of(row)?);
        }
        Ok((read, false))
    }

    fn read(&self, account: &Account) -> rusqlite::Result<()> {
        let text = "SELECT window, tokens, nanos FROM budgets WHERE consumer = ?1 AND period = ?2";
        let mut row = self.file.prepare(text)?;
        let spent = row.query_row(params![account.consumer, name(account.period)], |row| {
            Ok(WindowSpend { window: count(row, 0)?, tokens: count(row, 1)?, nanos: count(row, 2)? })
        });
        account.count_in(spent.optional()?);
        Ok(())
    }

    /// Waits for [`FileCommand::Begin`], then reads accounts on demand and writes those that have changed, until the
    /// sender of commands is dropped. A last batch follows. Without `Begin` the file is left as it is.
    pub(super) fn keep(mut self, accounts: &Mutex<Accounts>, failures: &Counter, commands: &Receiver<FileCommand>) {
        let Ok(FileCommand::Begin) = commands.recv() else { return };
        let mut failing = false;
        let mut report = |done: rusqlite::Result<()>| match done {
            Ok(()) => failing = false,
            Err(e) => {
                failures.inc();
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(event = "budgets_not_written", reason = %e, "they are counted on in memory");
                }
            }
        };
        let mut next = Instant::now();
        let mut tidied = None;
        let mut waiting: Option<SyncSender<bool>> = None;
        loop {
            let is_last = match commands.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(FileCommand::Read(account)) => {
                    if !account.read.load(Ordering::Acquire)
                        && let Err(e) = self.read(&account)
                    {
                        // The next batch tries again.
                        report(Err(e));
                    }
                    if Instant::now() < next {
                        continue;
                    }
                    false
                }
                Ok(FileCommand::Exchange(done)) => {
                    waiting = Some(done);
                    false
                }
                Ok(FileCommand::Begin) | Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            let today = unix_now() / DAY;
            let done = self.batch(accounts, tidied != Some(today));
            if done.is_ok() {
                tidied = Some(today);
            }
            if let Some(waiting) = waiting.take() {
                // Whoever waited may have gone.
                let _ = waiting.try_send(done.is_ok());
            }
            report(done);
            if is_last {
                return;
            }
            next = Instant::now() + WRITE_EVERY;
        }
    }

    /// Reads the accounts that wait for it, adds what was spent of those that have changed, and reads what another process has
    /// spent meanwhile.
    fn batch(&mut self, accounts: &Mutex<Accounts>, forget_old: bool) -> rusqlite::Result<()> {
        let unread = |account: &&Arc<Account>| !account.read.load(Ordering::Acquire);
        let waiting: Vec<_> = accounts.lock().table.values().filter(unread).cloned().collect();
        for account in waiting {
            self.read(&account)?;
        }
        let has_changed = |account: &&Arc<Account>| {
            account.read.load(Ordering::Acquire) && account.changed.swap(false, Ordering::AcqRel)
        };
        let changed: Vec<_> = accounts.lock().table.values().filter(has_changed).cloned().collect();
        let added: Vec<_> = changed.iter().map(|account| account.take_unwritten()).collect();
        match self.add(&changed, &added) {
            Ok(after) => {
                for (account, spent) in changed.iter().zip(after) {
                    account.count_in(Some(spent));
                }
            }
            Err(e) => {
                for (account, (window, added)) in changed.iter().zip(added) {
                    account.give_back(window, added);
                }
                return Err(e);
            }
        }
        if forget_old {
            let now = unix_now();
            let oldest = |period, kept| i64::try_from(window(period, now).0.saturating_sub(kept)).unwrap_or(0);
            self.file.execute(
                "DELETE FROM budgets WHERE (period = 'day' AND window < ?1) OR (period = 'month' AND window < ?2)",
                params![oldest(Period::Day, KEPT.0), oldest(Period::Month, KEPT.1)],
            )?;
        }
        self.follow(accounts)
    }

    /// Reads the accounts in memory again where another process has written the file.
    fn follow(&mut self, accounts: &Mutex<Accounts>) -> rusqlite::Result<()> {
        let version = data_version(&self.file)?;
        if version == self.seen {
            return Ok(());
        }
        // The other process may have made accounts that this one has not seen.
        accounts.lock().more_in_file = true;
        let mut rows = self.file.prepare("SELECT consumer, period, window, tokens, nanos FROM budgets")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let (key, spent) = spend_of(row)?;
            let known = accounts.lock().table.get(&key).cloned();
            if let Some(account) = known {
                account.count_in(Some(spent));
            }
        }
        self.seen = version;
        Ok(())
    }

    /// Adds amounts to accounts; returns what each of them has spent then.
    fn add(&mut self, changed: &[Arc<Account>], added: &[(u64, Added)]) -> rusqlite::Result<Vec<WindowSpend>> {
        if changed.is_empty() {
            return Ok(Vec::new());
        }
        let batch = self.file.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut after = Vec::with_capacity(changed.len());
        {
            // The first one that enters a day or month begins it; an amount of one that is over is not counted.
            let mut row = batch.prepare(
                "INSERT INTO budgets VALUES (?1, ?2, ?3, max(?4, 0), max(?5, 0))
                 ON CONFLICT (consumer, period) DO UPDATE SET
                    window = max(window, excluded.window),
                    tokens = CASE WHEN window < excluded.window THEN excluded.tokens
                        WHEN window > excluded.window THEN tokens
                        ELSE CAST(min(max(tokens + ?4, 0), 9223372036854775807) AS INTEGER) END,
                    nanos = CASE WHEN window < excluded.window THEN excluded.nanos
                        WHEN window > excluded.window THEN nanos
                        ELSE CAST(min(max(nanos + ?5, 0), 9223372036854775807) AS INTEGER) END
                 RETURNING window, tokens, nanos",
            )?;
            for (account, (window, added)) in changed.iter().zip(added) {
                let window = i64::try_from(*window).unwrap_or(i64::MAX);
                let values = params![account.consumer, name(account.period), window, added.tokens, added.nanos];
                let spent = row.query_row(values, |row| {
                    Ok(WindowSpend { window: count(row, 0)?, tokens: count(row, 1)?, nanos: count(row, 2)? })
                })?;
                after.push(spent);
            }
        }
        batch.commit()?;
        Ok(after)
    }
}

/// Account of a row and what is spent of it.
fn spend_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<(BudgetKey, WindowSpend)> {
    let period = if row.get::<_, String>(1)? == "day" { Period::Day } else { Period::Month };
    let spent = WindowSpend { window: count(row, 2)?, tokens: count(row, 3)?, nanos: count(row, 4)? };
    Ok(((row.get(0)?, period), spent))
}

/// Number of a file's content for one connection: another one after another connection has written.
fn data_version(file: &Connection) -> rusqlite::Result<i64> {
    file.pragma_query_value(None, "data_version", |row| row.get(0))
}

fn count(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(at).map(|n| u64::try_from(n).unwrap_or(0))
}
