//! Figures that are read at a scrape: those that built-in models, the process and other rooms keep themselves. Each scrape
//! fills a new registry, so that no series of a removed model remains.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use spillway_engine::DeviceInfo;

use crate::descriptors::{self, Side};

use super::{Counters, FloatGauges, Gauges, Labels, labels};
use crate::telemetry::label::{Label, ProbeChange, ProbeResult, RolloutFinding};

type FloatGauge = Gauge<f64, AtomicU64>;
type FloatCounter = Counter<f64, AtomicU64>;
type FloatCounters = Family<Labels, FloatCounter>;

/// Watch over a route at a scrape.
#[derive(Debug, Clone, Default)]
pub struct QualitySample {
    /// Name of the route.
    pub route: String,
    /// Features of its targets.
    pub features: Vec<QualityFeatureSample>,
    /// Target, sign and number of conversations that go badly.
    pub signals: Vec<(String, String, u64)>,
    /// Bytes of the sketches.
    pub bytes: u64,
    /// Requests that were looked at.
    pub sampled: u64,
    /// Requests that found no room.
    pub dropped: u64,
    /// Requests that could not be read.
    pub unreadable: u64,
    /// Requests whose texts were kept.
    pub kept: u64,
    /// Prompts turned into embeddings.
    pub embedded: u64,
    /// Prompts that were not.
    pub not_embedded: u64,
    /// Time of all embeddings.
    pub embedding_seconds: f64,
    /// Probes of its targets.
    pub probes: Vec<ProbeTargetSample>,
}

/// Probes of a target at a scrape.
#[derive(Debug, Clone, Default)]
pub struct ProbeTargetSample {
    /// Backend or built-in model.
    pub target: String,
    /// Results, by their kind.
    pub results: Vec<(ProbeResult, u64)>,
    /// Changes, by their kind.
    pub changes: Vec<(ProbeChange, u64)>,
    /// Tokens of prompts and answers.
    pub tokens: u64,
    /// Time of all answers.
    pub seconds: f64,
    /// Probes that have an answer.
    pub probes: Vec<ProbeSample>,
}

/// Probe of a target at a scrape.
#[derive(Debug, Clone, Default)]
pub struct ProbeSample {
    /// Name.
    pub name: String,
    /// True if the last judged answer was another one than expected.
    pub is_failing: bool,
    /// Similarity of the last answer that was compared.
    pub similarity: Option<f64>,
}

/// Feature of a target at a scrape.
#[derive(Debug, Clone, Default)]
pub struct QualityFeatureSample {
    /// Backend or built-in model.
    pub target: String,
    /// Name of the feature.
    pub feature: String,
    /// Distance from the reference; `None` where there are too few requests.
    pub distance: Option<f64>,
    /// Limit of that distance.
    pub limit: f64,
    /// True while the feature has drifted.
    pub drifted: bool,
}

/// State of a built-in model at a scrape.
#[derive(Debug, Clone, Default)]
pub struct EngineSample {
    /// Name of the model.
    pub model: String,
    /// Sequences that are being written.
    pub active: u64,
    /// Requests that wait.
    pub waiting: u64,
    /// Tokens in the KV cache.
    pub kv_used: u64,
    /// Tokens that fit the KV cache.
    pub kv_capacity: u64,
    /// Estimated wait for a first token.
    pub estimated_wait: Duration,
    /// Tokens of the KV cache that no sequence uses and that a prompt may begin with.
    pub kv_idle: u64,
    /// Prompt tokens since load that the KV cache already held.
    pub cached: u64,
    /// Sequences since load that gave up their part of the KV cache.
    pub preemptions: u64,
    /// Faults of the device since load.
    pub faults: u64,
    /// Number of times that the model was unloaded for another.
    pub evictions: u64,
    /// Number of times that the model could not be loaded for want of memory.
    pub no_room: u64,
    /// True if the model is loaded.
    pub is_loaded: bool,
    /// True if the model can run now.
    pub is_ready: bool,
    /// Tokens written since load.
    pub generated: u64,
    /// Tokens read since load.
    pub prompt: u64,
    /// Device of the model, while it is loaded.
    pub device: Option<DeviceInfo>,
    /// Memory of the model on its device, in bytes.
    pub memory: u64,
    /// Tokens per second, measured when the model was loaded.
    pub rate: f64,
    /// Bytes of weights per second that a step of one row reads, measured when the model was loaded.
    pub bandwidth: f64,
}

/// Graphics processor at a scrape. What the driver does not tell is left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GpuSample {
    /// Number that the driver gives it.
    pub index: u32,
    /// Identifier that stays with the card.
    pub uuid: String,
    /// Name of the product.
    pub name: String,
    /// Share of the last moment in which it was at work, from 0 to 1.
    pub busy: Option<f64>,
    /// Bytes of its memory in use, and in all.
    pub memory: Option<(u64, u64)>,
    /// Degrees Celsius.
    pub temperature: Option<f64>,
    /// Watts.
    pub power: Option<f64>,
}

/// State of an endpoint at a scrape.
#[derive(Debug, Clone, Default)]
pub struct EndpointSample {
    /// Name of the backend.
    pub backend: String,
    /// Name of the endpoint in metrics.
    pub endpoint: String,
    /// Requests that may be in flight; `None` without a limit.
    pub limit: Option<u32>,
    /// Open connections to the endpoint.
    pub connections: u32,
    /// True if the endpoint is ejected.
    pub ejected: bool,
    /// True if an operator drained the endpoint.
    pub drained: bool,
    /// Signal by which the endpoint is full.
    pub full: Option<&'static str>,
    /// Smoothed latency.
    pub latency: Option<Duration>,
    /// Requests that wait at the server, as the server reports.
    pub waiting: Option<u32>,
    /// Used share of its KV cache, as the server reports, from 0 to 1.
    pub kv_cache: Option<f64>,
}

/// State of a backend at a scrape.
#[derive(Debug, Clone, Default)]
pub struct BackendSample {
    /// Name of the backend.
    pub backend: String,
    /// True if ejections are ignored because too few endpoints are left.
    pub is_in_panic: bool,
    /// Requests that wait for the backend.
    pub pending: u32,
    /// Retries and hedges in flight.
    pub retries: u32,
    /// Limits of `circuitBreaker` by their keys; true for each that is reached.
    pub at_limit: [(&'static str, bool); 3],
}

/// Certificate that the gateway presents to clients or backends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateSample {
    /// Listener that presents it, or `backend NAME` for one that is presented to servers.
    pub place: String,
    /// First name of the certificate.
    pub certificate: String,
    /// End of its validity, in Unix seconds.
    pub ends: i64,
}

/// Labels of all targets at a scrape, and the memory of requests that may be labelled.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeedbackSamples {
    /// Requests that are remembered.
    pub remembered: u64,
    /// Most requests that are remembered.
    pub capacity: u64,
    /// Requests that were pushed out before their time for labels was over.
    pub evicted: u64,
    /// Labels that callers have sent, by result.
    pub ends: Vec<(&'static str, u64)>,
    /// Quality of each target of each route.
    pub targets: Vec<FeedbackSample>,
}

/// Quality of a target by the labels of its answers. Means without a single value are `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeedbackSample {
    /// Name of the route.
    pub route: String,
    /// Name of the backend, or `builtin/NAME`.
    pub target: String,
    /// Requests with a label of any kind.
    pub labelled: u64,
    /// Requests with a score.
    pub scored: u64,
    /// Mean score, from 0 to 1.
    pub score: Option<f64>,
    /// Scores since the last change.
    pub recent_scored: f64,
    /// Mean of those.
    pub recent_score: Option<f64>,
    /// Requests by the name of their label.
    pub labels: Vec<(String, u64)>,
    /// Requests with a predicted and an expected class.
    pub judged: u64,
    /// Share of those whose class was right.
    pub accuracy: Option<f64>,
    /// Precision, recall and F1, each as the plain mean over classes.
    pub macro_average: Option<(f64, f64, f64)>,
    /// Figures of each class.
    pub classes: Vec<ClassSample>,
    /// Judged requests with a confidence.
    pub calibrated: u64,
    /// Brier score of the confidence.
    pub brier: Option<f64>,
    /// Expected calibration error over ten bins.
    pub expected_calibration_error: Option<f64>,
    /// Requests with a predicted and an expected number.
    pub numbers: u64,
    /// Mean of predicted less expected numbers.
    pub mean_error: Option<f64>,
    /// Mean distance of both.
    pub mean_absolute_error: Option<f64>,
    /// Root of the mean squared distance.
    pub root_mean_square_error: Option<f64>,
    /// Changes found in the scores.
    pub adwin_changes: u64,
    /// Rises found in the wrong answers.
    pub ddm_changes: u64,
    /// State of the detector of wrong answers: 0 stable, 1 warning, 2 drift.
    pub ddm_level: u8,
}

/// Figures of one class against all others.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClassSample {
    /// Name of the class; `other` for those beyond the bound.
    pub class: String,
    /// Requests for which the class was expected.
    pub expected: u64,
    /// Share of the predictions of the class that were right.
    pub precision: Option<f64>,
    /// Share of the requests that expected the class for which it was predicted.
    pub recall: Option<f64>,
    /// Harmonic mean of both.
    pub f1: Option<f64>,
}

/// Budget of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BudgetSample {
    /// `consumer NAME` or `tenant NAME`.
    pub whose: String,
    /// `day` or `month`.
    pub per: &'static str,
    /// Unit (`tokens` or `nanodollars`), amount spent in the current day or month, and limit.
    pub units: Vec<(&'static str, u64, u64)>,
}

/// Costs of one consumer on one route by one price, since the process began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CostSample {
    /// Name of the consumer; empty for anonymous callers.
    pub consumer: String,
    /// Name of its tenant.
    pub tenant: String,
    /// Name of the route.
    pub route: String,
    /// Name of the price, as `prices` or the catalogue has it.
    pub model: String,
    /// Answers.
    pub answers: u64,
    /// Billionths of a US dollar.
    pub nanos: u64,
}

/// State of a rollout at a scrape.
#[derive(Debug, Clone)]
pub struct RolloutSample {
    /// Name of the route.
    pub route: String,
    /// Names of all states; true for the present one.
    pub states: [(&'static str, bool); 6],
    /// Present step, from 0.
    pub step: u32,
    /// Number of steps.
    pub steps: u32,
    /// Candidate's share of the requests, in percent.
    pub weight: f64,
    /// Requests concluded at the candidate since its share last grew.
    pub candidate_requests: u64,
    /// Requests concluded at the stable version since then.
    pub stable_requests: u64,
    /// Name of each metric, its finding, and the part of the evidence for an abort that there is.
    pub findings: Vec<(String, RolloutFinding, f64)>,
}

/// State of other rooms that a scrape shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Samples<'s> {
    /// Built-in models.
    pub engines: &'s [EngineSample],
    /// Memory of all built-in models in bytes, used and allowed.
    pub model_memory: (u64, u64),
    /// Graphics processors of the machine.
    pub gpus: &'s [GpuSample],
    /// Backends.
    pub backends: &'s [BackendSample],
    /// Endpoints.
    pub endpoints: &'s [EndpointSample],
    /// Certificates.
    pub certificates: &'s [CertificateSample],
    /// Budgets.
    pub budgets: &'s [BudgetSample],
    /// Costs of answers.
    pub costs: &'s [CostSample],
    /// Rollouts.
    pub rollouts: &'s [RolloutSample],
    /// Labels of answers; `None` where the configuration takes none.
    pub feedback: Option<&'s FeedbackSamples>,
    /// Watch over routes.
    pub quality: &'s [QualitySample],
    /// Failed writes of their sketches.
    pub quality_write_failures: u64,
    /// Panics of the thread that looks at sampled requests.
    pub quality_panics: u64,
    /// Dropped log lines.
    pub log_dropped: u64,
}

#[allow(clippy::cast_precision_loss, reason = "2^53 requests are not reached")]
pub(super) fn rollouts(r: &mut Registry, samples: &[RolloutSample]) {
    let states = Gauges::default();
    let findings = Gauges::default();
    let evidence = FloatGauges::default();
    for sample in samples {
        for (state, is_present) in sample.states {
            states.get_or_create(&labels([("http_route", &sample.route), ("state", state)])).set(is_present.into());
        }
        for (metric, found, part) in &sample.findings {
            let own = labels([("http_route", &sample.route), ("metric", metric)]);
            evidence.get_or_create(&own).set(*part);
            for finding in RolloutFinding::ALL {
                let series = own.iter().cloned().chain([("finding", finding.as_str().to_owned())]).collect();
                findings.get_or_create(&series).set((finding == found).into());
            }
        }
    }
    r.register("spillway_rollout_state", "1 for the state of a rollout, 0 for the others", states);
    r.register("spillway_rollout_finding", "1 for the finding about a metric of a rollout, 0 for the others", findings);
    let help = "Evidence that the candidate is worse: 1 aborts, below 0 speaks for the candidate";
    r.register("spillway_rollout_evidence", help, evidence);
    let mut gauge = |name: &str, help: &str, value: fn(&RolloutSample) -> f64| {
        let family = FloatGauges::default();
        for sample in samples {
            family.get_or_create(&labels([("http_route", &sample.route)])).set(value(sample));
        }
        r.register(name, help, family);
    };
    gauge("spillway_rollout_step", "Present step of a rollout, from 1", |s| {
        f64::from(s.step.saturating_add(1).min(s.steps))
    });
    gauge("spillway_rollout_steps", "Steps of a rollout", |s| f64::from(s.steps));
    gauge("spillway_rollout_weight", "Share of the requests that the candidate gets", |s| s.weight);
    let requests = FloatGauges::default();
    for sample in samples {
        for (version, count) in [("candidate", sample.candidate_requests), ("stable", sample.stable_requests)] {
            let series = labels([("http_route", &sample.route), ("version", version)]);
            requests.get_or_create(&series).set(count as f64);
        }
    }
    let help = "Requests that were concluded at a version since the candidate's share last grew";
    r.register("spillway_rollout_requests", help, requests);
}

pub(super) fn certificates(r: &mut Registry, samples: &[CertificateSample]) {
    let family = Gauges::default();
    for sample in samples {
        let series = labels([("listener", &sample.place), ("certificate", &sample.certificate)]);
        let gauge = family.get_or_create(&series);
        // Certificates of one name, one for each kind of key, show the earliest end.
        let other = gauge.get();
        gauge.set(if other == 0 { sample.ends } else { other.min(sample.ends) });
    }
    let help = "When a certificate ends, in seconds since 1970";
    r.register("spillway_tls_certificate_expiry_seconds", help, family);
}

/// Most targets of routes whose labels have series.
const MAX_LABELLED_TARGETS: usize = 1_000;

#[allow(clippy::cast_precision_loss, reason = "2^53 labels are not reached")]
pub(super) fn feedback(r: &mut Registry, samples: &FeedbackSamples) {
    let FeedbackSamples { remembered, capacity, evicted, ends, targets } = samples;
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        r.register(name, help, gauge);
    };
    gauge("spillway_feedback_remembered_requests", "Requests in the memory for labels", *remembered);
    gauge("spillway_feedback_memory_limit_requests", "Most requests in the memory for labels", *capacity);
    let help = "Requests that others pushed out of the memory before their time for labels was over";
    counter(r, "spillway_feedback_evictions", help, *evicted);
    let results = Counters::default();
    for (end, count) in ends {
        results.get_or_create(&labels([("result", end)])).inc_by(*count);
    }
    r.register("spillway_feedback_labels", "Labels that callers have sent, by result", results);
    let targets = targets.get(..targets.len().min(MAX_LABELLED_TARGETS)).unwrap_or_default();
    let own = |sample: &FeedbackSample| labels([("http_route", &sample.route), ("target", &sample.target)]);
    let with = |sample: &FeedbackSample, name: &'static str, value: &str| -> Labels {
        own(sample).into_iter().chain([(name, value.to_owned())]).collect()
    };
    let labelled = Counters::default();
    let changes = Counters::default();
    let scored = Gauges::default();
    let by_label = Gauges::default();
    let judged = Gauges::default();
    let warned = Gauges::default();
    let precision = FloatGauges::default();
    let recall = FloatGauges::default();
    let f1 = FloatGauges::default();
    let count = |family: &Gauges, labels: &Labels, value: u64| {
        family.get_or_create(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
    };
    for sample in targets {
        let own = own(sample);
        labelled.get_or_create(&own).inc_by(sample.labelled);
        count(&scored, &own, sample.scored);
        count(&judged, &own, sample.judged);
        count(&warned, &own, sample.ddm_level.into());
        for (label, n) in &sample.labels {
            count(&by_label, &with(sample, "label", label), *n);
        }
        for (detector, n) in [("adwin", sample.adwin_changes), ("ddm", sample.ddm_changes)] {
            changes.get_or_create(&with(sample, "detector", detector)).inc_by(n);
        }
        for class in &sample.classes {
            let own = with(sample, "class", &class.class);
            for (family, value) in [&precision, &recall, &f1].into_iter().zip([class.precision, class.recall, class.f1])
            {
                if let Some(value) = value {
                    family.get_or_create(&own).set(value);
                }
            }
        }
    }
    r.register("spillway_feedback_labelled_requests", "Requests with a label of any kind", labelled);
    r.register("spillway_feedback_scored_requests", "Requests with a score", scored);
    r.register("spillway_feedback_requests_by_label", "Requests by the name of their label", by_label);
    r.register("spillway_feedback_judged_requests", "Requests with a predicted and an expected class", judged);
    let help = "Changes found in the stream of labels, by detector: of scores (adwin), or of wrong answers (ddm)";
    r.register("spillway_feedback_changes", help, changes);
    let help = "State of the detector of wrong answers: 0 stable, 1 warning, 2 drift with the last answer";
    r.register("spillway_feedback_errors_state", help, warned);
    r.register("spillway_feedback_class_precision", "Share of the predictions of a class that were right", precision);
    r.register("spillway_feedback_class_recall", "Share of the answers of a class that were predicted", recall);
    r.register("spillway_feedback_class_f1", "Harmonic mean of precision and recall of a class", f1);
    let mut float = |name: &str, help: &str, value: fn(&FeedbackSample) -> Option<f64>| {
        let family = FloatGauges::default();
        for sample in targets {
            if let Some(value) = value(sample) {
                family.get_or_create(&own(sample)).set(value);
            }
        }
        r.register(name, help, family);
    };
    float("spillway_feedback_score", "Mean score of all scored requests, from 0 to 1", |s| s.score);
    float("spillway_feedback_recent_score", "Mean score since the last change, by ADWIN", |s| s.recent_score);
    float("spillway_feedback_accuracy", "Share of judged requests whose class was right", |s| s.accuracy);
    float("spillway_feedback_macro_precision", "Mean precision over classes", |s| Some(s.macro_average?.0));
    float("spillway_feedback_macro_recall", "Mean recall over classes", |s| Some(s.macro_average?.1));
    float("spillway_feedback_macro_f1", "Mean F1 over classes", |s| Some(s.macro_average?.2));
    float("spillway_feedback_brier_score", "Mean squared distance of confidence and outcome", |s| s.brier);
    let help = "Mean distance of confidence and share of right answers, over ten bins";
    float("spillway_feedback_calibration_error", help, |s| s.expected_calibration_error);
    float("spillway_feedback_mean_error", "Mean of predicted less expected numbers", |s| s.mean_error);
    float("spillway_feedback_mean_absolute_error", "Mean distance of predicted and expected numbers", |s| {
        s.mean_absolute_error
    });
    float("spillway_feedback_root_mean_square_error", "Root of the mean squared distance of numbers", |s| {
        s.root_mean_square_error
    });
}

/// Most budgets with series, so that a scrape stays small; the file of budgets holds the figures of all.
const MAX_BUDGETS: usize = 2_000;

#[allow(clippy::cast_precision_loss, reason = "a budget of 2^53 is none")]
pub(super) fn budgets(r: &mut Registry, samples: &[BudgetSample]) {
    let (spent, limit) = (FloatGauges::default(), FloatGauges::default());
    for sample in samples.iter().take(MAX_BUDGETS) {
        for (unit, used, most) in &sample.units {
            let (unit, parts) = if *unit == "nanodollars" { ("usd", 1e9) } else { (*unit, 1.0) };
            let series = labels([("budget", &sample.whose), ("per", sample.per), ("unit", unit)]);
            spent.get_or_create(&series).set(*used as f64 / parts);
            limit.get_or_create(&series).set(*most as f64 / parts);
        }
    }
    r.register("spillway_budget_spent", "Amount of a budget spent in its day or month, through this gateway", spent);
    r.register("spillway_budget_limit", "Limit of a budget", limit);
}

/// Costs of answers, whose rows are bounded where they are kept.
#[allow(clippy::cast_precision_loss, reason = "2^53 billionths are nine million dollars")]
pub(super) fn costs(r: &mut Registry, samples: &[CostSample]) {
    let (dollars, answers) = (FloatCounters::default(), Counters::default());
    for sample in samples {
        let series = labels([
            ("consumer", &sample.consumer),
            ("tenant", &sample.tenant),
            ("http_route", &sample.route),
            ("model", &sample.model),
        ]);
        dollars.get_or_create(&series).inc_by(sample.nanos as f64 / 1e9);
        answers.get_or_create(&series).inc_by(sample.answers);
    }
    r.register("spillway_cost_usd", "Cost of answers by the prices of models", dollars);
    r.register("spillway_cost_answers", "Answers of models that have a price", answers);
}

/// Probes of all routes.
fn probes(r: &mut Registry, samples: &[QualitySample]) {
    let results = Counters::default();
    let changes = Counters::default();
    let tokens = Counters::default();
    let seconds = FloatCounters::default();
    let failing = Gauges::default();
    let similarity = FloatGauges::default();
    for (route, target) in samples.iter().flat_map(|one| one.probes.iter().map(|target| (one.route.as_str(), target))) {
        let own = || [("http_route", route), ("target", target.target.as_str())];
        let with = |name, value: &str| {
            let [route, target] = own();
            labels([route, target, (name, value)])
        };
        for (result, count) in &target.results {
            results.get_or_create(&with("result", result.as_str())).inc_by(*count);
        }
        for (change, count) in &target.changes {
            changes.get_or_create(&with("change", change.as_str())).inc_by(*count);
        }
        tokens.get_or_create(&labels(own())).inc_by(target.tokens);
        seconds.get_or_create(&labels(own())).inc_by(target.seconds);
        for probe in &target.probes {
            failing.get_or_create(&with("probe", &probe.name)).set(probe.is_failing.into());
            if let Some(value) = probe.similarity {
                similarity.get_or_create(&with("probe", &probe.name)).set(value);
            }
        }
    }
    r.register("spillway_quality_probes", "Probes by what became of them", results);
    r.register("spillway_quality_probe_changes", "Changes in what a target answers to probes", changes);
    r.register("spillway_quality_probe_tokens", "Tokens of probes and their answers", tokens);
    r.register("spillway_quality_probe_seconds", "Time until the end of the answers to probes", seconds);
    r.register("spillway_quality_probe_failing", "1 while a probe gets another answer than expected", failing);
    r.register("spillway_quality_probe_similarity", "Similarity of the last answer to what is expected", similarity);
}

pub(super) fn quality(r: &mut Registry, samples: &[QualitySample], write_failures: u64, panics: u64) {
    probes(r, samples);
    let distance = FloatGauges::default();
    let limit = FloatGauges::default();
    let drifted = Gauges::default();
    let signals = Counters::default();
    let bytes = Gauges::default();
    let sampled = Counters::default();
    let dropped = Counters::default();
    let kept = Counters::default();
    let unreadable = Counters::default();
    let embeddings = Counters::default();
    let seconds = FloatCounters::default();
    for sample in samples {
        let route = sample.route.as_str();
        for one in &sample.features {
            let own = labels([("http_route", route), ("target", &one.target), ("feature", &one.feature)]);
            if let Some(value) = one.distance {
                distance.get_or_create(&own).set(value);
                limit.get_or_create(&own).set(one.limit);
                drifted.get_or_create(&own).set(one.drifted.into());
            }
        }
        for (target, signal, count) in &sample.signals {
            let own = labels([("http_route", route), ("target", target), ("signal", signal)]);
            signals.get_or_create(&own).inc_by(*count);
        }
        let own = labels([("http_route", route)]);
        bytes.get_or_create(&own).set(i64::try_from(sample.bytes).unwrap_or(i64::MAX));
        sampled.get_or_create(&own).inc_by(sample.sampled);
        dropped.get_or_create(&own).inc_by(sample.dropped);
        kept.get_or_create(&own).inc_by(sample.kept);
        unreadable.get_or_create(&own).inc_by(sample.unreadable);
        seconds.get_or_create(&own).inc_by(sample.embedding_seconds);
        for (outcome, count) in [("done", sample.embedded), ("left_out", sample.not_embedded)] {
            embeddings.get_or_create(&labels([("http_route", route), ("outcome", outcome)])).inc_by(count);
        }
    }
    let help = "Distance of the recent requests of a target from the reference, where both have enough requests";
    r.register("spillway_quality_distance", help, distance);
    r.register("spillway_quality_limit", "Limit of that distance", limit);
    let help = "1 while a feature has drifted: past its limit, until it is below four fifths of it";
    r.register("spillway_quality_drifted", help, drifted);
    r.register("spillway_quality_signals", "Conversations with a sign that they go badly", signals);
    r.register("spillway_quality_state_bytes", "Memory of the sketches of a route", bytes);
    r.register("spillway_quality_sampled", "Requests that were handed over to be looked at", sampled);
    r.register("spillway_quality_dropped", "Requests that were drawn and found no room to be looked at", dropped);
    r.register("spillway_quality_examples", "Requests whose texts were kept", kept);
    r.register("spillway_quality_unreadable", "Requests whose body or answer could not be read", unreadable);
    r.register("spillway_quality_embeddings", "Prompts that were turned into embeddings, or left out", embeddings);
    r.register("spillway_quality_embedding_seconds", "Time of these embeddings", seconds);
    let help = "Panics of the thread that looks at sampled requests, after each of which it began again";
    counter(r, "spillway_quality_panics", help, panics);
    counter(
        r,
        "spillway_quality_write_failures",
        "Failed writes of sketches, answers to probes and examples",
        write_failures,
    );
}

/// Most endpoints with series here: as many as have counters.
const MAX_ENDPOINTS: usize = 10_000;

pub(super) fn endpoints(r: &mut Registry, samples: &[EndpointSample]) {
    let samples = samples.get(..samples.len().min(MAX_ENDPOINTS)).unwrap_or_default();
    let own = |s: &EndpointSample| labels([("backend", &s.backend), ("endpoint", &s.endpoint)]);
    let mut gauge = |name: &str, help: &str, value: fn(&EndpointSample) -> Option<f64>| {
        let family = FloatGauges::default();
        for sample in samples {
            if let Some(value) = value(sample) {
                family.get_or_create(&own(sample)).set(value);
            }
        }
        r.register(name, help, family);
    };
    gauge("spillway_endpoint_limit", "Limit of requests in flight, as of now", |s| s.limit.map(f64::from));
    gauge("spillway_endpoint_ejected", "1 while the endpoint is ejected for its errors", |s| {
        Some(f64::from(u8::from(s.ejected)))
    });
    gauge("spillway_endpoint_drained", "1 while an operator has drained the endpoint", |s| {
        Some(f64::from(u8::from(s.drained)))
    });
    gauge("spillway_endpoint_latency_seconds", "Smoothed time to the first token or head", |s| {
        s.latency.map(|latency| latency.as_secs_f64())
    });
    gauge("spillway_endpoint_connections", "Open connections, idle ones included", |s| Some(f64::from(s.connections)));
    gauge("spillway_endpoint_waiting", "Requests that wait at the server, as the server reports", |s| {
        s.waiting.map(f64::from)
    });
    gauge("spillway_endpoint_kv_cache", "Used share of the server's KV cache, as the server reports", |s| s.kv_cache);
    let full = Gauges::default();
    for sample in samples {
        if let Some(reason) = sample.full {
            let series = own(sample).into_iter().chain([("reason", reason.to_owned())]).collect();
            full.get_or_create(&series).set(1);
        }
    }
    r.register("spillway_endpoint_saturated", "1 while the endpoint is full, by the signal that reports it", full);
}

pub(super) fn backends(r: &mut Registry, samples: &[BackendSample]) {
    let mut gauge = |name: &str, help: &str, value: fn(&BackendSample) -> i64| {
        let family = Gauges::default();
        for sample in samples {
            family.get_or_create(&labels([("backend", &sample.backend)])).set(value(sample));
        }
        r.register(name, help, family);
    };
    gauge("spillway_backend_pending", "Requests that wait for the backend, in the queues of all routes", |s| {
        s.pending.into()
    });
    gauge("spillway_backend_retries_in_flight", "Retries and hedges in flight", |s| s.retries.into());
    gauge("spillway_backend_panic", "1 while ejections are ignored, because too few endpoints are left", |s| {
        s.is_in_panic.into()
    });
    let open = Gauges::default();
    for sample in samples {
        for (limit, is_reached) in sample.at_limit {
            let series = labels([("backend", &sample.backend), ("limit", limit)]);
            open.get_or_create(&series).set(is_reached.into());
        }
    }
    r.register("spillway_backend_circuit_open", "1 while a limit of `circuitBreaker` is reached", open);
}

pub(super) fn counter(r: &mut Registry, name: &str, help: &str, value: u64) {
    let counter: Counter = Counter::default();
    counter.inc_by(value);
    r.register(name, help, counter);
}

pub(super) fn model_memory(r: &mut Registry, (taken, limit): (u64, u64)) {
    for (name, help, value) in [
        ("spillway_models_memory_bytes", "Memory that all built-in models hold", taken),
        ("spillway_models_memory_limit_bytes", "Memory that all built-in models may hold", limit),
    ] {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        r.register(name, help, gauge);
    }
}

#[allow(clippy::cast_precision_loss, reason = "bytes of a card are below 2^53")]
pub(super) fn gpus(r: &mut Registry, samples: &[GpuSample]) {
    type Read = fn(&GpuSample) -> Option<f64>;
    if samples.is_empty() {
        return;
    }
    let mut gauge = |name: &str, help: &str, read: Read| {
        let family = FloatGauges::default();
        for sample in samples {
            if let Some(value) = read(sample) {
                let index = sample.index.to_string();
                let own = labels([("gpu", &index), ("name", &sample.name), ("uuid", &sample.uuid)]);
                family.get_or_create(&own).set(value);
            }
        }
        r.register(name, help, family);
    };
    gauge("spillway_gpu_utilization_ratio", "Share of time in which a graphics processor was at work", |s| s.busy);
    gauge("spillway_gpu_memory_used_bytes", "Memory of a graphics processor in use, by all programs", |s| {
        s.memory.map(|(used, _)| used as f64)
    });
    gauge("spillway_gpu_memory_bytes", "Memory of a graphics processor", |s| s.memory.map(|(_, all)| all as f64));
    gauge("spillway_gpu_temperature_celsius", "Temperature of a graphics processor", |s| s.temperature);
    gauge("spillway_gpu_power_watts", "Power that a graphics processor takes", |s| s.power);
}

pub(super) fn engines(r: &mut Registry, samples: &[EngineSample]) {
    let mut gauge = |name: &str, help: &str, value: fn(&EngineSample) -> u64| {
        let family = Gauges::default();
        for sample in samples {
            let value = i64::try_from(value(sample)).unwrap_or(i64::MAX);
            family.get_or_create(&labels([("model", &sample.model)])).set(value);
        }
        r.register(name, help, family);
    };
    gauge("spillway_engine_active_sequences", "Answers that are being written", |s| s.active);
    gauge("spillway_engine_waiting_sequences", "Requests that wait for the engine", |s| s.waiting);
    gauge("spillway_engine_kv_used_tokens", "Tokens in the KV cache", |s| s.kv_used);
    gauge("spillway_engine_kv_capacity_tokens", "Tokens that fit the KV cache", |s| s.kv_capacity);
    gauge(
        "spillway_engine_kv_idle_tokens",
        "Tokens in the KV cache that no sequence uses and that a prompt may begin with",
        |s| s.kv_idle,
    );
    gauge("spillway_engine_memory_bytes", "Device memory of a model", |s| s.memory);
    gauge("spillway_engine_loaded", "1 while the model is loaded, 0 until a request needs it", |s| s.is_loaded.into());
    gauge("spillway_engine_ready", "1 while the model can run, 0 while its device is set up again", |s| {
        s.is_ready.into()
    });
    let devices = Gauges::default();
    for EngineSample { model, device, .. } in samples {
        let Some(DeviceInfo { name, kind, driver, .. }) = device else { continue };
        let labels = labels([("model", model), ("device", name), ("kind", kind), ("driver", driver)]);
        devices.get_or_create(&labels).set(1);
    }
    r.register("spillway_engine_device_info", "Device of a model", devices);
    let mut float = |name: &str, help: &str, value: fn(&EngineSample) -> f64| {
        let family = FloatGauges::default();
        for sample in samples {
            family.get_or_create(&labels([("model", &sample.model)])).set(value(sample));
        }
        r.register(name, help, family);
    };
    float("spillway_engine_estimated_wait_seconds", "Estimated wait for a first token", |s| {
        s.estimated_wait.as_secs_f64()
    });
    float(
        "spillway_engine_load_tokens_per_second",
        "Tokens written by one sequence, or read by an encoder, as measured at load",
        |s| s.rate,
    );
    float("spillway_engine_load_bytes_per_second", "Weights that a step of one row reads, as measured at load", |s| {
        s.bandwidth
    });
    let mut counter = |name: &str, help: &str, value: fn(&EngineSample) -> u64| {
        let family = Counters::default();
        for sample in samples {
            family.get_or_create(&labels([("model", &sample.model)])).inc_by(value(sample));
        }
        r.register(name, help, family);
    };
    counter("spillway_engine_generated_tokens", "Tokens written since the model was loaded", |s| s.generated);
    counter("spillway_engine_cached_prompt_tokens", "Prompt tokens that the KV cache already held", |s| s.cached);
    counter("spillway_engine_preemptions", "Answers that lost their part of the KV cache and were read again", |s| {
        s.preemptions
    });
    counter("spillway_engine_device_faults", "Faults of the device, after each of which it is set up again", |s| {
        s.faults
    });
    counter("spillway_engine_evictions", "Times that a model was unloaded for another", |s| s.evictions);
    counter("spillway_engine_loads_refused", "Times that a model was not loaded for want of memory", |s| s.no_room);
    counter("spillway_engine_prompt_tokens", "Tokens read since the model was loaded", |s| s.prompt);
}

/// Usual figures of a process (Prometheus, "Writing client libraries", process metrics), without those that the system does
/// not report.
pub(super) fn process(r: &mut Registry, started: SystemTime) {
    let mut gauge = |name: &str, help: &str, value: Option<i64>| {
        if let Some(value) = value {
            let gauge: Gauge = Gauge::default();
            gauge.set(value);
            r.register(name, help, gauge);
        }
    };
    gauge("process_resident_memory_bytes", "Memory of the process", resident_bytes());
    gauge("process_open_fds", "Open file descriptors", open_files());
    gauge("process_max_fds", "File descriptors that may be open", file_limit());
    let short = Counters::default();
    for side in Side::ALL {
        short.get_or_create(&labels([("side", side.as_str())])).inc_by(side.shortages_so_far());
    }
    let help = "Connections that were closed because no file descriptor was left for them";
    r.register("spillway_descriptor_shortages", help, short);
    let start = FloatGauge::default();
    start.set(crate::clock::unix_fraction(started));
    r.register("process_start_time_seconds", "Start of the process, Unix time", start);
    if let Some(seconds) = processor_time() {
        let counter = FloatCounter::default();
        counter.inc_by(seconds.as_secs_f64());
        r.register("process_cpu_seconds", "Processor time of all threads", counter);
    }
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(kibibytes.trim().strip_suffix(" kB")?.parse::<i64>().ok()?.saturating_mul(1024))
}

fn open_files() -> Option<i64> {
    // The descriptor of the folder that is read does not count.
    i64::try_from(std::fs::read_dir("/proc/self/fd").ok()?.count()).ok()?.checked_sub(1)
}

fn file_limit() -> Option<i64> {
    descriptors::limit().map(|limit| i64::try_from(limit).unwrap_or(i64::MAX))
}

fn processor_time() -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call gets a pointer to a `timespec` that lives until it returns.
    let ok = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } == 0;
    let (seconds, nanos) = (u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
    ok.then(|| Duration::new(seconds, nanos))
}
