//! Key by which connections and state of an endpoint are shared.

use std::net::SocketAddr;

use spillway_config::values::ServerUrl;

/// Identity of an endpoint across reloads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// Name of the backend.
    pub backend: String,
    /// Address of the server as configured.
    pub url: ServerUrl,
    /// Address of the server, one of those that its name resolves to.
    pub address: SocketAddr,
}
