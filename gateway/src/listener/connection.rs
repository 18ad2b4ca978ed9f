//! The life of one client connection: read a header within its time, run the request, go on or close.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use pingora::protocols::http::ServerSession;
use spillway_config::schema::ListenerLimits;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::socket::ClientSocket;
use crate::pipeline;
use crate::server::Gateway;

/// How long an unread body is read and thrown away so that the connection can be kept.
const DRAIN: Duration = Duration::from_millis(500);

/// What is known of a connection.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// The client.
    pub client: SocketAddr,
    /// Its address as a header value, made once for all requests of the connection.
    pub client_text: HeaderValue,
    /// Our own side.
    pub local: SocketAddr,
    /// Limits of the listener.
    pub limits: ListenerLimits,
}

impl ConnectionInfo {
    pub(super) fn new(client: SocketAddr, local: SocketAddr, limits: ListenerLimits) -> Self {
        let ip = client.ip().to_canonical();
        let client_text = HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        Self { client: SocketAddr::new(ip, client.port()), client_text, local, limits }
    }
}

/// Serves requests until the connection ends or `stop` says that no further one is wanted.
pub(super) async fn serve(
    stream: TcpStream,
    connection: ConnectionInfo,
    gateway: Arc<Gateway>,
    mut stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let limits = &connection.limits;
    let mut session = ServerSession::new_http1(Box::new(ClientSocket::new(stream)));
    // The first request gets the time for a header only; between requests a connection may idle.
    let mut wait = limits.header_timeout.0;
    loop {
        let read = tokio::select! {
            biased;
            read = tokio::time::timeout(wait, session.read_request()) => read,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match read {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => {
                session.shutdown().await;
                return;
            }
            Ok(Err(e)) => {
                if *e.etype() == pingora::ErrorType::InvalidHTTPHeader {
                    pipeline::refuse_malformed(&mut session).await;
                }
                session.shutdown().await;
                return;
            }
        }
        session.set_total_drain_timeout(Some(DRAIN));
        if *stop.borrow() {
            session.set_keepalive(None);
        }
        if pipeline::handle(&gateway, &connection, &mut session).await == pipeline::Connection::Close {
            session.shutdown().await;
            return;
        }
        let Ok(Some(reusable)) = session.finish().await else { return };
        let (stream, _) = reusable.into_parts();
        session = ServerSession::new_http1(stream);
        wait = limits.idle_timeout.0 + limits.header_timeout.0;
        session.set_keepalive(Some(limits.idle_timeout.0.as_secs().max(1)));
    }
}
