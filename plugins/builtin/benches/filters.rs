//! The cost of filters that do much for a request. The aims: a hit of the exact cache at most 50 us, a look-up by meaning among
//! 100,000 answers at most 0.5 ms besides the vector.
//! `cargo bench -p spillway-filters --bench filters`.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a benchmark")]

use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::StatusCode;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};
use serde_json::json;
use spillway_config::FilterCatalog as _;
use spillway_filter::testing::{FilterBuilder, FixedEmbedder, TestRequest, headers, split_events, wait};
use spillway_filter::{
    AnswerHead, BuildContext, Counters, Filter, Flow, GrpcClient, HttpClient, NoClassifiers, NoGrpc, NoHttp, NoPrices,
    Pricing, Rewriter, SystemPlace,
};

/// Values of a vector of all-MiniLM-L6-v2.
const WIDTH: usize = 384;
/// Texts whose answers are kept.
const KEPT: u32 = 100_000;
/// Groups of texts on one topic.
const TOPICS: u64 = 200;

fn direction(seed: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    // The sum of uniform values is close enough to a normal one.
    (0..WIDTH).map(|_| (0..4).map(|_| random.random_range(-1.0..1.0)).sum()).collect()
}

/// Vector of a text that is a number. Texts of one topic have a cosine of about 0.5, others of about 0.1, as questions have by
/// MiniLM; a number with `~` is the same question in other words, with 0.97.
fn vector(text: &str) -> Option<Vec<f32>> {
    let number: u64 = text.trim_end_matches('~').parse().ok()?;
    let parts = [
        (0.3, direction(1)),
        (0.6, direction(1_000_000 + number % TOPICS)),
        (0.7, direction(2_000_000 + number)),
        (if text.ends_with('~') { 0.25 } else { 0.0 }, direction(3_000_000 + number)),
    ];
    let sum = |n: usize| parts.iter().map(|(share, part)| share * part.get(n).copied().unwrap_or_default()).sum();
    let sum: Vec<f32> = (0..WIDTH).map(sum).collect();
    let length = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
    Some(sum.into_iter().map(|value| value / length).collect())
}

fn chat(text: &str) -> TestRequest {
    let body = json!({
        "model": "m", "temperature": 0.2, "messages": [
            {"role": "system", "content": "Answer as the manual of the machine says. ".repeat(90)},
            {"role": "user", "content": text},
        ],
    });
    let request = TestRequest::post("/v1/chat/completions", body.to_string()).repeatable();
    request.model("m").system(SystemPlace::Messages).caller("a", "t")
}

/// Answers a request whose answer is to be kept.
fn answer(mut rewriter: Box<dyn Rewriter>, body: &str) {
    let headers = headers([("content-type", "application/json")]);
    let head = AnswerHead { status: StatusCode::OK, headers: &headers, is_spilled: false };
    assert!(rewriter.reads(&head));
    rewriter.whole(body.as_bytes()).unwrap();
}

/// Filter of a configuration, as the gateway builds it.
fn build(embedders: &FilterBuilder, name: &str, config: &serde_json::Value) -> Arc<dyn Filter> {
    let registry = spillway_filters::registry();
    assert_eq!(registry.check(name, config), []);
    let (http, grpc) = (Arc::new(NoHttp) as Arc<dyn HttpClient>, Arc::new(NoGrpc) as Arc<dyn GrpcClient>);
    let cx = BuildContext {
        route: "bench",
        prefixes: &[],
        states: embedders.states(),
        http: &http,
        grpc: &grpc,
        embedders,
        classifiers: &NoClassifiers,
        counters: &Counters::default(),
        answers: None,
        prices: &(Arc::new(NoPrices) as Arc<dyn Pricing>),
    };
    registry.build(name, config, &cx).unwrap()
}

fn cache(c: &mut Criterion) {
    let said = json!({"id": "x", "choices": [{"message": {"content": "word ".repeat(400)}}]}).to_string();
    let exact = build(&FilterBuilder::new(), "cache", &json!({"exact": true}));
    let request = chat("What does the red lamp mean?");
    let Flow::Rewrite(rewrite) = request.decide(&*exact) else { panic!("nothing is kept yet") };
    answer(rewrite.rewriter.unwrap(), &said);
    c.bench_function("cache/exact hit of 4 KB", |b| {
        b.iter(|| assert!(matches!(request.decide(&*exact), Flow::Answer(_))));
    });

    let builder = FilterBuilder::new().embedder(Arc::new(FixedEmbedder(vector)));
    let config = json!({"exact": true, "maxSize": "1GiB", "semantic": {"model": "m", "threshold": 0.95}});
    let filter = build(&builder, "cache", &config);
    for n in 0..KEPT {
        let Flow::Wait(waiting) = chat(&n.to_string()).decide(&*filter) else { panic!("it waits for a vector") };
        answer(wait(Flow::Wait(waiting)).rewrite.rewriter.unwrap(), "{}");
    }
    // The vector is part of what is measured, so its own time is printed beside.
    for (name, text) in [("a hit", "777~"), ("a miss", "12345678")] {
        c.bench_function(&format!("cache/vector of {name}"), |b| b.iter(|| vector(text)));
        let request = chat(text);
        c.bench_function(&format!("cache/by meaning among 100,000, {name}, with its vector"), |b| {
            b.iter(|| {
                let waited = wait(request.decide(&*filter));
                assert_eq!(waited.served.is_some(), name == "a hit");
            });
        });
    }
}

fn guard(c: &mut Criterion) {
    let kinds = ["jwt", "apiKey", "email", "iban", "card", "ipAddress", "phone"];
    let config = json!({"patterns": kinds.map(|kind| json!({"kind": kind})), "on": ["answer"]});
    let filter = build(&FilterBuilder::new(), "guard", &config);
    let stream: String = (0..200)
        .map(|n| {
            let delta =
                json!({"choices": [{"index": 0, "delta": {"content": format!(" word{n}")}, "finish_reason": null}]});
            format!("data: {delta}\n\n")
        })
        .collect();
    let request = chat("hello");
    let headers = headers([("content-type", "text/event-stream")]);
    c.bench_function("guard/stream of 200 events", |b| {
        b.iter_batched(
            || match request.decide(&*filter) {
                Flow::Rewrite(rewrite) => rewrite.rewriter.unwrap(),
                _ => panic!("the guard reads answers"),
            },
            |mut rewriter| {
                assert!(rewriter.reads(&AnswerHead { status: StatusCode::OK, headers: &headers, is_spilled: false }));
                split_events(&stream, |event| drop(rewriter.event(event)));
                rewriter.end().unwrap().len()
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, cache, guard);
criterion_main!(benches);
