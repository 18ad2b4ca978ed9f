//! Opens a connection before its first request: PROXY protocol, limits of addresses, TLS. The result is the facts that
//! all requests of the connection share.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::ProtocolVersion;
use spillway_config::schema::ListenerProtocol;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::permit::ConnectionPermit;
use super::plan::ListenerPlan;
use super::proxy_protocol::{self, ProxyError};
use super::socket::ClientSocket;
use super::{http1, http2};
use crate::clock::OneReading;
use crate::downstream::{Http1Session, Transport, WriteBounded};
use crate::exchange::{ConnectionInfo, TlsInfo};
use crate::gateway::{Gateway, OpenConnection};
use crate::telemetry::ConnectionRefusal;
use crate::tls::{Challenges, ClientCertificate, ServerTls};
use crate::workers::Workers;

/// Reason why a connection carried no request.
#[derive(Debug, thiserror::Error)]
enum Unopened {
    #[error("the handshake took longer than `limits.handshakeTimeout`")]
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
    fn reason(&self) -> ConnectionRefusal {
        match self {
            Self::TooSlow => ConnectionRefusal::Timeout,
            Self::Proxy(_) => ConnectionRefusal::ProxyProtocol,
            Self::Tls(_) => ConnectionRefusal::Tls,
            Self::ClientCertificate { .. } => ConnectionRefusal::ClientCertificate,
            Self::TooMany => ConnectionRefusal::AddressLimit,
            Self::Challenge => ConnectionRefusal::Challenge,
        }
    }
}

/// Connection that a listener has accepted.
pub(super) struct Accepted {
    pub(super) peer: SocketAddr,
    /// Count of the connection under the limits of its listener.
    pub(super) permit: ConnectionPermit,
    pub(super) plan: Arc<ListenerPlan>,
    pub(super) gateway: Arc<Gateway>,
    pub(super) stop: watch::Receiver<bool>,
}

/// Begins to serve a connection. One of HTTP/1 is served by a worker from its first request on; the shared runtime opens it
/// where that takes time, and serves HTTP/2.
pub(super) fn begin(stream: TcpStream, accepted: Accepted, workers: &Workers) {
    let open = accepted.gateway.connect();
    let plan = &accepted.plan;
    let is_open =
        plan.tls.is_none() && plan.protocol != ListenerProtocol::H2c && !plan.wants_proxy_protocol(accepted.peer.ip());
    if is_open {
        let Ok(stream) = stream.into_std() else { return };
        let mut accepted = accepted;
        workers.assign().run(async move {
            // Registered with the runtime of the worker.
            let Ok(stream) = TcpStream::from_std(stream) else { return };
            if let Some((socket, connection, _)) = accepted.open(stream).await {
                accepted.serve_http1(socket, connection, open).await;
            }
        });
        return;
    }
    let workers = workers.clone();
    let mut accepted = accepted;
    tokio::spawn(async move {
        let Some((mut socket, connection, is_http2)) = accepted.open(stream).await else { return };
        if is_http2 {
            let Accepted { gateway, stop, permit: _permit, .. } = accepted;
            Box::pin(http2::serve(ClientSocket::new(socket), Arc::new(connection), gateway, stop)).await;
            drop(open);
        } else {
            workers.assign().run(async move {
                if socket.move_here().is_ok() {
                    accepted.serve_http1(socket, connection, open).await;
                }
            });
        }
    });
}

impl Accepted {
    /// Opens the connection in its time; `None` where it carries no request.
    async fn open(&mut self, stream: TcpStream) -> Option<(WriteBounded, ConnectionInfo, bool)> {
        let _ = stream.set_nodelay(true);
        // Boxed, as what follows: an idle client holds memory for the one of them that it is in.
        let opening = Box::pin(open(stream, self.peer, &self.plan, &mut self.permit, &self.gateway));
        let opened = tokio::time::timeout(self.plan.limits.handshake_timeout.0, opening).await;
        let why = match opened.unwrap_or(Err(Unopened::TooSlow)) {
            Ok(opened) => return Some(opened),
            Err(why) => why,
        };
        self.permit.refused(why.reason());
        if let Unopened::ClientCertificate { client, .. } = &why {
            self.gateway.audit.connection_refused(client.to_canonical(), &self.plan.name);
        }
        tracing::debug!(event = "connection_refused", listener = %self.plan.name, client = %self.peer, reason = %why);
        None
    }

    /// Serves HTTP/1 to the end of the connection.
    async fn serve_http1(self, socket: WriteBounded, connection: ConnectionInfo, _open: OpenConnection) {
        let Self { permit, plan, gateway, stop, .. } = self;
        drop(plan);
        let metrics = permit.metrics().clone();
        let session = Http1Session::new(socket, connection.limits.max_header_bytes.0, metrics.clone());
        let served = OneReading(Box::pin(http1::serve(session, connection, gateway.clone(), metrics, stop)));
        gateway.downstream.ending.watch(served).await;
    }
}

async fn open(
    mut stream: TcpStream,
    peer: SocketAddr,
    plan: &ListenerPlan,
    permit: &mut ConnectionPermit,
    gateway: &Gateway,
) -> Result<(WriteBounded, ConnectionInfo, bool), Unopened> {
    let socket = |transport| {
        WriteBounded::new(transport, plan.limits.write_timeout.0, gateway.downstream.write_timeouts.clone())
    };
    let local = stream.local_addr().unwrap_or(plan.address);
    let mut client = peer;
    if plan.wants_proxy_protocol(peer.ip())
        && let Some(said) = proxy_protocol::read(&mut stream).await?
    {
        client = said;
        if !permit.take_address(plan, client.ip()) {
            return Err(Unopened::TooMany);
        }
    }
    let Some(tls) = &plan.tls else {
        let connection = ConnectionInfo::new(client, local, None, plan.facts());
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
    let connection = ConnectionInfo::new(client, local, Some(info), plan.facts());
    Ok((socket(Transport::Tls(Box::new(stream))), connection, is_http2))
}

/// Error that ended a handshake. The only certificates that this side verifies are the client's.
fn unfinished(source: std::io::Error, client: IpAddr) -> Unopened {
    match source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Unopened::ClientCertificate { client, source }
        }
        _ => Unopened::Tls(source),
    }
}

/// Performs the TLS handshake. The connection of an authority that verifies a challenge ends after it.
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
