//! Facts of a client's connection that its requests carry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use spillway_config::schema::{EncodedSlashes, ListenerLimits};
use tokio::time::Instant;

use super::forwarded::{Origin, TrustedProxies, address_value};
use crate::clock::unix_now;
use crate::tls::{ClientCertificate, ServerTls};

/// Facts of a client's connection, which hold for all of its requests.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// The client: the other end, or whom it speaks for by the PROXY protocol.
    pub client: SocketAddr,
    /// Its address as a header value, made once for all requests of the connection.
    pub client_text: HeaderValue,
    /// Our own side.
    pub local: SocketAddr,
    /// What TLS said of it; `None` without TLS.
    pub tls: Option<TlsInfo>,
    /// Handling of encoded slashes on routes that do not say it themselves.
    pub encoded_slashes: EncodedSlashes,
    /// Limits of the listener.
    pub limits: ListenerLimits,
    trusted: Option<Arc<TrustedProxies>>,
    /// When the certificate of the client ends; `None` without one, and for one that had ended when the connection began.
    certificate_ends: Option<Instant>,
}

/// Rules of a listener that its connections carry.
#[derive(Debug, Clone)]
pub struct ListenerFacts {
    /// Handling of encoded slashes on routes that do not say it themselves.
    pub encoded_slashes: EncodedSlashes,
    /// Limits of the listener.
    pub limits: ListenerLimits,
    /// Proxies whose word on the client's address is taken.
    pub trusted: Option<Arc<TrustedProxies>>,
}

/// Facts of a connection that TLS told.
#[derive(Debug)]
pub struct TlsInfo {
    /// The name that the client asked for.
    pub server_name: Option<Box<str>>,
    /// The certificate that it showed, verified.
    pub client: Option<Arc<ClientCertificate>>,
    /// The version, such as `TLSv1.3`.
    pub version: &'static str,
    /// TLS of the listener.
    pub tls: Arc<ServerTls>,
}

impl ConnectionInfo {
    /// Facts of a connection from `client` to a listener.
    pub fn new(client: SocketAddr, local: SocketAddr, tls: Option<TlsInfo>, listener: ListenerFacts) -> Self {
        let ListenerFacts { encoded_slashes, limits, trusted } = listener;
        let ip = client.ip().to_canonical();
        let certificate_ends = tls.as_ref().and_then(|tls| ends(tls.client.as_ref()?));
        Self {
            client: SocketAddr::new(ip, client.port()),
            client_text: address_value(ip),
            local,
            tls,
            encoded_slashes,
            limits,
            trusted,
            certificate_ends,
        }
    }

    /// Where a request of this connection comes from.
    pub fn origin(&self, headers: &HeaderMap) -> Origin {
        let (peer, secure) = (self.client.ip(), self.tls.is_some());
        let Some(trusted) = self.trusted.as_ref().filter(|trusted| trusted.contains(peer)) else {
            return Origin { client: peer, text: self.client_text.clone(), secure };
        };
        let client = trusted.caller(peer, headers);
        let text = if client == peer { self.client_text.clone() } else { address_value(client) };
        Origin { client, text, secure: trusted.secure(headers).unwrap_or(secure) }
    }

    /// True if the client is a proxy that `clientAddress` trusts.
    pub fn is_from_trusted_proxy(&self) -> bool {
        self.trusted.as_ref().is_some_and(|trusted| trusted.contains(self.client.ip()))
    }

    /// When the certificate of the client ends; `None` without one, and for one that had ended when the connection began.
    pub fn certificate_ends(&self) -> Option<Instant> {
        self.certificate_ends
    }

    /// True if the client showed a certificate that has ended since, or had ended when the session was resumed: a handshake
    /// with it would be refused now.
    pub fn certificate_has_ended(&self) -> bool {
        let shown = self.tls.as_ref().and_then(|tls| tls.client.as_ref());
        shown.is_some_and(|certificate| certificate.has_ended(unix_now()))
    }

    /// Whether the connection may carry a request for this host, which may have a port.
    pub fn answers_for(&self, host: &str) -> bool {
        let Some(TlsInfo { server_name: Some(name), tls, .. }) = &self.tls else { return true };
        tls.answers_for(name, crate::routing::without_port(host).trim_matches(['[', ']']))
    }
}

/// Time until the first second in which a certificate is no longer good; `None` where that has come.
fn ends(certificate: &ClientCertificate) -> Option<Instant> {
    let now = i64::try_from(unix_now()).ok()?;
    let left = certificate.not_after.checked_sub(now)?.checked_add(1)?;
    let left = u64::try_from(left).ok().filter(|left| *left > 0)?;
    Instant::now().checked_add(Duration::from_secs(left))
}
