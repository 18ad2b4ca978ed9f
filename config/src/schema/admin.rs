//! `admin`: the address for operators.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{ListenAddress, Secret};

/// Address for operators: `/metrics`, `/healthz`, `/readyz`, `/api/config`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Admin {
    /// IP and port; on loopback no token is needed.
    pub address: ListenAddress,
    /// Bearer token that everything but `/healthz` and `/readyz` asks for. Needed when the address is not loopback.
    #[serde(default)]
    pub token: Option<Secret>,
    /// Further values of `Host` that are accepted on loopback.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Most open connections, of which one address off loopback may have a quarter. A new connection is always
    /// accepted: at the limit, the least used one is closed for it, silent ones first
    /// (`spillway_admin_connections_dropped_total`).
    #[serde(default = "max_connections")]
    pub max_connections: NonZeroU32,
}

/// Operators, scrapers and probes are few.
pub(super) fn max_connections() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(63)
}
