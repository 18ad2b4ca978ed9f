//! After a fault of the device: those who ran are told, and the model is set up again from its file, on a new device.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::masks::Masks;
use super::pages::Pages;
use super::runner::Runner;
use super::{RETRY_LONGEST, Worker};
use crate::EngineError;
use crate::exec::Batch;

/// How often a thread that waits looks whether the engine ends.
const LOOK: Duration = Duration::from_millis(50);

/// Stands where a runner was whose memory has been given back.
struct Gone;

impl Runner for Gone {
    fn forward(&mut self, _: &Batch) -> Result<Vec<f32>, EngineError> {
        Err(EngineError::Device("it is being set up again".into()))
    }
    fn copy_page(&mut self, _: u32, _: u32) -> bool {
        false
    }
}

/// What a panic said.
pub(super) fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

impl Worker {
    /// Ends what ran and sets the device up again, however long that takes. False when the engine ends meanwhile.
    pub(super) fn recover(&mut self, fault: &EngineError) -> bool {
        self.shared.set_recovering(true);
        tracing::error!(event = "device_failed", model = %self.name, reason = %fault, requests = self.running.len());
        for request in std::mem::take(&mut self.running) {
            self.let_go(&request);
            request.fail(fault.clone());
        }
        self.tell_watch();
        self.pages = Pages::new(self.sizes);
        self.masks = Masks::default();
        self.shared.set_running(0, 0, 0);
        // The old device goes before the new one comes: there may be memory for one only.
        self.made.runner = Box::new(Gone);
        let mut pause = self.tuning.retry_first;
        loop {
            let started = Instant::now();
            match self.rebuild() {
                Ok(()) => {
                    self.shared.set_recovering(false);
                    let seconds = started.elapsed().as_secs_f64();
                    tracing::info!(event = "device_recovered", model = %self.name, seconds);
                    return true;
                }
                Err(reason) => {
                    let retry_after = pause.as_secs_f64();
                    tracing::error!(event = "device_not_recovered", model = %self.name, %reason, retry_after);
                }
            }
            while let Ok(job) = self.jobs.try_recv() {
                self.waiting.push(job);
            }
            for job in self.waiting.drain() {
                self.shared.leave_queue(&job.request);
                job.fail(fault.clone());
            }
            let until = Instant::now() + pause;
            while Instant::now() < until {
                if self.shared.is_stopped() {
                    return false;
                }
                std::thread::sleep(LOOK.min(pause));
            }
            pause = (pause * 2).min(RETRY_LONGEST);
        }
    }

    fn rebuild(&mut self) -> Result<(), String> {
        let made = catch_unwind(AssertUnwindSafe(|| (self.made.rebuild)()));
        self.made.runner = match made {
            Ok(Ok(runner)) => runner,
            Ok(Err(e)) => return Err(e.to_string()),
            Err(panic) => return Err(format!("a panic: {}", text_of(&*panic))),
        };
        self.warm_up().map_err(|e| e.to_string())
    }
}
