//! The cost of one pick with its slot: among ten endpoints and among a thousand, by each policy, with the signals that a
//! backend may have. `cargo bench -p spillway --bench picking`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a measurement"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use spillway_config::schema::PolicyName;
use support::{Class, LoadReport, PickInputs, Slot, simulation};

#[allow(dead_code, reason = "only its endpoints are used here")]
mod support;

const NAMES: [PolicyName; 5] =
    [PolicyName::RoundRobin, PolicyName::LeastRequest, PolicyName::PeakEwma, PolicyName::Hash, PolicyName::QueueDepth];

fn picking(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick and give back");
    let capacity = serde_json::json!({"maxInFlight": 64, "adaptive": {"minLimit": 64}, "queueDepth": {"max": 4}, "kvCache": {"max": 0.9}});
    for count in [10, 1_000] {
        for name in NAMES {
            let servers = vec![simulation::Server { places: 8, speed: 1.0 }; count];
            let mut endpoints = simulation::endpoints_of(&servers);
            for endpoint in &mut endpoints {
                let own = Arc::get_mut(endpoint).unwrap();
                own.signals = spillway::balancing::signals(&serde_json::from_value(capacity.clone()).unwrap()).into();
                own.answered_in(Class::Head, Duration::from_millis(20), 1, 1);
                own.reported(&LoadReport { waiting: Some(0), kv_cache: Some(0.5) }, 1);
            }
            // Some are busy, so that there is something to compare.
            let busy: Vec<Slot> =
                endpoints.iter().step_by(3).map(|endpoint| endpoint.state.try_acquire(u32::MAX).unwrap()).collect();
            let balancer = simulation::balancer_for(endpoints, name, 1);
            let mut n = 0u64;
            group.bench_function(BenchmarkId::new(name.as_str(), count), |b| {
                b.iter(|| {
                    n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    let ask = PickInputs { now: 100 + (n >> 60), random: n, key: Some(n), tried: &[], only: None };
                    black_box(balancer.take(&ask).is_some())
                });
            });
            drop(busy);
        }
    }
    group.finish();
}

criterion_group!(benches, picking);
criterion_main!(benches);
