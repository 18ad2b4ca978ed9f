//! Errors about the APIs of callers and servers: credentials in headers, dropped fields, permitted protocols.

use crate::common;

fn told(backend: &str, route: &str) -> Vec<String> {
    common::errors(&format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: b, endpoints: [{{url: \"http://127.0.0.1:1\"}}], {backend}}}]
routes: [{{backendRefs: [{{name: b}}]{route}}}]
"
    ))
}

#[test]
fn what_can_never_take_effect_is_an_error() {
    for (line, backend, route, says) in [
        (2, "protocol: claude", "", "unknown value `claude` for `protocol`"),
        (2, "credentials: {}", "", "expected either `bearer`, or `header` with `secret`"),
        (2, "credentials: {header: x-api-key}", "", "expected either `bearer`, or `header` with `secret`"),
        (2, "credentials: {bearer: {env: SET}, header: x-api-key, secret: {env: SET}}", "", "expected either `bearer`"),
        (2, "credentials: {header: content-length, secret: {env: SET}}", "", "no header for a credential"),
        (2, "credentials: {header: \"x y\", secret: {env: SET}}", "", "no header for a credential"),
        (2, "dropFields: [temperature]", "", "no effect with `protocol: http`"),
        (2, "protocol: anthropic, dropFields: [messages]", "", "a request needs `messages`"),
        (2, "protocol: anthropic, dropFields: [\"top p\"]", "", "no name of a field"),
        (2, "protocol: anthropic, apis: [chat]", "", "no effect without `protocol: openai`"),
        (2, "protocol: openai, apis: [responses]", "", "expected `chat` among them"),
        (2, "protocol: openai, apis: [chats]", "", "unknown value `chats`"),
        (2, "streamUsage: true", "", "no effect with this `protocol`"),
        (2, "protocol: anthropic, streamUsage: false", "", "no effect with this `protocol`"),
        (3, "protocol: anthropic", ", protocols: []", "no caller could use the route"),
        (3, "protocol: anthropic", ", protocols: [openai, openai]", "named twice"),
        (3, "protocol: anthropic", ", protocols: [http]", "unknown value `http`"),
    ] {
        let told = told(backend, route);
        let found = told.iter().any(|error| error.starts_with(&format!("{line}: ")) && error.contains(says));
        assert!(found, "{backend}{route}: {told:?}");
    }
    let backend = "protocol: anthropic, dropFields: [temperature, output_config], credentials: {header: x-api-key, secret: {env: SET}}";
    let fine = told(backend, ", protocols: [anthropic, openai]");
    assert!(fine.is_empty(), "{fine:?}");
    let fine = told("protocol: openai, apis: [chat]", "");
    assert!(fine.is_empty(), "{fine:?}");
}
