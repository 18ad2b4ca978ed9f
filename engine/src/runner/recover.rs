//! Set-up of a model: at load, and again after a device fault, repeated until it succeeds. With an automatic choice
//! of device, the CPU replaces a GPU that is lost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Measured, RebuildTarget, Rebuildable, Recipient, Watch, panic_message};
use crate::device::{HangMark, HangSource};
use crate::{DeviceInfo, EngineError, LoadError, LoadOptions, Placement};

/// Longest delay between two set-ups of a failed device.
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// Interval at which a waiting thread checks for the end of the engine.
const STOP_POLL: Duration = Duration::from_millis(50);

/// Worker that serves requests with a rebuildable model.
pub(crate) trait RecoverableWorker {
    /// Name of the model.
    fn name(&self) -> &str;
    /// Number of requests in progress.
    fn requests(&self) -> usize;
    /// The model.
    fn model(&mut self) -> &mut Rebuildable;
    /// Runs each shape of step once, so that everything is compiled and every cost measured before the first request.
    fn warm_up(&mut self) -> Result<Measured, EngineError>;
    /// Refuses queued requests, and those that arrive meanwhile.
    fn refuse(&mut self, fault: &EngineError);
    /// True once the engine ends.
    fn is_stopped(&self) -> bool;
}

/// Handshake between a load and the first run of its model. A driver may never return from it: then the load fails,
/// and the blocked thread ends when it returns.
#[derive(Clone)]
struct FirstRun {
    results: SyncSender<Result<(), LoadError>>,
    source: PathBuf,
    placement: Arc<Mutex<Placement>>,
    /// Entry for the hanging device, kept while the thread is blocked.
    mark: Arc<Mutex<Option<HangMark>>>,
    /// The first run is over: a later hang does not concern the load.
    over: Arc<AtomicBool>,
}

impl FirstRun {
    /// Handshake for a model with this placement; the result arrives at the receiver.
    fn new(source: &Path, placement: Arc<Mutex<Placement>>) -> (Self, Receiver<Result<(), LoadError>>) {
        let (results, wait) = sync_channel(1);
        (Self { results, source: source.to_owned(), placement, mark: Arc::default(), over: Arc::default() }, wait)
    }

    fn device(&self) -> DeviceInfo {
        self.placement.lock().unwrap_or_else(PoisonError::into_inner).device.clone()
    }

    fn failed(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Device { device: self.device().name, reason: reason.into() }
    }

    /// Reports the result of the first run. Returns false if the load no longer waits.
    fn report(&self, result: Result<(), EngineError>) -> bool {
        self.results.send(result.map_err(|e| self.failed(e.to_string()))).is_ok()
    }

    fn mark(&self, mark: Option<HangMark>) {
        *self.mark.lock().unwrap_or_else(PoisonError::into_inner) = mark;
    }

    /// Reports a hang. Returns true if it was in the first run, which is then abandoned.
    fn give_up(&self) -> bool {
        if self.over.load(Ordering::Acquire) {
            return false;
        }
        let device = self.device();
        // First, so that a caller who is answered and retries at once is refused.
        self.mark(Some(HangMark::new(HangSource::on(&device, &self.source))));
        let hangs = LoadError::Hangs { device: device.name, kind: device.kind };
        let at_first = self.results.try_send(Err(hangs)).is_ok();
        if !at_first {
            self.mark(None);
        }
        at_first
    }

    /// Removes the mark: the thread has returned from the driver, whether or not the load still waits.
    fn returned(&self) {
        self.over.store(true, Ordering::Release);
        self.mark(None);
    }

    /// Waits for the result.
    fn wait(self, wait: &Receiver<Result<(), LoadError>>) -> Result<(), LoadError> {
        let lost = self.failed("the thread of the model ended while it started");
        // The other senders belong to the thread and its watch.
        drop(self);
        wait.recv().unwrap_or(Err(lost))
    }
}

/// Runs a newly loaded model for the first time.
fn start(worker: &mut impl RecoverableWorker) -> Result<(), EngineError> {
    match warm_up(worker) {
        Ok(()) => Ok(()),
        Err(fault) if worker.model().falls_back() && !worker.is_stopped() => {
            on_processor(worker, &fault.to_string()).map_err(EngineError::Device)
        }
        Err(fault) => Err(fault),
    }
}

/// Starts the thread of an engine and its watch, and waits for the first run of the model. `worker` makes the worker
/// and `work` is its main loop. `on_hang` is called when a step hangs, with true if that was in the first run; the
/// engine must end then.
pub(crate) fn launch<W: RecoverableWorker + Send + 'static, R: Recipient>(
    options: &LoadOptions,
    placement: Arc<Mutex<Placement>>,
    on_hang: impl Fn(bool) + Send + 'static,
    worker: impl FnOnce(Watch<R>) -> W,
    work: fn(&mut W),
) -> Result<(), LoadError> {
    let (ready, wait) = FirstRun::new(&options.source, placement);
    let (first, model) = (ready.clone(), options.name.clone());
    let failed = |e: std::io::Error| ready.failed(format!("the thread of the model cannot be started: {e}"));
    let watch = Watch::start(&format!("watch-{}", options.name), move || {
        tracing::error!(event = "device_hangs", %model, "a step has not ended in time; its requests have failed");
        on_hang(first.give_up());
    })
    .map_err(failed)?;
    let (mut worker, first_run) = (worker(watch), ready.clone());
    // The worker owns the memory of the model and its guard: both are dropped when this thread ends, and not before.
    std::thread::Builder::new()
        .name(format!("engine-{}", options.name))
        .spawn(move || {
            crate::scheduler::lower_priority();
            serve(&mut worker, &first_run, work);
        })
        .map_err(failed)?;
    ready.wait(&wait)
}

/// Life of an engine's thread: the first run of the model, then `work` if the load still waits.
fn serve<W: RecoverableWorker>(worker: &mut W, ready: &FirstRun, work: impl FnOnce(&mut W)) {
    let warm = start(worker);
    ready.returned();
    let well = warm.is_ok();
    if ready.report(warm) && well {
        work(worker);
    }
}

/// Runs until the engine ends, and returns the reason. A panic in here is a defect: it ends the engine, and the owner
/// must load it again.
pub(crate) fn run_until_end<W: RecoverableWorker>(worker: &mut W, run: impl FnOnce(&mut W)) -> EngineError {
    match catch_unwind(AssertUnwindSafe(|| run(worker))) {
        Ok(()) => EngineError::Shutdown,
        Err(panic) => {
            let reason = panic_message(&*panic).to_owned();
            tracing::error!(event = "engine_panicked", model = %worker.name(), %reason, requests = worker.requests());
            EngineError::Defect(reason)
        }
    }
}

/// Sets the device up again, however long that takes. Returns false if the engine ends meanwhile.
pub(crate) fn recover(worker: &mut impl RecoverableWorker, fault: &EngineError, first_pause: Duration) -> bool {
    worker.model().release();
    let given_up = worker.model().failed();
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
            std::thread::sleep(STOP_POLL.min(pause));
        }
        pause = (pause * 2).min(RETRY_LONGEST);
    }
}

fn again(worker: &mut impl RecoverableWorker) -> Result<(), String> {
    // Read before the model is made again, after which it may run on the CPU.
    let falls_back = worker.model().falls_back();
    let made = worker.model().make(RebuildTarget::Requested);
    match made.and_then(|()| warm_up(worker).map_err(|e| e.to_string())) {
        Err(reason) if falls_back => on_processor(worker, &reason),
        made => made,
    }
}

fn on_processor(worker: &mut impl RecoverableWorker, reason: &str) -> Result<(), String> {
    tracing::warn!(event = "gpu_given_up", model = %worker.name(), %reason, instead = "CPU");
    worker.model().make(RebuildTarget::Processor(reason))?;
    warm_up(worker).map_err(|e| e.to_string())
}

fn warm_up(worker: &mut impl RecoverableWorker) -> Result<(), EngineError> {
    let measured = worker.warm_up()?;
    worker.model().measured(measured);
    Ok(())
}
