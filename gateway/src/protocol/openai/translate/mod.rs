//! Chat completions to and from the neutral types of translation. Shapes are those of the official client (`openai` 3.57,
//! `types/chat`), with `reasoning_content` of DeepSeek, vLLM and others, and `thinking_blocks` of LiteLLM.

mod completions;
mod error;
mod messages;
mod reply;
mod request;
mod shapes;
mod stream;
#[cfg(test)]
mod tests;
mod write;

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use spillway_filter::Refusal;

use crate::protocol::translate::{
    Api, ApiError, Asked, CallerApi, Conversation, Lossy, ReadStream, Reply, ServerApi, ServerWords, Unreadable,
    WriteStream, WrittenRequest,
};

pub(in crate::protocol::openai) use completions::Completions;
pub(in crate::protocol) use error::{kind as error_kind, write as write_error};
pub(in crate::protocol) use messages::source_of as image_source;
pub(in crate::protocol) use reply::new_id;
pub(in crate::protocol) use shapes::{Logprobs, logprobs_of};
pub(in crate::protocol::openai) use write::request as write_request;

/// Longest id and name of a model that a server may tell, in bytes: every chunk repeats them, and so a long one would grow a
/// stream many times over.
const MAX_NAME: usize = 256;

/// True for a header of OpenAI's API.
pub(in crate::protocol) fn is_own_header(name: &HeaderName) -> bool {
    ["openai-", "x-ratelimit-"].iter().any(|prefix| name.as_str().starts_with(prefix))
}

/// Translator of chat completions.
pub(in crate::protocol) struct ChatCompletions;

impl Api for ChatCompletions {
    fn path(&self) -> &'static str {
        "/v1/chat/completions"
    }

    fn is_own_header(&self, name: &HeaderName) -> bool {
        is_own_header(name)
    }
}

impl CallerApi for ChatCompletions {
    fn interleaves_calls(&self) -> bool {
        true
    }

    fn read_request(&self, body: &[u8]) -> Result<Conversation, Refusal> {
        request::read(body)
    }

    fn write_reply(&self, reply: &Reply, asked: &Asked) -> Result<Bytes, Unreadable> {
        Ok(reply::write(reply, asked))
    }

    fn write_stream(&self, asked: &Asked) -> Box<dyn WriteStream> {
        Box::new(stream::StreamWriter::new(asked))
    }

    fn write_error(&self, error: &ApiError, _request_id: &str) -> (StatusCode, Bytes) {
        error::write(error)
    }
}

impl ServerApi for ChatCompletions {
    fn write_request(
        &self,
        conversation: &Conversation,
        to: (&str, ServerWords),
        lossy: &mut Lossy<'_>,
    ) -> Result<WrittenRequest, Refusal> {
        let body = crate::protocol::json(&write::request(conversation, to, lossy)?);
        Ok(WrittenRequest { body, headers: Vec::new() })
    }

    fn read_reply(&self, body: &[u8]) -> Result<Reply, Unreadable> {
        reply::read(body)
    }

    fn read_stream(&self, choices: usize) -> Box<dyn ReadStream> {
        Box::new(stream::StreamReader::new(choices))
    }

    fn reported_error(&self, body: &[u8]) -> Option<ApiError> {
        error::reported(body)
    }

    fn read_error(&self, status: StatusCode, body: &[u8]) -> ApiError {
        error::read(status, body)
    }
}
