//! Parts of a copy of a request, for a mirror or the candidate of a shadow: what it takes of the request, and its endpoint.

use std::sync::Arc;

use super::affinity;
use super::trying::copy_attempt;
use crate::admission::{Order, TargetSelection};
use crate::balancing::Endpoint;
use crate::clock::now_millis;
use crate::downstream::ClientSession;
use crate::exchange::{BodyShare, Exchange, RequestBody};
use crate::gateway::Gateway;
use crate::queueing::WakingSlot;
use crate::topology::{Backend, Route};
use crate::upstream::{Cut, Ready};

/// Copy as it is sent, with its slot at an endpoint.
pub(super) struct Placed {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) ready: Ready,
    pub(super) slot: WakingSlot,
}

/// Length in bytes of the body that a copy would have; `None` for one that is not held.
pub(super) fn length(session: &ClientSession, exchange: &Exchange) -> Option<u64> {
    match &exchange.body {
        RequestBody::Held(held) => Some(u64::try_from(held.bytes.len()).unwrap_or(u64::MAX)),
        RequestBody::Unread => session.is_body_empty().then_some(0),
    }
}

/// Share of the memory for bodies, for a copy that keeps it.
pub(super) fn share(exchange: &Exchange) -> Option<Arc<BodyShare>> {
    match &exchange.body {
        RequestBody::Held(held) => held.share.clone(),
        RequestBody::Unread => None,
    }
}

/// Writes a copy for an endpoint of a backend that has room now, with the body in `cut` if that is another one; `None` where none
/// has room.
pub(super) fn place(
    gateway: &Gateway,
    route: &Route,
    backend: &Backend,
    cut: Option<Cut>,
    session: &mut ClientSession,
    exchange: &Exchange,
) -> Option<Placed> {
    let mut selection = TargetSelection::new(Order::default());
    let key = affinity::key(backend, session, exchange);
    let (endpoint, slot) = selection.admit_at(backend, now_millis(), rand::random(), key)?;
    let mut attempt = copy_attempt(gateway, route, backend, endpoint.clone(), &slot);
    attempt.cut = cut.map(Arc::new);
    let ready = Ready::copy(&attempt, session, exchange)?;
    Some(Placed { endpoint, ready, slot })
}
