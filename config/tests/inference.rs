//! Backends of the Open Inference Protocol that can never answer are refused with their line.

use crate::common::{judge, messages};

fn config(backends: &str, route: &str) -> String {
    format!("listeners: [{{address: \"127.0.0.1:0\"}}]\nbackends: [{backends}]\nroutes:\n  - {route}\n")
}

const HTTP: &str = "{name: plain, protocol: oip, endpoints: [{url: \"http://127.0.0.1:1\"}]}";
const GRPC: &str = "{name: calls, protocol: oip-grpc, http2: true, endpoints: [{url: \"http://127.0.0.1:2\"}]}";

#[test]
fn a_route_may_have_servers_of_both_transports() {
    for route in [
        "{backendRefs: [{name: plain}, {name: calls}]}",
        "{backendRefs: [{name: calls}], whenSaturated: {spillTo: plain}}",
    ] {
        assert!(judge(&config(&format!("{HTTP}, {GRPC}"), route)).is_ok());
    }
}

#[test]
fn grpc_needs_http2() {
    let found = messages(&config(&GRPC.replace("http2: true, ", ""), "{backendRefs: [{name: calls}]}"));
    assert!(found.iter().any(|message| message.contains("it must say `http2: true`")), "{found:?}");
    let found = messages(&config(&GRPC.replace("oip-grpc", "oipGrpc"), "{backendRefs: [{name: calls}]}"));
    assert!(
        found
            .iter()
            .any(|message| message.contains("expected `openai`, `anthropic`, `ollama`, `oip`, `oip-grpc` or `http`")),
        "{found:?}"
    );
}
