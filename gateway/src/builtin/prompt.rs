//! Turns requests into tokens and grammars for the engine, off the runtime's threads if that takes long. Submitting is left
//! to `answer`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use spillway_engine::{
    CallSyntax, ChatMessage, Conversation, Engine, Grammar, GrammarError, Prompt, PromptError, Structure, Tool,
};
use spillway_filter::{ErrorKind, Refusal};

use super::LoadedModel;
use super::error::{SpillError, check_ignored, internal, no_room, too_long};
use super::memory::LoadedEngine;
use super::stream::Calling;
use crate::off_loop::{BUILDS_VALUES, OffLoop};
use crate::protocol::{ChatRequest, Dialect, FieldNames, Message, Operation, PromptInput, ResponseFormat, ToolChoice};

/// Longest text that is encoded without a blocking thread, in bytes: encoding takes well under a millisecond.
const ENCODE_INLINE: usize = 4 << 10;

/// Most bytes of text for each token of the context; a longer conversation is refused without encoding. A token of running
/// text has some four bytes; only endless blanks come near this limit, which bounds the work of a hostile body.
const MAX_BYTES_PER_TOKEN: usize = 64;

/// Most calls of one answer, as many as a request may have tools.
const MAX_CALLS: usize = 128;

/// Reads how the answer may call tools; `None` if the request has none.
pub(super) fn calling(engine: &Engine, request: &ChatRequest) -> Result<Option<Calling>, SpillError> {
    if request.tools.is_empty() {
        return Ok(None);
    }
    let style = engine.tools().ok_or_else(|| prompt_refused(&PromptError::NoTools, request.fields.prompt))?;
    let tools = match &request.tool_choice {
        ToolChoice::Named(name) => request.tools.iter().filter(|tool| tool.name == *name).cloned().collect(),
        _ => request.tools.clone(),
    };
    let must = matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_));
    Ok(Some(Calling { style, tools, must, most: if must || request.one_tool_call { 1 } else { MAX_CALLS } }))
}

/// Counts the tokens of the prompt in the body of an operation; `None` if the model could not answer.
pub async fn prompt_tokens(
    model: &Arc<LoadedModel>,
    (dialect, operation): (&dyn Dialect, Operation),
    body: &[u8],
    off_loop: &OffLoop,
    deadline: Instant,
) -> Option<u64> {
    let read = off_loop.run(body.len().saturating_mul(BUILDS_VALUES), || dialect.read_chat(operation, body)).await;
    let request = read.ok()??.ok().filter(|request| request.unsupported.is_none())?;
    // A model is not loaded only to count.
    let engine = model.engine_now()?;
    check_length(&request, 0, engine.info().context_length).ok()?;
    let (prompt, _) = prepare(model, &engine, &request, None, &ResponseFormat::Text, "", deadline).await.ok()?;
    u64::try_from(prompt.len()).ok()
}

/// Counts the tokens of the prompt of a request, tools included, whatever model the request names.
pub async fn count_tokens(
    model: &Arc<LoadedModel>,
    request: &ChatRequest,
    deadline: Instant,
) -> Result<u64, SpillError> {
    if let Some(refusal) = &request.unsupported {
        return Err(SpillError::CannotSpill(refusal.clone()));
    }
    check_ignored(model, &request.ignored)?;
    let engine = model.engine(deadline).await?;
    check_length(request, 0, engine.info().context_length)?;
    let calling = calling(&engine, request)?;
    let (prompt, _) = prepare(model, &engine, request, calling.as_ref(), &ResponseFormat::Text, "", deadline).await?;
    Ok(u64::try_from(prompt.len()).unwrap_or(u64::MAX))
}

/// Refuses a conversation that cannot fit, with `beside` further bytes, before it is encoded.
pub(super) fn check_length(request: &ChatRequest, beside: usize, context: u32) -> Result<(), SpillError> {
    let bytes = request.text_bytes().saturating_add(beside);
    let most = usize::try_from(context).unwrap_or(usize::MAX).saturating_mul(MAX_BYTES_PER_TOKEN);
    if bytes <= most {
        return Ok(());
    }
    let message = format!(
        "The prompt has {bytes} bytes; this model's context is {context} tokens and takes at most {most} bytes."
    );
    Err(too_long(message, request.fields.prompt))
}

/// Encodes the conversation, and builds the grammar of the answer. Long work runs on a blocking thread, few at a time: more
/// threads would take processor time from the proxy.
pub(super) async fn prepare(
    model: &Arc<LoadedModel>,
    engine: &LoadedEngine,
    request: &ChatRequest,
    calling: Option<&Calling>,
    format: &ResponseFormat,
    begun: &str,
    deadline: Instant,
) -> Result<(Prompt, Option<Grammar>), SpillError> {
    let work = Encoding {
        fields: request.fields,
        prompt: request.prompt.clone(),
        messages: request.messages.iter().map(message_of).collect(),
        tools: if calling.is_some() { request.tools.clone() } else { Vec::new() },
        must_call: calling.is_some_and(|calling| calling.must),
        begun: begun.to_owned(),
        form: match (calling, format) {
            (Some(calling), _) if calling.must => Form::Call(calling.style.schema(&calling.tools)),
            (Some(calling), _) => calling.style.calls(&calling.tools).map_or(Form::Text, Form::Calls),
            (None, ResponseFormat::Text) => Form::Text,
            (None, ResponseFormat::JsonObject) => Form::JsonObject,
            (None, ResponseFormat::JsonSchema(schema)) => Form::JsonSchema(schema.clone()),
        },
    };
    if request.text_bytes().saturating_add(begun.len()) <= ENCODE_INLINE && matches!(work.form, Form::Text) {
        return work.run(engine);
    }
    let until = deadline.min(Instant::now() + model.max_queue_wait());
    let turn = tokio::time::timeout_at(until.into(), Arc::clone(model.encoders()).acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        return Err(no_room("Too many long requests wait for the built-in model; try again.", Duration::ZERO));
    };
    // The thread holds the permit and the engine: it still has to finish after the caller has left.
    let engine = engine.clone();
    let work = tokio::task::spawn_blocking(move || {
        let prepared = work.run(&engine);
        drop(turn);
        prepared
    });
    match tokio::time::timeout_at(deadline.into(), work).await {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(lost)) => {
            tracing::error!(event = "encoding_lost", error = %lost);
            Err(SpillError::Failed(internal("The prompt could not be read; the gateway's log says why.")))
        }
        Err(_) => Err(SpillError::Failed(Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Timeout,
            "request_timeout",
            "The time for this request was over before the built-in model had read it.",
        ))),
    }
}

fn message_of(message: &Message) -> ChatMessage {
    ChatMessage {
        tool_calls: message.tool_calls.clone(),
        tool_call_id: message.tool_call_id.clone(),
        ..ChatMessage::new(message.role, message.content.clone())
    }
}

/// Inputs of tokens and a grammar, on the way to a blocking thread.
struct Encoding {
    fields: FieldNames,
    prompt: Option<PromptInput>,
    messages: Vec<ChatMessage>,
    tools: Vec<Tool>,
    must_call: bool,
    begun: String,
    form: Form,
}

/// Form of an answer, from which its grammar is built.
enum Form {
    Text,
    JsonObject,
    JsonSchema(Box<str>),
    /// A call; its schema.
    Call(String),
    /// Text with strict calls.
    Calls(CallSyntax),
}

impl Encoding {
    fn run(self, engine: &Engine) -> Result<(Prompt, Option<Grammar>), SpillError> {
        let fields = self.fields;
        let prompt = match self.prompt {
            Some(PromptInput::Text(text)) => engine.encode_text(&text),
            Some(PromptInput::Tokens(tokens)) => engine.prompt(tokens),
            None => {
                let (messages, tools) = (self.messages.as_slice(), self.tools.as_slice());
                engine.encode(&Conversation { messages, tools, must_call: self.must_call, begun: &self.begun })
            }
        };
        Ok((
            prompt.map_err(|error| prompt_refused(&error, fields.prompt))?,
            grammar_now(engine, &self.form, fields.format)?,
        ))
    }
}

fn prompt_refused(error: &PromptError, prompt_field: &'static str) -> SpillError {
    let param = match error {
        PromptError::TooLong { tokens, context } => {
            let message = format!(
                "The prompt has {tokens} tokens; this model's context is {context} tokens, the answer included."
            );
            return too_long(message, prompt_field);
        }
        PromptError::NoTools | PromptError::Tools(_) => "tools",
        _ => prompt_field,
    };
    let code = match error {
        PromptError::NoTools | PromptError::NoTemplate | PromptError::NotGenerating => "unsupported_value",
        _ => "invalid_value",
    };
    SpillError::CannotSpill(Refusal::invalid(code, format!("`{param}`: {error}.")).param(param))
}

fn grammar_now(engine: &Engine, form: &Form, format_field: &'static str) -> Result<Option<Grammar>, SpillError> {
    let (structure, param) = match form {
        Form::Text => return Ok(None),
        Form::JsonObject => (Structure::JsonObject, format_field),
        Form::JsonSchema(schema) => (Structure::JsonSchema(schema), format_field),
        Form::Call(schema) => (Structure::JsonSchema(schema), "tools"),
        Form::Calls(calls) => (Structure::Calls(calls), "tools"),
    };
    engine.grammar(structure).map(Some).map_err(|error| {
        let code = match error {
            GrammarError::TooLarge { .. } => "string_above_max_length",
            GrammarError::Invalid(_) => "invalid_json_schema",
            GrammarError::Tokens(_) => "unsupported_value",
        };
        let message = format!("`{param}`: {error}.");
        SpillError::CannotSpill(Refusal::invalid(code, message).param(param))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::OPENAI;

    #[test]
    fn a_prompt_that_cannot_fit_is_refused_unread() {
        let request = |key: &str, bytes: usize| {
            let text = "x".repeat(bytes);
            let body = match key {
                "prompt" => serde_json::json!({"model": "m", "prompt": text}),
                _ => serde_json::json!({"model": "m", "messages": [{"role": "user", "content": text}]}),
            };
            let body = body.to_string();
            {
                let operation = if key == "prompt" { Operation::Completions } else { Operation::Chat };
                OPENAI.read_chat(operation, body.as_bytes()).unwrap().unwrap()
            }
        };
        for key in ["messages", "prompt"] {
            assert!(check_length(&request(key, 64 * 8), 0, 8).is_ok());
            for (bytes, beside) in [(64 * 8 + 1, 0), (64 * 8, 1), (1, usize::MAX)] {
                let error = check_length(&request(key, bytes), beside, 8).unwrap_err();
                assert!(matches!(error, SpillError::TooLong(_)));
                let refusal = error.into_refusal();
                assert_eq!((refusal.status.as_u16(), refusal.code), (400, "context_length_exceeded"));
                assert_eq!(refusal.param.as_deref(), Some(key));
            }
        }
    }
}
