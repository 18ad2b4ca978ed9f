//! Facts of a client's connection that its requests carry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method};
use spillway_config::schema::{EncodedSlashes, ListenerLimits};
use spillway_filter::Fields;
use tokio::time::Instant;

use super::forwarded::{Origin, TrustedProxies, address_value};
use crate::batch::LineMark;
use crate::clock::unix_now;
use crate::tls::{ClientCertificate, ServerTls};

/// Facts of a client's connection, the same for all of its requests.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Name of the listener.
    pub listener: Arc<str>,
    /// Address of the client: the other end, or the one in its PROXY protocol header.
    pub client: SocketAddr,
    /// IP address of the client as a header value, made once for all requests of the connection.
    pub client_text: HeaderValue,
    /// Address of the gateway's side.
    pub local: SocketAddr,
    /// Facts of TLS; `None` without TLS.
    pub tls: Option<TlsInfo>,
    /// Handling of encoded slashes on routes that do not set it themselves.
    pub encoded_slashes: EncodedSlashes,
    /// True if requests to servers carry the list of the gateways that they have passed.
    pub loop_header: bool,
    /// True if requests to servers are signed with `Via`.
    pub via: bool,
    /// Limits of the listener.
    pub limits: ListenerLimits,
    /// Path of health checks, which the listener answers itself.
    health_path: Option<Arc<str>>,
    trusted: Option<Arc<TrustedProxies>>,
    /// Expiry of the client's certificate; `None` without one, and for one that had expired when the connection began.
    certificate_ends: Option<Instant>,
    /// Mark of a line of a batch; `None` for a client's connection.
    pub line: Option<Arc<LineMark>>,
}

/// Rules of a listener that its connections carry.
#[derive(Debug, Clone)]
pub struct ListenerFacts {
    /// Name of the listener.
    pub name: Arc<str>,
    /// Handling of encoded slashes on routes that do not set it themselves.
    pub encoded_slashes: EncodedSlashes,
    /// Path of health checks, which the listener answers itself.
    pub health_path: Option<Arc<str>>,
    /// True if requests to servers carry the list of the gateways that they have passed.
    pub loop_header: bool,
    /// True if requests to servers are signed with `Via`.
    pub via: bool,
    /// Limits of the listener.
    pub limits: ListenerLimits,
    /// Proxies whose headers name the client.
    pub trusted: Option<Arc<TrustedProxies>>,
}

/// Facts of a connection that are known by TLS.
#[derive(Debug)]
pub struct TlsInfo {
    /// Server name that the client asked for.
    pub server_name: Option<Box<str>>,
    /// Verified certificate of the client.
    pub client: Option<Arc<ClientCertificate>>,
    /// Version, such as `TLSv1.3`.
    pub version: &'static str,
    /// TLS of the listener.
    pub tls: Arc<ServerTls>,
}

impl ConnectionInfo {
    /// Creates the facts of a connection from `client` to a listener.
    pub fn new(client: SocketAddr, local: SocketAddr, tls: Option<TlsInfo>, listener: ListenerFacts) -> Self {
        let ListenerFacts { name, encoded_slashes, health_path, loop_header, via, limits, trusted } = listener;
        let ip = client.ip().to_canonical();
        let certificate_ends = tls.as_ref().and_then(|tls| ends(tls.client.as_ref()?));
        Self {
            listener: name,
            client: SocketAddr::new(ip, client.port()),
            client_text: address_value(ip),
            local,
            tls,
            encoded_slashes,
            loop_header,
            via,
            limits,
            health_path,
            trusted,
            certificate_ends,
            line: None,
        }
    }

    /// The connection of a line of a batch.
    #[must_use]
    pub fn of_line(self, mark: Arc<LineMark>) -> Self {
        Self { line: Some(mark), ..self }
    }

    /// Origin of a request of this connection, which its headers may name where the client is a trusted proxy.
    pub fn origin(&self, headers: &Fields) -> Origin {
        let (peer, secure) = (self.client.ip(), self.tls.is_some());
        let Some(trusted) = self.trusted.as_ref().filter(|trusted| trusted.contains(peer)) else {
            return Origin { client: peer, text: self.client_text.clone(), secure };
        };
        let client = trusted.caller(peer, headers);
        let text = if client == peer { self.client_text.clone() } else { address_value(client) };
        Origin { client, text, secure: trusted.secure(headers).unwrap_or(secure) }
    }

    /// True if the listener answers a request for `path` itself.
    pub fn is_health_check(&self, method: &Method, path: &str) -> bool {
        matches!(*method, Method::GET | Method::HEAD) && self.health_path.as_deref() == Some(path)
    }

    /// True if the client is a proxy that `clientAddress` trusts.
    pub fn is_from_trusted_proxy(&self) -> bool {
        self.trusted.as_ref().is_some_and(|trusted| trusted.contains(self.client.ip()))
    }

    /// Expiry of the client's certificate; `None` without one, and for one that had expired when the connection began.
    pub fn certificate_ends(&self) -> Option<Instant> {
        self.certificate_ends
    }

    /// True if the client's certificate has expired since, or had expired when the TLS session was resumed: a handshake with
    /// it would be refused now.
    pub fn certificate_has_ended(&self) -> bool {
        let shown = self.tls.as_ref().and_then(|tls| tls.client.as_ref());
        shown.is_some_and(|certificate| certificate.has_ended(unix_now()))
    }

    /// True if the connection may carry requests for `host`, which may have a port.
    pub fn answers_for(&self, host: &str) -> bool {
        let Some(TlsInfo { server_name: Some(name), tls, .. }) = &self.tls else { return true };
        tls.answers_for(name, crate::routing::without_port(host).trim_matches(['[', ']']))
    }
}

/// First instant at which a certificate is no longer valid; `None` for one that has expired.
fn ends(certificate: &ClientCertificate) -> Option<Instant> {
    let now = i64::try_from(unix_now()).ok()?;
    let left = certificate.not_after.checked_sub(now)?.checked_add(1)?;
    let left = u64::try_from(left).ok().filter(|left| *left > 0)?;
    Instant::now().checked_add(Duration::from_secs(left))
}
