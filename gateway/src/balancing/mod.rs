//! Choice of an endpoint of a backend: endpoints with their state, policies, signals of saturation, outlier detection,
//! and the tasks that check and scrape endpoints and resolve their names.
//!
//! The room acquires a slot and returns its endpoint. It opens no connection for a request and knows no route. Inputs are
//! the compiled backends of a snapshot; the state of endpoints outlives snapshots.

mod blueprint;
mod callers;
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

pub use blueprint::{Addresses, Blueprint, ConnectOptions};
pub use dns::DnsResolver;
pub use endpoint::{
    Closed, Endpoint, EndpointFacts, EndpointState, Endpoints, LastError, RoomListener, Siblings, Slot,
};
pub use health::ServedModels;
pub use latency::Class;
pub use outlier::{Detector, Verdict};
pub use policy::{
    Hash, LeastRequest, PeakEwma, PickContext, Policy, RoundRobin, ShortestQueue, hash_key, policy as make_policy, unit,
};
pub use resolve::{AddressError, Resolve, ResolveError, ResolvedAddresses};
pub(crate) use resolve::{addresses_by_host, report_unresolved};
pub use set::{Balancer, EndpointSet, PickInputs, PickedEndpoint, UnresolvedEndpoint};
pub use signal::{LoadReport, Reason, SaturationSignal, SlotLimit, signals};
pub use supervisor::{BackgroundTasks, Supervisor};
pub use watch::RecurringCheck;
