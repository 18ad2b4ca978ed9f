//! Answers that gateways share through a Redis server: given again by another gateway, forgotten by all of them, and never a
//! reason for a request to fail or to wait, whatever the server does and holds.

use serde_json::{Value, json};
use spillway_tests::{Answer, Client, Gateway, Redis, Reply, Seen, Upstream, eventually, new_key, reply};

const JSON: (&str, &str) = ("content-type", "application/json");
const CHANGE: (&str, &str) = ("x-spillway-admin", "1");

/// Server that says what it was asked, whole or as a stream.
async fn echoing(seen: Seen) -> Option<Reply> {
    let asked: Value = serde_json::from_slice(&seen.body).unwrap();
    let said = asked["messages"][0]["content"].as_str().unwrap_or_default();
    let usage = json!({"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500});
    if asked["stream"] == true {
        let delta = json!({"index": 0, "delta": {"content": said}, "finish_reason": "stop"});
        let text = format!("data: {}\n\ndata: [DONE]\n\n", json!({"id": "c", "model": "m-1", "choices": [delta]}));
        return Some(reply(200, &[("content-type", "text/event-stream")], text));
    }
    let choice = json!({"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"});
    Some(reply(200, &[JSON], json!({"id": "c", "model": "m-1", "choices": [choice], "usage": usage}).to_string()))
}

fn yaml(upstream: &Upstream, consumers: &str, redis: &str, filter: &str) -> String {
    format!(
        "{consumers}backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, filters: [{{cache: {{exact: true, store: shared{filter}}}}}], backendRefs: [{{name: b}}]}}]
prices: [{{model: m-1, input: 2, output: 10}}, {{model: \"*\", input: 1000, output: 1000}}]
state: {{cache: {{redis: {redis}}}}}
",
        upstream.url()
    )
}

/// Settings of a server that a busy machine may answer late.
fn at(redis: &Redis) -> String {
    format!("{{url: \"redis://127.0.0.1:{}\", timeout: 1900ms}}", redis.port)
}

async fn start(yaml: &str) -> Gateway {
    let gateway = Gateway::start(yaml).await;
    reached(&gateway).await;
    gateway
}

async fn reached(gateway: &Gateway) {
    gateway.metric_becomes("spillway_cache_store_up", 1.0).await;
}

fn body(text: &str, is_stream: bool) -> String {
    json!({"model": "m", "messages": [{"role": "user", "content": text}], "stream": is_stream}).to_string()
}

async fn ask(gateway: &Gateway, headers: &[(&str, &str)], body: String) -> Answer {
    let headers = [&[JSON], headers].concat();
    let answer = gateway.client().post("/v1/chat/completions", &headers, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

/// Waits until a server holds so many answers.
async fn holds(redis: &Redis, answers: usize) {
    eventually("the answers are written", || async { (keys(redis).len() == answers).then_some(()) }).await;
}

/// Keys of answers.
fn keys(redis: &Redis) -> Vec<Vec<u8>> {
    redis.command(&[b"KEYS", b"spillway:cache:*:*"])
}

async fn lookups(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(&format!("spillway_cache_store_lookups_total{{result=\"{result}\"}}")).await
}

/// Waits until a gateway has written so many answers.
async fn written(gateway: &Gateway, answers: f64) {
    gateway.metric_becomes("spillway_cache_store_writes_total{result=\"written\"}", answers).await;
}

async fn purge(gateway: &Gateway, query: &str) -> Answer {
    Client::new(gateway.admin).post(&format!("/api/caches/r/purge{query}"), &[CHANGE], "").await
}

#[tokio::test]
async fn gateways_give_each_others_answers_again_and_keep_them_over_a_restart() {
    let (redis, upstream) = (Redis::start(), Upstream::start(echoing).await);
    let yaml = yaml(&upstream, "", &at(&redis), "");
    let (one, other) = (start(&yaml).await, start(&yaml).await);
    for (n, is_stream) in [false, true].into_iter().enumerate() {
        let first = ask(&one, &[], body("hi", is_stream)).await;
        assert_eq!(first.header("x-spillway-cache"), "miss");
        // Whether it is written already or not.
        assert_eq!(ask(&one, &[], body("hi", is_stream)).await.header("x-spillway-cache"), "hit");
        holds(&redis, n + 1).await;
        let again = ask(&other, &[], body("hi", is_stream)).await;
        assert_eq!((again.header("x-spillway-cache"), again.text()), ("hit", first.text()));
        assert_eq!(again.header("content-type"), first.header("content-type"));
        assert!(again.header("age").parse::<u64>().is_ok(), "{:?}", again.headers);
        assert_eq!(upstream.count(), n + 1);
    }
    // A million tokens read are 2 dollars, and written 10: by the model that answered. The stream says no usage.
    for (gateway, hits) in [(&one, 1.0), (&other, 1.0)] {
        gateway.metric_becomes("spillway_filter_cache_saved_usd_total{http_route=\"r\"}", 0.007 * hits).await;
    }
    for key in keys(&redis) {
        let left: u64 = String::from_utf8(redis.command(&[b"PTTL", &key]).remove(0)).unwrap().parse().unwrap();
        assert!((1..=600_000).contains(&left), "{left}");
    }
    let started_again = other.crash_and_restart(&yaml).await;
    reached(&started_again).await;
    assert_eq!(ask(&started_again, &[], body("hi", false)).await.header("x-spillway-cache"), "hit");
    let fresh = ask(&started_again, &[("cache-control", "no-cache")], body("hi", false)).await;
    assert_eq!((fresh.header("x-spillway-cache"), upstream.count()), ("miss", 3));
    let unkept = ask(&one, &[("cache-control", "no-store")], body("new", false)).await;
    assert_eq!((unkept.header("x-spillway-cache"), keys(&redis).len()), ("", 2));
}

#[tokio::test]
async fn callers_of_all_gateways_share_what_the_file_says_alone() {
    let (redis, upstream) = (Redis::start(), Upstream::start(echoing).await);
    let people: Vec<(String, String)> = (0..3).map(|_| new_key()).collect();
    let consumer =
        |n: usize, tenant: &str| format!("{{name: c{n}, tenant: {tenant}, keys: [{{sha256: {}}}]}}", people[n].1);
    let consumers = format!("consumers: [{}, {}, {}]\n", consumer(0, "t"), consumer(1, "t"), consumer(2, "u"));
    let mut held = 0;
    for (scope, answered) in [("consumer", 3), ("tenant", 2), ("route", 1)] {
        let yaml = yaml(&upstream, &consumers, &at(&redis), &format!(", scope: {scope}"));
        let (one, other) = (start(&yaml).await, start(&yaml).await);
        let before = upstream.count();
        for gateway in [&one, &other] {
            for (key, _) in &people {
                let authorization = format!("Bearer {key}");
                ask(gateway, &[("authorization", &authorization)], body(scope, false)).await;
            }
            if held < before + answered {
                held = before + answered;
                holds(&redis, held).await;
            }
        }
        assert_eq!(upstream.count() - before, answered, "{scope}");
    }
}

#[tokio::test]
async fn what_one_gateway_forgets_all_forget() {
    let (redis, upstream) = (Redis::start(), Upstream::start(echoing).await);
    let yaml = yaml(&upstream, "", &at(&redis), "");
    let (one, other) = (start(&yaml).await, start(&yaml).await);
    for text in ["a", "b"] {
        ask(&one, &[], body(text, false)).await;
    }
    redis.command(&[b"SET", b"spillway:cache:another:answer", b"x"]);
    holds(&redis, 3).await;
    let counted = purge(&other, "?dryRun=true").await.json();
    assert_eq!((&counted["dryRun"], &counted["answers"]), (&json!(true), &json!(2)), "{counted}");
    assert_eq!(ask(&other, &[], body("a", false)).await.header("x-spillway-cache"), "hit");
    let purged = purge(&other, "").await.json();
    assert_eq!((&purged["answers"], &purged["bytes"]), (&json!(2), &counted["bytes"]), "{purged}");
    assert_eq!(keys(&redis), [b"spillway:cache:another:answer"], "those of other routes stay");
    assert_eq!(ask(&one, &[], body("a", false)).await.header("x-spillway-cache"), "miss");
    written(&one, 3.0).await;
    assert_eq!(ask(&other, &[], body("a", false)).await.header("x-spillway-cache"), "hit");
    assert_eq!(upstream.count(), 3, "one of them has asked again, for both");
    redis.signal("STOP");
    let refused = purge(&one, "").await;
    redis.signal("CONT");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("did not confirm"), "{}", refused.text());
}

#[tokio::test]
async fn a_server_that_dies_or_hangs_makes_misses_and_comes_back() {
    let (mut redis, upstream) = (Redis::start(), Upstream::start(echoing).await);
    let settings = format!("{{url: \"redis://127.0.0.1:{}\", timeout: 500ms}}", redis.port);
    let gateway = start(&yaml(&upstream, "", &settings, "")).await;
    ask(&gateway, &[], body("kept", false)).await;
    holds(&redis, 1).await;
    redis.signal("STOP");
    // The first one waits for the time limit, the others not at all; none fails.
    for n in 0..50 {
        let answer = ask(&gateway, &[], body("kept", false)).await;
        assert_eq!(answer.header("x-spillway-cache"), "miss", "request {n}");
    }
    assert_eq!(lookups(&gateway, "timeout").await, 1.0);
    assert!(lookups(&gateway, "unreachable").await >= 49.0);
    gateway.metric_becomes("spillway_cache_store_up", 0.0).await;
    assert_eq!(gateway.events("cache_store_lost").len(), 1, "{}", gateway.log());
    redis.signal("CONT");
    reached(&gateway).await;
    let back = async || {
        let answer = ask(&gateway, &[], body("kept", false)).await;
        (answer.header("x-spillway-cache") == "hit").then_some(())
    };
    eventually("the answer is there again", back).await;

    redis.kill();
    gateway.metric_becomes("spillway_cache_store_up", 0.0).await;
    assert_eq!(ask(&gateway, &[], body("kept", false)).await.header("x-spillway-cache"), "miss");
    // Requests that come together still ask the server once.
    let before = upstream.count();
    let together = (0..10).map(|_| ask(&gateway, &[], body("together", false)));
    futures::future::join_all(together).await;
    assert!(upstream.count() - before < 10, "{} of 10", upstream.count() - before);
    assert_eq!(purge(&gateway, "").await.status, 503);
    redis.restart();
    reached(&gateway).await;
    assert_eq!(ask(&gateway, &[], body("kept", false)).await.header("x-spillway-cache"), "miss", "it is empty");
    eventually("an answer is kept", back).await;
}

#[tokio::test]
async fn what_no_gateway_has_written_is_no_answer() {
    let (redis, upstream) = (Redis::start(), Upstream::start(echoing).await);
    let gateway = start(&yaml(&upstream, "", &at(&redis), ", maxEntry: 4KiB")).await;
    ask(&gateway, &[], body("a", false)).await;
    holds(&redis, 1).await;
    let key = keys(&redis).remove(0);
    let good = redis.command(&[b"GET", &key]).remove(0);
    // Its key is its own: that of another request answers nobody.
    ask(&gateway, &[], body("b", false)).await;
    holds(&redis, 2).await;
    let others = keys(&redis).into_iter().find(|other| *other != key).unwrap();
    let of_another = redis.command(&[b"GET", &others]).remove(0);
    let mut huge = good.clone();
    huge.resize(64 << 20, b'x');
    written(&gateway, 2.0).await;
    let mut malformed = 0.0;
    for planted in [&b"x"[..], b"", &of_another, &good[..good.len() - 1], &huge, &[0xff; 300]] {
        redis.command(&[b"SET", &key, planted, b"PX", b"60000"]);
        let answer = ask(&gateway, &[], body("a", false)).await;
        assert_eq!(answer.header("x-spillway-cache"), "miss", "{} bytes", planted.len());
        assert_eq!(answer.json()["choices"][0]["message"]["content"], "a");
        malformed += 1.0;
        assert_eq!(lookups(&gateway, "malformed").await, malformed);
        written(&gateway, 2.0 + malformed).await;
        assert_eq!(ask(&gateway, &[], body("a", false)).await.header("x-spillway-cache"), "hit", "it is replaced");
    }
    // One that never expires, and one of another type.
    redis.command(&[b"PERSIST", &key]);
    assert_eq!(ask(&gateway, &[], body("a", false)).await.header("x-spillway-cache"), "miss");
    written(&gateway, 3.0 + malformed).await;
    redis.command(&[b"DEL", &key]);
    redis.command(&[b"LPUSH", &key, b"x"]);
    assert_eq!(ask(&gateway, &[], body("a", false)).await.header("x-spillway-cache"), "miss");
    assert_eq!(lookups(&gateway, "malformed").await, malformed + 2.0);
    assert_eq!(gateway.events("cache_store_lost").len(), 0, "the connection is as good as before");
}

#[tokio::test]
async fn an_eviction_of_anything_makes_no_old_answer_count() {
    let (redis, upstream) = (Redis::start(), Upstream::start(echoing).await);
    let gateway = start(&yaml(&upstream, "", &at(&redis), "")).await;
    ask(&gateway, &[], body("a", false)).await;
    holds(&redis, 1).await;
    assert_eq!(ask(&gateway, &[], body("a", false)).await.header("x-spillway-cache"), "hit");
    let key = keys(&redis).remove(0);
    let end = key.iter().rposition(|byte| *byte == b':').unwrap();
    let generation = &key[..end];
    assert_eq!(redis.command(&[b"DEL", generation]), [b"1"]);
    assert_eq!(ask(&gateway, &[], body("a", false)).await.header("x-spillway-cache"), "miss");
    let is_kept = async || {
        let answer = ask(&gateway, &[], body("a", false)).await;
        (answer.header("x-spillway-cache") == "hit").then_some(())
    };
    eventually("it is kept again", is_kept).await;
    // A generation that is none keeps nothing, until a purge makes one.
    redis.command(&[b"SET", generation, b"short"]);
    for _ in 0..2 {
        assert_eq!(ask(&gateway, &[], body("a", false)).await.header("x-spillway-cache"), "miss");
    }
    assert_eq!(purge(&gateway, "").await.status, 200);
    eventually("it is kept again", is_kept).await;
    redis.command(&[b"FLUSHALL"]);
    assert_eq!(ask(&gateway, &[], body("a", false)).await.header("x-spillway-cache"), "miss");
    eventually("it is kept again", is_kept).await;
}

#[tokio::test]
async fn a_server_without_memory_refuses_and_requests_pass() {
    let (redis, upstream) = (Redis::start(), Upstream::start(echoing).await);
    let gateway = start(&yaml(&upstream, "", &at(&redis), "")).await;
    ask(&gateway, &[], body("a", false)).await;
    holds(&redis, 1).await;
    redis.command(&[b"CONFIG", b"SET", b"maxmemory", b"1"]);
    assert_eq!(ask(&gateway, &[], body("b", false)).await.header("x-spillway-cache"), "miss");
    gateway.metric_becomes("spillway_cache_store_writes_total{result=\"failed\"}", 1.0).await;
    assert_eq!(ask(&gateway, &[], body("a", false)).await.header("x-spillway-cache"), "hit");
}

#[tokio::test]
async fn what_waits_for_a_server_is_bounded_and_what_is_over_a_bound_passes() {
    let (redis, upstream) = (Redis::start(), Upstream::start(echoing).await);
    let settings = at(&redis).replace("timeout:", "maxLookups: 1, maxPendingBytes: 512B, timeout:");
    let gateway = start(&yaml(&upstream, "", &settings, "")).await;
    for n in 1..=2 {
        assert_eq!(ask(&gateway, &[], body("a", false)).await.header("x-spillway-cache"), "miss");
        gateway.metric_becomes("spillway_cache_store_writes_total{result=\"full\"}", f64::from(n)).await;
    }
    redis.signal("STOP");
    futures::future::join_all((0..5).map(|n| ask(&gateway, &[], body(&format!("{n}"), false)))).await;
    redis.signal("CONT");
    assert_eq!(lookups(&gateway, "timeout").await, 1.0);
    assert!(lookups(&gateway, "busy").await >= 1.0, "one alone waits for the server");
    assert_eq!(keys(&redis).len(), 0);
}

#[tokio::test]
async fn a_store_is_made_from_the_file_and_refused_with_it() {
    let (redis, upstream) = (Redis::start(), Upstream::start(echoing).await);
    let with = yaml(&upstream, "", &at(&redis), "");
    let gateway = start(&with).await;
    ask(&gateway, &[], body("a", false)).await;
    holds(&redis, 1).await;
    let listeners = "listeners: [{address: \"127.0.0.1:0\"}]\n";
    let edit = |yaml: &str| {
        std::fs::write(gateway.config(), spillway_tests::whole(&format!("{listeners}{yaml}"))).unwrap();
        gateway.edits()
    };
    let without: String =
        with.lines().filter(|line| !line.starts_with("state:")).map(|line| format!("{line}\n")).collect();
    let before = gateway.edits();
    edit(&without);
    let refused = gateway.reloads(before).await;
    assert_eq!(refused["event"], "config_rejected", "{refused}");
    assert!(refused.to_string().contains("add `state.cache.redis`"), "{refused}");
    // Another prefix is another store.
    let before = gateway.edits();
    edit(&with.replace("timeout:", "keyPrefix: other, timeout:"));
    assert_eq!(gateway.reloads(before).await["event"], "config_reloaded");
    eventually("the new store is there", || async {
        let answer = ask(&gateway, &[], body("a", false)).await;
        (answer.header("x-spillway-cache") == "hit").then_some(())
    })
    .await;
    assert_eq!((upstream.count() >= 2, keys(&redis).len()), (true, 1));
}
