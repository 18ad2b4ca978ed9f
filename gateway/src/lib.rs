//! Spillway: a programmable reverse proxy and inference gateway that answers from a model of its own when its backends
//! are full. `pipeline` shows the way of a request, `server` the life of the process, `reload` the way of an edit.

pub mod admin;
pub mod admission;
pub mod audit;
pub mod balancing;
mod builder;
pub mod builtin;
pub mod cli;
pub mod clock;
pub mod coding;
pub mod commit_steps;
pub mod connect;
pub mod credentials;
pub mod descriptors;
pub mod downstream;
pub mod exchange;
pub mod framing;
pub mod gateway;
pub mod http_client;
pub mod identity;
pub mod limits;
pub mod listener;
pub mod load;
pub mod memory;
pub mod message;
pub mod off_loop;
pub mod pipeline;
pub mod protocol;
pub mod queueing;
pub mod reload;
pub mod routing;
pub mod server;
pub mod signals;
pub mod snapshot;
pub mod telemetry;
pub mod timer;
pub mod tls;
pub mod topology;
pub mod tunnel;
pub mod upstream;
pub mod wire;
pub mod workers;

pub use builder::Builder;
