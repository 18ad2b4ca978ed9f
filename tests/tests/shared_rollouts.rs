//! A rollout that two gateways share through a Redis server: they count together, agree, go on where a killed one was, and
//! outlive a server that dies and comes back empty.

use serde_json::Value;
use spillway_tests::{Client, Gateway, Redis, Upstream, eventually, reply};

fn yaml(v1: &Upstream, v2: &Upstream, redis: &Redis, rollout: &str) -> String {
    format!(
        "backends:
  - {{name: v1, endpoints: [{{url: \"{}\"}}]}}
  - {{name: v2, endpoints: [{{url: \"{}\"}}], outlierDetection: {{consecutiveErrors: 1000, errorRate: 0}}}}
routes:
  - name: r
    backendRefs: [{{name: v1}}, {{name: v2}}]
    rollout: {{to: v2, {rollout}}}
state: {{store: {{redis: {{url: \"redis://127.0.0.1:{}\"}}}}}}
",
        v1.url(),
        v2.url(),
        redis.port
    )
}

async fn record(gateway: &Gateway) -> Value {
    serde_json::from_str(&gateway.shown("/api/rollouts/r").await).unwrap_or_default()
}

/// Sends a request to each gateway until both show a record that fits; returns the records.
async fn both(what: &str, gateways: &[&Gateway; 2], fits: impl Fn(&Value) -> bool) -> [Value; 2] {
    eventually(what, || async {
        for gateway in gateways {
            gateway.client().get("/").await;
        }
        let records = [record(gateways[0]).await, record(gateways[1]).await];
        records.iter().all(&fits).then_some(records)
    })
    .await
}

async fn command(gateway: &Gateway, command: &str) -> Value {
    let client = Client::new(gateway.admin);
    let path = format!("/api/rollouts/r/{command}");
    let answer = client.send(client.request("POST", &path, &[("x-spillway-admin", "1")], "")).await;
    serde_json::from_str(&answer.text()).unwrap_or_else(|e| panic!("{}: {e}: {}", answer.status, answer.text()))
}

/// Entries of the history without their evidence; times to the millisecond, as JSON may change their last digit.
fn history(record: &Value) -> Vec<String> {
    let entries = record["history"].as_array().unwrap().iter();
    entries.map(|entry| format!("{} at {:.3}", entry["event"], entry["at"].as_f64().unwrap())).collect()
}

#[tokio::test]
async fn two_gateways_count_together_and_agree() {
    let redis = Redis::start();
    let (v1, v2) = (Upstream::fixed(200, "v1").await, Upstream::start(|_| async { Some(reply(500, &[], "no")) }).await);
    // No gateway alone sees enough: each sends a few requests, and they stop together.
    let rollout = "steps: [{weight: 50, hold: {requests: 1000000}}, {weight: 100}], abortWhen: {errorRate: \"+0.02\"}";
    let yaml = yaml(&v1, &v2, &redis, rollout);
    let (first, second) = (Gateway::start(&yaml).await, Gateway::start(&yaml).await);
    let [one, other] = both("both abort", &[&first, &second], |record| record["state"] == "aborted").await;
    assert_eq!(history(&one), history(&other), "{one:#} {other:#}");
    assert_eq!(one["identity"], other["identity"]);
    let seen = one["candidateRequests"].as_u64().unwrap();
    assert!(seen > 0 && seen <= u64::try_from(v2.count()).unwrap(), "{one:#}");
    // After the end the candidate gets nothing from either.
    let before = v2.count();
    for gateway in [&first, &second] {
        for _ in 0..30 {
            assert_eq!(gateway.client().get("/").await.status, 200);
        }
    }
    assert_eq!(v2.count(), before);
    // A command is carried out by the gateway that it comes to, and the other one follows.
    for (gateway, other) in [(&second, &first), (&first, &second)] {
        let run = record(gateway).await["run"].as_u64().unwrap();
        let started = command(gateway, "start").await;
        assert_eq!(started["run"].as_u64(), Some(run + 1), "{started:#}");
        let aborted = command(gateway, "abort").await;
        assert_eq!(aborted["state"], "aborted", "{aborted:#}");
        eventually("the other one follows", || async {
            let record = record(other).await;
            (record["run"].as_u64() == Some(run + 1) && record["state"] == "aborted").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_rollout_outlives_its_leader_and_its_store() {
    let mut redis = Redis::start();
    let (v1, v2) = (Upstream::fixed(200, "v1").await, Upstream::fixed(200, "v2").await);
    let rollout = "steps: [{weight: 40, hold: {requests: 20}}, {weight: 60, hold: {requests: 1000000}}], \
                   abortWhen: {errorRate: \"+0.3\"}";
    let yaml = yaml(&v1, &v2, &redis, rollout);
    let (first, second) = (Gateway::start(&yaml).await, Gateway::start(&yaml).await);
    let at_second_step = |record: &Value| record["step"] == 1 && record["weight"] == 60.0;
    let [before, _] = both("the second step", &[&first, &second], at_second_step).await;
    // One of the two leads; each is killed in turn, and the other one goes on with the counts of both.
    let first = first.crash_and_restart(&yaml).await;
    let [_, after] = both("counts go on", &[&first, &second], |record| {
        at_second_step(record) && record["candidateRequests"].as_u64() > before["candidateRequests"].as_u64()
    })
    .await;
    let second = second.crash_and_restart(&yaml).await;
    let [_, after] = both("counts go on", &[&first, &second], |record| {
        at_second_step(record) && record["candidateRequests"].as_u64() > after["candidateRequests"].as_u64()
    })
    .await;
    assert_eq!(history(&after), history(&record(&first).await));

    // Without the store both stay where they are, and say why no step is taken.
    redis.kill();
    let refused = eventually("the loss is noticed", || async {
        let refused = command(&second, "promote").await;
        (refused["status"] == 503).then_some(refused)
    })
    .await;
    assert!(refused.to_string().contains("state.store.redis"), "{refused:#}");
    both("both stay", &[&first, &second], at_second_step).await;

    // It comes back empty: the rollout is written anew, with its history.
    redis.restart();
    eventually("the store is back", || async { (command(&first, "pause").await["state"] == "paused").then_some(()) })
        .await;
    let [one, other] = both("both are paused", &[&first, &second], |record| record["state"] == "paused").await;
    assert_eq!(history(&one), history(&other), "{one:#} {other:#}");
    assert_eq!(history(&one)[..history(&after).len()], history(&after));
    // An abort is possible without the store, at the gateway that is asked, and is stored when it is back.
    redis.kill();
    assert_eq!(command(&second, "abort").await["state"], "aborted");
    redis.restart();
    both("both are aborted", &[&first, &second], |record| record["state"] == "aborted").await;
}
