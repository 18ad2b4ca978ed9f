//! Where requests wait for a place: a [`Line`] behind a lock, and the waking of those who stand in it.
//!
//! Nobody polls. Whoever frees a place calls the next one ([`super::Room`]); the one who is called tries to take a place
//! itself, on its own task. No call is lost: one who is called and goes away, for whatever reason, passes the call on
//! when its ticket is dropped; one who finds no place (another route was faster) stands where it stood, and the place
//! that it did not get will be freed again. A ticket that is dropped frees its place in the line at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::line::{Line, NoEntry, Party, Place, Rules};
use super::room::Room;
use crate::telemetry::{QueueEnd, QueueMetrics, SpillReason};

/// A route's queue. It outlives snapshots.
pub struct Queue {
    state: Mutex<State>,
    /// How many hold a place, readable without the lock.
    depth: AtomicUsize,
    metrics: Arc<QueueMetrics>,
}

struct State {
    line: Line,
    entries: HashMap<u64, Entry>,
    /// Where places come free for it.
    rooms: Vec<Arc<Room>>,
}

struct Entry {
    word: Word,
    wake: Arc<Notify>,
}

/// What one who waits has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Waiting,
    Called,
    MovedOn,
}

/// What a wait has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// There may be a place: try to take one.
    Called,
    /// Others have the better claim, or the turn would come too late.
    MovedOn,
}

/// Why a request does not wait, or waits no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotHeld {
    /// The queue is full.
    Full,
    /// Its turn would come too late.
    TooLate,
    /// Its time in the queue is over.
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
            state: Mutex::new(State {
                line: Line::new(Rules { max_depth, max_wait }),
                entries: HashMap::new(),
                rooms: Vec::new(),
            }),
            depth: AtomicUsize::new(0),
            metrics,
        }
    }

    /// Takes over what a snapshot says of it, and listens for places in its rooms.
    pub fn adopt(self: &Arc<Self>, max_depth: usize, max_wait: Duration, rooms: Vec<Arc<Room>>) {
        for room in &rooms {
            room.serve(self);
        }
        let mut state = self.state.lock();
        state.line.adopt(Rules { max_depth, max_wait });
        state.rooms = rooms;
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.depth.load(Ordering::Relaxed) == 0
    }

    /// A place in the line, until `until` at the latest.
    pub fn enter(self: &Arc<Self>, party: Party, priority: i32, until: Instant) -> Result<Ticket, NotHeld> {
        let mut moved_on = Vec::new();
        let now = Instant::now();
        let mut state = self.state.lock();
        let entered = state.line.enter(now, party, priority, until, &mut moved_on);
        for lost in moved_on {
            state.tell(lost, Word::MovedOn);
        }
        let place = match entered {
            Ok(place) => place,
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
        state.entries.insert(place.id(), Entry { word: Word::Waiting, wake: wake.clone() });
        self.show(&state);
        Ok(Ticket { queue: self.clone(), place, wake, since: now, until, outcome: QueueEnd::Abandoned })
    }

    /// Somebody was not let in, for want of a place among those who wait for its backend.
    pub fn turned_away(&self) -> NotHeld {
        self.metrics.left(QueueEnd::Full, Duration::ZERO);
        NotHeld::Full
    }

    /// There may be a place: the next one is told. False when nobody waits.
    pub fn call(&self) -> bool {
        let mut state = self.state.lock();
        let Some(place) = state.line.call(Instant::now()) else { return false };
        state.tell(place.id(), Word::Called);
        true
    }

    /// How long until a place will be free for a newcomer, as far as the recent rate tells.
    pub fn drained_in(&self) -> Option<Duration> {
        self.state.lock().line.drained_in(Instant::now())
    }

    fn show(&self, state: &State) {
        let depth = state.line.depth();
        let before = self.depth.swap(depth, Ordering::Relaxed);
        let signed = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        // Queues of one route share a gauge.
        self.metrics.depth.inc_by(signed(depth) - signed(before));
    }

    /// Passes a call on that nobody here can use.
    fn pass_on(&self, rooms: &[Arc<Room>]) {
        if !self.call() {
            for room in rooms {
                room.freed();
            }
        }
    }
}

impl State {
    fn tell(&mut self, id: u64, word: Word) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.word = word;
            entry.wake.notify_one();
        }
    }
}

/// A place in the line. Dropping it frees the place.
pub struct Ticket {
    queue: Arc<Queue>,
    place: Place,
    wake: Arc<Notify>,
    since: Instant,
    until: Instant,
    outcome: QueueEnd,
}

impl Ticket {
    /// When the wait ends.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// How long it has lasted.
    pub fn waited(&self) -> Duration {
        self.since.elapsed()
    }

    /// Waits until it is called or moved on; for ever if need be. Can be dropped and asked again.
    pub async fn turn(&self) -> Turn {
        loop {
            if let Some(turn) = self.told() {
                return turn;
            }
            self.wake.notified().await;
        }
    }

    /// What it has been told, without waiting.
    pub fn told(&self) -> Option<Turn> {
        match self.word() {
            Word::Waiting => None,
            Word::Called => Some(Turn::Called),
            Word::MovedOn => Some(Turn::MovedOn),
        }
    }

    fn word(&self) -> Word {
        let state = self.queue.state.lock();
        state.entries.get(&self.place.id()).map_or(Word::MovedOn, |entry| entry.word)
    }

    /// It was called and there was no place: it stands where it stood.
    pub fn back(&self) {
        let mut state = self.queue.state.lock();
        let Some(entry) = state.entries.get_mut(&self.place.id()) else { return };
        if entry.word == Word::Called {
            entry.word = Word::Waiting;
            state.line.back(Instant::now(), self.place.clone());
        }
    }

    /// It has a place at an endpoint.
    pub fn admitted(mut self) {
        self.outcome = QueueEnd::Admitted;
    }

    /// It goes where it need not wait.
    pub fn moved_on(mut self) {
        self.outcome = QueueEnd::MovedOn;
    }

    /// It waits no longer.
    pub fn given_up(mut self, why: NotHeld) {
        self.outcome = match why {
            NotHeld::Full => QueueEnd::Full,
            NotHeld::TooLate => QueueEnd::MovedOn,
            NotHeld::TimeOut => QueueEnd::Timeout,
        };
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.queue.state.lock();
        let word = state.entries.remove(&self.place.id()).map_or(Word::MovedOn, |entry| entry.word);
        let admitted = self.outcome == QueueEnd::Admitted;
        let mut unused = None;
        match word {
            Word::Called if admitted => state.line.admitted(now),
            Word::Called => {
                state.line.gone_called(now);
                unused = Some(state.rooms.clone());
            }
            Word::Waiting => {
                state.line.leave(now, &self.place);
            }
            Word::MovedOn => {}
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
