//! Rollouts in simulation: rate of false alarms, speed of true ones, merges, steps, verdicts that explain themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod simulation;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use simulation::{Callers, at_share, drift_at_its_limit, equal, faults, requests};
use spillway_statistics::distance::{EDGES, edges_of};
use spillway_statistics::sketch::Sketch;
use spillway_statistics::{Finding, Kind, Metric, Plan, Rollout, RolloutError, Verdict, Version};

fn metric(name: &str, kind: Kind, threshold: &str) -> Metric {
    Metric { name: name.to_owned(), kind, threshold: threshold.parse().unwrap() }
}

fn plan() -> Plan {
    Plan::new(vec![
        metric("errorRate", Kind::Share, "+0.02"),
        metric("latencyP95", Kind::Quantile { level: 0.95 }, "1.3x"),
        metric("tokensPerSecond", Kind::Mean { cap: None }, "0.8x"),
    ])
}

/// Feeds a rollout with `requests` requests, every second to the candidate.
fn feed(rollout: &mut Rollout, requests: u64, errors: (u64, u64), slower: f64) {
    for request in 0..requests {
        let (version, every) =
            if request.is_multiple_of(2) { (Version::Stable, errors.0) } else { (Version::Candidate, errors.1) };
        let slowness = if version == Version::Candidate { slower } else { 1.0 };
        let failed = every > 0 && (request / 2).is_multiple_of(every);
        rollout.observe(0, version, request, f64::from(u8::from(failed)));
        rollout.observe(1, version, request, slowness * (1.0 + (request * 7919 % 997) as f64 / 997.0));
        rollout.observe(2, version, request, 40.0 + (request * 104_729 % 89) as f64 / 10.0);
    }
}

#[test]
fn equal_versions_are_seldom_aborted() {
    let quick =
        [(Callers::Independent, false, 0.5), (Callers::Independent, true, 0.1), (Callers::Repeating(60), true, 0.5)];
    for (callers, heavy, split) in quick {
        let world = equal(true, callers, split, heavy);
        let rollouts = 40;
        let wrong = world.rollouts(rollouts, 250).iter().flatten().count() as f64;
        let allowed = rollouts as f64 * world.false_alarm;
        assert!(wrong <= allowed + 3.0 * allowed.sqrt(), "{callers:?}: {wrong} of {rollouts} aborted");
    }
}

#[test]
#[ignore = "minutes: the full form of the simulation, also printed by the example `rollouts`"]
fn equal_versions_are_aborted_at_the_stated_rate() {
    for callers in [Callers::Independent, Callers::Repeating(60)] {
        let world = equal(true, callers, 0.5, true);
        let wrong = world.rollouts(20_000, 1000).iter().flatten().count() as f64 / 20_000.0;
        assert!(wrong <= 0.01 + 3.0 * (0.01_f64 * 0.99 / 20_000.0).sqrt(), "{callers:?}: {wrong}");
    }
}

#[test]
fn a_distance_at_its_limit_is_seldom_aborted() {
    for (callers, split) in [(Callers::Independent, 0.5), (Callers::Repeating(60), 0.1)] {
        let world = drift_at_its_limit(callers, split);
        let wrong = world.rollouts(40, 250).iter().flatten().count();
        assert!(wrong <= 2, "{callers:?}: {wrong} of 40 aborted");
    }
}

/// Pairs of answers to the same request go well and badly together. Their versions are equal and their thresholds lie where equal
/// versions lie.
#[test]
fn pairs_of_equal_versions_are_seldom_aborted() {
    for together in [0.0, 0.5, 1.0] {
        let (rollouts, mut aborted) = (40, 0);
        for seed in 0..rollouts {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let metrics = vec![
                metric("errorRate", Kind::Share, "+0"),
                metric("latencyP95", Kind::Quantile { level: 0.95 }, "+0"),
                metric("tokensPerSecond", Kind::Mean { cap: None }, "-0"),
            ];
            let mut rollout = Rollout::new(Plan { false_alarm: 0.05, ..Plan::new(metrics) }, 0.5).unwrap();
            for pair in 0..250 {
                let one: [f64; 3] = rng.random();
                let other: [f64; 3] = if rng.random::<f64>() < together { one } else { rng.random() };
                for (version, [error, latency, speed]) in [(Version::Stable, one), (Version::Candidate, other)] {
                    rollout.observe(0, version, pair, f64::from(u8::from(error < 0.05)));
                    rollout.observe(1, version, pair, -latency.max(1e-9).ln());
                    rollout.observe(2, version, pair, 30.0 + 20.0 * speed);
                }
                if pair % 5 == 0 && rollout.is_worse() {
                    aborted += 1;
                    break;
                }
            }
        }
        let allowed = 0.05 * f64::from(u32::try_from(rollouts).unwrap());
        assert!(f64::from(aborted) <= allowed + 3.0 * allowed.sqrt(), "{together}: {aborted} of {rollouts} aborted");
    }
}

#[test]
fn a_distance_says_how_far_the_versions_are_apart() {
    let value = |request: u64| 100.0 + (request * 7919 % 997) as f64;
    let mut before = Sketch::default();
    (0..200).for_each(|request| before.add(value(request)));
    let kind = Kind::Distance { edges: edges_of(&before).unwrap() };
    let judged = |shift: f64| {
        let mut rollout = Rollout::new(Plan::new(vec![metric("outputDrift", kind, "0.2")]), 0.5).unwrap();
        for request in 0..3000 {
            rollout.observe(0, Version::Stable, 2 * request, value(request));
            rollout.observe(0, Version::Candidate, 2 * request + 1, value(request + 500) + shift);
        }
        let stored: Rollout = serde_json::from_str(&serde_json::to_string(&rollout).unwrap()).unwrap();
        let mut both = stored.restored().unwrap();
        assert_eq!((both.is_worse(), both.is_fine()), (shift > 300.0, shift < 100.0));
        let alone = both.judge();
        both.merge(&rollout).unwrap();
        assert_eq!(both.judge().metrics[0].candidate.requests, 6000);
        alone
    };
    let same = judged(0.0);
    assert_eq!(same.verdict, Verdict::Promote, "{same:#?}");
    assert!(
        same.metrics[0].effect < 0.03 && same.metrics[0].lower == Some(0.0) && same.metrics[0].upper.unwrap() < 0.2
    );
    let moved = judged(400.0);
    assert_eq!(moved.verdict, Verdict::Abort, "{moved:#?}");
    let found = &moved.metrics[0];
    assert!(
        (found.effect - 0.4).abs() < 0.03 && found.lower.unwrap() > 0.2 && found.upper.unwrap() < 0.5,
        "{found:#?}"
    );
    assert!(found.sentence.starts_with("outputDrift is worse"), "{}", found.sentence);
}

#[test]
fn distances_without_edges_or_a_limit_are_refused() {
    let begin = |edges: [f64; EDGES], threshold: &str| {
        Rollout::new(Plan::new(vec![metric("outputDrift", Kind::Distance { edges }, threshold)]), 0.5).is_ok()
    };
    assert!(begin([1.0; EDGES], "0.2"));
    let mut falling = [1.0; EDGES];
    falling[3] = 2.0;
    assert!(!begin(falling, "0.2") && !begin([f64::NAN; EDGES], "0.2"));
    for threshold in ["+0.2", "1.5x", "0", "1", "1.2"] {
        assert!(!begin([1.0; EDGES], threshold), "{threshold}");
    }
}

#[test]
fn faults_are_stopped_soon() {
    // The two that take thousands of requests are in the full form.
    for fault in faults(0.1).into_iter().filter(|fault| fault.fixed < 200.0) {
        let ends = requests(&fault.world.rollouts(12, (fault.fixed * 8.0) as u64));
        let by = at_share(&ends, 0.8);
        assert!(by <= 2.5 * fault.fixed.ceil(), "{}: {by} requests, fixed sample {}", fault.says, fault.fixed);
    }
}

#[test]
fn verdicts_explain_themselves() {
    let mut rollout = Rollout::new(plan(), 0.5).unwrap();
    feed(&mut rollout, 20, (0, 0), 1.0);
    let judged = rollout.judge();
    assert_eq!(judged.verdict, Verdict::Inconclusive);
    assert!(judged.metrics[2].sentence.contains("too few requests or callers"), "{}", judged.metrics[2].sentence);

    feed(&mut rollout, 2000, (0, 0), 1.0);
    let judged = rollout.judge();
    assert_eq!(judged.metrics[0].finding, Finding::Fine, "{}", judged.metrics[0].sentence);
    assert!(
        judged.metrics[0].sentence.contains("errorRate is within its threshold: 0.00 at the candidate (1010 requests)")
    );

    let mut worse = Rollout::new(plan(), 0.5).unwrap();
    feed(&mut worse, 1000, (0, 5), 1.0);
    assert!(worse.is_worse() && !worse.is_fine());
    let judged = worse.judge();
    assert_eq!(judged.verdict, Verdict::Abort);
    assert!(judged.sentence.starts_with("Abort: errorRate past its threshold, at a false-alarm rate of 0.01"));
    let errors = &judged.metrics[0];
    assert_eq!((errors.finding, errors.candidate.requests, errors.more), (Finding::Worse, 500, None));
    assert!((errors.effect - 0.2).abs() < 1e-9 && errors.lower.unwrap() > 0.02 && errors.lower.unwrap() < 0.2);
    assert!(errors.upper.unwrap() > 0.2 && errors.ln_worse >= errors.ln_worse_needed);
    let json = serde_json::to_value(&judged).unwrap();
    assert_eq!(json["metrics"][0]["threshold"], "+0.02");
    assert_eq!(json["verdict"], "abort");
}

#[test]
fn a_fine_candidate_is_promoted_and_the_projection_is_near_the_truth() {
    let mut rollout = Rollout::new(plan(), 0.5).unwrap();
    feed(&mut rollout, 400, (100, 100), 1.0);
    let judged = rollout.judge();
    let undecided: Vec<_> = judged.metrics.iter().filter(|metric| metric.finding == Finding::Undecided).collect();
    let more = undecided.iter().filter_map(|metric| metric.more).max().expect("some metric still undecided");
    feed(&mut rollout, 4 * more, (100, 100), 1.0);
    let judged = rollout.judge();
    assert_eq!(judged.verdict, Verdict::Promote, "{judged:#?}");
    assert!(rollout.is_fine() && !rollout.is_worse());
    assert!(judged.sentence.starts_with("Promote: every metric is within its threshold"));
}

/// Judge of the p95 of latency after a thousand requests at each version. Of those at the candidate, all callers left after a wait.
fn left_after(wait: f64, threshold: &str) -> Rollout {
    let plan = Plan::new(vec![metric("latencyP95", Kind::Quantile { level: 0.95 }, threshold)]);
    let mut rollout = Rollout::new(plan, 0.5).unwrap();
    for request in 0..1000 {
        // From 1 to 2, with a p95 of 1.95.
        rollout.observe(0, Version::Stable, 2 * request, 1.0 + (request * 7919 % 997) as f64 / 997.0);
        rollout.observe_at_least(0, Version::Candidate, 2 * request + 1, wait);
    }
    rollout
}

#[test]
fn callers_that_leave_show_a_candidate_that_hangs_as_far_as_they_waited() {
    for (wait, threshold, is_worse, is_seen) in [
        (10.0, "1.3x", true, true),
        // Past stable's p95, but not past the limit: neither worse nor fine.
        (2.2, "1.3x", false, true),
        (1.5, "1.3x", false, false),
        (3.0, "2.5", true, true),
        (2.2, "2.5", false, false),
    ] {
        let rollout = left_after(wait, threshold);
        let judged = rollout.judge();
        assert_eq!(rollout.is_worse(), is_worse, "{wait} {threshold}");
        assert!(!rollout.is_fine(), "{wait} {threshold}: nobody had an answer");
        assert_eq!(judged.metrics[0].candidate.requests > 0, is_seen, "{wait} {threshold}");
    }
}

#[test]
fn callers_that_leave_equal_versions_alike_accuse_nobody_and_let_a_fine_one_be_fine() {
    let (mut wrong, mut fine) = (0, 0);
    for seed in 0..60_u64 {
        let plan = Plan::new(vec![metric("latencyP95", Kind::Quantile { level: 0.95 }, "1.5x")]);
        let mut rollout = Rollout::new(plan, 0.5).unwrap();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        for request in 0..6000 {
            let version = if request % 2 == 0 { Version::Stable } else { Version::Candidate };
            // Latency with a long tail, and patience that ends for a few within it and for a tenth at once.
            let (latency, patience) = ((1.0 - uniform()).powf(-0.3), if uniform() < 0.1 { 0.5 } else { 4.0 });
            if latency <= patience {
                rollout.observe(0, version, request, latency);
            } else {
                rollout.observe_at_least(0, version, request, patience);
            }
            if request % 500 == 499 && rollout.is_worse() {
                wrong += 1;
                break;
            }
        }
        fine += usize::from(rollout.is_fine());
    }
    assert!(wrong <= 2, "{wrong} of 60 aborted");
    assert!(fine >= 45, "{fine} of 60 fine");
}

#[test]
fn one_loud_caller_is_no_sample() {
    let mut rollout = Rollout::new(plan(), 0.5).unwrap();
    for request in 0..5000_u64 {
        let version = if request.is_multiple_of(2) { Version::Stable } else { Version::Candidate };
        let failed = version == Version::Candidate;
        rollout.observe(0, version, if failed { 1 } else { request }, f64::from(u8::from(failed)));
    }
    assert!(!rollout.is_worse());
    assert!(rollout.judge().metrics[0].sentence.contains("too few requests or callers"));
}

#[test]
fn evidence_is_carried_over_steps_and_fine_is_shown_anew() {
    let mut steps = plan();
    steps.steps = 3;
    let mut rollout = Rollout::new(steps, 0.1).unwrap();
    feed(&mut rollout, 3000, (200, 200), 1.0);
    let fine = rollout.judge();
    assert_eq!(fine.metrics[0].finding, Finding::Fine);
    rollout.next_step(0.5).unwrap();
    let begun = rollout.judge();
    assert_eq!((begun.step, begun.metrics[0].candidate.requests), (1, 0));
    assert_ne!(begun.metrics[0].finding, Finding::Fine);
    assert!(!rollout.is_worse());
    // Under load it fails: the product that begins here finds that, whatever the first step said.
    feed(&mut rollout, 600, (200, 5), 1.0);
    assert!(rollout.is_worse());
    assert_eq!(rollout.judge().verdict, Verdict::Abort);
}

#[test]
fn simpsons_paradox_accuses_nobody() {
    // Errors rise from 1 % to 20 % for both versions just when the candidate's share rises from 5 % to 50 %.
    let mut steps = plan();
    steps.steps = 2;
    let mut rollout = Rollout::new(steps, 0.05).unwrap();
    let hour = |rollout: &mut Rollout, candidate_every: u64, errors_every: u64| {
        for request in 0..8000_u64 {
            let version = if request.is_multiple_of(candidate_every) { Version::Candidate } else { Version::Stable };
            let failed = (request / candidate_every).is_multiple_of(errors_every);
            rollout.observe(0, version, request, f64::from(u8::from(failed)));
        }
    };
    hour(&mut rollout, 20, 100);
    assert!(!rollout.is_worse());
    rollout.next_step(0.5).unwrap();
    hour(&mut rollout, 2, 5);
    assert!(!rollout.is_worse(), "{:#?}", rollout.judge().metrics[0]);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let mut nothing = plan();
    nothing.metrics.clear();
    assert!(Rollout::new(nothing, 0.5).unwrap_err().to_string().contains("no metric"));
    assert!(matches!(Rollout::new(plan(), 1.0), Err(RolloutError::Plan(_))));
    let mut careless = plan();
    careless.minimum = 10;
    assert!(Rollout::new(careless, 0.5).is_err());

    let (mut first, mut second) = (Rollout::new(plan(), 0.1).unwrap(), Rollout::new(plan(), 0.1).unwrap());
    second.next_step(0.5).unwrap();
    assert_eq!(first.merge(&second), Err(RolloutError::Step { expected: 0, found: 1 }));

    let mut stored = serde_json::to_value(&first).unwrap();
    assert_eq!(serde_json::from_value::<Rollout>(stored.clone()).unwrap().restored(), Ok(first));
    stored["observed"][0]["sample"]["stable"]["buckets"] = serde_json::json!([]);
    assert!(matches!(serde_json::from_value::<Rollout>(stored).unwrap().restored(), Err(RolloutError::Damaged(_))));
}

#[test]
fn judgements_without_a_finite_number_are_read_again() {
    let ratio = Plan::new(vec![metric("errorRate", Kind::Share, "1.5x")]);
    let mut rollout = Rollout::new(ratio, 0.5).unwrap();
    for request in 0..40_u64 {
        rollout.observe(0, Version::Candidate, request, 1.0);
        rollout.observe(0, Version::Stable, request, 0.0);
    }
    let judged = rollout.judge();
    assert!(!judged.metrics[0].effect.is_finite(), "a ratio to no error at all");
    let json = serde_json::to_string(&judged).unwrap();
    let read: spillway_statistics::Judgement = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), json);
}

#[test]
fn stored_state_stays_within_the_stated_size() {
    let mut rollout = Rollout::new(plan(), 0.5).unwrap();
    feed(&mut rollout, 20_000, (100, 100), 1.0);
    let size = serde_json::to_string(&rollout).unwrap().len();
    assert!(size < 64 * 1024, "{size} bytes of JSON for three metrics");
}

type Row = (bool, u64, f64);

fn seen(rows: &[Row]) -> Rollout {
    let mut rollout = Rollout::new(plan(), 0.5).unwrap();
    for (candidate, unit, value) in rows {
        let version = if *candidate { Version::Candidate } else { Version::Stable };
        rollout.observe(0, version, *unit, f64::from(u8::from(*value > 4.0)));
        rollout.observe(1, version, *unit, *value);
        rollout.observe(2, version, *unit, *value);
    }
    rollout
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Two gateways that merge know what one that saw all would know.
    #[test]
    fn merge_is_the_judge_of_both_streams(
        rows in prop::collection::vec((any::<bool>(), any::<u64>(), 0.001..5.0_f64), 0..700), cut in 0usize..700,
    ) {
        let (left, right) = rows.split_at(cut.min(rows.len()));
        let (mut merged, both) = (seen(left), seen(&rows));
        merged.merge(&seen(right)).unwrap();
        let stored: Rollout = serde_json::from_str(&serde_json::to_string(&merged).unwrap()).unwrap();
        let (ours, theirs) = (stored.restored().unwrap().judge(), both.judge());
        prop_assert_eq!(ours.verdict, theirs.verdict);
        for (one, other) in ours.metrics.iter().zip(&theirs.metrics) {
            prop_assert_eq!(one.finding, other.finding);
            prop_assert_eq!(one.candidate.requests, other.candidate.requests);
            let near = |one: f64, other: f64| (one - other).abs() <= 1e-6 * (1.0 + one.abs()) || one.to_bits() == other.to_bits();
            prop_assert!(near(one.ln_worse, other.ln_worse) && near(one.ln_fine, other.ln_fine));
            prop_assert!(near(one.stable.estimate, other.stable.estimate));
        }
    }
}
