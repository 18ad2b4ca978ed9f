//! Steps 1 to 5: from a header to a request whose caller and route are known and whose filters have passed.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use spillway_config::schema::RouteAuthentication;
use spillway_filter::{ErrorKind, Refusal};

use super::access::{is_open_to, no_route};
use super::limiting;
use super::target::{self, host_of};
use crate::exchange::{
    Asked, ConnectionInfo, End, Exchange, Hold, Observers, RequestBody, RouteInFlight, hold, too_large,
};
use crate::framing::MAX_FIELDS;
use crate::gateway::Gateway;
use crate::identity::CredentialError;
use crate::limits::{Estimate, Ledger};
use crate::protocol::{self, PROBLEM, model_not_found};
use crate::routing::{Candidates, Rest, Spelling};
use crate::topology::Route;
use crate::upstream::X_REQUEST_ID;

/// Header of a caller that would rather have an error than a lesser answer.
static FALLBACK: HeaderName = HeaderName::from_static("x-spillway-fallback");

/// Longest request id that is kept from a caller.
const MAX_REQUEST_ID: usize = 128;

/// Begins the exchange.
pub(super) fn begin(gateway: &Gateway, connection: &ConnectionInfo, session: &ServerSession) -> Exchange {
    let snapshot = gateway.snapshot.load_full();
    let head = session.req_header();
    let request_id = head.headers.get(&X_REQUEST_ID).filter(|id| is_sane(id)).cloned().unwrap_or_else(new_request_id);
    let from_trusted_proxy = connection.is_from_trusted_proxy();
    let span = snapshot.tracer.server_span(&head.headers, from_trusted_proxy, std::time::SystemTime::now());
    Exchange::begin(snapshot, connection, &head.headers, request_id, span, gateway.off_loop.clone())
}

/// Removes the headers of a caller that only the gateway or a trusted proxy may set, before a route, a filter or a server sees them.
pub(super) fn strip(connection: &ConnectionInfo, session: &mut ServerSession, x: &mut Exchange) {
    let head = session.req_header_mut();
    x.refuses_fallback = head.headers.get(&FALLBACK).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"never"));
    x.odd_headers = x.snapshot.caller_headers.strip(head, connection.is_from_trusted_proxy());
}

/// An id that can stand in a log line and a header without harm.
fn is_sane(id: &HeaderValue) -> bool {
    let id = id.as_bytes();
    !id.is_empty()
        && id.len() <= MAX_REQUEST_ID
        && id.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/' | b'+' | b'='))
}

fn new_request_id() -> HeaderValue {
    let mut text = uuid::Uuid::encode_buffer();
    let text = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("unknown"))
}

/// Refuses what no route may see: an oversized header, ambiguous framing, a request that has been here before. Returns
/// what other servers could read in the path.
pub(super) fn check_head(
    gateway: &Gateway,
    connection: &ConnectionInfo,
    session: &mut ServerSession,
) -> Result<Spelling, End> {
    let head = session.req_header();
    let max = connection.limits.max_header_bytes.0;
    // Over HTTP/1 the reader of the connection has refused it already.
    let is_too_large = || {
        let size = head.method.as_str().len()
            + head.uri.path_and_query().map_or(1, |p| p.as_str().len())
            + head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
        u64::try_from(size).unwrap_or(u64::MAX) > max || head.headers.len() > usize::from(MAX_FIELDS)
    };
    if session.is_http2() && is_too_large() {
        session.set_keepalive(None);
        return Err(End::refuse(Refusal::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            ErrorKind::InvalidRequest,
            "header_too_large",
            format!("the request line and header are longer than {max} bytes or more than {MAX_FIELDS} fields"),
        )));
    }
    if head.method == Method::CONNECT {
        session.set_keepalive(None);
        return Err(End::refuse(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorKind::InvalidRequest,
            "method_not_allowed",
            "this is a gateway, not a proxy for connections: CONNECT is not answered",
        )));
    }
    let spelling = match target::settle(session.req_header_mut()) {
        Ok(spelling) => spelling,
        Err(refusal) => {
            session.set_keepalive(None);
            return Err(End::Refuse(refusal));
        }
    };
    let head = session.req_header();
    if head.version == Version::HTTP_11 && !head.headers.contains_key(header::HOST) {
        session.set_keepalive(None);
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
            "the request has passed this gateway before: a backend points back at it",
        )));
    }
    Ok(spelling)
}

/// Refuses a request on a connection whose client certificate has ended, as a new connection would be refused with it.
pub(super) fn judge_certificate(
    connection: &ConnectionInfo,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<(), End> {
    if !connection.certificate_has_ended() {
        return Ok(());
    }
    session.set_keepalive(None);
    x.authentication_failed = Some(CredentialError::CertificateExpired);
    Err(End::refuse(Refusal::new(
        StatusCode::UNAUTHORIZED,
        ErrorKind::Authentication,
        "certificate_expired",
        "The client certificate of this connection has ended: connect again with one that is still good.",
    )))
}

/// Finds the route, and the caller on the way: as early as the candidates allow. A request that is refused here takes
/// nothing from limits that were judged before its body was read.
pub(super) async fn find_route(
    gateway: &Gateway,
    connection: &ConnectionInfo,
    spelling: Spelling,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<Arc<Route>, End> {
    let found = find(gateway, connection, spelling, session, x).await;
    if found.is_err() {
        x.ledger.give_back_of(x.judged.taken);
    }
    found
}

async fn find(
    gateway: &Gateway,
    connection: &ConnectionInfo,
    spelling: Spelling,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<Arc<Route>, End> {
    let snapshot = x.snapshot.clone();
    let client = x.client;
    let by_path = |session: &ServerSession, path: &str, method: &Method| {
        let head = session.req_header();
        let rest = Rest { query: head.uri.query().unwrap_or_default(), client };
        snapshot.routes.candidates(host_of(head), path, method, &head.headers, rest)
    };
    // A path with several readings gets no further than this, not even to the filters that redirect.
    let candidates = |session: &ServerSession, method: &Method| {
        let head = session.req_header();
        let found = by_path(session, &target::route_key(head), method);
        let others = |path: &str| by_path(session, path, method);
        target::judge_spelling(spelling, head, connection.encoded_slashes, &found, others).map(|()| found)
    };
    if let Some(asked) = preflight_method(session.req_header())
        && let Some(route) =
            candidates(session, &asked).map_err(End::Refuse)?.routes().find(|route| route.answers_preflight)
    {
        // The filter that answers is one of the guards.
        enter(x, route);
        limiting::guards(route, session, x).await?;
    }
    let candidates = candidates(session, &session.req_header().method).map_err(End::Refuse)?;
    let within = connection.limits.body_timeout.0;
    if let Some(route) = candidates.only() {
        enter(x, route);
        guards(route, looks_for_caller(route), session, x).await?;
        identify(session, x, route.authentication).await?;
        check_access(route, false, session, x)?;
        // A list of models holds whatever the route says of its backend: a server behind `protocol: http` may run models too.
        if route.holds_body || x.caller.as_ref().is_some_and(|caller| caller.is_restricted()) {
            if !session.is_body_empty() {
                limiting::before_body(Some(route), route.calls_models, session, x).await?;
            }
            hold_body(gateway, session, x, route.max_body, within).await?;
            x.asked = peek(session, x, decides(route, x)).await?;
        } else {
            check_length(session, route)?;
        }
        check_model(x)?;
        check_rename(route, x)?;
        return Ok(route.clone());
    }
    if candidates.is_empty() {
        return Err(no_route(session));
    }
    // The model in the body decides. Nobody unknown gets a byte of it read where all candidates ask for a caller.
    if candidates.routes().all(|route| route.authentication == RouteAuthentication::Required) {
        identify(session, x, RouteAuthentication::Required).await?;
    }
    if !session.is_body_empty() {
        if let Some((route, end)) = limiting::refused_by_all(candidates.routes(), session, x).await {
            if let Some(route) = route {
                enter(x, route);
                // As where the head decides the route: limits by address count what is refused behind them.
                guards(route, candidates.routes().any(looks_for_caller), session, x).await?;
            }
            return Err(end);
        }
        if x.caller.is_some() {
            let calls_model = candidates.routes().all(|route| route.calls_models);
            limiting::before_body(None, calls_model, session, x).await?;
        }
    }
    let limit = candidates.routes().map(|route| route.max_body).max().unwrap_or(0);
    hold_body(gateway, session, x, limit, within).await?;
    // A match asks for the model.
    x.asked = peek(session, x, true).await?;
    let route =
        by_model(&candidates, x).ok_or_else(|| match x.asked.as_ref().and_then(|asked| asked.model.as_deref()) {
            Some(model) => End::from(model_not_found(model)),
            None => no_route(session),
        })?;
    enter(x, &route);
    guards(&route, looks_for_caller(&route), session, x).await?;
    if x.caller.is_none() {
        identify(session, x, route.authentication).await?;
        let caller = number(x);
        if let RequestBody::Held(held) = &mut x.body {
            held.belongs_to(caller)?;
        }
    }
    if let RequestBody::Held(held) = &x.body
        && u64::try_from(held.bytes.len()).unwrap_or(u64::MAX) > route.max_body
    {
        return Err(too_large(route.max_body, "this route takes"));
    }
    check_access(&route, true, session, x)?;
    check_model(x)?;
    check_rename(&route, x)?;
    Ok(route)
}

fn looks_for_caller(route: &Arc<Route>) -> bool {
    route.authentication != RouteAuthentication::None
}

/// Runs the filters that need no caller. Where they refuse a request whose caller would have been looked for (`looks`), a bad
/// key in it counts as one that was looked at.
async fn guards(route: &Route, looks: bool, session: &mut ServerSession, x: &mut Exchange) -> Result<(), End> {
    let passed = limiting::guards(route, session, x).await;
    if let Err(End::Refuse(_)) = &passed
        && x.caller.is_none()
        && looks
    {
        let now = crate::clock::unix_now();
        x.snapshot.identity.note_guess(&session.req_header().headers, x.client, now);
    }
    passed
}

/// Whose share of the memory for bodies a request uses.
fn number(x: &Exchange) -> u128 {
    crate::limits::caller(x.caller.as_ref().map(|consumer| &*consumer.name), x.client)
}

async fn hold_body(
    gateway: &Gateway,
    session: &mut ServerSession,
    x: &mut Exchange,
    limit: u64,
    within: Duration,
) -> Result<(), End> {
    let bounds = Hold { caller: number(x), limit, within };
    x.body = RequestBody::Held(hold(session, &gateway.bodies, &gateway.off_loop, bounds).await?);
    Ok(())
}

/// Whether something is decided by what a body says on the only route that it can take: which models may be named, how many
/// tokens are reserved and for whom. Then it must have one reading.
fn decides(route: &Route, x: &Exchange) -> bool {
    let caller = x.caller.as_ref();
    route.judges_body
        || caller.is_some_and(|caller| caller.is_restricted() || caller.rules.iter().any(|rule| rule.counts_tokens()))
}

/// The method that a browser asks leave for, before it sends the request itself (Fetch, 3.2.2).
fn preflight_method(head: &RequestHeader) -> Option<Method> {
    if head.method != Method::OPTIONS || !head.headers.contains_key(header::ORIGIN) {
        return None;
    }
    Method::from_bytes(head.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()
}

fn by_model(candidates: &Candidates<'_>, x: &Exchange) -> Option<Arc<Route>> {
    candidates.by_model(x.asked.as_ref().and_then(|asked| asked.model.as_deref())).cloned()
}

fn enter(x: &mut Exchange, route: &Arc<Route>) {
    x.running = Some(RouteInFlight::enter(&route.metrics));
    // Those of a route that does not take the request after all, such as that of a preflight.
    x.observers = Observers::default();
    if route.calls_models {
        x.dialect = route.dialect;
    }
    x.route = Some(route.clone());
}

/// A body that streams through is held to the route's limit by its declared length here and by its real one on the way.
fn check_length(session: &ServerSession, route: &Route) -> Result<(), End> {
    let declared =
        session.get_header(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    match declared {
        Some(length) if route.max_body < length => Err(too_large(route.max_body, "this route takes")),
        _ => Ok(()),
    }
}

async fn identify(session: &mut ServerSession, x: &mut Exchange, mode: RouteAuthentication) -> Result<(), End> {
    let snapshot = x.snapshot.clone();
    let now = crate::clock::unix_now();
    if mode != RouteAuthentication::None
        && let Some(certificate) = &x.certificate
        && let Some(known) =
            snapshot.identity.identify_by_certificate(&session.req_header().headers, x.client, certificate)
    {
        return match known {
            Ok((consumer, credential)) => {
                x.caller = Some(consumer);
                x.credential = Some(credential);
                Ok(())
            }
            Err(unidentified) => {
                x.authentication_failed = Some(unidentified.reason);
                Err(unidentified.refusal.into())
            }
        };
    }
    match snapshot.identity.identify(&session.req_header().headers, x.client, now, mode).await {
        Ok(identity) => {
            if let Some(identity) = identity {
                x.caller = Some(identity.consumer);
                x.identified_by = Some(identity.header);
                x.credential = Some(identity.credential);
                x.token = identity.token;
            }
            Ok(())
        }
        Err(unidentified) => {
            x.authentication_failed = Some(unidentified.reason);
            Err(unidentified.refusal.into())
        }
    }
}

/// Refuses a caller that may not use the route as if there were none: with the answer for an unknown model where the model
/// decided the route (`by_model`), else with that for an unknown path.
fn check_access(route: &Route, by_model: bool, session: &ServerSession, x: &mut Exchange) -> Result<(), End> {
    if is_open_to(route, x) {
        return Ok(());
    }
    // Neither the shape of the error nor a header says that there is a route.
    x.dialect = x.resolved.dialect;
    x.route = None;
    x.ledger.give_back();
    x.ledger = Ledger::default();
    let model = x.asked.as_ref().and_then(|asked| asked.model.as_deref()).filter(|_| by_model);
    Err(model.map_or_else(|| no_route(session), |model| model_not_found(model).into()))
}

/// Refuses a model that the body names and the caller may not use.
fn check_model(x: &Exchange) -> Result<(), End> {
    let Some(caller) = x.caller.as_ref().filter(|caller| caller.is_restricted()) else { return Ok(()) };
    match &x.asked {
        // A body for a model that names none that we can read may name any to who reads it otherwise.
        Some(asked) if !caller.may_use(asked.model.as_deref()) && (x.dialect != PROBLEM || asked.model.is_some()) => {
            Err(model_not_found(asked.model.as_deref().unwrap_or_default()).into())
        }
        _ => Ok(()),
    }
}

/// Refuses a form that names a model where a backend knows it by another name: only in JSON is it replaced.
fn check_rename(route: &Route, x: &Exchange) -> Result<(), End> {
    match &x.asked {
        Some(Asked { model: Some(_), model_at: None, .. }) if route.renames_model => Err(End::refuse(
            Refusal::invalid(
                "unsupported_form",
                "The body is a form that names a model, and this route replaces model names in JSON only: send JSON, or \
                 leave `model` out.",
            )
            .param("model"),
        )),
        _ => Ok(()),
    }
}

/// Refuses bodies that are not read here where something is decided by what they say: a server may read them.
fn check_readable(head: &RequestHeader, content_type: &[u8]) -> Result<(), End> {
    const URL_ENCODED: &[u8] = b"x-www-form-urlencoded";
    // Clients that mean the charset write UTF-8 here too.
    let is_plain = |coding: &HeaderValue| {
        [&b"identity"[..], b"utf-8"].iter().any(|plain| coding.as_bytes().eq_ignore_ascii_case(plain))
    };
    if !head.headers.get_all(header::CONTENT_ENCODING).iter().all(is_plain) {
        return Err(End::refuse(Refusal::invalid(
            "unsupported_content_encoding",
            "The body is compressed, and a rule depends on what it says: send it without Content-Encoding.",
        )));
    }
    if content_type.windows(URL_ENCODED.len()).any(|part| part.eq_ignore_ascii_case(URL_ENCODED)) {
        return Err(End::refuse(Refusal::invalid(
            "unsupported_form",
            "The Content-Type is `application/x-www-form-urlencoded`, and a rule depends on what the body says: send \
             `application/json` or `multipart/form-data`.",
        )));
    }
    Ok(())
}

/// What the body asks for. One that is not JSON asks for nothing here. Where `decides`, something is decided by what it
/// says, and a body that is JSON to some readers must have one reading; on a path of OpenAI's API it always must.
async fn peek(session: &ServerSession, x: &Exchange, decides: bool) -> Result<Option<Asked>, End> {
    let RequestBody::Held(held) = &x.body else { return Ok(None) };
    if held.bytes.is_empty() {
        return Ok(None);
    }
    let content_type = session.get_header(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let says_json = content_type.windows(4).any(|part| part.eq_ignore_ascii_case(b"json"));
    let head = session.req_header();
    let must_be_json = x.resolved.must_be_json;
    if decides {
        check_readable(head, content_type)?;
    }
    // What is no JSON may be a sound or an image.
    let unread = Asked { expected: Estimate::new(0, 0, 1, None, true), ..Asked::default() };
    if decides && !must_be_json && protocol::is_form(content_type) {
        let named = x.off_loop.run(held.bytes.len(), || protocol::form_model(content_type, &held.bytes)).await?;
        return Ok(Some(Asked { model: named?, ..unread }));
    }
    let is_strict = must_be_json || decides;
    if is_strict && !protocol::is_utf8(content_type) {
        return Err(End::refuse(Refusal::invalid(
            "unsupported_charset",
            "The Content-Type names a charset other than UTF-8: send the body in UTF-8, with `charset=utf-8` or none.",
        )));
    }
    // Many servers read JSON whatever the request says that it is.
    if !(says_json || must_be_json || protocol::looks_like_json(&held.bytes)) {
        return Ok(Some(unread));
    }
    match x.off_loop.run(held.bytes.len(), || protocol::peek(&held.bytes, is_strict)).await? {
        Ok(peek) => {
            let writes = x.resolved.writes_tokens;
            let expected = Estimate::new(peek.prompt_bytes, peek.images, peek.sounds, peek.max_tokens, writes);
            Ok(Some(Asked {
                model: peek.model.map(Into::into),
                stream: peek.stream,
                expected: expected.times(peek.answers),
                model_at: peek.model_at,
            }))
        }
        Err(refusal) if is_strict => Err(refusal.into()),
        Err(_) => Ok(Some(unread)),
    }
}
