//! Objects of the API server, by kind, namespace and name, with the fields that the translation reads. Fields are read as
//! leniently as the API server writes them: what is unknown is left alone, and what is there and cannot be served is kept as
//! JSON, so that it can be refused by its name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Group of the Gateway API.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// Group of inference pools.
pub const INFERENCE_GROUP: &str = "inference.networking.k8s.io";

/// Kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Class of gateways.
    GatewayClass,
    /// Gateway.
    Gateway,
    /// Routes of HTTP.
    HttpRoute,
    /// Routes of gRPC.
    GrpcRoute,
    /// Permission for references between namespaces.
    ReferenceGrant,
    /// Service.
    Service,
    /// Endpoints of a service.
    EndpointSlice,
    /// Namespace, for the labels by which listeners choose routes.
    Namespace,
    /// Certificates of listeners.
    Secret,
    /// Pool of model servers.
    InferencePool,
    /// Model server of a pool.
    Pod,
    /// TLS towards the servers of a service.
    BackendTlsPolicy,
    /// Authorities of such a policy.
    ConfigMap,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 13] = [
        Self::GatewayClass,
        Self::Gateway,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::ReferenceGrant,
        Self::Service,
        Self::EndpointSlice,
        Self::Namespace,
        Self::Secret,
        Self::InferencePool,
        Self::Pod,
        Self::BackendTlsPolicy,
        Self::ConfigMap,
    ];

    /// Group, version, kind and plural of the resource.
    pub fn resource(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::GatewayClass => (GATEWAY_GROUP, "v1", "GatewayClass", "gatewayclasses"),
            Self::Gateway => (GATEWAY_GROUP, "v1", "Gateway", "gateways"),
            Self::HttpRoute => (GATEWAY_GROUP, "v1", "HTTPRoute", "httproutes"),
            Self::GrpcRoute => (GATEWAY_GROUP, "v1", "GRPCRoute", "grpcroutes"),
            // In v1 since Gateway API 1.5; this version is served by all of them.
            Self::ReferenceGrant => (GATEWAY_GROUP, "v1beta1", "ReferenceGrant", "referencegrants"),
            Self::Service => ("", "v1", "Service", "services"),
            Self::EndpointSlice => ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
            Self::Namespace => ("", "v1", "Namespace", "namespaces"),
            Self::Secret => ("", "v1", "Secret", "secrets"),
            Self::InferencePool => (INFERENCE_GROUP, "v1", "InferencePool", "inferencepools"),
            Self::Pod => ("", "v1", "Pod", "pods"),
            Self::BackendTlsPolicy => (GATEWAY_GROUP, "v1", "BackendTLSPolicy", "backendtlspolicies"),
            Self::ConfigMap => ("", "v1", "ConfigMap", "configmaps"),
        }
    }

    /// Name of the kind, as manifests have it.
    pub fn as_str(self) -> &'static str {
        self.resource().2
    }

    /// True for kinds without namespaces.
    pub fn is_cluster_wide(self) -> bool {
        matches!(self, Self::GatewayClass | Self::Namespace)
    }
}

/// Namespace, empty for kinds without, and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// Key of an object.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Objects as they were read last.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    all: BTreeMap<(Kind, ObjectKey), Arc<Value>>,
}

impl Objects {
    /// Puts an object in the place of the one with its key. True if the translation may differ for it.
    pub fn insert(&mut self, kind: Kind, object: Value) -> bool {
        let Some(key) = key_of(&object) else { return false };
        let object = trimmed(kind, object);
        let before = self.all.insert((kind, key), Arc::new(object.clone()));
        before.is_none_or(|before| content(&before) != content(&object))
    }

    /// Removes an object; true if there was one.
    pub fn remove(&mut self, kind: Kind, key: &ObjectKey) -> bool {
        self.all.remove(&(kind, key.clone())).is_some()
    }

    /// Replaces all objects of a kind in one namespace, or in all. True if the translation may differ for it.
    pub fn replace(&mut self, kind: Kind, namespace: Option<&str>, objects: Vec<Value>) -> bool {
        let keys: BTreeSet<ObjectKey> = objects.iter().filter_map(key_of).collect();
        let is_gone = |(known, key): &(Kind, ObjectKey)| {
            *known == kind && namespace.is_none_or(|one| key.namespace == one) && !keys.contains(key)
        };
        let before = self.all.len();
        self.all.retain(|key, _| !is_gone(key));
        let mut is_other = self.all.len() != before;
        for object in objects {
            is_other |= self.insert(kind, object);
        }
        is_other
    }

    /// Number of the objects.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Objects of a kind in the order of their keys.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = (&ObjectKey, &Arc<Value>)> {
        let first = (kind, ObjectKey::new("", ""));
        self.all.range(first..).take_while(move |((known, _), _)| *known == kind).map(|((_, key), value)| (key, value))
    }

    /// Object of a kind.
    pub fn get(&self, kind: Kind, key: &ObjectKey) -> Option<&Arc<Value>> {
        self.all.get(&(kind, key.clone()))
    }

    /// Objects of a kind in the form that the translation reads, with the reason where one has another form.
    pub fn read<S: DeserializeOwned>(
        &self,
        kind: Kind,
    ) -> impl Iterator<Item = (&ObjectKey, Result<Object<S>, String>)> {
        self.of(kind).map(|(key, value)| (key, Object::deserialize(&**value).map_err(|e| e.to_string())))
    }
}

/// Object without the fields that nobody reads here: those that only the API server uses, and of kinds without a status of ours
/// all that changes without meaning.
pub(super) fn trimmed(kind: Kind, mut object: Value) -> Value {
    let has_status = matches!(
        kind,
        Kind::GatewayClass
            | Kind::Gateway
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::InferencePool
            | Kind::BackendTlsPolicy
    );
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| match key.as_str() {
            "managedFields" | "annotations" => false,
            "resourceVersion" => has_status,
            _ => true,
        });
    }
    let kept: &[&str] = match kind {
        Kind::Namespace => &["metadata"],
        Kind::Secret | Kind::ConfigMap => &["metadata", "data"],
        Kind::Service => &["metadata", "spec"],
        Kind::Pod => &["metadata", "status"],
        _ => return object,
    };
    if let Some(entries) = object.as_object_mut() {
        entries.retain(|key, _| kept.contains(&key.as_str()));
    }
    if let Some(data) = object.get_mut("data").and_then(Value::as_object_mut).filter(|_| kind == Kind::ConfigMap) {
        data.retain(|key, _| key == "ca.crt");
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut).filter(|_| kind == Kind::Pod) {
        status.retain(|key, _| matches!(key.as_str(), "podIP" | "conditions"));
        for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(entries) = condition.as_object_mut() {
                entries.retain(|key, _| matches!(key.as_str(), "type" | "status"));
            }
        }
    }
    object
}

/// Content of an object, without its version and, but for pods, its status.
fn content(object: &Value) -> Value {
    let mut object = object.clone();
    let is_pod = object.pointer("/status/podIP").is_some();
    if let Some(entries) = object.as_object_mut() {
        if !is_pod {
            entries.remove("status");
        }
        if let Some(metadata) = entries.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("resourceVersion");
        }
    }
    object
}

/// Key of an object that was read.
pub fn key_of(object: &Value) -> Option<ObjectKey> {
    let metadata = object.get("metadata")?;
    let text = |key: &str| metadata.get(key).and_then(Value::as_str);
    Some(ObjectKey::new(text("namespace").unwrap_or_default(), text("name")?))
}

/// Object with its content.
#[derive(Debug, Clone, Deserialize)]
pub struct Object<S> {
    /// Metadata.
    pub metadata: Metadata,
    /// Content.
    #[serde(default = "Option::default")]
    pub spec: Option<S>,
}

/// Metadata of an object.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Number of the content, which rises with each change of it.
    pub generation: i64,
    /// Time of creation, RFC 3339 in UTC: compared as text.
    pub creation_timestamp: String,
    /// Time since which the object is being deleted.
    pub deletion_timestamp: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Content of a `GatewayClass`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayClass {
    /// Name of the controller that serves it.
    pub controller_name: String,
    /// Parameters of the controller.
    #[serde(default)]
    pub parameters_ref: Option<Value>,
}

/// Content of a `Gateway`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// Name of its class.
    pub gateway_class_name: String,
    /// Listeners.
    pub listeners: Vec<GatewayListener>,
    /// Addresses that are asked for.
    #[serde(default)]
    pub addresses: Vec<Value>,
    /// TLS of clients and servers for all listeners.
    #[serde(default)]
    pub tls: Option<Value>,
    /// Listeners of other objects.
    #[serde(default)]
    pub allowed_listeners: Option<Value>,
}

/// Listener of a Gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayListener {
    /// Name, unique in its Gateway.
    pub name: String,
    /// Host name that requests must have; any when left out.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: String,
    /// TLS.
    #[serde(default)]
    pub tls: Option<GatewayTls>,
    /// Routes that may be attached.
    #[serde(default)]
    pub allowed_routes: AllowedRoutes,
}

/// TLS of a listener.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayTls {
    /// `Terminate` or `Passthrough`.
    pub mode: Option<String>,
    /// Secrets with certificates.
    pub certificate_refs: Vec<Reference>,
    /// Verification of clients.
    pub frontend_validation: Option<Value>,
    /// Settings of implementations.
    pub options: BTreeMap<String, String>,
}

/// Routes that may be attached to a listener.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AllowedRoutes {
    /// Namespaces.
    pub namespaces: RouteNamespaces,
    /// Kinds; those of the protocol when empty.
    pub kinds: Vec<RouteKind>,
}

/// Namespaces of routes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteNamespaces {
    /// `Same`, `All`, `Selector` or `None`.
    pub from: Option<String>,
    /// Selector of namespaces.
    pub selector: Selector,
}

/// Kind of routes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteKind {
    /// Group; the Gateway API's when left out.
    #[serde(default)]
    pub group: Option<String>,
    /// Kind.
    pub kind: String,
}

/// Selector of labels.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    /// Labels with values.
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    pub match_expressions: Vec<Requirement>,
}

/// Requirement on a label.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Requirement {
    /// Label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// Values.
    #[serde(default)]
    pub values: Vec<String>,
}

impl Selector {
    /// True if labels meet every requirement.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|one| {
                let value = labels.get(&one.key);
                match one.operator.as_str() {
                    "In" => value.is_some_and(|value| one.values.contains(value)),
                    "NotIn" => value.is_none_or(|value| !one.values.contains(value)),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
    }
}

/// Reference to an object.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    /// Group.
    #[serde(default)]
    pub group: Option<String>,
    /// Kind.
    #[serde(default)]
    pub kind: Option<String>,
    /// Namespace; that of the object with the reference when left out.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

/// Content of an `HTTPRoute` or a `GRPCRoute`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", bound = "R: DeserializeOwned")]
pub struct RouteSpec<R> {
    /// Gateways or their listeners.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Host names.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// Rules.
    #[serde(default = "Vec::new")]
    pub rules: Vec<R>,
}

/// Reference of a route to a Gateway.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Object.
    #[serde(flatten)]
    pub object: Reference,
    /// Name of a listener; all when left out.
    #[serde(default)]
    pub section_name: Option<String>,
    /// Port of listeners; all when left out.
    #[serde(default)]
    pub port: Option<u16>,
}

/// Rule of an `HTTPRoute`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRule {
    /// A request matches when one of these does.
    pub matches: Vec<HttpMatch>,
    /// Steps.
    pub filters: Vec<Value>,
    /// Targets.
    pub backend_refs: Vec<BackendReference>,
    /// Time limits.
    pub timeouts: HttpTimeouts,
    /// Retries (experimental).
    pub retry: Option<Value>,
    /// Stickiness (experimental).
    pub session_persistence: Option<Value>,
}

/// Time limits of a rule.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpTimeouts {
    /// Of the request.
    pub request: Option<String>,
    /// Of one attempt.
    pub backend_request: Option<String>,
}

/// Match of an `HTTPRoute`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    /// Path.
    pub path: Option<TypedValue>,
    /// Headers.
    pub headers: Vec<NamedValue>,
    /// Parameters of the query.
    pub query_params: Vec<NamedValue>,
    /// Method.
    pub method: Option<String>,
}

/// Value with the way in which it is compared.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TypedValue {
    /// Way of comparison.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Value.
    pub value: Option<String>,
}

/// Header or parameter.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedValue {
    /// Way of comparison.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// Value.
    #[serde(default)]
    pub value: String,
}

/// Target of a rule.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendReference {
    /// Object.
    #[serde(flatten)]
    pub object: Reference,
    /// Port of a service.
    #[serde(default)]
    pub port: Option<u16>,
    /// Share.
    #[serde(default)]
    pub weight: Option<u32>,
    /// Steps of this target alone.
    #[serde(default)]
    pub filters: Vec<Value>,
}

/// Rule of a `GRPCRoute`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRule {
    /// A request matches when one of these does.
    pub matches: Vec<GrpcMatch>,
    /// Steps.
    pub filters: Vec<Value>,
    /// Targets.
    pub backend_refs: Vec<BackendReference>,
    /// Stickiness (experimental).
    pub session_persistence: Option<Value>,
}

/// Match of a `GRPCRoute`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcMatch {
    /// Service and method.
    pub method: Option<GrpcMethod>,
    /// Headers.
    pub headers: Vec<NamedValue>,
}

/// Service and method of gRPC.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcMethod {
    /// `Exact` or `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Service.
    pub service: Option<String>,
    /// Method.
    pub method: Option<String>,
}

/// Content of a `ReferenceGrant`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReferenceGrant {
    /// Objects that may refer.
    pub from: Vec<GrantFrom>,
    /// Objects that may be referred to.
    pub to: Vec<GrantTo>,
}

/// Objects that may refer.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrantFrom {
    /// Group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
}

/// Objects that may be referred to.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrantTo {
    /// Group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name; all when left out.
    #[serde(default)]
    pub name: Option<String>,
}

/// Object that a `BackendTLSPolicy` is about.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTarget {
    /// Group.
    #[serde(default)]
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Name of a port; all when left out.
    #[serde(default)]
    pub section_name: Option<String>,
}

/// Verification of servers by a `BackendTLSPolicy`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyValidation {
    /// Objects with authorities.
    #[serde(default)]
    pub ca_certificate_refs: Vec<Reference>,
    /// `System` for the authorities of the system.
    #[serde(default, rename = "wellKnownCACertificates")]
    pub well_known_ca_certificates: Option<String>,
    /// Name that is asked for and that the certificate must have.
    pub hostname: String,
    /// Further names, of which the certificate must have one in place of it.
    #[serde(default)]
    pub subject_alt_names: Vec<Value>,
}

/// Content of a `Service`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Type, such as `ClusterIP`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

/// Port of a service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Name; empty for the only one.
    pub name: String,
    /// Number.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Option<String>,
    /// Protocol of the application.
    pub app_protocol: Option<String>,
}

/// `EndpointSlice`, which has no `spec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Metadata.
    pub metadata: Metadata,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: String,
    /// Endpoints; the API server writes null for none.
    pub endpoints: Option<Vec<SliceEndpoint>>,
    /// Ports.
    pub ports: Option<Vec<SlicePort>>,
}

/// Endpoint of a slice.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    /// Addresses, of which the first counts.
    pub addresses: Vec<String>,
    /// Conditions.
    pub conditions: SliceConditions,
}

/// Conditions of an endpoint.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceConditions {
    /// True if it takes requests; unknown counts as true.
    pub ready: Option<bool>,
}

/// Port of a slice.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlicePort {
    /// Name of the service's port.
    pub name: Option<String>,
    /// Number at the endpoints.
    pub port: Option<u16>,
}

/// Content of an `InferencePool`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InferencePool {
    /// Pods.
    pub selector: Selector,
    /// Ports of each pod, each an endpoint of its own.
    #[serde(default)]
    pub target_ports: Vec<TargetPort>,
    /// `http` or `kubernetes.io/h2c`.
    #[serde(default)]
    pub app_protocol: Option<String>,
    /// Server that picks the endpoints.
    #[serde(default)]
    pub endpoint_picker_ref: Option<EndpointPicker>,
}

/// Port of a pool.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct TargetPort {
    /// Number.
    pub number: u16,
}

/// Server that picks endpoints.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPicker {
    /// Group; that of services when left out.
    #[serde(default)]
    pub group: Option<String>,
    /// Kind; a service when left out.
    #[serde(default)]
    pub kind: Option<String>,
    /// Name of its service.
    pub name: String,
    /// Port of the service.
    #[serde(default)]
    pub port: Option<TargetPort>,
    /// `FailOpen` or `FailClose`.
    #[serde(default)]
    pub failure_mode: Option<String>,
}

/// `Pod`, of which the state counts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Metadata.
    pub metadata: Metadata,
    /// State.
    pub status: PodStatus,
}

/// State of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Address.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// Conditions.
    pub conditions: Vec<PodCondition>,
}

/// Condition of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PodCondition {
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}
