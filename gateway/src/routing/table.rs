//! Table of routes, indexed by host, path and model, so that what a request costs does not grow with their number.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;
use std::sync::Arc;

use ahash::RandomState;
use http::{HeaderName, HeaderValue, Method};
use sha2::{Digest, Sha256};
use spillway_config::schema::Match;
use spillway_filter::{Fields, SignalName};

use super::candidates::Candidates;
use super::host::{Entry, HostRoutes};
use super::matcher::{CompileError, HeadContext, HeadView, Matcher, PartialHead, Undecided};
use crate::topology::Route;

/// Longest host name that is looked up, in bytes (RFC 1035, 2.3.4). The pipeline refuses a longer one.
pub const MAX_HOST: usize = 253;

/// Most headers of matches that are told of a head that is kept: more would make each head a list.
const MAX_ASKED: usize = 32;

/// All routes of a snapshot.
#[derive(Default)]
pub struct RouteTable {
    exact: HashMap<Box<str>, Box<HostRoutes>, RandomState>,
    /// By suffix with its dot (`.example.com`).
    wildcard: HashMap<Box<str>, Box<HostRoutes>, RandomState>,
    any: HostRoutes,
    /// Headers that matches ask for, the first [`MAX_ASKED`] of them.
    asked_headers: Box<[AskedHeader]>,
    /// Tables of the listeners that have routes of their own, by the names of the listeners.
    own: HashMap<Box<str>, RouteTable, RandomState>,
}

/// Header that a match asks for.
pub struct AskedHeader {
    /// Name.
    pub name: HeaderName,
    /// Value that the header must have.
    pub value: HeaderValue,
    /// SHA-256 digest of the value, in hex, for places that may not show what stands in the file.
    pub sha256: String,
}

/// Builder of a table, from routes in the order of the file.
#[derive(Default)]
pub struct TableBuilder {
    exact: HashMap<Box<str>, Vec<Entry>>,
    wildcard: HashMap<Box<str>, Vec<Entry>>,
    any: Vec<Entry>,
    asked_headers: Vec<(HeaderName, HeaderValue)>,
    /// Names of signals, in the order in which conversations are judged by them.
    signals: Arc<[SignalName]>,
}

impl TableBuilder {
    /// Creates a builder of a table whose expressions may read these signals.
    pub fn new(signals: Arc<[SignalName]>) -> Self {
        Self { signals, ..Self::default() }
    }

    /// Adds a route under its host names.
    ///
    /// # Errors
    /// A match of the route cannot be compiled.
    pub fn add(&mut self, route: &Arc<Route>, hostnames: &[String], matches: &[Match]) -> Result<(), CompileError> {
        let everything = [Match::default()];
        let matches = if matches.is_empty() { &everything } else { matches };
        let compile = |written| {
            let matcher = Matcher::compile(&route.name, written, &self.signals)?;
            let key = matcher.model.is_some().then(|| matcher.conditions.key(written));
            Ok(Entry { route: route.clone(), matcher, key })
        };
        // Once, however many host names the route has.
        let entries = matches.iter().map(compile).collect::<Result<Vec<_>, _>>()?;
        for header in entries.iter().flat_map(|entry| entry.matcher.conditions.headers()) {
            if self.asked_headers.len() < MAX_ASKED && !self.asked_headers.contains(header) {
                self.asked_headers.push(header.clone());
            }
        }
        let add_to = |list: &mut Vec<Entry>| list.extend(entries.iter().cloned());
        if hostnames.is_empty() {
            add_to(&mut self.any);
            return Ok(());
        }
        for host in hostnames {
            let host =
                host.parse::<Ipv6Addr>().map_or_else(|_| host.to_ascii_lowercase(), |address| address.to_string());
            match host.strip_prefix('*') {
                None => add_to(self.exact.entry(host.into()).or_default()),
                Some(suffix) => add_to(self.wildcard.entry(suffix.into()).or_default()),
            }
        }
        Ok(())
    }

    /// Builds the table; matches of equal rank stay in the order of the file.
    pub fn build(self) -> RouteTable {
        let index = |hosts: HashMap<Box<str>, Vec<Entry>>| {
            hosts.into_iter().map(|(host, entries)| (host, Box::new(HostRoutes::new(entries)))).collect()
        };
        let asked = |(name, value): (HeaderName, HeaderValue)| {
            let sha256 = hex::encode(Sha256::digest(value.as_bytes()));
            AskedHeader { name, value, sha256 }
        };
        RouteTable {
            exact: index(self.exact),
            wildcard: index(self.wildcard),
            any: HostRoutes::new(self.any),
            asked_headers: self.asked_headers.into_iter().map(asked).collect(),
            own: HashMap::default(),
        }
    }
}

impl RouteTable {
    /// Adds the tables of listeners that have routes of their own.
    pub fn with_listeners(self, own: impl IntoIterator<Item = (Box<str>, RouteTable)>) -> Self {
        Self { own: own.into_iter().collect(), ..self }
    }

    /// Routes of a listener.
    pub fn of_listener(&self, listener: &str) -> &Self {
        if self.own.is_empty() { self } else { self.own.get(listener).unwrap_or(self) }
    }

    /// Tables with a route of this name.
    pub fn tables_with<'t>(&'t self, name: &'t str) -> impl Iterator<Item = &'t Self> {
        std::iter::once(self).chain(self.own.values()).filter(move |table| table.own_named(name).is_some())
    }

    /// Candidates for a request head. `host` may have a port.
    pub fn candidates(
        &self,
        host: Option<&str>,
        path: &str,
        method: &Method,
        headers: &Fields,
        context: HeadContext<'_>,
    ) -> Candidates<'_> {
        let head = HeadView { path, method, headers, context };
        let mut found = Candidates::default();
        let name = self.name(host);
        for (list, routes) in (0..).zip(self.lists(&name)) {
            if routes.find(list, &head, &mut found) {
                break;
            }
        }
        found
    }

    /// First condition that the known facts of a head do not decide, of those that decide its candidates; `None` where these
    /// facts decide all. `host` may have a port.
    pub fn undecided(&self, host: Option<&str>, head: &PartialHead<'_>) -> Option<Undecided> {
        let name = self.name(host);
        self.lists(&name).try_for_each(|routes| routes.undecided(head)).break_value().flatten()
    }

    /// Headers that matches ask for, with the value of each; few of them where there are many.
    pub fn asked_headers(&self) -> &[AskedHeader] {
        &self.asked_headers
    }

    /// True if a route has this name.
    pub fn has(&self, name: &str) -> bool {
        self.named(name).is_some()
    }

    /// Route of this name, of any listener.
    pub fn named(&self, name: &str) -> Option<&Arc<Route>> {
        self.own_named(name).or_else(|| self.own.values().find_map(|table| table.own_named(name)))
    }

    fn own_named(&self, name: &str) -> Option<&Arc<Route>> {
        let lists = self.exact.values().chain(self.wildcard.values()).map(Box::as_ref).chain([&self.any]);
        lists.flat_map(HostRoutes::routes).find(|route| route.name == name)
    }

    /// Routes that requests for a host may take, whatever their path, each once.
    pub fn of_host(&self, host: Option<&str>) -> Vec<&Arc<Route>> {
        let name = self.name(host);
        let mut known = HashSet::new();
        let all = self.lists(&name).flat_map(|list| list.routes());
        all.filter(|route| known.insert(Arc::as_ptr(route))).collect()
    }

    /// Routes that requests for a host may take on every listener that has `route`, each once.
    pub fn beside<'t>(&'t self, route: &Arc<Route>, host: Option<&str>) -> Vec<&'t Arc<Route>> {
        let has = |list: &[&Arc<Route>], route: &Arc<Route>| list.iter().any(|known| Arc::ptr_eq(known, route));
        let lists = std::iter::once(self).chain(self.own.values()).map(|table| table.of_host(host));
        let mut lists = lists.filter(|list| has(list, route));
        let Some(mut all) = lists.next() else { return Vec::new() };
        for list in lists {
            all.retain(|known| has(&list, known));
        }
        all
    }

    /// Name by which a host is looked up, empty where no route names a host. `host` may have a port.
    fn name<'h>(&self, host: Option<&'h str>) -> Cow<'h, str> {
        if self.exact.is_empty() && self.wildcard.is_empty() {
            return Cow::Borrowed("");
        }
        let host = host.map(without_port).filter(|host| host.len() <= MAX_HOST).unwrap_or_default();
        // An IPv6 address has many spellings (RFC 5952, 2).
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')?.parse::<Ipv6Addr>().ok());
        match address {
            Some(address) => address.to_string().into(),
            None if host.bytes().any(|b| b.is_ascii_uppercase()) => host.to_ascii_lowercase().into(),
            None => host.into(),
        }
    }

    /// Routes by precedence of their host names: the whole name, its suffixes from the longest on, any host.
    fn lists<'t>(&'t self, name: &str) -> impl Iterator<Item = &'t HostRoutes> {
        let exact = if name.is_empty() { None } else { self.exact.get(name) };
        let suffixed = if self.wildcard.is_empty() { "" } else { name };
        // `*.example.com` needs at least one character before the dot.
        let suffixes = suffixed.match_indices('.').filter(|(at, _)| *at > 0).filter_map(|(at, _)| suffixed.get(at..));
        let wildcard = suffixes.filter_map(|suffix| self.wildcard.get(suffix));
        exact.into_iter().chain(wildcard).map(Box::as_ref).chain([&self.any])
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
