//! Rollout that judges itself: one false-alarm rate over all metrics, looks and steps, and a verdict with its evidence.
//!
//! **Worse.** Each of `k` metrics yields an e-value that the candidate is past its threshold. A metric aborts when its e-value
//! reaches `k / falseAlarm`. By Ville's inequality and the union bound a candidate within all thresholds is aborted with
//! probability at most `falseAlarm`, over all looks. Shares, quantiles and distances meet this exactly for independent
//! requests; means, and all metrics where callers repeat, asymptotically (see their modules).
//!
//! **Fine.** A metric is fine when the e-value for "within the threshold" in the present step reaches `1 / falsePromotion`. A
//! candidate is promoted when all metrics are fine. As one wrong metric must be called fine for a wrong promotion, no
//! division by `k` is needed (intersection-union test, Berger 1982, DOI 10.1080/00401706.1982.10487790).
//!
//! **Steps.** Weights change between steps, so counts of several steps must not be pooled: an hour with many errors and little
//! canary beside one with few errors and much of it would accuse or excuse the candidate (Simpson's paradox). Each step has
//! counts of its own. E-values of steps multiply; evidence is the mixture of the products that begin at each step, with weight 3/4
//! on the first and the rest spread evenly, so that a candidate which fails under load only is found at the price of the
//! later weight. What is fine is shown anew in each step.
//!
//! **State.** [`Rollout`] merges over gateways ([`Rollout::merge`]) within a step, and serialises. A metric takes, for both
//! versions together: shares and means 4.3 KB; distances 8 KB; quantiles 22 KB and its two sketches (11 KB each for three decades of
//! values, 200 KB at most).

use serde::{Deserialize, Serialize};

use crate::distance::{self, EDGES};
use crate::grid::Grid;
use crate::mean::{self, Setting};
use crate::quantile::{self, Tail};
use crate::share;
use crate::threshold::{Line, Side, Threshold};
use crate::units::{Sample, count};

/// Kind of a metric, which decides the test.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Mean of a number; values above `cap` count as the cap. Asymptotic.
    Mean {
        /// Cap in the metric's unit, from before the rollout; none for values that are bounded anyway.
        cap: Option<f64>,
    },
    /// Share of requests with a value other than 0: errors, refusals. Exact.
    Share,
    /// Quantile of a number. Exact.
    Quantile {
        /// Level from 0 to 1, both excluded: 0.95 for p95.
        level: f64,
    },
    /// Distance between the versions' distributions of a number. Exact. The threshold is a limit above 0 and below 1.
    Distance {
        /// Edges at which shares are compared, in rising order and from before the rollout ([`distance::edges_of`]).
        edges: [f64; EDGES],
    },
}

/// Metric of a rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    /// Name, as in `abortWhen`.
    pub name: String,
    /// Kind of the metric.
    pub kind: Kind,
    /// Threshold between fine and worse.
    pub threshold: Threshold,
}

/// Metrics that are judged, and how surely.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Metrics, each judged on its own.
    pub metrics: Vec<Metric>,
    /// Highest probability that a candidate within all thresholds is aborted, over the whole rollout.
    pub false_alarm: f64,
    /// Highest probability that a candidate past a threshold is promoted by a step.
    pub false_promotion: f64,
    /// Steps at which both versions are compared; at least 1.
    pub steps: u32,
    /// Requests at each version before a mean says anything. Below 50 the normal approximation is not to be trusted.
    pub minimum: u64,
    /// Effective units at each version before anything is said: fewer callers are no sample. At least 5.
    pub minimum_units: f64,
    /// Requests of the candidate at which bounds of means are tightest.
    pub tightest_at: f64,
}

impl Plan {
    /// Plan with the defaults: 1 % false alarms, 5 % false promotions, one step, 50 requests and 8 units at each version,
    /// bounds tightest at 500 requests.
    #[must_use]
    pub fn new(metrics: Vec<Metric>) -> Self {
        Self {
            metrics,
            false_alarm: 0.01,
            false_promotion: 0.05,
            steps: 1,
            minimum: 50,
            minimum_units: 8.0,
            tightest_at: 500.0,
        }
    }

    /// Level of one metric: the false-alarm rate divided by the number of metrics.
    #[must_use]
    pub fn level(&self) -> f64 {
        self.false_alarm / count(u64::try_from(self.metrics.len()).unwrap_or(u64::MAX)).max(1.0)
    }

    fn check(&self) -> Result<(), RolloutError> {
        let share = |value: f64| value > 0.0 && value < 0.5;
        let refuse = |fault| Err(RolloutError::Plan(fault));
        if self.metrics.is_empty() {
            return refuse("no metric; expected at least one");
        }
        if !share(self.false_alarm) || !share(self.false_promotion) {
            return refuse("false-alarm or false-promotion rate outside 0 to 0.5");
        }
        if self.steps == 0 || self.minimum < 50 || self.minimum_units.is_nan() || self.minimum_units < 5.0 {
            return refuse("no step, or a minimum below 50 requests or 5 units");
        }
        if !(self.tightest_at.is_finite() && self.tightest_at > 0.0) {
            return refuse("no positive number of requests at which bounds are tightest");
        }
        let sound = |metric: &Metric| match metric.kind {
            Kind::Mean { cap } => cap.is_none_or(f64::is_finite),
            Kind::Share => true,
            Kind::Quantile { level } => level > 0.0 && level < 1.0,
            Kind::Distance { edges } => {
                edges.iter().all(|edge| edge.is_finite())
                    && edges.is_sorted()
                    && matches!(metric.threshold, Threshold::Limit(limit) if limit > 0.0 && limit < 1.0)
            }
        };
        if !self.metrics.iter().all(sound) {
            return refuse(
                "a cap that is not finite, a quantile outside 0 to 1, or a distance without rising edges and a limit",
            );
        }
        Ok(())
    }
}

/// Version that served a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Version {
    /// Stable one.
    Stable,
    /// Candidate.
    Candidate,
}

/// Failure to begin, merge or restore a rollout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RolloutError {
    /// Plan that cannot be judged by.
    #[error("the plan of a rollout has {0}")]
    Plan(&'static str),
    /// Parts of different rollouts, or of different steps of one.
    #[error("observations of another plan or step cannot be merged; expected step {expected}, found {found}")]
    Step {
        /// Step of the receiver.
        expected: u32,
        /// Step of the argument.
        found: u32,
    },
    /// Stored state whose parts do not fit each other.
    #[error("the stored state of a rollout is damaged: {0}")]
    Damaged(&'static str),
}

/// Observations of one metric at both versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Observed {
    Sample { stable: Sample, candidate: Sample },
    Tail { stable: Tail, candidate: Tail },
    Grid { stable: Grid, candidate: Grid },
}

/// Judge of a rollout: its plan, what earlier steps have shown, what the present step has seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    plan: Plan,
    step: u32,
    /// Candidate's nominal share of requests in this step.
    split: f64,
    observed: Vec<Observed>,
    /// Mixture over begun products of steps before this one, for each metric.
    carried: Vec<f64>,
}

/// State of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Finding {
    /// Shown to be past the threshold.
    Worse,
    /// Shown to be within the threshold.
    Fine,
    /// Neither, yet.
    Undecided,
}

/// State of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Every metric is fine.
    Promote,
    /// A metric is worse.
    Abort,
    /// Neither.
    Inconclusive,
}

/// Figures of one version.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Observations in this step.
    pub requests: u64,
    /// Effective number of independent groups of callers.
    #[serde(deserialize_with = "or_unknown")]
    pub units: f64,
    /// Mean, share or quantile.
    #[serde(deserialize_with = "or_unknown")]
    pub estimate: f64,
    /// Share of values that were cut to the cap.
    #[serde(deserialize_with = "or_unknown")]
    pub capped: f64,
}

/// Reads a number that JSON had to write as null because it is not finite: a ratio to nothing, evidence without end.
fn or_unknown<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Evidence about one metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// Name of the metric.
    pub name: String,
    /// Threshold that it was judged by.
    pub threshold: Threshold,
    /// State of the metric.
    pub finding: Finding,
    /// Stable version in this step.
    pub stable: Figures,
    /// Candidate in this step.
    pub candidate: Figures,
    /// Candidate against stable in the form of the threshold: difference, ratio, or the candidate's own figure.
    #[serde(deserialize_with = "or_unknown")]
    pub effect: f64,
    /// Bounds of the effect from this step, each valid at all looks; `None` where nothing is known.
    pub lower: Option<f64>,
    /// See `lower`.
    pub upper: Option<f64>,
    /// Natural logarithm of the e-value that the candidate is worse, over all steps.
    #[serde(deserialize_with = "or_unknown")]
    pub ln_worse: f64,
    /// Natural logarithm that `ln_worse` must reach.
    #[serde(deserialize_with = "or_unknown")]
    pub ln_worse_needed: f64,
    /// Natural logarithm of the e-value that the candidate is fine, in this step.
    #[serde(deserialize_with = "or_unknown")]
    pub ln_fine: f64,
    /// Natural logarithm that `ln_fine` must reach.
    #[serde(deserialize_with = "or_unknown")]
    pub ln_fine_needed: f64,
    /// How many requests of repeating callers are worth one independent request.
    #[serde(deserialize_with = "or_unknown")]
    pub design_effect: f64,
    /// Further requests of the candidate to a finding if figures stay as they are; `None` where decided or out of reach.
    pub more: Option<u64>,
    /// Verdict in a sentence.
    pub sentence: String,
}

/// Verdict about a rollout, with all evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// State of the rollout.
    pub verdict: Verdict,
    /// Step that was judged, from 0.
    pub step: u32,
    /// False-alarm rate of the whole rollout.
    pub false_alarm: f64,
    /// False-alarm rate of each metric.
    pub level: f64,
    /// Evidence, in the order of the plan.
    pub metrics: Vec<Evidence>,
    /// The verdict in a sentence.
    pub sentence: String,
}

/// Further requests past which a projection says "out of reach".
const OUT_OF_REACH: f64 = 1e9;

impl Rollout {
    /// Begins a rollout at its first step, in which the candidate gets `split` of the requests (0 to 1).
    ///
    /// # Errors
    ///
    /// [`RolloutError::Plan`] for a plan that cannot be judged by.
    pub fn new(plan: Plan, split: f64) -> Result<Self, RolloutError> {
        plan.check()?;
        if !(split > 0.0 && split < 1.0) {
            return Err(RolloutError::Plan("a candidate's share that leaves nothing to compare"));
        }
        let observed = Self::nothing(&plan);
        let carried = vec![0.0; plan.metrics.len()];
        Ok(Self { plan, step: 0, split, observed, carried })
    }

    fn nothing(plan: &Plan) -> Vec<Observed> {
        let begin = |metric: &Metric| match metric.kind {
            Kind::Mean { .. } | Kind::Share => {
                Observed::Sample { stable: Sample::default(), candidate: Sample::default() }
            }
            Kind::Quantile { .. } => Observed::Tail { stable: Tail::default(), candidate: Tail::default() },
            Kind::Distance { .. } => Observed::Grid { stable: distance::nothing(), candidate: distance::nothing() },
        };
        plan.metrics.iter().map(begin).collect()
    }

    /// Checks state that was stored; a stored state must pass before use.
    ///
    /// # Errors
    ///
    /// [`RolloutError::Damaged`] where parts do not fit each other.
    pub fn restored(self) -> Result<Self, RolloutError> {
        self.plan.check()?;
        if self.observed.len() != self.plan.metrics.len() || self.carried.len() != self.plan.metrics.len() {
            return Err(RolloutError::Damaged("as many observations as metrics were expected"));
        }
        let sane = self.carried.iter().all(|carried| *carried >= 0.0);
        if !(sane && self.split > 0.0 && self.split < 1.0) {
            return Err(RolloutError::Damaged("a share or evidence is out of its range"));
        }
        let sound =
            self.plan.metrics.iter().zip(&self.observed).all(|(metric, observed)| match (metric.kind, observed) {
                (Kind::Mean { .. } | Kind::Share, Observed::Sample { stable, candidate }) => {
                    stable.is_consistent() && candidate.is_consistent()
                }
                (Kind::Quantile { .. }, Observed::Tail { stable, candidate }) => {
                    stable.is_consistent() && candidate.is_consistent()
                }
                (Kind::Distance { .. }, Observed::Grid { stable, candidate }) => {
                    stable.is_consistent(EDGES + 1) && candidate.is_consistent(EDGES + 1)
                }
                _ => false,
            });
        if sound { Ok(self) } else { Err(RolloutError::Damaged("buckets or bins are missing")) }
    }

    /// Plan of the rollout.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Present step, from 0.
    #[must_use]
    pub fn step(&self) -> u32 {
        self.step
    }

    /// Adds one observation of a metric (by its place in the plan) of a request of `unit`: a hash of the sticky unit, or of
    /// anything unique to the request where callers are not sticky. Values that are no finite number are passed over,
    /// as is a place that the plan has not.
    pub fn observe(&mut self, metric: usize, version: Version, unit: u64, value: f64) {
        let (Some(metric), Some(observed)) = (self.plan.metrics.get(metric), self.observed.get_mut(metric)) else {
            return;
        };
        if !value.is_finite() {
            return;
        }
        match observed {
            Observed::Sample { stable, candidate } => {
                let sample = if version == Version::Stable { stable } else { candidate };
                match metric.kind {
                    Kind::Mean { cap: Some(cap) } if value > cap => sample.observe(unit, cap, true),
                    Kind::Share => sample.observe(unit, f64::from(u8::from(value != 0.0)), false),
                    _ => sample.observe(unit, value, false),
                }
            }
            Observed::Tail { stable, candidate } => {
                (if version == Version::Stable { stable } else { candidate }).observe(unit, value);
            }
            Observed::Grid { stable, candidate } => {
                let Kind::Distance { edges } = &metric.kind else { return };
                let column = distance::column(edges, value);
                (if version == Version::Stable { stable } else { candidate }).observe(unit, column);
            }
        }
    }

    /// Adds the time after which a caller left without the value of a metric, which would have been at least that. It counts for
    /// quantiles, above the stable version's present one or a fixed limit: callers that leave sooner say nothing. The candidate is
    /// called worse by what the bound shows, and fine only if it were so with any value above the bound.
    pub fn observe_at_least(&mut self, metric: usize, version: Version, unit: u64, bound: f64) {
        let (Some(metric), Some(observed)) = (self.plan.metrics.get(metric), self.observed.get_mut(metric)) else {
            return;
        };
        let (Kind::Quantile { level }, Observed::Tail { stable, candidate }) = (metric.kind, observed) else { return };
        let least = match metric.threshold.line() {
            Line::Fixed(limit) => Some(limit),
            _ => stable.quantile(level),
        };
        if bound.is_finite() && least.is_some_and(|least| bound > least) {
            (if version == Version::Stable { stable } else { candidate }).observe_at_least(unit, bound);
        }
    }

    /// Adds what another gateway saw in the same step of the same rollout.
    ///
    /// # Errors
    ///
    /// [`RolloutError::Step`] where plan, step or share differ.
    pub fn merge(&mut self, other: &Self) -> Result<(), RolloutError> {
        let same = self.plan == other.plan && self.step == other.step && self.split.to_bits() == other.split.to_bits();
        if !same {
            return Err(RolloutError::Step { expected: self.step, found: other.step });
        }
        for (ours, theirs) in self.observed.iter_mut().zip(&other.observed) {
            match (ours, theirs) {
                (Observed::Sample { stable, candidate }, Observed::Sample { stable: theirs, candidate: also }) => {
                    stable.merge(theirs);
                    candidate.merge(also);
                }
                (Observed::Tail { stable, candidate }, Observed::Tail { stable: theirs, candidate: also }) => {
                    stable.merge(theirs);
                    candidate.merge(also);
                }
                (Observed::Grid { stable, candidate }, Observed::Grid { stable: theirs, candidate: also }) => {
                    stable.merge(theirs);
                    candidate.merge(also);
                }
                // Observations are of the kind that the plan says, and the plans are equal.
                _ => return Err(RolloutError::Damaged("observations are not of the kind of their metric")),
            }
        }
        Ok(())
    }

    /// Ends the present step and begins the next, in which the candidate gets `split` of the requests.
    ///
    /// All gateways' observations of the step must be merged before.
    ///
    /// # Errors
    ///
    /// [`RolloutError::Plan`] for a share that leaves nothing to compare.
    pub fn next_step(&mut self, split: f64) -> Result<(), RolloutError> {
        if !(split > 0.0 && split < 1.0) {
            return Err(RolloutError::Plan("a candidate's share that leaves nothing to compare"));
        }
        let carried: Vec<f64> = (0..self.plan.metrics.len()).map(|place| self.product(place)).collect();
        self.carried = carried;
        self.step += 1;
        self.split = split;
        self.observed = Self::nothing(&self.plan);
        Ok(())
    }

    /// Weight of the products that begin at a step.
    fn weight(&self, step: u32) -> f64 {
        match (step, self.plan.steps) {
            (0, 1) => 1.0,
            (0, _) => 0.75,
            (step, steps) if step < steps => 0.25 / f64::from(steps - 1),
            _ => 0.0,
        }
    }

    /// Sum of the begun products, the present step's e-value included.
    fn product(&self, place: usize) -> f64 {
        let begun = self.carried.get(place).copied().unwrap_or(0.0) + self.weight(self.step);
        let step = self.metric(place).map_or(0.0, |metric| metric.ln_evidence(metric.worse_side(), metric.line(), 1.0));
        // Evidence at the top of its range stays a finite number.
        (begun * step.exp()).min(1e100)
    }

    /// Weight of products that begin at later steps.
    fn later(&self) -> f64 {
        let steps = self.plan.steps;
        if self.step + 1 >= steps { 0.0 } else { 0.25 * f64::from(steps - 1 - self.step) / f64::from(steps - 1) }
    }

    fn metric(&self, place: usize) -> Option<Judged<'_>> {
        let (metric, observed) = (self.plan.metrics.get(place)?, self.observed.get(place)?);
        Some(Judged { plan: &self.plan, metric, observed, split: self.split, level: self.plan.level() })
    }

    /// True as soon as a metric is worse; cheap enough to be asked after each request.
    #[must_use]
    pub fn is_worse(&self) -> bool {
        (0..self.plan.metrics.len()).any(|place| self.is_metric_worse(place))
    }

    fn is_metric_worse(&self, place: usize) -> bool {
        let begun = self.carried.get(place).copied().unwrap_or(0.0) + self.weight(self.step);
        let needed = ((1.0 / self.plan.level() - self.later()) / begun).ln();
        self.metric(place).is_some_and(|metric| metric.is_worse_by(needed))
    }

    /// True if every metric is fine in the present step.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        let needed = -self.plan.false_promotion.ln();
        let fine = |place| {
            let metric = self.metric(place);
            metric
                .is_some_and(|metric| metric.ln_evidence(metric.worse_side().opposite(), metric.line(), 1.0) >= needed)
        };
        (0..self.plan.metrics.len()).all(fine)
    }

    /// Verdict with all evidence: some milliseconds for a dozen metrics.
    #[must_use]
    pub fn judge(&self) -> Judgement {
        let evidence = (0..self.plan.metrics.len()).filter_map(|place| self.evidence(place));
        let metrics: Vec<Evidence> = evidence.collect();
        let worse: Vec<&str> = names(&metrics, Finding::Worse);
        let undecided: Vec<&str> = names(&metrics, Finding::Undecided);
        let (verdict, sentence) = if !worse.is_empty() {
            let sentence = format!(
                "Abort: {} past its threshold, at a false-alarm rate of {} over the whole rollout.",
                worse.join(", "),
                self.plan.false_alarm
            );
            (Verdict::Abort, sentence)
        } else if undecided.is_empty() {
            let sentence = format!(
                "Promote: every metric is within its threshold; a worse candidate passes with probability at most {}.",
                self.plan.false_promotion
            );
            (Verdict::Promote, sentence)
        } else {
            (Verdict::Inconclusive, format!("Inconclusive: {} undecided, no metric worse.", undecided.join(", ")))
        };
        Judgement {
            verdict,
            step: self.step,
            false_alarm: self.plan.false_alarm,
            level: self.plan.level(),
            metrics,
            sentence,
        }
    }

    fn evidence(&self, place: usize) -> Option<Evidence> {
        let judged = self.metric(place)?;
        let (line, side) = (judged.line(), judged.worse_side());
        let begun = self.carried.get(place).copied().unwrap_or(0.0) + self.weight(self.step);
        let ln_worse_needed = -self.plan.level().ln();
        let ln_fine_needed = -self.plan.false_promotion.ln();
        let ln_worse = (self.product(place) + self.later()).ln();
        let ln_fine = judged.ln_evidence(side.opposite(), line, 1.0);
        let finding = if ln_worse >= ln_worse_needed {
            Finding::Worse
        } else if ln_fine >= ln_fine_needed {
            Finding::Fine
        } else {
            Finding::Undecided
        };
        let (stable, candidate) = judged.figures();
        let effect = line.through(stable.estimate, candidate.estimate);
        let bound = |side: Side, needed: f64| judged.bound(effect, side, needed);
        // Evidence above a line bounds the effect from below.
        let (lower, upper) = match side {
            Side::Above => (bound(Side::Above, ln_worse_needed), bound(Side::Below, ln_fine_needed)),
            Side::Below => (bound(Side::Above, ln_fine_needed), bound(Side::Below, ln_worse_needed)),
        };
        let step_needed = ((1.0 / self.plan.level() - self.later()) / begun).ln();
        let more = (finding == Finding::Undecided)
            .then(|| judged.more(candidate.requests, (side, step_needed), (side.opposite(), ln_fine_needed)))
            .flatten();
        let mut evidence = Evidence {
            name: judged.metric.name.clone(),
            threshold: judged.metric.threshold,
            finding,
            stable,
            candidate,
            effect,
            lower,
            upper,
            ln_worse,
            ln_worse_needed,
            ln_fine,
            ln_fine_needed,
            design_effect: judged.design_effect(),
            more,
            sentence: String::new(),
        };
        evidence.sentence = sentence(&evidence, line, judged.has_minimum());
        Some(evidence)
    }
}

fn names(metrics: &[Evidence], finding: Finding) -> Vec<&str> {
    metrics.iter().filter(|metric| metric.finding == finding).map(|metric| metric.name.as_str()).collect()
}

/// Sentence about one metric.
fn sentence(evidence: &Evidence, line: Line, has_minimum: bool) -> String {
    let what = match line {
        Line::Shift(_) => "difference",
        Line::Ratio(_) => "ratio",
        Line::Fixed(_) => "candidate",
    };
    let bound = |bound: Option<f64>| bound.map_or_else(|| "unknown".to_owned(), figure);
    let numbers = format!(
        "{} at the candidate ({} requests) and {} at stable ({}); {what} {} (from {} to {}), threshold {}",
        figure(evidence.candidate.estimate),
        evidence.candidate.requests,
        figure(evidence.stable.estimate),
        evidence.stable.requests,
        figure(evidence.effect),
        bound(evidence.lower),
        bound(evidence.upper),
        evidence.threshold,
    );
    let name = &evidence.name;
    match evidence.finding {
        Finding::Worse => format!("{name} is worse: {numbers}."),
        Finding::Fine => format!("{name} is within its threshold: {numbers}."),
        Finding::Undecided if !has_minimum => format!("{name} has too few requests or callers to judge: {numbers}."),
        Finding::Undecided => match evidence.more {
            Some(more) => {
                format!("{name} is undecided: {numbers}; some {more} more requests of the candidate would decide.")
            }
            None => format!("{name} is undecided: {numbers}; at these figures no number of requests would decide."),
        },
    }
}

/// Number in four significant digits.
fn figure(value: f64) -> String {
    let magnitude = value.abs();
    if !value.is_finite() {
        "unknown".to_owned()
    } else if magnitude >= 1000.0 {
        format!("{value:.0}")
    } else if magnitude >= 1.0 || magnitude == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

/// One metric with its observations.
struct Judged<'a> {
    plan: &'a Plan,
    metric: &'a Metric,
    observed: &'a Observed,
    split: f64,
    level: f64,
}

impl Judged<'_> {
    fn line(&self) -> Line {
        self.metric.threshold.line()
    }

    fn worse_side(&self) -> Side {
        self.metric.threshold.worse_side()
    }

    fn tail(&self) -> f64 {
        match self.metric.kind {
            Kind::Quantile { level } => 1.0 - level,
            Kind::Mean { .. } | Kind::Share | Kind::Distance { .. } => 0.0,
        }
    }

    fn setting(&self) -> Setting {
        Setting { level: self.level, tightest_at: self.plan.tightest_at }
    }

    /// True if enough requests and callers were seen at each version that the threshold compares.
    fn has_minimum(&self) -> bool {
        let alone = matches!(self.line(), Line::Fixed(_));
        let least = if matches!(self.metric.kind, Kind::Mean { .. }) { self.plan.minimum } else { 1 };
        let enough = |requests: u64, freedom: f64| requests >= least && freedom + 1.0 >= self.plan.minimum_units;
        match self.observed {
            Observed::Sample { stable, candidate } => {
                enough(candidate.count(), candidate.spread().freedom)
                    && (alone || enough(stable.count(), stable.spread().freedom))
            }
            Observed::Tail { stable, candidate } => {
                enough(candidate.count(), candidate.freedom()) && (alone || enough(stable.count(), stable.freedom()))
            }
            Observed::Grid { stable, candidate } => {
                let least = self.plan.minimum_units;
                stable.freedom() + 1.0 >= least && candidate.freedom() + 1.0 >= least
            }
        }
    }

    /// Logarithm of the e-value of this step for a side of a line, as if `scale` times the data had come.
    fn ln_evidence(&self, side: Side, line: Line, scale: f64) -> f64 {
        if !self.has_minimum() {
            return 0.0;
        }
        match (self.observed, self.metric.kind) {
            (Observed::Sample { stable, candidate }, Kind::Share) => {
                share::Question { line, side, split: self.split }.ln_priced(stable, candidate, self.level, scale)
            }
            (Observed::Sample { stable, candidate }, _) => {
                mean::ln_evidence_for(stable, candidate, line, side, self.setting(), scale)
            }
            (Observed::Tail { stable, candidate }, _) => {
                let effect = quantile::effect_of_units(stable, candidate, line, self.tail(), self.level);
                quantile::Question { line, side, tail: self.tail(), split: self.split }
                    .ln_priced(stable, candidate, effect, scale)
            }
            (Observed::Grid { stable, candidate }, _) => {
                self.distance(side, line).ln_evidence(stable, candidate, scale)
            }
        }
    }

    /// Question whether a distance is on a side of a limit.
    fn distance(&self, side: Side, line: Line) -> distance::Question {
        let limit = line.at(0.0);
        distance::Question { limit, side, split: self.split, level: self.level }
    }

    fn design_effect(&self) -> f64 {
        let line = self.line();
        match (self.observed, self.metric.kind) {
            (Observed::Sample { stable, candidate }, Kind::Share) => {
                share::effect_of_units(line, stable, candidate, self.level)
            }
            (Observed::Sample { stable, candidate }, _) => {
                let (spread, theirs) = (candidate.spread(), stable.spread());
                let weight = if matches!(line, Line::Fixed(_)) { 0.0 } else { 1.0 };
                share::effect_of_spreads(weight, theirs, spread, self.level)
            }
            (Observed::Tail { stable, candidate }, _) => {
                quantile::effect_of_units(stable, candidate, line, self.tail(), self.level)
            }
            (Observed::Grid { stable, candidate }, _) => distance::design_effect(stable, candidate, self.level),
        }
    }

    /// True if the evidence of this step that the candidate is worse reaches `needed`; mostly without computing it.
    fn is_worse_by(&self, needed: f64) -> bool {
        let (line, side) = (self.line(), self.worse_side());
        let possible = match (self.observed, self.metric.kind) {
            (Observed::Sample { stable, candidate }, Kind::Share) => {
                let counts = share::Counts { stable: share::outcomes(stable), candidate: share::outcomes(candidate) };
                let beyond = side.sign() * (counts.candidate.share() - line.at(counts.stable.share())) > 0.0;
                beyond && share::Question { line, side, split: self.split }.ln_upper_bound(counts) >= needed
            }
            (Observed::Tail { stable, candidate }, _) => {
                let question = quantile::Question { line, side, tail: self.tail(), split: self.split };
                candidate.count() > 0 && question.ln_upper_bound(stable, candidate) >= needed
            }
            (Observed::Grid { stable, candidate }, _) => {
                self.distance(side, line).ln_upper_bound(stable, candidate) >= needed
            }
            (Observed::Sample { .. }, _) => true,
        };
        possible && self.ln_evidence(side, line, 1.0) >= needed
    }

    fn figures(&self) -> (Figures, Figures) {
        match self.observed {
            Observed::Sample { stable, candidate } => {
                let of = |sample: &Sample| Figures {
                    requests: sample.count(),
                    units: sample.spread().freedom + 1.0,
                    estimate: sample.mean(),
                    capped: sample.capped_share(),
                };
                (of(stable), of(candidate))
            }
            Observed::Tail { stable, candidate } => {
                let of = |version: &Tail| Figures {
                    requests: version.count(),
                    units: version.freedom() + 1.0,
                    estimate: version.sketch().quantile(1.0 - self.tail()).unwrap_or(0.0),
                    capped: 0.0,
                };
                (of(stable), of(candidate))
            }
            Observed::Grid { stable, candidate } => {
                let of = |grid: &Grid, estimate| Figures {
                    requests: whole(grid.count()),
                    units: grid.freedom() + 1.0,
                    estimate,
                    capped: 0.0,
                };
                (of(stable, 0.0), of(candidate, distance::distance(stable, candidate)))
            }
        }
    }

    /// Furthest parameter of the line from the effect that is not yet excluded, on the side away from the evidence.
    fn bound(&self, effect: f64, side: Side, needed: f64) -> Option<f64> {
        if !effect.is_finite() || !self.has_minimum() {
            return None;
        }
        let line = self.line();
        let excluded = |parameter: f64| self.ln_evidence(side, line.with(parameter), 1.0) >= needed;
        let mut step = (1e-3 * effect.abs()).max(1e-6);
        let at = |step: f64| effect - side.sign() * step;
        let mut near = 0.0;
        // Forty doublings reach 1e9 times the effect.
        for _ in 0..40 {
            let parameter = at(step);
            if matches!(line, Line::Ratio(_)) && parameter <= 0.0 {
                return None;
            }
            // No distance is below 0 or above 1.
            if matches!(self.observed, Observed::Grid { .. }) && !(0.0..=1.0).contains(&parameter) {
                return Some(parameter.clamp(0.0, 1.0));
            }
            if excluded(parameter) {
                let mut far = step;
                for _ in 0..20 {
                    let middle = 0.5 * (near + far);
                    if excluded(at(middle)) { far = middle } else { near = middle }
                }
                return Some(at(far));
            }
            near = step;
            step *= 2.0;
        }
        None
    }

    /// Further requests of the candidate until one of two questions is answered, if figures stay as they are.
    fn more(&self, seen: u64, worse: (Side, f64), fine: (Side, f64)) -> Option<u64> {
        if !self.has_minimum() {
            return None;
        }
        let line = self.line();
        let reached =
            |scale: f64| [worse, fine].iter().any(|(side, needed)| self.ln_evidence(*side, line, scale) >= *needed);
        let (mut short, mut enough) = (1.0, 2.0);
        while !reached(enough) {
            short = enough;
            enough *= 2.0;
            if count(seen) * enough > OUT_OF_REACH {
                return None;
            }
        }
        for _ in 0..12 {
            let middle = 0.5 * (short + enough);
            if reached(middle) { enough = middle } else { short = middle }
        }
        Some(whole((count(seen) * (enough - 1.0)).ceil()))
    }
}

/// Count from a float that holds one.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(count: f64) -> u64 {
    count as u64
}
