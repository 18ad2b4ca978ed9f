//! Answers of servers for callers over the other transport, and their errors.

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use bytes::Bytes;
use spillway_filter::Refusal;

use super::http::{self, AnswerForm};
use super::message::{AnswerNames, Message};
use super::metadata;
use super::protobuf;
use super::{CALL, JSON, OCTETS};
use crate::protocol::grpc::{self, GRPC_MESSAGE, GRPC_STATUS};
use crate::protocol::inference::InferenceCall;
use crate::protocol::oip::grpc::decoded;
use crate::protocol::oip::grpc::request::message;
use crate::protocol::oip::json::INFERENCE_HEADER_CONTENT_LENGTH;
use crate::protocol::translate::{ApiError, CallAnswer, ReadCallAnswer, ServerAnswer, Unreadable, kind_of};

/// Answer that cannot be read.
const UNREADABLE: Unreadable =
    Unreadable("the backend's answer is not of the Open Inference Protocol, or its tensors do not fill their shapes");

/// Error of an answer.
struct Fault {
    status: StatusCode,
    message: String,
    unreadable: Option<Unreadable>,
}

impl Fault {
    fn new(status: StatusCode, message: String) -> Self {
        Self { status, message, unreadable: None }
    }

    fn unreadable() -> Self {
        UNREADABLE.into()
    }
}

impl From<Unreadable> for Fault {
    fn from(why: Unreadable) -> Self {
        Self { unreadable: Some(why), ..Self::new(StatusCode::BAD_GATEWAY, why.to_string()) }
    }
}

/// An answer that is not of the protocol's form.
fn unreadable(_: Refusal) -> Fault {
    Fault::unreadable()
}

/// Reader of answers over gRPC for callers over HTTP.
pub(super) struct FromGrpc {
    pub(super) call: InferenceCall,
    pub(super) names: AnswerNames,
    /// Form in which the caller wants outputs.
    pub(super) form: AnswerForm,
}

impl FromGrpc {
    fn answer(&self, answer: &ServerAnswer<'_>) -> Result<CallAnswer, Fault> {
        // In trailers, or in the head of an answer without messages.
        let told = |name: &HeaderName| {
            let value = answer.trailers.and_then(|trailers| trailers.get(name));
            value.or_else(|| answer.headers.get(name))
        };
        match told(&GRPC_STATUS) {
            Some(status) if status == "0" => {}
            Some(status) => {
                let status = grpc::status_of(status);
                let message = told(&GRPC_MESSAGE).and_then(grpc::text_of);
                let message = message.unwrap_or_else(|| format!("the backend answered {}", status.as_u16()));
                return Err(Fault::new(status, message));
            }
            // An error of something before the server, or an answer that was cut.
            None if answer.status.is_success() => return Err(Fault::unreadable()),
            None => {
                let ApiError { message, .. } = ApiError::of_text(answer.status, answer.body.unwrap_or_default());
                return Err(Fault::new(answer.status, message));
            }
        }
        let body = answer.body?;
        let decoded = decoded(body, answer.headers, answer.most_kept)?;
        let message = message(decoded.as_deref().unwrap_or(body)).map_err(unreadable)?;
        let json =
            |body: Bytes| CallAnswer { headers: vec![(header::CONTENT_TYPE, JSON)], body, ..CallAnswer::default() };
        match self.call {
            InferenceCall::Infer => {
                let read = protobuf::read_answer(message).map_err(unreadable)?;
                let model = self.names.for_caller(read.model.as_deref().unwrap_or_default(), answer);
                // Elements may be longer in the form that is wanted than they came.
                answer.most_kept.check(http::least_length(&read, &self.form))?;
                let (body, json_length) = http::write_answer(&read, model, &self.form)
                    .map_err(|refusal| Fault::new(refusal.status, refusal.message.into_owned()))?;
                answer.most_kept.check(body.len())?;
                let Some(length) = json_length else { return Ok(json(body)) };
                let headers = vec![
                    (header::CONTENT_TYPE, OCTETS),
                    (INFERENCE_HEADER_CONTENT_LENGTH.clone(), HeaderValue::from(length)),
                ];
                Ok(CallAnswer { headers, body, ..CallAnswer::default() })
            }
            InferenceCall::ModelMetadata => {
                let mut model = metadata::model_of_message(message).map_err(unreadable)?;
                model.name = self.names.for_caller(&model.name, answer).to_owned();
                Ok(json(crate::protocol::json(&model)))
            }
            InferenceCall::ServerMetadata => {
                let server = metadata::server_of_message(message).map_err(unreadable)?;
                Ok(json(crate::protocol::json(&server)))
            }
            call => {
                let holds = metadata::state_of_message(message).map_err(unreadable)?;
                let status = if holds { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                Ok(CallAnswer { status, ..json(metadata::state_to_json(call, &self.names.caller, holds)) })
            }
        }
    }
}

impl ReadCallAnswer for FromGrpc {
    fn read(&self, answer: &ServerAnswer<'_>) -> CallAnswer {
        self.answer(answer).unwrap_or_else(|Fault { status, message, unreadable }| {
            let headers = vec![(header::CONTENT_TYPE, JSON)];
            let body = crate::protocol::oip::error_body(&message);
            CallAnswer { status, headers, body, unreadable, ..CallAnswer::default() }
        })
    }
}

/// Reader of answers over HTTP for callers over gRPC.
pub(super) struct FromHttp {
    pub(super) call: InferenceCall,
    pub(super) names: AnswerNames,
    /// True if the call had raw contents, as its answer then has.
    pub(super) is_raw: bool,
}

#[derive(serde::Deserialize)]
struct Failed {
    error: String,
}

impl FromHttp {
    fn answer(&self, answer: &ServerAnswer<'_>) -> Result<Bytes, Fault> {
        let is_state =
            matches!(self.call, InferenceCall::ServerLive | InferenceCall::ServerReady | InferenceCall::ModelReady);
        if !answer.status.is_success() {
            // Servers say so that something is not ready.
            if is_state && matches!(answer.status, StatusCode::BAD_REQUEST | StatusCode::SERVICE_UNAVAILABLE) {
                return Ok(metadata::state_to_message(false));
            }
            let body = answer.body.unwrap_or_default();
            let message = match serde_json::from_slice(body) {
                Ok(Failed { error }) => error,
                Err(_) => ApiError::of_text(answer.status, body).message,
            };
            return Err(Fault::new(answer.status, message));
        }
        let body = answer.body?;
        match self.call {
            InferenceCall::Infer => {
                let read: Message<'_> = http::read_answer(answer.headers, body).map_err(unreadable)?;
                // A server that names no model was asked for this one.
                let named = read.model.as_deref().unwrap_or(&self.names.server);
                let model = self.names.for_caller(named, answer).to_owned();
                Ok(protobuf::write_answer(read, &model, self.is_raw))
            }
            InferenceCall::ModelMetadata => {
                let mut model = metadata::model_of_json(body).ok_or_else(Fault::unreadable)?;
                model.name = self.names.for_caller(&model.name, answer).to_owned();
                Ok(metadata::framed(&model))
            }
            InferenceCall::ServerMetadata => {
                Ok(metadata::framed(&metadata::server_of_json(body).ok_or_else(Fault::unreadable)?))
            }
            _ => Ok(metadata::state_to_message(metadata::state_of_json(body))),
        }
    }
}

impl ReadCallAnswer for FromHttp {
    fn read(&self, answer: &ServerAnswer<'_>) -> CallAnswer {
        let head: Vec<(HeaderName, HeaderValue)> = vec![(header::CONTENT_TYPE, CALL)];
        match self.answer(answer) {
            Ok(body) => {
                let trailers: HeaderMap = [(GRPC_STATUS.clone(), HeaderValue::from_static("0"))].into_iter().collect();
                CallAnswer { headers: head, body, trailers: Some(trailers), ..CallAnswer::default() }
            }
            Err(Fault { status, message, unreadable }) => {
                let error = grpc::error_of_server(status, kind_of(status), &message);
                let headers = head.into_iter().chain(error).collect();
                CallAnswer { headers, failed: Some(status), unreadable, ..CallAnswer::default() }
            }
        }
    }
}
