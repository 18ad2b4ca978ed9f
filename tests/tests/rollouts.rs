//! Rollouts end to end: a worse candidate is aborted and gets nothing afterwards, an equal one is promoted through its steps,
//! callers stay where they are, and a restart, a crash or an edit in the middle does what the contract says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use spillway_tests::{Gateway, RawSocket, SocketServer, Upstream, eventually, reply};

/// Requests after which a rollout that should have ended has not.
const MOST: usize = 20_000;
/// Clients that send at the same time.
const CLIENTS: usize = 8;

/// Plain servers `v1` and `v2` behind a route `r` with this rollout of `v2`.
fn plain(v1: &str, v2: &str, rollout: &str) -> String {
    format!(
        "backends:
  - {{name: v1, endpoints: [{{url: \"{v1}\"}}]}}
  - {{name: v2, endpoints: [{{url: \"{v2}\"}}]}}
routes:
  - name: r
    backendRefs: [{{name: v1, weight: 3}}, {{name: v2, weight: 0}}]
    sticky: {{header: x-user}}
    rollout: {{to: v2, {rollout}}}
"
    )
}

/// As [`plain`], with servers of OpenAI's API.
fn models(v1: &str, v2: &str, rollout: &str) -> String {
    plain(v1, v2, rollout).replace("endpoints:", "protocol: openai, endpoints:")
}

async fn record(gateway: &Gateway) -> Value {
    serde_json::from_str(&gateway.shown("/api/rollouts/r").await).unwrap()
}

async fn state(gateway: &Gateway) -> String {
    record(gateway).await["state"].as_str().unwrap().to_owned()
}

/// Entries of the history, in their order, without those that say only that evidence was missing at the end of a hold: that
/// depends on how many requests come before the next look.
fn entries(record: &Value) -> Vec<&Value> {
    record["history"].as_array().unwrap().iter().filter(|entry| entry["event"] != "inconclusive").collect()
}

/// Events of the history, in their order.
fn events(record: &Value) -> Vec<&str> {
    entries(record).iter().map(|entry| entry["event"].as_str().unwrap()).collect()
}

/// Sends requests of callers that come once, until the rollout is in a state; returns its record, and the statuses.
async fn until(gateway: &Gateway, wanted: &str, chat: bool) -> (Value, HashMap<u16, usize>) {
    let sent = AtomicUsize::new(0);
    let statuses = Mutex::new(HashMap::new());
    let ended = AtomicBool::new(false);
    let one = async || {
        let client = gateway.client();
        while !ended.load(Ordering::Relaxed) && sent.fetch_add(1, Ordering::Relaxed) < MOST {
            let answer = if chat { client.chat("m", &[]).await } else { client.get("/").await };
            *statuses.lock().unwrap().entry(answer.status.as_u16()).or_insert(0) += 1;
        }
    };
    let watch = async {
        while sent.load(Ordering::Relaxed) < MOST {
            if state(gateway).await == wanted {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ended.store(true, Ordering::Relaxed);
    };
    let clients = futures::future::join_all((0..CLIENTS).map(|_| one()));
    futures::future::join(clients, watch).await;
    let record = record(gateway).await;
    assert_eq!(record["state"], wanted, "{record:#}");
    (record, statuses.into_inner().unwrap())
}

/// Sends some requests and asserts that the candidate gets none of them.
async fn candidate_gets_nothing(gateway: &Gateway, candidate: &Upstream) {
    let before = candidate.count();
    let client = gateway.client();
    for n in 0..50 {
        let user = n.to_string();
        let answer = client.send(client.request("GET", "/", &[("x-user", &user)], "")).await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!(candidate.count(), before, "the candidate got requests");
}

/// Server of which every tenth answer is an error.
async fn failing() -> Upstream {
    let count = Arc::new(AtomicUsize::new(0));
    Upstream::start(move |_| {
        let n = count.fetch_add(1, Ordering::Relaxed);
        async move { Some(if n % 10 == 9 { reply(500, &[], "no") } else { reply(200, &[], "v2") }) }
    })
    .await
}

/// Server whose chat answers end for this reason.
async fn chatting(finish: &'static str) -> Upstream {
    Upstream::start(move |_| async move {
        let body = json!({
            "id": "c", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        });
        Some(reply(200, &[("content-type", "application/json")], body.to_string()))
    })
    .await
}

const ENDLESS: &str = "steps: [{weight: 50, hold: {requests: 1000000}}, {weight: 100}]";

#[tokio::test]
async fn a_candidate_with_errors_is_aborted_gets_nothing_afterwards_and_does_not_begin_again() {
    let (v1, v2) = (Upstream::fixed(200, "v1").await, failing().await);
    let yaml = plain(&v1.url(), &v2.url(), &format!("{ENDLESS}, abortWhen: {{errorRate: \"+0.02\"}}"));
    let gateway = Gateway::start(&yaml).await;
    let (record, statuses) = until(&gateway, "aborted", false).await;
    assert!(record["reason"].as_str().unwrap().contains("errorRate"), "{record:#}");
    assert_eq!(events(&record), ["begun", "aborted"], "{record:#}");
    assert_eq!(record["weight"], 0.0);
    let evidence = &entries(&record)[1]["judgement"]["metrics"][0];
    assert_eq!((&evidence["name"], &evidence["finding"]), (&json!("errorRate"), &json!("worse")), "{record:#}");
    let hurt = statuses.get(&500).copied().unwrap_or(0);
    assert!(hurt < 100, "{hurt} callers were hurt: {record:#}");
    candidate_gets_nothing(&gateway, &v2).await;
    // Neither does it after a crash.
    let gateway = gateway.crash_and_restart(&yaml).await;
    assert_eq!(state(&gateway).await, "aborted");
    candidate_gets_nothing(&gateway, &v2).await;
}

#[tokio::test]
async fn a_slow_candidate_is_aborted() {
    let v1 = Upstream::fixed(200, "v1").await;
    let v2 = Upstream::start(|_| async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        Some(reply(200, &[], "v2"))
    })
    .await;
    let gateway =
        Gateway::start(&plain(&v1.url(), &v2.url(), &format!("{ENDLESS}, abortWhen: {{latencyP50: \"2x\"}}"))).await;
    let (record, _) = until(&gateway, "aborted", false).await;
    assert!(record["reason"].as_str().unwrap().contains("latencyP50"), "{record:#}");
    candidate_gets_nothing(&gateway, &v2).await;
}

#[tokio::test]
async fn a_candidate_that_hangs_is_aborted_by_the_callers_that_leave() {
    let v1 = Upstream::fixed(200, "v1").await;
    let v2 = Upstream::start(|_| std::future::pending()).await;
    let rollout = format!("{ENDLESS}, abortWhen: {{latencyP95: \"2x\", errorRate: \"+0.5\"}}");
    let gateway = Gateway::start(&plain(&v1.url(), &v2.url(), &rollout)).await;
    // Each caller has less patience than any timeout of the gateway.
    let calling = async || {
        for _ in 0..MOST {
            let _ = tokio::time::timeout(Duration::from_secs(2), gateway.client().get("/")).await;
        }
    };
    let ended = eventually("the rollout ends", || async {
        let record = record(&gateway).await;
        (record["state"] == "aborted").then_some(record)
    });
    let record = tokio::select! {
        record = ended => record,
        _ = futures::future::join_all((0..64).map(|_| calling())) => panic!("no caller has more patience"),
    };
    assert!(record["reason"].as_str().unwrap().contains("latencyP95"), "{record:#}");
    assert_eq!(record["candidateRequests"], 0, "nobody had an answer: {record:#}");
    candidate_gets_nothing(&gateway, &v2).await;
}

#[tokio::test]
async fn sockets_count_when_they_open() {
    let (v1, v2) = (SocketServer::start().await, SocketServer::start().await);
    let rollout = "steps: [{weight: 50, hold: {requests: 1000000}}], abortWhen: {errorRate: \"+0.5\"}";
    let gateway = Gateway::start(&plain(&v1.url(), &v2.url(), rollout)).await;
    eventually("the rollout begins", || async { (state(&gateway).await == "running").then_some(()) }).await;
    let serving = async |server: &SocketServer| {
        let mut open = Vec::new();
        for _ in 0..100 {
            open.push(server.open().await);
        }
    };
    let calling = async {
        let mut open = Vec::new();
        for _ in 0..20 {
            open.push(RawSocket::open(gateway.address, "/").await);
        }
        eventually("all are counted while they are open", || async {
            let record = record(&gateway).await;
            let count = |of: &str| record[of].as_u64().unwrap();
            (count("candidateRequests") + count("stableRequests") == 20).then_some(())
        })
        .await;
    };
    tokio::select! {
        () = serving(&v1) => {}
        () = serving(&v2) => {}
        () = calling => {}
    }
}

#[tokio::test]
async fn a_candidate_that_truncates_or_refuses_its_answers_is_aborted() {
    for (finish, metric) in [("length", "truncationRate"), ("content_filter", "refusalRate")] {
        let (v1, v2) = (chatting("stop").await, chatting(finish).await);
        let rollout = format!("{ENDLESS}, abortWhen: {{{metric}: \"+0.1\", errorRate: \"+0.5\"}}");
        let gateway = Gateway::start(&models(&v1.url(), &v2.url(), &rollout)).await;
        let (record, _) = until(&gateway, "aborted", true).await;
        assert!(record["reason"].as_str().unwrap().contains(metric), "{record:#}");
    }
}

#[tokio::test]
async fn an_equal_candidate_is_promoted_through_its_steps_and_no_sticky_caller_flips_back() {
    let (v1, v2) = (Upstream::fixed(200, "v1").await, Upstream::fixed(200, "v2").await);
    let rollout = "steps: [{weight: 20, hold: {requests: 30}}, {weight: 60, hold: {for: 1ms, requests: 30}}, {weight: 100}], \
                   abortWhen: {errorRate: \"+0.3\"}";
    let gateway = Gateway::start(&plain(&v1.url(), &v2.url(), rollout)).await;
    let client = gateway.client();
    let mut of: HashMap<usize, String> = HashMap::new();
    let mut sent = 0;
    let promoted = loop {
        for user in 0..60 {
            let name = user.to_string();
            let answer = client.send(client.request("GET", "/", &[("x-user", &name)], "")).await;
            assert_eq!(answer.status, 200);
            let now = answer.text();
            if let Some(before) = of.insert(user, now.clone()) {
                assert!(before == now || now == "v2", "caller {user} went from {before} back to {now}");
            }
            sent += 1;
        }
        let record = record(&gateway).await;
        if record["state"] == "promoted" {
            break record;
        }
        assert!(sent < MOST, "{record:#}");
    };
    assert_eq!(events(&promoted), ["begun", "stepUp", "promoted"], "{promoted:#}");
    let weights: Vec<f64> = entries(&promoted).iter().map(|entry| entry["weight"].as_f64().unwrap()).collect();
    assert_eq!(weights, [20.0, 60.0, 100.0]);
    let before = v1.count();
    for _ in 0..50 {
        assert_eq!(client.get("/").await.text(), "v2");
    }
    assert_eq!(v1.count(), before);
    // And after a restart: the promotion holds until the file says otherwise.
    let gateway = gateway.crash_and_restart(&plain(&v1.url(), &v2.url(), rollout)).await;
    for _ in 0..20 {
        assert_eq!(gateway.client().get("/").await.text(), "v2");
    }
}

#[tokio::test]
async fn a_rollout_without_thresholds_goes_by_its_holds() {
    let (v1, v2) = (Upstream::fixed(200, "v1").await, Upstream::fixed(200, "v2").await);
    let rollout = "steps: [{weight: 50, hold: {requests: 5}}]";
    let gateway = Gateway::start(&plain(&v1.url(), &v2.url(), rollout)).await;
    until(&gateway, "promoted", false).await;
}

/// Clients meet a candidate that is not there: each is answered by the stable version, and the judge counts each as an error of
/// the candidate.
#[tokio::test]
async fn a_candidate_that_is_down_hurts_nobody_and_is_aborted() {
    let v1 = Upstream::fixed(200, "v1").await;
    let down = Upstream::nobody().await;
    let gateway =
        Gateway::start(&plain(&v1.url(), &down, &format!("{ENDLESS}, abortWhen: {{errorRate: \"+0.05\"}}"))).await;
    let (record, statuses) = until(&gateway, "aborted", false).await;
    assert_eq!(statuses.keys().collect::<Vec<_>>(), [&200], "{statuses:?} {record:#}");
    assert!(record["candidateRequests"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_crash_in_the_middle_resumes_at_the_same_step_with_the_counts() {
    let (v1, v2) = (Upstream::fixed(200, "v1").await, Upstream::fixed(200, "v2").await);
    let rollout = "steps: [{weight: 30, hold: {requests: 20}}, {weight: 60, hold: {requests: 1000000}}], \
                   abortWhen: {errorRate: \"+0.3\"}";
    let yaml = plain(&v1.url(), &v2.url(), rollout);
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    eventually("the second step has counts", || async {
        for _ in 0..20 {
            client.get("/").await;
        }
        let record = record(&gateway).await;
        (record["step"] == 1 && record["candidateRequests"].as_u64().unwrap() > 100).then_some(())
    })
    .await;
    // Counts are written every second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = record(&gateway).await;
    let gateway = gateway.crash_and_restart(&yaml).await;
    let same =
        ["state", "step", "weight", "identity", "run", "epoch", "startedAt", "candidateRequests", "stableRequests"];
    // The record is that of the last write, until the first look at the counts.
    let after = eventually("the rollout is looked at", || async {
        let record = record(&gateway).await;
        (record["candidateRequests"] == before["candidateRequests"]).then_some(record)
    })
    .await;
    for key in same {
        assert_eq!(after[key], before[key], "{key}: {before:#} {after:#}");
    }
    assert_eq!(events(&after), ["begun", "stepUp"], "{after:#}");
    // In order too, and the judge goes on with what it had.
    gateway.signal("TERM");
    let folder_kept = gateway.crash_and_restart(&yaml).await;
    let again = eventually("the rollout is looked at", || async {
        let record = record(&folder_kept).await;
        (record["candidateRequests"] == before["candidateRequests"]).then_some(record)
    })
    .await;
    for key in same {
        assert_eq!(again[key], before[key], "{key}: {before:#} {again:#}");
    }
}

#[tokio::test]
async fn an_edit_of_the_rollout_ends_it_and_another_edit_does_not() {
    let (v1, v2) = (Upstream::fixed(200, "v1").await, Upstream::fixed(200, "v2").await);
    let yaml = |rollout: &str| plain(&v1.url(), &v2.url(), rollout);
    let first = yaml(ENDLESS);
    let gateway = Gateway::start(&first).await;
    let client = gateway.client();
    let begun = eventually("the rollout runs", || async {
        client.get("/").await;
        let record = record(&gateway).await;
        (record["state"] == "running").then_some(record)
    })
    .await;
    let edit = async |yaml: &str| {
        let before = gateway.edits();
        let whole = format!("admin: {{address: \"127.0.0.1:0\"}}\nlisteners: [{{address: \"127.0.0.1:0\"}}]\n{yaml}");
        std::fs::write(gateway.config(), whole).unwrap();
        assert_eq!(gateway.reloads(before).await["event"], "config_reloaded");
    };
    // Another key of the route: it goes on.
    edit(&format!("{first}    timeouts: {{request: 50s}}\n")).await;
    let record_now = record(&gateway).await;
    assert_eq!((&record_now["identity"], &record_now["startedAt"]), (&begun["identity"], &begun["startedAt"]));
    assert_eq!(record_now["state"], "running");
    // The rollout itself: another one begins.
    edit(&yaml("steps: [{weight: 10, hold: {requests: 1000000}}]")).await;
    let second = eventually("the next one runs", || async {
        client.get("/").await;
        let record = record(&gateway).await;
        (record["identity"] != begun["identity"] && record["state"] == "running").then_some(record)
    })
    .await;
    assert_eq!(second["weight"], 10.0);
    // The first one was ended by the edit, and does not begin again by itself.
    edit(&first).await;
    let back = eventually("the first one is shown again", || async {
        let record = record(&gateway).await;
        (record["identity"] == begun["identity"]).then_some(record)
    })
    .await;
    assert_eq!(back["state"], "aborted", "{back:#}");
    assert!(back["reason"].as_str().unwrap().contains("edited"), "{back:#}");
    candidate_gets_nothing(&gateway, &v2).await;
    // Without a rollout the weights of the file hold, of which the candidate has none.
    edit(&first.lines().filter(|line| !line.contains("rollout")).map(|line| format!("{line}\n")).collect::<String>())
        .await;
    candidate_gets_nothing(&gateway, &v2).await;
    assert!(!gateway.shown("/api/rollouts").await.contains("\"r\""));
}

#[tokio::test]
async fn no_file_is_made_where_no_route_has_a_rollout() {
    let v1 = Upstream::fixed(200, "v1").await;
    let yaml = plain(&v1.url(), &v1.url(), ENDLESS);
    let without: String = yaml.lines().filter(|l| !l.contains("rollout:")).map(|l| format!("{l}\n")).collect();
    let gateway = Gateway::start(&without).await;
    assert_eq!(gateway.client().get("/").await.status, 200);
    assert!(!gateway.folder().join("state/spillway.db").exists());
    drop(gateway);
    let gateway = Gateway::start(&yaml).await;
    assert!(gateway.folder().join("state/spillway.db").exists());
}

/// Versions are compared under the same load: one that has no room takes none of the other's.
#[tokio::test]
async fn no_version_takes_the_overflow_of_the_other() {
    let v1 = Upstream::fixed(200, "v1").await;
    let gate = Arc::new(tokio::sync::watch::Sender::new(true));
    let opened = gate.clone();
    let v2 = Upstream::start(move |_| {
        let mut opened = opened.subscribe();
        async move {
            let _ = opened.wait_for(|is_open| *is_open).await;
            Some(reply(200, &[], "v2"))
        }
    })
    .await;
    let yaml = plain(&v1.url(), &v2.url(), ENDLESS).replace("{name: v2,", "{name: v2, capacity: {maxInFlight: 1},");
    let yaml = yaml.replacen("{name: v2, capacity: {maxInFlight: 1}, weight", "{name: v2, weight", 1);
    let gateway = Gateway::start(&yaml).await;
    eventually("the rollout runs", || async { (state(&gateway).await == "running").then_some(()) }).await;
    let ask = async |user: usize| {
        let client = gateway.client();
        let user = user.to_string();
        let answer = client.send(client.request("GET", "/", &[("x-user", &user)], "")).await;
        (answer.status.as_u16(), answer.text())
    };
    let mut of = Vec::new();
    for user in 0..30 {
        of.push(ask(user).await.1);
    }
    let at_candidate = of.iter().filter(|version| *version == "v2").count();
    assert!((5..25).contains(&at_candidate), "{of:?}");
    gate.send_replace(false);
    let done = AtomicUsize::new(0);
    let asked = futures::future::join_all((0..30).map(|user| {
        let (ask, done) = (&ask, &done);
        async move {
            let answer = ask(user).await;
            done.fetch_add(1, Ordering::Relaxed);
            answer
        }
    }));
    let release = eventually("all but the one at the candidate are answered", || async {
        (done.load(Ordering::Relaxed) == 29).then(|| gate.send_replace(true))
    });
    let (answers, _) = futures::future::join(asked, release).await;
    let mut full = 0;
    for (version, (status, text)) in of.iter().zip(answers) {
        if status == 503 {
            assert_eq!(version, "v2");
            full += 1;
        } else {
            assert_eq!(*version, text);
        }
    }
    assert_eq!(full, at_candidate - 1);
}
