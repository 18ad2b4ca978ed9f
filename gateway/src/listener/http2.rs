//! Serves an HTTP/2 connection (RFC 9113). One task drives the connection. Each stream is a request in a task of its
//! own, which the connection owns: the end of the connection ends its streams.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::socket::ClientSocket;
use super::stop::stopped;
use crate::clock::{self, OneReading};
use crate::downstream::{ClientSession, Http2Session};
use crate::exchange::ConnectionInfo;
use crate::gateway::Gateway;
use crate::pipeline;

/// Times `maxStreams` that a client may give requests up, if these are more than half of all. Hedging clients give up at most half.
const GIVEN_UP: u64 = 8;
/// Malformed requests after which the connection is closed: an honest client sends none.
const MAX_MALFORMED: u32 = 32;

/// Bytes of one stream that wait for the socket of a client that has opened its windows and does not read. 64 KiB is
/// the initial window of RFC 9113, rounded up. Bytes beyond the window wait in `limits.bufferedAnswers`.
const SEND_BUFFER: usize = 64 << 10;

/// Bytes of all bodies of a connection that a client may send before they are read: those of 16 streams, so that a few whose
/// servers do not read stop no other.
const WINDOW: u32 = 1 << 20;

/// Time for requests to end after their connection has ended, seconds: they only settle and log.
const ENDING: Duration = Duration::from_secs(5);

/// Serves streams until the client closes or idles for too long, or `stop` is raised. Then GOAWAY is sent, and running
/// streams go on.
pub(super) async fn serve(
    socket: ClientSocket,
    connection: Arc<ConnectionInfo>,
    gateway: Arc<Gateway>,
    mut stop: watch::Receiver<bool>,
) {
    let limits = &connection.limits;
    let most = limits.max_streams.get();
    let handshake = h2::server::Builder::new()
        .max_header_list_size(u32::try_from(limits.max_header_bytes.0).unwrap_or(u32::MAX))
        .max_concurrent_streams(most)
        .max_send_buffer_size(SEND_BUFFER)
        .initial_connection_window_size(WINDOW)
        .enable_connect_protocol()
        .handshake(socket);
    let Ok(Ok(mut h2)) = timeout(limits.handshake_timeout.0, handshake).await else {
        return;
    };
    let mut streams = JoinSet::new();
    let mut malformed = 0;
    // Requests, and those of them that the client gave up before their answer.
    let (mut taken, mut given_up) = (0_u64, 0_u64);
    let mut draining = false;
    let mut idle_since = clock::now();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut stop, &connection), if !draining => {
                h2.graceful_shutdown();
                draining = true;
                continue;
            }
            Some(ended) = streams.join_next() => {
                idle_since = clock::now();
                // A request that is given up at once costs its client nothing, and the gateway and others their work for it.
                given_up += u64::from(ended.is_ok_and(|is_given_up| is_given_up));
                if given_up >= u64::from(most).saturating_mul(GIVEN_UP) && given_up > taken / 2 {
                    h2.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                    given_up = 0;
                }
                continue;
            }
            accepted = h2.accept() => accepted,
            () = sleep_until(idle_since + limits.idle_timeout.0), if streams.is_empty() => {
                // Sends GOAWAY; a client that does not read it has the time of a handshake.
                h2.graceful_shutdown();
                let closed = async { while let Some(Ok(_)) = h2.accept().await {} };
                let _ = timeout(limits.handshake_timeout.0, closed).await;
                return;
            }
        };
        let Some(Ok((asked, respond))) = accepted else { break };
        let Some(session) = Http2Session::begin(asked, respond) else {
            malformed += 1;
            if malformed >= MAX_MALFORMED {
                h2.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
            }
            continue;
        };
        // Streams that the client reset are no longer counted by the protocol but may still be ending here. A client that
        // opens and resets them faster than they end is cut off.
        if streams.len() >= usize::try_from(most).unwrap_or(usize::MAX).saturating_mul(2) {
            h2.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
            continue;
        }
        // A session that was resumed with an expired certificate: its requests are refused for that. And a connection of a
        // process that leaves: its client opens the next one elsewhere.
        if !draining && (gateway.is_leaving() || connection.certificate_has_ended()) {
            h2.graceful_shutdown();
            draining = true;
        }
        taken += 1;
        streams.spawn(request(session, connection.clone(), gateway.clone()));
    }
    // Requests that still run see that their client is gone and end in order, each with its line in the log.
    drop(h2);
    let _ = timeout(ENDING, async { while streams.join_next().await.is_some() {} }).await;
}

/// Runs one request; true if the client gave it up before its answer.
async fn request(session: Http2Session, connection: Arc<ConnectionInfo>, gateway: Arc<Gateway>) -> bool {
    let mut session = ClientSession::http2(session);
    let handled = OneReading(Box::pin(pipeline::handle(&gateway, &connection, &mut session)));
    match gateway.downstream.ending.watch(handled).await {
        pipeline::AfterRequest::Keep => {
            if let Some(session) = session.into_http2() {
                session.finish();
            }
            false
        }
        // Resets the stream unless its answer was whole.
        pipeline::AfterRequest::Close => {
            let is_given_up = !session.has_answered();
            session.shutdown().await;
            is_given_up
        }
    }
}
