//! Changes to the bodies of one exchange: another body of the request, and an answer that is changed on its way to the client.

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

use crate::{EventSplitter, Fields, HeaderChange, Observer, Processor, Refusal, ResponseEvent};

/// Changes to an exchange by a filter that lets its request pass.
#[derive(Debug, Default)]
pub struct Rewrite {
    /// Body in place of the request's, for later filters and the backend; `None` keeps it. Only of a filter that needs the body
    /// ([`Filter::needs_body`](crate::Filter::needs_body)). It must name the same model: routes, limits and permissions were
    /// judged by that name.
    pub body: Option<Bytes>,
    /// Changes of the request's headers, for later filters and the backend. The gateway sets the headers of the connection, the
    /// caller and the origin itself, whatever is changed here.
    pub request_headers: Vec<HeaderChange>,
    /// Changes the answer of the server or built-in model.
    pub rewriter: Option<Box<dyn Rewriter>>,
    /// Changes the answer too, and may wait for another server; behind the rewriter where there are both.
    pub processor: Option<Box<dyn Processor>>,
    /// Follows the exchange; sees the answer as it was changed.
    pub observer: Option<Box<dyn Observer>>,
}

impl Rewrite {
    /// True if nothing is changed or followed.
    pub fn is_empty(&self) -> bool {
        self.body.is_none()
            && self.request_headers.is_empty()
            && self.rewriter.is_none()
            && self.processor.is_none()
            && self.observer.is_none()
    }
}

/// Head of an answer as a rewriter reads it.
#[derive(Debug, Clone, Copy)]
pub struct AnswerHead<'a> {
    /// Status.
    pub status: StatusCode,
    /// Headers as the server sent them.
    pub headers: &'a Fields,
    /// True if another backend or a built-in model answers in place of the route's own.
    pub is_spilled: bool,
}

impl AnswerHead<'_> {
    /// True if the `Content-Type` names JSON: `application/json`, or a type that ends with `+json`.
    pub fn is_json(&self) -> bool {
        let essence = self.essence();
        essence.eq_ignore_ascii_case("application/json")
            || essence
                .len()
                .checked_sub(5)
                .and_then(|at| essence.get(at..))
                .is_some_and(|end| end.eq_ignore_ascii_case("+json"))
    }

    /// True if the answer is a stream, which is read event by event ([`EventSplitter::of`]).
    pub fn is_stream(&self) -> bool {
        EventSplitter::of(self.content_type()).is_some()
    }

    /// `Content-Type`.
    pub fn content_type(&self) -> Option<&HeaderValue> {
        self.headers.get(header::CONTENT_TYPE)
    }

    /// Media type without parameters.
    fn essence(&self) -> &str {
        let text = self.content_type().and_then(|value| value.to_str().ok()).unwrap_or_default();
        text.split(';').next().unwrap_or_default().trim()
    }
}

/// Change to an event of a stream.
#[derive(Debug)]
pub enum EventChange {
    /// The event passes as it is.
    Keep,
    /// Other bytes pass in its place: whole events or lines, with their ends.
    Replace(Bytes),
    /// Nothing passes.
    Drop,
    /// The stream ends with this refusal, as its API ends one.
    Refuse(Box<Refusal>),
}

/// Changes one answer for a filter, which returns it by [`Rewrite::rewriter`]. Sees the answer of a server, a built-in model or a
/// later filter in the caller's API and without `Content-Encoding`, as the rewriters of the filters behind its own have changed it: an
/// answer passes the filters of a route in the opposite order of its request. What answers the request in the end is changed,
/// whatever attempts were needed for it; refusals are not. Nothing here may block.
pub trait Rewriter: Send + Sync {
    /// True if it changes the answer with this head. A stream then passes event by event; any other answer is read whole before
    /// a byte of it or its head goes to the client, within `limits.maxTranslatedBytes` of its backend.
    fn reads(&self, head: &AnswerHead<'_>) -> bool;
    /// Changes a whole answer that is no stream; `None` keeps it.
    ///
    /// # Errors
    ///
    /// The refusal that the caller gets in place of the answer.
    fn whole(&mut self, body: &[u8]) -> Result<Option<Bytes>, Box<Refusal>>;
    /// Changes an event of a stream.
    fn event(&mut self, event: &ResponseEvent<'_>) -> EventChange;
    /// Ends a stream whose events have all passed: returns events that were held back, with their ends.
    ///
    /// # Errors
    ///
    /// The refusal that ends the stream.
    fn end(&mut self) -> Result<Bytes, Box<Refusal>> {
        Ok(Bytes::new())
    }
}

impl std::fmt::Debug for dyn Rewriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rewriter")
    }
}
