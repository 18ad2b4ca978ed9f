//! Timer that a connection keeps over its requests.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::clock;

/// Timer whose end moves with every request and wait. An end that moves to a later time, as almost all do, costs a comparison:
/// the runtime's timer stays as it was set, fires too early, and is set again then.
#[derive(Default)]
pub struct KeptTimer {
    /// End of the wait; `None` before the first.
    due: Option<Instant>,
    armed: Option<Armed>,
}

/// Timer of the runtime.
struct Armed {
    /// Boxed: it must not move while it waits, and its owner does.
    sleep: Pin<Box<Sleep>>,
    at: Instant,
    /// Waker of the task that it wakes.
    waker: Waker,
}

impl KeptTimer {
    /// Sets the end of the wait.
    pub fn set(&mut self, due: Instant) {
        self.due = Some(due);
    }

    /// Waits for the end that was set last; for ever where none was. May be dropped and called again.
    pub fn expired(&mut self) -> impl Future<Output = ()> + Send + '_ {
        poll_fn(|cx| self.poll_expired(cx))
    }

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.due else { return Poll::Pending };
        let now = clock::now();
        if now >= due {
            return Poll::Ready(());
        }
        match &mut self.armed {
            // It has not fired, and wakes this task in time.
            Some(armed) if now < armed.at && armed.at <= due && armed.waker.will_wake(cx.waker()) => Poll::Pending,
            Some(armed) => {
                armed.sleep.as_mut().reset(due);
                armed.at = due;
                armed.waker.clone_from(cx.waker());
                armed.sleep.as_mut().poll(cx)
            }
            None => {
                let sleep = Box::pin(sleep_until(due));
                let armed = self.armed.insert(Armed { sleep, at: due, waker: cx.waker().clone() });
                armed.sleep.as_mut().poll(cx)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Times after which waits end that last so many seconds each, one begun when the one before is given up after a second.
    #[tokio::test(start_paused = true)]
    async fn the_end_that_was_set_last_counts_whichever_was_armed() {
        for (waits, expected) in
            [(&[10][..], 10), (&[10, 20], 21), (&[20, 10], 11), (&[10, 20, 5], 7), (&[3, 20, 40], 42)]
        {
            let (mut timer, begun) = (KeptTimer::default(), Instant::now());
            for (n, wait) in waits.iter().enumerate() {
                timer.set(Instant::now() + Duration::from_secs(*wait));
                if n + 1 < waits.len() {
                    let given_up = tokio::time::timeout(Duration::from_secs(1), timer.expired()).await;
                    assert!(given_up.is_err(), "{waits:?}");
                }
            }
            timer.expired().await;
            assert_eq!(begun.elapsed().as_secs(), expected, "{waits:?}");
            timer.expired().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_wakes_the_task_that_waits_now() {
        let mut timer = KeptTimer::default();
        timer.set(Instant::now() + Duration::from_secs(10));
        // The first task ends before the timer does.
        let timer = tokio::spawn(async move {
            let _ = tokio::time::timeout(Duration::from_secs(1), timer.expired()).await;
            timer
        });
        let mut timer = timer.await.unwrap();
        tokio::spawn(async move { timer.expired().await }).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_was_never_set_does_not_end() {
        let mut timer = KeptTimer::default();
        assert!(tokio::time::timeout(Duration::from_secs(1000), timer.expired()).await.is_err());
    }
}
