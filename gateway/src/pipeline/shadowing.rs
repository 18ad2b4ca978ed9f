//! Copies of requests for the candidate of a shadow, whose answers are compared with those that the callers get. A copy is sent
//! beside its request and never waited for; it takes a slot that is free and waits for none, carries no credential of the caller,
//! counts against no limit, and ends with its time limit. How many there are, and how many bytes they hold, is bounded.

use std::sync::Arc;
use std::time::Instant;

use http::Method;
use spillway_statistics::Version;
use tokio::sync::OwnedSemaphorePermit;

use super::comparing::{Figures, record};
use super::copying::{self, Placed};
use super::reading::held;
use super::translating;
use super::trying::Try;
use crate::balancing::Verdict;
use crate::clock;
use crate::downstream::ClientSession;
use crate::exchange::{BodyShare, Exchange, RolloutPart};
use crate::gateway::Gateway;
use crate::limits::{Estimate, Used};
use crate::protocol::Observation as Seen;
use crate::protocol::{InferenceCall, Operation};
use crate::rollout::{AnswerKind, AnswerTap, LiveRollout, Observation, Pair, Present, Side, Split, UnitOf};
use crate::snapshot::Snapshot;
use crate::telemetry::PairEnd;
use crate::topology::{Route, ShadowPlan};
use crate::upstream::{AttemptOutcome, CutReason, Drained, drain, is_server_fault, open};

/// Members by which a call refers to what its server keeps of earlier ones, which the candidate does not have.
const REFERENCES: [&[u8]; 2] = [b"\"previous_response_id\"", b"\"conversation\""];

/// Sends a copy to the candidate, if the rollout of the route is a shadow and this request is drawn.
pub(super) async fn shadow(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) {
    let Some(rollout) = &route.rollout else { return };
    let Some(plan) = &rollout.shadow else { return };
    let Present { split: Split::Shadow(share), epoch } = rollout.live.present() else { return };
    if rand::random::<f64>() >= share {
        return;
    }
    let Some(kind) = kind(route, plan, session, exchange) else { return };
    let key = route.sticky.as_ref().and_then(|name| session.get_header(name)).map(|value| value.as_bytes());
    let unit = rollout.live.unit(UnitOf { consumer: exchange.caller.as_ref().map(|caller| caller.number), key });
    let Some(copy) = prepare(gateway, route, plan, session, exchange).await else {
        return route.metrics.paired(PairEnd::Skipped);
    };
    let live = &rollout.live;
    let request = held(exchange).unwrap_or_default();
    let kept = Box::new((copy.share, copy.permit));
    let pair = Arc::new(Pair::new(live.clone(), route.metrics.clone(), request, kind, plan.rules.clone(), kept));
    let begun = clock::instant();
    let before = begun.saturating_duration_since(exchange.started);
    if let Some(tap) = AnswerTap::new(live.clone()) {
        exchange.taps.get_or_insert_default().rollout = Some(tap);
    }
    exchange.rollout = Some(Box::new(RolloutPart {
        live: live.clone(),
        version: Version::Stable,
        epoch,
        unit,
        has_failed: false,
        answered_in: None,
        is_first_token_told: false,
        pair: Some((pair.clone(), before)),
    }));
    let observation = Observation::new(Version::Candidate, epoch, unit);
    let Some(target) = copy.target else {
        // No endpoint is available: the candidate fails as it would have failed a caller.
        return pair.put(Side::new(Observation { is_error: true, ..observation }, 0, None));
    };
    let asked = exchange.asked.as_ref();
    let job = Job {
        target,
        begun,
        snapshot: exchange.snapshot.clone(),
        model: asked.and_then(|asked| asked.model.clone()),
        expected: asked.map(|asked| asked.expected).unwrap_or_default(),
        streams: asked.is_some_and(|asked| asked.stream),
        writes: exchange.resolved.writes_tokens,
    };
    let (gateway, route) = (gateway.clone(), route.clone());
    tokio::spawn(async move {
        let Some(rollout) = &route.rollout else { return };
        let Some(plan) = &rollout.shadow else { return };
        let sent = send(&gateway, &route, plan, &rollout.live, job, observation.clone());
        let overdue = || Side::new(Observation { is_error: true, ..observation }, 0, None);
        pair.put(tokio::time::timeout(plan.timeout, sent).await.unwrap_or_else(|_| overdue()));
    });
}

/// Kind of the answers to a request; `None` for one that is not copied: a socket, a request that may change something, and one
/// about the server.
fn kind(route: &Route, plan: &ShadowPlan, session: &ClientSession, exchange: &Exchange) -> Option<AnswerKind> {
    if !route.calls_models {
        let is_safe =
            matches!(session.req_header().method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
        return (is_safe || plan.writes).then_some(AnswerKind::Plain);
    }
    match exchange.resolved.operation {
        Operation::Responses => {
            let body = held(exchange)?;
            let refers = |name: &&[u8]| memchr::memmem::find(&body, name).is_some();
            (!REFERENCES.iter().any(refers)).then_some(AnswerKind::Text)
        }
        operation if operation.asks_for_text() => Some(AnswerKind::Text),
        Operation::Embeddings | Operation::Rerank | Operation::CountTokens => Some(AnswerKind::Values),
        Operation::Inference(InferenceCall::Infer) if !exchange.is_grpc => Some(AnswerKind::Tensors),
        _ => None,
    }
}

/// Copy that may be sent.
struct Copy {
    /// Copy with its slot; `None` where no endpoint is available.
    target: Option<Placed>,
    /// Permit, and the share of the body, which counts as held until the pair was compared.
    permit: OwnedSemaphorePermit,
    share: Option<Arc<BodyShare>>,
}

/// Everything that a copy needs of the request; `None` where a bound is reached.
async fn prepare(
    gateway: &Gateway,
    route: &Route,
    plan: &ShadowPlan,
    session: &mut ClientSession,
    exchange: &Exchange,
) -> Option<Copy> {
    let length = copying::length(session, exchange)?;
    // A copy is never translated, and none is begun that would outlive the gateway.
    if length > plan.max_body || gateway.is_draining() || translating::is_foreign(&plan.backend, exchange) {
        return None;
    }
    let permit = plan.permits.clone().try_acquire_owned().ok()?;
    let share = copying::share(exchange);
    if !plan.backend.is_available() {
        return Some(Copy { target: None, permit, share });
    }
    let cut = translating::without_dropped(&plan.backend, session, exchange).await.ok()?.ok()?;
    let target = copying::place(gateway, route, &plan.backend, cut, session, exchange)?;
    Some(Copy { target: Some(target), permit, share })
}

/// Copy under way, with what is needed of its request to measure the answer.
struct Job {
    target: Placed,
    begun: Instant,
    snapshot: Arc<Snapshot>,
    model: Option<String>,
    expected: Estimate,
    streams: bool,
    writes: bool,
}

/// Sends the copy and reads its answer.
async fn send(
    gateway: &Gateway,
    route: &Route,
    plan: &ShadowPlan,
    live: &Arc<LiveRollout>,
    job: Job,
    mut observation: Observation,
) -> Side {
    let Placed { endpoint, ready, slot } = job.target;
    let this = Try::copy(gateway, route, &plan.backend, endpoint, slot);
    let mut tap = AnswerTap::new(live.clone());
    let (outcome, drained) = match open(&this.attempt, ready).await {
        Ok(opened) => {
            if let Some(tap) = &mut tap {
                tap.head(opened.head.status, &opened.head.headers);
            }
            let each = |part: &[u8]| {
                if let Some(tap) = &mut tap {
                    tap.part(part);
                }
            };
            match drain(&this.attempt, opened, each).await {
                Some(drained) => (AttemptOutcome::Answered, Some(drained)),
                None => (AttemptOutcome::Broken(CutReason::UpstreamReset), None),
            }
        }
        Err(outcome) => (outcome, None),
    };
    let latency = clock::since(job.begun);
    let status = drained.as_ref().map_or(0, |drained| drained.status);
    let verdict = this.conclude_copy(&outcome, status);
    observation.is_error =
        drained.is_none() || matches!(verdict, Verdict::Error | Verdict::ServerError) || is_server_fault(status);
    let is_good = !observation.is_error && (200..400).contains(&status);
    if let Some(Drained { seen, .. }) = drained.filter(|_| is_good) {
        let seen = seen.unwrap_or_default();
        let since = |at: Instant| at.saturating_duration_since(job.begun);
        let used = used(&seen, job.expected, job.writes);
        let cost = || job.snapshot.prices.of(used, seen.model.as_deref(), job.model.as_deref(), false);
        let figures = Figures {
            latency,
            first: seen.first_content.map(since).filter(|_| job.streams),
            finish: seen.finish_reason.as_deref(),
            output: job.writes.then_some(used.output),
            nanos: live.needs_costs.then(cost),
        };
        record(&mut observation, &figures);
    }
    Side::new(observation, status, tap.filter(|_| is_good))
}

/// Tokens of a copy: those that its usage tells, and those of the text that came after it.
fn used(seen: &Seen, expected: Estimate, writes: bool) -> Used {
    let usage = seen.usage.unwrap_or_default();
    let written = seen.written.since(seen.reported);
    let output = match (seen.usage, writes) {
        (Some(usage), false) => usage.completion_tokens,
        (None, false) => 0,
        _ => usage.completion_tokens.saturating_add(Estimate::of_written(written.bytes, written.events)),
    };
    Used {
        input: seen.usage.map_or(expected.input, |usage| usage.prompt_tokens),
        cached: usage.cached_tokens.unwrap_or(0),
        cache_written: usage.cache_written_tokens.unwrap_or(0),
        cache_written_1h: usage.cache_written_1h_tokens.unwrap_or(0),
        output,
        nanos: 0,
    }
}
