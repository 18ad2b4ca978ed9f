//! Serves an HTTP/1.1 connection: reads a head within its time limit, runs the request, then goes on or closes.
//! Pipelined requests (RFC 9112, 9.3.2) are served one after the other.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, header};
use tokio::sync::watch;

use super::stop::stopped;
use crate::clock;
use crate::downstream::{ClientSession, Http1Session, violation_of};
use crate::exchange::ConnectionInfo;
use crate::gateway::Gateway;
use crate::message::ResponseHead;
use crate::pipeline;
use crate::telemetry::{ListenerMetrics, MalformedReason};

/// Longest time for which an unread body is read and dropped to keep the connection: half a second, some round trips.
const DRAIN: Duration = Duration::from_millis(500);

/// Time for the first head on a connection that had waited when its listener closed, and for the rest of one that had begun:
/// their clients could not know.
pub const FIRST_HEAD: Duration = Duration::from_millis(250);

/// Serves requests until the connection ends or `stop` is raised.
pub(super) async fn serve(
    session: Http1Session,
    connection: ConnectionInfo,
    gateway: Arc<Gateway>,
    metrics: Arc<ListenerMetrics>,
    stop: watch::Receiver<bool>,
) {
    let limits = &connection.limits;
    let mut session = ClientSession::http1(session);
    // Waits once for the connection, and not once for each request.
    let mut ending = stop.clone();
    let mut ending = pin!(stopped(&mut ending, &connection));
    // The first request gets the time for a header only; between requests a connection may idle.
    let mut wait = limits.header_timeout.0;
    let (mut is_first, mut is_ending) = (true, false);
    loop {
        let Some(http1) = session.as_http1() else { return };
        let mut timer = http1.lend_timer();
        timer.set(clock::now() + wait);
        let read = loop {
            tokio::select! {
                biased;
                read = http1.read_request() => break Some(read),
                () = ending.as_mut(), if !is_ending => {
                    is_ending = true;
                    if !is_first && !http1.has_begun() {
                        break None;
                    }
                    timer.set(clock::now() + FIRST_HEAD);
                }
                () = timer.expired() => break None,
            }
        };
        http1.return_timer(timer);
        match read {
            Some(Ok(true)) => {}
            Some(Ok(false)) | None => break,
            Some(Err(e)) => {
                let violation = violation_of(&e);
                if violation.is_none() && *e.etype() == pingora::ErrorType::InvalidHTTPHeader {
                    metrics.malformed(MalformedReason::Request);
                    pipeline::refuse_malformed(&mut session, None).await;
                } else if violation.is_some() {
                    pipeline::refuse_malformed(&mut session, violation).await;
                }
                break;
            }
        }
        // During `shutdown.delay` and after a hand-over too: a connection that is still kept at its end would be closed under a
        // request.
        if *stop.borrow() || gateway.is_leaving() {
            http1.close_after();
        }
        let ended = match challenge(&gateway, &session) {
            Some(text) => answer(&mut session, text, limits.body_timeout.0).await,
            None => pipeline::handle(&gateway, &connection, &mut session).await,
        };
        if ended == pipeline::AfterRequest::Close || !is_reusable(&mut session).await || is_ending {
            break;
        }
        is_first = false;
        wait = limits.idle_timeout.0 + limits.header_timeout.0;
    }
    session.shutdown().await;
}

/// Ends an answer, and reads the rest of its request. Returns true if the connection can carry another request: where the
/// rest does not come in time, the connection is closed in order, so that the answer arrives.
async fn is_reusable(session: &mut ClientSession) -> bool {
    let Some(session) = session.as_http1() else { return false };
    if !matches!(session.finish().await, Ok(true)) {
        return false;
    }
    if !session.is_body_done() {
        let drain = async { while matches!(session.read_body().await, Ok(Some(_))) {} };
        let _ = tokio::time::timeout(DRAIN, drain).await;
    }
    session.is_body_done()
}

/// Answer to an authority that verifies a challenge, which no route may hide.
fn challenge(gateway: &Gateway, session: &ClientSession) -> Option<Bytes> {
    let head = session.req_header();
    let text = gateway.acme.challenges().text(head.uri.path())?;
    (head.method == Method::GET).then(|| text.into())
}

/// Writes a short text within `time`.
async fn answer(session: &mut ClientSession, text: Bytes, time: Duration) -> pipeline::AfterRequest {
    let written = async {
        let mut head = ResponseHead::new(http::StatusCode::OK, 2);
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
