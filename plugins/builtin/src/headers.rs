//! `requestHeaders` and `responseHeaders`: set, add and remove headers on the way to an endpoint and to the client.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderName;
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_filter::{FieldError, Filter, FilterFactory, HeaderEdit, Headers, Template, Variables, define};

/// Fields that frame a message or belong to one connection: only the proxy sets them.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Header changes. Values may contain {backend}, {route} and {requestId}; `{{` is a brace.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct HeaderChanges {
    /// Replaces all values of a header.
    set: BTreeMap<String, String>,
    /// Adds a value to a header.
    add: BTreeMap<String, String>,
    /// Removes a header.
    remove: Vec<String>,
}

/// Name of a header that the file may set.
pub(crate) fn name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("`{text}` is not a header name"))?;
    if FRAMING.contains(&name.as_str()) {
        return Err(format!("`{name}` is set by the gateway itself and cannot be changed here"));
    }
    Ok(name)
}

fn compile(changes: &HeaderChanges) -> Result<Vec<HeaderEdit>, Vec<FieldError>> {
    let mut edits = Vec::new();
    let mut errors = Vec::new();
    // Removals first: a header that is removed and set is set.
    for text in &changes.remove {
        match name(text) {
            Ok(name) => edits.push(HeaderEdit::Remove(name)),
            Err(e) => errors.push(FieldError::at(["remove"], e)),
        }
    }
    for (key, entries, make) in [
        ("set", &changes.set, HeaderEdit::Set as fn(_, _) -> _),
        ("add", &changes.add, HeaderEdit::Add as fn(_, _) -> _),
    ] {
        for (text, value) in entries {
            match name(text).and_then(|name| Ok((name, Template::compile(value)?))) {
                Ok((name, template)) => edits.push(make(name, template)),
                Err(e) => errors.push(FieldError::at([key, text], e)),
            }
        }
    }
    if edits.is_empty() && errors.is_empty() {
        errors.push(FieldError::at([], "no effect: list headers under `set`, `add` or `remove`"));
    }
    if errors.is_empty() { Ok(edits) } else { Err(errors) }
}

fn check(changes: &HeaderChanges) -> Vec<FieldError> {
    compile(changes).err().unwrap_or_default()
}

fn build(changes: &HeaderChanges) -> Result<Vec<HeaderEdit>, FieldError> {
    compile(changes).map_err(|mut errors| errors.swap_remove(0))
}

struct RequestHeaders(Vec<HeaderEdit>);

impl Filter for RequestHeaders {
    fn on_upstream_request(&self, headers: &mut dyn Headers, variables: &Variables<'_>) {
        self.0.iter().for_each(|edit| edit.apply(headers, variables));
    }
}

struct ResponseHeaders(Vec<HeaderEdit>);

impl Filter for ResponseHeaders {
    fn on_response(&self, headers: &mut dyn Headers, variables: &Variables<'_>) {
        self.0.iter().for_each(|edit| edit.apply(headers, variables));
    }
}

pub(crate) fn request() -> Box<dyn FilterFactory> {
    define("requestHeaders", check, |changes: HeaderChanges, _| {
        Ok(Arc::new(RequestHeaders(build(&changes)?)) as Arc<dyn Filter>)
    })
}

pub(crate) fn response() -> Box<dyn FilterFactory> {
    define("responseHeaders", check, |changes: HeaderChanges, _| {
        Ok(Arc::new(ResponseHeaders(build(&changes)?)) as Arc<dyn Filter>)
    })
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::{self, variables};

    use super::*;

    #[test]
    fn headers_are_removed_then_set_then_added() {
        let changes: HeaderChanges = serde_json::from_value(serde_json::json!({
            "set": {"x-model": "{backend} of {route}", "x-json": "{{\"a\": 1}"}, "add": {"x-list": "b"}, "remove": ["x-model", "cookie"]
        }))
        .unwrap();
        let mut headers = testing::headers([("x-model", "old"), ("cookie", "c"), ("x-list", "a")]);
        let variables = Variables { backend: "v1", route: "chat", ..variables() };
        RequestHeaders(build(&changes).unwrap()).on_upstream_request(&mut headers, &variables);
        assert_eq!(headers["x-model"], "v1 of chat");
        assert_eq!(headers["x-json"], r#"{"a": 1}"#);
        assert!(!headers.contains_key("cookie"));
        assert_eq!(headers.get_all("x-list").iter().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        for (json, path) in [
            (r#"{"set":{"content-length":"1"}}"#, vec!["set", "content-length"]),
            (r#"{"set":{"b@d":"1"}}"#, vec!["set", "b@d"]),
            (r#"{"add":{"x-a":"line\nbreak"}}"#, vec!["add", "x-a"]),
            (r#"{"set":{"x-a":"{nope}"}}"#, vec!["set", "x-a"]),
            (r#"{"remove":["host"]}"#, vec!["remove"]),
            ("{}", vec![]),
        ] {
            let errors = check(&serde_json::from_str(json).unwrap());
            assert_eq!(errors.len(), 1, "{json}");
            assert_eq!(errors[0].path, path, "{json}");
        }
    }
}
