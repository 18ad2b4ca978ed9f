//! Translation of one exchange for a server of another API: the request as the server gets it, and what the way back needs.
//! The module owns no connection; its inputs are the held body of the caller and the facts of the backend.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, StatusCode, header};
use spillway_filter::{ErrorKind, Refusal};

use super::model_name;
use crate::exchange::Exchange;
use crate::message::RequestHead;
use crate::protocol::translate::{Asked, CallerApi, CredentialForm, Lossy, ServerApi, WrittenRequest};
use crate::protocol::{Dialect, Operation};
use crate::topology::Backend;

/// Translation of an exchange.
pub struct Translation {
    /// API of the caller.
    pub(super) caller: &'static dyn CallerApi,
    /// API of the server.
    pub(super) server: &'static dyn ServerApi,
    /// Facts of the request for the answer.
    pub(super) asked: Asked,
    /// Name of the model in the request.
    pub(super) model: String,
    /// Body of the request.
    pub(super) body: Bytes,
    /// Headers that the server needs.
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Fields that the server does not get.
    pub(super) dropped: Option<HeaderValue>,
}

/// APIs between which an operation is translated; `None` where one of them has nothing like it.
fn apis(
    backend: &Backend,
    dialect: &'static dyn Dialect,
    operation: Operation,
) -> Option<(&'static dyn CallerApi, &'static dyn ServerApi)> {
    dialect.translator(operation).zip(backend.dialect.and_then(|dialect| dialect.conversations()))
}

/// True if a backend has an operation of a dialect, itself or by translation.
pub fn has_counterpart(backend: &Backend, dialect: &'static dyn Dialect, operation: Operation) -> bool {
    !(backend.rewrites && backend.foreign.contains(dialect, operation)) || apis(backend, dialect, operation).is_some()
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
pub fn translate(exchange: &Exchange, backend: &Backend, body: &[u8]) -> Result<Translation, Refusal> {
    let Some((caller, server)) = apis(backend, exchange.dialect, exchange.resolved.operation) else {
        return Err(no_counterpart(backend));
    };
    let mut conversation = caller.read_request(body)?;
    let named = conversation.model.as_deref();
    let model = model_name::at_server(backend, exchange).map(|name| &**name).or(named);
    let model = crate::protocol::named(model)?;
    let asked = Asked {
        model: named.unwrap_or(model).to_owned(),
        stream: conversation.stream,
        include_usage: conversation.include_usage,
        echoed: conversation.echoed.clone(),
    };
    // The answer to the caller ends with its usage, and limits count by it.
    conversation.include_usage = backend.stream_usage;
    let mut lossy = Lossy::new(&backend.drop_fields);
    let WrittenRequest { body, headers } = server.write_request(&conversation, (model, backend.words), &mut lossy)?;
    Ok(Translation { caller, server, asked, model: model.to_owned(), body, headers, dropped: lossy.header() })
}

impl Translation {
    /// Name for the caller of the model that an answer names: that of the request has the caller's own name. An answer in place
    /// of another keeps the name of the model that gave it.
    pub(super) fn name_for_caller(&self, named: Option<String>, exchange: &Exchange) -> Option<String> {
        let is_own =
            exchange.outcome.spilled.is_none() || exchange.alias().is_some_and(|alias| *alias.served == *self.model);
        let is_renamed = is_own && named.as_ref() == Some(&self.model);
        if is_renamed { Some(self.asked.model.clone()) } else { named }
    }

    /// True if the caller wants its answer as an event stream.
    pub(super) fn is_streamed(&self) -> bool {
        self.asked.stream
    }

    /// Adapts the head of the request, behind the filters of the route, which know the path of the caller.
    pub(super) fn adapt(&self, head: &mut RequestHead) {
        let path = head.uri.path();
        // What stands before the path of the API is the server's prefix for it.
        let prefix = path.strip_suffix(self.caller.path()).unwrap_or_default();
        if let Ok(target) = PathAndQuery::try_from([prefix, self.server.path()].concat()) {
            head.set_uri(target.into());
        }
        let own: Vec<HeaderName> =
            head.headers.keys().filter(|name| self.caller.is_own_header(name)).cloned().collect();
        for name in &own {
            head.remove_header(name);
        }
        for (name, value) in &self.headers {
            let _ = head.insert_header(name.clone(), value.clone());
        }
        let _ = head.insert_header(header::CONTENT_TYPE, "application/json");
        let accepts = if self.asked.stream { "text/event-stream" } else { "application/json" };
        let _ = head.insert_header(header::ACCEPT, accepts);
        // An answer is read on its way back.
        let _ = head.insert_header(header::ACCEPT_ENCODING, "identity");
    }

    /// Puts a credential of the caller, which passes to its account at the server, into the form of the server's API.
    pub(super) fn adapt_credential(&self, head: &mut RequestHead) {
        let taken = match self.caller.credential_form() {
            CredentialForm::Bearer => {
                let value = head.headers.get(header::AUTHORIZATION).cloned();
                value.and_then(|value| HeaderValue::from_bytes(bearer(value.as_bytes())?).ok())
            }
            CredentialForm::Header(name) => head.headers.get(HeaderName::from_static(name)).cloned(),
        };
        let Some(mut credential) = taken else { return };
        match self.caller.credential_form() {
            CredentialForm::Bearer => head.remove_header(&header::AUTHORIZATION),
            CredentialForm::Header(name) => head.remove_header(HeaderName::from_static(name)),
        };
        let name = match self.server.credential_form() {
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

/// Token of a value of `Authorization`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}
