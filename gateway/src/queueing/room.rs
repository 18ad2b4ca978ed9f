//! Where places come free: one for each backend, outliving snapshots. Whoever gives a place back tells the queues that
//! wait for it, in turn, so that no route of several takes all. Those who wait are counted here, over all queues.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use super::queue::Queue;
use crate::balancing::{RoomListener, Slot};

/// The queues that wait for a backend.
#[derive(Default)]
pub struct Room {
    queues: RwLock<Vec<Weak<Queue>>>,
    turn: AtomicUsize,
    pending: AtomicU32,
}

impl Room {
    /// From now on `queue` is told of free places.
    pub(super) fn serve(&self, queue: &Arc<Queue>) {
        let mut queues = self.queues.write();
        queues.retain(|known| known.strong_count() > 0);
        if !queues.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(queue))) {
            queues.push(Arc::downgrade(queue));
        }
    }

    /// Requests that wait for the backend.
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Counts one more who waits, of at most so many, in one step.
    pub fn wait(self: &Arc<Self>, most: u32) -> Option<Pending> {
        let more = |pending: u32| if pending < most { pending.checked_add(1) } else { None };
        self.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Pending(self.clone()))
    }

    /// There is, or may be, room for one more request. Who is called and finds more of it calls the next one.
    pub fn freed(&self) {
        let queues = self.queues.read();
        if queues.is_empty() {
            return;
        }
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for step in 0..queues.len() {
            let place = first.wrapping_add(step) % queues.len();
            let queue = queues.get(place).and_then(Weak::upgrade);
            if queue.is_some_and(|queue| queue.call()) {
                return;
            }
        }
    }
}

impl RoomListener for Room {
    fn may_have_room(&self) {
        self.freed();
    }

    /// One of several queues may have other backends, and would keep the call to itself.
    fn lost(&self) {
        for queue in self.queues.read().iter().filter_map(Weak::upgrade) {
            queue.call();
        }
    }
}

/// One who waits for a backend; counted until it is dropped.
pub struct Pending(Arc<Room>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A slot at an endpoint that, when it is dropped, is given back first and then offered to those who wait.
pub struct Taken {
    slot: Option<Slot>,
    room: Arc<Room>,
}

impl Taken {
    /// Slot at an endpoint whose backend has this room.
    pub fn new(slot: Slot, room: &Arc<Room>) -> Self {
        Self { slot: Some(slot), room: room.clone() }
    }
}

impl Taken {
    /// Requests in flight at the endpoint when this one had been added.
    pub fn in_flight_at_start(&self) -> u32 {
        self.slot.as_ref().map_or(0, Slot::in_flight_at_start)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.slot = None;
        self.room.freed();
    }
}
