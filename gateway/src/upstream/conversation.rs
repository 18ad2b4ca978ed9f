//! The conversation between a client and a server during an attempt: its parties, its events, its progress, and when its
//! time limits end. Nothing is read or written here.

use bytes::Bytes;
use http::HeaderValue;
use tokio::time::Instant;

use super::bounds::Bounds;
use super::masking::SentCredentials;
use super::outcome::{Attempt, AttemptLimits, AttemptOutcome, Failure, TimeLimit};
use super::outgoing::{GIVEN_ALREADY, Sent};
use super::stages::Passing;
use crate::clock;
use crate::connect::UpstreamSession;
use crate::downstream::ClientSession;
use crate::exchange::Exchange;
use crate::framing::Violation;

/// Conversation between a client and a server during an attempt.
pub(super) struct Conversation<'c, 'a> {
    pub(super) attempt: &'c Attempt<'a>,
    pub(super) session: &'c mut ClientSession,
    pub(super) exchange: &'c mut Exchange,
    /// Connection to the server; `None` once it was given back or closed.
    pub(super) upstream: Option<UpstreamSession>,
    pub(super) state: ConversationState,
    pub(super) passing: Passing,
}

/// Next event of either side.
pub(super) enum ConversationEvent {
    /// The head of an answer, or of an early one, has arrived.
    Head,
    AnswerPart(Bytes),
    AnswerEnd,
    BodyPart(Bytes),
    BodyEnd,
    ClientGone,
    ClientSlow,
    Malformed(Violation),
    UpstreamFailed(Box<pingora::Error>),
    /// A time limit may be over.
    Time,
    /// The server was silent for too long while the client read what had been written before.
    Silent,
    /// The gateway stops and cuts all answers.
    Ending,
}

/// Progress of a conversation.
pub(super) struct ConversationState {
    /// Way in which the sending of the request ended; `None` while parts of it are still to be sent.
    pub(super) sent: Option<Sent>,
    /// The head of the answer has arrived; early answers do not count.
    pub(super) head_seen: bool,
    /// The head of the answer was passed on to the client.
    pub(super) head_passed: bool,
    /// Time at which a head that waits goes to the client, although its body has not begun.
    pub(super) release_at: Option<Instant>,
    pub(super) event_stream: bool,
    /// The answer is an event stream in no coding: an event of the gateway's own can follow those of the server.
    pub(super) takes_events: bool,
    pub(super) content_seen: bool,
    /// Time at which the endpoint was last heard, or the request was sent.
    pub(super) heard: Instant,
    /// Event that ended the server's side while its client was slow, to be handled when the client has read the rest.
    pub(super) pending: Option<ConversationEvent>,
    /// The server's answer was read whole.
    pub(super) answer_read: bool,
    /// The request carries the caller's own credentials for the server.
    pub(super) callers_account: bool,
    /// Credentials of the gateway's that the server was shown.
    pub(super) shown: SentCredentials,
    /// `Host` that the server got.
    pub(super) sent_host: Option<HeaderValue>,
    /// Headers that the server may still send.
    pub(super) bounds: Bounds,
    pub(super) limits: AttemptLimits,
}

impl ConversationState {
    pub(super) fn new(limits: AttemptLimits, max_header_bytes: u64) -> Self {
        Self {
            sent: None,
            head_seen: false,
            head_passed: false,
            release_at: None,
            event_stream: false,
            takes_events: false,
            content_seen: false,
            heard: clock::now(),
            pending: None,
            answer_read: false,
            callers_account: false,
            shown: SentCredentials::default(),
            sent_host: None,
            bounds: Bounds::new(max_header_bytes),
            limits,
        }
    }

    fn is_stalled(&self) -> bool {
        self.sent == Some(Sent::Stalled)
    }

    /// Outcome of an attempt whose client did not read the answer to its end.
    pub(super) fn client_gone(&self) -> AttemptOutcome {
        if self.answer_read { AttemptOutcome::Unread } else { AttemptOutcome::ClientGone }
    }

    /// Time at which the attempt must end. An event stream that has begun is bounded by the deadline of the request
    /// alone.
    pub(super) fn attempt_deadline(&self) -> Instant {
        if self.head_seen && self.event_stream { self.limits.deadline } else { self.limits.attempt }
    }

    /// Time at which the next limit is due, given the progress of the conversation.
    pub(super) fn wake_at(&self, attempt: &Attempt<'_>, exchange: &Exchange) -> Instant {
        let limits = &self.limits;
        let mut due = self.release_at.map_or(limits.deadline, |at| at.min(limits.deadline));
        if self.head_seen {
            due = due.min(self.server_due(attempt));
        } else {
            due = due.min(limits.attempt);
            // The server's time begins when it has the request. Until then the client may pause.
            if self.sent.is_some() {
                let within = if self.is_stalled() { GIVEN_ALREADY } else { attempt.first_byte_timeout() };
                due = due.min(self.heard + within);
            }
        }
        if let Some(limit) = limits.first_token
            && !self.content_seen
            && (self.event_stream || (!self.head_seen && exchange.asked.as_ref().is_some_and(|asked| asked.stream)))
        {
            due = due.min(limit);
        }
        due
    }

    /// Time by which a server that has begun to answer must have continued.
    pub(super) fn server_due(&self, attempt: &Attempt<'_>) -> Instant {
        let silent = self.heard + attempt.idle_timeout();
        if self.event_stream { silent } else { silent.min(self.limits.attempt) }
    }

    /// Failure for the limit that is over at `now`.
    pub(super) fn overdue(&self, now: Instant) -> Failure {
        let limits = &self.limits;
        if now >= limits.deadline {
            Failure::Deadline(limits.whose)
        } else if now >= limits.attempt && !self.event_stream {
            Failure::Timeout(TimeLimit::BackendRequest)
        } else if limits.first_token.is_some_and(|limit| now >= limit) {
            Failure::Timeout(TimeLimit::FirstToken)
        } else if self.is_stalled() || self.head_seen {
            Failure::Timeout(TimeLimit::Idle)
        } else {
            Failure::Timeout(TimeLimit::FirstByte)
        }
    }
}
