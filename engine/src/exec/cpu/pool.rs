//! Threads of the executor. The pool distributes the parts of one operation at a time and knows nothing of their
//! content. Parts are claimed one by one, so that a thread that the system keeps from running delays no more than the
//! part that it has. The caller works too and never waits for a sleeping thread.
//!
//! Why not a general pool: an operation of a small model lasts some ten microseconds, of which its dispatch would
//! take a good part. Threads spin for the next operation for [`SPIN_TIME`] and then sleep, so that an idle engine costs
//! nothing.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time that a thread spins for the next operation before it sleeps: longer than a scheduler takes between two steps.
const SPIN_TIME: Duration = Duration::from_micros(300);
/// Spins between two readings of the clock.
const SPINS_PER_CLOCK: u32 = 64;
/// Spins of the caller, waiting for the others' last parts, before it yields its core.
const SPINS_BEFORE_YIELD: u32 = 4000;
/// Bit of the gate that is set while no operation runs; the bits below count the threads inside.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// Parts of an operation: called with the part's number and the thread's.
type Work<'a> = dyn Fn(usize, usize) + Sync + 'a;

struct PoolState {
    /// Number of threads in the current operation, and whether there is one.
    gate: AtomicUsize,
    next: AtomicUsize,
    parts: AtomicUsize,
    work: UnsafeCell<Option<*const Work<'static>>>,
    /// Counts operations; sleeping threads wait for it to change.
    rounds: AtomicUsize,
    sleepers: AtomicUsize,
    sleep_lock: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
    failed: AtomicBool,
}

// SAFETY: `work` is written only by the one caller of `Pool::run` while the gate is closed and no thread is inside.
// Only threads that are inside read it; the gate's orderings put the write before the reads. The pointee is `Sync`.
unsafe impl Sync for PoolState {}
// SAFETY: the pointer in `work` is null or used as said above, wherever the value lies.
unsafe impl Send for PoolState {}

/// Leaves the gate on drop, also when a part panics.
struct Inside<'a>(&'a PoolState);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Release);
        }
        self.0.gate.fetch_sub(1, Ordering::Release);
    }
}

impl PoolState {
    /// Works on parts of the current operation until none are left.
    fn help(&self, thread: usize) {
        let before = self.gate.fetch_add(1, Ordering::Acquire);
        let inside = Inside(self);
        if before & CLOSED == 0 {
            // SAFETY: the gate was open when this thread entered, and is not opened for another operation before it
            // left.
            if let Some(work) = unsafe { *self.work.get() } {
                // SAFETY: `run` waits until every thread left before the borrow behind the pointer ends.
                self.take(unsafe { &*work }, thread);
            }
        }
        drop(inside);
    }

    fn take(&self, work: &Work<'_>, thread: usize) {
        let parts = self.parts.load(Ordering::Relaxed);
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return;
            }
            work(part, thread);
        }
    }

    /// Main loop of a thread.
    fn serve(&self, thread: usize) {
        let mut seen = 0;
        while !self.stop.load(Ordering::Acquire) {
            let mut spins = 0u32;
            let mut since = None;
            loop {
                let rounds = self.rounds.load(Ordering::Acquire);
                if rounds != seen {
                    seen = rounds;
                    break;
                }
                spins += 1;
                if !spins.is_multiple_of(SPINS_PER_CLOCK)
                    || since.get_or_insert_with(Instant::now).elapsed() < SPIN_TIME
                {
                    std::hint::spin_loop();
                    continue;
                }
                let mut sleep_lock = self.sleep_lock.lock().unwrap_or_else(PoisonError::into_inner);
                // Sequentially consistent with `run`: either it sees the sleeper or the sleeper sees the new round.
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while self.rounds.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::Acquire) {
                    sleep_lock = self.wake.wait(sleep_lock).unwrap_or_else(PoisonError::into_inner);
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
                break;
            }
            self.help(thread);
        }
    }

    fn ring(&self) {
        let sleep_lock = self.sleep_lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.wake.notify_all();
        drop(sleep_lock);
    }
}

/// Threads that share the work of one caller.
pub(super) struct Pool {
    shared: Arc<PoolState>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of this many threads, the caller among them. Runs with fewer if a thread cannot be started.
    pub(super) fn new(threads: usize) -> Self {
        let shared = Arc::new(PoolState {
            gate: AtomicUsize::new(CLOSED),
            next: AtomicUsize::new(0),
            parts: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            rounds: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            sleep_lock: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        });
        let start = |thread: usize| {
            let shared = shared.clone();
            let builder = std::thread::Builder::new().name(format!("engine-cpu-{thread}"));
            builder.spawn(move || {
                crate::scheduler::lower_priority();
                shared.serve(thread);
            })
        };
        // Numbered without a gap, since each has memory of its own by its number.
        let mut started = Vec::new();
        for _ in 1..threads {
            started.extend(start(started.len() + 1));
        }
        Self { shared, threads: started }
    }

    /// Threads, the caller among them.
    pub(super) fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `work(part, thread)` for every part below `parts`, each once, and returns when all are done.
    pub(super) fn run(&mut self, parts: usize, work: &Work<'_>) {
        if self.threads.is_empty() || parts <= 1 {
            (0..parts).for_each(|part| work(part, 0));
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed; the pointer is not used after the gate is closed and empty, below.
        let work_ptr: *const Work<'static> = unsafe { std::mem::transmute::<&Work<'_>, &'static Work<'static>>(work) };
        // SAFETY: the gate is closed and empty (`&mut self`, and `Closing` of the last call), so nobody reads it.
        unsafe { *shared.work.get() = Some(work_ptr) };
        shared.next.store(0, Ordering::Relaxed);
        shared.parts.store(parts, Ordering::Relaxed);
        shared.gate.fetch_and(!CLOSED, Ordering::Release);
        // Closes the gate and waits for those inside, also when a part of the caller's panics.
        struct Closing<'a>(&'a PoolState);
        impl Drop for Closing<'_> {
            fn drop(&mut self) {
                self.0.gate.fetch_or(CLOSED, Ordering::AcqRel);
                let mut spins = 0u32;
                while self.0.gate.load(Ordering::Acquire) != CLOSED {
                    spins += 1;
                    if spins < SPINS_BEFORE_YIELD { std::hint::spin_loop() } else { std::thread::yield_now() }
                }
            }
        }
        let closing = Closing(shared);
        shared.rounds.fetch_add(1, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            shared.ring();
        }
        shared.take(work, 0);
        drop(closing);
    }

    /// True if a thread has failed since the last call: results since then are incomplete.
    pub(super) fn take_failure(&self) -> bool {
        self.shared.failed.swap(false, Ordering::AcqRel)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.rounds.fetch_add(1, Ordering::SeqCst);
        self.shared.ring();
        for thread in self.threads.drain(..) {
            // A thread that panicked has reported it already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_once_whether_threads_sleep_or_not() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads);
            for round in 0..2000 {
                let parts = round % 13;
                let counts: Vec<_> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                pool.run(parts, &|part, thread| {
                    assert!(thread < threads);
                    counts[part].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                if round % 500 == 0 {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
            assert!(!pool.take_failure());
        }
    }

    #[test]
    fn a_part_that_panics_on_a_thread_is_told_and_hangs_nobody() {
        let mut pool = Pool::new(2);
        let told = (0..200).any(|_| {
            pool.run(64, &|_, thread| {
                std::thread::sleep(std::time::Duration::from_micros(50));
                assert!(thread == 0, "on purpose");
            });
            pool.take_failure()
        });
        assert!(told);
        pool.run(3, &|_, _| {});
    }
}
