//! Part of a rollout that the requests of its route share: one number that they read, and inboxes in which they leave what they saw.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Notify;

use super::answers::AnswerReading;
use super::observation::Observation;
use crate::clock::now_millis;

/// Inboxes of a rollout, each with a lock of its own: about as many as threads that serve requests.
const SHARDS: usize = 8;
/// Most observations of an inbox, 72 bytes each. The controller empties them five times a second and when one is half full, so
/// that only one that is held up loses any.
const MOST: usize = 2048;

/// Part of a route's targets among which a request is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Split {
    /// The stable targets alone; nothing is observed.
    Stable,
    /// The stable targets alone, before the first step: the requests fix caps of means and edges of distances.
    Waiting,
    /// Candidate with this share of the requests, above 0 and below 1, and the stable targets.
    Both(f64),
    /// The candidate; the stable targets stand in where it is not available.
    Switched,
    /// The candidate alone; nothing is observed.
    Candidate,
    /// The stable targets alone; copies of this share of the requests go to the candidate, above 0 and at most 1, and pairs of
    /// answers are observed.
    Shadow(f64),
}

/// Split of a moment, with the number of the weight that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Present {
    /// Split.
    pub split: Split,
    /// Number of the weight, as in the record (its lower 32 bits): observations of one number belong together.
    pub epoch: u32,
}

/// Codes of the splits that are no share, beside 0 to 1.
const STABLE: f32 = -1.0;
const WAITING: f32 = 0.0;
const SWITCHED: f32 = 1.0;
const CANDIDATE: f32 = 2.0;
/// Code of a shadow of no request; its share is added.
const SHADOW: f32 = 3.0;

impl Present {
    fn bits(self) -> u64 {
        #[allow(clippy::cast_possible_truncation, reason = "seven digits of a share are enough")]
        let code = match self.split {
            Split::Stable => STABLE,
            Split::Waiting => WAITING,
            // The bounds belong to the other splits.
            Split::Both(share) => (share as f32).clamp(f32::MIN_POSITIVE, 1.0 - f32::EPSILON),
            Split::Switched => SWITCHED,
            Split::Candidate => CANDIDATE,
            // Half a millionth is what seven digits have left of a share.
            Split::Shadow(share) => SHADOW + (share as f32).clamp(5e-7, 1.0),
        };
        u64::from(self.epoch) << 32 | u64::from(code.to_bits())
    }

    fn of(bits: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = bits.to_be_bytes();
        let code = f32::from_bits(u32::from_be_bytes([e, f, g, h]));
        let split = if code < WAITING {
            Split::Stable
        } else if code == WAITING {
            Split::Waiting
        } else if code < SWITCHED {
            Split::Both(f64::from(code))
        } else if code < CANDIDATE {
            Split::Switched
        } else if code <= SHADOW {
            Split::Candidate
        } else {
            Split::Shadow(f64::from(code - SHADOW))
        };
        Self { split, epoch: u32::from_be_bytes([a, b, c, d]) }
    }
}

/// Rollout as the requests of its route see it.
#[derive(Debug)]
pub struct LiveRollout {
    /// Name of the candidate's target.
    pub candidate: Arc<str>,
    /// True if a metric needs the costs of answers.
    pub needs_costs: bool,
    /// Reading of answers, where a metric needs it.
    pub reading: Option<AnswerReading>,
    present: AtomicU64,
    /// Time since which the weight is as it is.
    since: AtomicU64,
    inboxes: Box<[Mutex<Vec<Observation>>]>,
    lost: Counter,
    wake: Arc<Notify>,
}

impl LiveRollout {
    /// Rollout with this split. `lost` counts observations that found no room, `wake` wakes the controller.
    pub fn new(
        candidate: &str,
        needs_costs: bool,
        reading: Option<AnswerReading>,
        present: Present,
        lost: Counter,
        wake: Arc<Notify>,
    ) -> Self {
        Self {
            candidate: candidate.into(),
            needs_costs,
            reading,
            present: AtomicU64::new(present.bits()),
            since: AtomicU64::new(now_millis()),
            inboxes: (0..SHARDS).map(|_| Mutex::default()).collect(),
            lost,
            wake,
        }
    }

    /// Split of this moment: one atomic read.
    pub fn present(&self) -> Present {
        Present::of(self.present.load(Ordering::Acquire))
    }

    /// Time since which the weight is as it is, as [`now_millis`] reads it.
    pub fn since(&self) -> u64 {
        self.since.load(Ordering::Acquire)
    }

    /// Sets the split. The controller alone calls it.
    pub(super) fn set(&self, present: Present) {
        if self.present().epoch != present.epoch {
            self.since.store(now_millis(), Ordering::Release);
        }
        self.present.store(present.bits(), Ordering::Release);
    }

    /// Leaves an observation for the controller. Never waits for more than another request's push.
    pub fn observe(&self, observation: Observation) {
        let Some(inbox) = self.inboxes.get(own_place() % SHARDS) else { return };
        let mut inbox = inbox.lock();
        if inbox.len() >= MOST {
            self.lost.inc();
            return;
        }
        inbox.push(observation);
        let is_half_full = inbox.len() == MOST / 2;
        drop(inbox);
        if is_half_full {
            self.wake.notify_one();
        }
    }

    /// Takes all observations so far.
    pub fn drain(&self, mut each: impl FnMut(Observation)) {
        for inbox in &self.inboxes {
            // Taken out under the lock, read behind it.
            let taken = std::mem::take(&mut *inbox.lock());
            taken.into_iter().for_each(&mut each);
        }
    }
}

/// Number of this thread, in the order in which threads first observed something.
fn own_place() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<Option<usize>> = const { Cell::new(None) };
    }
    OWN.get().unwrap_or_else(|| {
        let place = NEXT.fetch_add(1, Ordering::Relaxed);
        OWN.set(Some(place));
        place
    })
}

#[cfg(test)]
mod tests {
    use spillway_statistics::Version;

    use super::*;

    fn live() -> LiveRollout {
        let present = Present { split: Split::Stable, epoch: 0 };
        LiveRollout::new("v2", false, None, present, Counter::default(), Arc::default())
    }

    #[test]
    fn a_split_is_read_as_it_was_set() {
        let live = live();
        let splits = [
            Split::Stable,
            Split::Waiting,
            Split::Both(0.25),
            Split::Switched,
            Split::Candidate,
            Split::Shadow(0.25),
            Split::Shadow(1.0),
        ];
        for (n, split) in splits.into_iter().enumerate() {
            let present = Present { split, epoch: u32::MAX - u32::try_from(n).unwrap() };
            live.set(present);
            assert_eq!(live.present(), present);
        }
        for share in [1e-9, 0.999_999_999_9] {
            live.set(Present { split: Split::Both(share), epoch: 1 });
            assert!(matches!(live.present().split, Split::Both(read) if read > 0.0 && read < 1.0));
            live.set(Present { split: Split::Shadow(share), epoch: 1 });
            assert!(matches!(live.present().split, Split::Shadow(read) if read > 0.0 && read <= 1.0));
        }
    }

    #[test]
    fn observations_are_all_there_and_no_more_than_the_bound() {
        let live = live();
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4u64)
                .map(|thread| {
                    let live = &live;
                    scope.spawn(move || {
                        for n in 0..1000 {
                            live.observe(Observation::new(Version::Stable, 1, thread * 1000 + n));
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let mut seen = std::collections::BTreeSet::new();
            live.drain(|observation| assert!(seen.insert(observation.unit)));
            seen
        });
        assert_eq!(all.len() + usize::try_from(live.lost.get()).unwrap(), 4000);
        for n in 0..2 * u64::try_from(MOST).unwrap() {
            live.observe(Observation::new(Version::Candidate, 1, n));
        }
        let mut kept = 0;
        live.drain(|_| kept += 1);
        assert_eq!(kept, MOST);
        assert!(live.lost.get() >= u64::try_from(MOST).unwrap());
    }
}
