//! Reports of requests to the rollout of their route: what each says about the version that it was given to.

use std::sync::Arc;
use std::time::Duration;

use crate::balancing::Verdict;
use crate::builtin::Excuse;
use crate::clock;
use crate::exchange::{Exchange, RequestBody, RolloutPart, ServedBy};
use crate::rollout::{AnswerTap, LiveRollout, Observation, REFUSED, Side};
use crate::upstream::{Attempt, is_server_fault};

/// Codes of refusals that the gateway made because the version had no room, or did not answer in time.
const SHED: [&str; 4] = ["overloaded", "service_unavailable", "upstream_timeout", "request_timeout"];
/// Finish reasons of the APIs by which an answer ends for want of tokens.
const TRUNCATED: [&str; 4] = ["length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"];

/// Tap on the answer to a request for text, where the rollout of its route reads such.
pub(super) fn tap(live: &Arc<LiveRollout>, exchange: &Exchange) -> Option<AnswerTap> {
    let reading = live.reading.as_ref().filter(|_| exchange.resolved.operation.asks_for_text())?;
    let RequestBody::Held(held) = &exchange.body else { return None };
    if reading.wants(&held.bytes) { AnswerTap::new(live.clone()) } else { None }
}

/// Notes the outcome of an attempt: a failure of the version stays one, whoever answers in the end.
pub(super) fn attempted(attempt: &Attempt<'_>, verdict: Verdict, took: Duration, exchange: &mut Exchange) {
    // One that stands in is no version.
    let Some(part) = exchange.rollout.as_mut().filter(|_| exchange.outcome.spilled.is_none()) else { return };
    let is_failure = matches!(verdict, Verdict::Error | Verdict::ServerError);
    part.has_failed |= is_failure && part.live.version_of(&attempt.backend.name) == part.version;
    let begun = attempt.started.saturating_duration_since(exchange.started);
    part.answered_in = Some(begun + took);
}

/// Leaves the observation of a request that has ended. One whose caller left, or gave it too little time, says how long it waited
/// for the version at least, unless that had failed before. One that the gateway refused for reasons of its own, or that another
/// version answered although the first had not failed, says nothing.
pub(super) fn observe(part: &RolloutPart, tap: Option<AnswerTap>, exchange: &Exchange) {
    let o = &exchange.outcome;
    let (served, is_built_in) = match &o.served_by {
        _ if o.spilled.is_some() => (None, false),
        ServedBy::Gateway => (None, false),
        ServedBy::Backend(name) => (Some(part.live.version_of(name)), false),
        ServedBy::Model(name) => (Some(part.live.version_of(name.strip_prefix("builtin/").unwrap_or(name))), true),
    };
    let is_own = served == Some(part.version);
    if o.socket.is_some() {
        // Its opening is told already. A socket that its server breaks later is another observation.
        if part.has_failed && is_own {
            part.live.observe(Observation { is_error: true, ..part.observation() });
        }
        return;
    }
    let is_over = o.error_code == Some("request_timeout") || o.excuse == Some(Excuse::Deadline);
    let is_callers_limit = is_over && exchange.route.as_ref().is_some_and(|route| exchange.is_callers_deadline(route));
    let is_excused = is_callers_limit || matches!(o.excuse, Some(Excuse::Caller | Excuse::Stopped));
    let is_shed =
        served.is_none() && o.spilled.is_none() && o.error_code.is_some_and(|code| SHED.contains(&code)) && !is_excused;
    let is_broken_model = is_built_in && o.error_code == Some("engine_error");
    // A status such as 501 is what a caller asks for. Its own deadline, an answer that it does not read, and a model that is being
    // stopped are no fault of the version.
    let is_fault = !is_excused && (is_server_fault(o.status) || is_broken_model);
    let is_error = part.has_failed || is_shed || (is_own && is_fault);
    let is_left = is_callers_limit || o.client_gone;
    if !is_error && (is_left || is_excused || (o.spilled.is_none() && !is_own)) {
        if is_left && o.spilled.is_none() && served.is_none_or(|served| served == part.version) {
            left(part, exchange);
        }
        return;
    }
    let mut observation = part.observation();
    observation.is_error = is_error;
    observation.spilled = o.spilled.is_some();
    let is_good = is_own && !is_error && !o.client_gone && !o.broken && (200..400).contains(&o.status);
    if is_good {
        measure(&mut observation, part, exchange);
    }
    if let Some((pair, _)) = &part.pair {
        // An answer of something else says nothing of the version, and there is none to compare with.
        if is_own || is_error {
            let status = if is_own { o.reported.unwrap_or(o.status) } else { 0 };
            pair.put(Side::new(observation, status, tap.filter(|_| is_good)));
        }
        return;
    }
    if let (true, Some(tap), RequestBody::Held(held)) = (is_good, tap, &exchange.body) {
        tap.hand_over(&observation, &held.bytes);
    }
    part.live.observe(observation);
}

/// Leaves the observation of a request that its caller left: its time would have been at least this long. Half a pair says
/// nothing, nor does an answer that its caller did not read.
fn left(part: &RolloutPart, exchange: &Exchange) {
    if part.pair.is_some() || exchange.outcome.excuse == Some(Excuse::Caller) {
        return;
    }
    let waited = part.answered_in.unwrap_or_else(|| clock::since(exchange.started));
    let is_stream = exchange.asked.as_ref().is_some_and(|asked| asked.stream)
        && exchange.route.as_ref().is_some_and(|route| route.calls_models);
    let first = exchange.outcome.first_token.filter(|_| is_stream);
    part.live.observe(Observation {
        is_part: true,
        left_after: Some(waited.as_secs_f32()),
        left_before_first_token: is_stream && first.is_none(),
        first_token: first.filter(|_| !part.is_first_token_told).map(|first| first.as_secs_f32()),
        ..part.observation()
    });
}

/// Figures of a good answer.
pub(super) struct Figures<'f> {
    /// Time until it was there whole.
    pub latency: Duration,
    /// Time until its first content, of one in a stream.
    pub first: Option<Duration>,
    /// Finish reason.
    pub finish: Option<&'f str>,
    /// Tokens written, where the operation writes some.
    pub output: Option<u64>,
    /// Cost in billionths of a US dollar, where a metric needs it.
    pub nanos: Option<u64>,
}

/// Adds the figures of a good answer.
fn measure(observation: &mut Observation, part: &RolloutPart, exchange: &Exchange) {
    let o = &exchange.outcome;
    // The time of a client that reads slowly is no time of the version.
    let latency = part.answered_in.unwrap_or_else(|| clock::since(exchange.started));
    // Of a pair, both sides are measured from the copy on.
    let before = part.pair.as_ref().map_or(Duration::ZERO, |(_, before)| *before);
    let mut figures =
        Figures { latency: latency.saturating_sub(before), first: None, finish: None, output: None, nanos: None };
    if !exchange.route.as_ref().is_some_and(|route| route.calls_models) {
        return record(observation, &figures);
    }
    let first = o.first_token.filter(|_| exchange.asked.as_ref().is_some_and(|asked| asked.stream));
    figures.first = first.map(|first| first.saturating_sub(before));
    figures.finish = o.finish_reason.as_deref();
    if exchange.resolved.writes_tokens || part.live.needs_costs {
        let used = super::limiting::used(exchange);
        figures.output = exchange.resolved.writes_tokens.then_some(used.output);
        figures.nanos = part.live.needs_costs.then_some(used.nanos);
    }
    record(observation, &figures);
    if part.is_first_token_told {
        observation.first_token = None;
    }
}

/// Adds figures to an observation.
pub(super) fn record(observation: &mut Observation, figures: &Figures<'_>) {
    #[allow(clippy::cast_possible_truncation, reason = "seven digits are enough")]
    let single = |value: f64| Some(value as f32);
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    let float = |count: u64| count as f64;
    observation.latency = single(figures.latency.as_secs_f64());
    observation.first_token = figures.first.and_then(|first| single(first.as_secs_f64()));
    if let Some(reason) = figures.finish {
        observation.refused = Some(REFUSED.contains(&reason));
        observation.truncated = Some(TRUNCATED.contains(&reason));
    }
    if let Some(output) = figures.output.map(float) {
        observation.output_tokens = single(output);
        let writing = figures.latency.saturating_sub(figures.first.unwrap_or_default()).as_secs_f64();
        if output > 1.0 && writing > 0.0 {
            observation.tokens_per_second = single(output / writing);
        }
    }
    observation.cost = figures.nanos.and_then(|nanos| single(float(nanos) / 1e9));
}
