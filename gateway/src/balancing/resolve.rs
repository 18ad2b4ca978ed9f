//! Names of endpoints: resolved when a configuration is compiled, and again while it runs. Each address of a name is an
//! endpoint. When a name cannot be resolved the addresses that it had are kept; requests never wait for an answer.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;

use super::EndpointSet;
use super::blueprint::{Addresses, Blueprint};
use super::supervisor::Supervisor;

/// Longest time for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most addresses of one name that are used.
const MAX_ADDRESSES: usize = 1_000;
/// How soon a name is asked again at the earliest, and at the latest; the configuration has narrower bounds.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(86_400);
/// How soon after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// The addresses of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// At least one.
    pub addresses: Vec<IpAddr>,
    /// How long they are good.
    pub ttl: Duration,
}

/// Asks for the addresses of names.
#[async_trait]
pub trait Resolve: Send + Sync {
    /// The addresses of a host; the error says why there are none.
    async fn resolve(&self, host: &str) -> Result<Resolved, String>;
}

/// The addresses of a host, in time and in order; an address stands for itself.
pub(crate) async fn addresses(resolver: &dyn Resolve, host: &str) -> Result<Resolved, String> {
    if let Ok(ip) = host.parse() {
        return Ok(Resolved { addresses: vec![ip], ttl: LATEST });
    }
    let mut resolved = match tokio::time::timeout(TIMEOUT, resolver.resolve(host)).await {
        Ok(Ok(resolved)) => resolved,
        Ok(Err(e)) => return Err(format!("`{host}` cannot be resolved: {e}")),
        Err(_) => return Err(format!("`{host}` was not resolved within {} s", TIMEOUT.as_secs())),
    };
    // A name with addresses of both families is most often one server with two: it is used once.
    if resolved.addresses.iter().any(IpAddr::is_ipv4) {
        resolved.addresses.retain(IpAddr::is_ipv4);
    }
    // The order of answers is turned round by servers; ours must not change with it.
    resolved.addresses.sort_unstable();
    resolved.addresses.dedup();
    resolved.addresses.truncate(MAX_ADDRESSES);
    if resolved.addresses.is_empty() { Err(format!("`{host}` has no address")) } else { Ok(resolved) }
}

/// Whether an endpoint of the backend is written with a name.
pub(super) fn has_names(blueprint: &Blueprint) -> bool {
    blueprint.written().iter().any(|endpoint| endpoint.url.host.parse::<IpAddr>().is_err())
}

/// Asks for the names of a backend again and again, and puts new endpoints in place when their addresses change.
pub(super) async fn follow(
    supervisor: Weak<Supervisor>,
    generation: u64,
    blueprint: Arc<Blueprint>,
    set: Arc<ArcSwap<EndpointSet>>,
    mut known: Addresses,
    resolver: Arc<dyn Resolve>,
) {
    let mut wait = SOONEST;
    loop {
        tokio::time::sleep(wait.mul_f64(rand::random_range(1.0..1.1))).await;
        wait = LATEST;
        let mut now = known.clone();
        for (written, had) in blueprint.written().iter().zip(&mut now) {
            if written.url.host.parse::<IpAddr>().is_ok() {
                continue;
            }
            match addresses(&*resolver, &written.url.host).await {
                Ok(resolved) => {
                    wait = wait.min(resolved.ttl.max(SOONEST));
                    *had = resolved.addresses;
                }
                Err(reason) => {
                    wait = wait.min(AFTER_FAILURE);
                    tracing::warn!(event = "name_not_resolved", backend = blueprint.backend(), %reason, "its addresses are kept");
                }
            }
        }
        if now == known {
            continue;
        }
        let Some(supervisor) = supervisor.upgrade() else { return };
        let (endpoints, watches) = blueprint.build(&now, true);
        let count = endpoints.all().len();
        if !supervisor.replace(generation, blueprint.backend(), watches, || set.store(Arc::new(endpoints))) {
            return;
        }
        blueprint.may_have_room();
        tracing::info!(event = "endpoints_changed", backend = blueprint.backend(), endpoints = count);
        known = now;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::SocketAddr;

    use parking_lot::Mutex;
    use spillway_config::schema;

    use super::*;
    use crate::balancing::tests;
    use crate::balancing::{BackgroundTasks, Endpoints, Way};
    use crate::telemetry::Metrics;
    use crate::tls::UpstreamTls;

    /// Answers as a test tells it to.
    #[derive(Default)]
    struct Told(Mutex<HashMap<String, Result<Resolved, String>>>);

    impl Told {
        fn tell(&self, host: &str, addresses: &[&str], ttl: u64) {
            let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
            self.0.lock().insert(host.to_owned(), Ok(Resolved { addresses, ttl: Duration::from_secs(ttl) }));
        }
    }

    #[async_trait]
    impl Resolve for Told {
        async fn resolve(&self, host: &str) -> Result<Resolved, String> {
            self.0.lock().get(host).cloned().unwrap_or_else(|| Err("no such name".to_owned()))
        }
    }

    #[tokio::test]
    async fn one_family_is_used_and_the_order_of_an_answer_does_not_matter() {
        let told = Told::default();
        told.tell("both", &["::1", "10.0.0.2", "10.0.0.1", "10.0.0.2"], 5);
        told.tell("six", &["fd00::1"], 5);
        told.tell("none", &[], 5);
        let of = async |host: &str| {
            addresses(&told, host).await.map(|r| r.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>())
        };
        assert_eq!(of("both").await.unwrap(), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(of("six").await.unwrap(), ["fd00::1"]);
        assert_eq!(of("10.1.1.1").await.unwrap(), ["10.1.1.1"]);
        assert!(of("none").await.unwrap_err().contains("has no address"));
        assert!(of("unknown").await.unwrap_err().contains("`unknown` cannot be resolved: no such name"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_endpoints_follow_a_name_keep_their_state_and_outlast_a_failure() {
        let told = Arc::new(Told::default());
        told.tell("chat", &["10.0.0.1", "10.0.0.2"], 3);
        let written: schema::Backend = serde_json::from_value(serde_json::json!({
            "name": "x", "endpoints": [{"url": "http://chat:8000"}, {"url": "http://10.0.0.2:8000"}]
        }))
        .unwrap();
        let tls = Arc::new(UpstreamTls::read(&Default::default(), false, false).unwrap());
        let way = Way { connect: Duration::from_secs(1), tls, http2: false, max_header_bytes: 64 << 10 };
        let (endpoints, metrics) = (Arc::new(Endpoints::default()), Arc::new(Metrics::new()));
        let listener = Arc::new(tests::Told::default());
        let blueprint = Arc::new(Blueprint::new(&written, &[], None, way, listener.clone(), endpoints, metrics));
        let known: Addresses =
            vec![vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()], vec!["10.0.0.2".parse().unwrap()]];
        let (first, watches) = blueprint.build(&known, false);
        let set = Arc::new(ArcSwap::from_pointee(first));
        let sockets = || set.load().all().iter().map(|e| e.socket).collect::<Vec<SocketAddr>>();
        let at = |text: &str| -> SocketAddr { format!("10.0.0.{text}:8000").parse().unwrap() };
        assert_eq!(sockets(), [at("1"), at("2")], "an address that stands twice is one endpoint");
        let kept = set.load().all()[0].state.clone();
        kept.set_drained(true, 1);

        let supervisor = Arc::new(Supervisor::default());
        supervisor.apply(vec![BackgroundTasks {
            blueprint,
            set: set.clone(),
            addresses: known,
            watches,
            resolver: told.clone(),
        }]);
        told.tell("chat", &["10.0.0.3", "10.0.0.1"], 3);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(sockets(), [at("1"), at("3"), at("2")]);
        assert!(listener.times() > 0, "who waits for room is told");
        assert!(Arc::ptr_eq(&set.load().all()[0].state, &kept) && set.load().all()[0].state.is_drained());
        told.0.lock().clear();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(sockets().len(), 3, "a name that cannot be resolved keeps its addresses");
        told.tell("chat", &["10.0.0.4"], 3);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(sockets(), [at("4"), at("2")]);
        supervisor.stop();
        told.tell("chat", &["10.0.0.5"], 1);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(sockets(), [at("4"), at("2")], "nobody asks any more");
    }
}
