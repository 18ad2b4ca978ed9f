//! What comes before the first request of a connection (PROXY protocol, TLS), and what is known of it from then on.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use rustls::ProtocolVersion;
use spillway_config::schema::{EncodedSlashes, ListenerLimits, ListenerProtocol};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::accept::Places;
use super::forwarded::{Origin, TrustedProxies, address_value};
use super::plan::ListenerPlan;
use super::proxy_protocol::{self, ProxyError};
use super::socket::{ClientSocket, Transport};
use super::{http1, http2};
use crate::server::Gateway;
use crate::tls::{Challenges, ClientCertificate, ServerTls};

/// What is known of a connection.
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

/// What TLS said of a connection.
#[derive(Debug)]
pub struct TlsInfo {
    /// The name that the client asked for.
    pub server_name: Option<Box<str>>,
    /// The certificate that it showed, verified.
    pub client: Option<Arc<ClientCertificate>>,
    /// The version, such as `TLSv1.3`.
    pub version: &'static str,
    tls: Arc<ServerTls>,
}

impl ConnectionInfo {
    fn new(client: SocketAddr, local: SocketAddr, tls: Option<TlsInfo>, plan: &ListenerPlan) -> Self {
        let ip = client.ip().to_canonical();
        let certificate_ends = tls.as_ref().and_then(|tls| ends(tls.client.as_ref()?));
        Self {
            client: SocketAddr::new(ip, client.port()),
            client_text: address_value(ip),
            local,
            tls,
            encoded_slashes: plan.encoded_slashes,
            limits: plan.limits.clone(),
            trusted: plan.trusted.clone(),
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

    /// True if the client showed a certificate that has ended since, or had ended when the session was resumed: a handshake
    /// would not be taken any more.
    pub fn certificate_has_ended(&self) -> bool {
        let shown = self.tls.as_ref().and_then(|tls| tls.client.as_ref());
        shown.is_some_and(|certificate| certificate.has_ended(crate::limits::unix_now()))
    }

    /// Whether the connection may carry a request for this host, which may have a port.
    pub fn answers_for(&self, host: &str) -> bool {
        let Some(TlsInfo { server_name: Some(name), tls, .. }) = &self.tls else { return true };
        tls.answers_for(name, crate::routing::without_port(host).trim_matches(['[', ']']))
    }
}

/// Time until the first second in which a certificate is no longer good; `None` where that has come.
fn ends(certificate: &ClientCertificate) -> Option<Instant> {
    let now = i64::try_from(crate::limits::unix_now()).ok()?;
    let left = certificate.not_after.checked_sub(now)?.checked_add(1)?;
    let left = u64::try_from(left).ok().filter(|left| *left > 0)?;
    Instant::now().checked_add(Duration::from_secs(left))
}

/// Ends when no further request is wanted: the listener is closed or gone, or the certificate of the client ends.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>, connection: &ConnectionInfo) {
    let ended = async {
        match connection.certificate_ends {
            Some(end) => sleep_until(end).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = ended => {}
    }
}

/// Why a connection carried no request.
#[derive(Debug, thiserror::Error)]
enum Unopened {
    #[error("it took longer than `limits.handshakeTimeout`")]
    TooSlow,
    #[error("PROXY protocol: {0}")]
    Proxy(#[from] ProxyError),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("the certificate of {client}: {source}")]
    ClientCertificate { client: IpAddr, source: std::io::Error },
    #[error("the address has `limits.maxConnectionsPerAddress` connections already")]
    TooMany,
    #[error("an authority has looked at a challenge")]
    Challenge,
}

impl Unopened {
    fn reason(&self) -> &'static str {
        match self {
            Self::TooSlow => "timeout",
            Self::Proxy(_) => "proxy_protocol",
            Self::Tls(_) => "tls",
            Self::ClientCertificate { .. } => "client_certificate",
            Self::TooMany => "address_limit",
            Self::Challenge => "challenge",
        }
    }
}

/// Serves a connection to its end. `places` counts it.
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    mut places: Places,
    plan: Arc<ListenerPlan>,
    gateway: Arc<Gateway>,
    stop: watch::Receiver<bool>,
) {
    let counted = gateway.clone();
    let _open = counted.connect();
    let _ = stream.set_nodelay(true);
    let opened =
        tokio::time::timeout(plan.limits.handshake_timeout.0, open(stream, peer, &plan, &mut places, &gateway));
    let (socket, connection, is_http2) = match opened.await.unwrap_or(Err(Unopened::TooSlow)) {
        Ok(opened) => opened,
        Err(why) => {
            places.refused(why.reason());
            if let Unopened::ClientCertificate { client, .. } = &why {
                gateway.audit.connection_refused(client.to_canonical(), &plan.name);
            }
            tracing::debug!(event = "connection_refused", listener = %plan.name, client = %peer, reason = %why);
            return;
        }
    };
    drop(plan);
    if is_http2 {
        http2::serve(socket, Arc::new(connection), gateway, stop).await;
    } else {
        // In a place of its own: a connection that never gets past its handshake takes no room for requests.
        let served = http1::serve(socket, connection, gateway.clone(), places.metrics().clone(), stop);
        Box::pin(gateway.downstream.ending.watch(served)).await;
    }
}

async fn open(
    mut stream: TcpStream,
    peer: SocketAddr,
    plan: &ListenerPlan,
    places: &mut Places,
    gateway: &Gateway,
) -> Result<(ClientSocket, ConnectionInfo, bool), Unopened> {
    let socket = |transport| {
        ClientSocket::new(transport, plan.limits.write_timeout.0, gateway.downstream.write_timeouts.clone())
    };
    let local = stream.local_addr().unwrap_or(plan.address);
    let mut client = peer;
    if plan.wants_proxy_protocol(peer.ip())
        && let Some(said) = proxy_protocol::read(&mut stream).await?
    {
        client = said;
        if !places.take_address(plan, client.ip()) {
            return Err(Unopened::TooMany);
        }
    }
    let Some(tls) = &plan.tls else {
        let connection = ConnectionInfo::new(client, local, None, plan);
        let is_http2 = plan.protocol == ListenerProtocol::H2c;
        return Ok((socket(Transport::Plain(stream)), connection, is_http2));
    };
    let stream = shake_hands(tls, stream, client.ip()).await?;
    let (_, session) = stream.get_ref();
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let info = TlsInfo {
        server_name: session.server_name().map(Into::into),
        client: session.peer_certificates().and_then(|chain| ClientCertificate::of(chain.first()?)).map(Arc::new),
        version: match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        },
        tls: tls.clone(),
    };
    let connection = ConnectionInfo::new(client, local, Some(info), plan);
    Ok((socket(Transport::Tls(Box::new(stream))), connection, is_http2))
}

/// What ended a handshake with a client. The only certificates that are judged in it are the client's.
fn unfinished(source: std::io::Error, client: IpAddr) -> Unopened {
    match source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Unopened::ClientCertificate { client, source }
        }
        _ => Unopened::Tls(source),
    }
}

/// The TLS handshake. One in which an authority looks at a challenge ends with it.
async fn shake_hands(tls: &ServerTls, stream: TcpStream, client: IpAddr) -> Result<TlsStream<TcpStream>, Unopened> {
    let Some(challenge) = &tls.challenge else {
        return TlsAcceptor::from(tls.config.clone()).accept(stream).await.map_err(|e| unfinished(e, client));
    };
    let begun = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await.map_err(Unopened::Tls)?;
    if Challenges::is_asked_for(&begun.client_hello()) {
        let mut stream = begun.into_stream(challenge.clone()).await.map_err(Unopened::Tls)?;
        let _ = stream.shutdown().await;
        return Err(Unopened::Challenge);
    }
    begun.into_stream(tls.config.clone()).await.map_err(|e| unfinished(e, client))
}
