//! Cost of an expression for a request: conversion of what it reads, and evaluation. The aim is at most 1 us for a
//! typical one, which reads two names.
//! `cargo bench -p spillway-cel --bench expression`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::net::IpAddr;

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue};
use spillway_cel::{Expression, Scope, Seen, Served};
use spillway_filter::{Caller, Fields};

fn expressions(c: &mut Criterion) {
    let mut headers = HeaderMap::new();
    for (name, value) in [("host", "api.example.com"), ("x-beta", "1"), ("accept", "*/*"), ("user-agent", "bench")] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let headers = Fields::from(headers);
    let scopes = ["chat.write".to_owned()];
    let claims = serde_json::json!({"sub": "anna", "org": {"id": "research"}});
    let seen = Seen {
        method: "POST",
        path: "/v1/chat/completions",
        query: "",
        headers: &headers,
        client: IpAddr::from([127, 0, 0, 1]),
        route: "chat",
        model: Some("gpt-4o"),
        body: Some(br#"{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}]}"#),
        caller: Some(Caller { consumer: "acme", tenant: "acme", scopes: &scopes, claims: &claims }),
        secure: true,
        now: None,
        served: Served::default(),
        prompt: None,
        hides: None,
    };
    for (name, text) in [
        ("method", "request.method == 'POST'"),
        ("header", "request.headers['x-beta'] == '1'"),
        ("typical", "consumer.tenant == 'acme' && request.model.startsWith('gpt-')"),
        ("claim", "claims.org.id == 'research'"),
        ("body", "size(request.body.messages) <= 100"),
    ] {
        let expression = Expression::condition(text, Scope::Request).unwrap();
        assert!(expression.holds(&seen).unwrap(), "{text}");
        c.bench_function(name, |b| b.iter(|| expression.holds(&seen)));
    }
}

criterion_group!(benches, expressions);
criterion_main!(benches);
