//! Decision on the head of an answer: to the client, or to another target.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderName, header};
use spillway_filter::Fields;

use super::decoding::DecodingObserver;
use super::outcome::{Attempt, AttemptOutcome, Failure};
use crate::clock;
use crate::coding::Coding;
use crate::connect::UpstreamSession;
use crate::message::ResponseHead;
use crate::protocol::{Dialect, GRPC_RETRY_PUSHBACK_MS, GRPC_STATUS, OPENAI, Observation, Observe, server_error};

/// Most bytes of a refusing answer that are read for its reason.
const MAX_REFUSAL: usize = 16 << 10;

/// Milliseconds to wait, beside or in place of `Retry-After`.
static RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Longest wait that is accepted from a server, seconds: one day.
const LONGEST: f64 = 86_400.0;

/// Decision on the head of an answer.
pub(super) enum HeadVerdict {
    /// The answer goes to the client, first the part of its body that was read already.
    Pass(Option<Bytes>),
    /// The request goes elsewhere.
    MoveOn(AttemptOutcome),
}

/// Decides whether an answer goes to the client or the request goes elsewhere, which it can only where its body `can_resend`.
pub(super) async fn judge(
    attempt: &Attempt<'_>,
    callers_account: bool,
    can_resend: bool,
    upstream: &mut UpstreamSession,
    head: &ResponseHead,
) -> HeadVerdict {
    let status = grpc_error(attempt, head).unwrap_or(head.status.as_u16());
    if !can_resend {
        return HeadVerdict::Pass(None);
    }
    if attempt.move_on.full && attempt.backend.full_statuses.contains(&status) {
        // On the caller's own account at the server, "too many" refers to the caller, not to the endpoint.
        if status == 429 {
            if callers_account {
                return HeadVerdict::Pass(None);
            }
            let body = read_some(upstream).await;
            if says_quota_is_spent(attempt.backend.dialect.unwrap_or(OPENAI), head, &body) {
                return HeadVerdict::Pass(Some(body));
            }
        }
        return HeadVerdict::MoveOn(AttemptOutcome::Full(retry_after(text_of(&head.headers), SystemTime::now())));
    }
    if attempt.move_on.retry && attempt.route.retry.on_statuses.contains(&status) {
        return HeadVerdict::MoveOn(AttemptOutcome::Failed(Failure::Status(status)));
    }
    HeadVerdict::Pass(None)
}

/// Outcome of an answer of which `seen` was read, nothing of it passed on yet: where its body is an error in place of an
/// answer, the request goes elsewhere, as it would after the status that belongs to the error. `None` where the answer goes
/// to the client all the same: without such an error, where the request is at fault, or where nothing else is left.
pub(super) fn judge_beginning(
    attempt: &Attempt<'_>,
    callers_account: bool,
    can_resend: bool,
    seen: &Observation,
) -> Option<AttemptOutcome> {
    let status = attempt.reported(seen)?;
    judge_reported(attempt, callers_account || is_quota_spent(seen), can_resend, status)
}

/// Outcome of an answer with an error of this status in its place, as by [`judge_beginning`]. `is_of_account` is true where 429
/// refers to the account and not to the server.
pub(super) fn judge_reported(
    attempt: &Attempt<'_>,
    is_of_account: bool,
    can_resend: bool,
    status: u16,
) -> Option<AttemptOutcome> {
    let is_own_account = status == 429 && is_of_account;
    if attempt.move_on.full && attempt.backend.full_statuses.contains(&status) && can_resend && !is_own_account {
        return Some(AttemptOutcome::Full(None));
    }
    let is_failure = is_server_fault(status) && attempt.move_on.retry && can_resend;
    is_failure.then_some(AttemptOutcome::Failed(Failure::Reported(status)))
}

/// True for a status that says that the server failed. 501 and 505 speak of the request.
pub fn is_server_fault(status: u16) -> bool {
    matches!(status, 500 | 502..=504 | 506..=599)
}

/// Status of HTTP for the error of a gRPC call that has no messages: its gRPC status is in the head ("Trailers-Only").
pub(super) fn grpc_error(attempt: &Attempt<'_>, head: &ResponseHead) -> Option<u16> {
    // gRPC needs HTTP/2.
    if attempt.backend.http2 { server_error(head.headers.get(&GRPC_STATUS)) } else { None }
}

async fn read_some(upstream: &mut UpstreamSession) -> Bytes {
    let mut body = bytes::BytesMut::new();
    let read = async {
        while body.len() < MAX_REFUSAL {
            match upstream.read_part().await {
                Ok(Some(part)) => body.extend_from_slice(&part),
                _ => break,
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), read).await;
    body.freeze()
}

/// True if an answer says that a quota is spent. That is no full server: a retry would not help, there or elsewhere.
fn says_quota_is_spent(dialect: &dyn Dialect, head: &ResponseHead, body: &[u8]) -> bool {
    let says_so = |mut observer: Box<dyn Observe>| {
        observer.feed(body, clock::instant());
        is_quota_spent(observer.finish())
    };
    if let Some(decoded) = DecodingObserver::of(Coding::of(&head.headers), dialect, head)
        && says_so(Box::new(decoded))
    {
        return true;
    }
    // A wrong content coding is ignored.
    let kind = head.headers.get(header::CONTENT_TYPE).map(|kind| (header::CONTENT_TYPE, kind.clone()));
    dialect.observe(&kind.into_iter().collect()).is_some_and(says_so)
}

fn is_quota_spent(seen: &Observation) -> bool {
    const SPENT: &str = "insufficient_quota";
    seen.error.as_ref().is_some_and(|e| e.kind == SPENT || e.code.as_deref() == Some(SPENT))
}

/// Values of the fields of a server, without spaces around them.
fn text_of<'h>(headers: &'h Fields) -> impl Fn(&HeaderName) -> Option<&'h str> {
    |name| headers.get(name)?.to_str().ok().map(str::trim)
}

/// Time until the server wants the next request: `retry-after-ms`, which model servers send for times below a second, else
/// `Retry-After`, in seconds or as a date (RFC 9110, 10.2.3). `text` gives the value of a field, without spaces around it.
pub fn retry_after<'h>(text: impl Fn(&HeaderName) -> Option<&'h str>, now: SystemTime) -> Option<Duration> {
    let number = |text: &str, parts: f64| {
        let seconds = text.parse::<f64>().ok()? / parts;
        Duration::try_from_secs_f64(seconds.clamp(0.0, LONGEST)).ok()
    };
    // A server of gRPC that wants no retry writes a negative time, which says nothing of its room.
    let pushback = text(&GRPC_RETRY_PUSHBACK_MS).filter(|text| !text.starts_with('-'));
    if let Some(exact) = text(&RETRY_AFTER_MS).or(pushback).and_then(|text| number(text, 1e3)) {
        return Some(exact);
    }
    let after = text(&header::RETRY_AFTER)?;
    number(after, 1.0).or_else(|| {
        let until = httpdate::parse_http_date(after).ok()?;
        // By the server's own clock, where the answer has a date.
        let now = text(&header::DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
        // With a clock that is behind, the next request would follow at once.
        let wait = until.duration_since(now).ok().filter(|wait| !wait.is_zero())?;
        Some(wait.min(Duration::from_secs_f64(LONGEST)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_in_three_ways_when_to_come_back() {
        let now = httpdate::parse_http_date("Wed, 25 Nov 2026 10:00:00 GMT").unwrap();
        let of = |headers: &[(&'static str, &'static str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), header::HeaderValue::from_static(value)));
            retry_after(text_of(&Fields::from_iter(headers)), now).map(|wait| wait.as_secs_f64())
        };
        for (headers, expected) in [
            (&[("retry-after", "3")][..], Some(3.0)),
            (&[("retry-after", " 0.25 ")], Some(0.25)),
            (&[("retry-after", "1"), ("retry-after-ms", "120")], Some(0.12)),
            (&[("retry-after", "2"), ("retry-after-ms", "soon")], Some(2.0)),
            (&[("grpc-retry-pushback-ms", "250")], Some(0.25)),
            (&[("grpc-retry-pushback-ms", "-1")], None),
            (&[("retry-after", "Wed, 25 Nov 2026 10:00:07 GMT")], Some(7.0)),
            // Its clock is an hour behind ours.
            (&[("retry-after", "Wed, 25 Nov 2026 09:00:07 GMT"), ("date", "Wed, 25 Nov 2026 09:00:02 GMT")], Some(5.0)),
            (&[("retry-after", "Wed, 25 Nov 2026 09:59:00 GMT")], None),
            (&[("retry-after", "-1")], Some(0.0)),
            (&[("retry-after", "1e300")], Some(LONGEST)),
            (&[("retry-after", "Thu, 25 Nov 2326 10:00:00 GMT")], Some(LONGEST)),
            (&[("retry-after", "NaN")], None),
            (&[("retry-after", "tomorrow")], None),
            (&[], None),
        ] {
            assert_eq!(of(headers), expected, "{headers:?}");
        }
    }
}
