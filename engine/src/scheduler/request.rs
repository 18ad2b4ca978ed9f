//! A running request: its answers, and the events that its consumer has yet to read.

use std::time::{Duration, Instant};

use async_channel::Sender;

use super::queue::TenantKey;
use super::sequence::{Sequence, SequenceOutput, SequenceState};
use super::{EVENTS, Job};
use crate::{EngineError, Event, Finished};

pub(super) struct Request {
    pub(super) sequences: Vec<Sequence>,
    pub(super) tenant: TenantKey,
    /// Priority among short prompts.
    pub(super) place: u64,
    events: Sender<Event>,
    /// Events that found `EVENTS` in the channel.
    outbox: Vec<Event>,
    stalled: Option<Instant>,
    deadline: Option<Instant>,
    submitted: Instant,
    admitted: Instant,
    begun: bool,
    first: Option<Instant>,
    prompt: usize,
    /// Prompt tokens that were in the KV cache at the start.
    cached: usize,
    is_finished: bool,
}

impl Request {
    /// A request with a slot in `slots` for each of its choices.
    pub(super) fn new(job: &Job, slots: Vec<usize>, context: usize, place: u64) -> Self {
        let sequences = (0u32..).zip(slots).map(|(n, slot)| Sequence::new(&job.request, n, slot, context)).collect();
        Self {
            sequences,
            tenant: job.request.tenant.clone(),
            place,
            events: job.events.clone(),
            outbox: Vec::new(),
            stalled: None,
            deadline: job.request.deadline,
            submitted: job.submitted,
            admitted: Instant::now(),
            begun: false,
            first: None,
            prompt: job.request.prompt.len(),
            cached: 0,
            is_finished: false,
        }
    }

    /// Sender of the request's events.
    pub(super) fn reader(&self) -> Sender<Event> {
        self.events.clone()
    }
    /// True if the consumer has dropped its stream.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }
    /// True if all events were delivered; otherwise the request is parked.
    pub(super) fn is_delivered(&self) -> bool {
        self.outbox.is_empty()
    }
    /// True if all answers have ended.
    pub(super) fn is_finished(&self) -> bool {
        self.is_finished
    }
    /// Tokens decoded, of all answers.
    pub(super) fn answered(&self) -> usize {
        self.sequences.iter().map(Sequence::answered).sum()
    }
    /// Reason to end the request now.
    pub(super) fn fault(&self, now: Instant, stall_timeout: Duration) -> Option<EngineError> {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return Some(EngineError::Deadline);
        }
        self.is_stalled(now, stall_timeout).then_some(EngineError::Stalled)
    }

    /// Time since which the consumer has read nothing although events wait.
    pub(super) fn parked_since(&self) -> Option<Instant> {
        self.stalled
    }

    fn is_stalled(&self, now: Instant, stall_timeout: Duration) -> bool {
        self.stalled.is_some_and(|since| now.saturating_duration_since(since) > stall_timeout)
    }

    /// Reports once that the prefill has begun.
    pub(super) fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.admitted = Instant::now();
            self.send(Event::Started { queued: self.admitted.saturating_duration_since(self.submitted) });
        }
    }

    /// True if the prompt was prefilled.
    pub(super) fn is_prefilled(&self) -> bool {
        self.first.is_some()
    }

    /// Sets the prompt tokens found in the cache.
    pub(super) fn set_cached(&mut self, tokens: usize) {
        self.cached = tokens;
    }
    /// Adds prompt tokens that another sequence has prefilled meanwhile.
    pub(super) fn add_cached(&mut self, tokens: usize) {
        self.cached += tokens;
    }

    /// Reports once that the prompt was prefilled.
    pub(super) fn prefilled(&mut self) {
        if self.first.is_none() {
            let now = Instant::now();
            self.first = Some(now);
            self.send(Event::Prefilled {
                prefill: now.saturating_duration_since(self.admitted),
                prompt_tokens: super::narrow(self.prompt),
                cached_tokens: super::narrow(self.cached),
            });
        }
    }

    /// Reports a part of an answer.
    pub(super) fn output(&mut self, choice: u32, output: SequenceOutput) {
        let SequenceOutput { text, tokens, written, ended, stop, .. } = output;
        if !text.is_empty() || !written.is_empty() {
            self.send(Event::Text { choice, text, tokens, written });
        }
        let Some(reason) = ended else { return };
        if let Some(stop) = stop {
            self.send(Event::StopString { choice, stop });
        }
        self.send(Event::Ended { choice, reason });
        if self.sequences.iter().all(|sequence| sequence.state == SequenceState::Over) {
            self.is_finished = true;
            let first = self.first.unwrap_or_else(Instant::now);
            self.send(Event::Finished(Finished {
                prompt_tokens: super::narrow(self.prompt),
                cached_tokens: super::narrow(self.cached),
                completion_tokens: super::narrow(self.answered()),
                queued: self.admitted.saturating_duration_since(self.submitted),
                prefill: first.saturating_duration_since(self.admitted),
                decode: first.elapsed(),
            }));
        }
    }

    /// Ends the request by an error.
    pub(super) fn fail(self, error: EngineError) {
        let _ = self.events.try_send(Event::Failed(error));
    }

    fn send(&mut self, event: Event) {
        self.outbox.push(event);
        self.flush();
    }

    /// Sends as many events as the consumer has room for, and all that is left of a complete answer.
    pub(super) fn flush(&mut self) {
        let mut outbox = std::mem::take(&mut self.outbox).into_iter();
        for event in outbox.by_ref() {
            // Nothing else fills the channel.
            if self.events.len() >= EVENTS && !self.is_finished {
                self.stalled.get_or_insert_with(Instant::now);
                self.outbox.push(event);
                break;
            }
            if self.events.try_send(event).is_err() {
                // `is_abandoned` finds it before the next step.
                break;
            }
            self.stalled = None;
        }
        self.outbox.extend(outbox);
    }
}
