//! The two ways to run an attempt: from its connection on, or from an answer whose head has arrived.

use pingora::protocols::http::ServerSession;
use pingora::protocols::http::client::HttpSession;

use super::connection::{end, not_connected};
use super::conversation::ConversationState;
use super::converse::converse;
use super::open::OpenedAnswer;
use super::outcome::{Attempt, AttemptLimits, AttemptOutcome, Failure, TimeLimit};
use crate::exchange::Exchange;

/// Runs one attempt.
pub async fn run(attempt: &Attempt<'_>, session: &mut ServerSession, exchange: &mut Exchange) -> AttemptOutcome {
    let limits = AttemptLimits::begin(attempt, exchange);
    let (deadline, attempt_deadline) = (limits.deadline, limits.attempt);
    let (upstream, reused) = tokio::select! {
        biased;
        connected = attempt.connector.get(&attempt.endpoint.peer) => match connected {
            Ok(connected) => connected,
            Err(e) => return not_connected(attempt, &e),
        },
        () = tokio::time::sleep_until(attempt_deadline) => {
            let is_request_over = attempt_deadline == deadline;
            let failure =
                if is_request_over { Failure::Deadline } else { Failure::Timeout(TimeLimit::BackendRequest) };
            return AttemptOutcome::Failed(failure);
        }
    };
    let mut state = ConversationState::new(limits, attempt.backend.max_header_bytes);
    let mut upstream = Some(upstream);
    let outcome = converse(attempt, session, exchange, &mut upstream, reused, &mut state, None).await;
    conclude(attempt, upstream, &state, &outcome).await;
    outcome
}

/// Passes on an answer whose head has arrived.
pub async fn relay(
    attempt: &Attempt<'_>,
    session: &mut ServerSession,
    exchange: &mut Exchange,
    opened: OpenedAnswer,
) -> AttemptOutcome {
    let OpenedAnswer { upstream, head, prefix, sent, shown, limits } = opened;
    let mut state = ConversationState::new(limits, attempt.backend.max_header_bytes);
    (state.sent, state.shown) = (sent, shown);
    let mut upstream = Some(upstream);
    let outcome = converse(attempt, session, exchange, &mut upstream, false, &mut state, Some((head, prefix))).await;
    conclude(attempt, upstream, &state, &outcome).await;
    outcome
}

/// Releases the connection, where the conversation has not done so.
async fn conclude(
    attempt: &Attempt<'_>,
    upstream: Option<HttpSession>,
    state: &ConversationState,
    outcome: &AttemptOutcome,
) {
    if let Some(upstream) = upstream {
        end(attempt, upstream, state.sent, matches!(outcome, AttemptOutcome::Answered)).await;
    }
}
