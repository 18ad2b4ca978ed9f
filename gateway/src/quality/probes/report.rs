//! Report on the probes of one target, for operators.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::course::{TargetState, Values};
use super::file::Wanted;
use super::{Counts, ProbePlan};
use crate::telemetry::Label as _;

/// Report on the probes of one target.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbesReport {
    /// Name of the backend or built-in model.
    pub target: String,
    /// Time of the next round, in Unix seconds; `None` before the first.
    pub next: Option<f64>,
    /// Probes since the process began, by what became of them.
    pub results: BTreeMap<String, u64>,
    /// Changes since the process began, by their kind.
    pub changes: BTreeMap<String, u64>,
    /// Tokens of these probes and their answers.
    pub tokens: u64,
    /// Facts that the servers tell about themselves, for each model that was asked for.
    pub providers: Vec<ProviderReport>,
    /// Probes in the order of the file.
    pub probes: Vec<ProbeReport>,
}

/// Facts that servers tell about themselves in answers for one model.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderReport {
    /// Model that was asked for; empty where probes name none.
    pub asked: String,
    /// Models that were named, the last one at the end.
    pub models: Vec<SeenValue>,
    /// Values of `system_fingerprint`, the last one at the end.
    pub fingerprints: Vec<SeenValue>,
}

/// Value that a server named, with the times at which it was first and last seen.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeenValue {
    /// Value.
    pub value: String,
    /// Unix seconds.
    pub first: f64,
    /// Unix seconds.
    pub last: f64,
}

/// Report on one probe.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeReport {
    /// Name.
    pub probe: String,
    /// `similarity` or `exact`.
    pub judged_by: String,
    /// True if the last judged answer was as expected; `None` before the first.
    pub passing: Option<bool>,
    /// Reason for which the last answer failed, or was not judged.
    pub reason: Option<String>,
    /// Similarity of the last answer.
    pub similarity: Option<f64>,
    /// Mean similarity since it last moved.
    pub mean: Option<f64>,
    /// Least similarity of an answer that passes; `None` for exact values.
    pub limit: Option<f64>,
    /// Time until the end of the last answer.
    pub seconds: Option<f64>,
    /// Time of the last answer or try, in Unix seconds.
    pub at: Option<f64>,
    /// Unix seconds and similarities.
    pub course: Vec<(u32, f32)>,
}

fn values(seen: &Values) -> Vec<SeenValue> {
    seen.0.iter().map(|(value, first, last)| SeenValue { value: value.clone(), first: *first, last: *last }).collect()
}

impl ProbesReport {
    /// Report on a target by its state and counts.
    pub(super) fn of(target: &str, plan: &ProbePlan, state: Option<&TargetState>, counts: Option<&Counts>) -> Self {
        let counts = counts.cloned().unwrap_or_default();
        let named = |(name, count): (&str, u64)| (name.to_owned(), count);
        let probes = plan.probes.iter().map(|probe| {
            let is_similar = matches!(probe.wanted, Wanted::Similar(_));
            let report = ProbeReport {
                probe: probe.name.to_string(),
                judged_by: if is_similar { "similarity" } else { "exact" }.to_owned(),
                limit: is_similar.then_some(plan.least),
                ..ProbeReport::default()
            };
            let Some(course) = state.and_then(|state| state.probes.get(&*probe.name)) else { return report };
            ProbeReport {
                passing: course.judged().then_some(!course.is_failing),
                reason: course.reason.clone(),
                similarity: course.similarity,
                mean: course.mean(),
                seconds: course.seconds,
                at: Some(course.at),
                course: course.points.clone(),
                ..report
            }
        });
        let providers = state.into_iter().flat_map(|state| &state.providers).map(|(asked, provider)| ProviderReport {
            asked: asked.clone(),
            models: values(&provider.models),
            fingerprints: values(&provider.fingerprints),
        });
        Self {
            target: target.to_owned(),
            next: state.map(|state| state.next).filter(|next| *next > 0.0),
            results: counts.results.iter().map(|(result, count)| named((result.as_str(), *count))).collect(),
            changes: counts.changes.iter().map(|(change, count)| named((change.as_str(), *count))).collect(),
            tokens: counts.tokens,
            providers: providers.collect(),
            probes: probes.collect(),
        }
    }
}
