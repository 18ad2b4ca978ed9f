//! Embeddings and reranking by a model inside that the route names.

use std::sync::Arc;

use http::{HeaderName, Method, StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;

use super::spilling::{Direct, held};
use crate::exchange::{End, Exchange, ServedBy};
use crate::protocol::openai::{Encode, EncodeRequest};
use crate::spill::{self, LoadedModel, SpillError};

static SERVED_BY: HeaderName = HeaderName::from_static("x-spillway-served-by");

/// Whether a request asks for one of the two.
pub(super) fn asked(session: &ServerSession) -> Option<Encode> {
    let head = session.req_header();
    match head.uri.path() {
        "/v1/embeddings" if head.method == Method::POST => Some(Encode::Embeddings),
        "/v1/rerank" | "/v2/rerank" | "/rerank" if head.method == Method::POST => Some(Encode::Rerank),
        _ => None,
    }
}

/// Answers it. A client that leaves ends the work.
pub(super) async fn direct(
    model: &Arc<LoadedModel>,
    what: Encode,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<Direct, End> {
    let body = held(x).unwrap_or_default();
    let request = super::spilling::read(x, &body, |body| EncodeRequest::parse(body, what)).await??;
    request.addressed_to(model.name())?;
    let deadline = x.route.as_ref().map_or_else(std::time::Instant::now, |route| x.started + route.request_timeout);
    x.outcome.served_by = ServedBy::Model(model.served_by_text().clone());
    let encoded = tokio::select! {
        biased;
        encoded = spill::encode(model, request, what, deadline) => encoded,
        _ = session.read_body_or_idle(true) => return Err(super::forward::left_at_work(x)),
    };
    let encoded = match encoded {
        Ok(encoded) => encoded,
        Err(SpillError::Busy(_)) => {
            // Another target may answer.
            x.outcome.served_by = ServedBy::Gateway;
            return Ok(Direct::NoRoom);
        }
        Err(other) => return Err(other.into_refusal().into()),
    };
    x.outcome.model_answered = Some(model.name().to_owned());
    x.outcome.prompt_tokens = Some(encoded.tokens);
    let mut answer = ResponseHeader::build(StatusCode::OK, Some(4)).map_err(|_| End::ClientGone)?;
    let _ = answer.insert_header(header::CONTENT_TYPE, "application/json");
    let _ = answer.insert_header(&SERVED_BY, model.served_by());
    super::answers::send(session, x, answer, encoded.body).await.map_err(|_| End::ClientGone)?;
    Ok(Direct::Answered)
}
