//! Who takes a request: the order of the targets (priority, weights, stickiness), then an endpoint with room and its
//! slot, else that there is no room or nobody there. It opens no connection and never waits.
//! Its inputs are the route, what was tried before, and the clock; the same inputs give the same answer.

mod draw;

use std::sync::Arc;
use std::time::Duration;

pub use draw::Order;
use smallvec::SmallVec;

use crate::balancing::{Ask, Endpoint, EndpointState};
use crate::builtin::LoadedModel;
use crate::queueing::{Pending, Queue, Taken};
use crate::topology::{Backend, Route, Target, TargetKind};

/// Most answers that mean full after which a request still moves on to another endpoint.
const MAX_MOVES: u32 = 3;

/// Where a request has been and may still go.
pub struct TargetSelection {
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
        slot: Taken,
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

impl TargetSelection {
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

    /// Whether anything that the request may go to can have traffic at all.
    pub fn is_available(&self, route: &Route) -> bool {
        self.order.places().iter().any(|place| route.targets.get(*place).is_some_and(Target::is_available))
    }

    /// The queue in which the request waits when there is no room: the route's, or its own target's where requests stay
    /// with the target that was drawn.
    pub fn queue<'a>(&self, route: &'a Route) -> Option<&'a Arc<Queue>> {
        match route.queues.as_slice() {
            [one] => Some(one),
            several => several.get(*self.order.places().first()?),
        }
    }

    /// The targets that the request may go to, in their order: of each priority all, or only the drawn one.
    fn targets<'a>(&self, route: &'a Route) -> impl Iterator<Item = (usize, &'a Target)> {
        let mut drawn = None;
        self.order.places().iter().filter_map(|place| Some((*place, route.targets.get(*place)?))).filter(
            move |(_, target)| {
                let first_of_its_priority = drawn.replace(target.priority) != Some(target.priority);
                first_of_its_priority || route.try_others
            },
        )
    }

    /// Counts the request among those who wait for the backends that it may go to, as far as those let it; `None` where none
    /// does.
    pub fn wait(&self, route: &Route) -> Option<SmallVec<[Pending; 2]>> {
        let backends = self.targets(route).filter_map(|(_, target)| match &target.kind {
            TargetKind::Model(_) => None,
            TargetKind::Backend(backend) => Some(backend),
        });
        let pending: SmallVec<_> = backends.filter_map(|backend| backend.room.wait(backend.max_pending)).collect();
        (!pending.is_empty()).then_some(pending)
    }

    /// Whether an endpoint that the request may go to seems to have room, tried before or not.
    pub fn has_room(&self, route: &Route, now: u64) -> bool {
        self.targets(route).any(|(_, target)| match &target.kind {
            TargetKind::Model(_) => false,
            TargetKind::Backend(backend) => backend.balancer.has_room(now),
        })
    }

    /// Offers the room that is left to those who wait for it, of any route.
    pub fn offer_rest(&self, route: &Route, now: u64) {
        for (_, target) in self.targets(route) {
            if let TargetKind::Backend(backend) = &target.kind
                && backend.balancer.has_room(now)
            {
                backend.room.freed();
            }
        }
    }

    /// How long until an endpoint that has no room may have some without a slot being given back, if that can be.
    pub fn next_change(&self, route: &Route, now: u64) -> Option<Duration> {
        self.targets(route)
            .filter_map(|(_, target)| match &target.kind {
                TargetKind::Model(_) => None,
                TargetKind::Backend(backend) => Some(backend),
            })
            .filter_map(|backend| backend.balancer.next_change(now))
            .min()
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
        let available = self.is_available(route);
        let mut found = None;
        for (place, target) in self.targets(route) {
            match &target.kind {
                TargetKind::Model(model) => {
                    if !self.closed.contains(&place) {
                        return Admission::Model { target: place, model };
                    }
                }
                TargetKind::Backend(backend) => {
                    if let Some((endpoint, slot)) = self.pick(backend, now, random, key(backend), again) {
                        found = Some((backend, endpoint, slot));
                        break;
                    }
                }
            }
        }
        match found {
            Some((backend, endpoint, slot)) => {
                self.tried.push(endpoint.state.clone());
                Admission::Endpoint { backend, endpoint, slot }
            }
            None if available => Admission::Saturated,
            None => Admission::Unavailable,
        }
    }

    /// Takes a slot at a backend that is no target of the route, such as one that requests spill to.
    pub fn admit_at(
        &mut self,
        backend: &Backend,
        now: u64,
        random: u64,
        key: Option<u64>,
    ) -> Option<(Arc<Endpoint>, Taken)> {
        let (endpoint, slot) = self.pick(backend, now, random, key, false)?;
        self.tried.push(endpoint.state.clone());
        Some((endpoint, slot))
    }

    fn pick(
        &self,
        backend: &Backend,
        now: u64,
        random: u64,
        key: Option<u64>,
        again: bool,
    ) -> Option<(Arc<Endpoint>, Taken)> {
        let tried = if again { &[][..] } else { &self.tried };
        let picked = backend.balancer.take(&Ask { now, random, key, tried })?;
        Some((picked.endpoint, Taken::new(picked.slot, &backend.room)))
    }
}
