//! A listener as the configuration asks for it, with its certificates read.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use spillway_config::schema::{Config, EncodedSlashes, ListenerLimits, ListenerProtocol};
use spillway_config::values::Network;

use crate::exchange::{ListenerFacts, TrustedProxies};
use crate::tls::{Acme, ServerTls};

/// A listener to be opened or kept.
#[derive(Debug, Clone)]
pub struct ListenerPlan {
    /// Name in logs and metrics.
    pub name: String,
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// What it speaks without or inside TLS.
    pub protocol: ListenerProtocol,
    /// Its TLS, where it speaks `https`.
    pub tls: Option<Arc<ServerTls>>,
    /// Proxies that say in a header whom they speak for.
    pub trusted: Option<Arc<TrustedProxies>>,
    /// Proxies whose connections begin with the PROXY protocol.
    pub proxy_protocol: Arc<[Network]>,
    /// Handling of encoded slashes on routes that do not say it themselves.
    pub encoded_slashes: EncodedSlashes,
    /// Its limits.
    pub limits: ListenerLimits,
}

impl ListenerPlan {
    /// Rules that its connections carry.
    pub(super) fn facts(&self) -> ListenerFacts {
        let (encoded_slashes, limits, trusted) = (self.encoded_slashes, self.limits.clone(), self.trusted.clone());
        ListenerFacts { encoded_slashes, limits, trusted }
    }

    /// Whether the PROXY protocol must come first from this address.
    pub(super) fn wants_proxy_protocol(&self, peer: IpAddr) -> bool {
        self.proxy_protocol.iter().any(|network| network.contains(peer))
    }

    /// Whether an address is that of a proxy, which speaks for many.
    pub(super) fn is_proxy(&self, address: IpAddr) -> bool {
        self.trusted.as_ref().is_some_and(|trusted| trusted.contains(address))
    }
}

/// The listeners that a configuration asks for. Reads files: not for the runtime's threads.
pub fn plans(config: &Config, acme: &Acme) -> Result<Vec<ListenerPlan>, Vec<String>> {
    let mut plans = Vec::new();
    let mut errors = Vec::new();
    for written in &config.listeners {
        let name = written.name.clone().unwrap_or_else(|| written.address.to_string());
        let tls = match written.tls.as_ref().map(|tls| ServerTls::read(tls, acme)).transpose() {
            Ok(tls) => tls.map(Arc::new),
            Err(e) => {
                errors.push(format!("listener `{name}`: {e}"));
                continue;
            }
        };
        plans.push(ListenerPlan {
            name,
            address: written.address.0,
            protocol: written.protocol,
            tls,
            trusted: written.client_address.as_ref().map(|rule| Arc::new(TrustedProxies::new(rule))),
            proxy_protocol: written.proxy_protocol.iter().flat_map(|rule| rule.from.iter().copied()).collect(),
            encoded_slashes: written.encoded_slashes,
            limits: written.limits.clone(),
        });
    }
    if errors.is_empty() { Ok(plans) } else { Err(errors) }
}
