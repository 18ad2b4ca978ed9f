//! Choice of the target for a request. The order of the targets is drawn first, by priority, weights and stickiness. Then an
//! endpoint and its slot are acquired in one step, if an endpoint is available and has room.
//!
//! The room opens no connection and never waits. Inputs are the route, the endpoints that were tried, and the clock; the
//! same inputs give the same result.

mod draw;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use draw::{Assigned, Order};
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
    /// Candidate of the rollout whose versions do not take each other's overflow; `None` without one, and for a request
    /// whose version failed or is not available.
    candidate: Option<usize>,
    /// True if the request left its version because that was not available.
    has_left: bool,
    /// Addresses of the only endpoints that may have the request, as a filter has picked them.
    picked: Option<Arc<[SocketAddr]>>,
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
    /// Selection of those endpoints alone that a filter has picked, if it has.
    #[must_use]
    pub fn among(self, picked: Option<Arc<[SocketAddr]>>) -> Self {
        Self { picked, ..self }
    }

    /// Selection among the targets in the order that was drawn.
    pub fn new(order: Order) -> Self {
        Self { order, tried: Vec::new(), closed: Vec::new(), moves: 0, candidate: None, has_left: false, picked: None }
    }

    /// Keeps the request at the version of a rollout that comes first, as long as that is available.
    pub fn keep_version(&mut self, candidate: usize) {
        self.candidate = Some(candidate);
    }

    /// Lets a request at which the candidate of a rollout failed go to the stable version, once. False where it is not at the
    /// candidate, or nothing of the stable version is available. One at which the stable version failed stays there, with its
    /// other endpoints: failures must not give a candidate more than its share.
    pub fn leave_candidate(&mut self, route: &Route) -> bool {
        self.candidate.is_some() && self.order.indices().first().copied() == self.candidate && self.leave_version(route)
    }

    /// Lets a request go to the other version, once. False where it may not, or nothing of the other version is available.
    fn leave_version(&mut self, route: &Route) -> bool {
        let Some(candidate) = self.candidate else { return false };
        let own = self.order.indices().first().map(|first| *first == candidate);
        let is_other = |index: &&usize| Some(**index == candidate) != own;
        let has_other = self
            .order
            .indices()
            .iter()
            .filter(is_other)
            .any(|index| route.targets.get(*index).is_some_and(Target::is_available));
        let has_changed = has_other && self.order.change_version(candidate);
        if has_changed {
            self.candidate = None;
        }
        has_changed
    }

    /// True if the request left its version because that was not available.
    pub fn has_left_version(&self) -> bool {
        self.has_left
    }

    /// Lets the request go to the other version of a rollout where its own is not available any more.
    fn leave_unavailable(&mut self, route: &Route) {
        let Some(candidate) = self.candidate else { return };
        let first = self.order.indices().first().copied();
        let is_own = |index: &&usize| first.is_some_and(|first| (first == candidate) == (**index == candidate));
        let is_available = |index: &usize| route.targets.get(*index).is_some_and(Target::is_available);
        if !self.order.indices().iter().filter(is_own).any(is_available) {
            self.has_left |= self.leave_version(route);
        }
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
        let kept = self.candidate.zip(self.order.indices().first().copied());
        self.order.indices().iter().filter_map(|index| Some((*index, route.targets.get(*index)?))).filter(
            move |(index, target)| {
                let first_of_its_priority = drawn.replace(target.priority) != Some(target.priority);
                let is_of_version = kept.is_none_or(|(candidate, first)| (*index == candidate) == (first == candidate));
                (first_of_its_priority || route.try_others) && is_of_version
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
        self.leave_unavailable(route);
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
                    let only = self.picked.as_deref();
                    if let Some((endpoint, slot)) = self.pick(backend, now, random, key(backend), again, only) {
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
        let (endpoint, slot) = self.pick(backend, now, random, key, false, None)?;
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
        only: Option<&[SocketAddr]>,
    ) -> Option<(Arc<Endpoint>, WakingSlot)> {
        let tried = if again { &[][..] } else { &self.tried };
        let picked = backend.balancer.take(&PickInputs { now, random, key, tried, only })?;
        Some((picked.endpoint, WakingSlot::new(picked.slot, &backend.room)))
    }
}
