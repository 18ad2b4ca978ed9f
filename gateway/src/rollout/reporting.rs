//! Reports of what rollouts do: a log line, a span, metrics and a notification for each entry of a history. The module owns
//! none of the rollouts; it follows their notices, and falls behind rather than hold one up.
//!
//! Spans: every decision is a span of its own in one trace for each run of a rollout, whatever share of the requests is traced.
//! A collector then shows the whole rollout as one timeline, with how long each stage took. An event on the requests of the
//! candidate would repeat a decision thousands of times, or lose it where requests are sampled.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use sha2::{Digest, Sha256};
use spillway_config::schema::NotificationEvent;
use tokio::sync::broadcast::{self, error::RecvError};

use super::record::{HistoryEntry, RolloutEvent, RolloutRecord, RolloutState};
use super::{RolloutNotice, Rollouts};
use crate::notify::{Event, Notifier};
use crate::telemetry::{Metrics, RolloutEnd, RolloutFinding, RolloutSample, Span, Tracer, names};

/// Source of all notifications about rollouts.
const SOURCE: &str = "/spillway/rollouts";

/// Details of a notification: the entry, and the state of the rollout after it.
#[derive(Serialize)]
struct Details<'n> {
    entry: &'n HistoryEntry,
    rollout: RolloutRecord,
}

/// Follows `notices` until their rollouts are dropped. `tracer` gives the tracer of the running configuration.
pub async fn report(
    mut notices: broadcast::Receiver<Arc<RolloutNotice>>,
    tracer: impl Fn() -> Tracer,
    metrics: Arc<Metrics>,
    notifier: Arc<Notifier>,
) {
    loop {
        match notices.recv().await {
            Ok(notice) => {
                let RolloutNotice { record, entry } = &*notice;
                log(record, entry);
                trace(&tracer(), record, entry);
                count(&metrics, record, entry);
                notify(&notifier, record, entry);
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(event = "rollout_reports_missed", missed, "the histories of the rollouts have them");
            }
            Err(RecvError::Closed) => return,
        }
    }
}

fn log(record: &RolloutRecord, entry: &HistoryEntry) {
    let (rollout, candidate, change) = (&record.name, &record.candidate, entry.event.as_str());
    let HistoryEntry { step, weight, by, reason, .. } = entry;
    let state = entry.state.as_str();
    match entry.event {
        RolloutEvent::Aborted => {
            tracing::warn!(event = "rollout_aborted", %rollout, %candidate, step, weight, %by, %reason);
        }
        RolloutEvent::Inconclusive => {
            tracing::warn!(event = "rollout_inconclusive", %rollout, %candidate, step, weight, %by, %reason);
        }
        RolloutEvent::Promoted => {
            tracing::info!(event = "rollout_promoted", %rollout, %candidate, step, weight, %by, %reason);
        }
        _ => {
            tracing::info!(event = "rollout_changed", %rollout, %candidate, change, state, step, weight, %by, %reason);
        }
    }
}

/// Sends the span of a decision: from the one before it, as far as the history goes.
fn trace(tracer: &Tracer, record: &RolloutRecord, entry: &HistoryEntry) {
    let run = Sha256::digest(format!("rollout {} {} {}", record.name, record.identity, record.run));
    let before = record.history.iter().rev().map(|earlier| earlier.at).find(|at| *at < entry.at);
    let mut span =
        tracer.span_of_series(&run, &format!("rollout {}", entry.event.as_str()), time(before.unwrap_or(entry.at)));
    if !span.is_recording() {
        return;
    }
    span.set(names::HTTP_ROUTE, record.name.clone());
    span.set(names::SPILLWAY_ROLLOUT_CANDIDATE, record.candidate.clone());
    span.set(names::SPILLWAY_ROLLOUT_STATE, entry.state.as_str());
    span.set(names::SPILLWAY_ROLLOUT_STEP, i64::from(entry.step));
    span.set(names::SPILLWAY_ROLLOUT_WEIGHT, entry.weight);
    span.set(names::SPILLWAY_ROLLOUT_BY, entry.by.clone());
    span.set(names::SPILLWAY_ROLLOUT_REASON, entry.reason.clone());
    evidence(&mut span, entry);
    if entry.event == RolloutEvent::Aborted {
        span.error("aborted");
    }
    span.end_at(time(entry.at));
}

fn evidence(span: &mut Span, entry: &HistoryEntry) {
    for metric in entry.judgement.iter().flat_map(|judgement| &judgement.metrics) {
        span.event("evidence", &metric.sentence);
    }
}

fn count(metrics: &Metrics, record: &RolloutRecord, entry: &HistoryEntry) {
    match entry.event {
        RolloutEvent::Promoted => metrics.rollout_ended(&record.name, RolloutEnd::Promoted),
        RolloutEvent::Aborted => metrics.rollout_ended(&record.name, RolloutEnd::Aborted),
        _ => {}
    }
}

fn notify(notifier: &Notifier, record: &RolloutRecord, entry: &HistoryEntry) {
    // The same at every gateway of a fleet, so that a receiver drops what two of them send.
    let what = format!("{} {} {} {} {}", record.name, record.identity, record.run, entry.at, entry.event.as_str());
    let id: String = hex::encode(Sha256::digest(what)).chars().take(32).collect();
    let kind = format!("dev.spillway.rollout.{}", entry.event.as_str());
    // The history and older evidence are for those who ask the admin address.
    let rollout = RolloutRecord { history: Vec::new(), judgement: None, ..record.clone() };
    let event = Event {
        id: &id,
        kind: &kind,
        source: SOURCE,
        subject: &record.name,
        time: time(entry.at),
        data: Details { entry, rollout },
    };
    notifier.send(NotificationEvent::Rollout, &event);
}

fn time(at: f64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::try_from_secs_f64(at.max(0.0)).unwrap_or_default()
}

/// Figures of all rollouts for a scrape.
pub fn samples(rollouts: &Rollouts) -> Vec<RolloutSample> {
    rollouts.list().into_iter().map(sample).collect()
}

fn sample(record: RolloutRecord) -> RolloutSample {
    let finding = |finding| match finding {
        spillway_statistics::Finding::Worse => RolloutFinding::Worse,
        spillway_statistics::Finding::Fine => RolloutFinding::Fine,
        spillway_statistics::Finding::Undecided => RolloutFinding::Undecided,
    };
    let metrics = record.judgement.into_iter().flat_map(|judgement| judgement.metrics);
    RolloutSample {
        states: RolloutState::ALL.map(|state| (state.as_str(), state == record.state)),
        route: record.name,
        step: record.step,
        steps: record.steps,
        weight: record.weight,
        candidate_requests: record.candidate_requests,
        stable_requests: record.stable_requests,
        findings: metrics
            .map(|metric| (metric.name, finding(metric.finding), metric.ln_worse / metric.ln_worse_needed))
            .collect(),
    }
}
