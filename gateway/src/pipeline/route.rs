//! Step 4: the final route of a request, its body where a candidate needs it held, and whether the caller may use the route
//! and the model.

use std::sync::Arc;
use std::time::Duration;

use http::{StatusCode, header};
use spillway_config::schema::RouteAuthentication;
use spillway_filter::{ErrorKind, Refusal};

use super::access::{is_open_to, no_route, refused_by_targets, refused_operation};
use super::answers::{is_models, lists_models};
use super::asking::{decode_body, hold_body, is_two_way, memory_share, named_in_path, peek, unread_stream};
use super::identify::{authenticate, enter, looks_for_caller};
use super::judging::by_body;
use super::rewritten::api_path;
use super::{limiting, rewritten};
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange, Naming, RequestBody, too_large};
use crate::gateway::Gateway;
use crate::limits::Ledger;
use crate::protocol::{ModelScope, OLLAMA, Operation, PROBLEM, model_not_found};
use crate::routing::Candidates;
use crate::topology::{Route, Target, TargetKind};

/// Most bytes of a body that is held only to be sent again where a server did not look at it: what most calls have, and no
/// upload.
const MAX_RESENT: u64 = 64 << 10;

/// Settles on the route that takes the request. Where the body must be held, reading it takes at most `within`. A
/// request that is refused here gives back what limits granted it before its body was read.
pub(super) async fn route(
    gateway: &Gateway,
    candidates: &Candidates<'_>,
    within: Duration,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Arc<Route>, End> {
    let settled = settle(gateway, candidates, within, session, exchange).await;
    if settled.is_err() {
        exchange.ledger.release_entries(exchange.judged.taken);
    }
    settled
}

async fn settle(
    gateway: &Gateway,
    candidates: &Candidates<'_>,
    within: Duration,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Arc<Route>, End> {
    let route = match candidates.only() {
        Some(route) => {
            check_access(route, false, session, exchange)?;
            check_operation(route, exchange)?;
            check_call(route, session, exchange)?;
            let judges_models = exchange.caller.as_ref().is_some_and(|caller| caller.judges_models());
            // A caller's list of models applies whatever the protocol of the backends is: a server behind
            // `protocol: http` may run models too.
            if is_two_way(session, exchange) {
                if decides(route, exchange) {
                    return Err(unread_stream());
                }
            } else if (route.holds_body || judges_models) && is_body_needed(route, exchange) {
                if !session.is_body_empty() {
                    limiting::before_body(Some(route), route.calls_models, session, exchange).await?;
                }
                hold_body(gateway, session, exchange, route.max_body, within).await?;
                let decides = decides(route, exchange);
                if decides || route.calls_models || exchange.resolved.must_be_json {
                    decode_body(session, exchange, route.max_body).await?;
                }
                exchange.asked = match named_in_path(route, session, exchange) {
                    Some(asked) => Some(asked),
                    None => peek(session, exchange, decides).await?,
                };
                settle_name(std::iter::once(route), exchange);
                exchange.resolve_alias();
                if route.folds_models && exchange.fold_model() {
                    exchange.resolve_alias();
                }
            } else {
                exchange.asked = named_in_path(route, session, exchange);
                check_length(session, route)?;
                if route.resends && declared(session).is_some_and(|length| (1..=MAX_RESENT).contains(&length)) {
                    limiting::before_body(Some(route), route.calls_models, session, exchange).await?;
                    hold_body(gateway, session, exchange, route.max_body, within).await?;
                }
            }
            route
        }
        None => by_model(gateway, candidates, within, session, exchange).await?,
    };
    check_model(route, session, exchange)?;
    Ok(route.clone())
}

/// Holds the body, whose model or conversation decides the route, and runs the steps that waited for the route.
async fn by_model<'s>(
    gateway: &Gateway,
    candidates: &Candidates<'s>,
    within: Duration,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<&'s Arc<Route>, End> {
    if is_two_way(session, exchange) {
        return Err(unread_stream());
    }
    if !session.is_body_empty() {
        if let Some((route, end)) = limiting::refused_by_all(candidates.routes(), session, exchange).await {
            if let Some(route) = route {
                // The guards run as they do where the head decides the route: limits by address also count a request
                // that a later rule refuses.
                enter(route, candidates.routes().any(looks_for_caller), session, exchange).await?;
            }
            return Err(end);
        }
        if exchange.caller.is_some() {
            limiting::before_body(None, candidates.all_call_models(), session, exchange).await?;
        }
    }
    let limit = candidates.max_body();
    hold_body(gateway, session, exchange, limit, within).await?;
    decode_body(session, exchange, limit).await?;
    let in_path = candidates.routes().next().and_then(|first| named_in_path(first, session, exchange));
    exchange.asked = match in_path {
        Some(asked) => Some(asked),
        None => peek(session, exchange, true).await?,
    };
    settle_name(candidates.routes(), exchange);
    exchange.resolve_alias();
    let is_known = exchange.caller.is_some();
    let mut route = enter_for_model(candidates, session, exchange).await?;
    if !is_known {
        if exchange.caller.is_none() {
            authenticate(route.authentication, session, exchange).await?;
        }
        let share = memory_share(exchange);
        if let RequestBody::Held(held) = &mut exchange.body {
            held.belongs_to(share)?;
        }
        // The name that led to this route may be one of the caller's own, who is known only now.
        if exchange.resolve_alias() {
            route = enter_for_model(candidates, session, exchange).await?;
        }
    }
    if let RequestBody::Held(held) = &exchange.body
        && u64::try_from(held.bytes.len()).unwrap_or(u64::MAX) > route.max_body
    {
        return Err(too_large(route.max_body, "this route accepts"));
    }
    check_access(route, true, session, exchange)?;
    check_operation(route, exchange)?;
    check_call(route, session, exchange)?;
    Ok(route)
}

/// Enters the route for the model that the request asks for, and its conversation.
async fn enter_for_model<'s>(
    candidates: &Candidates<'s>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<&'s Arc<Route>, End> {
    let mut found = by_body(candidates, session, exchange).await;
    if found.is_none() && exchange.caller.is_none() && exchange.snapshot.identity.has_aliases() {
        // No route has a model of this name, which may be a name of the caller's own.
        if candidates.routes().any(looks_for_caller) {
            authenticate(RouteAuthentication::Optional, session, exchange).await?;
        }
        if exchange.resolve_alias() {
            found = by_body(candidates, session, exchange).await;
        }
    }
    let folds = match found {
        Some(route) => route.folds_models,
        None => candidates.routes().any(|route| route.folds_models),
    };
    if folds && exchange.fold_model() {
        exchange.resolve_alias();
        // Servers of another kind on the route for that form would get the spelling, which is another name to them.
        found = by_body(candidates, session, exchange).await.filter(|route| route.folds_models);
    }
    let route = found.ok_or_else(|| {
        // The model is not at fault where the conversation met no condition.
        let model = exchange.asked.as_ref().and_then(|asked| asked.model.as_deref());
        let sent = exchange.model_sent().filter(|_| candidates.conditions(model).next().is_none());
        sent.map_or_else(|| no_route(session), |model| End::from(model_not_found(model, exchange.dialect)))
    })?;
    if !exchange.resolved.is_certain() {
        let head = session.req_header();
        exchange.resolve_as(rewritten::operation(&head.method, head.uri.path_and_query(), std::iter::once(route)));
    }
    check_path_model(route, session, exchange)?;
    if exchange.route.as_ref().is_none_or(|entered| !Arc::ptr_eq(entered, route)) {
        enter(route, looks_for_caller(route), session, exchange).await?;
    }
    Ok(route)
}

/// Puts the name of the model into the form in which names are compared, where a server of one of the routes reads two spellings as
/// one: servers of Ollama do so in the other APIs that they speak, too.
fn settle_name<'r>(mut routes: impl Iterator<Item = &'r Arc<Route>>, exchange: &mut Exchange) {
    let asked = exchange.asked.as_mut().filter(|asked| asked.naming != Naming::Path);
    let Some(name) = asked.and_then(|asked| asked.model.as_mut()) else { return };
    let bare = OLLAMA.bare_model(name);
    let speaks =
        |target: &Target| matches!(&target.kind, TargetKind::Backend(backend) if backend.dialect == Some(OLLAMA));
    // Few names have another spelling, so that the routes of most requests are not looked at.
    if bare.len() < name.len() && routes.any(|route| route.targets.iter().any(speaks)) {
        *name = bare.to_owned();
    }
}

/// Refuses a request whose path names another model by the filters of its route than by those of the first candidate, which
/// chose the route.
fn check_path_model(route: &Route, session: &ClientSession, exchange: &Exchange) -> Result<(), End> {
    let chosen_by = exchange.model_sent();
    match named_in_path(route, session, exchange) {
        Some(own) if own.model.as_deref() != chosen_by => {
            Err(model_not_found(own.model.as_deref().unwrap_or_default(), exchange.dialect).into())
        }
        _ => Ok(()),
    }
}

/// True if the body decides something on the only route that may take it: which models may be named, how many tokens are
/// reserved and for whom. Such a body must mean the same to every parser.
fn decides(route: &Route, exchange: &Exchange) -> bool {
    let caller = exchange.caller.as_ref();
    route.judges_body
        || caller.is_some_and(|caller| caller.judges_models() || caller.rules.iter().any(|rule| rule.counts_tokens()))
}

/// True unless no target of the route has the operation, and no rule asks for the body: such a request is refused unread.
fn is_body_needed(route: &Route, exchange: &Exchange) -> bool {
    route.judges_body || refused_by_targets(route, exchange.resolved).is_none()
}

/// Refuses a body whose declared length is over the route's limit; its real length is checked while it is streamed.
fn check_length(session: &ClientSession, route: &Route) -> Result<(), End> {
    match declared(session) {
        Some(length) if route.max_body < length => Err(too_large(route.max_body, "this route accepts")),
        _ => Ok(()),
    }
}

/// Length of the body that its head declares.
fn declared(session: &ClientSession) -> Option<u64> {
    session.get_header(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Refuses a caller that may not use the route as if the route did not exist: as an unknown model where the model decided the
/// route (`by_model`), else as an unknown path.
fn check_access(
    route: &Route,
    by_model: bool,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    if is_open_to(route, exchange) {
        return Ok(());
    }
    // Neither the shape of the error nor a header shows that the route exists.
    session.offer_compression(None);
    let head = session.req_header();
    exchange.resolve(&head.method, head.uri.path());
    exchange.route = None;
    exchange.ledger.release();
    exchange.ledger = Ledger::default();
    let model = exchange.model_sent().filter(|_| by_model);
    Err(model.map_or_else(|| no_route(session), |model| model_not_found(model, exchange.dialect).into()))
}

/// Refuses an operation that is not for this route and caller, by the head alone.
fn check_operation(route: &Route, exchange: &Exchange) -> Result<(), End> {
    refused_operation(route, exchange.resolved, exchange).map_or(Ok(()), |refusal| Err(refusal.into()))
}

/// Refuses a call of a caller that may use only some models, by the head alone: one whose path names another model to the
/// servers of the route, and one of which nobody here knows which model it is about. A server may find a model where the
/// gateway does not look, or show all of them.
fn check_call(route: &Route, session: &ClientSession, exchange: &Exchange) -> Result<(), End> {
    let Some(caller) = exchange.caller.as_ref().filter(|caller| caller.is_restricted()) else { return Ok(()) };
    let target = session.req_header().uri.path_and_query();
    match target.and_then(|target| rewritten::model_at_server(route, target)) {
        Some(named) if caller.may_use(Some(&named)) => Ok(()),
        Some(named) => Err(model_not_found(&named, exchange.dialect).into()),
        None if scope(route, session, exchange) == ModelScope::Unknown => Err(End::refuse(Refusal::new(
            StatusCode::FORBIDDEN,
            ErrorKind::Permission,
            "unknown_call",
            "this caller may use some models only, and the gateway does not know which model a call of this method and path is \
             about: `routes[].unknownCalls: pass` lets such calls through",
        ))),
        None => Ok(()),
    }
}

/// Models that a call of a restricted caller is about, as far as the route wants to know.
fn scope(route: &Route, session: &ClientSession, exchange: &Exchange) -> ModelScope {
    let resolved = exchange.resolved;
    let is_answered_here =
        is_models(route, resolved) || (resolved.operation == Operation::LoadedModels && lists_models(route));
    if !route.refuses_unknown_calls || is_answered_here {
        return ModelScope::None;
    }
    known_scope(route, session, exchange)
}

/// Models that a call is about, as far as the gateway knows.
fn known_scope(route: &Route, session: &ClientSession, exchange: &Exchange) -> ModelScope {
    let (resolved, head) = (exchange.resolved, session.req_header());
    let path = head.uri.path_and_query().map(|target| api_path(route, &head.method, target)).unwrap_or_default();
    let (method, query) = (&head.method, head.uri.query());
    match route.calls_models {
        // A path that other servers have too, for their pages.
        true if route.folds_models
            && !resolved.is_known()
            && OLLAMA.scope_of_other(method, &path) == ModelScope::None =>
        {
            ModelScope::None
        }
        true => resolved.scope_at_models(method, &path, query),
        false => resolved.scope(method, &path, query),
    }
}

/// Refuses a model that the body or the path names and the caller may not use. A name of the caller's own must be permitted,
/// and so must be the model that it stands for.
fn check_model(route: &Route, session: &ClientSession, exchange: &Exchange) -> Result<(), End> {
    let Some(caller) = exchange.caller.as_ref().filter(|caller| caller.judges_models()) else { return Ok(()) };
    let target = session.req_header().uri.path_and_query();
    let at_server = target.and_then(|target| rewritten::model_at_server(route, target));
    // The server reads this name in the path, where only that of a known operation is replaced.
    let is_replaced = exchange.asked.as_ref().is_some_and(|asked| asked.naming == Naming::Path);
    if let Some(named) = at_server.as_deref().filter(|named| caller.alias(named).is_some() && !is_replaced) {
        return Err(model_not_found(named, exchange.dialect).into());
    }
    let names_one = at_server.is_some() || exchange.asked.as_ref().is_some_and(|asked| asked.model.is_some());
    if caller.is_restricted() && !names_one && scope(route, session, exchange) == ModelScope::Named {
        // Where no target has the operation, its body was not read.
        if let Some(refusal) = refused_by_targets(route, exchange.resolved) {
            return Err(refusal.into());
        }
        return Err(model_not_found("", exchange.dialect).into());
    }
    let Some(asked) = &exchange.asked else { return Ok(()) };
    // A call that names its model is refused without a readable one too: a server may find one in it.
    let must_name = || exchange.dialect != PROBLEM && known_scope(route, session, exchange) == ModelScope::Named;
    if !exchange.may_use_asked() && (asked.model.is_some() || must_name()) {
        return Err(model_not_found(asked.sent().unwrap_or_default(), exchange.dialect).into());
    }
    Ok(())
}
