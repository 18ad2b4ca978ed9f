//! The rest of an event stream that died, from another server: the head is out, so that only events go to the client. They
//! are marked, and say of tokens what holds of the whole answer.

use std::time::{Duration, Instant as Clock};

use bytes::Bytes;
use http::{StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::client::HttpSession;
use tokio::time::{Instant, sleep_until};

use super::attempt::{Attempt, CUT, Died, Failure, Outcome, SHUTTING_DOWN, STOPPING, TOO_SLOW, end, let_go, overran};
use super::events::Gate;
use super::open::Opened;
use super::outgoing::Sent;
use super::passing::{break_off, is_event_stream, note_answer};
use crate::balancing::Class;
use crate::downstream::{Beside, SLICE, Unread, WriteLimits, deliver, slice};
use crate::exchange::{Exchange, Place};
use crate::protocol::{ContinueStream, Observe, Said, Transcribe};

/// Whether an answer with this head can be the rest of a stream.
pub fn can_continue(head: &ResponseHeader) -> bool {
    head.status == StatusCode::OK && is_event_stream(head) && !head.headers.contains_key(header::CONTENT_ENCODING)
}

/// Passes on the rest of an answer that has said what `before` holds. Where it dies as well, the outcome holds all that was
/// said.
pub async fn go_on(
    a: &Attempt<'_>,
    before: &Died,
    opened: Opened,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Outcome {
    // Only answers with status 200 continue another.
    let Opened { upstream, head, prefix, sent, shown: _, limits } = opened;
    let rewriter = x.dialect.continue_stream(&a.backend.name, before.said.tokens);
    let Some((transcript, rewriter)) = x.dialect.transcribe().zip(rewriter) else {
        end(a, upstream, sent, false).await;
        return Outcome::Failed(Failure::Protocol("the caller's API has no continued streams".to_owned()));
    };
    let mut rest = Rest {
        a,
        upstream: Some(upstream),
        sent,
        observer: a.observer(&head),
        gate: Gate::default(),
        transcript,
        rewriter,
        has_text: false,
        heard: Instant::now(),
        unread: Unread::default(),
        is_paused: false,
        came: None,
    };
    let mut next = prefix;
    let ended = loop {
        if let Some(part) = next.take() {
            let out = rest.pass(part);
            if rest.write(session, x, limits.deadline, out, false).await.is_err() {
                break rest.client_gone();
            }
            // The time that the client took to read is not the server's.
            rest.heard = Instant::now();
        }
        let came = match rest.came.take() {
            Some(came) => came,
            None => {
                tokio::select! {
                    biased;
                    () = a.downstream.ending.over() => {
                        break break_off(session, x, true, SHUTTING_DOWN, STOPPING).await;
                    }
                    () = sleep_until(limits.deadline) => {
                        let (code, message) = overran(a, rest.heard);
                        break break_off(session, x, true, code, message).await;
                    }
                    came = rest.read() => came,
                    _ = session.read_body_or_idle(true) => break Outcome::ClientGone,
                }
            }
        };
        match came {
            Came::Part(part) => {
                rest.heard = Instant::now();
                next = Some(part);
            }
            Came::End if rest.transcript.is_finished() => {
                rest.came = Some(Came::End);
                let last = rest.gate.rest();
                break match rest.write(session, x, limits.deadline, last, true).await {
                    Ok(()) => Outcome::Answered,
                    Err(_) => rest.client_gone(),
                };
            }
            Came::Silence => break rest.ended_early(before, session, x, TOO_SLOW).await,
            Came::End | Came::Failure => break rest.ended_early(before, session, x, CUT).await,
        }
    };
    if let Some(observer) = &mut rest.observer {
        let seen = observer.finish();
        let said_before = x.outcome.content_events;
        note_answer(&mut x.outcome, seen);
        x.outcome.content_events = x.outcome.content_events.saturating_add(said_before);
        if seen.usage.is_some() {
            // What was written before is part of the answer to the caller and of the prompt to this server.
            let written = before.said.tokens.into();
            x.outcome.prompt_tokens = x.outcome.prompt_tokens.map(|read| read.saturating_sub(written));
            x.outcome.completion_tokens = x.outcome.completion_tokens.map(|more| more.saturating_add(written));
        }
    }
    if let Some(upstream) = rest.upstream.take() {
        end(a, upstream, sent, matches!(ended, Outcome::Answered)).await;
    }
    ended
}

/// Next event from the server.
enum Came {
    Part(Bytes),
    End,
    Failure,
    /// The server was silent for too long.
    Silence,
}

struct Rest<'a, 'r> {
    a: &'r Attempt<'a>,
    upstream: Option<HttpSession>,
    sent: Option<Sent>,
    observer: Option<Box<dyn Observe>>,
    gate: Gate,
    transcript: Box<dyn Transcribe>,
    rewriter: Box<dyn ContinueStream + 'r>,
    has_text: bool,
    heard: Instant,
    /// Bytes that wait for the client.
    unread: Unread,
    is_paused: bool,
    /// Event that ended the server's side while the client was slow.
    came: Option<Came>,
}

impl Rest<'_, '_> {
    fn pass(&mut self, part: Bytes) -> Bytes {
        if let Some(observer) = &mut self.observer {
            observer.feed(&part, Clock::now());
        }
        let events = self.gate.pass(part);
        self.transcript.feed(&events);
        if !self.has_text && self.transcript.has_text() {
            self.has_text = true;
            self.a.answered(Class::FirstToken, StatusCode::OK);
        }
        self.rewriter.rewrite(&events)
    }

    /// Waits for what the server says. Can be dropped and asked again.
    async fn read(&mut self) -> Came {
        let Some(server) = &mut self.upstream else { return std::future::pending().await };
        tokio::select! {
            biased;
            () = sleep_until(self.heard + self.a.backend.idle_timeout) => Came::Silence,
            read = server.read_response_body() => match read {
                Ok(Some(part)) => Came::Part(part),
                Ok(None) => Came::End,
                Err(_) => Came::Failure,
            },
        }
    }

    /// Writes a part to the client, and what has come meanwhile where the client was slow to take it.
    async fn write(
        &mut self,
        session: &mut ServerSession,
        x: &mut Exchange,
        deadline: Instant,
        mut part: Bytes,
        is_last: bool,
    ) -> pingora::Result<()> {
        let limits = WriteLimits { timeout: x.write_timeout, deadline, downstream: self.a.downstream };
        let most = x.snapshot.buffered_answers_per_request;
        let last = if is_last { part.split_off(part.len().saturating_sub(SLICE)) } else { Bytes::new() };
        loop {
            while let Some(next) = slice(&mut part) {
                x.pass(&next);
                let mut beside =
                    RestSide { rest: self, most, place: &mut x.place, answered_in: &mut x.outcome.answered_in };
                deliver(session.write_response_body(next, false), limits, &mut beside).await?;
            }
            match self.unread.take_slice() {
                Some(more) => part = more,
                None => break,
            }
        }
        if is_last {
            x.pass(&last);
            let mut beside =
                RestSide { rest: self, most, place: &mut x.place, answered_in: &mut x.outcome.answered_in };
            deliver(session.write_response_body(last, true), limits, &mut beside).await?;
        }
        Ok(())
    }

    fn client_gone(&self) -> Outcome {
        if self.is_whole() { Outcome::Unread } else { Outcome::ClientGone }
    }

    fn is_whole(&self) -> bool {
        matches!(self.came, Some(Came::End)) && self.transcript.is_finished()
    }

    /// All that was said so far, for another one to continue; where that cannot be, the client is told.
    async fn ended_early(
        &self,
        before: &Died,
        session: &mut ServerSession,
        x: &mut Exchange,
        (code, message): (&'static str, &'static str),
    ) -> Outcome {
        let Some(said) = self.transcript.to_continue() else {
            return break_off(session, x, true, code, message).await;
        };
        let said = Said {
            text: format!("{}{}", before.said.text, said.text),
            tokens: before.said.tokens.saturating_add(said.tokens),
        };
        Outcome::Died(Box::new(Died { said, code, message }))
    }
}

/// The server's side while the client does not take what is written to it.
struct RestSide<'l, 'a, 'r> {
    rest: &'l mut Rest<'a, 'r>,
    /// Bytes of one answer that may wait.
    most: u64,
    place: &'l mut Option<Place>,
    answered_in: &'l mut Option<Duration>,
}

impl Beside for RestSide<'_, '_, '_> {
    async fn take_in(&mut self) {
        let rest = &mut *self.rest;
        if rest.came.is_some() {
            let is_whole = rest.is_whole();
            if rest.upstream.is_some() || self.place.is_some() {
                let_go(rest.a, &mut rest.upstream, self.place, self.answered_in, rest.sent, is_whole).await;
            }
            return std::future::pending().await;
        }
        if !rest.unread.has_room() {
            rest.is_paused = true;
            return std::future::pending().await;
        }
        if std::mem::take(&mut rest.is_paused) {
            // The time that the client took to read is not the server's.
            rest.heard = Instant::now();
        }
        match rest.read().await {
            Came::Part(part) => {
                rest.heard = Instant::now();
                let part = rest.pass(part);
                rest.unread.push(&part, rest.a.downstream, self.most);
            }
            came => rest.came = Some(came),
        }
    }
}
