//! Classes, Gateways and their listeners. Listeners with one port share one socket, over all Gateways: the most specific host
//! name of them has the request, and none of the others serves it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use spillway_config::schema::{Listener, PemPair, Route};

use super::{
    CONTROLLER, ClassStatus, Condition, GatewayStatus, Input, ListenerStatus, Referred, Translation, part_name,
};
use crate::discovery::objects::{
    self, AllowedRoutes, GATEWAY_GROUP, GatewayListener, Kind, Object, ObjectKey, Reference, RouteKind,
};
use crate::tls::check_pem;

/// Kinds of routes that listeners serve.
const SERVED_KINDS: [Kind; 2] = [Kind::HttpRoute, Kind::GrpcRoute];

/// Judges the class of the settings; true if its Gateways are served.
pub(super) fn class(input: &Input<'_>, out: &mut Translation) -> bool {
    let key = ObjectKey::new("", &input.settings.gateway_class);
    let Some(value) = input.objects.get(Kind::GatewayClass, &key) else { return false };
    let Ok(Object { metadata, spec: Some(spec) }) = serde::Deserialize::deserialize(&**value) else { return false };
    let spec: objects::GatewayClass = spec;
    let metadata: objects::Metadata = metadata;
    if spec.controller_name != CONTROLLER {
        return false;
    }
    let accepted = match spec.parameters_ref {
        None => Condition::yes("Accepted", "Accepted"),
        Some(_) => Condition::no(
            "Accepted",
            "InvalidParameters",
            "`parametersRef` is not supported: the configuration of the gateway has its settings",
        ),
    };
    let holds = accepted.holds;
    out.statuses.classes.push(ClassStatus { key, generation: metadata.generation, accepted });
    holds
}

/// Listener of a Gateway that routes may be attached to.
pub(super) struct OpenListener {
    pub(super) gateway: usize,
    pub(super) listener: usize,
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) hostname: Option<String>,
    allowed: AllowedRoutes,
    kinds: Vec<RouteKind>,
}

/// Socket that listeners share.
struct Port {
    is_tls: bool,
    /// Host names of its listeners; `None` stands for any.
    hostnames: Vec<Option<String>>,
    pairs: Vec<PemPair>,
}

/// Gateways of the class.
pub(super) struct Gateways {
    statuses: Vec<GatewayStatus>,
    pub(super) listeners: Vec<OpenListener>,
    ports: BTreeMap<u16, Port>,
}

impl Gateways {
    /// Reads and judges all Gateways of the class; the older one wins a conflict.
    pub(super) fn read(input: &Input<'_>) -> Self {
        let mut found: Vec<(&ObjectKey, Object<objects::Gateway>)> = Vec::new();
        for (key, object) in input.objects.read::<objects::Gateway>(Kind::Gateway) {
            let is_ours = |object: &Object<objects::Gateway>| {
                object.spec.as_ref().is_some_and(|spec| spec.gateway_class_name == input.settings.gateway_class)
            };
            found.extend(object.ok().filter(is_ours).map(|object| (key, object)));
        }
        found.sort_by(|(a, one), (b, other)| {
            (&one.metadata.creation_timestamp, a).cmp(&(&other.metadata.creation_timestamp, b))
        });
        let mut all = Self { statuses: Vec::new(), listeners: Vec::new(), ports: BTreeMap::new() };
        for (key, object) in found {
            if let Some(spec) = object.spec {
                all.add(input, key, object.metadata.generation, &spec);
            }
        }
        all
    }

    fn add(&mut self, input: &Input<'_>, key: &ObjectKey, generation: i64, spec: &objects::Gateway) {
        let unsupported = if !spec.addresses.is_empty() {
            let message = "`addresses` is not supported: the gateway listens on the address of its own configuration";
            Some(Condition::no("Accepted", "UnsupportedAddress", message))
        } else if spec.tls.is_some() {
            Some(Condition::no("Accepted", "Invalid", "`tls` of the whole Gateway is not supported"))
        } else {
            None
        };
        let gateway = self.statuses.len();
        let listeners = spec.listeners.iter().enumerate().map(|(n, listener)| {
            let status = self.listener(input, key, (gateway, n), listener, unsupported.is_some());
            // A Gateway that is refused serves nothing.
            match &unsupported {
                Some(why) => ListenerStatus { accepted: Condition::no("Accepted", "Invalid", &why.message), ..status },
                None => status,
            }
        });
        let listeners = listeners.collect();
        let mut accepted = unsupported.unwrap_or_else(|| Condition::yes("Accepted", "Accepted"));
        if spec
            .allowed_listeners
            .as_ref()
            .is_some_and(|allowed| allowed.pointer("/namespaces/from") != Some(&"None".into()))
        {
            accepted.message = "listener sets are not supported, and none is attached".to_owned();
        }
        self.statuses.push(GatewayStatus { key: key.clone(), generation, accepted, listeners });
    }

    fn listener(
        &mut self,
        input: &Input<'_>,
        gateway: &ObjectKey,
        (n, m): (usize, usize),
        written: &GatewayListener,
        is_refused: bool,
    ) -> ListenerStatus {
        let is_tls = written.protocol == "HTTPS";
        let (kinds, mut resolved) = kinds(&written.allowed_routes);
        let mut accepted = Condition::yes("Accepted", "Accepted");
        let mut conflicted = Condition::no("Conflicted", "NoConflicts", "");
        if !matches!(written.protocol.as_str(), "HTTP" | "HTTPS") {
            let message = format!("protocol {} is not supported; expected HTTP or HTTPS", written.protocol);
            accepted = Condition::no("Accepted", "UnsupportedProtocol", message);
        }
        let mut pairs = Vec::new();
        if is_tls {
            match certificates(input, gateway, written) {
                Ok(found) => pairs = found,
                Err(Fault::Refs(fault)) => resolved = fault,
                Err(Fault::Listener(fault)) => accepted = fault,
            }
        }
        if let Some(fault) = self.conflict(written, is_tls).filter(|_| accepted.holds) {
            accepted = Condition::no("Accepted", fault.reason, &fault.message);
            conflicted = fault;
        }
        let has_kinds = !kinds.is_empty();
        let is_open = accepted.holds && has_kinds && (!is_tls || !pairs.is_empty()) && !is_refused;
        if is_open {
            let port = self.ports.entry(written.port).or_insert_with(|| Port {
                is_tls,
                hostnames: Vec::new(),
                pairs: Vec::new(),
            });
            port.hostnames.push(written.hostname.clone());
            for pair in pairs {
                if !port.pairs.contains(&pair) {
                    port.pairs.push(pair);
                }
            }
        }
        self.listeners.push(OpenListener {
            gateway: n,
            listener: m,
            name: written.name.clone(),
            port: written.port,
            hostname: written.hostname.clone(),
            allowed: written.allowed_routes.clone(),
            kinds: kinds.clone(),
        });
        let part = is_open.then(|| port_name(written.port));
        ListenerStatus { name: written.name.clone(), kinds, attached: 0, accepted, resolved, conflicted, part }
    }

    /// Conflict of a listener with those before it.
    fn conflict(&self, written: &GatewayListener, is_tls: bool) -> Option<Condition> {
        let port = self.ports.get(&written.port)?;
        let conflict = |reason, message: String| Some(Condition { message, ..Condition::yes("Conflicted", reason) });
        if port.is_tls != is_tls {
            let message = format!("port {} has another protocol at a listener before this one", written.port);
            return conflict("ProtocolConflict", message);
        }
        if port.hostnames.contains(&written.hostname) {
            let host = written.hostname.as_deref().unwrap_or("any host");
            let message = format!("port {} serves {host} at a listener before this one", written.port);
            return conflict("HostnameConflict", message);
        }
        None
    }

    /// Number of a Gateway.
    pub(super) fn position(&self, key: &ObjectKey) -> Option<usize> {
        self.statuses.iter().position(|gateway| gateway.key == *key)
    }

    /// Key of a Gateway by its number.
    pub(super) fn key(&self, gateway: usize) -> Option<&ObjectKey> {
        self.statuses.get(gateway).map(|status| &status.key)
    }

    /// True if a listener serves requests.
    pub(super) fn is_served(&self, listener: &OpenListener) -> bool {
        let status = self.statuses.get(listener.gateway).and_then(|gateway| gateway.listeners.get(listener.listener));
        status.is_some_and(ListenerStatus::is_served)
    }

    /// Counts a route at a listener.
    pub(super) fn attach(&mut self, listener: usize) {
        let Some(listener) = self.listeners.get(listener) else { return };
        let gateway = self.statuses.get_mut(listener.gateway);
        if let Some(status) = gateway.and_then(|gateway| gateway.listeners.get_mut(listener.listener)) {
            status.attached += 1;
        }
    }

    /// Host names of a route for which another listener of the same port is more specific are not served by this one.
    pub(super) fn leaves_to_others(&self, listener: &OpenListener, host: Option<&str>) -> bool {
        let own = specificity(listener.hostname.as_deref());
        let others = self.ports.get(&listener.port).into_iter().flat_map(|port| &port.hostnames);
        others.flatten().any(|other| {
            specificity(Some(other)) > own
                && listener.hostname.as_deref() != Some(other)
                && host.is_some_and(|host| intersection(Some(other), Some(host)).as_deref() == Some(host))
        })
    }

    /// Writes the listeners, what they answer where no route of theirs does, and the statuses.
    pub(super) fn finish(self, input: &Input<'_>, out: &mut Translation) {
        for (number, port) in self.ports {
            let name = port_name(number);
            let address = SocketAddr::new(input.settings.address.0, number);
            let protocol = if port.is_tls { "https" } else { "http" };
            let tls = port.is_tls.then(|| json!({}));
            let written = json!({"name": name, "address": address.to_string(), "protocol": protocol, "tls": tls});
            let Ok(mut listener) = serde_json::from_value::<Listener>(written) else { continue };
            listener.own_routes = true;
            if let Some(tls) = &mut listener.tls {
                tls.pairs = port.pairs;
            }
            out.further.listeners.push(listener);
            let is_shared = port.hostnames.len() > 1;
            for host in port.hostnames.into_iter().flatten().filter(|_| is_shared) {
                out.further.routes.extend(nothing(&name, &host));
            }
        }
        out.statuses.gateways = self.statuses;
    }
}

/// Route for requests to the host of a listener that none of its routes takes. Without it those of a listener with a wider host
/// name would take them.
fn nothing(listener: &str, host: &str) -> Option<Route> {
    let written = json!({
        "name": part_name(["404", listener.rsplit('/').next().unwrap_or_default(), &host.replace('*', "any")]),
        "listeners": [listener],
        "hostnames": [host],
        "authentication": "none",
        "filters": [{"respond": {"status": 404, "body": "no route takes this request\n"}}],
    });
    serde_json::from_value(written).ok()
}

/// Name of the listener of a port.
pub(super) fn port_name(port: u16) -> String {
    part_name([port.to_string().as_str()])
}

/// Order of host names by how many hosts they stand for: an exact one is above all wildcards, a longer one above a shorter.
fn specificity(host: Option<&str>) -> (bool, usize) {
    host.map_or((false, 0), |host| (!host.starts_with("*."), host.len()))
}

/// Host names that two host names have in common; `None` stands for any host. The outer `None` means that there are none.
pub(super) fn common(one: Option<&str>, other: Option<&str>) -> Option<Option<String>> {
    match (one, other) {
        (None, None) => Some(None),
        (Some(host), None) | (None, Some(host)) => Some(Some(host.to_ascii_lowercase())),
        (Some(_), Some(_)) => intersection(one, other).map(Some),
    }
}

fn intersection(one: Option<&str>, other: Option<&str>) -> Option<String> {
    let (one, other) = (one?.to_ascii_lowercase(), other?.to_ascii_lowercase());
    // `*.example.com` stands for any number of labels.
    let covers = |wide: &str, narrow: &str| {
        wide == narrow
            || wide.strip_prefix('*').is_some_and(|suffix| {
                narrow.len() > suffix.len() && narrow.ends_with(suffix) && narrow != suffix.trim_start_matches('.')
            })
    };
    if covers(&one, &other) {
        Some(other)
    } else if covers(&other, &one) {
        Some(one)
    } else {
        None
    }
}

impl OpenListener {
    /// True if routes of a kind in a namespace may be attached to a listener of `gateway`.
    pub(super) fn allows(&self, input: &Input<'_>, gateway: &ObjectKey, kind: Kind, namespace: &str) -> bool {
        let from = &self.allowed.namespaces;
        let is_namespace = match from.from.as_deref().unwrap_or("Same") {
            "All" => true,
            "Same" => gateway.namespace == namespace,
            "Selector" => input.namespaces.get(namespace).is_some_and(|labels| from.selector.selects(labels)),
            _ => false,
        };
        is_namespace && self.kinds.iter().any(|one| one.kind == kind.as_str())
    }
}

/// Kinds of routes that a listener takes, of those that are served, and whether all that it names are.
fn kinds(allowed: &AllowedRoutes) -> (Vec<RouteKind>, Condition) {
    let served = |kind: Kind| RouteKind { group: Some(GATEWAY_GROUP.to_owned()), kind: kind.as_str().to_owned() };
    if allowed.kinds.is_empty() {
        return (SERVED_KINDS.into_iter().map(served).collect(), Condition::yes("ResolvedRefs", "ResolvedRefs"));
    }
    let is_served = |one: &RouteKind| {
        let group = one.group.as_deref().unwrap_or(GATEWAY_GROUP);
        SERVED_KINDS.into_iter().find(|kind| group == GATEWAY_GROUP && one.kind == kind.as_str())
    };
    let known: Vec<RouteKind> = allowed.kinds.iter().filter_map(is_served).map(served).collect();
    let condition = match allowed.kinds.iter().find(|one| is_served(one).is_none()) {
        None => Condition::yes("ResolvedRefs", "ResolvedRefs"),
        Some(one) => {
            let message = format!("routes of the kind {} are not supported; expected HTTPRoute or GRPCRoute", one.kind);
            Condition::no("ResolvedRefs", "InvalidRouteKinds", message)
        }
    };
    (known, condition)
}

/// Fault of the TLS of a listener.
enum Fault {
    Refs(Condition),
    Listener(Condition),
}

/// Certificates of a listener.
fn certificates(input: &Input<'_>, gateway: &ObjectKey, written: &GatewayListener) -> Result<Vec<PemPair>, Fault> {
    let unsupported = |message: &str| Fault::Listener(Condition::no("Accepted", "UnsupportedValue", message));
    let bad = |message: String| Fault::Refs(Condition::no("ResolvedRefs", "InvalidCertificateRef", message));
    let tls = written.tls.as_ref().ok_or_else(|| bad("`tls` is missing".to_owned()))?;
    if tls.mode.as_deref().unwrap_or("Terminate") != "Terminate" {
        return Err(unsupported("`tls.mode: Passthrough` is not supported"));
    }
    if tls.frontend_validation.is_some() {
        return Err(unsupported("`tls.frontendValidation` is not supported"));
    }
    if !tls.options.is_empty() {
        return Err(unsupported("`tls.options` is not supported"));
    }
    if tls.certificate_refs.is_empty() {
        return Err(bad("`tls.certificateRefs` names no secret".to_owned()));
    }
    tls.certificate_refs.iter().map(|reference| certificate(input, gateway, reference, &bad)).collect()
}

fn certificate(
    input: &Input<'_>,
    gateway: &ObjectKey,
    reference: &Reference,
    bad: &dyn Fn(String) -> Fault,
) -> Result<PemPair, Fault> {
    let (group, kind) = (reference.group.as_deref().unwrap_or_default(), reference.kind.as_deref().unwrap_or("Secret"));
    if !group.is_empty() || kind != "Secret" {
        return Err(bad(format!("`tls.certificateRefs` names a {kind}; expected a Secret")));
    }
    let namespace = reference.namespace.as_deref().unwrap_or(&gateway.namespace);
    let key = ObjectKey::new(namespace, &reference.name);
    let to = Referred { group, kind, namespace, name: &reference.name };
    if !input.may_refer(Kind::Gateway.as_str(), &gateway.namespace, &to) {
        let message =
            format!("no ReferenceGrant in {namespace} lets Gateways of {} use the secret {key}", gateway.namespace);
        return Err(Fault::Refs(Condition::no("ResolvedRefs", "RefNotPermitted", message)));
    }
    if !input.settings.tls_secrets {
        return Err(bad("secrets are not read: the configuration of the gateway lacks `tlsSecrets: true`".to_owned()));
    }
    let secret = input.objects.get(Kind::Secret, &key);
    let secret = secret.ok_or_else(|| bad(format!("there is no secret {key} of the type kubernetes.io/tls")))?;
    let data = |field: &str| -> Result<Arc<[u8]>, Fault> {
        let text = secret.pointer(&format!("/data/{field}")).and_then(Value::as_str);
        let bytes = text.and_then(|text| STANDARD.decode(text).ok());
        bytes.map(Into::into).ok_or_else(|| bad(format!("the secret {key} has no {field}")))
    };
    let name = format!("Secret {key}");
    let pair = PemPair { name, certificate: data("tls.crt")?, key: data("tls.key")? };
    check_pem(&pair).map_err(|e| bad(e.to_string()))?;
    Ok(pair)
}
