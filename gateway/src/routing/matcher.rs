//! Compiled match of a route: path, method, headers, model and expression. A request must meet all that are set.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue, Method};
use regex::bytes::{Regex, RegexBuilder};
use spillway_cel::{Expression, Scope, Seen};
use spillway_config::ModelPattern;
use spillway_config::path;
use spillway_config::schema::{Match, PathMatch};
use spillway_filter::Fields;

/// Largest compiled regular expression in bytes, which also bounds its cost per character.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// Error of a match that cannot be compiled. Validation reports the same fault with its position.
#[derive(Debug, thiserror::Error)]
#[error("route `{route}`: {fault}")]
pub struct CompileError {
    /// Name of the route.
    pub route: String,
    /// Fault of the match.
    pub fault: MatchFault,
}

/// Fault of a match.
#[derive(Debug, thiserror::Error)]
pub enum MatchFault {
    /// The regular expression of the path does not compile, or compiles to more than 1 MiB.
    #[error(transparent)]
    Regex(#[from] regex::Error),
    /// The method is no token.
    #[error("`{0}` is not a method")]
    Method(String),
    /// The name of a header is no token.
    #[error("`{0}` is not a header name")]
    HeaderName(String),
    /// The value of the header of this name has bytes that are not allowed.
    #[error("the value of header `{0}` has characters that no header may have")]
    HeaderValue(String),
    /// The expression does not compile, or has no boolean value.
    #[error("{0}")]
    Expression(String),
}

#[derive(Debug)]
enum Path {
    Any,
    Exact(Box<str>),
    /// Prefix without its final slash; matches itself and every path that continues with a slash.
    Prefix(Box<str>),
    Regex(Regex),
}

/// Compiled match.
#[derive(Debug)]
pub struct Matcher {
    path: Path,
    method: Option<Method>,
    headers: Vec<(HeaderName, HeaderValue)>,
    model: Option<ModelPattern>,
    when: Option<Expression>,
}

/// Facts of a request that an expression sees besides path, method and headers.
#[derive(Debug, Clone, Copy)]
pub struct HeadContext<'a> {
    /// Query, without `?`.
    pub query: &'a str,
    /// Address of the client.
    pub client: IpAddr,
}

impl Matcher {
    /// Compiles a match of the route `route`.
    ///
    /// # Errors
    /// The path, the method, a header or the expression is invalid.
    pub fn compile(route: &str, written: &Match) -> Result<Self, CompileError> {
        Self::parse(written).map_err(|fault| CompileError { route: route.to_owned(), fault })
    }

    fn parse(written: &Match) -> Result<Self, MatchFault> {
        let path = match &written.path {
            None => Path::Any,
            Some(PathMatch::Exact(path)) => Path::Exact(comparable(path).into()),
            Some(PathMatch::Prefix(path)) => match comparable(path).trim_end_matches('/') {
                "" => Path::Any,
                path => Path::Prefix(path.into()),
            },
            Some(PathMatch::Regex(pattern)) => {
                Path::Regex(RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(REGEX_SIZE_LIMIT).build()?)
            }
        };
        let method = match &written.method {
            None => None,
            Some(method) => {
                Some(Method::from_bytes(method.as_bytes()).map_err(|_| MatchFault::Method(method.clone()))?)
            }
        };
        let headers = written
            .headers
            .iter()
            .map(|header| {
                let name = HeaderName::from_bytes(header.name.as_bytes())
                    .map_err(|_| MatchFault::HeaderName(header.name.clone()))?;
                let value =
                    HeaderValue::from_str(&header.exact).map_err(|_| MatchFault::HeaderValue(header.name.clone()))?;
                Ok((name, value))
            })
            .collect::<Result<Vec<_>, MatchFault>>()?;
        let when = written.when.as_ref().map(|text| Expression::condition(text, Scope::Head)).transpose();
        let when = when.map_err(|error| MatchFault::Expression(error.to_string()))?;
        Ok(Self { path, method, headers, model: written.model.as_deref().map(ModelPattern::new), when })
    }

    /// True if a head meets everything but the model.
    pub fn matches_head(&self, path: &str, method: &Method, headers: &Fields, context: HeadContext<'_>) -> bool {
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
            && self.when.as_ref().is_none_or(|when| holds(when, path, method, headers, context))
    }

    /// Model that the body must name.
    pub fn model(&self) -> Option<&ModelPattern> {
        self.model.as_ref()
    }

    /// Precedence among several that match, the smallest first: exact path, longest prefix, regex, any; then a method, more
    /// headers, a model, an expression.
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

/// Converts a path of the configuration to the form in which paths of requests are compared. A path that no request can
/// have is returned as it is.
pub fn comparable(path: &str) -> String {
    match path::normal(path) {
        Ok(normal) => path::key(&normal).into_owned(),
        Err(_) => path.to_owned(),
    }
}

/// True if an expression holds for a head. An expression without a value, as of a missing header, does not match.
fn holds(when: &Expression, path: &str, method: &Method, headers: &Fields, context: HeadContext<'_>) -> bool {
    let seen = Seen {
        method: method.as_str(),
        path,
        query: context.query,
        headers,
        client: context.client,
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
        let rest = HeadContext { query: "", client: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) };
        matcher.matches_head(path, &Method::GET, &Fields::default(), rest)
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
