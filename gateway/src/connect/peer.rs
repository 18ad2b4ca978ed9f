//! Peers, which are prepared at reload, and the pools of connections to them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pingora::ErrorType::{ConnectTimedout, H2Error};
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::protocols::l4::ext::set_tcp_keepalive;
use pingora::protocols::{ALPN, TcpKeepalive};
use pingora::upstreams::peer::{HttpPeer, Peer as _, Tracer, Tracing};
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};

use super::dial::{Connections, Dial, NO_CONNECTION};
use super::handshake::Http2;
use super::http1::Http1Session;
use super::http2::Http2Session;
use super::key::EndpointKey;
use super::pool::Pool;
use super::session::UpstreamSession;
use super::shared::{Begun, SharedPool};
use super::transport::Transport;
use crate::tls::UpstreamTls;

/// Most idle upstream connections, over all endpoints. A pool that is smaller than the number of requests in flight opens
/// connections all the time, so the bound is generous: an idle connection costs a file descriptor and little more.
const POOL_SIZE: usize = 4096;

/// Longest idle time of a pooled connection. Below the keep-alive time of common servers, of which llama.cpp has the shortest
/// known (5 s), so that the gateway closes first.
const POOLED_FOR: Duration = Duration::from_secs(4);

/// Most requests at a time on one HTTP/2 connection; the server may allow fewer.
pub const MAX_STREAMS: u32 = 100;

/// Interval of the pings on an HTTP/2 connection: until a lost connection is found, every request on it fails.
const PING: Duration = Duration::from_secs(15);

/// Probes of a silent connection: a model may think for minutes, and only they tell one that thinks from one whose machine
/// is gone. After 15 s of silence three probes, 15 s apart, so that a lost server is found within a minute. Bytes that were
/// sent may wait as long as TCP itself lets them.
const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(15),
    interval: Duration::from_secs(15),
    count: 3,
    #[cfg(target_os = "linux")]
    user_timeout: Duration::ZERO,
};

/// Pools of upstream connections.
pub struct Connector {
    /// Connections that speak HTTP/2.
    http2: SharedPool,
    /// Idle connections that speak HTTP/1, also where HTTP/2 was offered.
    http1: Pool,
    /// Opens connections with TLS, and those of HTTP/2.
    opener: TransportConnector,
}

impl Default for Connector {
    fn default() -> Self {
        Self {
            http2: SharedPool::default(),
            http1: Pool::new(POOL_SIZE, POOLED_FOR),
            opener: TransportConnector::new(Some(ConnectorOptions::new(1))),
        }
    }
}

/// Endpoint prepared for connections.
#[derive(Clone)]
pub struct Peer {
    peer: HttpPeer,
    /// Key of its idle connections.
    key: u64,
    /// Dialler of its connections.
    dial: Dial,
    /// Longest time to open a connection.
    connect: Duration,
    /// Settings of HTTP/2; `None` where only HTTP/1 is spoken.
    http2: Option<Http2>,
}

impl Peer {
    /// Prepares connections to `address`. Requests share them only with the same `key`, TLS and version of HTTP, and with
    /// HTTP/2 the same bound on headers. `http2` is that bound in bytes; `None` where only HTTP/1 is spoken.
    pub fn new(
        key: &EndpointKey,
        address: SocketAddr,
        connect: Duration,
        tls: &UpstreamTls,
        http2: Option<u64>,
    ) -> Self {
        let https = key.url.https;
        // Never empty: without a name, Pingora verifies nothing.
        let name = if https { tls.name(&key.url.host).to_owned() } else { String::new() };
        let mut peer = HttpPeer::new(address, https, name);
        // Fixed seeds: the same endpoint keeps its pooled connections over a reload.
        peer.group_key = ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one((key, tls.digest, http2));
        if https {
            peer.options.ca = tls
                .authorities
                .as_ref()
                .map(|all| all.iter().map(|authority| WrappedX509::new(authority.to_vec(), parse_x509)).collect());
            peer.client_cert_key = tls.client_certificate.as_ref().map(|(chain, key)| {
                let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
                Arc::new(CertKey::new(chain, key.secret_der().to_vec()))
            });
        }
        if http2.is_some() {
            // Without TLS there is no ALPN to negotiate the version.
            peer.options.set_http_version(2, if https { 1 } else { 2 });
        }
        peer.options.connection_timeout = Some(connect);
        peer.options.total_connection_timeout = Some(connect);
        peer.options.idle_timeout = Some(POOLED_FOR);
        peer.options.tcp_keepalive = Some(KEEPALIVE);
        let http2 = http2.map(|max_header_bytes| Http2 { streams: MAX_STREAMS, ping: PING, max_header_bytes });
        let dial = Dial { connections: Arc::default(), most: u32::MAX };
        Self { key: peer.reuse_hash(), peer, dial, connect, http2 }
    }

    /// Counts the connections of this peer in `connections`, and bounds them to `most` at a time.
    #[must_use]
    pub fn counted(mut self, connections: &Arc<Connections>, most: u32) -> Self {
        let dial = Dial { connections: connections.clone(), most };
        self.peer.options.tracer = Some(Tracer(dial.boxed_clone()));
        self.peer.options.custom_l4 = Some(Arc::new(dial.clone()));
        self.dial = dial;
        self
    }

    /// Address of the endpoint.
    pub fn address(&self) -> SocketAddr {
        match &self.peer._address {
            pingora::protocols::l4::socket::SocketAddr::Inet(address) => *address,
            pingora::protocols::l4::socket::SocketAddr::Unix(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        let url = "http://127.0.0.1:9".parse().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        let tls = UpstreamTls::read(&Default::default(), false, false).unwrap();
        let key = EndpointKey { backend: "test".into(), url, address };
        Self::new(&key, address, Duration::from_secs(1), &tls, None)
    }
}

impl Connector {
    /// Begins a conversation with the endpoint. Returns it, and whether its connection was used before. One that is `alone` has
    /// a connection of HTTP/2 that no other request shares, unless the endpoint may have no further one.
    pub async fn get(&self, peer: &Peer, alone: bool) -> pingora::Result<(UpstreamSession, bool)> {
        match peer.http2 {
            None => self.kept_or_opened(peer, &peer.peer).await,
            Some(http2) => Box::pin(self.get_http2(peer, http2, alone)).await,
        }
    }

    /// Begins a conversation of HTTP/1.1 with an endpoint, also where HTTP/2 is preferred: only HTTP/1.1 has upgrades.
    pub async fn get_http1(&self, peer: &Peer) -> pingora::Result<(UpstreamSession, bool)> {
        let mut only_http1 = peer.peer.clone();
        if only_http1.tls() {
            only_http1.options.set_http_version(1, 1);
        }
        self.kept_or_opened(peer, &only_http1).await
    }

    /// Begins a conversation of HTTP/1.1 on a connection that is kept, or on a new one with these options.
    async fn kept_or_opened(&self, peer: &Peer, options: &HttpPeer) -> pingora::Result<(UpstreamSession, bool)> {
        if let Some(transport) = self.http1.take(peer.key) {
            return Ok((http1(transport), true));
        }
        let opened = if options.tls() {
            Box::pin(self.opener.new_stream(options)).await.map(Transport::Tls)
        } else {
            Box::pin(open_plain(peer)).await
        };
        match opened {
            Ok(transport) => Ok((http1(transport), false)),
            // Another worker may have one to spare.
            Err(e) if *e.etype() == NO_CONNECTION => {
                self.http1.take_of_any(peer.key).map(|transport| (http1(transport), true)).ok_or(e)
            }
            Err(e) => Err(e),
        }
    }

    async fn get_http2(&self, peer: &Peer, settings: Http2, alone: bool) -> pingora::Result<(UpstreamSession, bool)> {
        if !alone && let Some(session) = self.pooled(peer).await? {
            return Ok((session, true));
        }
        let is_negotiated = peer.peer.tls();
        let stream = match self.opener.new_stream(&peer.peer).await {
            Err(e) if *e.etype() == NO_CONNECTION => {
                let shared = if alone { self.pooled(peer).await? } else { None };
                // Another worker may have one of HTTP/1 to spare.
                let spare = || self.http1.take_of_any(peer.key).map(http1);
                return shared.or_else(spare).map(|session| (session, true)).ok_or(e);
            }
            opened => opened?,
        };
        if is_negotiated && !matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            return Ok((http1(Transport::Tls(stream)), false));
        }
        let Some(begun) = self.http2.open(peer.key, stream, settings, POOLED_FOR, alone).await? else {
            return pingora::Error::e_explain(H2Error, "the server closed the connection right after the handshake");
        };
        Ok((http2(begun), false))
    }

    /// Begins a conversation on a pooled connection of an endpoint that may speak HTTP/2.
    async fn pooled(&self, peer: &Peer) -> pingora::Result<Option<UpstreamSession>> {
        if let Some(begun) = self.http2.begin(peer.key).await? {
            return Ok(Some(http2(begun)));
        }
        Ok(if peer.peer.tls() { self.http1.take(peer.key).map(http1) } else { None })
    }

    /// Releases a connection whose answer was read to its end to its pool. One of HTTP/2 has never left it.
    pub fn release(&self, session: UpstreamSession, peer: &Peer) {
        if let UpstreamSession::Http1(session) = session
            && let Some(transport) = session.into_reusable()
        {
            self.http1.put(peer.key, transport);
        }
    }
}

/// Opens a connection without TLS.
async fn open_plain(peer: &Peer) -> pingora::Result<Transport> {
    let opened = tokio::time::timeout(peer.connect, peer.dial.open(peer.address())).await;
    let (stream, open) =
        opened.unwrap_or_else(|_| pingora::Error::e_explain(ConnectTimedout, "cannot connect in time"))?;
    let _ = stream.set_nodelay(true);
    let _ = set_tcp_keepalive(&stream, &KEEPALIVE);
    Ok(Transport::Plain { stream, _open: open })
}

fn http2(begun: Begun) -> UpstreamSession {
    UpstreamSession::Http2(Box::new(Http2Session::new(begun)))
}

fn http1(transport: Transport) -> UpstreamSession {
    UpstreamSession::Http1(Box::new(Http1Session::new(transport)))
}
