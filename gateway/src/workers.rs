//! Workers: threads that serve HTTP/1 connections, one for each processor. A connection stays with its worker from its first
//! request to its end, and so do the upstream connections that it uses: no thread waits for another, and none wakes another.
//!
//! All else runs on the shared runtime: the opening of connections, HTTP/2, whose connections have work for many processors,
//! health checks, models, the admin address.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Time between two looks whether a worker runs its tasks.
const LOOK: Duration = Duration::from_secs(1);

/// Time for a worker to run a task that does nothing. One that serves requests gets to it within milliseconds, and within tenths
/// of a second on a machine that has too much to do.
const PATIENCE: Duration = Duration::from_secs(2);

thread_local! {
    /// Number of the worker that this thread belongs to; 0 for the shared runtime.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Number of the worker that runs this code, from 1; 0 where the shared runtime does.
pub fn current() -> usize {
    CURRENT.get()
}

/// Worker.
struct Worker {
    runtime: Handle,
    /// Connections that it serves.
    connections: AtomicUsize,
    /// True while its thread stands still.
    is_stalled: AtomicBool,
}

/// Workers of the process.
#[derive(Clone)]
pub struct Workers(Arc<[Worker]>);

/// Runtimes of the workers. They end when this is dropped, without waiting for their tasks.
pub struct WorkerRuntimes(Vec<Runtime>);

/// Connection that a worker serves, counted until it is dropped.
pub struct Assigned {
    workers: Workers,
    number: usize,
}

impl Workers {
    /// Starts as many workers as the shared runtime has threads.
    ///
    /// # Errors
    /// The system refused a thread or a descriptor.
    pub fn start(shared: &Handle) -> io::Result<(Self, WorkerRuntimes)> {
        let runtimes = (1..=shared.metrics().num_workers())
            .map(|number| {
                // One thread of the kind that can leave its tasks to another thread, for work on large bodies.
                Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .thread_name("worker")
                    .on_thread_start(move || CURRENT.set(number))
                    .build()
            })
            .collect::<io::Result<Vec<_>>>()?;
        let worker = |runtime: &Runtime| Worker {
            runtime: runtime.handle().clone(),
            connections: AtomicUsize::new(0),
            is_stalled: AtomicBool::new(false),
        };
        Ok((Self(runtimes.iter().map(worker).collect()), WorkerRuntimes(runtimes)))
    }

    /// Watches the workers until the returned tasks are dropped. One that runs no task is logged, counted in `stalled`, and gets
    /// no further connection until it goes on.
    pub fn watch(&self, stalled: &Gauge) -> JoinSet<()> {
        (0..self.0.len()).map(|number| watch(self.clone(), number, stalled.clone())).collect()
    }

    /// Assigns a connection to the worker with the fewest connections, of those that go on.
    pub fn assign(&self) -> Assigned {
        let load =
            |worker: &Worker| (worker.is_stalled.load(Ordering::Relaxed), worker.connections.load(Ordering::Relaxed));
        let fewest = self.0.iter().enumerate().min_by_key(|(_, worker)| load(worker));
        let number = fewest.map_or(0, |(number, _)| number);
        if let Some(worker) = self.0.get(number) {
            worker.connections.fetch_add(1, Ordering::Relaxed);
        }
        Assigned { workers: self.clone(), number }
    }
}

impl Assigned {
    /// Runs the connection on its worker, counted to its end.
    pub fn run(self, connection: impl Future<Output = ()> + Send + 'static) {
        let runtime = self.workers.0.get(self.number).map(|worker| worker.runtime.clone());
        let counted = async move {
            let _assigned = self;
            connection.await;
        };
        if let Some(runtime) = runtime {
            runtime.spawn(counted);
        }
    }
}

impl Drop for Assigned {
    fn drop(&mut self) {
        if let Some(worker) = self.workers.0.get(self.number) {
            worker.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for WorkerRuntimes {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Runtime::shutdown_background);
    }
}

/// Watches one worker.
async fn watch(workers: Workers, number: usize, stalled: Gauge) {
    let Some(worker) = workers.0.get(number) else { return };
    loop {
        sleep(LOOK).await;
        let mut probe = worker.runtime.spawn(async {});
        let asked = Instant::now();
        if timeout(PATIENCE, &mut probe).await.is_ok() {
            continue;
        }
        worker.is_stalled.store(true, Ordering::Relaxed);
        stalled.inc();
        let connections = worker.connections.load(Ordering::Relaxed);
        tracing::warn!(event = "worker_stalled", worker = number, connections);
        // Ends with the runtime at the latest.
        let _ = probe.await;
        worker.is_stalled.store(false, Ordering::Relaxed);
        stalled.dec();
        tracing::info!(event = "worker_resumed", worker = number, seconds = asked.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn start(runtime: &Runtime) -> (Workers, WorkerRuntimes) {
        Workers::start(runtime.handle()).unwrap()
    }

    fn shared() -> Runtime {
        Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    #[test]
    fn connections_are_spread_and_code_knows_its_worker() {
        let runtime = shared();
        let (workers, runtimes) = start(&runtime);
        let numbers = |count: usize| {
            let assigned: Vec<_> = (0..count).map(|_| workers.assign()).collect();
            (assigned.iter().map(|one| one.number).collect::<Vec<_>>(), assigned)
        };
        let (spread, mut held) = numbers(4);
        assert_eq!(spread, [0, 1, 0, 1]);
        // The first worker has one left, and gets the next two of three.
        held.remove(0);
        drop(held);
        let first = workers.assign();
        let (spread, _others) = numbers(2);
        assert_eq!((first.number, spread), (0, vec![1, 0]));
        let (send, told) = mpsc::channel();
        for assigned in [first, workers.assign()] {
            let (send, number) = (send.clone(), assigned.number);
            assigned.run(async move {
                // Work on a large body leaves the thread to others, and the number with it.
                let inside = tokio::task::block_in_place(current);
                send.send((number + 1, inside, current())).unwrap();
            });
        }
        for _ in 0..2 {
            let (expected, inside, after) = told.recv().unwrap();
            assert_eq!((inside, after), (expected, expected));
        }
        assert_eq!(current(), 0);
        drop(runtimes);
    }

    #[test]
    fn a_worker_that_stands_still_gets_no_further_connection_until_it_goes_on() {
        let runtime = shared();
        let (workers, runtimes) = start(&runtime);
        let stalled = Gauge::default();
        let _watching = {
            let _within = runtime.enter();
            workers.watch(&stalled)
        };
        let (go_on, wait) = mpsc::channel::<()>();
        workers.assign().run(async move {
            let _ = wait.recv();
        });
        let until = |count: i64| {
            let since = Instant::now();
            while stalled.get() != count {
                assert!(since.elapsed() < Duration::from_secs(60));
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        until(1);
        let assigned: Vec<_> = (0..5).map(|_| workers.assign().number).collect();
        assert_eq!(assigned, [1; 5]);
        go_on.send(()).unwrap();
        until(0);
        let assigned: Vec<_> = (0..2).map(|_| workers.assign()).collect();
        assert!(assigned.iter().any(|one| one.number == 0));
        drop(runtimes);
    }
}
