//! Threads for work that takes milliseconds, which must not hold up the threads of requests. Owns the threads: they end when the
//! last filter that uses them is gone. What waits is bounded.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Most work that waits for a thread: some seconds of it at the usual cost of a password.
const QUEUE: usize = 32;

type Work = Box<dyn FnOnce() + Send>;

/// Threads with their queue.
pub(super) struct Turns {
    queue: SyncSender<Work>,
}

impl Turns {
    /// Starts as many threads as half of the processors, at least one: the others serve requests.
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with((processors / 2).max(1), QUEUE)
    }

    /// Starts so many threads, for which so much work may wait.
    pub(super) fn with(threads: usize, waiting: usize) -> Self {
        let (queue, work) = sync_channel(waiting);
        let work = Arc::new(Mutex::new(work));
        for n in 0..threads {
            let work = work.clone();
            // Without a thread the queue is closed, and nothing is taken into it.
            let _ = std::thread::Builder::new().name(format!("password-{n}")).spawn(move || run(&work));
        }
        Self { queue }
    }

    /// Has work done, or not: false where too much waits already.
    pub(super) fn submit(&self, work: impl FnOnce() + Send + 'static) -> bool {
        !matches!(self.queue.try_send(Box::new(work)), Err(TrySendError::Full(_) | TrySendError::Disconnected(_)))
    }
}

/// Does work until nobody can submit any.
fn run(work: &Mutex<Receiver<Work>>) {
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(work) => work(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn work_waits_in_a_bounded_queue_and_the_threads_end_with_it() {
        let turns = Turns::with(1, 1);
        let ((started, is_started), (go, wait), (done, results)) = (channel(), channel::<()>(), channel());
        let ended = done.clone();
        assert!(turns.submit(move || {
            started.send(()).unwrap();
            wait.recv().unwrap();
            done.send(1).unwrap();
        }));
        is_started.recv().unwrap();
        assert!(turns.submit(move || ended.send(2).unwrap()), "one waits");
        assert!(!turns.submit(|| {}), "no more does");
        go.send(()).unwrap();
        assert_eq!((results.recv(), results.recv()), (Ok(1), Ok(2)));
        drop(turns);
        assert!(results.recv().is_err(), "nothing holds the work any more");
    }
}
