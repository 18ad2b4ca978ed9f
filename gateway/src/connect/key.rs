//! What connections and state of an endpoint are shared by.

use std::net::SocketAddr;

use spillway_config::values::ServerUrl;

/// Identity of an endpoint across reloads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// Name of the backend.
    pub backend: String,
    /// Address of the server as configured.
    pub url: ServerUrl,
    /// One of the addresses of its name.
    pub address: SocketAddr,
}
