//! Calls of the Open Inference Protocol that the gateway answers itself: those about the server on a route with a built-in
//! model, and those of a built-in model that encodes texts.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{StatusCode, header};
use spillway_engine::Task;
use spillway_filter::{ErrorKind, Refusal};

use super::answers::{send, send_made, send_message};
use super::direct::{Direct, name_for_caller};
use super::encoding::{Encoding, encoded, weight};
use super::reading::{held, read};
use super::rewritten::api_path;
use crate::builtin::{self, LoadedModel, SpillError};
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange, ServedBy};
use crate::gateway::Gateway;
use crate::message::ResponseHead;
use crate::protocol::oip::{self, InferRequest, ModelFacts};
use crate::protocol::{DROPPED, Encode, InferenceCall, ModelPlace, Operation, SERVED_BY, named};
use crate::topology::{Route, Target, TargetKind};

/// Call of the protocol that a request makes.
pub(super) fn call(exchange: &Exchange) -> Option<InferenceCall> {
    match exchange.resolved.operation {
        Operation::Inference(call) => Some(call),
        _ => None,
    }
}

/// True for a call over gRPC, whose answer is a message.
fn is_message(exchange: &Exchange) -> bool {
    exchange.resolved.model_place == ModelPlace::Message
}

/// Answers a call about the server on a route with a built-in model. False where it goes to a server.
pub(super) async fn of_server(
    gateway: &Gateway,
    route: &Route,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<bool, End> {
    let Some(call) = call(exchange) else { return Ok(false) };
    if !route.targets.iter().any(|target| matches!(target.kind, TargetKind::Model(_))) {
        return Ok(false);
    }
    let holds = match call {
        InferenceCall::ServerLive | InferenceCall::ServerMetadata => true,
        InferenceCall::ServerReady => !gateway.is_draining() && route.targets.iter().any(is_ready),
        InferenceCall::OtherOfServer => return Err(not_here()),
        _ => return Ok(false),
    };
    let is_message = is_message(exchange);
    let body = match (call, is_message) {
        (InferenceCall::ServerMetadata, true) => oip::grpc::write_server(),
        (InferenceCall::ServerMetadata, false) => oip::write_server(),
        (_, true) => oip::grpc::write_state(holds),
        (InferenceCall::ServerLive, false) => oip::write_live(holds),
        (_, false) => oip::write_ready(holds),
    };
    let status = if holds { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer(status, body, None, session, exchange).await?;
    Ok(true)
}

/// True if a target can answer calls: one is enough for a gateway that stands for all of them.
fn is_ready(target: &Target) -> bool {
    match &target.kind {
        TargetKind::Model(model) => model.can_answer(),
        TargetKind::Backend(backend) => backend.is_available(),
    }
}

/// Refusal of a call that changes or shows a server as a whole, where a built-in model is part of it.
fn not_here() -> End {
    End::refuse(Refusal::new(
        StatusCode::NOT_IMPLEMENTED,
        ErrorKind::InvalidRequest,
        "unsupported_endpoint",
        "the route has built-in models, which have no repository, shared memory, trace or log settings to call",
    ))
}

/// Task of a built-in model that the protocol can ask for.
fn task_of(model: &LoadedModel) -> Result<Encode, Refusal> {
    match model.task() {
        Task::Embed => Ok(Encode::Embeddings),
        Task::Classify => Ok(Encode::Rerank),
        Task::Generate => {
            let message =
                format!("The model `{}` holds conversations: call it with POST /v1/chat/completions.", model.name());
            let kind = ErrorKind::NotFound;
            Err(Refusal::new(StatusCode::NOT_FOUND, kind, "unsupported_endpoint", message).param("model"))
        }
    }
}

/// Consequence of a call that a built-in model cannot take: another target of the route may.
fn unable(refusal: Refusal) -> Result<Direct, End> {
    Ok(Direct::Unable(Box::new(refusal)))
}

/// Answers a call that its route sends to a built-in model.
pub(super) async fn direct(
    call: InferenceCall,
    route: &Route,
    model: &Arc<LoadedModel>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Direct, End> {
    if !matches!(call, InferenceCall::Infer | InferenceCall::ModelReady | InferenceCall::ModelMetadata) {
        return unable(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            ErrorKind::InvalidRequest,
            "unsupported_endpoint",
            "a built-in model answers `infer`, `ready` and its metadata in the Open Inference Protocol, and nothing else",
        ));
    }
    let what = match task_of(model) {
        Ok(what) => what,
        Err(refusal) => return unable(refusal),
    };
    let deadline = exchange.deadline(route).into_std();
    let version = version(route, session, exchange)?;
    named(exchange.asked.as_ref().and_then(|asked| asked.model.as_deref()))?;
    if let Err(refusal) = oip::check_version(version.as_deref()) {
        return unable(refusal);
    }
    match call {
        InferenceCall::Infer => infer(route, model, what, deadline, session, exchange).await,
        InferenceCall::ModelReady => ready(route, model, session, exchange).await,
        _ => metadata(route, model, what, deadline, session, exchange).await,
    }
}

/// Answers whether a built-in model is ready.
async fn ready(
    route: &Route,
    model: &Arc<LoadedModel>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Direct, End> {
    let is_ready = model.can_answer();
    let body = if is_message(exchange) {
        oip::grpc::write_state(is_ready)
    } else {
        oip::write_model_ready(name_for_caller(route, model, exchange), is_ready)
    };
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer(status, body, Some(model), session, exchange).await?;
    Ok(Direct::Answered)
}

/// Answers with the inputs and outputs of a built-in model.
async fn metadata(
    route: &Route,
    model: &Arc<LoadedModel>,
    what: Encode,
    deadline: Instant,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Direct, End> {
    let width = match builtin::width(model, deadline).await {
        Ok(width) => width,
        Err(SpillError::Busy(_)) => return Ok(Direct::NoRoom),
        Err(SpillError::CannotSpill(refusal) | SpillError::TooLong(refusal)) => return unable(refusal),
        Err(other) => return Err(other.into_refusal().into()),
    };
    let facts = ModelFacts::new(name_for_caller(route, model, exchange), what, width);
    let body = if is_message(exchange) { oip::grpc::write_model(&facts) } else { oip::write_model(&facts) };
    answer(StatusCode::OK, body, Some(model), session, exchange).await?;
    Ok(Direct::Answered)
}

/// Version of the model that a call asks for.
fn version(route: &Route, session: &ClientSession, exchange: &Exchange) -> Result<Option<String>, End> {
    if is_message(exchange) {
        return Ok(Some(oip::grpc::read_version(&held(exchange).unwrap_or_default())?));
    }
    let head = session.req_header();
    let path = head.uri.path_and_query().map(|target| api_path(route, &head.method, target)).unwrap_or_default();
    Ok(oip::version_in_path(&path).map(str::to_owned))
}

/// Answers a call for the outputs of a built-in model.
async fn infer(
    route: &Route,
    model: &Arc<LoadedModel>,
    what: Encode,
    deadline: Instant,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Direct, End> {
    let (body, is_message) = (held(exchange).unwrap_or_default(), is_message(exchange));
    let asked = exchange.model_sent().unwrap_or_default().to_owned();
    let headers = &session.req_header().headers;
    let parse = |body: &[u8]| -> Result<InferRequest, Refusal> {
        if is_message { oip::grpc::read_infer(body) } else { oip::read_infer(headers, body) }
    };
    let read = read(exchange, &body, parse).await?;
    let (mut request, plan) = match read.and_then(|request| request.for_task(what, &asked)) {
        Ok(read) => read,
        Err(refusal) => return unable(refusal),
    };
    let encoded = match encoded(model, &mut request, what, deadline, session, exchange).await? {
        Encoding::Done(encoded, _) => encoded,
        Encoding::NoRoom => return Ok(Direct::NoRoom),
        Encoding::Unable(refusal) => return Ok(Direct::Unable(refusal)),
    };
    let mut head = head(StatusCode::OK, Some(model), exchange);
    if let Some(dropped) = request.ignored.header() {
        let _ = head.insert_header(&DROPPED, dropped);
    }
    if is_message {
        let name = name_for_caller(route, model, exchange);
        let write = || oip::grpc::write_infer(&plan, name, &encoded);
        let message = exchange.off_loop.run(weight(&encoded), write).await?;
        send_message(session, exchange, head, message).await?;
        return Ok(Direct::Answered);
    }
    let name = name_for_caller(route, model, exchange);
    let written = exchange.off_loop.run(weight(&encoded), || oip::write_infer(&plan, name, &encoded)).await?;
    if let Some(length) = written.json_length {
        let _ = head.insert_header(header::CONTENT_TYPE, "application/octet-stream");
        let _ = head.insert_header(&oip::INFERENCE_HEADER_CONTENT_LENGTH, header::HeaderValue::from(length));
    }
    send_made(session, exchange, head, written.body).await?;
    Ok(Direct::Answered)
}

/// Head of an answer, of a built-in model where it is one.
fn head(status: StatusCode, model: Option<&LoadedModel>, exchange: &Exchange) -> ResponseHead {
    let mut head = ResponseHead::new(status, 6);
    let kind = if is_message(exchange) { "application/grpc" } else { "application/json" };
    let _ = head.insert_header(header::CONTENT_TYPE, kind);
    if let Some(model) = model {
        let _ = head.insert_header(&SERVED_BY, model.served_by());
    }
    head
}

/// Sends an answer other than outputs.
async fn answer(
    status: StatusCode,
    body: Bytes,
    model: Option<&Arc<LoadedModel>>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    if let Some(model) = model {
        exchange.outcome.served_by = ServedBy::Model(model.served_by_text().clone());
    }
    let model = model.map(|model| &**model);
    if is_message(exchange) {
        // In gRPC the message says it, and the call itself has succeeded.
        let head = head(StatusCode::OK, model, exchange);
        return send_message(session, exchange, head, body).await;
    }
    let head = head(status, model, exchange);
    send(session, exchange, head, body).await.map_err(|_| End::ClientGone)
}
