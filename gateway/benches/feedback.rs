//! The cost of remembering a request for labels, on the path of every model call where `feedback` is configured, and that of a
//! label. `cargo bench -p spillway --bench feedback`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use spillway::commit_steps::CommitSteps;
use spillway::feedback::{Feedback, Ids, NewLabel, Owner, RouteLabels, Targets};

/// Requests that are remembered: the default.
const REQUESTS: u32 = 100_000;

fn feedback(has_scopes: bool) -> (Arc<Feedback>, Arc<RouteLabels>) {
    let (feedback, steps, mut targets) = (Arc::new(Feedback::default()), CommitSteps::default(), Targets::default());
    let labels = feedback.route(&mut targets, "chat", ["stable", "candidate"].into_iter(), has_scopes);
    feedback.commit(targets, REQUESTS, Duration::from_secs(3600), &steps);
    steps.run();
    (feedback, labels)
}

/// Ids of the length of those that gateway and servers make.
fn ids() -> Vec<(String, String)> {
    let id = |n: u32| (format!("{n:08x}-aaaa-4bbb-8ccc-dddddddddddd"), format!("chatcmpl-{n:032x}"));
    (0..REQUESTS + REQUESTS / 4).map(id).collect()
}

fn remember(labels: &RouteLabels, (request, response): &(String, String), now: u64) {
    let ids = Ids { consumer: Some(7), request: request.as_bytes(), responses: [Some(response), None] };
    labels.remember("candidate", ids, 42, now);
}

fn benches(c: &mut Criterion) {
    let ids = ids();
    for (name, has_scopes) in [("a request is remembered", false), ("a request is remembered, with scopes", true)] {
        let (_feedback, labels) = feedback(has_scopes);
        ids.iter().for_each(|ids| remember(&labels, ids, 0));
        let mut next = ids.iter().cycle();
        c.bench_function(name, |b| b.iter(|| remember(&labels, black_box(next.next().unwrap()), 1)));
    }
    let (feedback, labels) = feedback(false);
    let mut n = 0_usize;
    c.bench_function("a request is remembered and labelled", |b| {
        b.iter(|| {
            n += 1;
            let ids = &ids[n % ids.len()];
            remember(&labels, ids, 1);
            let label = NewLabel { score: Some(1.0), ..NewLabel::default() };
            feedback.label(black_box(&ids.1), Owner::Of(Some(7)), 7, &label, 2).unwrap()
        });
    });
}

criterion_group!(all, benches);
criterion_main!(all);
