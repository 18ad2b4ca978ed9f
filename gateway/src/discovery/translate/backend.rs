//! Services and inference pools as backends. A backend has the name of its object, so that the state of its endpoints stays
//! as long as the object and their addresses do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde_json::{Value, json};
use spillway_config::schema::{Backend, BackendTls, Endpoint, FilterEntry};
use spillway_config::values::ServerUrl;

use super::matching::Unsupported;
use super::policy::Policies;
use super::{Condition, Input, PoolStatus, Referred, Translation, part_name};
use crate::discovery::objects::{
    EndpointPicker, EndpointSlice, INFERENCE_GROUP, InferencePool, Kind, Object, ObjectKey, Pod, Reference, Service,
    ServicePort,
};

/// Longest wait for a picker's word on a message: it may hold a request back while its servers are full.
const PICKER_TIMEOUT: &str = "10s";

/// Label of the slices of a service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Backends that routes refer to, each made once.
pub(super) struct Backends<'i> {
    input: &'i Input<'i>,
    /// Slices of each service.
    slices: BTreeMap<ObjectKey, Vec<EndpointSlice>>,
    /// Pods of each namespace; read for the first pool.
    pods: Option<BTreeMap<String, Vec<Pod>>>,
    made: BTreeMap<String, Backend>,
    pools: BTreeMap<ObjectKey, PoolStatus>,
    policies: Policies,
}

/// Backend that a route refers to.
pub(super) struct Target {
    pub(super) name: String,
    /// True for the backend of an inference pool.
    pub(super) is_pool: bool,
    /// Reason why nothing may be sent there: a policy of its TLS does not hold. The reference itself is sound.
    pub(super) closed: Option<Unsupported>,
    /// Endpoint picker of a pool.
    pub(super) picker: Option<Picker>,
}

/// Server that picks the endpoints of a pool.
pub(super) struct Picker {
    /// Pool and service, for messages.
    pub(super) name: String,
    /// Address of its first ready endpoint: pickers run as one that works and others that wait, and one that gets all requests
    /// knows of all.
    server: Option<SocketAddr>,
    /// True if it speaks gRPC without TLS.
    is_plain: bool,
    /// True if the gateway picks by itself while the picker fails.
    pub(super) is_open: bool,
}

impl Picker {
    /// Filter that asks the picker; `None` where the gateway picks by itself, since no picker is ready.
    pub(super) fn filter(&self) -> Option<FilterEntry> {
        let Some(server) = self.server else {
            let body = "the endpoint picker of this pool is not ready; try again\n";
            let answer = || FilterEntry { name: "respond".to_owned(), config: json!({"status": 503, "body": body}) };
            return (!self.is_open).then(answer);
        };
        let mut config = json!({
            "url": format!("{}://{server}", if self.is_plain { "grpc" } else { "grpcs" }),
            "requestBody": "fullDuplexStreamed",
            "responseBody": "fullDuplexStreamed",
            "timeout": PICKER_TIMEOUT,
            "onFailure": if self.is_open { "open" } else { "closed" },
            "picksEndpoints": true,
        });
        if let Some(config) = config.as_object_mut().filter(|_| !self.is_plain) {
            // Pickers sign their certificates themselves, and no object says whom to trust.
            config.insert("tls".to_owned(), json!({"insecureSkipVerify": true}));
        }
        Some(FilterEntry { name: "externalProcessing".to_owned(), config })
    }
}

/// Route that refers to a backend.
#[derive(Clone, Copy)]
pub(super) struct Referrer<'r> {
    pub(super) kind: Kind,
    pub(super) namespace: &'r str,
}

/// Reason of a reference to another namespace that nothing there permits.
pub(super) const NOT_PERMITTED: &str = "RefNotPermitted";

/// Group and kind of a reference; a service where it names none.
fn kind_of(object: &Reference) -> (&str, &str) {
    (object.group.as_deref().unwrap_or_default(), object.kind.as_deref().unwrap_or("Service"))
}

fn unresolved(reason: &'static str, message: impl Into<String>) -> Condition {
    Condition::no("ResolvedRefs", reason, message)
}

fn unsupported(service: &ObjectKey, port: u16, what: &str) -> Condition {
    unresolved("UnsupportedProtocol", format!("port {port} of service {service}: {what} is not supported"))
}

/// True if the gateway picks by itself while the picker fails.
fn is_open(picker: &EndpointPicker) -> bool {
    picker.failure_mode.as_deref() == Some("FailOpen")
}

impl<'i> Backends<'i> {
    pub(super) fn new(input: &'i Input<'i>) -> Self {
        let mut slices: BTreeMap<ObjectKey, Vec<EndpointSlice>> = BTreeMap::new();
        for (key, value) in input.objects.of(Kind::EndpointSlice) {
            let Ok(slice) = EndpointSlice::deserialize(&**value) else { continue };
            let Some(service) = slice.metadata.labels.get(SERVICE_LABEL) else { continue };
            slices.entry(ObjectKey::new(&key.namespace, service)).or_default().push(slice);
        }
        let pools = input.objects.read::<InferencePool>(Kind::InferencePool).filter_map(|(key, object)| {
            let Object { metadata, .. } = object.ok()?;
            Some((
                key.clone(),
                PoolStatus {
                    key: key.clone(),
                    generation: metadata.generation,
                    parents: BTreeSet::new(),
                    accepted: Condition::yes("Accepted", "Accepted"),
                    resolved: Condition::yes("ResolvedRefs", "ResolvedRefs"),
                },
            ))
        });
        let policies = Policies::read(input);
        Self { input, slices, pods: None, made: BTreeMap::new(), pools: pools.collect(), policies }
    }

    /// Backend of a reference, or the condition that says why there is none.
    pub(super) fn resolve(
        &mut self,
        from: Referrer<'_>,
        object: &Reference,
        port: Option<u16>,
    ) -> Result<Target, Condition> {
        let (group, kind) = kind_of(object);
        let namespace = object.namespace.as_deref().unwrap_or(from.namespace);
        let key = ObjectKey::new(namespace, &object.name);
        let to = Referred { group, kind, namespace, name: &object.name };
        let is_pool = match (group, kind) {
            ("", "Service") => false,
            (INFERENCE_GROUP, "InferencePool") => true,
            _ => {
                let message = format!("a {kind} of {group:?} is no target; expected a Service or an InferencePool");
                return Err(unresolved("InvalidKind", message));
            }
        };
        if !self.input.may_refer(from.kind.as_str(), from.namespace, &to) {
            let message = format!(
                "no ReferenceGrant in {namespace} lets {}s of {} refer to {kind} {key}",
                from.kind.as_str(),
                from.namespace
            );
            return Err(unresolved(NOT_PERMITTED, message));
        }
        if is_pool { self.pool(&key) } else { self.service(&key, port, from.kind == Kind::GrpcRoute) }
    }

    /// Port of a service that can be spoken to.
    fn service_port(&self, key: &ObjectKey, port: Option<u16>) -> Result<ServicePort, Condition> {
        let missing = |message: String| unresolved("BackendNotFound", message);
        let value =
            self.input.objects.get(Kind::Service, key).ok_or_else(|| missing(format!("there is no service {key}")))?;
        let object = Object::<Service>::deserialize(&**value).map_err(|e| missing(format!("service {key}: {e}")))?;
        let service = object.spec.unwrap_or_default();
        if service.kind.as_deref() == Some("ExternalName") {
            return Err(missing(format!("service {key} is of the type ExternalName, which is not supported")));
        }
        let number = port.ok_or_else(|| missing(format!("`port` of service {key} is missing")))?;
        let port = service.ports.into_iter().find(|port| port.port == number);
        let port = port.ok_or_else(|| missing(format!("service {key} has no port {number}")))?;
        match port.protocol.as_deref().unwrap_or("TCP") {
            "TCP" => Ok(port),
            other => Err(unsupported(key, number, other)),
        }
    }

    fn service(&mut self, key: &ObjectKey, port: Option<u16>, is_grpc: bool) -> Result<Target, Condition> {
        let port = self.service_port(key, port)?;
        let number = port.port;
        let has_policy = self.policies.has(key, &port.name);
        let http2 = match port.app_protocol.as_deref() {
            Some("kubernetes.io/h2c" | "grpc") => true,
            // Nothing else says which authorities to trust.
            Some(secure @ ("https" | "kubernetes.io/wss")) if !has_policy => {
                return Err(unsupported(key, number, secure));
            }
            // A server of gRPC speaks HTTP/2.
            _ => is_grpc,
        };
        let (number, suffix) = (number.to_string(), if http2 { Some("h2") } else { None });
        let name = part_name([key.namespace.as_str(), &key.name, &number].into_iter().chain(suffix));
        let tls = match self.policies.tls(key, &port.name) {
            Ok(tls) => tls,
            Err(why) => return Ok(Target { name, is_pool: false, closed: Some(why), picker: None }),
        };
        if !self.made.contains_key(&name) {
            let slices = self.slices.get(key).into_iter().flatten();
            let found = slices.flat_map(|slice| addresses_of(slice, &port.name)).collect();
            // The servers are the cluster's own, and callers have accounts there as without the gateway.
            let backend = backend(&name, found, tls, json!({"http2": http2, "callerCredentials": "pass"}));
            self.made.insert(name.clone(), backend.map_err(|why| unresolved("BackendNotFound", why))?);
        }
        Ok(Target { name, is_pool: false, closed: None, picker: None })
    }

    fn pool(&mut self, key: &ObjectKey) -> Result<Target, Condition> {
        let missing = |message: String| unresolved("BackendNotFound", message);
        if !self.input.settings.inference_pools {
            return Err(missing(
                "pools are not read: the configuration of the gateway lacks `inferencePools: true`".to_owned(),
            ));
        }
        let value = self.input.objects.get(Kind::InferencePool, key);
        let value = value.ok_or_else(|| missing(format!("there is no inference pool {key}")))?;
        let object = Object::<InferencePool>::deserialize(&**value).map_err(|e| missing(format!("pool {key}: {e}")))?;
        let pool = object.spec.ok_or_else(|| missing(format!("pool {key} has no content")))?;
        let mut picker = None;
        if let Some(written) = &pool.endpoint_picker_ref {
            match self.picker(key, written) {
                Ok(found) => picker = Some(found),
                Err(message) => {
                    if let Some(status) = self.pools.get_mut(key) {
                        status.resolved = Condition::no("ResolvedRefs", "InvalidExtensionRef", &message);
                    }
                    if !is_open(written) {
                        return Err(missing(message));
                    }
                }
            }
        }
        let name = part_name([key.namespace.as_str(), &key.name, "pool"]);
        if !self.made.contains_key(&name) {
            let found = self.pods_of(key, &pool);
            let http2 = pool.app_protocol.as_deref() == Some("kubernetes.io/h2c");
            let backend = backend(&name, found, None, json!({"protocol": "openai", "http2": http2}));
            self.made.insert(name.clone(), backend.map_err(missing)?);
        }
        // A policy about a pool is refused, and must not be passed over.
        let is_closed = self.policies.is_about(INFERENCE_GROUP, "InferencePool", key);
        let closed = is_closed.then(|| format!("a BackendTLSPolicy is about pool {key}, which is not supported"));
        Ok(Target { name, is_pool: true, closed, picker })
    }

    /// Picker of a pool, or the reason why it cannot be asked.
    fn picker(&self, pool: &ObjectKey, written: &EndpointPicker) -> Result<Picker, String> {
        let (group, kind) =
            (written.group.as_deref().unwrap_or_default(), written.kind.as_deref().unwrap_or("Service"));
        if !(group.is_empty() && kind == "Service") {
            return Err(format!("`endpointPickerRef` of pool {pool} names a {kind} of {group:?}; expected a Service"));
        }
        let key = ObjectKey::new(&pool.namespace, &written.name);
        let port = self.service_port(&key, written.port.map(|port| port.number));
        let port = port.map_err(|why| format!("the endpoint picker of pool {pool}: {}", why.message))?;
        if self.policies.has(&key, &port.name) {
            return Err(format!(
                "the endpoint picker of pool {pool}: a BackendTLSPolicy is about service {key}, and is not supported for pickers"
            ));
        }
        let slices = self.slices.get(&key).into_iter().flatten();
        let ready: BTreeSet<_> = slices.flat_map(|slice| addresses_of(slice, &port.name)).collect();
        Ok(Picker {
            name: format!("the endpoint picker {key} of pool {pool}"),
            server: ready.first().map(|(address, port)| SocketAddr::new(*address, *port)),
            is_plain: port.app_protocol.as_deref() == Some("kubernetes.io/h2c"),
            is_open: is_open(written),
        })
    }

    /// Endpoints of a pool: each port of each ready pod that its selector selects.
    fn pods_of(&mut self, key: &ObjectKey, pool: &InferencePool) -> BTreeSet<(IpAddr, u16)> {
        let objects = self.input.objects;
        let pods = self.pods.get_or_insert_with(|| {
            let mut all: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
            for (key, value) in objects.of(Kind::Pod) {
                if let Ok(pod) = Pod::deserialize(&**value) {
                    all.entry(key.namespace.clone()).or_default().push(pod);
                }
            }
            all
        });
        let of_namespace = pods.get(&key.namespace).into_iter().flatten();
        let is_ready = |pod: &&Pod| {
            let ready = |one: &crate::discovery::objects::PodCondition| one.kind == "Ready" && one.status == "True";
            pod.metadata.deletion_timestamp.is_none() && pod.status.conditions.iter().any(ready)
        };
        let selected = of_namespace.filter(|pod| pool.selector.selects(&pod.metadata.labels)).filter(is_ready);
        let addresses = selected.filter_map(|pod| pod.status.pod_ip.as_ref()?.parse::<IpAddr>().ok());
        addresses.flat_map(|address| pool.target_ports.iter().map(move |port| (address, port.number))).collect()
    }

    /// Notes that a route of a Gateway uses the object that it refers to.
    pub(super) fn use_object(&mut self, from: Referrer<'_>, object: &Reference, gateway: &ObjectKey) {
        let (group, kind) = kind_of(object);
        let key = ObjectKey::new(object.namespace.as_deref().unwrap_or(from.namespace), &object.name);
        self.policies.use_object((group, kind), &key, gateway);
        if (group, kind) == (INFERENCE_GROUP, "InferencePool")
            && let Some(status) = self.pools.get_mut(&key)
        {
            status.parents.insert(gateway.clone());
        }
    }

    /// Writes the backends and the statuses of the pools.
    pub(super) fn finish(self, out: &mut Translation) {
        out.further.backends.extend(self.made.into_values());
        out.statuses.pools.extend(self.pools.into_values());
        self.policies.finish(out);
    }
}

/// Ready addresses of a slice for a port of its service.
fn addresses_of<'s>(slice: &'s EndpointSlice, port: &'s str) -> impl Iterator<Item = (IpAddr, u16)> + 's {
    let number = slice.ports.iter().flatten().find(|one| one.name.as_deref().unwrap_or_default() == port);
    let number = number.and_then(|port| port.port);
    let ready = slice.endpoints.iter().flatten().filter(|endpoint| endpoint.conditions.ready != Some(false));
    ready.filter_map(move |endpoint| Some((endpoint.addresses.first()?.parse().ok()?, number?)))
}

/// Backend with endpoints, TLS where that is spoken, and some further settings.
fn backend(
    name: &str,
    endpoints: BTreeSet<(IpAddr, u16)>,
    tls: Option<&BackendTls>,
    settings: Value,
) -> Result<Backend, String> {
    let mut written = json!({"name": name});
    if let (Some(written), Value::Object(settings)) = (written.as_object_mut(), settings) {
        written.extend(settings);
    }
    let mut backend: Backend = serde_json::from_value(written).map_err(|e| e.to_string())?;
    let endpoint = |(address, port): (IpAddr, u16)| Endpoint {
        url: ServerUrl { https: tls.is_some(), host: address.to_string(), port },
        weight: 1,
        priority: 0,
    };
    backend.endpoints = endpoints.into_iter().map(endpoint).collect();
    backend.tls = tls.cloned().unwrap_or_default();
    backend.discovered = true;
    Ok(backend)
}
