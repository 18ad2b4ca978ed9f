use super::*;
use crate::balancing::tests::endpoints;

fn rules(json: serde_json::Value) -> Detector {
    Detector::new(&serde_json::from_value(json).unwrap())
}

#[test]
fn errors_in_a_row_eject_and_a_good_answer_between_them_does_not() {
    let detector = rules(serde_json::json!({"consecutiveErrors": 3, "ejectionTime": "1s"}));
    let all = endpoints(&[1, 1]);
    let bad = &all[0];
    for verdict in [Verdict::Error, Verdict::Error, Verdict::Good, Verdict::Error, Verdict::Full, Verdict::Error] {
        assert!(!detector.ended(&all, bad, verdict, 10, 11));
    }
    assert!(bad.is_available(11, false));
    assert!(detector.ended(&all, bad, Verdict::Error, 10, 12));
    assert!(!bad.is_available(12, false) && bad.is_available(12, true), "panic does not look at ejections");
    assert!(bad.is_available(1_012, false));
    assert_eq!(bad.room(1_012, false).0, 1, "one request at a time");
}

#[test]
fn probation_ends_with_one_good_answer_and_an_error_in_it_ejects_for_longer() {
    let detector = rules(serde_json::json!({"consecutiveErrors": 1, "ejectionTime": "1s", "window": "10s"}));
    let all = endpoints(&[1, 1]);
    let bad = &all[0];
    let (mut now, mut times) = (100, Vec::new());
    for _ in 0..12 {
        assert!(detector.ended(&all, bad, Verdict::Error, now, now));
        // What was on its way when it was ejected changes nothing.
        assert!(!detector.ended(&all, bad, Verdict::Error, now, now + 10));
        detector.good_sign(bad, now, now + 11);
        let time = u64::try_from(bad.state.record.ejected_for(now).as_millis()).unwrap();
        times.push(time / 1_000);
        now += time;
    }
    assert_eq!(times, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10]);
    assert_eq!(bad.room(now, false).0, 1);
    detector.good_sign(bad, now, now + 1);
    assert_eq!(bad.room(now + 1, false).0, u32::MAX);
    // Each window that goes well forgives one.
    for _ in 0..20 {
        now += 11_000;
        detector.ended(&all, bad, Verdict::Good, now, now);
    }
    assert!(detector.ended(&all, bad, Verdict::Error, now, now));
    assert_eq!(bad.state.record.ejected_for(now).as_millis(), 1_000);
}

#[test]
fn no_more_than_the_given_share_is_ejected_together() {
    let detector = rules(serde_json::json!({"consecutiveErrors": 1, "maxEjected": 0.5}));
    for (count, most) in [(1, 0), (2, 1), (3, 1), (10, 5)] {
        let all = endpoints(&vec![1; count]);
        let ejected = all.iter().filter(|e| detector.ended(&all, e, Verdict::Error, 5, 5)).count();
        assert_eq!(ejected, most);
    }
}

#[test]
fn a_share_of_errors_within_the_window_ejects() {
    let detector =
        rules(serde_json::json!({"consecutiveErrors": 0, "errorRate": 0.5, "minimumRequests": 20, "window": "10s"}));
    let (all, others) = (endpoints(&[1, 1]), endpoints(&[1, 1]));
    let mut ejected_after = None;
    for n in 0..40u64 {
        let verdict = if n % 2 == 0 { Verdict::Good } else { Verdict::Error };
        if detector.ended(&all, &all[0], verdict, 100 + n, 100 + n) {
            ejected_after.get_or_insert(n + 1);
        }
        // As many errors in as many requests, but spread over so long that few fall into one window.
        assert!(!detector.ended(&others, &others[1], verdict, 100 + n * 1_000, 100 + n * 1_000));
    }
    assert_eq!(ejected_after, Some(20));
}

#[test]
fn by_default_one_that_fails_is_an_outlier_and_all_that_fail_alike_are_none() {
    let ejected = |fails: [bool; 4]| {
        let (detector, all) = (rules(serde_json::json!({})), endpoints(&[1, 1, 1, 1]));
        for n in 0..400u64 {
            let e = (n % 4) as usize;
            // Two of three, and never five in a row.
            let verdict = if fails[e] && n / 4 % 3 > 0 { Verdict::Error } else { Verdict::Good };
            detector.ended(&all, &all[e], verdict, 1_000 + n, 1_000 + n);
        }
        all.iter().filter(|e| e.state.record.is_ejected(1_500)).count()
    };
    assert_eq!(ejected([false, true, false, false]), 1);
    assert_eq!(ejected([true; 4]), 0);
    assert_eq!(ejected([true, true, true, false]), 0, "it is not the few that are unlike the others");
}

#[test]
fn one_that_is_much_slower_than_the_median_is_ejected() {
    let detector =
        rules(serde_json::json!({"latencyFactor": 3.0, "minimumRequests": 5, "window": "10s", "consecutiveErrors": 0}));
    let all = endpoints(&[1, 1, 1, 1]);
    for n in 0..60u64 {
        let now = 1_000 + n * 20;
        for (index, e) in all.iter().enumerate() {
            let took = Duration::from_millis(if index == 2 { 400 } else { 50 + n });
            e.state.record.took(took, now);
            detector.ended(&all, e, Verdict::Good, now, now);
        }
    }
    let ejected: Vec<_> = all.iter().map(|e| e.state.record.is_ejected(2_300)).collect();
    assert_eq!(ejected, [false, false, true, false]);
}

#[test]
fn answers_that_have_begun_and_not_ended_make_nobody_look_slow_and_failed_ones_nobody_fast() {
    for (began, ended, failed, ejected) in [(200, 6, 0, false), (12, 12, 60, true)] {
        let detector = rules(
            serde_json::json!({"latencyFactor": 3.0, "minimumRequests": 5, "window": "10s", "consecutiveErrors": 0, "errorRate": 0}),
        );
        let all = endpoints(&[1, 1, 1, 1]);
        for (index, e) in all.iter().enumerate() {
            detector.ended(&all, e, Verdict::Unknown, 1_000, 1_000);
            let took = Duration::from_millis(if index == 0 && failed > 0 { 400 } else { 50 });
            for _ in 0..if index == 0 { began } else { 12 } {
                e.state.record.took(took, 1_000);
            }
            for _ in 0..if index == 0 { failed } else { 0 } {
                detector.ended(&all, e, Verdict::Error, 1_000, 1_000);
            }
        }
        for (index, e) in all.iter().enumerate() {
            for n in 0..if index == 0 { ended } else { 12 } {
                detector.ended(&all, e, Verdict::Good, 1_000, 2_000 + n * 600);
            }
        }
        assert_eq!(all[0].state.record.is_ejected(9_000), ejected, "{began} began, {ended} ended, {failed} failed");
        assert!(all.iter().skip(1).all(|e| !e.state.record.is_ejected(9_000)));
    }
}

#[test]
fn sums_look_back_one_window() {
    let buckets = Buckets::default();
    buckets.add(3, 10);
    buckets.add(4, 11);
    assert_eq!((buckets.sum(10), buckets.sum(11), buckets.sum(12), buckets.sum(13)), (3, 7, 4, 0));
    buckets.add(1, 12);
    assert_eq!(buckets.sum(12), 5);
    buckets.add(MAX_COUNT, 12);
    assert_eq!(buckets.sum(12), MAX_COUNT + 4, "it saturates");
}

/// Lets an endpoint answer a caller.
fn answers(detector: &Detector, all: &[Arc<Endpoint>], at: usize, caller: u64, verdict: Verdict, now: u64) -> bool {
    detector.answered(&all[at], verdict, caller << 40, now);
    detector.ended(all, &all[at], verdict, now, now)
}

/// Endpoint, caller and verdict of an answer.
type Step = (usize, u64, Verdict);

#[test]
fn errors_by_status_eject_only_where_they_are_the_servers() {
    use Verdict::{Error, Good, ServerError};
    // True where the last step ejects the first endpoint.
    let cases: &[(&str, &[Step], bool)] = &[
        ("one caller", &[(0, 1, ServerError); 12], false),
        (
            "one caller, who gets good answers too",
            &[(0, 1, Good), (0, 1, ServerError), (0, 1, ServerError), (0, 1, ServerError)],
            false,
        ),
        ("two callers", &[(0, 1, ServerError), (0, 1, ServerError), (0, 2, ServerError)], true),
        ("failures are nobody's request", &[(0, 1, Error), (0, 1, Error), (0, 1, Error)], true),
        ("failures and one caller's errors", &[(0, 1, Error), (0, 1, ServerError), (0, 1, ServerError)], false),
        (
            "a neighbour answers the same caller",
            &[(1, 1, Good), (1, 1, Good), (1, 1, Good), (0, 1, ServerError), (0, 1, ServerError), (0, 1, ServerError)],
            true,
        ),
        (
            "a neighbour has answered it less often",
            &[(1, 1, Good), (0, 1, ServerError), (0, 1, ServerError), (0, 1, ServerError)],
            false,
        ),
        (
            "a neighbour has its errors too",
            &[
                (1, 1, Good),
                (1, 1, ServerError),
                (1, 1, ServerError),
                (0, 1, ServerError),
                (0, 1, ServerError),
                (0, 1, ServerError),
            ],
            false,
        ),
        (
            "a neighbour answers others",
            &[(1, 2, Good), (1, 2, Good), (1, 2, Good), (0, 1, ServerError), (0, 1, ServerError), (0, 1, ServerError)],
            false,
        ),
    ];
    for (what, steps, ejects) in cases {
        let detector = rules(serde_json::json!({"consecutiveErrors": 3, "errorRate": 0}));
        let all = endpoints(&[1, 1]);
        let ejected = steps.iter().fold(false, |ejected, (at, caller, verdict)| {
            assert!(!ejected, "{what}: ejected too early");
            answers(&detector, &all, *at, *caller, *verdict, 5_000)
        });
        assert_eq!(ejected, *ejects, "{what}");
    }
}

#[test]
fn a_share_of_errors_by_status_ejects_only_where_they_are_the_servers() {
    for (their_errors, ejects) in [(false, true), (true, false)] {
        let detector = rules(serde_json::json!({"consecutiveErrors": 0, "minimumRequests": 10}));
        let all = endpoints(&[1, 1]);
        let mut ejected = false;
        for n in 0..40u64 {
            let at = (n % 2) as usize;
            let fails = n / 2 % 2 == 1 && (at == 0 || their_errors);
            let verdict = if fails { Verdict::ServerError } else { Verdict::Good };
            ejected |= answers(&detector, &all, at, 1, verdict, 5_000 + n);
        }
        assert_eq!(ejected, ejects, "with one caller, whose requests fail elsewhere too: {their_errors}");
    }
}

#[test]
fn an_endpoint_without_neighbours_is_shown_as_failing_and_not_ejected() {
    for (rule, after) in [(3, 3), (0, 5)] {
        let detector = rules(serde_json::json!({"consecutiveErrors": rule}));
        let all = endpoints(&[1]);
        for n in 1..=6 {
            assert!(!answers(&detector, &all, 0, n, Verdict::Error, 5_000));
            assert_eq!(detector.is_failing(&all[0]), n >= after);
        }
        answers(&detector, &all, 0, 1, Verdict::Good, 5_000);
        assert!(!detector.is_failing(&all[0]));
    }
}
