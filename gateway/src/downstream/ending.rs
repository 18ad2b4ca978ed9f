//! Moment at which every request must end, because `shutdown.drainTimeout` is over.

use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use tokio::sync::Notify;

/// Flag that wakes the tasks of all requests when it is raised. A look at the flag is one atomic read.
/// [`Ending::watch`] registers a task once and not for each wait, so that requests of different threads share no lock.
#[derive(Debug, Default)]
pub struct Ending {
    is_over: AtomicBool,
    wake: Notify,
}

impl Ending {
    /// Ends all requests.
    pub fn begin(&self) {
        self.is_over.store(true, Ordering::Release);
        self.wake.notify_waiters();
    }

    /// True once requests must end.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Waits until requests must end, in a task that runs inside [`Ending::watch`].
    pub fn over(&self) -> impl Future<Output = ()> + Send + '_ {
        poll_fn(|_| if self.is_over() { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Runs the future of a task, which is woken when requests must end. The future must not move to another task. It is moved
    /// once more than others: a large one comes in a box.
    pub async fn watch<F: Future>(&self, task: F) -> F::Output {
        let mut notified = std::pin::pin!(self.wake.notified());
        // Registers the task's waker; the flag tells why the task was woken.
        let _ = poll_fn(|cx| Poll::Ready(notified.as_mut().poll(cx))).await;
        task.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_watched_task_is_woken_whether_it_began_before_or_after() {
        let ending = Arc::new(Ending::default());
        let wait = |ending: Arc<Ending>| tokio::spawn(async move { ending.watch(ending.over()).await });
        let before = wait(ending.clone());
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!before.is_finished() && !ending.is_over());
        ending.begin();
        before.await.unwrap();
        wait(ending.clone()).await.unwrap();
    }
}
