//! Request as an expression sees it, and the conversion of values.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::SystemTime;

use cel::Value;
use spillway_filter::{Fields, RequestView};

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
