//! Commands that a person or a pipeline gives to a rollout, and the reasons for which one is refused.

use serde::{Deserialize, Serialize};

use super::record::{HeldUp, RolloutState};
use super::store::StoreError;

/// Command to a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Command {
    /// Begins an ended rollout anew.
    Start,
    /// Stops steps up; judging goes on.
    Pause,
    /// Ends a pause, or goes on without enough evidence.
    Resume,
    /// Ends the rollout: the candidate gets all requests.
    Promote,
    /// Ends the rollout: the candidate gets no request.
    Abort,
}

impl Command {
    /// All commands.
    pub const ALL: [Self; 5] = [Self::Start, Self::Pause, Self::Resume, Self::Promote, Self::Abort];

    /// Name, as in URLs and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote => "promote",
            Self::Abort => "abort",
        }
    }
}

/// Reason for which a command was refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// No route of this name has a rollout.
    #[error("no route `{name}` with a `rollout`; `spillway rollout status` lists those that there are")]
    UnknownRollout {
        /// Name that was given.
        name: String,
    },
    /// The command does not fit the state.
    #[error("`{}` has no effect: the rollout `{name}` is {}; {}", command.as_str(), state.as_str(), advice(*state, *command))]
    NotAllowed {
        /// Name of the rollout.
        name: String,
        /// State of the rollout.
        state: RolloutState,
        /// Command that was given.
        command: Command,
    },
    /// Nothing goes up now.
    #[error("the rollout `{name}` may not be promoted now: {why}")]
    HeldUp {
        /// Name of the rollout.
        name: String,
        /// Reason for which nothing goes up.
        why: HeldUp,
    },
    /// The store of rollouts failed.
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// Advice about a command that does not fit a state.
fn advice(state: RolloutState, command: Command) -> &'static str {
    match (command, state) {
        (Command::Start, RolloutState::Waiting) => "it begins by itself, and its reason says what it waits for",
        (Command::Start, _) => "`start` begins one that has ended; abort it first",
        (Command::Pause, RolloutState::Paused) => "`resume` ends the pause",
        (Command::Pause, RolloutState::Waiting) => "it has not begun; `abort` keeps it from beginning",
        (Command::Resume, RolloutState::Waiting) => "it has not begun, and its reason says what it waits for",
        (Command::Resume, RolloutState::Running) => "`resume` ends a pause or goes on where evidence lacks",
        (_, RolloutState::Promoted | RolloutState::Aborted) => "it has ended; `start` begins it anew",
        _ => "`spillway rollout status` shows its state",
    }
}
