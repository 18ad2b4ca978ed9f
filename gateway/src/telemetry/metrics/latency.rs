//! Histograms of durations, whose buckets lead to traces (exemplars of OpenMetrics). An observation takes no lock; the exemplar
//! of a request whose trace is sent takes one. The client library has no histogram of which both hold.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::trace::TraceId;
use parking_lot::{Mutex, RwLock};

use super::Labels;
use super::histogram::{BUCKETS, Histogram, Scale};
use crate::clock::unix_fraction;

/// Histogram of one series. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Latency(Arc<LatencyBuckets>);

#[derive(Debug)]
struct LatencyBuckets {
    counts: Histogram,
    /// Newest exemplar of each bucket, once there is one.
    exemplars: Mutex<[Option<Exemplar>; BUCKETS]>,
}

/// Observation whose trace can be looked up.
#[derive(Debug, Clone, Copy)]
struct Exemplar {
    trace: TraceId,
    seconds: f64,
    at: SystemTime,
}

impl Latency {
    fn new(scale: &'static Scale) -> Self {
        Self(Arc::new(LatencyBuckets { counts: Histogram::new(scale), exemplars: Mutex::default() }))
    }

    /// Records a duration, with the trace of its request if that is sent.
    pub(super) fn observe(&self, seconds: f64, trace: Option<TraceId>) {
        let bucket = self.0.counts.observe(seconds);
        if let Some(trace) = trace {
            self.0.note(bucket, Exemplar { trace, seconds, at: SystemTime::now() });
        }
    }

    /// Durations in each bucket.
    pub(super) fn counts(&self) -> [u64; BUCKETS] {
        self.0.counts.counts()
    }
}

impl LatencyBuckets {
    #[cold]
    fn note(&self, bucket: usize, exemplar: Exemplar) {
        if let Some(place) = self.exemplars.lock().get_mut(bucket) {
            *place = Some(exemplar);
        }
    }
}

/// Series of a metric of durations, by their labels.
pub(super) struct LatencyHistograms {
    name: &'static str,
    help: &'static str,
    scale: &'static Scale,
    series: RwLock<HashMap<Labels, Latency>>,
}

impl LatencyHistograms {
    /// Metric without series.
    pub(super) fn new(name: &'static str, help: &'static str, scale: &'static Scale) -> Self {
        Self { name, help, scale, series: RwLock::default() }
    }

    /// Series with these labels.
    pub(super) fn get_or_create_owned(&self, labels: &Labels) -> Latency {
        if let Some(known) = self.series.read().get(labels) {
            return known.clone();
        }
        self.series.write().entry(labels.clone()).or_insert_with(|| Latency::new(self.scale)).clone()
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
    let counts = buckets.counts.counts();
    writeln!(out, "{name}_sum{{{labels}}} {:?}", buckets.counts.total())?;
    writeln!(out, "{name}_count{{{labels}}} {}", counts.iter().sum::<u64>())?;
    let exemplars = if with_exemplars { *buckets.exemplars.lock() } else { Default::default() };
    let mut all = 0;
    for (place, count) in counts.iter().enumerate() {
        all += count;
        match buckets.counts.bounds().get(place) {
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
    use super::super::histogram::HTTP_SECONDS;
    use super::*;

    #[test]
    fn buckets_lead_to_the_newest_trace_that_is_sent() {
        let family = LatencyHistograms::new("test_seconds", "Time of a test", &HTTP_SECONDS);
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
                &format!("test_seconds_bucket{{le=\"0.005\",{own}}} 0"),
            ]
        );
        let line = |bound: &str| lines.iter().find(|line| line.contains(&format!("le=\"{bound}\""))).unwrap();
        assert_eq!(**line("0.5"), format!("test_seconds_bucket{{le=\"0.5\",{own}}} 1"));
        let second = format!("test_seconds_bucket{{le=\"1.0\",{own}}} 3 # {{trace_id=\"{}\"}} 1.0 ", "02".repeat(16));
        assert!(line("1.0").starts_with(&second), "{text}");
        assert_eq!(**line("+Inf"), format!("test_seconds_bucket{{le=\"+Inf\",{own}}} 4"));
        text.clear();
        family.encode(&mut text, false).unwrap();
        assert!(!text.contains('#') || text.matches('#').count() == 2, "{text}");
        family.remove(&labels);
        text.clear();
        family.encode(&mut text, true).unwrap();
        assert_eq!(text, "");
    }
}
