//! Which endpoint of a backend takes a request: endpoints with their state, the policies, the active health checks.
//! It opens no connection for a request and knows no route; it takes a slot and gives an endpoint.
//! Its inputs are the compiled backends of a snapshot; endpoint state outlives snapshots.

mod endpoint;
mod health;
mod policy;

pub use endpoint::{Endpoint, EndpointKey, EndpointState, Endpoints, Slot, now_millis};
pub use health::{HealthSupervisor, Probe};
pub use policy::{LeastRequest, PickContext, Policy, RoundRobin};
