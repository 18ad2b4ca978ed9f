//! Refusal of a request: the reason, in terms that every API can express. The gateway renders it.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;

/// Class of an error, which each API names in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is invalid.
    InvalidRequest,
    /// The caller is not identified.
    Authentication,
    /// The caller lacks permission.
    Permission,
    /// The resource does not exist.
    NotFound,
    /// Too many requests of this caller.
    RateLimited,
    /// No capacity, for any caller.
    Overloaded,
    /// A server failed.
    Upstream,
    /// A time limit was exceeded.
    Timeout,
    /// The gateway failed.
    Internal,
}

/// Refusal of a request.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// Class of the error.
    pub kind: ErrorKind,
    /// Machine-readable code, such as `invalid_api_key`.
    pub code: &'static str,
    /// Message for the caller: the mistake, and the remedy.
    pub message: Cow<'static, str>,
    /// Invalid field of the request.
    pub param: Option<Cow<'static, str>>,
    /// Delay after which a retry may succeed.
    pub retry_after: Option<Duration>,
    /// Codings in which the body would be accepted, for `Accept-Encoding` of a 415 (RFC 9110, 15.5.16).
    pub accept_encoding: Option<&'static str>,
    /// `WWW-Authenticate` of a 401 (RFC 9110, 11.6.1); that of keys and tokens (`Bearer`) when left out.
    pub challenge: Option<Box<str>>,
}

impl Refusal {
    /// A refusal without field and delay.
    pub fn new(status: StatusCode, kind: ErrorKind, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            kind,
            code,
            message: message.into(),
            param: None,
            retry_after: None,
            accept_encoding: None,
            challenge: None,
        }
    }
    /// A 400 for an invalid request.
    pub fn invalid(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::InvalidRequest, code, message)
    }
    /// Names the invalid field.
    #[must_use]
    pub fn param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }
    /// Names the codings in which the body would be accepted.
    #[must_use]
    pub fn accept_encoding(mut self, codings: &'static str) -> Self {
        self.accept_encoding = Some(codings);
        self
    }
    /// Names the scheme by which the caller may identify itself.
    #[must_use]
    pub fn challenge(mut self, challenge: impl Into<Box<str>>) -> Self {
        self.challenge = Some(challenge.into());
        self
    }
    /// Sets the delay after which a retry may succeed.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}
