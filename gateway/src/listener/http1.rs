//! Serves an HTTP/1.1 connection: reads a head within its time limit, runs the request, then goes on or closes.
//! Pipelined requests (RFC 9112, 9.3.2) are served one after the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use tokio::sync::watch;

use super::socket::ClientSocket;
use super::stop::stopped;
use crate::exchange::{ConnectionInfo, violation_of};
use crate::gateway::Gateway;
use crate::pipeline;
use crate::telemetry::{ListenerMetrics, MalformedReason};

/// Longest time for which an unread body is read and dropped to keep the connection: half a second, some round trips.
const DRAIN: Duration = Duration::from_millis(500);

/// Serves requests until the connection ends or `stop` is raised.
pub(super) async fn serve(
    socket: ClientSocket,
    connection: ConnectionInfo,
    gateway: Arc<Gateway>,
    metrics: Arc<ListenerMetrics>,
    mut stop: watch::Receiver<bool>,
) {
    let limits = &connection.limits;
    let socket = socket.framed(limits.max_header_bytes.0, metrics.clone());
    let mut session = ServerSession::new_http1(Box::new(socket));
    // Without it a byte behind a request, such as the line break of careless clients, ends the request that runs.
    session.set_pipelining_enabled(true);
    // The first request gets the time for a header only; between requests a connection may idle.
    let mut wait = limits.header_timeout.0;
    loop {
        let read = tokio::select! {
            biased;
            read = tokio::time::timeout(wait, session.read_request()) => read,
            () = stopped(&mut stop, &connection) => {
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
                let violation = violation_of(&e);
                if violation.is_none() && *e.etype() == pingora::ErrorType::InvalidHTTPHeader {
                    metrics.malformed(MalformedReason::Request);
                    pipeline::refuse_malformed(&mut session, None).await;
                } else if violation.is_some() {
                    pipeline::refuse_malformed(&mut session, violation).await;
                }
                session.shutdown().await;
                return;
            }
        }
        session.set_total_drain_timeout(Some(DRAIN));
        session.set_read_timeout(Some(limits.body_timeout.0));
        // During `shutdown.delay` too: a connection that is still kept at its end would be closed under a request.
        if *stop.borrow() || gateway.is_draining() {
            session.set_keepalive(None);
        }
        let ended = match challenge(&gateway, &session) {
            Some(text) => answer(&mut session, text, limits.body_timeout.0).await,
            None => pipeline::handle(&gateway, &connection, &mut session).await,
        };
        if ended == pipeline::AfterRequest::Close {
            session.shutdown().await;
            return;
        }
        // If the rest of the body cannot be read in time, the connection is closed in order, so that the answer
        // arrives.
        if !session.is_body_done() && session.as_http1().is_some_and(|session| session.will_keepalive()) {
            let finished = session.finish_body().await.is_ok();
            if !finished || session.drain_request_body().await.is_err() {
                session.shutdown().await;
                return;
            }
        }
        let Ok(Some(reusable)) = session.finish().await else { return };
        let (stream, early) = reusable.into_parts();
        session = ServerSession::new_http1(stream);
        session.set_pipelining_enabled(true);
        if let Some(early) = early {
            session.set_pipelined_prefix(early);
        }
        wait = limits.idle_timeout.0 + limits.header_timeout.0;
        session.set_keepalive(Some(limits.idle_timeout.0.as_secs().max(1)));
    }
}

/// Answer to an authority that verifies a challenge, which no route may hide.
fn challenge(gateway: &Gateway, session: &ServerSession) -> Option<Bytes> {
    let head = session.req_header();
    let text = gateway.acme.challenges().text(head.uri.path())?;
    (head.method == Method::GET).then(|| text.into())
}

/// Writes a short text within `time`.
async fn answer(session: &mut ServerSession, text: Bytes, time: Duration) -> pipeline::AfterRequest {
    let written = async {
        let mut head = ResponseHeader::build(200, Some(2)).ok()?;
        // RFC 8555, 8.3.
        head.insert_header(header::CONTENT_TYPE, "application/octet-stream").ok()?;
        head.insert_header(header::CONTENT_LENGTH, text.len()).ok()?;
        session.write_response_header(Box::new(head)).await.ok()?;
        session.write_response_body(text, true).await.ok()
    };
    match tokio::time::timeout(time, written).await {
        Ok(Some(())) => pipeline::AfterRequest::Keep,
        _ => pipeline::AfterRequest::Close,
    }
}
