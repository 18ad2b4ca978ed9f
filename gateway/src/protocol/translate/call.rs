//! Translation of calls that are answered whole and that only some pairs of APIs have in common, such as those of the Open
//! Inference Protocol over HTTP and over gRPC. The caller's API names the translator for an API of servers; a translator writes
//! the call of the server, and what reads its answer.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use spillway_filter::{Fields, Refusal};

use super::{CredentialForm, Lossy, MostKept};
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
    /// Body without its coding; `None` for one that is too long or not in the coding that it names.
    pub body: Option<&'a [u8]>,
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
    /// True if the answer of the server could not be read, and an error stands in its place.
    pub is_unreadable: bool,
    /// True if it would be too long for the caller.
    pub is_too_large: bool,
}

/// Reader of the answer to one call.
pub trait ReadCallAnswer: Send + Sync {
    /// Turns the answer of a server into one for the caller.
    fn read(&self, answer: &ServerAnswer<'_>) -> CallAnswer;
}
