//! Accept loops, one for each address. A reload opens what is new before it closes what is gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::connection;
use super::plan::ListenerPlan;
use crate::descriptors::{Side, Spare, is_shortage};
use crate::gateway::Gateway;
use crate::telemetry::{CertificateSample, ConnectionRefusal, ListenerMetrics, LogThrottle};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 4096;
/// Pause after an error of `accept` that does not go away by trying at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listener `{name}`: cannot listen on {address}: {source}{}", hint(source))]
pub struct ListenError {
    name: String,
    address: SocketAddr,
    source: std::io::Error,
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            " (another process has the port; `ss -ltnp` shows which, or choose another address in `listeners`)"
        }
        std::io::ErrorKind::PermissionDenied => " (ports below 1024 need root or CAP_NET_BIND_SERVICE)",
        std::io::ErrorKind::AddrNotAvailable => " (this machine has no such address)",
        _ => "",
    }
}

/// Sockets that are bound but not served yet: dropping it leaves everything as it was.
pub struct Prepared {
    bound: Vec<(Key, ListenerPlan, Option<TcpListener>)>,
}

/// What a listener is known by over reloads: its address and, where several ask for any free port, which of them it is.
type Key = (SocketAddr, usize);

/// The listeners of the process.
pub struct ListenerSet {
    open: Mutex<HashMap<Key, Open>>,
    stop: watch::Sender<bool>,
}

struct Open {
    plan: Arc<ArcSwap<ListenerPlan>>,
    stop: watch::Sender<bool>,
    task: tokio::task::AbortHandle,
}

impl Default for ListenerSet {
    fn default() -> Self {
        Self { open: Mutex::default(), stop: watch::Sender::new(false) }
    }
}

impl ListenerSet {
    /// Binds what is not open yet. Nothing is served and nothing is closed.
    pub fn prepare(&self, plans: &[ListenerPlan]) -> Result<Prepared, ListenError> {
        let open = self.open.lock();
        let bound = plans
            .iter()
            .enumerate()
            .map(|(n, plan)| {
                let before = plans.iter().take(n).filter(|other| other.address == plan.address).count();
                let key = (plan.address, before);
                let socket = if open.contains_key(&key) {
                    None
                } else {
                    Some(bind(plan.address).map_err(|source| ListenError {
                        name: plan.name.clone(),
                        address: plan.address,
                        source,
                    })?)
                };
                Ok((key, plan.clone(), socket))
            })
            .collect::<Result<Vec<_>, ListenError>>()?;
        Ok(Prepared { bound })
    }

    /// Serves what was prepared and closes what is no longer wanted; connections of those finish their request.
    pub fn commit(&self, prepared: Prepared, gateway: &Arc<Gateway>) {
        let mut open = self.open.lock();
        let mut wanted = HashMap::new();
        for (key, mut plan, socket) in prepared.bound {
            if let Some(listener) = open.remove(&key) {
                // Where nothing changed, tickets of earlier connections stay good.
                let running = listener.plan.load().tls.clone();
                if running.as_deref() == plan.tls.as_deref() {
                    plan.tls = running;
                }
                listener.plan.store(Arc::new(plan));
                wanted.insert(key, listener);
            } else if let Some(socket) = socket {
                if let Ok(local) = socket.local_addr() {
                    tracing::info!(event = "listening", listener = %plan.name, address = %local);
                }
                let plan = Arc::new(ArcSwap::from_pointee(plan));
                let stop = watch::Sender::new(false);
                let task = tokio::spawn(accept(socket, plan.clone(), gateway.clone(), stop.subscribe())).abort_handle();
                wanted.insert(key, Open { plan, stop, task });
            }
        }
        for ((address, _), gone) in open.drain() {
            tracing::info!(event = "listener_closed", address = %address);
            gone.task.abort();
            gone.stop.send_replace(true);
        }
        let managed = wanted.values().filter_map(|open| open.plan.load().tls.as_ref()?.managed().cloned());
        gateway.acme.keep(&managed.collect::<Vec<_>>());
        *open = wanted;
    }

    /// What metrics say of the certificates that listeners show.
    pub fn certificates(&self) -> Vec<CertificateSample> {
        let mut samples = Vec::new();
        for open in self.open.lock().values() {
            let plan = open.plan.load();
            let shown = plan.tls.iter().flat_map(|tls| tls.certificates());
            samples.extend(shown.map(|pair| pair.sample(&plan.name)));
        }
        samples
    }

    /// Closes all: no further connection, no further request on those that are open.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        for (_, listener) in self.open.lock().drain() {
            listener.task.abort();
            listener.stop.send_replace(true);
        }
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

async fn accept(
    socket: TcpListener,
    plan: Arc<ArcSwap<ListenerPlan>>,
    gateway: Arc<Gateway>,
    stop: watch::Receiver<bool>,
) {
    let counts = Arc::new(Counts::default());
    let mut name = plan.load().name.clone();
    let mut metrics = gateway.metrics.listener(&name);
    let mut spare = Spare::new();
    let (failures, shortages) = (LogThrottle::default(), LogThrottle::default());
    let short = |listener: &str| {
        shortages.add(1, |times| {
            tracing::warn!(event = "descriptors_spent", listener, times, "a client's connection was closed: raise the limit of open files (`ulimit -n`) or lower `limits.maxConnections`");
        });
    };
    loop {
        let (stream, client) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(e) if is_shortage(&e) => {
                Side::Clients.count_shortage();
                metrics.refused(ConnectionRefusal::Descriptors);
                short(&name);
                // The client that waits is turned away at once: left in the kernel's queue it would wait for nothing.
                if !spare.release() || poll_once(&socket).await.is_none() {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                spare.refill();
                continue;
            }
            Err(e) => {
                failures.add(1, |times| tracing::warn!(event = "accept_failed", error = %e, times));
                // One that left while it waited says nothing of the next.
                if e.kind() != std::io::ErrorKind::ConnectionAborted {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let plan = plan.load_full();
        if plan.name != name {
            // An edit has renamed it.
            name.clone_from(&plan.name);
            metrics = gateway.metrics.listener(&name);
        }
        let limit = usize::try_from(plan.limits.max_connections.get()).unwrap_or(usize::MAX);
        if counts.all.load(Ordering::Relaxed) >= limit {
            metrics.refused(ConnectionRefusal::Limit);
            continue;
        }
        if !Side::Clients.may_keep(&stream) {
            metrics.refused(ConnectionRefusal::Descriptors);
            short(&name);
            continue;
        }
        let mut places = Places::enter(&counts, &metrics);
        // Behind the PROXY protocol the client is not known yet.
        if !plan.wants_proxy_protocol(client.ip()) && !places.take_address(&plan, client.ip()) {
            metrics.refused(ConnectionRefusal::AddressLimit);
            continue;
        }
        tokio::spawn(connection::serve(stream, client, places, plan, gateway.clone(), stop.clone()));
    }
}

/// Accepts a connection that waits, without waiting for one. It is closed when the result is dropped.
async fn poll_once(socket: &TcpListener) -> Option<TcpStream> {
    poll_fn(|cx| match socket.poll_accept(cx) {
        Poll::Ready(Ok((stream, _))) => Poll::Ready(Some(stream)),
        Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Open connections of a listener.
#[derive(Default)]
struct Counts {
    all: AtomicUsize,
    /// By address, only where addresses have a limit; at most as many entries as there are connections.
    addresses: Mutex<HashMap<u128, u32>>,
}

/// What one connection takes of its listener's limits; given back when dropped.
pub(super) struct Places {
    counts: Arc<Counts>,
    metrics: Arc<ListenerMetrics>,
    address: Option<u128>,
}

impl Places {
    fn enter(counts: &Arc<Counts>, metrics: &Arc<ListenerMetrics>) -> Self {
        counts.all.fetch_add(1, Ordering::Relaxed);
        metrics.connections.inc();
        Self { counts: counts.clone(), metrics: metrics.clone(), address: None }
    }

    /// Takes a place of the client's address; false when it has none left.
    pub(super) fn take_address(&mut self, plan: &ListenerPlan, client: IpAddr) -> bool {
        let Some(limit) = plan.limits.max_connections_per_address.filter(|_| !plan.is_proxy(client)) else {
            return true;
        };
        let address = network(client);
        let mut addresses = self.counts.addresses.lock();
        let open = addresses.entry(address).or_insert(0);
        if *open >= limit.get() {
            return false;
        }
        *open += 1;
        self.address = Some(address);
        true
    }

    /// Metrics of the listener.
    pub(super) fn metrics(&self) -> &Arc<ListenerMetrics> {
        &self.metrics
    }

    /// Counts the connection as one that carried no request.
    pub(super) fn refused(&self, reason: ConnectionRefusal) {
        self.metrics.refused(reason);
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.counts.all.fetch_sub(1, Ordering::Relaxed);
        self.metrics.connections.dec();
        if let Some(address) = self.address
            && let Entry::Occupied(mut open) = self.counts.addresses.lock().entry(address)
        {
            match open.get().checked_sub(1) {
                Some(left) if left > 0 => *open.get_mut() = left,
                _ => drop(open.remove()),
            }
        }
    }
}

/// What counts as one address: a household or server has a /64 of IPv6.
fn network(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        // The lowest bit keeps the network of zeros apart from IPv4.
        IpAddr::V6(v6) => u128::from(v6) >> 64 << 64 | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(limit: u32) -> ListenerPlan {
        let listener = serde_json::json!({
            "address": "127.0.0.1:0",
            "clientAddress": {"trustedProxies": ["10.0.0.1"]},
            "limits": {"maxConnectionsPerAddress": limit},
        });
        let config = serde_json::json!({"listeners": [listener], "routes": []});
        let acme = crate::tls::Acme::new(Arc::new(crate::telemetry::Metrics::new()));
        super::super::plans(&serde_json::from_value(config).unwrap(), &acme).unwrap().remove(0)
    }

    #[test]
    fn an_address_has_its_places_and_gets_them_back() {
        let (counts, metrics) = (Arc::new(Counts::default()), crate::telemetry::Metrics::new().listener("l"));
        let plan = plan(2);
        let enter = |address: &str| {
            let mut places = Places::enter(&counts, &metrics);
            places.take_address(&plan, address.parse().unwrap()).then_some(places)
        };
        let first = enter("2001:db8::1").unwrap();
        let _second = enter("2001:db8::2").unwrap();
        assert!(enter("2001:db8::ffff:3").is_none(), "a /64 is one address");
        assert!(enter("2001:db8:0:1::1").is_some());
        assert!(enter("203.0.113.7").is_some());
        drop(first);
        let _third = enter("2001:db8::4").unwrap();
        assert!(enter("2001:db8::5").is_none());
        let proxies: Vec<_> = (0..5).map(|_| enter("10.0.0.1").unwrap()).collect();
        drop(proxies);
        assert_eq!(counts.addresses.lock().len(), 1, "who has no connection takes no memory");
        assert_eq!(counts.all.load(Ordering::Relaxed), 2);
    }
}
