//! Report on one route for operators: figures of the recent requests and the reference, side by side.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use spillway_statistics::compact::Compact;

use super::feature::Feature;
use super::pane::{LEAST_ROWS, Pane, Values};
use super::probes::ProbesReport;
use super::sampled::Counters;
use super::state::{Comparison, Reference, RouteState, Rules, VersionState};

/// Bars of a distribution of numbers.
const BARS: u32 = 20;

/// Report on one route.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteReport {
    /// Name of the route.
    pub route: String,
    /// Time of the judgement, in Unix seconds.
    pub at: f64,
    /// Share of the requests that are looked at.
    pub sample: f64,
    /// Reference: `window`, `file` or the name of the stable target.
    pub reference: String,
    /// Seconds of the reference window; `None` for other references.
    pub window_seconds: Option<f64>,
    /// Shortest time of the recent requests, in seconds; the longest is twice that.
    pub recent_seconds: f64,
    /// Requests that each side of a comparison needs.
    pub least_rows: u64,
    /// Bytes of the sketches of the route.
    pub bytes: usize,
    /// Counters of the route.
    pub counts: Counts,
    /// Targets.
    pub targets: Vec<TargetReport>,
    /// Probes of each target; none where the route has no probes.
    #[serde(default)]
    pub probes: Vec<ProbesReport>,
}

/// Counters of a route.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Requests that were looked at, or wait for it.
    pub sampled: u64,
    /// Requests that were drawn and found no room.
    pub dropped: u64,
    /// Requests whose body or answer could not be read.
    pub unreadable: u64,
    /// Requests whose texts were kept.
    #[serde(default)]
    pub kept: u64,
    /// Prompts that were turned into embeddings.
    pub embedded: u64,
    /// Prompts that were not: the model was busy or not loaded, or too many came.
    pub not_embedded: u64,
    /// Time of all embeddings.
    pub embedding_seconds: f64,
}

/// Report on one target.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetReport {
    /// Name of the backend or built-in model.
    pub target: String,
    /// Recent requests.
    pub rows: u64,
    /// Time of the first of them, in Unix seconds; `None` where there are none.
    pub since: Option<f64>,
    /// Requests of the reference; `None` for the stable target itself.
    pub reference_rows: Option<u64>,
    /// Signs of conversations that go badly, since the process began.
    pub signals: BTreeMap<String, u64>,
    /// Features.
    pub features: Vec<FeatureReport>,
}

/// Report on one feature.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeatureReport {
    /// Feature.
    pub feature: Feature,
    /// `inputs` or `outputs`.
    pub side: String,
    /// Recipe of the distance that is judged.
    pub recipe: Option<String>,
    /// Distance by that recipe.
    pub distance: Option<f64>,
    /// Limit.
    pub limit: f64,
    /// True if both sides have enough requests.
    pub judged: bool,
    /// True while the distance is past its limit, until it is below four fifths of it.
    pub drifted: bool,
    /// Population stability index.
    pub psi: Option<f64>,
    /// Jensen-Shannon distance.
    pub jensen_shannon: Option<f64>,
    /// Kolmogorov-Smirnov distance.
    pub kolmogorov_smirnov: Option<f64>,
    /// Wasserstein distance over the reference's deviation.
    pub wasserstein: Option<f64>,
    /// Figures of the reference.
    pub before: Option<Figures>,
    /// Figures of the recent requests.
    pub recent: Option<Figures>,
    /// Shares of the reference and of the recent requests, by category or range.
    pub bars: Vec<Bar>,
    /// Unix seconds and distances.
    pub course: Vec<(u32, f32)>,
}

/// Shares of one category or range.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bar {
    /// Category, or range.
    pub name: String,
    /// Share of the reference.
    pub before: f64,
    /// Share of the recent requests.
    pub recent: f64,
}

/// Figures of a feature.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Observations.
    pub count: u64,
    /// Values that were not there or no number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<u64>,
    /// Numbers of 1e18 and more of either sign, which are alike to the distances; `None` where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beyond: Option<u64>,
    /// Mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    /// Standard deviation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deviation: Option<f64>,
    /// Least value, the quantiles at 5, 25, 50, 75 and 95 in a hundred, and the greatest value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quantiles: Vec<f64>,
    /// Mean squared distance of embeddings from their centre, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<f64>,
}

impl Figures {
    fn of(values: &Values) -> Self {
        let count = values.count();
        match values {
            Values::Numbers(numbers) => {
                let range = numbers.range();
                let inner = [0.05, 0.25, 0.5, 0.75, 0.95].into_iter().filter_map(|level| numbers.quantile(level));
                let quantiles =
                    range.map(|(least, greatest)| std::iter::once(least).chain(inner).chain([greatest]).collect());
                Self {
                    count,
                    missing: Some(numbers.missing()),
                    beyond: Some(numbers.beyond()).filter(|beyond| *beyond > 0),
                    mean: numbers.mean(),
                    deviation: numbers.deviation(),
                    quantiles: quantiles.unwrap_or_default(),
                    spread: None,
                }
            }
            Values::Centre(centre) => Self { count, spread: centre.spread(), ..Self::default() },
            Values::Shares(_) | Values::Buckets(_) => Self { count, ..Self::default() },
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of requests are far below 2^53")]
fn share(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 }
}

/// Number in few digits, for a label.
fn short(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 1.0 || value == 0.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

fn bars_of_numbers(before: &Compact, recent: &Compact) -> Vec<Bar> {
    let low = [before, recent].iter().filter_map(|one| one.range()).map(|range| range.0).fold(f64::INFINITY, f64::min);
    let high = [before, recent].iter().filter_map(|one| one.quantile(0.99)).fold(f64::NEG_INFINITY, f64::max);
    if !(low.is_finite() && high.is_finite()) {
        return Vec::new();
    }
    let width = if high > low { (high - low) / f64::from(BARS) } else { 1.0 };
    let number = if high > low { BARS } else { 1 };
    let (first, second) = before.sketches(recent);
    let mut bars: Vec<Bar> = (0..number)
        .map(|n| {
            let from = low + width * f64::from(n);
            let name = if n + 1 == number {
                format!("{} and more", short(from))
            } else {
                format!("{} to {}", short(from), short(from + width))
            };
            Bar { name, before: 0.0, recent: 0.0 }
        })
        .collect();
    for (sketch, is_before) in [(&first, true), (&second, false)] {
        for bin in sketch.bins().into_iter().filter(|bin| bin.count > 0) {
            let middle = if bin.high.is_finite() && bin.low.is_finite() { 0.5 * (bin.low + bin.high) } else { bin.low };
            let place = ((middle - low) / width).clamp(0.0, f64::from(number - 1));
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to the number of bars")]
            let Some(bar) = bars.get_mut(place as usize) else { continue };
            let added = share(bin.count, sketch.count());
            *(if is_before { &mut bar.before } else { &mut bar.recent }) += added;
        }
    }
    bars
}

fn bars(feature: &Feature, before: Option<&Values>, recent: Option<&Values>) -> Vec<Bar> {
    match (before, recent) {
        (Some(Values::Numbers(before)), Some(Values::Numbers(recent))) => bars_of_numbers(before, recent),
        (None, Some(Values::Numbers(recent))) => bars_of_numbers(&Compact::default(), recent),
        (Some(Values::Numbers(before)), None) => bars_of_numbers(before, &Compact::default()),
        // Buckets of words have no names.
        _ if *feature == Feature::Words => Vec::new(),
        (before, recent) => {
            let named = |values: Option<&Values>| -> BTreeMap<String, f64> {
                match values {
                    Some(Values::Shares(shares)) => {
                        let all = shares.total();
                        let rest = (shares.rest() > 0).then(|| ("other".to_owned(), share(shares.rest(), all)));
                        let named = shares.counts().map(|(name, count)| (name.to_owned(), share(count, all)));
                        named.chain(rest).collect()
                    }
                    Some(Values::Buckets(buckets)) => {
                        let all = buckets.counts().iter().map(|count| u64::from(*count)).sum();
                        let numbered = buckets.counts().iter().enumerate().filter(|(_, count)| **count > 0);
                        numbered.map(|(n, count)| (format!("topic {n:02}"), share((*count).into(), all))).collect()
                    }
                    _ => BTreeMap::new(),
                }
            };
            let (before, recent) = (named(before), named(recent));
            let names: std::collections::BTreeSet<&String> = before.keys().chain(recent.keys()).collect();
            let of = |shares: &BTreeMap<String, f64>, name: &String| shares.get(name).copied().unwrap_or(0.0);
            names
                .into_iter()
                .map(|name| Bar { name: name.clone(), before: of(&before, name), recent: of(&recent, name) })
                .collect()
        }
    }
}

impl RouteReport {
    /// Report on a route, without its counters.
    pub(super) fn of(route: &str, sample: f64, state: &RouteState, rules: &Rules, at: f64) -> Self {
        let (reference, window_seconds) = match &rules.reference {
            Reference::Window(window) => ("window".to_owned(), Some(*window)),
            Reference::File(_) => ("file".to_owned(), None),
            Reference::Stable(name) => (name.to_string(), None),
        };
        let targets = rules.targets.iter().filter_map(|name| Some((name, state.versions.get(name)?)));
        Self {
            route: route.to_owned(),
            at,
            sample,
            reference,
            window_seconds,
            recent_seconds: rules.pane(),
            least_rows: LEAST_ROWS,
            bytes: state.bytes(),
            counts: Counts::default(),
            targets: targets.map(|(name, version)| target(name, version, state, rules)).collect(),
            probes: Vec::new(),
        }
    }

    /// Adds the counters.
    pub(super) fn counted(mut self, counters: &Counters, signals: &HashMap<(Box<str>, &'static str), u64>) -> Self {
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        #[allow(clippy::cast_precision_loss, reason = "microseconds of a process")]
        let seconds = of(&counters.embedding_micros) as f64 / 1e6;
        self.counts = Counts {
            sampled: of(&counters.sampled),
            dropped: of(&counters.dropped),
            unreadable: of(&counters.unreadable),
            kept: of(&counters.kept),
            embedded: of(&counters.embedded),
            not_embedded: of(&counters.not_embedded),
            embedding_seconds: seconds,
        };
        for target in &mut self.targets {
            let own = signals.iter().filter(|((name, _), _)| **name == *target.target);
            target.signals = own.map(|((_, signal), count)| ((*signal).to_owned(), *count)).collect();
        }
        self
    }
}

fn target(name: &str, version: &VersionState, state: &RouteState, rules: &Rules) -> TargetReport {
    let recent = version.recent();
    let reference = state.reference_of(name, rules);
    let comparisons = RouteState::compare(&recent, reference.as_ref(), rules);
    let of = |one: Comparison| feature(one, &recent, reference.as_ref(), version);
    TargetReport {
        target: name.to_owned(),
        rows: recent.rows,
        since: (recent.rows > 0).then_some(recent.began),
        reference_rows: reference.as_ref().map(|pane| pane.rows),
        signals: BTreeMap::new(),
        features: comparisons.into_iter().map(of).collect(),
    }
}

fn feature(one: Comparison, recent: &Pane, reference: Option<&Pane>, version: &VersionState) -> FeatureReport {
    let Comparison { feature, distances, is_judged, limit } = one;
    let before = reference.and_then(|pane| pane.features.get(&feature));
    let recent = recent.features.get(&feature);
    let course = version.courses.get(&feature);
    FeatureReport {
        side: feature.side().as_str().to_owned(),
        recipe: distances.map(|distances| distances.recipe.as_str().to_owned()),
        distance: distances.map(|distances| distances.judged),
        limit,
        judged: is_judged,
        drifted: course.is_some_and(|course| course.is_drifted),
        psi: distances.and_then(|distances| distances.psi),
        jensen_shannon: distances.and_then(|distances| distances.jensen_shannon),
        kolmogorov_smirnov: distances.and_then(|distances| distances.kolmogorov_smirnov),
        wasserstein: distances.and_then(|distances| distances.wasserstein),
        before: before.map(Figures::of),
        recent: recent.map(Figures::of),
        bars: bars(&feature, before, recent),
        course: course.map(|course| course.points.iter().copied().collect()).unwrap_or_default(),
        feature,
    }
}
