use std::collections::HashMap;

use super::*;
use crate::balancing::tests::{changed, endpoints};
use crate::balancing::{LoadReport, Slot};

fn cx<'a>(eligible: &'a dyn Fn(usize, &Endpoint) -> bool, random: u64) -> PickContext<'a> {
    PickContext { eligible, key: None, now: 1, random: mix(random.wrapping_add(1)), available: 1.0 }
}

fn all(_: usize, _: &Endpoint) -> bool {
    true
}

fn counts(
    policy: &dyn Policy,
    endpoints: &[Arc<Endpoint>],
    picks: u64,
    eligible: &dyn Fn(usize, &Endpoint) -> bool,
) -> HashMap<usize, u64> {
    let mut counts = HashMap::new();
    for n in 0..picks {
        *counts.entry(policy.pick(endpoints, &mut cx(eligible, n)).unwrap()).or_insert(0) += 1;
    }
    counts
}

const NAMES: [PolicyName; 5] =
    [PolicyName::RoundRobin, PolicyName::LeastRequest, PolicyName::PeakEwma, PolicyName::Hash, PolicyName::QueueDepth];

#[test]
fn round_robin_is_exact_over_a_cycle_and_never_bursts() {
    let endpoints = endpoints(&[5, 1, 1]);
    let policy = RoundRobin::new(&endpoints, 0);
    let picks: Vec<_> = (0..14).filter_map(|n| policy.pick(&endpoints, &mut cx(&all, n))).collect();
    let count = |index| picks.iter().filter(|p| **p == index).count();
    assert_eq!((count(0), count(1), count(2)), (10, 2, 2));
    assert!(picks.windows(5).all(|w| w.iter().any(|p| *p != 0)), "never five times the same in a row: {picks:?}");
}

#[test]
fn round_robin_leaves_out_what_is_not_eligible_and_shares_its_turns() {
    let endpoints = endpoints(&[1, 1, 1, 1]);
    let policy = RoundRobin::new(&endpoints, 7);
    assert_eq!(counts(&policy, &endpoints, 300, &|index, _| index != 1), HashMap::from([(0, 100), (2, 100), (3, 100)]));
}

#[test]
fn round_robin_rounds_weights_that_would_need_a_long_cycle() {
    let endpoints = endpoints(&[1_000_003, 1_999_993, 1]);
    let policy = RoundRobin::new(&endpoints, 0);
    let counts = counts(&policy, &endpoints, 30_000, &all);
    assert!((9_900..10_100).contains(&counts[&0]) && (19_900..20_100).contains(&counts[&1]), "{counts:?}");
}

#[test]
fn gateways_that_reload_together_do_not_begin_with_the_same_endpoint() {
    let endpoints = endpoints(&[1; 10]);
    for name in NAMES {
        let mut first = HashMap::new();
        for gateway in 0..1_000u64 {
            let policy = policy(name, &endpoints, mix(gateway), 3_000);
            let mut cx = cx(&all, gateway);
            cx.key = Some(mix(gateway));
            *first.entry(policy.pick(&endpoints, &mut cx).unwrap()).or_insert(0) += 1;
        }
        // A share of 100; five standard deviations are 47.
        assert!(first.len() == 10 && first.values().all(|n| (50..=150).contains(n)), "{name:?}: {first:?}");
    }
}

#[test]
fn least_request_weighs_what_is_in_flight() {
    for count in [2, 40] {
        let weights: Vec<u32> = (0..count).map(|n| if n % 2 == 0 { 1 } else { 3 }).collect();
        let endpoints = endpoints(&weights);
        let policy = LeastRequest::new(&endpoints);
        let slots: Vec<Slot> = (0..count as u64 * 40)
            .map(|n| endpoints[policy.pick(&endpoints, &mut cx(&all, n)).unwrap()].state.try_acquire(u32::MAX).unwrap())
            .collect();
        for (e, weight) in endpoints.iter().zip(&weights) {
            let in_flight = e.state.in_flight();
            assert!((weight * 20 - 5..=weight * 20 + 5).contains(&in_flight), "{count}: {in_flight} for {weight}");
        }
        drop(slots);
        assert!(endpoints.iter().all(|e| e.state.in_flight() == 0));
    }
}

#[test]
fn peak_ewma_prefers_the_faster_and_sends_one_request_to_the_unknown() {
    let endpoints = endpoints(&[1; 3]);
    for (e, millis) in endpoints.iter().zip([10, 100]) {
        e.state.latency.observe(std::time::Duration::from_millis(millis), 1);
    }
    let policy = PeakEwma::new(&endpoints);
    let _slots: Vec<Slot> = (0..120)
        .map(|n| endpoints[policy.pick(&endpoints, &mut cx(&all, n)).unwrap()].state.try_acquire(u32::MAX).unwrap())
        .collect();
    let in_flight: Vec<_> = endpoints.iter().map(|e| e.state.in_flight()).collect();
    assert_eq!(in_flight[2], 1, "nobody knows how fast it is");
    assert!(in_flight[0] > 5 * in_flight[1], "{in_flight:?}");
}

#[test]
fn the_shortest_queue_is_taken_and_what_was_sent_since_it_was_read_counts() {
    let endpoints = endpoints(&[1; 3]);
    for (e, waiting) in endpoints.iter().zip([0, 5, 9]) {
        e.reported(&LoadReport { waiting: Some(waiting), kv_cache: None }, 1);
    }
    let policy = ShortestQueue::new(&endpoints, 3_000);
    let slots: Vec<Slot> = (0..30)
        .map(|n| endpoints[policy.pick(&endpoints, &mut cx(&all, n)).unwrap()].state.try_acquire(u32::MAX).unwrap())
        .collect();
    let in_flight: Vec<_> = endpoints.iter().map(|e| e.state.in_flight()).collect();
    assert_eq!(in_flight.iter().sum::<u32>(), 30);
    assert!((14..=16).contains(&in_flight[0]) && (9..=11).contains(&in_flight[1]), "{in_flight:?}");
    drop(slots);
    let stale = |n| {
        let mut later = cx(&all, n);
        later.now = 10_000;
        policy.pick(&endpoints, &mut later).unwrap()
    };
    let seen: std::collections::BTreeSet<_> = (0..300).map(stale).collect();
    assert_eq!(seen.len(), 3, "stale figures count for nothing");
}

#[test]
fn a_key_stays_and_only_keys_of_an_endpoint_that_goes_move() {
    let many = endpoints(&[1; 50]);
    let at = |endpoints: &[Arc<Endpoint>], key: u64| {
        let policy = Hash::new(endpoints);
        let pick = |key: u64| {
            let mut cx = cx(&all, 1);
            cx.key = Some(hash_key(&key.to_le_bytes()));
            endpoints[policy.pick(endpoints, &mut cx).unwrap()].address.clone()
        };
        (0..key).map(pick).collect::<Vec<_>>()
    };
    let before = at(&many, 4_000);
    let less: Vec<_> = many.iter().filter(|e| e.address != many[7].address).cloned().collect();
    let after = at(&less, 4_000);
    let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    let of_the_gone = before.iter().filter(|a| **a == many[7].address).count();
    assert_eq!(moved, of_the_gone);
    assert!((30..=200).contains(&of_the_gone), "about a fiftieth of 4,000: {of_the_gone}");
}

#[test]
fn one_hot_key_spreads_when_its_endpoint_has_more_than_its_share() {
    let endpoints = endpoints(&[1; 10]);
    let policy = Hash::new(&endpoints);
    let _slots: Vec<Slot> = (0..1_000)
        .map(|n| {
            let mut cx = cx(&all, n);
            cx.key = Some(42);
            endpoints[policy.pick(&endpoints, &mut cx).unwrap()].state.try_acquire(u32::MAX).unwrap()
        })
        .collect();
    let most = endpoints.iter().map(|e| e.state.in_flight()).max().unwrap();
    assert!((100..=126).contains(&most), "{most}");
}

#[test]
fn a_slow_start_rises_to_the_whole_share() {
    for name in [PolicyName::RoundRobin, PolicyName::LeastRequest] {
        for (passed, share) in [(0, 0.1), (5_000, 0.5), (10_000, 1.0)] {
            let endpoints = changed(endpoints(&[1; 4]), |_, e| e.slow_start = 10_000);
            endpoints[0].state.returned(1_000);
            let policy = policy(name, &endpoints, 0, 0);
            let mut slots = Vec::new();
            for n in 0..2_000 {
                let mut cx = cx(&all, n);
                cx.now = 1_000 + passed;
                slots.push(endpoints[policy.pick(&endpoints, &mut cx).unwrap()].state.try_acquire(u32::MAX).unwrap());
            }
            let (first, second) = (endpoints[0].state.in_flight(), endpoints[1].state.in_flight());
            let got = f64::from(first) / f64::from(second);
            assert!((got - share).abs() < 0.12, "{name:?} after {passed}: {got}");
        }
    }
}

proptest::proptest! {
    /// At any weights: a pick is open, and there is a pick while an endpoint is open.
    #[test]
    fn every_policy_picks_an_open_endpoint_if_there_is_one(
        weights in proptest::collection::vec(1u32..1_000, 1..80),
        open in proptest::collection::vec(proptest::bool::weighted(0.2), 80),
        in_flight in proptest::collection::vec(0u32..5, 80),
        seed in 0u64..u64::MAX,
        key in proptest::option::of(0u64..u64::MAX),
    ) {
        let endpoints = endpoints(&weights);
        let _slots: Vec<Slot> = endpoints.iter().zip(&in_flight)
            .flat_map(|(e, n)| (0..*n).map(|_| e.state.try_acquire(u32::MAX).unwrap())).collect();
        let eligible = |index: usize, _: &Endpoint| open[index];
        for name in NAMES {
            let policy = policy(name, &endpoints, seed, 3_000);
            for n in 0..3 {
                let mut cx = cx(&eligible, seed.wrapping_add(n));
                cx.key = key;
                match policy.pick(&endpoints, &mut cx) {
                    Some(index) => proptest::prop_assert!(open[index], "{name:?}"),
                    None => proptest::prop_assert!(!open[..weights.len()].contains(&true), "{name:?}"),
                }
            }
        }
    }
}
