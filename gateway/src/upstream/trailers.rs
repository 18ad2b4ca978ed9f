//! Trailers between the two sides (RFC 9110, 6.5). Those of an answer pass without fields of framing and names of the gateway.
//! Trailers of a request pass where a header of the same name and value would: some servers read a trailer as a header.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use spillway_config::header_names::GUARDED;

use super::headers::{claimed, is_of_connection, nominated, remove_credentials, run_filters};
use super::masking::SentCredentials;
use super::outcome::Attempt;
use crate::downstream::ClientSession;
use crate::exchange::{Exchange, Viewed};

/// Fields that no request has as trailers, because they route, authenticate or modify it (RFC 9110, 6.5.1), or because the
/// gateway sets them. Those of [`GUARDED`] are none either.
const NEVER: [&str; 20] = [
    "accept-encoding",
    "baggage",
    "cache-control",
    "content-range",
    "cookie",
    "expect",
    "forwarded",
    "grpc-timeout",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "max-forwards",
    "pragma",
    "range",
    "traceparent",
    "tracestate",
    "via",
];

/// Trailers of an answer without fields of framing and of the connection, and names of the gateway.
pub(super) fn of_answer(mut trailers: HeaderMap) -> HeaderMap {
    let ends = |name: &HeaderName| is_of_connection(name) || [header::CONTENT_LENGTH, header::HOST].contains(name);
    let ending: Vec<HeaderName> = trailers.keys().filter(|name| ends(name)).cloned().collect();
    for name in ending.iter().chain(&claimed(&trailers)) {
        trailers.remove(name);
    }
    trailers
}

/// Trailers of a request for an endpoint.
pub(super) fn of_request(
    trailers: &HeaderMap,
    attempt: &Attempt<'_>,
    session: &ClientSession,
    exchange: &Exchange,
) -> HeaderMap {
    let (names, client) = (&exchange.snapshot.caller_headers, session.req_header());
    let nominated = nominated(&client.headers);
    let ends = |name: &HeaderName| {
        is_of_connection(name)
            || nominated.contains(name)
            || [&NEVER[..], &GUARDED[..]].iter().any(|all| all.contains(&name.as_str()))
            || names.may_hold_credential(name)
            || client.headers.contains_key(name)
            // Some servers cannot tell other marks from `-`.
            || !name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let mut head = client.with_headers(fields(trailers, |name| !ends(name)));
    // Whoever sends them: a trusted proxy writes its claims in the header.
    names.strip(&mut head, false);
    remove_credentials(&mut head, client, exchange, true);
    // A field that a filter sets or removes is the filter's.
    let before = head.headers.clone();
    let viewed = Viewed { head: client, exchange, target: attempt.target, passes_credentials: false };
    run_filters(&mut head, attempt, viewed, &mut SentCredentials::default());
    fields(&before, |name| head.headers.get_all(name).iter().eq(before.get_all(name).iter()))
}

/// Copy of the fields whose names are kept.
fn fields<'f, C: FromIterator<(HeaderName, HeaderValue)>>(
    all: impl IntoIterator<Item = (&'f HeaderName, &'f HeaderValue)>,
    keeps: impl Fn(&HeaderName) -> bool,
) -> C {
    let kept = all.into_iter().filter(|(name, _)| keeps(name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}
