use proptest::prelude::{Just, ProptestConfig, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as Generator;
use spillway_statistics::{Figures, Kind, Metric};

use super::*;
use crate::rollout::record::HISTORY;
use crate::rollout::record::RolloutState::{Aborted, Inconclusive, Paused, Promoted, Running, Waiting};

fn weight(percent: f64, seconds: f64, requests: u64) -> Step {
    Step::Weight { percent, hold: Hold { seconds, requests } }
}

fn gate() -> Step {
    let url = "https://user:secret@ci.example.com/ok?token=x".parse().unwrap();
    Step::Gate(Gate { url, timeout: Duration::from_secs(5) })
}

fn plan() -> Plan {
    let metric = Metric { name: "errorRate".to_owned(), kind: Kind::Share, threshold: "+0.02".parse().unwrap() };
    Plan::new(vec![metric])
}

fn schedule(steps: Vec<Step>) -> Schedule {
    Schedule { judge: Some(plan()), ..Schedule::for_tests(steps) }
}

fn machine(steps: Vec<Step>) -> Machine {
    Machine::new(Arc::new(schedule(steps)), 0.0)
}

fn judged(verdict: Verdict) -> Judgement {
    let finding = match verdict {
        Verdict::Promote => Finding::Fine,
        Verdict::Abort => Finding::Worse,
        Verdict::Inconclusive => Finding::Undecided,
    };
    let figures = Figures { requests: 100, units: 100.0, estimate: 0.1, capped: 0.0 };
    let evidence = spillway_statistics::Evidence {
        name: "errorRate".to_owned(),
        threshold: "+0.02".parse().unwrap(),
        finding,
        stable: figures,
        candidate: figures,
        effect: 0.0,
        lower: None,
        upper: None,
        ln_worse: 0.0,
        ln_worse_needed: 4.6,
        ln_fine: 0.0,
        ln_fine_needed: 3.0,
        design_effect: 1.0,
        more: None,
        sentence: format!("errorRate is {finding:?}."),
    };
    Judgement { verdict, step: 0, false_alarm: 0.01, level: 0.01, metrics: vec![evidence], sentence: String::new() }
}

fn seen(candidate_requests: u64, verdict: Option<Verdict>) -> Look {
    Look { candidate_requests, stable_requests: 1000, judgement: verdict.map(judged), held_up: None }
}

fn closed() -> Option<HeldUp> {
    Some(HeldUp::Hours { opens: Some("tomorrow".to_owned()) })
}

#[track_caller]
fn stands(machine: &Machine, state: RolloutState, step: u32, weight: f64) {
    let record = machine.record();
    let found = (record.state, record.step, record.weight);
    assert_eq!(found, (state, step, weight), "{}", record.reason);
}

#[test]
fn a_fine_candidate_goes_through_its_steps() {
    let mut machine = machine(vec![weight(1.0, 600.0, 500), gate(), weight(25.0, 1800.0, 0), weight(100.0, 0.0, 0)]);
    stands(&machine, Waiting, 0, 0.0);
    let begun = machine.look(10.0, Look::default());
    assert_eq!((begun.len(), begun[0].event, begun[0].weight), (1, RolloutEvent::Begun, 1.0));
    stands(&machine, Running, 0, 1.0);
    assert_eq!(machine.record().started_at, Some(10.0));

    // Neither time alone nor requests alone end the hold.
    assert!(machine.look(700.0, seen(499, Some(Verdict::Promote))).is_empty());
    assert_eq!(machine.record().reason, "step 1 of 4: holds at 1 % for 1 requests at the candidate more");
    assert!(!machine.is_hold_over(609.0, 500) && machine.is_hold_over(610.0, 500));
    machine.look(701.0, seen(500, Some(Verdict::Promote)));
    stands(&machine, Running, 1, 1.0);
    assert_eq!(machine.record().reason, "step 2 of 4: the gate at https://ci.example.com is asked");

    let asked = (1, 1);
    assert!(machine.gate(None).is_some() && machine.gate(closed().as_ref()).is_none());
    let no = GateAnswer { agreed: false, text: "403".to_owned() };
    assert_eq!(machine.gate_answered(702.0, asked, &no).len(), 1);
    assert!(machine.gate_answered(712.0, asked, &no).is_empty(), "one entry for each gate");
    assert!(machine.record().reason.contains("has not agreed (403)"));
    assert!(machine.gate_answered(713.0, (1, 0), &GateAnswer { agreed: true, text: String::new() }).is_empty(), "late");
    machine.gate_answered(722.0, asked, &GateAnswer { agreed: true, text: "200".to_owned() });
    stands(&machine, Running, 1, 1.0);
    machine.look(723.0, seen(510, None));
    stands(&machine, Running, 2, 25.0);
    assert_eq!(machine.record().candidate_requests, 0, "requests are those since the weight grew");

    machine.look(723.0 + 1800.0, seen(9, Some(Verdict::Promote)));
    stands(&machine, Promoted, 3, 100.0);
    assert_eq!(machine.record().ended_at, Some(2523.0));
    assert!(machine.record().decided);
    let events: Vec<_> = machine.record().history.iter().map(|entry| entry.event.as_str()).collect();
    assert_eq!(events, ["begun", "gateAsked", "gateRefused", "gateAgreed", "stepUp", "promoted"]);
}

#[test]
fn the_end_of_the_last_hold_promotes() {
    let mut last = machine(vec![weight(50.0, 10.0, 0)]);
    last.look(0.0, Look::default());
    last.look(10.0, seen(0, Some(Verdict::Promote)));
    stands(&last, Promoted, 1, 100.0);

    let mut unjudged = schedule(vec![weight(50.0, 10.0, 0)]);
    unjudged.judge = None;
    let mut machine = Machine::new(Arc::new(unjudged), 0.0);
    machine.look(0.0, Look::default());
    machine.look(10.0, seen(0, None));
    stands(&machine, Promoted, 1, 100.0);
    assert!(machine.record().reason.ends_with("nothing was judged"));
}

#[test]
fn a_worse_candidate_is_aborted_at_any_look() {
    for prepare in [0, 1, 2, 3] {
        let mut machine = machine(vec![weight(5.0, 600.0, 0), Step::Pause { seconds: None }, weight(50.0, 1.0, 0)]);
        machine.look(0.0, Look::default());
        match prepare {
            1 => _ = machine.command(1.0, Command::Pause, "ann", None, None).unwrap(),
            2 => _ = machine.look(600.0, seen(1, Some(Verdict::Promote))),
            3 => _ = machine.look(600.0, seen(1, Some(Verdict::Inconclusive))),
            _ => {}
        }
        let entries = machine.look(601.0, Look { held_up: closed(), ..seen(30, Some(Verdict::Abort)) });
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].event, entries[0].by.as_str()), (RolloutEvent::Aborted, BY_GATEWAY));
        assert_eq!(entries[0].reason, "errorRate is Worse.");
        assert!(entries[0].judgement.is_some());
        stands(&machine, Aborted, machine.record().step, 0.0);
    }
}

#[test]
fn a_hold_without_enough_evidence_does_what_the_file_says() {
    let with = |on_inconclusive| {
        let mut machine = Machine::new(
            Arc::new(Schedule { on_inconclusive, ..schedule(vec![weight(5.0, 10.0, 0), weight(50.0, 10.0, 0)]) }),
            0.0,
        );
        machine.look(0.0, Look::default());
        machine.look(10.0, seen(3, Some(Verdict::Inconclusive)));
        machine
    };
    stands(&with(OnInconclusive::Promote), Running, 1, 50.0);
    stands(&with(OnInconclusive::Abort), Aborted, 0, 0.0);

    // Later evidence decides.
    let mut later = with(OnInconclusive::Pause);
    stands(&later, Inconclusive, 0, 5.0);
    assert_eq!(later.record().reason, "errorRate is Undecided.");
    assert!(later.look(11.0, seen(4, None)).is_empty());
    assert!(later.look(12.0, seen(4, Some(Verdict::Inconclusive))).is_empty());
    later.look(13.0, seen(5, Some(Verdict::Promote)));
    stands(&later, Running, 1, 50.0);
    // A person goes on regardless.
    let mut regardless = with(OnInconclusive::Pause);
    regardless.command(11.0, Command::Resume, "ann", None, None).unwrap();
    stands(&regardless, Running, 0, 5.0);
    regardless.look(12.0, seen(4, Some(Verdict::Inconclusive)));
    stands(&regardless, Running, 1, 50.0);
}

#[test]
fn hours_hold_steps_up_and_what_was_passed_stays_passed() {
    let mut machine = machine(vec![weight(5.0, 10.0, 0), weight(50.0, 10.0, 0)]);
    machine.look(0.0, Look { held_up: closed(), ..Look::default() });
    stands(&machine, Waiting, 0, 0.0);
    assert_eq!(machine.record().reason, "has not begun: outside the allowed hours, which begin tomorrow");
    machine.look(1.0, Look::default());
    machine.look(11.0, Look { held_up: closed(), ..seen(1, Some(Verdict::Promote)) });
    stands(&machine, Running, 0, 5.0);
    assert_eq!(machine.record().reason, "step 1 of 2 is passed; outside the allowed hours, which begin tomorrow");
    // More requests do not take back what the end of the hold has shown; only an abort does.
    machine.look(12.0, Look { held_up: closed(), ..seen(1, Some(Verdict::Inconclusive)) });
    stands(&machine, Running, 0, 5.0);
    machine.look(13.0, seen(1, None));
    stands(&machine, Running, 1, 50.0);
    let refused = machine.command(14.0, Command::Promote, "ann", None, closed()).unwrap_err();
    assert!(refused.to_string().contains("may not be promoted now: outside the allowed hours"), "{refused}");
    machine.command(15.0, Command::Abort, "ann", Some("bad answers"), closed()).unwrap();
    stands(&machine, Aborted, 1, 0.0);
    assert_eq!(machine.record().reason, "bad answers");
}

#[test]
fn pauses_end_by_time_or_by_a_person() {
    let steps = || vec![weight(5.0, 0.0, 0), Step::Pause { seconds: Some(60.0) }, weight(50.0, 9.0, 0)];
    let begun = || {
        let mut machine = machine(steps());
        machine.look(0.0, Look::default());
        machine.look(1.0, seen(1, Some(Verdict::Promote)));
        stands(&machine, Paused, 1, 5.0);
        machine
    };
    let mut timed = begun();
    assert!(timed.look(60.9, seen(1, None)).is_empty());
    timed.look(61.0, seen(1, None));
    stands(&timed, Running, 2, 50.0);
    // A person's pause outlasts it.
    let mut kept = begun();
    kept.command(2.0, Command::Pause, "ann", None, None).unwrap();
    assert!(kept.look(1e6, seen(1, None)).is_empty());
    stands(&kept, Paused, 1, 5.0);
    kept.command(1e6, Command::Resume, "ann", None, None).unwrap();
    kept.look(1e6 + 1.0, seen(1, None));
    stands(&kept, Running, 2, 50.0);
    // One in a hold goes on where it was.
    kept.command(1e6 + 2.0, Command::Pause, "ann", None, None).unwrap();
    assert!(kept.look(2e6, seen(1, Some(Verdict::Promote))).is_empty());
    kept.command(2e6, Command::Resume, "ann", None, None).unwrap();
    stands(&kept, Running, 2, 50.0);
    kept.look(2e6 + 1.0, seen(1, Some(Verdict::Promote)));
    stands(&kept, Promoted, 3, 100.0);
}

#[test]
fn commands_that_do_not_fit_are_refused_with_advice() {
    let mut machine = machine(vec![weight(5.0, 10.0, 0)]);
    let refused =
        |machine: &mut Machine, command| machine.command(1.0, command, "ann", None, None).unwrap_err().to_string();
    assert!(refused(&mut machine, Command::Start).contains("it begins by itself"));
    assert!(refused(&mut machine, Command::Pause).contains("`abort` keeps it from beginning"));
    machine.look(0.0, Look::default());
    assert!(refused(&mut machine, Command::Resume).contains("is running"));
    assert!(refused(&mut machine, Command::Start).contains("abort it first"));
    machine.command(2.0, Command::Abort, "ann", None, None).unwrap();
    for command in [Command::Pause, Command::Resume, Command::Promote, Command::Abort] {
        assert!(refused(&mut machine, command).contains("`start` begins it anew"), "{command:?}");
    }
    let again = machine.command(3.0, Command::Start, "ann", None, None).unwrap();
    assert_eq!(again[0].event, RolloutEvent::Started);
    stands(&machine, Waiting, 0, 0.0);
    assert_eq!((machine.record().run, machine.record().decided), (2, false));
    assert_eq!(machine.record().history.len(), 3, "the history is kept");
    machine.look(4.0, Look::default());
    stands(&machine, Running, 0, 5.0);
}

#[test]
fn an_edit_ends_what_runs_and_decides_nothing_about_what_never_began() {
    let mut waiting = machine(vec![weight(5.0, 10.0, 0)]);
    let ended = waiting.overtaken(1.0, "the file has another `rollout` now");
    assert_eq!((ended[0].by.as_str(), ended[0].event), (BY_FILE, RolloutEvent::Aborted));
    assert!(!waiting.record().decided);
    let mut running = machine(vec![weight(5.0, 10.0, 0)]);
    running.look(0.0, Look::default());
    running.overtaken(1.0, "the file has no `rollout` any more");
    assert!(running.record().decided);
    stands(&running, Aborted, 0, 0.0);
    assert!(running.overtaken(2.0, "again").is_empty());
}

#[test]
fn a_switch_keeps_the_old_version_warm_and_switches_back() {
    let mut blue = schedule(vec![gate(), weight(100.0, 600.0, 0)]);
    blue.strategy = Strategy::BlueGreen;
    let blue = Arc::new(blue);
    let switched = || {
        let mut machine = Machine::new(blue.clone(), 0.0);
        machine.look(0.0, Look::default());
        stands(&machine, Running, 0, 0.0);
        machine.gate_answered(1.0, (1, 0), &GateAnswer { agreed: true, text: "204".to_owned() });
        machine.look(2.0, Look::default());
        stands(&machine, Running, 1, 100.0);
        machine
    };
    let mut fine = switched();
    fine.look(602.0, seen(10, Some(Verdict::Promote)));
    stands(&fine, Promoted, 2, 100.0);
    let mut worse = switched();
    worse.look(300.0, seen(10, Some(Verdict::Abort)));
    stands(&worse, Aborted, 1, 0.0);
}

#[test]
fn a_shadow_ends_without_moving_requests() {
    let mut shadow = schedule(vec![weight(10.0, 60.0, 0), weight(100.0, 0.0, 50)]);
    shadow.strategy = Strategy::Shadow;
    let shadow = Arc::new(shadow);
    let mut machine = Machine::new(shadow.clone(), 0.0);
    let begun = machine.look(0.0, Look::default());
    assert!(begun[0].reason.contains("copies of 10 % of the requests"), "{begun:?}");
    stands(&machine, Running, 0, 10.0);
    machine.look(61.0, seen(10, Some(Verdict::Promote)));
    stands(&machine, Running, 1, 100.0);
    machine.look(62.0, seen(49, Some(Verdict::Promote)));
    stands(&machine, Running, 1, 100.0);
    let ended = machine.look(63.0, seen(50, Some(Verdict::Promote)));
    stands(&machine, Promoted, 2, 0.0);
    assert!(ended[0].reason.ends_with("a shadow moves no requests"), "{ended:?}");
    let before = Decided { state: Promoted, at: 5.0, run: 3, reason: "as then".to_owned() };
    stands(&Machine::decided(shadow, &before, 9.0), Promoted, 0, 0.0);
}

#[test]
fn what_was_decided_before_stays_ended() {
    let steps = Arc::new(schedule(vec![weight(5.0, 10.0, 0)]));
    for (state, weight) in [(Promoted, 100.0), (Aborted, 0.0)] {
        let before = Decided { state, at: 5.0, run: 3, reason: "as then".to_owned() };
        let mut machine = Machine::decided(steps.clone(), &before, 9.0);
        assert!(machine.look(10.0, Look::default()).is_empty());
        stands(&machine, state, 0, weight);
        machine.command(11.0, Command::Start, "ann", None, None).unwrap();
        assert_eq!(machine.record().run, 4);
    }
}

#[test]
fn records_that_no_machine_wrote_are_refused() {
    let mut machine = machine(vec![weight(5.0, 10.0, 0), weight(50.0, 10.0, 0)]);
    machine.look(0.0, Look::default());
    let good = machine.record().clone();
    let restored = |record| Machine::restored(machine.schedule().clone(), record).map(|_| ());
    let json = serde_json::to_string(&good).unwrap();
    assert_eq!(restored(serde_json::from_str(&json).unwrap()), Ok(()));
    let mut other = good.clone();
    other.identity = "other".to_owned();
    assert!(restored(other).is_err());
    for weight in [50.0, 100.0, f64::NAN, -1.0] {
        assert!(restored(RolloutRecord { weight, ..good.clone() }).is_err(), "{weight}");
    }
    assert!(restored(RolloutRecord { step: 2, ..good.clone() }).is_err());
    assert!(restored(RolloutRecord { step_at: f64::INFINITY, ..good.clone() }).is_err());
    assert!(restored(RolloutRecord { started_at: None, ..good }).is_err());
}

#[test]
fn the_record_is_flat_json_and_its_history_bounded() {
    let mut machine = machine(vec![weight(5.0, 1e9, 0)]);
    machine.look(0.0, Look::default());
    for time in 0..u32::try_from(HISTORY).unwrap() {
        machine.command(f64::from(time), Command::Pause, "ann", None, None).unwrap();
        machine.command(f64::from(time), Command::Resume, "ann", None, None).unwrap();
    }
    assert_eq!(machine.record().history.len(), HISTORY);
    let json = serde_json::to_value(machine.record()).unwrap();
    for (key, value) in [("state", "running"), ("strategy", "canary"), ("verdict", "inconclusive"), ("candidate", "v2")]
    {
        assert_eq!(json[key], value);
    }
    assert_eq!((json["weight"].as_f64(), json["startedAt"].as_f64()), (Some(5.0), Some(0.0)));
    assert_eq!(json["history"][0]["event"], "paused");
}

/// Input of a machine.
#[derive(Clone, Debug)]
enum Input {
    Look { held_up: bool, requests: u64, verdict: Option<Verdict> },
    Command { command: Command, held_up: bool },
    Gate { agreed: bool },
    Edit,
    Restart,
}

fn verdicts() -> impl Generator<Value = Option<Verdict>> {
    prop_oneof![
        2 => Just(None),
        4 => Just(Some(Verdict::Promote)),
        3 => Just(Some(Verdict::Inconclusive)),
        1 => Just(Some(Verdict::Abort)),
    ]
}

fn inputs() -> impl Generator<Value = Input> {
    prop_oneof![
        8 => (any::<bool>(), 0u64..200, verdicts())
            .prop_map(|(held_up, requests, verdict)| Input::Look { held_up, requests, verdict }),
        3 => (prop::sample::select(Command::ALL.to_vec()), any::<bool>())
            .prop_map(|(command, held_up)| Input::Command { command, held_up }),
        3 => any::<bool>().prop_map(|agreed| Input::Gate { agreed }),
        1 => Just(Input::Edit),
        2 => Just(Input::Restart),
    ]
}

fn steps() -> impl Generator<Value = Vec<Step>> {
    let step = |(kind, permille, seconds, requests): (u8, u32, f64, u64)| match kind {
        0 => Step::Pause { seconds: None },
        1 => Step::Pause { seconds: Some(seconds) },
        2 => gate(),
        _ => weight(f64::from(permille) / 10.0, seconds, requests),
    };
    let one = (0u8..8, 1u32..1010, 0.0..100.0_f64, 0u64..100).prop_map(step);
    prop::collection::vec(one, 0..6).prop_map(|mut steps| {
        // Weights rise, as the check of the file demands.
        let mut weights: Vec<f64> = steps.iter().filter_map(percent).collect();
        weights.sort_by(f64::total_cmp);
        let mut weights = weights.into_iter();
        for step in &mut steps {
            if let Step::Weight { percent, .. } = step {
                *percent = weights.next().unwrap_or(100.0);
            }
        }
        steps
    })
}

fn percent(step: &Step) -> Option<f64> {
    if let Step::Weight { percent, .. } = step { Some(*percent) } else { None }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_sequence_of_inputs_breaks_what_a_rollout_promises(
        steps in steps(), judged_by_none in any::<bool>(),
        strategy in prop::sample::select(vec![Strategy::Canary, Strategy::BlueGreen, Strategy::Shadow]),
        reaction in prop::sample::select(vec![OnInconclusive::Pause, OnInconclusive::Promote, OnInconclusive::Abort]),
        inputs in prop::collection::vec((-5.0..80.0_f64, inputs()), 0..60),
    ) {
        let mut schedule = schedule(steps);
        schedule.on_inconclusive = reaction;
        schedule.strategy = strategy;
        let promoted = strategy.weight_when_promoted();
        if judged_by_none {
            schedule.judge = None;
        }
        let mut machine = Machine::new(Arc::new(schedule), 0.0);
        let mut now = 0.0;
        for (later, input) in inputs {
            // A clock may be set back.
            // Quarters of a second, which JSON as read here keeps to the bit.
            now += (later * 4.0).round() / 4.0;
            let before = machine.record().clone();

            // An abort is possible in every state before the end, whatever else holds.
            let aborted = machine.clone().command(now, Command::Abort, "ann", None, closed());
            prop_assert_eq!(aborted.is_ok(), !before.state.is_end());

            let mut started = false;
            let (entries, held) = match input.clone() {
                Input::Look { held_up, requests, verdict } => {
                    let look = seen(requests, verdict);
                    let held = if held_up { closed() } else { None };
                    (machine.look(now, Look { held_up: held, ..look }), held_up)
                }
                Input::Command { command, held_up } => {
                    let held = if held_up { closed() } else { None };
                    let done = machine.command(now, command, "ann", None, held);
                    if done.is_err() {
                        prop_assert_eq!(machine.record(), &before, "a refused command changes nothing");
                    }
                    started = command == Command::Start && done.is_ok();
                    (done.unwrap_or_default(), held_up)
                }
                Input::Gate { agreed } => {
                    let asked = (before.run, before.step);
                    (machine.gate_answered(now, asked, &GateAnswer { agreed, text: "x".to_owned() }), true)
                }
                Input::Edit => (machine.overtaken(now, "edited"), true),
                Input::Restart => {
                    let json = serde_json::to_string(machine.record()).unwrap();
                    let restored = Machine::restored(machine.schedule().clone(), serde_json::from_str(&json).unwrap());
                    prop_assert!(restored.is_ok(), "{:?}: {json}", restored.err());
                    machine = restored.unwrap();
                    prop_assert_eq!(machine.record(), &before);
                    (Vec::new(), true)
                }
            };
            let after = machine.record();
            if after.weight > before.weight {
                prop_assert!(!held, "the weight grew while held up");
                prop_assert!(entries.iter().any(|entry| entry.weight == after.weight), "and no entry says so");
            }
            if after.weight < before.weight {
                let is_end = after.state == Aborted || (after.state == Promoted && strategy == Strategy::Shadow);
                prop_assert!(after.weight == 0.0 && (is_end || started), "{after:?}");
            }
            if before.state.is_end() {
                prop_assert!(started || after == &before, "an end was left");
            }
            if let Input::Look { verdict: Some(Verdict::Abort), .. } = input
                && before.started_at.is_some() && !before.state.is_end() && !judged_by_none
            {
                prop_assert_eq!(after.state, Aborted);
            }
            match after.state {
                Promoted => prop_assert_eq!(after.weight, promoted),
                Aborted | Waiting => prop_assert_eq!(after.weight, 0.0),
                Running | Paused | Inconclusive => prop_assert!(after.started_at.is_some()),
            }
            prop_assert_eq!(after.state == Paused, after.paused_by.is_some());
            if after.weight.to_bits() != before.weight.to_bits() {
                prop_assert!(after.epoch > before.epoch, "counts of two weights would be pooled");
            }
            for entry in &entries {
                prop_assert!(!entry.reason.is_empty() && !entry.reason.contains("secret"));
            }
        }
    }
}
