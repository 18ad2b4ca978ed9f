//! The body of a request that is held, and the facts that are read from it: the model, the stream flag, the expected
//! tokens. Long bodies are read off the event loop.

use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use spillway_filter::{ErrorKind, Refusal};

use super::rewritten;
use crate::coding::{Coding, DIGESTS, GRPC_ENCODING};
use crate::downstream::ClientSession;
use crate::exchange::{Asked, CodingLayer, End, Exchange, Hold, Naming, RequestBody, hold};
use crate::gateway::Gateway;
use crate::limits::{Estimate, number_of_address};
use crate::message::RequestHead;
use crate::protocol::{self, InferenceCall, ModelPlace, OPENAI, Operation, PROBLEM, oip};
use crate::topology::Route;

/// Holds the body, of at most `limit` bytes, within the listener's `bodyTimeout`.
pub(super) async fn hold_body(
    gateway: &Gateway,
    session: &mut ClientSession,
    exchange: &mut Exchange,
    limit: u64,
    within: Duration,
) -> Result<(), End> {
    let bounds = Hold { caller: memory_share(exchange), limit, within };
    exchange.body = RequestBody::Held(hold(session, &gateway.bodies, &gateway.off_loop, bounds).await?);
    Ok(())
}

/// Takes the codings off a held body that must be read. The server gets the decoded body too, so that it reads what was judged.
pub(super) async fn decode_body(session: &mut ClientSession, exchange: &mut Exchange, limit: u64) -> Result<(), End> {
    decode_content(session, exchange, limit).await?;
    if exchange.resolved.model_place == ModelPlace::Message {
        decode_message(session, exchange, limit).await
    } else {
        Ok(())
    }
}

/// Takes the coding off the message of a gRPC call. A body that is not one message is left as it is.
async fn decode_message(session: &mut ClientSession, exchange: &mut Exchange, limit: u64) -> Result<(), End> {
    let RequestBody::Held(held) = &mut exchange.body else { return Ok(()) };
    if !oip::grpc::is_compressed(&held.bytes) {
        return Ok(());
    }
    let coding = match Coding::of_messages(&session.req_header().headers) {
        // The frame says that there is one.
        Coding::Identity => Coding::Unknown,
        coding => coding,
    };
    held.decode(coding, CodingLayer::Message, &exchange.off_loop, limit).await?;
    session.req_header_mut().remove_header(&GRPC_ENCODING);
    Ok(())
}

/// Takes the coding off a held body.
async fn decode_content(session: &mut ClientSession, exchange: &mut Exchange, limit: u64) -> Result<(), End> {
    let RequestBody::Held(held) = &mut exchange.body else { return Ok(()) };
    let coding = content_coding(session.req_header());
    if held.bytes.is_empty() || coding == Coding::Identity {
        return Ok(());
    }
    held.decode(coding, CodingLayer::Body, &exchange.off_loop, limit).await?;
    // They describe the bytes that came.
    held.trailers = None;
    let head = session.req_header_mut();
    for name in DIGESTS.iter().chain([&header::CONTENT_ENCODING]) {
        head.remove_header(name);
    }
    Ok(())
}

/// Coding of a request's body.
fn content_coding(head: &RequestHead) -> Coding {
    // Clients that mean the charset write UTF-8 here too.
    let is_charset = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"utf-8");
    let mut values = head.headers.get_all(header::CONTENT_ENCODING).iter();
    if values.next().is_some_and(is_charset) && values.next().is_none() {
        return Coding::Identity;
    }
    Coding::of(&head.headers)
}

/// Number of the caller or client address whose share of the memory for bodies the request uses.
pub(super) fn memory_share(exchange: &Exchange) -> u128 {
    exchange.caller.as_ref().map_or_else(|| number_of_address(exchange.client), |consumer| consumer.number)
}

/// Facts of a request whose path names its model on this route; `None` where it does not. Its body is counted by its length.
pub(super) fn named_in_path(route: &Route, session: &ClientSession, exchange: &Exchange) -> Option<Asked> {
    let resolved = exchange.resolved;
    if resolved.model_place != ModelPlace::Path {
        return None;
    }
    let head = session.req_header();
    let model = rewritten::model(route, resolved, &head.method, head.uri.path_and_query()?)?;
    Some(Asked { model: Some(model), naming: Naming::Path, expected: by_length(exchange), ..Asked::default() })
}

/// Tokens of a request whose body is not read as text.
fn by_length(exchange: &Exchange) -> Estimate {
    let length = match &exchange.body {
        RequestBody::Held(held) => u64::try_from(held.bytes.len()).unwrap_or(u64::MAX),
        RequestBody::Unread => 0,
    };
    Estimate::new(length, 0, 0, None, exchange.resolved.writes_tokens)
}

/// Facts of a gRPC call whose message names its model.
async fn named_in_message(exchange: &Exchange, body: &[u8], decides: bool) -> Result<Option<Asked>, End> {
    let resolved = exchange.resolved;
    if resolved.operation.is_of_server() {
        return Ok(None);
    }
    let unnamed = Asked { naming: Naming::Message, expected: by_length(exchange), ..Asked::default() };
    match exchange.off_loop.run(body.len(), || resolved.api.model_in_message(body)).await? {
        Ok(None) => Ok(Some(unnamed)),
        Ok(Some(named)) => Ok(Some(Asked { model: Some(named.name), model_at: Some(named.at), ..unnamed })),
        Err(refusal) if decides => Err(refusal.into()),
        Err(_) => Ok(Some(unnamed)),
    }
}

/// True if the call is a stream in both directions, whose body does not end before its answer begins.
pub(super) fn is_two_way(session: &ClientSession, exchange: &Exchange) -> bool {
    session.is_http2() && exchange.resolved.operation == Operation::Inference(InferenceCall::StreamInfer)
}

/// Refusal of a stream in both directions where a rule needs all of its body.
pub(super) fn unread_stream() -> End {
    End::refuse(Refusal::new(
        StatusCode::NOT_IMPLEMENTED,
        ErrorKind::InvalidRequest,
        "unsupported_stream",
        "ModelStreamInfer names its model in each message of a stream, which is not read here: a rule of the route or of the \
         caller, or the name of the model, depends on it. Call ModelInfer instead.",
    ))
}

/// Reads the model, the stream flag and the size of the prompt from a held body; a body that is not JSON gives none of them.
/// Where the body decides something (`decides`), and on a path of a model API, only JSON with one reading passes.
pub(super) async fn peek(session: &ClientSession, exchange: &Exchange, decides: bool) -> Result<Option<Asked>, End> {
    let RequestBody::Held(held) = &exchange.body else { return Ok(None) };
    if held.bytes.is_empty() {
        return Ok(asked_of_target(session, exchange)?);
    }
    if exchange.resolved.model_place == ModelPlace::Message {
        return named_in_message(exchange, &held.bytes, decides).await;
    }
    if decides && exchange.dialect != PROBLEM && names_model_in_query(session) {
        let message =
            "`model` is in the query, where some servers read it in place of the one in the body: leave it out there.";
        return Err(End::refuse(Refusal::invalid("ambiguous_parameter", message).param("model")));
    }
    let content_type = session.get_header(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    // What almost all clients write is not searched for other spellings, forms and charsets.
    let is_plain_json = content_type == b"application/json";
    let says_json = is_plain_json || content_type.windows(4).any(|part| part.eq_ignore_ascii_case(b"json"));
    let (dialect, must_be_json) = (exchange.dialect, exchange.resolved.must_be_json);
    if decides && !is_plain_json && !(must_be_json && dialect.reads_json_always()) {
        check_readable(content_type)?;
    }
    // A body that is not JSON may be a sound or an image.
    let unread = Asked { expected: Estimate::new(0, 0, 1, None, true), ..Asked::default() };
    if decides && !must_be_json && protocol::is_form(content_type) {
        let named = exchange.off_loop.run(held.bytes.len(), || protocol::form_model(content_type, &held.bytes)).await?;
        let (model, model_at) = named?.unzip();
        return Ok(Some(Asked { model, model_at, naming: Naming::Form, ..unread }));
    }
    let is_strict = must_be_json || decides;
    if is_strict && !is_plain_json && !protocol::is_utf8(content_type) {
        return Err(End::refuse(Refusal::invalid(
            "unsupported_charset",
            "The Content-Type names a charset other than UTF-8: send the body in UTF-8, with `charset=utf-8` or none.",
        )));
    }
    // Many servers read JSON whatever the Content-Type is.
    if !(says_json || must_be_json || protocol::looks_like_json(&held.bytes)) {
        return Ok(Some(unread));
    }
    match exchange.off_loop.run(held.bytes.len(), || protocol::peek(&held.bytes, is_strict)).await? {
        Ok(mut peek) => {
            if exchange.resolved.operation == Operation::Other
                && peek.model.as_deref().is_none_or(str::is_empty)
                && let Some(field) = exchange.resolved.api.older_model_field()
                && let Some((name, at)) =
                    exchange.off_loop.run(held.bytes.len(), || protocol::model_under(&held.bytes, field)).await??
            {
                (peek.model, peek.model_at) = (Some(name), Some(at));
            }
            let writes = exchange.resolved.writes_tokens;
            let estimate = || Estimate::new(peek.prompt_bytes, peek.images, peek.sounds, peek.max_tokens, writes);
            // A count uses no tokens.
            let is_count = exchange.resolved.operation == Operation::CountTokens;
            let expected = if is_count { Estimate::default() } else { estimate().times(peek.answers) };
            Ok(Some(Asked {
                model: peek.model.map(|name| dialect.bare_model(&name).to_owned()),
                stream: peek.stream.unwrap_or_else(|| dialect.streams_by_default(exchange.resolved.operation)),
                expected,
                model_at: peek.model_at,
                usage_edit: peek.usage_edit.filter(|_| streams_without_usage(exchange)),
                naming: Naming::Json,
                alias: None,
                is_folded: false,
            }))
        }
        Err(refusal) if is_strict => Err(refusal.into()),
        Err(_) => Ok(Some(unread)),
    }
}

/// Model in the query of a request whose API has it there, and what its first response may use; `None` for other requests
/// than those for sockets of model APIs.
///
/// # Errors
/// Refuses a query with two of them: the gateway and its server might read different ones.
pub(super) fn asked_of_target(session: &ClientSession, exchange: &Exchange) -> Result<Option<Asked>, Refusal> {
    let operation = exchange.resolved.operation;
    if !operation.is_socket() {
        return Ok(None);
    }
    let query = session.req_header().uri.query().filter(|_| operation == Operation::Realtime).unwrap_or_default();
    let mut models = url::form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "model");
    let model = models.next().map(|(_, model)| model.into_owned());
    if models.next().is_some() {
        let message = "`model` appears more than once in the query.";
        return Err(Refusal::invalid("duplicate_parameter", message).param("model"));
    }
    Ok(Some(Asked { model, stream: true, expected: Estimate::new(0, 0, 1, None, true), ..Asked::default() }))
}

/// True if the query has a model. Servers that are built like LiteLLM's proxy take it before the one in the body.
fn names_model_in_query(session: &ClientSession) -> bool {
    let query = session.req_header().uri.query().unwrap_or_default();
    url::form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "model")
}

/// True if a stream of the operation has its usage only where the request asks for it.
fn streams_without_usage(exchange: &Exchange) -> bool {
    exchange.dialect == OPENAI && matches!(exchange.resolved.operation, Operation::Chat | Operation::Completions)
}

/// Refuses forms that the gateway does not read, where the body decides something: a server may read them.
fn check_readable(content_type: &[u8]) -> Result<(), End> {
    const URL_ENCODED: &[u8] = b"x-www-form-urlencoded";
    if content_type.windows(URL_ENCODED.len()).any(|part| part.eq_ignore_ascii_case(URL_ENCODED)) {
        return Err(End::refuse(Refusal::invalid(
            "unsupported_form",
            "The Content-Type is `application/x-www-form-urlencoded`, and a rule depends on what the body says: send \
             `application/json` or `multipart/form-data`.",
        )));
    }
    Ok(())
}
