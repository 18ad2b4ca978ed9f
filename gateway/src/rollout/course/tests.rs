//! Courses of rollouts in simulated worlds of known truth (`statistics/tests/simulation`), and what several gateways and a
//! restart make of them.

#[path = "../../../../statistics/tests/simulation/mod.rs"]
mod simulation;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use simulation::{Callers, World, at_share, drift_at_its_limit, equal, faults};
use spillway_statistics::Verdict;
use spillway_statistics::distance::EDGES;

use super::*;
use crate::rollout::machine::{Hold, OnInconclusive, Step};

fn weight(percent: f64, requests: u64) -> Step {
    Step::Weight { percent, hold: Hold { seconds: 0.0, requests } }
}

fn schedule(world: &World, steps: Vec<Step>) -> Arc<Schedule> {
    let mut plan = world.plan();
    let mut needs_warm_up = Vec::new();
    for (place, metric) in plan.metrics.iter_mut().enumerate() {
        // Caps and edges are found in the requests of the stable version, not known.
        match &mut metric.kind {
            Kind::Mean { cap: cap @ Some(_) } => *cap = None,
            Kind::Distance { edges } => *edges = [0.0; EDGES],
            _ => continue,
        }
        needs_warm_up.push(place);
    }
    let false_alarm = world.false_alarm;
    Arc::new(Schedule { false_alarm, judge: Some(plan), needs_warm_up, ..Schedule::for_tests(steps) })
}

/// Schedule that goes on where evidence lacks.
fn going_on(world: &World, steps: Vec<Step>) -> Arc<Schedule> {
    Arc::new(Schedule { on_inconclusive: OnInconclusive::Promote, ..(*schedule(world, steps)).clone() })
}

fn course(schedule: Arc<Schedule>) -> Course {
    Course::new(Machine::new(schedule, 0.0))
}

/// Sends one request through a course; true if it was the candidate's.
fn send(course: &mut Course, requests: &mut simulation::Requests<'_>) -> bool {
    let request = requests.next(course.record().weight / 100.0);
    course.concluded(request.version);
    for (place, value) in request.values {
        course.observe(place, request.version, request.unit, value);
    }
    request.version == Version::Candidate
}

/// End of a simulated rollout, and the requests that the candidate had until then.
#[derive(Clone, Copy, Debug)]
struct Life {
    state: RolloutState,
    served: u64,
}

/// Rollout number `seed` of a world: a thousand requests a second, looked at after each, until its end or until the candidate has
/// had `most` requests.
fn live(world: &World, schedule: &Arc<Schedule>, seed: u64, most: u64) -> Life {
    let mut course = course(schedule.clone());
    let mut requests = world.requests(seed);
    let (mut served, mut now) = (0, 0.0);
    while !course.record().state.is_end() && served < most {
        now += 0.001;
        let at_candidate = send(&mut course, &mut requests);
        served += u64::from(at_candidate);
        if at_candidate || course.record().weight == 0.0 {
            let before = course.record().weight;
            course.look(now, None, &[]).unwrap();
            let after = course.record().weight;
            assert!(after >= before || course.record().state == RolloutState::Aborted);
        }
    }
    Life { state: course.record().state, served }
}

fn lives(world: &World, schedule: &Arc<Schedule>, rollouts: u64, most: u64) -> Vec<Life> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (next, lives) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= rollouts {
                        return;
                    }
                    let life = live(world, schedule, seed, most);
                    lives.lock().unwrap().push(life);
                }
            });
        }
    });
    lives.into_inner().unwrap()
}

fn share(lives: &[Life], state: RolloutState) -> f64 {
    lives.iter().filter(|life| life.state == state).count() as f64 / lives.len() as f64
}

/// Requests of the candidate until each abort; infinite where there was none.
fn stops(lives: &[Life]) -> Vec<f64> {
    let stopped = |life: &Life| if life.state == RolloutState::Aborted { life.served as f64 } else { f64::INFINITY };
    let mut stops: Vec<f64> = lives.iter().map(stopped).collect();
    stops.sort_by(f64::total_cmp);
    stops
}

/// Steps of the simulations: most of the rollout is at the share for which the faults' fixed samples are computed.
fn steps(first: u64, second: u64) -> Vec<Step> {
    vec![weight(10.0, first), weight(50.0, second)]
}

#[test]
fn bad_versions_are_aborted_and_equal_ones_seldom() {
    for fault in faults(0.1).into_iter().filter(|fault| fault.fixed < 200.0) {
        let lives = lives(&fault.world, &schedule(&fault.world, steps(2000, 500)), 12, 4000);
        assert!(share(&lives, RolloutState::Promoted) == 0.0, "{}: {lives:?}", fault.says);
        let by = at_share(&stops(&lives), 0.8);
        assert!(by <= 2.5 * fault.fixed.ceil(), "{}: {by} requests, fixed sample {}", fault.says, fault.fixed);
    }
    let rollouts = 24;
    for (edge, heavy) in [(true, true), (false, false)] {
        let world = equal(edge, Callers::Independent, 0.1, heavy);
        let lives = lives(&world, &going_on(&world, steps(200, 200)), rollouts, 400);
        let allowed = rollouts as f64 * world.false_alarm;
        let wrong = share(&lives, RolloutState::Aborted) * rollouts as f64;
        assert!(wrong <= allowed + 3.0 * allowed.sqrt(), "{wrong} of {rollouts} aborted");
    }
}

#[test]
#[ignore = "minutes: prints the table of docs/rollout-statistics.md; SPILLWAY_ROLLOUTS=1000 sets the number of rollouts"]
fn table_of_simulated_rollouts() {
    let rollouts = std::env::var("SPILLWAY_ROLLOUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    println!("| version | callers | rollouts | aborted | promoted | undecided | stopped by: median | 80 % |");
    println!("|---|---|---|---|---|---|---|---|");
    let row = |says: &str, callers: &str, lives: &[Life]| {
        let (aborted, promoted) = (share(lives, RolloutState::Aborted), share(lives, RolloutState::Promoted));
        let stops = stops(lives);
        let by = |share: f64| {
            let by = at_share(&stops, share);
            if by.is_finite() { format!("{by}") } else { "-".to_owned() }
        };
        println!(
            "| {says} | {callers} | {} | {:.1} % | {:.1} % | {:.1} % | {} | {} |",
            lives.len(),
            100.0 * aborted,
            100.0 * promoted,
            100.0 * (1.0 - aborted - promoted),
            by(0.5),
            by(0.8)
        );
        (aborted, promoted)
    };
    for (says, edge, heavy, callers) in [
        ("equal, usual thresholds", false, false, Callers::Independent),
        ("equal, usual thresholds, heavy tails", false, true, Callers::Independent),
        ("equal, at the edge, heavy tails", true, true, Callers::Independent),
        ("equal, at the edge, heavy tails", true, true, Callers::Repeating(300)),
    ] {
        let world = equal(edge, callers, 0.1, heavy);
        let lives = lives(&world, &going_on(&world, steps(400, 400)), rollouts, u64::MAX);
        let who = if callers == Callers::Independent { "independent" } else { "300, repeating" };
        let (aborted, _) = row(says, who, &lives);
        let error = (world.false_alarm * (1.0 - world.false_alarm) / rollouts as f64).sqrt();
        assert!(aborted <= world.false_alarm + 3.0 * error, "{says}: {aborted}");
    }
    for fault in faults(0.1) {
        let most = (fault.fixed * 8.0) as u64 + 1000;
        let lives = lives(&fault.world, &schedule(&fault.world, steps(most, 1)), rollouts, most);
        row(fault.says, "independent", &lives);
    }
}

/// A world of seven metrics with equal versions, of which one needs a cap.
fn world() -> World {
    equal(false, Callers::Independent, 0.1, false)
}

#[test]
fn the_first_step_waits_for_the_requests_that_fix_the_caps() {
    let world = world();
    let schedule = schedule(&world, vec![weight(10.0, 100), weight(50.0, 100)]);
    let mut course = course(schedule.clone());
    let mut requests = world.requests(1);
    for _ in 0..WARM_UP - 1 {
        send(&mut course, &mut requests);
    }
    assert!(course.look(1.0, None, &[]).unwrap().is_empty());
    let expected = "has not begun: 199 of 200 requests at the stable version, by which costPerRequest is measured";
    assert_eq!((course.record().state, course.record().reason.as_str()), (RolloutState::Waiting, expected));
    send(&mut course, &mut requests);
    // Outside the hours it waits for these, and the values are kept.
    let closed = HeldUp::Hours { opens: None };
    course.look(2.0, Some(closed), &[]).unwrap();
    assert_eq!(course.record().state, RolloutState::Waiting);
    course.look(3.0, None, &[]).unwrap();
    assert_eq!((course.record().state, course.record().weight), (RolloutState::Running, 10.0));
    let judge = course.own().judge.as_ref().unwrap();
    let costs = judge.plan().metrics.iter().find(|metric| metric.name == "costPerRequest").unwrap();
    let Kind::Mean { cap: Some(cap) } = costs.kind else { panic!("{costs:?}") };
    // Log-normal with median 0.01 and deviation 0.8: its 99.5th percentile is 0.079, of which 200 values say little.
    assert!((0.03..0.3).contains(&cap), "{cap}");
    assert_eq!(judge.plan().steps, 2);
}

#[test]
fn a_cap_hides_no_candidate_that_costs_far_more() {
    // The stable version always costs the same; the cap must not be that.
    let mut world = world();
    world.truths.retain(|truth| truth.metric.name == "costPerRequest");
    world.truths[0].stable = simulation::Values::Normal(1.0, 0.001);
    world.truths[0].candidate = simulation::Values::Normal(10.0, 0.001);
    let life = live(&world, &schedule(&world, vec![weight(10.0, 2000)]), 7, 4000);
    assert_eq!(life.state, RolloutState::Aborted);
    // One that costs nothing leaves nothing to cap by.
    world.truths[0].stable = simulation::Values::Normal(0.0, 0.0);
    let life = live(&world, &schedule(&world, vec![weight(10.0, 2000)]), 7, 4000);
    assert_eq!(life.state, RolloutState::Aborted);
}

#[test]
fn edges_of_a_distance_come_from_the_stable_version_and_last() {
    let mut world = drift_at_its_limit(Callers::Independent, 0.1);
    let drifted = live(&world, &schedule(&world, vec![weight(10.0, 4000)]), 7, 4000);
    world.truths[0].candidate = world.truths[0].stable;
    let same = live(&world, &schedule(&world, vec![weight(10.0, 4000)]), 7, 4000);
    assert_eq!((drifted.state, same.state), (RolloutState::Inconclusive, RolloutState::Promoted));
    world.truths[0].candidate = simulation::Values::LogNormal(900.0, 0.8);
    assert_eq!(live(&world, &schedule(&world, vec![weight(10.0, 4000)]), 7, 4000).state, RolloutState::Aborted);

    let schedule = schedule(&world, vec![weight(10.0, 300)]);
    let mut course = course(schedule.clone());
    let mut requests = world.requests(1);
    for _ in 0..WARM_UP + 50 {
        send(&mut course, &mut requests);
    }
    course.look(1.0, None, &[]).unwrap();
    assert_eq!(course.record().state, RolloutState::Running);
    let kind = |course: &Course| course.own().judge.as_ref().unwrap().plan().metrics[0].kind;
    let Kind::Distance { edges } = kind(&course) else { panic!("{:?}", kind(&course)) };
    assert!(edges[0] > 20.0 && edges[14] < 2500.0 && edges[7] > 200.0 && edges[7] < 320.0, "{edges:?}");
    let stored: Stored = serde_json::from_str(&serde_json::to_string(&course.stored(1)).unwrap()).unwrap();
    let restored = Course::restored(schedule, stored, None).unwrap();
    assert_eq!(kind(&restored), kind(&course), "edges are fixed once");
}

#[test]
fn a_restart_goes_on_where_the_rollout_was() {
    let world = world();
    let schedule = going_on(&world, vec![weight(10.0, 300), weight(50.0, 300)]);
    let (mut whole, mut restarted) = (course(schedule.clone()), course(schedule.clone()));
    let (mut requests, mut again) = (world.requests(3), world.requests(3));
    for asked in 0..12_000_u32 {
        let now = f64::from(asked) / 1024.0;
        send(&mut whole, &mut requests);
        send(&mut restarted, &mut again);
        if asked % 50 == 0 {
            whole.look(now, None, &[]).unwrap();
            restarted.look(now, None, &[]).unwrap();
        }
        if asked % 611 == 0 {
            let mut stored = restarted.stored(1);
            assert!(stored.record.history.is_empty());
            stored.record.history.clone_from(&restarted.record().history);
            let stored: Stored = serde_json::from_str(&serde_json::to_string(&stored).unwrap()).unwrap();
            let own: Counts = serde_json::from_str(&serde_json::to_string(restarted.own()).unwrap()).unwrap();
            restarted = Course::restored(schedule.clone(), stored, Some(own)).unwrap();
        }
        let (one, other) = (whole.record(), restarted.record());
        assert_eq!((one.state, one.step, one.weight), (other.state, other.step, other.weight), "after {asked}");
        assert_eq!(one.candidate_requests, other.candidate_requests);
        if one.state.is_end() {
            return;
        }
    }
    panic!("no end: {}", whole.record().reason);
}

#[test]
fn gateways_that_share_their_counts_decide_as_one() {
    let mut world = world();
    // 10 % errors instead of 1 %.
    world.truths[0].candidate = simulation::Values::Bernoulli(0.1);
    let schedule = schedule(&world, vec![weight(10.0, 5000)]);
    let (mut alone, mut leader, mut follower) =
        (course(schedule.clone()), course(schedule.clone()), course(schedule.clone()));
    let mut requests = world.requests(5);
    for asked in 0..30_000_u32 {
        let now = f64::from(asked) / 1024.0;
        let request = requests.next(alone.record().weight / 100.0);
        let here = if asked % 3 == 0 { &mut leader } else { &mut follower };
        for course in [&mut alone, here] {
            course.concluded(request.version);
            for (place, value) in &request.values {
                course.observe(*place, request.version, request.unit, *value);
            }
        }
        if asked % 40 == 0 {
            alone.look(now, None, &[]).unwrap();
            // Through a store, as JSON.
            let others: Counts = serde_json::from_str(&serde_json::to_string(follower.own()).unwrap()).unwrap();
            leader.look(now, None, &[others]).unwrap();
            let stored: Stored = serde_json::from_str(&serde_json::to_string(&leader.stored(1)).unwrap()).unwrap();
            follower.follow(stored).unwrap();
            assert_eq!(follower.counts_key(), leader.counts_key());
            let (one, other) = (alone.record(), leader.record());
            assert_eq!(
                (one.state, one.weight, one.candidate_requests),
                (other.state, other.weight, other.candidate_requests)
            );
            assert_eq!(follower.record().state, one.state);
        }
        if alone.record().state.is_end() {
            assert_eq!(leader.record().state, RolloutState::Aborted);
            return;
        }
    }
    panic!("no end: {}", alone.record().reason);
}

#[test]
fn counts_and_states_of_another_step_are_refused() {
    let world = world();
    let schedule = going_on(&world, vec![weight(10.0, 10), weight(50.0, 10_000)]);
    let mut course = course(schedule.clone());
    let mut requests = world.requests(9);
    let mut first = None;
    for asked in 0..20_000_u32 {
        send(&mut course, &mut requests);
        course.look(f64::from(asked) / 8.0, None, &[]).unwrap();
        if course.record().weight == 10.0 {
            first = Some((course.own().clone(), course.stored(1)));
        }
        if course.record().weight == 50.0 {
            break;
        }
    }
    let (counts, before) = first.expect("a first step");
    let stands = course.record().clone();
    assert!(course.look(1e6, None, &[counts]).unwrap_err().contains("expected step 1, found 0"));
    assert_eq!(course.record(), &stands);
    let mut mixed = course.stored(1);
    mixed.base = before.base;
    assert!(Course::restored(schedule.clone(), mixed, None).unwrap_err().contains("another plan or step"));
    let mut none = course.stored(1);
    none.base = None;
    assert!(Course::restored(schedule, none, None).unwrap_err().contains("the judge is missing"));
}

#[test]
fn evidence_is_shown_while_a_step_holds_and_kept_with_its_transition() {
    let world = world();
    let mut course = course(schedule(&world, vec![weight(50.0, 1_000_000)]));
    let mut requests = world.requests(11);
    for asked in 0..400_u32 {
        send(&mut course, &mut requests);
        course.look(f64::from(asked) / 8.0, None, &[]).unwrap();
    }
    let judgement = course.record().judgement.as_ref().expect("shown every ten seconds");
    assert_eq!((judgement.verdict, judgement.metrics.len()), (Verdict::Inconclusive, 7));
    course.command(1e3, Command::Abort, "ann", None, None).unwrap();
    let last = course.record().history.last().unwrap();
    assert!(last.judgement.is_some() && course.own() == &Counts::default());
}

#[test]
fn a_switch_is_judged_by_its_limits() {
    let mut world = world();
    world.truths.truncate(1);
    world.truths[0].metric.threshold = "0.05".parse().unwrap();
    world.truths[0].candidate = simulation::Values::Bernoulli(0.2);
    let mut switch = (*schedule(&world, vec![weight(100.0, 100_000)])).clone();
    switch.strategy = Strategy::BlueGreen;
    let mut course = course(Arc::new(switch));
    let mut requests = world.requests(13);
    course.look(0.0, None, &[]).unwrap();
    assert_eq!(course.record().weight, 100.0);
    for asked in 0..2000_u32 {
        send(&mut course, &mut requests);
        course.look(f64::from(asked) / 8.0, None, &[]).unwrap();
        if course.record().state.is_end() {
            assert_eq!((course.record().state, course.record().weight), (RolloutState::Aborted, 0.0));
            return;
        }
    }
    panic!("no end: {}", course.record().reason);
}
