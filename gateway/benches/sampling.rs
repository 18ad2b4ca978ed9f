//! Cost of `routes[].quality` on the path of a request: the draw, and for a request that is drawn the copy of the beginning of its
//! answer and the handing over. `cargo bench -p spillway --bench sampling`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a program that stops where something is not as it must be")]

use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{StatusCode, header};
use spillway::notify::Notifier;
use spillway::protocol::Operation;
use spillway::quality::{Ended, Plan, Quality, Reference, Rules, Sampling, Tap};
use spillway::telemetry::{Metrics, Span};
use spillway_filter::Fields;

fn plan(share: f64) -> Plan {
    let rules = Rules {
        reference: Reference::Window(604_800.0),
        inputs: 0.2,
        outputs: 0.2,
        targets: vec!["b".into()],
        embedding: None,
    };
    Plan { route: "chat".to_owned(), share, rules, model: None, probes: None, keeping: None }
}

/// Request with a prompt of 2 KiB.
fn request() -> Bytes {
    let content = "How is the weather today in the city by the river? ".repeat(40);
    format!("{{\"model\":\"m\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"{content}\"}}]}}").into()
}

/// Event of an answer, of 300 bytes as OpenAI writes it.
fn event() -> Bytes {
    let pad = "x".repeat(120);
    format!("data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" word\"}},\"finish_reason\":null}}],\"obfuscation\":\"{pad}\"}}\n\n").into()
}

fn sampled(sampling: &Arc<Sampling>, headers: &Fields, body: &Bytes, event: &Bytes, events: usize) {
    let mut tap = Tap::new(sampling.clone(), headers);
    tap.head(StatusCode::OK, headers);
    for _ in 0..events {
        tap.part(event);
    }
    tap.end(Ended {
        served_by: "b",
        caller: 1,
        operation: Operation::Chat,
        is_grpc: false,
        body: Some(body),
        is_whole: true,
        prompt_tokens: Some(500),
        completion_tokens: Some(u64::try_from(events).unwrap()),
        finish: Some("stop"),
        may_be_kept: false,
        span: Span::none(),
    });
}

fn path(c: &mut Criterion) {
    let quality = Quality::new(Arc::new(Notifier::new(Arc::new(Metrics::new()))));
    let (rare, all) = (quality.sampling(&plan(0.1)), quality.sampling(&plan(1.0)));
    let folder = tempfile::tempdir().unwrap();
    quality.adopt(vec![plan(1.0)], folder.path().to_owned());
    let mut headers = Fields::default();
    headers.insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
    let (body, event) = (request(), event());
    c.bench_function("draw", |b| b.iter(|| rare.draws()));
    for events in [1, 40, 400] {
        let name = format!("sampled answer of {events} events");
        c.bench_function(&name, |b| b.iter(|| sampled(&all, &headers, &body, &event, events)));
    }
}

criterion_group!(benches, path);
criterion_main!(benches);
