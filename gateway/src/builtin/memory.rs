//! Memory budget of all built-in models. A load takes its share before it reads anything. A share that does not fit unloads
//! idle models that are loaded on demand, the least recently used first. A share lives as long as its memory: the
//! engine's thread holds it too, and a thread that hangs keeps it.
//! Models that are in use or kept warm are never unloaded.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use spillway_engine::{Engine, Hold};

use super::LoadedModel;

/// Default limit of all models, in quarters of the memory of the process: the last quarter is left to requests.
const DEFAULT_QUARTERS: u64 = 3;

/// Longest wait for the memory of an engine that was dropped. Its thread needs some moments; a thread that needs longer
/// hangs in a driver.
const RELEASED_WITHIN: Duration = Duration::from_secs(10);

/// Model that does not fit the memory budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it needs {} MiB, and of the {} MiB for all models ({LIMIT_KEY}) {} are in use",
    needed.div_ceil(1 << 20), limit >> 20, taken >> 20
)]
pub struct NoRoom {
    /// Bytes that the model needs.
    pub needed: u64,
    /// Bytes that shares hold, those of idle models included.
    pub taken: u64,
    /// Bytes for all models.
    pub limit: u64,
}

/// Key of the configuration that sets the budget.
pub(super) const LIMIT_KEY: &str = "limits.modelMemory";

/// Memory budget of all built-in models.
pub struct ModelMemory {
    limit: u64,
    used: Mutex<MemoryUse>,
    /// Wakes loads that wait for memory.
    released: Condvar,
    /// Lock of the load that makes room, so that two loads do not unload more than they need.
    making_room: Mutex<()>,
    /// Models that may be unloaded: those of the configuration, and those of older snapshots that still run.
    models: Mutex<Vec<Weak<LoadedModel>>>,
}

/// Memory that shares hold.
#[derive(Default)]
struct MemoryUse {
    taken: u64,
    /// Number of shares made so far.
    shares: u64,
    /// Shares that no model wants any more, by number: the time of that, and their bytes. Their threads release them.
    unwanted: BTreeMap<u64, (Instant, u64)>,
}

impl MemoryUse {
    /// Unwanted shares whose threads release them soon; a thread that takes longer than `RELEASED_WITHIN` hangs.
    fn expected(&self) -> impl Iterator<Item = &(Instant, u64)> {
        self.unwanted.values().filter(|(since, _)| since.elapsed() < RELEASED_WITHIN)
    }
}

impl ModelMemory {
    /// Creates a budget of `limit` bytes; by default three quarters of the memory of the process.
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        let limit = limit.unwrap_or_else(|| of_this_process().map_or(u64::MAX, |all| all / 4 * DEFAULT_QUARTERS));
        Arc::new(Self {
            limit,
            used: Mutex::default(),
            released: Condvar::new(),
            making_room: Mutex::default(),
            models: Mutex::default(),
        })
    }

    /// Bytes for all models.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that shares hold.
    pub fn taken(&self) -> u64 {
        self.used.lock().taken
    }

    /// Bytes of unwanted shares whose threads hang.
    pub(super) fn held_by_hung_threads(&self) -> u64 {
        let used = self.used.lock();
        let hung = used.unwanted.values().filter(|(since, _)| since.elapsed() >= RELEASED_WITHIN);
        hung.map(|(_, bytes)| *bytes).sum()
    }

    /// Registers a model that may be unloaded for others.
    pub(super) fn enter(&self, model: &Arc<LoadedModel>) {
        let mut models = self.models.lock();
        models.retain(|model| model.strong_count() > 0);
        models.push(Arc::downgrade(model));
    }

    /// Takes a share; unloads idle models if needed and waits for their memory. Blocks, so not for threads of the runtime.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<MemoryShare, NoRoom> {
        let number = {
            let mut used = self.used.lock();
            used.shares += 1;
            used.shares
        };
        let share = Share { memory: Arc::clone(self), number, bytes: AtomicU64::new(0) };
        share.grow_to(bytes)?;
        Ok(MemoryShare(Arc::new(WantedShare(Arc::new(share)))))
    }

    /// Takes `more` bytes if they fit.
    fn try_take(&self, more: u64) -> Result<(), NoRoom> {
        let mut used = self.used.lock();
        match used.taken.checked_add(more).filter(|all| *all <= self.limit) {
            Some(all) => used.taken = all,
            None => return Err(NoRoom { needed: more, taken: used.taken, limit: self.limit }),
        }
        Ok(())
    }

    /// Waits for shares that are being released, if their memory makes `more` bytes fit; else unloads the least
    /// recently used idle model. False if no model is idle, or if unloading all idle models would not make `more` bytes
    /// fit.
    fn make_room(&self, more: u64) -> bool {
        let fits = |taken: u64, free: u64| taken.saturating_sub(free).saturating_add(more) <= self.limit;
        let (taken, expected) = {
            let mut used = self.used.lock();
            let expected = used.expected().map(|(_, bytes)| *bytes).sum();
            if fits(used.taken, expected) {
                if let Some(since) = used.expected().map(|(since, _)| *since).min() {
                    self.released.wait_until(&mut used, since + RELEASED_WITHIN);
                }
                return true;
            }
            (used.taken, expected)
        };
        let models: Vec<_> = self.models.lock().iter().filter_map(Weak::upgrade).collect();
        let mut idle: Vec<_> = models.iter().filter_map(|model| Some((model.idle()?, model))).collect();
        let bytes: u64 = idle.iter().map(|((_, bytes), _)| *bytes).sum();
        if !fits(taken, bytes.saturating_add(expected)) {
            return false;
        }
        idle.sort_by_key(|((since, _), _)| *since);
        // A model that is in use again is passed over.
        idle.into_iter().any(|(_, model)| model.make_room())
    }
}

/// Part of the budget. Every owner of its memory owns a reference to the share.
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
        self.release(self.bytes.swap(bytes, Ordering::Relaxed) - bytes);
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

    fn release(&self, bytes: u64) {
        self.memory.used.lock().taken -= bytes;
        self.memory.released.notify_all();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.used.lock().unwanted.remove(&self.number);
        self.release(self.bytes());
    }
}

/// Share that a model wants; clones are the same share. Once the last clone is dropped the share is unwanted, until the
/// engine's thread drops its own reference.
#[derive(Clone)]
pub(super) struct MemoryShare(Arc<WantedShare>);

struct WantedShare(Arc<Share>);

impl Drop for WantedShare {
    fn drop(&mut self) {
        let Share { memory, number, .. } = &*self.0;
        memory.used.lock().unwanted.insert(*number, (Instant::now(), self.0.bytes()));
    }
}

impl MemoryShare {
    /// Bytes of the share.
    pub(super) fn bytes(&self) -> u64 {
        self.0.0.bytes()
    }

    /// Sets the size to the measured need of the model: a larger one only if it fits.
    pub(super) fn settle(&self, bytes: u64) -> Result<(), NoRoom> {
        self.0.0.settle(bytes)
    }

    /// Returns the reference that a thread owns as long as it has the memory.
    pub(super) fn hold(&self) -> Hold {
        Box::new(Arc::clone(&self.0.0))
    }

    /// True if no thread has memory of the share.
    pub(super) fn is_free(&self) -> bool {
        Arc::strong_count(&self.0.0) == 1
    }
}

/// Loaded engine with its memory share; clones are the same engine.
#[derive(Clone)]
pub struct LoadedEngine(Arc<(Engine, MemoryShare)>);

impl LoadedEngine {
    pub(super) fn new(engine: Engine, share: MemoryShare) -> Self {
        Self(Arc::new((engine, share)))
    }

    /// Bytes of the share.
    pub(super) fn bytes(&self) -> u64 {
        self.0.1.bytes()
    }

    /// True if only the model itself holds the engine.
    pub(super) fn is_idle(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Deref for LoadedEngine {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.0.0
    }
}

/// Memory limit of this process in bytes: of the machine, or of its control group if that is smaller. `None` if the system
/// does not report it.
fn of_this_process() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let groups = read("/proc/self/cgroup").and_then(|groups| limit_of(&groups, Path::new("/sys/fs/cgroup")));
    machine.into_iter().chain(groups).min()
}

/// Smallest memory limit of the control groups of `/proc/self/cgroup` and of those above them, in bytes; `None` without one.
/// `root` is the folder of all of them.
fn limit_of(groups: &str, root: &Path) -> Option<u64> {
    let limit_in = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, file) = match controllers {
            // Version 2 has one tree and names no controllers.
            "" => (root.to_owned(), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                let mounted = [names, "memory"].iter().map(|name| root.join(name)).find(|folder| folder.is_dir())?;
                (mounted, "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // In a container the path may be that of the host: then only the root exists, which is the container's own group.
        let own = root.join(path.trim_start_matches('/'));
        let limit = |folder: &Path| std::fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
        own.ancestors().take_while(|folder| folder.starts_with(&root)).filter_map(limit).min()
    };
    groups.lines().filter_map(limit_in).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_taken_whole_or_not_and_released_when_dropped() {
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
        let share = memory.take(60).unwrap();
        let (hold, another) = (share.hold(), share.clone());
        assert!(!share.is_free());
        drop((share, another));
        assert_eq!(memory.taken(), 60, "a thread has the memory still");
        // A load that needs the memory waits for it.
        let waits = std::thread::spawn({
            let memory = memory.clone();
            move || memory.take(70).map(|share| share.bytes())
        });
        std::thread::sleep(Duration::from_millis(50));
        drop(hold);
        assert_eq!(waits.join().unwrap(), Ok(70));
        assert_eq!(memory.taken(), 0);

        // No load waits if that does not help, or for a share that is kept.
        let kept = memory.take(50).unwrap();
        let hold = kept.hold();
        let lost = memory.take(30).unwrap();
        let lost = (lost.hold(), drop(lost)).0;
        let began = Instant::now();
        assert_eq!(memory.take(60).err(), Some(NoRoom { needed: 60, taken: 80, limit: 100 }));
        assert!(began.elapsed() < RELEASED_WITHIN);
        // And not for ever.
        assert_eq!(memory.take(40).err(), Some(NoRoom { needed: 40, taken: 80, limit: 100 }));
        assert_ne!(memory.held_by_hung_threads(), 0);
        drop((lost, hold));
        assert!(memory.held_by_hung_threads() == 0 && kept.is_free());
        assert_eq!(memory.taken(), 50);
    }

    #[test]
    fn limits_of_both_kinds_of_control_groups_are_found_with_those_above_them() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let of = |groups: &str| limit_of(groups, root.path());
        put("pod/own/memory.max", "max\n");
        assert_eq!(of("0::/pod/own\n"), None);
        put("pod/memory.max", "3000\n");
        assert_eq!(of("0::/pod/own\n"), Some(3000), "that of the group above");
        put("pod/own/memory.max", "2000\n");
        assert_eq!(of("0::/pod/own\n"), Some(2000));
        assert_eq!(of("0::/elsewhere\n"), None);
        put("memory.max", "1000\n");
        assert_eq!(of("0::/not/to/be/seen\n"), Some(1000), "in a container the root is its own");
        // Version 1, where no limit is the largest number of pages.
        put("memory/memory.limit_in_bytes", "9223372036854771712\n");
        put("memory/docker/one/memory.limit_in_bytes", "700\n");
        assert_eq!(of("4:memory:/docker/one\n3:cpu,cpuacct:/docker/one\n"), Some(700));
        assert_eq!(of("4:memory:/docker/two\n"), Some(9_223_372_036_854_771_712));
        assert_eq!(of("3:cpu,cpuacct:/docker/one\n"), None);
        // Both at once, and controllers mounted together.
        assert_eq!(of("0::/pod/own\n4:memory:/docker/one\n"), Some(700));
        put("memory,hugetlb/one/memory.limit_in_bytes", "500\n");
        assert_eq!(of("4:memory,hugetlb:/one\n"), Some(500));
        assert_eq!(of("not a line\n4:memory\n"), None);
    }

    #[test]
    fn what_the_machine_has_is_known() {
        assert!(of_this_process().is_some_and(|bytes| bytes > 64 << 20));
    }
}
