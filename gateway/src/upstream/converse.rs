//! The conversation of an attempt. Both directions run in one loop on one task, which handles whichever event is next: the
//! head or a part of the answer, a part of the client's body, the client that leaves, or a time limit.

use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use http::{StatusCode, Version};
use spillway_filter::Refusal;
use tokio::time::{sleep_until, timeout_at};

use super::conversation::{Conversation, ConversationEvent};
use super::headers::{early_hints, settle_framing};
use super::outcome::{AttemptOutcome, CutReason, Failure, failure_of_head};
use super::outgoing::{Outgoing, end_body, send, send_part};
use super::passing::client_write;
use super::trailers::of_request;
use super::verdict::{HeadVerdict, judge};
use crate::clock::{self, at_once};
use crate::downstream::violation_of;
use crate::exchange::{expects_continue, too_large_refusal};
use crate::message::ResponseHead;
use crate::timer::KeptTimer;

/// Consequence of an event.
enum EventOutcome {
    /// The conversation continues under the limits that it had.
    Continue,
    /// The conversation continues, and the timer starts again: the limits are others now.
    Rearm,
    /// The attempt has ended.
    End(AttemptOutcome),
}

impl Conversation<'_, '_> {
    /// Runs the conversation to its end. An answer that was `opened` before has its head and first part already; without
    /// one, the request is sent first.
    pub(super) async fn run(&mut self, reused: bool, opened: Option<(ResponseHead, Option<Bytes>)>) -> AttemptOutcome {
        let begun = match opened {
            Some((head, prefix)) => {
                self.state.head_seen = true;
                self.begin(head, prefix).await
            }
            None => self.send_request().await,
        };
        if let Some(outcome) = begun {
            return outcome;
        }
        if !self.state.head_seen
            && let Some(server) = self.upstream.as_mut()
        {
            server.bound_head(self.attempt.backend.max_header_bytes);
        }
        let mut timer = self.session.lend_timer();
        let outcome = self.handle_events(reused, &mut timer).await;
        self.session.return_timer(timer);
        outcome
    }

    /// Handles events until the attempt ends.
    async fn handle_events(&mut self, reused: bool, timer: &mut KeptTimer) -> AttemptOutcome {
        timer.set(self.state.wake_at(self.attempt, self.exchange));
        loop {
            let event = self.next(timer).await;
            let step = match event {
                ConversationEvent::Head => self.head_came().await,
                ConversationEvent::AnswerPart(part) => {
                    self.state.heard = clock::now();
                    if let Err(outcome) = self.pass_part(part).await {
                        return outcome;
                    }
                    // The time that the client took to read is not the server's.
                    self.state.heard = clock::now();
                    EventOutcome::Continue
                }
                ConversationEvent::AnswerEnd => {
                    // A stream that ends in order, but in the middle of what it says, has died as well.
                    if self.state.head_passed && self.passing.is_cut_short() {
                        return self.died(CutReason::UpstreamReset).await;
                    }
                    return self.finish().await;
                }
                ConversationEvent::BodyPart(part) => self.body_came(Some(part)).await,
                ConversationEvent::BodyEnd => self.body_came(None).await,
                ConversationEvent::UpstreamFailed(e) if !self.state.head_passed => {
                    // A server that has sent a head has seen the request: the failure is not that of a stale connection.
                    return AttemptOutcome::Failed(failure_of_head(
                        &e,
                        reused && !self.state.head_seen,
                        self.state.heard,
                    ));
                }
                ConversationEvent::UpstreamFailed(_) => {
                    return self.died(CutReason::UpstreamReset).await;
                }
                ConversationEvent::Silent => return self.died(CutReason::Silent).await,
                ConversationEvent::Ending => {
                    return self.break_off(CutReason::ShuttingDown).await;
                }
                ConversationEvent::Time => {
                    // The limits may have moved since the timer was set.
                    if self.state.wake_at(self.attempt, self.exchange) > clock::now() {
                        EventOutcome::Rearm
                    } else if self.state.release_at.is_some_and(|at| at <= clock::now()) {
                        if let Err(outcome) = self.pass_waiting().await {
                            return outcome;
                        }
                        EventOutcome::Rearm
                    } else {
                        return self.time_is_over().await;
                    }
                }
                ConversationEvent::ClientGone => return AttemptOutcome::ClientGone,
                // The server must not read a part of a body as all of it: its connection is closed without an end.
                ConversationEvent::Malformed(violation) if !self.state.head_passed => {
                    return AttemptOutcome::Malformed(violation);
                }
                ConversationEvent::ClientSlow if !self.state.head_passed => return AttemptOutcome::ClientSlow,
                // The client gets no more than the part of the answer that it has.
                ConversationEvent::Malformed(_) | ConversationEvent::ClientSlow => return AttemptOutcome::ClientGone,
            };
            match step {
                EventOutcome::Continue => {}
                EventOutcome::Rearm => timer.set(self.state.wake_at(self.attempt, self.exchange)),
                EventOutcome::End(outcome) => return outcome,
            }
        }
    }

    /// Sends the request, its body too where that is held. Returns an outcome if the attempt has ended with it.
    async fn send_request(&mut self) -> Option<AttemptOutcome> {
        let Some(server) = self.upstream.as_mut() else { return Some(AttemptOutcome::GivenUp) };
        let limit = self.state.limits.attempt;
        let mut out = Outgoing::new(self.attempt, self.session, self.exchange);
        self.state.callers_account = out.callers_account;
        self.state.shown = std::mem::take(&mut out.shown);
        self.state.sent_host = out.host.take();
        let is_held = out.body.is_some();
        let mut sending = pin!(send(self.attempt, server, out));
        let sent = match at_once(sending.as_mut()).await {
            Poll::Ready(sent) => sent,
            Poll::Pending => tokio::select! {
                biased;
                sent = sending => sent,
                () = sleep_until(limit) => Err(AttemptOutcome::Failed(self.state.overdue(clock::now()))),
                // The client has left. As after the time limit, the server's connection is closed: it may carry half a request.
                _ = self.session.read_body_or_idle(true), if is_held => Err(AttemptOutcome::ClientGone),
            },
        };
        match sent {
            Ok(sent) => self.state.sent = sent,
            Err(outcome) => return Some(outcome),
        }
        if !is_held && expects_continue(self.session) {
            let until = limit.min(clock::now() + self.exchange.write_timeout);
            if client_write(until, self.session.write_continue_response()).await.is_err() {
                return Some(AttemptOutcome::ClientGone);
            }
        }
        self.state.heard = clock::now();
        None
    }

    /// Handles the head of an answer or of an early one: passes it on, or ends the attempt for another target.
    async fn head_came(&mut self) -> EventOutcome {
        let Some(server) = self.upstream.as_mut() else { return EventOutcome::Continue };
        let Some(head) = server.head() else { return EventOutcome::Continue };
        // The gateway passes no `Upgrade` on, so nobody has asked the server for another protocol.
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return EventOutcome::End(AttemptOutcome::Failed(Failure::Protocol("101 without an upgrade".to_owned())));
        }
        if let Err(failure) = self.state.bounds.count(head) {
            return EventOutcome::End(AttemptOutcome::Failed(failure));
        }
        if head.status.is_informational() {
            // Others are dropped: the gateway answers 100 itself.
            if head.status != StatusCode::EARLY_HINTS {
                return EventOutcome::Continue;
            }
            let hints = early_hints(head);
            return match self.pass_early_hints(hints).await {
                Ok(()) => EventOutcome::Continue,
                Err(_) => EventOutcome::End(AttemptOutcome::ClientGone),
            };
        }
        self.state.heard = clock::now();
        self.state.head_seen = true;
        let Some(mut head) = server.take_head() else { return EventOutcome::Continue };
        if let Err(found) = settle_framing(&mut head) {
            return EventOutcome::End(AttemptOutcome::Failed(Failure::Protocol(found.to_owned())));
        }
        self.attempt.read_load(&head);
        let can_resend = self.exchange.body.can_resend(self.session);
        let prefix = match judge(self.attempt, self.state.callers_account, can_resend, server, &head).await {
            HeadVerdict::Pass(prefix) => prefix,
            HeadVerdict::MoveOn(outcome) => return EventOutcome::End(outcome),
        };
        match self.begin(head, prefix).await {
            Some(outcome) => EventOutcome::End(outcome),
            // The limit on the wait for a head no longer applies; the one on pauses does.
            None => EventOutcome::Rearm,
        }
    }

    /// Passes on early hints (103), except to clients that know no early answers, which are those of HTTP/1.0 and of gRPC, and of
    /// a server of another API, whose hints are for a page of its own.
    async fn pass_early_hints(&mut self, mut hints: ResponseHead) -> pingora::Result<()> {
        let knows_none = self.session.req_header().version == Version::HTTP_10 || self.exchange.is_grpc;
        if knows_none || self.attempt.translation.is_some() {
            return Ok(());
        }
        self.state.shown.strip(&mut hints);
        let until = self.state.limits.deadline.min(clock::now() + self.exchange.write_timeout);
        client_write(until, self.session.write_response_header(Box::new(hints))).await
    }

    /// Passes a part of the request's body on to the server; `None` is its end.
    async fn body_came(&mut self, part: Option<Bytes>) -> EventOutcome {
        // The length that a head declares was checked before; many bodies have none.
        let read = self.session.body_bytes();
        if read > self.attempt.route.max_body {
            return EventOutcome::End(if self.state.head_passed {
                self.break_off(CutReason::RequestTooLarge).await
            } else {
                AttemptOutcome::Refused(Box::new(too_large_refusal(self.attempt.route.max_body, "this route accepts")))
            });
        }
        let Some(server) = self.upstream.as_mut() else { return EventOutcome::Continue };
        if let Some(part) = &part
            && let Err(refusal) = self.exchange.show_request_body(part)
        {
            // As with a body that breaks the framing, the server's connection is closed without an end.
            let Refusal { status, kind, code, .. } = *refusal;
            return EventOutcome::End(if self.state.head_passed {
                let cut = CutReason::RefusedByFilter { status, kind, code };
                self.break_off(cut).await
            } else {
                AttemptOutcome::Refused(refusal)
            });
        }
        // The last part of HTTP/2 says that it is the last: no end follows it.
        let ends = part.is_none() || self.session.is_body_done();
        let trailers = if ends { self.session.trailers() } else { None };
        let trailers = trailers.map(|trailers| of_request(&trailers, self.attempt, self.session, self.exchange));
        let written = async {
            let sent = match part {
                Some(part) => send_part(self.attempt, server, part).await,
                None => None,
            };
            match sent {
                None if ends => Some(end_body(self.attempt, server, trailers.unwrap_or_default()).await),
                sent => sent,
            }
        };
        match timeout_at(self.state.attempt_deadline(), written).await {
            Ok(sent) => self.state.sent = sent,
            // The server has not read the request in the time of the attempt.
            Err(_) if !self.state.head_passed => {
                return EventOutcome::End(AttemptOutcome::Failed(self.state.overdue(clock::now())));
            }
            Err(_) => {
                return EventOutcome::End(self.break_off(CutReason::RequestNotRead).await);
            }
        }
        self.state.heard = clock::now();
        // The wait for the answer begins with the end of the request, and is shorter if the server has stopped reading.
        EventOutcome::Rearm
    }

    /// Ends an attempt of which a time limit is over.
    async fn time_is_over(&mut self) -> AttemptOutcome {
        let now = clock::now();
        if !self.state.head_passed {
            // The client still owes a part of the request: the server is not to blame.
            return match self.state.sent {
                None => AttemptOutcome::ClientSlow,
                Some(_) => AttemptOutcome::Failed(self.state.overdue(now)),
            };
        }
        if now >= self.state.limits.deadline {
            return self.break_off(self.attempt.cut_at_deadline(&self.state.limits, self.state.heard)).await;
        }
        self.died(CutReason::Silent).await
    }

    /// Waits for the next event. Every branch may be dropped and polled again: the sessions keep what they have read.
    async fn next(&mut self, timer: &mut KeptTimer) -> ConversationEvent {
        if let Some(pending) = self.state.pending.take() {
            return pending;
        }
        let Self { attempt, session, exchange, upstream, state, .. } = self;
        let answer = async {
            let Some(upstream) = upstream else { return std::future::pending().await };
            if state.head_seen {
                match upstream.read_part().await {
                    Ok(Some(part)) => ConversationEvent::AnswerPart(part),
                    Ok(None) => ConversationEvent::AnswerEnd,
                    Err(e) => ConversationEvent::UpstreamFailed(e),
                }
            } else {
                match upstream.read_head().await {
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
                    session.close_after();
                    match session.read_body_or_idle(false).await {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(e) => return ended_by(&e),
                    }
                }
                let _ = session.read_body_or_idle(true).await;
                return ConversationEvent::ClientGone;
            }
            // Sessions have no such limit of their own.
            match tokio::time::timeout(exchange.body_pause, session.read_body_or_idle(false)).await {
                Ok(Ok(Some(part))) => ConversationEvent::BodyPart(part),
                Ok(Ok(None)) => ConversationEvent::BodyEnd,
                Ok(Err(e)) => ended_by(&e),
                Err(_) => ConversationEvent::ClientSlow,
            }
        };
        let (mut answer, mut client) = (pin!(answer), pin!(client));
        // The time first: a server that always has more to say must not hide that it is over.
        tokio::select! {
            biased;
            () = attempt.downstream.ending.over(), if state.head_passed => ConversationEvent::Ending,
            () = timer.expired() => ConversationEvent::Time,
            next = answer.as_mut() => next,
            next = client.as_mut() => next,
        }
    }
}

/// Event for an error in the client's body.
fn ended_by(e: &pingora::Error) -> ConversationEvent {
    violation_of(e).map_or(ConversationEvent::ClientGone, ConversationEvent::Malformed)
}
