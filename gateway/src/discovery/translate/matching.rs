//! Matches of routes as matches of the configuration. A match that cannot be served is refused with the reason; none is widened.

use regex::RegexBuilder;
use spillway_config::schema::{HeaderMatch, Match, PathMatch, QueryMatch};

use crate::discovery::objects::{GrpcMatch, HttpMatch, NamedValue};

/// Largest compiled regular expression in bytes: that of the configuration, which judges it again as a part of a path.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// Reason why a route cannot be served.
pub(super) type Unsupported = String;

/// Match of an `HTTPRoute`.
pub(super) fn http(written: &HttpMatch) -> Result<Match, Unsupported> {
    let path = match &written.path {
        None => None,
        Some(path) => {
            let value = path.value.clone().unwrap_or_else(|| "/".to_owned());
            Some(match path.kind.as_deref().unwrap_or("PathPrefix") {
                "Exact" => PathMatch::Exact(value),
                "PathPrefix" => PathMatch::Prefix(value),
                "RegularExpression" => PathMatch::Regex(value),
                other => return Err(format!("path matches of the type {other} are not supported")),
            })
        }
    };
    Ok(Match {
        path,
        method: written.method.clone(),
        headers: headers(&written.headers)?,
        query_params: query(&written.query_params)?,
        ..Match::default()
    })
}

/// Match of a `GRPCRoute`: service and method are the two elements of the path, and the method is POST.
pub(super) fn grpc(written: &GrpcMatch) -> Result<Match, Unsupported> {
    let path = match &written.method {
        None => None,
        Some(written) => match (written.kind.as_deref().unwrap_or("Exact"), &written.service, &written.method) {
            ("Exact" | "RegularExpression", None, None) => None,
            ("Exact", Some(service), Some(method)) => Some(PathMatch::Exact(format!("/{service}/{method}"))),
            ("Exact", Some(service), None) => Some(PathMatch::Prefix(format!("/{service}"))),
            ("Exact", None, Some(method)) => Some(PathMatch::Regex(format!("/[^/]+/{}", regex::escape(method)))),
            ("RegularExpression", service, method) => {
                let element = |pattern: &Option<String>| match pattern {
                    None => Ok("[^/]+".to_owned()),
                    Some(pattern) => alone(pattern).map(|()| format!("(?:{pattern})")),
                };
                Some(PathMatch::Regex(format!("/{}/{}", element(service)?, element(method)?)))
            }
            (other, ..) => return Err(format!("method matches of the type {other} are not supported")),
        },
    };
    Ok(Match { path, headers: headers(&written.headers)?, ..Match::default() })
}

/// Checks that a regular expression holds by itself: one that does not, such as `a)|(b`, may do so between others and stand for
/// something else there.
fn alone(pattern: &str) -> Result<(), Unsupported> {
    let built = RegexBuilder::new(pattern).size_limit(REGEX_SIZE_LIMIT).build();
    let reason = |e: regex::Error| e.to_string().lines().last().unwrap_or_default().to_owned();
    built.map(|_| ()).map_err(|e| format!("`{pattern}` is not a regular expression ({})", reason(e)))
}

/// Number of the regular expressions in a match.
pub(super) fn patterns(of: &Match) -> usize {
    usize::from(matches!(of.path, Some(PathMatch::Regex(_))))
        + of.headers.iter().filter(|header| header.regex.is_some()).count()
        + of.query_params.iter().filter(|parameter| parameter.regex.is_some()).count()
}

/// Headers; of several with one name the first counts, as the API says.
fn headers(written: &[NamedValue]) -> Result<Vec<HeaderMatch>, Unsupported> {
    let mut out: Vec<HeaderMatch> = Vec::new();
    for one in written {
        let (exact, regex) = value(one, "header")?;
        if !out.iter().any(|known| known.name.eq_ignore_ascii_case(&one.name)) {
            out.push(HeaderMatch { name: one.name.clone(), exact, regex });
        }
    }
    Ok(out)
}

/// Parameters of a query; of several with one name the first counts too.
fn query(written: &[NamedValue]) -> Result<Vec<QueryMatch>, Unsupported> {
    let mut out: Vec<QueryMatch> = Vec::new();
    for one in written {
        let (exact, regex) = value(one, "query parameter")?;
        if !out.iter().any(|known| known.name == one.name) {
            out.push(QueryMatch { name: one.name.clone(), exact, regex });
        }
    }
    Ok(out)
}

/// Value to compare with: exact, or a regular expression.
fn value(one: &NamedValue, what: &str) -> Result<(Option<String>, Option<String>), Unsupported> {
    match one.kind.as_deref().unwrap_or("Exact") {
        "Exact" => Ok((Some(one.value.clone()), None)),
        "RegularExpression" => Ok((None, Some(one.value.clone()))),
        other => Err(format!("{what} matches of the type {other} are not supported")),
    }
}
