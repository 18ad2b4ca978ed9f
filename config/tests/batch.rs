//! Errors about `batch` and the routes that answer lines.

use crate::common;

/// Errors about a route in line 5 and `batch` in line 6, each with its line.
fn errors(route: &str, batch: &str) -> Vec<String> {
    let consumers = "consumers: [{name: a, keys: [{sha256: \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"}]}]";
    of(&format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: a, protocol: openai, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}, {{name: h, endpoints: [{{url: \"http://127.0.0.1:2\"}}]}}]
{consumers}
routes:
  - {{name: r, {route}}}
{batch}
"
    ))
}

fn of(yaml: &str) -> Vec<String> {
    common::told(yaml).0
}

const TAKES: &str = "backendRefs: [{name: a}], batch: true";

#[track_caller]
fn refused(route: &str, batch: &str, what: &str) {
    let errors = errors(route, batch);
    assert!(errors.iter().any(|e| e.starts_with(what)), "{what}\n{errors:?}");
}

#[test]
fn a_batch_has_callers_and_a_route() {
    assert_eq!(errors(TAKES, "batch: {}"), Vec::<String>::new());
    refused(TAKES, "", "5: no effect without `batch`");
    refused("backendRefs: [{name: a}]", "batch: {}", "6: no effect: no route says `batch: true`");
    refused("backendRefs: [{name: h}], batch: true", "batch: {}", "5: no target of the route calls models");
    refused(&format!("{TAKES}, authentication: none"), "batch: {}", "5: the route has `authentication: none`");
    let open = "listeners: [{address: \"127.0.0.1:0\"}]
backends: [{name: a, protocol: openai, endpoints: [{url: \"http://127.0.0.1:1\"}]}]
routes: [{backendRefs: [{name: a}], batch: true}]
batch: {}
";
    assert!(of(open).iter().any(|e| e.starts_with("4: no caller can be identified")), "{:?}", of(open));
}

#[test]
fn its_paths_are_its_own() {
    for path in ["exact: /v1/files", "prefix: /v1/batches", "exact: /v1/files/a"] {
        let route = format!("{TAKES}, matches: [{{path: {{{path}}}}}]");
        refused(&route, "batch: {}", "5: the gateway answers `/v1/");
    }
    for path in ["prefix: /v1", "exact: /v1/filesystem", "prefix: /"] {
        let route = format!("{TAKES}, matches: [{{path: {{{path}}}}}]");
        assert_eq!(errors(&route, "batch: {}"), Vec::<String>::new(), "{path}");
    }
}

#[test]
fn bounds_are_bounds() {
    for (batch, what) in [
        ("listener: none", "6: unknown listener"),
        ("maxShare: 0", "6: found 0; expected more than 0"),
        ("maxShare: 1.5", "6: 1.5 is too large; expected 1 or less"),
        ("maxShare: .nan", "6: "),
        ("maxLines: 0", "6: 0 is too small"),
        ("maxInFlight: 5000", "6: 5000 is too large; expected 4096 or less"),
        ("maxFile: 1B", "6: found 1B; expected 1KiB to 4GiB"),
        ("maxLine: 65MiB", "6: found 65MiB; expected 1KiB to 64MiB"),
        ("maxAnswer: 1B", "6: found 1B; expected 1KiB to 64MiB"),
        ("maxStored: 1MiB", "6: 1MiB is less than `maxFile` (200MiB)"),
        ("maxStoredByAll: 1GiB", "6: 1GiB is less than `maxStored` (2GiB)"),
        ("maxWindow: 31d", "6: found 744h; expected 1s to 30d"),
        ("keep: 1s", "6: found 1s; expected 1m to 365d"),
    ] {
        refused(TAKES, &format!("batch: {{{batch}}}"), what);
    }
}
