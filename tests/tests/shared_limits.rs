//! Limits shared by three gateways through a Redis server that hangs, dies and returns under load.

#![allow(clippy::cast_precision_loss, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use spillway_tests::{Gateway, Redis, Upstream, eventually, new_key};

fn yaml(upstream: &Upstream, digest: &str, port: u16, limits: &str) -> String {
    format!(
        "consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}], limits: {limits}}}]
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}]
state: {{limits: {{redis: {{url: \"redis://127.0.0.1:{port}\", timeout: 500ms}}}}}}
",
        upstream.url()
    )
}

async fn three(yaml: &str) -> Vec<Gateway> {
    let mut gateways = Vec::new();
    for _ in 0..3 {
        gateways.push(Gateway::start(yaml).await);
    }
    for gateway in &gateways {
        reached(gateway).await;
    }
    gateways
}

async fn reached(gateway: &Gateway) {
    eventually("the store is reached and all three are seen", || async {
        let up = gateway.metric("spillway_limit_store_up").await == 1.0;
        (up && gateway.metric("spillway_limit_store_gateways").await == 3.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn three_gateways_hold_one_limit_and_outlive_their_store() {
    const BURST: u32 = 300;
    let mut redis = Redis::start();
    let upstream = Upstream::fixed(200, "{}").await;
    let (key, digest) = new_key();
    // A unit is regained in ten minutes: none is while this runs.
    let yaml = yaml(&upstream, &digest, redis.port, &format!("{{requests: 6/h, burst: {BURST}, concurrency: 64}}"));
    let gateways = three(&yaml).await;
    let passed = Arc::new(AtomicU32::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut load = Vec::new();
    for gateway in &gateways {
        for _ in 0..2 {
            let (client, key, passed, stop) = (gateway.client(), key.clone(), passed.clone(), stop.clone());
            load.push(tokio::spawn(async move {
                let mut longest = Duration::ZERO;
                while !stop.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    let answer = client.chat("m", &[("x-api-key", &key)]).await;
                    longest = longest.max(started.elapsed());
                    match answer.status.as_u16() {
                        200 => passed.fetch_add(1, Ordering::Relaxed),
                        429 => passed.load(Ordering::Relaxed),
                        other => panic!("{other}: {}", answer.text()),
                    };
                }
                longest
            }));
        }
    }
    eventually("the limit is reached", || async { (passed.load(Ordering::Relaxed) >= BURST).then_some(()) }).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let exact = passed.load(Ordering::Relaxed);
    assert!(f64::from(exact.abs_diff(BURST)) <= f64::from(BURST) * 0.02, "{exact} of {BURST} passed");

    // The store dies: requests are still answered, and at most the limit once more passes.
    redis.kill();
    eventually("the loss is noticed", || async {
        let up =
            gateways[0].metric("spillway_limit_store_up").await + gateways[1].metric("spillway_limit_store_up").await;
        (up + gateways[2].metric("spillway_limit_store_up").await == 0.0).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let without = passed.load(Ordering::Relaxed) - exact;
    assert!(without <= BURST, "{without} passed while the store was away");

    // It returns empty: from then on the limit is exact again.
    let before = passed.load(Ordering::Relaxed);
    redis.restart();
    for gateway in &gateways {
        reached(gateway).await;
    }
    eventually("the limit is reached again", || async {
        (passed.load(Ordering::Relaxed) >= before + BURST - BURST / 50).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let again = passed.load(Ordering::Relaxed) - before;
    assert!(again <= BURST + without + BURST / 50, "{again} passed after it came back");

    // It hangs: only requests that had asked already wait for it, and not for long.
    redis.signal("STOP");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    redis.signal("CONT");
    stop.store(true, Ordering::Relaxed);
    for worker in load {
        let longest = worker.await.unwrap();
        assert!(longest < Duration::from_secs(20), "a bound for a stall, not a measure: {longest:?}");
    }
}

#[tokio::test]
async fn tokens_and_places_are_shared_and_given_back() {
    let redis = Redis::start();
    let usage = r#"{"id":"c","model":"m","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":40}}"#;
    let upstream = Upstream::start(move |_| async move {
        Some(spillway_tests::reply(200, &[("content-type", "application/json")], usage))
    })
    .await;
    let (key, digest) = new_key();
    let limits = "{tokens: 1000/d, concurrency: 1, budget: {tokens: 400, per: month}}";
    let gateways = three(&yaml(&upstream, &digest, redis.port, limits)).await;
    // Each reserves some and uses 50; each gateway sees the use of the others.
    for n in 0..6u64 {
        let gateway = &gateways[usize::try_from(n % 3).unwrap()];
        let answer = eventually("the place of the one before is free", || async {
            let answer = gateway.client().chat("m", &[("x-api-key", &key)]).await;
            (answer.status == 200).then_some(answer)
        })
        .await;
        let left: u64 = answer.header("x-ratelimit-remaining-tokens").parse().unwrap();
        // Its reservation still counts (3 of the prompt, 4 of the answer).
        assert_eq!(left, 1000 - 50 * n - 7, "request {n}");
    }
    // 300 of 400 are spent. A single gateway has seen far less; together they refuse.
    let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 200});
    let refused = eventually("the budget refuses", || async {
        let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
        let answer = gateways[0].client().post("/v1/chat/completions", &headers, body.to_string()).await;
        answer.text().contains("insufficient_quota").then_some(answer)
    })
    .await;
    assert_eq!(refused.status, 429);
}

#[tokio::test]
async fn a_store_that_an_edit_takes_away_is_not_told_as_there() {
    let redis = Redis::start();
    let upstream = Upstream::fixed(200, "{}").await;
    let (_, digest) = new_key();
    let with = yaml(&upstream, &digest, redis.port, "{requests: 5/s}");
    let gateway = Gateway::start(&with).await;
    gateway.metric_becomes("spillway_limit_store_up", 1.0).await;
    let without: String =
        with.lines().filter(|line| !line.starts_with("state:")).map(|line| format!("{line}\n")).collect();
    let listeners = "listeners: [{address: \"127.0.0.1:0\"}]\n";
    std::fs::write(gateway.config(), spillway_tests::whole(&format!("{listeners}{without}"))).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    gateway.metric_becomes("spillway_limit_store_up", 0.0).await;
    gateway.metric_becomes("spillway_limit_store_gateways", 0.0).await;
}

#[tokio::test]
async fn a_store_is_reached_over_tls_only_where_it_is_who_it_must_be() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, stranger) = (spillway_tests::Authority::default(), spillway_tests::Authority::default());
    authority.server(&["127.0.0.1"]).write(folder.path(), "redis");
    let redis = Redis::start_secure(folder.path());
    let upstream = Upstream::fixed(200, "{}").await;
    let (key, digest) = new_key();
    let plain = yaml(&upstream, &digest, redis.port, "{requests: 6/h, burst: 3}");
    let secure = plain.replace("redis://", "rediss://").replace("timeout: 500ms", "timeout: 500ms, caFile: ca.pem");
    let start = async |believed: &spillway_tests::Authority| {
        let folder = tempfile::tempdir().unwrap();
        believed.write(folder.path());
        Gateway::start_in(folder, &format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{secure}")).await
    };
    let (one, other) = (start(&authority).await, start(&authority).await);
    for gateway in [&one, &other] {
        gateway.metric_becomes("spillway_limit_store_gateways", 2.0).await;
    }
    for (gateway, left) in [(&one, "2"), (&other, "1"), (&one, "0")] {
        let answer = gateway.client().chat("m", &[("x-api-key", &key)]).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-ratelimit-remaining-requests")), (200, left));
    }
    let mistaken = start(&stranger).await;
    eventually("it says that it cannot", || async { mistaken.events("limit_store_unreachable").first().cloned() })
        .await;
    mistaken.metric_becomes("spillway_limit_store_up", 0.0).await;
    assert_eq!(mistaken.client().chat("m", &[("x-api-key", &key)]).await.status, 200, "it goes on alone");
}
