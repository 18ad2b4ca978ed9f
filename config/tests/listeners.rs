//! Errors about listeners that contradict each other.

use crate::common;

/// Errors about these listeners, each with its line; they begin in line 2.
fn errors(listeners: &str) -> Vec<String> {
    let yaml = format!(
        "listeners:
{listeners}
backends: [{{name: a, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}]
routes: [{{backendRefs: [{{name: a}}]}}]
"
    );
    common::errors(&yaml)
}

#[test]
fn two_listeners_do_not_ask_for_one_certificate_in_two_ways() {
    let two = |first: &str, second: &str| {
        errors(&format!(
            "  - {{name: one, address: \"127.0.0.1:1\", protocol: https, tls: {{acme: {{{first}}}}}}}
  - {{name: two, address: \"127.0.0.1:2\", protocol: https, tls: {{acme: {{{second}}}}}}}"
        ))
    };
    assert!(two("domains: [a.test]", "domains: [a.test]").is_empty(), "one certificate for both");
    assert!(two("domains: [a.test]", "domains: [b.test], renewBefore: 10d").is_empty());
    assert!(two("domains: [a.test]", "domains: [A.test], renewBefore: 10d, storage: other").is_empty());
    let told = two("domains: [a.test]", "domains: [A.test], renewBefore: 10d");
    assert!(
        told.len() == 1 && told[0].starts_with("3: listener `one` asks for a certificate for the same names"),
        "{told:?}"
    );
    let told = two("domains: [a.test], email: a@b.test", "domains: [b.test]");
    assert!(told.len() == 1 && told[0].starts_with("3: listener `one` has another `email`"), "{told:?}");
}
