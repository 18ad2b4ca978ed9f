//! Where `encodedSlashes: pass` would let callers pass round another route, and where it would not.

use crate::common;

/// Errors of a file with a route `a`, which passes encoded slashes, and a route `b`.
fn errors(listener: &str, a: &str, b: &str) -> Vec<String> {
    let refs = |route: &str| if route.contains("backendRefs") { "" } else { ", backendRefs: [{name: web}]" };
    let (a_refs, b_refs) = (refs(a), refs(b));
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"{listener}}}]
consumers: [{{name: c, keys: [{{sha256: \"{}\"}}]}}]
backends:
  - {{name: web, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}
  - {{name: other, endpoints: [{{url: \"http://127.0.0.1:3\"}}]}}
  - {{name: model, protocol: openai, endpoints: [{{url: \"http://127.0.0.1:2\"}}]}}
routes:
  - {{name: a, authentication: none{a_refs}{a}}}
  - {{name: b{b_refs}{b}}}
",
        "0".repeat(64)
    );
    common::errors(&yaml)
}

fn matches(path: &str) -> String {
    format!(", matches: [{{path: {{{path}}}}}]")
}

#[test]
fn what_could_be_evaded_is_an_error_and_nothing_else_is() {
    for (a, b, evaded) in [
        ("", "prefix: /admin", true),
        ("prefix: /", "prefix: /admin", true),
        ("prefix: /", "exact: /v1/chat", true),
        ("prefix: /", "exact: /metrics", false),
        ("prefix: /git", "prefix: /admin", false),
        ("prefix: /git", "prefix: /git/admin", true),
        ("prefix: /git/", "exact: /git/admin/keys", true),
        ("prefix: /git", "exact: /git/admin", false),
        ("prefix: /git", "prefix: /gitadmin", false),
        ("prefix: /git/api", "prefix: /git", false),
        ("prefix: /git", "", false),
        ("prefix: /git", "regex: \"/git/[^/]+/admin\"", true),
        ("prefix: /git", "regex: \"/other/[^/]+\"", false),
        ("prefix: /git", "regex: \"(?i)/admin\"", true),
        ("exact: /git/a%2Fb", "prefix: /git/a", true),
        ("exact: /git/a%2fb", "exact: /git/a/b", true),
        ("exact: /git/a", "prefix: /git", false),
        ("regex: \"/git/[^/]+\"", "", true),
        ("regex: \"/git/[^/]+\"", "prefix: /git/admin", true),
        ("regex: \"/git/[^/]+\"", "prefix: /admin", false),
        ("regex: \"/x?/git\"", "prefix: /admin", true),
    ] {
        let path = |path: &str| if path.is_empty() { String::new() } else { matches(path) };
        let by_route = errors("", &format!("{}, encodedSlashes: pass", path(a)), &path(b));
        let by_listener = errors(", encodedSlashes: pass", &path(a), &format!("{}, encodedSlashes: refuse", path(b)));
        for (found, line) in [(by_route, "8: "), (by_listener, "1: ")] {
            assert_eq!(!found.is_empty(), evaded, "{a} | {b}: {found:?}");
            assert!(found.iter().all(|e| e.starts_with(line) && e.contains("`authentication` differs")), "{found:?}");
        }
    }
}

#[test]
fn routes_with_the_same_rules_methods_or_hosts_apart_evade_nothing() {
    let admin = matches("prefix: /admin");
    for (a, b, evaded) in [
        (String::new(), format!(", authentication: none{admin}"), None),
        (String::new(), format!(", authentication: none, filters: [{{rateLimit: {{}}}}]{admin}"), Some("filters")),
        (
            ", filters: [{rateLimit: {}}]".to_owned(),
            format!(", authentication: none, filters: [{{rateLimit: {{}}}}]{admin}"),
            Some("filters"),
        ),
        (String::new(), format!(", authentication: none, limits: {{maxBody: 1KiB}}{admin}"), Some("limits")),
        (", hostnames: [a.test]".to_owned(), format!(", hostnames: [b.test]{admin}"), None),
        (", hostnames: [\"*.a.test\"]".to_owned(), format!(", hostnames: [a.test]{admin}"), None),
        (", hostnames: [\"*.a.test\"]".to_owned(), format!(", hostnames: [x.A.test]{admin}"), Some("authentication")),
        (", hostnames: [a.test]".to_owned(), admin.clone(), Some("authentication")),
        (
            ", matches: [{method: GET}]".to_owned(),
            ", matches: [{method: POST, path: {prefix: /admin}}]".to_owned(),
            None,
        ),
        (
            ", matches: [{method: GET}]".to_owned(),
            ", matches: [{path: {prefix: /admin}}]".to_owned(),
            Some("authentication"),
        ),
    ] {
        let found = errors("", &format!("{a}, encodedSlashes: pass"), &b);
        assert_eq!(found.len(), usize::from(evaded.is_some()), "{a} | {b}: {found:?}");
        assert!(evaded.is_none_or(|key| found[0].contains(&format!("`{key}` differs"))), "{found:?}");
    }
}

/// Errors of a file whose routes are alike but for these keys: of `a`, which passes encoded slashes, and of `b` below it.
fn alike_but_for(a: &str, b: &str) -> Vec<String> {
    let b = format!(", authentication: none{}{b}", matches("prefix: /admin"));
    errors("", &format!(", encodedSlashes: pass{a}"), &b)
}

#[test]
fn routes_are_alike_only_where_a_caller_gets_the_same_from_both() {
    let role = ", filters: [{requestHeaders: {set: {x-role: guest}}}]";
    for (a, b, difference) in [
        (role, role, None),
        ("", role, Some("filters")),
        (role, ", filters: [{requestHeaders: {set: {x-role: admin}}}]", Some("filters")),
        (role, ", filters: [{requestHeaders: {remove: [x-role]}}]", Some("filters")),
        (role, ", filters: [{requestHeaders: {add: {x-role: guest}}}]", Some("filters")),
        ("", ", filters: [{responseHeaders: {remove: [x-secret]}}]", Some("filters")),
        ("", ", filters: [{cors: {allowOrigins: [\"https://a.test\"]}}]", Some("filters")),
        ("", ", filters: [{redirect: {replacePrefix: /login}}]", Some("filters")),
        ("", ", filters: [{urlRewrite: {replacePrefix: /x}}]", Some("filters")),
        ("", ", filters: [{strictTransportSecurity: {}}]", None),
        // The same writing, and another outcome by the name of the route.
        (
            ", filters: [{authorize: \"consumer.tenant == 'x'\"}]",
            ", filters: [{authorize: \"consumer.tenant == 'x'\"}]",
            None,
        ),
        (
            ", filters: [{authorize: \"consumer.tenant == route\"}]",
            ", filters: [{authorize: \"consumer.tenant == route\"}]",
            Some("filters"),
        ),
        (
            ", filters: [{requestHeaders: {set: {x-r: \"{route}\"}}}]",
            ", filters: [{requestHeaders: {set: {x-r: \"{route}\"}}}]",
            Some("filters"),
        ),
        (", filters: [{ours: {}}]", ", filters: [{ours: {}}]", Some("filters")),
        ("", ", backendRefs: [{name: other}]", Some("backendRefs")),
        ("", ", backendRefs: [{name: web}, {name: other}]", Some("backendRefs")),
        ("", ", backendRefs: [{name: web, weight: 3}, {name: other, weight: 0}]", None),
        (", backendRefs: [{name: other}, {name: web}]", ", backendRefs: [{name: web}, {name: other, weight: 9}]", None),
        (
            ", backendRefs: [{name: model}]",
            ", backendRefs: [{name: model}], whenSaturated: {spillTo: other}",
            Some("spillTo"),
        ),
        (
            ", backendRefs: [{name: model}], whenSaturated: {spillTo: other}",
            ", backendRefs: [{name: model}], whenSaturated: {spillTo: other}, whenUnavailable: {}",
            Some("spillTo"),
        ),
        (
            ", backendRefs: [{name: model}], whenSaturated: {spillTo: other}",
            ", backendRefs: [{name: model}], whenSaturated: {spillTo: other}, spill: {percent: 50}",
            Some("spill"),
        ),
        ("", ", timeouts: {request: 1s}, retry: {attempts: 2}", None),
    ] {
        let found = alike_but_for(a, b);
        assert_eq!(found.len(), usize::from(difference.is_some()), "{a} | {b}: {found:?}");
        let named = |key: &str| found[0].contains(&format!("whose `{key}` differs"));
        assert!(difference.is_none_or(named), "{a} | {b}: {found:?}");
    }
}

#[test]
fn a_path_expression_is_whole_without_its_anchors() {
    for (regex, sound) in [("/a|/b", true), ("/a)|(?:/b", false), ("/a(", false), ("(?i)/admin(/.*)?", true)] {
        let found = errors("", &format!(", matches: [{{path: {{regex: \"{regex}\"}}}}]"), "");
        assert_eq!(found.is_empty(), sound, "{regex}: {found:?}");
    }
}

#[test]
fn an_expression_over_the_path_comes_before_other_changes_of_it() {
    let found = |filters: &str| errors("", &format!(", filters: [{filters}]"), &matches("prefix: /admin"));
    let pattern = "{urlRewrite: {path: {regex: x, replacement: y}}}";
    assert_eq!(
        found(&format!("{{urlRewrite: {{hostname: a.test}}}}, {pattern}, {{urlRewrite: {{replacePrefix: /x}}}}")),
        [""; 0]
    );
    for before in ["{urlRewrite: {replacePrefix: /x}}", pattern] {
        let found = found(&format!("{before}, {pattern}"));
        assert!(found.len() == 1 && found[0].contains("expected the expression first"), "{found:?}");
    }
}
