//! Serves an HTTP/2 connection (RFC 9113). One task drives the connection. Each stream is a request in a task of its
//! own, which the connection owns: the end of the connection ends its streams.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, header};
use pingora::protocols::Digest;
use pingora::protocols::http::v2::server::{H2Accept, HttpSession, default_h2_options, handshake};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::socket::ClientSocket;
use super::stop::stopped;
use crate::downstream::{ClientSession, Http2Session};
use crate::exchange::ConnectionInfo;
use crate::gateway::Gateway;
use crate::message::RequestHead;
use crate::pipeline;

/// Malformed requests after which the connection is closed: an honest client sends none.
const MAX_MALFORMED: u32 = 32;

/// Bytes of one stream that wait for the socket of a client that has opened its windows and does not read. 64 KiB is
/// the initial window of RFC 9113, rounded up. Bytes beyond the window wait in `limits.bufferedAnswers`.
const SEND_BUFFER: usize = 64 << 10;

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
    let mut options = default_h2_options();
    options
        .max_header_list_size(u32::try_from(limits.max_header_bytes.0).unwrap_or(u32::MAX))
        .max_concurrent_streams(most)
        .max_send_buffer_size(SEND_BUFFER);
    let Ok(Ok(mut h2)) = timeout(limits.handshake_timeout.0, handshake(Box::new(socket), Some(options))).await else {
        return;
    };
    let digest = Arc::new(Digest::default());
    let mut streams = JoinSet::new();
    let mut malformed = 0;
    let mut draining = false;
    let mut idle_since = Instant::now();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut stop, &connection), if !draining => {
                h2.graceful_shutdown();
                draining = true;
                continue;
            }
            Some(_) = streams.join_next() => {
                idle_since = Instant::now();
                continue;
            }
            accepted = HttpSession::from_h2_conn(&mut h2, digest.clone()) => accepted,
            () = sleep_until(idle_since + limits.idle_timeout.0), if streams.is_empty() => {
                // Sends GOAWAY; a client that does not read it has the time of a handshake.
                h2.graceful_shutdown();
                let closed = async { while let Ok(Some(_)) = HttpSession::from_h2_conn(&mut h2, digest.clone()).await {} };
                let _ = timeout(limits.handshake_timeout.0, closed).await;
                return;
            }
        };
        match accepted {
            Ok(Some(H2Accept::Session(session))) => {
                // Streams that the client reset are no longer counted by the protocol but may still be ending here. A
                // client that opens and resets them faster than they end is cut off.
                if streams.len() >= usize::try_from(most).unwrap_or(usize::MAX).saturating_mul(2) {
                    h2.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                    continue;
                }
                // A session that was resumed with an expired certificate: its requests are refused for that.
                if !draining && connection.certificate_has_ended() {
                    h2.graceful_shutdown();
                    draining = true;
                }
                streams.spawn(request(session, connection.clone(), gateway.clone()));
            }
            Ok(Some(H2Accept::Rejected)) => {
                malformed += 1;
                if malformed >= MAX_MALFORMED {
                    h2.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                }
            }
            Ok(None) | Err(_) => break,
        }
    }
    // Requests that still run see that their client is gone and end in order, each with its line in the log.
    drop(h2);
    let _ = timeout(ENDING, async { while streams.join_next().await.is_some() {} }).await;
}

/// Runs one request.
async fn request(session: HttpSession, connection: Arc<ConnectionInfo>, gateway: Arc<Gateway>) {
    let mut head = RequestHead::from(session.req_header().as_owned_parts());
    to_common_form(&mut head);
    let mut session = ClientSession::Http2(Box::new(Http2Session::new(session, head)));
    let handled = pipeline::handle(&gateway, &connection, &mut session);
    match Box::pin(gateway.downstream.ending.watch(handled)).await {
        pipeline::AfterRequest::Keep => {
            if let ClientSession::Http2(session) = session {
                session.finish().await;
            }
        }
        // Resets the stream unless its answer was whole.
        pipeline::AfterRequest::Close => session.shutdown().await,
    }
}

/// Rewrites the head of a request to the form of HTTP/1.1, which the pipeline expects. The authority becomes `Host`,
/// the target loses it, and cookies are joined (RFC 9113, 8.3.1 and 8.2.3).
fn to_common_form(head: &mut RequestHead) {
    if let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        let _ = head.insert_header(header::HOST, host);
    }
    if head.method != Method::CONNECT
        && head.uri.authority().is_some()
        && let Some(target) = head.uri.path_and_query().cloned()
    {
        head.set_uri(http::Uri::from(target));
    }
    let cookies = head.headers.get_all(header::COOKIE);
    if cookies.iter().nth(1).is_some() {
        let joined = cookies.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            let _ = head.insert_header(header::COOKIE, joined);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_gets_the_form_of_http_1() {
        let mut request = http::Request::builder().method("GET").uri("https://a.test:8443/x?y=1").body(()).unwrap();
        for cookie in ["a=1", "b=2"] {
            request.headers_mut().append(header::COOKIE, HeaderValue::from_static(cookie));
        }
        let mut head = RequestHead::from(request.into_parts().0);
        to_common_form(&mut head);
        assert_eq!(head.headers[header::HOST], "a.test:8443");
        assert_eq!(head.uri, "/x?y=1");
        assert_eq!(head.headers.get_all(header::COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
        assert_eq!(head.raw_path(), b"/x?y=1");
    }
}
