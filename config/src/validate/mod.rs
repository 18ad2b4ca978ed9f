//! Checks that types cannot express: references, ranges, conflicts, values that can never take effect. Collects all
//! findings.

mod acme;
mod admission;
mod backends;
mod balancing;
mod callers;
mod dns;
mod headers;
mod listeners;
mod models;
mod paths;
mod routes;

use std::collections::HashMap;

use crate::check::nearest;
use crate::diagnostic::Severity;
use crate::load::LoadOptions;
use crate::schema::Config;
use crate::values::Secret;

/// A step of a path in the document.
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
    pub(crate) options: &'c LoadOptions<'c>,
    pub(crate) findings: Vec<Finding>,
}

impl Context<'_> {
    pub(crate) fn error(&mut self, at: Vec<Segment>, message: impl Into<String>) {
        self.findings.push(Finding { at, severity: Severity::Error, message: message.into(), help: None });
    }

    pub(crate) fn warn(&mut self, at: Vec<Segment>, message: impl Into<String>) {
        self.findings.push(Finding { at, severity: Severity::Warning, message: message.into(), help: None });
    }

    /// Reports a name that refers to nothing.
    pub(crate) fn unknown(&mut self, at: Vec<Segment>, what: &str, name: &str, known: &[&str]) {
        let help = match nearest(name, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => format!("the file defines no {what}"),
            None => format!("there are {}", known.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")),
        };
        let message = format!("there is no {what} `{name}`");
        self.findings.push(Finding { at, severity: Severity::Error, message, help: Some(help) });
    }

    /// What is wrong with files and variables: only a warning where they need not be there yet.
    pub(crate) fn outside(&mut self, at: Vec<Segment>, message: String) {
        if self.options.offline { self.warn(at, message) } else { self.error(at, message) }
    }

    pub(crate) fn secret(&mut self, at: Vec<Segment>, secret: &Secret) {
        if let Err(e) = secret.resolve(self.options.env) {
            self.outside(at, e.to_string());
        }
    }
}

/// Runs every check.
pub(crate) fn all(cx: &mut Context<'_>) {
    listeners::all(cx);
    dns::all(cx);
    admin(cx);
    names(cx);
    callers::all(cx);
    backends::all(cx);
    models::all(cx);
    routes::all(cx);
    paths::all(cx);
    headers::all(cx);
    limits(cx);
    telemetry(cx);
}

fn admin(cx: &mut Context<'_>) {
    let Some(admin) = &cx.config.admin else { return };
    if !admin.address.0.ip().is_loopback() && admin.token.is_none() {
        cx.error(at!["admin", "address"], "an admin address that is not loopback needs `admin.token`");
    }
    if let Some(token) = &admin.token {
        cx.secret(at!["admin", "token"], token);
    }
    let same = |listener: &crate::schema::Listener| listener.address == admin.address && admin.address.0.port() != 0;
    if cx.config.listeners.iter().any(same) {
        cx.error(at!["admin", "address"], "a listener has this address already");
    }
}

/// Checks that there is memory for bodies, and that the share of a caller can be reached.
fn limits(cx: &mut Context<'_>) {
    let limits = &cx.config.limits;
    let (all, one) = (limits.buffered_bodies, limits.buffered_bodies_per_caller);
    for (key, size) in [("bufferedBodies", all), ("bufferedBodiesPerCaller", one)] {
        if size.0 == 0 {
            cx.error(
                at!["limits", key],
                "with no memory for bodies no request with one could be answered: write 1KiB or more",
            );
        }
    }
    // The default share of a smaller whole is that whole.
    if one > all && one != crate::schema::ProcessLimits::default().buffered_bodies_per_caller {
        let message = format!("no caller can use more than all of them together: limits.bufferedBodies is {all}");
        cx.error(at!["limits", "bufferedBodiesPerCaller"], message);
    }
}

/// Checks that names are unique: of backends and models together, of consumers, of routes.
fn names(cx: &mut Context<'_>) {
    let config = cx.config;
    let mut targets: HashMap<&str, String> = HashMap::new();
    let backends = config.backends.iter().enumerate().map(|(n, b)| ("backends", n, b.name.as_str()));
    let models = config.models.iter().enumerate().map(|(n, m)| ("models", n, m.name.as_str()));
    for (list, n, name) in backends.chain(models) {
        named(cx, list, n, name, &mut targets);
    }
    let mut consumers = HashMap::new();
    for (n, consumer) in config.consumers.iter().enumerate() {
        named(cx, "consumers", n, &consumer.name, &mut consumers);
    }
    let mut routes = HashMap::new();
    for (n, route) in config.routes.iter().enumerate() {
        match &route.name {
            Some(name) => named(cx, "routes", n, name, &mut routes),
            None if config.routes.len() > 1 => {
                cx.error(at!["routes", n], "`name` is needed where a file has more than one route");
            }
            None => {}
        }
    }
}

fn named<'n>(cx: &mut Context<'_>, list: &str, n: usize, name: &'n str, seen: &mut HashMap<&'n str, String>) {
    let at = at![list, n, "name"];
    // Names are written to headers, metrics and file names.
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/');
    if name.is_empty() || name.len() > 128 || !name.chars().all(sound) {
        cx.error(at.clone(), "a name has 1 to 128 letters, digits or any of `-_.:/`");
    }
    if let Some(first) = seen.get(name) {
        let message = format!("the name `{name}` is taken by {first}");
        cx.error(at, message);
    } else {
        seen.insert(name, format!("{list}[{n}]"));
    }
}

fn telemetry(cx: &mut Context<'_>) {
    let Some(tracing) = &cx.config.telemetry.tracing else { return };
    let endpoint = &tracing.otlp.endpoint;
    if !url::Url::parse(endpoint).is_ok_and(|url| url.scheme() == "http" && url.has_host()) {
        let message = format!("`{endpoint}` is not the URL of a collector, such as http://127.0.0.1:4317");
        cx.error(at!["telemetry", "tracing", "otlp", "endpoint"], message);
    }
}
