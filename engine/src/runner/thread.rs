//! Callers' side of the thread that owns a loaded model.

use std::sync::{Arc, Mutex, PoisonError};

use async_channel::{Sender, TrySendError};

use super::health::ThreadHealth;
use crate::Placement;

/// The thread of a model, as its callers know it. Dropping it ends the thread.
pub(crate) struct ModelThread<Job> {
    jobs: Sender<Job>,
    health: Arc<ThreadHealth>,
    placement: Arc<Mutex<Placement>>,
}

impl<Job> ModelThread<Job> {
    pub(crate) fn new(jobs: Sender<Job>, health: Arc<ThreadHealth>, placement: Arc<Mutex<Placement>>) -> Self {
        Self { jobs, health, placement }
    }

    /// Hands a job to the thread, or returns it where the queue is full or the thread has ended.
    pub(crate) fn send(&self, job: Job) -> Result<(), TrySendError<Job>> {
        self.jobs.try_send(job)
    }

    /// Jobs that the thread has not received yet.
    pub(crate) fn queued(&self) -> usize {
        self.jobs.len()
    }

    /// Device that the model runs on now.
    pub(crate) fn placement(&self) -> Placement {
        self.placement.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True once the thread has ended: no job is accepted any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.health.is_stopped()
    }

    /// Ends the thread: its running jobs fail.
    pub(crate) fn shutdown(&self) {
        self.health.stop();
        self.jobs.close();
    }
}

impl<Job> Drop for ModelThread<Job> {
    fn drop(&mut self) {
        self.shutdown();
    }
}
