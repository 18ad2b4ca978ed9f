//! Pages about keys of consumers that are made at run time. A key is in one answer alone: that of the request which made or
//! rotated it.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use spillway_config::schema::ConsumerLimits;
use spillway_config::values::Duration;

use super::AdminState;
use super::access::{self, problem};
use super::body::{body, starting};
use crate::identity::{IssuedKeys, IssuedTable, KeyCommandError, KeyOrder, MadeKey};

/// Keys of a running gateway, and the table of its running configuration.
pub struct RunningKeys {
    /// Keys of the process.
    pub keys: Arc<IssuedKeys>,
    /// Table of the running configuration; `None` where that has no keys which are made at run time.
    pub table: Option<Arc<IssuedTable>>,
}

/// Body of a request for a key.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewKeyBody {
    consumer: String,
    #[serde(default)]
    expires: Option<String>,
    #[serde(default)]
    limits: Option<ConsumerLimits>,
}

/// Body of a rotation.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RotationBody {
    #[serde(default)]
    grace: Option<Duration>,
}

/// Body of a request to end a key.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExpiryBody {
    #[serde(default)]
    at: Option<String>,
}

/// Keys and their table, or the refusal of a gateway that has none.
fn running(state: &dyn AdminState) -> Result<(Arc<IssuedKeys>, Arc<IssuedTable>), Box<Response>> {
    let running = state.keys().ok_or_else(|| Box::new(starting()))?;
    let table = running.table.ok_or_else(|| Box::new(refused(&KeyCommandError::Off)))?;
    Ok((running.keys, table))
}

fn refused(error: &KeyCommandError) -> Response {
    let status = match error {
        KeyCommandError::UnknownKey => StatusCode::NOT_FOUND,
        KeyCommandError::UnknownConsumer
        | KeyCommandError::Past(_)
        | KeyCommandError::Grace
        | KeyCommandError::Limits(_) => StatusCode::BAD_REQUEST,
        KeyCommandError::Off
        | KeyCommandError::Full(_)
        | KeyCommandError::Expired
        | KeyCommandError::Unreadable
        | KeyCommandError::Overtaken => StatusCode::CONFLICT,
        KeyCommandError::Random(_) | KeyCommandError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    problem(status, &error.to_string())
}

/// Time that an operator wrote, in Unix seconds.
fn time(field: &str, written: Option<&str>) -> Result<Option<u64>, Box<Response>> {
    let Some(written) = written else { return Ok(None) };
    let read = written.parse::<jiff::Timestamp>().ok().and_then(|time| u64::try_from(time.as_second()).ok());
    let wrong = || {
        let detail = format!("`{field}` is not a time; expected one by RFC 3339, such as 2027-01-31T00:00:00Z");
        Box::new(problem(StatusCode::BAD_REQUEST, &detail))
    };
    read.map(Some).ok_or_else(wrong)
}

fn made(status: StatusCode, action: &'static str, by: &str, made: &MadeKey) -> Response {
    let consumer = made.shown.consumer.as_deref().unwrap_or_default();
    tracing::info!(event = "key_change", action, id = made.shown.id, consumer, by);
    (status, axum::Json(made)).into_response()
}

fn answer(done: Result<Response, Box<Response>>) -> Response {
    done.unwrap_or_else(|refused| *refused)
}

/// Lists the keys.
pub(super) async fn list(State(state): State<Arc<dyn AdminState>>) -> Response {
    answer(running(&*state).map(|(keys, table)| {
        let shown = keys.list(&table);
        let shown = serde_json::json!({ "keys": shown, "maxKeys": table.most(), "storeAnswers": keys.store_answers() });
        axum::Json(shown).into_response()
    }))
}

/// Shows one key.
pub(super) async fn one(State(state): State<Arc<dyn AdminState>>, Path(id): Path<String>) -> Response {
    answer(running(&*state).map(|(keys, table)| match keys.list(&table).into_iter().find(|key| key.id == id) {
        Some(key) => axum::Json(key).into_response(),
        None => refused(&KeyCommandError::UnknownKey),
    }))
}

/// Makes a key.
pub(super) async fn create(State(state): State<Arc<dyn AdminState>>, request: Request) -> Response {
    if let Some(refused) = access::refuse_change(request.headers()) {
        return refused;
    }
    let done = async {
        let (keys, table) = running(&*state)?;
        let by = access::who(&request);
        let expected = "{\"consumer\": \"NAME\", \"expires\": \"2027-01-31T00:00:00Z\", \"limits\": {…}}, the last two as you like";
        let missing = || Box::new(problem(StatusCode::BAD_REQUEST, &format!("the body is empty; expected {expected}")));
        let read: NewKeyBody = body(request, expected).await?.ok_or_else(missing)?;
        let expires = time("expires", read.expires.as_deref())?;
        let order = KeyOrder { consumer: read.consumer, expires, limits: read.limits };
        match keys.create(&table, order, &by).await {
            Ok(key) => Ok(made(StatusCode::CREATED, "create", &by, &key)),
            Err(e) => Ok(refused(&e)),
        }
    };
    answer(done.await)
}

/// Removes a key.
pub(super) async fn revoke(
    State(state): State<Arc<dyn AdminState>>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    if let Some(refused) = access::refuse_change(request.headers()) {
        return refused;
    }
    let by = access::who(&request);
    drop(request);
    let done = async {
        let (keys, table) = running(&*state)?;
        match keys.revoke(&table, &id).await {
            Ok(()) => {
                tracing::info!(event = "key_change", action = "revoke", id, by);
                Ok(axum::Json(serde_json::json!({ "id": id, "revoked": true })).into_response())
            }
            Err(e) => Ok(refused(&e)),
        }
    };
    answer(done.await)
}

/// Changes a key: gives it a new secret, or an end.
pub(super) async fn change(
    State(state): State<Arc<dyn AdminState>>,
    Path((id, command)): Path<(String, String)>,
    request: Request,
) -> Response {
    if let Some(refused) = access::refuse_change(request.headers()) {
        return refused;
    }
    let done = async {
        let (keys, table) = running(&*state)?;
        let by = access::who(&request);
        match command.as_str() {
            "rotate" => {
                let read: RotationBody = body(request, "{\"grace\": \"1h\"} or nothing").await?.unwrap_or_default();
                let grace = read.grace.map_or(0, |grace| grace.0.as_secs());
                match keys.rotate(&table, &id, grace).await {
                    Ok(key) => Ok(made(StatusCode::OK, "rotate", &by, &key)),
                    Err(e) => Ok(refused(&e)),
                }
            }
            "expire" => {
                let expected = "{\"at\": \"2027-01-31T00:00:00Z\"} or nothing";
                let read: ExpiryBody = body(request, expected).await?.unwrap_or_default();
                match keys.expire(&table, &id, time("at", read.at.as_deref())?).await {
                    Ok(key) => {
                        tracing::info!(event = "key_change", action = "expire", id, by);
                        Ok(axum::Json(key).into_response())
                    }
                    Err(e) => Ok(refused(&e)),
                }
            }
            _ => Ok(problem(StatusCode::NOT_FOUND, "there is no such command; expected rotate or expire")),
        }
    };
    answer(done.await)
}
