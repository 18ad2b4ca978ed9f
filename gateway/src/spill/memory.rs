//! One budget of memory for all models inside. A load takes its share before anything is read, and one that does not fit
//! has idle models make room that are loaded on demand, the one that was needed longest ago first. A share is given back
//! when the last request lets go of its model.
//! It never unloads what somebody uses or what is kept warm.

use std::ops::Deref;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use spillway_engine::Engine;

use super::LoadedModel;

/// Memory that models may take when the configuration says nothing: three quarters of what the process may.
const DEFAULT_QUARTERS: u64 = 3;

/// There is no room for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it needs {} MiB, and of the {} MiB for all models ({}) {} are in use: raise it, lower `contextLength`, `maxSequences` or `kvCache`, or load fewer models",
    needed.div_ceil(1 << 20), limit >> 20, LIMIT_KEY, taken >> 20
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
const LIMIT_KEY: &str = "limits.modelMemory";

/// The budget.
pub struct ModelMemory {
    limit: u64,
    taken: Mutex<u64>,
    /// Held by whoever makes room, so that two do not unload more than they need.
    making_room: Mutex<()>,
    /// Those that may be unloaded; as many as are configured, and those of older snapshots that still run.
    models: Mutex<Vec<Weak<LoadedModel>>>,
}

impl ModelMemory {
    /// Of so many bytes; three quarters of what the process may use when nothing is said.
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        let limit = limit.unwrap_or_else(|| of_this_process().map_or(u64::MAX, |all| all / 4 * DEFAULT_QUARTERS));
        Arc::new(Self { limit, taken: Mutex::default(), making_room: Mutex::default(), models: Mutex::default() })
    }

    /// Bytes for all models.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that are taken.
    pub fn taken(&self) -> u64 {
        *self.taken.lock()
    }

    /// This one may be unloaded for others.
    pub(super) fn enter(&self, model: &Arc<LoadedModel>) {
        let mut models = self.models.lock();
        models.retain(|model| model.strong_count() > 0);
        models.push(Arc::downgrade(model));
    }

    /// Takes a share, for which others may have to go.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<Share, NoRoom> {
        let mut share = Share { memory: Arc::clone(self), bytes: 0 };
        share.grow_to(bytes)?;
        Ok(share)
    }

    /// Takes `more` where it fits.
    fn try_take(&self, more: u64) -> Result<(), NoRoom> {
        let mut taken = self.taken.lock();
        match taken.checked_add(more).filter(|all| *all <= self.limit) {
            Some(all) => *taken = all,
            None => return Err(NoRoom { needed: more, taken: *taken, limit: self.limit }),
        }
        Ok(())
    }

    /// Unloads the idle model that was needed longest ago. False when there is none, or when `more` bytes would not fit
    /// without all of them either: nobody loses a model for nothing.
    fn make_room(&self, more: u64) -> bool {
        let models: Vec<_> = self.models.lock().iter().filter_map(Weak::upgrade).collect();
        let mut idle: Vec<_> = models.iter().filter_map(|model| Some((model.idle()?, model))).collect();
        let bytes: u64 = idle.iter().map(|((_, bytes), _)| *bytes).sum();
        if self.taken().saturating_sub(bytes).saturating_add(more) > self.limit {
            return false;
        }
        idle.sort_by_key(|((since, _), _)| *since);
        // One that is needed since is passed over.
        idle.into_iter().any(|(_, model)| model.make_room())
    }
}

/// What a model holds of the budget.
pub(super) struct Share {
    memory: Arc<ModelMemory>,
    bytes: u64,
}

impl Share {
    /// Sets it to what the model takes: more only where that fits.
    pub(super) fn settle(&mut self, bytes: u64) -> Result<(), NoRoom> {
        if bytes > self.bytes {
            return self.grow_to(bytes);
        }
        *self.memory.taken.lock() -= self.bytes - bytes;
        self.bytes = bytes;
        Ok(())
    }

    fn grow_to(&mut self, bytes: u64) -> Result<(), NoRoom> {
        let more = bytes.saturating_sub(self.bytes);
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
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *self.memory.taken.lock() -= self.bytes;
    }
}

/// A loaded engine with its share; clones are the same one.
#[derive(Clone)]
pub struct Held(Arc<(Engine, Share)>);

impl Held {
    pub(super) fn new(engine: Engine, share: Share) -> Self {
        Self(Arc::new((engine, share)))
    }

    /// Bytes of its share.
    pub(super) fn bytes(&self) -> u64 {
        self.0.1.bytes
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
        let mut first = memory.take(60).unwrap();
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
    fn what_the_machine_has_is_known() {
        assert!(of_this_process().is_some_and(|bytes| bytes > 64 << 20));
    }
}
