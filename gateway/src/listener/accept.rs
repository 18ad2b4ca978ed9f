//! Accept loops, one for each listener. A reload opens new sockets before it closes old ones.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use socket2::{SockRef, Socket};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::connection::{Accepted, begin};
use super::permit::{ConnectionCounts, ConnectionPermit};
use super::plan::ListenerPlan;
use crate::descriptors::{Side, Spare, is_client_waiting, is_shortage};
use crate::gateway::Gateway;
use crate::handover::{Inherited, Place};
use crate::telemetry::{CertificateSample, ConnectionRefusal, LogThrottle};
use crate::workers::Workers;

/// Connections that the kernel queues until they are accepted; it caps them at `net.core.somaxconn`, by default 4096.
const BACKLOG: i32 = 4096;
/// Pause after an error of `accept` that persists: twenty attempts a second cost nothing and lose no client for long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listener `{name}`: cannot listen on {address}: {source}{}", hint(source))]
pub struct ListenError {
    name: String,
    address: SocketAddr,
    source: std::io::Error,
}

impl ListenError {
    /// Name of the listener.
    pub fn listener(&self) -> &str {
        &self.name
    }
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

/// Sockets that are bound but not served yet; dropping them changes nothing.
pub struct Prepared {
    bound: Vec<(ListenerKey, ListenerPlan, Option<TcpListener>)>,
}

/// Identity of a listener over reloads: its address and, of several that ask for any free port, its index among those.
type ListenerKey = (SocketAddr, usize);

/// Listeners of the process.
pub struct ListenerSet {
    open: Mutex<HashMap<ListenerKey, OpenListener>>,
    stop: watch::Sender<bool>,
    workers: Workers,
    /// Sockets that were passed to the process, which listeners use in place of new ones.
    inherited: Arc<Inherited>,
}

/// Listener as operators see it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerReport {
    /// Name in logs and metrics.
    pub name: String,
    /// Address with the port that is open.
    pub address: SocketAddr,
    /// True if clients speak TLS.
    pub tls: bool,
}

struct OpenListener {
    /// Address of the socket.
    local: SocketAddr,
    plan: Arc<ArcSwap<ListenerPlan>>,
    stop: watch::Sender<bool>,
    /// Ends the accept loop, and leaves open connections alone.
    leave: watch::Sender<bool>,
    /// Socket, to be passed to a new process; `None` once one has it.
    socket: Option<Arc<TcpListener>>,
}

impl ListenerSet {
    /// Makes an empty set, whose HTTP/1 connections `workers` serve. Listeners use the `inherited` sockets of their places.
    pub fn new(workers: Workers, inherited: Arc<Inherited>) -> Self {
        Self { open: Mutex::default(), stop: watch::Sender::new(false), workers, inherited }
    }

    /// Binds the listeners that are not open yet. Nothing is served and nothing is closed.
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
                    let inherited = self.inherited.take(Place::Listener(key.0, key.1));
                    let socket = inherited.map_or_else(|| bind(plan.address), TcpListener::from_std);
                    Some(socket.map_err(|source| ListenError {
                        name: plan.name.to_string(),
                        address: plan.address,
                        source,
                    })?)
                };
                Ok((key, plan.clone(), socket))
            })
            .collect::<Result<Vec<_>, ListenError>>()?;
        Ok(Prepared { bound })
    }

    /// Serves the prepared listeners and closes all others, whose connections finish their request.
    pub fn commit(&self, prepared: Prepared, gateway: &Arc<Gateway>) {
        let mut open = self.open.lock();
        let mut wanted = HashMap::new();
        for (key, mut plan, socket) in prepared.bound {
            if let Some(listener) = open.remove(&key) {
                // With unchanged TLS, session tickets of earlier connections stay valid.
                let running = listener.plan.load().tls.clone();
                if running.as_deref() == plan.tls.as_deref() {
                    plan.tls = running;
                }
                listener.plan.store(Arc::new(plan));
                wanted.insert(key, listener);
            } else if let Some(socket) = socket {
                let local = socket.local_addr();
                if let Ok(local) = &local {
                    tracing::info!(event = "listening", listener = %plan.name, address = %local);
                }
                let local = local.unwrap_or(plan.address);
                let plan = Arc::new(ArcSwap::from_pointee(plan));
                let (stop, leave) = (watch::Sender::new(false), watch::Sender::new(false));
                let socket = Arc::new(socket);
                // Ends with its listener, whose senders of `stop` and `leave` say so, or are dropped.
                let ends = Ends { stop: stop.subscribe(), leave: leave.subscribe() };
                let accepting = accept(socket.clone(), plan.clone(), gateway.clone(), self.workers.clone(), ends);
                tokio::spawn(accepting);
                wanted.insert(key, OpenListener { local, plan, stop, leave, socket: Some(socket) });
            }
        }
        for ((address, _), gone) in open.drain() {
            tracing::info!(event = "listener_closed", address = %address);
            gone.stop.send_replace(true);
        }
        let managed = wanted.values().filter_map(|open| open.plan.load().tls.as_ref()?.managed().cloned());
        gateway.acme.keep(&managed.collect::<Vec<_>>());
        *open = wanted;
    }

    /// Reports the open listeners, in the order of their names.
    pub fn reports(&self) -> Vec<ListenerReport> {
        let report = |open: &OpenListener| {
            let plan = open.plan.load();
            ListenerReport { name: plan.name.to_string(), address: open.local, tls: plan.tls.is_some() }
        };
        let mut reports: Vec<_> = self.open.lock().values().map(report).collect();
        reports.sort_by(|a, b| (&a.name, a.address).cmp(&(&b.name, b.address)));
        reports
    }

    /// Samples of the certificates that listeners present.
    pub fn certificates(&self) -> Vec<CertificateSample> {
        let mut samples = Vec::new();
        for open in self.open.lock().values() {
            let plan = open.plan.load();
            let shown = plan.tls.iter().flat_map(|tls| tls.certificates());
            samples.extend(shown.map(|pair| pair.sample(&plan.name)));
        }
        samples
    }

    /// Copies of the sockets of all listeners, with their places.
    ///
    /// # Errors
    ///
    /// The system has no descriptor left.
    pub fn sockets(&self) -> std::io::Result<Vec<(Place, Socket)>> {
        let open = self.open.lock();
        let copies = open.iter().filter_map(|(key, listener)| {
            let socket = listener.socket.as_ref()?;
            Some(SockRef::from(&**socket).try_clone().map(|copy| (Place::Listener(key.0, key.1), copy)))
        });
        copies.collect()
    }

    /// Accepts no further connection but those that wait already: a new process does. Open connections go on.
    pub fn leave(&self) {
        for listener in self.open.lock().values_mut() {
            listener.leave.send_replace(true);
            listener.socket = None;
        }
    }

    /// Closes all listeners: no further connection is accepted but those that wait already, and open connections take no further
    /// request but one whose head has come.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        for (_, listener) in self.open.lock().drain() {
            listener.stop.send_replace(true);
        }
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Type};
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
    socket: Arc<TcpListener>,
    plan: Arc<ArcSwap<ListenerPlan>>,
    gateway: Arc<Gateway>,
    workers: Workers,
    ends: Ends,
) {
    let stop = ends.stop.clone();
    let counts = Arc::new(ConnectionCounts::default());
    let mut name = plan.load().name.clone();
    let mut metrics = gateway.metrics.listener(&name);
    let mut spare = Spare::new();
    let (failures, shortages) = (LogThrottle::default(), LogThrottle::default());
    let short = |listener: &str| {
        shortages.add(1, |times| {
            tracing::warn!(event = "descriptors_spent", listener, times, "a client's connection was closed: raise the limit of open files (`ulimit -n`) or lower `limits.maxConnections`");
        });
    };
    let mut closing = Closing { ends, left: BACKLOG };
    loop {
        let Some(accepted) = closing.accept(&socket).await else { return };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(e) if is_shortage(&e) && !is_client_waiting(&*socket) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
            Err(e) if is_shortage(&e) => {
                Side::Clients.count_shortage();
                metrics.refused(ConnectionRefusal::Descriptors);
                short(&name);
                // Rejects the waiting client at once: in the kernel's queue it would wait in vain.
                if !spare.release() || poll_once(&socket).await.is_none() {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                spare.refill();
                continue;
            }
            Err(e) => {
                failures.add(1, |times| tracing::warn!(event = "accept_failed", error = %e, times));
                // A client that left while it waited does not affect the next one.
                if e.kind() != std::io::ErrorKind::ConnectionAborted {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        // Somebody else, such as a file that was open for a moment, had the spare descriptor when it was to be opened again. This
        // client has it now: kept, it would leave the listener without one, and later clients waiting in vain.
        if !spare.refill() {
            Side::Clients.count_shortage();
            metrics.refused(ConnectionRefusal::Descriptors);
            short(&name);
            drop(stream);
            spare.refill();
            continue;
        }
        let plan = plan.load_full();
        if plan.name != name {
            // A reload has renamed the listener.
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
        let mut permit = ConnectionPermit::enter(&counts, &metrics);
        // Behind the PROXY protocol the client is not known yet.
        if !plan.wants_proxy_protocol(client.ip()) && !permit.take_address(&plan, client.ip()) {
            metrics.refused(ConnectionRefusal::AddressLimit);
            continue;
        }
        let accepted = Accepted { peer: client, permit, plan, gateway: gateway.clone(), stop: stop.clone() };
        begin(stream, accepted, &workers);
    }
}

/// Ends of an accept loop. Each has come where it is true, and where its sender is dropped with the listener.
struct Ends {
    /// End of the loop and of all connections that it has accepted.
    stop: watch::Receiver<bool>,
    /// End of the loop alone.
    leave: watch::Receiver<bool>,
}

impl Ends {
    fn have_come(&self) -> bool {
        [&self.stop, &self.leave].into_iter().any(|end| *end.borrow() || end.has_changed().is_err())
    }

    async fn come(&mut self) {
        tokio::select! {
            _ = self.stop.wait_for(|stop| *stop) => {}
            _ = self.leave.wait_for(|leave| *leave) => {}
        }
    }
}

/// End of an accept loop. Connections that the system has taken for the listener are accepted before it closes: the system would
/// reset them.
struct Closing {
    ends: Ends,
    /// Most connections that are accepted after the end has come.
    left: i32,
}

impl Closing {
    /// Accepts the next connection; `None` where the listener is to close and none waits.
    async fn accept(&mut self, socket: &TcpListener) -> Option<std::io::Result<(TcpStream, SocketAddr)>> {
        let is_closing = self.ends.have_come();
        self.left -= i32::from(is_closing);
        tokio::select! {
            biased;
            accepted = socket.accept(), if self.left >= 0 => Some(accepted),
            () = self.ends.come() => None,
        }
    }
}

/// Accepts a waiting connection, if there is one. Dropping the result closes the connection.
async fn poll_once(socket: &TcpListener) -> Option<TcpStream> {
    poll_fn(|cx| match socket.poll_accept(cx) {
        Poll::Ready(Ok((stream, _))) => Poll::Ready(Some(stream)),
        Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_that_wait_are_accepted_before_a_listener_closes() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (stop, leave) = (watch::Sender::new(false), watch::Sender::new(false));
        let ends = || Ends { stop: stop.subscribe(), leave: leave.subscribe() };
        let mut closing = Closing { ends: ends(), left: 2 };
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(matches!(closing.accept(&socket).await, Some(Ok(_))));
        stop.send_replace(true);
        for expected in [true, true, false, false] {
            assert_eq!(closing.accept(&socket).await.is_some(), expected, "no more than are left");
        }
        stop.send_replace(false);
        leave.send_replace(true);
        let mut closing = Closing { ends: ends(), left: 9 };
        assert!(matches!(closing.accept(&socket).await, Some(Ok(_))));
        assert!(closing.accept(&socket).await.is_none(), "another process accepts");
        leave.send_replace(false);
        let _client = TcpStream::connect(address).await.unwrap();
        let mut closing = Closing { ends: ends(), left: 9 };
        assert!(matches!(closing.accept(&socket).await, Some(Ok(_))));
        drop((stop, leave));
        assert!(closing.accept(&socket).await.is_none(), "the listener is gone");
    }
}
