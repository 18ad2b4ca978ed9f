//! The endpoints of a backend as they are now, in tiers, and the pick: availability, tier, policy, slot. The set is
//! replaced as a whole when the configuration or a name's addresses change; who picks reads it without a lock.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use spillway_config::schema::PolicyName;

use super::outlier::{Detector, Verdict};
use super::policy::{PickContext, Policy, policy, unit};
use super::{Closed, Endpoint, EndpointState, Reason, Slot};

/// For how long, in milliseconds, counts of available endpoints are good. They decide about tiers and panic only; each
/// endpoint that is picked is looked at itself.
const COUNTED_FOR: u64 = 20;

/// How much more than its share of the load a tier takes while endpoints are missing (Envoy's overprovisioning factor):
/// a part goes to the next one when less than 1 / 1.4 of it is available.
const OVERPROVISIONING: f64 = 1.4;

/// Endpoints that are told of as passed over.
const MAX_TOLD: usize = 16;

/// Endpoints with the same priority.
struct Tier {
    endpoints: Vec<Arc<Endpoint>>,
    policy: Box<dyn Policy>,
    /// Endpoints that are available, panic considered.
    available: AtomicU32,
    /// Their share of the weight, as bits of an `f64`.
    share: AtomicU64,
    panic: AtomicBool,
}

/// The endpoints of a backend.
pub struct EndpointSet {
    /// Every endpoint, also those without weight.
    all: Vec<Arc<Endpoint>>,
    tiers: Vec<Tier>,
    counted_at: AtomicU64,
}

impl EndpointSet {
    /// Puts endpoints into tiers. `seed` is where policies begin that would begin with the first one else.
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
                Tier { endpoints, policy, available, share, panic: AtomicBool::new(false) }
            })
            .filter(|tier| !tier.endpoints.is_empty())
            .collect();
        Self { all, tiers, counted_at: AtomicU64::new(0) }
    }

    /// Every endpoint, also those without weight.
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
            let (mut all, mut good, mut thrown_out) = (0.0, 0.0, 0.0);
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
            // Those that an operator took out are not missed.
            let wanted = u32::try_from(tier.endpoints.len()).unwrap_or(u32::MAX).saturating_sub(drained);
            let panic = ejected_only > 0 && f64::from(available) < f64::from(wanted) * panic_threshold;
            tier.panic.store(panic, Ordering::Relaxed);
            tier.available.store(if panic { available + ejected_only } else { available }, Ordering::Relaxed);
            let share = if panic { good + thrown_out } else { good } / all;
            // Nobody is picked of a tier without any.
            tier.share.store(if share > 0.0 { share } else { 1.0 }.to_bits(), Ordering::Relaxed);
        }
    }

    /// Whether an endpoint may have traffic, as far as the last count knows.
    fn has_available(&self, now: u64) -> bool {
        self.tiers.iter().any(|tier| {
            let panic = tier.panic.load(Ordering::Relaxed);
            tier.endpoints.iter().any(|e| e.is_available(now, panic))
        })
    }

    /// The tier that a request begins with: drawn by how much of each is available, the lowest first.
    fn first_tier(&self, random: u64) -> usize {
        if self.tiers.len() < 2 {
            return 0;
        }
        #[allow(clippy::cast_precision_loss, reason = "counts of endpoints")]
        let health = |tier: &Tier| {
            let share = f64::from(tier.available.load(Ordering::Relaxed)) / tier.endpoints.len() as f64;
            (share * OVERPROVISIONING).min(1.0)
        };
        let total: f64 = self.tiers.iter().map(health).sum::<f64>().min(1.0);
        let mut drawn = unit(random) * total;
        for (place, tier) in self.tiers.iter().enumerate() {
            drawn -= health(tier);
            if drawn < 0.0 {
                return place;
            }
        }
        0
    }
}

/// What a pick is asked with.
pub struct Ask<'a> {
    /// The clock.
    pub now: u64,
    /// The seed of the pick.
    pub random: u64,
    /// What keeps the request on its endpoint.
    pub key: Option<u64>,
    /// Endpoints that the request was at.
    pub tried: &'a [Arc<EndpointState>],
}

/// An endpoint and a slot at it.
pub struct Taken {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Its slot.
    pub slot: Slot,
}

/// Picks among the endpoints of a backend and judges them.
pub struct Balancer {
    set: Arc<ArcSwap<EndpointSet>>,
    detector: Detector,
    /// Requests in flight at all endpoints together.
    max_in_flight: u32,
}

impl Balancer {
    /// For the endpoints that stand in `set`, now and whenever it is changed.
    pub fn new(set: Arc<ArcSwap<EndpointSet>>, detector: Detector) -> Self {
        Self { set, detector, max_in_flight: u32::MAX }
    }

    /// The same with a limit on requests in flight at all endpoints together.
    #[must_use]
    pub fn limited(self, max_in_flight: Option<NonZeroU32>) -> Self {
        Self { max_in_flight: max_in_flight.map_or(u32::MAX, NonZeroU32::get), ..self }
    }

    /// Requests that may be in flight at all endpoints together; `u32::MAX` without a limit.
    pub fn max_in_flight(&self) -> u32 {
        self.max_in_flight
    }

    /// Requests in flight at all endpoints together.
    pub fn in_flight(&self) -> u32 {
        self.set.load().all.first().map_or(0, |e| e.state.in_backend())
    }

    /// Whether the backend as a whole takes no further request.
    fn is_full(&self, set: &EndpointSet) -> bool {
        self.max_in_flight != u32::MAX && set.all.first().is_some_and(|e| e.state.in_backend() >= self.max_in_flight)
    }

    /// The endpoints as they are now.
    pub fn endpoints(&self) -> Arc<EndpointSet> {
        self.set.load_full()
    }

    /// Whether an endpoint may have traffic at all, whether it has room or not.
    pub fn is_available(&self, now: u64) -> bool {
        let set = self.set.load();
        set.count(now, self.detector.panic_threshold());
        set.has_available(now) || {
            // The last one may have gone since the count, which is what lets ejected ones be asked.
            set.recount(now, self.detector.panic_threshold());
            set.has_available(now)
        }
    }

    /// Whether an endpoint seems to have room.
    pub fn has_room(&self, now: u64) -> bool {
        let set = self.set.load();
        set.count(now, self.detector.panic_threshold());
        !self.is_full(&set)
            && set.tiers.iter().any(|tier| {
                let panic = tier.panic.load(Ordering::Relaxed);
                tier.endpoints.iter().any(|e| e.is_open(now, panic))
            })
    }

    /// How long until an endpoint without room may have some by time alone: when it is to be asked again, or when figures
    /// that it is full by count no more. Of every other change those who wait are told.
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

    /// Picks an endpoint and takes a slot at it; `None` when none has room that was not tried.
    pub fn take(&self, ask: &Ask<'_>) -> Option<Taken> {
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

    fn take_in(&self, set: &EndpointSet, ask: &Ask<'_>) -> Option<Taken> {
        let first = set.first_tier(ask.random);
        // Then the others, the lowest first.
        let rest = set.tiers.iter().enumerate().filter(|(place, _)| *place != first).map(|(_, tier)| tier);
        set.tiers.get(first).into_iter().chain(rest).find_map(|tier| self.take_of(tier, ask))
    }

    fn take_of(&self, tier: &Tier, ask: &Ask<'_>) -> Option<Taken> {
        let panic = tier.panic.load(Ordering::Relaxed);
        let available = f64::from_bits(tier.share.load(Ordering::Relaxed));
        let mut lost: Vec<usize> = Vec::new();
        let mut random = ask.random;
        loop {
            let eligible = |place: usize, e: &Endpoint| {
                e.is_open(ask.now, panic)
                    && !ask.tried.iter().any(|tried| Arc::ptr_eq(tried, &e.state))
                    && !lost.contains(&place)
            };
            let mut cx = PickContext { eligible: &eligible, key: ask.key, now: ask.now, random, available };
            let place = tier.policy.pick(&tier.endpoints, &mut cx)?;
            random = cx.random;
            let endpoint = tier.endpoints.get(place)?;
            // Another request may have taken the last slot since: then the policy is asked again without it.
            match endpoint.state.try_acquire_within(endpoint.room(ask.now, panic).0, self.max_in_flight) {
                Some(slot) => return Some(Taken { endpoint: endpoint.clone(), slot }),
                None => lost.push(place),
            }
        }
    }

    /// A first token, or the head of a good answer that is no stream, has come of an attempt that began at `began`.
    pub fn good_sign(&self, endpoint: &Endpoint, began: u64, now: u64) {
        self.detector.good_sign(endpoint, began, now);
    }

    /// An attempt has ended that began at `began`.
    pub fn ended(&self, endpoint: &Endpoint, verdict: Verdict, began: u64, now: u64) {
        if matches!(verdict, Verdict::Error | Verdict::Full) {
            for signal in endpoint.signals.iter() {
                signal.failed(&endpoint.state, now);
            }
        }
        self.detector.ended(self.set.load().all(), endpoint, verdict, began, now);
    }

    /// Endpoints that take nothing now, with the reason: some of them, for spans.
    pub fn passed_over(&self, now: u64) -> Vec<(Arc<Endpoint>, Closed)> {
        let set = self.set.load();
        let closed = set.tiers.iter().flat_map(|tier| {
            let panic = tier.panic.load(Ordering::Relaxed);
            tier.endpoints.iter().filter_map(move |e| Some((e.clone(), e.closed(now, panic)?)))
        });
        closed.take(MAX_TOLD).collect()
    }

    /// Whether ejections are ignored now in some tier.
    pub fn is_in_panic(&self, now: u64) -> bool {
        let set = self.set.load();
        set.count(now, self.detector.panic_threshold());
        set.tiers.iter().any(|tier| tier.panic.load(Ordering::Relaxed))
    }
}
