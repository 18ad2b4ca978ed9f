//! Watchdog for steps that do not end. The engine's own thread is blocked in the driver then; the watchdog fails the
//! requests, marks the model as not ready and logs the hang.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::EngineError;

/// Receiver of a request's result.
pub(crate) trait Recipient: Send + 'static {
    /// Fails the request; no event follows.
    fn fail(self, error: EngineError);
}

/// State shared by the engine's thread and the watchdog.
struct WatchState<R> {
    /// Time by which the current step must have ended.
    until: Option<Instant>,
    /// True while the watchdog sleeps.
    sleeps: bool,
    /// Time at which it wakes; `None` if only the next step wakes it.
    sleeps_until: Option<Instant>,
    /// The current step has exceeded its limit.
    hung: bool,
    ended: bool,
    /// Receivers of the requests in the current step.
    recipients: Vec<R>,
}

struct Watched<R> {
    state: Mutex<WatchState<R>>,
    changed: Condvar,
}

/// Engine's side of the watchdog; the thread ends when this is dropped.
pub(crate) struct Watch<R: Recipient> {
    shared: Arc<Watched<R>>,
}

impl<R: Recipient> Watch<R> {
    /// Starts the thread. `on_hang` is called once for each step that hangs.
    pub(crate) fn start(name: &str, on_hang: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let state = WatchState {
            until: None,
            sleeps: false,
            sleeps_until: None,
            hung: false,
            ended: false,
            recipients: Vec::new(),
        };
        let shared = Arc::new(Watched { state: Mutex::new(state), changed: Condvar::new() });
        let watched = shared.clone();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || watch(&watched, &on_hang))?;
        Ok(Self { shared })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, WatchState<R>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the receivers to be failed when a step hangs.
    pub(crate) fn recipients(&self, recipients: Vec<R>) {
        self.state().recipients = recipients;
    }

    /// Begins a step that must end within this time.
    pub(crate) fn begin(&self, within: Duration) {
        let mut state = self.state();
        state.until = Instant::now().checked_add(within);
        // An earlier step may have had a later limit.
        if state.sleeps && state.sleeps_until.is_none_or(|wakes| state.until.is_some_and(|until| until < wakes)) {
            self.shared.changed.notify_one();
        }
    }

    /// Ends a step. Returns true if it exceeded its limit.
    pub(crate) fn end(&self) -> bool {
        let mut state = self.state();
        state.until = None;
        std::mem::take(&mut state.hung)
    }
}

impl<R: Recipient> Drop for Watch<R> {
    fn drop(&mut self) {
        self.state().ended = true;
        self.shared.changed.notify_one();
    }
}

/// Error of a step that hangs.
pub(super) fn hangs() -> EngineError {
    EngineError::Device("a step has not ended in time".into())
}

fn watch<R: Recipient>(shared: &Watched<R>, on_hang: &dyn Fn()) {
    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    while !state.ended {
        let now = Instant::now();
        match state.until.filter(|_| !state.hung) {
            Some(until) if now >= until => {
                state.hung = true;
                // First, so that a caller who is answered below and asks again at once is told the reason as well.
                on_hang();
                for recipient in state.recipients.drain(..) {
                    recipient.fail(hangs());
                }
            }
            Some(until) => {
                (state.sleeps, state.sleeps_until) = (true, Some(until));
                let left = until.saturating_duration_since(now);
                (state, _) = shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
                state.sleeps = false;
            }
            None => {
                (state.sleeps, state.sleeps_until) = (true, None);
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeps = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::Event;

    #[test]
    fn a_step_that_does_not_end_is_told_once_to_all_who_wait() {
        let hangs = Arc::new(AtomicUsize::new(0));
        let (counted, (events, recipient)) = (hangs.clone(), async_channel::bounded(1));
        let told_late = recipient.clone();
        let watch = Watch::start("watch", move || {
            assert!(told_late.is_empty(), "who is told finds the model marked already");
            counted.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
        watch.recipients(vec![events]);
        for _ in 0..100 {
            watch.begin(Duration::from_secs(60));
            assert!(!watch.end());
        }
        // The watchdog sleeps for a step that has a minute; a shorter limit must wake it.
        watch.begin(Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!watch.end());
        watch.begin(Duration::from_millis(20));
        let told = recipient.recv_blocking().unwrap();
        assert!(matches!(told, Event::Failed(EngineError::Device(_))));
        assert!(recipient.recv_blocking().is_err(), "nothing follows");
        std::thread::sleep(Duration::from_millis(60));
        assert!(watch.end());
        assert_eq!(hangs.load(Ordering::SeqCst), 1);
        watch.begin(Duration::from_secs(60));
        assert!(!watch.end());
    }
}
