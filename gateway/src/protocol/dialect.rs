//! The trait of an API. To add one: a folder under `protocol/` that implements [`Dialect`], a line in the registry, and its
//! rows in the tests of `protocol`.
//!
//! A dialect reads and writes bytes; it knows no route and no socket. Between a caller and a backend of the same dialect
//! bytes pass as they are, and [`Observe`] only reads them. Between dialects [`CallerApi`] and [`ServerApi`] turn them into neutral types.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use spillway_engine::{ModelInfo, Task, WrittenToken};
use spillway_filter::{Fields, Refusal, SystemPlace};

use super::chat::{
    Call, ChatRequest, Choice, Encode, EncodeRequest, Encoded, FinishReason, Observation, ObservedError, Said, Usage,
    Written,
};
use super::inference::{AnswerName, NamedModel};
use super::operation::{Known, ModelPlace, ModelScope, Operation};
use super::translate::{CallerApi, ServerApi};

/// Model in a list of models.
#[derive(Debug, Clone, Copy)]
pub struct ModelCard<'a> {
    /// Name.
    pub id: &'a str,
    /// Unix seconds.
    pub created: u64,
}

/// Page of a server's list of models.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Names of the models, with the times of their creation in Unix seconds; 0 where the server does not say it.
    pub models: Vec<(String, u64)>,
    /// Name behind which the next page begins; `None` on the last one.
    pub next: Option<String>,
}

/// Built-in model as it is described to callers.
#[derive(Debug, Clone)]
pub struct BuiltinCard<'a> {
    /// Name.
    pub id: &'a str,
    /// Unix seconds.
    pub created: u64,
    /// Task.
    pub task: Task,
    /// True if the model is loaded, and calls tools.
    pub calls_tools: bool,
    /// Facts of its file; `None` while the model is not loaded.
    pub info: Option<ModelInfo>,
}

/// Request that a built-in model may answer without writing anything.
#[derive(Debug, Clone, Copy)]
pub struct FixedAsk<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path that names the operation.
    pub path: &'a str,
    /// Body; empty where there is none.
    pub body: &'a [u8],
}

/// Framing of the messages of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFraming {
    /// Event stream (WHATWG HTML, 9.2).
    Events,
    /// JSON values, each in a line of its own.
    Lines,
}

/// Path below the list of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelPath<'p> {
    /// The list itself.
    List,
    /// Path of one model, with its id as written in the path: escapes are not decoded.
    One(&'p str),
    /// Neither.
    Neither,
}

/// Head of an answer that a built-in model writes.
#[derive(Debug, Clone, Copy)]
pub struct AnswerHead<'a> {
    /// Operation that is answered.
    pub operation: Operation,
    /// Random part of the answer's id, which the dialect puts into its own form.
    pub id: uuid::Uuid,
    /// Time at which the answer was begun, in Unix seconds.
    pub created: u64,
    /// Model that answers.
    pub model: &'a str,
    /// True if an event stream ends with its usage.
    pub include_usage: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Members of the answer's object that repeat the request, as in [`ChatRequest::echoed`].
    pub echoed: &'a str,
}

/// Times of an answer by a built-in model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnswerTimes {
    /// Time from the submission of the request to the end of the answer.
    pub total: Duration,
    /// Time to read the prompt.
    pub prefill: Duration,
    /// Time to write the answer.
    pub decode: Duration,
}

/// Advice to a client on a retry of a refused request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAdvice {
    /// None: nobody knows when a retry may succeed.
    None,
    /// A retry after this time.
    After(Duration),
    /// No retry by the client itself, which would sleep while its caller could act on the error. A retry may succeed after
    /// this time.
    NotByItself(Duration),
}

/// API that callers or backends speak. The default of a method says that the dialect does not have the feature.
pub trait Dialect: Send + Sync {
    /// Name in metrics, spans and the tests' tables.
    fn name(&self) -> &'static str;

    /// Operation of a method and path; `None` where the path is not of this dialect.
    fn operation(&self, _method: &Method, _path: &str) -> Option<Known> {
        None
    }

    /// Part of its requests in which the dialect names the model.
    fn model_place(&self) -> ModelPlace {
        ModelPlace::Body
    }

    /// Place of the system prompt in the body of an operation; `None` for one that asks for no text.
    fn system_place(&self, _operation: Operation) -> Option<SystemPlace> {
        None
    }

    /// Range of the model's name in the path of a request, with its escapes; `None` where the path names none.
    fn model_in_path(&self, _path: &str) -> Option<Range<usize>> {
        None
    }

    /// Model that the message of a gRPC call names; `None` where it names none.
    ///
    /// # Errors
    /// Refuses a body in which two readers could find different models.
    fn model_in_message(&self, _body: &[u8]) -> Result<Option<NamedModel>, Refusal> {
        Ok(None)
    }

    /// Part of a gRPC call's body to replace, and the bytes in its place, so that its message names the model `name`; `at` is
    /// the range that [`Dialect::model_in_message`] found.
    fn rename_in_message(&self, _body: &[u8], _at: &Range<usize>, _name: &str) -> Option<(Range<usize>, Vec<u8>)> {
        None
    }

    /// Place of the model's name in the beginning of an answer, where its server knows the model as `from` and its caller as `to`.
    fn rename_in_answer(&self, _operation: Operation, _beginning: &[u8], _from: &str, _to: &str) -> AnswerName {
        AnswerName::Absent
    }

    /// Content type and body of a refusal. `request_id` is empty where there is none.
    fn error(&self, refusal: &Refusal, request_id: &str) -> (HeaderValue, Bytes);

    /// Status of the answer that carries a refusal. Dialects whose clients read errors elsewhere send another one than the
    /// status that the refusal stands for.
    fn sent_status(&self, refusal: &Refusal) -> StatusCode {
        refusal.status
    }

    /// Headers of a refusal, beside those that every dialect has.
    fn error_headers(&self, _refusal: &Refusal, _retry: RetryAdvice) -> Vec<(HeaderName, HeaderValue)> {
        Vec::new()
    }

    /// Refusal as trailers, for an answer whose head was sent; `None` where clients of the dialect read no error there.
    fn error_trailers(&self, _refusal: &Refusal) -> Option<HeaderMap> {
        None
    }

    /// Refusal as an event, for the stream of an operation whose head was sent; `None` where the dialect has no such event.
    fn error_event(&self, _operation: Operation, _refusal: &Refusal) -> Option<Bytes> {
        None
    }

    /// Headers that servers of this dialect need and get where the caller sent none.
    fn default_headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        Vec::new()
    }

    /// Header of an answer with the id of the request, beside the gateway's own.
    fn request_id_header(&self) -> Option<&'static HeaderName> {
        None
    }

    /// Names of the headers that show a caller its limit on requests or tokens: limit, remaining, reset. Named as by OpenAI
    /// where the dialect has none of its own.
    fn limit_headers(&self, is_tokens: bool) -> &'static [HeaderName; 3] {
        let [requests, tokens] = &super::RATE_LIMIT;
        if is_tokens { tokens } else { requests }
    }

    /// Value of the header that shows the time until a limit is full again.
    fn limit_reset(&self, reset: Duration) -> String {
        super::reset_text(reset)
    }

    /// Framing of the streams of the dialect, beside event streams, which callers of all dialects read.
    fn stream_framing(&self) -> StreamFraming {
        StreamFraming::Events
    }

    /// True if servers of the dialect read JSON out of a body whose Content-Type says that it is a form.
    fn reads_json_always(&self) -> bool {
        false
    }

    /// True if an operation is answered in a stream where the body does not say.
    fn streams_by_default(&self, _operation: Operation) -> bool {
        false
    }

    /// Name of a model without what every name has, in which form names are compared.
    fn bare_model<'n>(&self, name: &'n str) -> &'n str {
        name
    }

    /// Name of a model in the one form in which its servers compare spellings that they read as one.
    fn folded_model(&self, name: &str) -> String {
        self.bare_model(name).to_owned()
    }

    /// Scope of a call that the dialect knows by its path and that has no further meaning for the gateway.
    fn scope_of_other(&self, _method: &Method, _path: &str) -> ModelScope {
        ModelScope::Unknown
    }

    /// Header that tells the codings of bodies that the gateway reads.
    fn accept_encoding_name(&self) -> HeaderName {
        header::ACCEPT_ENCODING
    }

    /// Further field that names the model of a call that has no further meaning for the gateway, where `model` is empty or not
    /// there.
    fn older_model_field(&self) -> Option<&'static str> {
        None
    }

    /// Statuses with which servers of this dialect report that they are full.
    fn full_statuses(&self) -> &'static [u16] {
        &[]
    }

    /// Reader of the decoded body of an answer with these headers; `None` where its type cannot be read.
    fn observe(&self, _headers: &Fields) -> Option<Box<dyn Observe>> {
        None
    }

    /// Reader of the messages of a socket of this operation; `None` where they have no known form.
    fn read_socket(&self, _operation: Operation) -> Option<Box<dyn ReadSocket>> {
        None
    }

    /// Status that a server of this dialect would have sent with an error, of an error in an answer with another status.
    fn error_status(&self, _error: &ObservedError) -> u16 {
        500
    }

    /// Path of the list of models that callers of the dialect read; that of OpenAI's API where the dialect has none.
    fn list_path(&self) -> &'static str {
        "/v1/models"
    }

    /// Path below the list of models, of a request whose operation is [`Operation::Models`].
    fn model_path<'p>(&self, _path: &'p str) -> ModelPath<'p> {
        ModelPath::Neither
    }

    /// Body of the list of models; `None` where the dialect has none.
    fn model_list(&self, _models: &[ModelCard<'_>]) -> Option<Bytes> {
        None
    }

    /// Body of one model of the list; `None` where the dialect has none.
    fn model(&self, _model: ModelCard<'_>) -> Option<Bytes> {
        None
    }

    /// Body of the list of the models that are loaded, out of these; `None` where the dialect has none.
    fn loaded_models(&self, _models: &[&BuiltinCard<'_>]) -> Option<Bytes> {
        None
    }

    /// Query for a page of a server's list of models, with its `?`: the first one, or the one behind the name `after`.
    fn list_query(&self, _after: Option<&str>) -> String {
        String::new()
    }

    /// Reads a page of a server's list of models; `None` for anything else. Names may be of any length and content.
    fn read_list(&self, _body: &[u8]) -> Option<ListPage> {
        None
    }

    /// Reader of the text of an event stream, where a stream that ends early can be continued.
    fn transcribe(&self) -> Option<Box<dyn Transcribe>> {
        None
    }

    /// Body of a request that continues an answer after `said`, and the range of its model's name in that body. `None` where
    /// the continuation would not fit the text before it.
    fn continuation(&self, _body: &[u8], _said: &Said) -> Option<(Bytes, Option<Range<usize>>)> {
        None
    }

    /// Rewriter of the event stream of a continuation by the backend `by`, after what was said before. Only called where
    /// [`Dialect::continuation`] returned a request.
    fn continue_stream<'a>(&self, _by: &'a str, _before: &'a Said) -> Option<Box<dyn ContinueStream + 'a>> {
        None
    }

    /// True if [`Dialect::fixed_answer`] answers anything.
    fn has_fixed_answers(&self) -> bool {
        false
    }

    /// Answer to a request for which a built-in model has to write nothing, such as one for its description; `None` for any
    /// other.
    fn fixed_answer(&self, _ask: &FixedAsk<'_>, _model: &BuiltinCard<'_>) -> Option<Result<Bytes, Refusal>> {
        None
    }

    /// Reads a request for text; `None` where the dialect has no such operation.
    fn read_chat(&self, _operation: Operation, _body: &[u8]) -> Option<Result<ChatRequest, Refusal>> {
        None
    }

    /// Writer of an answer of a built-in model; `None` where the dialect has no such operation.
    fn write_answer(&self, _head: AnswerHead<'_>) -> Option<Box<dyn WriteAnswer>> {
        None
    }

    /// Body of an answer with the number of tokens of a prompt; `None` where the dialect has no such operation.
    fn write_token_count(&self, _tokens: u64) -> Option<Bytes> {
        None
    }

    /// Translator of an operation, for callers whose server speaks another dialect; `None` for an operation that no other
    /// dialect has.
    fn translator(&self, _operation: Operation) -> Option<&'static dyn CallerApi> {
        None
    }

    /// Translator by which servers of this dialect get conversations of callers who speak another one; `None` where they
    /// hold none.
    fn conversations(&self) -> Option<&'static dyn ServerApi> {
        None
    }

    /// Work that an operation asks of a model that encodes texts; `None` for any other operation.
    fn encode_kind(&self, _operation: Operation) -> Option<Encode> {
        None
    }

    /// Reads a request for a model that encodes texts; `None` where the dialect has no such operation. An error names the
    /// field at fault.
    fn read_encode(&self, _what: Encode, _body: &[u8]) -> Option<Result<EncodeRequest, Refusal>> {
        None
    }

    /// Body of an answer with vectors or ranks by `model`, which read `tokens` tokens. `None` where the dialect has no such
    /// operation.
    fn write_encoded(&self, _model: &str, _request: &EncodeRequest, _encoded: &Encoded, _tokens: u64) -> Option<Bytes> {
        None
    }
}

impl fmt::Debug for dyn Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for dyn Dialect {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for dyn Dialect {}

/// Reader of one answer while it passes, in bounded memory and without holding it. Its result does not depend on where the
/// answer is cut into parts.
pub trait Observe: Send + Sync {
    /// Reads a part that passes at `now`.
    fn feed(&mut self, part: &[u8], now: Instant);

    /// Facts read so far.
    fn observation(&self) -> &Observation;

    /// Facts of an answer that has ended; an event that no empty line closed counts as well.
    fn finish(&mut self) -> &Observation;
}

/// Side of a socket that speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// The client.
    Client,
    /// The server.
    Server,
}

/// Meaning of a message of a socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SocketEvent {
    /// The client asks for a response.
    Asks,
    /// The client sends sound, in Base64, to which the server may respond by itself.
    Hears,
    /// A message of the client by which no response begins.
    Quiet,
    /// A response begins.
    Begins,
    /// A part of a response is sound, in Base64.
    Sound,
    /// Notes of what the client said, which are being written down.
    Transcript,
    /// A response has ended.
    Ends,
    /// Refusal of what the client asked for.
    Fails,
    /// Any other message.
    #[default]
    Other,
}

/// Message of a socket that was read to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SocketMessage {
    /// Meaning.
    pub event: SocketEvent,
    /// Tokens used that it tells.
    pub usage: Option<Usage>,
    /// Text of an answer in it.
    pub written: Written,
    /// Model that answers.
    pub model: Option<String>,
    /// Id of the answer.
    pub id: Option<String>,
}

/// Reader of the messages of a socket while they pass, in fixed memory whatever their length and without holding them.
pub trait ReadSocket: Send {
    /// Reads a part of a message.
    fn feed(&mut self, from: Speaker, part: &[u8]);

    /// Reads the end of a message.
    fn end(&mut self, from: Speaker) -> SocketMessage;
}

/// Reader of the text of an event stream, for a stream that ends early and is continued.
pub trait Transcribe: Send + Sync {
    /// Reads whole events.
    fn feed(&mut self, events: &[u8]);

    /// Text so far; `None` where the answer has ended or holds anything that cannot be continued.
    fn to_continue(&self) -> Option<Said>;

    /// True if the stream has sent its finish reason.
    fn is_finished(&self) -> bool;

    /// True if the stream has sent any text.
    fn has_text(&self) -> bool;
}

/// Rewriter of an event stream that continues another one, so that the caller reads both as one stream.
pub trait ContinueStream: Send + Sync {
    /// Rewrites whole events to the form that the caller gets.
    fn rewrite(&mut self, events: &[u8]) -> Bytes;
}

/// Writer of the answer of a built-in model, as an event stream or as a whole. Each method appends to `out`.
pub trait WriteAnswer: Send + Sync {
    /// Id of the answer.
    fn id(&self) -> &str;

    /// Content type of a stream.
    fn stream_type(&self) -> &'static str {
        "text/event-stream; charset=utf-8"
    }

    /// Takes the times of the answer, before [`WriteAnswer::last`] or [`WriteAnswer::whole`].
    fn timed(&mut self, _times: AnswerTimes) {}

    /// First event of a choice.
    fn first(&mut self, out: &mut BytesMut, choice: u32);

    /// First event of an answer that continues the stream of another server. Its only content is the mark that says so.
    fn resumed(&mut self, out: &mut BytesMut);

    /// Event with a piece of a choice, and its tokens where their log probabilities are wanted. `reported` is the number of
    /// characters that earlier events reported. Returns the characters of these tokens.
    fn piece(
        &mut self,
        out: &mut BytesMut,
        choice: u32,
        text: &str,
        written: Option<&[WrittenToken]>,
        reported: usize,
    ) -> usize;

    /// Event with a tool call of a choice, the `n`-th from 0.
    fn call(&mut self, out: &mut BytesMut, choice: u32, n: usize, call: &Call);

    /// Stop string that has ended a choice, whose [`Self::ended`] follows. Writers of APIs that do not report it ignore it.
    fn stopped(&mut self, _choice: u32, _stop: &str) {}

    /// Last event of a choice, with its finish reason.
    fn ended(&mut self, out: &mut BytesMut, choice: u32, reason: FinishReason);

    /// End of the event stream.
    fn last(&mut self, out: &mut BytesMut, usage: Usage);

    /// Event with an error that ends the stream.
    fn failed(&mut self, out: &mut BytesMut, refusal: &Refusal);

    /// Whole answer, all choices at once.
    fn whole(&mut self, out: &mut BytesMut, choices: &[Choice], usage: Usage);
}
