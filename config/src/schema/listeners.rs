//! `listeners`: the addresses that clients connect to.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, ListenAddress, Size};

/// An address that clients connect to. It speaks HTTP/1.1.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    /// Name in logs and metrics; the address when left out.
    #[serde(default)]
    pub name: Option<String>,
    /// IP and port, such as 0.0.0.0:8080.
    pub address: ListenAddress,
    /// What one client, and all of them together, may take.
    #[serde(default)]
    pub limits: ListenerLimits,
}

/// What one client, and all of them together, may take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ListenerLimits {
    /// Open connections; a further one is closed at once.
    pub max_connections: NonZeroU32,
    /// Time from the first byte of a request to the end of its header.
    pub header_timeout: Duration,
    /// Time from the end of the header to the end of a body that the gateway holds.
    pub body_timeout: Duration,
    /// Time that a connection may stay open between requests.
    pub idle_timeout: Duration,
    /// Bytes of the request line and header together.
    pub max_header_bytes: Size,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            max_connections: NonZeroU32::MIN.saturating_add(19_999),
            header_timeout: Duration::seconds(10),
            body_timeout: Duration::seconds(60),
            idle_timeout: Duration::seconds(75),
            max_header_bytes: Size::kib(32),
        }
    }
}
