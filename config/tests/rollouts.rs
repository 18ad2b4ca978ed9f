//! Errors about rollouts: versions that cannot be compared, steps that lead nowhere, thresholds that say nothing.

use crate::common;

/// A file whose route begins in line 12, with its `backendRefs` in line 13 and its `rollout` from line 14 on.
fn file(targets: &str, rollout: &str) -> String {
    format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
backends:
  - {{name: v1, protocol: openai, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}
  - {{name: v2, protocol: openai, endpoints: [{{url: \"http://127.0.0.1:2\"}}]}}
  - {{name: h1, endpoints: [{{url: \"http://127.0.0.1:3\"}}]}}
  - {{name: h2, endpoints: [{{url: \"http://127.0.0.1:4\"}}]}}
  - {{name: o1, protocol: oip, endpoints: [{{url: \"http://127.0.0.1:5\"}}]}}
  - {{name: o2, protocol: oip, endpoints: [{{url: \"http://127.0.0.1:6\"}}]}}
prices: [{{model: \"*\", input: 1, output: 1}}]
models: [{{name: m, source: m.gguf}}]
routes:
  - name: r
    backendRefs: [{targets}]
{rollout}"
    )
}

const TEXTS: &str = "{name: v1}, {name: v2}";
const PLAIN: &str = "{name: h1}, {name: h2}";

#[track_caller]
fn refused_at(targets: &str, rollout: &str, what: &str) {
    let (errors, warnings) = common::told(&file(targets, rollout));
    assert!(errors.iter().any(|e| e.starts_with(what)), "{what}\n{errors:?} {warnings:?}\n{rollout}");
}

#[track_caller]
fn taken_at(targets: &str, rollout: &str) {
    let (errors, _) = common::told(&file(targets, rollout));
    assert!(errors.is_empty(), "{errors:?}\n{rollout}");
}

/// A rollout with these steps.
#[track_caller]
fn steps(steps: &str, what: &str) {
    let rollout = format!("    rollout:\n      to: v2\n      steps: [{steps}]\n");
    match what {
        "" => taken_at(TEXTS, &rollout),
        what => refused_at(TEXTS, &rollout, &format!("16: {what}")),
    }
}

/// A rollout with this threshold.
fn judged(metric: &str, threshold: &str) -> String {
    format!(
        "    rollout:\n      to: v2\n      steps: [{{weight: 5, hold: {{for: 1m}}}}]\n      abortWhen: {{{metric}: {threshold}}}\n"
    )
}

#[test]
fn the_candidate_is_a_target_beside_a_stable_one_of_its_priority() {
    let to = |name: &str| format!("    rollout: {{to: {name}, steps: [{{weight: 5, hold: {{for: 1m}}}}]}}\n");
    taken_at(TEXTS, &to("v2"));
    taken_at("{name: v1}, {name: v2, weight: 0}", &to("v2"));
    taken_at("{name: v1}, {model: m}", &to("m"));
    refused_at(TEXTS, &to("v3"), "14: unknown target of this route `v3`; expected `v1` or `v2`");
    refused_at(TEXTS, &to("h1"), "14: unknown target of this route `h1`");
    refused_at("{name: v2}", &to("v2"), "14: no stable version: `v2` is the only target");
    refused_at("{name: v1, weight: 0}, {name: v2}", &to("v2"), "14: no stable version");
    refused_at("{name: v1}, {name: v2, priority: 1}", &to("v2"), "14: `v1` has another priority than `v2`");
    refused_at(
        "{name: v1}, {name: v2}, {name: h1, priority: 1}",
        &to("v2"),
        "14: `h1` has another priority than `v2`, and versions of a rollout share the same requests: give both one",
    );
}

#[test]
fn steps_rise_and_hold() {
    steps(
        "{weight: 1, hold: {for: 10m, requests: 500}}, {gate: {url: \"https://ci.test/ok\"}}, {weight: 25, hold: {for: 30m}}, {pause: true}, {pause: 1h}, {weight: 100}",
        "",
    );
    steps("{weight: 0.5, hold: {requests: 1}}", "");
    steps("", "no step gives the candidate a request");
    steps("{pause: true}", "no step gives the candidate a request");
    steps("{weight: 10, hold: {for: 1m}}, {weight: 5, hold: {for: 1m}}", "5 percent are no step up from 10");
    steps("{weight: 10, hold: {for: 1m}}, {weight: 10, hold: {for: 1m}}", "10 percent are no step up from 10");
    steps("{weight: 0, hold: {for: 1m}}", "0 percent give the candidate nothing");
    steps("{weight: 101}", "101 is too large; expected 100 or less");
    steps("{weight: -1, hold: {for: 1m}}", "-1 is too small");
    steps("{weight: 10}", "no `hold`, so nothing could be seen");
    steps("{weight: 10, hold: {}}", "holds for no time and no request");
    steps("{weight: 10, hold: {for: 0s}}", "holds for no time and no request");
    steps("{weight: 10, hold: {requests: 0}}", "0 is too small");
    steps("{weight: 100, hold: {for: 1m}}", "no effect: 100 percent promote");
    steps("{weight: 100}, {pause: true}", "the step before has given the candidate everything");
    steps("{weight: 10, pause: true}", "found several or none; a step has exactly one");
    steps("{}", "found several or none; a step has exactly one");
    steps("{weight: 10, hold: {for: 1m}}, {pause: true, hold: {for: 1m}}", "no effect without `weight`");
    steps("{weight: 10, hold: {for: 1m}}, {pause: false}", "`false` pauses nothing");
    steps("{weight: 10, hold: {for: 1m}}, {pause: 0s}", "0s pauses nothing");
    steps("{weight: 10, hold: {for: 1m}}, {pause: 10}", "expected true or a duration such as 1h, found");
    steps("{weight: 10, hold: {for: 1m}}, {gate: {url: ci.test}}", "`ci.test` is not the URL of a gate");
    steps(
        "{weight: 10, hold: {for: 1m}}, {gate: {url: \"http://a\", timeout: 2m}}",
        "expected above zero and at most 1m",
    );
    let many = "{pause: true}, ".repeat(33);
    steps(&many, "found 33 steps; expected at most 32");
}

#[test]
fn a_switch_has_one_weight_and_limits_alone() {
    let blue = |rest: &str| format!("    rollout:\n      to: v2\n      strategy: blueGreen\n{rest}");
    taken_at(
        TEXTS,
        &blue("      steps: [{pause: true}, {weight: 100}]\n      keepWarm: 5m\n      abortWhen: {errorRate: 0.02}\n"),
    );
    refused_at(
        TEXTS,
        &blue("      steps: [{weight: 50, hold: {for: 1m}}, {weight: 100}]\n"),
        "17: found 50; `blueGreen` switches",
    );
    refused_at(
        TEXTS,
        &blue("      steps: [{weight: 100}]\n      abortWhen: {errorRate: \"+0.02\"}\n"),
        "18: `+0.02` compares with the stable version",
    );
    refused_at(
        TEXTS,
        &blue("      steps: [{weight: 100}]\n      abortWhen: {outputDrift: 0.2}\n"),
        "18: `outputDrift` is a distance between two versions",
    );
    refused_at(
        TEXTS,
        "    rollout:\n      to: v2\n      steps: [{weight: 5, hold: {for: 1m}}]\n      keepWarm: 5m\n",
        "17: no effect, because a canary",
    );
}

#[test]
fn a_shadow_copies_what_can_be_compared() {
    let with = |to: &str, rest: &str| {
        format!(
            "    rollout:\n      to: {to}\n      strategy: shadow\n      steps: [{{weight: 10, hold: {{for: 1h}}}}, {{weight: 100, hold: {{requests: 500}}}}]\n{rest}"
        )
    };
    let judged = |what: &str| format!("      abortWhen: {{{what}}}\n");
    let shadow = |what: &str| format!("      shadow: {{{what}}}\n");
    let all = "errorRate: \"+0.02\", latencyP95: \"1.3x\", toolCallErrors: \"+0.02\", shadowDifference: 0.05";
    let bounds = "maxInFlight: 4, maxBody: 1MiB, timeout: 10s, tolerance: 0.01";
    taken_at(TEXTS, &with("v2", &(judged(all) + &shadow(bounds) + "      maxAnswer: 1MiB\n")));
    taken_at("{name: v1}, {name: v2, weight: 0}", &with("v2", ""));
    taken_at("{name: o1}, {name: o2}", &with("o2", &judged("shadowDifference: 0.05")));
    taken_at(PLAIN, &with("h2", &judged("shadowDifference: 0.05")));
    for (targets, rollout, what) in [
        ("{name: v1}, {name: v2, weight: 5}", with("v2", ""), "13: a weight of 5 would give `v2` requests"),
        ("{name: v1}, {model: m}", with("m", ""), "15: `m` is a built-in model, and copies go to backends alone"),
        ("{name: v1}, {name: h2}", with("h2", ""), "15: `v1` speaks another protocol than `h2`"),
        (TEXTS, with("v2", "      keepWarm: 5m\n"), "18: no effect, because a shadow takes nothing over"),
        (TEXTS, with("v2", &judged("spillRate: \"+0.1\"")), "18: a copy never spills"),
        (TEXTS, with("v2", &judged("feedback: \"-0.1\"")), "18: no caller sees the answers of a shadow"),
        (TEXTS, with("v2", &judged("shadowDifference: \"+0.1\"")), "18: `+0.1` compares with the stable version"),
        (TEXTS, with("v2", &judged("shadowDifference: 2")), "18: `2` is never passed"),
        (TEXTS, with("v2", &shadow("timeout: 0s")), "18: a time limit of zero"),
        (TEXTS, with("v2", &shadow("tolerance: 2")), "18: 2 is too large"),
        (TEXTS, with("v2", &shadow("minSimilarity: 0.9")), "18: no effect without `embedding`"),
        (TEXTS, with("v2", &shadow("embedding: m")), "18: no effect without `abortWhen.shadowDifference`"),
        (TEXTS, with("v2", &(judged(all) + &shadow("embedding: n"))), "19: unknown model `n`"),
        (TEXTS, with("v2", &shadow("writes: true")), "18: no effect, because only calls of models are copied"),
        (TEXTS, with("v2", "      maxAnswer: 1MiB\n"), "18: no effect, because no answer is read"),
        (TEXTS, with("v2", &(judged(all) + "      maxAnswer: 1GiB\n")), "19: expected above zero and at most 4MiB"),
        (PLAIN, with("h2", "    matches: [{method: POST}]\n"), "16: every request of this route is POST"),
        (PLAIN, with("h2", "    upgrades: [websocket, other]\n"), "18: a socket is no request that could be copied"),
    ] {
        refused_at(targets, &rollout, what);
    }
    taken_at(PLAIN, &with("h2", &(shadow("writes: true") + "    matches: [{method: POST}]\n")));
    let step = |step: &str| format!("    rollout:\n      to: v2\n      strategy: shadow\n      steps: [{step}]\n");
    refused_at(TEXTS, &step("{weight: 100}"), "17: no `hold`, so nothing could be seen");
    refused_at(TEXTS, &step("{pause: true}"), "17: no step gives the candidate a request");
    taken_at(TEXTS, &step("{weight: 100, hold: {for: 1m}}, {pause: true}"));
    let canary =
        |rest: &str| format!("    rollout:\n      to: v2\n      steps: [{{weight: 5, hold: {{for: 1m}}}}]\n{rest}");
    refused_at(TEXTS, &canary("      shadow: {writes: true}\n"), "17: no effect without `strategy: shadow`");
    refused_at(TEXTS, &canary("      abortWhen: {shadowDifference: 0.1}\n"), "17: only the two answers of a shadow");
}

#[test]
fn a_threshold_says_which_side_is_worse() {
    for (metric, threshold) in [
        ("errorRate", "\"+0.02\""),
        // Without quotes too: a plus sign makes a difference, no number.
        ("errorRate", "+0.02"),
        ("errorRate", "0.05"),
        ("latencyP95", "1.3x"),
        ("tokensPerSecond", "0.8x"),
        ("tokensPerSecond", "-5"),
        ("outputTokens", "0.5x"),
        ("outputTokens", "1.5x"),
        ("costPerRequest", "1.5x"),
        ("outputDrift", "0.2"),
        ("toolCallErrors", "+0.02"),
        ("structuredOutputErrors", "0.1"),
    ] {
        taken_at(TEXTS, &judged(metric, threshold));
    }
    for (metric, threshold, what) in [
        ("errorRate", "-0.02", "17: `-0.02` would abort a better candidate: more of `errorRate` is worse"),
        ("latencyP95", "0.8x", "17: `0.8x` would abort a better candidate"),
        ("tokensPerSecond", "1.3x", "17: `1.3x` would abort a better candidate: less of `tokensPerSecond` is worse"),
        ("feedback", "-0.05", "17: no effect, because the file takes no labels of answers"),
        ("errorRate", "1x", "17: threshold `1x` does not say which side is worse"),
        ("errorRate", "5%", "17: threshold `5%` is no number"),
        ("errorRate", "2", "17: `2` is never passed"),
        ("outputDrift", "+0.2", "17: `+0.2` is no limit of a distance, which is between 0 and 1"),
        ("outputDrift", "1.5x", "17: `1.5x` is no limit of a distance"),
        ("outputDrift", "0", "17: `0` is no limit of a distance"),
        ("toolCallErrors", "0.8x", "17: `0.8x` would abort a better candidate"),
        ("structuredOutputErrors", "1", "17: `1` is never passed"),
        ("latencyP90", "1.3x", "17: unknown key `latencyP90`"),
        ("spillRate", "+0.1", "17: no effect, because this route has no `whenSaturated.spillTo`"),
    ] {
        refused_at(TEXTS, &judged(metric, threshold), what);
    }
    let labels = "consumers: [{name: c, keys: [{sha256: \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"}]}]\n\
                  feedback: {}\n";
    taken_at(TEXTS, &(judged("feedback", "-0.05") + labels));
    refused_at(TEXTS, &(judged("feedback", "0.2") + labels), "17: `0.2` would abort a better candidate");
    let (_, warnings) = common::told(&file(TEXTS, &judged("errorRate", "\"+0\"")));
    assert!(warnings.iter().any(|w| w.starts_with("17: `+0` leaves nothing")), "{warnings:?}");
}

#[test]
fn a_metric_is_one_that_the_servers_have() {
    let plain = |metric: &str| judged(metric, "1.3x").replace("to: v2", "to: h2");
    taken_at(PLAIN, &plain("latencyP95"));
    refused_at(
        PLAIN,
        &plain("firstTokenP95"),
        "17: the servers of this route call no models and have no `firstTokenP95`",
    );
    refused_at(PLAIN, &plain("toolCallErrors"), "17: the servers of this route call no models");
    refused_at(PLAIN, &plain("costPerRequest"), "17: the servers of this route call no models");
    let inference = judged("outputTokens", "1.3x").replace("to: v2", "to: o2");
    refused_at(
        "{name: o1}, {name: o2}",
        &inference,
        "17: answers of the Open Inference Protocol have no `outputTokens`",
    );
    let priced = file(TEXTS, &judged("costPerRequest", "1.3x"));
    let free = |prices| priced.replace("prices: [{model: \"*\", input: 1, output: 1}]", prices);
    let errors = common::errors(&free("priceCatalogue: false"));
    assert!(errors.iter().any(|e| e.contains("no model has a price")), "{errors:?}");
    assert!(common::judge(&free("")).is_ok());
}

#[test]
fn hours_days_and_rates_are_sound() {
    let with = |key: &str| {
        format!("    rollout:\n      to: v2\n      steps: [{{weight: 5, hold: {{for: 1m}}}}]\n      {key}\n")
    };
    taken_at(TEXTS, &with("within: {hours: \"09:00-17:00\", days: [mon, tue], timeZone: Europe/Berlin}"));
    taken_at(TEXTS, &with("within: {hours: \"22:00-06:00\"}"));
    for (key, what) in [
        ("within: {}", "17: names no time"),
        ("within: {timeZone: Europe/Berlin}", "17: names no time"),
        ("within: {hours: \"9-17\"}", "17: `9-17` are no hours of a day"),
        ("within: {hours: \"09:00-09:00\"}", "17: `09:00-09:00` are no hours"),
        ("within: {hours: \"09:00-25:00\"}", "17: `09:00-25:00` are no hours of a day"),
        ("within: {days: []}", "17: expected each day once"),
        ("within: {days: [mon, mon]}", "17: expected each day once"),
        ("within: {days: [monday]}", "17: unknown value `monday`"),
        ("within: {days: [mon], timeZone: Mars/Olympus}", "17: unknown time zone `Mars/Olympus`"),
        ("falseAlarm: 0.5", "17: 0.5 is too large; expected 0.2 or less"),
        ("falseAlarm: 0", "17: 0 is too small"),
        ("onInconclusive: ask", "17: unknown value `ask`"),
    ] {
        refused_at(TEXTS, &with(key), what);
    }
    let respond = "    filters: [{respond: {}}]\n    rollout: {to: v2, steps: [{weight: 5, hold: {for: 1m}}]}\n";
    refused_at("", respond, "15: no effect, because this route has no `backendRefs`");
}

#[test]
fn the_store_is_a_file_or_a_server() {
    let state = |state: &str| format!("{}state: {{{state}}}\n", file(TEXTS, ""));
    assert_eq!(common::errors(&state("store: state/s.db")), Vec::<String>::new());
    assert_eq!(common::errors(&state("store: {redis: {url: \"redis://127.0.0.1:6379\"}}")), Vec::<String>::new());
    for (store, what) in [
        ("store: {redis: {url: \"http://127.0.0.1\"}}", "is not the URL of a Redis server"),
        ("store: {redis: {url: \"redis://u:p@127.0.0.1\"}}", "unexpected password in the URL"),
        ("store: {sqlite: a}", "unknown key `sqlite`"),
        ("store: 5", "expected "),
    ] {
        let errors = common::errors(&state(store));
        assert!(errors.iter().any(|e| e.contains(what)), "{what}\n{errors:?}");
    }
}
