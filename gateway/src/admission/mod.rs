//! Choice of the target for a request. The order of the targets is drawn first, by priority, weights and stickiness. Then an
//! endpoint and its slot are acquired in one step, if an endpoint is available and has room.
//!
//! The room opens no connection and never waits. Inputs are the route, the endpoints that were tried, and the clock; the
//! same inputs give the same result.

mod draw;

use std::sync::Arc;
use std::time::Duration;

pub use draw::Order;
use smallvec::SmallVec;

use crate::balancing::{Endpoint, EndpointState, PickInputs};
use crate::builtin::LoadedModel;
use crate::queueing::{Pending, Queue, WakingSlot};
use crate::topology::{Backend, Route, Target, TargetKind};

/// Most answers that mean full after which a request moves on to another endpoint: a backend that is full at three
/// endpoints is most likely full.
const MAX_MOVES: u32 = 3;

/// Targets of one request: their order, and those that were tried.
pub struct TargetSelection {
    order: Order,
    /// Endpoints that had the request.
    tried: Vec<Arc<EndpointState>>,
    /// Indices of targets that are closed for this request: built-in models that had no room.
    closed: Vec<usize>,
    moves: u32,
}

/// Result of an admission.
pub enum Admission<'a> {
    /// An endpoint and a slot at it.
    Endpoint {
        /// Index of the target in the route.
        target: usize,
        /// The backend.
        backend: &'a Arc<Backend>,
        /// The endpoint.
        endpoint: Arc<Endpoint>,
        /// Slot of the request.
        slot: WakingSlot,
    },
    /// A built-in model that is a target of the route. The model itself reports whether it has room.
    Model {
        /// Index of the target in the route.
        target: usize,
        /// The model.
        model: &'a Arc<LoadedModel>,
    },
    /// Endpoints are available, none has room.
    Saturated,
    /// No endpoint is available.
    Unavailable,
}

impl TargetSelection {
    /// Selection among the targets in the order that was drawn.
    pub fn new(order: Order) -> Self {
        Self { order, tried: Vec::new(), closed: Vec::new(), moves: 0 }
    }

    /// Counts a move away from an endpoint that is full. False if the request has moved too often.
    pub fn move_on(&mut self) -> bool {
        self.moves += 1;
        self.moves <= MAX_MOVES
    }

    /// Closes a target whose built-in model had no room.
    pub fn close(&mut self, target: usize) {
        self.closed.push(target);
    }

    /// Excludes a target that cannot take the request, as if the route did not have it: its weight is that of the others,
    /// and the request neither goes there nor waits for it.
    pub fn exclude(&mut self, target: usize) {
        self.order.remove(target);
    }

    /// Number of targets that were not excluded.
    pub fn len(&self) -> usize {
        self.order.indices().len()
    }

    /// True if every target was excluded.
    pub fn is_empty(&self) -> bool {
        self.order.indices().is_empty()
    }

    /// Backends to which the request may go, each with the index of its target.
    pub fn backends<'a>(&self, route: &'a Route) -> impl Iterator<Item = (usize, &'a Arc<Backend>)> {
        self.targets(route).filter_map(|(index, target)| match &target.kind {
            TargetKind::Model(_) => None,
            TargetKind::Backend(backend) => Some((index, backend)),
        })
    }

    /// True if a target of the request is available.
    pub fn is_available(&self, route: &Route) -> bool {
        self.order.indices().iter().any(|index| route.targets.get(*index).is_some_and(Target::is_available))
    }

    /// Queue in which the request waits for a slot: that of the route, or that of its target where requests stay with the
    /// target that was drawn.
    pub fn queue<'a>(&self, route: &'a Route) -> Option<&'a Arc<Queue>> {
        match route.queues.as_slice() {
            [one] => Some(one),
            several => several.get(*self.order.indices().first()?),
        }
    }

    /// Targets of the request in their order: of each priority all, or only the one that was drawn.
    fn targets<'a>(&self, route: &'a Route) -> impl Iterator<Item = (usize, &'a Target)> {
        let mut drawn = None;
        self.order.indices().iter().filter_map(|index| Some((*index, route.targets.get(*index)?))).filter(
            move |(_, target)| {
                let first_of_its_priority = drawn.replace(target.priority) != Some(target.priority);
                first_of_its_priority || route.try_others
            },
        )
    }

    /// Counts the request as a waiter of its backends, as far as their limits allow; `None` if none allows it.
    pub fn wait(&self, route: &Route) -> Option<SmallVec<[Pending; 2]>> {
        let pending: SmallVec<_> =
            self.backends(route).filter_map(|(_, backend)| backend.room.wait(backend.max_pending)).collect();
        (!pending.is_empty()).then_some(pending)
    }

    /// True if an endpoint of a target seems to have room, tried before or not.
    pub fn has_room(&self, route: &Route, now: u64) -> bool {
        self.backends(route).any(|(_, backend)| backend.balancer.has_room(now))
    }

    /// Announces the slots that are left to waiters of any route.
    pub fn offer_rest(&self, route: &Route, now: u64) {
        for (_, backend) in self.backends(route) {
            if backend.balancer.has_room(now) {
                backend.room.freed();
            }
        }
    }

    /// Time until an endpoint may have room again without the release of a slot, if that can be.
    pub fn next_change(&self, route: &Route, now: u64) -> Option<Duration> {
        self.backends(route).filter_map(|(_, backend)| backend.balancer.next_change(now)).min()
    }

    /// Chooses a target for the request. `again` allows endpoints that were tried before, for a retry that has no other.
    /// `key` returns the affinity key of the request for a backend.
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
        for (index, target) in self.targets(route) {
            match &target.kind {
                TargetKind::Model(model) => {
                    if !self.closed.contains(&index) {
                        return Admission::Model { target: index, model };
                    }
                }
                TargetKind::Backend(backend) => {
                    if let Some((endpoint, slot)) = self.pick(backend, now, random, key(backend), again) {
                        found = Some((index, backend, endpoint, slot));
                        break;
                    }
                }
            }
        }
        match found {
            Some((target, backend, endpoint, slot)) => {
                self.tried.push(endpoint.state.clone());
                Admission::Endpoint { target, backend, endpoint, slot }
            }
            None if available => Admission::Saturated,
            None => Admission::Unavailable,
        }
    }

    /// Acquires a slot at a backend that is no target of the route, such as one that requests spill to.
    pub fn admit_at(
        &mut self,
        backend: &Backend,
        now: u64,
        random: u64,
        key: Option<u64>,
    ) -> Option<(Arc<Endpoint>, WakingSlot)> {
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
    ) -> Option<(Arc<Endpoint>, WakingSlot)> {
        let tried = if again { &[][..] } else { &self.tried };
        let picked = backend.balancer.take(&PickInputs { now, random, key, tried })?;
        Some((picked.endpoint, WakingSlot::new(picked.slot, &backend.room)))
    }
}
