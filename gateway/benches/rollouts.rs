//! Cost of a rollout for one request: the draw of its version, and the observation at its end with what the controller does with
//! it. The bound is 20 microseconds.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a benchmark")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use prometheus_client::metrics::counter::Counter;
use spillway::rollout::course::Course;
use spillway::rollout::machine::Machine;
use spillway::rollout::{LiveRollout, Observation, Present, RolloutPlan, Split, Versions};
use spillway_statistics::Version;

/// Rollout with a dozen metrics, five of them quantiles.
fn plan() -> RolloutPlan {
    let written = serde_json::json!({
        "to": "v2",
        "steps": [{"weight": 10, "hold": {"requests": 1_000_000}}],
        "abortWhen": {
            "errorRate": "+0.02", "latencyP50": "1.3x", "latencyP95": "1.3x", "latencyP99": "1.5x",
            "firstTokenP50": "1.3x", "firstTokenP95": "1.3x", "spillRate": "+0.1", "refusalRate": "+0.05",
            "truncationRate": "+0.05",
        }
    });
    let written = serde_json::from_value(written).unwrap();
    let versions = Versions { stable: vec!["v1".to_owned()], candidate: &serde_json::Value::Null };
    RolloutPlan::new("r", &written, &versions).unwrap()
}

fn observation(n: u64, epoch: u32) -> Observation {
    let version = if n.is_multiple_of(10) { Version::Candidate } else { Version::Stable };
    #[allow(clippy::cast_precision_loss, reason = "a small number")]
    let seconds = 0.1 + (n % 997) as f32 / 1000.0;
    Observation {
        latency: Some(seconds * 4.0),
        first_token: Some(seconds),
        tokens_per_second: Some(40.0),
        output_tokens: Some(200.0),
        refused: Some(false),
        truncated: Some(n.is_multiple_of(50)),
        is_error: n.is_multiple_of(200),
        ..Observation::new(version, epoch, n.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }
}

fn of_a_request(c: &mut Criterion) {
    let plan = plan();
    let present = Present { split: Split::Both(0.1), epoch: 1 };
    let live = LiveRollout::new("v2", "one", true, None, present, Counter::default(), Arc::default());
    c.bench_function("rollout: read the split", |b| b.iter(|| black_box(live.present())));
    let mut n = 0;
    c.bench_function("rollout: leave an observation", |b| {
        b.iter(|| {
            n += 1;
            live.observe(black_box(observation(n, 1)));
            if n.is_multiple_of(1024) {
                live.drain(|observation| {
                    black_box(observation);
                });
            }
        });
    });
    let mut course = Course::new(Machine::new(plan.schedule.clone(), 0.0));
    course.look(1.0, None, &[]).unwrap();
    let mut n = 0;
    c.bench_function("rollout: count an observation of nine metrics", |b| {
        b.iter(|| {
            n += 1;
            let observation = observation(n, 1);
            course.concluded(observation.version);
            for (place, metric) in plan.metrics.iter().enumerate() {
                if let Some(value) = observation.value(*metric) {
                    course.observe(place, observation.version, observation.unit, value);
                }
            }
        });
    });
    let mut now = 2.0;
    c.bench_function("rollout: look, five times a second", |b| {
        b.iter(|| {
            now += 0.2;
            black_box(course.look(now, None, &[]).unwrap());
        });
    });
}

criterion_group!(benches, of_a_request);
criterion_main!(benches);
