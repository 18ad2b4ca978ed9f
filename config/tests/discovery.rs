//! `discovery`, and parts of a configuration that come from elsewhere than its files.

use std::path::Path;

use spillway_config::{Further, LoadOptions, PartKind, load_text};

use crate::common::{errors, judge, options};

const FILE: &str = "listeners: [{name: own, address: \"127.0.0.1:8080\"}]
admin: {address: \"127.0.0.1:9901\"}
backends: [{name: b, endpoints: [{url: \"http://127.0.0.1:1\"}]}]
routes: [{name: r, backendRefs: [{name: b}]}]
discovery: {kubernetes: {gatewayClass: spillway}}
";

#[test]
fn with_discovery_a_file_needs_no_listener_and_no_route() {
    let only = "listeners: []\nroutes: []\ndiscovery: {kubernetes: {gatewayClass: spillway}}\n";
    assert_eq!(errors(only), [""; 0]);
    assert_eq!(errors("listeners: []\nroutes: []\ndiscovery: {}\n").len(), 2);
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_place() {
    for (written, expected) in [
        ("gatewayClass: Spill_way", "`Spill_way` is no name of an object"),
        ("gatewayClass: a, namespaces: [b, b]", "`b` is in the list already"),
        ("gatewayClass: a, spillTo: none, inferencePools: true", "unknown model or backend `none`"),
        ("gatewayClass: a, spillTo: b", "no effect, because only requests to inference pools spill"),
        ("gatewayClass: a, address: here", "no IP address"),
        ("gatewayClass: a, publishedAddresses: [\"a b\"]", "no IP address or host name"),
        ("gatewayClass: a, leaderElection: {duration: 1s}", "expected 3s or more"),
    ] {
        let errors = errors(&FILE.replace("gatewayClass: spillway", written));
        assert!(
            errors.len() == 1 && errors[0].starts_with("5: ") && errors[0].contains(expected),
            "{written}: {errors:?}"
        );
    }
}

#[test]
fn a_build_without_the_client_says_which_has_it() {
    let without = LoadOptions { kubernetes: false, ..options() };
    let report = load_text(Path::new("test.yaml"), FILE, &without).unwrap_err();
    let [one] = &report.diagnostics[..] else { panic!("{report}") };
    assert_eq!((one.line, one.path.as_str()), (5, "discovery.kubernetes"));
    assert!(
        one.message.contains("no client for Kubernetes") && one.message.contains("container image"),
        "{}",
        one.message
    );
}

/// Parts in the words of the language.
fn further(json: serde_json::Value) -> Further {
    let list = |key: &str| json.get(key).cloned().unwrap_or_else(|| serde_json::json!([]));
    Further {
        listeners: serde_json::from_value(list("listeners")).unwrap(),
        backends: serde_json::from_value(list("backends")).unwrap(),
        routes: serde_json::from_value(list("routes")).unwrap(),
    }
}

#[test]
fn parts_are_joined_and_one_that_does_not_hold_is_named_and_left_out() {
    let loaded = judge(FILE).unwrap_or_else(|report| panic!("{report}"));
    let backend = |name: &str| serde_json::json!({"name": name, "endpoints": [{"url": "http://127.0.0.1:2"}]});
    let route =
        |name: &str, to: &str| serde_json::json!({"name": name, "listeners": ["k"], "backendRefs": [{"name": to}]});
    let parts = further(serde_json::json!({
        "listeners": [
            {"name": "k", "address": "0.0.0.0:8081"},
            {"name": "taken", "address": "0.0.0.0:8080"},
            {"name": "admin", "address": "0.0.0.0:9901"},
        ],
        "backends": [backend("k"), backend("b")],
        "routes": [
            route("good", "k"), route("bad", "none"), route("r", "k"),
            {"name": "lost", "listeners": ["taken"], "backendRefs": [{"name": "k"}]},
        ],
    }));
    let (joined, mut refused) = loaded.join(parts, &options()).unwrap();
    refused.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    let names: Vec<_> = refused.iter().map(|part| (part.kind, part.name.as_str())).collect();
    assert_eq!(
        names,
        [
            (PartKind::Listener, "admin"),
            (PartKind::Listener, "taken"),
            (PartKind::Backend, "b"),
            (PartKind::Route, "bad"),
            (PartKind::Route, "lost"),
            (PartKind::Route, "r"),
        ]
    );
    let routes: Vec<_> = joined.config.routes.iter().filter_map(|route| route.name.as_deref()).collect();
    assert_eq!(routes, ["r", "good"], "the file's own part wins");
    assert_eq!(joined.config.listeners.len(), 2);
    assert_eq!(joined.config.backends.len(), 2);
}
