//! Plan of a rollout, compiled from the file: its schedule, the metrics of the judge by their places, the hours of steps up,
//! and its identity.

use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};
use spillway_config::schema::{self, RolloutMetric, RolloutStrategy};
use spillway_config::values::Pause;
use spillway_statistics::distance::EDGES;
use spillway_statistics::{Kind, Metric, Plan};

use super::answers::max_answer;
use super::gate;
use super::hours::{AllowedHours, HoursError};
use super::machine::{Gate, Hold, OnInconclusive, Schedule, Step};
use super::record::Strategy;

/// Bytes of an identity: as many of a SHA-256 digest as make two different ones equal never.
const IDENTITY: usize = 16;

/// Rollout that passed validation and still cannot run.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Hours that cannot be read.
    #[error("within: {0}")]
    Hours(#[from] HoursError),
    /// Gate whose address cannot be read.
    #[error("gate: {} is not a URL: {reason}", spillway_config::values::quoted_url(url))]
    Gate {
        /// Address in the file.
        url: String,
        /// Reason.
        reason: url::ParseError,
    },
    /// Content that cannot be written as text for the identity.
    #[error("the identity cannot be computed: {0}")]
    Identity(#[from] serde_json::Error),
}

/// Versions of a rollout, as its route has them.
pub struct Versions<'a> {
    /// Names of the targets beside the candidate.
    pub stable: Vec<String>,
    /// Configuration of the candidate: of its backend with the endpoints, or of its model.
    pub candidate: &'a serde_json::Value,
}

/// Plan of a rollout.
#[derive(Debug, Clone)]
pub struct RolloutPlan {
    /// Schedule of the state machine.
    pub schedule: Arc<Schedule>,
    /// Metrics of the judge, by their places.
    pub metrics: Vec<RolloutMetric>,
    /// Hours of steps up; `None` for all.
    pub hours: Option<AllowedHours>,
    /// Longest answer that is read, in bytes.
    pub max_answer: usize,
}

impl RolloutPlan {
    /// Compiles the rollout of a route.
    ///
    /// # Errors
    ///
    /// [`PlanError`] where hours or a gate cannot be used.
    pub fn new(route: &str, written: &schema::Rollout, versions: &Versions<'_>) -> Result<Self, PlanError> {
        let thresholds: Vec<_> = written.abort_when.iter().collect();
        let metric = |(metric, threshold): &(RolloutMetric, spillway_config::values::Threshold)| Metric {
            name: metric.as_str().to_owned(),
            kind: kind(*metric),
            threshold: threshold.0,
        };
        let judge = (!thresholds.is_empty()).then(|| Plan::new(thresholds.iter().map(metric).collect()));
        let metrics: Vec<RolloutMetric> = thresholds.iter().map(|(metric, _)| *metric).collect();
        // Scores are bounded by the scale of those who give them.
        let needs_warm_up = |metric: &RolloutMetric| {
            matches!(kind(*metric), Kind::Mean { .. } | Kind::Distance { .. }) && *metric != RolloutMetric::Feedback
        };
        let places = metrics.iter().enumerate().filter(|(_, metric)| needs_warm_up(metric));
        let schedule = Schedule {
            name: route.to_owned(),
            candidate: written.to.clone(),
            stable: versions.stable.clone(),
            strategy: match written.strategy {
                RolloutStrategy::Canary => Strategy::Canary,
                RolloutStrategy::BlueGreen => Strategy::BlueGreen,
                RolloutStrategy::Shadow => Strategy::Shadow,
            },
            identity: identity(written, versions)?,
            steps: written.steps.iter().map(|step| compiled(step, written)).collect::<Result<_, _>>()?,
            on_inconclusive: match written.on_inconclusive {
                schema::OnInconclusive::Pause => OnInconclusive::Pause,
                schema::OnInconclusive::Promote => OnInconclusive::Promote,
                schema::OnInconclusive::Abort => OnInconclusive::Abort,
            },
            false_alarm: written.false_alarm,
            judge,
            needs_warm_up: places.map(|(place, _)| place).collect(),
        };
        let hours = written.within.as_ref().map(hours).transpose()?;
        Ok(Self { schedule: Arc::new(schedule), metrics, hours, max_answer: max_answer(written) })
    }

    /// Name of the rollout.
    pub fn name(&self) -> &str {
        &self.schedule.name
    }

    /// Identity of the rollout.
    pub fn identity(&self) -> &str {
        &self.schedule.identity
    }
}

fn kind(metric: RolloutMetric) -> Kind {
    match metric.quantile() {
        Some(level) => Kind::Quantile { level },
        None if metric.is_share() => Kind::Share,
        // The values before the first step fix the edges.
        None if metric.is_distance() => Kind::Distance { edges: [0.0; EDGES] },
        None => Kind::Mean { cap: None },
    }
}

/// Hash of what makes a rollout another one: its content, its candidate, and the names of the others.
fn identity(written: &schema::Rollout, versions: &Versions<'_>) -> Result<String, serde_json::Error> {
    let whole = json!([serde_json::to_value(written)?, versions.candidate, versions.stable]);
    let digest = Sha256::digest(serde_json::to_vec(&whole)?);
    Ok(hex::encode(digest.get(..IDENTITY).unwrap_or(&digest)))
}

fn compiled(step: &schema::RolloutStep, written: &schema::Rollout) -> Result<Step, PlanError> {
    if let Some(gate) = &step.gate {
        let wrong = |reason| PlanError::Gate { url: gate.url.clone(), reason };
        let url = url::Url::parse(&gate.url).map_err(wrong)?;
        let timeout = gate.timeout.map_or(gate::TIMEOUT, |timeout| timeout.0);
        return Ok(Step::Gate(Gate { url, timeout }));
    }
    if let Some(pause) = &step.pause {
        let seconds = match pause {
            Pause::Person(_) => None,
            Pause::Time(time) => Some(time.0.as_secs_f64()),
        };
        return Ok(Step::Pause { seconds });
    }
    let percent = step.weight.unwrap_or(100.0);
    let hold = step.hold.clone().unwrap_or_default();
    let mut seconds = hold.time.map_or(0.0, |time| time.0.as_secs_f64());
    if written.strategy == RolloutStrategy::BlueGreen {
        seconds = written.keep_warm.unwrap_or(schema::Rollout::DEFAULT_KEEP_WARM).0.as_secs_f64();
    }
    let requests = hold.requests.map_or(0, std::num::NonZeroU64::get);
    Ok(Step::Weight { percent, hold: Hold { seconds, requests } })
}

fn hours(written: &schema::RolloutHours) -> Result<AllowedHours, HoursError> {
    let day = |day: &schema::Weekday| match day {
        schema::Weekday::Mon => 0,
        schema::Weekday::Tue => 1,
        schema::Weekday::Wed => 2,
        schema::Weekday::Thu => 3,
        schema::Weekday::Fri => 4,
        schema::Weekday::Sat => 5,
        schema::Weekday::Sun => 6,
    };
    let days: Option<Vec<usize>> = written.days.as_ref().map(|days| days.iter().map(day).collect());
    let range = written.hours.map(|hours| (hours.from, hours.to));
    AllowedHours::new(range, days.as_deref(), written.time_zone.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(yaml: &str, candidate: &serde_json::Value, stable: &[&str]) -> RolloutPlan {
        let written = serde_json::from_value(serde_json::from_str(yaml).unwrap()).unwrap();
        let stable = stable.iter().map(|name| (*name).to_owned()).collect();
        RolloutPlan::new("r", &written, &Versions { stable, candidate }).unwrap()
    }

    const WRITTEN: &str = r#"{"to": "v2", "steps": [{"weight": 5, "hold": {"for": "1m", "requests": 10}}, {"pause": "1h"}, {"weight": 100}],
        "abortWhen": {"errorRate": "+0.02", "latencyMean": "1.3x", "latencyP95": "1.3x", "tokensPerSecond": "0.8x"}}"#;

    #[test]
    fn a_rollout_is_compiled_with_its_judge() {
        let plan = plan(WRITTEN, &json!({"url": "http://a"}), &["v1"]);
        let schedule = &plan.schedule;
        assert_eq!(schedule.steps.len(), 3);
        assert_eq!(schedule.steps[0], Step::Weight { percent: 5.0, hold: Hold { seconds: 60.0, requests: 10 } });
        assert_eq!(schedule.steps[1], Step::Pause { seconds: Some(3600.0) });
        let names: Vec<_> =
            schedule.judge.as_ref().unwrap().metrics.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, plan.metrics.iter().map(|metric| metric.as_str()).collect::<Vec<_>>());
        let capped: Vec<_> = schedule.needs_warm_up.iter().map(|place| names[*place]).collect();
        assert_eq!(capped, ["latencyMean", "tokensPerSecond"]);
        let switch = r#"{"to": "v2", "strategy": "blueGreen", "steps": [{"weight": 100}], "keepWarm": "5m"}"#;
        let plan = self::plan(switch, &json!({}), &["v1"]);
        assert_eq!(plan.schedule.steps, [Step::Weight { percent: 100.0, hold: Hold { seconds: 300.0, requests: 0 } }]);
        assert_eq!(plan.schedule.judge, None);
    }

    #[test]
    fn the_identity_is_of_the_content_and_the_versions() {
        let one = json!({"endpoints": ["http://a"]});
        let identity = |yaml: &str, candidate: &serde_json::Value, stable: &[&str]| {
            plan(yaml, candidate, stable).identity().to_owned()
        };
        let first = identity(WRITTEN, &one, &["v1"]);
        assert_eq!(first.len(), 32);
        assert_eq!(identity(&WRITTEN.replace("{", "{ "), &one, &["v1"]), first, "of the content, not of its spelling");
        assert_ne!(identity(&WRITTEN.replace("1h", "2h"), &one, &["v1"]), first);
        assert_ne!(identity(WRITTEN, &json!({"endpoints": ["http://b"]}), &["v1"]), first);
        assert_ne!(identity(WRITTEN, &one, &["v0"]), first);
    }

    /// Rollouts that were decided by an earlier version of the program are not edited by an upgrade.
    #[test]
    fn the_identity_of_a_file_is_the_same_for_all_versions_of_the_program() {
        let one = json!({"endpoints": ["http://a"]});
        assert_eq!(plan(WRITTEN, &one, &["v1"]).identity(), "a4e607c92e19882c516fb0625c6b33d9");
    }
}
