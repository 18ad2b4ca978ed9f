//! The rest of an event stream that died, from another server. The head was sent already, so that only events go to the
//! client. They are marked, and their usage is that of the whole answer.

use std::pin::pin;
use std::time::Instant as Clock;

use bytes::Bytes;
use http::{StatusCode, header};
use tokio::time::{Instant, sleep_until};

use super::answer_model::AnswerModel;
use super::connection::{end, release_early};
use super::events::{Gate, is_event_stream};
use super::masking::{Mask, SentCredentials};
use super::open::OpenedAnswer;
use super::outcome::{Attempt, AttemptOutcome, CutReason, Died, Failure};
use super::outgoing::Sent;
use super::passing::{END_OF_EVENT, break_off, note_answer, refused};
use crate::balancing::Class;
use crate::clock;
use crate::connect::UpstreamSession;
use crate::downstream::{Beside, ClientSession, SLICE, Unread, WriteLimits, deliver, slice};
use crate::exchange::{self, AttemptSlot, Exchange};
use crate::message::ResponseHead;
use crate::protocol::{ContinueStream, Observe, Said, StreamFraming, Transcribe};

/// True if an answer with this head can be the rest of a stream.
pub fn can_continue(head: &ResponseHead) -> bool {
    head.status == StatusCode::OK && is_event_stream(head) && !head.headers.contains_key(header::CONTENT_ENCODING)
}

/// Passes on the rest of an answer of which the client has the text of `before`. If this stream dies as well, the outcome
/// holds the whole text so far.
pub async fn pass_rest(
    attempt: &Attempt<'_>,
    before: &Died,
    opened: OpenedAnswer,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> AttemptOutcome {
    // Only answers with status 200 continue another.
    let OpenedAnswer { upstream, head, prefix, sent, limits, shown, .. } = opened;
    let rewriter = exchange.dialect.continue_stream(&attempt.backend.name, &before.said);
    let Some((transcript, rewriter)) = exchange.dialect.transcribe().zip(rewriter) else {
        end(attempt, upstream, sent, false).await;
        return AttemptOutcome::Failed(Failure::Protocol("the caller's API has no continued streams".to_owned()));
    };
    let mut rest = ResumedStream {
        attempt,
        upstream: Some(upstream),
        sent,
        observer: attempt.observer(&head),
        gate: Gate::new(StreamFraming::Events),
        names: AnswerModel::of(attempt, exchange, &head),
        mask: shown.mask_of_answer(),
        shown,
        is_error: false,
        transcript,
        rewriter,
        has_text: false,
        heard: clock::now(),
        unread: Unread::default(),
        event: None,
    };
    if exchange.is_within_event() {
        let end = Bytes::from_static(END_OF_EVENT);
        if rest.write(session, exchange, limits.deadline, end, false).await.is_err() {
            return AttemptOutcome::ClientGone;
        }
    }
    let mut next = prefix;
    let ended = loop {
        if let Some(part) = next.take() {
            let out = rest.pass(part);
            if rest.has_failed() {
                // Another server may do what this one reports that it cannot.
                break AttemptOutcome::Died(Box::new(Died {
                    said: before.said.clone(),
                    cut: CutReason::UpstreamReset,
                }));
            }
            if rest.write(session, exchange, limits.deadline, out, false).await.is_err() {
                break rest.client_gone();
            }
            if let Some(cut) = refused(exchange) {
                break break_off(session, exchange, true, cut).await;
            }
            // The time that the client took to read is not the server's.
            rest.heard = clock::now();
        }
        let event = match rest.event.take() {
            Some(event) => event,
            None => {
                tokio::select! {
                    biased;
                    () = attempt.downstream.ending.over() => {
                        break break_off(session, exchange, true, CutReason::ShuttingDown).await;
                    }
                    () = sleep_until(limits.deadline) => {
                        break break_off(session, exchange, true, attempt.cut_at_deadline(&limits, rest.heard)).await;
                    }
                    event = rest.read() => event,
                    _ = session.read_body_or_idle(true) => break AttemptOutcome::ClientGone,
                }
            }
        };
        match event {
            ServerEvent::Part(part) => {
                rest.heard = clock::now();
                next = Some(part);
            }
            ServerEvent::End if rest.transcript.is_finished() => {
                rest.event = Some(ServerEvent::End);
                let mut last = rest.gate.rest();
                if let Some(names) = &mut rest.names {
                    last = names.finish(last);
                }
                let last = rest.mask_events(last);
                break match rest.write(session, exchange, limits.deadline, last, true).await {
                    Ok(()) => match refused(exchange) {
                        Some(cut) => break_off(session, exchange, true, cut).await,
                        None => AttemptOutcome::Answered,
                    },
                    Err(_) => rest.client_gone(),
                };
            }
            ServerEvent::Silence => break rest.ended_early(before, session, exchange, CutReason::Silent).await,
            ServerEvent::End | ServerEvent::Failure => {
                break rest.ended_early(before, session, exchange, CutReason::UpstreamReset).await;
            }
        }
    };
    if let Some(observer) = &mut rest.observer {
        let seen = observer.finish();
        let said_before = exchange.outcome.unreported;
        note_answer(attempt, &mut exchange.outcome, seen);
        // The client has text, whatever this server has added to it.
        (exchange.outcome.is_text_known, exchange.outcome.is_error) = (true, false);
        if seen.usage.is_none() {
            exchange.outcome.unreported = exchange.outcome.unreported.and(said_before);
        } else {
            // The text before is part of the answer for the caller, and of the prompt for this server.
            let written = before.said.tokens.into();
            exchange.outcome.prompt_tokens = exchange.outcome.prompt_tokens.map(|read| read.saturating_sub(written));
            exchange.outcome.completion_tokens =
                exchange.outcome.completion_tokens.map(|more| more.saturating_add(written));
        }
    }
    if let Some(upstream) = rest.upstream.take() {
        end(attempt, upstream, sent, matches!(ended, AttemptOutcome::Answered)).await;
    }
    ended
}

/// Next event from the server.
enum ServerEvent {
    Part(Bytes),
    End,
    Failure,
    /// The server was silent for too long.
    Silence,
}

/// The rest of a stream, as it is read and passed on.
struct ResumedStream<'a, 'r> {
    attempt: &'r Attempt<'a>,
    upstream: Option<UpstreamSession>,
    sent: Option<Sent>,
    observer: Option<Box<dyn Observe>>,
    gate: Gate,
    /// Puts the caller's name of the model in place of the server's.
    names: Option<Box<AnswerModel>>,
    /// Credentials of the request, and what masks them in the events.
    shown: SentCredentials,
    mask: Option<Mask>,
    /// True once the server has reported an error, in which more is masked.
    is_error: bool,
    transcript: Box<dyn Transcribe>,
    rewriter: Box<dyn ContinueStream + 'r>,
    has_text: bool,
    heard: Instant,
    /// Bytes that wait for the client.
    unread: Unread,
    /// Event that ended the server's side while the client was slow.
    event: Option<ServerEvent>,
}

impl ResumedStream<'_, '_> {
    fn pass(&mut self, part: Bytes) -> Bytes {
        if let Some(observer) = &mut self.observer {
            observer.feed(&part, Clock::now());
        }
        let mut events = self.gate.pass(part);
        if let Some(names) = &mut self.names {
            events = names.pass(events);
        }
        let events = self.mask_events(events);
        self.transcript.feed(&events);
        if !self.has_text && self.transcript.has_text() {
            self.has_text = true;
            self.attempt.answered(Class::FirstToken, StatusCode::OK);
        }
        self.rewriter.rewrite(&events)
    }

    /// Masks whole events.
    fn mask_events(&mut self, events: Bytes) -> Bytes {
        let has_failed = self.observer.as_ref().is_some_and(|observer| observer.observation().has_failed);
        if has_failed && !std::mem::replace(&mut self.is_error, true) {
            // No credential has a line break: the mask of answers holds nothing back behind an event.
            self.mask = self.shown.mask();
        }
        match &mut self.mask {
            Some(mask) => mask.pass(events),
            None => events,
        }
    }

    /// True if the server reports an error before any text.
    fn has_failed(&self) -> bool {
        !self.has_text && self.observer.as_ref().is_some_and(|observer| observer.observation().has_failed)
    }

    /// Waits for the next event from the server. The future can be dropped and created again.
    async fn read(&mut self) -> ServerEvent {
        let Some(server) = &mut self.upstream else { return std::future::pending().await };
        tokio::select! {
            biased;
            () = sleep_until(self.heard + self.attempt.idle_timeout()) => ServerEvent::Silence,
            read = server.read_part() => match read {
                Ok(Some(part)) => ServerEvent::Part(part),
                Ok(None) => ServerEvent::End,
                Err(_) => ServerEvent::Failure,
            },
        }
    }

    /// Writes a part to the client, then the bytes that were read meanwhile where the client was slow.
    async fn write(
        &mut self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        deadline: Instant,
        mut part: Bytes,
        is_last: bool,
    ) -> pingora::Result<()> {
        let limits = WriteLimits { timeout: exchange.write_timeout, deadline, downstream: self.attempt.downstream };
        let most = exchange.snapshot.buffered_answers_per_request;
        let last = if is_last { part.split_off(part.len().saturating_sub(SLICE)) } else { Bytes::new() };
        loop {
            while let Some(next) = slice(&mut part) {
                let mut passed = exchange.pass(next).await;
                while let Some(next) = slice(&mut passed) {
                    let mut beside =
                        ResumedSide { rest: self, most, place: &mut exchange.place, outcome: &mut exchange.outcome };
                    deliver(pin!(session.write_response_body(next, false)), limits, &mut beside).await?;
                }
            }
            match self.unread.take_slice() {
                Some(more) => part = more,
                None => break,
            }
        }
        exchange.outcome.pause.end();
        if is_last {
            let last = exchange.pass_last(last).await;
            let mut beside =
                ResumedSide { rest: self, most, place: &mut exchange.place, outcome: &mut exchange.outcome };
            let ends = exchange.rewriting.as_ref().is_none_or(|rewriting| !rewriting.is_refused());
            deliver(pin!(session.write_response_body(last, ends)), limits, &mut beside).await?;
        }
        Ok(())
    }

    fn client_gone(&self) -> AttemptOutcome {
        if self.is_whole() { AttemptOutcome::Unread } else { AttemptOutcome::ClientGone }
    }

    fn is_whole(&self) -> bool {
        matches!(self.event, Some(ServerEvent::End)) && self.transcript.is_finished()
    }

    /// Outcome of a stream that ended early: the whole text so far, for another server to continue. Where that is impossible
    /// the client gets an error.
    async fn ended_early(
        &self,
        before: &Died,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        cut: CutReason,
    ) -> AttemptOutcome {
        let Some(said) = self.transcript.to_continue() else {
            return break_off(session, exchange, true, cut).await;
        };
        let said = Said {
            text: format!("{}{}", before.said.text, said.text),
            tokens: before.said.tokens.saturating_add(said.tokens),
            constants: if before.said.constants.is_empty() { said.constants } else { before.said.constants.clone() },
        };
        AttemptOutcome::Died(Box::new(Died { said, cut }))
    }
}

/// The server's side while a write waits for the client.
struct ResumedSide<'l, 'a, 'r> {
    rest: &'l mut ResumedStream<'a, 'r>,
    /// Most bytes of one answer that may wait for the client.
    most: u64,
    place: &'l mut Option<AttemptSlot>,
    outcome: &'l mut exchange::Outcome,
}

impl Beside for ResumedSide<'_, '_, '_> {
    async fn take_in(&mut self) {
        let rest = &mut *self.rest;
        if rest.event.is_some() {
            let is_whole = rest.is_whole();
            if rest.upstream.is_some() || self.place.is_some() {
                release_early(
                    rest.attempt,
                    &mut rest.upstream,
                    self.place,
                    &mut self.outcome.answered_in,
                    rest.sent,
                    is_whole,
                )
                .await;
            }
            return std::future::pending().await;
        }
        if !rest.unread.has_room() {
            self.outcome.pause.begin();
            return std::future::pending().await;
        }
        if self.outcome.pause.end() {
            // The time that the client took to read is not the server's.
            rest.heard = clock::now();
        }
        match rest.read().await {
            ServerEvent::Part(part) => {
                rest.heard = clock::now();
                let part = rest.pass(part);
                rest.unread.push(&part, rest.attempt.downstream, self.most);
            }
            event => rest.event = Some(event),
        }
    }
}
