//! `dns`: who is asked for the addresses of endpoints that are written with a name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{DnsServer, Duration};

/// How the names of endpoints are resolved. A name is asked again when its time to live is over; while nobody answers its
/// last addresses are kept. Requests never wait for it. `/etc/hosts` goes before all servers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Dns {
    /// The servers that are asked; those of `/etc/resolv.conf`, with its search domains, when left out.
    pub servers: Vec<DnsServer>,
    /// A name is asked again no sooner, however short its time to live is.
    pub min_ttl: Duration,
    /// A name is asked again no later, however long its time to live is.
    pub max_ttl: Duration,
    /// Time for one answer of a server; a second one is asked then.
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
