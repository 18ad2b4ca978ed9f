//! Upgrades (RFC 9110, 7.8): which of them a route passes, and the requests for one that are refused before a server sees
//! them. An upgrade that the route does not name is not asked for: the request goes on without it, as it may.

use std::sync::Arc;

use http::{Method, StatusCode, Version};
use spillway_filter::{ErrorKind, Refusal};

use super::answers::is_models;
use super::asking::asked_of_target;
use super::limiting;
use crate::downstream::ClientSession;
use crate::exchange::{ConnectionInfo, End, Exchange};
use crate::limits::{Rule, Subject, TokenRules};
use crate::protocol::{Operation, model_not_found};
use crate::topology::{Route, TargetKind};
use crate::tunnel::{HandshakeError, Upgrade, UpgradeProtocol, WEBSOCKET, asks_to_upgrade, check_opening};

/// Settles whether the request is an upgrade that its route passes, and refuses one that is not well-formed or cannot be
/// passed. A request that is refused here gives back what limits granted it before its body was read.
pub(super) fn settle(
    route: &Route,
    connection: &ConnectionInfo,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    let settled = upgrade(route, session, exchange).and_then(|protocol| {
        let Some(protocol) = protocol else { return Ok(None) };
        if exchange.asked.is_none() {
            exchange.asked = asked_of_target(session, exchange)?;
            exchange.resolve_alias();
        }
        may_pass(route, protocol.is_websocket(), exchange)?;
        let (listener, certificate_ends) = (connection.local, connection.certificate_ends());
        let rules = Arc::new(token_rules(route, session, exchange));
        Ok(Some(Box::new(Upgrade { protocol, listener, certificate_ends, rules })))
    });
    match settled {
        Ok(None) => Ok(()),
        Ok(upgrade) => {
            // Whatever the client has sent ahead is for the other protocol, and no request, also where the server refuses.
            session.close_after();
            exchange.upgrade = upgrade;
            Ok(())
        }
        Err(end) => {
            session.close_after();
            exchange.ledger.release_entries(exchange.judged.taken);
            Err(end)
        }
    }
}

/// Protocol to which the request is to be upgraded; `None` for a request that is served without.
fn upgrade(route: &Route, session: &ClientSession, exchange: &Exchange) -> Result<Option<UpgradeProtocol>, End> {
    let head = session.req_header();
    // The gateway answers the list of models itself, and a filter all requests of a route without targets.
    let is_served = (session.is_http2() || head.version == Version::HTTP_11)
        && !is_models(route, exchange.resolved)
        && !route.targets.is_empty();
    let named = |word: &[u8]| route.upgrades.iter().find(|name| name.as_bytes().eq_ignore_ascii_case(word));
    let Some(name) = asks_to_upgrade(&head.headers).filter(|_| is_served).find_map(named) else {
        if session.is_extended_connect() {
            return Err(End::refuse(Refusal::new(
                StatusCode::NOT_IMPLEMENTED,
                ErrorKind::InvalidRequest,
                "upgrade_not_supported",
                "this route does not pass the protocol of this CONNECT on: `routes[].upgrades` names those that it passes",
            )));
        }
        return Ok(None);
    };
    if !session.is_body_empty() {
        return Err(End::refuse(Refusal::invalid(
            "upgrade_with_body",
            "a request for an upgrade must not have a body: where it ends and the other protocol begins would be uncertain",
        )));
    }
    if **name != *WEBSOCKET {
        return Ok(Some(UpgradeProtocol::Other(name.clone())));
    }
    if head.method != Method::GET {
        return Err(End::refuse(Refusal::invalid("bad_handshake", "WebSocket is opened with GET (RFC 6455, 4.1)")));
    }
    match check_opening(&head.headers) {
        Ok(key) => Ok(Some(UpgradeProtocol::WebSocket { key })),
        Err(HandshakeError::Version) => Err(End::refuse(Refusal::new(
            StatusCode::UPGRADE_REQUIRED,
            ErrorKind::InvalidRequest,
            "bad_handshake",
            format!("{} (RFC 6455, 4.4)", HandshakeError::Version),
        ))),
        Err(fault) => Err(End::refuse(Refusal::invalid("bad_handshake", format!("{fault} (RFC 6455, 4.1)")))),
    }
}

/// Refuses an upgrade that no target can take, whose messages nobody could judge, or whose use nobody could count.
fn may_pass(route: &Route, is_websocket: bool, exchange: &Exchange) -> Result<(), End> {
    let takes = |target: &TargetKind| matches!(target, TargetKind::Backend(backend) if backend.takes_upgrades());
    if !route.targets.iter().any(|target| takes(&target.kind)) {
        return Err(End::refuse(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            ErrorKind::InvalidRequest,
            "upgrade_not_supported",
            "no target of this route takes upgrades: they need a backend that speaks HTTP/1.1",
        )));
    }
    if route.all_filters().any(|named| named.filter.needs_body()) {
        return Err(End::refuse(Refusal::new(
            StatusCode::FORBIDDEN,
            ErrorKind::Permission,
            "socket_not_judged",
            "a filter of this route judges what requests say, and does not see the messages of a socket: use requests, or \
             a route without such a filter",
        )));
    }
    if route.calls_models {
        let operation = exchange.resolved.operation;
        let is_read = |target: &TargetKind| match target {
            TargetKind::Backend(backend) if backend.takes_upgrades() => {
                is_websocket && backend.dialect.is_some_and(|dialect| dialect.read_socket(operation).is_some())
            }
            _ => true,
        };
        let is_read = route.targets.iter().all(|target| is_read(&target.kind));
        let model = exchange.asked.as_ref().and_then(|asked| asked.model.as_deref());
        let uncounted = |rule: &Arc<Rule>| !is_read || (model.is_none() && !rule.needs_no_body());
        if rules_of(route, exchange).any(|rule| rule.counts_tokens() && uncounted(rule)) {
            return Err(End::refuse(Refusal::new(
                StatusCode::FORBIDDEN,
                ErrorKind::Permission,
                "socket_not_counted",
                "a limit or budget in tokens applies here, and the tokens of this socket are not counted: they are for \
                 WebSocket on /v1/realtime and /v1/responses where all backends have `protocol: openai`, and a limit by \
                 model or expression needs the model in the query. Use requests, or a route and consumer without such a \
                 limit",
            )));
        }
    }
    let Some(caller) = exchange.caller.as_ref().filter(|caller| caller.is_restricted()) else { return Ok(()) };
    // The model of another API is in its messages, which the gateway does not read.
    let model = exchange.asked.as_ref().and_then(|asked| asked.model.as_deref());
    let sent = exchange.model_sent();
    if exchange.resolved.operation == Operation::Realtime && caller.may_use(model) && caller.may_use(sent) {
        return Ok(());
    }
    Err(model_not_found(sent.unwrap_or_default(), exchange.dialect).into())
}

/// Rules of the caller and the route.
fn rules_of<'r>(route: &'r Route, exchange: &'r Exchange) -> impl Iterator<Item = &'r Arc<Rule>> {
    let own = exchange.caller.iter().flat_map(|caller| &caller.rules);
    own.chain(route.guards.iter().chain(&route.filters).flat_map(|named| &named.rules))
}

/// Rules that count the tokens of a socket, with the levels of its caller.
fn token_rules(route: &Route, session: &ClientSession, exchange: &Exchange) -> TokenRules {
    let Some(asked) = exchange.asked.as_ref().filter(|_| route.calls_models) else { return TokenRules::default() };
    let nanos = exchange.snapshot.prices.expected(asked.expected, asked.model.as_deref());
    let view = limiting::view(session, exchange);
    let subject = Subject { view: &view, credential: exchange.credential };
    TokenRules::of(rules_of(route, exchange), subject, (asked.expected, nanos))
}
