//! An attempt that asks its endpoint for an upgrade. Until the 101 it is as any other attempt: it fails, finds the endpoint
//! full, or passes on another answer. Behind the 101 it is a socket, which ends the attempt when it ends.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{StatusCode, Uri};
use spillway_filter::Fields;
use tokio::time::{Instant, timeout_at};

use super::bounds::Bounds;
use super::connection::{close, not_connected};
use super::headers::{filter_server_response, finish_response, remove_hop_by_hop, settle_framing};
use super::metering::{SocketMeter, SocketTariff};
use super::model_name;
use super::open::OpenedAnswer;
use super::outcome::{Attempt, AttemptLimits, AttemptOutcome, CutReason, Failure, TimeLimit, failure, failure_of_head};
use super::outgoing::{Outgoing, Sent};
use super::passing::client_write;
use super::socket_names::SocketNames;
use super::verdict::{HeadVerdict, judge};
use crate::balancing::{Class, orca};
use crate::clock;
use crate::connect::{Follows, UpstreamSession};
use crate::downstream::ClientSession;
use crate::exchange::{Exchange, ServedBy, SocketOutcome};
use crate::limits::Payer;
use crate::message::{RequestHead, ResponseHead};
use crate::protocol::{Operation, ReadSocket};
use crate::telemetry::{RouteMetrics, SocketEnd};
use crate::tunnel::{
    self, Messages, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SocketFacts, SocketLimits,
    Upgrade, caller_end,
};

/// Subprotocol in which browsers send the key of OpenAI's Realtime API, since they can set no header.
const KEY_IN_SUBPROTOCOL: &[u8] = b"openai-insecure-api-key.";

/// Sends the request for an upgrade and waits for its answer: a 101 that was checked, or another one that will be passed on.
/// Every other end is an error.
pub(super) async fn ask(
    attempt: &Attempt<'_>,
    upgrade: &Upgrade,
    session: &mut ClientSession,
    exchange: &Exchange,
) -> Result<OpenedAnswer, AttemptOutcome> {
    let mut out = Outgoing::new(attempt, session, exchange);
    put_on(&mut out.request, attempt, upgrade, exchange);
    let limits = AttemptLimits::begin(attempt, exchange);
    let asked = out.request.headers.clone();
    let opened = tokio::select! {
        biased;
        opened = open(attempt, out, limits) => opened?,
        // The client has left. What it sends ahead waits in its session.
        _ = session.read_body_or_idle(true) => return Err(AttemptOutcome::ClientGone),
    };
    if opened.head.status == StatusCode::SWITCHING_PROTOCOLS
        && let Err(fault) = upgrade.check_accepted(&asked, &opened.head.headers)
    {
        close(attempt, opened.upstream).await;
        return Err(AttemptOutcome::Failed(Failure::Protocol(fault.to_string())));
    }
    Ok(opened)
}

/// Passes a 101 on, and then the bytes of the socket both ways until it ends.
pub(super) async fn switch(
    attempt: &Attempt<'_>,
    upgrade: &Upgrade,
    opened: OpenedAnswer,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> AttemptOutcome {
    match accept(attempt, upgrade, opened, session, exchange).await {
        Ok(upstream) => serve(attempt, upgrade, upstream, session, exchange).await,
        Err(outcome) => outcome,
    }
}

/// Puts the upgrade on a request for a server.
fn put_on(out: &mut RequestHead, attempt: &Attempt<'_>, upgrade: &Upgrade, exchange: &Exchange) {
    let _ = out.insert_header(header::CONNECTION, HeaderValue::from_static("upgrade"));
    let _ = out.insert_header(header::UPGRADE, upgrade.name());
    if let tunnel::UpgradeProtocol::WebSocket { key } = &upgrade.protocol {
        let _ = out.insert_header(SEC_WEBSOCKET_KEY.clone(), key.clone());
    }
    if !attempt.backend.passes_credentials {
        remove_key_in_subprotocol(out);
    }
    if reader(attempt, exchange).is_some() {
        // Compressed messages could not be read.
        out.remove_header(&SEC_WEBSOCKET_EXTENSIONS);
    }
    if exchange.resolved.operation == Operation::Realtime
        && let Some(model) = model_name::at_server(attempt.backend, exchange)
        && let Some(target) = out.uri.path_and_query().and_then(|target| with_model(target, model))
    {
        out.set_uri(Uri::from(target));
    }
}

/// Reader of the messages of a socket, where their form is known.
fn reader(attempt: &Attempt<'_>, exchange: &Exchange) -> Option<Box<dyn ReadSocket>> {
    attempt.backend.dialect.and_then(|dialect| dialect.read_socket(exchange.resolved.operation))
}

/// Removes a credential of the caller that is among the subprotocols it offers.
fn remove_key_in_subprotocol(out: &mut RequestHead) {
    let is_key = |word: &[u8]| {
        word.get(..KEY_IN_SUBPROTOCOL.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(KEY_IN_SUBPROTOCOL))
    };
    let offered = |headers: &Fields| -> Vec<Bytes> {
        let values = headers.get_all(&SEC_WEBSOCKET_PROTOCOL).iter();
        let words = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        words.map(Bytes::copy_from_slice).collect()
    };
    let mut words = offered(&out.headers);
    if !words.iter().any(|word| is_key(word)) {
        return;
    }
    words.retain(|word| !is_key(word));
    out.remove_header(&SEC_WEBSOCKET_PROTOCOL);
    if !words.is_empty()
        && let Ok(value) = HeaderValue::from_bytes(&words.join(&b", "[..]))
    {
        let _ = out.insert_header(SEC_WEBSOCKET_PROTOCOL.clone(), value);
    }
}

/// Target whose query names the model that the backend knows; `None` where it names none.
fn with_model(target: &PathAndQuery, model: &str) -> Option<PathAndQuery> {
    let query = target.query()?;
    let is_model =
        |pair: &str| url::form_urlencoded::parse(pair.as_bytes()).next().is_some_and(|(name, _)| name == "model");
    if !query.split('&').any(is_model) {
        return None;
    }
    let model: String = url::form_urlencoded::byte_serialize(model.as_bytes()).collect();
    let renamed = |pair: &str| if is_model(pair) { format!("model={model}") } else { pair.to_owned() };
    let query = query.split('&').map(renamed).collect::<Vec<_>>().join("&");
    format!("{}?{query}", target.path()).parse().ok()
}

/// Sends the request and waits for the head of a 101, or of another answer that will be passed on. Every other end is an
/// error.
async fn open(attempt: &Attempt<'_>, out: Outgoing, limits: AttemptLimits) -> Result<OpenedAnswer, AttemptOutcome> {
    let overdue = |otherwise: TimeLimit| {
        let now = clock::now();
        AttemptOutcome::Failed(if now >= limits.deadline {
            Failure::Deadline(limits.whose)
        } else if now >= limits.attempt {
            Failure::Timeout(TimeLimit::BackendRequest)
        } else {
            Failure::Timeout(otherwise)
        })
    };
    let connecting = attempt.connector.get_http1(&attempt.endpoint.peer);
    let (mut upstream, reused) = match timeout_at(limits.attempt, connecting).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(e)) => return Err(not_connected(attempt, &e)),
        Err(_) => return Err(overdue(TimeLimit::Connect)),
    };
    let sending = clock::within(attempt.backend.send_timeout, upstream.write_head(out.request, Follows::Nothing));
    match timeout_at(limits.attempt, sending).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(e))) => return Err(AttemptOutcome::Failed(failure(&e))),
        Ok(Err(_)) | Err(_) => return Err(overdue(TimeLimit::Idle)),
    }
    let sent_at = clock::now();
    let until = limits.attempt.min(sent_at + attempt.first_byte_timeout());
    let mut head = match timeout_at(until, read_head(attempt, &mut upstream, reused, sent_at)).await {
        Ok(head) => head?,
        Err(_) => return Err(overdue(TimeLimit::FirstByte)),
    };
    // Another request must not follow on it: the server could take it for bytes of a tunnel.
    upstream.close_after();
    let mut prefix = None;
    if head.status != StatusCode::SWITCHING_PROTOCOLS {
        settle_framing(&mut head).map_err(|found| AttemptOutcome::Failed(Failure::Protocol(found.to_owned())))?;
        prefix = match judge(attempt, out.callers_account, true, &mut upstream, &head).await {
            HeadVerdict::Pass(prefix) => prefix,
            HeadVerdict::MoveOn(outcome) => return Err(outcome),
        };
    }
    let (callers_account, shown, sent_host) = (out.callers_account, out.shown, out.host);
    Ok(OpenedAnswer { upstream, head, prefix, sent: Some(Sent::Whole), callers_account, shown, sent_host, limits })
}

/// Reads the head of the answer. Early answers are dropped: they are for the answer of a request, which this is not.
async fn read_head(
    attempt: &Attempt<'_>,
    upstream: &mut UpstreamSession,
    reused: bool,
    sent_at: Instant,
) -> Result<ResponseHead, AttemptOutcome> {
    upstream.bound_head(attempt.backend.max_header_bytes);
    let mut bounds = Bounds::new(attempt.backend.max_header_bytes);
    loop {
        let read = upstream.read_head().await;
        read.map_err(|e| AttemptOutcome::Failed(failure_of_head(&e, reused, sent_at)))?;
        let Some(head) = upstream.take_head() else { continue };
        bounds.count(&head).map_err(AttemptOutcome::Failed)?;
        attempt.read_load(&head);
        if head.status == StatusCode::SWITCHING_PROTOCOLS || !head.status.is_informational() {
            return Ok(head);
        }
    }
}

/// Passes the 101 of a server on.
async fn accept(
    attempt: &Attempt<'_>,
    upgrade: &Upgrade,
    opened: OpenedAnswer,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<UpstreamSession, AttemptOutcome> {
    let OpenedAnswer { upstream, mut head, shown, sent_host, limits, .. } = opened;
    attempt.answered(Class::Head, head.status);
    exchange.outcome.begin_answer();
    exchange.outcome.status = head.status.as_u16();
    exchange.outcome.served_by = ServedBy::Backend(attempt.backend.name.clone());
    exchange.outcome.target = attempt.target;
    exchange.outcome.endpoint = Some(attempt.endpoint.address.clone());
    exchange.outcome.answered_in = Some(clock::since(attempt.started));
    remove_hop_by_hop(&mut head);
    head.remove_header(&header::CONTENT_LENGTH);
    if attempt.backend.load_reports {
        head.remove_header(&orca::REPORT);
    }
    shown.strip(&mut head);
    filter_server_response(&mut head, attempt, session.req_header(), exchange, sent_host.as_ref());
    exchange.outcome.was_at_target(clock::since(attempt.started));
    finish_response(&mut head, session.req_header(), exchange);
    let _ = head.insert_header(header::CONNECTION, HeaderValue::from_static("upgrade"));
    let _ = head.insert_header(header::UPGRADE, upgrade.name());
    let until = limits.deadline.min(clock::now() + exchange.write_timeout);
    let written = client_write(until, session.switch_protocols(Box::new(head))).await;
    if written.is_err() {
        close(attempt, upstream).await;
        return Err(AttemptOutcome::ClientGone);
    }
    Ok(upstream)
}

/// Passes the bytes of a socket both ways until it ends.
async fn serve(
    attempt: &Attempt<'_>,
    upgrade: &Upgrade,
    upstream: UpstreamSession,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> AttemptOutcome {
    let limits = limits(attempt, upgrade, session, exchange);
    let mut socket = SocketOutcome { opened_after: clock::since(exchange.started), bytes_in: 0, end: None };
    exchange.outcome.socket = Some(socket);
    exchange.tell_socket(&attempt.backend.name);
    let _open = OpenSocket::enter(&attempt.route.metrics);
    let facts = facts(attempt, upgrade, exchange);
    let caller = facts.caller.as_ref();
    let caller_ends = caller.and_then(|(name, proof)| exchange.snapshot.identity.ends(proof, name));
    let mut guard = attempt.downstream.sockets.enter(facts, caller_end(caller_ends));
    if attempt.endpoint.state.is_drained() {
        // An operator has drained it while the server thought about the handshake.
        guard.drain_at(clock::now() + exchange.snapshot.drain_timeout);
    }
    let is_http2 = session.is_http2();
    let mut timer = session.lend_timer();
    let report = match (session.tunnel(), upstream.into_tunnel()) {
        (Some(mut client), Some(mut server)) => {
            let stopping = attempt.downstream.ending.over();
            let mut meter = None;
            if let Some(reader) = reader(attempt, exchange).filter(|_| upgrade.is_websocket()) {
                let tariff = SocketTariff {
                    prices: &exchange.snapshot.prices,
                    costs: exchange.snapshot.limits.costs(),
                    payer: Payer {
                        consumer: exchange.caller.as_ref().map_or("", |caller| &*caller.name),
                        tenant: exchange.caller.as_ref().map_or("", |caller| &*caller.tenant),
                        route: &attempt.route.name,
                    },
                    asked: exchange.asked.as_ref().and_then(|asked| asked.model.as_deref()),
                    rules: upgrade.rules.clone(),
                };
                let reader = (reader, SocketNames::of(attempt.backend, exchange));
                let (ledger, outcome) = (&mut exchange.ledger, &mut exchange.outcome);
                meter = Some(SocketMeter::new(reader, tariff, attempt.backend.metrics.as_deref(), ledger, outcome));
            }
            let messages = meter.as_mut().map(|meter| meter as &mut dyn Messages);
            tunnel::relay((&mut client, &mut server), limits, messages, &mut guard, stopping, &mut timer).await
        }
        // No session is without one behind its 101.
        _ => return AttemptOutcome::ClientGone,
    };
    session.return_timer(timer);
    (socket.bytes_in, socket.end) = (report.bytes_in, Some(report.end));
    exchange.outcome.socket = Some(socket);
    exchange.outcome.bytes_out = report.bytes_out;
    attempt.route.metrics.socket_ended(report.end);
    match report.end {
        SocketEnd::ServerLost | SocketEnd::ServerSlow | SocketEnd::ServerMalformed => {
            let cut =
                if report.end == SocketEnd::ServerSlow { CutReason::RequestNotRead } else { CutReason::UpstreamReset };
            (exchange.outcome.broken, exchange.outcome.error_code) = (true, Some(cut.as_str()));
            return AttemptOutcome::Broken(cut);
        }
        SocketEnd::ClientSlow if is_http2 => {
            attempt.downstream.write_timeouts.inc();
        }
        _ => {}
    }
    AttemptOutcome::Answered
}

fn limits(attempt: &Attempt<'_>, upgrade: &Upgrade, session: &ClientSession, exchange: &Exchange) -> SocketLimits {
    let route = attempt.route;
    SocketLimits {
        idle: route.socket_idle,
        lifetime_ends: route.socket_lifetime.map(|lifetime| clock::now() + lifetime),
        certificate_ends: upgrade.certificate_ends,
        server_write: attempt.backend.send_timeout,
        client_write: session.is_http2().then_some(exchange.write_timeout),
        has_frames: upgrade.is_websocket(),
    }
}

fn facts(attempt: &Attempt<'_>, upgrade: &Upgrade, exchange: &Exchange) -> SocketFacts {
    SocketFacts {
        listener: upgrade.listener,
        route: attempt.route.name.clone(),
        caller: exchange.caller.as_ref().and_then(|caller| Some((caller.name.clone(), exchange.caller_proof()?))),
        backend: attempt.backend.name.clone(),
        url: attempt.endpoint.url.to_string(),
        endpoint: attempt.endpoint.address.clone(),
        generation: exchange.snapshot.generation,
    }
}

/// Counts an open socket of a route until it is dropped.
struct OpenSocket<'m>(&'m RouteMetrics);

impl<'m> OpenSocket<'m> {
    fn enter(metrics: &'m RouteMetrics) -> Self {
        metrics.open_sockets.inc();
        Self(metrics)
    }
}

impl Drop for OpenSocket<'_> {
    fn drop(&mut self) {
        self.0.open_sockets.dec();
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, Method};

    use super::*;

    #[test]
    fn a_key_among_the_subprotocols_is_removed_and_the_others_stay() {
        for (offered, left) in [
            (
                &["realtime, openai-insecure-api-key.sk-1, openai-beta.realtime-v1"][..],
                Some("realtime, openai-beta.realtime-v1"),
            ),
            (&["realtime", "OpenAI-Insecure-API-Key.sk-1"], Some("realtime")),
            (&["openai-insecure-api-key.sk-1"], None),
            (&["a,b"], Some("a,b")),
        ] {
            let name: HeaderName = SEC_WEBSOCKET_PROTOCOL.clone();
            let headers: Fields = offered.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect();
            let mut head = RequestHead::new(Method::GET, PathAndQuery::from_static("/"), headers);
            remove_key_in_subprotocol(&mut head);
            assert_eq!(head.headers.get(&name).map(|value| value.to_str().unwrap()), left, "{offered:?}");
        }
    }

    #[test]
    fn the_model_in_a_query_is_renamed_and_the_rest_stays() {
        for (target, expected) in [
            ("/v1/realtime?model=a", Some("/v1/realtime?model=b%2Fc+d")),
            ("/v1/realtime?x=1&mod%65l=a&y=%20", Some("/v1/realtime?x=1&model=b%2Fc+d&y=%20")),
            ("/v1/realtime?models=a", None),
            ("/v1/realtime", None),
        ] {
            let target: PathAndQuery = target.parse().unwrap();
            assert_eq!(with_model(&target, "b/c d").as_ref().map(PathAndQuery::as_str), expected, "{target}");
        }
    }
}
