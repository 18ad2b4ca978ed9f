//! Counters of filters. A filter declares them when it is built and keeps the handles; the gateway shows them on its page of
//! metrics, with the route in front of the filter's own labels.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use spillway_config::FieldError;

/// Most series of one counter: a scrape stays some megabytes. Further ones are counted together, with `other` as every value.
const MAX_SERIES: usize = 10_000;
/// Most counters of a process.
const MAX_COUNTERS: usize = 256;
/// Most labels of a counter, beside the route.
const MAX_LABELS: usize = 8;
/// Longest value of a label, in bytes.
const MAX_VALUE: usize = 128;
/// First part of every name.
const PREFIX: &str = "spillway_filter_";
/// Value of all labels of the series above [`MAX_SERIES`].
const OTHER: &str = "other";

/// Counter that a filter declares, once for the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterSpec {
    /// Name: `spillway_filter_`, the name of the filter, `_` and the thing that is counted, in small letters and digits. The
    /// page of metrics has it with `_total` behind.
    pub name: &'static str,
    /// Help text: the thing that is counted.
    pub help: &'static str,
    /// Names of the labels beside `http_route`, which every counter has.
    pub labels: &'static [&'static str],
}

impl CounterSpec {
    /// Fault of the declaration; `None` where there is none.
    fn fault(&self) -> Option<&'static str> {
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        // Without `_` in its own part it could be one of the gateway's.
        let own = self.name.strip_prefix(PREFIX).filter(|own| is_name(own) && own.contains('_'));
        if own.is_none() || self.name.ends_with("_total") {
            return Some("expected a name such as `spillway_filter_guard_findings`, without `_total`");
        }
        let is_own = |label: &&str| is_name(label) && **label != *"http_route";
        if self.labels.len() > MAX_LABELS || !self.labels.iter().all(is_own) {
            return Some("expected at most 8 labels in small letters, none of them `http_route`");
        }
        None
    }
}

/// Handle on a series of a counter. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds so many.
    pub fn add(&self, times: u64) {
        self.0.fetch_add(times, Ordering::Relaxed);
    }

    /// Value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of all filters of a process. A series exists while a filter holds its handle: an edit that keeps the filter keeps
/// the count, and what no configuration names any more disappears.
#[derive(Default)]
pub struct Counters {
    declared: Mutex<HashMap<&'static str, Declared>>,
}

/// Counter with its series.
struct Declared {
    spec: CounterSpec,
    /// True for a counter of billionths.
    is_billionths: bool,
    /// Series by the values of their labels, that of the route first.
    series: HashMap<Arc<[String]>, Weak<AtomicU64>>,
}

/// Counter at a scrape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterSample {
    /// The declaration.
    pub spec: CounterSpec,
    /// True if the counts are billionths of the unit that is shown.
    pub is_billionths: bool,
    /// Values of the labels, that of the route first, with the count of each series. In order.
    pub series: Vec<(Arc<[String]>, u64)>,
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.samples()).finish()
    }
}

impl Counters {
    /// Handle on the series of a counter with these values of its labels.
    ///
    /// # Errors
    /// A declaration that no page of metrics can show: a name or label that is none, a number of values that is not that of
    /// the labels, another counter of the same name.
    pub fn counter(&self, spec: CounterSpec, route: &str, values: &[&str]) -> Result<Counter, FieldError> {
        self.declare(spec, false, route, values)
    }

    /// Handle on the series of a counter that counts billionths and is shown in whole units.
    ///
    /// # Errors
    /// As [`Self::counter`].
    pub fn counter_of_billionths(
        &self,
        spec: CounterSpec,
        route: &str,
        values: &[&str],
    ) -> Result<Counter, FieldError> {
        self.declare(spec, true, route, values)
    }

    fn declare(
        &self,
        spec: CounterSpec,
        is_billionths: bool,
        route: &str,
        values: &[&str],
    ) -> Result<Counter, FieldError> {
        let fault = |why: &str| {
            let message = format!("found the counter `{}` of a filter; {why}", spec.name);
            Err(FieldError { path: Vec::new(), message })
        };
        if let Some(why) = spec.fault() {
            return fault(why);
        }
        if values.len() != spec.labels.len() {
            return fault(&format!("expected {} values of labels, found {}", spec.labels.len(), values.len()));
        }
        let mut declared = self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        if !declared.contains_key(spec.name) && declared.len() >= MAX_COUNTERS {
            return fault(&format!("expected at most {MAX_COUNTERS} counters of filters"));
        }
        let known =
            declared.entry(spec.name).or_insert_with(|| Declared { spec, is_billionths, series: HashMap::new() });
        if known.spec != spec || known.is_billionths != is_billionths {
            return fault("expected the help, labels and unit of the other counter with this name");
        }
        let bounded = |value: &&str| value.get(..value.floor_char_boundary(MAX_VALUE)).unwrap_or_default().to_owned();
        let own: Arc<[String]> = std::iter::once(&route).chain(values).map(bounded).collect();
        if let Some(counter) = known.series.get(&own).and_then(Weak::upgrade) {
            return Ok(Counter(counter));
        }
        if known.series.len() >= MAX_SERIES {
            known.series.retain(|_, series| series.strong_count() > 0);
        }
        let own = if known.series.len() < MAX_SERIES { own } else { own.iter().map(|_| OTHER.to_owned()).collect() };
        if let Some(counter) = known.series.get(&own).and_then(Weak::upgrade) {
            return Ok(Counter(counter));
        }
        let counter = Arc::new(AtomicU64::new(0));
        known.series.insert(own, Arc::downgrade(&counter));
        Ok(Counter(counter))
    }

    /// Counters with a series that a filter holds, in the order of their names.
    pub fn samples(&self) -> Vec<CounterSample> {
        let mut declared = self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut samples: Vec<CounterSample> = Vec::new();
        for known in declared.values_mut() {
            known.series.retain(|_, series| series.strong_count() > 0);
            let read = |(own, series): (&Arc<[String]>, &Weak<AtomicU64>)| {
                Some((own.clone(), series.upgrade()?.load(Ordering::Relaxed)))
            };
            let mut series: Vec<_> = known.series.iter().filter_map(read).collect();
            series.sort();
            if !series.is_empty() {
                samples.push(CounterSample { spec: known.spec, is_billionths: known.is_billionths, series });
            }
        }
        samples.sort_by_key(|sample| sample.spec.name);
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUND: CounterSpec =
        CounterSpec { name: "spillway_filter_guard_findings", help: "Things", labels: &["pattern"] };

    #[test]
    fn a_series_keeps_its_count_while_a_filter_holds_it() {
        let counters = Counters::default();
        let first = counters.counter(FOUND, "r", &["card"]).unwrap();
        first.add(2);
        let again = counters.counter(FOUND, "r", &["card"]).unwrap();
        again.inc();
        drop(first);
        let other = counters.counter(FOUND, "q", &["card"]).unwrap();
        let own = |route: &str| -> Arc<[String]> { [route, "card"].map(str::to_owned).into() };
        assert_eq!(counters.samples()[0].series, [(own("q"), 0), (own("r"), 3)]);
        drop((again, other));
        assert!(counters.samples().is_empty());
        assert_eq!(counters.counter(FOUND, "r", &["card"]).unwrap().get(), 0);
    }

    #[test]
    fn a_declaration_that_cannot_be_shown_is_refused() {
        let counters = Counters::default();
        let spec = |name, labels| CounterSpec { name, help: "x", labels };
        let _held = counters.counter(FOUND, "r", &["card"]).unwrap();
        for (spec, values) in [
            (spec("spillway_filter_refusals", &[]), &[][..]),
            (spec("guard_x", &[]), &[]),
            (spec("spillway_filter_Guard_x", &[]), &[]),
            (spec("spillway_filter_guard_x_total", &[]), &[]),
            (spec("spillway_filter_guard_x", &["http_route"]), &["r"]),
            (spec("spillway_filter_guard_x", &["a"]), &[]),
            (spec("spillway_filter_guard_findings", &[]), &[]),
        ] {
            let error = counters.counter(spec, "r", values).unwrap_err();
            assert!(
                error.message.contains(&format!("`{}`", spec.name)) && error.message.contains("expected"),
                "{error:?}"
            );
        }
    }

    #[test]
    fn series_are_bounded() {
        let counters = Counters::default();
        let held: Vec<Counter> =
            (0..MAX_SERIES + 3).map(|n| counters.counter(FOUND, "r", &[&n.to_string()]).unwrap()).collect();
        held.iter().for_each(Counter::inc);
        let series = &counters.samples()[0].series;
        assert_eq!(series.len(), MAX_SERIES + 1);
        assert!(series.contains(&([OTHER, OTHER].map(str::to_owned).into(), 3)));
    }
}
