//! Cost of one observation per metric and of one look, for seven metrics.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use spillway_statistics::{Kind, Metric, Plan, Rollout, Version};

fn rollout() -> Rollout {
    let metric = |name: &str, kind, threshold: &str| Metric {
        name: name.to_owned(),
        kind,
        threshold: threshold.parse().unwrap(),
    };
    let mean = Kind::Mean { cap: Some(100.0) };
    let p95 = Kind::Quantile { level: 0.95 };
    let metrics = vec![
        metric("errorRate", Kind::Share, "+0.02"),
        metric("firstTokenP95", p95, "1.3x"),
        metric("latencyP95", p95, "1.3x"),
        metric("tokensPerSecond", mean, "0.8x"),
        metric("costPerRequest", mean, "1.5x"),
        metric("feedback", mean, "-0.05"),
        metric("refusals", Kind::Share, "+0.02"),
    ];
    Rollout::new(Plan::new(metrics), 0.1).unwrap()
}

fn observe(rollout: &mut Rollout, request: u64) {
    let version = if request.is_multiple_of(10) { Version::Candidate } else { Version::Stable };
    let value = 0.5 + (request * 7919 % 997) as f64 / 997.0;
    for metric in 0..7 {
        let shown = if metric == 0 || metric == 6 { f64::from(u8::from(value > 1.49)) } else { value };
        rollout.observe(metric, version, request, shown);
    }
}

fn benches(criterion: &mut Criterion) {
    let mut rollout = rollout();
    for request in 0..20_000 {
        observe(&mut rollout, request);
    }
    let mut request = 0;
    criterion.bench_function("observe seven metrics of a request", |bencher| {
        bencher.iter(|| {
            request += 1;
            observe(black_box(&mut rollout), request);
        });
    });
    criterion.bench_function("is_worse, seven metrics", |bencher| bencher.iter(|| black_box(&rollout).is_worse()));
    criterion.bench_function("judge, seven metrics", |bencher| bencher.iter(|| black_box(&rollout).judge()));
}

criterion_group!(all, benches);
criterion_main!(all);
