//! Histograms of durations, whose buckets lead to traces (exemplars of OpenMetrics). An observation takes no lock; the exemplar
//! of a request whose trace is sent takes one. The client library has no histogram of which both hold.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use opentelemetry::trace::TraceId;
use parking_lot::{Mutex, RwLock};

use super::Labels;
use crate::clock::unix_fraction;

/// Histogram of one series. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Latency(Arc<LatencyBuckets>);

#[derive(Debug)]
struct LatencyBuckets {
    bounds: &'static [f64],
    /// Observations of each bucket alone.
    counts: Box<[AtomicU64]>,
    /// Sum of all observations, as the bits of a float.
    sum: AtomicU64,
    /// Newest exemplar of each bucket, once there is one.
    exemplars: Mutex<Vec<Option<Exemplar>>>,
}

/// Observation whose trace can be looked up.
#[derive(Debug, Clone, Copy)]
struct Exemplar {
    trace: TraceId,
    seconds: f64,
    at: SystemTime,
}

impl Latency {
    fn new(bounds: &'static [f64]) -> Self {
        let counts = std::iter::repeat_with(AtomicU64::default).take(bounds.len() + 1).collect();
        Self(Arc::new(LatencyBuckets { bounds, counts, sum: AtomicU64::new(0), exemplars: Mutex::default() }))
    }

    /// Records a duration, with the trace of its request if that is sent.
    pub(super) fn observe(&self, seconds: f64, trace: Option<TraceId>) {
        let this = &*self.0;
        // Most durations are short, and there are some fourteen bounds.
        let bucket = this.bounds.iter().position(|bound| seconds <= *bound).unwrap_or(this.bounds.len());
        if let Some(count) = this.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let mut sum = this.sum.load(Ordering::Relaxed);
        loop {
            let more = (f64::from_bits(sum) + seconds).to_bits();
            match this.sum.compare_exchange_weak(sum, more, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => sum = now,
            }
        }
        if let Some(trace) = trace {
            this.note(bucket, Exemplar { trace, seconds, at: SystemTime::now() });
        }
    }
}

impl LatencyBuckets {
    #[cold]
    fn note(&self, bucket: usize, exemplar: Exemplar) {
        let mut exemplars = self.exemplars.lock();
        if exemplars.is_empty() {
            exemplars.resize(self.counts.len(), None);
        }
        if let Some(place) = exemplars.get_mut(bucket) {
            *place = Some(exemplar);
        }
    }
}

/// Series of a metric of durations, by their labels.
pub(super) struct LatencyHistograms {
    name: &'static str,
    help: &'static str,
    /// Upper bounds of the buckets in seconds, ascending; a last bucket has none.
    bounds: &'static [f64],
    series: RwLock<HashMap<Labels, Latency>>,
}

impl LatencyHistograms {
    /// Metric without series.
    pub(super) fn new(name: &'static str, help: &'static str, bounds: &'static [f64]) -> Self {
        Self { name, help, bounds, series: RwLock::default() }
    }

    /// Series with these labels.
    pub(super) fn get_or_create_owned(&self, labels: &Labels) -> Latency {
        if let Some(known) = self.series.read().get(labels) {
            return known.clone();
        }
        self.series.write().entry(labels.clone()).or_insert_with(|| Latency::new(self.bounds)).clone()
    }

    /// Removes the series with these labels.
    pub(super) fn remove(&self, labels: &Labels) {
        self.series.write().remove(labels);
    }

    /// Appends the metric in OpenMetrics text, with exemplars or without; writes nothing where it has no series.
    pub(super) fn encode(&self, out: &mut String, with_exemplars: bool) -> std::fmt::Result {
        let series = self.series.read();
        if series.is_empty() {
            return Ok(());
        }
        let Self { name, help, .. } = self;
        writeln!(out, "# HELP {name} {help}.\n# TYPE {name} histogram")?;
        let mut text = String::new();
        for (labels, latency) in series.iter() {
            text.clear();
            for (name, value) in labels {
                let comma = if text.is_empty() { "" } else { "," };
                write!(text, "{comma}{name}=\"{}\"", Escaped(value))?;
            }
            encode(out, name, &text, &latency.0, with_exemplars)?;
        }
        Ok(())
    }
}

/// Writes one series, whose labels are `labels`.
fn encode(
    out: &mut String,
    name: &str,
    labels: &str,
    buckets: &LatencyBuckets,
    with_exemplars: bool,
) -> std::fmt::Result {
    let counts: Vec<u64> = buckets.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    let sum = f64::from_bits(buckets.sum.load(Ordering::Relaxed));
    writeln!(out, "{name}_sum{{{labels}}} {sum:?}")?;
    writeln!(out, "{name}_count{{{labels}}} {}", counts.iter().sum::<u64>())?;
    let exemplars = if with_exemplars { buckets.exemplars.lock().clone() } else { Vec::new() };
    let mut all = 0;
    for (place, count) in counts.iter().enumerate() {
        all += count;
        match buckets.bounds.get(place) {
            Some(bound) => write!(out, "{name}_bucket{{le=\"{bound:?}\",{labels}}} {all}")?,
            None => write!(out, "{name}_bucket{{le=\"+Inf\",{labels}}} {all}")?,
        }
        if let Some(exemplar) = exemplars.get(place).copied().flatten() {
            let Exemplar { trace, seconds, at } = exemplar;
            write!(out, " # {{trace_id=\"{trace}\"}} {seconds:?} {:.3}", unix_fraction(at))?;
        }
        out.push('\n');
    }
    Ok(())
}

/// Value of a label, escaped as OpenMetrics asks.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// Declares metrics of durations: field, metric name and buckets. The doc of a field is the help text of its metric.
macro_rules! latencies {
    (
        $(#[$meta:meta])*
        struct $name:ident {
            $(
                #[doc = $help:literal]
                $field:ident: LatencyHistograms = $metric:literal, $bounds:expr;
            )+
        }
    ) => {
        $(#[$meta])*
        struct $name {
            $(#[doc = $help] $field: LatencyHistograms,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: LatencyHistograms::new($metric, $help.trim_ascii(), $bounds),)+ }
            }
        }

        impl $name {
            /// Appends all of them in OpenMetrics text.
            fn encode(&self, out: &mut String, with_exemplars: bool) -> std::fmt::Result {
                $(self.$field.encode(out, with_exemplars)?;)+
                Ok(())
            }
        }
    };
}
pub(super) use latencies;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_lead_to_the_newest_trace_that_is_sent() {
        let family = LatencyHistograms::new("test_seconds", "Time of a test", &[0.5, 1.0]);
        let mut text = String::new();
        family.encode(&mut text, true).unwrap();
        assert_eq!(text, "");
        let labels: Labels = vec![("route", "a\"b\\c\nd".to_owned()), ("status", "200".to_owned())];
        let series = family.get_or_create_owned(&labels);
        let trace = |n: u8| Some(TraceId::from_bytes([n; 16]));
        series.observe(0.5, None);
        series.observe(0.75, trace(1));
        series.observe(1.0, trace(2));
        family.get_or_create_owned(&labels).observe(7.0, None);
        family.encode(&mut text, true).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let own = r#"route="a\"b\\c\nd",status="200""#;
        assert_eq!(
            lines[..5],
            [
                "# HELP test_seconds Time of a test.",
                "# TYPE test_seconds histogram",
                &format!("test_seconds_sum{{{own}}} 9.25"),
                &format!("test_seconds_count{{{own}}} 4"),
                &format!("test_seconds_bucket{{le=\"0.5\",{own}}} 1"),
            ]
        );
        let second = format!("test_seconds_bucket{{le=\"1.0\",{own}}} 3 # {{trace_id=\"{}\"}} 1.0 ", "02".repeat(16));
        assert!(lines[5].starts_with(&second), "{text}");
        assert_eq!(lines[6], format!("test_seconds_bucket{{le=\"+Inf\",{own}}} 4"));
        text.clear();
        family.encode(&mut text, false).unwrap();
        assert!(!text.contains('#') || text.matches('#').count() == 2, "{text}");
        family.remove(&labels);
        text.clear();
        family.encode(&mut text, true).unwrap();
        assert_eq!(text, "");
    }
}
