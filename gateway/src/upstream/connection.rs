//! The connection of an attempt: the outcome where none could be opened, and its return to the pool or its end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pingora::ErrorType;

use super::outcome::{Attempt, AttemptOutcome, Failure, TimeLimit};
use super::outgoing::Sent;
use crate::clock::{self, now_millis};
use crate::connect::{self, UpstreamSession};
use crate::exchange::AttemptSlot;

/// Milliseconds between two log lines about servers whose TLS fails: a wrong certificate must be seen, but fails every
/// request.
const LOG_EVERY: u64 = 1_000;

/// Time for which an endpoint gets no request that may have no further connection and whose slots did not say so: a server
/// of HTTP/2 that allows fewer streams on a connection than the gateway opens.
const WITHOUT_CONNECTION: Duration = Duration::from_millis(100);

/// Time for a connection to end in order. The goodbye waits behind bytes that the server has not read; what the server
/// does not read of them in this time is dropped.
const GOODBYE: Duration = Duration::from_millis(100);

/// Outcome of an attempt for which no connection could be opened.
pub(super) fn not_connected(attempt: &Attempt<'_>, e: &pingora::Error) -> AttemptOutcome {
    if *e.etype() == connect::NO_CONNECTION {
        return AttemptOutcome::Full(Some(WITHOUT_CONNECTION));
    }
    static LOGGED_AT: AtomicU64 = AtomicU64::new(0);
    if matches!(e.etype(), ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::TLSHandshakeTimedout)
        && now_millis().saturating_sub(LOGGED_AT.load(Ordering::Relaxed)) >= LOG_EVERY
    {
        LOGGED_AT.store(now_millis(), Ordering::Relaxed);
        let (backend, endpoint) = (&attempt.backend.name, &attempt.endpoint.url);
        tracing::warn!(event = "upstream_tls_failed", backend = %backend, endpoint = %endpoint, error = %e);
    }
    let is_time = matches!(e.etype(), ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout);
    AttemptOutcome::Failed(if is_time {
        Failure::Timeout(TimeLimit::Connect)
    } else {
        Failure::Connect(e.etype().as_str().to_owned())
    })
}

/// Returns the connection of a conversation to the pool if it carried all of the request and all of the answer, else ends
/// it. The rest of an unfinished body would be read as the beginning of the next answer (RFC 9112, 9.3).
pub(super) async fn end(attempt: &Attempt<'_>, upstream: UpstreamSession, sent: Option<Sent>, is_whole: bool) {
    if is_whole && sent == Some(Sent::Whole) && upstream.is_done() {
        attempt.connector.release(upstream, &attempt.endpoint.peer);
    } else {
        close(attempt, upstream).await;
    }
}

/// Ends a conversation before its time. Of HTTP/2 that is one stream; its connection returns to the pool.
pub(super) async fn close(attempt: &Attempt<'_>, mut upstream: UpstreamSession) {
    let _ = tokio::time::timeout(GOODBYE, upstream.shutdown()).await;
    if upstream.is_http2() {
        attempt.connector.release(upstream, &attempt.endpoint.peer);
    }
}

/// Releases the connection and the slot of an attempt before its client has read the answer. The answer was read whole from
/// the server, or will not continue.
pub(super) async fn release_early(
    attempt: &Attempt<'_>,
    upstream: &mut Option<UpstreamSession>,
    place: &mut Option<AttemptSlot>,
    answered_in: &mut Option<Duration>,
    sent: Option<Sent>,
    is_whole: bool,
) {
    answered_in.get_or_insert_with(|| clock::since(attempt.started));
    // A slot is free when its connection is gone, not earlier.
    let place = place.take();
    if let Some(upstream) = upstream.take() {
        end(attempt, upstream, sent, is_whole).await;
    }
    drop(place);
}
