//! Who takes a request: the order of the targets (weights, stickiness), then an endpoint with room and its slot, else
//! that there is no room or nobody there. It opens no connection and waits for nothing.
//! Its inputs are the route, what was tried before, and the clock; the same inputs give the same answer.

mod draw;

use std::sync::Arc;

pub use draw::Order;

use crate::balancing::{Endpoint, PickContext, Slot};
use crate::snapshot::{Backend, Route, TargetKind};
use crate::spill::LoadedModel;

/// Most answers that mean full after which a request still moves on to another endpoint.
const MAX_MOVES: u32 = 3;

/// Where a request has been and may still go.
pub struct Journey {
    order: Order,
    /// Endpoints that were tried, by (target, place).
    tried: Vec<(usize, usize)>,
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
        endpoint: &'a Arc<Endpoint>,
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
    pub fn admit<'a>(&mut self, route: &'a Route, now: u64, random: u64, again: bool) -> Admission<'a> {
        let mut available = false;
        for rank in 0..self.order.places().len() {
            let Some(place) = self.order.places().get(rank).copied() else { break };
            let Some(target) = route.targets.get(place) else { continue };
            available |= target.is_available();
            if rank > 0 && !route.try_others {
                continue;
            }
            match &target.kind {
                TargetKind::Model(model) => {
                    if !self.closed.contains(&place) {
                        return Admission::Model { target: place, model };
                    }
                }
                TargetKind::Backend(backend) => {
                    if let Some((at, endpoint, slot)) = self.pick(place, backend, now, random, again) {
                        self.tried.push((place, at));
                        return Admission::Endpoint { backend, endpoint, slot };
                    }
                }
            }
        }
        if available { Admission::Saturated } else { Admission::Unavailable }
    }

    fn pick<'a>(
        &self,
        target: usize,
        backend: &'a Backend,
        now: u64,
        random: u64,
        again: bool,
    ) -> Option<(usize, &'a Arc<Endpoint>, Slot)> {
        let mut lost: Vec<usize> = Vec::new();
        loop {
            let eligible = |place: usize, endpoint: &Endpoint| {
                endpoint.is_available()
                    && endpoint.has_room(now)
                    && !lost.contains(&place)
                    && (again || !self.tried.contains(&(target, place)))
            };
            let place = backend.policy.pick(&backend.endpoints, &PickContext { eligible: &eligible, random })?;
            let endpoint = backend.endpoints.get(place)?;
            // Another request may have taken the last slot since: then the policy is asked again without it.
            match endpoint.state.try_acquire(endpoint.max_in_flight) {
                Some(slot) => return Some((place, endpoint, slot)),
                None => lost.push(place),
            }
        }
    }
}
