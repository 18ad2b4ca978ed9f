//! A device for tests, which fails as it is told.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::{Made, Rebuildable, Runner, Target, Tuning};
use crate::exec::Batch;
use crate::{DeviceInfo, EngineError, Hold, LoadError, Placement};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    Error,
    Panic,
    Hang(Duration),
}

/// What goes wrong with a device, and where it was set up.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// One for each of the next steps.
    pub(crate) next: VecDeque<Fault>,
    /// How many times the GPU cannot be had again.
    pub(crate) refusals: usize,
    /// Each time it was set up: whether that was on the processor.
    pub(crate) on_processor: Vec<bool>,
    /// What is held for its memory.
    pub(crate) hold: Option<Hold>,
    /// Each runner has one of these.
    pub(crate) memory: Arc<()>,
}

impl Faults {
    /// One that its first step meets.
    pub(crate) fn first(fault: Fault) -> Self {
        Self { next: VecDeque::from([fault]), ..Self::default() }
    }

    /// The same device with something held for its memory; when that is let go, the receiver is told how many runners had
    /// their memory then.
    pub(crate) fn held(self) -> (Self, Receiver<usize>) {
        let (told, heard) = channel();
        let hold = Held { memory: Arc::downgrade(&self.memory), told };
        (Self { hold: Some(Box::new(hold)), ..self }, heard)
    }
}

struct Held {
    memory: Weak<()>,
    told: Sender<usize>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // The device itself has the first.
        let _ = self.told.send(self.memory.strong_count().saturating_sub(1));
    }
}

/// A runner with its memory.
struct Remembers(Box<dyn Runner>, #[allow(dead_code, reason = "counted")] Arc<()>);

impl Runner for Remembers {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        self.0.forward(batch)
    }
    fn copy_page(&mut self, from: u32, to: u32) -> bool {
        self.0.copy_page(from, to)
    }
}

pub(crate) type Shared = Arc<Mutex<Faults>>;

/// A step meets what is next.
pub(crate) fn meet(faults: &Shared) -> Result<(), EngineError> {
    let fault = faults.lock().unwrap().next.pop_front();
    match fault {
        Some(Fault::Error) => return Err(EngineError::Device("out of memory".into())),
        Some(Fault::Panic) => panic!("a driver panics"),
        Some(Fault::Hang(time)) => std::thread::sleep(time),
        None => {}
    }
    Ok(())
}

/// A model on such a device.
pub(crate) fn rebuildable(
    name: &str,
    may_fall_back: bool,
    faults: &Shared,
    runner: impl Fn() -> Box<dyn Runner> + Send + 'static,
) -> Rebuildable {
    let (faults, name) = (faults.clone(), name.to_owned());
    let hold = faults.lock().unwrap().hold.take().unwrap_or_else(|| Box::new(()));
    let make = move |target: Target<'_>| {
        let mut faults = faults.lock().unwrap();
        let (kind, reason) = match target {
            Target::AsWanted => ("discrete GPU", ""),
            Target::Processor(reason) => ("CPU", reason),
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
    let first = make(Target::AsWanted).unwrap();
    Rebuildable::new(first, may_fall_back, 1000, Box::new(make)).holding(hold)
}

/// Times short enough for tests, and long enough where a busy machine must not look like a device that hangs.
pub(crate) fn tuning(faults: &Shared) -> Tuning {
    let hangs_at_first = matches!(faults.lock().unwrap().next.front(), Some(Fault::Hang(_)));
    Tuning {
        hang_least: Duration::from_millis(300),
        first_step: if hangs_at_first { Duration::from_millis(300) } else { Duration::from_secs(30) },
        retry_first: Duration::from_millis(20),
    }
}
