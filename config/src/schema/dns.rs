//! `dns`: servers that resolve the names of endpoints.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{DnsServer, Duration};

/// Resolution of the names of endpoints. A name is resolved again when its time to live is over; while no server
/// answers, its last addresses are kept. An endpoint whose name was never resolved is unavailable. Requests never wait for it. `/etc/hosts` goes before all servers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Dns {
    /// DNS servers; those of `/etc/resolv.conf`, with its search domains, when left out.
    pub servers: Vec<DnsServer>,
    /// Shortest time until a name is resolved again, however short its time to live is.
    pub min_ttl: Duration,
    /// Longest time until a name is resolved again, however long its time to live is.
    pub max_ttl: Duration,
    /// Time for an answer of a server; then the next server is asked.
    pub timeout: Duration,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            min_ttl: Duration::seconds(1),
            max_ttl: Duration::seconds(300),
            timeout: Duration::seconds(2),
        }
    }
}
