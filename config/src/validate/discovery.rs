//! Checks of `discovery`.

use super::{Context, at};
use crate::schema::Kubernetes;

/// Shortest lease of a leader, in seconds: the API server must be able to miss a renewal.
const LEAST_LEASE: u64 = 3;

pub(super) fn all(cx: &mut Context<'_>) {
    let config = cx.config;
    let Some(written) = &config.discovery.kubernetes else { return };
    if !cx.options.kubernetes {
        cx.error(
            at!["discovery", "kubernetes"],
            "this build of the gateway has no client for Kubernetes: use the container image or a binary of `make dist`, or build \
             with `--features kubernetes`",
        );
    }
    names(cx, written);
    if let Some(name) = &written.spill_to
        && !cx.index.models.contains(name.as_str())
        && !cx.index.backends.contains_key(name.as_str())
    {
        let models = config.models.iter().map(|m| m.name.as_str());
        let known: Vec<&str> = models.chain(config.backends.iter().map(|b| b.name.as_str())).collect();
        cx.unknown(at!["discovery", "kubernetes", "spillTo"], "model or backend", name, &known);
    }
    if written.spill_to.is_some() && !written.inference_pools {
        cx.error(
            at!["discovery", "kubernetes", "spillTo"],
            "no effect, because only requests to inference pools spill: write `inferencePools: true`",
        );
    }
    let lease = written.leader_election.duration;
    if lease.0.as_secs() < LEAST_LEASE {
        let message = format!("found {lease}; expected {LEAST_LEASE}s or more");
        cx.error(at!["discovery", "kubernetes", "leaderElection", "duration"], message);
    }
    for (n, address) in written.published_addresses.iter().enumerate() {
        if address.parse::<std::net::IpAddr>().is_err() && !is_subdomain(address) {
            let message = format!("`{address}` is no IP address or host name; expected one such as 203.0.113.7");
            cx.error(at!["discovery", "kubernetes", "publishedAddresses", n], message);
        }
    }
}

/// Checks the names of objects, which stand in paths of requests to the API server.
fn names(cx: &mut Context<'_>, written: &Kubernetes) {
    let lease = &written.leader_election;
    let here = |key: &str| at!["discovery", "kubernetes", key];
    let mut named = vec![
        (here("gatewayClass"), written.gateway_class.as_str()),
        (at!["discovery", "kubernetes", "leaderElection", "name"], lease.name.as_str()),
    ];
    named.extend(
        lease
            .namespace
            .iter()
            .map(|name| (at!["discovery", "kubernetes", "leaderElection", "namespace"], name.as_str())),
    );
    named.extend(
        written
            .namespaces
            .iter()
            .enumerate()
            .map(|(n, name)| (at!["discovery", "kubernetes", "namespaces", n], name.as_str())),
    );
    for (at, name) in named {
        if !is_subdomain(name) {
            cx.error(at, format!("`{name}` is no name of an object; expected small letters, digits, `-` and `.`"));
        }
    }
    for (n, name) in written.namespaces.iter().enumerate() {
        if written.namespaces.iter().take(n).any(|known| known == name) {
            cx.error(
                at!["discovery", "kubernetes", "namespaces", n],
                format!("`{name}` is in the list already: remove one"),
            );
        }
    }
}

/// True for a name as of RFC 1123, as Kubernetes names objects.
fn is_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        bytes.len() <= 63
            && ends(bytes.first())
            && ends(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}
