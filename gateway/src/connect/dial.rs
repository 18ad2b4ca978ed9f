//! Opening of connections to an endpoint, counted and bounded. Every open connection counts once, also one that idles in the
//! pool or carries several requests of HTTP/2. Connections of health checks do not count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use pingora::ErrorType;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::upstreams::peer::Tracing;
use tokio::net::TcpStream;

use crate::descriptors::{Side, is_shortage};

/// Error of dialling where the endpoint or the process may have no further connection.
pub const NO_CONNECTION: ErrorType = ErrorType::new("NoConnectionLeft");

/// Counter of the connections that are open to an endpoint.
#[derive(Debug, Default)]
pub struct Connections(AtomicU32);

impl Connections {
    /// Number of connections that are open now.
    pub fn open(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts a further connection, of at most `most`, in one atomic step.
    fn reserve(self: &Arc<Self>, most: u32) -> Option<Open> {
        let more = |open: u32| if open < most { open.checked_add(1) } else { None };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Open(Some(self.clone())))
    }

    fn close(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Count of an open connection, released on drop.
pub(super) struct Open(Option<Arc<Connections>>);

impl Open {
    /// Leaves the count to the tracer of the connection, which releases it on close.
    fn leave_to_tracer(mut self) {
        self.0 = None;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(connections) = &self.0 {
            connections.close();
        }
    }
}

/// Dialler of an endpoint, and tracer of its connections.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    pub(super) connections: Arc<Connections>,
    pub(super) most: u32,
}

impl Dial {
    /// Opens a connection. Called only where the pool has none; the caller bounds the time.
    pub(super) async fn open(&self, address: std::net::SocketAddr) -> pingora::Result<(TcpStream, Open)> {
        let Some(open) = self.connections.reserve(self.most) else {
            return pingora::Error::e_explain(
                NO_CONNECTION,
                "the endpoint has as many connections as `capacity.maxConnections` allows",
            );
        };
        match TcpStream::connect(address).await {
            // The endpoint is not at fault: the request goes to an open connection, waits, or spills.
            Ok(stream) if !Side::Servers.may_keep(&stream) => pingora::Error::e_explain(
                NO_CONNECTION,
                "the last file descriptors are reserved for the gateway itself",
            ),
            Err(e) if is_shortage(&e) => {
                Side::Servers.count_shortage();
                pingora::Error::e_because(NO_CONNECTION, "no file descriptor is left", e)
            }
            Ok(stream) => Ok((stream, open)),
            Err(e) => {
                let kind = match e.kind() {
                    std::io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
                    std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => {
                        ErrorType::ConnectNoRoute
                    }
                    _ => ErrorType::ConnectError,
                };
                pingora::Error::e_because(kind, "cannot connect", e)
            }
        }
    }
}

#[async_trait]
impl Connect for Dial {
    /// Opens a connection for TLS or HTTP/2. The time limit of the peer covers this and TLS together.
    async fn connect(&self, address: &SocketAddr) -> pingora::Result<Stream> {
        let Some(address) = address.as_inet() else {
            return pingora::Error::e_explain(ErrorType::InternalError, "endpoints have internet addresses");
        };
        let (stream, open) = self.open(*address).await?;
        // Pingora attaches the tracer below to the stream before anything else can fail.
        open.leave_to_tracer();
        Ok(Stream::from(stream))
    }
}

impl Tracing for Dial {
    fn on_connected(&self) {}

    fn on_disconnected(&self) {
        self.connections.close();
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_counts_from_its_opening_to_its_end_and_none_is_opened_beyond_the_limit() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = SocketAddr::Inet(listener.local_addr().unwrap());
        let connections = Arc::new(Connections::default());
        let dial = Dial { connections: connections.clone(), most: 2 };
        let open = async || {
            let mut stream = dial.connect(&address).await?;
            stream.tracer = Some(pingora::upstreams::peer::Tracer(dial.boxed_clone()));
            Ok::<_, Box<pingora::Error>>(stream)
        };
        let (first, second) = (open().await.unwrap(), open().await.unwrap());
        assert_eq!(open().await.unwrap_err().etype(), &NO_CONNECTION);
        assert_eq!(connections.open(), 2);
        drop(first);
        let third = open().await.unwrap();
        drop((second, third));
        drop(listener);
        assert!(open().await.is_err());
        assert_eq!(connections.open(), 0, "one that could not be opened does not count");
    }
}
