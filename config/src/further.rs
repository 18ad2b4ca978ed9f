//! Parts of a configuration that come from elsewhere than its files. They are checked with the rules of the files, together
//! with what the files say; a part that does not hold is named, so that it can be left out. They name no files, hold no
//! references to the environment, and change nothing of the files' own parts.

use std::collections::BTreeMap;
use std::fmt;

use crate::diagnostic::Severity;
use crate::load::{LoadOptions, Loaded};
use crate::schema::{Backend, Config, Listener, Route};
use crate::validate::{self, Segment};

/// Listeners, backends and routes beside those of the files. Each has a name, its own among those of its kind.
#[derive(Debug, Clone, Default)]
pub struct Further {
    /// Listeners.
    pub listeners: Vec<Listener>,
    /// Backends.
    pub backends: Vec<Backend>,
    /// Routes.
    pub routes: Vec<Route>,
}

/// Kind of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PartKind {
    /// A listener.
    Listener,
    /// A backend.
    Backend,
    /// A route.
    Route,
}

/// Part that was left out, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPart {
    /// Kind of the part.
    pub kind: PartKind,
    /// Name of the part.
    pub name: String,
    /// Message of the check that it does not pass.
    pub message: String,
}

/// Messages of checks that no single part is at fault for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinError(pub Vec<String>);

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for JoinError {}

/// Rounds of checks after which everything further is refused: a route falls with its backend, and nothing falls with a route.
const MAX_ROUNDS: usize = 4;

impl Further {
    /// True if there is no part.
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.backends.is_empty() && self.routes.is_empty()
    }

    /// Removes a part by its kind and name.
    pub fn remove(&mut self, kind: PartKind, name: &str) {
        match kind {
            PartKind::Listener => self.listeners.retain(|listener| listener.name.as_deref() != Some(name)),
            PartKind::Backend => self.backends.retain(|backend| backend.name != name),
            PartKind::Route => self.routes.retain(|route| route.name.as_deref() != Some(name)),
        }
    }

    /// True if there is a listener of this name.
    pub fn has_listener(&self, name: &str) -> bool {
        self.listeners.iter().any(|listener| listener.name.as_deref() == Some(name))
    }

    /// Removes a listener from all routes, and the routes of no other one.
    pub fn remove_routes_of(&mut self, listener: &str) {
        for route in &mut self.routes {
            route.listeners.retain(|name| name != listener);
        }
        self.routes.retain(|route| !route.listeners.is_empty());
    }

    fn name(&self, kind: PartKind, index: usize) -> Option<String> {
        match kind {
            PartKind::Listener => self.listeners.get(index)?.name.clone(),
            PartKind::Backend => self.backends.get(index).map(|backend| backend.name.clone()),
            PartKind::Route => self.routes.get(index)?.name.clone(),
        }
    }
}

impl Loaded {
    /// Joins further parts to the configuration of the files. Returns it with those that had to be left out.
    ///
    /// # Errors
    /// The whole does not hold, and no part is at fault for it.
    pub fn join(
        &self,
        mut further: Further,
        options: &LoadOptions<'_>,
    ) -> Result<(Loaded, Vec<RefusedPart>), JoinError> {
        let mut refused = taken_addresses(&self.config, &further);
        for part in &refused {
            further.remove(part.kind, &part.name);
        }
        for _ in 0..MAX_ROUNDS {
            let mut config = self.config.clone();
            config.listeners.extend(further.listeners.iter().cloned());
            config.backends.extend(further.backends.iter().cloned());
            config.routes.extend(further.routes.iter().cloned());
            let (parts, others) = self.faults(&config, &further, options);
            if parts.is_empty() && !others.is_empty() {
                return Err(JoinError(others));
            }
            if parts.is_empty() {
                return Ok((Loaded { config, ..self.clone() }, refused));
            }
            for ((kind, name), message) in parts {
                further.remove(kind, &name);
                refused.push(RefusedPart { kind, name, message });
            }
        }
        Err(JoinError(vec!["parts that depend on each other do not hold".to_owned()]))
    }

    /// Errors of a joined configuration: those of further parts, and the others.
    fn faults(
        &self,
        config: &Config,
        further: &Further,
        options: &LoadOptions<'_>,
    ) -> (BTreeMap<(PartKind, String), String>, Vec<String>) {
        let own = &self.config;
        let of = |at: &[Segment]| -> Option<(PartKind, String)> {
            let [Segment::Key(list), Segment::Index(index), ..] = at else { return None };
            let (kind, before) = match list.as_str() {
                "listeners" => (PartKind::Listener, own.listeners.len()),
                "backends" => (PartKind::Backend, own.backends.len()),
                "routes" => (PartKind::Route, own.routes.len()),
                _ => return None,
            };
            let name = further.name(kind, index.checked_sub(before)?)?;
            Some((kind, name))
        };
        let place = |at: Vec<Segment>| match of(&at) {
            Some((_, name)) => format!("`{name}`"),
            None => validate::text(&at),
        };
        let index = validate::Index::new(config);
        let findings = {
            let mut context =
                validate::Context { config, index: &index, named: &[], options, place: &place, findings: Vec::new() };
            validate::all(&mut context);
            context.findings
        };
        let (mut parts, mut others) = (BTreeMap::new(), Vec::new());
        for finding in findings.into_iter().filter(|finding| finding.severity == Severity::Error) {
            match of(&finding.at) {
                Some(part) => {
                    parts.entry(part).or_insert(finding.message);
                }
                None => others.push(format!("{}: {}", validate::text(&finding.at), finding.message)),
            }
        }
        (parts, others)
    }
}

/// Further listeners whose addresses the files use already: the check of the whole would blame the files.
fn taken_addresses(own: &Config, further: &Further) -> Vec<RefusedPart> {
    let admin = own.admin.as_ref().map(|admin| admin.address);
    let used = |port: u16| {
        let listener = own.listeners.iter().any(|listener| listener.address.0.port() == port);
        let others = admin.iter().chain(&own.telemetry.metrics.address).any(|address| address.0.port() == port);
        listener || others
    };
    let taken = further.listeners.iter().filter(|listener| used(listener.address.0.port()));
    let refused = taken.filter_map(|listener| {
        let message = format!("port {} is one of the gateway's own configuration", listener.address.0.port());
        Some(RefusedPart { kind: PartKind::Listener, name: listener.name.clone()?, message })
    });
    refused.collect()
}
