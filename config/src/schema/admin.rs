//! `admin`: the address for operators.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{ListenAddress, Secret};

/// Address for operators: the dashboard, `/metrics`, `/healthz`, `/readyz`, `/api`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Admin {
    /// IP and port; on loopback no token is needed.
    pub address: ListenAddress,
    /// Bearer token that everything but `/healthz`, `/readyz` and the files of the dashboard asks for. Needed when the address is not loopback.
    #[serde(default)]
    pub token: Option<Secret>,
    /// Further values of `Host` that are accepted on loopback.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Playground of the dashboard: chats with routes through the gateway, as the caller whose key is typed in. Allowed on
    /// loopback when left out, and nowhere else.
    #[serde(default)]
    pub playground: Option<bool>,
    /// Address of a trace, to which the dashboard links requests: http or https, with `{trace_id}` in it. It is shown to
    /// operators: no place for a secret.
    #[serde(default)]
    pub traces_url: Option<String>,
    /// Most open connections, of which one address off loopback may have a quarter. A new connection is always
    /// accepted: at the limit, the least used one is closed for it, silent ones first
    /// (`spillway_admin_connections_dropped_total`).
    #[serde(default = "max_connections")]
    pub max_connections: NonZeroU32,
}

impl Admin {
    /// True if chats through the admin address are allowed.
    pub fn allows_playground(&self) -> bool {
        self.playground.unwrap_or_else(|| self.address.0.ip().is_loopback())
    }
}

/// Operators, scrapers and probes are few.
pub(super) fn max_connections() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(63)
}
