//! The body of a request: passed through as it comes, or held whole where something must read it or send it again.
//! A held body is counted against a budget of the whole process and is one `Bytes`, so that a retry sends all of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use pingora::protocols::http::ServerSession;
use serde::Deserialize;
use serde_json::value::RawValue;
use spillway_filter::{ErrorKind, Refusal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::exchange::End;
use crate::listener::{Violation, violation_of};

/// Unit in which the budget is counted.
const PAGE: u64 = 1 << 10;

/// Memory for bodies that are held, over all requests.
pub struct BodyBudget {
    pages: Arc<Semaphore>,
    total: u64,
}

impl BodyBudget {
    /// A budget of so many bytes.
    pub fn new(bytes: u64) -> Self {
        let total = bytes.div_ceil(PAGE).min(u64::from(u32::MAX) >> 1);
        let pages = usize::try_from(total).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
        Self { pages: Arc::new(Semaphore::new(pages)), total }
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        let free = u64::try_from(self.pages.available_permits()).unwrap_or(u64::MAX);
        self.total.saturating_sub(free).saturating_mul(PAGE)
    }

    fn take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let pages = u32::try_from(bytes.div_ceil(PAGE)).ok()?;
        self.pages.clone().try_acquire_many_owned(pages).ok()
    }
}

/// A body in memory, with its share of the budget.
pub struct HeldBody {
    /// All of it.
    pub bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

/// What is known of the body of a request.
pub enum RequestBody {
    /// Nothing of it was read.
    Unread,
    /// All of it is here.
    Held(HeldBody),
}

/// Reads the body to its end. `limit` is that of the route.
pub async fn hold(
    session: &mut ServerSession,
    budget: &BodyBudget,
    limit: u64,
    within: Duration,
) -> Result<HeldBody, End> {
    let declared = content_length(session);
    if declared.is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    if session.is_body_empty() {
        return Ok(HeldBody { bytes: Bytes::new(), _share: None });
    }
    let mut share = match budget.take(declared.unwrap_or(0)) {
        Some(share) => share,
        None => return Err(no_memory()),
    };
    if expects_continue(session) {
        session.write_continue_response().await.map_err(|_| End::ClientGone)?;
    }
    let read = async {
        let mut whole = BytesMut::with_capacity(usize::try_from(declared.unwrap_or(0)).unwrap_or(0));
        loop {
            let chunk = match session.read_request_body().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(e) => return Err(unread(session, &e)),
            };
            let length = len(whole.len()).saturating_add(len(chunk.len()));
            if length > limit {
                return Err(too_large(limit));
            }
            let missing = length.saturating_sub(len(share.num_permits()).saturating_mul(PAGE));
            if missing > 0 {
                share.merge(budget.take(missing).ok_or_else(no_memory)?);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    };
    let bytes = tokio::time::timeout(within, read).await.map_err(|_| too_slow())??;
    Ok(HeldBody { bytes, _share: Some(share) })
}

fn len(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn content_length(session: &ServerSession) -> Option<u64> {
    session.get_header(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether the client waits for `100 Continue` before it sends its body.
pub(super) fn expects_continue(session: &ServerSession) -> bool {
    session.get_header(header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// What a body that cannot be read ends a request with.
fn unread(session: &mut ServerSession, e: &pingora::Error) -> End {
    // Pingora's own limit on a read is that of the whole body, and may be first.
    if *e.etype() == pingora::ErrorType::ReadTimedout {
        return too_slow();
    }
    violation_of(e).map_or(End::ClientGone, |violation| malformed(session, violation))
}

/// Ends a request whose body breaks the framing. Nothing behind it on its connection can be trusted.
pub fn malformed(session: &mut ServerSession, violation: Violation) -> End {
    session.set_keepalive(None);
    End::refuse(malformed_refusal(violation))
}

/// The refusal of a request that breaks the framing of HTTP/1.
pub fn malformed_refusal(violation: Violation) -> Refusal {
    Refusal::new(violation.status(), ErrorKind::InvalidRequest, violation.code(), violation.to_string())
}

/// The refusal of a body that did not come.
pub fn too_slow() -> End {
    End::refuse(Refusal::new(
        StatusCode::REQUEST_TIMEOUT,
        ErrorKind::Timeout,
        "body_timeout",
        "the body of the request did not arrive in time",
    ))
}

/// The refusal of a body that is too long.
pub fn too_large(limit: u64) -> End {
    End::refuse(Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::InvalidRequest,
        "request_too_large",
        format!("the body is longer than the {limit} bytes that this route takes"),
    ))
}

fn no_memory() -> End {
    End::refuse(
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Overloaded,
            "body_memory_exhausted",
            "the gateway holds too many request bodies at the moment; try again",
        )
        .retry_after(Duration::from_secs(1)),
    )
}

/// The body with another value of its top-level `model`, which is JSON text. `None` when it names none.
pub fn with_model(body: &Bytes, model: &str) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        model: &'a RawValue,
    }
    let named: Named<'_> = serde_json::from_slice(body).ok()?;
    let old = named.model.get();
    // The raw value borrows from the body, so its place is known.
    let start = (old.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    let mut out = BytesMut::with_capacity(body.len() + model.len());
    out.extend_from_slice(body.get(..start)?);
    out.extend_from_slice(model.as_bytes());
    out.extend_from_slice(body.get(start + old.len()..)?);
    Some(out.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_top_level_model_is_replaced() {
        let body = Bytes::from_static(br#"{"a":{"model":"x"}, "model" : "gpt-4" ,"b":"model"}"#);
        let out = with_model(&body, "\"llama\"").unwrap();
        assert_eq!(&out[..], br#"{"a":{"model":"x"}, "model" : "llama" ,"b":"model"}"#);
        assert_eq!(with_model(&Bytes::from_static(b"{}"), "\"x\""), None);
        assert_eq!(with_model(&Bytes::from_static(b"[1"), "\"x\""), None);
    }

    #[test]
    fn the_budget_counts_what_is_taken_and_given_back() {
        let budget = BodyBudget::new(10 << 10);
        let share = budget.take(4097).unwrap();
        assert_eq!(budget.used(), 5 << 10);
        assert!(budget.take(6 << 10).is_none());
        drop(share);
        assert_eq!(budget.used(), 0);
    }
}
