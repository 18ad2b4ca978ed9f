//! Open connections of HTTP/1 that carry no request. The last one that was used is taken first: the others reach their longest
//! idle time and are closed, so that a burst leaves nothing behind.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::transport::Transport;
use crate::{clock, workers};

/// Parts of a pool, each with its own lock, so that threads seldom wait for one another.
const SHARDS: usize = 16;

/// Time between two looks for connections that their servers have closed, or that have idled for too long.
const SWEEP: Duration = Duration::from_secs(1);

/// Idle connection.
struct Idle {
    transport: Transport,
    since: Instant,
}

/// Worker that keeps a connection, and key of its peer.
type Place = (usize, u64);

/// Idle connections by their place; the one used last is at the back.
type Peers = HashMap<Place, VecDeque<Idle>, ahash::RandomState>;

/// Part of a pool.
type Shard = Mutex<Peers>;

struct Shared {
    shards: [Shard; SHARDS],
    /// Idle connections of all peers.
    count: AtomicUsize,
    most: usize,
    longest: Duration,
    /// True while a task looks for connections to close.
    is_swept: AtomicBool,
}

/// Pool of idle connections.
pub(super) struct Pool(Arc<Shared>);

impl Pool {
    /// Pool of at most `most` connections, each of which idles for `longest` at most.
    pub(super) fn new(most: usize, longest: Duration) -> Self {
        Self(Arc::new(Shared {
            shards: Default::default(),
            count: AtomicUsize::new(0),
            most,
            longest,
            is_swept: AtomicBool::new(false),
        }))
    }

    /// Takes a connection to the peer with this key that was kept by the worker that asks.
    pub(super) fn take(&self, key: u64) -> Option<Transport> {
        let place = (workers::current(), key);
        loop {
            let idle = self.0.shard(place).get_mut(&place)?.pop_back()?;
            if let Some(transport) = self.0.usable(idle) {
                return Some(transport);
            }
        }
    }

    /// Takes a connection to the peer with this key, whichever worker has kept it. The bytes of one of another worker arrive by
    /// way of that one's thread, which takes longer.
    pub(super) fn take_of_any(&self, key: u64) -> Option<Transport> {
        self.0.shards.iter().find_map(|shard| {
            loop {
                let idle = {
                    let mut shard = lock(shard);
                    let of_peer = shard.iter_mut().filter(|((_, of), _)| *of == key);
                    of_peer.filter_map(|(_, idle)| idle.pop_back()).next()?
                };
                if let Some(transport) = self.0.usable(idle) {
                    return Some(transport);
                }
            }
        })
    }

    /// Keeps a connection for the next request. Where the pool is full, the oldest connection of the same peer is closed, or
    /// else this one.
    pub(super) fn put(&self, key: u64, transport: Transport) {
        let closed = {
            let place = (workers::current(), key);
            let mut shard = self.0.shard(place);
            let is_full = self.0.count.load(Ordering::Relaxed) >= self.0.most;
            let idle = Idle { transport, since: clock::instant() };
            match (is_full, shard.entry(place)) {
                (true, Entry::Occupied(mut peers)) if !peers.get().is_empty() => {
                    peers.get_mut().push_back(idle);
                    peers.get_mut().pop_front()
                }
                (true, _) => Some(idle),
                (false, peers) => {
                    peers.or_default().push_back(idle);
                    self.0.count.fetch_add(1, Ordering::SeqCst);
                    None
                }
            }
        };
        // Outside of the lock.
        drop(closed);
        if !self.0.is_swept.load(Ordering::SeqCst) && !self.0.is_swept.swap(true, Ordering::SeqCst) {
            tokio::spawn(sweep(Arc::downgrade(&self.0)));
        }
    }
}

impl Shared {
    fn shard(&self, place: Place) -> MutexGuard<'_, Peers> {
        let [first, ..] = &self.shards;
        let (worker, key) = place;
        let number = usize::try_from(key).unwrap_or_default().wrapping_add(worker) % SHARDS;
        lock(self.shards.get(number).unwrap_or(first))
    }

    /// Counts a connection that was taken out; returns it if it can carry a request.
    fn usable(&self, mut idle: Idle) -> Option<Transport> {
        self.count.fetch_sub(1, Ordering::Relaxed);
        (clock::since(idle.since) < self.longest && idle.transport.is_quiet()).then_some(idle.transport)
    }

    /// Closes the connections that are closed already, or have idled for too long.
    fn sweep(&self) {
        for shard in &self.shards {
            let mut closed = Vec::new();
            let mut shard = lock(shard);
            shard.retain(|_, peers| {
                for mut idle in std::mem::take(peers) {
                    if clock::since(idle.since) < self.longest && idle.transport.is_quiet() {
                        peers.push_back(idle);
                    } else {
                        closed.push(idle);
                    }
                }
                !peers.is_empty()
            });
            self.count.fetch_sub(closed.len(), Ordering::Relaxed);
            drop(shard);
            drop(closed);
        }
    }
}

fn lock(shard: &Shard) -> MutexGuard<'_, Peers> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sweeps a pool until it is empty or gone.
async fn sweep(pool: Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(pool) = pool.upgrade() else { return };
        pool.sweep();
        if pool.count.load(Ordering::SeqCst) == 0 {
            pool.is_swept.store(false, Ordering::SeqCst);
            // One that came in between starts another task, or is counted here: in one order of all four steps.
            if pool.count.load(Ordering::SeqCst) == 0 || pool.is_swept.swap(true, Ordering::SeqCst) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::connect::dial::{Connections, Dial};

    /// Connections to a server, and their other ends.
    async fn open(count: usize) -> (Vec<Transport>, Vec<TcpStream>, Arc<Connections>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dial = Dial { connections: Arc::default(), most: u32::MAX };
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (stream, open) = dial.open(listener.local_addr().unwrap()).await.unwrap();
            here.push(Transport::Plain { stream, _open: open });
            there.push(listener.accept().await.unwrap().0);
        }
        (here, there, dial.connections)
    }

    fn port(transport: &Transport) -> u16 {
        let Transport::Plain { stream, .. } = transport else { panic!() };
        stream.local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn the_last_one_is_taken_first_and_one_that_its_server_has_closed_is_not() {
        let pool = Pool::new(10, Duration::from_secs(60));
        let (here, mut there, connections) = open(3).await;
        let ports: Vec<u16> = here.iter().map(port).collect();
        here.into_iter().for_each(|transport| pool.put(7, transport));
        assert!(pool.take(8).is_none() && pool.take(7 + 16).is_none());
        assert_eq!(port(&pool.take(7).unwrap()), ports[2]);
        assert_eq!(connections.open(), 2);
        // The next one has something to say that nobody asked for.
        there[1].write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(port(&pool.take(7).unwrap()), ports[0]);
        assert!(pool.take(7).is_none());
        assert_eq!((connections.open(), pool.0.count.load(Ordering::Relaxed)), (0, 0));
    }

    #[tokio::test]
    async fn no_closed_connection_is_taken_however_many_there_are() {
        // More than a task may poll at a time.
        let pool = Pool::new(1000, Duration::from_secs(60));
        let (here, there, connections) = open(300).await;
        here.into_iter().for_each(|transport| pool.put(7, transport));
        drop(there);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(pool.take(7).is_none());
        assert_eq!(connections.open(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_connection_is_for_the_worker_that_keeps_it_and_for_others_on_demand() {
        let pool = Arc::new(Pool::new(10, Duration::from_secs(60)));
        let (workers, _runtimes) = crate::workers::Workers::start(&tokio::runtime::Handle::current()).unwrap();
        let (here, _there, connections) = open(2).await;
        let (kept, done) = tokio::sync::oneshot::channel();
        let of_worker = pool.clone();
        workers.assign().run(async move {
            here.into_iter().for_each(|transport| of_worker.put(7, transport));
            let own = of_worker.take(7).is_some();
            let _ = kept.send(own);
        });
        assert!(done.await.unwrap(), "its own");
        assert!(pool.take(7).is_none() && pool.take_of_any(8).is_none());
        assert!(pool.take_of_any(7).is_some());
        assert!(pool.take_of_any(7).is_none());
        assert_eq!((connections.open(), pool.0.count.load(Ordering::Relaxed)), (0, 0));
    }

    #[tokio::test]
    async fn idle_connections_are_bounded_in_number_and_time() {
        let pool = Pool::new(2, Duration::from_millis(100));
        let (here, there, connections) = open(4).await;
        let ports: Vec<u16> = here.iter().map(port).collect();
        for (n, transport) in here.into_iter().enumerate() {
            pool.put(u64::from(n == 3), transport);
        }
        assert_eq!(connections.open(), 2, "the oldest of the same peer made room, and another peer got none");
        assert!(pool.take(1).is_none());
        let last = pool.take(0).unwrap();
        assert_eq!(port(&last), ports[2]);
        pool.put(0, last);
        // Nobody asks for them: the pool closes them by itself, and its task ends.
        let swept = async {
            while connections.open() > 0 || pool.0.is_swept.load(Ordering::Acquire) {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
        };
        tokio::time::timeout(Duration::from_secs(20), swept).await.unwrap();
        let (more, _others, connections) = open(1).await;
        more.into_iter().for_each(|transport| pool.put(0, transport));
        let swept = async {
            while connections.open() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
        };
        tokio::time::timeout(Duration::from_secs(20), swept).await.unwrap();
        drop(there);
    }
}
