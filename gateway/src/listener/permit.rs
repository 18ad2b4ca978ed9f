//! Connections that a listener counts against its limits. A permit counts one connection, and is released by `Drop`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::plan::ListenerPlan;
use crate::limits::network;
use crate::telemetry::{ConnectionRefusal, ListenerMetrics};

/// Open connections of a listener.
#[derive(Default)]
pub(super) struct ConnectionCounts {
    pub(super) all: AtomicUsize,
    /// Connections by client network, if addresses have a limit; at most as many entries as connections.
    addresses: Mutex<HashMap<[u8; 9], u32>>,
}

/// Permit of one connection under the limits of its listener, released when dropped.
pub(super) struct ConnectionPermit {
    counts: Arc<ConnectionCounts>,
    metrics: Arc<ListenerMetrics>,
    address: Option<[u8; 9]>,
}

impl ConnectionPermit {
    /// Counts a connection, whatever the limits say.
    pub(super) fn enter(counts: &Arc<ConnectionCounts>, metrics: &Arc<ListenerMetrics>) -> Self {
        counts.all.fetch_add(1, Ordering::Relaxed);
        metrics.connections.inc();
        Self { counts: counts.clone(), metrics: metrics.clone(), address: None }
    }

    /// Counts the connection for the client's address; false if the address has as many as it may.
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

impl Drop for ConnectionPermit {
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
        let (counts, metrics) = (Arc::new(ConnectionCounts::default()), crate::telemetry::Metrics::new().listener("l"));
        let plan = plan(2);
        let enter = |address: &str| {
            let mut permit = ConnectionPermit::enter(&counts, &metrics);
            permit.take_address(&plan, address.parse().unwrap()).then_some(permit)
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
