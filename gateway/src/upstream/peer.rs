//! How an endpoint is connected to, prepared at reload, and the pool of connections.

use std::net::SocketAddr;
use std::time::Duration;

use pingora::connectors::ConnectorOptions;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;

use crate::balancing::EndpointKey;

/// Idle upstream connections kept open over all endpoints. Pingora's pool is ruinous when it is smaller than the
/// number of requests in flight, so it is generous: an idle one costs a file descriptor and some kilobytes.
const POOL_SIZE: usize = 4096;

/// Below the keep-alive time of common servers (llama.cpp 5 s is the shortest seen), so that we close first.
const POOLED_FOR: Duration = Duration::from_secs(4);

/// The pool of upstream connections.
pub struct Connector(pingora::connectors::http::Connector);

impl Default for Connector {
    fn default() -> Self {
        Self(pingora::connectors::http::Connector::new(Some(ConnectorOptions::new(POOL_SIZE))))
    }
}

/// A prepared way to an endpoint.
#[derive(Clone)]
pub struct Peer {
    peer: HttpPeer,
}

impl Peer {
    /// Prepares the way to `address`. Connections are shared only between requests with the same `key`.
    pub fn new(key: &EndpointKey, address: SocketAddr, connect: Duration) -> Self {
        let mut peer = HttpPeer::new(address, false, String::new());
        // Fixed seeds: the same endpoint keeps its pooled connections over a reload.
        peer.group_key = ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one(key);
        peer.options.connection_timeout = Some(connect);
        peer.options.total_connection_timeout = Some(connect);
        peer.options.idle_timeout = Some(POOLED_FOR);
        Self { peer }
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
        Self::new(&EndpointKey { backend: "test".into(), url, address }, address, Duration::from_secs(1))
    }
}

impl Connector {
    /// A connection to the endpoint, and whether it was used before.
    pub async fn get(&self, peer: &Peer) -> pingora::Result<(HttpSession, bool)> {
        self.0.get_http_session(&peer.peer).await
    }

    /// Gives a connection back whose answer was read to its end.
    pub async fn release(&self, session: HttpSession, peer: &Peer) {
        self.0.release_http_session(session, &peer.peer, Some(POOLED_FOR)).await;
    }
}
