//! The rest of an event stream that died, from another server: the head is out, so that only events go to the client. They
//! are marked, and say of tokens what holds of the whole answer.

use std::time::Instant as Clock;

use bytes::Bytes;
use http::{StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use tokio::time::{Instant, sleep_until};

use super::attempt::{Attempt, CUT, Died, Outcome, TOO_SLOW, end, overran};
use super::events::{Gate, Transcript};
use super::open::Opened;
use super::passing::{break_off, client_write, is_event_stream, note_answer};
use crate::balancing::Class;
use crate::exchange::Exchange;
use crate::protocol::openai::Continuation;

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
    let Opened { mut upstream, head, prefix, sent, limits } = opened;
    let mut rest = Rest {
        gate: Gate::default(),
        transcript: Transcript::default(),
        rewriter: Continuation::new(&a.backend.name, before.tokens),
        has_text: false,
    };
    let mut observer = a.observer(&head);
    let mut next = prefix;
    let mut heard = Instant::now();
    let ended = loop {
        if let Some(part) = next.take() {
            if let Some(observer) = &mut observer {
                observer.feed(&part, Clock::now());
            }
            let out = rest.pass(part);
            if !rest.has_text && rest.transcript.has_text() {
                rest.has_text = true;
                a.answered(Class::FirstToken, StatusCode::OK);
            }
            if write(session, x, limits.deadline, out, false).await.is_err() {
                break Outcome::ClientGone;
            }
            // The time that the client took to read is not the server's.
            heard = Instant::now();
        }
        let pause = limits.deadline.min(heard + a.backend.idle_timeout);
        let part = tokio::select! {
            biased;
            () = sleep_until(pause) => {
                break if pause == limits.deadline {
                    let (code, message) = overran(a, heard);
                    break_off(session, x, true, code, message).await
                } else {
                    rest.ended_early(before, session, x, TOO_SLOW).await
                };
            }
            part = upstream.read_response_body() => part,
            _ = session.read_body_or_idle(true) => break Outcome::ClientGone,
        };
        match part {
            Ok(Some(part)) => next = Some(part),
            Ok(None) if rest.transcript.is_finished() => {
                let last = rest.gate.rest();
                break match write(session, x, limits.deadline, last, true).await {
                    Ok(()) => Outcome::Answered,
                    Err(_) => Outcome::ClientGone,
                };
            }
            Ok(None) | Err(_) => {
                break rest.ended_early(before, session, x, CUT).await;
            }
        }
    };
    if let Some(observer) = &mut observer {
        let seen = observer.finish();
        let said_before = x.outcome.content_events;
        note_answer(x, seen);
        x.outcome.content_events = x.outcome.content_events.saturating_add(said_before);
        if seen.usage.is_some() {
            // What was written before is part of the answer to the caller and of the prompt to this server.
            let written = before.tokens.into();
            x.outcome.prompt_tokens = x.outcome.prompt_tokens.map(|read| read.saturating_sub(written));
            x.outcome.completion_tokens = x.outcome.completion_tokens.map(|more| more.saturating_add(written));
        }
    }
    end(a, upstream, sent, &ended).await;
    ended
}

struct Rest<'a> {
    gate: Gate,
    transcript: Transcript,
    rewriter: Continuation<'a>,
    has_text: bool,
}

impl Rest<'_> {
    fn pass(&mut self, part: Bytes) -> Bytes {
        let events = self.gate.pass(part);
        self.transcript.feed(&events);
        self.rewriter.rewrite(&events)
    }

    /// All that was said so far, for another one to continue; where that cannot be, the client is told.
    async fn ended_early(
        &self,
        before: &Died,
        session: &mut ServerSession,
        x: &mut Exchange,
        (code, message): (&'static str, &'static str),
    ) -> Outcome {
        let Some((text, tokens)) = self.transcript.to_continue() else {
            return break_off(session, x, true, code, message).await;
        };
        let (text, tokens) = (format!("{}{text}", before.text), before.tokens.saturating_add(tokens));
        Outcome::Died(Box::new(Died { text, tokens, code, message }))
    }
}

async fn write(
    session: &mut ServerSession,
    x: &mut Exchange,
    deadline: Instant,
    part: Bytes,
    is_last: bool,
) -> pingora::Result<()> {
    if part.is_empty() && !is_last {
        return Ok(());
    }
    x.outcome.bytes_out = x.outcome.bytes_out.saturating_add(u64::try_from(part.len()).unwrap_or(0));
    client_write(deadline, session.write_response_body(part, is_last)).await
}
