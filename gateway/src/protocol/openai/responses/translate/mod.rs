//! Translation of the Responses API for servers of other APIs: requests to the neutral types, and answers from them. Nothing
//! is stored, so that a request which needs something stored is refused by the name of its field.

mod items;
mod output;
mod request;
mod stream;
#[cfg(test)]
mod tests;
mod write;

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use spillway_filter::Refusal;

use crate::protocol::openai::translate::{is_own_header, write_error};
use crate::protocol::translate::{Api, ApiError, Asked, CallerApi, Conversation, Reply, Unreadable, WriteStream};

pub(in crate::protocol::openai) use request::read as read_count;
pub(in crate::protocol::openai) use write::count as write_count;

/// Translator of the Responses API.
pub(in crate::protocol::openai) struct Responses;

impl Api for Responses {
    fn path(&self) -> &'static str {
        "/v1/responses"
    }

    fn is_own_header(&self, name: &HeaderName) -> bool {
        is_own_header(name)
    }
}

impl CallerApi for Responses {
    fn read_request(&self, body: &[u8]) -> Result<Conversation, Refusal> {
        request::read(body)
    }

    fn write_reply(&self, reply: &Reply, asked: &Asked) -> Result<Bytes, Unreadable> {
        Ok(output::write(reply, asked))
    }

    fn write_stream(&self, asked: &Asked) -> Box<dyn WriteStream> {
        Box::new(stream::StreamWriter::new(asked))
    }

    fn write_error(&self, error: &ApiError, _request_id: &str) -> (StatusCode, Bytes) {
        write_error(error)
    }
}

/// Marks of `encrypted_content`, which carries what proves reasoning to its server. Another server cannot use it.
const SIGNATURE: &str = "spillway:signature:";
const REDACTED: &str = "spillway:redacted:";
