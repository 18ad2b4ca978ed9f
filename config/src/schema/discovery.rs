//! `discovery`: sources of listeners, routes and endpoints beside the file.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, FilePath, HostAddress};

/// Sources of listeners, routes and endpoints beside this file. Cannot be changed while the gateway runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Discovery {
    /// API server of a Kubernetes cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
}

/// Kubernetes as a source: the Gateway API (`GatewayClass`, `Gateway`, `HTTPRoute`, `GRPCRoute`, `ReferenceGrant`,
/// `BackendTLSPolicy`), services with their endpoints, and inference pools. Each listener of a Gateway becomes a listener that serves the routes attached to it
/// and none of this file. An object that cannot be served is left out, and its status says why. The API server is found by
/// `kubeconfig`, else as in a pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubernetes {
    /// Name of the `GatewayClass` whose Gateways are served. Its `controllerName` must be `spillway.dev/gateway`.
    pub gateway_class: String,
    /// Namespaces that are read; all when left out, which needs a role for the whole cluster.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// Reads inference pools (`InferencePool` of `inference.networking.k8s.io/v1`) and the pods that they select.
    #[serde(default)]
    pub inference_pools: bool,
    /// Reads secrets of the type `kubernetes.io/tls`, for listeners with `protocol: HTTPS`. Without it such listeners are refused,
    /// and the gateway needs no right to read secrets.
    #[serde(default)]
    pub tls_secrets: bool,
    /// Reads ConfigMaps, for the authorities that a `BackendTLSPolicy` names. Without it requests for services with such a policy are
    /// refused, unless it names the authorities of the system, and the gateway needs no right to read ConfigMaps.
    #[serde(default)]
    pub ca_config_maps: bool,
    /// Model or backend of this file that answers requests to an inference pool without room; such requests are refused when left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spill_to: Option<String>,
    /// IP address on which listeners of Gateways listen; `0.0.0.0` when left out.
    #[serde(default = "Kubernetes::any_address")]
    pub address: HostAddress,
    /// Addresses under which clients reach the gateway, IP addresses or host names, written to the status of Gateways. None when
    /// left out.
    #[serde(default)]
    pub published_addresses: Vec<String>,
    /// File with the address of the API server and credentials, as `kubectl` has it. In a pod its service account is used when
    /// left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<FilePath>,
    /// Election of the replica that writes statuses.
    #[serde(default)]
    pub leader_election: LeaderElection,
    /// Shortest time between two changes that objects make: a rollout changes endpoints many times within a second.
    #[serde(default = "Kubernetes::default_interval")]
    pub min_interval: Duration,
    /// Most objects that are kept, all kinds together. While there are more, the last configuration that was read in full is
    /// kept.
    #[serde(default = "Kubernetes::default_objects")]
    pub max_objects: NonZeroU32,
}

impl Kubernetes {
    fn any_address() -> HostAddress {
        HostAddress(Ipv4Addr::UNSPECIFIED.into())
    }

    fn default_interval() -> Duration {
        Duration::millis(200)
    }

    fn default_objects() -> NonZeroU32 {
        NonZeroU32::MIN.saturating_add(49_999)
    }
}

/// Election of the replica that writes statuses, by a `Lease`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LeaderElection {
    /// Namespace of the lease; that of the pod when left out, or `default` outside of a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the lease. Gateways with one name write the statuses of one class.
    pub name: String,
    /// Time after which another replica writes statuses, once the last one is silent. The lease is renewed after a third of it.
    pub duration: Duration,
}

impl Default for LeaderElection {
    fn default() -> Self {
        Self { namespace: None, name: "spillway".to_owned(), duration: Duration::seconds(15) }
    }
}
