//! Table of routes, indexed by host and sorted by precedence, so that the first entry that matches decides.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::Arc;

use http::Method;

use super::{CompileError, HeadContext, Matcher};
use crate::topology::Route;
use spillway_filter::Fields;

/// Longest host name that is looked up, in bytes (RFC 1035, 2.3.4). The pipeline refuses a longer one.
pub const MAX_HOST: usize = 253;

struct Entry {
    route: Arc<Route>,
    matcher: Matcher,
}

/// All routes of a snapshot.
#[derive(Default)]
pub struct RouteTable {
    exact: HashMap<Box<str>, Vec<Entry>>,
    /// By suffix with its dot (`.example.com`), longest first.
    wildcard: Vec<(Box<str>, Vec<Entry>)>,
    any: Vec<Entry>,
}

/// Builder of a table, from routes in the order of the file.
#[derive(Default)]
pub struct TableBuilder {
    table: RouteTable,
}

impl TableBuilder {
    /// Adds a route under its host names.
    ///
    /// # Errors
    /// A match of the route cannot be compiled.
    pub fn add(
        &mut self,
        route: &Arc<Route>,
        hostnames: &[String],
        matches: &[spillway_config::schema::Match],
    ) -> Result<(), CompileError> {
        let everything = [spillway_config::schema::Match::default()];
        let matches = if matches.is_empty() { &everything } else { matches };
        let add_to = |list: &mut Vec<Entry>| {
            for written in matches {
                list.push(Entry { route: route.clone(), matcher: Matcher::compile(&route.name, written)? });
            }
            Ok(())
        };
        if hostnames.is_empty() {
            return add_to(&mut self.table.any);
        }
        for host in hostnames {
            let host =
                host.parse::<Ipv6Addr>().map_or_else(|_| host.to_ascii_lowercase(), |address| address.to_string());
            match host.strip_prefix('*') {
                None => add_to(self.table.exact.entry(host.into()).or_default())?,
                Some(suffix) => match self.table.wildcard.iter_mut().find(|(s, _)| s.as_ref() == suffix) {
                    Some((_, list)) => add_to(list)?,
                    None => {
                        let mut list = Vec::new();
                        add_to(&mut list)?;
                        self.table.wildcard.push((suffix.into(), list));
                    }
                },
            }
        }
        Ok(())
    }

    /// Sorts the routes by precedence; entries of equal rank stay in the order of the file.
    pub fn build(mut self) -> RouteTable {
        let lists = self.table.exact.values_mut().chain(self.table.wildcard.iter_mut().map(|(_, list)| list));
        for list in lists.chain([&mut self.table.any]) {
            list.sort_by_key(|entry| entry.matcher.rank());
        }
        self.table.wildcard.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        self.table
    }
}

/// Routes that a request may take, in order of precedence: each but the last asks for a model in the body.
pub struct Candidates<'a> {
    entries: Vec<&'a Entry>,
    /// True if the first entry takes the request whatever model its body names.
    ignores_model: bool,
}

impl RouteTable {
    /// Candidates for a request head. `host` may have a port.
    pub fn candidates(
        &self,
        host: Option<&str>,
        path: &str,
        method: &Method,
        headers: &Fields,
        context: HeadContext<'_>,
    ) -> Candidates<'_> {
        let mut entries = Vec::new();
        for list in self.lists(host) {
            for entry in list {
                if entry.matcher.matches_head(path, method, headers, context) {
                    entries.push(entry);
                    if entry.matcher.model().is_none() {
                        return Candidates { entries, ignores_model: false };
                    }
                }
            }
        }
        Candidates { entries, ignores_model: false }
    }
}

impl RouteTable {
    /// Routes that requests for a host may take, whatever their path, each once.
    pub fn of_host(&self, host: Option<&str>) -> Vec<&Arc<Route>> {
        let mut routes: Vec<&Arc<Route>> = Vec::new();
        for entry in self.lists(host).flatten() {
            if !routes.iter().any(|known| Arc::ptr_eq(known, &entry.route)) {
                routes.push(&entry.route);
            }
        }
        routes
    }

    /// Entries for a host by precedence. `host` may have a port.
    fn lists(&self, host: Option<&str>) -> impl Iterator<Item = &Vec<Entry>> {
        let host = host.map(without_port).filter(|host| host.len() <= MAX_HOST).unwrap_or_default();
        // An IPv6 address has many spellings (RFC 5952, 2).
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')?.parse::<Ipv6Addr>().ok());
        let name: Cow<'_, str> = match address {
            Some(address) => address.to_string().into(),
            None if host.bytes().any(|b| b.is_ascii_uppercase()) => host.to_ascii_lowercase().into(),
            None => host.into(),
        };
        let exact = if self.exact.is_empty() || name.is_empty() { None } else { self.exact.get(&*name) };
        let wildcard = self.wildcard.iter().filter(move |(suffix, _)| has_suffix(&name, suffix)).map(|(_, list)| list);
        exact.into_iter().chain(wildcard).chain([&self.any])
    }
}

/// Strips a host of its port and of the dot of the root.
pub fn without_port(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        // `[::1]:8080` and `host:8080`, but not the bare IPv6 address `::1`.
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (name.ends_with(']') || !name.contains(':')) =>
        {
            name
        }
        _ => host,
    };
    // A name from the root is the same name (RFC 1034, 3.1).
    name.strip_suffix('.').unwrap_or(name)
}

fn has_suffix(host: &str, suffix: &str) -> bool {
    // `*.example.com` needs at least one character before the dot.
    host.len() > suffix.len()
        && host.as_bytes().iter().rev().zip(suffix.as_bytes().iter().rev()).all(|(h, s)| h.eq_ignore_ascii_case(s))
}

impl<'a> Candidates<'a> {
    /// Every candidate route, in order.
    pub fn routes(&self) -> impl Iterator<Item = &'a Arc<Route>> {
        self.entries.iter().map(|entry| &entry.route)
    }

    /// Route, where the head alone decides it.
    pub fn only(&self) -> Option<&'a Arc<Route>> {
        match self.entries.as_slice() {
            [entry] if self.ignores_model || entry.matcher.model().is_none() => Some(&entry.route),
            _ => None,
        }
    }

    /// Narrows the candidates of an announced request to the first whose filters answer the preflight, if one does.
    pub fn answering_preflight(self) -> Option<Self> {
        let entry = self.entries.into_iter().find(|entry| entry.route.answers_preflight)?;
        Some(Self { entries: vec![entry], ignores_model: true })
    }

    /// Narrows the candidates of a request for the list of models to one that calls models, where all ask for a model: the
    /// body of such a request names none.
    pub fn listing_models(self) -> Self {
        let takes_any = self.entries.iter().any(|entry| entry.matcher.model().is_none());
        match self.entries.iter().find(|entry| entry.route.calls_models) {
            Some(entry) if !takes_any => Self { entries: vec![*entry], ignores_model: true },
            _ => self,
        }
    }

    /// True if a request gets the same rules (access, limits, models) by these candidates as by the others.
    pub fn rule_like(&self, other: &Candidates<'_>) -> bool {
        let same = self.entries.len() == other.entries.len()
            && self.routes().zip(other.routes()).all(|(a, b)| Arc::ptr_eq(a, b));
        let Some(first) = self.entries.first() else { return other.is_empty() };
        let is_like = |route: &Arc<Route>| route.rules == first.route.rules;
        same || (!other.is_empty() && self.routes().all(is_like) && other.routes().all(is_like))
    }

    /// True if no route matches.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Route for a body that names `model`.
    pub fn by_model(&self, model: Option<&str>) -> Option<&'a Arc<Route>> {
        self.entries
            .iter()
            .find(|entry| entry.matcher.model().is_none_or(|pattern| model.is_some_and(|name| pattern.matches(name))))
            .map(|entry| &entry.route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(yaml: &[(&str, &[&str], &str)]) -> RouteTable {
        let mut builder = TableBuilder::default();
        for (name, hosts, matches) in yaml {
            let route = Arc::new(Route::for_tests(name));
            let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
            builder.add(&route, &hosts, &serde_json::from_str::<Vec<_>>(matches).unwrap()).unwrap();
        }
        builder.build()
    }

    const REST: HeadContext<'_> =
        HeadContext { query: "", client: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) };

    fn names(table: &RouteTable, host: &str, path: &str) -> Vec<String> {
        table
            .candidates(Some(host), path, &Method::POST, &Fields::default(), REST)
            .routes()
            .map(|r| r.name.clone())
            .collect()
    }

    #[test]
    fn precedence_is_that_of_the_gateway_api_whatever_the_order_in_the_file() {
        let table = table(&[
            ("any", &[], "[]"),
            ("regex", &[], r#"[{"path":{"regex":"/v1/.*"}}]"#),
            ("short", &[], r#"[{"path":{"prefix":"/v1"}}]"#),
            ("long", &[], r#"[{"path":{"prefix":"/v1/chat"}}]"#),
            ("long-post", &[], r#"[{"path":{"prefix":"/v1/chat"},"method":"POST"}]"#),
            ("exact", &[], r#"[{"path":{"exact":"/v1/chat"}}]"#),
            ("wild", &["*.example.com"], "[]"),
            ("host", &["api.example.com"], r#"[{"path":{"prefix":"/only"}}]"#),
        ]);
        assert_eq!(names(&table, "x", "/v1/chat"), ["exact"]);
        assert_eq!(names(&table, "x", "/v1/chat/y"), ["long-post"]);
        assert_eq!(names(&table, "x", "/v1/z"), ["short"]);
        assert_eq!(names(&table, "x", "/"), ["any"]);
        assert_eq!(names(&table, "API.example.com:8080", "/only/this"), ["host"]);
        assert_eq!(names(&table, "api.example.com", "/v1/chat"), ["wild"]);
        assert_eq!(names(&table, "example.com", "/"), ["any"]);
        assert_eq!(names(&table, "[::1]:80", "/"), ["any"]);
    }

    #[test]
    fn a_host_is_matched_whole_in_every_spelling_and_a_star_stands_for_labels() {
        let table = table(&[
            ("any", &[], "[]"),
            ("wild", &["*.Secret.test"], "[]"),
            ("exact", &["api.secret.test"], "[]"),
            ("address", &["2001:DB8::0:1"], "[]"),
            ("ipv4", &["10.0.0.1"], "[]"),
        ]);
        for (host, route) in [
            ("api.secret.test", "exact"),
            ("API.SECRET.TEST.:443", "exact"),
            ("x.secret.test", "wild"),
            ("y.X.secret.TEST:8080", "wild"),
            ("secret.test", "any"),
            ("xsecret.test", "any"),
            ("api.secret.test.evil.test", "any"),
            ("x.secret.test.evil.test:80", "any"),
            ("x.secret.testevil", "any"),
            ("[2001:db8::1]", "address"),
            ("[2001:0db8:0:0::0001]:443", "address"),
            ("[2001:db8::2]", "any"),
            ("10.0.0.1:80", "ipv4"),
            ("10.0.0.11", "any"),
            ("110.0.0.1", "any"),
        ] {
            assert_eq!(names(&table, host, "/"), [route], "{host}");
        }
    }

    #[test]
    fn a_model_is_looked_for_in_the_body_only_where_a_match_asks_for_it() {
        let table = table(&[
            ("gpt", &[], r#"[{"path":{"prefix":"/v1"},"model":"gpt-*"}]"#),
            ("claude", &[], r#"[{"path":{"prefix":"/v1"},"model":"claude-*"}]"#),
            ("rest", &[], r#"[{"path":{"prefix":"/v1"}}]"#),
        ]);
        let headers = Fields::default();
        let candidates = table.candidates(None, "/v1/x", &Method::POST, &headers, REST);
        assert!(candidates.only().is_none());
        assert_eq!(candidates.by_model(Some("claude-3")).unwrap().name, "claude");
        assert_eq!(candidates.by_model(Some("llama")).unwrap().name, "rest");
        assert_eq!(candidates.by_model(None).unwrap().name, "rest");
    }
}
