//! Checks that types cannot express: references, ranges, conflicts, values that can never take effect. Collects all
//! findings.

mod acme;
mod admission;
mod backends;
mod balancing;
mod batch;
mod callers;
mod discovery;
mod dns;
mod feedback;
mod headers;
mod index;
mod inference;
mod listeners;
mod models;
mod notifications;
mod paths;
mod quality;
mod rollouts;
mod routes;
mod shutdown;
mod signals;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;

pub(crate) use self::index::Index;

use crate::catalog::ExpressionPlace;
use crate::check::{listed, nearest};
use crate::diagnostic::Severity;
use crate::load::LoadOptions;
use crate::named::{Named, Reference};
use crate::reporter::MAX_MISTAKES;
use crate::schema::{ComputedField, Config, LogsOtlp};
use crate::values::{Secret, has_login, quoted_url};

/// Word for every header in `telemetry.logs.headers`.
const ALL_HEADERS: &str = "*";

/// Names that a message about an unknown one lists at most.
const MOST_NAMES: usize = 20;

/// Step of a path in the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Segment {
    Key(String),
    Index(usize),
}

impl From<&str> for Segment {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Segment {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// Path in the document: `at!["routes", 0, "name"]`.
macro_rules! at {
    ($($segment:expr),* $(,)?) => { vec![$(crate::validate::Segment::from($segment)),*] };
}
pub(crate) use at;

/// Path in the document as text.
pub(crate) fn text(at: &[Segment]) -> String {
    let mut text = String::new();
    for segment in at {
        match segment {
            Segment::Key(key) if text.is_empty() => text.push_str(key),
            Segment::Key(key) => {
                text.push('.');
                text.push_str(key);
            }
            Segment::Index(index) => {
                text.push_str(&format!("[{index}]"));
            }
        }
    }
    text
}

/// Error or warning at a path in the document.
pub(crate) struct Finding {
    pub(crate) at: Vec<Segment>,
    pub(crate) severity: Severity,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

pub(crate) struct Context<'c> {
    pub(crate) config: &'c Config,
    pub(crate) index: &'c Index<'c>,
    /// Files and secrets of the configuration.
    pub(crate) named: &'c [Named],
    pub(crate) options: &'c LoadOptions<'c>,
    /// Path in the document as text; with its file where there are several.
    pub(crate) place: &'c dyn Fn(Vec<Segment>) -> String,
    pub(crate) findings: Vec<Finding>,
}

impl Context<'_> {
    pub(crate) fn error(&mut self, at: Vec<Segment>, message: impl Into<String>) {
        self.add(Finding { at, severity: Severity::Error, message: message.into(), help: None });
    }

    pub(crate) fn warn(&mut self, at: Vec<Segment>, message: impl Into<String>) {
        self.add(Finding { at, severity: Severity::Warning, message: message.into(), help: None });
    }

    /// Adds a finding, of which a report shows the first ones; warnings do not hide that there is an error.
    pub(crate) fn add(&mut self, finding: Finding) {
        let has_error = || self.findings.iter().any(|known| known.severity == Severity::Error);
        if self.findings.len() < MAX_MISTAKES || (finding.severity == Severity::Error && !has_error()) {
            self.findings.push(finding);
        }
    }

    /// Reports a name that refers to nothing.
    pub(crate) fn unknown(&mut self, at: Vec<Segment>, what: &str, name: &str, known: &[&str]) {
        let message = match known {
            [] => format!("unknown {what} `{name}`; the file defines none"),
            known => {
                let more = known.len().saturating_sub(MOST_NAMES);
                let more = if more > 0 { format!(" (or {more} more)") } else { String::new() };
                format!("unknown {what} `{name}`; expected {}{more}", listed(known.get(..MOST_NAMES).unwrap_or(known)))
            }
        };
        let help = Some(known)
            // Of a finding that is not shown nothing is worked out.
            .filter(|_| self.findings.len() < MAX_MISTAKES)
            .and_then(|known| nearest(name, known))
            .map_or_else(|| "define it, or name another".to_owned(), |near| format!("did you mean `{near}`?"));
        self.add(Finding { at, severity: Severity::Error, message, help: Some(help) });
    }

    /// Reports a path at which there is no file.
    fn missing(&mut self, at: &[Segment], path: &Path) {
        let shown = path.display();
        let message = match std::fs::metadata(path) {
            Ok(_) => format!("{shown} is not a regular file; expected one: correct the path"),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                format!("there is no file {shown}: create it, or correct the path")
            }
            Err(e) => format!("cannot read {shown}: {e}; expected a file that the gateway's user may read"),
        };
        self.outside(at.to_vec(), message);
    }

    /// Reports a fault of a file or variable: a warning where they may be missing (`--offline`), else an error.
    pub(crate) fn outside(&mut self, at: Vec<Segment>, message: String) {
        if self.options.offline { self.warn(at, message) } else { self.error(at, message) }
    }
}

/// Checks that the files that are named exist, and that secrets can be read. Other checks read only files that exist.
fn named(cx: &mut Context<'_>) {
    for Named { at, what } in cx.named {
        match what {
            Reference::File(path) if !path.is_file() => cx.missing(at, path),
            Reference::Model(path) if !path.exists() => cx.missing(at, path),
            Reference::Secret(Secret::File(path)) if !path.is_file() => {}
            Reference::Secret(secret) => {
                if let Err(e) = secret.resolve(cx.options.env) {
                    cx.outside(at.clone(), e.to_string());
                }
            }
            Reference::File(_) | Reference::Model(_) | Reference::State => {}
        }
    }
}

/// Runs every check.
pub(crate) fn all(cx: &mut Context<'_>) {
    named(cx);
    listeners::all(cx);
    discovery::all(cx);
    dns::all(cx);
    shutdown::all(cx);
    admin(cx);
    names(cx);
    callers::all(cx);
    backends::all(cx);
    inference::all(cx);
    models::all(cx);
    signals::all(cx);
    routes::all(cx);
    feedback::all(cx);
    batch::all(cx);
    paths::all(cx);
    headers::all(cx);
    limits(cx);
    notifications::all(cx);
    telemetry(cx);
}

fn admin(cx: &mut Context<'_>) {
    let Some(admin) = &cx.config.admin else { return };
    if !admin.address.0.ip().is_loopback() && admin.token.is_none() && admin.oidc.is_none() {
        cx.error(
            at!["admin", "address"],
            "an admin address that is not loopback needs `admin.token` or `admin.oidc`: give one, or listen on 127.0.0.1",
        );
    }
    if let Some(login) = &admin.oidc {
        admin_login(cx, login);
    }
    let same = |listener: &crate::schema::Listener| listener.address == admin.address && admin.address.0.port() != 0;
    if cx.config.listeners.iter().any(same) {
        cx.error(at!["admin", "address"], "a listener has this address already; expected another port");
    }
    if admin.traces_url.as_deref().is_some_and(|url| !is_traces_url(url)) {
        let message = "not the address of a trace; expected one of http or https without a user and with `{trace_id}`, such as \
                       `http://jaeger.internal:16686/trace/{trace_id}`";
        cx.error(at!["admin", "tracesUrl"], message);
    }
}

/// Checks that a URL to which the gateway sends requests has no user and password. The message does not quote it.
fn without_login(cx: &mut Context<'_>, at: Vec<Segment>, text: &str) {
    if url::Url::parse(text).is_ok_and(|url| has_login(&url)) {
        cx.error(at, "a user or password in the URL is not sent, and would be readable in the file: remove it");
    }
}

/// Checks the login of operators.
fn admin_login(cx: &mut Context<'_>, login: &crate::schema::AdminLogin) {
    let below = |key: &'static str| at!["admin", "oidc", key];
    for (key, text) in [("clientId", &login.client_id), ("name", &login.name)] {
        if text.is_empty() {
            cx.error(below(key), "expected a name; this one is empty");
        }
    }
    if !is_secure_url(&login.issuer, false) {
        let message = "expected the issuer's https URL without a query, such as `https://login.example`; http is for an issuer on loopback";
        cx.error(below("issuer"), message);
    }
    if !is_secure_url(&login.public_url, true) {
        let message = "expected the https origin at which browsers reach this address, without a path, such as \
                       `https://spillway-admin.example`; http is for loopback";
        cx.error(below("publicUrl"), message);
    }
    if login.allow.is_empty() {
        let message = "nobody could log in: expected claims, such as `{claim: groups, values: [operators]}`";
        cx.error(below("allow"), message);
    }
    for (n, allowed) in login.allow.iter().enumerate() {
        if allowed.claim.is_empty() || allowed.values.is_empty() || allowed.values.iter().any(String::is_empty) {
            let message = "expected the name of a claim and at least one value that is not empty";
            cx.error(at!["admin", "oidc", "allow", n], message);
        }
    }
    if login.scopes.iter().any(|scope| scope.is_empty() || scope.contains(char::is_whitespace)) {
        cx.error(below("scopes"), "a scope is a word; expected one entry for each");
    }
    let sessions = &login.sessions;
    for (key, time) in [("lifetime", sessions.lifetime), ("idle", sessions.idle)] {
        if time.0.as_secs() == 0 {
            cx.error(at!["admin", "oidc", "sessions", key], "expected at least a second");
        }
    }
}

/// True for a URL of https, or of http on loopback, without a user, a query and a fragment; with `is_origin` without a path too.
fn is_secure_url(text: &str, is_origin: bool) -> bool {
    let Ok(url) = url::Url::parse(text) else { return false };
    let is_loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => return false,
    };
    let is_secure = url.scheme() == "https" || url.scheme() == "http" && is_loopback;
    let is_bare = !has_login(&url) && url.query().is_none() && url.fragment().is_none();
    is_secure && is_bare && (!is_origin || url.path() == "/")
}

/// True for an address that a browser may be sent to, with the place for the id of a trace behind its host.
fn is_traces_url(text: &str) -> bool {
    let Some((before, _)) = text.split_once("{trace_id}") else { return false };
    let is_web = |url: url::Url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && !has_login(&url)
            // The id does not choose the server.
            && before.get(url.scheme().len() + 3..).is_some_and(|rest| rest.contains('/'))
    };
    url::Url::parse(text).is_ok_and(is_web)
}

/// Checks that there is memory for bodies, and that the share of a caller can be reached.
fn limits(cx: &mut Context<'_>) {
    let limits = &cx.config.limits;
    let (all, one) = (limits.buffered_bodies, limits.buffered_bodies_per_caller);
    for (key, size) in [("bufferedBodies", all), ("bufferedBodiesPerCaller", one)] {
        if size.0 == 0 {
            cx.error(
                at!["limits", key],
                "with no memory for bodies no request with one could be answered; expected 1KiB or more",
            );
        }
    }
    // The default share of a smaller whole is that whole.
    if one > all && one != crate::schema::ProcessLimits::default().buffered_bodies_per_caller {
        let message =
            format!("{one} is more than all callers have together; expected at most limits.bufferedBodies, {all}");
        cx.error(at!["limits", "bufferedBodiesPerCaller"], message);
    }
}

/// Checks that names are unique: of backends and models together, of consumers, of routes.
fn names(cx: &mut Context<'_>) {
    let config = cx.config;
    let mut targets = HashMap::new();
    let backends = config.backends.iter().enumerate().map(|(n, b)| ("backends", n, b.name.as_str()));
    let models = config.models.iter().enumerate().map(|(n, m)| ("models", n, m.name.as_str()));
    for (list, n, name) in backends.chain(models) {
        self::name(cx, list, n, name, &mut targets);
    }
    let mut consumers = HashMap::new();
    for (n, consumer) in config.consumers.iter().enumerate() {
        name(cx, "consumers", n, &consumer.name, &mut consumers);
    }
    let mut routes = HashMap::new();
    for (n, route) in config.routes.iter().enumerate() {
        match &route.name {
            Some(written) => name(cx, "routes", n, written, &mut routes),
            None if config.routes.len() > 1 => {
                cx.error(at!["routes", n], "`name` is missing, which a route of several needs: add it");
            }
            None => {}
        }
    }
}

/// Place of a name: its list, and its number there.
type ItemOfList = (&'static str, usize);

fn name<'n>(
    cx: &mut Context<'_>,
    list: &'static str,
    n: usize,
    name: &'n str,
    seen: &mut HashMap<&'n str, ItemOfList>,
) {
    let at = at![list, n, "name"];
    // Names are written to headers, metrics and file names.
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/');
    if name.is_empty() || name.len() > 128 || !name.chars().all(sound) {
        cx.error(
            at.clone(),
            format!("the name `{name}` is not valid; expected 1 to 128 letters, digits or any of `-_.:/`"),
        );
    }
    if let Some((list, n)) = seen.get(name) {
        let first = (cx.place)(at![*list, *n]);
        let message = format!("duplicate name `{name}`, first of {first}: give one of them another");
        cx.error(at, message);
    } else {
        seen.insert(name, (list, n));
    }
}

fn telemetry(cx: &mut Context<'_>) {
    logged_headers(cx);
    computed_fields(cx);
    metrics_address(cx);
    if let Some(otlp) = &cx.config.telemetry.logs.otlp {
        collector(cx, at!["telemetry", "logs", "otlp", "endpoint"], &otlp.endpoint);
        if otlp.buffered.0 < LogsOtlp::LEAST_BUFFERED {
            let message = "a single record may be larger: expected at least 64KiB, such as 16MiB";
            cx.error(at!["telemetry", "logs", "otlp", "buffered"], message);
        }
    }
    let Some(tracing) = &cx.config.telemetry.tracing else { return };
    collector(cx, at!["telemetry", "tracing", "otlp", "endpoint"], &tracing.otlp.endpoint);
    if tracing.keep.slower_than.is_some_and(|limit| limit.0.is_zero()) {
        let message = "every request is slower than 0s: write `sampleRatio: 1.0`, or a longer time";
        cx.error(at!["telemetry", "tracing", "keep", "slowerThan"], message);
    }
}

/// Checks the fields and attributes that expressions make.
fn computed_fields(cx: &mut Context<'_>) {
    let telemetry = &cx.config.telemetry;
    if !telemetry.logs.fields.is_empty() && !telemetry.logs.access {
        cx.error(at!["telemetry", "logs", "fields"], "no effect without lines for requests: write `access: true`");
    }
    let attributes = telemetry.tracing.as_ref().map_or(&[][..], |tracing| &tracing.attributes);
    let lists = [
        (at!["telemetry", "logs", "fields"], &telemetry.logs.fields[..], false),
        (at!["telemetry", "tracing", "attributes"], attributes, true),
    ];
    for (at, fields, is_attribute) in lists {
        if fields.len() > ComputedField::MOST {
            let message = format!("found {} expressions; expected at most {}", fields.len(), ComputedField::MOST);
            cx.error(at.clone(), message);
            continue;
        }
        for (n, field) in fields.iter().enumerate() {
            let below = |key: &'static str| [at.clone(), at![n, key]].concat();
            let name = field.name.as_str();
            let is_name = (1..=64).contains(&name.len())
                && name.starts_with(|letter: char| letter.is_ascii_alphabetic())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
            if !is_name {
                let message =
                    "expected at most 64 letters, digits, `_`, `.` and `-`, the first a letter, such as `app.tier`";
                cx.error(below("name"), message);
            } else if fields.iter().take(n).any(|other| other.name == name) {
                cx.error(below("name"), format!("`{name}` is there already; expected another name"));
            } else if is_attribute && ComputedField::OWN_NAMESPACES.iter().any(|own| name.starts_with(own)) {
                let message = format!(
                    "the gateway sets attributes such as `{name}` itself; expected another namespace, such as `app.`"
                );
                cx.error(below("name"), message);
            }
            if let Err(message) = cx.options.catalog.check_expression(&field.value, ExpressionPlace::Field) {
                cx.error(below("value"), message);
            }
        }
    }
}

/// Checks the URL of a collector.
fn collector(cx: &mut Context<'_>, at: Vec<Segment>, endpoint: &str) {
    if !url::Url::parse(endpoint).is_ok_and(|url| url.scheme() == "http" && url.has_host()) {
        let quoted = quoted_url(endpoint);
        let message = format!("{quoted} is not the URL of a collector; expected one such as http://127.0.0.1:4317");
        cx.error(at.clone(), message);
    }
    without_login(cx, at, endpoint);
}

/// Checks that no other part of the configuration has the address of the metrics.
fn metrics_address(cx: &mut Context<'_>) {
    let Some(address) = &cx.config.telemetry.metrics.address else { return };
    let at = at!["telemetry", "metrics", "address"];
    if address.0.port() == 0 {
        return;
    }
    if cx.config.listeners.iter().any(|listener| listener.address == *address) {
        cx.error(at, "a listener has this address already; expected another port");
    } else if cx.config.admin.as_ref().is_some_and(|admin| admin.address == *address) {
        cx.error(
            at,
            "the admin address is the same, and serves `/metrics` already: expected another port, or remove this",
        );
    }
}

/// Checks the headers that lines of the access log show.
fn logged_headers(cx: &mut Context<'_>) {
    let logs = &cx.config.telemetry.logs;
    let is_name = |name: &str| http::HeaderName::from_bytes(name.as_bytes()).is_ok();
    for (n, name) in logs.headers.iter().enumerate() {
        let at = at!["telemetry", "logs", "headers", n];
        if name == ALL_HEADERS && logs.headers.len() > 1 {
            cx.error(at, "`*` stands for every header: remove the others");
        } else if name != ALL_HEADERS && !is_name(name) {
            cx.error(at, format!("`{name}` is no name of a header; expected one such as `x-tenant`, or `*` for all"));
        }
    }
    if !logs.headers.is_empty() && !logs.access {
        cx.error(at!["telemetry", "logs", "headers"], "no effect without lines for requests: write `access: true`");
    }
    let attributes = cx.config.telemetry.tracing.as_ref().map_or(0, |tracing| tracing.attributes.len());
    let may_be_read = !logs.fields.is_empty() || attributes > 0;
    let is_logged = |name: &str| {
        may_be_read || logs.headers.iter().any(|shown| shown == ALL_HEADERS || shown.eq_ignore_ascii_case(name))
    };
    for (n, name) in logs.redact_headers.iter().enumerate() {
        let at = at!["telemetry", "logs", "redactHeaders", n];
        if !is_name(name) {
            cx.error(at, format!("`{name}` is no name of a header; expected one such as `x-user`"));
        } else if !is_logged(name) {
            let message = format!("`{name}` is not logged at all, since `telemetry.logs.headers` does not name it");
            let help = Some("remove it here, or name it there".to_owned());
            cx.add(Finding { at, severity: Severity::Warning, message, help });
        }
    }
}
