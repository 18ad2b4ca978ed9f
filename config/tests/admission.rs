//! Errors about queues, spills, retries and limits that can never take effect.

use crate::common;

/// Errors and warnings about a route, each with its line: the route begins in line 8.
fn told(route: &str) -> (Vec<String>, Vec<String>) {
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
backends:
  - {{name: a, protocol: openai, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}
  - {{name: b, protocol: openai, endpoints: [{{url: \"http://127.0.0.1:2\"}}]}}
  - {{name: h, endpoints: [{{url: \"http://127.0.0.1:3\"}}]}}
models: [{{name: m, source: m.gguf}}]
routes:
  - name: r
    backendRefs: [{{name: a}}]
{route}"
    );
    common::told(&yaml)
}

#[track_caller]
fn refused(route: &str, what: &str) {
    let (errors, warnings) = told(route);
    assert!(errors.iter().any(|e| e.starts_with(what)), "{what}\n{errors:?} {warnings:?}\n{route}");
}

#[track_caller]
fn taken(route: &str) {
    let (errors, _) = told(route);
    assert!(errors.is_empty(), "{errors:?}\n{route}");
}

#[test]
fn a_queue_has_a_deadline_that_leaves_time_for_an_answer() {
    taken("    whenSaturated: {queue: {maxWait: 200ms}}\n");
    taken("    whenSaturated: {queue: {maxWait: 200ms, maxDepth: 10000}}\n");
    refused("    whenSaturated: {queue: {maxDepth: 10}}\n", "10: `maxWait` is missing");
    refused("    whenSaturated: {queue: {maxWait: 0s}}\n", "10: 0s is no queue");
    refused("    whenSaturated: {queue: {maxWait: 1s, maxDepth: 0}}\n", "10: 0 is too small");
    refused("    whenSaturated: {queue: {maxWait: 1s, maxDepth: 10001}}\n", "10: found 10001; expected at most 10000");
    refused("    whenSaturated:\n      queue: {maxWait: 700s}\n", "11: the whole request has only 10m");
    let (_, warnings) = told("    timeouts: {firstToken: 1s}\n    whenSaturated: {queue: {maxWait: 2s}}\n");
    assert!(warnings.iter().any(|w| w.starts_with("11: a stream's first token")), "{warnings:?}");
    let inside = "    whenSaturated: {queue: {maxWait: 1s}}\n  - {name: i, backendRefs: [{model: m}], whenSaturated: {queue: {maxWait: 1s}}}\n";
    refused(inside, "11: no backend of this route could become free");
}

#[test]
fn a_spill_goes_to_somebody_else_who_is_there() {
    taken("    whenSaturated: {spillTo: m}\n");
    taken("    whenSaturated: {spillTo: b}\n");
    refused("    whenSaturated: {spillTo: x}\n", "10: unknown model or backend `x`");
    refused("    whenUnavailable: {spillTo: a}\n", "10: `a` is in this route's backendRefs");
}

#[test]
fn limits_on_spills_can_be_met_and_limit_something() {
    taken("    whenSaturated: {spillTo: m}\n    spill: {maxPromptTokens: 512, models: [\"gpt-*\"], percent: 50}\n");
    refused("    spill: {percent: 50}\n", "10: no effect, because this route has no `whenSaturated.spillTo`");
    refused("    whenSaturated: {spillTo: m}\n    spill: {percent: 101}\n", "11: 101 is too large");
    refused("    whenSaturated: {spillTo: m}\n    spill: {percent: -1}\n", "11: -1 is too small");
    refused("    whenSaturated: {spillTo: m}\n    spill: {models: []}\n", "11: an empty list");
    refused("    whenSaturated: {spillTo: m}\n    spill: {maxPromptTokens: 0}\n", "11: 0 is too small");
}

#[test]
fn tries_and_hedges_are_bounded_and_never_act_twice() {
    taken("    retry: {budget: 0.1, hedge: {after: 500ms}}\n");
    taken("    retry: {budget: 1}\n");
    refused("    retry: {budget: 1.5}\n", "10: 1.5 is too large");
    refused("    retry: {budget: -0.1}\n", "10: -0.1 is too small");
    refused("    retry: {backoff: {base: 2s}}\n", "10: 2s is longer than backoff.max (1s)");
    refused("    retry: {hedge: {max: 1}}\n", "10: `after` is missing");
    refused("    retry: {hedge: {after: 1s, max: 4}}\n", "10: found 4; expected at most 3");
    refused("    retry: {hedge: {after: 700s}}\n", "10: an attempt ends after");
    refused(
        "    timeouts: {backendRequest: 1s}\n    retry:\n      hedge: {after: 1s}\n",
        "12: an attempt ends after 1s",
    );
    let writes = "  - name: writes
    matches: [{method: POST}]
    backendRefs: [{name: h}]
    retry: {hedge: {after: 1s}}
";
    refused(writes, "13: this route takes only methods that are not idempotent");
}

#[test]
fn a_lesser_answer_for_who_is_over_a_limit_needs_somebody_who_gives_it() {
    let limit = "    filters: [{rateLimit: {by: tenant, requests: 1/s, onExceeded: spill}}]\n";
    taken(&format!("{limit}    whenSaturated: {{spillTo: m}}\n"));
    refused(limit, "10: no effect, because this route has no `whenSaturated.spillTo`");
    let consumer = "consumers: [{name: c, limits: {requests: 1/s, onExceeded: spill}}]\n";
    taken(&format!("    authentication: none\n    whenSaturated: {{spillTo: m}}\n{consumer}"));
    refused(&format!("    authentication: none\n{consumer}"), "11: no effect: no route of this file spills");
}

#[test]
fn copies_go_to_a_backend_that_is_there() {
    taken("    filters: [{mirror: {backend: b}}]\n");
    refused("    filters: [{mirror: {backend: bb}}]\n", "10: unknown backend `bb`");
    refused("    filters: [{mirror: {backend: m}}]\n", "10: `m` is a built-in model");
}

#[test]
fn memory_for_bodies_is_some_and_a_share_can_be_reached() {
    taken("limits: {bufferedBodies: 1MiB}\n");
    taken("limits: {bufferedBodies: 1MiB, bufferedBodiesPerCaller: 1MiB}\n");
    refused("limits: {bufferedBodies: 0B}\n", "10: with no memory for bodies");
    refused("limits: {bufferedBodiesPerCaller: 0B}\n", "10: with no memory for bodies");
    refused(
        "limits: {bufferedBodies: 1MiB, bufferedBodiesPerCaller: 2MiB}\n",
        "10: 2MiB is more than all callers have together",
    );
    let warned = |route: &str| told(route).1.iter().any(|w| w.contains("limits.bufferedBodiesPerCaller leaves 64MiB"));
    assert!(warned("    limits: {maxBody: 65MiB}\n") && !warned("    limits: {maxBody: 64MiB}\n"));
    let streams =
        told("  - {name: h, matches: [{path: {prefix: /h}}], backendRefs: [{name: h}], limits: {maxBody: 1GiB}}\n");
    let warned = streams.1.iter().any(|warning| warning.contains("limits.buffered"));
    assert!(streams.0.is_empty() && !warned, "nothing is held of a body that streams through: {streams:?}");
}
