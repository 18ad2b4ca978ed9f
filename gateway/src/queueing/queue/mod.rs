//! The queue of a route or of one of its targets: a [`Line`] behind a lock, and the waking of its waiters.
//!
//! Nobody polls. The release of a slot calls the next waiter ([`super::Room`]), which then tries to acquire a slot on its
//! own task. No call is lost: a waiter that is called and dropped passes the call on. A waiter that finds no slot, because
//! another route was faster, keeps its position, and the release of that slot calls again. A waiter that is dropped leaves
//! the line at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::line::{Line, LineEntry, LineRules, NoEntry, Party};
use super::room::{Room, Waiters};
use crate::telemetry::{QueueEnd, QueueMetrics, SpillReason};

/// Queue of a route, or of a target where requests stay with theirs; outlives snapshots.
pub struct Queue {
    state: Mutex<QueueState>,
    /// Waiters, readable without the lock.
    depth: AtomicUsize,
    metrics: Arc<QueueMetrics>,
}

struct QueueState {
    line: Line,
    /// Waiters by the number of their entry in the line.
    waiters: HashMap<u64, WaiterState>,
    /// Rooms of the backends that the waiters wait for.
    rooms: Vec<Arc<Room>>,
}

struct WaiterState {
    status: WaiterStatus,
    wake: Arc<Notify>,
}

/// Status of a waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaiterStatus {
    Waiting,
    Called,
    Displaced,
}

/// Result of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A slot may be free: try to acquire it.
    Called,
    /// Waiters with a better claim are first, or the turn would be too late.
    Displaced,
}

/// Reason for which a request does not wait, or waits no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotHeld {
    /// The queue is full.
    Full,
    /// The turn of the request would be too late.
    TooLate,
    /// The time in the queue is over.
    TimeOut,
}

impl NotHeld {
    /// Reason of the spill or refusal that follows.
    pub fn reason(self) -> SpillReason {
        match self {
            Self::Full => SpillReason::QueueFull,
            Self::TooLate => SpillReason::QueueTooLong,
            Self::TimeOut => SpillReason::QueueTimeout,
        }
    }
}

impl Queue {
    /// An empty queue.
    pub fn new(max_depth: usize, max_wait: Duration, metrics: Arc<QueueMetrics>) -> Self {
        Self {
            state: Mutex::new(QueueState {
                line: Line::new(LineRules { max_depth, max_wait }),
                waiters: HashMap::new(),
                rooms: Vec::new(),
            }),
            depth: AtomicUsize::new(0),
            metrics,
        }
    }

    /// Adopts the limits of a new snapshot, and listens for slots in its rooms.
    pub fn adopt(self: &Arc<Self>, max_depth: usize, max_wait: Duration, rooms: Vec<Arc<Room>>) {
        for room in &rooms {
            let queue = Arc::downgrade(self);
            room.serve(queue);
        }
        let mut state = self.state.lock();
        state.line.adopt(LineRules { max_depth, max_wait });
        state.rooms = rooms;
    }

    /// True without waiters.
    pub fn is_empty(&self) -> bool {
        self.depth.load(Ordering::Relaxed) == 0
    }

    /// Enters the line, for a wait that ends at `until` at the latest.
    pub fn enter(self: &Arc<Self>, party: Party, priority: i32, until: Instant) -> Result<Waiter, NotHeld> {
        let mut moved_on = Vec::new();
        let now = Instant::now();
        let mut state = self.state.lock();
        let entered = state.line.enter(now, party, priority, until, &mut moved_on);
        for lost in moved_on {
            state.notify(lost, WaiterStatus::Displaced);
        }
        let entry = match entered {
            Ok(entry) => entry,
            Err(no) => {
                let (no, outcome) = match no {
                    NoEntry::Full => (NotHeld::Full, QueueEnd::Full),
                    NoEntry::TooLate => (NotHeld::TooLate, QueueEnd::MovedOn),
                };
                drop(state);
                self.metrics.left(outcome, Duration::ZERO);
                return Err(no);
            }
        };
        let wake = Arc::new(Notify::new());
        state.waiters.insert(entry.id(), WaiterState { status: WaiterStatus::Waiting, wake: wake.clone() });
        self.show(&state);
        Ok(Waiter { queue: self.clone(), entry, wake, since: now, until, outcome: QueueEnd::Abandoned })
    }

    /// Counts a request that was refused because too many wait for its backends.
    pub fn turned_away(&self) -> NotHeld {
        self.metrics.left(QueueEnd::Full, Duration::ZERO);
        NotHeld::Full
    }

    /// Wakes the next waiter: a slot may be free. False if nobody waits.
    pub fn wake_next(&self) -> bool {
        let mut state = self.state.lock();
        let Some(entry) = state.line.call(Instant::now()) else { return false };
        state.notify(entry.id(), WaiterStatus::Called);
        true
    }

    /// Time until a slot will be free for a newcomer, estimated by the recent rate.
    pub fn drained_in(&self) -> Option<Duration> {
        self.state.lock().line.drained_in(Instant::now())
    }

    fn show(&self, state: &QueueState) {
        let depth = state.line.depth();
        let before = self.depth.swap(depth, Ordering::Relaxed);
        let signed = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        // Queues of one route share a gauge.
        self.metrics.depth.inc_by(signed(depth) - signed(before));
    }

    /// Passes on a call that no waiter here can use.
    fn pass_on(&self, rooms: &[Arc<Room>]) {
        if !self.wake_next() {
            for room in rooms {
                room.freed();
            }
        }
    }
}

impl Waiters for Queue {
    fn wake_next(&self) -> bool {
        Self::wake_next(self)
    }
}

impl QueueState {
    fn notify(&mut self, id: u64, status: WaiterStatus) {
        if let Some(waiter) = self.waiters.get_mut(&id) {
            waiter.status = status;
            waiter.wake.notify_one();
        }
    }
}

/// A request in the queue. Dropping it leaves the line.
pub struct Waiter {
    queue: Arc<Queue>,
    entry: LineEntry,
    wake: Arc<Notify>,
    since: Instant,
    until: Instant,
    outcome: QueueEnd,
}

impl Waiter {
    /// Time at which the wait ends.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Time since the entry.
    pub fn waited(&self) -> Duration {
        self.since.elapsed()
    }

    /// Waits until called or moved on, for ever if need be. The future can be dropped and created again.
    pub async fn turn(&self) -> Turn {
        loop {
            if let Some(turn) = self.turn_now() {
                return turn;
            }
            self.wake.notified().await;
        }
    }

    /// Turn that has been assigned already; does not wait.
    pub fn turn_now(&self) -> Option<Turn> {
        let state = self.queue.state.lock();
        match state.waiters.get(&self.entry.id()).map_or(WaiterStatus::Displaced, |waiter| waiter.status) {
            WaiterStatus::Waiting => None,
            WaiterStatus::Called => Some(Turn::Called),
            WaiterStatus::Displaced => Some(Turn::Displaced),
        }
    }

    /// Waits again, at the same position, after a call that found no free slot.
    pub fn wait_again(&self) {
        let mut state = self.queue.state.lock();
        let Some(waiter) = state.waiters.get_mut(&self.entry.id()) else { return };
        if waiter.status == WaiterStatus::Called {
            waiter.status = WaiterStatus::Waiting;
            state.line.back(Instant::now(), self.entry.clone());
        }
    }

    /// Leaves with a slot at an endpoint.
    pub fn admitted(mut self) {
        self.outcome = QueueEnd::Admitted;
    }

    /// Leaves for a built-in model, or because no target is available.
    pub fn moved_on(mut self) {
        self.outcome = QueueEnd::MovedOn;
    }

    /// Leaves without a slot.
    pub fn given_up(mut self, why: NotHeld) {
        self.outcome = match why {
            NotHeld::Full => QueueEnd::Full,
            NotHeld::TooLate => QueueEnd::MovedOn,
            NotHeld::TimeOut => QueueEnd::Timeout,
        };
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.queue.state.lock();
        let status = state.waiters.remove(&self.entry.id()).map_or(WaiterStatus::Displaced, |waiter| waiter.status);
        let admitted = self.outcome == QueueEnd::Admitted;
        let mut unused = None;
        match status {
            WaiterStatus::Called if admitted => state.line.admitted(now),
            WaiterStatus::Called => {
                state.line.gone_called(now);
                unused = Some(state.rooms.clone());
            }
            WaiterStatus::Waiting => {
                state.line.leave(now, &self.entry);
            }
            WaiterStatus::Displaced => {}
        }
        self.queue.show(&state);
        drop(state);
        if let Some(rooms) = unused {
            self.queue.pass_on(&rooms);
        }
        self.queue.metrics.left(self.outcome, self.since.elapsed());
    }
}

#[cfg(test)]
mod tests;
