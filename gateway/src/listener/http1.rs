//! The life of an HTTP/1.1 connection: read a header within its time, run the request, go on or close.

use std::sync::Arc;
use std::time::Duration;

use pingora::protocols::http::ServerSession;
use tokio::sync::watch;

use super::connection::{ConnectionInfo, stopped};
use super::socket::ClientSocket;
use crate::pipeline;
use crate::server::Gateway;

/// How long an unread body is read and thrown away so that the connection can be kept.
const DRAIN: Duration = Duration::from_millis(500);

/// Serves requests until the connection ends or `stop` says that no further one is wanted.
pub(super) async fn serve(
    socket: ClientSocket,
    connection: ConnectionInfo,
    gateway: Arc<Gateway>,
    mut stop: watch::Receiver<bool>,
) {
    let limits = &connection.limits;
    let mut session = ServerSession::new_http1(Box::new(socket));
    // The first request gets the time for a header only; between requests a connection may idle.
    let mut wait = limits.header_timeout.0;
    loop {
        let read = tokio::select! {
            biased;
            read = tokio::time::timeout(wait, session.read_request()) => read,
            () = stopped(&mut stop) => {
                session.shutdown().await;
                return;
            }
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
        session.set_read_timeout(Some(limits.body_timeout.0));
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
