//! Health of a model's thread: written by the thread and its watchdog, read by callers without asking them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Health of a model's thread.
#[derive(Debug, Default)]
pub(crate) struct ThreadHealth {
    stopped: AtomicBool,
    /// The device has failed and is set up again.
    recovering: AtomicBool,
    faults: AtomicU64,
}

impl ThreadHealth {
    /// Records that the thread has ended, or has to end.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Records a device fault, or the recovery from it.
    pub(crate) fn set_recovering(&self, recovering: bool) {
        if !self.recovering.swap(recovering, Ordering::AcqRel) && recovering {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_recovering(&self) -> bool {
        self.recovering.load(Ordering::Acquire)
    }

    /// Records a step that hangs. In the first step (`at_first`) the model is given up.
    pub(crate) fn note_hang(&self, at_first: bool) {
        if at_first {
            self.stop();
        }
        self.set_recovering(true);
    }

    /// True if the thread runs on a working device.
    pub(crate) fn is_ready(&self) -> bool {
        !self.is_stopped() && !self.is_recovering()
    }

    /// Device faults so far.
    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }
}
