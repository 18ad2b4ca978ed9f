//! Announcements of free slots: one [`Room`] for each backend, which outlives snapshots. The room holds no slots;
//! endpoints count them. The release of a slot wakes a waiter in one of the queues of the backend. The queues take
//! turns, so that no route gets all slots. The room also counts the waiters of all queues.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use crate::balancing::{RoomListener, Slot};

/// A queue of waiters.
pub(super) trait Waiters: Send + Sync {
    /// Wakes the next waiter. False if there is none.
    fn wake_next(&self) -> bool;
}

/// Queues that wait for slots of a backend.
#[derive(Default)]
pub struct Room {
    queues: RwLock<Vec<Weak<dyn Waiters>>>,
    /// Number of announcements: decides which queue is first.
    turn: AtomicUsize,
    /// Waiters of all queues.
    pending: AtomicU32,
}

impl Room {
    /// Announces free slots to `queue` from now on.
    pub(super) fn serve(&self, queue: Weak<dyn Waiters>) {
        let mut queues = self.queues.write();
        queues.retain(|known| known.strong_count() > 0);
        if !queues.iter().any(|known| std::ptr::addr_eq(known.as_ptr(), queue.as_ptr())) {
            queues.push(queue);
        }
    }

    /// Requests that wait for the backend.
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Counts one more waiter if fewer than `most` wait, in one atomic step. Does not wait.
    pub fn wait(self: &Arc<Self>, most: u32) -> Option<Pending> {
        let more = |pending: u32| if pending < most { pending.checked_add(1) } else { None };
        self.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Pending(self.clone()))
    }

    /// Announces to one waiter that a slot is, or may be, free. A waiter that leaves further slots free announces them.
    pub fn freed(&self) {
        let queues = self.queues.read();
        if queues.is_empty() {
            return;
        }
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for step in 0..queues.len() {
            let at = first.wrapping_add(step) % queues.len();
            let queue = queues.get(at).and_then(Weak::upgrade);
            if queue.is_some_and(|queue| queue.wake_next()) {
                return;
            }
        }
    }
}

impl RoomListener for Room {
    fn may_have_room(&self) {
        self.freed();
    }

    /// Wakes a waiter of each queue, after an endpoint was lost. One call would not do: a queue that has other backends
    /// too does not pass it on.
    fn lost(&self) {
        for queue in self.queues.read().iter().filter_map(Weak::upgrade) {
            queue.wake_next();
        }
    }
}

/// Count of one waiter of a backend, until it is dropped.
pub struct Pending(Arc<Room>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A slot at an endpoint. Dropping it releases the slot, then wakes the next waiter for its backend.
pub struct WakingSlot {
    slot: Option<Slot>,
    room: Arc<Room>,
}

impl WakingSlot {
    /// Slot at an endpoint whose backend has this room.
    pub fn new(slot: Slot, room: &Arc<Room>) -> Self {
        Self { slot: Some(slot), room: room.clone() }
    }

    /// Requests in flight at the endpoint when this one had been added.
    pub fn in_flight_at_start(&self) -> u32 {
        self.slot.as_ref().map_or(0, Slot::in_flight_at_start)
    }
}

impl Drop for WakingSlot {
    fn drop(&mut self) {
        self.slot = None;
        self.room.freed();
    }
}
