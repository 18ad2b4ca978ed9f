//! Compiled listeners: the configuration of each, with its certificates read.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use spillway_config::schema::{Config, EncodedSlashes, ListenerLimits, ListenerProtocol};
use spillway_config::values::Network;

use crate::exchange::{ListenerFacts, TrustedProxies};
use crate::tls::{Acme, ServerTls};

/// Listener to be opened or kept.
#[derive(Debug, Clone)]
pub struct ListenerPlan {
    /// Name in logs and metrics.
    pub name: Arc<str>,
    /// Address to listen on; port 0 means any free port.
    pub address: SocketAddr,
    /// Protocol, without or inside TLS.
    pub protocol: ListenerProtocol,
    /// TLS of an `https` listener.
    pub tls: Option<Arc<ServerTls>>,
    /// Proxies whose headers name the client.
    pub trusted: Option<Arc<TrustedProxies>>,
    /// Proxies whose connections begin with the PROXY protocol.
    pub proxy_protocol: Arc<[Network]>,
    /// Handling of encoded slashes on routes that do not configure it.
    pub encoded_slashes: EncodedSlashes,
    /// Path of health checks, which the listener answers itself.
    pub health_path: Option<Arc<str>>,
    /// True if requests to servers carry the list of the gateways that they have passed.
    pub loop_header: bool,
    /// True if requests to servers are signed with `Via`.
    pub via: bool,
    /// Limits of connections and requests.
    pub limits: ListenerLimits,
}

impl ListenerPlan {
    /// Rules that connections of the listener carry.
    pub(super) fn facts(&self) -> ListenerFacts {
        ListenerFacts {
            name: self.name.clone(),
            encoded_slashes: self.encoded_slashes,
            health_path: self.health_path.clone(),
            loop_header: self.loop_header,
            via: self.via,
            limits: self.limits.clone(),
            trusted: self.trusted.clone(),
        }
    }

    /// True if connections from an address must begin with the PROXY protocol.
    pub(super) fn wants_proxy_protocol(&self, peer: IpAddr) -> bool {
        self.proxy_protocol.iter().any(|network| network.contains(peer))
    }

    /// True for the address of a proxy, which speaks for many clients.
    pub(super) fn is_proxy(&self, address: IpAddr) -> bool {
        self.trusted.as_ref().is_some_and(|trusted| trusted.contains(address))
    }
}

/// Compiles the listeners of a configuration, or collects every error. Reads files: not for the runtime's threads.
pub fn plans(config: &Config, acme: &Acme) -> Result<Vec<ListenerPlan>, Vec<String>> {
    let mut plans = Vec::new();
    let mut errors = Vec::new();
    for written in &config.listeners {
        let name = written.shown_name();
        let tls = match written.tls.as_ref().map(|tls| ServerTls::read(tls, acme)).transpose() {
            Ok(tls) => tls.map(Arc::new),
            Err(e) => {
                errors.push(format!("listener `{name}`: {e}"));
                continue;
            }
        };
        plans.push(ListenerPlan {
            name: name.into(),
            address: written.address.0,
            protocol: written.protocol,
            tls,
            trusted: written.client_address.as_ref().map(|rule| Arc::new(TrustedProxies::new(rule))),
            proxy_protocol: written.proxy_protocol.iter().flat_map(|rule| rule.from.iter().copied()).collect(),
            encoded_slashes: written.encoded_slashes,
            health_path: written.health_path.as_deref().map(Into::into),
            loop_header: written.loop_header,
            via: written.via,
            limits: written.limits.clone(),
        });
    }
    if errors.is_empty() { Ok(plans) } else { Err(errors) }
}
