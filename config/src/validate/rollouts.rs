//! Checks of `routes[].rollout`: a candidate and a stable version to compare it with, steps that rise and hold, thresholds that
//! say what is worse, metrics that the servers of the route have.

use std::collections::HashSet;

use spillway_statistics::Threshold as Form;

use super::{Context, Segment, at};
use crate::schema::{
    BackendProtocol, BackendRef, Rollout, RolloutHold, RolloutMetric, RolloutStep, RolloutStrategy, Route, Shadow,
};
use crate::values::{Duration, Pause, Threshold, quoted_url};

/// Longest time limit of one question to a gate.
const LONGEST_GATE: Duration = Duration::seconds(60);

pub(super) fn all(cx: &mut Context<'_>, n: usize, route: &Route) {
    let Some(rollout) = &route.rollout else { return };
    // A route without targets is reported with all keys that need them.
    if !route.backend_refs.is_empty() {
        versions(cx, n, route, rollout);
        metrics(cx, n, route, rollout);
    }
    steps(cx, n, rollout);
    within(cx, n, rollout);
    if rollout.keep_warm.is_some() {
        let message = match rollout.strategy {
            RolloutStrategy::BlueGreen => None,
            RolloutStrategy::Canary => {
                Some("no effect, because a canary takes over step by step: write `strategy: blueGreen`, or remove this")
            }
            RolloutStrategy::Shadow => {
                Some("no effect, because a shadow takes nothing over: write `strategy: blueGreen`, or remove this")
            }
        };
        if let Some(message) = message {
            cx.error(here(n, "keepWarm"), message);
        }
    }
    max_answer(cx, n, rollout);
    match (rollout.strategy, &rollout.shadow) {
        (RolloutStrategy::Shadow, shadow) => {
            self::shadow(cx, n, route, rollout, shadow.as_ref().unwrap_or(&Shadow::default()));
        }
        (_, Some(_)) => cx.error(here(n, "shadow"), "no effect without `strategy: shadow`: write it, or remove this"),
        (_, None) => {}
    }
}

/// Checks the bound of the answers that are read.
fn max_answer(cx: &mut Context<'_>, n: usize, rollout: &Rollout) {
    let Some(size) = rollout.max_answer else { return };
    if !rollout.abort_when.iter().any(|(metric, _)| metric.reads_answers()) {
        let message = "no effect, because no answer is read: name `toolCallErrors`, `structuredOutputErrors` or \
                       `shadowDifference` in `abortWhen`, or remove this";
        cx.error(here(n, "maxAnswer"), message);
    } else if size.0 == 0 || size > Rollout::MOST_MAX_ANSWER {
        let message = format!("expected above zero and at most {}", Rollout::MOST_MAX_ANSWER);
        cx.error(here(n, "maxAnswer"), message);
    }
}

/// Checks that copies of the route's requests can be sent and their answers be compared.
fn shadow(cx: &mut Context<'_>, n: usize, route: &Route, rollout: &Rollout, shadow: &Shadow) {
    let place = |key: &str| at!["routes", n, "rollout", "shadow", key];
    if shadow.timeout.0.is_zero() {
        cx.error(place("timeout"), "a time limit of zero lets nothing pass");
    }
    if shadow.min_similarity.is_some() && shadow.embedding.is_none() {
        let message = "no effect without `embedding`: name a built-in model for embeddings, or remove this";
        cx.error(place("minSimilarity"), message);
    }
    let compares = rollout.abort_when.shadow_difference.is_some();
    if shadow.embedding.is_some() && !compares {
        cx.error(place("embedding"), "no effect without `abortWhen.shadowDifference`: add it, or remove this");
    }
    if let Some(name) = &shadow.embedding {
        super::quality::embedder(cx, place("embedding"), name);
    }
    let Some((at, candidate)) =
        route.backend_refs.iter().enumerate().find(|(_, reference)| name(reference) == Some(&rollout.to))
    else {
        return;
    };
    // 1 is the weight of a reference that names none.
    if candidate.weight > 1 {
        let message = format!(
            "a weight of {} would give `{}` requests, and the candidate of a shadow gets copies alone: write 0, or leave it out",
            candidate.weight, rollout.to
        );
        cx.error(at!["routes", n, "backendRefs", at, "weight"], message);
    }
    let protocol = |name: &str| cx.index.backends.get(name).map(|backend| backend.protocol);
    let Some(spoken) = candidate.name.as_deref().and_then(protocol) else {
        if candidate.model.is_some() {
            let message = format!(
                "`{}` is a built-in model, and copies go to backends alone: name a backend, or write `strategy: canary`",
                rollout.to
            );
            cx.error(here(n, "to"), message);
        }
        return;
    };
    if spoken == BackendProtocol::OipGrpc {
        let message = format!("`{}` speaks gRPC, whose answers are not compared: write `strategy: canary`", rollout.to);
        return cx.error(here(n, "to"), message);
    }
    let other = route.backend_refs.iter().filter_map(|reference| reference.name.as_deref());
    let other = other.filter(|other| *other != rollout.to).find(|other| protocol(other).is_some_and(|p| p != spoken));
    if let Some(other) = other {
        let message = format!(
            "`{other}` speaks another protocol than `{}`, and a copy is never translated: give both one, or write `strategy: canary`",
            rollout.to
        );
        cx.error(here(n, "to"), message);
    }
    let is_plain = spoken == BackendProtocol::Http;
    // The list of a route that writes none has WebSocket, whose handshakes are not copied.
    if route.upgrades.iter().any(|protocol| !protocol.eq_ignore_ascii_case("websocket")) {
        let message = "a socket is no request that could be copied: leave `upgrades` out, or write `strategy: canary`";
        cx.error(at!["routes", n, "upgrades"], message);
    }
    if shadow.writes && !is_plain {
        let message = "no effect, because only calls of models are copied, and a call changes nothing: remove this";
        cx.error(place("writes"), message);
    }
    let changes = |method: &str| !matches!(method.to_ascii_uppercase().as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE");
    let methods: Vec<&str> = route.matches.iter().filter_map(|rule| rule.method.as_deref()).collect();
    if is_plain
        && !shadow.writes
        && !methods.is_empty()
        && methods.len() == route.matches.len()
        && methods.iter().all(|method| changes(method))
    {
        let message = format!(
            "every request of this route is {}, which may change something, and such are not copied: write `shadow: {{writes: true}}` \
             if carrying each out twice does no harm, or `strategy: canary`",
            methods.join(" or ")
        );
        cx.error(here(n, "strategy"), message);
    }
}

fn here(n: usize, key: &str) -> Vec<Segment> {
    at!["routes", n, "rollout", key]
}

fn name(reference: &BackendRef) -> Option<&str> {
    reference.name.as_deref().or(reference.model.as_deref())
}

/// Checks that there are two versions to compare, at the same priority.
fn versions(cx: &mut Context<'_>, n: usize, route: &Route, rollout: &Rollout) {
    let known: Vec<&str> = route.backend_refs.iter().filter_map(name).collect();
    let Some(candidate) = route.backend_refs.iter().find(|reference| name(reference) == Some(&rollout.to)) else {
        return cx.unknown(here(n, "to"), "target of this route", &rollout.to, &known);
    };
    let stable = || route.backend_refs.iter().filter(|reference| name(reference) != Some(&rollout.to));
    if !stable().any(|reference| reference.weight > 0) {
        let message = format!(
            "no stable version: `{}` is the only target of this route that gets requests; add the version that runs now to \
             `backendRefs`",
            rollout.to
        );
        return cx.error(here(n, "to"), message);
    }
    if let Some(other) = stable().find(|reference| reference.priority != candidate.priority) {
        let message = format!(
            "`{}` has another priority than `{}`, and versions of a rollout share the same requests: give both one priority, and \
             name what answers instead in `whenUnavailable.spillTo`",
            name(other).unwrap_or_default(),
            rollout.to
        );
        cx.error(here(n, "to"), message);
    }
}

/// Checks that the steps lead from nothing to everything.
fn steps(cx: &mut Context<'_>, n: usize, rollout: &Rollout) {
    let step_at = |s: usize, key: &str| at!["routes", n, "rollout", "steps", s, key];
    if rollout.steps.len() > Rollout::MOST_STEPS {
        let message = format!("found {} steps; expected at most {}", rollout.steps.len(), Rollout::MOST_STEPS);
        return cx.error(here(n, "steps"), message);
    }
    let mut reached = 0.0;
    let mut ended = false;
    for (s, step) in rollout.steps.iter().enumerate() {
        let kinds = [step.weight.is_some(), step.pause.is_some(), step.gate.is_some()];
        if kinds.iter().filter(|is| **is).count() != 1 {
            let message =
                "found several or none; a step has exactly one of `weight`, `pause` and `gate`: make each a step";
            cx.error(at!["routes", n, "rollout", "steps", s], message);
            continue;
        }
        if step.hold.is_some() && step.weight.is_none() {
            cx.error(step_at(s, "hold"), "no effect without `weight`: move it there, or write a `pause`");
        }
        if ended {
            let message =
                "the step before has given the candidate everything, so this one never comes: remove it, or move it up";
            cx.error(at!["routes", n, "rollout", "steps", s], message);
        }
        match (step.weight, &step.pause, &step.gate) {
            (Some(weight), ..) => {
                self::weight(cx, n, s, rollout, (reached, weight));
                // A share of the copies gives nothing over, and holds as any other.
                let is_last = weight >= 100.0 && rollout.strategy != RolloutStrategy::Shadow;
                hold(cx, n, s, is_last, step);
                reached = f64::max(reached, weight);
                ended |= is_last;
            }
            (_, Some(Pause::Person(false)), _) => {
                cx.error(
                    step_at(s, "pause"),
                    "`false` pauses nothing; expected `true` or a duration, or remove the step",
                );
            }
            (_, Some(Pause::Time(time)), _) if time.0.is_zero() => {
                cx.error(step_at(s, "pause"), "0s pauses nothing; expected a longer time, or `true` for a person");
            }
            (.., Some(gate)) => {
                let url = url::Url::parse(&gate.url);
                if !url.is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
                    let message = format!(
                        "{} is not the URL of a gate; expected one such as https://ci.example.com/ok",
                        quoted_url(&gate.url)
                    );
                    cx.error(at!["routes", n, "rollout", "steps", s, "gate", "url"], message);
                }
                super::without_login(cx, at!["routes", n, "rollout", "steps", s, "gate", "url"], &gate.url);
                if gate.timeout.is_some_and(|timeout| timeout.0.is_zero() || timeout > LONGEST_GATE) {
                    let message = format!("expected above zero and at most {LONGEST_GATE}: it is asked again");
                    cx.error(at!["routes", n, "rollout", "steps", s, "gate", "timeout"], message);
                }
            }
            _ => {}
        }
    }
    if reached == 0.0 {
        let example = match rollout.strategy {
            RolloutStrategy::Canary => "{weight: 5, hold: {for: 10m}}",
            RolloutStrategy::BlueGreen => "{weight: 100}",
            RolloutStrategy::Shadow => "{weight: 10, hold: {for: 1h}}",
        };
        let message = format!("no step gives the candidate a request; expected at least one such as {example}");
        cx.error(here(n, "steps"), message);
    }
}

/// Checks a weight against the greatest one before.
fn weight(cx: &mut Context<'_>, n: usize, s: usize, rollout: &Rollout, (reached, weight): (f64, f64)) {
    let at = at!["routes", n, "rollout", "steps", s, "weight"];
    if weight <= reached {
        let message = if reached == 0.0 {
            format!("{weight} percent give the candidate nothing; expected more than 0")
        } else {
            format!(
                "{weight} percent are no step up from {reached}; expected more: steps rise, and an abort goes back to 0"
            )
        };
        cx.error(at, message);
    } else if rollout.strategy == RolloutStrategy::BlueGreen && weight < 100.0 {
        cx.error(
            at,
            format!("found {weight}; `blueGreen` switches once: write 100, or `strategy: canary` for several steps"),
        );
    }
}

/// Checks that a share holds until something has been seen of it.
fn hold(cx: &mut Context<'_>, n: usize, s: usize, is_last: bool, step: &RolloutStep) {
    let at = at!["routes", n, "rollout", "steps", s];
    let holds = |hold: &RolloutHold| hold.requests.is_some() || hold.time.is_some_and(|time| !time.0.is_zero());
    match &step.hold {
        None if !is_last => {
            let message = "no `hold`, so nothing could be seen of this step: add one such as {for: 10m, requests: 500}";
            cx.error(at, message);
        }
        Some(_) if is_last => {
            let message = "no effect: 100 percent promote, or hold for `keepWarm` with `blueGreen`; remove it, or write a \
                           step below 100";
            cx.error(at!["routes", n, "rollout", "steps", s, "hold"], message);
        }
        Some(hold) if !holds(hold) => {
            let message = "holds for no time and no request; expected `for`, `requests` or both";
            cx.error(at!["routes", n, "rollout", "steps", s, "hold"], message);
        }
        _ => {}
    }
}

/// Checks the hours of steps up.
fn within(cx: &mut Context<'_>, n: usize, rollout: &Rollout) {
    let Some(within) = &rollout.within else { return };
    let at = |key: &str| at!["routes", n, "rollout", "within", key];
    if within.hours.is_none() && within.days.is_none() {
        cx.error(here(n, "within"), "names no time; expected `hours`, `days` or both, or leave it out");
    }
    if let Some(days) = &within.days {
        let different: HashSet<_> = days.iter().collect();
        if days.is_empty() || different.len() != days.len() {
            let message = "expected each day once, and at least one: a rollout without days never begins";
            cx.error(at("days"), message);
        }
    }
    if let Some(zone) = &within.time_zone
        // The names that the program knows, whatever this machine has installed.
        && jiff::tz::TimeZoneDatabase::bundled().get(zone).is_err()
    {
        let message = format!(
            "unknown time zone `{zone}`; expected a name of the IANA database, such as Europe/Berlin, or leave it out for UTC"
        );
        cx.error(at("timeZone"), message);
    }
}

/// Checks that each metric is one of this route, and that its threshold says which side is worse.
fn metrics(cx: &mut Context<'_>, n: usize, route: &Route, rollout: &Rollout) {
    let servers = Servers::of(cx, route);
    for (metric, Threshold(threshold)) in rollout.abort_when.iter() {
        let at = at!["routes", n, "rollout", "abortWhen", metric.as_str()];
        let name = metric.as_str();
        if let Some(message) = servers.lacks(metric) {
            cx.error(at, message);
            continue;
        }
        if metric == RolloutMetric::ShadowDifference && rollout.strategy != RolloutStrategy::Shadow {
            let message =
                "only the two answers of a shadow are to the same request: write `strategy: shadow`, or leave it out";
            cx.error(at, message);
            continue;
        }
        if rollout.strategy == RolloutStrategy::Shadow
            && let Some(reason) = shadow_lacks(metric)
        {
            cx.error(at, format!("{reason}: remove this, or write `strategy: canary`"));
            continue;
        }
        if metric == RolloutMetric::ShadowDifference && !matches!(threshold, Form::Limit(_)) {
            let message = format!(
                "`{threshold}` compares with the stable version, and the difference is of both; expected a limit between 0 and 1, such as \
                 0.05"
            );
            cx.error(at, message);
            continue;
        }
        if metric == RolloutMetric::CostPerRequest && !cx.config.has_prices() {
            cx.error(at, "no effect, because no model has a price: give `prices`, or remove this");
            continue;
        }
        if metric == RolloutMetric::Feedback && cx.config.feedback.is_none() {
            cx.error(at, "no effect, because the file takes no labels of answers: add `feedback`, or remove this");
            continue;
        }
        if metric == RolloutMetric::SpillRate && !spills(route) {
            cx.error(at, "no effect, because this route has no `whenSaturated.spillTo`: add it, or remove this");
            continue;
        }
        if metric.is_distance() {
            if rollout.strategy == RolloutStrategy::BlueGreen {
                let message = format!(
                    "`{name}` is a distance between two versions that answer the same requests, and the stable one gets none after \
                     a switch; expected `strategy: canary`, or leave it out"
                );
                cx.error(at, message);
            } else if !matches!(threshold, Form::Limit(limit) if limit > 0.0 && limit < 1.0) {
                let message = format!(
                    "`{threshold}` is no limit of a distance, which is between 0 and 1; expected one such as 0.2"
                );
                cx.error(at, message);
            }
            continue;
        }
        if rollout.strategy == RolloutStrategy::BlueGreen && !matches!(threshold, Form::Limit(_)) {
            let message = format!(
                "`{threshold}` compares with the stable version, which gets no request after a switch; expected a limit for the \
                 candidate alone, such as 0.02, or `strategy: canary`"
            );
            cx.error(at, message);
            continue;
        }
        let is_rise = matches!(threshold, Form::Rise(_) | Form::AtMost(_) | Form::Limit(_));
        if !metric.is_two_sided() && is_rise == metric.is_better_above() {
            let (side, example) =
                if metric.is_better_above() { ("less", "-0.05 or 0.8x") } else { ("more", "+0.02, 1.3x or 0.2") };
            let message = format!(
                "`{threshold}` would abort a better candidate: {side} of `{name}` is worse; expected one such as {example}"
            );
            cx.error(at, message);
            continue;
        }
        if let Form::Rise(value) | Form::Drop(value) | Form::Limit(value) = threshold
            && metric.is_share()
            && value >= 1.0
        {
            let message = format!(
                "`{threshold}` is never passed, because `{name}` is a share from 0 to 1; expected less, such as +0.02"
            );
            cx.error(at, message);
            continue;
        }
        if matches!(threshold, Form::Rise(0.0) | Form::Drop(0.0)) {
            let message = format!(
                "`{threshold}` leaves nothing in which an equal candidate could be shown to be fine, so every hold ends \
                 inconclusive; expected a difference that would matter"
            );
            cx.warn(at, message);
        }
    }
}

/// Reason for which a copy says nothing about a metric.
fn shadow_lacks(metric: RolloutMetric) -> Option<&'static str> {
    match metric {
        RolloutMetric::Feedback => Some("no caller sees the answers of a shadow, and none labels them"),
        RolloutMetric::SpillRate => Some("a copy never spills"),
        _ => None,
    }
}

fn spills(route: &Route) -> bool {
    route.when_saturated.as_ref().is_some_and(|rule| rule.spill_to.is_some())
        || route.when_unavailable.as_ref().is_some_and(|rule| rule.spill_to.is_some())
}

/// Kinds of servers that a route has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Servers {
    /// At least one answers with text.
    Text,
    /// Models of the Open Inference Protocol alone.
    Inference,
    /// None calls a model.
    Plain,
}

impl Servers {
    fn of(cx: &Context<'_>, route: &Route) -> Self {
        let protocol = |name: &str| cx.index.backends.get(name).map(|backend| backend.protocol);
        let is_text = |reference: &BackendRef| {
            reference.model.is_some() || reference.name.as_deref().is_some_and(|name| cx.index.can_spill(name))
        };
        let is_model = |reference: &BackendRef| {
            reference.name.as_deref().and_then(protocol).is_some_and(BackendProtocol::calls_models)
        };
        if route.backend_refs.iter().any(is_text) {
            Self::Text
        } else if route.backend_refs.iter().any(is_model) {
            Self::Inference
        } else {
            Self::Plain
        }
    }

    /// Message about a metric that these servers do not have.
    fn lacks(self, metric: RolloutMetric) -> Option<String> {
        let name = metric.as_str();
        match self {
            Self::Text => None,
            _ if metric.is_of_any_server() || metric == RolloutMetric::ShadowDifference => None,
            Self::Inference if metric == RolloutMetric::Feedback => None,
            Self::Inference => Some(format!(
                "answers of the Open Inference Protocol have no `{name}`; expected `errorRate`, a latency or `feedback`"
            )),
            Self::Plain => Some(format!(
                "the servers of this route call no models and have no `{name}`; expected `errorRate` or a latency"
            )),
        }
    }
}
