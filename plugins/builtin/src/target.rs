//! `redirect` and `urlRewrite`: another address, sent to the caller or used for the server.

use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{StatusCode, Uri};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::path;
use spillway_filter::{
    Answer, BuildContext, FieldError, Filter, FilterFactory, Flow, Headers, Refusal, RequestView, Stage, Variables,
    define,
};

use crate::azure;
use crate::path_pattern::{PathPattern, WrittenPattern};

/// Scheme of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

/// Redirects the caller. Parts that are left out are those of the request; a request that is at the target already
/// passes.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Redirect {
    /// Scheme: http or https.
    #[serde(default)]
    scheme: Option<Scheme>,
    /// Host name.
    #[serde(default)]
    hostname: Option<String>,
    /// Port; default: that of the scheme if the scheme changes.
    #[serde(default)]
    port: Option<u16>,
    /// Complete path.
    #[serde(default)]
    path: Option<String>,
    /// Replacement of the prefix that the route matches.
    #[serde(default)]
    replace_prefix: Option<String>,
    /// Status: 301, 302, 303, 307 or 308.
    #[serde(default = "found")]
    #[schemars(range(min = 301, max = 308))]
    status: u16,
}

fn found() -> u16 {
    302
}

/// Changes the address that is sent to the server.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct UrlRewrite {
    /// Complete path, or a part of it by a regular expression.
    path: Option<NewPath>,
    /// Replacement of the prefix that the route matches; of `/` if it matches none.
    replace_prefix: Option<String>,
    /// `Host` sent to the server; default: the caller's.
    hostname: Option<String>,
    /// Paths of Azure OpenAI become those of OpenAI: `/openai/deployments/gpt-5/chat/completions?api-version=...` becomes
    /// `/v1/chat/completions`, and so does `/openai/v1/chat/completions`. The body names the model, as official clients
    /// write it beside the path.
    azure_openai: bool,
}

/// Path for the server.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
enum NewPath {
    /// Complete path.
    Whole(String),
    /// A part of it by a regular expression.
    Pattern(WrittenPattern),
}

impl NewPath {
    /// Compiled form.
    fn compile(&self) -> Result<ServerPath, Vec<FieldError>> {
        match self {
            Self::Whole(path) => check_path("path", Some(path))
                .map_or_else(|| Ok(ServerPath::Whole(path.as_str().into())), |error| Err(vec![error])),
            Self::Pattern(written) => PathPattern::new(written).map(ServerPath::Pattern).map_err(|mut errors| {
                errors.iter_mut().for_each(|error| error.path.insert(0, "path".to_owned()));
                errors
            }),
        }
    }
}

/// Path for the server, compiled.
enum ServerPath {
    Whole(Box<str>),
    Pattern(PathPattern),
}

fn check_path(key: &'static str, path: Option<&String>) -> Option<FieldError> {
    let path = path?;
    let sound = path.starts_with('/') && !path.contains(['?', '#']) && path.parse::<PathAndQuery>().is_ok();
    (!sound).then(|| FieldError::at([key], format!("`{path}` is not a path: it begins with `/` and has no query")))
}

fn check_host(host: Option<&String>) -> Option<FieldError> {
    let host = host?;
    let sound = host.parse::<Authority>().is_ok_and(|a| a.port().is_none() && !host.contains('@'));
    (!sound).then(|| FieldError::at(["hostname"], format!("`{host}` is not a host name")))
}

pub(crate) fn redirect() -> Box<dyn FilterFactory> {
    let check = |c: &Redirect| {
        let mut errors = Vec::new();
        if c.scheme.is_none()
            && c.hostname.is_none()
            && c.port.is_none()
            && c.path.is_none()
            && c.replace_prefix.is_none()
        {
            errors.push(FieldError::at([], "no effect: set a scheme, hostname, port, path or replacePrefix"));
        }
        if c.path.is_some() && c.replace_prefix.is_some() {
            errors.push(FieldError::at(["replacePrefix"], "`path` and `replacePrefix` exclude each other"));
        }
        if !matches!(c.status, 301 | 302 | 303 | 307 | 308) {
            let why = format!("status {}; expected 301, 302, 303, 307 or 308", c.status);
            errors.push(FieldError::at(["status"], why));
        }
        errors.extend(check_host(c.hostname.as_ref()));
        errors.extend(check_path("path", c.path.as_ref()));
        errors.extend(check_path("replacePrefix", c.replace_prefix.as_ref()));
        errors
    };
    define("redirect", check, |config: Redirect, cx| {
        let status = StatusCode::from_u16(config.status).map_err(|e| FieldError::at(["status"], e.to_string()))?;
        let prefix = config.replace_prefix.as_deref().map(|new| Prefix::new(cx, new));
        Ok(Arc::new(Redirected { prefix, status, config }) as Arc<dyn Filter>)
    })
}

pub(crate) fn rewrite() -> Box<dyn FilterFactory> {
    let check = |c: &UrlRewrite| {
        let mut errors = Vec::new();
        if c.path.is_none() && c.replace_prefix.is_none() && c.hostname.is_none() && !c.azure_openai {
            errors.push(FieldError::at([], "no effect: set a path, a replacePrefix or a hostname, or azureOpenai"));
        }
        if c.path.is_some() && (c.replace_prefix.is_some() || c.azure_openai) {
            let message = "`path` excludes `replacePrefix` and `azureOpenai`, which change a part of it";
            errors.push(FieldError::at(["path"], message));
        }
        if c.replace_prefix.is_some() && c.azure_openai {
            errors.push(FieldError::at(["replacePrefix"], "`azureOpenai` and `replacePrefix` exclude each other"));
        }
        errors.extend(check_host(c.hostname.as_ref()));
        errors.extend(c.path.as_ref().and_then(|path| path.compile().err()).unwrap_or_default());
        errors.extend(check_path("replacePrefix", c.replace_prefix.as_ref()));
        errors
    };
    define("urlRewrite", check, |config: UrlRewrite, cx| {
        let host = config.hostname.as_deref().map(HeaderValue::from_str).transpose();
        let host = host.map_err(|e| FieldError::at(["hostname"], e.to_string()))?;
        let prefix = config.replace_prefix.as_deref().map(|new| Prefix::new(cx, new));
        let path = config.path.as_ref().map(NewPath::compile).transpose();
        let path = path.map_err(|mut errors| errors.swap_remove(0))?;
        Ok(Arc::new(Rewritten { path, prefix, host, is_azure: config.azure_openai }) as Arc<dyn Filter>)
    })
}

/// Replacement of a path's prefix.
struct Prefix {
    /// Prefixes without their final slash, longest first.
    old: Vec<Box<str>>,
    new: Box<str>,
}

impl Prefix {
    fn new(cx: &BuildContext<'_>, new: &str) -> Self {
        let mut old: Vec<Box<str>> = cx.prefixes.iter().map(|prefix| prefix.trim_end_matches('/').into()).collect();
        old.sort_by_key(|prefix| std::cmp::Reverse(prefix.len()));
        Self { old, new: new.trim_end_matches('/').into() }
    }

    /// Length of the prefix that is replaced in a path of a caller; 0 where none matches.
    fn matched(&self, path: &str) -> usize {
        self.old.iter().find(|prefix| is_below(path, prefix)).map_or(0, |prefix| prefix.len())
    }

    /// Replaces the prefix of a path. `*`, the target of `OPTIONS`, is no path and is kept.
    fn replace(&self, path: &str) -> String {
        if path == "*" {
            return path.to_owned();
        }
        let rest = path.get(self.matched(path)..).unwrap_or_default();
        or_root(format!("{}{rest}", self.new))
    }

    /// Path of callers for `path` of a server, with the prefix of a request from `request`. `None` where nobody can say: the
    /// path is not below the new prefix, leaves it by dots, or is one of callers already, as servers write it that know
    /// their public prefix.
    fn restore(&self, request: &str, path: &str) -> Option<String> {
        let old = request.get(..self.matched(request))?;
        let is_callers = old.len() > self.new.len() && is_below(path, &path::key(old));
        if request == "*" || is_callers || !is_below(path, &path::key(&self.new)) || has_dots(path) {
            return None;
        }
        let whole = format!("{old}{}", path.get(self.new.len()..)?);
        // Two slashes at the beginning, or what browsers take for them, would name another host.
        let names_host = whole.starts_with("//") || whole.contains('\\');
        (!names_host).then(|| or_root(whole))
    }
}

/// True if a path is a prefix (without its final slash) or below it. Compared as routes compare: the two forms differ in the
/// case of letters, so lengths are the same.
fn is_below(path: &str, prefix: &str) -> bool {
    path::key(path).strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn or_root(path: String) -> String {
    if path.is_empty() { "/".to_owned() } else { path }
}

/// True if a path has a segment `.` or `..` in any spelling.
fn has_dots(path: &str) -> bool {
    path.split('/').any(|segment| {
        let name = segment.split(';').next().unwrap_or_default();
        !name.is_empty() && name.replace("%2e", ".").replace("%2E", ".").bytes().all(|b| b == b'.')
    })
}

struct Redirected {
    config: Redirect,
    prefix: Option<Prefix>,
    status: StatusCode,
}

impl Redirected {
    /// Target address, and whether it differs from that of the request.
    fn location(&self, x: &RequestView<'_>) -> Option<(String, bool)> {
        let host = x.host.and_then(|host| host.parse::<Authority>().ok());
        let name = self.config.hostname.as_deref().or_else(|| host.as_ref().map(Authority::host))?;
        let now = if x.secure { "https" } else { "http" };
        let scheme = match self.config.scheme {
            Some(Scheme::Http) => "http",
            Some(Scheme::Https) => "https",
            None => now,
        };
        let default = |scheme: &str| if scheme == "https" { 443 } else { 80 };
        let port_now = host.as_ref().and_then(Authority::port_u16).unwrap_or_else(|| default(now));
        let port = self.config.port.unwrap_or(if scheme == now { port_now } else { default(scheme) });
        let path = match (&self.config.path, &self.prefix) {
            (Some(path), _) => path.clone(),
            (None, Some(prefix)) => prefix.replace(x.path),
            (None, None) => x.path.to_owned(),
        };
        let same_host = host.as_ref().is_some_and(|host| host.host().eq_ignore_ascii_case(name));
        let moved = scheme != now || port != port_now || !same_host || path != x.path;
        let port = if port == default(scheme) { String::new() } else { format!(":{port}") };
        let mark = if x.query.is_empty() { "" } else { "?" };
        Some((format!("{scheme}://{name}{port}{path}{mark}{}", x.query), moved))
    }
}

impl Filter for Redirected {
    fn stage(&self) -> Stage {
        Stage::Guard
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        let refuse = || Flow::Refuse(Box::new(Refusal::invalid("no_host", "the request names no host to redirect to")));
        let Some((location, moved)) = self.location(x) else { return refuse() };
        if !moved {
            return Flow::Continue;
        }
        let (Ok(value), true) = (HeaderValue::from_str(&location), location.parse::<Uri>().is_ok()) else {
            return refuse();
        };
        Flow::Answer(Box::new(Answer {
            status: self.status,
            headers: vec![(header::LOCATION, value)],
            body: bytes::Bytes::new(),
        }))
    }
}

struct Rewritten {
    /// Path in place of the caller's.
    path: Option<ServerPath>,
    prefix: Option<Prefix>,
    host: Option<HeaderValue>,
    /// True if paths of Azure OpenAI become those of OpenAI.
    is_azure: bool,
}

impl Filter for Rewritten {
    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        let Some(ServerPath::Pattern(pattern)) = &self.path else { return Flow::Continue };
        match pattern.apply(x.path) {
            Ok(_) => Flow::Continue,
            Err(error) => Flow::Refuse(Box::new(error.refusal())),
        }
    }

    fn on_upstream_request(&self, headers: &mut dyn Headers, _: &Variables<'_>) {
        if let Some(host) = &self.host {
            headers.set(&header::HOST, host.clone());
        }
    }

    fn upstream_target(&self, target: &PathAndQuery) -> Option<PathAndQuery> {
        if self.is_azure {
            return azure::openai_target(target);
        }
        let path = match &self.path {
            Some(ServerPath::Whole(path)) => path.to_string(),
            // A path without a sound result was refused by `on_request`; it is the first filter to change the path
            // (`spillway_config` checks that), so both see the same.
            Some(ServerPath::Pattern(pattern)) => pattern.apply(target.path()).ok().flatten()?,
            None => self.prefix.as_ref()?.replace(target.path()),
        };
        let whole = match target.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        PathAndQuery::try_from(whole).ok()
    }

    fn caller_path(&self, request: &str, path: &str) -> Option<String> {
        self.prefix.as_ref()?.restore(request, path)
    }
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::{FilterBuilder, TestRequest};

    use super::*;

    fn built(factory: Box<dyn FilterFactory>, prefixes: &[&str], json: serde_json::Value) -> Arc<dyn Filter> {
        let builder = prefixes.iter().fold(FilterBuilder::new(), |builder, prefix| builder.prefix(prefix));
        builder.build(&*factory, &json)
    }

    fn location(filter: &Arc<dyn Filter>, host: Option<&str>, secure: bool, target: &str) -> Option<String> {
        let mut request = TestRequest::get(target);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        if secure {
            request = request.secure();
        }
        let flow = request.decide(&**filter);
        match flow {
            Flow::Continue => None,
            Flow::Answer(answer) => {
                Some(format!("{} {}", answer.status.as_u16(), answer.headers[0].1.to_str().unwrap()))
            }
            Flow::Refuse(refusal) => Some(refusal.code.to_owned()),
            Flow::Wait(_) | Flow::Observe(_) | Flow::Rewrite(_) => panic!("a redirect decides at once"),
        }
    }

    #[test]
    fn a_redirect_changes_what_it_names_and_lets_pass_what_is_there_already() {
        let to_https = built(redirect(), &[], serde_json::json!({"scheme": "https", "status": 308}));
        for (host, secure, target, location_) in [
            (Some("a.test"), false, "/x?y=1", Some("308 https://a.test/x?y=1")),
            (Some("a.test:8080"), false, "/", Some("308 https://a.test/")),
            (Some("[::1]:8080"), false, "/", Some("308 https://[::1]/")),
            (Some("a.test"), true, "/x", None),
            (None, false, "/", Some("no_host")),
            (Some("a.test"), false, "//evil.test", Some("308 https://a.test//evil.test")),
        ] {
            assert_eq!(location(&to_https, host, secure, target).as_deref(), location_, "{host:?} {target}");
        }
        let moved = built(
            redirect(),
            &["/old"],
            serde_json::json!({"hostname": "b.test", "port": 8443, "replacePrefix": "/new/"}),
        );
        assert_eq!(
            location(&moved, Some("a.test"), true, "/old/x?q").as_deref(),
            Some("302 https://b.test:8443/new/x?q")
        );
        let whole = built(redirect(), &[], serde_json::json!({"path": "/here"}));
        assert_eq!(
            location(&whole, Some("a.test:8080"), false, "/there").as_deref(),
            Some("302 http://a.test:8080/here")
        );
        assert_eq!(location(&whole, Some("a.test:8080"), false, "/here"), None, "no circle");
    }

    #[test]
    fn a_whole_path_is_replaced_and_the_query_stays() {
        let filter = built(rewrite(), &["/old"], serde_json::json!({"path": "/new"}));
        for (target, expected) in [("/old/x?q=1", "/new?q=1"), ("/", "/new")] {
            assert_eq!(filter.upstream_target(&target.parse().unwrap()).unwrap().to_string(), expected);
        }
        assert_eq!(filter.caller_path("/old/x", "/new"), None, "nobody can say what the caller would write");
    }

    #[test]
    fn a_part_of_the_path_is_replaced_by_an_expression() {
        let config = serde_json::json!({"path": {"regex": "^/users/([^/]+)/(.*)$", "replacement": r"/\2/of/\1"}});
        let filter = built(rewrite(), &["/users"], config);
        let rewritten =
            |target: &str| filter.upstream_target(&target.parse().unwrap()).map(|target| target.to_string());
        assert_eq!(rewritten("/users/ann/chat?q=1").as_deref(), Some("/chat/of/ann?q=1"));
        assert_eq!(rewritten("/users"), None);
        assert_eq!(filter.caller_path("/users/ann/chat", "/chat/of/ann"), None, "nobody can say the way back");
        assert!(matches!(TestRequest::get("/users/ann/chat").decide(&*filter), Flow::Continue));
        let Flow::Refuse(refusal) = TestRequest::get("/users/%25/41").decide(&*built(
            rewrite(),
            &[],
            serde_json::json!({"path": {"regex": "/([^/]*)$", "replacement": r"\1"}}),
        )) else {
            panic!("a double encoding is refused");
        };
        assert_eq!((refusal.status.as_u16(), refusal.code), (400, "ambiguous_path"));
    }

    #[test]
    fn a_prefix_is_replaced_by_whole_elements() {
        let rewritten = |prefixes: &[&str], new: &str, target: &str| {
            let filter = built(rewrite(), prefixes, serde_json::json!({"replacePrefix": new}));
            filter.upstream_target(&target.parse().unwrap()).unwrap().to_string()
        };
        for (prefixes, new, target, expected) in [
            (&["/v1"][..], "/openai/v1", "/v1/chat?x=1", "/openai/v1/chat?x=1"),
            (&["/v1/"], "/openai/v1/", "/v1", "/openai/v1"),
            (&["/a", "/a/b"], "/c", "/a/b/d", "/c/d"),
            (&["/v1"], "/", "/v1", "/"),
            (&["/v1"], "/", "/v1/x", "/x"),
            (&["/v1"], "/new", "/v10/x", "/new/v10/x"),
            (&[], "/new", "/x", "/new/x"),
            (&["/a%2Fb"], "/c", "/a%2fb/d%2fe", "/c/d%2fe"),
            (&["/a%2Fb"], "/c", "/a%2Fb", "/c"),
            (&["/a%5Cb"], "/c", "/a%5cb/d", "/c/d"),
            (&["/a%2Fb"], "/c", "/a/b", "/c/a/b"),
            (&[], "/new", "*", "*"),
            (&["/"], "/new", "*", "*"),
        ] {
            assert_eq!(rewritten(prefixes, new, target), expected, "{target}");
        }
    }

    #[test]
    fn a_path_of_a_server_is_led_back_only_where_one_answer_is_certain() {
        let restored = |prefixes: &[&str], new: &str, request: &str, path: &str| {
            built(rewrite(), prefixes, serde_json::json!({"replacePrefix": new})).caller_path(request, path)
        };
        for (prefixes, new, request, path, expected) in [
            (&["/v1"][..], "/openai/v1", "/v1/chat", "/openai/v1/done", Some("/v1/done")),
            (&["/v1"], "/openai/v1", "/v1/chat", "/openai/v1", Some("/v1")),
            (&["/v1"], "/openai/v1/", "/v1", "/openai/v1/", Some("/v1/")),
            (&["/v1"], "/openai/v1", "/v1/chat", "/openai/v10", None),
            (&["/v1"], "/openai/v1", "/v1/chat", "/login", None),
            (&["/v1"], "/openai/v1", "/v1/chat", "/v1/chat/", None),
            (&["/app"], "/", "/app/x", "/x/", Some("/app/x/")),
            (&["/app"], "/", "/app", "/", Some("/app/")),
            // A server that knows its public prefix, and one that has a folder of that name.
            (&["/app"], "/", "/app/x", "/app/x/", None),
            (&["/app"], "/app/v2", "/app/x", "/app/v2/y", Some("/app/y")),
            // The prefix of this request.
            (&["/a", "/a/b"], "/c", "/a/b/d", "/c/e", Some("/a/b/e")),
            (&["/a", "/a/b"], "/c", "/a/d", "/c/e", Some("/a/e")),
            (&["/a%2Fb"], "/c", "/a%2fb/d", "/c/e", Some("/a%2fb/e")),
            (&["/x"], "/a%2Fb", "/x/d", "/a%2fb/e", Some("/x/e")),
            // Without a prefix in the route, that of the servers is left out.
            (&[], "/new", "/x", "/new/y", Some("/y")),
            (&[], "/new", "/x", "/new", Some("/")),
            (&[], "/", "/x", "/y", Some("/y")),
            // Another host in the eyes of a browser.
            (&[], "/new", "/x", "/new//evil.test/", None),
            (&[], "/new", "/x", "/new/\\evil.test/", None),
            (&["/a"], "/new", "/a/x", "/new//evil.test/", Some("/a//evil.test/")),
            // Out of the prefix by dots.
            (&["/a"], "/new", "/a/x", "/new/../admin", None),
            (&["/a"], "/new", "/a/x", "/new/%2e%2E/admin", None),
            (&["/a"], "/new", "/a/x", "/new/.%2e;x/admin", None),
            (&["/a"], "/new", "*", "/new/x", None),
        ] {
            assert_eq!(restored(prefixes, new, request, path).as_deref(), expected, "{request} {path}");
        }
        let host = built(rewrite(), &["/v1"], serde_json::json!({"hostname": "a.test"}));
        assert_eq!(host.caller_path("/v1/x", "/v1/y"), None);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        for (factory, json, path) in [
            (redirect(), serde_json::json!({}), vec![]),
            (redirect(), serde_json::json!({"scheme": "https", "status": 304}), vec!["status"]),
            (redirect(), serde_json::json!({"hostname": "a.test:80"}), vec!["hostname"]),
            (redirect(), serde_json::json!({"path": "x"}), vec!["path"]),
            (redirect(), serde_json::json!({"path": "/x", "replacePrefix": "/y"}), vec!["replacePrefix"]),
            (rewrite(), serde_json::json!({}), vec![]),
            (rewrite(), serde_json::json!({"replacePrefix": "/x?y"}), vec!["replacePrefix"]),
            (rewrite(), serde_json::json!({"path": "/x?y"}), vec!["path"]),
            (rewrite(), serde_json::json!({"path": "/x", "replacePrefix": "/y"}), vec!["path"]),
            (rewrite(), serde_json::json!({"hostname": "user@a.test"}), vec!["hostname"]),
            (rewrite(), serde_json::json!({"path": {"regex": "(", "replacement": "/"}}), vec!["path", "regex"]),
            (rewrite(), serde_json::json!({"path": {"regex": "x", "replacement": r"\1"}}), vec!["path", "replacement"]),
        ] {
            let errors = factory.check(&json);
            assert_eq!(errors.len(), 1, "{json}");
            assert_eq!(errors[0].path, path, "{json}");
        }
    }
}
