//! Account of one budget: what is spent of it in the current day or month. The amount is counted in memory; what this process
//! has added to it since the last batch is added to the file, which knows what was spent before and what others add.

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
    spent: Mutex<Spent>,
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

/// Amount that is spent, and the part of it that the file does not have yet.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    all: WindowSpend,
    unwritten: Added,
}

/// Part of an amount that this process has added and not written; negative where it has corrected a reservation downwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Added {
    pub(super) tokens: i64,
    pub(super) nanos: i64,
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
            spent: Mutex::new(Spent { all: spent, unwritten: Added::default() }),
            changed: AtomicBool::new(false),
            read: AtomicBool::new(read),
            when_read: Notify::new(),
        }
    }

    /// Takes over the amount that the file has, if any, and adds what this process has not written yet.
    pub(super) fn count_in(&self, file: Option<WindowSpend>) {
        if let Some(file) = file {
            self.spent.lock().follow(file);
        }
        self.read.store(true, Ordering::Release);
        self.when_read.notify_waiters();
    }

    /// Takes what is not written yet, to write it: the window, and the amount added in it. [`Self::give_back`] undoes that.
    pub(super) fn take_unwritten(&self) -> (u64, Added) {
        let mut spent = self.spent.lock();
        (spent.all.window, std::mem::take(&mut spent.unwritten))
    }

    /// Takes back an amount that could not be written.
    pub(super) fn give_back(&self, window: u64, added: Added) {
        let mut spent = self.spent.lock();
        if spent.all.window == window {
            spent.unwritten = spent.unwritten.plus(added);
        }
        self.changed.store(true, Ordering::Release);
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
        let tokens = spent.all.tokens.saturating_add(amount.tokens);
        let nanos = spent.all.nanos.saturating_add(amount.nanos);
        // A spent budget grants nothing more, not even a request that costs nothing.
        let full = |spent: u64, after: u64, most: Option<u64>| most.is_some_and(|most| spent >= most || after > most);
        if full(spent.all.tokens, tokens, most.0) || full(spent.all.nanos, nanos, most.1) {
            return false;
        }
        (spent.all.tokens, spent.all.nanos) = (tokens, nanos);
        spent.unwritten = spent.unwritten.plus(Added::between(Amount::default(), amount));
        self.changed.store(true, Ordering::Release);
        true
    }

    /// Window that is reserved of at `now`; a later one than that of the clock if the clock was set back.
    pub(in crate::limits) fn window(&self, now: u64) -> u64 {
        window(self.period, now).0.max(self.spent.lock().all.window)
    }

    /// Corrects an amount that was reserved in a window to what was used.
    pub(in crate::limits) fn settle(&self, taken: Amount, used: Amount, taken_in: u64) {
        let mut spent = self.spent.lock();
        let of_old_window = spent.all.window != taken_in;
        // A reservation from before midnight is gone with its window; the use counts in the new one.
        let taken = if of_old_window { Amount::default() } else { taken };
        spent.all.tokens = spent.all.tokens.saturating_sub(taken.tokens).saturating_add(used.tokens);
        spent.all.nanos = spent.all.nanos.saturating_sub(taken.nanos).saturating_add(used.nanos);
        spent.unwritten = spent.unwritten.plus(Added::between(taken, used));
        self.changed.store(true, Ordering::Release);
    }

    /// Amount spent in the window of `now`.
    pub(in crate::limits) fn spent(&self, now: u64) -> Amount {
        let mut spent = self.spent.lock();
        spent.enter(window(self.period, now).0);
        Amount { tokens: spent.all.tokens, nanos: spent.all.nanos }
    }
}

impl Spent {
    fn enter(&mut self, window: u64) {
        // A clock that is set back does not open a spent budget again.
        if window > self.all.window {
            *self = Self { all: WindowSpend { window, tokens: 0, nanos: 0 }, unwritten: Added::default() };
        }
    }

    /// Takes over what the file has. What this process has spent of an earlier window than the file's is over with it.
    fn follow(&mut self, file: WindowSpend) {
        if file.window > self.all.window {
            *self = Self { all: file, unwritten: Added::default() };
        } else if file.window == self.all.window {
            self.all.tokens = file.tokens.saturating_add_signed(self.unwritten.tokens);
            self.all.nanos = file.nanos.saturating_add_signed(self.unwritten.nanos);
        }
    }
}

impl Added {
    /// Change from a reservation to the use.
    fn between(taken: Amount, used: Amount) -> Self {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Self {
            tokens: signed(used.tokens).saturating_sub(signed(taken.tokens)),
            nanos: signed(used.nanos).saturating_sub(signed(taken.nanos)),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self { tokens: self.tokens.saturating_add(other.tokens), nanos: self.nanos.saturating_add(other.nanos) }
    }
}
