//! Changes of the filters of an exchange to its answer on the way to the client. An answer that is read whole waits here with
//! its head, within the memory for answers; a stream passes event by event, of which one is held at most.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use spillway_filter::{
    AnswerEdit, AnswerHead, ErrorKind, EventChange, EventSplitter, Processor, Reads, Refusal, ResponseEvent, Rewriter,
};

use crate::downstream::{Downstream, Unread};
use crate::message::{ResponseHead, without_coding};
use crate::off_loop::OffLoop;

/// Changes to the answer of one exchange, in the order in which it passes them: that of the last filter first.
#[derive(Default)]
pub struct Rewriting {
    all: Vec<Step>,
    state: State,
    /// Refusal by which a stream ends.
    refused: Option<Box<Refusal>>,
    /// Address of the endpoint that has answered.
    endpoint: Option<SocketAddr>,
}

/// Change by one filter.
enum Step {
    Rewriter {
        rewriter: Box<dyn Rewriter>,
        /// Splits a stream, once the head has shown that the answer is one.
        splitter: Option<EventSplitter>,
    },
    Processor {
        processor: Box<dyn Processor>,
        /// Splits a stream whose events are to pass whole.
        splitter: Option<EventSplitter>,
    },
}

/// Work on the answer.
#[derive(Default)]
enum State {
    /// None: no head has come, or nothing reads the answer.
    #[default]
    Passing,
    /// Parts pass as they come.
    Parts,
    Whole(HeldAnswer),
}

/// Answer that is read whole.
struct HeldAnswer {
    head: Box<ResponseHead>,
    body: Unread,
    length: u64,
    /// Most bytes of the answer.
    most: u64,
    /// Body in place of the server's.
    replaced: Option<Bytes>,
    fault: Option<HoldFault>,
}

/// Reason for which an answer cannot be passed on.
#[derive(Debug, Clone)]
enum HoldFault {
    TooLong,
    NoMemory,
    Refused(Box<Refusal>),
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
            Self::Refused(refusal) => *refusal,
        }
    }
}

/// End of an answer that filters have changed.
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
        self.all.insert(0, Step::Rewriter { rewriter, splitter: None });
    }

    /// Adds the processor of a filter.
    pub fn add_processor(&mut self, processor: Box<dyn Processor>) {
        self.all.insert(0, Step::Processor { processor, splitter: None });
    }

    /// Notes the address of the endpoint that has answered.
    pub fn answered_by(&mut self, endpoint: SocketAddr) {
        self.endpoint = Some(endpoint);
    }

    /// True if a filter may read the body of an answer.
    pub fn may_read_body(&self) -> bool {
        self.all.iter().any(Step::may_read_body)
    }

    /// True if a filter may read the body of an answer with this head.
    pub fn reads_body(&self, head: &ResponseHead, is_spilled: bool) -> bool {
        let head = shown(head, is_spilled);
        self.all.iter().any(|step| step.may_read_body() && step.reads(&head))
    }

    /// Begins the answer with this head, `most` bytes of whose body may be held. Returns the head where it goes to the client now:
    /// unless the answer is read whole, or is not to be passed on.
    pub async fn begin(
        &mut self,
        mut head: Box<ResponseHead>,
        is_spilled: bool,
        has_body: bool,
        most: u64,
    ) -> Option<Box<ResponseHead>> {
        let begun = self.begin_steps(&mut head, is_spilled, has_body).await;
        let (mut replaced, mut fault) = (None, None);
        match begun {
            Ok(Begun::Untouched) => return Some(head),
            Ok(_) if !has_body => {
                self.all.clear();
                return Some(head);
            }
            Ok(Begun::Parts) => {
                without_coding(&mut head);
                self.state = State::Parts;
                return Some(head);
            }
            Ok(Begun::Whole) => {}
            Ok(Begun::Replaced(body)) => replaced = Some(body),
            Err(refusal) => fault = Some(HoldFault::Refused(refusal)),
        }
        without_coding(&mut head);
        self.state = State::Whole(HeldAnswer { head, body: Unread::default(), length: 0, most, replaced, fault });
        None
    }

    /// Shows the head to each step, and keeps those that read the body.
    async fn begin_steps(
        &mut self,
        head: &mut ResponseHead,
        is_spilled: bool,
        has_body: bool,
    ) -> Result<Begun, Box<Refusal>> {
        let mut begun = Begun::Untouched;
        for mut step in std::mem::take(&mut self.all) {
            let facts = shown(head, is_spilled);
            if !step.reads(&facts) {
                continue;
            }
            let found = EventSplitter::of(facts.content_type());
            let reads = match &mut step {
                Step::Rewriter { splitter, .. } if has_body => {
                    *splitter = found;
                    if splitter.is_some() { Reads::Parts } else { Reads::Whole }
                }
                Step::Rewriter { .. } => Reads::Nothing,
                Step::Processor { processor, splitter } => {
                    let edit =
                        AnswerEdit { status: &mut head.status, headers: &mut head.headers, endpoint: self.endpoint };
                    let reads = processor.head(edit, has_body).await?;
                    *splitter = found.filter(|_| reads == Reads::Parts);
                    reads
                }
            };
            match (reads, begun) {
                (Reads::Nothing, before) => {
                    begun = before;
                    continue;
                }
                (Reads::Replaced(body), _) => {
                    // The filters behind this one have nothing left to change.
                    self.all.clear();
                    begun = Begun::Replaced(body);
                    continue;
                }
                (_, Begun::Replaced(body)) => begun = Begun::Replaced(body),
                (Reads::Whole, _) | (_, Begun::Whole) => begun = Begun::Whole,
                (Reads::Parts, _) => begun = Begun::Parts,
            }
            self.all.push(step);
        }
        Ok(begun)
    }

    /// Changes a part of the answer. Returns what goes to the client now.
    pub async fn pass(&mut self, part: Bytes, shared: &Arc<Downstream>) -> Bytes {
        match &mut self.state {
            State::Passing => part,
            State::Parts => self.pass_part(part).await,
            State::Whole(held) => {
                held.take(&part, shared);
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

    /// True if the rest of the answer need not be read: it cannot be changed, or another one takes its place.
    pub fn needs_no_more(&self) -> bool {
        matches!(&self.state, State::Whole(held) if held.fault.is_some() || held.replaced.is_some())
    }

    /// True if the head of the answer waits here.
    pub fn holds_head(&self) -> bool {
        matches!(self.state, State::Whole(_))
    }

    /// Ends the answer: returns its head where that has waited, and what is left of its body.
    ///
    /// # Errors
    ///
    /// The refusal in place of an answer that was read whole.
    pub async fn end(&mut self, off_loop: &OffLoop) -> Result<RewrittenEnd, Box<Refusal>> {
        match std::mem::take(&mut self.state) {
            State::Passing => Ok(RewrittenEnd::default()),
            State::Parts => Ok(RewrittenEnd { head: None, body: self.end_parts(Bytes::new()).await }),
            State::Whole(HeldAnswer { fault: Some(fault), most, .. }) => Err(Box::new(fault.refusal(most))),
            State::Whole(HeldAnswer { mut head, mut body, length, replaced, .. }) => {
                let whole = replaced.unwrap_or_else(|| {
                    let mut whole = BytesMut::with_capacity(usize::try_from(length).unwrap_or(0));
                    while let Some(piece) = body.take_slice() {
                        whole.extend_from_slice(&piece);
                    }
                    whole.freeze()
                });
                let whole = self.change_whole(&mut head, whole, off_loop).await?;
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
    pub async fn change(
        &mut self,
        head: &mut ResponseHead,
        is_spilled: bool,
        body: Bytes,
        off_loop: &OffLoop,
    ) -> Result<Bytes, Box<Refusal>> {
        if body.is_empty() {
            self.begin_steps(head, is_spilled, false).await?;
            return Ok(body);
        }
        let body = match self.begin_steps(head, is_spilled, true).await? {
            Begun::Untouched => return Ok(body),
            Begun::Replaced(body) => body,
            Begun::Parts | Begun::Whole => body,
        };
        without_coding(head);
        self.change_whole(head, body, off_loop).await
    }

    /// Changes a whole body by one step after the other.
    async fn change_whole(
        &mut self,
        head: &mut ResponseHead,
        mut body: Bytes,
        off_loop: &OffLoop,
    ) -> Result<Bytes, Box<Refusal>> {
        for step in &mut self.all {
            body = match step {
                Step::Processor { processor, .. } => {
                    let edit =
                        AnswerEdit { status: &mut head.status, headers: &mut head.headers, endpoint: self.endpoint };
                    processor.part(body, true, Some(edit)).await?
                }
                // What reads a large answer must not hold up the other requests of this thread.
                Step::Rewriter { rewriter, splitter } => {
                    off_loop.run(body.len(), || whole_by(&mut **rewriter, splitter.as_mut(), body)).await??
                }
            };
        }
        Ok(body)
    }

    /// Changes a part by one step after the other.
    async fn pass_part(&mut self, mut part: Bytes) -> Bytes {
        if self.refused.is_some() {
            return Bytes::new();
        }
        for step in &mut self.all {
            if part.is_empty() {
                break;
            }
            part = step.pass(part, false, &mut self.refused).await;
        }
        part
    }

    /// Ends the steps one after the other: each gets what those before it held back.
    async fn end_parts(&mut self, mut part: Bytes) -> Bytes {
        for step in &mut self.all {
            // What passed before a refusal goes on to the client; nothing that was held back does.
            let ends = self.refused.is_none();
            part = step.pass(part, ends, &mut self.refused).await;
        }
        part
    }
}

/// Part of an answer that the steps read.
enum Begun {
    Untouched,
    Parts,
    Whole,
    Replaced(Bytes),
}

impl HeldAnswer {
    /// Holds a further part.
    fn take(&mut self, part: &Bytes, shared: &Arc<Downstream>) {
        if self.replaced.is_some() {
            return;
        }
        self.length = self.length.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
        if self.length > self.most {
            self.fault = Some(HoldFault::TooLong);
        } else if self.fault.is_none() {
            self.body.push(part, shared, u64::MAX);
            if !self.body.has_room() {
                self.fault = Some(HoldFault::NoMemory);
            }
        }
        if self.fault.is_some() {
            self.body = Unread::default();
        }
    }
}

impl Step {
    fn reads(&self, head: &AnswerHead<'_>) -> bool {
        match self {
            Self::Rewriter { rewriter, .. } => rewriter.reads(head),
            Self::Processor { processor, .. } => processor.reads(head),
        }
    }

    fn may_read_body(&self) -> bool {
        match self {
            Self::Rewriter { .. } => true,
            Self::Processor { processor, .. } => processor.may_read_body(),
        }
    }

    /// Changes a part of a stream, the last one where it `ends`.
    async fn pass(&mut self, part: Bytes, ends: bool, refused: &mut Option<Box<Refusal>>) -> Bytes {
        match self {
            Self::Rewriter { rewriter, splitter } => {
                let Some(splitter) = splitter else { return part };
                let (passed, refusal) = events_by(&mut **rewriter, splitter, &part, ends);
                if refused.is_none() {
                    *refused = refusal;
                }
                passed
            }
            Self::Processor { processor, splitter } => {
                let part = match splitter {
                    None => part,
                    Some(splitter) => whole_events(splitter, &part, ends),
                };
                if part.is_empty() && !ends {
                    return part;
                }
                processor.part(part, ends, None).await.unwrap_or_else(|refusal| {
                    *refused = Some(refusal);
                    Bytes::new()
                })
            }
        }
    }
}

fn shown(head: &ResponseHead, is_spilled: bool) -> AnswerHead<'_> {
    AnswerHead { status: head.status, headers: &head.headers, is_spilled }
}

/// Changes a whole body, event by event where it is a stream.
fn whole_by(
    rewriter: &mut dyn Rewriter,
    splitter: Option<&mut EventSplitter>,
    body: Bytes,
) -> Result<Bytes, Box<Refusal>> {
    let Some(splitter) = splitter else { return Ok(rewriter.whole(&body)?.unwrap_or(body)) };
    let (changed, refused) = events_by(rewriter, splitter, &body, true);
    refused.map_or(Ok(changed), Err)
}

/// Changes the events that end in a part of a stream, up to one that is refused.
fn events_by(
    rewriter: &mut dyn Rewriter,
    splitter: &mut EventSplitter,
    part: &[u8],
    ends: bool,
) -> (Bytes, Option<Box<Refusal>>) {
    let (mut out, mut refused) = (BytesMut::with_capacity(part.len()), None);
    let mut change = |event: &ResponseEvent<'_>| {
        if refused.is_some() {
            return;
        }
        match rewriter.event(event) {
            EventChange::Keep => out.extend_from_slice(event.bytes),
            EventChange::Replace(bytes) => out.extend_from_slice(&bytes),
            EventChange::Drop => {}
            EventChange::Refuse(refusal) => refused = Some(refusal),
        }
    };
    splitter.feed(part, &mut change);
    if ends {
        // Servers may leave out the end of the last event; clients read it all the same.
        splitter.feed(b"\n\n", change);
    }
    if ends && refused.is_none() {
        match rewriter.end() {
            Ok(held) => out.extend_from_slice(&held),
            Err(refusal) => refused = Some(refusal),
        }
    }
    (out.freeze(), refused)
}

/// Events that end in a part of a stream.
fn whole_events(splitter: &mut EventSplitter, part: &[u8], ends: bool) -> Bytes {
    let mut out = BytesMut::with_capacity(part.len());
    splitter.feed(part, |event| out.extend_from_slice(event.bytes));
    if ends {
        splitter.feed(b"\n\n", |event| out.extend_from_slice(event.bytes));
    }
    out.freeze()
}
