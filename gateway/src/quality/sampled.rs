//! Sample that is handed over for a look: a request with the beginning of its answer, and the counters of its route.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use http::HeaderValue;

use crate::coding::Coding;
use crate::protocol::Operation;
use crate::telemetry::Span;

/// Counters of a route, kept over reloads.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests handed over.
    pub sampled: AtomicU64,
    /// Requests that found no room.
    pub dropped: AtomicU64,
    /// Requests whose body or answer could not be read.
    pub unreadable: AtomicU64,
    /// Requests whose texts were kept.
    pub kept: AtomicU64,
    /// Prompts turned into embeddings.
    pub embedded: AtomicU64,
    /// Prompts without one: the model was busy, not loaded, or too many came.
    pub not_embedded: AtomicU64,
    /// Time that the model took, in microseconds.
    pub embedding_micros: AtomicU64,
}

/// Bytes that wait to be looked at, given back on drop.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) bytes: usize,
    pub(super) all: Arc<AtomicUsize>,
}

impl Waiting {
    /// Counts more bytes; false, and counts none, where all together would be more than `most`.
    pub(super) fn grow(&mut self, bytes: usize, most: usize) -> bool {
        let before = self.all.fetch_add(bytes, Ordering::Relaxed);
        let is_room = before.saturating_add(bytes) <= most;
        if is_room {
            self.bytes += bytes;
        } else {
            self.all.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_room
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Beginning of an answer, as the client gets it.
#[derive(Debug)]
pub struct AnswerBytes {
    /// Bytes of its body.
    pub bytes: Vec<u8>,
    /// True if there are more.
    pub is_cut: bool,
    /// Coding of the body.
    pub coding: Coding,
    /// Length of the JSON of an answer of the Open Inference Protocol.
    pub json: Option<HeaderValue>,
    /// True for an answer of success.
    pub(super) is_success: bool,
}

/// Request and answer that wait to be looked at.
pub(super) struct Sampled {
    /// Target that has answered.
    pub version: Box<str>,
    /// Number of the caller's consumer or address.
    pub caller: u64,
    /// Operation.
    pub operation: Operation,
    /// True for a gRPC call.
    pub is_grpc: bool,
    /// Body of the request; `None` for one that is too long.
    pub body: Option<Bytes>,
    /// Bytes of that body.
    pub body_bytes: u64,
    /// Length of the JSON of a call of the Open Inference Protocol.
    pub request_json: Option<HeaderValue>,
    /// Answer.
    pub answer: AnswerBytes,
    /// True if the answer reached the client to its end.
    pub is_whole: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer.
    pub completion_tokens: Option<u64>,
    /// Finish reason.
    pub finish: Option<String>,
    /// True if its texts may be kept.
    pub may_be_kept: bool,
    /// Span for what is found.
    pub span: Span,
    /// Time at which the exchange ended.
    pub ended: SystemTime,
}
