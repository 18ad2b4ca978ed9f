//! Request as CEL values. Parts that an expression does not use are not converted.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use cel::objects::{Key, Map};
use cel::{Context, ExecutionError, Value};
use http::HeaderName;
use spillway_filter::{Fields, RequestView};

use crate::MAX_BODY;
use crate::schema::{Asked, Fact, NAMES};

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
        }
    }
}

fn map(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let map = entries.into_iter().map(|(name, value)| (Key::from(name), value)).collect();
    Value::Map(Map { map: Arc::new(map) })
}

/// Adds a value of a header behind those of its name, as in RFC 9110, 5.3. Bytes beyond ASCII become replacement characters.
fn join(joined: &mut String, value: &http::HeaderValue, is_first: bool) {
    if !is_first {
        joined.push_str(", ");
    }
    joined.push_str(&String::from_utf8_lossy(value.as_bytes()));
}

/// Headers by lower-case name.
fn headers(headers: &Fields) -> Value {
    let mut joined: HashMap<&HeaderName, String> = HashMap::with_capacity(headers.len());
    for (name, value) in headers {
        let is_first = !joined.contains_key(name);
        join(joined.entry(name).or_default(), value, is_first);
    }
    let joined = joined.into_iter().map(|(name, text)| (Key::from(name.as_str()), Value::from(text))).collect();
    Value::Map(Map { map: Arc::new(joined) })
}

/// Headers of these names that a request has.
fn named_headers(headers: &Fields, names: &[HeaderName]) -> Value {
    let mut joined = HashMap::with_capacity(names.len());
    for name in names {
        let mut values = headers.get_all(name).iter();
        let Some(first) = values.next() else { continue };
        let mut text = String::new();
        join(&mut text, first, true);
        values.for_each(|value| join(&mut text, value, false));
        joined.insert(Key::from(name.as_str()), Value::from(text));
    }
    Value::Map(Map { map: Arc::new(joined) })
}

/// Converts JSON; whole numbers become integers.
fn json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(b) => Value::Bool(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::Int(n),
            (None, Some(n)) => Value::UInt(n),
            (None, None) => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => Value::List(Arc::new(items.iter().map(json).collect())),
        serde_json::Value::Object(entries) => {
            let map = entries.iter().map(|(name, value)| (Key::from(name.as_str()), json(value))).collect();
            Value::Map(Map { map: Arc::new(map) })
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

fn body(bytes: Option<&[u8]>) -> Result<Value, ExecutionError> {
    let bytes = bytes.unwrap_or_default();
    if bytes.len() > MAX_BODY {
        return Err(ExecutionError::function_error("request.body", format!("it is longer than {MAX_BODY} bytes")));
    }
    if bytes.is_empty() {
        return Ok(map([]));
    }
    // serde_json refuses nesting deeper than 128.
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|_| ExecutionError::function_error("request.body", "it is not JSON"))?;
    Ok(json(&value))
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

/// Value of a fact; `now` are the seconds since 1970.
fn value(
    fact: Fact,
    x: &Seen<'_>,
    found: &[HeaderName],
    all_headers: bool,
    now: impl Fn() -> i64,
) -> Result<Value, ExecutionError> {
    let text = Value::from;
    Ok(match fact {
        Fact::Method => text(x.method),
        Fact::Path => text(path(x.path).as_ref()),
        Fact::Query => text(x.query),
        Fact::Host => {
            let host = x.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            Value::from(host_name(host))
        }
        Fact::Headers if all_headers => headers(x.headers),
        Fact::Headers => named_headers(x.headers, found),
        Fact::ClientAddress => Value::from(x.client.to_canonical().to_string()),
        Fact::Model => text(x.model.unwrap_or_default()),
        Fact::Body => body(x.body)?,
        Fact::ConsumerName => text(x.caller.map_or("", |caller| caller.consumer)),
        Fact::Tenant => text(x.caller.map_or("", |caller| caller.tenant)),
        Fact::Scopes => {
            let scopes = x.caller.map_or(&[][..], |caller| caller.scopes);
            Value::List(Arc::new(scopes.iter().map(|scope| Value::from(scope.as_str())).collect()))
        }
        Fact::ConsumerClaims | Fact::Claims => {
            let claims = x.caller.map(|caller| json(caller.claims));
            claims.filter(|claims| matches!(claims, Value::Map(_))).unwrap_or_else(|| map([]))
        }
        Fact::Route => text(x.route),
        Fact::TlsUsed => Value::Bool(x.secure),
        Fact::EpochSeconds => Value::Int(now()),
        Fact::Minute => Value::Int(now() / 60 % 60),
        Fact::Hour => Value::Int(now() / 3_600 % 24),
        // The first day of 1970 was a Thursday.
        Fact::Weekday => Value::Int((now() / 86_400 + 4) % 7),
    })
}

/// Binds the names that the expression reads.
pub(crate) fn bind(
    context: &mut Context<'_, '_>,
    x: &Seen<'_>,
    asked: Asked,
    headers: &[HeaderName],
    all_headers: bool,
) -> Result<(), ExecutionError> {
    // One time for all that is read of it: hour and minute belong together.
    let now = LazyCell::new(|| {
        let now = x.now.unwrap_or_else(SystemTime::now);
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        i64::try_from(seconds).unwrap_or(i64::MAX)
    });
    let value = |fact| value(fact, x, headers, all_headers, || *now);
    let mut names = NAMES.iter().filter(|name| asked.reads(name.fact)).peekable();
    while let Some(name) = names.next() {
        let first = value(name.fact)?;
        let Some(field) = name.field else {
            context.add_variable_from_value(name.root, first);
            continue;
        };
        let mut fields = HashMap::with_capacity(1);
        fields.insert(Key::from(field), first);
        while let Some(next) = names.next_if(|next| next.root == name.root) {
            if let Some(field) = next.field {
                fields.insert(Key::from(field), value(next.fact)?);
            }
        }
        context.add_variable_from_value(name.root, Value::Map(Map { map: Arc::new(fields) }));
    }
    Ok(())
}

/// Sample requests for trying an expression: one of a known caller with a body, one of an anonymous caller without.
pub(crate) fn with_samples(mut try_one: impl FnMut(&Seen<'_>) -> Result<(), String>) -> Result<(), String> {
    let mut headers = Fields::default();
    headers.insert(http::header::HOST, http::HeaderValue::from_static("example.com"));
    let client = IpAddr::from([127, 0, 0, 1]);
    let scopes = ["read".to_owned()];
    let claims = serde_json::json!({"sub": "s"});
    let body = br#"{"model":"m","messages":[{"role":"user","content":"c"}]}"#;
    let caller = spillway_filter::Caller { consumer: "c", tenant: "t", scopes: &scopes, claims: &claims };
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
    })?;
    let nothing = Fields::default();
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
    })
}
