//! The cost of identifying a caller by an API key or a cached token, and of its limits: a rate of requests and one of tokens,
//! reserved, settled and reported. `cargo bench -p spillway --bench callers`.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a benchmark")]

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::{Criterion, criterion_group, criterion_main};
use futures::FutureExt;
use http::{HeaderName, HeaderValue, Method};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;
use sha2::{Digest, Sha256};
use spillway::clock::unix_now;
use spillway::commit_steps::CommitSteps;
use spillway::identity::{Authenticator, Identity, IdentityDeps};
use spillway::limits::{Estimate, Ledger, Limits, ReservationRequest, Subject, Used, reserve};
use spillway::telemetry::Metrics;
use spillway_config::schema::RouteAuthentication;
use spillway_filter::Fields;
use spillway_filter::{Caller, HttpClient, NoHttp, RequestView, SharedStates};

/// Consumers of the file.
const CONSUMERS: usize = 1000;

fn authenticator(jwks: &std::path::Path) -> Authenticator {
    // More than can be asked for, so that every round takes.
    let limits = json!({"requests": "1000000000/s", "tokens": "1000000000/s"});
    let consumers: Vec<_> = (0..CONSUMERS)
        .map(|n| {
            let digest = hex::encode(Sha256::digest(format!("sk-{n}")));
            let jwt = json!({"issuer": "https://id.example", "subject": format!("svc-{n}")});
            json!({"name": format!("c{n}"), "keys": [{"sha256": digest}], "jwt": jwt, "limits": limits})
        })
        .map(|consumer| serde_json::from_value(consumer).unwrap())
        .collect();
    let issuer = json!({"issuer": "https://id.example", "audiences": ["spillway"], "jwks": {"file": jwks}});
    let authentication = serde_json::from_value(json!({"jwt": [issuer]})).unwrap();
    let metrics = Arc::new(Metrics::new());
    let all = Limits::new(65_536, metrics.clone());
    let http: Arc<dyn HttpClient> = Arc::new(NoHttp);
    let states = SharedStates::default();
    let commit_steps = CommitSteps::default();
    let deps =
        IdentityDeps { limits: &all, states: &states, http: &http, metrics: &metrics, commit_steps: &commit_steps };
    let made = Authenticator::new(&authentication, &consumers, &[], None, deps).unwrap();
    commit_steps.run();
    made
}

fn identify(authenticator: &Authenticator, headers: &Fields) -> Identity {
    let address = IpAddr::from([127, 0, 0, 1]);
    let identified = authenticator.identify(headers, address, unix_now(), RouteAuthentication::Required);
    identified.now_or_never().unwrap().unwrap_or_else(|e| panic!("{}", e.reason.as_str())).unwrap()
}

fn chain(authenticator: &Authenticator, headers: &Fields) -> u64 {
    let identity = identify(authenticator, headers);
    let claims = serde_json::Value::Null;
    let caller =
        Caller { consumer: &identity.consumer.name, tenant: &identity.consumer.tenant, scopes: &[], claims: &claims };
    let view = RequestView {
        method: &Method::POST,
        path: "/v1/chat/completions",
        host: None,
        secure: false,
        headers,
        client: IpAddr::from([127, 0, 0, 1]),
        caller: Some(caller),
        route: "chat",
        query: "",
        is_repeatable: false,
        system: None,
        prompt_tokens: None,
        model: Some("m"),
        body: None,
    };
    let subject = Subject { view: &view, credential: Some(identity.credential) };
    let expected = Some((Estimate { input: 100, output: 500 }, 0));
    let mut ledger = Ledger::default();
    let wanted: Vec<ReservationRequest<'_>> =
        identity.consumer.rules.iter().filter_map(|rule| rule.reservation(subject, expected)).collect();
    reserve(&wanted, &mut ledger).now_or_never().unwrap().unwrap();
    let shown = ledger.shown().map(|shown| shown.remaining).sum();
    ledger.settle(Used { input: 90, output: 300, ..Used::default() });
    shown
}

fn benchmarks(c: &mut Criterion) {
    let random = ring::rand::SystemRandom::new();
    let made = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let signer = Ed25519KeyPair::from_pkcs8(made.as_ref()).unwrap();
    let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let folder = tempfile::tempdir().unwrap();
    let jwks = folder.path().join("jwks.json");
    let key = json!({"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": b64(signer.public_key().as_ref())});
    std::fs::write(&jwks, json!({"keys": [key]}).to_string()).unwrap();
    let claims = json!({
        "iss": "https://id.example", "aud": "spillway", "sub": "svc-7", "exp": unix_now() + 36_000,
        "scope": "chat.write models.read", "org": {"id": "north", "name": "The Northern Company"},
    });
    let message = format!(
        "{}.{}",
        b64(json!({"alg": "EdDSA", "kid": "k"}).to_string().as_bytes()),
        b64(claims.to_string().as_bytes())
    );
    let token = format!("Bearer {message}.{}", b64(signer.sign(message.as_bytes()).as_ref()));

    let authenticator = authenticator(&jwks);
    let with = |name: &'static str, value: &str| {
        let mut headers = Fields::default();
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        headers
    };
    let (key, token) = (with("x-api-key", "sk-7"), with("authorization", &token));
    c.bench_function("key", |b| b.iter(|| identify(&authenticator, &key)));
    c.bench_function("token, remembered", |b| b.iter(|| identify(&authenticator, &token)));
    c.bench_function("key + limits of requests and tokens", |b| b.iter(|| chain(&authenticator, &key)));
    c.bench_function("token, remembered + limits of requests and tokens", |b| b.iter(|| chain(&authenticator, &token)));
}

criterion_group!(callers, benchmarks);
criterion_main!(callers);
