//! Pages about rollouts: their state, and commands of persons and pipelines.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::AdminState;
use super::access::{self, problem};
use super::body::{body, starting};
use crate::rollout::{Command, CommandError, RolloutRecord};

/// Longest reason, in characters: it is kept in the history and sent with notifications.
const MAX_REASON: usize = 500;

/// Body of a command.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    #[serde(default)]
    reason: Option<String>,
}

/// Lists the rollouts without their evidence and history.
pub(super) async fn list(State(state): State<Arc<dyn AdminState>>) -> Response {
    let Some(rollouts) = state.rollouts() else { return starting() };
    let shown = rollouts.list().iter().map(|record| without(record, &["history", "judgement"])).collect::<Vec<_>>();
    axum::Json(serde_json::json!({ "rollouts": shown })).into_response()
}

/// Shows one rollout whole.
pub(super) async fn one(State(state): State<Arc<dyn AdminState>>, Path(name): Path<String>) -> Response {
    let Some(rollouts) = state.rollouts() else { return starting() };
    match rollouts.get(&name) {
        Some(record) => axum::Json(record).into_response(),
        None if rollouts.is_configured(&name) => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "the state of this rollout is not known yet: its store has not answered",
        ),
        None => problem(StatusCode::NOT_FOUND, "there is no such rollout; /api/rollouts lists them"),
    }
}

/// Gives a command.
pub(super) async fn command(
    State(state): State<Arc<dyn AdminState>>,
    Path((name, command)): Path<(String, String)>,
    request: Request,
) -> Response {
    if let Some(refused) = access::refuse_change(request.headers()) {
        return refused;
    }
    let Some(command) = Command::ALL.into_iter().find(|known| known.as_str() == command) else {
        let message = "there is no such command; expected start, pause, resume, promote or abort";
        return problem(StatusCode::NOT_FOUND, message);
    };
    let Some(rollouts) = state.rollouts() else { return starting() };
    let by = access::who(&request);
    let reason = match reason(request).await {
        Ok(reason) => reason,
        Err(refused) => return *refused,
    };
    let action = command.as_str();
    match rollouts.command(&name, command, &by, reason).await {
        Ok(record) => {
            tracing::info!(event = "rollout_command", action, rollout = %name, %by, state = record.state.as_str());
            axum::Json(record).into_response()
        }
        Err(e) => {
            let status = match &e {
                CommandError::UnknownRollout { .. } => StatusCode::NOT_FOUND,
                CommandError::NotAllowed { .. } | CommandError::HeldUp { .. } => StatusCode::CONFLICT,
                CommandError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            problem(status, &e.to_string())
        }
    }
}

/// Reason in the body of a command, which may be empty.
async fn reason(request: Request) -> Result<Option<String>, Box<Response>> {
    let refuse = |status, detail: &str| Err(Box::new(problem(status, detail)));
    let order: Order = body(request, "{\"reason\": \"…\"} or nothing").await?.unwrap_or_default();
    let reason = order.reason.map(|reason| reason.trim().to_owned()).filter(|reason| !reason.is_empty());
    if reason.as_ref().is_some_and(|reason| reason.chars().count() > MAX_REASON) {
        return refuse(StatusCode::BAD_REQUEST, "the reason is longer than 500 characters");
    }
    if reason.as_ref().is_some_and(|reason| reason.chars().any(char::is_control)) {
        return refuse(StatusCode::BAD_REQUEST, "the reason has a control character; expected one line of text");
    }
    Ok(reason)
}

/// A record as JSON, without some fields.
fn without(record: &RolloutRecord, fields: &[&str]) -> serde_json::Value {
    let mut shown = serde_json::to_value(record).unwrap_or_default();
    if let Some(shown) = shown.as_object_mut() {
        fields.iter().for_each(|field| drop(shown.remove(*field)));
    }
    shown
}
