//! The conversation of an attempt. Both directions run in one loop on one task, which handles whichever event is next: the
//! head or a part of the answer, a part of the client's body, the client that leaves, or a time limit.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Version};
use pingora::ErrorType;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::client::HttpSession;
use spillway_filter::Refusal;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::conversation::{ConversationEvent, ConversationState};
use super::headers::early_hints;
use super::outcome::{Attempt, AttemptOutcome, CutReason, Failure, failure_of_head};
use super::outgoing::{Outgoing, end_body, send, send_part};
use super::passing::{Passing, begin, break_off, client_write, died, finish, pass_part};
use super::verdict::{HeadVerdict, judge};
use crate::connect;
use crate::exchange::{Exchange, expects_continue, violation_of};

/// Consequence of an event.
enum EventOutcome {
    /// The conversation continues under the limits that it had.
    Continue,
    /// The conversation continues, and the timer starts again: the limits are others now.
    Rearm,
    /// The attempt has ended.
    End(AttemptOutcome),
}

/// Runs the conversation to its end. An answer that was `opened` before has its head and first part already; without
/// one, the request is sent first.
pub(super) async fn converse(
    attempt: &Attempt<'_>,
    session: &mut ServerSession,
    exchange: &mut Exchange,
    upstream: &mut Option<HttpSession>,
    reused: bool,
    state: &mut ConversationState,
    opened: Option<(ResponseHeader, Option<Bytes>)>,
) -> AttemptOutcome {
    let mut passing = Passing::default();
    let begun = match opened {
        Some((head, prefix)) => {
            state.head_seen = true;
            begin(attempt, session, exchange, upstream, state, &mut passing, head, prefix).await
        }
        None => send_request(attempt, session, exchange, upstream, state).await,
    };
    if let Some(outcome) = begun {
        return outcome;
    }
    let mut timer = std::pin::pin!(sleep_until(state.wake_at(attempt, exchange)));
    if !state.head_seen
        && let Some(server) = upstream.as_ref()
    {
        connect::bound(server, Some(attempt.backend.max_header_bytes));
    }
    loop {
        let event = next(attempt, upstream.as_mut(), session, state, exchange.body_pause, timer.as_mut()).await;
        let step = match event {
            ConversationEvent::Head => head_came(attempt, session, exchange, upstream, state, &mut passing).await,
            ConversationEvent::AnswerPart(part) => {
                state.heard = Instant::now();
                if pass_part(attempt, session, exchange, upstream, state, &mut passing, part).await.is_err() {
                    return state.client_gone();
                }
                // The time that the client took to read is not the server's.
                state.heard = Instant::now();
                EventOutcome::Continue
            }
            ConversationEvent::AnswerEnd => {
                // A stream that ends in order, but in the middle of what it says, has died as well.
                if state.head_passed && passing.is_cut_short() {
                    return died(session, exchange, state, &passing, CutReason::UpstreamReset).await;
                }
                return finish(attempt, session, exchange, upstream, state, &mut passing).await;
            }
            ConversationEvent::BodyPart(part) => {
                body_came(attempt, session, exchange, upstream, state, Some(part)).await
            }
            ConversationEvent::BodyEnd => body_came(attempt, session, exchange, upstream, state, None).await,
            ConversationEvent::UpstreamFailed(e) if !state.head_passed => {
                // A server that has sent a head has seen the request: the failure is not that of a stale connection.
                return AttemptOutcome::Failed(failure_of_head(&e, reused && !state.head_seen));
            }
            ConversationEvent::UpstreamFailed(_) => {
                return died(session, exchange, state, &passing, CutReason::UpstreamReset).await;
            }
            ConversationEvent::Silent => return died(session, exchange, state, &passing, CutReason::Silent).await,
            ConversationEvent::Ending => {
                return break_off(session, exchange, state.event_stream, CutReason::ShuttingDown).await;
            }
            ConversationEvent::Time => {
                // The limits may have moved since the timer was set.
                if state.wake_at(attempt, exchange) > Instant::now() {
                    EventOutcome::Rearm
                } else {
                    return time_is_over(attempt, session, exchange, state, &passing).await;
                }
            }
            ConversationEvent::ClientGone => return AttemptOutcome::ClientGone,
            // The server must not read a part of a body as all of it: its connection is closed without an end.
            ConversationEvent::Malformed(violation) if !state.head_passed => {
                return AttemptOutcome::Malformed(violation);
            }
            ConversationEvent::ClientSlow if !state.head_passed => return AttemptOutcome::ClientSlow,
            // The client gets no more than the part of the answer that it has.
            ConversationEvent::Malformed(_) | ConversationEvent::ClientSlow => return AttemptOutcome::ClientGone,
        };
        match step {
            EventOutcome::Continue => {}
            EventOutcome::Rearm => timer.as_mut().reset(state.wake_at(attempt, exchange)),
            EventOutcome::End(outcome) => return outcome,
        }
    }
}

/// Sends the request, its body too where that is held. Returns an outcome if the attempt has ended with it.
async fn send_request(
    attempt: &Attempt<'_>,
    session: &mut ServerSession,
    exchange: &mut Exchange,
    upstream: &mut Option<HttpSession>,
    state: &mut ConversationState,
) -> Option<AttemptOutcome> {
    let Some(server) = upstream.as_mut() else { return Some(AttemptOutcome::GivenUp) };
    let limit = state.limits.attempt;
    let mut out = Outgoing::new(attempt, session, exchange);
    state.callers_account = out.callers_account;
    state.shown = std::mem::take(&mut out.shown);
    let is_held = out.body.is_some();
    let sent = tokio::select! {
        biased;
        sent = send(attempt, server, out) => sent,
        () = sleep_until(limit) => Err(AttemptOutcome::Failed(state.overdue(Instant::now()))),
        // The client has left. As after the time limit, the server's connection is closed: it may carry half a request.
        _ = session.read_body_or_idle(true), if is_held => Err(AttemptOutcome::ClientGone),
    };
    match sent {
        Ok(sent) => state.sent = sent,
        Err(outcome) => return Some(outcome),
    }
    if !is_held && expects_continue(session) {
        let until = limit.min(Instant::now() + exchange.write_timeout);
        if client_write(until, session.write_continue_response()).await.is_err() {
            return Some(AttemptOutcome::ClientGone);
        }
    }
    state.heard = Instant::now();
    None
}

/// Handles the head of an answer or of an early one: passes it on, or ends the attempt for another target.
async fn head_came(
    attempt: &Attempt<'_>,
    session: &mut ServerSession,
    exchange: &mut Exchange,
    upstream: &mut Option<HttpSession>,
    state: &mut ConversationState,
    passing: &mut Passing,
) -> EventOutcome {
    let Some(server) = upstream.as_mut() else { return EventOutcome::Continue };
    let Some(head) = server.response_header() else { return EventOutcome::Continue };
    // The gateway passes no `Upgrade` on, so nobody has asked the server for another protocol.
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return EventOutcome::End(AttemptOutcome::Failed(Failure::Protocol("101 without an upgrade".to_owned())));
    }
    if let Err(failure) = state.bounds.count(head) {
        return EventOutcome::End(AttemptOutcome::Failed(failure));
    }
    if head.status.is_informational() {
        return match pass_early_hints(session, exchange.write_timeout, state, head).await {
            Ok(()) => EventOutcome::Continue,
            Err(_) => EventOutcome::End(AttemptOutcome::ClientGone),
        };
    }
    state.heard = Instant::now();
    state.head_seen = true;
    let head = head.clone();
    connect::bound(server, None);
    attempt.read_load(&head);
    let prefix = match judge(attempt, state.callers_account, server, &head).await {
        HeadVerdict::Pass(prefix) => prefix,
        HeadVerdict::MoveOn(outcome) => return EventOutcome::End(outcome),
    };
    match begin(attempt, session, exchange, upstream, state, passing, head, prefix).await {
        Some(outcome) => EventOutcome::End(outcome),
        // The limit on the wait for a head no longer applies; the one on pauses does.
        None => EventOutcome::Rearm,
    }
}

/// Passes on early hints (103), except to a client of HTTP/1.0, which knows no early answers. Others are dropped: the
/// gateway answers 100 itself.
async fn pass_early_hints(
    session: &mut ServerSession,
    write_timeout: Duration,
    state: &ConversationState,
    head: &ResponseHeader,
) -> pingora::Result<()> {
    if head.status != StatusCode::EARLY_HINTS || session.req_header().version == Version::HTTP_10 {
        return Ok(());
    }
    let mut hints = Box::new(early_hints(head));
    state.shown.strip(&mut hints);
    let until = state.limits.deadline.min(Instant::now() + write_timeout);
    client_write(until, session.write_response_header(hints)).await
}

/// Passes a part of the request's body on to the server; `None` is its end.
async fn body_came(
    attempt: &Attempt<'_>,
    session: &mut ServerSession,
    exchange: &mut Exchange,
    upstream: &mut Option<HttpSession>,
    state: &mut ConversationState,
    part: Option<Bytes>,
) -> EventOutcome {
    let Some(server) = upstream.as_mut() else { return EventOutcome::Continue };
    if let Some(part) = &part
        && let Err(refusal) = exchange.show_request_body(part)
    {
        // As with a body that breaks the framing, the server's connection is closed without an end.
        let Refusal { status, kind, code, .. } = *refusal;
        return EventOutcome::End(if state.head_passed {
            let cut = CutReason::RefusedByFilter { status, kind, code };
            break_off(session, exchange, state.event_stream, cut).await
        } else {
            AttemptOutcome::Refused(refusal)
        });
    }
    // The last part of HTTP/2 says that it is the last: no end follows it.
    let ends = part.is_none() || session.is_body_done();
    let written = async {
        let sent = match part {
            Some(part) => send_part(attempt, server, part).await,
            None => None,
        };
        match sent {
            None if ends => Some(end_body(attempt, server).await),
            sent => sent,
        }
    };
    match timeout_at(state.ends(), written).await {
        Ok(sent) => state.sent = sent,
        // The server has not read the request in the time of the attempt.
        Err(_) if !state.head_passed => {
            return EventOutcome::End(AttemptOutcome::Failed(state.overdue(Instant::now())));
        }
        Err(_) => {
            return EventOutcome::End(
                break_off(session, exchange, state.event_stream, CutReason::RequestNotRead).await,
            );
        }
    }
    state.heard = Instant::now();
    // The wait for the answer begins with the end of the request, and is shorter if the server has stopped reading.
    EventOutcome::Rearm
}

/// Ends an attempt of which a time limit is over.
async fn time_is_over(
    attempt: &Attempt<'_>,
    session: &mut ServerSession,
    exchange: &mut Exchange,
    state: &ConversationState,
    passing: &Passing,
) -> AttemptOutcome {
    let now = Instant::now();
    if !state.head_passed {
        // The client still owes a part of the request: the server is not to blame.
        return match state.sent {
            None => AttemptOutcome::ClientSlow,
            Some(_) => AttemptOutcome::Failed(state.overdue(now)),
        };
    }
    if now >= state.limits.deadline {
        return break_off(session, exchange, state.event_stream, attempt.cut_at_deadline(state.heard)).await;
    }
    died(session, exchange, state, passing, CutReason::Silent).await
}

/// Waits for the next event. Every branch may be dropped and polled again: Pingora's readers keep what they have read.
async fn next(
    attempt: &Attempt<'_>,
    upstream: Option<&mut HttpSession>,
    session: &mut ServerSession,
    state: &mut ConversationState,
    body_pause: Duration,
    timer: std::pin::Pin<&mut Sleep>,
) -> ConversationEvent {
    if let Some(pending) = state.pending.take() {
        return pending;
    }
    let state = &*state;
    let answer = async {
        let Some(upstream) = upstream else { return std::future::pending().await };
        if state.head_seen {
            match upstream.read_response_body().await {
                Ok(Some(part)) => ConversationEvent::AnswerPart(part),
                Ok(None) => ConversationEvent::AnswerEnd,
                Err(e) => ConversationEvent::UpstreamFailed(e),
            }
        } else {
            match upstream.read_response_header().await {
                Ok(()) => ConversationEvent::Head,
                Err(e) => ConversationEvent::UpstreamFailed(e),
            }
        }
    };
    let client = async {
        if state.sent.is_some() {
            // The server reads no more of the body, so the rest is read and dropped. The check below for a client that
            // leaves would take it for the beginning of another request.
            while !session.is_body_done() {
                session.set_keepalive(None);
                match session.read_body_or_idle(false).await {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    // A client may wait for the answer before it sends the rest.
                    Err(e) if *e.etype() == ErrorType::ReadTimedout => std::future::pending().await,
                    Err(e) => return ended_by(&e),
                }
            }
            let _ = session.read_body_or_idle(true).await;
            return ConversationEvent::ClientGone;
        }
        // HTTP/2 sessions have no such limit of their own.
        match tokio::time::timeout(body_pause, session.read_body_or_idle(false)).await {
            Ok(Ok(Some(part))) => ConversationEvent::BodyPart(part),
            Ok(Ok(None)) => ConversationEvent::BodyEnd,
            // Pingora's own limit on a read is the same, and may be first.
            Ok(Err(e)) if *e.etype() != ErrorType::ReadTimedout => ended_by(&e),
            Ok(Err(_)) | Err(_) => ConversationEvent::ClientSlow,
        }
    };
    // The time first: a server that always has more to say must not hide that it is over.
    tokio::select! {
        biased;
        () = attempt.downstream.ending.over(), if state.head_passed => ConversationEvent::Ending,
        () = timer => ConversationEvent::Time,
        next = answer => next,
        next = client => next,
    }
}

/// Event for an error in the client's body.
fn ended_by(e: &pingora::Error) -> ConversationEvent {
    violation_of(e).map_or(ConversationEvent::ClientGone, ConversationEvent::Malformed)
}
