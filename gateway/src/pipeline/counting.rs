//! Number of tokens of a prompt by the tokenizer of a built-in model that the route names.

use std::sync::Arc;
use std::time::Instant;

use http::{StatusCode, header};

use super::direct::Direct;
use super::reading::unsupported_endpoint;
use crate::builtin::{self, LoadedModel, SpillError};
use crate::clock;
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange, ServedBy};
use crate::message::ResponseHead;
use crate::protocol::{ChatRequest, DROPPED, SERVED_BY};

/// Answers the request. A client that leaves ends the wait.
pub(super) async fn count(
    model: &Arc<LoadedModel>,
    request: &ChatRequest,
    deadline: Instant,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Direct, End> {
    exchange.outcome.begin_answer();
    let began = clock::instant();
    let counted = tokio::select! {
        biased;
        counted = builtin::count_tokens(model, request, deadline) => counted,
        _ = session.read_body_or_idle(true) => return Err(exchange.left_at_work()),
    };
    exchange.outcome.was_at_target(clock::since(began));
    let tokens = match counted {
        Ok(tokens) => tokens,
        Err(SpillError::Busy(_)) => return Ok(Direct::NoRoom),
        // A backend of the route may be able to.
        Err(SpillError::CannotSpill(refusal) | SpillError::TooLong(refusal)) => {
            return Ok(Direct::Unable(Box::new(refusal)));
        }
        Err(other) => return Err(other.into_refusal().into()),
    };
    exchange.outcome.served_by = ServedBy::Model(model.served_by_text().clone());
    exchange.outcome.model_answered = Some(model.name().to_owned());
    let body = exchange.dialect.write_token_count(tokens).ok_or_else(unsupported_endpoint)?;
    let mut answer = ResponseHead::new(StatusCode::OK, 4);
    let _ = answer.insert_header(header::CONTENT_TYPE, "application/json");
    let _ = answer.insert_header(&SERVED_BY, model.served_by());
    if let Some(dropped) = request.ignored.header() {
        let _ = answer.insert_header(&DROPPED, dropped);
    }
    super::answers::send_made(session, exchange, answer, body).await?;
    Ok(Direct::Answered)
}
