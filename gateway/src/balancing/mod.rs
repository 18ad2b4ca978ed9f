//! Which endpoint of a backend takes a request: endpoints with their state, the policies, the evidence of saturation, the
//! judgement of answers, and the tasks that ask endpoints how they are.
//! It opens no connection for a request and knows no route; it takes a slot and gives an endpoint.
//! Its inputs are the compiled backends of a snapshot; endpoint state outlives snapshots.

mod blueprint;
mod dns;
mod endpoint;
mod health;
mod latency;
pub mod orca;
mod outlier;
mod policy;
mod resolve;
mod set;
mod signal;
mod supervisor;
#[cfg(test)]
pub(crate) mod tests;
mod watch;

pub use blueprint::{Addresses, Blueprint, Way};
pub use dns::DnsResolver;
pub use endpoint::{Closed, Endpoint, EndpointFacts, EndpointState, Endpoints, RoomListener, Siblings, Slot};
pub use latency::Class;
pub use outlier::{Detector, Verdict};
pub use policy::{
    Hash, LeastRequest, PeakEwma, PickContext, Policy, RoundRobin, ShortestQueue, hash_key, policy as make_policy,
};
pub(crate) use resolve::addresses;
pub use resolve::{Resolve, Resolved};
pub use set::{Ask, Balancer, EndpointSet, Taken};
pub use signal::{LoadReport, Reason, Room, SaturationSignal, signals};
pub use supervisor::{BackgroundTasks, Supervisor};
pub use watch::Watch;
