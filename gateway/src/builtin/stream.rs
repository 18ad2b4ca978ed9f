//! An answer of the engine on its way to a caller: events become the frames of a stream, or one completion at the end.
//! Dropping it ends the engine's work within one step. Every wait ends with the request's deadline.

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
use super::memory::Held;
use crate::protocol::{Call, Choice, FinishReason, SERVED_BY, Usage, WriteAnswer};
use crate::telemetry::ModelMetrics;

/// Answers to one request; the engine gives no more than were asked for.
const MAX_CHOICES: usize = 1 << 10;

/// Text that is ready at once goes out in one write, up to so many bytes.
const FRAME: usize = 16 << 10;

/// Where the events of an answer come from.
pub trait Events: Send {
    /// The next one; `None` after the last. Can be dropped and asked again.
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send;
}

impl Events for TokenStream {
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send {
        Self::next(self)
    }
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    /// Status.
    pub status: StatusCode,
    /// Content type and who served it.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Length of a whole answer.
    pub content_length: Option<usize>,
}

/// What was measured of one answer: complete after its end, partial before.
#[derive(Clone)]
pub struct Report {
    /// Id of the answer.
    pub id: String,
    /// The model.
    pub model: Arc<str>,
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Those of them that were in the KV cache.
    pub cached_tokens: u64,
    /// Answers.
    pub choices: u32,
    /// Tokens written, of all of them.
    pub completion_tokens: u64,
    /// Turning the conversation into tokens, before the engine got the request.
    pub encode: Duration,
    /// When the engine got the request.
    pub submitted: Instant,
    /// Wait for a place.
    pub queued: Option<Duration>,
    /// Reading the prompt.
    pub prefill: Option<Duration>,
    /// First text.
    pub first_token: Option<Instant>,
    /// Writing the answer.
    pub decode: Option<Duration>,
    /// Why the first choice ended.
    pub finish_reason: Option<FinishReason>,
    /// Why it failed.
    pub error: Option<String>,
    /// Whether it ended as it should.
    pub complete: bool,
    /// Time from `submitted` to its end; the client may take longer to read it.
    pub took: Option<Duration>,
    /// Where it is counted.
    pub metrics: Arc<ModelMetrics>,
}

/// How an answer may call tools.
#[derive(Debug, Clone)]
pub(super) struct Calling {
    pub(super) style: ToolStyle,
    /// Those that it may call.
    pub(super) tools: Vec<Tool>,
    /// Whether it must call one.
    pub(super) must: bool,
    /// Most calls of one answer.
    pub(super) most: usize,
}

/// How an answer is wanted.
pub(super) struct Wanted {
    pub(super) streamed: bool,
    /// Whether the probabilities of tokens are told.
    pub(super) logprobs: bool,
    /// The tools that it may call.
    pub(super) calling: Option<Calling>,
    /// It continues an answer of which so many tokens were written already.
    pub(super) resumed: Option<u32>,
    pub(super) served_by: HeaderValue,
    pub(super) deadline: Instant,
    /// Kept alive: an engine that is dropped fails what it runs.
    pub(super) engine: Option<Held>,
    /// Held by an answer to a request over a limit until it is written.
    pub(super) over_limit: Option<OwnedSemaphorePermit>,
}

/// An answer that is being written.
pub struct SpillStream<E = TokenStream> {
    /// `None` once the answer has ended.
    events: Option<E>,
    answer: Box<dyn WriteAnswer>,
    wanted: Wanted,
    report: Report,
    /// Answers so far: whole, or of a stream only that they have begun.
    choices: Vec<Choice>,
    /// Who finds the calls in each of them, where tools may be called.
    readers: Vec<ToolReader>,
    /// What is ready to be sent.
    out: BytesMut,
}

impl<E: Events> SpillStream<E> {
    pub(super) fn new(events: E, answer: Box<dyn WriteAnswer>, wanted: Wanted, report: Report) -> Self {
        Self {
            events: Some(events),
            answer,
            wanted,
            report,
            choices: Vec::new(),
            readers: Vec::new(),
            out: BytesMut::new(),
        }
    }

    /// True if the answer is sent in events.
    pub fn is_event_stream(&self) -> bool {
        self.wanted.streamed
    }

    /// Waits for the first text, or for the whole answer when it is not streamed. An error means that nothing was sent.
    /// Can be dropped and asked again.
    pub async fn begin(&mut self) -> Result<Head, Refusal> {
        while self.out.is_empty() && self.events.is_some() {
            self.fill().await?;
        }
        let kind = if self.wanted.streamed { "text/event-stream; charset=utf-8" } else { "application/json" };
        Ok(Head {
            status: StatusCode::OK,
            headers: vec![
                (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
                (SERVED_BY.clone(), self.wanted.served_by.clone()),
            ],
            content_length: (!self.wanted.streamed).then_some(self.out.len()),
        })
    }

    /// The next part to send; `None` when the answer is complete. What fails after the beginning is told as an event.
    /// Can be dropped and asked again.
    pub async fn next(&mut self) -> Option<Bytes> {
        while self.out.is_empty() && self.events.is_some() {
            if let Err(refusal) = self.fill().await {
                self.answer.failed(&mut self.out, &refusal);
            }
        }
        (!self.out.is_empty()).then(|| self.out.split().freeze())
    }

    /// What was measured so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Waits for one event and takes what else is ready.
    async fn fill(&mut self) -> Result<(), Refusal> {
        let Some(events) = &mut self.events else { return Ok(()) };
        // The only wait; nothing is changed before it ends, so that dropping this future loses nothing.
        let mut next = match tokio::time::timeout_at(self.wanted.deadline.into(), events.next()).await {
            Ok(event) => event,
            Err(_) => Some(Event::Failed(EngineError::Deadline)),
        };
        loop {
            let applied = match next {
                Some(event) => self.apply(event),
                None => {
                    Err(self.failed("lost".into(), internal("The model inside the gateway ended without an answer.")))
                }
            };
            if let Err(refusal) = applied {
                self.let_go();
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
                let before = self.wanted.resumed.unwrap_or_default();
                self.report.prompt_tokens = Some(prompt_tokens.saturating_sub(before).into());
                self.report.cached_tokens = cached_tokens.into();
            }
            Event::Text { choice, text, tokens, written } => {
                self.report.completion_tokens = self.report.completion_tokens.saturating_add(tokens.into());
                self.begun(choice);
                match self.reader(choice) {
                    None => self.say(choice, &text, written),
                    Some(reader) => {
                        let mut said = Vec::new();
                        reader.push(&text, &mut said);
                        self.tell(choice, said);
                    }
                }
            }
            Event::Ended { choice, reason } => {
                let reason = match reason {
                    spillway_engine::FinishReason::Stop => FinishReason::Stop,
                    spillway_engine::FinishReason::Length => FinishReason::Length,
                };
                self.begun(choice);
                if let Some(reader) = self.reader(choice) {
                    let mut said = Vec::new();
                    reader.finish(&mut said);
                    self.tell(choice, said);
                }
                let calls = self.choice(choice).is_some_and(|whole| !whole.calls.is_empty());
                let reason = if calls && reason == FinishReason::Stop { FinishReason::ToolCalls } else { reason };
                if let Some(whole) = self.choice(choice) {
                    whole.finish_reason = reason;
                }
                if choice == 0 {
                    self.report.finish_reason = Some(reason);
                }
                if self.wanted.streamed {
                    self.answer.ended(&mut self.out, choice, reason);
                }
            }
            Event::Finished(finished) => self.finish(&finished),
            Event::Failed(error) => return Err(self.failed(error.to_string(), refusal(&error))),
        }
        Ok(())
    }

    /// An answer has something to say; the first time that is told, and of all answers before it.
    fn begun(&mut self, choice: u32) {
        self.report.first_token.get_or_insert_with(Instant::now);
        while self.choices.len() < MAX_CHOICES && self.choice(choice).is_none() {
            if self.wanted.resumed.is_some() {
                self.answer.resumed(&mut self.out);
            } else if self.wanted.streamed {
                let next = u32::try_from(self.choices.len()).unwrap_or(u32::MAX);
                self.answer.first(&mut self.out, next);
            }
            let written = self.wanted.logprobs.then(Vec::new);
            if let Some(Calling { style, tools, must, most }) = &self.wanted.calling {
                self.readers.push(ToolReader::new(*style, tools, *most, *must));
            }
            self.choices.push(Choice { written, ..Choice::default() });
        }
    }

    fn reader(&mut self, choice: u32) -> Option<&mut ToolReader> {
        self.readers.get_mut(usize::try_from(choice).ok()?)
    }

    /// A piece of an answer, with its tokens.
    fn say(&mut self, choice: u32, text: &str, written: Vec<WrittenToken>) {
        let (streamed, logprobs) = (self.wanted.streamed, self.wanted.logprobs);
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

    /// What was found in an answer that may call tools.
    fn tell(&mut self, choice: u32, said: Vec<Said>) {
        for part in said {
            match part {
                Said::Text(text) => self.say(choice, &text, Vec::new()),
                Said::Call { name, arguments } => {
                    let id = format!("call_{}", uuid::Uuid::new_v4().simple());
                    let call = Call { id, name, arguments };
                    if self.wanted.streamed {
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

    fn choice(&mut self, choice: u32) -> Option<&mut Choice> {
        self.choices.get_mut(usize::try_from(choice).ok()?)
    }

    /// The engine has done its part: what the answer held of it is free for others, whatever the client has yet to read.
    fn let_go(&mut self) {
        self.report.took = Some(self.report.submitted.elapsed());
        self.events = None;
        self.wanted.engine = None;
        self.wanted.over_limit = None;
    }

    fn failed(&mut self, what: String, refusal: Refusal) -> Refusal {
        self.report.error = Some(what);
        refusal
    }

    fn finish(&mut self, finished: &Finished) {
        // What was written before is part of the answer to the caller and part of the prompt to the engine.
        let before = u64::from(self.wanted.resumed.unwrap_or_default());
        let usage = Usage {
            prompt_tokens: u64::from(finished.prompt_tokens).saturating_sub(before),
            completion_tokens: u64::from(finished.completion_tokens).saturating_add(before),
            cached_tokens: Some(finished.cached_tokens.into()),
            reasoning_tokens: None,
        };
        self.report.prompt_tokens = Some(usage.prompt_tokens);
        self.report.cached_tokens = finished.cached_tokens.into();
        self.report.completion_tokens = usage.completion_tokens;
        self.report.queued = Some(finished.queued);
        self.report.prefill = Some(finished.prefill);
        self.report.decode = Some(finished.decode);
        self.report.complete = true;
        self.let_go();
        if self.wanted.streamed {
            self.answer.last(&mut self.out, usage);
        } else {
            self.answer.whole(&mut self.out, &self.choices, usage);
        }
    }
}

fn refusal(error: &EngineError) -> Refusal {
    match error {
        EngineError::Deadline => Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Timeout,
            "request_timeout",
            "The time for this request was over before the model inside the gateway had answered.",
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
            "The model inside the gateway is being stopped; try again.",
        ),
        EngineError::Grammar(_) => {
            internal("The answer could not be held to `response_format`; the gateway's log says why.")
        }
        // What the device said is for the log, where the engine has written it.
        EngineError::Device(_)
        | EngineError::Defect(_)
        | EngineError::Task { .. }
        | EngineError::Input(_)
        | EngineError::Busy(_) => internal("The model inside the gateway failed; its log says why."),
    }
}
