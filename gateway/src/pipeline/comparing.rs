//! Reports of requests to the rollout of their route: what each says about the version that it was given to.

use std::time::Duration;

use spillway_statistics::Version;

use crate::balancing::Verdict;
use crate::clock;
use crate::exchange::{Exchange, RolloutPart, ServedBy};
use crate::rollout::{LiveRollout, Observation};
use crate::upstream::{Attempt, is_server_fault};

/// Codes of refusals that the gateway made because the version had no room, or did not answer in time.
const SHED: [&str; 4] = ["overloaded", "service_unavailable", "upstream_timeout", "request_timeout"];
/// Finish reasons of the APIs by which a model, or a filter of its server, keeps an answer back.
const REFUSED: [&str; 3] = ["content_filter", "refusal", "safety"];
/// Finish reasons of the APIs by which an answer ends for want of tokens.
const TRUNCATED: [&str; 4] = ["length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"];

/// Version that a target of this name belongs to.
fn version_of(live: &LiveRollout, target: &str) -> Version {
    if *live.candidate == *target { Version::Candidate } else { Version::Stable }
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
pub(super) fn observe(part: &RolloutPart, exchange: &Exchange) {
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
    part.live.observe(observation);
}

/// Adds the figures of a good answer.
fn measure(observation: &mut Observation, part: &RolloutPart, exchange: &Exchange) {
    #[allow(clippy::cast_possible_truncation, reason = "seven digits are enough")]
    let single = |value: f64| Some(value as f32);
    let o = &exchange.outcome;
    // The time of a client that reads slowly, and the life of a socket, are no time of the version.
    let latency = match (o.socket, part.answered_in) {
        (Some(socket), _) => socket.opened_after,
        (None, Some(answered)) => answered,
        (None, None) => clock::since(exchange.started),
    };
    observation.latency = single(latency.as_secs_f64());
    if !exchange.route.as_ref().is_some_and(|route| route.calls_models) {
        return;
    }
    let first = o.first_token.filter(|_| exchange.asked.as_ref().is_some_and(|asked| asked.stream));
    observation.first_token = first.and_then(|first| single(first.as_secs_f64()));
    if let Some(reason) = &o.finish_reason {
        observation.refused = Some(REFUSED.contains(&reason.as_str()));
        observation.truncated = Some(TRUNCATED.contains(&reason.as_str()));
    }
    if !exchange.resolved.writes_tokens && !part.live.needs_costs {
        return;
    }
    let used = super::limiting::used(exchange);
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    let (output, nanos) = (used.output as f64, used.nanos as f64);
    if exchange.resolved.writes_tokens {
        observation.output_tokens = single(output);
        let writing = latency.saturating_sub(first.unwrap_or_default()).as_secs_f64();
        if output > 1.0 && writing > 0.0 {
            observation.tokens_per_second = single(output / writing);
        }
    }
    if part.live.needs_costs {
        observation.cost = single(nanos / 1e9);
    }
}
