//! Check of `encodedSlashes: pass`: a path with an encoded slash takes the route of the path as it is written, and a server
//! may serve what another route governs. An error unless both routes have the same rules.

use crate::path;
use crate::rules::RouteRules;
use crate::schema::{EncodedSlashes, Match, PathMatch, Route};

use super::{Context, at};

pub(super) fn all(cx: &mut Context<'_>) {
    let config = cx.config;
    let listener = config.listeners.iter().position(|l| l.encoded_slashes == EncodedSlashes::Pass);
    let passes = |route: &Route| route.encoded_slashes == Some(EncodedSlashes::Pass);
    if listener.is_none() && !config.routes.iter().any(passes) {
        return;
    }
    let rules = RouteRules::all(config);
    for (n, (route, own)) in config.routes.iter().zip(&rules).enumerate() {
        let place = match (route.encoded_slashes, listener) {
            (Some(EncodedSlashes::Pass), _) => at!["routes", n, "encodedSlashes"],
            (None, Some(listener)) => at!["listeners", listener, "encodedSlashes"],
            _ => continue,
        };
        for (m, (other, others)) in config.routes.iter().zip(&rules).enumerate() {
            let Some(difference) = own.difference(others).filter(|_| m != n && share_host(route, other)) else {
                continue;
            };
            let Some(example) = evasion(route, other) else { continue };
            let name = |n: usize, route: &Route| route.name.clone().unwrap_or_else(|| format!("routes[{n}]"));
            let (name, other) = (name(n, route), name(m, other));
            cx.error(
                place.clone(),
                format!(
                    "route `{name}` would pass {example}, which a server may read as a path of route `{other}`, whose \
                     `{difference}` differs: pass encoded slashes on a narrower route, or give both the same rules"
                ),
            );
        }
    }
}

/// True if a request for one host could take either route.
fn share_host(a: &Route, b: &Route) -> bool {
    let covers = |pattern: &str, host: &str| {
        let host = host.strip_prefix('*').unwrap_or(host);
        pattern.strip_prefix('*').map_or(pattern == host, |suffix| host.ends_with(suffix))
    };
    let overlap = |a: &String, b: &String| {
        let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
        a == b || covers(&a, &b) || covers(&b, &a)
    };
    a.hostnames.is_empty()
        || b.hostnames.is_empty()
        || a.hostnames.iter().any(|a| b.hostnames.iter().any(|b| overlap(a, b)))
}

/// Description of a path with an encoded slash that takes `passing`, and that read with a slash would take `other`.
fn evasion(passing: &Route, other: &Route) -> Option<String> {
    let everything = [Match::default()];
    let matches = |route: &'_ Route| if route.matches.is_empty() { everything.to_vec() } else { route.matches.clone() };
    let others = matches(other);
    matches(passing).iter().find_map(|own| others.iter().find_map(|other| one_evasion(own, other)))
}

/// Beginning that all paths of a match have.
fn beginning(written: &Match) -> String {
    let text = match &written.path {
        None => "",
        Some(PathMatch::Exact(path)) => path,
        Some(PathMatch::Prefix(path)) => path.trim_end_matches('/'),
        Some(PathMatch::Regex(pattern)) if pattern.contains('|') => "",
        Some(PathMatch::Regex(pattern)) => {
            let end = pattern.find(|c: char| !(c.is_alphanumeric() || "/-_~%@:,=".contains(c)));
            let literal = pattern.get(..end.unwrap_or(pattern.len())).unwrap_or_default();
            // A character that may be left out is none that all paths have.
            let is_optional =
                end.and_then(|end| pattern.get(end..)).is_some_and(|rest| rest.starts_with(['?', '*', '{']));
            let last = literal.chars().next_back().filter(|_| is_optional).map_or(0, char::len_utf8);
            literal.get(..literal.len().saturating_sub(last)).unwrap_or_default()
        }
    };
    path::with_slashes(&path::normal(text).unwrap_or(text.into())).into_owned()
}

fn one_evasion(own: &Match, other: &Match) -> Option<String> {
    if let (Some(a), Some(b)) = (&own.method, &other.method)
        && a != b
    {
        return None;
    }
    let (ours, theirs) = (beginning(own), beginning(other));
    let is_whole = |written: &Match| written.when.is_none() && !matches!(written.path, Some(PathMatch::Regex(_)));
    match &own.path {
        // One path: it has an encoded slash or not.
        Some(PathMatch::Exact(exact)) => {
            let form = path::normal(exact).unwrap_or(exact.into());
            let read = path::with_slashes(&form);
            let taken = match &other.path {
                None => true,
                Some(PathMatch::Exact(_)) => *read == *theirs,
                Some(PathMatch::Prefix(_)) => is_below(&read, &theirs) || *read == *theirs,
                Some(PathMatch::Regex(_)) => read.starts_with(&*theirs),
            };
            (read != form && taken).then(|| format!("`{exact}`"))
        }
        // What is below a prefix stays below it with slashes: only a longer match is evaded.
        None | Some(PathMatch::Prefix(_)) if is_whole(own) => match &other.path {
            None => None,
            Some(PathMatch::Prefix(_)) => {
                is_below(&theirs, &ours).then(|| with_encoded_slash(&ours, &format!("{theirs}/x")))
            }
            Some(PathMatch::Exact(_)) => {
                let rest = theirs.strip_prefix(ours.as_str())?.strip_prefix('/')?;
                rest.trim_end_matches('/').contains('/').then(|| with_encoded_slash(&ours, &theirs))
            }
            Some(PathMatch::Regex(_)) => may_meet(&ours, &theirs).then(|| format!("paths with `%2F` below `{ours}/`")),
        },
        _ => may_meet(&ours, &theirs).then(|| format!("paths with `%2F` that begin with `{ours}`")),
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

/// True if a path could have both beginnings.
fn may_meet(a: &str, b: &str) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// `path`, below `prefix`, with its last slash encoded.
fn with_encoded_slash(prefix: &str, path: &str) -> String {
    let rest = path.get(prefix.len()..).unwrap_or_default().trim_end_matches('/');
    match rest.rsplit_once('/') {
        Some((before, last)) => format!("`{prefix}{before}%2F{last}`"),
        None => format!("`{path}`"),
    }
}
