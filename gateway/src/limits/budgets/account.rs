//! Account of one budget: what is spent of it in the current day or month. The amount is counted in memory; changes are
//! written to the file, which knows what was spent before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use spillway_config::schema::Period;
use tokio::sync::Notify;

use super::calendar::window;

/// Longest wait of a request for its budget to be read from the file, seconds: a healthy disk answers in milliseconds.
const READ_WAIT: Duration = Duration::from_secs(1);

/// Account of one budget.
pub(in crate::limits) struct Account {
    pub(super) consumer: String,
    pub(super) period: Period,
    pub(super) spent: Mutex<WindowSpend>,
    pub(super) changed: AtomicBool,
    /// True once the amount in the file is counted in; the account is not written before.
    pub(super) read: AtomicBool,
    when_read: Notify,
}

/// Amount spent in one day or month.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct WindowSpend {
    /// Day or month, counted from 1970.
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
    pub(super) fn new(consumer: &str, period: Period, spent: WindowSpend, read: bool) -> Self {
        Self {
            consumer: consumer.to_owned(),
            period,
            spent: Mutex::new(spent),
            changed: AtomicBool::new(false),
            read: AtomicBool::new(read),
            when_read: Notify::new(),
        }
    }

    /// Adds the amount in the file, if any, to what was reserved since.
    pub(super) fn count_in(&self, before: Option<WindowSpend>) {
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

    /// Waits until the amount in the file is counted in, for a bounded time. An amount that is read later is counted in
    /// then.
    pub(in crate::limits) async fn known(&self) {
        let read = self.when_read.notified();
        if !self.read.load(Ordering::Acquire) {
            let _ = tokio::time::timeout(READ_WAIT, read).await;
        }
    }

    /// Reserves an amount if all of it fits into `most`: tokens, and billionths of a dollar. `None` is no bound.
    pub(in crate::limits) fn take(&self, amount: Amount, most: (Option<u64>, Option<u64>), now: u64) -> bool {
        let mut spent = self.spent.lock();
        spent.enter(window(self.period, now).0);
        let tokens = spent.tokens.saturating_add(amount.tokens);
        let nanos = spent.nanos.saturating_add(amount.nanos);
        // A spent budget grants nothing more, not even a request that costs nothing.
        let full = |spent: u64, after: u64, most: Option<u64>| most.is_some_and(|most| spent >= most || after > most);
        if full(spent.tokens, tokens, most.0) || full(spent.nanos, nanos, most.1) {
            return false;
        }
        (spent.tokens, spent.nanos) = (tokens, nanos);
        self.changed.store(true, Ordering::Release);
        true
    }

    /// Window that is reserved of at `now`; a later one than that of the clock if the clock was set back.
    pub(in crate::limits) fn window(&self, now: u64) -> u64 {
        window(self.period, now).0.max(self.spent.lock().window)
    }

    /// Corrects an amount that was reserved in a window to what was used.
    pub(in crate::limits) fn settle(&self, taken: Amount, used: Amount, taken_in: u64) {
        let mut spent = self.spent.lock();
        let of_old_window = spent.window != taken_in;
        // A reservation from before midnight is gone with its window; the use counts in the new one.
        let taken = if of_old_window { Amount::default() } else { taken };
        spent.tokens = spent.tokens.saturating_sub(taken.tokens).saturating_add(used.tokens);
        spent.nanos = spent.nanos.saturating_sub(taken.nanos).saturating_add(used.nanos);
        self.changed.store(true, Ordering::Release);
    }

    /// Amount spent in the window of `now`.
    pub(in crate::limits) fn spent(&self, now: u64) -> Amount {
        let mut spent = self.spent.lock();
        spent.enter(window(self.period, now).0);
        Amount { tokens: spent.tokens, nanos: spent.nanos }
    }
}

impl WindowSpend {
    fn enter(&mut self, window: u64) {
        // A clock that is set back does not open a spent budget again.
        if window > self.window {
            *self = Self { window, tokens: 0, nanos: 0 };
        }
    }
}
