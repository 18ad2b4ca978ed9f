//! Request as CEL values. Parts that an expression does not use are not converted.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use cel::objects::{Key, Map};
use cel::{Context, ExecutionError, Value};
use http::HeaderName;
use spillway_filter::{Fields, RequestView};

use crate::MAX_BODY;

/// Parts of a request that an expression needs and that cost something to convert.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Request headers.
    pub headers: bool,
    /// Query of the request.
    pub query: bool,
    /// Request body.
    pub body: bool,
    /// Model named by the body.
    pub model: bool,
    /// Claims of the token.
    pub claims: bool,
}

impl Asked {
    /// True if the body must be read.
    pub fn needs_body(&self) -> bool {
        self.body || self.model
    }
}

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
        }
    }
}

fn map(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let map = entries.into_iter().map(|(name, value)| (Key::from(name), value)).collect();
    Value::Map(Map { map: Arc::new(map) })
}

/// Headers by lower-case name; several values of one name are joined as in RFC 9110, 5.3. Bytes beyond ASCII become
/// replacement characters.
fn headers(headers: &Fields) -> Value {
    let mut joined: HashMap<&HeaderName, String> = HashMap::with_capacity(headers.len());
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let text = joined.entry(name).or_default();
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&value);
    }
    let joined = joined.into_iter().map(|(name, text)| (Key::from(name.as_str()), Value::from(text))).collect();
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

pub(crate) fn bind(context: &mut Context<'_, '_>, x: &Seen<'_>, asked: Asked) -> Result<(), ExecutionError> {
    let host = x.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let host = host_name(host);
    let mut request = vec![
        ("method", Value::from(x.method)),
        ("path", Value::from(path(x.path).as_ref())),
        ("query", Value::from(x.query)),
        ("host", Value::from(host)),
        ("clientAddress", Value::from(x.client.to_canonical().to_string())),
        ("model", Value::from(x.model.unwrap_or_default())),
    ];
    if asked.headers {
        request.push(("headers", headers(x.headers)));
    }
    if asked.body {
        request.push(("body", body(x.body)?));
    }
    let (name, tenant) = x.caller.map_or(("", ""), |caller| (caller.consumer, caller.tenant));
    let scopes = x.caller.map_or(&[][..], |caller| caller.scopes);
    let mut consumer = vec![
        ("name", Value::from(name)),
        ("tenant", Value::from(tenant)),
        ("scopes", Value::List(Arc::new(scopes.iter().map(|scope| Value::from(scope.as_str())).collect()))),
    ];
    if asked.claims {
        let claims = x.caller.map(|caller| json(caller.claims));
        consumer.push(("claims", claims.filter(|claims| !matches!(claims, Value::Null)).unwrap_or_else(|| map([]))));
    }
    context.add_variable_from_value("request", map(request));
    context.add_variable_from_value("consumer", map(consumer));
    context.add_variable_from_value("route", x.route.to_owned());
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
    })
}
