//! Errors about the admin address.

use crate::common;

#[test]
fn links_to_traces_lead_a_browser_to_a_server_that_the_file_names() {
    let errors = |url: &str| {
        common::errors(&format!(
            "admin: {{address: \"127.0.0.1:9901\", tracesUrl: \"{url}\"}}
listeners: [{{address: \"127.0.0.1:1\"}}]
backends: [{{name: a, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}]
routes: [{{backendRefs: [{{name: a}}]}}]
"
        ))
    };
    for right in ["http://jaeger:16686/trace/{trace_id}", "https://a.test/explore?trace={trace_id}&x=1#top"] {
        assert_eq!(errors(right), [""; 0], "{right}");
    }
    for wrong in [
        "http://jaeger:16686/trace/",
        "javascript:alert('{trace_id}')//",
        "//jaeger/{trace_id}",
        "/trace/{trace_id}",
        "http://{trace_id}/",
        "http://{trace_id}.a.test/",
        "http://user:password@a.test/{trace_id}",
        "http://user@a.test/{trace_id}",
        "ftp://a.test/{trace_id}",
        "{trace_id}",
    ] {
        let told = errors(wrong);
        assert!(told.len() == 1 && told[0].starts_with("1: not the address of a trace"), "{wrong}: {told:?}");
    }
}

/// Nothing sends the user of such a URL, so one that is written there is a mistake, and a secret in the file.
#[test]
fn a_user_in_a_url_that_the_gateway_asks_is_an_error() {
    let told = "a user or password in the URL is not sent, and would be readable in the file: remove it";
    let with = |listener: &str, route: &str, more: &str| {
        common::errors(&format!(
            "listeners: [{{address: \"127.0.0.1:0\"{listener}}}]
backends: [{{name: a, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}, {{name: b, endpoints: [{{url: \"http://127.0.0.1:2\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: a}}, {{name: b, weight: 0}}]{route}}}]
{more}
"
        ))
    };
    let acme = |user: &str| {
        let tls = format!("{{directory: \"https://{user}ca.test/d\", domains: [a.test], storage: acme}}");
        with(&format!(", protocol: https, tls: {{acme: {tls}}}"), "", "")
    };
    let gate = |user: &str| {
        let steps = format!(
            "[{{weight: 1, hold: {{for: 1m}}}}, {{gate: {{url: \"http://{user}ci.test/\"}}}}, {{weight: 100}}]"
        );
        with("", &format!(", rollout: {{to: b, steps: {steps}}}"), "")
    };
    let issuer = |user: &str| {
        with("", "", &format!("authentication: {{jwt: [{{issuer: \"https://{user}id.test\", audiences: [a]}}]}}"))
    };
    let keys = |user: &str| {
        let jwks = format!("{{url: \"https://{user}id.test/keys\"}}");
        with("", "", &format!("authentication: {{jwt: [{{issuer: i, audiences: [a], jwks: {jwks}}}]}}"))
    };
    let traces = |user: &str| {
        with("", "", &format!("telemetry: {{tracing: {{otlp: {{endpoint: \"http://{user}127.0.0.1:4317\"}}}}}}"))
    };
    type Place<'c> = (&'c str, &'c dyn Fn(&str) -> Vec<String>);
    let places: [Place<'_>; 5] =
        [("acme", &acme), ("gate", &gate), ("issuer", &issuer), ("keys", &keys), ("traces", &traces)];
    for (place, errors) in places {
        assert!(!errors("").iter().any(|error| error.contains(told)), "{place}: {:?}", errors(""));
        for user in ["u@", "u:p4ss@", ":p4ss@"] {
            let found = errors(user);
            assert!(found.iter().any(|error| error.contains(told)), "{place} {user}: {found:?}");
            assert!(!found.iter().any(|error| error.contains("p4ss")), "{place}: {found:?}");
        }
    }
}

#[test]
fn an_issuer_is_not_named_as_what_has_budgets_of_its_own() {
    for (issuer, expected) in [("tenant", 1), ("key", 1), ("keys", 0), ("https://id.test", 0)] {
        let found = common::errors(&format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: a, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}]
routes: [{{backendRefs: [{{name: a}}]}}]
authentication: {{jwt: [{{issuer: \"{issuer}\", audiences: [a], jwks: {{url: \"https://id.test/keys\"}}}}]}}
"
        ));
        assert_eq!(found.iter().filter(|error| error.contains("the gateway's own")).count(), expected, "{found:?}");
    }
}
