//! Traffic of the last day by steps of time, for the dashboard: sampled every five seconds from the counters that requests
//! count in, so that no request does anything for it. Owns its rings, of which the most used routes have one each; the
//! task that fills them ends with the admin address.

mod counting;
mod rings;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use self::counting::{Readings, ReasonKind};
use self::rings::{Figures, SAMPLE, Series, WINDOWS};
use crate::clock::unix_seconds;
use crate::telemetry::{BUCKETS, EngineSample, HTTP_SECONDS, MODEL_SECONDS, Metrics};

/// Most routes with figures of their own: a legend with more cannot be read, and each takes up to 200 KiB.
const MAX_ROUTES: usize = 32;
/// Name of all further routes together.
const OTHERS: &str = "_other";
/// Part of a route's use that is left after a sample, of which half is left after six hours.
const FADING: f64 = 0.999_84;
/// Use by which a route must exceed the least used one, to get its rings: two alike routes do not take turns.
const MARGIN: f64 = 1.25;
/// Use below which a route is forgotten.
const UNUSED: f64 = 0.01;

/// Traffic of the last day.
#[derive(Default)]
pub struct History(Mutex<Recorded>);

#[derive(Default)]
struct Recorded {
    readings: Readings,
    all: Series,
    others: Series,
    routes: HashMap<Arc<str>, Series>,
    /// Requests of each route, of which old ones count less.
    use_of: HashMap<Arc<str>, f64>,
    /// Beginning of the last sample, in Unix seconds; zero before the first.
    sampled: u64,
    last: LastSample,
}

/// Figures of the last sample.
#[derive(Debug, Default)]
struct LastSample {
    all: Rates,
    routes: HashMap<Arc<str>, Rates>,
    /// Tokens that each built-in model had written since it was loaded, and those of a second.
    models: HashMap<String, (u64, f64)>,
}

/// Figures by the second, of the last sample.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Requests that ended.
    pub requests: f64,
    /// Requests with a status from 500 on, or without an answer.
    pub errors: f64,
    /// Requests that a fallback answered.
    pub spills: f64,
    /// Tokens of answers.
    pub tokens: f64,
}

/// Reason why there is no history of what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoHistory {
    /// The window is none of those that are kept.
    #[error("unknown window; expected `10m`, `3h` or `24h`")]
    Window,
    /// The route has had no request.
    #[error("no request of a route of that name was counted; without `route` all routes are shown")]
    Route,
    /// The route is not among the most used ones.
    #[error("the route is not one of the {MAX_ROUTES} most used ones; `{OTHERS}` has it with the others")]
    Other,
}

/// History of a window. Lists have an element for each step, oldest first; the last step may not be over.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryReport {
    step_seconds: u64,
    start: u64,
    routes: Vec<String>,
    latency_bounds: [f64; BUCKETS - 1],
    first_token_bounds: [f64; BUCKETS - 1],
    requests: Vec<u32>,
    errors: Vec<u32>,
    spills: BTreeMap<String, Vec<u32>>,
    refused: BTreeMap<String, Vec<u32>>,
    latency: Vec<[u32; BUCKETS]>,
    input_tokens: Option<Vec<u64>>,
    output_tokens: Option<Vec<u64>>,
    first_token: Option<Vec<[u32; BUCKETS]>>,
}

impl History {
    /// Samples `metrics` and the built-in models that `engines` reads, until `stop` is true.
    pub async fn run(
        self: Arc<Self>,
        metrics: Arc<Metrics>,
        engines: impl Fn() -> Vec<EngineSample>,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            // At whole steps of the clock, so that each sample is one step.
            let now = unix_seconds();
            let wait = Duration::from_secs_f64(seconds(SAMPLE) - now.rem_euclid(seconds(SAMPLE)));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            self.sample(&metrics, &engines(), whole(unix_seconds()));
        }
    }

    /// Records what the counters have counted since the last sample, as the step before `now`, in Unix seconds.
    fn sample(&self, metrics: &Metrics, engines: &[EngineSample], now: u64) {
        let start = (now / SAMPLE).saturating_sub(1) * SAMPLE;
        let mut recorded = self.0.lock();
        let (routes, models) = recorded.readings.read(metrics);
        recorded.fade(&routes);
        let mut all = models;
        let mut last = LastSample { models: recorded.last.models_since(engines), ..LastSample::default() };
        for (name, figures) in routes {
            all.add(&figures);
            last.routes.insert(name.clone(), recorded.rates(&figures));
            recorded.series_of(&name).add(start, &figures);
        }
        last.all = recorded.rates(&all);
        recorded.last = last;
        recorded.sampled = start;
        recorded.all.advance(start);
        if all != Figures::default() {
            recorded.all.add(start, &all);
        }
    }

    /// Figures of the last sample, of all routes and by route.
    pub fn rates(&self) -> (Rates, HashMap<Arc<str>, Rates>) {
        let recorded = self.0.lock();
        (recorded.last.all, recorded.last.routes.clone())
    }

    /// Tokens that each built-in model wrote in a second of the last sample.
    pub fn model_rates(&self) -> HashMap<String, f64> {
        let recorded = self.0.lock();
        recorded.last.models.iter().map(|(name, (_, rate))| (name.clone(), *rate)).collect()
    }

    /// History of a window, of one route or of all.
    pub fn read(&self, window: &str, route: Option<&str>) -> Result<HistoryReport, NoHistory> {
        let window = WINDOWS.into_iter().find(|known| known.name == window).ok_or(NoHistory::Window)?;
        let recorded = self.0.lock();
        let series = match route {
            None => &recorded.all,
            Some(OTHERS) => &recorded.others,
            Some(route) => match recorded.routes.get(route) {
                Some(series) => series,
                None if recorded.use_of.contains_key(route) => return Err(NoHistory::Other),
                None => return Err(NoHistory::Route),
            },
        };
        let end = if recorded.sampled == 0 { whole(unix_seconds()) } else { recorded.sampled };
        let (start, steps) = series.read(window, end);
        let mut routes: Vec<_> = recorded.routes.keys().map(|name| name.to_string()).collect();
        routes.sort();
        let (mut spills, mut refused) = (BTreeMap::new(), BTreeMap::new());
        for (place, step) in steps.iter().enumerate() {
            for (number, times) in step.iter().flat_map(|figures| &figures.reasons) {
                let (kind, name) = recorded.readings.reasons.name(*number);
                let of = if kind == ReasonKind::Spill { &mut spills } else { &mut refused };
                let counts: &mut Vec<u32> = of.entry(name.to_owned()).or_insert_with(|| vec![0; steps.len()]);
                if let Some(count) = counts.get_mut(place) {
                    *count = count.saturating_add(*times);
                }
            }
        }
        // Model calls are counted by backend and model, so that those of one route are not known.
        let has_models = route.is_none();
        let none = Figures::default();
        let step = || steps.iter().map(|step| step.unwrap_or(&none));
        Ok(HistoryReport {
            step_seconds: window.step,
            start,
            routes,
            latency_bounds: HTTP_SECONDS.bounds,
            first_token_bounds: MODEL_SECONDS.bounds,
            requests: step().map(Figures::requests).collect(),
            errors: step().map(|figures| figures.errors).collect(),
            spills,
            refused,
            latency: step().map(|figures| figures.latency).collect(),
            input_tokens: has_models.then(|| step().map(|figures| figures.input).collect()),
            output_tokens: has_models.then(|| step().map(|figures| figures.output).collect()),
            first_token: has_models.then(|| step().map(|figures| figures.first_token).collect()),
        })
    }
}

impl LastSample {
    /// Tokens of built-in models since this sample; a model that was loaded anew has written all of its tokens since.
    fn models_since(&self, engines: &[EngineSample]) -> HashMap<String, (u64, f64)> {
        let rate = |engine: &EngineSample| {
            let before = self.models.get(&engine.model).map(|(generated, _)| *generated);
            let before = before.filter(|before| *before <= engine.generated);
            let written = engine.generated - before.unwrap_or(0);
            (
                engine.model.clone(),
                (engine.generated, f64::from(u32::try_from(written).unwrap_or(u32::MAX)) / seconds(SAMPLE)),
            )
        };
        engines.iter().map(rate).collect()
    }
}

impl Recorded {
    /// Counts the use of each route.
    fn fade(&mut self, routes: &[(Arc<str>, Figures)]) {
        for used in self.use_of.values_mut() {
            *used *= FADING;
        }
        for (name, figures) in routes {
            *self.use_of.entry(name.clone()).or_insert(0.0) += f64::from(figures.requests());
        }
        let with_rings = &self.routes;
        self.use_of.retain(|name, used| *used > UNUSED || with_rings.contains_key(name));
    }

    /// Rings of a route: its own, or those of the others.
    fn series_of(&mut self, name: &Arc<str>) -> &mut Series {
        if self.routes.contains_key(name) || self.routes.len() < MAX_ROUTES {
            return self.routes.entry(name.clone()).or_default();
        }
        let use_of = |name: &Arc<str>| self.use_of.get(name).copied().unwrap_or(0.0);
        let least = self.routes.keys().map(|name| (use_of(name), name)).min_by(|a, b| a.0.total_cmp(&b.0));
        let Some((used, least)) = least.map(|(used, name)| (used, name.clone())) else { return &mut self.others };
        if use_of(name) <= used * MARGIN {
            return &mut self.others;
        }
        if let Some(series) = self.routes.remove(&least) {
            self.others.merge(&series);
        }
        self.routes.entry(name.clone()).or_default()
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of five seconds are far below 2^52")]
    fn rates(&self, figures: &Figures) -> Rates {
        let is_spill = |number| self.readings.reasons.name(number).0 == ReasonKind::Spill;
        let spills: u64 =
            figures.reasons.iter().filter(|(number, _)| is_spill(*number)).map(|(_, times)| u64::from(*times)).sum();
        let each = seconds(SAMPLE);
        Rates {
            requests: f64::from(figures.requests()) / each,
            errors: f64::from(figures.errors) / each,
            spills: spills as f64 / each,
            tokens: figures.output as f64 / each,
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a few seconds")]
fn seconds(whole: u64) -> f64 {
    whole as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "Unix seconds; a cast saturates")]
fn whole(seconds: f64) -> u64 {
    seconds as u64
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::telemetry::SpillReason;

    #[test]
    fn a_step_has_what_was_counted_in_it_for_all_and_for_each_route() {
        let (metrics, history) = (Metrics::new(), History::default());
        let (a, b) = (metrics.route("a"), metrics.route("b"));
        history.sample(&metrics, &[], 1_000_000);
        a.ended(&Method::GET, 200, Duration::from_secs(20), None);
        a.spilled(SpillReason::Saturated);
        b.ended(&Method::GET, 500, Duration::from_millis(1), None);
        history.sample(&metrics, &[], 1_000_005);
        history.sample(&metrics, &[], 1_000_010);
        let all = history.read("10m", None).unwrap();
        assert_eq!((all.step_seconds, all.start, all.requests.len()), (5, 1_000_005 - 119 * 5, 120));
        assert_eq!((&all.requests[118..], &all.errors[118..]), (&[2, 0][..], &[1, 0][..]));
        assert_eq!(all.latency[118][0] + all.latency[118][BUCKETS - 1], 2);
        assert_eq!(all.spills["saturated"][118..], [1, 0]);
        assert_eq!(all.spills["saturated"].len(), 120);
        let of_a = history.read("3h", Some("a")).unwrap();
        assert_eq!((of_a.requests.iter().sum::<u32>(), of_a.errors.iter().sum::<u32>()), (1, 0));
        assert!(of_a.first_token.is_none() && of_a.input_tokens.is_none());
        assert_eq!(of_a.routes, ["a", "b"]);
        assert_eq!(history.read("1h", None).unwrap_err(), NoHistory::Window);
        assert_eq!(history.read("10m", Some("c")).unwrap_err(), NoHistory::Route);
        assert_eq!(history.rates().0, Rates::default());
    }

    #[test]
    fn rates_are_those_of_the_last_sample() {
        let (metrics, history) = (Metrics::new(), History::default());
        let a = metrics.route("a");
        for _ in 0..10 {
            a.ended(&Method::GET, 502, Duration::ZERO, None);
            a.spilled(SpillReason::Unavailable);
        }
        history.sample(&metrics, &[], 1_000_000);
        let expected = Rates { requests: 2.0, errors: 2.0, spills: 2.0, tokens: 0.0 };
        let (all, routes) = history.rates();
        assert_eq!((all, routes["a"]), (expected, expected));
    }

    #[test]
    fn a_model_writes_what_it_has_written_since_the_last_sample() {
        let (metrics, history) = (Metrics::new(), History::default());
        let sample = |generated| [EngineSample { model: "m".to_owned(), generated, ..EngineSample::default() }];
        for (now, generated, rate) in
            [(1_000_000, 10, 2.0), (1_000_005, 60, 10.0), (1_000_010, 60, 0.0), (1_000_015, 5, 1.0)]
        {
            history.sample(&metrics, &sample(generated), now);
            assert_eq!(history.model_rates()["m"], rate);
        }
        history.sample(&metrics, &[], 1_000_020);
        assert!(history.model_rates().is_empty());
    }

    #[test]
    fn the_most_used_routes_have_rings_and_the_others_share_theirs() {
        let (metrics, history) = (Metrics::new(), History::default());
        let routes: Vec<_> = (0..MAX_ROUTES + 8).map(|n| metrics.route(&format!("r{n:02}"))).collect();
        let ask =
            |n: usize, times: usize| (0..times).for_each(|_| routes[n].ended(&Method::GET, 200, Duration::ZERO, None));
        for n in 0..MAX_ROUTES {
            ask(n, 10 + n);
        }
        history.sample(&metrics, &[], 1_000_000);
        for n in MAX_ROUTES..routes.len() {
            ask(n, 1);
        }
        history.sample(&metrics, &[], 1_000_005);
        let sum = |route| history.read("24h", route).map(|report| report.requests.iter().sum::<u32>());
        assert_eq!((sum(Some("r00")), sum(Some("r32"))), (Ok(10), Err(NoHistory::Other)));
        assert_eq!(sum(Some(OTHERS)), Ok(8));
        let all = sum(None).unwrap();
        // The one that is used most takes the place of the least used one, whose figures go to the others.
        ask(33, 100);
        history.sample(&metrics, &[], 1_000_010);
        assert_eq!((sum(Some("r33")), sum(Some("r00"))), (Ok(100), Err(NoHistory::Other)));
        assert_eq!((sum(Some(OTHERS)), sum(None)), (Ok(18), Ok(all + 100)));
        assert_eq!(history.0.lock().routes.len(), MAX_ROUTES);
    }
}
