//! The present endpoints of a backend in tiers, and the pick: availability, tier, policy, slot. The set is replaced as a
//! whole when the configuration or the addresses of a name change; picks read it without a lock.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use spillway_config::schema::PolicyName;
use spillway_config::values::ServerUrl;

use super::outlier::{Detector, Verdict};
use super::policy::{PickContext, Policy, policy, unit};
use super::{Closed, Endpoint, EndpointState, Reason, Slot};

/// Time in milliseconds for which counts of available endpoints are valid. They decide about tiers and panic only; the
/// state of an endpoint itself is read for each pick.
const COUNTED_FOR: u64 = 20;

/// Factor on the available part of a tier (Envoy's overprovisioning factor). A tier takes all of the load until less
/// than 1 / 1.4 of its endpoints are available; then a part goes to the next one.
const OVERPROVISIONING: f64 = 1.4;

/// Most endpoints that a span reports as passed over.
const MAX_TOLD: usize = 16;

/// Endpoints with the same priority.
struct Tier {
    endpoints: Vec<Arc<Endpoint>>,
    /// Number and weight of further endpoints whose names are not resolved: they count as unavailable.
    unresolved: (u32, f64),
    policy: Box<dyn Policy>,
    /// Endpoints that are available; in panic, ejected ones too.
    available: AtomicU32,
    /// Their share of the weight, as bits of an `f64`.
    share: AtomicU64,
    panic: AtomicBool,
}

impl Tier {
    /// Number of endpoints, those whose names are not resolved included.
    fn count(&self) -> u32 {
        u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX).saturating_add(self.unresolved.0)
    }
}

/// Endpoint whose name was never resolved: it has no address, and is unavailable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnresolvedEndpoint {
    /// URL of the server.
    pub url: ServerUrl,
    /// Weight of its share of the requests.
    pub weight: u32,
    /// Tier: the lowest gets requests first.
    pub priority: u32,
}

/// Endpoints of a backend.
pub struct EndpointSet {
    /// All endpoints, those without weight included.
    all: Vec<Arc<Endpoint>>,
    unresolved: Vec<UnresolvedEndpoint>,
    tiers: Vec<Tier>,
    counted_at: AtomicU64,
}

impl EndpointSet {
    /// Set of these endpoints in tiers. `seed` is the start of policies that would begin with the first endpoint otherwise.
    pub fn new(all: Vec<Arc<Endpoint>>, name: PolicyName, seed: u64, stale_after: u64) -> Self {
        let mut priorities: Vec<u32> = all.iter().map(|e| e.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let tiers = priorities
            .into_iter()
            .map(|priority| {
                let mine = |e: &&Arc<Endpoint>| e.priority == priority && e.weight > 0;
                let endpoints: Vec<_> = all.iter().filter(mine).cloned().collect();
                let policy = policy(name, &endpoints, seed, stale_after);
                let (available, share) = (AtomicU32::new(0), AtomicU64::new(1f64.to_bits()));
                let (unresolved, panic) = ((0, 0.0), AtomicBool::new(false));
                Tier { endpoints, unresolved, policy, available, share, panic }
            })
            .filter(|tier| !tier.endpoints.is_empty())
            .collect();
        Self { all, unresolved: Vec::new(), tiers, counted_at: AtomicU64::new(0) }
    }

    /// Adds endpoints whose names are not resolved; their tiers have less to offer.
    #[must_use]
    pub fn with_unresolved(mut self, unresolved: Vec<UnresolvedEndpoint>) -> Self {
        for missing in unresolved.iter().filter(|missing| missing.weight > 0) {
            let same = |tier: &&mut Tier| tier.endpoints.first().is_some_and(|e| e.priority == missing.priority);
            if let Some(tier) = self.tiers.iter_mut().find(same) {
                tier.unresolved.0 = tier.unresolved.0.saturating_add(1);
                tier.unresolved.1 += f64::from(missing.weight);
            }
        }
        self.unresolved = unresolved;
        self
    }

    /// Endpoints whose names are not resolved.
    pub fn unresolved(&self) -> &[UnresolvedEndpoint] {
        &self.unresolved
    }

    /// All endpoints, those without weight included.
    pub fn all(&self) -> &[Arc<Endpoint>] {
        &self.all
    }

    fn count(&self, now: u64, panic_threshold: f64) {
        let at = self.counted_at.load(Ordering::Relaxed);
        if at != 0 && now < at.saturating_add(COUNTED_FOR) {
            return;
        }
        if self.counted_at.compare_exchange(at, now.max(1), Ordering::Relaxed, Ordering::Relaxed).is_err() && at != 0 {
            return;
        }
        self.recount(now, panic_threshold);
    }

    fn recount(&self, now: u64, panic_threshold: f64) {
        for tier in &self.tiers {
            let (mut available, mut drained, mut ejected_only) = (0u32, 0u32, 0u32);
            let (mut all, mut good, mut thrown_out) = (tier.unresolved.1, 0.0, 0.0);
            for e in &tier.endpoints {
                let weight = f64::from(e.weight);
                all += weight;
                if e.state.is_drained() {
                    drained += 1;
                } else if e.is_available(now, false) {
                    available += 1;
                    good += weight;
                } else if e.is_available(now, true) {
                    ejected_only += 1;
                    thrown_out += weight;
                }
            }
            // Drained endpoints do not count as missing.
            let wanted = tier.count().saturating_sub(drained);
            let panic = ejected_only > 0 && f64::from(available) < f64::from(wanted) * panic_threshold;
            tier.panic.store(panic, Ordering::Relaxed);
            tier.available.store(if panic { available + ejected_only } else { available }, Ordering::Relaxed);
            let share = if panic { good + thrown_out } else { good } / all;
            // A tier without available endpoints has no picks, and must not divide by zero.
            tier.share.store(if share > 0.0 { share } else { 1.0 }.to_bits(), Ordering::Relaxed);
        }
    }

    /// True if an endpoint is available, with the panic of the last count.
    fn has_available(&self, now: u64) -> bool {
        self.tiers.iter().any(|tier| {
            let panic = tier.panic.load(Ordering::Relaxed);
            tier.endpoints.iter().any(|e| e.is_available(now, panic))
        })
    }

    /// Tier at which a request begins: drawn by the available part of each, the lowest first.
    fn first_tier(&self, random: u64) -> usize {
        if self.tiers.len() < 2 {
            return 0;
        }
        let health = |tier: &Tier| {
            let share = f64::from(tier.available.load(Ordering::Relaxed)) / f64::from(tier.count());
            (share * OVERPROVISIONING).min(1.0)
        };
        let total: f64 = self.tiers.iter().map(health).sum::<f64>().min(1.0);
        let mut drawn = unit(random) * total;
        for (index, tier) in self.tiers.iter().enumerate() {
            drawn -= health(tier);
            if drawn < 0.0 {
                return index;
            }
        }
        0
    }
}

/// Inputs of a pick.
pub struct PickInputs<'a> {
    /// Time, as [`crate::clock::now_millis`] reads it.
    pub now: u64,
    /// Seed of the random numbers.
    pub random: u64,
    /// Affinity key of the request.
    pub key: Option<u64>,
    /// Endpoints that had the request before.
    pub tried: &'a [Arc<EndpointState>],
    /// Addresses of the only endpoints that may be picked, the best first; `None` leaves the choice to the policy.
    pub only: Option<&'a [SocketAddr]>,
}

/// An endpoint and a slot at it.
pub struct PickedEndpoint {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Slot of the request.
    pub slot: Slot,
}

/// Load balancer of a backend: picks endpoints, and records how attempts at them end.
pub struct Balancer {
    set: Arc<ArcSwap<EndpointSet>>,
    detector: Detector,
    /// Most requests in flight at all endpoints together.
    max_in_flight: u32,
}

impl Balancer {
    /// Balancer for the endpoints of `set`, which may be replaced at any time.
    pub fn new(set: Arc<ArcSwap<EndpointSet>>, detector: Detector) -> Self {
        Self { set, detector, max_in_flight: u32::MAX }
    }

    /// Sets a limit on requests in flight at all endpoints together.
    #[must_use]
    pub fn limited(self, max_in_flight: Option<NonZeroU32>) -> Self {
        Self { max_in_flight: max_in_flight.map_or(u32::MAX, NonZeroU32::get), ..self }
    }

    /// Most requests in flight at all endpoints together; `u32::MAX` without a limit.
    pub fn max_in_flight(&self) -> u32 {
        self.max_in_flight
    }

    /// Requests in flight at all endpoints together.
    pub fn in_flight(&self) -> u32 {
        self.set.load().all.first().map_or(0, |e| e.state.in_backend())
    }

    /// True if the backend as a whole accepts no further request.
    fn is_full(&self, set: &EndpointSet) -> bool {
        self.max_in_flight != u32::MAX && set.all.first().is_some_and(|e| e.state.in_backend() >= self.max_in_flight)
    }

    /// Present endpoints.
    pub fn endpoints(&self) -> Arc<EndpointSet> {
        self.set.load_full()
    }

    /// True if an endpoint is available, with room or without.
    pub fn is_available(&self, now: u64) -> bool {
        let set = self.set.load();
        set.count(now, self.detector.panic_threshold());
        set.has_available(now) || {
            // The last one may have become unavailable since the count: then panic makes ejected ones available.
            set.recount(now, self.detector.panic_threshold());
            set.has_available(now)
        }
    }

    /// True if an endpoint seems to have room.
    pub fn has_room(&self, now: u64) -> bool {
        let set = self.set.load();
        set.count(now, self.detector.panic_threshold());
        !self.is_full(&set)
            && set.tiers.iter().any(|tier| {
                let panic = tier.panic.load(Ordering::Relaxed);
                tier.endpoints.iter().any(|e| e.is_open(now, panic))
            })
    }

    /// Time until an endpoint that accepts nothing may accept a request by time alone: its `Retry-After` or ejection ends,
    /// or its reports of load are too old to count. Every other change wakes waiters.
    pub fn next_change(&self, now: u64) -> Option<Duration> {
        let set = self.set.load();
        let changes = set.tiers.iter().flat_map(|tier| {
            let panic = tier.panic.load(Ordering::Relaxed);
            tier.endpoints.iter().filter_map(move |e| match e.closed(now, panic)? {
                Closed::Full(Reason::Status) => Some(e.state.full_for(now)),
                Closed::Full(reason) => {
                    e.signals.iter().filter(|s| s.reason() == reason).find_map(|s| s.expires_in(&e.state, now))
                }
                Closed::Ejected => Some(e.state.record.ejected_for(now)),
                Closed::Drained | Closed::Unhealthy => None,
            })
        });
        changes.filter(|wait| !wait.is_zero()).min()
    }

    /// Picks an endpoint that was not tried yet and acquires a slot at it; `None` if no such endpoint has room.
    pub fn take(&self, ask: &PickInputs<'_>) -> Option<PickedEndpoint> {
        let set = self.set.load();
        set.count(ask.now, self.detector.panic_threshold());
        if self.is_full(&set) {
            return None;
        }
        let taken = self.take_in(&set, ask);
        if taken.is_some() || set.has_available(ask.now) {
            return taken;
        }
        set.recount(ask.now, self.detector.panic_threshold());
        self.take_in(&set, ask)
    }

    fn take_in(&self, set: &EndpointSet, ask: &PickInputs<'_>) -> Option<PickedEndpoint> {
        if let Some(only) = ask.only {
            return only.iter().find_map(|address| self.take_at(set, *address, ask));
        }
        let first = set.first_tier(ask.random);
        // Then the others, the lowest first.
        let rest = set.tiers.iter().enumerate().filter(|(at, _)| *at != first).map(|(_, tier)| tier);
        set.tiers.get(first).into_iter().chain(rest).find_map(|tier| self.take_of(tier, ask))
    }

    /// Acquires a slot at the endpoint with this address.
    fn take_at(&self, set: &EndpointSet, address: SocketAddr, ask: &PickInputs<'_>) -> Option<PickedEndpoint> {
        set.tiers.iter().find_map(|tier| {
            let panic = tier.panic.load(Ordering::Relaxed);
            let is_right = |e: &&Arc<Endpoint>| {
                e.socket == address
                    && e.is_open(ask.now, panic)
                    && !ask.tried.iter().any(|tried| Arc::ptr_eq(tried, &e.state))
            };
            let endpoint = tier.endpoints.iter().find(is_right)?;
            let slot = endpoint.state.try_acquire_within(endpoint.room(ask.now, panic).0, self.max_in_flight)?;
            Some(PickedEndpoint { endpoint: endpoint.clone(), slot })
        })
    }

    fn take_of(&self, tier: &Tier, ask: &PickInputs<'_>) -> Option<PickedEndpoint> {
        let panic = tier.panic.load(Ordering::Relaxed);
        let available = f64::from_bits(tier.share.load(Ordering::Relaxed));
        let mut lost: Vec<usize> = Vec::new();
        let mut random = ask.random;
        loop {
            let eligible = |index: usize, e: &Endpoint| {
                e.is_open(ask.now, panic)
                    && !ask.tried.iter().any(|tried| Arc::ptr_eq(tried, &e.state))
                    && !lost.contains(&index)
            };
            let mut cx = PickContext { eligible: &eligible, key: ask.key, now: ask.now, random, available };
            let index = tier.policy.pick(&tier.endpoints, &mut cx)?;
            random = cx.random;
            let endpoint = tier.endpoints.get(index)?;
            // Another request may have acquired the last slot since: then the policy picks again without this endpoint.
            match endpoint.state.try_acquire_within(endpoint.room(ask.now, panic).0, self.max_in_flight) {
                Some(slot) => return Some(PickedEndpoint { endpoint: endpoint.clone(), slot }),
                None => lost.push(index),
            }
        }
    }

    /// Records a first token, or the head of a good answer that is no stream, of an attempt that began at `began`.
    pub fn good_sign(&self, endpoint: &Endpoint, began: u64, now: u64) {
        self.detector.good_sign(endpoint, began, now);
    }

    /// Records the end of an attempt that began at `began`. `caller` is the number of its caller and operation.
    pub fn ended(&self, endpoint: &Endpoint, verdict: Verdict, caller: u64, began: u64, now: u64) {
        if matches!(verdict, Verdict::Error | Verdict::ServerError | Verdict::Full) {
            for signal in endpoint.signals.iter() {
                signal.failed(&endpoint.state, now);
            }
        }
        self.detector.answered(endpoint, verdict, caller, now);
        self.detector.ended(self.set.load().all(), endpoint, verdict, began, now);
    }

    /// True if the last attempts at an endpoint have all failed, as many as would eject one that has neighbours.
    pub fn is_failing(&self, endpoint: &Endpoint) -> bool {
        self.detector.is_failing(endpoint)
    }

    /// Endpoints that accept no request now, with the reason: some of them, for spans.
    pub fn passed_over(&self, now: u64) -> Vec<(Arc<Endpoint>, Closed)> {
        let set = self.set.load();
        let closed = set.tiers.iter().flat_map(|tier| {
            let panic = tier.panic.load(Ordering::Relaxed);
            tier.endpoints.iter().filter_map(move |e| Some((e.clone(), e.closed(now, panic)?)))
        });
        closed.take(MAX_TOLD).collect()
    }

    /// True if ejections are ignored now in some tier.
    pub fn is_in_panic(&self, now: u64) -> bool {
        let set = self.set.load();
        set.count(now, self.detector.panic_threshold());
        set.tiers.iter().any(|tier| tier.panic.load(Ordering::Relaxed))
    }
}
