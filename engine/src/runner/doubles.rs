//! Simulated device for tests, which fails as configured.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::{Made, RebuildTarget, Rebuildable, Runner, Tuning};
use crate::exec::Batch;
use crate::{DeviceInfo, EngineError, Hold, LoadError, Placement};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    Error,
    Panic,
    Hang(Duration),
}

/// Faults of a simulated device, and a record of its set-ups.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Fault of each of the next steps.
    pub(crate) next: VecDeque<Fault>,
    /// Number of times that setting up the GPU fails.
    pub(crate) refusals: usize,
    /// For each set-up, true if it was on the CPU.
    pub(crate) on_processor: Vec<bool>,
    /// Guard that is held for the memory.
    pub(crate) hold: Option<Hold>,
    /// Counter of runners: each holds a clone.
    pub(crate) memory: Arc<()>,
}

impl Faults {
    /// A device whose first step fails so.
    pub(crate) fn first(fault: Fault) -> Self {
        Self { next: VecDeque::from([fault]), ..Self::default() }
    }

    /// Adds a guard for the memory; when the guard is dropped, the receiver gets the number of runners that still
    /// held their memory.
    pub(crate) fn held(self) -> (Self, Receiver<usize>) {
        let (told, heard) = channel();
        let hold = HeldMemory { memory: Arc::downgrade(&self.memory), told };
        (Self { hold: Some(Box::new(hold)), ..self }, heard)
    }
}

struct HeldMemory {
    memory: Weak<()>,
    told: Sender<usize>,
}

impl Drop for HeldMemory {
    fn drop(&mut self) {
        // The device itself holds the first clone.
        let _ = self.told.send(self.memory.strong_count().saturating_sub(1));
    }
}

/// A runner with its clone of the counter.
struct Remembers(Box<dyn Runner>, #[allow(dead_code, reason = "counted")] Arc<()>);

impl Runner for Remembers {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        self.0.forward(batch)
    }
    fn copy_page(&mut self, from: u32, to: u32) -> bool {
        self.0.copy_page(from, to)
    }
}

pub(crate) type SharedFaults = Arc<Mutex<Faults>>;

/// Applies the next fault, if any.
pub(crate) fn meet(faults: &SharedFaults) -> Result<(), EngineError> {
    let fault = faults.lock().unwrap().next.pop_front();
    match fault {
        Some(Fault::Error) => return Err(EngineError::Device("out of memory".into())),
        Some(Fault::Panic) => panic!("a driver panics"),
        Some(Fault::Hang(time)) => std::thread::sleep(time),
        None => {}
    }
    Ok(())
}

/// A model on a simulated device.
pub(crate) fn rebuildable(
    name: &str,
    may_fall_back: bool,
    faults: &SharedFaults,
    runner: impl Fn() -> Box<dyn Runner> + Send + 'static,
) -> Rebuildable {
    let (faults, name) = (faults.clone(), name.to_owned());
    let hold = faults.lock().unwrap().hold.take().unwrap_or_else(|| Box::new(()));
    let make = move |target: RebuildTarget<'_>| {
        let mut faults = faults.lock().unwrap();
        let (kind, reason) = match target {
            RebuildTarget::Requested => ("discrete GPU", ""),
            RebuildTarget::Processor(reason) => ("CPU", reason),
        };
        faults.on_processor.push(kind == "CPU");
        if faults.refusals > 0 && faults.on_processor.len() > 1 && kind != "CPU" {
            faults.refusals -= 1;
            return Err(LoadError::NoDevice("none yet".into()));
        }
        let (backend, driver) = ("none".into(), "none".into());
        let device = DeviceInfo { name: name.clone(), backend, kind, driver, reason: reason.into() };
        let runner = Box::new(Remembers(runner(), faults.memory.clone()));
        Ok(Made { runner, placement: Placement::new(device, 0) })
    };
    let first = make(RebuildTarget::Requested).unwrap();
    Rebuildable::new(first, may_fall_back, 1000, Box::new(make)).holding(hold)
}

/// Limits short enough for tests, but long enough where a busy machine must not look like a hanging device.
pub(crate) fn tuning(faults: &SharedFaults) -> Tuning {
    let hangs_at_first = matches!(faults.lock().unwrap().next.front(), Some(Fault::Hang(_)));
    Tuning {
        hang_least: Duration::from_millis(300),
        first_step: if hangs_at_first { Duration::from_millis(300) } else { Duration::from_secs(30) },
        retry_first: Duration::from_millis(20),
    }
}
