//! Instances of a module for one filter. A request takes one that is free, and its stream stays there. An instance that crashes
//! is replaced; one that crashes again and again is replaced later each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use parking_lot::{Mutex, MutexGuard};
use spillway_filter::{ErrorKind, Refusal};

use crate::compiled::{Compiled, Hooks};
use crate::config::OnFailure;
use crate::failure::{Failure, StartError};
use crate::host::Host;
use crate::instance::Instance;
use crate::state::Facts;

/// First pause before an instance that has crashed twice in a row is started again, and the longest: each is twice the last.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Requests that an instance serves before its crashes are forgotten.
const FORGIVEN: u32 = 100;
/// Times of a call for which a request waits for a busy instance.
const WAITS: u32 = 4;
/// Time between two reports of failures of a filter.
const REPORTED_EVERY: Duration = Duration::from_secs(1);

/// Module of a filter with its instances.
pub(crate) struct Pool {
    host: Arc<Host>,
    module: Arc<Compiled>,
    facts: Arc<Facts>,
    on_failure: OnFailure,
    slots: Vec<Mutex<Slot>>,
    next: AtomicUsize,
    reports: Mutex<Reports>,
}

#[derive(Default)]
struct Slot {
    instance: Option<Instance>,
    /// Number of instances that were here before.
    generation: u64,
    /// Crashes since the last time that many requests went well.
    crashes: u32,
    served: u32,
    /// Time before which no new instance is started.
    not_before: Option<Instant>,
    /// Streams that ended while the instance was busy.
    ended: Vec<u32>,
}

#[derive(Default)]
struct Reports {
    last: Option<Instant>,
    unreported: u64,
}

/// Place of a stream: an instance, and which of those that were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    slot: usize,
    generation: u64,
}

impl Pool {
    /// Makes a pool and starts its first instance.
    ///
    /// # Errors
    ///
    /// The module does not start, or refuses its configuration.
    pub(crate) fn new(
        host: Arc<Host>,
        module: Arc<Compiled>,
        facts: Arc<Facts>,
        on_failure: OnFailure,
        instances: usize,
    ) -> Result<Self, StartError> {
        let first = Instance::start(&host, &module, facts.clone())?;
        let mut slots: Vec<Mutex<Slot>> = (0..instances.max(1)).map(|_| Mutex::default()).collect();
        if let Some(slot) = slots.first_mut() {
            slot.get_mut().instance = Some(first);
        }
        let (next, reports) = (AtomicUsize::new(0), Mutex::default());
        Ok(Self { host, module, facts, on_failure, slots, next, reports })
    }

    pub(crate) fn hooks(&self) -> Hooks {
        self.module.hooks()
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn is_open(&self) -> bool {
        self.on_failure == OnFailure::Open
    }

    /// Works with an instance that is free.
    ///
    /// # Errors
    ///
    /// All are busy or crash again and again, or the work fails.
    pub(crate) fn with_any<R>(
        &self,
        work: impl FnOnce(&mut Instance) -> Result<R, Failure>,
    ) -> Result<(Place, R), Failure> {
        let (slot, mut held) = self.take()?;
        let worked = self.on(&mut held, work)?;
        Ok((Place { slot, generation: held.generation }, worked))
    }

    /// Works with the instance of a stream.
    ///
    /// # Errors
    ///
    /// No instance is free, one has crashed, or the work fails.
    pub(crate) fn with<R>(
        &self,
        place: Place,
        work: impl FnOnce(&mut Instance) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let slot = self.slots.get(place.slot).ok_or(Failure::Gone)?;
        let mut held = slot.try_lock_for(self.longest_wait()).ok_or(Failure::Busy)?;
        if held.generation != place.generation || held.instance.is_none() {
            return Err(Failure::Gone);
        }
        self.on(&mut held, work)
    }

    /// Ends a stream, now or when its instance is next used.
    pub(crate) fn end(&self, place: Place, stream: u32) {
        let ended = self.with(place, |instance| instance.end(stream));
        match ended {
            Err(Failure::Busy) => {
                // The instance works for its time at most.
                let Some(slot) = self.slots.get(place.slot) else { return };
                let mut held = slot.lock();
                if held.generation == place.generation {
                    held.ended.push(stream);
                }
            }
            Err(Failure::Gone) | Ok(()) => {}
            Err(failure) => self.report(&failure),
        }
    }

    fn longest_wait(&self) -> Duration {
        self.facts.time * WAITS
    }

    /// Takes a slot that is free, and has an instance or may start one.
    fn take(&self) -> Result<(usize, MutexGuard<'_, Slot>), Failure> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut paused = None;
        let mut busy = None;
        for n in 0..self.slots.len() {
            let at = first.wrapping_add(n) % self.slots.len();
            let Some(slot) = self.slots.get(at) else { continue };
            match slot.try_lock() {
                None => busy = busy.or(Some((at, slot))),
                Some(held) if held.not_before.is_some_and(|time| Instant::now() < time) => paused = Some(at),
                Some(held) => return Ok((at, held)),
            }
        }
        let Some((at, slot)) = busy else {
            return Err(if paused.is_some() { Failure::BackingOff } else { Failure::Busy });
        };
        let held = slot.try_lock_for(self.longest_wait()).ok_or(Failure::Busy)?;
        if held.not_before.is_some_and(|time| Instant::now() < time) {
            return Err(Failure::BackingOff);
        }
        Ok((at, held))
    }

    fn on<R>(&self, slot: &mut Slot, work: impl FnOnce(&mut Instance) -> Result<R, Failure>) -> Result<R, Failure> {
        let instance = match &mut slot.instance {
            Some(instance) => instance,
            None => match Instance::start(&self.host, &self.module, self.facts.clone()) {
                Ok(instance) => slot.instance.insert(instance),
                Err(error) => {
                    slot.crashed();
                    return Err(Failure::Start(error.to_string()));
                }
            },
        };
        let mut left = std::mem::take(&mut slot.ended).into_iter();
        let worked = match left.try_for_each(|stream| instance.end(stream)) {
            Ok(()) => work(instance),
            Err(failure) => Err(failure),
        };
        match &worked {
            Err(failure) if failure.is_crash() => slot.crashed(),
            _ => slot.served(),
        }
        worked
    }

    /// Logs a failure; many failures are one line a second, with their number.
    pub(crate) fn report(&self, failure: &Failure) {
        let mut reports = self.reports.lock();
        let now = Instant::now();
        if reports.last.is_some_and(|last| now.duration_since(last) < REPORTED_EVERY) {
            reports.unreported += 1;
            return;
        }
        reports.last = Some(now);
        let others = std::mem::take(&mut reports.unreported);
        drop(reports);
        let (route, module) = (self.facts.route.as_str(), self.facts.name.as_str());
        tracing::warn!(event = "wasm_failed", route, module, reason = %failure, others);
    }
}

impl Slot {
    fn crashed(&mut self) {
        self.instance = None;
        self.generation += 1;
        self.served = 0;
        self.ended.clear();
        self.crashes = self.crashes.saturating_add(1);
        // The first crash may be a request's fault; the module is then at once there for the others.
        self.not_before = self
            .crashes
            .checked_sub(2)
            .map(|doublings| Instant::now() + FIRST_PAUSE.saturating_mul(1 << doublings.min(20)).min(LONGEST_PAUSE));
    }

    fn served(&mut self) {
        if self.crashes == 0 {
            return;
        }
        self.served += 1;
        if self.served >= FORGIVEN {
            self.crashes = 0;
            self.served = 0;
        }
    }
}

/// Refusal of a request whose module has failed.
pub(crate) fn refused() -> Box<Refusal> {
    Box::new(Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Internal,
        "wasm_failed",
        "a WebAssembly module of this route failed; try again",
    ))
}
