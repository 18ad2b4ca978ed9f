//! One budget: what is spent of it in the day or month that is. It is counted in memory; the file is told of changes and
//! says what was spent before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use spillway_config::schema::Period;
use tokio::sync::Notify;

use super::calendar::window;

/// Longest wait of a request for what its caller had spent.
const READ_WAIT: Duration = Duration::from_secs(1);

/// What is spent of one budget.
pub(in crate::limits) struct Account {
    pub(super) consumer: String,
    pub(super) period: Period,
    pub(super) spent: Mutex<Spent>,
    pub(super) changed: AtomicBool,
    /// Whether what the file has of it is counted in; nothing of it is written before.
    pub(super) read: AtomicBool,
    when_read: Notify,
}

/// What is spent in one of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spent {
    /// Which day or month, counted from 1970.
    pub(super) window: u64,
    pub(super) tokens: u64,
    pub(super) nanos: u64,
}

/// Tokens and billionths of a dollar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::limits) struct Amount {
    pub(in crate::limits) tokens: u64,
    pub(in crate::limits) nanos: u64,
}

impl Account {
    pub(super) fn new(consumer: &str, period: Period, spent: Spent, read: bool) -> Self {
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
    pub(super) fn count_in(&self, before: Option<Spent>) {
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
    pub(in crate::limits) async fn known(&self) {
        let read = self.when_read.notified();
        if !self.read.load(Ordering::Acquire) {
            let _ = tokio::time::timeout(READ_WAIT, read).await;
        }
    }

    /// Takes an amount if all of it fits into `most`. `None` in `most` is no bound.
    pub(in crate::limits) fn take(&self, amount: Amount, most: (Option<u64>, Option<u64>), now: u64) -> bool {
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

    /// The window that is taken from at `now`; a later one than that of the clock where that was set back.
    pub(in crate::limits) fn window(&self, now: u64) -> u64 {
        window(self.period, now).0.max(self.spent.lock().window)
    }

    /// Corrects what was taken in a window to what was used.
    pub(in crate::limits) fn settle(&self, taken: Amount, used: Amount, taken_in: u64) {
        let mut spent = self.spent.lock();
        let of_old_window = spent.window != taken_in;
        // What was taken before midnight is gone with its window; what was used after it is the new window's.
        let taken = if of_old_window { Amount::default() } else { taken };
        spent.tokens = spent.tokens.saturating_sub(taken.tokens).saturating_add(used.tokens);
        spent.nanos = spent.nanos.saturating_sub(taken.nanos).saturating_add(used.nanos);
        self.changed.store(true, Ordering::Release);
    }

    /// What is spent in the window of `now`.
    pub(in crate::limits) fn spent(&self, now: u64) -> Amount {
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
