//! Errors about receivers of notifications.

use crate::common;

/// Errors about these notifications, each with its line; they begin in line 2.
fn errors(notifications: &str) -> Vec<String> {
    let yaml = format!(
        "notifications:
{notifications}
listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: a, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}]
routes: [{{backendRefs: [{{name: a}}]}}]
"
    );
    common::errors(&yaml)
}

fn one(webhook: &str) -> Vec<String> {
    errors(&format!("  - {{webhook: {{secret: {{env: SET}}, {webhook}}}, events: [rollout]}}"))
}

#[test]
fn a_receiver_needs_a_url_that_can_be_called() {
    assert!(one("url: \"https://ops.test/hook?team=1\"").is_empty());
    assert_eq!(one("url: \"ftp://ops.test/secret\"").len(), 1);
    for (url, expected) in [
        ("ops.test/hook", "2: not the URL of a receiver (relative URL without a base); expected https://HOST/PATH"),
        ("ftp://ops.test/hidden", "2: the scheme is neither http nor https; expected https://HOST/PATH"),
        (
            "https://u:hidden@ops.test/",
            "2: a user or password in the URL is not sent, and would be readable in the file: remove it",
        ),
    ] {
        assert_eq!(one(&format!("url: \"{url}\"")), [expected]);
    }
    let twice = "  - {webhook: {url: \"https://ops.test/\", secret: {env: SET}}, events: [rollout]}\n".repeat(2);
    assert_eq!(
        errors(twice.trim_end()),
        ["3: the same URL as notifications[0]; it would receive every event twice: remove one"]
    );
}

#[test]
fn bounds_have_bounds() {
    let url = "url: \"https://ops.test/hook\"";
    for (keys, expected) in [
        ("timeout: 0s", "2: found 0s; expected above zero and at most 60s"),
        ("timeout: 2m", "2: found 2m; expected above zero and at most 60s"),
        ("retry: {base: 1ms}", "2: found 1ms; expected at least 10ms, to spare the receiver"),
        ("retry: {base: 10s, max: 5s}", "2: found 5s; expected at least `base`, 10s"),
        ("retry: {giveUpAfter: 8d}", "2: found 192h; expected above zero and at most 7d"),
    ] {
        assert_eq!(one(&format!("{url}, {keys}")), [expected], "{keys}");
    }
    assert!(one(&format!("{url}, retry: {{attempts: 0}}"))[0].starts_with("2: "), "no attempt");
    assert!(one(&format!("{url}, maxPending: 0"))[0].starts_with("2: "), "nothing may wait");
}

#[test]
fn only_events_that_exist_can_be_wanted() {
    let events = |events: &str| {
        errors(&format!("  - {{webhook: {{url: \"https://ops.test/\", secret: {{env: SET}}}}, events: {events}}}"))
    };
    assert_eq!(events("[]"), ["2: no event is sent; expected at least one, such as [rollout]"]);
    assert_eq!(events("[rollout, rollout]"), ["2: the same event twice: remove one"]);
    for event in ["spill", "budget", "certificate"] {
        assert_eq!(
            events(&format!("[rollout, {event}]")),
            [format!(
                "2: unsupported value `{event}` for `events`: this version sends only `rollout` and `drift`; remove it"
            )]
        );
    }
    assert_eq!(events("[rollouts]"), ["2: unknown value `rollouts` for `events`; expected `rollout` or `drift`"]);
}

#[test]
fn authorities_are_for_tls() {
    let told = one("url: \"http://ops.test/\", caFile: ca.pem");
    assert!(
        told.iter().any(|told| told == "2: no effect without TLS: write https:// in `url`, or remove this"),
        "{told:?}"
    );
}
