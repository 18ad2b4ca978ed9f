//! Routes: the listeners that they are attached to, and their rules as routes of the configuration.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use spillway_config::schema::{FilterEntry, Match, Route};

use super::backend::{Backends, NOT_PERMITTED, Picker, Referrer, Target};
use super::gateway::{Gateways, common, port_name};
use super::matching::{self, Unsupported};
use super::{Condition, Input, ParentStatus, RouteStatus, Translation, filter, part_name};
use crate::discovery::objects::{
    BackendReference, GATEWAY_GROUP, GrpcRule, HttpRule, Kind, Metadata, Object, ObjectKey, ParentRef, Reference,
    RouteSpec,
};

/// Time limit in place of none (`0s`), which the configuration does not have: a day.
const NO_LIMIT: &str = "24h";

/// Most regular expressions of one route. Each takes up to 1 MiB, and who may write a route must not take the memory of all.
const MAX_PATTERNS: usize = 64;

/// Rule in neutral form.
struct Rule<'r> {
    matches: Vec<Match>,
    filters: &'r [Value],
    targets: &'r [BackendReference],
    request: Option<&'r str>,
    backend_request: Option<&'r str>,
}

/// Rule of a kind of routes.
trait Rules: DeserializeOwned {
    fn neutral(&self) -> Result<Rule<'_>, Unsupported>;
}

fn none_of(experimental: &[(&str, &Option<Value>)]) -> Result<(), Unsupported> {
    match experimental.iter().find(|(_, value)| value.is_some()) {
        Some((key, _)) => Err(format!("`{key}` is not supported")),
        None => Ok(()),
    }
}

impl Rules for HttpRule {
    fn neutral(&self) -> Result<Rule<'_>, Unsupported> {
        none_of(&[("retry", &self.retry), ("sessionPersistence", &self.session_persistence)])?;
        Ok(Rule {
            matches: self.matches.iter().map(matching::http).collect::<Result<_, _>>()?,
            filters: &self.filters,
            targets: &self.backend_refs,
            request: self.timeouts.request.as_deref(),
            backend_request: self.timeouts.backend_request.as_deref(),
        })
    }
}

impl Rules for GrpcRule {
    fn neutral(&self) -> Result<Rule<'_>, Unsupported> {
        none_of(&[("sessionPersistence", &self.session_persistence)])?;
        Ok(Rule {
            matches: self.matches.iter().map(matching::grpc).collect::<Result<_, _>>()?,
            filters: &self.filters,
            targets: &self.backend_refs,
            request: None,
            backend_request: None,
        })
    }
}

/// Adds to the condition that references are resolved why one of them gets no requests all the same.
fn note(resolved: &mut Condition, why: Unsupported) {
    if resolved.holds {
        resolved.message = why;
    }
}

/// Filter that asks the picker of the only target of a rule. It is asked before a target is drawn, so that it cannot be one of several.
fn asking(
    pickers: &[(String, Picker)],
    targets: &[&str],
    resolved: &mut Condition,
) -> Result<Option<FilterEntry>, Unsupported> {
    let Some((name, picker)) = pickers.iter().max_by_key(|(_, picker)| !picker.is_open) else { return Ok(None) };
    if targets.iter().all(|target| target == name) {
        return Ok(picker.filter());
    }
    let why = format!("{} is not asked where the rule has further targets", picker.name);
    if picker.is_open {
        note(resolved, why);
        return Ok(None);
    }
    Err(format!("{why}; expected this pool alone, or `failureMode: FailOpen`"))
}

/// Name of a target, and its filters.
type NamedTarget = (String, Value);

/// Route of the configuration with its place among those of equal rank.
struct Placed {
    order: (String, ObjectKey, usize),
    route: Route,
}

/// Translates all routes of HTTP and gRPC.
pub(super) fn all(input: &Input<'_>, gateways: &mut Gateways, out: &mut Translation) {
    let mut backends = Backends::new(input);
    let mut placed = Vec::new();
    of_kind::<HttpRule>(input, Kind::HttpRoute, gateways, &mut backends, out, &mut placed);
    of_kind::<GrpcRule>(input, Kind::GrpcRoute, gateways, &mut backends, out, &mut placed);
    placed.sort_by(|a, b| a.order.cmp(&b.order));
    out.further.routes.extend(placed.into_iter().map(|placed| placed.route));
    backends.finish(out);
}

fn of_kind<R: Rules>(
    input: &Input<'_>,
    kind: Kind,
    gateways: &mut Gateways,
    backends: &mut Backends<'_>,
    out: &mut Translation,
    placed: &mut Vec<Placed>,
) {
    for (key, value) in input.objects.of(kind) {
        let (metadata, spec, fault) = match Object::<RouteSpec<R>>::deserialize(&**value) {
            Ok(object) => (object.metadata, object.spec, None),
            // Its parents must be known for a status that says why.
            Err(e) => match Object::<RouteSpec<Value>>::deserialize(&**value) {
                Ok(object) => {
                    let spec = object.spec.map(|spec| RouteSpec { rules: Vec::new(), ..without_rules(spec) });
                    (object.metadata, spec, Some(e.to_string()))
                }
                Err(_) => continue,
            },
        };
        let Some(spec) = spec else { continue };
        let refs = value.pointer("/spec/parentRefs").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut one = OneRoute { input, kind, key, metadata: &metadata, gateways, backends, placed, parts: Vec::new() };
        let parents = one.translate(&spec, &refs, fault);
        let parts = one.parts;
        if !parents.is_empty() {
            out.statuses.routes.push(RouteStatus {
                kind,
                key: key.clone(),
                generation: metadata.generation,
                parents,
                parts,
            });
        }
    }
}

fn without_rules<R>(spec: RouteSpec<Value>) -> RouteSpec<R> {
    RouteSpec { parent_refs: spec.parent_refs, hostnames: spec.hostnames, rules: Vec::new() }
}

/// Listener that a route is attached to, with the host names that both have; empty for any host.
struct Attachment {
    listener: usize,
    port: u16,
    hostnames: Vec<String>,
}

struct OneRoute<'o, 'i, 'b> {
    input: &'o Input<'i>,
    kind: Kind,
    key: &'o ObjectKey,
    metadata: &'o Metadata,
    gateways: &'o mut Gateways,
    backends: &'o mut Backends<'b>,
    placed: &'o mut Vec<Placed>,
    parts: Vec<String>,
}

impl OneRoute<'_, '_, '_> {
    fn translate<R: Rules>(&mut self, spec: &RouteSpec<R>, refs: &[Value], fault: Option<String>) -> Vec<ParentStatus> {
        let mut attached: Vec<Attachment> = Vec::new();
        let mut parents: Vec<(Value, usize, Result<(), Condition>)> = Vec::new();
        for (parent, written) in spec.parent_refs.iter().zip(refs) {
            let Some(gateway) = self.gateway_of(parent) else { continue };
            let found = self.attach(gateway, parent, &spec.hostnames);
            let accepted = found.map(|found| {
                for one in found {
                    if !attached.iter().any(|known| known.listener == one.listener) {
                        attached.push(one);
                    }
                }
            });
            parents.push((written.clone(), gateway, accepted));
        }
        if parents.is_empty() {
            return Vec::new();
        }
        for one in &attached {
            self.gateways.attach(one.listener);
        }
        let used: Vec<usize> = parents.iter().filter(|(_, _, accepted)| accepted.is_ok()).map(|(_, n, _)| *n).collect();
        let made = match fault {
            Some(fault) => Err(format!("cannot be read: {fault}")),
            None => self.rules(spec, &attached, &used),
        };
        let (unsupported, resolved) = match made {
            Ok(resolved) => (None, resolved),
            Err(message) => (Some(message), Condition::yes("ResolvedRefs", "ResolvedRefs")),
        };
        let status = |(parent, _, accepted): (Value, usize, Result<(), Condition>)| {
            let accepted = match (accepted, &unsupported) {
                (Err(refused), _) => refused,
                (Ok(()), Some(message)) => Condition::no("Accepted", "UnsupportedValue", message),
                (Ok(()), None) => Condition::yes("Accepted", "Accepted"),
            };
            ParentStatus { parent, accepted, resolved: resolved.clone() }
        };
        parents.into_iter().map(status).collect()
    }

    /// Gateway that is served here; `None` for other parents, of which others write the status.
    fn gateway_of(&self, parent: &ParentRef) -> Option<usize> {
        let Reference { group, kind, namespace, name } = &parent.object;
        let is_gateway = group.as_deref().unwrap_or(GATEWAY_GROUP) == GATEWAY_GROUP
            && kind.as_deref().unwrap_or("Gateway") == "Gateway";
        let namespace = namespace.as_deref().unwrap_or(&self.key.namespace);
        self.gateways.position(&ObjectKey::new(namespace, name)).filter(|_| is_gateway)
    }

    /// Listeners of a Gateway that the route is attached to.
    fn attach(&self, gateway: usize, parent: &ParentRef, hostnames: &[String]) -> Result<Vec<Attachment>, Condition> {
        let refuse = |reason, message: String| Err(Condition::no("Accepted", reason, message));
        let Some(key) = self.gateways.key(gateway) else { return Ok(Vec::new()) };
        let listeners = self.gateways.listeners.iter().enumerate().filter(|(_, listener)| listener.gateway == gateway);
        let named: Vec<_> = listeners
            .filter(|(_, one)| parent.section_name.as_ref().is_none_or(|name| *name == one.name))
            .filter(|(_, one)| parent.port.is_none_or(|port| port == one.port))
            .collect();
        if named.is_empty() {
            return refuse("NoMatchingParent", format!("Gateway {key} has no such listener"));
        }
        let allowed: Vec<_> =
            named.into_iter().filter(|(_, one)| one.allows(self.input, key, self.kind, &self.key.namespace)).collect();
        if allowed.is_empty() {
            let message =
                format!("no listener of Gateway {key} takes {}s of {}", self.kind.as_str(), self.key.namespace);
            return refuse("NotAllowedByListeners", message);
        }
        let mut found = Vec::new();
        for (n, listener) in allowed {
            let own = listener.hostname.as_deref();
            let hosts: Vec<Option<String>> = match hostnames {
                [] => common(own, None).into_iter().collect(),
                hosts => hosts.iter().filter_map(|host| common(own, Some(host))).collect(),
            };
            if hosts.is_empty() {
                continue;
            }
            let hosts = hosts.into_iter().filter(|host| !self.gateways.leaves_to_others(listener, host.as_deref()));
            let hosts: Vec<Option<String>> = hosts.collect();
            let is_served = self.gateways.is_served(listener) && !hosts.is_empty();
            found.push((
                is_served,
                Attachment { listener: n, port: listener.port, hostnames: hosts.into_iter().flatten().collect() },
            ));
        }
        if found.is_empty() {
            return refuse(
                "NoMatchingListenerHostname",
                format!("no listener of Gateway {key} has a host name of the route"),
            );
        }
        // A listener that is not served has the route attached, and gets no requests.
        Ok(found
            .into_iter()
            .map(|(is_served, one)| if is_served { one } else { Attachment { port: 0, ..one } })
            .collect())
    }

    /// Routes of all rules; says whether every reference was resolved.
    fn rules<R: Rules>(
        &mut self,
        spec: &RouteSpec<R>,
        attached: &[Attachment],
        gateways: &[usize],
    ) -> Result<Condition, Unsupported> {
        // Listeners with the same host names share a route.
        let mut groups: BTreeMap<Vec<String>, Vec<u16>> = BTreeMap::new();
        for one in attached.iter().filter(|one| one.port != 0) {
            let ports = groups.entry(one.hostnames.clone()).or_default();
            if !ports.contains(&one.port) {
                ports.push(one.port);
            }
        }
        let mut resolved = Condition::yes("ResolvedRefs", "ResolvedRefs");
        let (mut made, mut patterns) = (Vec::new(), 0);
        for (n, written) in spec.rules.iter().enumerate() {
            let rule = written.neutral().map_err(|why| format!("rule {n}: {why}"))?;
            patterns += rule.matches.iter().map(matching::patterns).sum::<usize>();
            if patterns > MAX_PATTERNS {
                return Err(format!(
                    "rule {n}: more than {MAX_PATTERNS} regular expressions in one route; expected fewer"
                ));
            }
            let (filters, settings) =
                self.one_rule(&rule, gateways, &mut resolved).map_err(|why| format!("rule {n}: {why}"))?;
            for (g, (hostnames, ports)) in groups.iter().enumerate() {
                let group = if groups.len() > 1 { Some(g.to_string()) } else { None };
                let number = n.to_string();
                let elements = [self.kind.as_str(), &self.key.namespace, &self.key.name, &number];
                let name = part_name(elements.into_iter().chain(group.as_deref()));
                let mut settings = settings.clone();
                settings.insert("name".to_owned(), name.clone().into());
                settings.insert("hostnames".to_owned(), hostnames.clone().into());
                settings.insert("listeners".to_owned(), ports.iter().map(|port| port_name(*port)).collect());
                let mut route: Route = serde_json::from_value(settings.into()).map_err(|e| format!("rule {n}: {e}"))?;
                route.matches = rule.matches.clone();
                route.filters = filters.clone();
                let order = (self.metadata.creation_timestamp.clone(), self.key.clone(), n);
                made.push((name, Placed { order, route }));
            }
        }
        for (name, placed) in made {
            self.parts.push(name);
            self.placed.push(placed);
        }
        Ok(resolved)
    }

    /// Backend of a reference; notes which Gateways use its object.
    fn resolve(
        &mut self,
        from: Referrer<'_>,
        reference: &BackendReference,
        gateways: &[usize],
    ) -> Result<Target, Condition> {
        let found = self.backends.resolve(from, &reference.object, reference.port);
        if found.as_ref().err().is_none_or(|condition| condition.reason != NOT_PERMITTED) {
            for gateway in gateways.iter().filter_map(|n| self.gateways.key(*n)) {
                self.backends.use_object(from, &reference.object, gateway);
            }
        }
        found
    }

    /// Answer to the requests of targets that cannot be used: those of all, or the share of their weights.
    fn unusable(&self, usable: u64, lost: u64) -> FilterEntry {
        // Clients of gRPC read 503 as UNAVAILABLE, which the API asks for.
        let status = if self.kind == Kind::GrpcRoute { 503 } else { 500 };
        let body = "the target of this request cannot be used; the status of its route says why\n";
        let mut config =
            serde_json::Map::from_iter([("status".to_owned(), status.into()), ("body".to_owned(), body.into())]);
        if usable > 0 {
            #[allow(clippy::cast_precision_loss, reason = "sums of few weights of 32 bits")]
            let percent = lost as f64 * 100.0 / (lost + usable) as f64;
            config.insert("percent".to_owned(), percent.into());
        }
        FilterEntry { name: "respond".to_owned(), config: config.into() }
    }

    /// Filters and further settings of a rule.
    fn one_rule(
        &mut self,
        rule: &Rule<'_>,
        gateways: &[usize],
        resolved: &mut Condition,
    ) -> Result<(Vec<FilterEntry>, serde_json::Map<String, Value>), Unsupported> {
        let from = Referrer { kind: self.kind, namespace: &self.key.namespace };
        let mut filters = filter::all(rule.filters, |reference| {
            let reference = BackendReference::deserialize(reference).map_err(|e| format!("a mirror: {e}"))?;
            match self.resolve(from, &reference, gateways) {
                Ok(Target { closed: Some(why), .. }) => {
                    note(resolved, why);
                    Ok(None)
                }
                Ok(Target { picker: Some(picker), .. }) if !picker.is_open => {
                    note(resolved, format!("nothing is copied there: {} is not asked for copies", picker.name));
                    Ok(None)
                }
                Ok(target) => Ok(Some(target.name)),
                // The request itself goes on.
                Err(condition) => {
                    *resolved = condition;
                    Ok(None)
                }
            }
        })?;
        let (mut references, mut spills): (Vec<(NamedTarget, u32)>, bool) = (Vec::new(), false);
        let mut pickers: Vec<(String, Picker)> = Vec::new();
        // Sum of the weights of targets that cannot be used.
        let mut lost = 0_u64;
        for target in rule.targets {
            let own = filter::of_target(&target.filters)?;
            let found = self.resolve(from, target, gateways);
            let weight = target.weight.unwrap_or(1);
            match found {
                Ok(Target { closed: Some(why), .. }) => {
                    lost += u64::from(weight);
                    note(resolved, why);
                }
                Ok(found) => {
                    pickers.extend(found.picker.filter(|_| weight > 0).map(|picker| (found.name.clone(), picker)));
                    let reference = (found.name, json!(own));
                    // Two references to one backend with the same filters are one with both weights.
                    match references.iter_mut().find(|(known, _)| *known == reference) {
                        Some((_, known)) => *known = known.saturating_add(weight),
                        None => references.push((reference, weight)),
                    }
                    spills |= found.is_pool;
                }
                Err(condition) => {
                    lost += u64::from(weight);
                    *resolved = condition;
                }
            }
        }
        let answers = filters.iter().any(|filter| filter.name == "redirect");
        let usable: u64 = references.iter().map(|(_, weight)| u64::from(*weight)).sum();
        if (usable == 0 || lost > 0) && !answers {
            filters.push(self.unusable(usable, lost));
        }
        if !answers {
            let taking = references.iter().filter(|(_, weight)| *weight > 0);
            let taking: Vec<&str> = taking.map(|((name, _), _)| name.as_str()).collect();
            filters.extend(asking(&pickers, &taking, resolved)?);
        }
        let mut settings = serde_json::Map::new();
        if usable > 0 {
            let weighted = |((name, filters), weight): (NamedTarget, u32)| json!({"name": name, "weight": weight, "filters": filters});
            settings.insert("backendRefs".to_owned(), references.into_iter().map(weighted).collect());
            if let Some(model) = self.input.settings.spill_to.as_ref().filter(|_| spills) {
                settings.insert("whenSaturated".to_owned(), json!({"spillTo": model}));
            }
        }
        let mut timeouts = serde_json::Map::new();
        for (key, value) in [("request", rule.request), ("backendRequest", rule.backend_request)] {
            if let Some(text) = value {
                let parsed: spillway_config::values::Duration =
                    text.parse().map_err(|e| format!("timeouts.{key}: {e}"))?;
                timeouts.insert(key.to_owned(), if parsed.0.is_zero() { NO_LIMIT } else { text }.into());
            }
        }
        if !timeouts.is_empty() {
            settings.insert("timeouts".to_owned(), timeouts.into());
        }
        Ok((filters, settings))
    }
}
