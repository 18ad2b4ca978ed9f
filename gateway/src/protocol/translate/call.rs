//! Translation of calls that are answered whole and that only some pairs of APIs have in common, such as those of the Open
//! Inference Protocol over HTTP and over gRPC. The caller's API names the translator for an API of servers; a translator writes
//! the call of the server, and what reads its answer.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use spillway_filter::{Fields, Refusal};

use super::{CallerApi, CredentialForm, Lossy, MostKept, ServerApi, Unreadable};
use crate::protocol::dialect::Dialect;
use crate::protocol::operation::Operation;

/// Servers for which calls are translated.
#[derive(Debug, Clone, Copy)]
pub struct ServerKind {
    /// API.
    pub dialect: &'static dyn Dialect,
    /// True if servers of OpenAI's API have the Responses API too.
    pub has_responses: bool,
    /// True if they count the tokens of a conversation at `/tokenize`, as vLLM does.
    pub has_tokenize: bool,
}

/// Call of a caller.
#[derive(Debug, Clone, Copy)]
pub struct CallerCall<'a> {
    /// Operation.
    pub operation: Operation,
    /// Method.
    pub method: &'a Method,
    /// Path in which the caller's API names things, without the prefix of a route.
    pub path: &'a str,
    /// Headers.
    pub headers: &'a Fields,
    /// Body; empty where there is none.
    pub body: &'a [u8],
    /// Model that the caller names; `None` in calls that name none.
    pub model: Option<&'a str>,
    /// Model by the name that the server knows, where that is another one.
    pub renamed: Option<&'a str>,
    /// True if the caller can read trailers.
    pub takes_trailers: bool,
}

/// Call for a server.
pub struct WrittenCall {
    /// Method.
    pub method: Method,
    /// Path, below which prefix ever the server has its API.
    pub path: String,
    /// Body.
    pub body: Bytes,
    /// Headers that describe the body and the answer wanted.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Reader of the answer.
    pub reader: Box<dyn ReadCallAnswer>,
}

/// Translator of the calls of one API of callers for one API of servers.
pub trait CallTranslator: Send + Sync {
    /// True for a header of the caller that means nothing to the server.
    fn is_callers_header(&self, name: &HeaderName) -> bool;

    /// True for a header of the server that means nothing to the caller.
    fn is_servers_header(&self, name: &HeaderName) -> bool;

    /// True for a header that the transport of the server can carry.
    fn carries_to_server(&self, _name: &HeaderName, _value: &HeaderValue) -> bool {
        true
    }

    /// True for a header that the transport of the caller can carry.
    fn carries_to_caller(&self, _name: &HeaderName, _value: &HeaderValue) -> bool {
        true
    }

    /// Forms of a caller's credential, in its own API and in that of the server.
    fn credential_forms(&self) -> (CredentialForm, CredentialForm) {
        (CredentialForm::Bearer, CredentialForm::Bearer)
    }

    /// True if servers are called over gRPC, whose answers end with trailers.
    fn is_to_grpc(&self) -> bool {
        false
    }

    /// Writes a call for a server.
    ///
    /// # Errors
    /// The call is invalid, has no counterpart, or has a part that the API of the server cannot express.
    fn write(&self, call: &CallerCall<'_>, lossy: &mut Lossy<'_>) -> Result<WrittenCall, Refusal>;
}

/// Answer of a server, read whole.
#[derive(Debug, Clone, Copy)]
pub struct ServerAnswer<'a> {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: &'a Fields,
    /// Body without its coding, or the reason for which there is none.
    pub body: Result<&'a [u8], Unreadable>,
    /// Most bytes of the answer for the caller.
    pub most_kept: MostKept,
    /// Trailers.
    pub trailers: Option<&'a HeaderMap>,
    /// True if the answer is in place of that of the route's own servers: it keeps the name of the model that gave it.
    pub stands_in: bool,
    /// Id of the request, for errors that name it.
    pub request_id: &'a str,
}

/// Answer for a caller.
#[derive(Debug, Default)]
pub struct CallAnswer {
    /// Status.
    pub status: StatusCode,
    /// Headers of the body.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body.
    pub body: Bytes,
    /// Trailers behind the body.
    pub trailers: Option<HeaderMap>,
    /// Status of the error that a server of HTTP would have sent, where `status` does not say it.
    pub failed: Option<StatusCode>,
    /// Reason for which the answer of the server could not be read, where an error stands in its place.
    pub unreadable: Option<Unreadable>,
}

/// Answer in JSON.
fn json_answer(status: StatusCode, body: Bytes) -> CallAnswer {
    let headers = vec![(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    CallAnswer { status, headers, body, ..CallAnswer::default() }
}

/// Answer in JSON that `read` makes of that of a server. Its error, or one in place of an answer of which `read` makes nothing, is
/// written in the caller's API.
pub(in crate::protocol) fn read_json_answer(
    answer: &ServerAnswer<'_>,
    (server, caller): (&dyn ServerApi, &dyn CallerApi),
    nothing: Unreadable,
    read: impl FnOnce(&[u8]) -> Option<Bytes>,
) -> CallAnswer {
    let (unreadable, error) = match answer.body {
        body if !answer.status.is_success() => (None, server.read_error(answer.status, body.unwrap_or_default())),
        Ok(body) => match read(body) {
            Some(body) => return json_answer(StatusCode::OK, body),
            None => match server.reported_error(body) {
                Some(error) => (None, error),
                None => (Some(nothing), nothing.into()),
            },
        },
        Err(why) => (Some(why), why.into()),
    };
    let (status, body) = caller.write_error(&error, answer.request_id);
    CallAnswer { unreadable, ..json_answer(status, body) }
}

/// Reader of the answer to one call.
pub trait ReadCallAnswer: Send + Sync {
    /// Turns the answer of a server into one for the caller.
    fn read(&self, answer: &ServerAnswer<'_>) -> CallAnswer;
}
