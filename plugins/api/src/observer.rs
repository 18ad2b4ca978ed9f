//! Hooks for one exchange, after a filter has let its request pass: parts of both bodies, the head of the answer, its events,
//! its end. A filter that follows nothing costs nothing here.

use std::time::Duration;

use http::StatusCode;

use crate::{Headers, Refusal, ResponseEvent};

/// Follows one exchange for a filter, which returns it by [`Flow::Observe`](crate::Flow::Observe). Sees what the gateway
/// hands on, once and in order, whatever attempts were needed for it. Nothing here may block.
///
/// An observer may be dropped before [`Self::on_end`]: where another route takes the request, or a connection is cut. Release
/// by `Drop` what it holds.
pub trait Observer: Send + Sync {
    /// Reads a part of the request's body before it goes to a server: the whole of a body that is held, else each part as it
    /// comes. A refusal ends the request; where the head of the answer is out, it breaks the answer off.
    ///
    /// # Errors
    ///
    /// The refusal.
    fn on_request_body(&mut self, _part: &[u8]) -> Result<(), Box<Refusal>> {
        Ok(())
    }
    /// Reads the status of the answer and changes its headers, after every [`Filter::on_response`](crate::Filter::on_response).
    fn on_response_head(&mut self, _status: StatusCode, _headers: &mut dyn Headers) {}
    /// Reads a part of the answer's body before it is written to the client. It has the `Content-Encoding` that the head says.
    fn on_response_body(&mut self, _part: &[u8]) {}
    /// True if the observer reads events; only then are event streams and lines split, and servers asked not to compress.
    fn reads_events(&self) -> bool {
        false
    }
    /// Reads an event of an event stream, or a line of JSON in lines (NDJSON), without `Content-Encoding`.
    fn on_response_event(&mut self, _event: &ResponseEvent<'_>) {}
    /// Reads how the exchange ended. Called once, last.
    fn on_end(&mut self, _end: &ExchangeEnd<'_>) {}
}

impl std::fmt::Debug for dyn Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

/// How an exchange ended, as the access log has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExchangeEnd<'a> {
    /// Status of the answer; 499 if the client left before there was one.
    pub status: u16,
    /// True if the answer was written to its end.
    pub is_whole: bool,
    /// Bytes of the request's body that were read.
    pub bytes_in: u64,
    /// Bytes of the body of the answer; without the error event that ends an answer which is cut.
    pub bytes_out: u64,
    /// Time from the arrival of the request to now.
    pub duration: Duration,
    /// Time from the arrival of the request to the first content of a model's answer.
    pub first_token: Option<Duration>,
    /// Backend that answered, or `builtin/MODEL`; empty if the gateway answered itself.
    pub served_by: &'a str,
    /// Address of the endpoint that answered.
    pub endpoint: Option<&'a str>,
    /// Attempts at endpoints.
    pub attempts: u32,
    /// Tokens read by a model, those of its cache included.
    pub prompt_tokens: Option<u64>,
    /// Those of them that the model had in its cache.
    pub cached_tokens: Option<u64>,
    /// Those of them that the model wrote to its cache.
    pub cache_written_tokens: Option<u64>,
    /// Those of them that were written to be kept for an hour.
    pub cache_written_1h_tokens: Option<u64>,
    /// Tokens written by a model.
    pub completion_tokens: Option<u64>,
    /// Model that answered, as its server names it.
    pub model: Option<&'a str>,
    /// Code of the error that the caller got.
    pub error_code: Option<&'a str>,
}
