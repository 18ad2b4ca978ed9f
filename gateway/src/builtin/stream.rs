//! Answers of the engine on their way to callers: events become the frames of a stream, or one completion at the end.
//! Dropping an answer ends the engine's work within one step. Every wait ends with the request's deadline.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use http::{HeaderName, HeaderValue, StatusCode, header};
use spillway_engine::text::{Said, ToolReader};
use spillway_engine::{EngineError, Event, Finished, TokenStream, Tool, ToolStyle, WrittenToken};
use spillway_filter::{ErrorKind, Refusal};
use tokio::sync::OwnedSemaphorePermit;

use super::error::internal;
use super::memory::LoadedEngine;
use crate::protocol::{AnswerTimes, Call, Choice, DROPPED, FinishReason, SERVED_BY, Usage, WriteAnswer};
use crate::telemetry::ModelMetrics;

/// Answers to one request; the engine gives no more than were asked for.
const MAX_CHOICES: usize = 1 << 10;

/// Most bytes of text that go out in one write, if they are ready together.
const FRAME: usize = 16 << 10;

/// Source of the events of an answer.
pub trait Events: Send {
    /// Waits for the next event; `None` after the last. The wait may be dropped and repeated.
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send;
}

impl Events for TokenStream {
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send {
        Self::next(self)
    }
}

/// Head of an answer.
#[derive(Debug)]
pub struct Head {
    /// Status.
    pub status: StatusCode,
    /// Content type, caching, and the model that served it.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Length of an answer that is not streamed, in bytes.
    pub content_length: Option<usize>,
}

/// Measurements of one answer: complete after its end, partial before.
#[derive(Clone)]
pub struct Report {
    /// Id of the answer.
    pub id: String,
    /// Name of the model.
    pub model: Arc<str>,
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Prompt tokens that the KV cache already held.
    pub cached_tokens: u64,
    /// Number of answers.
    pub choices: u32,
    /// Tokens written, of all answers.
    pub completion_tokens: u64,
    /// Time to encode the conversation, before the engine got the request.
    pub encode: Duration,
    /// Time at which the engine got the request.
    pub submitted: Instant,
    /// Wait for the engine.
    pub queued: Option<Duration>,
    /// Time to read the prompt.
    pub prefill: Option<Duration>,
    /// Time of the first text.
    pub first_token: Option<Instant>,
    /// Time to write the answer.
    pub decode: Option<Duration>,
    /// Reason why the first answer ended.
    pub finish_reason: Option<FinishReason>,
    /// Reason of a failure.
    pub error: Option<String>,
    /// Excuse of the model for the failure.
    pub excuse: Option<Excuse>,
    /// True if the answer ended as it should.
    pub complete: bool,
    /// Time from `submitted` to the end of the engine's work; the client may take longer to read.
    pub took: Option<Duration>,
    /// Series that count the answer.
    pub metrics: Arc<ModelMetrics>,
}

/// Rules by which an answer may call tools.
#[derive(Debug, Clone)]
pub(super) struct Calling {
    pub(super) style: ToolStyle,
    /// Tools that the answer may call.
    pub(super) tools: Vec<Tool>,
    /// True if the answer must call a tool.
    pub(super) must: bool,
    /// Most calls of one answer.
    pub(super) most: usize,
}

/// Options of one answer.
pub(super) struct AnswerOptions {
    pub(super) streamed: bool,
    /// True if the probabilities of tokens are sent.
    pub(super) logprobs: bool,
    /// Tools that the answer may call.
    pub(super) calling: Option<Calling>,
    /// Strings that end the answer.
    pub(super) stop: Vec<String>,
    /// Tokens of an answer that this one continues; `None` for a new answer.
    pub(super) resumed: Option<u32>,
    pub(super) served_by: HeaderValue,
    /// Fields of the request that are ignored.
    pub(super) dropped: Option<HeaderValue>,
    pub(super) deadline: Instant,
    /// Engine, kept alive: dropping it fails its running answers.
    pub(super) engine: Option<LoadedEngine>,
    /// Slot of a request over a limit, held until the answer is written.
    pub(super) over_limit: Option<OwnedSemaphorePermit>,
}

/// Answer that is being written.
pub struct SpillStream<E = TokenStream> {
    /// `None` once the answer has ended.
    events: Option<E>,
    answer: Box<dyn WriteAnswer>,
    options: AnswerOptions,
    report: Report,
    /// Answers so far: their text, or for a stream only the fact that they have begun.
    choices: Vec<Choice>,
    /// Parsers of tool calls, one for each answer, if tools may be called.
    readers: Vec<ToolReader>,
    /// Bytes that are ready to be sent.
    out: BytesMut,
}

impl<E: Events> SpillStream<E> {
    pub(super) fn new(events: E, answer: Box<dyn WriteAnswer>, options: AnswerOptions, report: Report) -> Self {
        Self {
            events: Some(events),
            answer,
            options,
            report,
            choices: Vec::new(),
            readers: Vec::new(),
            out: BytesMut::new(),
        }
    }

    /// True if the answer is sent in events.
    pub fn is_event_stream(&self) -> bool {
        self.options.streamed
    }

    /// Waits for the first text, or for the whole answer if it is not streamed. An error means that nothing was sent.
    /// The wait may be dropped and repeated.
    pub async fn begin(&mut self) -> Result<Head, Refusal> {
        while self.out.is_empty() && self.events.is_some() {
            self.fill().await?;
        }
        let kind = if self.options.streamed { self.answer.stream_type() } else { "application/json" };
        let mut headers = vec![
            (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            (SERVED_BY.clone(), self.options.served_by.clone()),
        ];
        headers.extend(self.options.dropped.clone().map(|dropped| (DROPPED.clone(), dropped)));
        Ok(Head { status: StatusCode::OK, headers, content_length: (!self.options.streamed).then_some(self.out.len()) })
    }

    /// Waits for the next part to send; `None` when the answer is complete. A failure after the first part becomes an event.
    /// The wait may be dropped and repeated.
    pub async fn next(&mut self) -> Option<Bytes> {
        while self.out.is_empty() && self.events.is_some() {
            if let Err(refusal) = self.fill().await {
                self.answer.failed(&mut self.out, &refusal);
            }
        }
        (!self.out.is_empty()).then(|| self.out.split().freeze())
    }

    /// Measurements so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Waits for one event and applies all others that are ready.
    async fn fill(&mut self) -> Result<(), Refusal> {
        let Some(events) = &mut self.events else { return Ok(()) };
        // The only wait. No state changes before it ends, so that dropping this future loses nothing.
        let mut next = match tokio::time::timeout_at(self.options.deadline.into(), events.next()).await {
            Ok(event) => event,
            Err(_) => Some(Event::Failed(EngineError::Deadline)),
        };
        loop {
            let applied = match next {
                Some(event) => self.apply(event),
                None => Err(self.failed("lost".into(), internal("The built-in model ended without an answer."))),
            };
            if let Err(refusal) = applied {
                self.release();
                return Err(refusal);
            }
            let Some(events) = self.events.as_mut().filter(|_| self.out.len() < FRAME) else { return Ok(()) };
            match events.next().now_or_never() {
                Some(ready) => next = ready,
                None => return Ok(()),
            }
        }
    }

    fn apply(&mut self, event: Event) -> Result<(), Refusal> {
        match event {
            Event::Started { queued } => self.report.queued = Some(queued),
            Event::Prefilled { prefill, prompt_tokens, cached_tokens } => {
                self.report.prefill = Some(prefill);
                let before = self.options.resumed.unwrap_or_default();
                self.report.prompt_tokens = Some(prompt_tokens.saturating_sub(before).into());
                self.report.cached_tokens = cached_tokens.into();
            }
            Event::Text { choice, text, tokens, written } => {
                self.report.completion_tokens = self.report.completion_tokens.saturating_add(tokens.into());
                self.begin_choice(choice);
                match self.reader(choice) {
                    None => self.say(choice, &text, written),
                    Some(reader) => {
                        let mut said = Vec::new();
                        reader.push(&text, &mut said);
                        self.say_parsed(choice, said);
                    }
                }
            }
            Event::StopString { choice, stop } => self.stopped(choice, stop),
            Event::Ended { choice, reason } => {
                let reason = match reason {
                    spillway_engine::FinishReason::Stop => FinishReason::Stop,
                    spillway_engine::FinishReason::Length => FinishReason::Length,
                };
                self.begin_choice(choice);
                if let Some(reader) = self.reader(choice) {
                    let mut said = Vec::new();
                    reader.finish(&mut said);
                    self.say_parsed(choice, said);
                }
                let calls = self.choice(choice).is_some_and(|whole| !whole.calls.is_empty());
                let reason = if calls && reason == FinishReason::Stop { FinishReason::ToolCalls } else { reason };
                if let Some(whole) = self.choice(choice) {
                    whole.finish_reason = reason;
                }
                if choice == 0 {
                    self.report.finish_reason = Some(reason);
                }
                if self.options.streamed {
                    self.answer.ended(&mut self.out, choice, reason);
                }
            }
            Event::Finished(finished) => self.finish(&finished),
            Event::Failed(error) => {
                self.report.excuse = excuse(&error);
                return Err(self.failed(error.to_string(), refusal(&error)));
            }
        }
        Ok(())
    }

    /// Begins the answer `choice` and all answers before it, unless they have begun.
    fn begin_choice(&mut self, choice: u32) {
        self.report.first_token.get_or_insert_with(Instant::now);
        while self.choices.len() < MAX_CHOICES && self.choice(choice).is_none() {
            if self.options.resumed.is_some() {
                self.answer.resumed(&mut self.out);
            } else if self.options.streamed {
                let next = u32::try_from(self.choices.len()).unwrap_or(u32::MAX);
                self.answer.first(&mut self.out, next);
            }
            let written = self.options.logprobs.then(Vec::new);
            if let Some(Calling { style, tools, must, most }) = &self.options.calling {
                self.readers.push(ToolReader::new(*style, tools, *most, *must));
            }
            self.choices.push(Choice { written, ..Choice::default() });
        }
    }

    fn reader(&mut self, choice: u32) -> Option<&mut ToolReader> {
        self.readers.get_mut(usize::try_from(choice).ok()?)
    }

    /// Writes a piece of an answer, with its tokens.
    fn say(&mut self, choice: u32, text: &str, written: Vec<WrittenToken>) {
        let (streamed, logprobs) = (self.options.streamed, self.options.logprobs);
        if streamed {
            let reported = self.choice(choice).map_or(0, |whole| whole.reported);
            let characters = self.answer.piece(&mut self.out, choice, text, logprobs.then_some(&*written), reported);
            if let Some(whole) = self.choice(choice) {
                whole.reported = whole.reported.saturating_add(characters);
            }
        } else if let Some(whole) = self.choice(choice) {
            whole.text.push_str(text);
            if logprobs {
                whole.written.get_or_insert_default().extend(written);
            }
        }
    }

    /// Writes texts and calls that were parsed from an answer.
    fn say_parsed(&mut self, choice: u32, said: Vec<Said>) {
        for part in said {
            match part {
                Said::Text(text) => self.say(choice, &text, Vec::new()),
                Said::Call { name, arguments } => {
                    let id = format!("call_{}", uuid::Uuid::new_v4().simple());
                    let call = Call { id, name, arguments };
                    if self.options.streamed {
                        let n = self.choice(choice).map_or(0, |whole| whole.calls.len());
                        self.answer.call(&mut self.out, choice, n, &call);
                    }
                    if let Some(whole) = self.choice(choice) {
                        whole.calls.push(call);
                    }
                }
            }
        }
    }

    /// Records the stop string that ended an answer, whose end follows.
    fn stopped(&mut self, choice: u32, stop: usize) {
        let Some(stop) = self.options.stop.get(stop).cloned() else { return };
        self.begin_choice(choice);
        if let Some(whole) = self.choice(choice) {
            whole.stop = Some(stop.clone());
        }
        if self.options.streamed {
            self.answer.stopped(choice, &stop);
        }
    }

    fn choice(&mut self, choice: u32) -> Option<&mut Choice> {
        self.choices.get_mut(usize::try_from(choice).ok()?)
    }

    /// Releases the engine and the slot once the engine has done its part, whatever the client has yet to read.
    fn release(&mut self) {
        self.report.took = Some(self.report.submitted.elapsed());
        self.events = None;
        self.options.engine = None;
        self.options.over_limit = None;
    }

    fn failed(&mut self, what: String, refusal: Refusal) -> Refusal {
        self.report.error = Some(what);
        refusal
    }

    fn finish(&mut self, finished: &Finished) {
        // Tokens written before are part of the answer for the caller, and part of the prompt for the engine.
        let before = u64::from(self.options.resumed.unwrap_or_default());
        let usage = Usage {
            prompt_tokens: u64::from(finished.prompt_tokens).saturating_sub(before),
            completion_tokens: u64::from(finished.completion_tokens).saturating_add(before),
            cached_tokens: Some(finished.cached_tokens.into()),
            cache_written_tokens: None,
            cache_written_1h_tokens: None,
            reasoning_tokens: None,
        };
        self.report.prompt_tokens = Some(usage.prompt_tokens);
        self.report.cached_tokens = finished.cached_tokens.into();
        self.report.completion_tokens = usage.completion_tokens;
        self.report.queued = Some(finished.queued);
        self.report.prefill = Some(finished.prefill);
        self.report.decode = Some(finished.decode);
        self.report.complete = true;
        self.release();
        let total = self.report.took.unwrap_or_default();
        self.answer.timed(AnswerTimes { total, prefill: finished.prefill, decode: finished.decode });
        if self.options.streamed {
            self.answer.last(&mut self.out, usage);
        } else {
            self.answer.whole(&mut self.out, &self.choices, usage);
        }
    }
}

/// Reason for which a failure is none of the model that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excuse {
    /// The caller did not read its answer, or asked for what no model can do.
    Caller,
    /// The time for the request was over, which the caller may have made short.
    Deadline,
    /// The model is being stopped.
    Stopped,
}

fn excuse(error: &EngineError) -> Option<Excuse> {
    match error {
        EngineError::Stalled | EngineError::Grammar(_) | EngineError::Input(_) => Some(Excuse::Caller),
        EngineError::Deadline => Some(Excuse::Deadline),
        EngineError::Shutdown => Some(Excuse::Stopped),
        EngineError::Device(_) | EngineError::Defect(_) | EngineError::Task { .. } | EngineError::Busy(_) => None,
    }
}

fn refusal(error: &EngineError) -> Refusal {
    match error {
        EngineError::Deadline => Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Timeout,
            "request_timeout",
            "The time for this request was over before the built-in model had answered.",
        ),
        EngineError::Stalled => Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Timeout,
            "not_read",
            "The answer was not read for too long and has been given up.",
        ),
        EngineError::Shutdown => Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Overloaded,
            "engine_stopped",
            "The built-in model is being stopped; try again.",
        ),
        EngineError::Grammar(_) => {
            internal("The answer could not be held to the format asked for; the gateway's log says why.")
        }
        // The engine has logged the message of the device.
        EngineError::Device(_)
        | EngineError::Defect(_)
        | EngineError::Task { .. }
        | EngineError::Input(_)
        | EngineError::Busy(_) => internal("The built-in model failed; the gateway's log says why."),
    }
}
