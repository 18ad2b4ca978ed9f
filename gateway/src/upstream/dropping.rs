//! Requests that pass in their own API, without the fields that the servers of a backend do not get (`dropFields`). Inputs are
//! the held body and the facts of the backend.

use std::ops::Range;

use bytes::Bytes;
use http::HeaderValue;

use crate::protocol::{BodyEdit, peek, without};
use crate::topology::Backend;

/// Field with the options of a stream, which asks for its usage.
const STREAM_OPTIONS: &str = "stream_options";

/// Body of a request without some of its fields.
pub struct Cut {
    /// The body.
    pub(super) body: Bytes,
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

/// Body without the fields that a backend's servers do not get; `None` where it has none of them, or is not JSON.
pub fn cut(backend: &Backend, body: &[u8]) -> Option<Cut> {
    let (rest, names) = without(body, &backend.drop_fields)?;
    let (model_at, usage_edit) = peek(&rest, false).map(|peek| (peek.model_at, peek.usage_edit)).unwrap_or_default();
    let asks = |name: &String| name.split('.').next() == Some(STREAM_OPTIONS);
    let usage_edit = usage_edit.filter(|_| !backend.drop_fields.iter().any(asks));
    Some(Cut { body: rest.into(), model_at, usage_edit, dropped: names.header() })
}
