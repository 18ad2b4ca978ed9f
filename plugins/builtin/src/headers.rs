//! `requestHeaders` and `responseHeaders`: set, add and remove headers on the way to an endpoint and to the client.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_cel::{Expression, Fact, Scope, Seen};
use spillway_filter::{
    BuildContext, Counter, CounterSpec, FieldError, Fields, Filter, FilterFactory, HeaderEdit, Headers, Template,
    Variables, define,
};

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

/// Longest value that an expression makes, in bytes. Servers refuse heads of some 8 KiB.
const MAX_COMPUTED: usize = 4096;

/// Values that were computed and are no value of a header.
const DROPPED: CounterSpec = CounterSpec {
    name: "spillway_filter_header_values_dropped",
    help: "Values that expressions made and no header can have: they are too long (length), or have control characters (characters)",
    labels: &["header", "reason"],
};

/// Header changes. Values may contain {backend}, {route} and {requestId}; `{{` is a brace.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct HeaderChanges {
    /// Replaces all values of a header.
    set: BTreeMap<String, WrittenValue>,
    /// Adds a value to a header.
    add: BTreeMap<String, WrittenValue>,
    /// Removes a header.
    remove: Vec<String>,
}

/// Value of a header: text, or a CEL expression.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
enum WrittenValue {
    /// Text with variables.
    Text(String),
    /// Value of an expression.
    Computed(ComputedValue),
}

/// Value of a header that a CEL expression makes. Without a value, with an empty one, and with one of more than 4096 bytes or with
/// control characters, `set` removes the header and `add` adds nothing.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ComputedValue {
    /// CEL expression: text, a number, or true or false. Headers of the request that may hold credentials read as `[redacted]`.
    value: String,
}

/// Name of a header that the file may set.
pub(crate) fn name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("`{text}` is not a header name"))?;
    if FRAMING.contains(&name.as_str()) {
        return Err(format!("`{name}` is set by the gateway itself and cannot be changed here"));
    }
    Ok(name)
}

/// Compiled change of a header.
enum Edit {
    Fixed(HeaderEdit),
    Computed(Box<Computed>),
}

/// Value of a header that an expression makes.
struct Computed {
    name: HeaderName,
    /// True if the value is added to those of the header.
    adds: bool,
    expression: Expression,
    too_long: Option<Counter>,
    not_text: Option<Counter>,
}

impl Computed {
    /// Value for an exchange; `None` where it has none that a header can have.
    fn value(&self, headers: &dyn Headers, variables: &Variables<'_>) -> Option<HeaderValue> {
        let exchange = variables.exchange?;
        let answer = (variables.status.is_some() && self.expression.asked().reads(Fact::ResponseHeaders)).then(|| {
            let mut fields = Fields::default();
            headers.for_each(&mut |name, value| fields.append(name.clone(), value.clone()));
            fields
        });
        let request = exchange.request();
        let hides = |name: &HeaderName| exchange.is_secret(name);
        let text = self.expression.text(&Seen::on_way(&request, variables, answer.as_ref(), &hides).on_loop())?;
        let (value, unusable) = if text.len() > MAX_COMPUTED {
            (None, &self.too_long)
        } else if text.contains(char::is_control) {
            // A line break here would be another header.
            (None, &self.not_text)
        } else {
            (HeaderValue::from_str(&text).ok(), &self.not_text)
        };
        if let (None, Some(dropped)) = (&value, unusable) {
            dropped.inc();
        }
        value.filter(|value| !value.is_empty())
    }

    fn apply(&self, headers: &mut dyn Headers, variables: &Variables<'_>) {
        match (self.value(headers, variables), self.adds) {
            (Some(value), true) => headers.append(&self.name, value),
            (Some(value), false) => headers.set(&self.name, value),
            (None, true) => {}
            // What is there was sent by somebody else, and would pass for the value.
            (None, false) => headers.remove(&self.name),
        }
    }
}

/// Compiled changes.
struct Edits(Vec<Edit>);

impl Edits {
    fn apply(&self, headers: &mut dyn Headers, variables: &Variables<'_>) {
        for edit in &self.0 {
            match edit {
                Edit::Fixed(edit) => edit.apply(headers, variables),
                Edit::Computed(computed) => computed.apply(headers, variables),
            }
        }
    }

    fn needs_body(&self) -> bool {
        self.0.iter().any(|edit| matches!(edit, Edit::Computed(computed) if computed.expression.asked().needs_body()))
    }
}

fn compile(changes: &HeaderChanges, scope: Scope) -> Result<Edits, Vec<FieldError>> {
    let mut edits = Vec::new();
    let mut errors = Vec::new();
    // Removals first: a header that is removed and set is set.
    for text in &changes.remove {
        match name(text) {
            Ok(name) => edits.push(Edit::Fixed(HeaderEdit::Remove(name))),
            Err(e) => errors.push(FieldError::at(["remove"], e)),
        }
    }
    for (key, entries, adds) in [("set", &changes.set, false), ("add", &changes.add, true)] {
        for (text, value) in entries {
            let name = match name(text) {
                Ok(name) => name,
                Err(e) => {
                    errors.push(FieldError::at([key, text], e));
                    continue;
                }
            };
            match value {
                WrittenValue::Text(value) => match Template::compile(value) {
                    Ok(template) if adds => edits.push(Edit::Fixed(HeaderEdit::Add(name, template))),
                    Ok(template) => edits.push(Edit::Fixed(HeaderEdit::Set(name, template))),
                    Err(e) => errors.push(FieldError::at([key, text], e)),
                },
                WrittenValue::Computed(written) => match Expression::value(&written.value, scope) {
                    Ok(expression) => {
                        let (too_long, not_text) = (None, None);
                        let computed = Computed { name, adds, expression, too_long, not_text };
                        edits.push(Edit::Computed(Box::new(computed)));
                    }
                    Err(e) => errors.push(FieldError::at([key, text, "value"], e)),
                },
            }
        }
    }
    if edits.is_empty() && errors.is_empty() {
        errors.push(FieldError::at([], "no effect: list headers under `set`, `add` or `remove`"));
    }
    if errors.is_empty() { Ok(Edits(edits)) } else { Err(errors) }
}

fn build(changes: &HeaderChanges, scope: Scope, cx: &BuildContext<'_>) -> Result<Edits, FieldError> {
    let mut edits = compile(changes, scope).map_err(|mut errors| errors.swap_remove(0))?;
    for edit in &mut edits.0 {
        let Edit::Computed(computed) = edit else { continue };
        computed.too_long = Some(cx.counter(DROPPED, &[computed.name.as_str(), "length"])?);
        computed.not_text = Some(cx.counter(DROPPED, &[computed.name.as_str(), "characters"])?);
    }
    Ok(edits)
}

struct RequestHeaders(Edits);

impl Filter for RequestHeaders {
    fn needs_body(&self) -> bool {
        self.0.needs_body()
    }

    fn on_upstream_request(&self, headers: &mut dyn Headers, variables: &Variables<'_>) {
        self.0.apply(headers, variables);
    }
}

struct ResponseHeaders(Edits);

impl Filter for ResponseHeaders {
    fn needs_body(&self) -> bool {
        self.0.needs_body()
    }

    fn on_response(&self, headers: &mut dyn Headers, variables: &Variables<'_>) {
        self.0.apply(headers, variables);
    }
}

pub(crate) fn request() -> Box<dyn FilterFactory> {
    let check = |changes: &HeaderChanges| compile(changes, Scope::Upstream).err().unwrap_or_default();
    define("requestHeaders", check, |changes: HeaderChanges, cx: &BuildContext<'_>| {
        Ok(Arc::new(RequestHeaders(build(&changes, Scope::Upstream, cx)?)) as Arc<dyn Filter>)
    })
}

pub(crate) fn response() -> Box<dyn FilterFactory> {
    let check = |changes: &HeaderChanges| compile(changes, Scope::Answer).err().unwrap_or_default();
    define("responseHeaders", check, |changes: HeaderChanges, cx: &BuildContext<'_>| {
        Ok(Arc::new(ResponseHeaders(build(&changes, Scope::Answer, cx)?)) as Arc<dyn Filter>)
    })
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use spillway_filter::testing::{self, FilterBuilder, TestRequest, variables};

    use super::*;

    #[test]
    fn headers_are_removed_then_set_then_added() {
        let changes = json!({
            "set": {"x-model": "{backend} of {route}", "x-json": "{{\"a\": 1}"}, "add": {"x-list": "b"}, "remove": ["x-model", "cookie"]
        });
        let mut headers = testing::headers([("x-model", "old"), ("cookie", "c"), ("x-list", "a")]);
        let variables = Variables { backend: "v1", route: "chat", ..variables() };
        FilterBuilder::new().build(&*request(), &changes).on_upstream_request(&mut headers, &variables);
        assert_eq!(headers["x-model"], "v1 of chat");
        assert_eq!(headers["x-json"], r#"{"a": 1}"#);
        assert!(!headers.contains_key("cookie"));
        assert_eq!(headers.get_all("x-list").iter().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_value_is_computed_for_each_request() {
        let config = json!({
            "set": {
                "x-tenant": {"value": "consumer.tenant"},
                "x-size": {"value": "size(request.body.messages)"},
                "x-to": {"value": "backend + '/' + rollout.version"},
                "x-echo": {"value": "request.headers['authorization']"},
            },
            "add": {"x-list": {"value": "request.headers['x-more']"}}
        });
        let filter = FilterBuilder::new().build(&*request(), &config);
        assert!(filter.needs_body());
        let sent = |request: &TestRequest| {
            let mut headers = testing::headers([("x-tenant", "forged"), ("x-size", "9"), ("x-list", "a")]);
            let exchange = Some(request as &dyn spillway_filter::ExchangeView);
            filter.on_upstream_request(&mut headers, &Variables { exchange, ..variables() });
            headers
        };
        let known = TestRequest::post("/", r#"{"messages": [1, 2]}"#).caller("anna", "north").header("x-more", "b");
        let headers = sent(&known.header("authorization", "Bearer key"));
        assert_eq!((&headers["x-tenant"], &headers["x-size"]), (&"north".parse().unwrap(), &"2".parse().unwrap()));
        assert_eq!(
            (&headers["x-to"], &headers["x-echo"]),
            (&"backend/stable".parse().unwrap(), &"[redacted]".parse().unwrap())
        );
        assert_eq!(headers.get_all("x-list").iter().collect::<Vec<_>>(), ["a", "b"]);

        let headers = sent(&TestRequest::get("/"));
        assert!(
            !headers.contains_key("x-tenant") && !headers.contains_key("x-size"),
            "no caller sets them in its place"
        );
        assert!(!headers.contains_key("x-echo"));
        assert_eq!(headers.get_all("x-list").iter().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_value_that_no_header_can_have_is_dropped_and_counted() {
        let builder = FilterBuilder::new();
        let config = json!({"set": {"x-user": {"value": "request.body.user"}}});
        let filter = builder.build(&*request(), &config);
        let sent = |user: &str| {
            let exchange = TestRequest::post("/", json!({ "user": user }).to_string());
            let mut headers = testing::headers([("x-user", "forged")]);
            let exchange = Some(&exchange as &dyn spillway_filter::ExchangeView);
            filter.on_upstream_request(&mut headers, &Variables { exchange, ..variables() });
            headers.get("x-user").cloned()
        };
        assert_eq!(sent(&"a".repeat(MAX_COMPUTED)).unwrap().len(), MAX_COMPUTED);
        assert_eq!(sent(""), None);
        assert_eq!(sent("\u{fc}").unwrap(), "\u{fc}");
        for user in ["a\r\nx-admin: 1", "a\nb", "a\0", "a\u{7f}", "a\u{85}b"] {
            assert_eq!(sent(user), None, "{user:?}");
        }
        assert_eq!(sent(&"a".repeat(MAX_COMPUTED + 1)), None);
        assert_eq!(builder.count(DROPPED.name, &["x-user", "characters"]), 5);
        assert_eq!(builder.count(DROPPED.name, &["x-user", "length"]), 1);
    }

    #[test]
    fn a_value_of_an_answer_reads_its_head() {
        let config = json!({
            "set": {"x-a": {"value": "response.headers['x-cache'] + ' ' + string(response.status)"}},
            "add": {"x-b": {"value": "'x-a' in response.headers ? backend : 'none'"}}
        });
        let filter = FilterBuilder::new().build(&*response(), &config);
        let exchange = TestRequest::get("/");
        let exchange = Some(&exchange as &dyn spillway_filter::ExchangeView);
        let mut headers = testing::headers([("x-cache", "hit")]);
        let variables = Variables { exchange, status: Some(StatusCode::ACCEPTED), ..variables() };
        filter.on_response(&mut headers, &variables);
        assert_eq!((&headers["x-a"], &headers["x-b"]), (&"hit 202".parse().unwrap(), &"backend".parse().unwrap()));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        for (json, path) in [
            (r#"{"set":{"content-length":"1"}}"#, vec!["set", "content-length"]),
            (r#"{"set":{"b@d":"1"}}"#, vec!["set", "b@d"]),
            (r#"{"add":{"x-a":"line\nbreak"}}"#, vec!["add", "x-a"]),
            (r#"{"set":{"x-a":"{nope}"}}"#, vec!["set", "x-a"]),
            (r#"{"set":{"x-a":{"value":"consumer.nme"}}}"#, vec!["set", "x-a", "value"]),
            (r#"{"set":{"x-a":{"value":"response.status"}}}"#, vec!["set", "x-a", "value"]),
            (r#"{"set":{"x-a":{"value":"consumer"}}}"#, vec!["set", "x-a", "value"]),
            (r#"{"set":{"host":{"value":"route"}}}"#, vec!["set", "host"]),
            (r#"{"remove":["host"]}"#, vec!["remove"]),
            ("{}", vec![]),
        ] {
            let errors = request().check(&serde_json::from_str(json).unwrap());
            assert_eq!(errors.len(), 1, "{json}");
            assert_eq!(errors[0].path, path, "{json}");
        }
        assert!(response().check(&json!({"set": {"x-a": {"value": "response.status"}}})).is_empty());
        assert!(!response().check(&json!({"set": {"x-a": {"value": "usage.promptTokens"}}})).is_empty());
    }
}
