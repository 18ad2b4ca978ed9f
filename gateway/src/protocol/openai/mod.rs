//! The OpenAI API, with the reranking of Jina, Cohere and vLLM. [`OpenAi`] implements its dialect; readers of other APIs use
//! parts of `request`.

mod continuation;
pub(super) mod counts;
mod encoded;
mod error;
mod observe;
pub(super) mod request;
pub(super) mod response;
mod responses;
mod transcript;
pub(super) mod translate;

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use spillway_filter::{Fields, Refusal, SystemPlace};

use super::chat::{ChatRequest, Encode, EncodeRequest, Encoded, ObservedError, Said};
use super::dialect::{
    AnswerHead, ContinueStream, Dialect, ListPage, ModelCard, ModelPath, Observe, ReadSocket, Transcribe, WriteAnswer,
};
use super::operation::{Known, ModelScope, Operation};
use super::peek::model_at;
use super::predict::is_verb;
use super::translate::{CallerApi, ServerApi};
use observe::{Observer, SocketReader};
use responses::Responses;
pub(in crate::protocol) use translate::ChatCompletions;
use translate::Completions;

/// Paths of the API, below `/v1/`.
const CHAT: &str = "chat/completions";
const COMPLETIONS: &str = "completions";
const EMBEDDINGS: &str = "embeddings";
const MODELS: &str = "models";
const RESPONSES: &str = "responses";
const RESPONSES_COUNT: &str = "responses/input_tokens";
const RESPONSES_COMPACT: &str = "responses/compact";
const RERANK: &str = "rerank";
const REALTIME: &str = "realtime";
const PATHS: [&str; 7] = [CHAT, COMPLETIONS, EMBEDDINGS, MODELS, RESPONSES, RERANK, REALTIME];

/// Further paths whose requests pass to backends, with whether the body is JSON. The others have forms with files.
const PASSED: [(&str, bool); 7] = [
    ("moderations", true),
    ("audio/speech", true),
    ("audio/transcriptions", false),
    ("audio/translations", false),
    ("images/generations", true),
    ("images/edits", false),
    ("images/variations", false),
];

/// Other paths of reranking, by which only the operation is known and not the dialect.
const FURTHER_RERANK: [&str; 2] = ["/rerank", "/v2/rerank"];

/// Dialect of OpenAI's API.
pub(super) struct OpenAi;

fn below(known: &str, path: &str) -> bool {
    path.strip_prefix(known).is_some_and(|deeper| deeper.is_empty() || deeper.starts_with('/'))
}

impl Dialect for OpenAi {
    fn name(&self) -> &'static str {
        "openai"
    }

    fn system_place(&self, operation: Operation) -> Option<SystemPlace> {
        match operation {
            Operation::Chat => Some(SystemPlace::Messages),
            Operation::Completions => Some(SystemPlace::Prompt),
            Operation::Responses | Operation::CountTokens => Some(SystemPlace::Instructions),
            _ => None,
        }
    }

    fn operation(&self, method: &Method, path: &str) -> Option<Known> {
        let is_post = method == Method::POST;
        let rest = path.strip_prefix("/v1/");
        let passed = || PASSED.iter().find(|(known, _)| rest == Some(known));
        let Some(path_below) = rest.filter(|rest| PATHS.iter().any(|known| below(known, rest))) else {
            if let Some((_, is_json)) = passed() {
                return Some(Known {
                    operation: Operation::Other,
                    is_own_path: true,
                    must_be_json: is_post && *is_json,
                });
            }
            return (is_post && FURTHER_RERANK.contains(&path)).then_some(Known {
                operation: Operation::Rerank,
                is_own_path: false,
                must_be_json: false,
            });
        };
        let operation = match path_below {
            CHAT if is_post => Operation::Chat,
            COMPLETIONS if is_post => Operation::Completions,
            EMBEDDINGS if is_post => Operation::Embeddings,
            RERANK if is_post => Operation::Rerank,
            RESPONSES if is_post => Operation::Responses,
            RESPONSES_COUNT if is_post => Operation::CountTokens,
            REALTIME if method == Method::GET => Operation::Realtime,
            RESPONSES if method == Method::GET => Operation::ResponsesSocket,
            rest if below(MODELS, rest) && matches!(*method, Method::GET | Method::HEAD) => Operation::Models,
            // Of TensorFlow Serving, which has its models under the same path.
            rest if is_post && below(MODELS, rest) && is_verb(rest) => return None,
            _ => Operation::Other,
        };
        Some(Known { operation, is_own_path: true, must_be_json: is_post })
    }

    fn scope_of_other(&self, method: &Method, path: &str) -> ModelScope {
        let Some(rest) = path.strip_prefix("/v1/") else { return ModelScope::Unknown };
        if PASSED.iter().any(|(known, _)| rest == *known) {
            return ModelScope::Named;
        }
        // An answer that is kept is known by its random id to the caller that got it, and no body says more.
        let is_kept = below(RESPONSES, rest) && (method != Method::POST || rest.ends_with("/cancel"));
        match is_kept && rest != RESPONSES {
            true => ModelScope::None,
            false if rest == RESPONSES_COMPACT => ModelScope::Named,
            false => ModelScope::Unknown,
        }
    }

    fn error(&self, refusal: &Refusal, _request_id: &str) -> (HeaderValue, Bytes) {
        (HeaderValue::from_static("application/json"), error::error(refusal))
    }

    fn error_event(&self, operation: Operation, refusal: &Refusal) -> Option<Bytes> {
        Some(match operation {
            Operation::Responses => responses::error_event(refusal),
            _ => error::error_event(refusal),
        })
    }

    fn full_statuses(&self) -> &'static [u16] {
        &[429, 503]
    }

    fn observe(&self, headers: &Fields) -> Option<Box<dyn Observe>> {
        let observer = Observer::for_response(headers.get(header::CONTENT_TYPE));
        observer.map(|observer| Box::new(observer) as Box<dyn Observe>)
    }

    fn read_socket(&self, operation: Operation) -> Option<Box<dyn ReadSocket>> {
        operation.is_socket().then(|| Box::<SocketReader>::default() as Box<dyn ReadSocket>)
    }

    fn error_status(&self, error: &ObservedError) -> u16 {
        error::status(error)
    }

    fn model_path<'p>(&self, path: &'p str) -> ModelPath<'p> {
        let below = path.strip_prefix("/v1/").and_then(|rest| rest.strip_prefix(MODELS));
        match below {
            Some("") => ModelPath::List,
            Some(rest) => match rest.strip_prefix('/') {
                Some(id) if !id.is_empty() => ModelPath::One(id),
                _ => ModelPath::Neither,
            },
            None => ModelPath::Neither,
        }
    }

    fn model_list(&self, models: &[ModelCard<'_>]) -> Option<Bytes> {
        Some(response::model_list(models))
    }

    fn read_list(&self, body: &[u8]) -> Option<ListPage> {
        response::read_list(body)
    }

    fn model(&self, model: ModelCard<'_>) -> Option<Bytes> {
        Some(response::model(model))
    }

    fn transcribe(&self) -> Option<Box<dyn Transcribe>> {
        Some(Box::<transcript::Transcript>::default())
    }

    fn continuation(&self, body: &[u8], said: &Said) -> Option<(Bytes, Option<Range<usize>>)> {
        let body = continuation::continuation(body, &said.text, said.tokens)?;
        let model_at = model_at(&body);
        Some((body, model_at))
    }

    fn continue_stream<'a>(&self, by: &'a str, before: &'a Said) -> Option<Box<dyn ContinueStream + 'a>> {
        Some(Box::new(continuation::Continuation::new(by, before)))
    }

    fn read_chat(&self, operation: Operation, body: &[u8]) -> Option<Result<ChatRequest, Refusal>> {
        match operation {
            Operation::Chat => Some(request::chat(body)),
            Operation::Completions => Some(request::completions(body)),
            Operation::Responses | Operation::CountTokens => Some(responses::responses(body)),
            _ => None,
        }
    }

    fn write_answer(&self, head: AnswerHead<'_>) -> Option<Box<dyn WriteAnswer>> {
        let shape = match head.operation {
            Operation::Chat => response::Shape::Chat,
            Operation::Completions => response::Shape::Text,
            Operation::Responses => return Some(Box::new(responses::Answer::begin(head))),
            _ => return None,
        };
        Some(Box::new(response::Answer::begin(shape, head)))
    }

    fn write_token_count(&self, tokens: u64) -> Option<Bytes> {
        Some(responses::token_count(tokens))
    }

    fn translator(&self, operation: Operation) -> Option<&'static dyn CallerApi> {
        match operation {
            Operation::Chat => Some(&ChatCompletions),
            Operation::Completions => Some(&Completions),
            Operation::Responses => Some(&Responses),
            _ => None,
        }
    }

    fn conversations(&self) -> Option<&'static dyn ServerApi> {
        Some(&ChatCompletions)
    }

    fn encode_kind(&self, operation: Operation) -> Option<Encode> {
        match operation {
            Operation::Embeddings => Some(Encode::Embeddings),
            Operation::Rerank => Some(Encode::Rerank),
            _ => None,
        }
    }

    fn read_encode(&self, what: Encode, body: &[u8]) -> Option<Result<EncodeRequest, Refusal>> {
        Some(request::encode(body, what))
    }

    fn write_encoded(&self, model: &str, request: &EncodeRequest, encoded: &Encoded, tokens: u64) -> Option<Bytes> {
        Some(match encoded {
            Encoded::Vectors(vectors) => encoded::embeddings(model, vectors, request.base64, tokens),
            Encoded::Scores(scores) => {
                let id = format!("rerank-{}", uuid::Uuid::new_v4().simple());
                encoded::ranking(&id, model, request, scores, tokens)
            }
        })
    }
}
