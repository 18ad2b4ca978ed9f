//! Foundations of the end-to-end tests: the built gateway as a process of its own, and real llama.cpp servers.
//! Scripted upstreams produce faults that no real server has on demand, and an HTTP client sees every byte.
//! Everything listens on free ports of loopback and ends with the test.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that fails should stop where it fails"
)]

mod client;
mod cluster;
mod coding;
mod collector;
mod countries;
mod cross_encoder;
mod dns;
mod encoder_folder;
mod frames;
mod gateway;
mod issuer;
mod models;
mod pages;
mod pebble;
mod planted;
mod ports;
mod programs;
mod raw;
mod reference;
mod scripted;
mod secure;
mod sockets;
mod upstream;
mod weather;
mod word_classifier;

pub use client::{Answer, Client, NoAnswer, Stream};
pub use cluster::{Cluster, own_address};
pub use coding::{decoded, encoded};
pub use collector::{Collector, Logged, span_attribute};
pub use countries::write_countries;
pub use cross_encoder::CrossEncoder;
pub use dns::{Dns, Says};
pub use frames::{Frame, Frames, frame};
pub use gateway::{Gateway, binary, example_binary, whole};
pub use issuer::{Issuer, IssuerKey};
pub use models::{TEMPLATE_WITH_TOOLS, with_template};
pub use pages::{Block, Page, commands, missing, pages};
pub use pebble::Pebble;
pub use planted::{Planted, Secret, Sighting};
pub use ports::free_port;
pub use programs::{
    LlamaServer, PathReader, PythonServer, Redis, faketime, jaeger, minilm, model, promtool, python, repository, script,
};
pub use raw::{head_of_a_request, raw};
pub use reference::{
    BACKENDS, Call, Example, Family, Fate, Kind, Operation, Sample, calls, check_tests, examples, families, family_of,
    operations, reference, restarts, series_of_query,
};
pub use scripted::{asked, claude, event, gpt, in_bits};
pub use secure::{Authority, Made, Secure, http2_over, whole as whole_answer};
pub use sockets::{CLOSE, KEY, RawSocket, SocketFrame, SocketServer, TEXT, opening, socket_frame, switching};
pub use upstream::{Reply, Seen, Upstream, digest, reply, streamed};
pub use weather::{weather_by_chat, weather_by_messages};
pub use word_classifier::word_classifier;

use std::time::Duration;

/// Module for the filter `wasm` that does nothing.
pub fn plain_module() -> Vec<u8> {
    let text = "(module (memory (export \"memory\") 1) (func (export \"proxy_abi_version_0_2_1\"))
        (func (export \"malloc\") (param i32) (result i32) (i32.const 0)))";
    wat::parse_str(text).unwrap()
}

/// Creates a key with `spillway key new`; returns the key and its digest.
pub fn new_key() -> (String, String) {
    let out = std::process::Command::new(binary()).args(["key", "new"]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    (field("key:"), field("sha256:"))
}

/// Longest wait for something that will happen: a bound for a hang, never a measurement.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `ready` returns a value.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ready: impl FnMut() -> F) -> T {
    let started = std::time::Instant::now();
    loop {
        if let Some(value) = ready().await {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: did not happen within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
