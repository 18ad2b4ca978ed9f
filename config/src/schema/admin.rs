//! `admin`: the address for operators.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{ListenAddress, Secret};

/// The address for operators: `/metrics`, `/healthz`, `/readyz`, `/api/config`.
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
}
