//! Mark of the requests that are lines of batches, by which the path of a request treats them as guests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::record::BatchOrigin;

/// Question whether a caller waits for what a line uses.
type Crowded = Box<dyn Fn() -> bool + Send + Sync>;

/// Mark of one line on its way.
pub struct LineMark {
    /// Name of the consumer that it belongs to.
    pub owner: Arc<str>,
    /// Where it comes from.
    pub origin: Arc<BatchOrigin>,
    /// Part of the free slots that lines may have together.
    pub share: f64,
    found_no_room: AtomicBool,
    crowded: Mutex<Option<Crowded>>,
}

impl std::fmt::Debug for LineMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LineMark(of {})", self.owner)
    }
}

impl LineMark {
    /// Mark of a line of this consumer.
    pub fn new(owner: Arc<str>, origin: Arc<BatchOrigin>, share: f64) -> Self {
        Self { owner, origin, share, found_no_room: AtomicBool::new(false), crowded: Mutex::default() }
    }

    /// Notes that no target had room for the line.
    pub fn note_no_room(&self) {
        self.found_no_room.store(true, Ordering::Release);
    }

    /// True if no target had room for the line.
    pub fn found_no_room(&self) -> bool {
        self.found_no_room.load(Ordering::Acquire)
    }

    /// Sets the question whether a caller waits for what the line uses from now on.
    pub fn uses(&self, crowded: impl Fn() -> bool + Send + Sync + 'static) {
        *self.crowded.lock() = Some(Box::new(crowded));
    }

    /// True if a caller waits for what the line uses.
    pub fn is_crowded(&self) -> bool {
        self.crowded.lock().as_ref().is_some_and(|crowded| crowded())
    }
}
