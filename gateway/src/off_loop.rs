//! Work on large bodies that does not delay other requests. A worker thread that reads twenty megabytes of JSON answers no
//! request meanwhile. So such work is announced to the runtime, which moves the other tasks of that thread to another one.
//! The number of threads that do such work is limited.

use std::time::Duration;

use http::StatusCode;
use prometheus_client::metrics::counter::Counter;
use spillway_filter::{ErrorKind, Refusal};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;

use crate::clock;
use crate::telemetry::{BodyRefusal, Metrics};

/// Largest body that is read without announcement, in bytes: one pass takes a fraction of a millisecond, less than moving
/// the other tasks.
pub const INLINE: usize = 256 << 10;

/// Weight of work that builds a value of every element of a body, relative to one pass over its bytes. Lists of small
/// numbers were measured at ten passes.
pub const BUILDS_VALUES: usize = 8;

/// Longest wait for a turn. Waiting requests hold memory of the budget for bodies, which bounds their number.
const WAIT: Duration = Duration::from_secs(10);

/// Limits concurrent work on large bodies.
pub struct OffLoop {
    turns: Semaphore,
    refused: Counter,
}

impl OffLoop {
    /// Uses half of the processors, at least one: the others serve small requests.
    pub fn new(metrics: &Metrics) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            turns: Semaphore::new((processors / 2).max(1)),
            refused: metrics.bodies_refused.series(BodyRefusal::Busy),
        }
    }

    /// Runs work on `bytes` bytes: at once if the body is small, else in its turn and apart from the other tasks.
    ///
    /// # Errors
    /// A refusal if no turn is free within [`WAIT`].
    pub async fn run<T>(&self, bytes: usize, work: impl FnOnce() -> T) -> Result<T, Box<Refusal>> {
        if bytes <= INLINE {
            return Ok(work());
        }
        let turn = tokio::time::timeout(WAIT, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            self.refused.inc();
            let message = "too many large bodies wait to be read; try again";
            let kind = ErrorKind::Overloaded;
            let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, kind, "body_readers_busy", message);
            return Err(Box::new(refusal.retry_after(Duration::from_secs(1))));
        };
        let done = if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
            work()
        } else {
            tokio::task::block_in_place(work)
        };
        clock::renew();
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn with(turns: usize) -> Arc<OffLoop> {
        Arc::new(OffLoop { turns: Semaphore::new(turns), refused: Counter::default() })
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn large_work_leaves_the_thread_to_others_and_takes_turns() {
        let (off_loop, at_once, most) = (with(1), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(parking_lot::Mutex::new(wait));
        let works: Vec<_> = (0..2)
            .map(|_| {
                let (off_loop, at_once, most, wait) = (off_loop.clone(), at_once.clone(), most.clone(), wait.clone());
                tokio::spawn(async move {
                    let work = || {
                        most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        // Held up until another task of the same, only thread lets it go on.
                        wait.lock().recv().unwrap();
                        at_once.fetch_sub(1, Ordering::SeqCst);
                    };
                    off_loop.run(INLINE + 1, work).await.unwrap();
                })
            })
            .collect();
        tokio::spawn(async move {
            for _ in 0..2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                go.send(()).unwrap();
            }
        });
        for work in works {
            work.await.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), 1, "one turn is one at a time");
    }

    #[tokio::test(start_paused = true)]
    async fn small_work_waits_for_nobody_and_large_work_not_forever() {
        let off_loop = with(0);
        assert_eq!(off_loop.run(INLINE, || 7).await.unwrap(), 7);
        let refusal = off_loop.run(INLINE + 1, || 7).await.unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.code), (503, "body_readers_busy"));
        assert_eq!(off_loop.refused.get(), 1);
    }
}
