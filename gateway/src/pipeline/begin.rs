//! Step 1: from a head to the routes that may take the request. Whatever no route may see is refused here. The module
//! judges no caller and reads no body; its input is the head as the client sent it.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use spillway_config::spelling::Spelling;
use spillway_filter::{Answer, ErrorKind, Refusal};

use super::access::no_route;
use super::target::{self, host_of};
use super::{judging, rewritten};
use crate::downstream::ClientSession;
use crate::exchange::{ConnectionInfo, End, Exchange};
use crate::framing::MAX_FIELDS;
use crate::gateway::Gateway;
use crate::identity::CredentialError;
use crate::message::RequestHead;
use crate::protocol::{OPENAI, Operation, ResolvedOperation, is_grpc, read_timeout};
use crate::routing::{Candidates, HeadContext};
use crate::snapshot::Snapshot;
use crate::upstream::X_REQUEST_ID;
use crate::wire::size_of_fields;

/// Header of a caller that prefers an error to an answer of a built-in model or stand-in (`never`).
static FALLBACK: HeaderName = HeaderName::from_static("x-spillway-fallback");

/// Longest request id that is kept from a caller, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// Begins the exchange of a request whose head was read.
pub(super) fn begin(gateway: &Gateway, connection: &ConnectionInfo, session: &ClientSession) -> Box<Exchange> {
    let snapshot = gateway.snapshot.load_full();
    let head = session.req_header();
    let request_id = head.headers.get(&X_REQUEST_ID).filter(|id| is_sane(id)).cloned().unwrap_or_else(new_request_id);
    let from_trusted_proxy = connection.is_from_trusted_proxy();
    let span = snapshot.tracer.server_span(&head.headers, from_trusted_proxy, std::time::SystemTime::now());
    let off_loop = gateway.off_loop.clone();
    // Boxed: an idle connection keeps no room for it.
    let mut exchange = Box::new(Exchange::begin(snapshot, connection, &head.headers, request_id, span, off_loop));
    exchange.is_grpc = is_grpc(&head.method, &head.headers);
    exchange
}

/// Checks the head of a request and finds the routes that may take it by its head alone. A browser's preflight is routed
/// like the request that it announces, where a filter of that route answers it.
pub(super) fn match_head<'s>(
    gateway: &Gateway,
    connection: &ConnectionInfo,
    snapshot: &'s Snapshot,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Candidates<'s>, End> {
    let checked = check_head(gateway, connection, session);
    let head = session.req_header();
    exchange.resolve(&head.method, head.uri.path());
    let spelling = checked?;
    refuse_ended_certificate(connection, session, exchange)?;
    if exchange.is_grpc {
        exchange.callers_time = read_timeout(&session.req_header().headers)?;
    }
    if connection.is_health_check(&session.req_header().method, session.req_header().uri.path()) {
        return Err(health(gateway));
    }
    exchange.hops = connection.loop_header.then(|| gateway.via.hops(&session.req_header().headers));
    strip_headers(connection, session, exchange);
    let client = exchange.client;
    let head = session.req_header();
    let by_path = |path: &str, method: &Method| {
        // Before any route: a prefix such as /v1 takes no labels to a server.
        if let Some(plan) = snapshot.feedback.as_ref().filter(|plan| plan.takes(&connection.listener, path)) {
            return Candidates::of(&plan.route);
        }
        if let Some(plan) = snapshot.batch.as_ref().filter(|plan| plan.takes(&connection.listener, path)) {
            return Candidates::of(&plan.route);
        }
        let rest = HeadContext { query: head.uri.query().unwrap_or_default(), client };
        snapshot.routes.of_listener(&connection.listener).candidates(host_of(head), path, method, &head.headers, rest)
    };
    // A path with several readings gets no further than this, not even to the filters that redirect.
    let candidates = |method: &Method| -> Result<_, End> {
        let found = by_path(&target::route_key(head), method);
        let others = |path: &str| by_path(path, method);
        target::judge_spelling(spelling, head, connection.encoded_slashes, &found, others)?;
        Ok(found)
    };
    if let Some(announced) = preflight_method(head)
        && let Some(answering) = candidates(&announced)?.answering_preflight()
    {
        return Ok(answering);
    }
    let candidates = candidates(&head.method)?;
    if candidates.is_empty() {
        return Err(no_route(session));
    }
    if super::feedback::plan(&candidates, exchange).is_some() || super::batching::plan(&candidates, exchange).is_some()
    {
        exchange.resolve_as(ResolvedOperation::OTHER);
        exchange.dialect = OPENAI;
        return Ok(candidates);
    }
    if !exchange.resolved.is_certain() {
        let target = head.uri.path_and_query();
        exchange.resolve_as(operation_of(exchange.resolved, &head.method, target, &candidates));
    }
    if exchange.resolved.operation == Operation::Models {
        exchange.resolve_as(exchange.resolved.listing_for(&session.req_header().headers));
    }
    let candidates = judging::without_prompt(candidates, exchange.resolved.operation, session.req_header(), client);
    if candidates.is_empty() {
        return Err(no_route(session));
    }
    Ok(if exchange.resolved.operation.is_of_server() { candidates.listing_models() } else { candidates })
}

/// Operation of a request that the candidates may take, where `resolved` is that of its path alone.
pub(super) fn operation_of(
    resolved: ResolvedOperation,
    method: &Method,
    target: Option<&PathAndQuery>,
    candidates: &Candidates<'_>,
) -> ResolvedOperation {
    if resolved.is_certain() {
        return resolved;
    }
    let resolved = rewritten::operation(method, target, candidates.routes());
    if resolved.is_shared() && candidates.all_call_models() { resolved.on_models() } else { resolved }
}

/// Answer to a health check of a listener, which no route, filter or limit may hide.
fn health(gateway: &Gateway) -> End {
    let plain = (header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    let fresh = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    End::Answer(Box::new(if gateway.is_draining() {
        let again = (header::RETRY_AFTER, HeaderValue::from_static("1"));
        let body = Bytes::from_static(b"draining");
        Answer { status: StatusCode::SERVICE_UNAVAILABLE, headers: vec![plain, fresh, again], body }
    } else {
        Answer { status: StatusCode::OK, headers: vec![plain, fresh], body: Bytes::from_static(b"ready") }
    }))
}

/// Removes the headers that only the gateway or a trusted proxy may set, before a route, a filter or a server sees them.
fn strip_headers(connection: &ConnectionInfo, session: &mut ClientSession, exchange: &mut Exchange) {
    let head = session.req_header_mut();
    exchange.refuses_fallback =
        head.headers.get(&FALLBACK).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"never"));
    exchange.odd_headers = exchange.snapshot.caller_headers.strip(head, connection.is_from_trusted_proxy());
}

/// True for a request id that does no harm in a log line or a header.
fn is_sane(id: &HeaderValue) -> bool {
    let id = id.as_bytes();
    !id.is_empty()
        && id.len() <= MAX_REQUEST_ID
        && id.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/' | b'+' | b'='))
}

/// Id of a request that has none.
pub(super) fn new_request_id() -> HeaderValue {
    let mut text = uuid::Uuid::encode_buffer();
    let text = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("unknown"))
}

/// Refuses an oversized head, CONNECT, ambiguous framing, a host of another connection, and a request that has passed this
/// gateway before. Returns the ways in which other servers could read the path.
fn check_head(gateway: &Gateway, connection: &ConnectionInfo, session: &mut ClientSession) -> Result<Spelling, End> {
    let head = session.req_header();
    let max = connection.limits.max_header_bytes.0;
    // Over HTTP/1 the reader of the connection has refused it already.
    let is_too_large = || {
        let size = head.method.as_str().len()
            + head.uri.path_and_query().map_or(1, |p| p.as_str().len())
            + size_of_fields(&head.headers);
        u64::try_from(size).unwrap_or(u64::MAX) > max || head.headers.len() > usize::from(MAX_FIELDS)
    };
    if session.is_http2() && is_too_large() {
        session.close_after();
        return Err(End::refuse(Refusal::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            ErrorKind::InvalidRequest,
            "header_too_large",
            format!("the request line and header are longer than {max} bytes or more than {MAX_FIELDS} fields"),
        )));
    }
    if head.method == Method::CONNECT {
        session.close_after();
        return Err(End::refuse(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorKind::InvalidRequest,
            "method_not_allowed",
            "this is a gateway, not a proxy for connections: CONNECT is not answered, but for WebSocket over HTTP/2 \
             (`:protocol: websocket`, RFC 8441); over HTTP/1.1 ask with GET and `Upgrade: websocket`",
        )));
    }
    let spelling = match target::settle(session.req_header_mut()) {
        Ok(spelling) => spelling,
        Err(refusal) => {
            session.close_after();
            return Err(End::Refuse(refusal));
        }
    };
    let head = session.req_header();
    if head.version == Version::HTTP_11 && !head.headers.contains_key(header::HOST) {
        session.close_after();
        return Err(End::refuse(Refusal::invalid("no_host", "a request of HTTP/1.1 must say which host it is for")));
    }
    let head = session.req_header();
    if let Some(host) = host_of(head)
        && !connection.answers_for(host)
    {
        return Err(End::refuse(Refusal::new(
            StatusCode::MISDIRECTED_REQUEST,
            ErrorKind::InvalidRequest,
            "misdirected_request",
            "this connection was opened for another host name: open one for the name that the request asks for",
        )));
    }
    if gateway.via.is_in(&head.headers) {
        return Err(End::refuse(Refusal::new(
            StatusCode::LOOP_DETECTED,
            ErrorKind::Internal,
            "loop_detected",
            "the request has passed this gateway before, or sixteen others: a backend points back at it",
        )));
    }
    Ok(spelling)
}

/// Refuses a request on a connection whose client certificate has expired, as a new connection with it would be refused.
fn refuse_ended_certificate(
    connection: &ConnectionInfo,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    if !connection.certificate_has_ended() {
        return Ok(());
    }
    session.close_after();
    exchange.authentication_failed = Some(CredentialError::CertificateExpired);
    Err(End::refuse(Refusal::new(
        StatusCode::UNAUTHORIZED,
        ErrorKind::Authentication,
        "certificate_expired",
        "The client certificate of this connection has ended: connect again with one that is still good.",
    )))
}

/// Method that a browser's preflight announces (Fetch, 3.2.2).
pub(super) fn preflight_method(head: &RequestHead) -> Option<Method> {
    if head.method != Method::OPTIONS || !head.headers.contains_key(header::ORIGIN) {
        return None;
    }
    Method::from_bytes(head.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()
}
