//! Embeddings and reranking by a built-in model that the route names.

use std::sync::Arc;
use std::time::Instant;

use http::{StatusCode, header};
use spillway_filter::Refusal;

use super::direct::{Direct, name_for_caller};
use super::reading::{held, read, unsupported_endpoint};
use crate::builtin::{self, LoadedModel, SpillError};
use crate::clock;
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange, ServedBy};
use crate::message::ResponseHead;
use crate::off_loop::BUILDS_VALUES;
use crate::protocol::{DROPPED, Encode, EncodeRequest, Encoded, SERVED_BY, named};
use crate::topology::Route;

/// Answers the request. A client that leaves ends the work.
pub(super) async fn encode(
    route: &Route,
    model: &Arc<LoadedModel>,
    what: Encode,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Direct, End> {
    let body = held(exchange).unwrap_or_default();
    let dialect = exchange.dialect;
    let Some(request) = read(exchange, &body, |body| dialect.read_encode(what, body)).await? else {
        return Ok(Direct::Unable(Box::new(unsupported_endpoint())));
    };
    let mut request = match request {
        Ok(request) => request,
        Err(refusal) => return Ok(Direct::Unable(Box::new(refusal))),
    };
    named(request.model.as_deref())?;
    let deadline = exchange.deadline(route).into_std();
    let (encoded, tokens) = match encoded(model, &mut request, what, deadline, session, exchange).await? {
        Encoding::Done(encoded, tokens) => (encoded, tokens),
        Encoding::NoRoom => return Ok(Direct::NoRoom),
        Encoding::Unable(refusal) => return Ok(Direct::Unable(refusal)),
    };
    let name = name_for_caller(route, model, exchange);
    let write = || dialect.write_encoded(name, &request, &encoded, tokens);
    let Some(body) = exchange.off_loop.run(weight(&encoded), write).await? else {
        return Err(unsupported_endpoint().into());
    };
    let mut answer = ResponseHead::new(StatusCode::OK, 4);
    let _ = answer.insert_header(header::CONTENT_TYPE, "application/json");
    let _ = answer.insert_header(&SERVED_BY, model.served_by());
    if let Some(dropped) = request.ignored.header() {
        let _ = answer.insert_header(&DROPPED, dropped);
    }
    super::answers::send_made(session, exchange, answer, body).await?;
    Ok(Direct::Answered)
}

/// Weight of writing vectors or ranks as numbers, for [`OffLoop::run`](crate::off_loop::OffLoop::run).
pub(super) fn weight(encoded: &Encoded) -> usize {
    encoded.bytes().saturating_mul(BUILDS_VALUES)
}

/// Result of the work of a built-in model on texts. Where there is none, another target may answer.
pub(super) enum Encoding {
    /// Vectors or ranks, and the tokens that were read.
    Done(Encoded, u64),
    /// The model has no room.
    NoRoom,
    /// The model cannot take the request, for this reason.
    Unable(Box<Refusal>),
}

/// Vectors or ranks by a built-in model, and the tokens that it read, both noted in the outcome.
pub(super) async fn encoded(
    model: &Arc<LoadedModel>,
    request: &mut EncodeRequest,
    what: Encode,
    deadline: Instant,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Encoding, End> {
    exchange.outcome.begin_answer();
    exchange.outcome.served_by = ServedBy::Model(model.served_by_text().clone());
    let began = clock::instant();
    let encoded = tokio::select! {
        biased;
        encoded = builtin::encode(model, request, what, deadline) => encoded,
        _ = session.read_body_or_idle(true) => return Err(exchange.left_at_work()),
    };
    exchange.outcome.was_at_target(clock::since(began));
    match encoded {
        Ok((encoded, tokens)) => {
            exchange.outcome.model_answered = Some(model.name().to_owned());
            exchange.outcome.prompt_tokens = Some(tokens);
            Ok(Encoding::Done(encoded, tokens))
        }
        Err(SpillError::Busy(_)) => {
            exchange.outcome.served_by = ServedBy::Gateway;
            Ok(Encoding::NoRoom)
        }
        Err(SpillError::CannotSpill(refusal) | SpillError::TooLong(refusal)) => {
            exchange.outcome.served_by = ServedBy::Gateway;
            Ok(Encoding::Unable(Box::new(refusal)))
        }
        Err(other) => Err(other.into_refusal().into()),
    }
}
