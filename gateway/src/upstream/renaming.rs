//! The name of the model in an answer, where the server knows another one than the caller: the head of the answer waits until the
//! beginning of the body shows the name, which is then replaced there. Inputs are the head and the first bytes of an answer.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};

use super::model_name;
use super::outcome::Attempt;
use crate::coding::{Coding, DIGESTS};
use crate::exchange::{Exchange, Naming};
use crate::message::ResponseHead;
use crate::off_loop::INLINE;
use crate::protocol::oip::INFERENCE_HEADER_CONTENT_LENGTH;
use crate::protocol::oip::grpc::{compressed_frame, decoded};
use crate::protocol::translate::MostKept;
use crate::protocol::{AnswerName, Dialect, OIP_GRPC, Operation};

/// Most bytes of an answer in which the name is looked for.
const MAX_BEGINNING: usize = 16 << 10;

/// Names to exchange, that of the server and that of the caller.
fn names<'e>(attempt: &'e Attempt<'_>, exchange: &'e Exchange) -> Option<(&'e Arc<str>, &'e str)> {
    let asked = exchange.asked.as_ref()?;
    let is_named = matches!(asked.naming, Naming::Path | Naming::Message) && attempt.translation.is_none();
    if is_named { model_name::exchanged(attempt.backend, exchange) } else { None }
}

/// True if names in the answer are exchanged, so that neither it nor its message must come in a coding.
pub(super) fn renames(attempt: &Attempt<'_>, exchange: &Exchange) -> bool {
    matches!(exchange.resolved.operation, Operation::Inference(_)) && names(attempt, exchange).is_some()
}

/// Name to replace in an answer.
pub(super) struct Renaming {
    api: &'static dyn Dialect,
    operation: Operation,
    /// Name that the server knows.
    from: Arc<str>,
    /// Name that the caller knows.
    to: Box<str>,
    /// Most bytes of a compressed message that is decoded for its name, as it comes and decoded.
    most: MostKept,
}

impl Renaming {
    /// Name to replace in an answer with this head; `None` where the caller and the server know one name, the API names no model
    /// there, the answer is translated, or the body is an error or in a coding.
    pub(super) fn of(attempt: &Attempt<'_>, exchange: &Exchange, head: &ResponseHead) -> Option<Box<Self>> {
        let (from, to) = names(attempt, exchange)?;
        let is_readable = head.status.is_success() && Coding::of(&head.headers) == Coding::Identity;
        let (api, operation) = (exchange.resolved.api, exchange.resolved.operation);
        let is_wanted = is_readable && matches!(operation, Operation::Inference(_));
        let most = MostKept(attempt.backend.max_translated_bytes);
        is_wanted.then(|| Box::new(Self { api, operation, from: from.clone(), to: to.into(), most }))
    }

    fn find(&self, beginning: &[u8]) -> AnswerName {
        self.api.rename_in_answer(self.operation, beginning, &self.from, &self.to)
    }

    /// True if more of the body is needed.
    pub(super) fn is_open(&self, beginning: &[u8]) -> bool {
        match compressed_frame(beginning).filter(|_| self.api == OIP_GRPC) {
            Some(length) => beginning.len() < length && length <= self.most.0,
            None => beginning.len() <= MAX_BEGINNING && self.find(beginning) == AnswerName::NotYet,
        }
    }

    /// Weight of [`Self::apply`], for [`OffLoop::run`](crate::off_loop::OffLoop::run).
    pub(super) fn weight(&self, beginning: &[u8]) -> usize {
        // More comes out of a coding than one pass beside other requests may write, however little goes in.
        let is_coded = self.api == OIP_GRPC && compressed_frame(beginning).is_some();
        if is_coded { INLINE + 1 } else { 0 }
    }

    /// Replaces the name in the beginning of a body, and adapts the head to the bytes. A message that decodes to too much passes as
    /// it came, with the name that the server knows.
    pub(super) fn apply(&self, head: &mut ResponseHead, mut beginning: Bytes) -> Bytes {
        if self.api == OIP_GRPC
            && let Ok(Some(plain)) = decoded(&beginning, &head.headers, self.most)
        {
            shift(head, &header::CONTENT_LENGTH, beginning.len(), plain.len());
            beginning = plain;
        }
        let AnswerName::Replace(range, bytes) = self.find(&beginning) else { return beginning };
        let (Some(before), Some(after)) = (beginning.get(..range.start), beginning.get(range.end..)) else {
            return beginning;
        };
        for name in [&header::CONTENT_LENGTH, &INFERENCE_HEADER_CONTENT_LENGTH] {
            shift(head, name, range.len(), bytes.len());
        }
        for name in DIGESTS.iter().chain([&header::ETAG]) {
            head.remove_header(name);
        }
        [before, &bytes, after].concat().into()
    }
}

/// Changes a length in a head, of which `less` bytes became `more`.
fn shift(head: &mut ResponseHead, name: &HeaderName, less: usize, more: usize) {
    let length = head.headers.get(name).and_then(|value| value.to_str().ok()?.trim().parse::<usize>().ok());
    if let Some(length) = length.and_then(|length| length.checked_sub(less)) {
        let _ = head.insert_header(name.clone(), HeaderValue::from(length + more));
    }
}
