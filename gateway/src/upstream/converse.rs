//! The conversation of an attempt. Both directions run in one loop on one task: whatever comes next is handled, be it the
//! head or a part of the answer, a part of the client's body, the client leaving, or a time limit.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use pingora::ErrorType;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::client::HttpSession;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::attempt::{
    Attempt, CUT, Failure, Limits, Outcome, SHUTTING_DOWN, STOPPING, TOO_SLOW, TimeLimit, failure_of_head, overran,
};
use super::bounds::Bounds;
use super::headers::early_hints;
use super::masking::Shown;
use super::outgoing::{GIVEN_ALREADY, Outgoing, Sent, end_body, send, send_part};
use super::passing::{Passing, begin, break_off, client_write, died, finish, pass_part};
use super::verdict::{Verdict, judge};
use crate::connect;
use crate::exchange::{Exchange, expects_continue, violation_of};
use crate::framing::Violation;

/// What comes next of either side.
pub(super) enum Next {
    Head,
    AnswerPart(Bytes),
    AnswerEnd,
    BodyPart(Bytes),
    BodyEnd,
    ClientGone,
    ClientSlow,
    Malformed(Violation),
    UpstreamFailed(Box<pingora::Error>),
    Time,
    /// The server was silent for too long while the client took what it had said before.
    Silent,
    /// The gateway ends and with it all answers.
    Ending,
}

/// Where the conversation stands.
pub(super) struct State {
    /// How the sending of the request has ended; `None` while parts of it are still to come.
    pub(super) sent: Option<Sent>,
    pub(super) head_seen: bool,
    pub(super) head_passed: bool,
    pub(super) event_stream: bool,
    pub(super) content_seen: bool,
    /// When the endpoint was last heard, or the request was sent.
    pub(super) heard: Instant,
    /// Event that ended the server's side while its client was slow, to be handled when the client has taken the rest.
    pub(super) came: Option<Next>,
    /// The server's answer was read whole.
    pub(super) is_over: bool,
    /// The server is not read, because too much waits for the client.
    pub(super) is_paused: bool,
    /// Credentials of the gateway's that the server was shown.
    pub(super) shown: Shown,
    pub(super) limits: Limits,
}

impl State {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            sent: None,
            head_seen: false,
            head_passed: false,
            event_stream: false,
            content_seen: false,
            heard: Instant::now(),
            came: None,
            is_over: false,
            is_paused: false,
            shown: Shown::default(),
            limits,
        }
    }

    fn is_stalled(&self) -> bool {
        self.sent == Some(Sent::Stalled)
    }

    /// How an attempt ended whose client did not take the answer.
    pub(super) fn client_gone(&self) -> Outcome {
        if self.is_over { Outcome::Unread } else { Outcome::ClientGone }
    }

    /// When the attempt must have come to an end, or the request where the attempt was in time.
    fn ends(&self) -> Instant {
        if self.head_seen && self.event_stream { self.limits.deadline } else { self.limits.attempt }
    }
}

pub(super) async fn converse(
    a: &Attempt<'_>,
    session: &mut ServerSession,
    x: &mut Exchange,
    upstream: &mut Option<HttpSession>,
    reused: bool,
    state: &mut State,
    opened: Option<(ResponseHeader, Option<Bytes>)>,
) -> Outcome {
    let is_head = session.req_header().method == Method::HEAD;
    let mut passing = Passing::default();
    let mut callers_account = false;
    let limits = state.limits;
    match opened {
        Some((head, prefix)) => {
            state.head_seen = true;
            if let Some(outcome) = begin(a, session, x, upstream, state, &mut passing, head, prefix, is_head).await {
                return outcome;
            }
        }
        None => {
            let Some(server) = upstream.as_mut() else { return Outcome::GivenUp };
            let mut out = Outgoing::new(a, session, x);
            callers_account = out.callers_account;
            state.shown = std::mem::take(&mut out.shown);
            let is_held = out.body.is_some();
            let sent = tokio::select! {
                biased;
                sent = send(a, server, out) => sent,
                () = sleep_until(limits.attempt) => Err(Outcome::Failed(overdue(state, Instant::now()))),
                // A connection with half a request on it is closed in either case.
                _ = session.read_body_or_idle(true), if is_held => Err(Outcome::ClientGone),
            };
            match sent {
                Ok(sent) => state.sent = sent,
                Err(outcome) => return outcome,
            }
            if !is_held
                && expects_continue(session)
                && client_write(limits.attempt.min(Instant::now() + x.write_timeout), session.write_continue_response())
                    .await
                    .is_err()
            {
                return Outcome::ClientGone;
            }
            state.heard = Instant::now();
        }
    }
    let mut timer = std::pin::pin!(sleep_until(wake_at(a, x, state)));
    if !state.head_seen
        && let Some(server) = upstream.as_ref()
    {
        connect::bound(server, Some(a.backend.max_header_bytes));
    }
    let mut bounds = Bounds::new(a.backend.max_header_bytes);
    loop {
        match next(a, upstream.as_mut(), session, state, x.body_pause, timer.as_mut()).await {
            Next::Head => {
                let Some(server) = upstream.as_mut() else { continue };
                let Some(head) = server.response_header() else { continue };
                // `Upgrade` ends here, so that nobody has asked for another protocol.
                if head.status == StatusCode::SWITCHING_PROTOCOLS {
                    return Outcome::Failed(Failure::Protocol("101 without an upgrade".to_owned()));
                }
                if let Err(failure) = bounds.count(head) {
                    return Outcome::Failed(failure);
                }
                if head.status.is_informational() {
                    // 100 was answered by us; what else there may be means nothing to HTTP/1.0.
                    if head.status == StatusCode::EARLY_HINTS && session.req_header().version != Version::HTTP_10 {
                        let mut hints = Box::new(early_hints(head));
                        state.shown.strip(&mut hints);
                        let until = limits.deadline.min(Instant::now() + x.write_timeout);
                        if client_write(until, session.write_response_header(hints)).await.is_err() {
                            return Outcome::ClientGone;
                        }
                    }
                    continue;
                }
                state.heard = Instant::now();
                state.head_seen = true;
                let head = head.clone();
                connect::bound(server, None);
                a.read_load(&head);
                let prefix = match judge(a, callers_account, server, &head).await {
                    Verdict::Pass(prefix) => prefix,
                    Verdict::MoveOn(outcome) => return outcome,
                };
                if let Some(outcome) = begin(a, session, x, upstream, state, &mut passing, head, prefix, is_head).await
                {
                    return outcome;
                }
                // The time for a head and that for a pause are two limits: the timer starts again.
                timer.as_mut().reset(wake_at(a, x, state));
            }
            Next::AnswerPart(part) => {
                state.heard = Instant::now();
                if pass_part(a, session, x, upstream, state, &mut passing, part).await.is_err() {
                    return state.client_gone();
                }
                // The time that the client took to read is not the server's.
                state.heard = Instant::now();
            }
            Next::AnswerEnd => {
                // A stream that ends in order, but in the middle of what it says, has died as well.
                if state.head_passed && passing.is_cut_short() {
                    return died(session, x, state, &passing, CUT).await;
                }
                return finish(a, session, x, upstream, state, &mut passing).await;
            }
            Next::BodyPart(part) => {
                let Some(server) = upstream.as_mut() else { continue };
                // As with a body that breaks the framing, the server's connection is closed without an end.
                if let Err(refusal) = x.show_request_body(&part) {
                    if !state.head_passed {
                        return Outcome::Refused(refusal);
                    }
                    let message = "a filter refused the rest of the request's body";
                    return break_off(session, x, state.event_stream, refusal.code, message).await;
                }
                // The last part of HTTP/2 says that it is the last: no end follows it.
                let ends = session.is_body_done();
                let written = async {
                    match send_part(a, server, part).await {
                        None if ends => Some(end_body(a, server).await),
                        ended => ended,
                    }
                };
                let Ok(sent) = timeout_at(state.ends(), written).await else {
                    return not_read(session, x, state).await;
                };
                state.sent = sent;
                state.heard = Instant::now();
                // For an answer of one who reads no more there is less time.
                timer.as_mut().reset(wake_at(a, x, state));
            }
            Next::BodyEnd => {
                let Some(server) = upstream.as_mut() else { continue };
                let Ok(sent) = timeout_at(state.ends(), end_body(a, server)).await else {
                    return not_read(session, x, state).await;
                };
                state.sent = Some(sent);
                state.heard = Instant::now();
                timer.as_mut().reset(wake_at(a, x, state));
            }
            Next::ClientGone => return Outcome::ClientGone,
            // The server must not take a part of a body for all of it: its connection is closed without an end.
            Next::Malformed(violation) if !state.head_passed => return Outcome::Malformed(violation),
            Next::Malformed(_) => return Outcome::ClientGone,
            // An answer that is on its way already is all that the client gets.
            Next::ClientSlow if state.head_passed => return Outcome::ClientGone,
            Next::ClientSlow => return Outcome::ClientSlow,
            Next::UpstreamFailed(e) => {
                if !state.head_passed {
                    // A server that has sent a head has seen the request.
                    return Outcome::Failed(failure_of_head(&e, reused && !state.head_seen));
                }
                return died(session, x, state, &passing, CUT).await;
            }
            Next::Silent => return died(session, x, state, &passing, TOO_SLOW).await,
            Next::Ending => return break_off(session, x, state.event_stream, SHUTTING_DOWN, STOPPING).await,
            Next::Time => {
                let now = Instant::now();
                let due = wake_at(a, x, state);
                if due > now {
                    timer.as_mut().reset(due);
                    continue;
                }
                // Who still owes a part of the request has let the time pass, not the server.
                if state.sent.is_none() && !state.head_passed {
                    return Outcome::ClientSlow;
                }
                let failure = overdue(state, now);
                if !state.head_passed {
                    return Outcome::Failed(failure);
                }
                if now >= limits.deadline {
                    let (code, message) = overran(a, state.heard);
                    return break_off(session, x, state.event_stream, code, message).await;
                }
                return died(session, x, state, &passing, TOO_SLOW).await;
            }
        }
    }
}

/// The time of the attempt is over, and the server has not taken the request yet.
async fn not_read(session: &mut ServerSession, x: &mut Exchange, state: &State) -> Outcome {
    if !state.head_passed {
        return Outcome::Failed(overdue(state, Instant::now()));
    }
    let message = "the backend did not take the request in time";
    break_off(session, x, state.event_stream, "timeout", message).await
}

/// Waits for what comes next. Every branch may be dropped and asked again: Pingora's readers keep what they have read.
async fn next(
    a: &Attempt<'_>,
    upstream: Option<&mut HttpSession>,
    session: &mut ServerSession,
    state: &mut State,
    body_pause: Duration,
    timer: std::pin::Pin<&mut Sleep>,
) -> Next {
    if let Some(came) = state.came.take() {
        return came;
    }
    let state = &*state;
    let answer = async {
        let Some(upstream) = upstream else { return std::future::pending().await };
        if state.head_seen {
            match upstream.read_response_body().await {
                Ok(Some(part)) => Next::AnswerPart(part),
                Ok(None) => Next::AnswerEnd,
                Err(e) => Next::UpstreamFailed(e),
            }
        } else {
            match upstream.read_response_header().await {
                Ok(()) => Next::Head,
                Err(e) => Next::UpstreamFailed(e),
            }
        }
    };
    let client = async {
        if state.sent.is_some() {
            // What the server takes no more is thrown away: looking whether the client is there would read it as the
            // beginning of another request.
            while !session.is_body_done() {
                session.set_keepalive(None);
                match session.read_body_or_idle(false).await {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    // A client that waits for the answer before it sends the rest may do so.
                    Err(e) if *e.etype() == ErrorType::ReadTimedout => std::future::pending().await,
                    Err(e) => return ended_by(&e),
                }
            }
            let _ = session.read_body_or_idle(true).await;
            return Next::ClientGone;
        }
        // HTTP/2 sessions have no such limit of their own.
        match tokio::time::timeout(body_pause, session.read_body_or_idle(false)).await {
            Ok(Ok(Some(part))) => Next::BodyPart(part),
            Ok(Ok(None)) => Next::BodyEnd,
            // Pingora's own limit on a read is the same, and may be first.
            Ok(Err(e)) if *e.etype() != ErrorType::ReadTimedout => ended_by(&e),
            Ok(Err(_)) | Err(_) => Next::ClientSlow,
        }
    };
    // The time first: a server that always has more to say must not keep it from being looked at.
    tokio::select! {
        biased;
        () = a.downstream.ending.over(), if state.head_passed => Next::Ending,
        () = timer => Next::Time,
        next = answer => next,
        next = client => next,
    }
}

/// Outcome of an error in reading the client's body.
fn ended_by(e: &pingora::Error) -> Next {
    violation_of(e).map_or(Next::ClientGone, Next::Malformed)
}

/// When the next limit is due, given where the conversation stands.
fn wake_at(a: &Attempt<'_>, x: &Exchange, state: &State) -> Instant {
    let limits = &state.limits;
    let mut due = limits.deadline;
    if state.head_seen {
        due = due.min(server_due(a, state));
    } else {
        due = due.min(limits.attempt);
        // The server's time begins when it has the request; until then the client is waited for, as long as it may pause.
        if state.sent.is_some() {
            let within = if state.is_stalled() { GIVEN_ALREADY } else { a.backend.first_byte_timeout };
            due = due.min(state.heard + within);
        }
    }
    if let Some(limit) = limits.first_token
        && !state.content_seen
        && (state.event_stream || (!state.head_seen && x.asked.as_ref().is_some_and(|asked| asked.stream)))
    {
        due = due.min(limit);
    }
    due
}

/// When a server that has begun to answer must have gone on.
pub(super) fn server_due(a: &Attempt<'_>, state: &State) -> Instant {
    let silent = state.heard + a.backend.idle_timeout;
    if state.event_stream { silent } else { silent.min(state.limits.attempt) }
}

fn overdue(state: &State, now: Instant) -> Failure {
    let limits = &state.limits;
    if now >= limits.deadline {
        Failure::Deadline
    } else if now >= limits.attempt && !state.event_stream {
        Failure::Timeout(TimeLimit::BackendRequest)
    } else if limits.first_token.is_some_and(|limit| now >= limit) {
        Failure::Timeout(TimeLimit::FirstToken)
    } else if state.is_stalled() {
        Failure::Timeout(TimeLimit::Idle)
    } else {
        Failure::Timeout(TimeLimit::FirstByte)
    }
}
