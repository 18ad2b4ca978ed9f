//! Translation of Ollama's API for servers of other APIs: requests to the neutral types, and answers from them.

mod embed;
mod messages;
mod options;
mod request;
mod stream;
#[cfg(test)]
mod tests;
mod write;

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use spillway_filter::Refusal;

use super::answer::Shape;
use super::{ErrorBody, LINES, json};
use crate::protocol::translate::{Api, ApiError, Asked, CallerApi, Conversation, Reply, Unreadable, WriteStream};

pub(in crate::protocol) use embed::Embeddings;

/// Translator of `/api/chat`.
pub(super) struct Chat;

/// Translator of `/api/generate`.
pub(super) struct Generate;

/// Error as a body or a line.
fn error_of(error: &ApiError) -> Bytes {
    json(&ErrorBody { error: &error.message })
}

impl Api for Chat {
    fn path(&self) -> &'static str {
        "/api/chat"
    }

    fn is_own_header(&self, _name: &HeaderName) -> bool {
        false
    }
}

impl CallerApi for Chat {
    fn stream_type(&self) -> &'static str {
        LINES
    }

    fn read_request(&self, body: &[u8]) -> Result<Conversation, Refusal> {
        request::chat(body)
    }

    fn write_reply(&self, reply: &Reply, asked: &Asked) -> Result<Bytes, Unreadable> {
        write::reply(Shape::Chat, reply, asked)
    }

    fn write_stream(&self, asked: &Asked) -> Box<dyn WriteStream> {
        Box::new(stream::StreamWriter::new(Shape::Chat, asked))
    }

    fn write_error(&self, error: &ApiError, _request_id: &str) -> (StatusCode, Bytes) {
        (error.status, error_of(error))
    }
}

impl Api for Generate {
    fn path(&self) -> &'static str {
        "/api/generate"
    }

    fn is_own_header(&self, _name: &HeaderName) -> bool {
        false
    }
}

impl CallerApi for Generate {
    fn stream_type(&self) -> &'static str {
        LINES
    }

    fn read_request(&self, body: &[u8]) -> Result<Conversation, Refusal> {
        request::generate(body)
    }

    fn write_reply(&self, reply: &Reply, asked: &Asked) -> Result<Bytes, Unreadable> {
        write::reply(Shape::Generate, reply, asked)
    }

    fn write_stream(&self, asked: &Asked) -> Box<dyn WriteStream> {
        Box::new(stream::StreamWriter::new(Shape::Generate, asked))
    }

    fn write_error(&self, error: &ApiError, _request_id: &str) -> (StatusCode, Bytes) {
        (error.status, error_of(error))
    }
}
