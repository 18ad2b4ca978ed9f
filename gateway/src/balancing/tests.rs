//! Endpoints without servers, and the promises of the pick as a whole.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use spillway_config::schema::{OutlierDetection, PolicyName};
use spillway_config::values::ServerUrl;

use super::*;
use crate::clock::now_millis;
use crate::connect::{EndpointKey, Peer};
use crate::telemetry::EndpointMetrics;

/// Target of connections that are never opened.
fn peer(_: &EndpointKey) -> Peer {
    Peer::for_tests()
}

/// Endpoints with these weights and signals.
pub(crate) fn endpoints_with(weights: &[u32], make: impl Fn() -> Vec<Box<dyn SaturationSignal>>) -> Vec<Arc<Endpoint>> {
    let siblings = Arc::new(Siblings::default());
    let endpoint = |(n, weight): (usize, &u32)| {
        let socket = std::net::SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 8_000));
        let url: ServerUrl = format!("http://{socket}").parse().unwrap();
        Arc::new(Endpoint {
            backend: "x".into(),
            address: url.to_string(),
            socket,
            weight: *weight,
            priority: 0,
            signals: make().into(),
            slow_start: 0,
            state: Arc::new(EndpointState::new(Arc::new(EndpointMetrics::default()), true, siblings.clone())),
            peer: Peer::for_tests(),
            url,
        })
    };
    weights.iter().enumerate().map(endpoint).collect()
}

/// Endpoints with these weights.
pub(crate) fn endpoints(weights: &[u32]) -> Vec<Arc<Endpoint>> {
    endpoints_with(weights, Vec::new)
}

/// Changes endpoints that are not shared yet.
pub(crate) fn changed(endpoints: Vec<Arc<Endpoint>>, change: impl Fn(usize, &mut Endpoint)) -> Vec<Arc<Endpoint>> {
    let change = |(n, e): (usize, Arc<Endpoint>)| {
        let mut e = Arc::into_inner(e).unwrap();
        change(n, &mut e);
        Arc::new(e)
    };
    endpoints.into_iter().enumerate().map(change).collect()
}

/// A balancer of them.
pub(crate) fn balancer(endpoints: Vec<Arc<Endpoint>>) -> Balancer {
    balancer_of(endpoints, PolicyName::LeastRequest)
}

fn balancer_of(endpoints: Vec<Arc<Endpoint>>, policy: PolicyName) -> Balancer {
    let set = EndpointSet::new(endpoints, policy, 0, 3_000);
    Balancer::new(Arc::new(ArcSwap::from_pointee(set)), Detector::new(&OutlierDetection::default()))
}

fn ask(now: u64, random: u64) -> PickInputs<'static> {
    PickInputs { now, random, key: None, tried: &[], only: None }
}

fn limited(max: u32) -> impl Fn() -> Vec<Box<dyn SaturationSignal>> {
    move || signals(&serde_json::from_value(serde_json::json!({"maxInFlight": max})).unwrap())
}

#[test]
fn a_limit_on_requests_in_flight_is_never_passed() {
    let balancer = balancer(endpoints_with(&[1, 1], limited(3)));
    let taken: Vec<_> = std::thread::scope(|scope| {
        let takers: Vec<_> = (0..16)
            .map(|n| {
                scope.spawn({
                    let balancer = &balancer;
                    move || balancer.take(&ask(1, n))
                })
            })
            .collect();
        takers.into_iter().filter_map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(taken.len(), 6);
    let set = balancer.endpoints();
    assert!(set.all().iter().all(|e| e.state.in_flight() == 3));
    assert!(balancer.take(&ask(2, 99)).is_none() && balancer.is_available(2), "full is not gone");
    drop(taken);
    assert!(set.all().iter().all(|e| e.state.in_flight() == 0 && e.state.in_backend() == 0));
}

#[test]
fn the_least_that_any_signal_allows_is_the_limit_and_what_is_stale_allows_all() {
    let capacity = serde_json::json!({
        "maxInFlight": 50, "adaptive": {"minLimit": 20, "maxLimit": 40},
        "queueDepth": {"max": 4, "staleAfter": "3s"}, "kvCache": {"max": 0.9}
    });
    let all = endpoints_with(&[1], || signals(&serde_json::from_value(capacity.clone()).unwrap()));
    let e = &all[0];
    let report = |waiting, kv_cache| LoadReport { waiting: Some(waiting), kv_cache: Some(kv_cache) };
    assert_eq!(e.room(1, false), (20, Some(Reason::Adaptive)));
    e.reported(&report(7, 0.5), 1_000);
    assert_eq!(e.room(1_000, false), (0, Some(Reason::QueueDepth)));
    e.reported(&report(0, 0.95), 2_000);
    assert_eq!(e.room(2_000, false), (0, Some(Reason::KvCache)));
    assert_eq!(e.closed(2_000, false), Some(Closed::Full(Reason::KvCache)));
    assert_eq!(e.room(5_001, false), (20, Some(Reason::Adaptive)), "the counted ones decide, it is not full");
    e.state.mark_full(std::time::Duration::from_secs(60));
    assert_eq!(e.room(now_millis(), false), (0, Some(Reason::Status)));
}

#[test]
fn endpoints_whose_names_are_not_resolved_count_as_missing_in_their_tier() {
    let share_of_the_first = |unresolved: &[u32]| {
        let tiers = changed(endpoints(&[1, 1]), |n, e| e.priority = u32::from(n > 0));
        let missing = |weight: &u32| UnresolvedEndpoint {
            url: "http://never.test:1".parse().unwrap(),
            weight: *weight,
            priority: 0,
        };
        let set = EndpointSet::new(tiers.clone(), PolicyName::LeastRequest, 0, 3_000)
            .with_unresolved(unresolved.iter().map(missing).collect());
        let balancer = Balancer::new(Arc::new(ArcSwap::from_pointee(set)), Detector::new(&OutlierDetection::default()));
        let first = (0..1_000u64).filter(|n| {
            let picked = balancer.take(&ask(50, n.wrapping_mul(0x9E37_79B9_7F4A_7C15))).unwrap();
            Arc::ptr_eq(&picked.endpoint.state, &tiers[0].state)
        });
        first.count()
    };
    assert_eq!(share_of_the_first(&[]), 1_000);
    assert_eq!(share_of_the_first(&[0]), 1_000, "one without weight is missed by nobody");
    // One of two is left: 1.4 times its half, as Envoy counts.
    assert!((650..=750).contains(&share_of_the_first(&[1])), "{}", share_of_the_first(&[1]));
    assert!((400..=530).contains(&share_of_the_first(&[1, 5])), "{}", share_of_the_first(&[1, 5]));
    // A backend of such endpoints alone is unavailable, and nothing of it fails.
    let alone = EndpointSet::new(Vec::new(), PolicyName::RoundRobin, 0, 3_000);
    let alone = Balancer::new(Arc::new(ArcSwap::from_pointee(alone)), Detector::new(&OutlierDetection::default()));
    assert!(!alone.is_available(50) && !alone.has_room(50) && alone.take(&ask(50, 1)).is_none());
    assert!(alone.in_flight() == 0 && !alone.is_in_panic(50) && alone.next_change(50).is_none());
}

#[test]
fn the_lowest_tier_takes_all_until_it_has_no_room_and_a_part_less_when_it_is_half_gone() {
    let tiers = changed(endpoints_with(&[1; 20], limited(50)), |n, e| e.priority = u32::from(n >= 10));
    let balancer = balancer_of(tiers, PolicyName::RoundRobin);
    let set = balancer.endpoints();
    let in_first = |count: u64, now: u64| {
        let taken: Vec<_> =
            (0..count).filter_map(|n| balancer.take(&ask(now, n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))).collect();
        assert_eq!(taken.len() as u64, count);
        taken.iter().filter(|t| t.endpoint.priority == 0).count()
    };
    assert_eq!(in_first(500, 1_000), 500);
    assert_eq!(in_first(600, 1_000), 500, "the rest stands in");
    for e in &set.all()[..2] {
        e.state.set_healthy(false, 1_000);
    }
    assert_eq!(in_first(300, 2_000), 300, "eight of ten are enough");
    for e in &set.all()[..5] {
        e.state.set_healthy(false, 2_000);
    }
    let part = in_first(300, 3_000);
    assert!((180..240).contains(&part), "five of ten take 70 %: {part} of 300");
    for e in &set.all()[..10] {
        e.state.set_healthy(false, 3_000);
    }
    assert_eq!(in_first(100, 4_000), 0);
}

#[test]
fn drained_endpoints_take_nothing_and_their_neighbours_are_not_in_panic_for_it() {
    let balancer = balancer(endpoints(&[1, 1, 1, 1]));
    let set = balancer.endpoints();
    for e in &set.all()[..3] {
        assert!(e.state.set_drained(true, 1));
    }
    assert!((0..20).all(|n| balancer.take(&ask(100, n)).unwrap().endpoint.address == set.all()[3].address));
    assert!(!balancer.is_in_panic(100));
    assert!(
        set.all()[3].state.set_drained(true, 1) && !balancer.is_available(200) && balancer.take(&ask(200, 1)).is_none()
    );
    assert!(set.all()[0].state.set_drained(false, 200) && balancer.is_available(201));
}

#[test]
fn when_too_few_are_left_ejections_are_ignored_but_checks_and_drains_are_not() {
    let balancer = balancer(endpoints(&[1, 1, 1, 1]));
    let set = balancer.endpoints();
    let [a, b, c, d] = set.all() else { panic!() };
    for _ in 0..5 {
        balancer.ended(a, Verdict::Error, 0, 10, 10);
        balancer.ended(b, Verdict::Error, 0, 10, 10);
    }
    assert!(a.closed(50, false) == Some(Closed::Ejected) && !balancer.is_in_panic(50), "two of four are left");
    c.state.set_healthy(false, 60);
    assert!(balancer.is_in_panic(100));
    let mut seen: Vec<_> =
        (0..30).map(|n| balancer.take(&ask(100, n * 77)).unwrap().endpoint.address.clone()).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "the ejected ones take part, the unhealthy one does not");
    d.state.set_drained(true, 100);
    assert!((0..30).all(|n| balancer.take(&ask(200, n)).unwrap().endpoint.address != d.address));
}

#[test]
fn the_last_one_to_go_leaves_no_moment_in_which_nobody_is_there() {
    let balancer = balancer(endpoints(&[1, 1]));
    let set = balancer.endpoints();
    let [a, b] = set.all() else { panic!() };
    for _ in 0..5 {
        balancer.ended(a, Verdict::Error, 0, 10, 10);
    }
    assert!(balancer.is_available(50) && a.closed(50, false) == Some(Closed::Ejected));
    // At the same time as the count, which is kept for a while.
    b.state.set_healthy(false, 50);
    assert!(balancer.is_available(50), "the ejected one is asked now");
    b.state.set_healthy(true, 100);
    assert!(balancer.take(&ask(100, 1)).is_some());
    b.state.set_healthy(false, 100);
    assert!(balancer.take(&ask(100, 1)).is_some_and(|taken| Arc::ptr_eq(&taken.endpoint, a)));
}

#[test]
fn one_that_returns_takes_a_single_request_until_it_answered() {
    let balancer = balancer_of(endpoints(&[1, 1]), PolicyName::LeastRequest);
    let set = balancer.endpoints();
    let bad = &set.all()[0];
    for _ in 0..5 {
        balancer.ended(bad, Verdict::Error, 0, 10, 10);
    }
    let back = 10 + 15_000;
    let taken: Vec<_> = (0..100).map(|n| balancer.take(&ask(back, n)).unwrap()).collect();
    assert_eq!(bad.state.in_flight(), 1, "no herd");
    balancer.good_sign(bad, back, back + 5);
    let more: Vec<_> = (0..100).map(|n| balancer.take(&ask(back + 6, n)).unwrap()).collect();
    assert_eq!(bad.state.in_flight(), 100);
    drop((taken, more));
}

#[test]
fn what_was_tried_is_not_taken_again() {
    let balancer = balancer(endpoints(&[1, 1, 1]));
    let mut tried = Vec::new();
    for n in 0..3 {
        let taken = balancer.take(&PickInputs { now: 1, random: n, key: None, tried: &tried, only: None }).unwrap();
        assert!(!tried.iter().any(|t| Arc::ptr_eq(t, &taken.endpoint.state)));
        tried.push(taken.endpoint.state.clone());
    }
    assert!(balancer.take(&PickInputs { now: 1, random: 9, key: None, tried: &tried, only: None }).is_none());
}

#[path = "../../benches/support/simulation.rs"]
#[allow(dead_code, reason = "the printed table uses more of it")]
mod simulation;

mod in_simulation {
    use super::simulation::{Fleet, PICKERS, Picker, clock, run};
    use super::*;

    fn p99(fleet: &Fleet, picker: Picker) -> f64 {
        run(fleet, picker, |_, _, _| {}).quantile(0.99)
    }

    #[test]
    fn every_policy_that_looks_at_servers_beats_the_one_that_does_not() {
        let fleet = Fleet::mixed(2_000, 80_000);
        let round_robin = p99(&fleet, Picker::Policy(PolicyName::RoundRobin));
        for policy in [PolicyName::LeastRequest, PolicyName::PeakEwma, PolicyName::QueueDepth] {
            let own = p99(&fleet, Picker::Policy(policy));
            assert!(own < round_robin * 0.2, "{policy:?}: {own} against {round_robin}");
        }
    }

    #[test]
    fn a_run_is_the_same_for_the_same_seed() {
        let fleet = Fleet::mixed(100, 3_000);
        for picker in PICKERS {
            let [one, two] = [0, 1].map(|_| run(&fleet, picker, |_, _, _| {}).taken);
            assert_eq!(one, two, "{picker:?}");
        }
    }

    /// Servers that were away (their check failed) come back all at once under load, to four gateways that all notice in
    /// the same moment. None of them may then hold more than its neighbours do.
    #[test]
    fn no_policy_herds_when_servers_return() {
        for picker in PICKERS.into_iter().filter(|picker| *picker != Picker::Oracle) {
            let fleet = Fleet { gateways: 4, load: 0.6, ..Fleet::mixed(60, 20_000) };
            let away = [20, 21, 22];
            let (mut gone, mut back) = (false, false);
            let mut since = 0;
            let (mut returned, mut others) = (0, 0);
            run(&fleet, picker, |now, gateways, picked| {
                let set_healthy = |healthy: bool| {
                    for set in gateways.iter().map(Balancer::endpoints) {
                        for index in away {
                            set.all()[index].state.set_healthy(healthy, clock(now));
                        }
                    }
                };
                if !gone {
                    gone = true;
                    set_healthy(false);
                }
                if !back && now > 1_000.0 {
                    back = true;
                    set_healthy(true);
                }
                let (true, Some(server)) = (back, picked) else { return };
                since += 1;
                if since > 3_000 {
                    return;
                }
                let in_flight: u32 = gateways.iter().map(|g| g.endpoints().all()[server].state.in_flight()).sum();
                if away.contains(&server) { returned = returned.max(in_flight) } else { others = others.max(in_flight) }
            });
            assert!(since > 3_000, "{picker:?}: the run is long enough: {since}");
            assert!(returned <= others + 2, "{picker:?}: {returned} at one that returned, at most {others} elsewhere");
        }
    }

    /// Eight gateways reload together, with as many new policies: their first picks spread.
    #[test]
    fn no_policy_herds_after_a_reload() {
        for picker in PICKERS.into_iter().filter(|picker| *picker != Picker::Oracle) {
            let fleet = Fleet { gateways: 8, ..Fleet::mixed(40, 80) };
            let most = run(&fleet, picker, |_, _, _| {}).taken.into_iter().max().unwrap();
            // Two each on average. A server that is hit by chance gets some more, one that everybody begins with gets eight.
            assert!(most <= 7, "{picker:?}: {most} of 80 at one of 40");
        }
    }
}

#[test]
fn a_hot_key_spreads_over_those_that_are_left_as_it_does_over_all() {
    let balancer = balancer_of(endpoints(&[1; 10]), PolicyName::Hash);
    let set = balancer.endpoints();
    for e in set.all().iter().take(6) {
        e.state.set_healthy(false, 1);
    }
    let slots: Vec<_> = (0..400)
        .filter_map(|n| balancer.take(&PickInputs { key: Some(42), ..ask(50, n) }).map(|taken| taken.slot))
        .collect();
    assert_eq!(slots.len(), 400);
    let in_flight: Vec<_> = set.all().iter().map(|e| e.state.in_flight()).collect();
    assert!(in_flight.iter().all(|n| *n <= 126), "no more than 1.25 times a fourth: {in_flight:?}");
}

/// Listener that counts its calls.
#[derive(Default)]
pub(crate) struct CountingListener(std::sync::atomic::AtomicUsize);

impl RoomListener for CountingListener {
    fn may_have_room(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl CountingListener {
    /// Calls since the last question.
    pub(crate) fn times(&self) -> usize {
        self.0.swap(0, std::sync::atomic::Ordering::Relaxed)
    }
}

#[test]
fn waiters_wake_for_changes_without_a_released_slot() {
    let told = Arc::new(CountingListener::default());
    let siblings = Arc::new(Siblings::new(told.clone()));
    let adaptive = || signals(&serde_json::from_value(serde_json::json!({"adaptive": {"minLimit": 4}})).unwrap());
    let all = changed(endpoints_with(&[1, 1], adaptive), |_, e| {
        e.state = Arc::new(EndpointState::new(Arc::new(EndpointMetrics::default()), false, siblings.clone()));
    });
    let (first, detector) =
        (&all[0], Detector::new(&serde_json::from_value(serde_json::json!({"consecutiveErrors": 1})).unwrap()));
    first.state.set_healthy(true, 1);
    assert_eq!(told.times(), 1, "a check found it well");
    first.state.set_healthy(true, 2);
    assert_eq!(told.times(), 0, "nothing has changed");
    first.state.set_healthy(false, 2);
    assert_eq!(told.times(), 1, "perhaps nobody is there any more");
    first.state.set_healthy(true, 3);
    first.state.set_drained(true, 3);
    first.state.set_drained(true, 3);
    assert_eq!(told.times(), 2);
    first.state.set_drained(false, 4);
    assert_eq!(told.times(), 1, "an operator put it back");
    assert!(detector.ended(&all, first, Verdict::Error, 5, 5));
    assert_eq!(told.times(), 0);
    let back = 5 + 15_000;
    detector.good_sign(first, back, back);
    assert_eq!(told.times(), 1, "its probation is over");
    first.reported(&LoadReport { waiting: Some(0), kv_cache: None }, back);
    assert_eq!(told.times(), 1, "it says what waits there");
    let limit = first.room(back, false).0;
    for n in 0..200 {
        first.answered_in(Class::Head, Duration::from_millis(10), 4, back + n * 10);
    }
    let (grown, times) = (first.room(back, false).0, told.times());
    assert!(grown > limit && (1..200).contains(&times), "its limit grew from {limit} to {grown}, told {times} times");
}

#[test]
fn all_endpoints_together_have_a_limit_that_is_never_passed() {
    let balancer = balancer(endpoints(&[1, 1, 1])).limited(std::num::NonZeroU32::new(5));
    let taken: Vec<_> = std::thread::scope(|scope| {
        let take = |n: u64| balancer.take(&ask(1, n));
        let takers: Vec<_> = (0..16).map(|n| scope.spawn(move || take(n))).collect();
        takers.into_iter().filter_map(|taker| taker.join().unwrap()).collect()
    });
    assert_eq!(taken.len(), 5);
    assert!(!balancer.has_room(1) && balancer.is_available(1), "full is not gone");
    drop(taken);
    assert!(balancer.has_room(1) && balancer.take(&ask(1, 1)).is_some());
}
