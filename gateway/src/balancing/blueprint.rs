//! How the endpoints of a backend are made from what is written and the addresses that its names have now. It is kept
//! beside the running endpoints, so that a name whose addresses change needs no reload.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use spillway_config::schema;

use super::endpoint::millis;
use super::health::{CheckPlan, ScrapePlan, Server};
use super::signal::{connection_limit, signals};
use super::supervisor::{Watch, Work};
use super::{Endpoint, EndpointKey, EndpointSet, EndpointState, Endpoints, RoomListener, SaturationSignal};
use crate::telemetry::Metrics;
use crate::tls::UpstreamTls;
use crate::upstream::Peer;

/// How the servers of a backend are connected to.
pub struct Way {
    /// Time for a connection.
    pub connect: Duration,
    /// How their TLS is judged, where a URL says https.
    pub tls: Arc<UpstreamTls>,
    /// Whether they speak HTTP/2.
    pub http2: bool,
}

/// Age at which reports of load count no more for the policy `queueDepth`, where nothing is configured, milliseconds.
const REPORTS_STALE_AFTER: u64 = 3_000;

/// How the endpoints of a backend are made.
pub struct Blueprint {
    backend: String,
    written: Vec<schema::Endpoint>,
    /// Protocol, and name of the model.
    speaks: (schema::BackendProtocol, Option<String>),
    load_balancing: schema::LoadBalancing,
    stale_after: u64,
    signals: Arc<[Box<dyn SaturationSignal>]>,
    check: Option<CheckPlan>,
    scrape: Option<ScrapePlan>,
    credentials: Option<HeaderValue>,
    way: Way,
    most_connections: u32,
    listener: Arc<dyn RoomListener>,
    endpoints: Arc<Endpoints>,
    metrics: Arc<Metrics>,
}

/// The addresses of each written endpoint, in their order.
pub type Addresses = Vec<Vec<IpAddr>>;

impl Blueprint {
    /// For a backend as written. `full_statuses` and `credentials` are what the backend has in the end; `listener` waits
    /// for room at it.
    #[allow(clippy::too_many_arguments, reason = "what endpoints are made of")]
    pub fn new(
        written: &schema::Backend,
        full_statuses: &[u16],
        credentials: Option<HeaderValue>,
        way: Way,
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
            stale_after: written.capacity.queue_depth.as_ref().map_or(REPORTS_STALE_AFTER, |q| millis(q.stale_after.0)),
            signals: signals.into(),
            check: check.map(|check| CheckPlan::new(check, written.model.as_deref(), full_statuses)),
            scrape: ScrapePlan::new(&written.capacity),
            credentials,
            most_connections: written.capacity.max_connections.map_or(u32::MAX, NonZeroU32::get),
            way,
            listener,
            endpoints,
            metrics,
        }
    }

    /// The backend's name.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Tells whoever waits for room at the backend that there may be some.
    pub(super) fn may_have_room(&self) {
        self.listener.may_have_room();
    }

    /// Whether a request that was prepared for `other` may as well go to an endpoint of this one: it is the same backend,
    /// speaks the same, and gets the same credentials.
    pub(super) fn takes_requests_of(&self, other: &Self) -> bool {
        self.backend == other.backend && self.speaks == other.speaks && self.credentials == other.credentials
    }

    /// The endpoints as written.
    pub fn written(&self) -> &[schema::Endpoint] {
        &self.written
    }

    /// The endpoints at these addresses, and what is asked of them. `new_ones_wait`: one that was not known takes traffic
    /// only after its first check. An address that stands twice is one endpoint, that of its first place.
    pub fn build(&self, addresses: &Addresses, new_ones_wait: bool) -> (EndpointSet, Vec<Watch>) {
        let mut all: Vec<Arc<Endpoint>> = Vec::new();
        let mut watches = Vec::new();
        for (written, addresses) in self.written.iter().zip(addresses) {
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
        (EndpointSet::new(all, self.load_balancing.policy, rand::random(), self.stale_after), watches)
    }

    fn endpoint(&self, written: &schema::Endpoint, key: &EndpointKey, new_ones_wait: bool) -> Endpoint {
        let is_address = written.url.host.parse::<IpAddr>().is_ok();
        let text = if is_address { written.url.to_string() } else { format!("{} ({})", written.url, key.address.ip()) };
        let state = self.endpoints.get_or_insert(key, &self.listener, |siblings| {
            let healthy = !new_ones_wait || self.check.is_none();
            let state = EndpointState::new(self.metrics.endpoint(&self.backend, &text), healthy, siblings);
            if new_ones_wait {
                state.returned(super::now_millis());
            }
            state
        });
        Endpoint {
            url: written.url.clone(),
            address: text,
            socket: key.address,
            weight: written.weight,
            priority: written.priority,
            signals: self.signals.clone(),
            slow_start: self.load_balancing.slow_start.map_or(0, |time| millis(time.0)),
            peer: Peer::new(key, key.address, self.way.connect, &self.way.tls, self.way.http2)
                .counted(&state.connections, self.most_connections),
            state,
        }
    }

    fn watch(&self, key: &EndpointKey, endpoint: &Endpoint, watches: &mut Vec<Watch>) {
        let server = Server {
            socket: key.address,
            url: key.url.clone(),
            credentials: self.credentials.clone(),
            tls: self.way.tls.clone(),
            http2: self.way.http2,
        };
        let works = self.check.clone().map(Work::Check).into_iter().chain(self.scrape.clone().map(Work::Scrape));
        watches.extend(works.map(|work| Watch {
            key: key.clone(),
            server: server.clone(),
            work,
            state: endpoint.state.clone(),
        }));
    }
}
