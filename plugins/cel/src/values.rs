//! Request as an expression sees it, and the conversion of values.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::SystemTime;

use cel::Value;
use http::HeaderName;
use spillway_filter::{Fields, RequestView, SignalKind, SignalName, Variables};

/// Request as an expression sees it.
pub struct Seen<'a> {
    /// HTTP method.
    pub method: &'a str,
    /// Path without query.
    pub path: &'a str,
    /// Query without `?`.
    pub query: &'a str,
    /// Request headers.
    pub headers: &'a Fields,
    /// Address of the client.
    pub client: IpAddr,
    /// Name of the route.
    pub route: &'a str,
    /// Model named by the body.
    pub model: Option<&'a str>,
    /// Request body.
    pub body: Option<&'a [u8]>,
    /// Caller: name, tenant, scopes, claims.
    pub caller: Option<spillway_filter::Caller<'a>>,
    /// True if the caller used TLS.
    pub secure: bool,
    /// Time of the decision; the present if `None`.
    pub now: Option<SystemTime>,
    /// Target and answer.
    pub served: Served<'a>,
    /// Conversation; `None` where it is not known yet: an expression has a value then only if it is the same for every conversation.
    pub prompt: Option<&'a Prompt>,
    /// True for a header of the request whose value must not be shown: it reads as [`REDACTED`]. `None` hides none.
    pub hides: Option<&'a (dyn Fn(&HeaderName) -> bool + Send + Sync)>,
}

impl<'a> Seen<'a> {
    /// Exchange whose request or answer is on its way, with its variables; `hides` is true for headers of the request whose
    /// values are not shown, `answer` has the headers of the answer.
    pub fn on_way(
        x: &'a RequestView<'_>,
        variables: &Variables<'a>,
        answer: Option<&'a Fields>,
        hides: &'a (dyn Fn(&HeaderName) -> bool + Send + Sync),
    ) -> Self {
        let served = Served {
            backend: variables.backend,
            version: variables.exchange.map_or("", |exchange| exchange.version()),
            status: variables.status.map_or(0, |status| status.as_u16()),
            headers: answer,
            ..Served::default()
        };
        Self { served, hides: Some(hides), ..Self::from(x) }
    }
}

/// Target of a request and its answer, as far as they are known where an expression stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct Served<'a> {
    /// Backend, or `builtin/MODEL`.
    pub backend: &'a str,
    /// Version of the route's rollout: `stable` or `candidate`.
    pub version: &'a str,
    /// Status of the answer; 0 if there is none.
    pub status: u16,
    /// Headers of the answer.
    pub headers: Option<&'a Fields>,
    /// Model that has answered.
    pub model: &'a str,
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Those of them that a cache had.
    pub cached_tokens: Option<u64>,
    /// Tokens written.
    pub completion_tokens: Option<u64>,
}

/// Conversation of a request. What is `None` is absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    /// Language of the last text of the user.
    pub language: Option<&'static str>,
    /// Characters of all texts.
    pub characters: Option<u64>,
    /// Tokens, as they are estimated.
    pub tokens: Option<u64>,
    /// Texts of the user.
    pub turns: Option<u64>,
    /// True if the user repeats or rephrases a question.
    pub reasked: Option<bool>,
    /// True within a loop of tool calls.
    pub tool_loop: Option<bool>,
    /// Values of the signals, in the order of the names with which the expression was compiled.
    pub signals: Box<[Option<SignalValue>]>,
}

/// Value of a signal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SignalValue {
    /// True or false.
    Bool(bool),
    /// Number.
    Double(f64),
}

impl SignalValue {
    /// Value of the kind for trying an expression.
    fn sample(kind: SignalKind) -> Self {
        match kind {
            SignalKind::Bool => Self::Bool(true),
            SignalKind::Double => Self::Double(0.5),
        }
    }
}

/// Value of a header that is not shown.
pub const REDACTED: &str = "[redacted]";

impl Seen<'_> {
    /// The same for an expression that is evaluated on a thread that serves requests: a body above [`MAX_BODY_ON_LOOP`] is absent.
    #[must_use]
    pub fn on_loop(mut self) -> Self {
        self.body = self.body.filter(|body| body.len() <= crate::MAX_BODY_ON_LOOP);
        self
    }
}

impl<'a> From<&'a RequestView<'_>> for Seen<'a> {
    fn from(x: &'a RequestView<'_>) -> Self {
        Self {
            method: x.method.as_str(),
            path: x.path,
            query: x.query,
            headers: x.headers,
            client: x.client,
            route: x.route,
            model: x.model,
            body: x.body,
            caller: x.caller,
            secure: x.secure,
            now: None,
            served: Served::default(),
            prompt: None,
            hides: None,
        }
    }
}

/// Converts a value to JSON; what JSON has not, such as bytes, becomes text.
pub(crate) fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(b) => (*b).into(),
        Value::Int(n) => (*n).into(),
        Value::UInt(n) => (*n).into(),
        Value::Float(n) => (*n).into(),
        Value::String(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(to_json).collect(),
        Value::Map(map) => {
            let entries = map.map.iter().map(|(key, value)| (key.to_string(), to_json(value)));
            serde_json::Value::Object(entries.collect())
        }
        other => format!("{other:?}").into(),
    }
}

/// Name of the type of a value, as CEL writes it.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null_type",
        Value::Bool(_) => "bool",
        Value::Int(_) => "int",
        Value::UInt(_) => "uint",
        Value::Float(_) => "double",
        Value::String(_) => "string",
        Value::Bytes(_) => "bytes",
        Value::List(_) => "list",
        Value::Map(_) => "map",
        _ => "type",
    }
}

/// Name or address of a `Host` in the one spelling that expressions compare with: lower case, no port, no final dot.
pub(crate) fn host_name(host: &str) -> String {
    let name = match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (name.ends_with(']') || !name.contains(':')) =>
        {
            name
        }
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Decodes the escapes of characters that a segment may also have unescaped, so that an expression cannot be evaded
/// by escaping one. These are `:`, `@`, `!`, `$`, `&`, `'`, `(`, `)`, `*`, `+`, `,` and `=`.
pub(crate) fn path(path: &str) -> Cow<'_, str> {
    let mut parts = path.split('%');
    let first = parts.next().unwrap_or_default();
    let mut out = String::with_capacity(path.len());
    out.push_str(first);
    for part in parts {
        let escaped = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escaped.filter(|b| b"!$&'()*+,=:@".contains(b)) {
            Some(byte) => {
                out.push(char::from(byte));
                out.push_str(part.get(2..).unwrap_or_default());
            }
            None => {
                out.push('%');
                out.push_str(part);
            }
        }
    }
    if out.len() == path.len() { Cow::Borrowed(path) } else { Cow::Owned(out) }
}

/// Sample requests for trying an expression: one of a known caller with a body, one of an anonymous caller without.
pub(crate) fn with_samples(
    signals: &[SignalName],
    mut try_one: impl FnMut(&Seen<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let mut headers = Fields::default();
    headers.insert(http::header::HOST, http::HeaderValue::from_static("example.com"));
    let client = IpAddr::from([127, 0, 0, 1]);
    let scopes = ["read".to_owned()];
    let claims = serde_json::json!({"sub": "s"});
    let body = br#"{"model":"m","messages":[{"role":"user","content":"c"}]}"#;
    let caller = spillway_filter::Caller { consumer: "c", tenant: "t", scopes: &scopes, claims: &claims };
    let answered = Served {
        backend: "b",
        version: "stable",
        status: 200,
        headers: Some(&headers),
        model: "m",
        prompt_tokens: Some(1),
        cached_tokens: Some(1),
        completion_tokens: Some(1),
    };
    let prompt = Prompt {
        language: Some("eng"),
        characters: Some(1),
        tokens: Some(1),
        turns: Some(1),
        reasked: Some(true),
        tool_loop: Some(true),
        signals: signals.iter().map(|signal| Some(SignalValue::sample(signal.kind))).collect(),
    };
    try_one(&Seen {
        method: "POST",
        path: "/v1",
        query: "a=b",
        headers: &headers,
        client,
        route: "r",
        model: Some("m"),
        body: Some(body),
        caller: Some(caller),
        secure: true,
        now: None,
        served: answered,
        prompt: Some(&prompt),
        hides: None,
    })?;
    let nothing = Fields::default();
    let silent = Prompt::default();
    try_one(&Seen {
        method: "GET",
        path: "/",
        query: "",
        headers: &nothing,
        client,
        route: "r",
        model: None,
        body: None,
        caller: None,
        secure: false,
        now: None,
        served: Served::default(),
        prompt: Some(&silent),
        hides: None,
    })
}
