//! Part of a rollout that the requests of its route share: one number that they read, and inboxes in which they leave what they saw.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use sha2::{Digest, Sha256};
use siphasher::sip::SipHasher13;
use spillway_statistics::Version;
use tokio::sync::Notify;

use super::answers::{AnswerReading, Judged};
use super::observation::Observation;
use crate::clock::now_millis;

/// Inboxes of a rollout, each with a lock of its own: about as many as threads that serve requests.
const SHARDS: usize = 8;
/// Most observations of an inbox, 88 bytes each. The controller empties them five times a second and when one is half full, so
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

/// Cells of consumers by their hash.
const CELLS: usize = 256;
/// Consumers from which on one is a unit of the judge: a quarter of them is as many units as a version needs at least.
const MANY: f64 = 32.0;
/// Requests after which the consumers are counted again.
const COUNT_EVERY: u32 = 256;

/// Consumers whose requests the rollout has seen: how many there are, weighed by their requests.
#[derive(Debug)]
struct Consumers {
    cells: Box<[AtomicU32]>,
    total: AtomicU32,
    are_many: AtomicBool,
}

impl Consumers {
    fn new() -> Self {
        let cells = (0..CELLS).map(|_| AtomicU32::new(0)).collect();
        Self { cells, total: AtomicU32::new(0), are_many: AtomicBool::new(false) }
    }

    /// Counts a request; true while there are many consumers, of which none makes most of the requests.
    fn count(&self, consumer: u64) -> bool {
        let cell = usize::try_from(consumer % CELLS as u64).unwrap_or(0);
        if let Some(cell) = self.cells.get(cell) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
        if self.total.fetch_add(1, Ordering::Relaxed) % COUNT_EVERY == COUNT_EVERY - 1 {
            self.weigh();
        }
        self.are_many.load(Ordering::Relaxed)
    }

    /// Effective number: as many consumers with equal requests would have the same sum of squares.
    #[cold]
    fn weigh(&self) {
        let counts = || self.cells.iter().map(|cell| f64::from(cell.load(Ordering::Relaxed)));
        let (sum, squares) = (counts().sum::<f64>(), counts().map(|count| count * count).sum::<f64>());
        self.are_many.store(sum * sum >= MANY * squares, Ordering::Relaxed);
    }
}

/// Caller of a request, as far as it is known and sticky.
#[derive(Debug, Clone, Copy, Default)]
pub struct UnitOf<'k> {
    /// Number of the consumer; `None` for a caller that is not known.
    pub consumer: Option<u128>,
    /// Value of the sticky header, if the route and the request have one.
    pub key: Option<&'k [u8]>,
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
    /// Keys of the hashes that draw versions and number units: of the rollout's identity, which callers do not know, so that
    /// nobody can compute a header that leads to a version. The same at all gateways and after restarts.
    keys: (u64, u64),
    consumers: Consumers,
    present: AtomicU64,
    /// Time since which the weight is as it is.
    since: AtomicU64,
    inboxes: Box<[Mutex<Vec<Observation>>]>,
    lost: Counter,
    wake: Arc<Notify>,
}

impl LiveRollout {
    /// Rollout of this identity with this split. `lost` counts observations that found no room, `wake` wakes the controller.
    pub fn new(
        candidate: &str,
        identity: &str,
        needs_costs: bool,
        reading: Option<AnswerReading>,
        present: Present,
        lost: Counter,
        wake: Arc<Notify>,
    ) -> Self {
        let digest = Sha256::digest(identity.as_bytes());
        let [a, b, c, d, e, f, g, h, rest @ ..] = <[u8; 32]>::from(digest);
        let [i, j, k, l, m, n, o, p, ..] = rest;
        let keys = (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p]));
        Self {
            candidate: candidate.into(),
            needs_costs,
            reading,
            keys,
            consumers: Consumers::new(),
            present: AtomicU64::new(present.bits()),
            since: AtomicU64::new(now_millis()),
            inboxes: (0..SHARDS).map(|_| Mutex::default()).collect(),
            lost,
            wake,
        }
    }

    fn hash(&self, of: &impl Hash) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.keys.0, self.keys.1);
        of.hash(&mut hasher);
        hasher.finish()
    }

    /// Lot of a caller, from 0 to 1: it is the candidate's while it is below the candidate's share. Of a sticky caller always the
    /// same, of its consumer and its key together; of another one random.
    pub fn lot(&self, of: UnitOf<'_>) -> f64 {
        let random = of.key.map_or_else(rand::random, |key| self.hash(&("lot", of.consumer, key)));
        crate::balancing::unit(random)
    }

    /// Number of the unit that a request belongs to, for the judge. Requests of one unit may resemble each other: those of a
    /// consumer where there are many consumers, else those of a consumer with one key. Without either each is a unit.
    pub fn unit(&self, of: UnitOf<'_>) -> u64 {
        let consumer = of.consumer.map(|consumer| self.hash(&("consumer", consumer)));
        let are_many = consumer.is_some_and(|consumer| self.consumers.count(consumer));
        match (consumer.filter(|_| are_many), of.key) {
            (Some(consumer), _) => consumer,
            (None, Some(key)) => self.hash(&("unit", of.consumer, key)),
            (None, None) => rand::random(),
        }
    }

    /// Version that a target of this name belongs to.
    pub fn version_of(&self, target: &str) -> Version {
        if *self.candidate == *target { Version::Candidate } else { Version::Stable }
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

impl Judged for LiveRollout {
    fn reading(&self) -> Option<&AnswerReading> {
        self.reading.as_ref()
    }

    fn observe(&self, observation: Observation) {
        Self::observe(self, observation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> LiveRollout {
        of_identity("one")
    }

    fn of_identity(identity: &str) -> LiveRollout {
        let present = Present { split: Split::Stable, epoch: 0 };
        LiveRollout::new("v2", identity, false, None, present, Counter::default(), Arc::default())
    }

    #[test]
    fn a_lot_is_of_the_consumer_and_the_key_together_and_of_the_rollout() {
        let (live, other) = (live(), of_identity("two"));
        let of = |consumer, key: &'static str| UnitOf { consumer, key: Some(key.as_bytes()) };
        let lots = [
            live.lot(of(Some(1), "a")),
            live.lot(of(Some(2), "a")),
            live.lot(of(Some(1), "b")),
            live.lot(of(None, "a")),
            other.lot(of(Some(1), "a")),
        ];
        for (n, lot) in lots.iter().enumerate() {
            assert!((0.0..1.0).contains(lot) && lots[..n].iter().all(|before| before != lot), "{lots:?}");
        }
        assert_eq!(lots[0], live.lot(of(Some(1), "a")), "sticky");
        let free = UnitOf { consumer: Some(1), key: None };
        assert_ne!(live.lot(free), live.lot(free));
    }

    #[test]
    fn a_consumer_is_one_unit_where_there_are_many_and_its_keys_are_where_there_are_few() {
        let units = |consumers: u128, loud: usize| {
            let live = live();
            let mut units = std::collections::HashMap::<u128, std::collections::HashSet<u64>>::new();
            for n in 0..20_000_u32 {
                let consumer = u128::from(n) % consumers;
                let key = n.to_string();
                let of = UnitOf { consumer: Some(consumer), key: Some(key.as_bytes()) };
                for _ in 0..if consumer == 0 { loud } else { 1 } {
                    let unit = live.unit(of);
                    if n >= 10_000 {
                        units.entry(consumer).or_default().insert(unit);
                    }
                }
            }
            units.values().map(std::collections::HashSet::len).min().unwrap()
        };
        assert_eq!(units(100, 1), 1, "a caller with many keys is one");
        assert_eq!(units(4, 1), 2_500);
        assert_eq!(units(100, 500), 100, "one that makes nearly all requests leaves too few units");
        let live = live();
        let key = UnitOf { consumer: None, key: Some(b"x") };
        assert_eq!(live.unit(key), live.unit(key));
        assert_ne!(live.unit(UnitOf::default()), live.unit(UnitOf::default()));
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
