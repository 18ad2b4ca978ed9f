//! Names of endpoints: resolved when a configuration is compiled, and again while it is active. Each address of a name is
//! an endpoint. A name that cannot be resolved keeps the addresses that it had; one that never had any is unavailable until
//! it is resolved. Requests never wait for DNS.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use hickory_resolver::net::NetError;
use tokio::time::Instant;

use super::EndpointSet;
use super::blueprint::{Addresses, Blueprint};
use super::watch::RecurringCheck;
use crate::telemetry::LogThrottle;

/// Longest time for one answer of DNS.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most addresses of one name that are used.
const MAX_ADDRESSES: usize = 1_000;
/// Least and most time between two queries for a name; the configuration has narrower bounds.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(86_400);
/// Time to the next query after a failed one.
const AFTER_FAILURE: Duration = Duration::from_secs(2);
/// Most names that are resolved at the same time: names that no server answers for must not wait for each other.
const AT_ONCE: usize = 32;

/// Addresses of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedAddresses {
    /// At least one address.
    pub addresses: Vec<IpAddr>,
    /// Time for which they are valid.
    pub ttl: Duration,
}

/// Reason for which a resolver returns no addresses.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// The system's configuration of DNS cannot be read.
    #[error("no DNS servers are known: {0}")]
    NoServers(String),
    /// The configuration of DNS cannot be used.
    #[error("DNS cannot be set up: {0}")]
    Setup(NetError),
    /// No server answered, or the answer has no address.
    #[error("{0}")]
    Lookup(NetError),
}

/// Reason for which a host of an endpoint has no addresses.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The query failed.
    #[error("`{host}` cannot be resolved: {source}")]
    Unresolved {
        /// The host.
        host: String,
        /// Reason of the resolver.
        source: ResolveError,
    },
    /// No answer came in time.
    #[error("`{host}` was not resolved within {} s", TIMEOUT.as_secs())]
    TimedOut {
        /// The host.
        host: String,
    },
    /// The answer holds no address.
    #[error("`{host}` has no address")]
    NoAddress {
        /// The host.
        host: String,
    },
}

/// Resolves names.
#[async_trait]
pub trait Resolve: Send + Sync {
    /// Addresses of a host.
    async fn resolve(&self, host: &str) -> Result<ResolvedAddresses, ResolveError>;
}

/// Addresses of a host, sorted, within [`TIMEOUT`]. A host that is an address has that one.
async fn addresses(resolver: &dyn Resolve, host: &str) -> Result<ResolvedAddresses, AddressError> {
    if let Ok(ip) = host.parse() {
        return Ok(ResolvedAddresses { addresses: vec![ip], ttl: LATEST });
    }
    let host = host.to_owned();
    let mut resolved = match tokio::time::timeout(TIMEOUT, resolver.resolve(&host)).await {
        Ok(Ok(resolved)) => resolved,
        Ok(Err(source)) => return Err(AddressError::Unresolved { host, source }),
        Err(_) => return Err(AddressError::TimedOut { host }),
    };
    // A name with addresses of both families is most often one server with two: it is used once.
    if resolved.addresses.iter().any(IpAddr::is_ipv4) {
        resolved.addresses.retain(IpAddr::is_ipv4);
    }
    // Servers rotate the order of answers; the order of endpoints must not change with it.
    resolved.addresses.sort_unstable();
    resolved.addresses.dedup();
    resolved.addresses.truncate(MAX_ADDRESSES);
    if resolved.addresses.is_empty() { Err(AddressError::NoAddress { host }) } else { Ok(resolved) }
}

/// Addresses of each of these hosts.
pub(crate) async fn addresses_by_host(
    resolver: &Arc<dyn Resolve>,
    hosts: BTreeSet<String>,
) -> HashMap<String, Result<ResolvedAddresses, AddressError>> {
    // Each query owns its inputs: the compiler cannot prove this future `Send` over borrowed ones.
    let queries: Vec<_> = hosts.into_iter().map(|host| query(resolver.clone(), host)).collect();
    futures::stream::iter(queries).buffer_unordered(AT_ONCE).collect().await
}

async fn query(resolver: Arc<dyn Resolve>, host: String) -> (String, Result<ResolvedAddresses, AddressError>) {
    let found = addresses(&*resolver, &host).await;
    (host, found)
}

/// True if the URL of an endpoint of the backend has a name and no address.
pub(super) fn has_names(blueprint: &Blueprint) -> bool {
    blueprint.written().iter().any(|endpoint| endpoint.url.host.parse::<IpAddr>().is_err())
}

/// Name of an endpoint that is resolved again and again.
struct FollowedName {
    /// Index of the endpoint in the file.
    index: usize,
    /// Time of the next query.
    due: Instant,
    /// Reason of the last failure, and the bound on its log lines.
    failed: Option<(String, LogThrottle)>,
}

impl FollowedName {
    /// Logs a failure: at once where the reason is new, else at most once a minute.
    fn report(&mut self, backend: &str, endpoint: &dyn std::fmt::Display, has_addresses: bool, reason: String) {
        if self.failed.as_ref().is_none_or(|(last, _)| *last != reason) {
            self.failed = Some((reason, LogThrottle::default()));
        }
        if let Some((reason, throttle)) = &self.failed {
            throttle.add(1, |_| report_unresolved(backend, endpoint, has_addresses, reason));
        }
    }
}

/// Logs that the name of an endpoint is not resolved, and the effect.
pub(crate) fn report_unresolved(
    backend: &str,
    endpoint: &dyn std::fmt::Display,
    has_addresses: bool,
    reason: &dyn std::fmt::Display,
) {
    let effect = if has_addresses {
        "its addresses are kept"
    } else {
        "the endpoint is unavailable until its name is resolved, which is tried again and again"
    };
    tracing::warn!(event = "name_not_resolved", backend, %endpoint, %reason, "{effect}");
}

/// Resolves the names of a backend again and again, and calls `install` with new endpoints and their watches when the
/// addresses change. Ends when `install` returns false.
pub(super) async fn follow(
    blueprint: Arc<Blueprint>,
    mut known: Addresses,
    resolver: Arc<dyn Resolve>,
    install: impl Fn(EndpointSet, Vec<RecurringCheck>) -> bool,
) {
    let written = blueprint.written();
    let is_name = |index: &usize| written.get(*index).is_some_and(|e| e.url.host.parse::<IpAddr>().is_err());
    let soon = Instant::now() + SOONEST.mul_f64(rand::random_range(1.0..1.1));
    let mut names: Vec<FollowedName> =
        (0..written.len()).filter(is_name).map(|index| FollowedName { index, due: soon, failed: None }).collect();
    while let Some(soonest) = names.iter().map(|name| name.due).min() {
        tokio::time::sleep_until(soonest).await;
        let began = Instant::now();
        let host = |name: &FollowedName| written.get(name.index).map(|endpoint| endpoint.url.host.clone());
        let due = names.iter().filter(|name| name.due <= began).filter_map(host).collect();
        let resolved = addresses_by_host(&resolver, due).await;
        // One draw for the round, so that names which were resolved together stay together.
        let (ended, jitter) = (Instant::now(), rand::random_range(1.0..1.1));
        let mut now = known.clone();
        for name in names.iter_mut().filter(|name| name.due <= began) {
            let (Some(endpoint), Some(had)) = (written.get(name.index), now.get_mut(name.index)) else { continue };
            let wait = match resolved.get(&endpoint.url.host) {
                Some(Ok(resolved)) => {
                    name.failed = None;
                    had.clone_from(&resolved.addresses);
                    resolved.ttl.clamp(SOONEST, LATEST)
                }
                Some(Err(reason)) => {
                    name.report(blueprint.backend(), &endpoint.url, !had.is_empty(), reason.to_string());
                    AFTER_FAILURE
                }
                None => AFTER_FAILURE,
            };
            name.due = ended + wait.mul_f64(jitter);
        }
        if now == known {
            continue;
        }
        let (endpoints, watches) = blueprint.build(&now, true);
        let count = endpoints.all().len();
        if !install(endpoints, watches) {
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

    use arc_swap::ArcSwap;
    use parking_lot::Mutex;
    use spillway_config::schema;

    use super::*;
    use crate::balancing::tests;
    use crate::balancing::{BackgroundTasks, ConnectOptions, Endpoints, Supervisor};
    use crate::telemetry::Metrics;
    use crate::tls::UpstreamTls;

    /// Resolver with the answers of a test.
    #[derive(Default)]
    struct ScriptedResolver(Mutex<HashMap<String, ResolvedAddresses>>);

    impl ScriptedResolver {
        fn set(&self, host: &str, addresses: &[&str], ttl: u64) {
            let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
            self.0.lock().insert(host.to_owned(), ResolvedAddresses { addresses, ttl: Duration::from_secs(ttl) });
        }
    }

    #[async_trait]
    impl Resolve for ScriptedResolver {
        async fn resolve(&self, host: &str) -> Result<ResolvedAddresses, ResolveError> {
            self.0.lock().get(host).cloned().ok_or(ResolveError::Lookup(NetError::Message("no such name")))
        }
    }

    #[tokio::test]
    async fn one_family_is_used_and_the_order_of_an_answer_does_not_matter() {
        let resolver = ScriptedResolver::default();
        resolver.set("both", &["::1", "10.0.0.2", "10.0.0.1", "10.0.0.2"], 5);
        resolver.set("six", &["fd00::1"], 5);
        resolver.set("none", &[], 5);
        let of = async |host: &str| {
            addresses(&resolver, host).await.map(|r| r.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>())
        };
        assert_eq!(of("both").await.unwrap(), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(of("six").await.unwrap(), ["fd00::1"]);
        assert_eq!(of("10.1.1.1").await.unwrap(), ["10.1.1.1"]);
        assert!(of("none").await.unwrap_err().to_string().contains("has no address"));
        assert!(of("unknown").await.unwrap_err().to_string().contains("`unknown` cannot be resolved: no such name"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_endpoints_follow_a_name_keep_their_state_and_outlast_a_failure() {
        let resolver = Arc::new(ScriptedResolver::default());
        resolver.set("chat", &["10.0.0.1", "10.0.0.2"], 3);
        let written: schema::Backend = serde_json::from_value(serde_json::json!({
            "name": "x", "endpoints": [{"url": "http://chat:8000"}, {"url": "http://10.0.0.2:8000"}]
        }))
        .unwrap();
        let tls = Arc::new(UpstreamTls::read(&Default::default(), false, false).unwrap());
        let connect = ConnectOptions { timeout: Duration::from_secs(1), tls, http2: false, max_header_bytes: 64 << 10 };
        let (endpoints, metrics) = (Arc::new(Endpoints::default()), Arc::new(Metrics::new()));
        let listener = Arc::new(tests::CountingListener::default());
        let blueprint = Arc::new(Blueprint::new(&written, &[], None, connect, listener.clone(), endpoints, metrics));
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
            resolver: resolver.clone(),
        }]);
        resolver.set("chat", &["10.0.0.3", "10.0.0.1"], 3);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(sockets(), [at("1"), at("3"), at("2")]);
        assert!(listener.times() > 0, "who waits for room is told");
        assert!(Arc::ptr_eq(&set.load().all()[0].state, &kept) && set.load().all()[0].state.is_drained());
        resolver.0.lock().clear();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(sockets().len(), 3, "a name that cannot be resolved keeps its addresses");
        resolver.set("chat", &["10.0.0.4"], 3);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(sockets(), [at("4"), at("2")]);
        supervisor.stop();
        resolver.set("chat", &["10.0.0.5"], 1);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(sockets(), [at("4"), at("2")], "nobody asks any more");
    }
}
