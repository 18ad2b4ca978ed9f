//! Translation of calls of the protocol between HTTP and gRPC, both ways. Both carry the same messages, which are read to
//! [`message::Message`] with the elements of their tensors in binary form, and written anew. Inputs are whole bodies.
//!
//! Servers over HTTP get JSON, which all of them read, and binary data for the tensors that JSON cannot express. Servers over
//! gRPC get raw contents. A caller gets its answer in the form that its call has, or asks for.

mod answers;
mod contents;
mod elements;
mod figures;
mod http;
mod message;
mod metadata;
mod protobuf;
#[cfg(test)]
mod tests;

use ::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use bytes::Bytes;
use spillway_filter::{ErrorKind, Refusal};

use super::json::INFERENCE_HEADER_CONTENT_LENGTH;
use super::path;
use crate::protocol::grpc::{GRPC_TIMEOUT, is_metadata};
use crate::protocol::http2_required;
use crate::protocol::inference::InferenceCall;
use crate::protocol::oip::grpc::wire::framed_parts;
use crate::protocol::operation::Operation;
use crate::protocol::translate::{CallTranslator, CallerCall, Lossy, WrittenCall};
use answers::{FromGrpc, FromHttp};
pub use figures::{TensorElements, TensorValues, read_values};
use http::AnswerForm;
use message::ModelNames;

/// Names of the protocol's APIs in refusals.
const HTTP: &str = "oip";
const GRPC: &str = "oip-grpc";

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const CALL: HeaderValue = HeaderValue::from_static("application/grpc");

/// Prefix of the headers of gRPC.
const GRPC_HEADERS: &str = "grpc-";

/// Translator of callers over HTTP for servers over gRPC.
pub(in crate::protocol) struct HttpToGrpc;

/// Translator of callers over gRPC for servers over HTTP.
pub(in crate::protocol) struct GrpcToHttp;

/// Refusal of a call without a counterpart.
fn no_counterpart(what: &str, own: &str, other: &str) -> Refusal {
    let message = format!(
        "The server for this request speaks the Open Inference Protocol over {other}, where {what} over {own} has no counterpart."
    );
    Refusal::new(StatusCode::NOT_IMPLEMENTED, ErrorKind::InvalidRequest, "unsupported_transport", message)
}

/// Call of the protocol that a caller makes.
fn call_of(operation: Operation) -> InferenceCall {
    match operation {
        Operation::Inference(call) => call,
        _ => InferenceCall::OtherOfServer,
    }
}

impl CallTranslator for HttpToGrpc {
    fn is_callers_header(&self, name: &HeaderName) -> bool {
        *name == INFERENCE_HEADER_CONTENT_LENGTH
            || (name.as_str().starts_with(GRPC_HEADERS) && *name != GRPC_TIMEOUT)
            || [header::ACCEPT, header::ACCEPT_ENCODING].contains(name)
    }

    fn is_servers_header(&self, name: &HeaderName) -> bool {
        // Metadata of a server cannot say where the JSON of the answer ends that is written for the caller.
        *name == INFERENCE_HEADER_CONTENT_LENGTH || name.as_str().starts_with(GRPC_HEADERS)
    }

    fn carries_to_server(&self, name: &HeaderName, value: &HeaderValue) -> bool {
        is_metadata(name, value)
    }

    fn is_to_grpc(&self) -> bool {
        true
    }

    fn write(&self, asked: &CallerCall<'_>, lossy: &mut Lossy<'_>) -> Result<WrittenCall, Refusal> {
        let call = call_of(asked.operation);
        if asked.method == Method::HEAD {
            return Err(no_counterpart("the method HEAD", "HTTP", "gRPC"));
        }
        let Some(method) = super::grpc::method(call) else {
            return Err(no_counterpart(&format!("`{} {}`", asked.method, asked.path), "HTTP", "gRPC"));
        };
        let target = path::target(asked.path);
        let mut names = ModelNames::of(asked);
        // Filters may have put another model into the path.
        if let (None, Some(target)) = (asked.renamed, target) {
            names.server = path::decoded(target.name).into();
        }
        let version = target.and_then(|target| target.version).map(path::decoded);
        let version = version.as_deref().unwrap_or_default();
        let (body, form) = match call {
            InferenceCall::Infer => {
                let (message, form) = http::read_request(asked.headers, asked.body, lossy)?;
                http::check_names(&message, names.caller, version)?;
                (protobuf::write_request(message, &names.server, version), form)
            }
            InferenceCall::ModelReady | InferenceCall::ModelMetadata => {
                (protobuf::write_model(&names.server, version), AnswerForm::default())
            }
            _ => (framed_parts(&[]), AnswerForm::default()),
        };
        // Without the codings that a caller accepts, a server does not compress its answer, which is read on its way back.
        let headers = vec![(header::CONTENT_TYPE, CALL)];
        let reader = Box::new(FromGrpc { call, names: names.owned(), form });
        Ok(WrittenCall { method: Method::POST, path: method, body, headers, reader })
    }
}

impl CallTranslator for GrpcToHttp {
    fn is_callers_header(&self, name: &HeaderName) -> bool {
        name.as_str().starts_with(GRPC_HEADERS) || [header::TE, header::CONTENT_TYPE].contains(name)
    }

    fn is_servers_header(&self, name: &HeaderName) -> bool {
        *name == INFERENCE_HEADER_CONTENT_LENGTH || name.as_str().starts_with(GRPC_HEADERS)
    }

    fn carries_to_caller(&self, name: &HeaderName, value: &HeaderValue) -> bool {
        is_metadata(name, value)
    }

    fn write(&self, asked: &CallerCall<'_>, lossy: &mut Lossy<'_>) -> Result<WrittenCall, Refusal> {
        let call = call_of(asked.operation);
        let name = asked.path.rsplit('/').next().unwrap_or_default();
        if !asked.takes_trailers {
            return Err(http2_required());
        }
        let names = ModelNames::of(asked);
        let version = match call {
            InferenceCall::Infer | InferenceCall::ModelReady | InferenceCall::ModelMetadata => {
                super::grpc::read_version(asked.body)?
            }
            _ => String::new(),
        };
        let Some(path) = path::of(call, &names.server, &version)? else {
            return Err(no_counterpart(&format!("the call `{name}`"), "gRPC", "HTTP"));
        };
        let mut headers = vec![
            (header::ACCEPT, HeaderValue::from_static("*/*")),
            // An answer is read on its way back.
            (header::ACCEPT_ENCODING, HeaderValue::from_static("identity")),
        ];
        let (method, body, is_raw) = if call == InferenceCall::Infer {
            let (message, is_raw) = protobuf::read_request(asked.body, lossy)?;
            let (body, json_length) = http::write_request(&message);
            match json_length {
                Some(length) => {
                    headers.push((header::CONTENT_TYPE, OCTETS));
                    headers.push((INFERENCE_HEADER_CONTENT_LENGTH.clone(), HeaderValue::from(length)));
                }
                None => headers.push((header::CONTENT_TYPE, JSON)),
            }
            (Method::POST, body, is_raw)
        } else {
            (Method::GET, Bytes::new(), false)
        };
        let reader = Box::new(FromHttp { call, names: names.owned(), is_raw });
        Ok(WrittenCall { method, path, body, headers, reader })
    }
}
