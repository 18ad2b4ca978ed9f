//! Who takes a request: the order of the targets (weights, stickiness), then an endpoint with room and its slot, else
//! that there is no room or nobody there. It opens no connection and waits for nothing.
//! Its inputs are the route, what was tried before, and the clock; the same inputs give the same answer.

mod draw;

use std::sync::Arc;

pub use draw::Order;

use crate::balancing::{Ask, Endpoint, EndpointState, Slot, Taken};
use crate::snapshot::{Backend, Route, TargetKind};
use crate::spill::LoadedModel;

/// Most answers that mean full after which a request still moves on to another endpoint.
const MAX_MOVES: u32 = 3;

/// Where a request has been and may still go.
pub struct Journey {
    order: Order,
    /// Endpoints that were tried.
    tried: Vec<Arc<EndpointState>>,
    /// Targets that are closed for this request: models that had no room.
    closed: Vec<usize>,
    moves: u32,
}

/// What admission says.
pub enum Admission<'a> {
    /// An endpoint, with a slot taken.
    Endpoint {
        /// The backend.
        backend: &'a Arc<Backend>,
        /// The endpoint.
        endpoint: Arc<Endpoint>,
        /// Its slot.
        slot: Slot,
    },
    /// A model inside that is a target of the route; whether it has room it says itself.
    Model {
        /// Place of the target.
        target: usize,
        /// The model.
        model: &'a Arc<LoadedModel>,
    },
    /// Endpoints are there, none has room.
    Saturated,
    /// No endpoint may have traffic.
    Unavailable,
}

impl Journey {
    /// Begins with the targets in the order that was drawn.
    pub fn new(order: Order) -> Self {
        Self { order, tried: Vec::new(), closed: Vec::new(), moves: 0 }
    }

    /// Notes that the last endpoint said full. False when the request has moved often enough.
    pub fn move_on(&mut self) -> bool {
        self.moves += 1;
        self.moves <= MAX_MOVES
    }

    /// Closes a target whose model had no room.
    pub fn close(&mut self, target: usize) {
        self.closed.push(target);
    }

    /// Finds who takes the request. `again` allows endpoints that were tried before, for a retry that has no other.
    /// `key` gives what keeps the request on its endpoint, for backends that ask for it.
    pub fn admit<'a>(
        &mut self,
        route: &'a Route,
        now: u64,
        random: u64,
        again: bool,
        key: &dyn Fn(&Backend) -> Option<u64>,
    ) -> Admission<'a> {
        let mut available = false;
        let mut priority = None;
        for rank in 0..self.order.places().len() {
            let Some(place) = self.order.places().get(rank).copied() else { break };
            let Some(target) = route.targets.get(place) else { continue };
            available |= target.is_available();
            let is_first = priority != Some(target.priority);
            priority = Some(target.priority);
            // The others of a priority are tried only where the route says so; the next priority always is.
            if !is_first && !route.try_others {
                continue;
            }
            match &target.kind {
                TargetKind::Model(model) => {
                    if !self.closed.contains(&place) {
                        return Admission::Model { target: place, model };
                    }
                }
                TargetKind::Backend(backend) => {
                    let tried = if again { &[][..] } else { &self.tried };
                    let ask = Ask { now, random, key: key(backend), tried };
                    if let Some(Taken { endpoint, slot }) = backend.balancer.take(&ask) {
                        self.tried.push(endpoint.state.clone());
                        return Admission::Endpoint { backend, endpoint, slot };
                    }
                }
            }
        }
        if available { Admission::Saturated } else { Admission::Unavailable }
    }
}
