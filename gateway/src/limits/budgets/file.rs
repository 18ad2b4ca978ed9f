//! SQLite file of budgets. One thread reads accounts on demand and writes changes in batches. The module owns the
//! connection; inputs are accounts and commands.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use rusqlite::{Connection, OptionalExtension, params};
use spillway_config::schema::Period;

use super::account::WindowSpend;
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
pub(super) struct File(Connection);

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
        Ok(Self(file))
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
        let mut rows = self.0.prepare("SELECT consumer, period, window, tokens, nanos FROM budgets")?;
        let mut rows = rows.query([])?;
        let mut read = Vec::new();
        while let Some(row) = rows.next()? {
            if read.len() == most {
                return Ok((read, true));
            }
            let period = if row.get::<_, String>(1)? == "day" { Period::Day } else { Period::Month };
            read.push((
                (row.get(0)?, period),
                WindowSpend { window: count(row, 2)?, tokens: count(row, 3)?, nanos: count(row, 4)? },
            ));
        }
        Ok((read, false))
    }

    fn read(&self, account: &Account) -> rusqlite::Result<()> {
        let text = "SELECT window, tokens, nanos FROM budgets WHERE consumer = ?1 AND period = ?2";
        let mut row = self.0.prepare(text)?;
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
                Ok(FileCommand::Begin) | Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            let today = unix_now() / DAY;
            let done = self.batch(accounts, tidied != Some(today));
            if done.is_ok() {
                tidied = Some(today);
            }
            report(done);
            if is_last {
                return;
            }
            next = Instant::now() + WRITE_EVERY;
        }
    }

    /// Reads the accounts that wait for it and writes those that have changed.
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
        let written = self.write(&changed);
        if written.is_err() {
            for account in &changed {
                account.changed.store(true, Ordering::Release);
            }
        } else if forget_old {
            let now = unix_now();
            let oldest = |period, kept| i64::try_from(window(period, now).0.saturating_sub(kept)).unwrap_or(0);
            self.0.execute(
                "DELETE FROM budgets WHERE (period = 'day' AND window < ?1) OR (period = 'month' AND window < ?2)",
                params![oldest(Period::Day, KEPT.0), oldest(Period::Month, KEPT.1)],
            )?;
        }
        written
    }

    fn write(&mut self, changed: &[Arc<Account>]) -> rusqlite::Result<()> {
        if changed.is_empty() {
            return Ok(());
        }
        let batch = self.0.transaction()?;
        {
            let mut row = batch.prepare("INSERT OR REPLACE INTO budgets VALUES (?1, ?2, ?3, ?4, ?5)")?;
            for account in changed {
                let spent = *account.spent.lock();
                let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
                row.execute(params![
                    account.consumer,
                    name(account.period),
                    count(spent.window),
                    count(spent.tokens),
                    count(spent.nanos)
                ])?;
            }
        }
        batch.commit()
    }
}

fn count(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(at).map(|n| u64::try_from(n).unwrap_or(0))
}
