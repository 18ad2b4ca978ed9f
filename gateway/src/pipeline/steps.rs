//! Steps 1 to 5: from a header to a request whose caller and route are known and whose filters have passed.

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode, Version, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use spillway_config::schema::RouteAuthentication;
use spillway_filter::{ErrorKind, Refusal};

use super::limiting;
use crate::exchange::{Asked, End, Exchange, RouteInFlight};
use crate::limits::{Estimate, Ledger};
use crate::listener::{ConnectionInfo, MAX_FIELDS};
use crate::protocol::{Api, openai};
use crate::routing::{Candidates, Rest};
use crate::server::Gateway;
use crate::snapshot::Route;
use crate::upstream::{RequestBody, X_REQUEST_ID, hold};

/// Longest request id that is kept from a caller.
const MAX_REQUEST_ID: usize = 128;

/// Begins the exchange.
pub(super) fn begin(gateway: &Gateway, connection: &ConnectionInfo, session: &ServerSession) -> Exchange {
    let snapshot = gateway.snapshot.load_full();
    let head = session.req_header();
    let request_id = head.headers.get(&X_REQUEST_ID).filter(|id| is_sane(id)).cloned().unwrap_or_else(new_request_id);
    let span = snapshot.tracer.server_span(&head.headers, std::time::SystemTime::now());
    let mut x = Exchange::begin(snapshot, connection, &head.headers, request_id, span);
    x.api = Api::of_path(head.uri.path());
    x
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

/// Refuses what no route may see: an oversized header, ambiguous framing, a request that has been here before.
pub(super) fn check_head(
    gateway: &Gateway,
    connection: &ConnectionInfo,
    session: &mut ServerSession,
) -> Result<(), End> {
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
    if let Err(refusal) = super::target::settle(session.req_header_mut()) {
        session.set_keepalive(None);
        return Err(End::Refuse(refusal));
    }
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
    Ok(())
}

/// The host that a request is for.
pub(super) fn host_of(head: &RequestHeader) -> Option<&str> {
    head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).or_else(|| head.uri.host())
}

/// Finds the route, and the caller on the way: as early as the candidates allow.
pub(super) async fn find_route(
    gateway: &Gateway,
    connection: &ConnectionInfo,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<Arc<Route>, End> {
    let snapshot = x.snapshot.clone();
    let client = x.client;
    let candidates = |session: &ServerSession, method: &Method| {
        let head = session.req_header();
        let rest = Rest { query: head.uri.query().unwrap_or_default(), client };
        snapshot.routes.candidates(host_of(head), head.uri.path(), method, &head.headers, rest)
    };
    if let Some(asked) = preflight_method(session.req_header())
        && let Some(route) = candidates(session, &asked).routes().find(|route| route.answers_preflight)
    {
        // The filter that answers is one of the guards.
        enter(x, route);
        limiting::guards(route, session, x).await?;
    }
    let candidates = candidates(session, &session.req_header().method);
    let within = connection.limits.body_timeout.0;
    if let Some(route) = candidates.only() {
        enter(x, route);
        limiting::guards(route, session, x).await?;
        identify(session, x, route.authentication).await?;
        if route.holds_body {
            x.body = RequestBody::Held(hold(session, &gateway.bodies, route.max_body, within).await?);
            x.asked = peek(session, x)?;
        } else {
            check_length(session, route)?;
        }
        check_access(route, session, x)?;
        return Ok(route.clone());
    }
    if candidates.is_empty() {
        return Err(no_route(session));
    }
    // The model in the body decides. Nobody unknown gets a byte of it read where all candidates ask for a caller.
    if candidates.routes().all(|route| route.authentication == RouteAuthentication::Required) {
        identify(session, x, RouteAuthentication::Required).await?;
    }
    let limit = candidates.routes().map(|route| route.max_body).max().unwrap_or(0);
    x.body = RequestBody::Held(hold(session, &gateway.bodies, limit, within).await?);
    x.asked = peek(session, x)?;
    let route =
        by_model(&candidates, x).ok_or_else(|| match x.asked.as_ref().and_then(|asked| asked.model.as_deref()) {
            Some(model) => End::from(openai::model_not_found(model)),
            None => no_route(session),
        })?;
    enter(x, &route);
    limiting::guards(&route, session, x).await?;
    if x.caller.is_none() {
        identify(session, x, route.authentication).await?;
    }
    if let RequestBody::Held(held) = &x.body
        && u64::try_from(held.bytes.len()).unwrap_or(u64::MAX) > route.max_body
    {
        return Err(crate::upstream::too_large(route.max_body));
    }
    check_access(&route, session, x)?;
    Ok(route)
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
    if route.api == Api::OpenAi {
        x.api = Api::OpenAi;
    }
    x.route = Some(route.clone());
}

fn no_route(session: &ServerSession) -> End {
    let head = session.req_header();
    End::refuse(Refusal::new(
        StatusCode::NOT_FOUND,
        ErrorKind::NotFound,
        "no_route",
        format!("no route matches {} {}", head.method, head.uri.path()),
    ))
}

/// A body that streams through is held to the route's limit by its declared length here and by its real one on the way.
fn check_length(session: &ServerSession, route: &Route) -> Result<(), End> {
    let declared =
        session.get_header(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    match declared {
        Some(length) if route.max_body < length => Err(crate::upstream::too_large(route.max_body)),
        _ => Ok(()),
    }
}

async fn identify(session: &mut ServerSession, x: &mut Exchange, mode: RouteAuthentication) -> Result<(), End> {
    let snapshot = x.snapshot.clone();
    let now = crate::limits::unix_now();
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

/// Whether the caller may use the route and the model. Who may not is told what a caller is told of a route or model that
/// is not there.
fn check_access(route: &Route, session: &ServerSession, x: &mut Exchange) -> Result<(), End> {
    if let Some(access) = &route.access {
        let allowed = x.caller_view().is_some_and(|caller| {
            let one_of = |list: &[String], name: &str| list.is_empty() || list.iter().any(|entry| entry == name);
            one_of(&access.consumers, caller.consumer)
                && one_of(&access.tenants, caller.tenant)
                && access.scopes.iter().all(|scope| caller.scopes.contains(scope))
        });
        if !allowed {
            // Neither the shape of the error nor a header says that there is a route.
            x.api = Api::of_path(session.req_header().uri.path());
            x.route = None;
            x.ledger.give_back();
            x.ledger = Ledger::default();
            return Err(no_route(session));
        }
    }
    let Some(caller) = x.caller.as_ref().filter(|caller| caller.is_restricted()) else { return Ok(()) };
    match &x.asked {
        // A body for a model that names none that we can read may name any to who reads it otherwise.
        Some(asked)
            if !caller.may_use(asked.model.as_deref()) && (route.api != Api::Problem || asked.model.is_some()) =>
        {
            Err(openai::model_not_found(asked.model.as_deref().unwrap_or_default()).into())
        }
        _ => Ok(()),
    }
}

/// What the body asks for. A body that is not JSON asks for nothing here; on an OpenAI path it must be JSON.
fn peek(session: &ServerSession, x: &Exchange) -> Result<Option<Asked>, End> {
    let RequestBody::Held(held) = &x.body else { return Ok(None) };
    if held.bytes.is_empty() {
        return Ok(None);
    }
    let content_type = session.get_header(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let says_json = memchr::memmem::find(content_type, b"json").is_some();
    let head = session.req_header();
    let must_be_json = Api::of_path(head.uri.path()) == Api::OpenAi && head.method == Method::POST;
    // What is no JSON may be a sound or an image.
    let unread = Asked { expected: Estimate::new(0, 0, 1, None, true), ..Asked::default() };
    if !(says_json || must_be_json) {
        return Ok(Some(unread));
    }
    match openai::peek(&held.bytes) {
        Ok(peek) => {
            let writes = !head.uri.path().ends_with("/embeddings");
            let expected = Estimate::new(peek.prompt_bytes, peek.images, peek.sounds, peek.max_tokens, writes);
            Ok(Some(Asked { model: peek.model.map(Into::into), stream: peek.stream, expected }))
        }
        Err(refusal) if must_be_json => Err(refusal.into()),
        Err(_) => Ok(Some(unread)),
    }
}
