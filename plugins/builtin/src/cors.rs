//! `cors`: origins whose pages may call from a browser (Fetch, section 3.2). Preflights are answered here, before
//! authentication, because they carry no credentials.

use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::values::Duration;
use spillway_filter::{
    Answer, ErrorKind, FieldError, Filter, FilterFactory, Flow, Headers, Refusal, RequestView, Stage, Variables,
    define_compiled,
};

/// Allows pages of other origins to call from a browser.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cors {
    /// Origins, such as https://app.example.com or https://*.example.com; `*` stands for all.
    allow_origins: Vec<String>,
    /// Methods besides GET, HEAD and POST, which are always allowed.
    #[serde(default)]
    allow_methods: Vec<String>,
    /// Request headers that pages may set; `*` stands for all, authorization included.
    #[serde(default)]
    allow_headers: Vec<String>,
    /// Response headers that pages may read.
    #[serde(default)]
    expose_headers: Vec<String>,
    /// Time that a browser may cache the answer to a preflight; the browser's default if left out.
    #[serde(default)]
    max_age: Option<Duration>,
    /// Allows cookies and client certificates.
    #[serde(default)]
    allow_credentials: bool,
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define_compiled("cors", compile)
}

enum Origins {
    All,
    Some(Vec<Origin>),
}

enum Origin {
    Exact(String),
    /// Parts before and after the star: `https://` and `.example.com`.
    Wildcard(String, String),
}

impl Origin {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not an origin: write SCHEME://HOST[:PORT], such as https://app.example.com");
        let (scheme, host) = text.split_once("://").ok_or_else(wrong)?;
        let is_scheme = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        let (scheme, host) = (scheme.to_ascii_lowercase(), host.to_ascii_lowercase());
        // Browsers omit the default port of the scheme (RFC 6454, 6.1).
        let default = match scheme.as_str() {
            "http" => ":80",
            "https" => ":443",
            _ => "",
        };
        let host = host.strip_suffix(default).unwrap_or(&host);
        match host.strip_prefix("*.") {
            _ if !is_scheme => Err(wrong()),
            Some(rest) if is_name_with_port(rest) => Ok(Self::Wildcard(format!("{scheme}://"), format!(".{rest}"))),
            None if is_name_with_port(host) || is_address_with_port(host) => {
                Ok(Self::Exact(format!("{scheme}://{host}")))
            }
            _ => Err(wrong()),
        }
    }

    /// Compares with an origin as browsers send it, in lower case.
    fn is(&self, origin: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == origin,
            Self::Wildcard(scheme, suffix) => origin
                .strip_prefix(scheme.as_str())
                .and_then(|host| host.strip_suffix(suffix.as_str()))
                .is_some_and(is_name),
        }
    }
}

/// True for labels with dots between them.
fn is_name(name: &str) -> bool {
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    name.split('.').all(is_label)
}

fn is_port(port: &str) -> bool {
    port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit())
}

fn is_name_with_port(host: &str) -> bool {
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    is_name(name) && port.is_none_or(is_port)
}

/// True for `[2001:db8::1]`, with or without a port.
fn is_address_with_port(host: &str) -> bool {
    let inside = host.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    inside.is_some_and(|(address, after)| {
        let sound = after.is_empty() || after.strip_prefix(':').is_some_and(is_port);
        sound && address.parse::<std::net::Ipv6Addr>().is_ok()
    })
}

enum AllowHeaders {
    /// Any requested header: `*` in an answer would not cover authorization.
    All,
    Some(Option<HeaderValue>),
}

struct Compiled {
    origins: Origins,
    methods: HeaderValue,
    headers: AllowHeaders,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: bool,
}

fn compile(config: &Cors) -> Result<Compiled, Vec<FieldError>> {
    let mut errors = Vec::new();
    let mut origins = Vec::new();
    let all = config.allow_origins.iter().any(|origin| origin == "*");
    if config.allow_origins.is_empty() {
        errors.push(FieldError::at(["allowOrigins"], "no origin may call; list origins, or `*` for all"));
    }
    if all && config.allow_credentials {
        let why =
            "with `allowCredentials`, `*` would give every page on the web what a user's cookies open: name origins";
        errors.push(FieldError::at(["allowOrigins"], why));
    }
    for text in config.allow_origins.iter().filter(|text| *text != "*") {
        match Origin::parse(text) {
            Ok(origin) => origins.push(origin),
            Err(why) => errors.push(FieldError::at(["allowOrigins"], why)),
        }
    }
    for text in &config.allow_methods {
        if Method::from_bytes(text.as_bytes()).is_err() {
            errors.push(FieldError::at(["allowMethods"], format!("`{text}` is not a method")));
        }
    }
    for (key, list) in [("allowHeaders", &config.allow_headers), ("exposeHeaders", &config.expose_headers)] {
        for text in list.iter().filter(|text| *text != "*") {
            if HeaderName::from_bytes(text.as_bytes()).is_err() {
                errors.push(FieldError::at([key], format!("`{text}` is not a header name")));
            }
        }
    }
    let listed = |list: &[String]| (!list.is_empty()).then(|| HeaderValue::from_str(&list.join(", ")).ok()).flatten();
    let mut methods = config.allow_methods.clone();
    for safe in ["POST", "HEAD", "GET"] {
        if !methods.iter().any(|method| method == safe) {
            methods.insert(0, safe.to_owned());
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Compiled {
        origins: if all { Origins::All } else { Origins::Some(origins) },
        methods: listed(&methods).unwrap_or(HeaderValue::from_static("GET, HEAD, POST")),
        headers: if config.allow_headers.iter().any(|name| name == "*") {
            AllowHeaders::All
        } else {
            AllowHeaders::Some(listed(&config.allow_headers))
        },
        expose: listed(&config.expose_headers),
        max_age: config.max_age.map(|age| HeaderValue::from(age.0.as_secs())),
        credentials: config.allow_credentials,
    })
}

impl Compiled {
    fn allows(&self, origin: &HeaderValue) -> bool {
        match &self.origins {
            Origins::All => true,
            Origins::Some(list) => origin.to_str().is_ok_and(|origin| list.iter().any(|allowed| allowed.is(origin))),
        }
    }
}

impl Filter for Compiled {
    fn stage(&self) -> Stage {
        Stage::Guard
    }

    fn answers_preflight(&self) -> bool {
        true
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        let (Some(origin), true, true) = (
            x.headers.get(header::ORIGIN),
            *x.method == Method::OPTIONS,
            x.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD),
        ) else {
            return Flow::Continue;
        };
        if !self.allows(origin) {
            return Flow::Refuse(Box::new(Refusal::new(
                StatusCode::FORBIDDEN,
                ErrorKind::Permission,
                "origin_not_allowed",
                "pages of this origin may not call here",
            )));
        }
        // The origin itself is added to every answer, this one included.
        let mut headers = vec![
            (header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone()),
            (header::VARY, HeaderValue::from_static("Access-Control-Request-Method, Access-Control-Request-Headers")),
        ];
        let allowed = match &self.headers {
            AllowHeaders::All => x.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned(),
            AllowHeaders::Some(list) => list.clone(),
        };
        headers.extend(allowed.map(|names| (header::ACCESS_CONTROL_ALLOW_HEADERS, names)));
        headers.extend(self.max_age.clone().map(|age| (header::ACCESS_CONTROL_MAX_AGE, age)));
        Flow::Answer(Box::new(Answer { status: StatusCode::NO_CONTENT, headers, body: bytes::Bytes::new() }))
    }

    fn on_response(&self, headers: &mut dyn Headers, variables: &Variables<'_>) {
        let any = matches!(self.origins, Origins::All);
        if !any {
            headers.append(&header::VARY, HeaderValue::from_static("Origin"));
        }
        let Some(origin) = variables.origin else { return };
        if !self.allows(origin) {
            // The filter decides: a server behind cannot allow more.
            headers.remove(&header::ACCESS_CONTROL_ALLOW_ORIGIN);
            headers.remove(&header::ACCESS_CONTROL_ALLOW_CREDENTIALS);
            return;
        }
        let shown = if any { HeaderValue::from_static("*") } else { origin.clone() };
        headers.set(&header::ACCESS_CONTROL_ALLOW_ORIGIN, shown);
        if self.credentials {
            headers.set(&header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        } else {
            headers.remove(&header::ACCESS_CONTROL_ALLOW_CREDENTIALS);
        }
        if let Some(names) = &self.expose {
            headers.set(&header::ACCESS_CONTROL_EXPOSE_HEADERS, names.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(json: serde_json::Value) -> Result<Compiled, Vec<FieldError>> {
        compile(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn origins_are_whole_or_have_one_star_for_a_name_below() {
        let cors = cors(
            serde_json::json!({"allowOrigins": ["https://App.example.com", "https://*.b.test", "https://default.test:443", "https://[2001:db8::1]:8443", "http://localhost:3000"]}),
        );
        let cors = cors.unwrap_or_else(|_| panic!("sound"));
        for (origin, allowed) in [
            ("https://app.example.com", true),
            ("http://app.example.com", false),
            ("https://app.example.com:8443", false),
            ("https://app.example.com.evil.test", false),
            ("https://x.b.test", true),
            ("https://y.x.b.test", true),
            ("https://b.test", false),
            ("https://.b.test", false),
            ("https://evil.test/.b.test", false),
            ("https://evil.test?.b.test", false),
            ("https://evil.test#.b.test", false),
            ("https://evil.test\\.b.test", false),
            ("https://evil.test%2f.b.test", false),
            ("https://x..b.test", false),
            ("https://x.b.test.evil.test", false),
            ("https://x.b.test.", false),
            ("https://xb.test", false),
            ("https://x.b.test:444", false),
            ("https://default.test", true),
            ("https://default.test:443", false),
            ("https://[2001:db8::1]:8443", true),
            ("https://evil.test:1@x.b.test", false),
            ("http://localhost:3000", true),
            ("null", false),
        ] {
            assert_eq!(cors.allows(&HeaderValue::from_static(origin)), allowed, "{origin}");
        }
    }

    #[test]
    fn what_cannot_be_or_must_not_be_is_refused() {
        for json in [
            serde_json::json!({"allowOrigins": []}),
            serde_json::json!({"allowOrigins": ["example.com"]}),
            serde_json::json!({"allowOrigins": ["https://*example.com"]}),
            serde_json::json!({"allowOrigins": ["https://*."]}),
            serde_json::json!({"allowOrigins": ["https://*..test"]}),
            serde_json::json!({"allowOrigins": ["https://*.*.test"]}),
            serde_json::json!({"allowOrigins": ["https://a:b:c"]}),
            serde_json::json!({"allowOrigins": ["https://a.test/path"]}),
            serde_json::json!({"allowOrigins": ["*"], "allowCredentials": true}),
            serde_json::json!({"allowOrigins": ["*"], "allowMethods": ["G ET"]}),
            serde_json::json!({"allowOrigins": ["*"], "allowHeaders": ["b@d"]}),
        ] {
            assert_eq!(cors(json.clone()).err().map(|errors| errors.len()), Some(1), "{json}");
        }
    }
}
