//! Counters of filters at a scrape, by the names that the filters have declared.

use std::fmt;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use spillway_filter::CounterSample;

/// Series of one counter.
#[derive(Debug)]
struct Sampled(CounterSample);

impl EncodeMetric for Sampled {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), fmt::Error> {
        let names = || std::iter::once("http_route").chain(self.0.spec.labels.iter().copied());
        for (values, count) in &self.0.series {
            let labels: Vec<(&str, &str)> = names().zip(values.iter().map(String::as_str)).collect();
            let mut series = encoder.encode_family(&labels)?;
            if self.0.is_billionths {
                #[allow(clippy::cast_precision_loss, reason = "2^53 billionths are nine million dollars")]
                let units = *count as f64 / 1e9;
                series.encode_counter::<NoLabelSet, _, u64>(&units, None)?;
            } else {
                series.encode_counter::<NoLabelSet, _, u64>(count, None)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// Registers the counters of filters.
pub(super) fn register_filters(registry: &mut Registry, samples: Vec<CounterSample>) {
    for sample in samples {
        registry.register(sample.spec.name, sample.spec.help, Sampled(sample));
    }
}
