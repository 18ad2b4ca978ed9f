//! Runner of a loaded model's steps: a model on an executor. Owns the rebuilding of the model from its file after a
//! device fault: on the requested device, or on the CPU if the choice is automatic and a GPU is lost. Knows nothing
//! of requests.

#[cfg(test)]
pub(crate) mod doubles;
mod health;
mod recover;
mod thread;
mod watch;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::artifact::ModelFile;
use crate::device::CPU;
use crate::exec::Batch;
use crate::model::{self, Loaded, LoadedEncoder};
use crate::{DeviceChoice, EngineError, Hold, LoadError, LoadOptions, Placement};

pub(crate) use health::ThreadHealth;
pub(crate) use recover::{RecoverableWorker, launch, recover, run_until_end};
pub(crate) use thread::ModelThread;
pub(crate) use watch::{Recipient, Watch};

/// A step hangs if it takes longer than this, and more than `HANG_TIMES` its usual time. A driver may compile a
/// kernel in it.
const HANG_LEAST: Duration = Duration::from_secs(30);
const HANG_TIMES: u32 = 20;
/// Limit of the first step after set-up, in which a driver may compile every kernel.
const FIRST_STEP: Duration = Duration::from_secs(120);
/// Runs of a step that is measured.
const WARM_RUNS: u32 = 3;
/// Delay before the second set-up of a failed device; doubles up to `RETRY_LONGEST`.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Faults, each within `GPU_FAULTS_WITHIN` of the last, after which a GPU is given up for the CPU.
const GPU_FAULTS: u32 = 3;
const GPU_FAULTS_WITHIN: Duration = Duration::from_secs(600);

/// Time limits that tests shorten.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    /// Shortest time after which a step hangs.
    pub(crate) hang_least: Duration,
    /// Limit of the first step, before any was measured.
    pub(crate) first_step: Duration,
    /// Delay before the second set-up of a device.
    pub(crate) retry_first: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { hang_least: HANG_LEAST, first_step: FIRST_STEP, retry_first: RETRY_FIRST }
    }
}

impl Tuning {
    /// Time after which a step hangs that usually takes `usual`.
    pub(crate) fn hang(&self, usual: Duration) -> Duration {
        self.hang_least.max(usual.saturating_mul(HANG_TIMES))
    }
}

/// Runs the steps of a model.
pub(crate) trait Runner: Send {
    /// Runs one step. Returns the values of the picked rows, one after the other.
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError>;
    /// Copies all keys and values of a page to another. Returns false if that is not possible; the tokens are
    /// prefilled again then.
    fn copy_page(&mut self, from: u32, to: u32) -> bool {
        let _ = (from, to);
        false
    }
}

/// Placeholder for a runner whose memory was released.
struct Released;

impl Runner for Released {
    fn forward(&mut self, _: &Batch) -> Result<Vec<f32>, EngineError> {
        Err(EngineError::Device("the device is being set up again".into()))
    }
}

struct DecoderRunner(Loaded);

impl Runner for DecoderRunner {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        self.0.model.forward(self.0.executor.as_mut(), batch)
    }
    fn copy_page(&mut self, from: u32, to: u32) -> bool {
        self.0.executor.copy_page(from, to)
    }
}

struct EncoderRunner(LoadedEncoder);

impl Runner for EncoderRunner {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        self.0.model.forward(self.0.executor.as_mut(), batch)
    }
}

/// Device on which a runner is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RebuildTarget<'a> {
    /// The device that the options request.
    Requested,
    /// The CPU, with the reason for not using the requested device.
    Processor(&'a str),
}

/// A new runner, and its placement.
pub(crate) struct Made {
    pub(crate) runner: Box<dyn Runner>,
    pub(crate) placement: Placement,
}

type Make = Box<dyn FnMut(RebuildTarget<'_>) -> Result<Made, LoadError> + Send>;

/// A runner, and the function that makes a replacement.
pub(crate) struct Rebuildable {
    runner: Box<dyn Runner>,
    make: Make,
    /// Bytes of the file, which a step of one row reads.
    file_bytes: u64,
    /// True if the CPU may replace a GPU.
    may_fall_back: bool,
    on_gpu: bool,
    placement: Arc<Mutex<Placement>>,
    /// Consecutive GPU faults, each soon after the last, and the time of the last.
    faults: u32,
    last_fault: Option<Instant>,
    /// Guard for the memory. The last field, so that it is dropped after the runner.
    _hold: Hold,
}

/// Measurements of a model's first run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// Tokens per second: decoded by one sequence, or read by an encoder.
    pub(crate) rate: f64,
    /// Duration of a step of one row.
    pub(crate) step: Duration,
}

impl Rebuildable {
    pub(crate) fn new(made: Made, may_fall_back: bool, file_bytes: u64, make: Make) -> Self {
        let on_gpu = made.placement.device.kind != CPU;
        let placement = Arc::new(Mutex::new(made.placement));
        let (runner, nothing) = (made.runner, Box::new(()));
        Self { runner, make, file_bytes, may_fall_back, on_gpu, placement, faults: 0, last_fault: None, _hold: nothing }
    }

    /// Adds a guard that is held for the memory.
    pub(crate) fn holding(self, hold: Hold) -> Self {
        Self { _hold: hold, ..self }
    }

    /// A decoder that is reloaded from its file with the same options.
    pub(crate) fn decoder(loaded: Loaded, file_bytes: u64, options: &LoadOptions) -> Self {
        let (sizes, vocabulary, options) = (loaded.sizes, loaded.vocabulary, options.clone());
        let may_fall_back = options.device == DeviceChoice::Auto;
        let made = |loaded: Loaded| Made {
            placement: Placement::new(loaded.device.clone(), loaded.memory),
            runner: Box::new(DecoderRunner(loaded)),
        };
        let make = move |target: RebuildTarget<'_>| {
            let mut loaded = model::load(&ModelFile::open(&options.source)?, &options_for(target, &options))?;
            if (loaded.sizes, loaded.vocabulary) != (sizes, vocabulary) {
                return Err(another_model(&options));
            }
            explain(&mut loaded.device.reason, target);
            Ok(made(loaded))
        };
        Self::new(made(loaded), may_fall_back, file_bytes, Box::new(make))
    }

    /// As [`Self::decoder`], for an encoder.
    pub(crate) fn encoder(loaded: LoadedEncoder, file_bytes: u64, options: &LoadOptions) -> Self {
        let (shape, options) = (loaded.shape.clone(), options.clone());
        let may_fall_back = options.device == DeviceChoice::Auto;
        let made = |loaded: LoadedEncoder| Made {
            placement: Placement::new(loaded.device.clone(), loaded.memory),
            runner: Box::new(EncoderRunner(loaded)),
        };
        let make = move |target: RebuildTarget<'_>| {
            let mut loaded = model::load_encoder(&ModelFile::open(&options.source)?, &options_for(target, &options))?;
            if loaded.shape != shape {
                return Err(another_model(&options));
            }
            explain(&mut loaded.device.reason, target);
            Ok(made(loaded))
        };
        Self::new(made(loaded), may_fall_back, file_bytes, Box::new(make))
    }

    /// Shared placement, which other threads read.
    pub(crate) fn placement(&self) -> Arc<Mutex<Placement>> {
        self.placement.clone()
    }

    /// Runs a step. A panic of a driver counts as a device error.
    pub(crate) fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        let runner = &mut self.runner;
        catch_unwind(AssertUnwindSafe(|| runner.forward(batch)))
            .unwrap_or_else(|panic| Err(EngineError::Device(format!("a panic: {}", panic_message(&*panic)))))
    }

    /// As [`Self::forward`], under the watch: a step that exceeds its limit has failed, whatever its result.
    pub(crate) fn forward_within<R: Recipient>(
        &mut self,
        within: Duration,
        watch: &Watch<R>,
        batch: &Batch,
    ) -> Result<Vec<f32>, EngineError> {
        watch.begin(within);
        let values = self.forward(batch);
        if watch.end() { Err(watch::hangs()) } else { values }
    }

    /// Measures a step. The first run of a shape includes compilation; of the others the fastest counts, since other
    /// load on the machine only adds to it. No further run begins once they took `enough`.
    pub(crate) fn measure<R: Recipient>(
        &mut self,
        within: Duration,
        watch: &Watch<R>,
        batch: &Batch,
        enough: Duration,
    ) -> Result<Duration, EngineError> {
        self.forward_within(within, watch, batch)?;
        let (began, mut took) = (Instant::now(), Duration::MAX);
        for _ in 0..WARM_RUNS {
            let started = Instant::now();
            self.forward_within(within, watch, batch)?;
            took = took.min(started.elapsed());
            if began.elapsed() > enough {
                break;
            }
        }
        Ok(took)
    }

    pub(crate) fn copy_page(&mut self, from: u32, to: u32) -> bool {
        self.runner.copy_page(from, to)
    }

    /// True if the CPU is to be tried when the GPU fails.
    fn falls_back(&self) -> bool {
        self.may_fall_back && self.on_gpu
    }

    /// Records a device fault. Returns true if the GPU has failed too often to be tried again.
    fn failed(&mut self) -> bool {
        let now = Instant::now();
        let close = self.last_fault.is_some_and(|last| now.duration_since(last) < GPU_FAULTS_WITHIN);
        self.faults = if close { self.faults.saturating_add(1) } else { 1 };
        self.last_fault = Some(now);
        self.falls_back() && self.faults >= GPU_FAULTS
    }

    /// Releases the runner's memory before a new one is made: there may be memory for one only.
    fn release(&mut self) {
        self.runner = Box::new(Released);
    }

    fn make(&mut self, target: RebuildTarget<'_>) -> Result<(), String> {
        self.release();
        let make = &mut self.make;
        let made = catch_unwind(AssertUnwindSafe(|| make(target)))
            .map_err(|panic| format!("a panic: {}", panic_message(&*panic)))?
            .map_err(|e| e.to_string())?;
        self.runner = made.runner;
        self.on_gpu = made.placement.device.kind != CPU;
        *self.placement.lock().unwrap_or_else(PoisonError::into_inner) = made.placement;
        Ok(())
    }

    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    fn measured(&self, measured: Measured) {
        let mut placement = self.placement.lock().unwrap_or_else(PoisonError::into_inner);
        placement.rate = measured.rate;
        placement.bandwidth = self.file_bytes as f64 / measured.step.as_secs_f64().max(f64::MIN_POSITIVE);
    }
}

fn options_for(target: RebuildTarget<'_>, options: &LoadOptions) -> LoadOptions {
    let device = match target {
        RebuildTarget::Requested => options.device.clone(),
        RebuildTarget::Processor(_) => DeviceChoice::Cpu,
    };
    LoadOptions { device, ..options.clone() }
}

fn explain(reason: &mut String, target: RebuildTarget<'_>) {
    if let RebuildTarget::Processor(why) = target {
        *reason = format!("device: auto, and the GPU was lost: {why}");
    }
}

fn another_model(options: &LoadOptions) -> LoadError {
    let (path, reason) = (options.source.clone(), "it is another model than the one that was loaded".into());
    LoadError::Corrupt { path, reason }
}

/// Message of a panic.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
