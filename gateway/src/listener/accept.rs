//! Accept loops, one for each address. A reload opens what is new before it closes what is gone.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::connection::{self, ConnectionInfo};
use crate::server::Gateway;
use crate::snapshot::ListenerPlan;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 4096;
/// Pause after an error of `accept`, such as too many open files, which does not go away by trying at once.
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
    bound: Vec<(ListenerPlan, Option<TcpListener>)>,
}

/// The listeners of the process.
pub struct ListenerSet {
    open: Mutex<HashMap<SocketAddr, Open>>,
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
            .map(|plan| {
                let socket = if open.contains_key(&plan.address) {
                    None
                } else {
                    Some(bind(plan.address).map_err(|source| ListenError {
                        name: plan.name.clone(),
                        address: plan.address,
                        source,
                    })?)
                };
                Ok((plan.clone(), socket))
            })
            .collect::<Result<Vec<_>, ListenError>>()?;
        Ok(Prepared { bound })
    }

    /// Serves what was prepared and closes what is no longer wanted; connections of those finish their request.
    pub fn commit(&self, prepared: Prepared, gateway: &Arc<Gateway>) {
        let mut open = self.open.lock();
        let mut wanted = HashMap::new();
        for (plan, socket) in prepared.bound {
            let address = plan.address;
            if let Some(listener) = open.remove(&address) {
                listener.plan.store(Arc::new(plan));
                wanted.insert(address, listener);
            } else if let Some(socket) = socket {
                if let Ok(local) = socket.local_addr() {
                    tracing::info!(event = "listening", listener = %plan.name, address = %local);
                }
                let plan = Arc::new(ArcSwap::from_pointee(plan));
                let stop = watch::Sender::new(false);
                let task = tokio::spawn(accept(socket, plan.clone(), gateway.clone(), stop.subscribe())).abort_handle();
                wanted.insert(address, Open { plan, stop, task });
            }
        }
        for (address, gone) in open.drain() {
            tracing::info!(event = "listener_closed", address = %address);
            gone.task.abort();
            gone.stop.send_replace(true);
        }
        *open = wanted;
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
    let connections = Arc::new(AtomicUsize::new(0));
    let metrics = gateway.metrics.listener(&plan.load().name);
    loop {
        let (stream, client) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(event = "accept_failed", error = %e);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let plan = plan.load();
        let limit = usize::try_from(plan.limits.max_connections.get()).unwrap_or(usize::MAX);
        if connections.load(Ordering::Relaxed) >= limit {
            metrics.refused.inc();
            continue;
        }
        let guard = Guard::enter(&connections, &metrics);
        let local = stream.local_addr().unwrap_or(plan.address);
        let connection = ConnectionInfo::new(client, local, plan.limits.clone());
        let (gateway, stop) = (gateway.clone(), stop.clone());
        tokio::spawn(async move {
            let _guard = guard;
            connection::serve(stream, connection, gateway, stop).await;
        });
    }
}

/// Counts an open connection.
struct Guard {
    connections: Arc<AtomicUsize>,
    metrics: Arc<crate::telemetry::ListenerMetrics>,
}

impl Guard {
    fn enter(connections: &Arc<AtomicUsize>, metrics: &Arc<crate::telemetry::ListenerMetrics>) -> Self {
        connections.fetch_add(1, Ordering::Relaxed);
        metrics.connections.inc();
        Self { connections: connections.clone(), metrics: metrics.clone() }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.metrics.connections.dec();
    }
}
