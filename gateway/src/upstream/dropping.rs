//! Requests that pass in their own API, without the fields that the servers of a backend do not get (`dropFields`). Inputs are
//! the held body and the facts of the backend.

use std::ops::Range;

use bytes::Bytes;
use http::HeaderValue;

use crate::protocol::{BodyEdit, peek, without};
use crate::topology::Backend;

/// Body of a request without some of its fields.
pub struct Cut {
    /// The body.
    pub(super) body: Bytes,
    /// Length of the JSON at the begin of the body, where a header of the request says it.
    pub(super) json_length: Option<usize>,
    /// Range of the value of `model` in it.
    pub(super) model_at: Option<Range<usize>>,
    /// Edit by which a stream asks for its usage.
    pub(super) usage_edit: Option<BodyEdit>,
    /// Names of the fields, for the caller.
    pub(super) dropped: Option<HeaderValue>,
}

impl Cut {
    /// The body, and the range of the value of `model` in it.
    pub fn into_parts(self) -> (Bytes, Option<Range<usize>>) {
        (self.body, self.model_at)
    }
}

/// Body without the fields that a backend's servers do not get; `None` where it has none of them, or is not JSON. Where a header
/// says the length of the JSON (`json_length`), the bytes behind it stay as they are.
pub fn cut(backend: &Backend, body: &[u8], json_length: Option<usize>) -> Option<Cut> {
    let (json, binary) = body.split_at_checked(json_length.unwrap_or(body.len()))?;
    let (mut rest, names) = without(json, &backend.drop_fields)?;
    let (model_at, usage_edit) = peek(&rest, false).map(|peek| (peek.model_at, peek.usage_edit)).unwrap_or_default();
    let json_length = json_length.map(|_| rest.len());
    rest.extend_from_slice(binary);
    Some(Cut { body: rest.into(), json_length, model_at, usage_edit, dropped: names.header() })
}
