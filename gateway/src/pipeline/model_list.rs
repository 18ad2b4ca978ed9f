//! The list of models, one of them, and those that are loaded: answered by the gateway itself, whichever route the request takes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use bytes::Bytes;
use http::{StatusCode, header};
use spillway_config::path;
use spillway_config::schema::RouteAuthentication;
use spillway_filter::{ErrorKind, Refusal};

use super::access::is_open_to;
use super::answers::{is_models, lists_models, send};
use super::rewritten::api_path;
use super::target::host_of;
use crate::balancing::ServedModels;
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange};
use crate::identity::Consumer;
use crate::message::ResponseHead;
use crate::protocol::{BuiltinCard, ModelCard, ModelPath, OLLAMA, Operation, model_not_found};
use crate::snapshot::Snapshot;
use crate::topology::{Backend, ListedModel, Route, TargetKind};

/// Routes for the host of a request whose models its caller may see.
struct Visible<'s> {
    /// The route of the request, then the others that the caller may use.
    usable: Vec<&'s Arc<Route>>,
    /// Routes that the caller may not use. A model that they take is not for it, whichever server has it.
    closed: Vec<&'s Arc<Route>>,
}

impl<'s> Visible<'s> {
    fn new(route: &'s Arc<Route>, snapshot: &'s Snapshot, session: &ClientSession, exchange: &Exchange) -> Self {
        let is_usable = |route: &Arc<Route>| {
            let is_known = exchange.caller.is_some() || route.authentication != RouteAuthentication::Required;
            is_known && is_open_to(route, exchange)
        };
        let others = snapshot.routes.beside(route, host_of(session.req_header())).into_iter();
        let (mut usable, closed): (Vec<_>, Vec<_>) = others.partition(|route| is_usable(route));
        usable.retain(|other| lists_models(other) && !Arc::ptr_eq(other, route));
        usable.insert(0, route);
        Self { usable, closed }
    }

    /// Models that servers of the routes said they have, each list with its backend and route.
    fn served(&self) -> Vec<(&'s Route, &'s Backend, Arc<ServedModels>)> {
        let mut all = Vec::new();
        for route in &self.usable {
            for target in &route.targets {
                if let TargetKind::Backend(backend) = &target.kind {
                    all.extend(backend.served_models().into_iter().map(|models| (&***route, &**backend, models)));
                }
            }
        }
        all
    }

    /// True if a route that the caller may not use is made for the model.
    fn is_closed(&self, name: &str) -> bool {
        self.closed.iter().any(|route| route.matched_models.is_some() && route.takes_model(name))
    }
}

/// Models that are loaded, out of those that the caller may use: answered by the gateway for callers that may not use each model
/// behind the route, of whose servers it shows nothing. `None` for other callers, who get the list of a server.
fn loaded(visible: &Visible<'_>, exchange: &Exchange) -> Option<Bytes> {
    let caller = exchange.caller.as_deref();
    let is_limited = caller.is_some_and(Consumer::is_restricted)
        || visible.closed.iter().any(|route| route.matched_models.is_some());
    if !is_limited {
        return None;
    }
    let may_use = |name: &str| caller.is_none_or(|caller| caller.may_use(Some(name))) && !visible.is_closed(name);
    let mut cards: Vec<BuiltinCard<'_>> = Vec::new();
    for target in visible.usable.iter().flat_map(|route| &route.targets) {
        if let TargetKind::Model(model) = &target.kind
            && may_use(model.name())
            && !cards.iter().any(|card| card.id == model.name())
        {
            cards.push(model.card());
        }
    }
    exchange.resolved.dialect.loaded_models(&cards.iter().collect::<Vec<_>>())
}

/// Models that the caller may use: those that the file names, those that servers named, then the caller's own names for models.
/// A model that the caller may not name does not exist for it.
fn listed<'a>(
    visible: &'a Visible<'_>,
    served: &'a [(&Route, &Backend, Arc<ServedModels>)],
    caller: Option<&'a Consumer>,
) -> Vec<ModelCard<'a>> {
    let (mut cards, mut created) = (Vec::new(), HashMap::new());
    let may_use = |name: &str| caller.is_none_or(|caller| caller.may_use(Some(name)));
    let is_alias = |name: &str| caller.is_some_and(|caller| caller.alias(name).is_some());
    // A route that is made for some models takes them itself.
    let in_file = visible.usable.iter().flat_map(|route| {
        let cards = route.listed_models.iter().map(ListedModel::card);
        cards.filter(|card| route.matched_models.is_some() || !visible.is_closed(card.id))
    });
    let in_file = in_file.filter(|card| may_use(card.id));
    let by_servers = served.iter().flat_map(|(route, backend, models)| {
        let is_ollama = backend.dialect == Some(OLLAMA);
        let models = models.iter().filter(move |(name, _)| {
            let asked = if is_ollama { Cow::Owned(OLLAMA.folded_model(name)) } else { Cow::Borrowed(&**name) };
            let may_use =
                may_use(&asked) || (is_ollama && caller.is_some_and(|caller| caller.may_use_folded(Some(&asked))));
            may_use && backend.serves(&asked) && route.takes_model(&asked) && !visible.is_closed(&asked)
        });
        models.map(|(name, created)| ModelCard { id: name, created: *created })
    });
    for card in in_file.chain(by_servers) {
        // An alias hides a model of its name.
        if let Entry::Vacant(new) = created.entry(card.id) {
            new.insert(card.created);
            if !is_alias(card.id) {
                cards.push(card);
            }
        }
    }
    let answers = |name: &str| visible.usable.iter().any(|route| !route.answerers(Some(name), |_| false).is_empty());
    let mut aliases: Vec<_> = caller.into_iter().flat_map(Consumer::aliases).collect();
    aliases.sort_unstable_by_key(|(name, _)| *name);
    for (name, alias) in aliases {
        let known = created.get(&*alias.served).copied();
        // Without a card, a closed route may take the model.
        let is_open = known.is_some() || (answers(&alias.served) && !visible.is_closed(&alias.served));
        if may_use(name) && may_use(&alias.served) && is_open {
            cards.push(ModelCard { id: name, created: known.unwrap_or_default() });
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
    if exchange.resolved.operation == Operation::LoadedModels && lists_models(route) {
        let snapshot = exchange.snapshot.clone();
        let body = loaded(&Visible::new(route, &snapshot, session, exchange), exchange);
        return match body {
            Some(body) => answer(body, session, exchange).await.map(|()| true),
            None => Ok(false),
        };
    }
    if !is_models(route, exchange.resolved) {
        return Ok(false);
    }
    let dialect = exchange.resolved.dialect;
    let snapshot = exchange.snapshot.clone();
    let caller = exchange.caller.clone();
    let visible = Visible::new(route, &snapshot, session, exchange);
    let served = visible.served();
    let cards = listed(&visible, &served, caller.as_deref());
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
    answer(body, session, exchange).await.map(|()| true)
}

/// Sends a list, or a part of one.
async fn answer(body: Bytes, session: &mut ClientSession, exchange: &mut Exchange) -> Result<(), End> {
    let mut head = ResponseHead::new(StatusCode::OK, 4);
    let _ = head.insert_header(header::CONTENT_TYPE, "application/json");
    send(session, exchange, head, body).await.map_err(|_| End::ClientGone)
}
