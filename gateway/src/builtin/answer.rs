//! Submits chat requests to the engine. A request that the engine cannot serve is refused before anything is computed.
//! `prompt` turns conversations into tokens.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use spillway_engine::{Busy, BusyReason, Generate, Sampling};
use spillway_filter::Refusal;
use tokio::sync::OwnedSemaphorePermit;

use super::LoadedModel;
use super::error::{SpillError, check_ignored, too_long};
use super::prompt::{calling, check_length, prepare};
use super::stream::{AnswerOptions, Report, SpillStream};
use crate::protocol::{AnswerHead, ChatRequest, Dialect, Operation, ResponseFormat};

/// Beginning of an answer that a server did not finish.
#[derive(Debug, Clone, Copy)]
pub struct Begun<'a> {
    /// Text sent so far.
    pub text: &'a str,
    /// Estimated number of tokens of the text.
    pub tokens: u32,
}

/// Terms on which a request is answered.
#[derive(Debug)]
pub struct Terms {
    /// Dialect in which the answer is written.
    pub dialect: &'static dyn Dialect,
    /// Operation that is answered.
    pub operation: Operation,
    /// Longest prompt in tokens.
    pub max_prompt_tokens: Option<NonZeroU32>,
    /// Slot of a request over a limit.
    pub over_limit: Option<OwnedSemaphorePermit>,
    /// Tenant of the caller: tenants take turns.
    pub tenant: Option<Arc<str>>,
    /// Name of the model in the answer, where its caller has a name of its own for it.
    pub shown: Option<Box<str>>,
}

/// Submits a request to the engine, whatever model the request names.
pub async fn answer(
    model: &Arc<LoadedModel>,
    request: &ChatRequest,
    terms: Terms,
    deadline: Instant,
) -> Result<SpillStream, SpillError> {
    submit(model, request, None, terms, deadline).await
}

/// Submits the rest of an answer: the engine continues where the text ends, and the tokens written so far count.
pub async fn continue_answer(
    model: &Arc<LoadedModel>,
    request: &ChatRequest,
    begun: Begun<'_>,
    terms: Terms,
    deadline: Instant,
) -> Result<SpillStream, SpillError> {
    // The text so far has no probabilities here, followed no grammar, and is one of several answers.
    let has_more = request.n.is_some_and(|n| n > 1) || request.logprobs;
    if has_more || request.response_format != ResponseFormat::Text || !request.tools.is_empty() {
        let message =
            "An answer with `n`, `logprobs`, `response_format` or `tools` cannot be continued by another model.";
        return Err(SpillError::CannotSpill(Refusal::invalid("unsupported_value", message)));
    }
    submit(model, request, Some(begun), terms, deadline).await
}

async fn submit(
    model: &Arc<LoadedModel>,
    request: &ChatRequest,
    resumed: Option<Begun<'_>>,
    terms: Terms,
    deadline: Instant,
) -> Result<SpillStream, SpillError> {
    let Terms { dialect, operation, max_prompt_tokens, over_limit, tenant, shown } = terms;
    let begun = resumed.unwrap_or(Begun { text: "", tokens: 0 });
    if let Some(refusal) = &request.unsupported {
        return Err(SpillError::CannotSpill(refusal.clone()));
    }
    check_ignored(model, &request.ignored)?;
    let engine = model.engine(deadline).await?;
    check_choices(request.n, engine.max_sequences())?;
    check_length(request, begun.text.len(), engine.info().context_length)?;
    // Refuse before encoding where the length of the prompt does not matter.
    let calling = calling(&engine, request)?;
    check_biases(&request.logit_bias, engine.info().vocabulary)?;
    let wait = engine.estimated_wait(0, tenant.as_deref());
    if let Some(excess) = wait.checked_sub(model.max_queue_wait()).filter(|excess| !excess.is_zero()) {
        return Err(Busy { reason: BusyReason::WaitTooLong, retry_after: excess }.into());
    }
    let started = Instant::now();
    let (prompt, grammar) =
        prepare(model, &engine, request, calling.as_ref(), &request.response_format, begun.text, deadline).await?;
    let encode = started.elapsed();
    let length = u64::try_from(prompt.len()).unwrap_or(u64::MAX);
    if let Some(most) = max_prompt_tokens.filter(|most| length > u64::from(most.get()) + u64::from(begun.tokens)) {
        let message = format!("The prompt has {length} tokens, and at most {most} may be answered here.");
        return Err(too_long(message, request.fields.prompt));
    }
    let created = crate::clock::unix_now();
    let id = uuid::Uuid::new_v4();
    let prompt_tokens = length.saturating_sub(begun.tokens.into());
    let head = AnswerHead {
        operation,
        id,
        created,
        model: shown.as_deref().unwrap_or(model.name()),
        include_usage: request.include_usage,
        prompt_tokens,
        echoed: &request.echoed,
    };
    let answer = dialect.write_answer(head).ok_or_else(|| {
        let message = format!("A built-in model cannot answer in the API `{}`.", dialect.name());
        SpillError::CannotSpill(Refusal::invalid("unsupported_endpoint", message))
    })?;
    let submitted = Instant::now();
    let defaults = Sampling::default();
    let sampling = Sampling {
        temperature: request.temperature.unwrap_or(defaults.temperature),
        top_k: request.top_k,
        top_p: request.top_p.unwrap_or(defaults.top_p),
        min_p: request.min_p.unwrap_or(defaults.min_p),
        repetition_penalty: request.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        presence_penalty: request.presence_penalty.unwrap_or(defaults.presence_penalty),
        frequency_penalty: request.frequency_penalty.unwrap_or(defaults.frequency_penalty),
        logit_bias: request.logit_bias.as_slice().into(),
        seed: request.seed,
    };
    let events = engine.submit(Generate {
        // At least one: only the engine can tell that the answer has ended.
        max_tokens: request.max_tokens.map(|most| most.saturating_sub(begun.tokens).max(1)),
        sampling,
        stop: request.stop.clone(),
        deadline: Some(deadline),
        choices: request.n.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN),
        log_probabilities: request.logprobs.then_some(request.top_logprobs),
        grammar,
        tenant,
        ..Generate::new(prompt)
    })?;
    let report = Report {
        id: answer.id().to_owned(),
        model: model.name().into(),
        prompt_tokens: Some(prompt_tokens),
        cached_tokens: 0,
        choices: request.n.unwrap_or(1),
        completion_tokens: begun.tokens.into(),
        encode,
        submitted,
        queued: None,
        prefill: None,
        first_token: None,
        decode: None,
        finish_reason: None,
        error: None,
        excuse: None,
        complete: false,
        took: None,
        metrics: Arc::clone(model.metrics()),
    };
    let options = AnswerOptions {
        streamed: request.stream,
        logprobs: request.logprobs,
        calling,
        stop: request.stop.clone(),
        resumed: resumed.map(|begun| begun.tokens),
        served_by: model.served_by().clone(),
        dropped: request.ignored.header(),
        deadline,
        engine: Some(engine),
        over_limit,
    };
    Ok(SpillStream::new(events, answer, options, report))
}

/// Refuses biases of unknown tokens: they would have no effect.
fn check_biases(biases: &[(u32, f32)], vocabulary: u32) -> Result<(), SpillError> {
    match biases.iter().find(|(token, _)| *token >= vocabulary) {
        Some((token, _)) => Err(SpillError::CannotSpill(
            Refusal::invalid(
                "invalid_value",
                format!("`logit_bias`: {token} is no token of this model, which has {vocabulary}."),
            )
            .param("logit_bias"),
        )),
        None => Ok(()),
    }
}

/// Refuses more answers than the engine writes at once.
fn check_choices(wanted: Option<u32>, most: u32) -> Result<(), SpillError> {
    match wanted {
        Some(n) if n > most => Err(SpillError::CannotSpill(
            Refusal::invalid("integer_above_max_value", format!("`n` must be at most {most} for this model."))
                .param("n"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn more_answers_than_there_are_sequences_are_refused_by_name() {
        assert!(check_choices(None, 4).is_ok() && check_choices(Some(4), 4).is_ok());
        let refusal = check_choices(Some(5), 4).unwrap_err().into_refusal();
        assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some("n")));
    }

    #[test]
    fn a_busy_engine_says_when_to_come_back() {
        for (reason, wait, told) in
            [(BusyReason::QueueFull, 0, 1), (BusyReason::WaitTooLong, 250, 250), (BusyReason::Stopped, 1000, 1000)]
        {
            let error = SpillError::from(Busy { reason, retry_after: Duration::from_millis(wait) });
            assert!(matches!(error, SpillError::Busy(_)));
            assert_eq!(error.refusal().status, 429);
            assert_eq!(error.refusal().retry_after, Some(Duration::from_millis(told)));
        }
    }
}
