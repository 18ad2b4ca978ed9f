//! Connections of HTTP/2, which many requests share. A connection is in the pool from its handshake to its end. Its task drives
//! it, looks whether the server still answers, and ends a connection that has carried no request for some time.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use pingora::protocols::Stream;
use tokio::time::{interval, sleep, timeout};

use super::handshake::{Http2, handshake, is_unsent};
use crate::clock::{millis, now_millis};

/// Time between two looks whether a connection carries requests.
const LOOK: Duration = Duration::from_secs(1);

/// Time for a server to answer a ping.
const PONG: Duration = Duration::from_secs(5);

/// Means to send a request, and its place on the connection.
pub(super) type Begun = (SendRequest<Bytes>, Place);

/// Connection with a server.
struct Shared {
    send: SendRequest<Bytes>,
    /// Requests at a time that the gateway allows.
    most: usize,
    /// True while its one request shares it with no other.
    is_alone: AtomicBool,
    /// Requests that the connection carries now.
    carried: AtomicUsize,
    /// Time at which its last request ended, as [`now_millis`] reads it.
    idle_since: AtomicU64,
    /// True if it takes no further request.
    is_ending: AtomicBool,
}

impl Shared {
    /// Takes a place for a request; `None` where the connection has none, or takes no more.
    fn reserve(self: &Arc<Self>) -> Option<Place> {
        let most = if self.is_alone.load(Ordering::SeqCst) { 1 } else { self.most };
        let most = most.min(self.send.current_max_send_streams());
        let more = |carried: usize| if carried < most { carried.checked_add(1) } else { None };
        self.carried.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        let place = Place(self.clone());
        // After the place is taken: a connection that idles ends only while it has none.
        (!self.is_ending.load(Ordering::SeqCst)).then_some(place)
    }

    /// Begins a stream in this place; `None` where the connection has ended.
    async fn begin(place: Place) -> pingora::Result<Option<Begun>> {
        match place.0.send.clone().ready().await {
            Ok(send) => Ok(Some((send, place))),
            Err(e) => {
                place.0.is_ending.store(true, Ordering::SeqCst);
                let e = pingora::Error::because(pingora::ErrorType::H2Error, "a new stream", e);
                if is_unsent(&e) { Ok(None) } else { Err(e) }
            }
        }
    }

    /// Ends the connection if it carries no request and has carried none for `longest`.
    fn has_idled(&self, longest: Duration) -> bool {
        let idle = now_millis().saturating_sub(self.idle_since.load(Ordering::SeqCst));
        if self.carried.load(Ordering::SeqCst) > 0 || idle < millis(longest) {
            return false;
        }
        self.is_ending.store(true, Ordering::SeqCst);
        // One that took a place in between has seen that it is ending, or is counted here and goes on.
        let is_idle = self.carried.load(Ordering::SeqCst) == 0;
        self.is_ending.store(is_idle, Ordering::SeqCst);
        is_idle
    }
}

/// Place of a request on a connection, free again on drop.
pub(super) struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.is_alone.store(false, Ordering::SeqCst);
        self.0.idle_since.store(now_millis(), Ordering::SeqCst);
        self.0.carried.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Connections by the key of their peer.
type All = Mutex<HashMap<u64, Vec<Arc<Shared>>>>;

/// Pool of connections.
#[derive(Default)]
pub(super) struct SharedPool(Arc<All>);

impl SharedPool {
    /// Takes a place on a connection to the peer with this key.
    pub(super) async fn begin(&self, key: u64) -> pingora::Result<Option<Begun>> {
        loop {
            let place = lock(&self.0).get(&key).and_then(|all| all.iter().find_map(Shared::reserve));
            let Some(place) = place else { return Ok(None) };
            if let Some(begun) = Shared::begin(place).await? {
                return Ok(Some(begun));
            }
        }
    }

    /// Begins HTTP/2 on a new connection, and takes a place on it, which shares it with others unless it is `alone`. A connection
    /// without a request ends after `longest`.
    pub(super) async fn open(
        &self,
        key: u64,
        stream: Stream,
        settings: Http2,
        longest: Duration,
        alone: bool,
    ) -> pingora::Result<Option<Begun>> {
        let (send, mut connection) = handshake(stream, settings).await?;
        let pings = connection.ping_pong();
        let shared = Arc::new(Shared {
            send,
            most: usize::try_from(settings.streams).unwrap_or(usize::MAX),
            is_alone: AtomicBool::new(alone),
            carried: AtomicUsize::new(0),
            idle_since: AtomicU64::new(now_millis()),
            is_ending: AtomicBool::new(false),
        });
        let place = shared.reserve();
        lock(&self.0).entry(key).or_default().push(shared.clone());
        let entry = Entry { pool: Arc::downgrade(&self.0), key, shared: Arc::downgrade(&shared) };
        tokio::spawn(async move {
            let mut looks = interval(LOOK);
            let mut connection = pin!(connection);
            let mut lost = pin!(lost(pings, settings.ping));
            loop {
                tokio::select! {
                    _ = &mut connection => return,
                    () = &mut lost => return,
                    _ = looks.tick() => {}
                }
                if entry.shared.upgrade().is_some_and(|shared| shared.has_idled(longest)) {
                    break;
                }
            }
            // Without a request and outside of the pool, it says its farewell.
            drop(entry);
            let _ = timeout(PONG, connection).await;
        });
        match place {
            Some(place) => Shared::begin(place).await,
            None => Ok(None),
        }
    }
}

/// Entry of a connection in its pool, which ends with the connection.
struct Entry {
    pool: Weak<All>,
    key: u64,
    shared: Weak<Shared>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let (Some(pool), Some(shared)) = (self.pool.upgrade(), self.shared.upgrade()) else { return };
        shared.is_ending.store(true, Ordering::SeqCst);
        let mut pool = lock(&pool);
        if let Some(all) = pool.get_mut(&self.key) {
            all.retain(|other| !Arc::ptr_eq(other, &shared));
            if all.is_empty() {
                pool.remove(&self.key);
            }
        }
    }
}

fn lock(all: &All) -> MutexGuard<'_, HashMap<u64, Vec<Arc<Shared>>>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the server leaves a ping unanswered. The first one is sent after `every`.
async fn lost(pings: Option<PingPong>, every: Duration) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        sleep(every).await;
        if !matches!(timeout(PONG, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}
