//! A request that ends early: why, in words that every API shape can carry. The gateway renders it.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;

/// The class of an error, which each API shape names in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request cannot be served as it is.
    InvalidRequest,
    /// Who calls is not known.
    Authentication,
    /// The caller may not.
    Permission,
    /// There is no such thing.
    NotFound,
    /// Too many requests of this caller.
    RateLimited,
    /// No room, for any caller.
    Overloaded,
    /// Something upstream failed.
    Upstream,
    /// Something took too long.
    Timeout,
    /// A fault of the gateway.
    Internal,
}

/// A request that ends here.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// Class of the error.
    pub kind: ErrorKind,
    /// Machine-readable code, such as `invalid_api_key`.
    pub code: &'static str,
    /// What is wrong and what to do, for the caller.
    pub message: Cow<'static, str>,
    /// The field of the request that is at fault.
    pub param: Option<Cow<'static, str>>,
    /// When trying again may help.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal without field and time.
    pub fn new(status: StatusCode, kind: ErrorKind, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, kind, code, message: message.into(), param: None, retry_after: None }
    }
    /// A 400 for a request that cannot be served as it is.
    pub fn invalid(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::InvalidRequest, code, message)
    }
    /// Names the field at fault.
    #[must_use]
    pub fn param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }
    /// Says when trying again may help.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}
