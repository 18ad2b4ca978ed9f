//! How an endpoint is connected to, prepared at reload, and the pool of connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v1::client::HttpSession as Http1Session;
use pingora::upstreams::peer::{HttpPeer, Peer as _, Tracer, Tracing};
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};

use super::dial::{Connections, Dial};
use super::metered::Metered;
use crate::balancing::EndpointKey;
use crate::tls::UpstreamTls;

/// Idle upstream connections kept open over all endpoints. Pingora's pool is ruinous when it is smaller than the
/// number of requests in flight, so it is generous: an idle one costs a file descriptor and some kilobytes.
const POOL_SIZE: usize = 4096;

/// Below the keep-alive time of common servers (llama.cpp 5 s is the shortest seen), so that we close first.
const POOLED_FOR: Duration = Duration::from_secs(4);

/// Requests at a time on one HTTP/2 connection; the server may allow fewer.
pub const MAX_STREAMS: u32 = 100;

/// How often an HTTP/2 connection is asked whether it still lives; a lost one would take every request given to it along.
const PING: Duration = Duration::from_secs(15);

/// The pools of upstream connections.
pub struct Connector {
    /// Of endpoints that are asked for HTTP/2.
    either: pingora::connectors::http::Connector,
    /// Of all others.
    http1: TransportConnector,
}

impl Default for Connector {
    fn default() -> Self {
        Self {
            either: pingora::connectors::http::Connector::new(Some(ConnectorOptions::new(POOL_SIZE))),
            http1: TransportConnector::new(Some(ConnectorOptions::new(POOL_SIZE))),
        }
    }
}

/// A prepared way to an endpoint.
#[derive(Clone)]
pub struct Peer {
    peer: HttpPeer,
    http2: bool,
}

impl Peer {
    /// Prepares the way to `address`. Connections are shared only between requests with the same `key`, the same TLS and
    /// the same version of HTTP.
    pub fn new(key: &EndpointKey, address: SocketAddr, connect: Duration, tls: &UpstreamTls, http2: bool) -> Self {
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
            peer.client_cert_key = tls.shown.as_ref().map(|(chain, key)| {
                let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
                Arc::new(CertKey::new(chain, key.secret_der().to_vec()))
            });
        }
        if http2 {
            // Without TLS there is nobody to ask which version the server speaks.
            peer.options.set_http_version(2, if https { 1 } else { 2 });
            peer.options.max_h2_streams = usize::try_from(MAX_STREAMS).unwrap_or(1);
            peer.options.h2_ping_interval = Some(PING);
        }
        peer.options.connection_timeout = Some(connect);
        peer.options.total_connection_timeout = Some(connect);
        peer.options.idle_timeout = Some(POOLED_FOR);
        Self { peer, http2 }
    }

    /// Counts its connections, of which at most so many are open together.
    #[must_use]
    pub fn counted(mut self, connections: &Arc<Connections>, most: u32) -> Self {
        let dial = Dial { connections: connections.clone(), most };
        self.peer.options.tracer = Some(Tracer(dial.boxed_clone()));
        self.peer.options.custom_l4 = Some(Arc::new(dial));
        self
    }

    /// The address.
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
        Self::new(&key, address, Duration::from_secs(1), &tls, false)
    }
}

impl Connector {
    /// A connection to the endpoint, and whether it was used before.
    pub async fn get(&self, peer: &Peer) -> pingora::Result<(HttpSession, bool)> {
        if peer.http2 {
            return self.either.get_http_session(&peer.peer).await;
        }
        let (stream, reused) = self.http1.get_stream(&peer.peer).await?;
        let stream = if reused { stream } else { Box::new(Metered::new(stream)) };
        Ok((HttpSession::H1(Http1Session::new_with_options(stream, &peer.peer)), reused))
    }

    /// Gives a connection back whose answer was read to its end.
    pub async fn release(&self, session: HttpSession, peer: &Peer) {
        match session {
            HttpSession::H1(mut session) if !peer.http2 => {
                session.respect_keepalive();
                if let Some(stream) = session.reuse().await {
                    self.http1.release_stream(stream, peer.peer.reuse_hash(), Some(POOLED_FOR));
                }
            }
            session => self.either.release_http_session(session, &peer.peer, Some(POOLED_FOR)).await,
        }
    }
}
