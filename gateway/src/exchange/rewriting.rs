//! Rewriters of an exchange: what its filters change of the answer on its way to the client. An answer that is read whole waits
//! here with its head, within the memory for answers; a stream passes event by event, of which one is held at most.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use spillway_filter::{AnswerHead, ErrorKind, EventChange, EventSplitter, Refusal, ResponseEvent, Rewriter};

use crate::downstream::{Downstream, Unread};
use crate::message::{ResponseHead, without_coding};

/// Rewriters of one exchange, in the order in which an answer passes them: that of the last filter first.
#[derive(Default)]
pub struct Rewriting {
    all: Vec<Box<dyn Rewriter>>,
    state: State,
    /// Refusal by which a stream ends.
    refused: Option<Box<Refusal>>,
}

/// Work on the answer.
#[derive(Default)]
enum State {
    /// None: no head has come, or no rewriter reads the answer.
    #[default]
    Passing,
    Events(EventSplitter),
    Whole(HeldAnswer),
}

/// Answer that is read whole.
struct HeldAnswer {
    head: Box<ResponseHead>,
    body: Unread,
    length: u64,
    /// Most bytes of the answer.
    most: u64,
    fault: Option<HoldFault>,
}

/// Reason for which an answer cannot be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HoldFault {
    TooLong,
    NoMemory,
}

impl HoldFault {
    fn refusal(self, most: u64) -> Refusal {
        match self {
            Self::TooLong => Refusal::new(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Upstream,
                "upstream_answer_too_large",
                format!(
                    "the answer is longer than the {most} bytes that are read to be changed by a filter of the route \
                     (`limits.maxTranslatedBytes` of the backend): ask for less at a time, or as a stream"
                ),
            ),
            Self::NoMemory => Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorKind::Overloaded,
                "answer_memory_exhausted",
                "the gateway holds too many answers at the moment (`limits.bufferedAnswers`); try again",
            ),
        }
    }
}

/// End of an answer that rewriters have changed.
#[derive(Default)]
pub struct RewrittenEnd {
    /// Head, where that has waited.
    pub head: Option<Box<ResponseHead>>,
    /// Rest of the body.
    pub body: Bytes,
}

impl Rewriting {
    /// Adds the rewriter of a filter.
    pub fn add(&mut self, rewriter: Box<dyn Rewriter>) {
        self.all.insert(0, rewriter);
    }

    /// True if a rewriter reads an answer with this head.
    pub fn reads(&self, head: &ResponseHead, is_spilled: bool) -> bool {
        let head = shown(head, is_spilled);
        self.all.iter().any(|rewriter| rewriter.reads(&head))
    }

    /// Begins the answer with this head, `most` bytes of which may be held. Returns the head where it goes to the client now:
    /// unless the answer is read whole.
    pub fn begin(&mut self, head: Box<ResponseHead>, is_spilled: bool, most: u64) -> Option<Box<ResponseHead>> {
        let facts = shown(&head, is_spilled);
        let splitter = EventSplitter::of(facts.content_type());
        self.all.retain(|rewriter| rewriter.reads(&facts));
        if self.all.is_empty() {
            return Some(head);
        }
        let mut head = head;
        without_coding(&mut head);
        if let Some(splitter) = splitter {
            self.state = State::Events(splitter);
            return Some(head);
        }
        self.state = State::Whole(HeldAnswer { head, body: Unread::default(), length: 0, most, fault: None });
        None
    }

    /// Changes a part of the answer. Returns what goes to the client now.
    pub fn pass(&mut self, part: Bytes, shared: &Arc<Downstream>) -> Bytes {
        match &mut self.state {
            State::Passing => part,
            State::Events(_) if self.refused.is_some() => Bytes::new(),
            State::Events(_) => self.pass_events(&part),
            State::Whole(held) => {
                held.length = held.length.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
                if held.length > held.most {
                    held.fault = Some(HoldFault::TooLong);
                } else if held.fault.is_none() {
                    held.body.push(&part, shared, u64::MAX);
                    held.fault = (!held.body.has_room()).then_some(HoldFault::NoMemory);
                }
                if held.fault.is_some() {
                    held.body = Unread::default();
                }
                Bytes::new()
            }
        }
    }

    /// True if the stream ends by a refusal.
    pub fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Refusal by which a stream ends behind what has passed.
    pub fn take_refusal(&mut self) -> Option<Box<Refusal>> {
        self.refused.take().inspect(|_| self.state = State::Passing)
    }

    /// True if the answer cannot be changed, so that the rest of it need not be read.
    pub fn has_failed(&self) -> bool {
        matches!(&self.state, State::Whole(held) if held.fault.is_some())
    }

    /// True if the head of the answer waits here.
    pub fn holds_head(&self) -> bool {
        matches!(self.state, State::Whole(_))
    }

    /// Weight of [`Self::end`] in bytes.
    pub fn weight(&self) -> usize {
        match &self.state {
            State::Whole(held) => usize::try_from(held.length).unwrap_or(usize::MAX).saturating_mul(self.all.len()),
            _ => 0,
        }
    }

    /// Ends the answer: returns its head where that has waited, and what is left of its body.
    ///
    /// # Errors
    ///
    /// The refusal in place of an answer that was read whole.
    pub fn end(&mut self) -> Result<RewrittenEnd, Box<Refusal>> {
        match std::mem::take(&mut self.state) {
            State::Passing => Ok(RewrittenEnd::default()),
            State::Events(mut splitter) => {
                let mut out = BytesMut::new();
                // Servers may leave out the end of the last event; clients read it all the same.
                splitter.feed(b"\n\n", |event| change(&mut self.all, event, &mut out, &mut self.refused));
                for n in 0..self.all.len() {
                    let Some((last, behind)) = self.all.get_mut(n..).and_then(<[_]>::split_first_mut) else { break };
                    let held = match last.end() {
                        Ok(held) => held,
                        Err(refusal) => {
                            self.refused = Some(refusal);
                            break;
                        }
                    };
                    splitter.feed(&held, |event| change(behind, event, &mut out, &mut self.refused));
                }
                Ok(RewrittenEnd { head: None, body: out.freeze() })
            }
            State::Whole(HeldAnswer { fault: Some(fault), most, .. }) => Err(Box::new(fault.refusal(most))),
            State::Whole(HeldAnswer { mut head, mut body, length, .. }) => {
                let mut whole = BytesMut::with_capacity(usize::try_from(length).unwrap_or(0));
                while let Some(piece) = body.take_slice() {
                    whole.extend_from_slice(&piece);
                }
                let whole = self.change_whole(whole.freeze())?;
                let _ = head.insert_header(header::CONTENT_LENGTH, header::HeaderValue::from(whole.len()));
                Ok(RewrittenEnd { head: Some(head), body: whole })
            }
        }
    }

    /// Changes an answer that is there whole.
    ///
    /// # Errors
    ///
    /// The refusal in place of the answer.
    pub fn change(&mut self, head: &mut ResponseHead, is_spilled: bool, body: Bytes) -> Result<Bytes, Box<Refusal>> {
        let facts = shown(head, is_spilled);
        let splitter = EventSplitter::of(facts.content_type());
        self.all.retain(|rewriter| rewriter.reads(&facts));
        if self.all.is_empty() || body.is_empty() {
            return Ok(body);
        }
        without_coding(head);
        if let Some(splitter) = splitter {
            self.state = State::Events(splitter);
            let begun = self.pass_events(&body);
            let ended = self.end()?;
            return self.refused.take().map_or_else(|| Ok([begun, ended.body].concat().into()), Err);
        }
        self.change_whole(body)
    }

    /// Changes a whole body by one rewriter after the other.
    fn change_whole(&mut self, mut body: Bytes) -> Result<Bytes, Box<Refusal>> {
        for rewriter in &mut self.all {
            if let Some(changed) = rewriter.whole(&body)? {
                body = changed;
            }
        }
        Ok(body)
    }

    /// Changes a part of a stream.
    fn pass_events(&mut self, part: &[u8]) -> Bytes {
        let State::Events(splitter) = &mut self.state else { return Bytes::new() };
        let (mut out, all, refused) = (BytesMut::with_capacity(part.len()), &mut self.all, &mut self.refused);
        splitter.feed(part, |event| change(all, event, &mut out, refused));
        out.freeze()
    }
}

fn shown(head: &ResponseHead, is_spilled: bool) -> AnswerHead<'_> {
    AnswerHead { status: head.status, headers: &head.headers, is_spilled }
}

/// Writes an event as the rewriters change it, one after the other.
fn change(
    all: &mut [Box<dyn Rewriter>],
    event: &ResponseEvent<'_>,
    out: &mut BytesMut,
    refused: &mut Option<Box<Refusal>>,
) {
    if refused.is_some() {
        return;
    }
    let Some((first, rest)) = all.split_first_mut() else {
        out.extend_from_slice(event.bytes);
        return;
    };
    match first.event(event) {
        EventChange::Keep => change(rest, event, out, refused),
        EventChange::Refuse(refusal) => *refused = Some(refusal),
        EventChange::Drop => {}
        EventChange::Replace(bytes) if rest.is_empty() => out.extend_from_slice(&bytes),
        EventChange::Replace(bytes) => {
            let mut splitter = if event.is_line { EventSplitter::of_lines() } else { EventSplitter::default() };
            splitter.feed(&bytes, |event| change(rest, event, out, refused));
        }
    }
}
