//! The making of a backend's endpoints from its configuration and the present addresses of its names. A [`Blueprint`] is
//! kept beside the active endpoints, so that a name whose addresses change needs no reload.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use spillway_config::schema;

use super::health::{CheckPlan, ListPlan, ScrapePlan, Server};
use super::signal::{connection_limit, signals, stale_after};
use super::watch::{RecurringCheck, Work};
use super::{Endpoint, EndpointSet, EndpointState, Endpoints, RoomListener, SaturationSignal, UnresolvedEndpoint};
use crate::clock::millis;
use crate::connect::EndpointKey;
use crate::connect::Peer;
use crate::credentials::Credential;
use crate::protocol::Dialect;
use crate::telemetry::Metrics;
use crate::tls::UpstreamTls;

/// Options for connections to the servers of a backend.
pub struct ConnectOptions {
    /// Time for a connection to open.
    pub timeout: Duration,
    /// Authorities, name and client certificate for endpoints with an `https` URL.
    pub tls: Arc<UpstreamTls>,
    /// True if the servers speak HTTP/2.
    pub http2: bool,
    /// Bytes that the header of an answer may have.
    pub max_header_bytes: u64,
}

/// Maker of the endpoints of a backend.
pub struct Blueprint {
    backend: String,
    written: Vec<schema::Endpoint>,
    /// Protocol, and name of the model at the servers.
    speaks: (schema::BackendProtocol, Option<String>),
    load_balancing: schema::LoadBalancing,
    stale_after: u64,
    signals: Arc<[Box<dyn SaturationSignal>]>,
    check: Option<CheckPlan>,
    scrape: Option<ScrapePlan>,
    list: Option<ListPlan>,
    credentials: Option<Credential>,
    /// True if some callers have credentials of their own for the backend.
    is_personal: bool,
    connect: ConnectOptions,
    most_connections: u32,
    listener: Arc<dyn RoomListener>,
    endpoints: Arc<Endpoints>,
    metrics: Arc<Metrics>,
}

/// Addresses of each configured endpoint, in the order of the file; none for a name that was never resolved.
pub type Addresses = Vec<Vec<IpAddr>>;

impl Blueprint {
    /// Blueprint of a backend as configured. `full_statuses` and `credentials` are the effective ones; `listener` is
    /// informed of free slots.
    #[allow(clippy::too_many_arguments, reason = "what endpoints are made of")]
    pub fn new(
        written: &schema::Backend,
        full_statuses: &[u16],
        credentials: Option<Credential>,
        connect: ConnectOptions,
        listener: Arc<dyn RoomListener>,
        endpoints: Arc<Endpoints>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let check = written.health_check.as_ref();
        let mut signals = signals(&written.capacity);
        signals.extend(written.capacity.max_connections.map(|max| connection_limit(max, written.http2)));
        Self {
            backend: written.name.clone(),
            written: written.endpoints.clone(),
            speaks: (written.protocol, written.model.clone()),
            load_balancing: written.load_balancing.clone(),
            stale_after: millis(stale_after(&written.capacity)),
            signals: signals.into(),
            check: check.map(|check| CheckPlan::new(check, written.model.as_deref(), full_statuses)),
            scrape: ScrapePlan::new(&written.capacity),
            list: None,
            credentials,
            is_personal: false,
            most_connections: written.capacity.max_connections.map_or(u32::MAX, NonZeroU32::get),
            connect,
            listener,
            endpoints,
            metrics,
        }
    }

    /// Sets whether some callers have credentials of their own for the backend.
    #[must_use]
    pub fn personal(self, is_personal: bool) -> Self {
        Self { is_personal, ..self }
    }

    /// Sets the API in which the endpoints are asked for their models, where the configuration says so.
    #[must_use]
    pub fn listing(self, written: &schema::Backend, dialect: Option<&'static dyn Dialect>) -> Self {
        let list = written.model_list.as_ref().zip(dialect).map(|(written, dialect)| ListPlan::new(written, dialect));
        Self { list, ..self }
    }

    /// Name of the backend.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Informs the listener that a slot may be free.
    pub(super) fn may_have_room(&self) {
        self.listener.may_have_room();
    }

    /// True if a request that was prepared for `other` may go to an endpoint of this one: same backend, protocol, model and
    /// credentials. Credentials of callers were meant for the servers of `other`, and are known to their requests alone.
    pub(super) fn takes_requests_of(&self, other: &Self) -> bool {
        let is_known = |new: &schema::Endpoint| other.written.iter().any(|old| old.url == new.url);
        self.backend == other.backend
            && self.speaks == other.speaks
            && self.credentials == other.credentials
            && (!other.is_personal || self.written.iter().all(is_known))
    }

    /// Endpoints as configured.
    pub fn written(&self) -> &[schema::Endpoint] {
        &self.written
    }

    /// Endpoints at these addresses, with their checks and scrapes. With `new_ones_wait` an endpoint that was not known gets
    /// traffic after its first check only. An address that is named twice is one endpoint, the first.
    pub fn build(&self, addresses: &Addresses, new_ones_wait: bool) -> (EndpointSet, Vec<RecurringCheck>) {
        let mut all: Vec<Arc<Endpoint>> = Vec::new();
        let (mut watches, mut unresolved) = (Vec::new(), Vec::new());
        for (written, addresses) in self.written.iter().zip(addresses) {
            if addresses.is_empty() {
                let (url, weight, priority) = (written.url.clone(), written.weight, written.priority);
                unresolved.push(UnresolvedEndpoint { url, weight, priority });
            }
            for ip in addresses {
                let socket = SocketAddr::new(*ip, written.url.port);
                if all.iter().any(|known| known.socket == socket) {
                    continue;
                }
                let key = EndpointKey { backend: self.backend.clone(), url: written.url.clone(), address: socket };
                let endpoint = self.endpoint(written, &key, new_ones_wait);
                self.watch(&key, &endpoint, &mut watches);
                all.push(Arc::new(endpoint));
            }
        }
        let set = EndpointSet::new(all, self.load_balancing.policy, rand::random(), self.stale_after);
        (set.with_unresolved(unresolved), watches)
    }

    fn endpoint(&self, written: &schema::Endpoint, key: &EndpointKey, new_ones_wait: bool) -> Endpoint {
        let is_address = written.url.host.parse::<IpAddr>().is_ok();
        let text = if is_address { written.url.to_string() } else { format!("{} ({})", written.url, key.address.ip()) };
        let state = self.endpoints.get_or_insert(key, &self.listener, |siblings| {
            let healthy = !new_ones_wait || self.check.is_none();
            let state = EndpointState::new(self.metrics.endpoint(&self.backend, &text), healthy, siblings);
            if new_ones_wait {
                state.returned(crate::clock::now_millis());
            }
            state
        });
        let http2 = self.connect.http2.then_some(self.connect.max_header_bytes);
        Endpoint {
            backend: self.backend.as_str().into(),
            url: written.url.clone(),
            address: text,
            socket: key.address,
            weight: written.weight,
            priority: written.priority,
            signals: self.signals.clone(),
            slow_start: self.load_balancing.slow_start.map_or(0, |time| millis(time.0)),
            peer: Peer::new(key, key.address, self.connect.timeout, &self.connect.tls, http2)
                .counted(&state.connections, self.most_connections),
            state,
        }
    }

    fn watch(&self, key: &EndpointKey, endpoint: &Endpoint, watches: &mut Vec<RecurringCheck>) {
        let server = Server {
            socket: key.address,
            url: key.url.clone(),
            credentials: self.credentials.clone(),
            tls: self.connect.tls.clone(),
            http2: self.connect.http2,
            headers: Vec::new(),
        };
        let list = self.list.clone().map(|plan| (plan.server_of(server.clone()), Work::List(plan)));
        let check = self.check.clone().map(|plan| (server.clone(), Work::Check(plan)));
        let scrape = self.scrape.clone().map(|plan| (plan.server_of(server), Work::Scrape(plan)));
        watches.extend(check.into_iter().chain(scrape).chain(list).map(|(server, work)| RecurringCheck {
            key: key.clone(),
            server,
            work,
            state: endpoint.state.clone(),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blueprint(url: &str, is_personal: bool) -> Blueprint {
        let written = serde_json::json!({"name": "x", "endpoints": [{"url": "http://a:1"}, {"url": url}]});
        let written: schema::Backend = serde_json::from_value(written).unwrap();
        let tls = Arc::new(crate::tls::UpstreamTls::read(&Default::default(), false, false).unwrap());
        let connect = ConnectOptions {
            timeout: std::time::Duration::from_secs(1),
            tls,
            http2: false,
            max_header_bytes: 64 << 10,
        };
        let listener = Arc::new(crate::balancing::tests::CountingListener::default());
        Blueprint::new(&written, &[], None, connect, listener, Arc::default(), Arc::new(Metrics::new()))
            .personal(is_personal)
    }

    #[test]
    fn credentials_of_callers_go_only_to_servers_that_they_were_meant_for() {
        for (before, after, takes) in [
            (("http://b:1", true), ("http://b:1", true), true),
            (("http://b:1", true), ("http://c:1", false), false),
            (("http://b:1", true), ("http://a:1", true), true),
            (("http://b:1", false), ("http://c:1", true), true),
        ] {
            let (old, new) = (blueprint(before.0, before.1), blueprint(after.0, after.1));
            assert_eq!(new.takes_requests_of(&old), takes, "{before:?} {after:?}");
        }
    }
}
