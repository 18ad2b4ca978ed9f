//! Support for the benches of balancing: its names, endpoints without connections, and the simulated fleet.

use std::sync::LazyLock;
use std::time::Duration;

pub(crate) use spillway::balancing::{
    Balancer, Class, Detector, Endpoint, EndpointSet, EndpointState, LoadReport, PickInputs, Siblings, Slot, Verdict,
    hash_key,
};
pub(crate) use spillway::connect::EndpointKey;
use spillway::connect::Peer;
use spillway::telemetry::EndpointMetrics;
use spillway::tls::UpstreamTls;
use spillway_config::schema::BackendTls;

/// Target of connections that are never opened.
fn peer(key: &EndpointKey) -> Peer {
    static TLS: LazyLock<UpstreamTls> =
        LazyLock::new(|| UpstreamTls::read(&BackendTls::default(), false, false).unwrap());
    Peer::new(key, key.address, Duration::from_secs(1), &TLS, None)
}

#[path = "simulation.rs"]
pub(crate) mod simulation;
