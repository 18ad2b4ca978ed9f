//! Tests that start real servers or models, which want all the cores, or watch what a flood costs: they run one at a time
//! (`.config/nextest.toml`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

mod acme;
mod admin_api;
mod admin_login;
mod admission;
mod alerts;
mod anthropic;
mod apis;
mod attacks;
mod azure;
mod bodies;
mod bounds;
mod check;
mod clients;
mod descriptors;
mod dialects;
mod documents;
mod encoding;
mod extending;
mod faults;
mod fetched_lists;
mod floods;
mod frameworks;
mod framing;
mod grpc;
mod health;
mod inside;
mod kubernetes;
mod log_pipelines;
mod midflight;
mod mixed_routes;
mod model_aliases;
mod model_lists;
mod model_memory;
mod ollama;
mod open_inference;
mod overload;
mod pipelines;
mod probes;
mod process;
mod quality;
mod reference;
mod reranking;
mod responses;
mod saturation;
mod secrecy;
mod semantic_routing;
mod serving;
mod shared_cache;
mod shared_limits;
mod shared_rollouts;
mod spill;
mod telemetry;
mod tls;
mod tools;
mod translated_calls;
mod translation;
mod unread;
mod upgrade;
mod websocket;
mod websocket_attacks;
mod websocket_usage;
