//! One match of a route, compiled: path, method, headers, model. All it names must hold.

use std::net::IpAddr;

use crate::model_pattern::ModelPattern;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use regex::bytes::{Regex, RegexBuilder};
use spillway_cel::{Expression, Scope, Seen};
use spillway_config::path;
use spillway_config::schema::{Match, PathMatch};

/// Bytes that one compiled regular expression may take; also what bounds its cost per character.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// A match that cannot be compiled; validation reports the same with its position.
#[derive(Debug, thiserror::Error)]
#[error("route `{route}`: {reason}")]
pub struct CompileError {
    /// The route.
    pub route: String,
    /// What is wrong.
    pub reason: String,
}

#[derive(Debug)]
enum Path {
    Any,
    Exact(Box<str>),
    /// Without the final slash; matches itself and whatever continues with one.
    Prefix(Box<str>),
    Regex(Regex),
}

/// A compiled match.
#[derive(Debug)]
pub struct Matcher {
    path: Path,
    method: Option<Method>,
    headers: Vec<(HeaderName, HeaderValue)>,
    model: Option<ModelPattern>,
    when: Option<Expression>,
}

/// What an expression sees of a head besides path, method and headers.
#[derive(Debug, Clone, Copy)]
pub struct Rest<'a> {
    /// The query, without `?`.
    pub query: &'a str,
    /// The client's address.
    pub client: IpAddr,
}

impl Matcher {
    /// Compiles what was written.
    pub fn compile(route: &str, written: &Match) -> Result<Self, CompileError> {
        let fail = |reason: String| CompileError { route: route.to_owned(), reason };
        let path = match &written.path {
            None => Path::Any,
            Some(PathMatch::Exact(path)) => Path::Exact(comparable(path).into()),
            Some(PathMatch::Prefix(path)) => match comparable(path).trim_end_matches('/') {
                "" => Path::Any,
                path => Path::Prefix(path.into()),
            },
            Some(PathMatch::Regex(pattern)) => Path::Regex(
                RegexBuilder::new(&format!("^(?:{pattern})$"))
                    .size_limit(REGEX_SIZE_LIMIT)
                    .build()
                    .map_err(|e| fail(e.to_string()))?,
            ),
        };
        let method = match &written.method {
            None => None,
            Some(method) => {
                Some(Method::from_bytes(method.as_bytes()).map_err(|_| fail(format!("`{method}` is not a method")))?)
            }
        };
        let headers = written
            .headers
            .iter()
            .map(|header| {
                let name = HeaderName::from_bytes(header.name.as_bytes())
                    .map_err(|_| fail(format!("`{}` is not a header name", header.name)))?;
                let value = HeaderValue::from_str(&header.exact).map_err(|_| {
                    fail(format!("the value of header `{}` has characters no header may have", header.name))
                })?;
                Ok((name, value))
            })
            .collect::<Result<Vec<_>, CompileError>>()?;
        let when =
            written.when.as_ref().map(|text| Expression::condition(text, Scope::Head)).transpose().map_err(fail)?;
        Ok(Self { path, method, headers, model: written.model.as_deref().map(ModelPattern::new), when })
    }

    /// Whether everything but the model holds.
    pub fn matches_head(&self, path: &str, method: &Method, headers: &HeaderMap, rest: Rest<'_>) -> bool {
        self.method.as_ref().is_none_or(|m| m == method)
            && match &self.path {
                Path::Any => true,
                Path::Exact(exact) => path == exact.as_ref(),
                Path::Prefix(prefix) => {
                    path.strip_prefix(prefix.as_ref()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                }
                Path::Regex(regex) => regex.is_match(path.as_bytes()),
            }
            && self.headers.iter().all(|(name, value)| headers.get_all(name).iter().any(|v| v == value))
            && self.when.as_ref().is_none_or(|when| holds(when, path, method, headers, rest))
    }

    /// The model that the body must name.
    pub fn model(&self) -> Option<&ModelPattern> {
        self.model.as_ref()
    }

    /// What comes first when several match: exact path, longest prefix, regex, any; then method, more headers, a model.
    /// Smaller is earlier.
    pub fn rank(&self) -> impl Ord + use<> {
        let (kind, length) = match &self.path {
            Path::Exact(path) => (0, path.len()),
            Path::Prefix(path) => (1, path.len()),
            Path::Regex(_) => (2, 0),
            Path::Any => (3, 0),
        };
        (
            kind,
            std::cmp::Reverse(length),
            self.method.is_none(),
            std::cmp::Reverse(self.headers.len()),
            self.model.is_none(),
            self.when.is_none(),
        )
    }
}

/// Path of the file in the form in which paths of requests are compared. One that no request can have stays as it is.
pub fn comparable(path: &str) -> String {
    match path::normal(path) {
        Ok(normal) => path::key(&normal).into_owned(),
        Err(_) => path.to_owned(),
    }
}

/// Whether an expression holds for a head. What has no value, such as a header that is not there, does not match.
fn holds(when: &Expression, path: &str, method: &Method, headers: &HeaderMap, rest: Rest<'_>) -> bool {
    let seen = Seen {
        method: method.as_str(),
        path,
        query: rest.query,
        headers,
        client: rest.client,
        route: "",
        model: None,
        body: None,
        caller: None,
    };
    when.holds(&seen).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: PathMatch) -> Matcher {
        Matcher::compile("r", &Match { path: Some(path), ..Match::default() }).unwrap()
    }

    fn head(matcher: &Matcher, path: &str) -> bool {
        let rest = Rest { query: "", client: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) };
        matcher.matches_head(path, &Method::GET, &HeaderMap::new(), rest)
    }

    #[test]
    fn a_prefix_matches_whole_elements_only() {
        for written in ["/v1", "/v1/"] {
            let matcher = path(PathMatch::Prefix(written.into()));
            assert!(head(&matcher, "/v1") && head(&matcher, "/v1/") && head(&matcher, "/v1/chat"));
            assert!(!head(&matcher, "/v10") && !head(&matcher, "/") && !head(&matcher, "/V1"));
        }
        assert!(head(&path(PathMatch::Prefix("/".into())), "/anything"));
    }

    #[test]
    fn a_regex_covers_the_whole_path() {
        let matcher = path(PathMatch::Regex("/v[0-9]+/x|/y".into()));
        assert!(head(&matcher, "/v12/x") && head(&matcher, "/y"));
        assert!(!head(&matcher, "/v12/x/more") && !head(&matcher, "/a/y"));
    }
}
