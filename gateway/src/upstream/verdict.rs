//! What the head of an answer means: it goes to the client, or the request goes elsewhere.

use std::time::Duration;

use bytes::Bytes;
use http::header;
use pingora::http::ResponseHeader;
use pingora::protocols::http::client::HttpSession;

use super::attempt::{Attempt, Failure, Outcome};
use crate::protocol::openai::Observer;

/// Bytes of a refusing answer that are read to learn why it refuses.
const MAX_REFUSAL: usize = 16 << 10;

pub(super) enum Verdict {
    /// The answer goes to the client; what was read of its body already comes first.
    Pass(Option<Bytes>),
    MoveOn(Outcome),
}

/// Whether an answer goes to the client or the request goes elsewhere.
pub(super) async fn judge(
    a: &Attempt<'_>,
    callers_account: bool,
    upstream: &mut HttpSession,
    head: &ResponseHeader,
) -> Verdict {
    let status = head.status.as_u16();
    if a.move_on.full && a.backend.full_statuses.contains(&status) {
        // On the caller's own account upstream, "too many" speaks of the caller, not of the endpoint.
        if status == 429 {
            if callers_account {
                return Verdict::Pass(None);
            }
            let body = read_some(upstream).await;
            if says_quota_is_spent(head, &body) {
                return Verdict::Pass(Some(body));
            }
        }
        return Verdict::MoveOn(Outcome::Full(retry_after(head)));
    }
    if a.move_on.retry && a.route.retry.on_statuses.contains(&status) {
        return Verdict::MoveOn(Outcome::Failed(Failure::Status(status)));
    }
    Verdict::Pass(None)
}

async fn read_some(upstream: &mut HttpSession) -> Bytes {
    let mut body = bytes::BytesMut::new();
    let read = async {
        while body.len() < MAX_REFUSAL {
            match upstream.read_response_body().await {
                Ok(Some(part)) => body.extend_from_slice(&part),
                _ => break,
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), read).await;
    body.freeze()
}

/// A spent budget is not a full server: clients must not try again, and no other endpoint will do better.
fn says_quota_is_spent(head: &ResponseHeader, body: &[u8]) -> bool {
    const SPENT: &str = "insufficient_quota";
    let Some(mut observer) = Observer::for_response(head.headers.get(header::CONTENT_TYPE), None) else { return false };
    observer.feed(body, std::time::Instant::now());
    observer.finish().error.as_ref().is_some_and(|e| e.kind == SPENT || e.code.as_deref() == Some(SPENT))
}

fn retry_after(head: &ResponseHeader) -> Option<Duration> {
    let seconds = head.headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse::<f64>().ok()?;
    Duration::try_from_secs_f64(seconds.clamp(0.0, 86_400.0)).ok()
}
