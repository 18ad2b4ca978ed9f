//! Reports of requests to the rollout of their route: what each says about the version that it was given to.

use std::sync::Arc;
use std::time::Duration;

use spillway_statistics::Version;

use crate::balancing::Verdict;
use crate::clock;
use crate::exchange::{Exchange, RequestBody, RolloutPart, ServedBy};
use crate::rollout::{AnswerTap, LiveRollout, Observation, REFUSED, Side};
use crate::upstream::{Attempt, is_server_fault};

/// Codes of refusals that the gateway made because the version had no room, or did not answer in time.
const SHED: [&str; 4] = ["overloaded", "service_unavailable", "upstream_timeout", "request_timeout"];
/// Finish reasons of the APIs by which an answer ends for want of tokens.
const TRUNCATED: [&str; 4] = ["length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"];

/// Version that a target of this name belongs to.
fn version_of(live: &LiveRollout, target: &str) -> Version {
    if *live.candidate == *target { Version::Candidate } else { Version::Stable }
}

/// Tap on the answer to a request for text, where the rollout of its route reads such.
pub(super) fn tap(live: &Arc<LiveRollout>, exchange: &Exchange) -> Option<AnswerTap> {
    let reading = live.reading.as_ref().filter(|_| exchange.resolved.operation.asks_for_text())?;
    let RequestBody::Held(held) = &exchange.body else { return None };
    if reading.wants(&held.bytes) { AnswerTap::new(live) } else { None }
}

/// Notes the outcome of an attempt: a failure of the version stays one, whoever answers in the end.
pub(super) fn attempted(attempt: &Attempt<'_>, verdict: Verdict, took: Duration, exchange: &mut Exchange) {
    // One that stands in is no version.
    let Some(part) = exchange.rollout.as_mut().filter(|_| exchange.outcome.spilled.is_none()) else { return };
    let is_failure = matches!(verdict, Verdict::Error | Verdict::ServerError);
    part.has_failed |= is_failure && version_of(&part.live, &attempt.backend.name) == part.version;
    let begun = attempt.started.saturating_duration_since(exchange.started);
    part.answered_in = Some(begun + took);
}

/// Leaves the observation of a request that has ended. One whose client left says nothing, unless its version had failed
/// before; nor does one that the gateway refused for reasons of its own, or that another version answered although the
/// first had not failed.
pub(super) fn observe(part: &RolloutPart, tap: Option<AnswerTap>, exchange: &Exchange) {
    let o = &exchange.outcome;
    let (served, is_built_in) = match &o.served_by {
        _ if o.spilled.is_some() => (None, false),
        ServedBy::Gateway => (None, false),
        ServedBy::Backend(name) => (Some(version_of(&part.live, name)), false),
        ServedBy::Model(name) => (Some(version_of(&part.live, name.strip_prefix("builtin/").unwrap_or(name))), true),
    };
    let is_own = served == Some(part.version);
    let is_callers_limit = o.error_code == Some("request_timeout")
        && exchange.route.as_ref().is_some_and(|route| exchange.is_callers_deadline(route));
    let is_shed = served.is_none()
        && o.spilled.is_none()
        && o.error_code.is_some_and(|code| SHED.contains(&code))
        && !is_callers_limit;
    let is_broken_model = is_built_in && o.error_code == Some("engine_error");
    // A status such as 501 is what a caller asks for, and its own deadline is no fault of the version.
    let is_fault = !is_callers_limit && (is_server_fault(o.status) || is_broken_model);
    let is_error = part.has_failed || is_shed || (is_own && is_fault);
    if !is_error && (is_callers_limit || o.client_gone || (o.spilled.is_none() && !is_own)) {
        return;
    }
    let mut observation = Observation::new(part.version, part.epoch, part.unit);
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
    // The time of a client that reads slowly, and the life of a socket, are no time of the version.
    let latency = match (o.socket, part.answered_in) {
        (Some(socket), _) => socket.opened_after,
        (None, Some(answered)) => answered,
        (None, None) => clock::since(exchange.started),
    };
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
