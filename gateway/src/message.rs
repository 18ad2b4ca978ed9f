//! Heads of requests and answers, as all rooms see them, whatever the version of HTTP.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri, Version};
use pingora::http::RequestHeader;

use spillway_filter::{FieldName, Fields};

/// Error of a name or value that no header can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a header has a name or value with bytes that HTTP does not allow")]
pub struct InvalidHeader;

/// Fields that describe the bytes of a body, which are others in another coding.
static OF_THE_BYTES: [HeaderName; 8] = [
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::ETAG,
    header::ACCEPT_RANGES,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

/// Removes the fields that describe the bytes of a body from its head.
pub fn without_coding(head: &mut ResponseHead) {
    for name in &OF_THE_BYTES {
        head.remove_header(name);
    }
}

fn field(
    name: impl TryInto<HeaderName>,
    value: impl TryInto<HeaderValue>,
) -> Result<(HeaderName, HeaderValue), InvalidHeader> {
    Ok((name.try_into().map_err(|_| InvalidHeader)?, value.try_into().map_err(|_| InvalidHeader)?))
}

/// Methods that both heads have.
macro_rules! header_methods {
    () => {
        /// Sets a header in place of all of this name.
        pub fn insert_header(
            &mut self,
            name: impl TryInto<HeaderName>,
            value: impl TryInto<HeaderValue>,
        ) -> Result<(), InvalidHeader> {
            let (name, value) = field(name, value)?;
            self.headers.insert(name, value);
            Ok(())
        }

        /// Adds a header to those of this name.
        pub fn append_header(
            &mut self,
            name: impl TryInto<HeaderName>,
            value: impl TryInto<HeaderValue>,
        ) -> Result<(), InvalidHeader> {
            let (name, value) = field(name, value)?;
            self.headers.append(name, value);
            Ok(())
        }

        /// Removes all headers of this name, and returns the first.
        pub fn remove_header(&mut self, name: impl FieldName) -> Option<HeaderValue> {
            self.headers.remove(name)
        }
    };
}

/// Head of a request.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// Method.
    pub method: Method,
    /// Target; of a target with scheme and host only its path, and `/` for one that is no path at all.
    pub uri: Uri,
    /// Version of HTTP, which of a request over HTTP/2 is 2.
    pub version: Version,
    /// Headers.
    pub headers: Fields,
    /// Target as it came, where `uri` does not have its bytes.
    raw_target: Option<Bytes>,
}

impl RequestHead {
    /// Head with a path as its target.
    pub fn new(method: Method, target: PathAndQuery, headers: impl Into<Fields>) -> Self {
        let headers = headers.into();
        Self { method, uri: Uri::from(target), version: Version::HTTP_11, headers, raw_target: None }
    }

    /// Head with a target of any form, whose bytes are kept (RFC 9112, 3.2).
    pub fn with_target(method: Method, target: &[u8], headers: impl Into<Fields>) -> pingora::Result<Self> {
        let headers = headers.into();
        // Its reading of the forms is Pingora's, which leaves the authority to its caller.
        let parsed = RequestHeader::build_no_case(method.clone(), target, Some(0))?;
        // Its URI has no fragment: of a path the rest is one, of another form nothing that could pass for it.
        let raw = if target.starts_with(b"/") { parsed.raw_path() } else { target };
        let is_of_uri = parsed.uri.path_and_query().is_some_and(|path| path.as_str().as_bytes() == raw);
        let raw_target = (!is_of_uri).then(|| Bytes::copy_from_slice(raw));
        Ok(Self { method, uri: parsed.uri.clone(), version: Version::HTTP_11, headers, raw_target })
    }

    /// Copy of the request with other headers.
    #[must_use]
    pub fn with_headers(&self, headers: Fields) -> Self {
        let Self { method, uri, version, raw_target, .. } = self;
        Self { method: method.clone(), uri: uri.clone(), version: *version, headers, raw_target: raw_target.clone() }
    }

    /// Target as it came.
    pub fn raw_path(&self) -> &[u8] {
        match &self.raw_target {
            Some(raw) => raw,
            None => self.uri.path_and_query().map_or(b"/", |target| target.as_str().as_bytes()),
        }
    }

    /// True if the target as it came is UTF-8.
    pub fn raw_path_is_utf8(&self) -> bool {
        self.raw_target.as_ref().is_none_or(|raw| std::str::from_utf8(raw).is_ok())
    }

    /// Sets the target.
    pub fn set_uri(&mut self, uri: Uri) {
        self.uri = uri;
        self.raw_target = None;
    }

    header_methods!();
}

impl From<http::request::Parts> for RequestHead {
    fn from(parts: http::request::Parts) -> Self {
        let http::request::Parts { method, uri, version, headers, .. } = parts;
        Self { method, uri, version, headers: headers.into(), raw_target: None }
    }
}

/// Head of an answer.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// Status.
    pub status: StatusCode,
    /// Version of HTTP.
    pub version: Version,
    /// Headers.
    pub headers: Fields,
    /// Reason phrase, where it is not the usual one.
    reason: Option<Box<str>>,
}

impl ResponseHead {
    /// Head with this status and room for some headers.
    pub fn new(status: StatusCode, headers: usize) -> Self {
        let headers = Fields::with_capacity(headers);
        Self { status, version: Version::HTTP_11, headers, reason: None }
    }

    /// Head as it was read, with its reason phrase where that is not the usual one.
    pub fn read(status: StatusCode, version: Version, headers: Fields, reason: Option<&str>) -> Self {
        let reason = reason.filter(|reason| status.canonical_reason() != Some(*reason)).map(Into::into);
        Self { status, version, headers, reason }
    }

    /// Sets the reason phrase; `None` for the usual one.
    pub fn set_reason(&mut self, reason: Option<&str>) {
        self.reason = reason.map(Into::into);
    }

    /// Reason phrase.
    pub fn reason(&self) -> &str {
        self.reason.as_deref().or(self.status.canonical_reason()).unwrap_or_default()
    }

    header_methods!();
}

impl From<http::response::Parts> for ResponseHead {
    fn from(parts: http::response::Parts) -> Self {
        let http::response::Parts { status, version, headers, .. } = parts;
        Self { status, version, headers: headers.into(), reason: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_keeps_the_bytes_that_it_came_with() {
        for (target, path) in
            [("/a?b=c", "/a?b=c"), ("http://a.test/b?c", "/b?c"), ("*", "*"), ("a.test:443", "/"), ("/a|b", "/a|b")]
        {
            let head = RequestHead::with_target(Method::GET, target.as_bytes(), Fields::default()).unwrap();
            assert_eq!((head.raw_path(), head.uri.to_string().as_str()), (target.as_bytes(), path), "{target}");
            assert!(head.raw_path_is_utf8());
        }
        for target in ["#a", "*#a", "+#\u{e9}"] {
            let head = RequestHead::with_target(Method::GET, target.as_bytes(), Fields::default()).unwrap();
            assert_eq!(head.raw_path(), target.as_bytes(), "{target}");
        }
        let mut head = RequestHead::with_target(Method::GET, b"/\xff", Fields::default()).unwrap();
        assert!(head.raw_path() == b"/\xff" && !head.raw_path_is_utf8());
        head.set_uri(Uri::from_static("/x"));
        assert!(head.raw_path() == b"/x" && head.raw_path_is_utf8());
    }
}
