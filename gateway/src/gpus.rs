//! Graphics processors of the machine as NVIDIA's driver tells of them (NVML), whoever uses them: built-in models, or servers
//! beside the gateway. Owns the thread that asks the driver, which may take its time and must not hold up a scrape.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;

use crate::telemetry::GpuSample;

/// Pause between two questions: the driver's own figures of use are means over up to a second.
const EVERY: Duration = Duration::from_secs(5);
/// Age from which figures are no longer shown: the driver has not answered since.
const STALE: Duration = Duration::from_secs(30);
/// Most processors that are told of.
const MOST: u32 = 64;

/// Figures of the last question.
struct Seen {
    at: Instant,
    samples: Vec<GpuSample>,
}

/// Processors that the driver has told of. The thread ends when this is dropped.
pub struct Gpus {
    seen: Arc<Mutex<Option<Seen>>>,
    /// Dropped with this, which ends the thread.
    _end: Sender<()>,
}

impl std::fmt::Debug for Gpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gpus")
    }
}

impl Gpus {
    /// Begins to ask the driver, where the machine has one.
    pub fn watch() -> Self {
        let seen = Arc::<Mutex<Option<Seen>>>::default();
        let ((end, ended), shared) = (channel(), seen.clone());
        let watch = move || {
            let driver = match Nvml::init() {
                Ok(driver) => driver,
                Err(why) => {
                    tracing::debug!(event = "no_gpu_driver", %why);
                    return;
                }
            };
            loop {
                let samples = samples(&driver);
                *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(Seen { at: Instant::now(), samples });
                if ended.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        if let Err(why) = crate::idle_thread::spawn("gpus", watch) {
            tracing::warn!(event = "gpus_not_watched", %why);
        }
        Self { seen, _end: end }
    }

    /// Processors with their figures; none where the driver has not answered for a while.
    pub fn samples(&self) -> Vec<GpuSample> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.as_ref().filter(|seen| seen.at.elapsed() < STALE).map(|seen| seen.samples.clone()).unwrap_or_default()
    }
}

fn samples(driver: &Nvml) -> Vec<GpuSample> {
    let count = driver.device_count().unwrap_or(0).min(MOST);
    let sample = |index: u32| {
        let device = driver.device_by_index(index).ok()?;
        let memory = device.memory_info().ok();
        Some(GpuSample {
            index,
            uuid: device.uuid().unwrap_or_default(),
            name: device.name().unwrap_or_default(),
            busy: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
            memory: memory.map(|memory| (memory.used, memory.total)),
            temperature: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
            power: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1000.0),
        })
    };
    (0..count).filter_map(sample).collect()
}
