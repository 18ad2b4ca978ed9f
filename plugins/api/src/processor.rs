//! Changes to an answer that take the word of another server.

use std::net::SocketAddr;

use bytes::Bytes;
use http::StatusCode;

use crate::grpc_client::Pending;
use crate::{AnswerHead, Fields, Refusal};

/// Head of an answer that a processor changes.
#[derive(Debug)]
pub struct AnswerEdit<'a> {
    /// Status.
    pub status: &'a mut StatusCode,
    /// Headers as the server sent them. The length of the body is the gateway's to set.
    pub headers: &'a mut Fields,
    /// Address of the endpoint that has answered; `None` for an answer of the gateway's own.
    pub endpoint: Option<SocketAddr>,
}

/// How a processor takes the body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reads {
    /// Not at all: the body passes as it is.
    Nothing,
    /// In the parts in which it comes, those of a stream as whole events. The head goes to the client now.
    Parts,
    /// In one part, for which the head waits, within `limits.maxTranslatedBytes` of the backend.
    Whole,
    /// Not at all: this body goes to the client in place of it.
    Replaced(Bytes),
}

/// Changes one answer as a [`Rewriter`](crate::Rewriter) does, in its place among the rewriters of the filters, but may wait for
/// another server. A filter returns it by [`Rewrite::processor`](crate::Rewrite::processor). It bounds each wait.
pub trait Processor: Send + Sync {
    /// True if it reads the answer with this head.
    fn reads(&self, head: &AnswerHead<'_>) -> bool;
    /// False if it never reads the body of an answer, which may then be compressed, or a part of the whole.
    fn may_read_body(&self) -> bool {
        true
    }
    /// Changes the head of an answer, and says how the body is read. An answer without a body has `has_body` false, and nothing
    /// is read of it.
    ///
    /// # Errors
    ///
    /// The refusal that the caller gets in place of the answer.
    fn head<'a>(&'a mut self, head: AnswerEdit<'a>, has_body: bool) -> Pending<'a, Result<Reads, Box<Refusal>>>;
    /// Changes a part of the body: the next one, which is empty at an end (`is_last`) that is told by itself. Where the head waits for the
    /// whole body, `head` is there to be changed.
    ///
    /// # Errors
    ///
    /// The refusal that the caller gets in place of the answer, or that ends it where its head is out.
    fn part<'a>(
        &'a mut self,
        part: Bytes,
        is_last: bool,
        head: Option<AnswerEdit<'a>>,
    ) -> Pending<'a, Result<Bytes, Box<Refusal>>>;
}

impl std::fmt::Debug for dyn Processor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Processor")
    }
}
