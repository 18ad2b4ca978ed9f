//! The two ways to run an attempt: from its connection on, or from an answer whose head has arrived.

use http::StatusCode;

use super::connection::{end, not_connected};
use super::conversation::{Conversation, ConversationState};
use super::open::OpenedAnswer;
use super::outcome::{Attempt, AttemptLimits, AttemptOutcome, Failure, TimeLimit};
use super::stages::Passing;
use super::upgrading;
use crate::clock::until;
use crate::downstream::ClientSession;
use crate::exchange::Exchange;
use crate::tunnel::Upgrade;

/// Runs one attempt.
pub async fn run(attempt: &Attempt<'_>, session: &mut ClientSession, exchange: &mut Exchange) -> AttemptOutcome {
    if let Some(upgrade) = exchange.upgrade.clone() {
        return Box::pin(run_upgrade(attempt, &upgrade, session, exchange)).await;
    }
    let limits = AttemptLimits::begin(attempt, exchange);
    let (deadline, whose, attempt_deadline) = (limits.deadline, limits.whose, limits.attempt);
    let connecting = attempt.connector.get(&attempt.endpoint.peer, attempt.alone);
    let (upstream, reused) = match until(attempt_deadline, connecting).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(e)) => return not_connected(attempt, &e),
        Err(_) => {
            let is_request_over = attempt_deadline == deadline;
            let failure =
                if is_request_over { Failure::Deadline(whose) } else { Failure::Timeout(TimeLimit::BackendRequest) };
            return AttemptOutcome::Failed(failure);
        }
    };
    let state = ConversationState::new(limits, attempt.backend.max_header_bytes);
    let passing = Passing::default();
    let mut conversation = Conversation { attempt, session, exchange, upstream: Some(upstream), state, passing };
    let outcome = conversation.run(reused, None).await;
    conversation.conclude(&outcome).await;
    outcome
}

/// Runs an attempt of a request for an upgrade: its answer is passed on, or opens a socket.
async fn run_upgrade(
    attempt: &Attempt<'_>,
    upgrade: &Upgrade,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> AttemptOutcome {
    match Box::pin(upgrading::ask(attempt, upgrade, session, exchange)).await {
        Ok(opened) if opened.head.status == StatusCode::SWITCHING_PROTOCOLS => {
            upgrading::switch(attempt, upgrade, opened, session, exchange).await
        }
        Ok(opened) => relay(attempt, session, exchange, opened).await,
        Err(outcome) => outcome,
    }
}

/// Passes on an answer whose head has arrived.
pub async fn relay(
    attempt: &Attempt<'_>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
    opened: OpenedAnswer,
) -> AttemptOutcome {
    let OpenedAnswer { upstream, head, prefix, sent, callers_account, shown, sent_host, limits } = opened;
    let mut state = ConversationState::new(limits, attempt.backend.max_header_bytes);
    (state.sent, state.callers_account, state.shown, state.sent_host) = (sent, callers_account, shown, sent_host);
    let passing = Passing::default();
    let mut conversation = Conversation { attempt, session, exchange, upstream: Some(upstream), state, passing };
    let outcome = conversation.run(false, Some((head, prefix))).await;
    conversation.conclude(&outcome).await;
    outcome
}

impl Conversation<'_, '_> {
    /// Releases the connection, where the conversation has not done so.
    async fn conclude(&mut self, outcome: &AttemptOutcome) {
        if let Some(upstream) = self.upstream.take() {
            end(self.attempt, upstream, self.state.sent, matches!(outcome, AttemptOutcome::Answered)).await;
        }
    }
}
