//! One budget of memory for all models inside. A load takes its share before anything is read, and one that does not fit
//! has idle models make room that are loaded on demand, the one that was needed longest ago first. A share lives as long
//! as the memory it stands for: the engine's thread has it too, and a thread that hangs keeps it.
//! It never unloads what somebody uses or what is kept warm.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use spillway_engine::{Engine, Hold};

use super::LoadedModel;

/// Memory that models may take when the configuration says nothing: three quarters of what the process may.
const DEFAULT_QUARTERS: u64 = 3;

/// How long the memory of an engine that was let go is waited for. Its thread needs some moments; one that needs longer is
/// inside a driver, and nobody knows for how long.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(10);

/// There is no room for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it needs {} MiB, and of the {} MiB for all models ({LIMIT_KEY}) {} are in use",
    needed.div_ceil(1 << 20), limit >> 20, taken >> 20
)]
pub struct NoRoom {
    /// Bytes that it needs.
    pub needed: u64,
    /// Bytes that models which cannot be unloaded hold.
    pub taken: u64,
    /// Bytes for all.
    pub limit: u64,
}

/// Where the budget is set.
pub(super) const LIMIT_KEY: &str = "limits.modelMemory";

/// The budget.
pub struct ModelMemory {
    limit: u64,
    counted: Mutex<Counted>,
    /// Some was given back.
    given_back: Condvar,
    /// Held by whoever makes room, so that two do not unload more than they need.
    making_room: Mutex<()>,
    /// Those that may be unloaded; as many as are configured, and those of older snapshots that still run.
    models: Mutex<Vec<Weak<LoadedModel>>>,
}

#[derive(Default)]
struct Counted {
    taken: u64,
    /// Shares there have been.
    shares: u64,
    /// Shares that nobody wants any more, by their numbers: since when, and their bytes. Their threads give them back.
    unwanted: BTreeMap<u64, (Instant, u64)>,
}

impl Counted {
    /// Those that are given back now, and not some time.
    fn expected(&self) -> impl Iterator<Item = &(Instant, u64)> {
        self.unwanted.values().filter(|(since, _)| since.elapsed() < GIVEN_BACK_WITHIN)
    }
}

impl ModelMemory {
    /// Of so many bytes; three quarters of what the process may use when nothing is said.
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        let limit = limit.unwrap_or_else(|| of_this_process().map_or(u64::MAX, |all| all / 4 * DEFAULT_QUARTERS));
        Arc::new(Self {
            limit,
            counted: Mutex::default(),
            given_back: Condvar::new(),
            making_room: Mutex::default(),
            models: Mutex::default(),
        })
    }

    /// Bytes for all models.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that are taken.
    pub fn taken(&self) -> u64 {
        self.counted.lock().taken
    }

    /// Bytes that nobody wants any more and that threads have kept for too long: they hang.
    pub(super) fn kept_from_us(&self) -> u64 {
        let counted = self.counted.lock();
        let kept = counted.unwanted.values().filter(|(since, _)| since.elapsed() >= GIVEN_BACK_WITHIN);
        kept.map(|(_, bytes)| *bytes).sum()
    }

    /// This one may be unloaded for others.
    pub(super) fn enter(&self, model: &Arc<LoadedModel>) {
        let mut models = self.models.lock();
        models.retain(|model| model.strong_count() > 0);
        models.push(Arc::downgrade(model));
    }

    /// Takes a share, for which others may have to go, and waits for their memory: not for a runtime's own threads.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<Place, NoRoom> {
        let number = {
            let mut counted = self.counted.lock();
            counted.shares += 1;
            counted.shares
        };
        let share = Share { memory: Arc::clone(self), number, bytes: AtomicU64::new(0) };
        share.grow_to(bytes)?;
        Ok(Place(Arc::new(Wanted(Arc::new(share)))))
    }

    /// Takes `more` where it fits.
    fn try_take(&self, more: u64) -> Result<(), NoRoom> {
        let mut counted = self.counted.lock();
        match counted.taken.checked_add(more).filter(|all| *all <= self.limit) {
            Some(all) => counted.taken = all,
            None => return Err(NoRoom { needed: more, taken: counted.taken, limit: self.limit }),
        }
        Ok(())
    }

    /// Waits for what is given back now, where `more` bytes fit with that; else unloads the idle model that was needed
    /// longest ago. False when there is none, or when `more` bytes would not fit without all of them either: nobody loses a
    /// model for nothing.
    fn make_room(&self, more: u64) -> bool {
        let fits = |taken: u64, free: u64| taken.saturating_sub(free).saturating_add(more) <= self.limit;
        let (taken, expected) = {
            let mut counted = self.counted.lock();
            let expected = counted.expected().map(|(_, bytes)| *bytes).sum();
            if fits(counted.taken, expected) {
                if let Some(since) = counted.expected().map(|(since, _)| *since).min() {
                    self.given_back.wait_until(&mut counted, since + GIVEN_BACK_WITHIN);
                }
                return true;
            }
            (counted.taken, expected)
        };
        let models: Vec<_> = self.models.lock().iter().filter_map(Weak::upgrade).collect();
        let mut idle: Vec<_> = models.iter().filter_map(|model| Some((model.idle()?, model))).collect();
        let bytes: u64 = idle.iter().map(|((_, bytes), _)| *bytes).sum();
        if !fits(taken, bytes.saturating_add(expected)) {
            return false;
        }
        idle.sort_by_key(|((since, _), _)| *since);
        // One that is needed since is passed over.
        idle.into_iter().any(|(_, model)| model.make_room())
    }
}

/// What a model has of the budget. Whoever has its memory has one of its owners too.
struct Share {
    memory: Arc<ModelMemory>,
    number: u64,
    bytes: AtomicU64,
}

impl Share {
    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn settle(&self, bytes: u64) -> Result<(), NoRoom> {
        if bytes > self.bytes() {
            return self.grow_to(bytes);
        }
        self.give_back(self.bytes.swap(bytes, Ordering::Relaxed) - bytes);
        Ok(())
    }

    fn grow_to(&self, bytes: u64) -> Result<(), NoRoom> {
        let more = bytes.saturating_sub(self.bytes());
        if bytes > self.memory.limit {
            return Err(NoRoom { needed: bytes, taken: self.memory.taken(), limit: self.memory.limit });
        }
        let _turn = self.memory.making_room.lock();
        loop {
            match self.memory.try_take(more) {
                Ok(()) => break,
                Err(no) if !self.memory.make_room(more) => return Err(NoRoom { needed: bytes, ..no }),
                Err(_) => {}
            }
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        self.memory.counted.lock().taken -= bytes;
        self.memory.given_back.notify_all();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.counted.lock().unwanted.remove(&self.number);
        self.give_back(self.bytes());
    }
}

/// A share that somebody wants; clones are the same one. When the last of them goes, the share is expected back.
#[derive(Clone)]
pub(super) struct Place(Arc<Wanted>);

struct Wanted(Arc<Share>);

impl Drop for Wanted {
    fn drop(&mut self) {
        let Share { memory, number, .. } = &*self.0;
        memory.counted.lock().unwanted.insert(*number, (Instant::now(), self.0.bytes()));
    }
}

impl Place {
    /// Bytes of the share.
    pub(super) fn bytes(&self) -> u64 {
        self.0.0.bytes()
    }

    /// Sets it to what the model takes: more only where that fits.
    pub(super) fn settle(&self, bytes: u64) -> Result<(), NoRoom> {
        self.0.0.settle(bytes)
    }

    /// What a thread has as long as it has the memory.
    pub(super) fn hold(&self) -> Hold {
        Box::new(Arc::clone(&self.0.0))
    }

    /// Whether no thread has memory for it.
    pub(super) fn is_free(&self) -> bool {
        Arc::strong_count(&self.0.0) == 1
    }
}

/// A loaded engine with its place; clones are the same one.
#[derive(Clone)]
pub struct Held(Arc<(Engine, Place)>);

impl Held {
    pub(super) fn new(engine: Engine, place: Place) -> Self {
        Self(Arc::new((engine, place)))
    }

    /// Bytes of its share.
    pub(super) fn bytes(&self) -> u64 {
        self.0.1.bytes()
    }

    /// Whether nobody has it but the model itself.
    pub(super) fn is_idle(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Deref for Held {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.0.0
    }
}

/// Bytes that this process may use: those of the machine, or of its control group where these are fewer. `None` where
/// the system does not say.
fn of_this_process() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    // Version 2 names the group after two colons; within a container it is the root of what can be seen.
    let group = read("/proc/self/cgroup")
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::").map(str::to_owned)))
        .unwrap_or_default();
    let limits = [format!("/sys/fs/cgroup{group}/memory.max"), "/sys/fs/cgroup/memory.max".to_owned()]
        .into_iter()
        .filter_map(|path| read(&path)?.trim().parse::<u64>().ok());
    machine.into_iter().chain(limits).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_taken_whole_or_not_and_given_back_when_dropped() {
        let memory = ModelMemory::new(Some(100));
        let first = memory.take(60).unwrap();
        assert_eq!(memory.take(41).err(), Some(NoRoom { needed: 41, taken: 60, limit: 100 }));
        first.settle(50).unwrap();
        let second = memory.take(41).unwrap();
        assert_eq!(memory.taken(), 91);
        assert!(first.settle(60).is_err() && first.settle(59).is_ok());
        assert!(memory.take(u64::MAX).is_err());
        drop((first, second));
        assert_eq!(memory.taken(), 0);
    }

    #[test]
    fn a_share_lives_as_long_as_the_memory_it_stands_for() {
        let memory = ModelMemory::new(Some(100));
        let place = memory.take(60).unwrap();
        let (hold, another) = (place.hold(), place.clone());
        assert!(!place.is_free());
        drop((place, another));
        assert_eq!(memory.taken(), 60, "a thread has the memory still");
        // Whoever needs the room waits for it.
        let waits = std::thread::spawn({
            let memory = memory.clone();
            move || memory.take(70).map(|place| place.bytes())
        });
        std::thread::sleep(Duration::from_millis(50));
        drop(hold);
        assert_eq!(waits.join().unwrap(), Ok(70));
        assert_eq!(memory.taken(), 0);

        // Nobody waits where that does not help, or for one that is kept.
        let kept = memory.take(50).unwrap();
        let hold = kept.hold();
        let lost = memory.take(30).unwrap();
        let lost = (lost.hold(), drop(lost)).0;
        let began = Instant::now();
        assert_eq!(memory.take(60).err(), Some(NoRoom { needed: 60, taken: 80, limit: 100 }));
        assert!(began.elapsed() < GIVEN_BACK_WITHIN);
        // And not for ever.
        assert_eq!(memory.take(40).err(), Some(NoRoom { needed: 40, taken: 80, limit: 100 }));
        assert_ne!(memory.kept_from_us(), 0);
        drop((lost, hold));
        assert!(memory.kept_from_us() == 0 && kept.is_free());
        assert_eq!(memory.taken(), 50);
    }

    #[test]
    fn what_the_machine_has_is_known() {
        assert!(of_this_process().is_some_and(|bytes| bytes > 64 << 20));
    }
}
