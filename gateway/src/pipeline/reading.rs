//! Reading a held body for a built-in model, off the event loop where it is long.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use spillway_filter::{ErrorKind, Refusal};

use crate::exchange::{End, Exchange, RequestBody};
use crate::off_loop::BUILDS_VALUES;
use crate::protocol::{ChatRequest, Operation};

/// Reads a request for text, or for the size of its prompt, which a built-in model could answer; `None` where it asks for anything else.
pub(super) async fn read_chat(exchange: &Exchange) -> Result<Option<Result<ChatRequest, Refusal>>, End> {
    let (operation, dialect) = (exchange.resolved.operation, exchange.dialect);
    match held(exchange) {
        Some(body) if operation.asks_for_text() || operation == Operation::CountTokens => {
            read(exchange, &body, |body| dialect.read_chat(operation, body)).await
        }
        _ => Ok(None),
    }
}

/// Reads a request for a built-in model off the event loop where it is long.
pub(super) async fn read<T>(exchange: &Exchange, body: &[u8], parse: impl FnOnce(&[u8]) -> T) -> Result<T, End> {
    Ok(exchange.off_loop.run(body.len().saturating_mul(BUILDS_VALUES), || parse(body)).await?)
}

/// Refusal of a request that no built-in model answers.
pub(super) fn unsupported_endpoint() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        ErrorKind::NotFound,
        "unsupported_endpoint",
        "built-in models answer POST /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /v1/messages/count_tokens, \
         /v1/embeddings and /v1/rerank, GET /v1/models, and POST /api/chat, /api/generate and /api/embed; they keep no answers \
         that could be asked for again",
    )
}

/// The body, where it is held.
pub(super) fn held(exchange: &Exchange) -> Option<Bytes> {
    match &exchange.body {
        RequestBody::Held(held) => Some(held.bytes.clone()),
        RequestBody::Unread => None,
    }
}

/// Tenant whose turn the engine counts the request to; anonymous callers share one.
pub(super) fn tenant(exchange: &Exchange) -> Option<&Arc<str>> {
    exchange.caller.as_ref().map(|consumer| &consumer.tenant)
}
