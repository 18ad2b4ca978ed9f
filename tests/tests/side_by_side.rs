//! Tests before scripted servers, which mostly wait: they run side by side (`.config/nextest.toml`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

mod answers;
mod balancing;
mod batches;
mod caching;
mod callers;
mod charging;
mod classifying;
mod compressing;
mod costs;
mod credentials;
mod deadlines;
mod edges;
mod expressions;
mod external_processing;
mod failures;
mod feedback;
mod gpus;
mod guarding;
mod http2;
mod keys;
mod limits;
mod logins;
mod model_names;
mod own_answers;
mod paths;
mod prompt_limits;
mod prompt_signals;
mod prompting;
mod proxying;
mod public_location;
mod reload;
mod request_fields;
mod rollout_commands;
mod rollouts;
mod smaller_operations;
mod trailers;
mod transforming;
mod usage;
mod validating;
mod wasm;
