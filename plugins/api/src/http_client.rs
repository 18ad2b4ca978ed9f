//! Calls that a filter makes to other servers. The gateway gives the client, so that a filter knows no runtime.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

/// A call that was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HttpError(pub String);

/// A call that runs.
pub type Call = Pin<Box<dyn Future<Output = Result<http::Response<Bytes>, HttpError>> + Send>>;

/// Makes calls.
pub trait HttpClient: Send + Sync {
    /// Does what the first call would have to do, such as reading certificates, so that it is not done within its time.
    /// Called when a configuration that will make calls is compiled.
    fn prepare(&self) {}
    /// Sends a request and gives the whole answer, of at most 64 KiB, within `timeout`. Dropping the call cancels it.
    fn call(&self, request: http::Request<Bytes>, timeout: Duration) -> Call;
}

/// Answers no call; for checks and tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHttp;

impl HttpClient for NoHttp {
    fn call(&self, _: http::Request<Bytes>, _: Duration) -> Call {
        Box::pin(async { Err(HttpError("there is no network here".to_owned())) })
    }
}
