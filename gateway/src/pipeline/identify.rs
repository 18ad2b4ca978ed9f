//! Steps 2 and 3: filters that need no caller, then the caller. Both run before a byte of the body is read where the head
//! decides the route; where the model in the body decides it, step 4 runs them for the route that it finds.

use std::sync::Arc;

use spillway_config::schema::RouteAuthentication;

use super::{batch_lines, limiting};
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange, Observers, RouteInFlight};
use crate::protocol::PROBLEM;
use crate::routing::Candidates;
use crate::topology::Route;

/// Runs the filters that need no caller, where the head decides the route.
pub(super) async fn guard(
    candidates: &Candidates<'_>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    match candidates.only() {
        Some(route) => enter(route, looks_for_caller(route), session, exchange).await,
        None => Ok(()),
    }
}

/// Identifies the caller, where the head decides the route or every candidate wants a caller: nobody unknown gets a byte
/// of the body read then.
pub(super) async fn identify(
    candidates: &Candidates<'_>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    match candidates.only() {
        Some(route) => authenticate(route.authentication, session, exchange).await,
        None if candidates.all_require_caller() => authenticate(RouteAuthentication::Required, session, exchange).await,
        None => Ok(()),
    }
}

/// True if the route identifies its callers, those that must be known or only those that can be.
pub(super) fn looks_for_caller(route: &Arc<Route>) -> bool {
    route.authentication != RouteAuthentication::None
}

/// Enters a route and runs its filters that need no caller. Where they refuse a request whose caller would have been
/// identified (`would_identify`), a bad key in it counts as a guess all the same.
pub(super) async fn enter(
    route: &Arc<Route>,
    would_identify: bool,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    exchange.running = Some(RouteInFlight::enter(&route.metrics));
    if route.calls_models && exchange.resolved.is_shared() {
        exchange.resolve_as(exchange.resolved.on_models());
    }
    // A path that belongs to an API says in which one its caller reads errors.
    if route.calls_models && exchange.resolved.dialect == PROBLEM {
        exchange.dialect = route.dialect;
    }
    // Observers of a route that does not take the request after all are dropped.
    exchange.observers = Observers::default();
    exchange.route = Some(route.clone());
    let offer = route.compression.as_ref().map(|compression| compression.offer(session.req_header()));
    session.offer_compression(offer);
    let passed = limiting::guards(route, session, exchange).await;
    if let Err(End::Refuse(_)) = &passed
        && exchange.caller.is_none()
        && would_identify
    {
        let now = crate::clock::unix_now();
        exchange.snapshot.identity.note_guess(&session.req_header().headers, exchange.client, now);
    }
    passed
}

/// Identifies the caller as the route wants it: by the certificate of its connection, else by a key or token.
pub(super) async fn authenticate(
    mode: RouteAuthentication,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    if exchange.line.is_some() {
        return batch_lines::identify(mode, exchange);
    }
    let snapshot = exchange.snapshot.clone();
    let now = crate::clock::unix_now();
    if mode != RouteAuthentication::None
        && let Some(certificate) = &exchange.certificate
        && let Some(known) =
            snapshot.identity.identify_by_certificate(&session.req_header().headers, exchange.client, certificate)
    {
        return match known {
            Ok((consumer, credential)) => {
                exchange.caller = Some(consumer);
                exchange.credential = Some(credential);
                Ok(())
            }
            Err(unidentified) => {
                exchange.authentication_failed = Some(unidentified.reason);
                Err((*unidentified.refusal).into())
            }
        };
    }
    match snapshot.identity.identify(&session.req_header().headers, exchange.client, now, mode).await {
        Ok(identity) => {
            if let Some(identity) = identity {
                exchange.caller = Some(identity.consumer);
                exchange.identified_by = Some(identity.header);
                exchange.credential = Some(identity.credential);
                exchange.token = identity.token;
            }
            Ok(())
        }
        Err(unidentified) => {
            exchange.authentication_failed = Some(unidentified.reason);
            Err((*unidentified.refusal).into())
        }
    }
}
