//! One exchange answered by the engine: the request becomes a prompt, the tokens become events or one completion.
//! Dropping the stream ends the engine's work within one step.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use spillway_engine::{
    BusyReason, ChatMessage, EngineError, Event, FinishReason, Generate, Prompt, PromptError, Sampling, TokenStream,
};
use spillway_filter::{ErrorKind, Refusal};

use super::LoadedModel;
use crate::protocol::openai::{Answer, ChatRequest};
use crate::protocol::{Api, error_event};
use crate::telemetry::ModelMetrics;

static SERVED_BY: HeaderName = HeaderName::from_static("x-spillway-served-by");

/// Text from which on a prompt is encoded on a blocking thread: below it, that takes well under a millisecond.
const ENCODE_INLINE: usize = 8 << 10;

/// Why the model inside does not answer.
#[derive(Debug)]
pub enum SpillError {
    /// It is not its task.
    CannotSpill(Refusal),
    /// The conversation is longer than its context.
    TooLong(Refusal),
    /// It has no room.
    Busy(Refusal),
    /// It failed.
    Failed(Refusal),
}

impl SpillError {
    /// What to say when the model was addressed directly.
    pub fn refusal(&self) -> &Refusal {
        match self {
            Self::CannotSpill(r) | Self::TooLong(r) | Self::Busy(r) | Self::Failed(r) => r,
        }
    }

    /// The same, taken out.
    pub fn into_refusal(self) -> Refusal {
        match self {
            Self::CannotSpill(r) | Self::TooLong(r) | Self::Busy(r) | Self::Failed(r) => r,
        }
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

/// What the engine measured of one answer.
pub struct Report {
    /// Id of the answer.
    pub id: String,
    /// The model.
    pub model: Arc<str>,
    /// Tokens read.
    pub prompt_tokens: Option<u64>,
    /// Tokens written.
    pub completion_tokens: u64,
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
    /// `stop` or `length`.
    pub finish_reason: Option<&'static str>,
    /// Why it failed.
    pub error: Option<String>,
    /// Whether it ended as it should.
    pub complete: bool,
    /// Where it is counted.
    pub metrics: Arc<ModelMetrics>,
}

/// An answer that is being written.
pub struct SpillStream {
    tokens: TokenStream,
    answer: Answer,
    streamed: bool,
    include_usage: bool,
    served_by: HeaderValue,
    report: Report,
    /// Text so far, for a whole answer.
    whole: String,
    /// What `begin` has produced and `next` gives first.
    ready: Option<Bytes>,
    ended: bool,
}

/// Gives a request to the engine.
pub async fn answer(
    model: &Arc<LoadedModel>,
    request: &ChatRequest,
    deadline: Instant,
) -> Result<SpillStream, SpillError> {
    if let Some(refusal) = request.unsupported() {
        return Err(SpillError::CannotSpill(refusal.clone()));
    }
    let prompt = encode(model, request).await?;
    let sampling = Sampling {
        temperature: request.temperature.unwrap_or(1.0),
        top_k: request.top_k,
        top_p: request.top_p.unwrap_or(1.0),
        seed: request.seed,
    };
    let prompt_tokens = u64::try_from(prompt.len()).ok();
    let work = Generate {
        prompt,
        max_tokens: request.max_tokens,
        sampling,
        stop: request.stop.clone(),
        deadline: Some(deadline),
    };
    let submitted = Instant::now();
    let tokens = model.engine().submit(work).map_err(|busy| {
        let message = match busy.reason {
            BusyReason::QueueFull => "too many requests wait for the model inside the gateway",
            BusyReason::WaitTooLong => "the model inside the gateway is busy for longer than a request may wait",
            BusyReason::Stopped => "the model inside the gateway has been stopped",
        };
        SpillError::Busy(
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::Overloaded, "overloaded", message)
                .retry_after(busy.retry_after.max(Duration::from_millis(1))),
        )
    })?;
    let answer = Answer {
        id: format!("chatcmpl-{}", uuid::Uuid::new_v4().simple()),
        created: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        model: model.name().into(),
    };
    let report = Report {
        id: answer.id.clone(),
        model: answer.model.clone(),
        prompt_tokens,
        completion_tokens: 0,
        submitted,
        queued: None,
        prefill: None,
        first_token: None,
        decode: None,
        finish_reason: None,
        error: None,
        complete: false,
        metrics: model.metrics().clone(),
    };
    Ok(SpillStream {
        tokens,
        answer,
        streamed: request.stream,
        include_usage: request.include_usage,
        served_by: model.served_by().clone(),
        report,
        whole: String::new(),
        ready: None,
        ended: false,
    })
}

async fn encode(model: &Arc<LoadedModel>, request: &ChatRequest) -> Result<Prompt, SpillError> {
    let messages: Vec<ChatMessage> = request
        .messages
        .iter()
        .map(|message| ChatMessage { role: message.role.to_owned(), content: message.content.clone() })
        .collect();
    let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
    let encoded = if bytes <= ENCODE_INLINE {
        model.engine().encode_chat(&messages)
    } else {
        let model = model.clone();
        tokio::task::spawn_blocking(move || model.engine().encode_chat(&messages))
            .await
            .map_err(|e| SpillError::Failed(internal(format!("the prompt could not be encoded: {e}"))))?
    };
    encoded.map_err(|e| match e {
        PromptError::TooLong { tokens, context } => SpillError::TooLong(
            Refusal::invalid(
                "context_length_exceeded",
                format!("the conversation has {tokens} tokens; this model takes {context}, answer included"),
            )
            .param("messages"),
        ),
        other => SpillError::CannotSpill(Refusal::invalid("invalid_value", other.to_string()).param("messages")),
    })
}

fn internal(message: String) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Internal, "engine_error", message)
}

/// What came of one event of the engine.
enum Step {
    /// Something to send.
    Frame(Bytes),
    /// Nothing to send yet.
    More,
    /// The whole answer.
    End(Bytes),
    /// It failed.
    Failed(Refusal),
}

impl SpillStream {
    /// Waits for the first text, or for the whole answer when it is not streamed. An error means that nothing was sent.
    pub async fn begin(&mut self) -> Result<Head, Refusal> {
        loop {
            match self.step().await {
                Step::More => {}
                Step::Frame(frame) | Step::End(frame) => {
                    let content_length = (!self.streamed).then_some(frame.len());
                    self.ready = Some(frame);
                    return Ok(self.head(content_length));
                }
                Step::Failed(refusal) => {
                    self.ended = true;
                    return Err(refusal);
                }
            }
        }
    }

    fn head(&self, content_length: Option<usize>) -> Head {
        let kind = if self.streamed { "text/event-stream; charset=utf-8" } else { "application/json" };
        Head {
            status: StatusCode::OK,
            headers: vec![
                (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
                (SERVED_BY.clone(), self.served_by.clone()),
            ],
            content_length,
        }
    }

    /// The next part to send; `None` when the answer is complete. Can be dropped and asked again.
    pub async fn next(&mut self) -> Option<Bytes> {
        if let Some(ready) = self.ready.take() {
            return Some(ready);
        }
        while !self.ended {
            match self.step().await {
                Step::More => {}
                Step::Frame(frame) | Step::End(frame) => return Some(frame),
                Step::Failed(refusal) => {
                    self.ended = true;
                    return error_event(&refusal, Api::OpenAi);
                }
            }
        }
        None
    }

    /// What the engine measured, so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    async fn step(&mut self) -> Step {
        // The only wait; everything after it is done before the next one, so that dropping this future loses nothing.
        let Some(event) = self.tokens.next().await else {
            self.report.error = Some("lost".into());
            return Step::Failed(internal("the model inside the gateway ended without an answer".into()));
        };
        match event {
            Event::Started { queued } => self.report.queued = Some(queued),
            Event::Prefilled { prefill, prompt_tokens } => {
                self.report.prefill = Some(prefill);
                self.report.prompt_tokens = Some(prompt_tokens.into());
            }
            Event::Text { text, tokens } => {
                let first = self.report.first_token.is_none();
                self.report.first_token.get_or_insert_with(Instant::now);
                self.report.completion_tokens += u64::from(tokens);
                if self.streamed {
                    let mut out = Vec::with_capacity(text.len() + 192);
                    if first {
                        self.answer.first(&mut out);
                    }
                    self.answer.piece(&mut out, &text);
                    return Step::Frame(out.into());
                }
                self.whole.push_str(&text);
            }
            Event::Finished(finished) => return Step::End(self.end(&finished)),
            Event::Failed(error) => {
                self.report.error = Some(error.to_string());
                return Step::Failed(match error {
                    EngineError::Deadline => Refusal::new(
                        StatusCode::GATEWAY_TIMEOUT,
                        ErrorKind::Timeout,
                        "request_timeout",
                        "the time for this request was over before the model inside the gateway had answered",
                    ),
                    error => internal(format!("the model inside the gateway failed: {error}")),
                });
            }
        }
        Step::More
    }

    fn end(&mut self, finished: &spillway_engine::Finished) -> Bytes {
        let reason = match finished.reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        };
        let (prompt, completion) = (u64::from(finished.prompt_tokens), u64::from(finished.completion_tokens));
        let first = self.report.first_token.is_none();
        self.report.first_token.get_or_insert_with(Instant::now);
        self.report.prompt_tokens = Some(prompt);
        self.report.completion_tokens = completion;
        self.report.queued = Some(finished.queued);
        self.report.prefill = Some(finished.prefill);
        self.report.decode = Some(finished.decode);
        self.report.finish_reason = Some(reason);
        self.report.complete = true;
        self.ended = true;
        if !self.streamed {
            return self.answer.whole(&self.whole, reason, prompt, completion);
        }
        let mut out = Vec::with_capacity(512);
        if first {
            self.answer.first(&mut out);
        }
        self.answer.last(&mut out, reason, prompt, completion, self.include_usage);
        out.into()
    }
}
