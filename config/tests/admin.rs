//! Errors about the admin address.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

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
