//! Translation of questions for the number of tokens of a prompt. Each API of callers and each of servers has its half; a server
//! is only asked where its API has an exact counterpart, so that no estimate passes for a count.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};
use spillway_filter::Refusal;

use super::call::{
    CallAnswer, CallTranslator, CallerCall, ReadCallAnswer, ServerAnswer, WrittenCall, read_json_answer,
};
use super::{CallerApi, Conversation, CredentialForm, Lossy, ServerApi, Unreadable, WrittenRequest};
use crate::protocol::named;

/// Half of the callers.
pub(in crate::protocol) struct CountCaller {
    /// API, for errors, headers and credentials.
    pub(in crate::protocol) api: &'static dyn CallerApi,
    /// Reads the question.
    pub(in crate::protocol) read: fn(&[u8]) -> Result<Conversation, Refusal>,
    /// Writes the answer.
    pub(in crate::protocol) write: fn(u64) -> Bytes,
}

/// Half of the servers.
pub(in crate::protocol) struct CountServer {
    /// API, for errors, headers and credentials.
    pub(in crate::protocol) api: &'static dyn ServerApi,
    /// Path of the question.
    pub(in crate::protocol) path: &'static str,
    /// Writes the question for a server that knows the model by this name.
    pub(in crate::protocol) write: fn(&Conversation, &str, &mut Lossy<'_>) -> Result<WrittenRequest, Refusal>,
    /// Reads the answer; `None` for one that tells no count.
    pub(in crate::protocol) read: fn(&[u8]) -> Option<u64>,
}

/// Translator of counts of tokens.
pub(in crate::protocol) struct TokenCounts {
    pub(in crate::protocol) caller: &'static CountCaller,
    pub(in crate::protocol) server: &'static CountServer,
}

impl CallTranslator for TokenCounts {
    fn is_callers_header(&self, name: &HeaderName) -> bool {
        self.caller.api.is_own_header(name)
    }

    fn is_servers_header(&self, name: &HeaderName) -> bool {
        self.server.api.is_own_header(name)
    }

    fn credential_forms(&self) -> (CredentialForm, CredentialForm) {
        (self.caller.api.credential_form(), self.server.api.credential_form())
    }

    fn write(&self, call: &CallerCall<'_>, lossy: &mut Lossy<'_>) -> Result<WrittenCall, Refusal> {
        let conversation = (self.caller.read)(call.body)?;
        let model = named(call.renamed.or(conversation.model.as_deref()))?;
        let WrittenRequest { body, headers } = (self.server.write)(&conversation, model, lossy)?;
        let mut all = json_headers();
        all.extend(headers);
        let reader = Box::new(Reader { caller: self.caller, server: self.server });
        Ok(WrittenCall { method: Method::POST, path: self.server.path.to_owned(), body, headers: all, reader })
    }
}

/// Headers of a call whose body and answer are JSON.
pub(in crate::protocol) fn json_headers() -> Vec<(HeaderName, HeaderValue)> {
    let json = HeaderValue::from_static("application/json");
    // An answer is read on its way back.
    let identity = HeaderValue::from_static("identity");
    vec![(header::CONTENT_TYPE, json.clone()), (header::ACCEPT, json), (header::ACCEPT_ENCODING, identity)]
}

/// Answer that tells no count.
const NO_COUNT: Unreadable = Unreadable("the backend's answer tells no count of tokens");

struct Reader {
    caller: &'static CountCaller,
    server: &'static CountServer,
}

impl ReadCallAnswer for Reader {
    fn read(&self, answer: &ServerAnswer<'_>) -> CallAnswer {
        read_json_answer(answer, (self.server.api, self.caller.api), NO_COUNT, |body| {
            (self.server.read)(body).map(self.caller.write)
        })
    }
}
