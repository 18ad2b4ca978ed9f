//! Embeddings and reranking by a built-in model that the route names.

use std::sync::Arc;
use std::time::Instant;

use http::{StatusCode, header};

use super::builtin::name_for_caller;
use super::reading::{held, read, unsupported_endpoint};
use crate::builtin::{self, LoadedModel, SpillError};
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange, ServedBy};
use crate::message::ResponseHead;
use crate::protocol::{DROPPED, Encode, EncodeRequest, Encoded, SERVED_BY, named};
use crate::topology::Route;

/// Answers the request. False where the model has no room. A client that leaves ends the work.
pub(super) async fn encode(
    route: &Route,
    model: &Arc<LoadedModel>,
    what: Encode,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<bool, End> {
    let body = held(exchange).unwrap_or_default();
    let dialect = exchange.dialect;
    let Some(request) = read(exchange, &body, |body| dialect.read_encode(what, body)).await? else {
        return Err(unsupported_endpoint());
    };
    let mut request = request?;
    named(request.model.as_deref())?;
    let deadline = exchange.deadline(route).into_std();
    let encoded = encoded(model, &mut request, what, deadline, session, exchange).await?;
    let Some((encoded, tokens)) = encoded else { return Ok(false) };
    let Some(body) = dialect.write_encoded(name_for_caller(route, model, exchange), &request, &encoded, tokens) else {
        return Err(unsupported_endpoint());
    };
    let mut answer = ResponseHead::new(StatusCode::OK, 4);
    let _ = answer.insert_header(header::CONTENT_TYPE, "application/json");
    let _ = answer.insert_header(&SERVED_BY, model.served_by());
    if let Some(dropped) = request.ignored.header() {
        let _ = answer.insert_header(&DROPPED, dropped);
    }
    super::answers::send(session, exchange, answer, body).await.map_err(|_| End::ClientGone)?;
    Ok(true)
}

/// Vectors or ranks by a built-in model, and the tokens that it read, both noted in the outcome; `None` where the model has no
/// room, so that another target may answer.
pub(super) async fn encoded(
    model: &Arc<LoadedModel>,
    request: &mut EncodeRequest,
    what: Encode,
    deadline: Instant,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Option<(Encoded, u64)>, End> {
    exchange.outcome.begin_answer();
    exchange.outcome.served_by = ServedBy::Model(model.served_by_text().clone());
    let encoded = tokio::select! {
        biased;
        encoded = builtin::encode(model, request, what, deadline) => encoded,
        _ = session.read_body_or_idle(true) => return Err(exchange.left_at_work()),
    };
    match encoded {
        Ok((encoded, tokens)) => {
            exchange.outcome.model_answered = Some(model.name().to_owned());
            exchange.outcome.prompt_tokens = Some(tokens);
            Ok(Some((encoded, tokens)))
        }
        Err(SpillError::Busy(_)) => {
            exchange.outcome.served_by = ServedBy::Gateway;
            Ok(None)
        }
        Err(other) => Err(other.into_refusal().into()),
    }
}
