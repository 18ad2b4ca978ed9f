//! The list of models, and one of them: answered by the gateway itself, whichever route the request takes.

use std::collections::HashSet;
use std::sync::Arc;

use http::{StatusCode, header};
use spillway_config::path;
use spillway_config::schema::RouteAuthentication;
use spillway_filter::{ErrorKind, Refusal};

use super::access::is_open_to;
use super::answers::{is_models, lists_models, send};
use super::rewritten::api_path;
use super::target::host_of;
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange};
use crate::message::ResponseHead;
use crate::protocol::{ModelCard, ModelPath, model_not_found};
use crate::snapshot::Snapshot;
use crate::topology::{ListedModel, Route};

/// Models of all routes for this host that the caller may use, those of `route` first. A model that the caller may not name
/// does not exist for it.
fn listed<'s>(
    route: &'s Arc<Route>,
    snapshot: &'s Snapshot,
    session: &ClientSession,
    exchange: &Exchange,
) -> Vec<ModelCard<'s>> {
    let caller = exchange.caller.as_ref();
    let is_usable = |route: &&Arc<Route>| {
        let is_known = caller.is_some() || route.authentication != RouteAuthentication::Required;
        lists_models(route) && is_known && is_open_to(route, exchange)
    };
    let (mut cards, mut known) = (Vec::new(), HashSet::new());
    let others = snapshot.routes.of_host(host_of(session.req_header())).into_iter().filter(is_usable);
    for card in std::iter::once(route).chain(others).flat_map(|route| &route.listed_models).map(ListedModel::card) {
        if caller.is_none_or(|caller| caller.may_use(Some(card.id))) && known.insert(card.id) {
            cards.push(card);
        }
    }
    cards
}

/// Answers a request for the models that the caller may use, or for one of them. False when it is neither.
pub(super) async fn models(
    route: &Arc<Route>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<bool, End> {
    if !is_models(route, exchange.resolved) {
        return Ok(false);
    }
    let dialect = exchange.resolved.dialect;
    let snapshot = exchange.snapshot.clone();
    let cards = listed(route, &snapshot, session, exchange);
    let head = session.req_header();
    let path = head.uri.path_and_query().map(|target| api_path(route, &head.method, target)).unwrap_or_default();
    let body = match dialect.model_path(&path) {
        ModelPath::List => dialect.model_list(&cards),
        ModelPath::One(escaped) => {
            // Decoded once: no other server reads it.
            let id: Vec<u8> = path::decoded(escaped).into_iter().map(|(byte, _)| byte).collect();
            let id = String::from_utf8_lossy(&id);
            match cards.into_iter().find(|card| card.id == id) {
                Some(card) => dialect.model(card),
                None => return Err(model_not_found(&id, dialect).into()),
            }
        }
        ModelPath::Neither => None,
    };
    let Some(body) = body else {
        return Err(End::refuse(Refusal::new(
            StatusCode::NOT_FOUND,
            ErrorKind::NotFound,
            "not_found",
            "there is only /v1/models and /v1/models/ID here",
        )));
    };
    let mut answer = ResponseHead::new(StatusCode::OK, 4);
    let _ = answer.insert_header(header::CONTENT_TYPE, "application/json");
    send(session, exchange, answer, body).await.map_err(|_| End::ClientGone)?;
    Ok(true)
}
