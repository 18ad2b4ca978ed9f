//! HTTP calls of a filter to other servers. The gateway provides the client, so that a filter knows no runtime.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

/// Error of a call without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HttpError(pub String);

/// A pending call.
pub type Call = Pin<Box<dyn Future<Output = Result<http::Response<Bytes>, HttpError>> + Send>>;

/// Client of a filter's calls.
pub trait HttpClient: Send + Sync {
    /// Prepares the first call, for example by reading certificates, so that this does not count against its timeout.
    /// Called when a configuration that will make calls is compiled.
    fn prepare(&self) {}
    /// Sends a request and returns the whole answer, of at most 64 KiB, within `timeout`. Dropping the call cancels
    /// it.
    fn call(&self, request: http::Request<Bytes>, timeout: Duration) -> Call;
}

/// Client whose calls always fail; for checks and tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHttp;

impl HttpClient for NoHttp {
    fn call(&self, _: http::Request<Bytes>, _: Duration) -> Call {
        Box::pin(async { Err(HttpError("calls are disabled here".to_owned())) })
    }
}
