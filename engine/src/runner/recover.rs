//! A model is set up: at load, and again after a fault of its device, for as long as that takes. A GPU that cannot be
//! had any more makes way for the processor where the choice of the device is ours.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Measured, Reader, Rebuildable, Target, Watch, text_of};
use crate::device::{Mark, Stuck};
use crate::{DeviceInfo, EngineError, LoadError, LoadOptions, Placement};

/// Longest wait before a device that failed is set up once more.
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// How often a thread that waits looks whether the engine ends.
const LOOK: Duration = Duration::from_millis(50);

/// Whoever serves with a model that can be made again.
pub(crate) trait Serves {
    /// Its name.
    fn name(&self) -> &str;
    /// Requests that it works on.
    fn requests(&self) -> usize;
    /// The model.
    fn made(&mut self) -> &mut Rebuildable;
    /// Runs each shape of step once, so that nothing is compiled and no cost is unknown when the first request comes.
    fn warm_up(&mut self) -> Result<Measured, EngineError>;
    /// Tells those who wait, and those who come meanwhile.
    fn refuse(&mut self, fault: &EngineError);
    /// Whether the engine ends.
    fn is_stopped(&self) -> bool;
}

/// How a load waits for the first run of its model. A driver may never come back from it: then nobody waits any longer,
/// and the thread that is inside ends when it does come back.
#[derive(Clone)]
struct Ready {
    told: SyncSender<Result<(), LoadError>>,
    source: PathBuf,
    placement: Arc<Mutex<Placement>>,
    /// Says that what it runs on hangs, for as long as the thread is inside.
    mark: Arc<Mutex<Option<Mark>>>,
    /// The first run is over: a later hang is no matter of the load's.
    over: Arc<AtomicBool>,
}

impl Ready {
    /// For a model that was made there; the result comes out of the other end.
    fn new(source: &Path, placement: Arc<Mutex<Placement>>) -> (Self, Receiver<Result<(), LoadError>>) {
        let (told, wait) = sync_channel(1);
        (Self { told, source: source.to_owned(), placement, mark: Arc::default(), over: Arc::default() }, wait)
    }

    fn device(&self) -> DeviceInfo {
        self.placement.lock().unwrap_or_else(PoisonError::into_inner).device.clone()
    }

    fn failed(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Device { device: self.device().name, reason: reason.into() }
    }

    /// The model has run, or cannot. False when nobody waits for that any more.
    fn tell(&self, result: Result<(), EngineError>) -> bool {
        self.told.send(result.map_err(|e| self.failed(e.to_string()))).is_ok()
    }

    fn mark(&self, mark: Option<Mark>) {
        *self.mark.lock().unwrap_or_else(PoisonError::into_inner) = mark;
    }

    /// A step hangs. True when it is one of the first run, which is given up.
    fn give_up(&self) -> bool {
        if self.over.load(Ordering::Acquire) {
            return false;
        }
        let device = self.device();
        // First, so that whoever is told and tries again at once is refused.
        self.mark(Some(Mark::new(Stuck::on(&device, &self.source))));
        let hangs = LoadError::Hangs { device: device.name, kind: device.kind };
        let at_first = self.told.try_send(Err(hangs)).is_ok();
        if !at_first {
            self.mark(None);
        }
        at_first
    }

    /// The thread has come back from the driver, whatever became of those who waited.
    fn came_back(&self) {
        self.over.store(true, Ordering::Release);
        self.mark(None);
    }

    /// The end of the wait.
    fn wait(self, wait: &Receiver<Result<(), LoadError>>) -> Result<(), LoadError> {
        let lost = self.failed("its thread ended while it started");
        // Its thread and its watch have the others.
        drop(self);
        wait.recv().unwrap_or(Err(lost))
    }
}

/// Runs a model that was just loaded for the first time.
fn start(worker: &mut impl Serves) -> Result<(), EngineError> {
    match warm_up(worker) {
        Ok(()) => Ok(()),
        Err(fault) if worker.made().falls_back() && !worker.is_stopped() => {
            on_processor(worker, &fault.to_string()).map_err(EngineError::Device)
        }
        Err(fault) => Err(fault),
    }
}

/// Starts the thread of an engine, and the one that watches its steps, and waits for the first run of its model. `worker`
/// makes what the thread runs and `work` is what it does from then on. `on_hang` is called when a step hangs, with whether
/// that was in the first run: then the engine must end.
pub(crate) fn launch<W: Serves + Send + 'static, R: Reader>(
    options: &LoadOptions,
    placement: Arc<Mutex<Placement>>,
    on_hang: impl Fn(bool) + Send + 'static,
    worker: impl FnOnce(Watch<R>) -> W,
    work: fn(&mut W),
) -> Result<(), LoadError> {
    let (ready, wait) = Ready::new(&options.source, placement);
    let (first, model) = (ready.clone(), options.name.clone());
    let failed = |e: std::io::Error| ready.failed(format!("its thread cannot be started: {e}"));
    let watch = Watch::start(&format!("watch-{}", options.name), move || {
        tracing::error!(event = "device_hangs", %model, "a step has not ended in time; its requests have failed");
        on_hang(first.give_up());
    })
    .map_err(failed)?;
    let (mut worker, told) = (worker(watch), ready.clone());
    // The worker owns the memory of the model and what is held for it: both go when this thread ends, and not before.
    std::thread::Builder::new()
        .name(format!("engine-{}", options.name))
        .spawn(move || {
            crate::scheduler::be_nice();
            serve(&mut worker, &told, work);
        })
        .map_err(failed)?;
    ready.wait(&wait)
}

/// The whole life of an engine's thread: the first run of its model, and, where somebody waits for that, `work`.
fn serve<W: Serves>(worker: &mut W, ready: &Ready, work: impl FnOnce(&mut W)) {
    let warm = start(worker);
    ready.came_back();
    let well = warm.is_ok();
    if ready.tell(warm) && well {
        work(worker);
    }
}

/// Runs until the engine ends, and says how. A panic in here is a defect of ours: it ends the engine too, and whoever holds
/// it loads it again.
pub(crate) fn until_the_end<W: Serves>(worker: &mut W, run: impl FnOnce(&mut W)) -> EngineError {
    match catch_unwind(AssertUnwindSafe(|| run(worker))) {
        Ok(()) => EngineError::Shutdown,
        Err(panic) => {
            let reason = text_of(&*panic).to_owned();
            tracing::error!(event = "engine_panicked", model = %worker.name(), %reason, requests = worker.requests());
            EngineError::Defect(reason)
        }
    }
}

/// Sets the device up again, however long that takes. False when the engine ends meanwhile.
pub(crate) fn recover(worker: &mut impl Serves, fault: &EngineError, first_pause: Duration) -> bool {
    worker.made().let_go();
    let given_up = worker.made().failed();
    let mut pause = first_pause;
    loop {
        let started = Instant::now();
        let again = if given_up { on_processor(worker, &fault.to_string()) } else { again(worker) };
        match again {
            Ok(()) => {
                let seconds = started.elapsed().as_secs_f64();
                tracing::info!(event = "device_recovered", model = %worker.name(), seconds);
                return true;
            }
            Err(reason) => {
                let retry_after = pause.as_secs_f64();
                tracing::error!(event = "device_not_recovered", model = %worker.name(), %reason, retry_after);
            }
        }
        worker.refuse(fault);
        let until = Instant::now() + pause;
        while Instant::now() < until {
            if worker.is_stopped() {
                return false;
            }
            std::thread::sleep(LOOK.min(pause));
        }
        pause = (pause * 2).min(RETRY_LONGEST);
    }
}

fn again(worker: &mut impl Serves) -> Result<(), String> {
    // Before it is made again: afterwards it may be the processor that is there.
    let falls_back = worker.made().falls_back();
    let made = worker.made().make(Target::AsWanted);
    match made.and_then(|()| warm_up(worker).map_err(|e| e.to_string())) {
        Err(reason) if falls_back => on_processor(worker, &reason),
        made => made,
    }
}

fn on_processor(worker: &mut impl Serves, reason: &str) -> Result<(), String> {
    tracing::warn!(event = "gpu_given_up", model = %worker.name(), %reason, instead = "CPU");
    worker.made().make(Target::Processor(reason))?;
    warm_up(worker).map_err(|e| e.to_string())
}

fn warm_up(worker: &mut impl Serves) -> Result<(), EngineError> {
    let measured = worker.warm_up()?;
    worker.made().measured(measured);
    Ok(())
}
