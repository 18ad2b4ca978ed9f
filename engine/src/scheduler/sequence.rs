//! One request that has a place: how far its prompt is read, what it has written, what its reader has yet to take.

use std::time::{Duration, Instant};

use async_channel::{Sender, TrySendError};

use crate::exec::{Row, Sizes};
use crate::sampling::Sampler;
use crate::text::TextStream;
use crate::{EngineError, Event, FinishReason, Finished, Generate};

/// What a sequence needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// To read its prompt.
    Prefill,
    /// To write the next token.
    Decode,
    /// Nothing: its end may still have to be told.
    Over,
}

pub(super) struct Sequence {
    prompt: Vec<u32>,
    /// Prompt tokens that were read.
    read: usize,
    /// The token that goes into the next step.
    last: u32,
    written: u32,
    /// Tokens that are not told yet, because their text is held back.
    untold: u32,
    max_tokens: u32,
    slot: usize,
    sampler: Sampler,
    text: TextStream,
    events: Sender<Event>,
    /// An event that found the channel full.
    outbox: Vec<Event>,
    stalled: Option<Instant>,
    phase: Phase,
    deadline: Option<Instant>,
    submitted: Instant,
    admitted: Instant,
    begun: bool,
    first: Option<Instant>,
    /// Rows that it has in the step at hand.
    pub(super) in_step: usize,
}

impl Sequence {
    /// Tokens that a request may come to, prompt and answer together.
    pub(super) fn length(request: &Generate, sizes: &Sizes) -> usize {
        let answer = request.max_tokens.and_then(|n| usize::try_from(n).ok()).unwrap_or(sizes.context);
        request.prompt.len().saturating_add(answer.max(1)).min(sizes.context)
    }

    pub(super) fn new(
        request: Generate,
        events: Sender<Event>,
        submitted: Instant,
        slot: usize,
        length: usize,
    ) -> Self {
        let prompt = request.prompt.tokens;
        Self {
            max_tokens: u32::try_from(length.saturating_sub(prompt.len())).unwrap_or(u32::MAX).max(1),
            read: 0,
            last: 0,
            written: 0,
            untold: 0,
            slot,
            sampler: Sampler::new(request.sampling),
            text: TextStream::new(request.stop),
            events,
            outbox: Vec::new(),
            stalled: None,
            phase: Phase::Prefill,
            deadline: request.deadline,
            submitted,
            admitted: Instant::now(),
            begun: false,
            first: None,
            in_step: 0,
            prompt,
        }
    }

    pub(super) fn slot(&self) -> usize {
        self.slot
    }
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }
    /// Whether nobody listens any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }
    /// Whether its reader has been given everything.
    pub(super) fn is_told(&self) -> bool {
        self.outbox.is_empty()
    }
    /// How long its reader has taken nothing.
    pub(super) fn stalled_for(&self, now: Instant) -> Duration {
        self.stalled.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
    /// Tokens of it that are in the KV cache.
    pub(super) fn position(&self) -> usize {
        self.read + usize::try_from(self.written.saturating_sub(1)).unwrap_or(0)
    }
    /// Prompt tokens that are not read yet.
    pub(super) fn prompt_left(&self) -> usize {
        self.prompt.len() - self.read
    }
    /// Tokens written.
    pub(super) fn written(&self) -> u32 {
        self.written
    }

    /// Tells, once, that it has begun.
    pub(super) fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            let queued = self.submitted.elapsed();
            self.admitted = Instant::now();
            self.tell(Event::Started { queued });
        }
    }

    /// The next rows of its prompt.
    pub(super) fn prompt_rows(&self, most: usize) -> Vec<Row> {
        let slot = super::narrow(self.slot);
        let unread = self.prompt.iter().enumerate().skip(self.read).take(most);
        unread.map(|(position, token)| Row { token: *token, position: super::narrow(position), slot }).collect()
    }

    /// The row of the token it wrote last.
    pub(super) fn next_row(&self) -> Row {
        Row { token: self.last, position: super::narrow(self.position()), slot: super::narrow(self.slot) }
    }

    pub(super) fn choose(&mut self, logits: &[f32]) -> u32 {
        if self.first.is_none() {
            self.first = Some(Instant::now());
            let prompt_tokens = super::narrow(self.prompt.len());
            self.tell(Event::Prefilled { prefill: self.admitted.elapsed(), prompt_tokens });
        }
        self.sampler.choose(logits)
    }

    /// A token was chosen.
    pub(super) fn push(&mut self, token: u32, bytes: &[u8]) {
        self.last = token;
        self.written += 1;
        self.untold += 1;
        self.phase = Phase::Decode;
        let added = self.text.push(bytes);
        self.say(added.text);
        if added.stopped {
            self.finish(FinishReason::Stop);
        } else if self.written >= self.max_tokens {
            self.finish(FinishReason::Length);
        }
    }

    fn say(&mut self, text: String) {
        if !text.is_empty() {
            let tokens = std::mem::take(&mut self.untold);
            self.tell(Event::Text { text, tokens });
        }
    }

    /// The answer ends.
    pub(super) fn finish(&mut self, reason: FinishReason) {
        if self.phase == Phase::Over {
            return;
        }
        self.phase = Phase::Over;
        let rest = self.text.finish();
        self.say(rest);
        let first = self.first.unwrap_or_else(Instant::now);
        self.tell(Event::Finished(Finished {
            reason,
            prompt_tokens: super::narrow(self.prompt.len()),
            completion_tokens: self.written,
            queued: self.admitted.saturating_duration_since(self.submitted),
            prefill: first.saturating_duration_since(self.admitted),
            decode: first.elapsed(),
        }));
    }

    /// A step has ended. Gives the prompt tokens that it read.
    pub(super) fn advance(&mut self) -> usize {
        let rows = std::mem::take(&mut self.in_step);
        if self.read >= self.prompt.len() {
            return 0;
        }
        self.read += rows;
        rows
    }

    /// It ends before its time.
    pub(super) fn fail(self, error: EngineError) {
        // The reader may have left its channel full: the last event matters more than the one before.
        let _ = self.events.force_send(Event::Failed(error));
    }

    fn tell(&mut self, event: Event) {
        self.outbox.push(event);
        self.flush();
    }

    /// Gives the reader what it has room for.
    pub(super) fn flush(&mut self) {
        let mut outbox = std::mem::take(&mut self.outbox).into_iter();
        for event in outbox.by_ref() {
            match self.events.try_send(event) {
                Ok(()) => self.stalled = None,
                Err(TrySendError::Full(event)) => {
                    self.stalled.get_or_insert_with(Instant::now);
                    self.outbox.push(event);
                    break;
                }
                // `is_abandoned` finds it before the next step.
                Err(TrySendError::Closed(_)) => break,
            }
        }
        self.outbox.extend(outbox);
    }
}
