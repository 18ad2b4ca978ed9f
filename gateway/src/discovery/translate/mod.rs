//! Translation of objects into parts of a configuration and statuses. A pure function of the objects and the settings: it
//! opens nothing, asks nobody and keeps nothing. An object that cannot be served costs itself alone, and its status says why.

mod backend;
mod filter;
mod gateway;
mod matching;
mod policy;
mod route;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sha2::{Digest, Sha256};
use spillway_config::schema::Kubernetes;
use spillway_config::{Further, PartKind, RefusedPart};

use super::objects::{GATEWAY_GROUP, Kind, ObjectKey, Objects, ReferenceGrant, RouteKind};
use gateway::Gateways;

/// Name of the controller, which a `GatewayClass` must have to be served.
pub const CONTROLLER: &str = "spillway.dev/gateway";
/// Begin of the names of all parts, which names of the file seldom have. The file's own parts win.
const PREFIX: &str = "kubernetes";
/// Longest name of a part, in bytes: the most that the configuration takes.
const MAX_NAME: usize = 128;

/// Condition of a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Type, such as `Accepted`.
    pub kind: &'static str,
    /// True if it holds.
    pub holds: bool,
    /// Reason, a word of the API.
    pub reason: &'static str,
    /// Sentence for people.
    pub message: String,
}

impl Condition {
    /// Condition that holds.
    pub fn yes(kind: &'static str, reason: &'static str) -> Self {
        Self { kind, holds: true, reason, message: String::new() }
    }

    /// Condition that does not hold, with the reason.
    pub fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, holds: false, reason, message: message.into() }
    }
}

/// Status of a `GatewayClass`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassStatus {
    /// Object.
    pub key: ObjectKey,
    /// Number of its content.
    pub generation: i64,
    /// `Accepted`.
    pub accepted: Condition,
}

/// Status of a `Gateway`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayStatus {
    /// Object.
    pub key: ObjectKey,
    /// Number of its content.
    pub generation: i64,
    /// `Accepted`.
    pub accepted: Condition,
    /// Statuses of its listeners.
    pub listeners: Vec<ListenerStatus>,
}

impl GatewayStatus {
    /// `Programmed`: true while a listener is served.
    pub fn programmed(&self) -> Condition {
        match self.listeners.iter().any(ListenerStatus::is_served) {
            _ if !self.accepted.holds => Condition::no("Programmed", "Invalid", "the Gateway is not accepted"),
            true => Condition::yes("Programmed", "Programmed"),
            false => Condition::no("Programmed", "Invalid", "no listener is served; their conditions say why"),
        }
    }
}

/// Status of a listener of a Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerStatus {
    /// Name.
    pub name: String,
    /// Kinds of routes that may be attached.
    pub kinds: Vec<RouteKind>,
    /// Routes that are attached.
    pub attached: usize,
    /// `Accepted`.
    pub accepted: Condition,
    /// `ResolvedRefs`.
    pub resolved: Condition,
    /// `Conflicted`, which is no fault where it does not hold.
    pub conflicted: Condition,
    /// Listener of the configuration; `None` where it is not served.
    pub part: Option<String>,
}

impl ListenerStatus {
    /// True if the listener serves requests.
    pub fn is_served(&self) -> bool {
        self.part.is_some()
    }

    /// `Programmed`.
    pub fn programmed(&self) -> Condition {
        match &self.part {
            Some(_) => Condition::yes("Programmed", "Programmed"),
            None => Condition::no("Programmed", "Invalid", "not served; the other conditions say why"),
        }
    }
}

/// Status of a route at one Gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct ParentStatus {
    /// Reference as the route has it.
    pub parent: Value,
    /// `Accepted`.
    pub accepted: Condition,
    /// `ResolvedRefs`.
    pub resolved: Condition,
}

/// Status of a route.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteStatus {
    /// Kind.
    pub kind: Kind,
    /// Object.
    pub key: ObjectKey,
    /// Number of its content.
    pub generation: i64,
    /// Statuses at the Gateways that are served here.
    pub parents: Vec<ParentStatus>,
    /// Routes of the configuration.
    pub parts: Vec<String>,
}

/// Status of an inference pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolStatus {
    /// Object.
    pub key: ObjectKey,
    /// Number of its content.
    pub generation: i64,
    /// Gateways whose routes use the pool.
    pub parents: BTreeSet<ObjectKey>,
    /// `Accepted`.
    pub accepted: Condition,
    /// `ResolvedRefs`.
    pub resolved: Condition,
}

/// Status of a policy of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyStatus {
    /// Object.
    pub key: ObjectKey,
    /// Number of its content.
    pub generation: i64,
    /// Gateways whose routes use an object that the policy is about.
    pub ancestors: BTreeSet<ObjectKey>,
    /// `Accepted`.
    pub accepted: Condition,
    /// `ResolvedRefs`.
    pub resolved: Condition,
}

/// Statuses of all objects.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Statuses {
    /// Classes.
    pub classes: Vec<ClassStatus>,
    /// Gateways.
    pub gateways: Vec<GatewayStatus>,
    /// Routes.
    pub routes: Vec<RouteStatus>,
    /// Pools.
    pub pools: Vec<PoolStatus>,
    /// Policies of TLS.
    pub policies: Vec<PolicyStatus>,
}

/// Result of a translation.
#[derive(Debug, Clone, Default)]
pub struct Translation {
    /// Parts of the configuration.
    pub further: Further,
    /// Statuses, as long as every part is served.
    pub statuses: Statuses,
}

impl Translation {
    /// Statuses once parts were left out of the configuration.
    pub fn statuses_without(&self, refused: &[RefusedPart]) -> Statuses {
        let mut statuses = self.statuses.clone();
        for part in refused {
            match part.kind {
                PartKind::Listener => {
                    for listener in statuses.gateways.iter_mut().flat_map(|gateway| &mut gateway.listeners) {
                        if listener.part.as_deref() == Some(&*part.name) {
                            listener.accepted = Condition::no("Accepted", "PortUnavailable", &part.message);
                            listener.part = None;
                        }
                    }
                }
                PartKind::Route => {
                    for route in statuses.routes.iter_mut().filter(|route| route.parts.contains(&part.name)) {
                        for parent in route.parents.iter_mut().filter(|parent| parent.accepted.holds) {
                            parent.accepted = Condition::no("Accepted", "UnsupportedValue", &part.message);
                        }
                    }
                }
                // The routes with it are refused too, each with its message.
                PartKind::Backend => {}
            }
        }
        for gateway in &mut statuses.gateways {
            if gateway.accepted.holds && gateway.listeners.iter().any(|listener| !listener.accepted.holds) {
                gateway.accepted =
                    Condition { message: "not every listener is accepted".to_owned(), ..listeners_not_valid(gateway) };
            }
        }
        statuses
    }
}

/// `Accepted` of a Gateway of which a listener is not: it holds while another listener is.
fn listeners_not_valid(gateway: &GatewayStatus) -> Condition {
    let holds = gateway.listeners.iter().any(|listener| listener.accepted.holds);
    Condition { holds, ..Condition::yes("Accepted", "ListenersNotValid") }
}

/// Facts that the steps of a translation share.
struct Input<'o> {
    objects: &'o Objects,
    settings: &'o Kubernetes,
    /// Labels of namespaces.
    namespaces: BTreeMap<&'o str, BTreeMap<String, String>>,
    grants: Vec<(String, ReferenceGrant)>,
}

/// Object that is referred to.
struct Referred<'r> {
    group: &'r str,
    kind: &'r str,
    namespace: &'r str,
    name: &'r str,
}

impl Input<'_> {
    /// True if an object of the Gateway API in one namespace may refer to an object in another.
    fn may_refer(&self, from: &str, namespace: &str, to: &Referred<'_>) -> bool {
        namespace == to.namespace
            || self.grants.iter().filter(|(of, _)| of == to.namespace).any(|(_, grant)| {
                let from = |one: &super::objects::GrantFrom| {
                    one.group == GATEWAY_GROUP && one.kind == from && one.namespace == namespace
                };
                let to = |one: &super::objects::GrantTo| {
                    one.group == to.group
                        && one.kind == to.kind
                        && one.name.as_deref().is_none_or(|name| name == to.name)
                };
                grant.from.iter().any(from) && grant.to.iter().any(to)
            })
    }
}

/// Translates objects.
pub fn translate(objects: &Objects, settings: &Kubernetes) -> Translation {
    let labels = objects.of(Kind::Namespace).map(|(key, value)| {
        let labels = value.pointer("/metadata/labels").and_then(Value::as_object);
        let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        (key.name.as_str(), labels.into_iter().flatten().filter_map(text).collect())
    });
    let grants = objects.read::<ReferenceGrant>(Kind::ReferenceGrant);
    let input = Input {
        objects,
        settings,
        namespaces: labels.collect(),
        grants: grants.filter_map(|(key, grant)| Some((key.namespace.clone(), grant.ok()?.spec?))).collect(),
    };
    let mut out = Translation::default();
    if !gateway::class(&input, &mut out) {
        return out;
    }
    let mut gateways = Gateways::read(&input);
    route::all(&input, &mut gateways, &mut out);
    gateways.finish(&input, &mut out);
    out
}

/// Name of a part: its elements behind the prefix, cut where it would be too long.
fn part_name<'n>(elements: impl IntoIterator<Item = &'n str>) -> String {
    let name = std::iter::once(PREFIX).chain(elements).collect::<Vec<_>>().join("/");
    if name.len() <= MAX_NAME {
        return name;
    }
    let digest = hex::encode(Sha256::digest(name.as_bytes()));
    let digest = digest.get(..16).unwrap_or_default();
    let mut end = MAX_NAME - digest.len() - 1;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}:{digest}", name.get(..end).unwrap_or_default())
}
