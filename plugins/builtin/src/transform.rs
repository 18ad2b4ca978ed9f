//! `transform`: changes to the JSON of requests and answers, and texts around the system prompt.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use spillway_cel::{Expression, Scope, Seen};
use spillway_filter::{
    AnswerHead, EventChange, FieldError, Filter, FilterFactory, Flow, Refusal, RequestView, ResponseEvent, Rewrite,
    Rewriter, define_compiled,
};

use crate::json_edit::{self, EditError, Pointer};
use crate::system_prompt::SystemText;

/// Most edits of a request, and of an answer: each is a pass over its text.
const MAX_EDITS: usize = 64;
/// Longest text that is added to a system prompt, in bytes.
const MAX_SYSTEM: usize = 64 << 10;

/// Changes the JSON of requests and of answers. A pointer is a JSON Pointer (RFC 6901), such as `/options/num_ctx`. What it does
/// not point to keeps its bytes. Bodies that are no JSON, such as forms and gRPC messages, pass as they are.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Transform {
    /// Condition in CEL on the request. Where it is false, the filter does nothing; where it has no value, the filter does its
    /// work. All requests when left out.
    #[serde(default)]
    when: Option<String>,
    /// Changes to the request, in the API of the caller.
    #[serde(default)]
    request: RequestChanges,
    /// Changes to answers with a status of success, in the API of the caller: to a whole answer, and to each event or line of a
    /// stream. An answer that is no stream is read whole before it passes.
    #[serde(default)]
    response: Edits,
}

/// Changes to a request.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RequestChanges {
    /// Values to move, from pointer to pointer, first of all. What is not there is not moved.
    #[serde(rename = "move", default)]
    moved: BTreeMap<String, String>,
    /// Values to remove, after `move`.
    #[serde(default)]
    remove: Vec<String>,
    /// Values by their pointers, in place of what is there. Missing objects on the way are made; in a list, `-` is a further
    /// element. `/model` and `/stream` cannot be set: routes and limits have read them (see `modelAlias`).
    #[serde(default)]
    set: BTreeMap<String, Value>,
    /// Values where there is none or `null`.
    #[serde(rename = "default", default)]
    defaults: BTreeMap<String, Value>,
    /// Text in front of the system prompt, whatever API the caller speaks; at most 64 KiB. Requests for text alone have one; in
    /// completions, which have none, it stands in front of each prompt. A request whose form has no place for it, such as a
    /// prompt in tokens, is refused.
    #[serde(default)]
    prepend_system: String,
    /// Text behind the system prompt, as `prependSystem`.
    #[serde(default)]
    append_system: String,
}

/// Changes to JSON.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Edits {
    /// Values to move, from pointer to pointer, first of all. What is not there is not moved.
    #[serde(rename = "move", default)]
    moved: BTreeMap<String, String>,
    /// Values to remove, after `move`.
    #[serde(default)]
    remove: Vec<String>,
    /// Values by their pointers, in place of what is there. Missing objects on the way are made; in a list, `-` is a further
    /// element.
    #[serde(default)]
    set: BTreeMap<String, Value>,
    /// Values where there is none or `null`.
    #[serde(rename = "default", default)]
    defaults: BTreeMap<String, Value>,
}

/// Edit of a text.
#[derive(Debug, Clone)]
enum Edit {
    Move(Pointer, Pointer),
    Remove(Pointer),
    Set(Pointer, String),
    Default(Pointer, String),
}

impl Edit {
    /// Text after the edit; `None` where it changes nothing.
    fn apply(&self, text: &str) -> Result<Option<String>, EditError> {
        match self {
            Self::Remove(at) => json_edit::remove(text, at),
            Self::Set(at, value) => json_edit::set(text, at, value).map(Some),
            Self::Default(at, value) => match json_edit::get(text, at)? {
                None | Some("null") => json_edit::set(text, at, value).map(Some),
                Some(_) => Ok(None),
            },
            Self::Move(from, to) => {
                let found = match json_edit::get(text, from) {
                    Ok(Some(value)) => value,
                    Ok(None) | Err(EditError::NoContainer { .. } | EditError::NoElement { .. }) => return Ok(None),
                    Err(error) => return Err(error),
                };
                let Some(without) = json_edit::remove(text, from)? else { return Ok(None) };
                json_edit::set(&without, to, found).map(Some)
            }
        }
    }
}

/// Changes in the order in which they are made.
#[derive(Debug, Clone, Default)]
struct Compiled {
    edits: Vec<Edit>,
    system: Option<SystemText>,
}

impl Compiled {
    fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.system.is_none()
    }
}

/// Pointers that routes, limits and the form of the answer were judged by.
fn is_judged(pointer: &Pointer) -> bool {
    matches!(pointer.first(), "model" | "stream") && pointer.is_of_top()
}

fn compile_edits(side: &'static str, written: &Edits, errors: &mut Vec<FieldError>) -> Vec<Edit> {
    let mut edits = Vec::new();
    let mut pointer = |path: &[&str], text: &str| {
        let judged = |pointer: &Pointer| {
            let why = format!(
                "found `{text}`; expected another pointer: routes and limits have read it before (`modelAlias` of a route names \
                 another model)"
            );
            (side == "request" && is_judged(pointer)).then_some(why)
        };
        let parsed = Pointer::parse(text).and_then(|pointer| judged(&pointer).map_or(Ok(pointer), Err));
        parsed
            .map_err(|why| {
                errors.push(FieldError {
                    path: [&[side], path].concat().into_iter().map(str::to_owned).collect(),
                    message: why,
                })
            })
            .ok()
    };
    for (from, to) in &written.moved {
        if let (Some(from), Some(to)) = (pointer(&["move", from], from), pointer(&["move", from], to)) {
            edits.push(Edit::Move(from, to));
        }
    }
    for (n, at) in written.remove.iter().enumerate() {
        edits.extend(pointer(&["remove", &n.to_string()], at).map(Edit::Remove));
    }
    for (at, value) in &written.set {
        edits.extend(pointer(&["set", at], at).map(|at| Edit::Set(at, value.to_string())));
    }
    for (at, value) in &written.defaults {
        edits.extend(pointer(&["default", at], at).map(|at| Edit::Default(at, value.to_string())));
    }
    if edits.len() > MAX_EDITS {
        errors.push(FieldError::at([side], format!("found {} edits; expected at most {MAX_EDITS}", edits.len())));
    }
    edits
}

fn compile(written: &Transform) -> Result<Changes, Vec<FieldError>> {
    let mut errors = Vec::new();
    let when = match written.when.as_deref().map(|text| Expression::condition(text, Scope::Request)).transpose() {
        Ok(when) => when,
        Err(why) => {
            errors.push(FieldError::at(["when"], why));
            None
        }
    };
    let of_request = Edits {
        moved: written.request.moved.clone(),
        remove: written.request.remove.clone(),
        set: written.request.set.clone(),
        defaults: written.request.defaults.clone(),
    };
    let mut request = Compiled { edits: compile_edits("request", &of_request, &mut errors), system: None };
    for (key, text) in
        [("prependSystem", &written.request.prepend_system), ("appendSystem", &written.request.append_system)]
    {
        if text.len() > MAX_SYSTEM {
            let why = format!("found {} bytes; expected at most {MAX_SYSTEM}", text.len());
            errors.push(FieldError::at(["request", key], why));
        }
    }
    match SystemText::new(&written.request.prepend_system, &written.request.append_system) {
        Ok(system) => request.system = system,
        Err(why) => errors.push(FieldError::at(["request"], why)),
    }
    let response = Compiled { edits: compile_edits("response", &written.response, &mut errors), system: None };
    if errors.is_empty() && request.is_empty() && response.is_empty() {
        let why = "it changes nothing; expected `request` or `response` with a change".to_owned();
        errors.push(FieldError { path: Vec::new(), message: why });
    }
    if errors.is_empty() { Ok(Changes { when, request, response: Arc::new(response) }) } else { Err(errors) }
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define_compiled("transform", compile)
}

/// Filter with its changes.
struct Changes {
    when: Option<Expression>,
    request: Compiled,
    response: Arc<Compiled>,
}

impl Changes {
    /// Body of the request with its changes; `None` where it stays.
    fn body(&self, x: &RequestView<'_>) -> Result<Option<Bytes>, Box<Refusal>> {
        let Some(body) = x.body.filter(|body| !body.is_empty() && !self.request.is_empty()) else { return Ok(None) };
        // Binary tensors behind JSON, forms and messages of gRPC are not read; a call for text has nothing but JSON.
        let text = std::str::from_utf8(body).ok().filter(|text| text.trim_start().starts_with('{'));
        let Some(text) = text else { return Ok(None) };
        let mut changed: Option<String> = None;
        for edit in &self.request.edits {
            match edit.apply(changed.as_deref().unwrap_or(text)) {
                Ok(None) => {}
                Ok(Some(after)) => changed = Some(after),
                Err(EditError::NotJson) if x.system.is_none() => return Ok(None),
                Err(error) => return Err(refused(&error)),
            }
        }
        if let (Some(system), Some(place)) = (&self.request.system, x.system) {
            let after = system.add(changed.as_deref().unwrap_or(text), place).map_err(|error| refused(&error))?;
            changed = Some(after);
        }
        Ok(changed.map(Bytes::from))
    }
}

/// Refusal of a request whose body has a form that cannot be changed.
fn refused(error: &dyn std::error::Error) -> Box<Refusal> {
    let message = format!("this route changes the body of requests, and cannot change this one: {error}");
    Box::new(Refusal::invalid("unsupported_body", message))
}

impl Filter for Changes {
    fn needs_body(&self) -> bool {
        !self.request.is_empty() || self.when.as_ref().is_some_and(|when| when.asked().needs_body())
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        // Where the condition cannot be judged, leaving something out must help nobody.
        if self.when.as_ref().is_some_and(|when| matches!(when.holds(&Seen::from(&*x)), Ok(false))) {
            return Flow::Continue;
        }
        let body = match self.body(x) {
            Ok(body) => body,
            Err(refusal) => return Flow::Refuse(refusal),
        };
        let rewriter =
            (!self.response.is_empty()).then(|| Box::new(AnswerChanges(self.response.clone())) as Box<dyn Rewriter>);
        if body.is_none() && rewriter.is_none() {
            return Flow::Continue;
        }
        Flow::Rewrite(Box::new(Rewrite { body, rewriter, ..Rewrite::default() }))
    }
}

/// Changes to one answer.
struct AnswerChanges(Arc<Compiled>);

impl AnswerChanges {
    /// Text with its changes; `None` where it stays. What cannot be edited stays: the caller is not at fault for it.
    fn changed(&self, text: &[u8]) -> Option<Bytes> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.trim_start().starts_with(['{', '[']))?;
        let mut changed: Option<String> = None;
        for edit in &self.0.edits {
            if let Ok(Some(after)) = edit.apply(changed.as_deref().unwrap_or(text)) {
                changed = Some(after);
            }
        }
        changed.map(Bytes::from)
    }
}

impl Rewriter for AnswerChanges {
    fn reads(&self, head: &AnswerHead<'_>) -> bool {
        head.status.is_success() && (head.is_json() || head.is_stream())
    }

    fn whole(&mut self, body: &[u8]) -> Result<Option<Bytes>, Box<Refusal>> {
        Ok(self.changed(body))
    }

    fn event(&mut self, event: &ResponseEvent<'_>) -> EventChange {
        let changed = event.data().filter(|_| event.is_whole).and_then(|data| self.changed(&data));
        changed.map_or(EventChange::Keep, |data| EventChange::Replace(event.with_data(&data)))
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use spillway_filter::SystemPlace;
    use spillway_filter::testing::{FilterBuilder, TestRequest, headers, split_events};

    use super::*;

    fn build(config: &Value) -> Arc<dyn Filter> {
        FilterBuilder::new().build(&*factory(), config)
    }

    fn changed(config: &Value, body: &str) -> Option<String> {
        match TestRequest::post("/v1/chat/completions", body.to_owned())
            .system(SystemPlace::Messages)
            .decide(&*build(config))
        {
            Flow::Continue => None,
            Flow::Rewrite(rewrite) => rewrite.body.map(|body| String::from_utf8(body.to_vec()).unwrap()),
            Flow::Refuse(refusal) => Some(refusal.message.to_string()),
            _ => panic!("{config}"),
        }
    }

    #[test]
    fn edits_are_made_in_their_order() {
        let config = json!({"request": {
            "move": {"/max_tokens": "/max_completion_tokens"},
            "remove": ["/user", "/metadata/secret"],
            "set": {"/temperature": 0.2, "/metadata/team": "a"},
            "default": {"/top_p": 0.9, "/seed": 7},
        }});
        let body = r#"{"model":"m","max_tokens":5,"user":"u","metadata":{"secret":1},"top_p":null,"seed":1}"#;
        let expected =
            r#"{"model":"m","metadata":{"team":"a"},"top_p":0.9,"seed":1,"max_completion_tokens":5,"temperature":0.2}"#;
        assert_eq!(changed(&config, body).as_deref(), Some(expected));
        assert_eq!(changed(&json!({"request": {"remove": ["/user"]}}), "{}"), None, "nothing to change");
        assert_eq!(changed(&json!({"request": {"set": {"/a": 1}}}), "no JSON"), None);
        let refused = changed(&json!({"request": {"set": {"/a/b": 1}}}), r#"{"a":"x"}"#).unwrap();
        assert!(refused.ends_with("it has a string where `/a/b` expects an object or a list"), "{refused}");
    }

    #[test]
    fn a_condition_chooses_the_requests() {
        let config = json!({"when": "request.path.startsWith('/v1/chat')", "request": {"set": {"/a": 1}}});
        assert_eq!(changed(&config, "{}").as_deref(), Some(r#"{"a":1}"#));
        let filter = build(&config);
        assert!(matches!(TestRequest::post("/v1/embeddings", "{}").decide(&*filter), Flow::Continue));
    }

    #[test]
    fn answers_are_changed_whole_and_by_events() {
        let filter = build(&json!({"response": {"remove": ["/system_fingerprint"], "set": {"/served": true}}}));
        assert!(!filter.needs_body());
        let Flow::Rewrite(rewrite) = TestRequest::get("/").decide(&*filter) else { panic!("it changes the answer") };
        let mut rewriter = rewrite.rewriter.unwrap();
        let head = |status: u16, kind: &'static str| {
            let headers = headers([("content-type", kind)]);
            let status = StatusCode::from_u16(status).unwrap();
            rewriter.reads(&AnswerHead { status, headers: &headers, is_spilled: false })
        };
        assert!(
            head(200, "application/json; charset=utf-8") && head(200, "text/event-stream") && head(201, "a/b+json")
        );
        assert!(head(200, "application/x-ndjson"));
        assert!(!head(400, "application/json") && !head(200, "text/html") && !head(200, "application/jsonp"));
        let whole = rewriter.whole(br#"{"id":"c","system_fingerprint":"x"}"#).unwrap().unwrap();
        assert_eq!(whole, r#"{"id":"c","served":true}"#);
        assert!(rewriter.whole(b"plain").unwrap().is_none());
        let mut passed = Vec::new();
        let stream = "event: a\ndata: {\"system_fingerprint\":\"x\"}\n\n: note\n\ndata: [DONE]\n\n";
        split_events(stream, |event| match rewriter.event(event) {
            EventChange::Keep => passed.extend_from_slice(event.bytes),
            EventChange::Replace(bytes) => passed.extend_from_slice(&bytes),
            other => panic!("{other:?}"),
        });
        let expected = "event: a\ndata: {\"served\":true}\n\n: note\n\ndata: [DONE]\n\n";
        assert_eq!(String::from_utf8(passed).unwrap(), expected);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (config, path) in [
            (json!({}), vec![]),
            (json!({"request": {"set": {"temperature": 1}}}), vec!["request", "set", "temperature"]),
            (json!({"request": {"set": {"/model": "x"}}}), vec!["request", "set", "/model"]),
            (json!({"request": {"move": {"/a": "/stream"}}}), vec!["request", "move", "/a"]),
            (json!({"request": {"remove": ["/a", "b"]}}), vec!["request", "remove", "1"]),
            (json!({"request": {"prependSystem": "x".repeat(MAX_SYSTEM + 1)}}), vec!["request", "prependSystem"]),
            (json!({"response": {"remove": vec!["/a"; 65]}}), vec!["response"]),
            (json!({"when": "request.nothing", "request": {"set": {"/a": 1}}}), vec!["when"]),
        ] {
            let errors = factory().check(&config);
            assert_eq!(errors.len(), 1, "{config}: {errors:?}");
            assert_eq!(errors[0].path, path, "{config}");
        }
        assert!(
            factory().check(&json!({"response": {"set": {"/model": "x"}}})).is_empty(),
            "answers may say another one"
        );
    }
}
