//! Translation of one exchange for a server of another API: the request as the server gets it, and what the way back needs.
//! The module owns no connection; its inputs are the held body of the caller and the facts of the backend.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use spillway_filter::{ErrorKind, Fields, Refusal};

use super::model_name;
use crate::exchange::Exchange;
use crate::message::RequestHead;
use crate::protocol::translate::{
    Asked, CallTranslator, CallerApi, CallerCall, CredentialForm, Lossy, MostKept, ReadCallAnswer, ServerApi, Setting,
    WrittenCall, WrittenRequest,
};
use crate::protocol::{self, Dialect, Operation};
use crate::topology::Backend;

/// Translation of an exchange.
pub enum Translation {
    /// Of a conversation.
    Conversation(ConversationTranslation),
    /// Of a call that is answered whole.
    Call(CallTranslation),
}

/// Request of a translation as the server gets it.
struct Translated {
    body: Bytes,
    /// Headers that the server needs.
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Fields that the server does not get.
    dropped: Option<HeaderValue>,
}

/// Translation of a conversation.
pub struct ConversationTranslation {
    /// API of the caller.
    pub(super) caller: &'static dyn CallerApi,
    /// API of the server.
    pub(super) server: &'static dyn ServerApi,
    /// Facts of the request for the answer.
    pub(super) asked: Asked,
    /// Name of the model in the request.
    pub(super) model: String,
    request: Translated,
}

/// Translation of a call that is answered whole.
pub struct CallTranslation {
    translator: &'static dyn CallTranslator,
    /// Path of the caller's API, below which prefix ever it came.
    callers_path: String,
    method: Method,
    path: String,
    /// True if the backend has one name for all models of its servers.
    has_own_name: bool,
    /// Most bytes of the answer that are kept.
    pub(super) most_kept: MostKept,
    /// Reader of the answer.
    pub(super) reader: Box<dyn ReadCallAnswer>,
    request: Translated,
}

/// Call of a caller, where it is translated as a call that is answered whole.
#[derive(Debug, Clone, Copy)]
pub struct CallHead<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path of the caller's API.
    pub path: &'a str,
    /// Headers.
    pub headers: &'a Fields,
    /// True if the caller reads trailers.
    pub takes_trailers: bool,
}

/// APIs between which an operation is translated; `None` where one of them has nothing like it.
fn apis(
    backend: &Backend,
    dialect: &'static dyn Dialect,
    operation: Operation,
) -> Option<(&'static dyn CallerApi, &'static dyn ServerApi)> {
    dialect.translator(operation).zip(backend.dialect.and_then(|dialect| dialect.conversations()))
}

/// Translator of an operation that is answered whole; `None` where the servers have nothing like it, or it is a conversation.
fn call_translator(
    backend: &Backend,
    dialect: &'static dyn Dialect,
    operation: Operation,
) -> Option<&'static dyn CallTranslator> {
    protocol::call_translator(dialect, operation, backend.kind()?)
}

/// True if a backend has an operation of a dialect, itself or by translation.
pub fn has_counterpart(backend: &Backend, dialect: &'static dyn Dialect, operation: Operation) -> bool {
    !(backend.rewrites && backend.foreign.contains(dialect, operation))
        || call_translator(backend, dialect, operation).is_some()
        || apis(backend, dialect, operation).is_some()
}

/// Refusal of an operation that the servers of a backend do not have.
pub fn no_counterpart(backend: &Backend) -> Refusal {
    let api = backend.dialect.map_or("http", |dialect| dialect.name());
    let message = format!("The server for this request speaks the API `{api}`, which has no counterpart of this path.");
    Refusal::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, "unsupported_endpoint", message)
}

/// Translates the held body of a request for a backend of another API.
///
/// # Errors
/// The operation has no counterpart there, the request is invalid, or it has a field that the API of the server cannot
/// express.
pub fn translate(
    exchange: &Exchange,
    backend: &Backend,
    head: CallHead<'_>,
    body: &[u8],
) -> Result<Translation, Refusal> {
    let (operation, caller) = (exchange.resolved.operation, exchange.dialect);
    if let Some(translator) = call_translator(backend, caller, operation) {
        return call(exchange, backend, translator, head, body).map(Translation::Call);
    }
    let Some((caller, server)) = apis(backend, caller, operation) else {
        return Err(no_counterpart(backend));
    };
    let mut conversation = caller.read_request(body)?;
    let named = conversation.model.as_deref();
    let model = model_name::at_server(backend, exchange).map(|name| &**name).or(named);
    let model = crate::protocol::named(model)?;
    let choices = conversation.settings.find(|setting| match setting {
        Setting::Choices(count) => usize::try_from(*count).ok(),
        _ => None,
    });
    let asked = Asked {
        choices: choices.unwrap_or(1),
        model: named.unwrap_or(model).to_owned(),
        stream: conversation.stream,
        include_usage: conversation.include_usage,
        echoed: conversation.echoed.clone(),
        most_kept: MostKept(backend.max_translated_bytes),
    };
    // The answer to the caller ends with its usage, and limits count by it.
    conversation.include_usage = backend.stream_usage;
    let mut lossy = Lossy::new(&backend.drop_fields);
    let WrittenRequest { body, headers } = server.write_request(&conversation, (model, backend.words), &mut lossy)?;
    let request = Translated { body, headers, dropped: lossy.header() };
    Ok(Translation::Conversation(ConversationTranslation { caller, server, asked, model: model.to_owned(), request }))
}

/// Translates a call that is answered whole.
fn call(
    exchange: &Exchange,
    backend: &Backend,
    translator: &'static dyn CallTranslator,
    head: CallHead<'_>,
    body: &[u8],
) -> Result<CallTranslation, Refusal> {
    let asked = CallerCall {
        operation: exchange.resolved.operation,
        method: head.method,
        path: head.path,
        headers: head.headers,
        body,
        model: exchange.model_sent(),
        renamed: model_name::at_server(backend, exchange).map(|name| &**name),
        takes_trailers: head.takes_trailers,
    };
    let mut lossy = Lossy::new(&backend.drop_fields);
    for (name, value) in asked.headers.iter().filter(|(name, _)| !translator.is_callers_header(name)) {
        if !translator.carries_to_server(name, value) {
            lossy.hint(name.as_str());
        }
    }
    let WrittenCall { method, path, body, headers, reader } = translator.write(&asked, &mut lossy)?;
    let request = Translated { body, headers, dropped: lossy.header() };
    let (callers_path, has_own_name) = (head.path.to_owned(), backend.model.is_some());
    let most_kept = MostKept(backend.max_translated_bytes);
    Ok(CallTranslation { translator, callers_path, method, path, has_own_name, most_kept, reader, request })
}

impl Translation {
    fn request(&self) -> &Translated {
        match self {
            Self::Conversation(conversation) => &conversation.request,
            Self::Call(call) => &call.request,
        }
    }

    /// Body of the request.
    pub(super) fn body(&self) -> &Bytes {
        &self.request().body
    }

    /// Fields that the server does not get.
    pub(super) fn dropped(&self) -> Option<&HeaderValue> {
        self.request().dropped.as_ref()
    }

    /// True if the server is called over gRPC.
    pub(super) fn is_to_grpc(&self) -> bool {
        matches!(self, Self::Call(call) if call.translator.is_to_grpc())
    }

    /// The conversation, where it is one whose caller wants an event stream.
    pub(super) fn streamed(&self) -> Option<&ConversationTranslation> {
        match self {
            Self::Conversation(conversation) if conversation.asked.stream => Some(conversation),
            _ => None,
        }
    }

    fn is_callers_header(&self, name: &HeaderName) -> bool {
        match self {
            Self::Conversation(conversation) => conversation.caller.is_own_header(name),
            Self::Call(call) => call.translator.is_callers_header(name),
        }
    }

    /// Adapts the head of the request, behind the filters of the route, which know the path of the caller.
    pub(super) fn adapt(&self, head: &mut RequestHead) {
        let path = head.uri.path();
        // What stands before the path of the API is the server's prefix for it.
        let (callers, servers) = match self {
            Self::Conversation(conversation) => (conversation.caller.path(), conversation.server.path()),
            Self::Call(call) => (&*call.callers_path, &*call.path),
        };
        let prefix = path.strip_suffix(callers).unwrap_or_default();
        if let Ok(target) = PathAndQuery::try_from([prefix, servers].concat()) {
            head.set_uri(target.into());
        }
        let ends = |(name, value): &(&HeaderName, &HeaderValue)| {
            let is_carried = match self {
                Self::Conversation(_) => true,
                Self::Call(call) => call.translator.carries_to_server(name, value),
            };
            !is_carried || self.is_callers_header(name)
        };
        let own: Vec<HeaderName> = head.headers.iter().filter(ends).map(|(name, _)| name.clone()).collect();
        for name in &own {
            head.remove_header(name);
        }
        match self {
            Self::Conversation(conversation) => {
                let _ = head.insert_header(header::CONTENT_TYPE, "application/json");
                let accepts = if conversation.asked.stream { "text/event-stream" } else { "application/json" };
                let _ = head.insert_header(header::ACCEPT, accepts);
                // An answer is read on its way back.
                let _ = head.insert_header(header::ACCEPT_ENCODING, "identity");
            }
            Self::Call(call) => head.method = call.method.clone(),
        }
        for (name, value) in &self.request().headers {
            let _ = head.insert_header(name.clone(), value.clone());
        }
    }

    /// Puts a credential of the caller, which passes to its account at the server, into the form of the server's API.
    pub(super) fn adapt_credential(&self, head: &mut RequestHead) {
        let (callers, servers) = match self {
            Self::Conversation(conversation) => {
                (conversation.caller.credential_form(), conversation.server.credential_form())
            }
            Self::Call(call) => call.translator.credential_forms(),
        };
        if callers == servers {
            return;
        }
        let taken = match callers {
            CredentialForm::Bearer => {
                let value = head.headers.get(header::AUTHORIZATION).cloned();
                value.and_then(|value| HeaderValue::from_bytes(bearer(value.as_bytes())?).ok())
            }
            CredentialForm::Header(name) => head.headers.get(HeaderName::from_static(name)).cloned(),
        };
        let Some(mut credential) = taken else { return };
        match callers {
            CredentialForm::Bearer => head.remove_header(&header::AUTHORIZATION),
            CredentialForm::Header(name) => head.remove_header(HeaderName::from_static(name)),
        };
        let name = match servers {
            CredentialForm::Header(name) => HeaderName::from_static(name),
            CredentialForm::Bearer => {
                let text = [b"Bearer ", credential.as_bytes()].concat();
                let Ok(value) = HeaderValue::from_bytes(&text) else { return };
                credential = value;
                header::AUTHORIZATION
            }
        };
        credential.set_sensitive(true);
        let _ = head.insert_header(name, credential);
    }
}

impl CallTranslation {
    /// True if the answer is one in place of another, which keeps the name of the model that gave it. A model that an alias of
    /// the caller stands for has the caller's name, whoever gave the answer.
    pub(super) fn stands_in(&self, exchange: &Exchange) -> bool {
        exchange.outcome.spilled.is_some() && (self.has_own_name || exchange.alias().is_none())
    }

    /// True for a header of an answer that means nothing to the caller, or that it could not read.
    pub(super) fn is_servers_header(&self, name: &HeaderName, value: &HeaderValue) -> bool {
        self.translator.is_servers_header(name) || !self.translator.carries_to_caller(name, value)
    }
}

impl ConversationTranslation {
    /// Name for the caller of the model that an answer names: that of the request has the caller's own name. An answer in place
    /// of another keeps the name of the model that gave it.
    pub(super) fn name_for_caller(&self, named: Option<String>, exchange: &Exchange) -> Option<String> {
        let is_own =
            exchange.outcome.spilled.is_none() || exchange.alias().is_some_and(|alias| *alias.served == *self.model);
        let is_renamed = is_own && named.as_ref() == Some(&self.model);
        if is_renamed { Some(self.asked.model.clone()) } else { named }
    }
}

/// Token of a value of `Authorization`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}
