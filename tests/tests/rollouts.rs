//! Rollouts end to end: a worse candidate is aborted and gets nothing afterwards, an equal one is promoted through its steps,
//! callers stay where they are, and a restart, a crash or an edit in the middle does what the contract says.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use spillway_tests::{
    Answer, Client, Gateway, LlamaServer, RawSocket, SocketServer, Upstream, eventually, model, reply, with_template,
};

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
    let send = async |client: &Client, _| if chat { client.chat("m", &[]).await } else { client.get("/").await };
    until_by(gateway, wanted, send).await
}

/// As [`until`], with requests that `send` sends, by their numbers.
async fn until_by(
    gateway: &Gateway,
    wanted: &str,
    send: impl AsyncFn(&Client, usize) -> Answer,
) -> (Value, HashMap<u16, usize>) {
    let sent = AtomicUsize::new(0);
    let statuses = Mutex::new(HashMap::new());
    let ended = AtomicBool::new(false);
    let one = async || {
        let client = gateway.client();
        while !ended.load(Ordering::Relaxed) {
            let n = sent.fetch_add(1, Ordering::Relaxed);
            if n >= MOST {
                break;
            }
            let answer = send(&client, n).await;
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
    let rollout = "steps: [{weight: 20, hold: {requests: 100}}, {weight: 60, hold: {for: 1ms, requests: 100}}, {weight: 100}], \
                   abortWhen: {errorRate: \"+0.3\"}";
    let gateway = Gateway::start(&plain(&v1.url(), &v2.url(), rollout)).await;
    let client = gateway.client();
    let mut of: HashMap<usize, String> = HashMap::new();
    let mut sent = 0;
    let promoted = loop {
        // So many that each version has far more than the fewest callers it is judged by, whichever callers it gets.
        for user in 0..400 {
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
async fn a_rollout_whose_store_has_not_answered_is_not_said_to_be_absent() {
    let (v1, v2) = (Upstream::fixed(200, "v1").await, Upstream::fixed(200, "v2").await);
    let nobody = Upstream::nobody().await.replace("http://", "redis://");
    let rollout = "steps: [{weight: 30, hold: {requests: 20}}]";
    let yaml = format!("state: {{store: {{redis: {{url: \"{nobody}\"}}}}}}\n{}", plain(&v1.url(), &v2.url(), rollout));
    let gateway = Gateway::start(&yaml).await;
    let asked = async |name: &str| {
        let answer = Client::new(gateway.admin).get(&format!("/api/rollouts/{name}")).await;
        (answer.status, answer.text())
    };
    let (status, said) = asked("r").await;
    assert_eq!(status, 503, "{said}");
    assert!(said.contains("is not known yet"), "{said}");
    assert_eq!(asked("other").await.0, 404);
}

#[tokio::test]
async fn a_hand_over_in_the_middle_resumes_at_the_same_step_with_every_count_and_goes_on() {
    let (v1, v2) = (Upstream::fixed(200, "v1").await, Upstream::fixed(200, "v2").await);
    let rollout = "steps: [{weight: 30, hold: {requests: 20}}, {weight: 60, hold: {requests: 1000000}}], \
                   abortWhen: {errorRate: \"+0.3\"}";
    let gateway = Gateway::start(&plain(&v1.url(), &v2.url(), rollout)).await;
    let client = gateway.client();
    eventually("the second step has counts", || async {
        for _ in 0..20 {
            client.get("/").await;
        }
        let record = record(&gateway).await;
        (record["step"] == 1 && record["candidateRequests"].as_u64().unwrap() > 100).then_some(())
    })
    .await;
    let counts = |record: &Value| {
        ["candidateRequests", "stableRequests"].map(|key| record[key].as_u64().unwrap()).iter().sum::<u64>()
    };
    let mut known = 0;
    for n in 0..3 {
        // What was counted a moment ago comes along, also what the next write of counts would have had.
        for _ in 0..30 {
            client.get("/").await;
        }
        let before = record(&gateway).await;
        let (code, said) = gateway.upgrade().await;
        assert_eq!(code, Some(0), "{said}");
        let sent = v1.count() + v2.count();
        let after = eventually("the rollout is looked at", || async {
            let record = record(&gateway).await;
            (counts(&record) >= counts(&before)).then_some(record)
        })
        .await;
        for key in ["state", "step", "weight", "identity", "run", "epoch", "startedAt"] {
            assert_eq!(after[key], before[key], "{key}: {before:#} {after:#}");
        }
        assert!(
            counts(&after) <= u64::try_from(sent).unwrap() && counts(&after) >= known + 30,
            "hand-over {n}: {after:#}"
        );
        known = counts(&after);
        assert_eq!(events(&after), ["begun", "stepUp"], "{after:#}");
    }
    // The process that serves decides.
    let promoted = Client::new(gateway.admin)
        .post("/api/rollouts/r/promote", &[("x-spillway-admin", "1"), ("content-type", "application/json")], "")
        .await;
    assert_eq!(promoted.json()["state"], "promoted", "{}", promoted.text());
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

/// Server that calls the tool `weather` with these arguments, or says this text, whole or in a stream of two pieces.
async fn answering(name: &'static str, arguments: &'static str, text: &'static str) -> Upstream {
    Upstream::start(move |request| async move {
        let asked: Value = serde_json::from_slice(&request.body).unwrap();
        let calls = asked["tools"].is_array();
        let cut = |text: &'static str| text.split_at(text.len() / 2);
        let call = |part: &str, is_first: bool| {
            let function = if is_first { json!({"name": name, "arguments": part}) } else { json!({"arguments": part}) };
            json!([{"index": 0, "id": "c", "type": "function", "function": function}])
        };
        let finish = if calls { "tool_calls" } else { "stop" };
        if asked["stream"] != true {
            let message = if calls {
                json!({"role": "assistant", "content": null, "tool_calls": call(arguments, true)})
            } else {
                json!({"role": "assistant", "content": text})
            };
            let body = json!({
                "id": "c", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            });
            return Some(reply(200, &[("content-type", "application/json")], body.to_string()));
        }
        let (first, second) = cut(if calls { arguments } else { text });
        let delta = |part: &str, is_first: bool| {
            if calls { json!({"tool_calls": call(part, is_first)}) } else { json!({"content": part}) }
        };
        let mut body = String::new();
        for (delta, finish) in [(delta(first, true), None), (delta(second, false), None), (json!({}), Some(finish))] {
            let chunk = json!({
                "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]
            });
            body += &format!("data: {chunk}\n\n");
        }
        body += "data: [DONE]\n\n";
        Some(reply(200, &[("content-type", "text/event-stream")], body))
    })
    .await
}

/// Request with a tool, or for JSON with its schema; every other one for a stream.
async fn ask(client: &Client, n: usize, calls: bool) -> Answer {
    let schema = json!({"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}});
    let mut body =
        json!({"model": "m", "stream": n.is_multiple_of(2), "messages": [{"role": "user", "content": "Bonn?"}]});
    if calls {
        body["tools"] = json!([{"type": "function", "function": {"name": "weather", "parameters": schema}}]);
    } else {
        body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    }
    client.post("/v1/chat/completions", &[("content-type", "application/json")], body.to_string()).await
}

#[tokio::test]
async fn a_candidate_with_broken_tool_calls_is_aborted() {
    // A name that was not declared, arguments that are cut, and arguments that do not hold to the schema.
    for (name, arguments) in
        [("wether", "{\"city\": \"Bonn\"}"), ("weather", "{\"city\": \"Bo"), ("weather", "{\"city\": 5}")]
    {
        let v1 = answering("weather", "{\"city\": \"Bonn\"}", "").await;
        let v2 = answering(name, arguments, "").await;
        let rollout = format!("{ENDLESS}, abortWhen: {{toolCallErrors: \"+0.1\", errorRate: \"+0.5\"}}");
        let gateway = Gateway::start(&models(&v1.url(), &v2.url(), &rollout)).await;
        let (record, statuses) = until_by(&gateway, "aborted", async |client, n| ask(client, n, true).await).await;
        assert!(record["reason"].as_str().unwrap().contains("toolCallErrors"), "{record:#}");
        assert_eq!(statuses.keys().collect::<Vec<_>>(), [&200]);
        let figures = &entries(&record)[1]["judgement"]["metrics"];
        let of = |metric: &str| figures.as_array().unwrap().iter().find(|one| one["name"] == metric).unwrap().clone();
        let calls = of("toolCallErrors");
        assert_eq!(
            (&calls["stable"]["estimate"], &calls["candidate"]["estimate"]),
            (&json!(0.0), &json!(1.0)),
            "{record:#}"
        );
    }
}

#[tokio::test]
async fn a_candidate_whose_answers_are_not_the_json_that_was_asked_for_is_aborted() {
    for text in ["Of course! {\"city\": \"Bonn\"}", "{\"town\": \"Bonn\"}"] {
        let (v1, v2) = (answering("", "", "{\"city\": \"Bonn\"}").await, answering("", "", text).await);
        let rollout = format!("{ENDLESS}, abortWhen: {{structuredOutputErrors: 0.1}}");
        let gateway = Gateway::start(&models(&v1.url(), &v2.url(), &rollout)).await;
        let (record, _) = until_by(&gateway, "aborted", async |client, n| ask(client, n, false).await).await;
        assert!(record["reason"].as_str().unwrap().contains("structuredOutputErrors"), "{record:#}");
    }
}

/// An equal candidate passes both metrics, and answers past the bound are counted and say nothing.
#[tokio::test]
async fn answers_that_are_as_asked_are_fine_and_long_ones_say_nothing() {
    let good = "{\"city\": \"Bonn\"}";
    let (v1, v2) = (answering("weather", good, good).await, answering("weather", good, good).await);
    let steps = "steps: [{weight: 50, hold: {requests: 150}}]";
    let rollout = format!("{steps}, abortWhen: {{toolCallErrors: \"+0.2\", structuredOutputErrors: \"+0.2\"}}");
    let gateway = Gateway::start(&models(&v1.url(), &v2.url(), &rollout)).await;
    let (record, _) = until_by(&gateway, "promoted", async |client, n| ask(client, n, n % 3 == 0).await).await;
    assert_eq!(events(&record), ["begun", "promoted"], "{record:#}");
    let rollout = format!("{ENDLESS}, maxAnswer: 64B, abortWhen: {{structuredOutputErrors: 0.1}}");
    let gateway = Gateway::start(&models(&v1.url(), &v2.url(), &rollout)).await;
    let client = gateway.client();
    for n in 0..4 {
        assert_eq!(ask(&client, n, false).await.status, 200);
    }
    gateway.metric_becomes("spillway_rollout_answers_unread_total", 4.0).await;
}

/// Rollout of a shadow: `share` percent of the requests are copied, until `requests` pairs are there.
fn shadow(share: u8, requests: u32, rest: &str) -> String {
    format!("strategy: shadow, steps: [{{weight: {share}, hold: {{requests: {requests}}}}}], {rest}")
}

/// Series of the pairs of the route.
fn pairs(outcome: &str) -> String {
    format!("spillway_rollout_pairs_total{{http_route=\"r\",outcome=\"{outcome}\"}}")
}

#[tokio::test]
async fn a_worse_shadow_is_aborted_and_no_caller_sees_anything_of_it() {
    let (v1, v2) = (Upstream::fixed(200, "v1").await, failing().await);
    let rollout = shadow(100, 1_000_000, "abortWhen: {errorRate: \"+0.02\"}");
    let yaml = plain(&v1.url(), &v2.url(), &rollout)
        + "consumers: [{name: c, keys: [{sha256: \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"}], \
           limits: {requests: 1000000/h}}]\n";
    let gateway = Gateway::start(&yaml).await;
    let send = async |client: &Client, n: usize| {
        let user = n.to_string();
        let headers = [("x-user", &*user), ("authorization", "Bearer test"), ("cookie", "session=1")];
        let answer = client.send(client.request("GET", "/", &headers, "")).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "v1".to_owned()));
        answer
    };
    let (record, statuses) = until_by(&gateway, "aborted", send).await;
    assert_eq!(statuses.keys().collect::<Vec<_>>(), [&200]);
    assert!(record["reason"].as_str().unwrap().contains("errorRate"), "{record:#}");
    assert_eq!((&record["strategy"], &record["weight"]), (&json!("shadow"), &json!(0.0)), "{record:#}");
    // Both versions are judged over the same requests.
    let figures = &entries(&record)[1]["judgement"]["metrics"][0];
    assert_eq!(figures["stable"]["requests"], figures["candidate"]["requests"], "{record:#}");
    for seen in &*v2.seen.lock().unwrap() {
        assert!(!seen.headers.contains_key("authorization"), "{seen:?}");
    }
    // The caller's limit and the route's counts have each request once.
    let sent: usize = statuses.values().sum();
    assert!(v2.count() > 0 && v2.count() <= sent, "{} copies of {sent}", v2.count());
    let before = v2.count();
    for n in 0..50 {
        send(&gateway.client(), n).await;
    }
    assert_eq!(v2.count(), before, "the candidate got copies after its end");
}

#[tokio::test]
async fn an_equal_shadow_comes_to_its_end_and_moves_no_requests() {
    let (v1, v2) = (Upstream::fixed(200, "v1").await, Upstream::fixed(200, "v1").await);
    let rollout = "strategy: shadow, steps: [{weight: 50, hold: {requests: 60}}, {weight: 100, hold: {requests: 60}}], \
                   abortWhen: {errorRate: \"+0.3\", shadowDifference: 0.3}";
    let yaml = plain(&v1.url(), &v2.url(), rollout);
    let gateway = Gateway::start(&yaml).await;
    let (record, statuses) = until(&gateway, "promoted", false).await;
    assert_eq!(statuses.keys().collect::<Vec<_>>(), [&200]);
    assert_eq!(events(&record), ["begun", "stepUp", "promoted"], "{record:#}");
    assert!(record["reason"].as_str().unwrap().ends_with("a shadow moves no requests"), "{record:#}");
    assert_eq!(record["weight"], 0.0);
    assert!(gateway.metric(&pairs("compared")).await >= 120.0);
    let gateway = gateway.crash_and_restart(&yaml).await;
    let copies = v2.count();
    for _ in 0..50 {
        assert_eq!(gateway.client().get("/").await.text(), "v1");
    }
    assert_eq!((state(&gateway).await.as_str(), v2.count()), ("promoted", copies));
}

#[tokio::test]
async fn a_shadow_that_hangs_harms_nobody() {
    let v1 = Upstream::fixed(200, "v1").await;
    let v2 = Upstream::start(|_| std::future::pending()).await;
    let rollout = shadow(100, 1_000_000, "abortWhen: {errorRate: \"+0.3\"}, shadow: {maxInFlight: 2, timeout: 1h}");
    let gateway = Gateway::start(&plain(&v1.url(), &v2.url(), &rollout)).await;
    eventually("the shadow begins", || async { (state(&gateway).await == "running").then_some(()) }).await;
    let client = gateway.client();
    for _ in 0..50 {
        assert_eq!(client.get("/").await.text(), "v1");
    }
    gateway.metric_becomes(&pairs("skipped"), 48.0).await;
    assert!(v2.count() <= 2, "{} copies", v2.count());
    // Nor does it hold the gateway up that stops.
    gateway.signal("TERM");
    assert!(gateway.wait().await.0.success());
    // Where its time is over, it has failed.
    let rollout = rollout.replace("timeout: 1h", "timeout: 10ms");
    let gateway = Gateway::start(&plain(&v1.url(), &v2.url(), &rollout)).await;
    let (record, statuses) = until(&gateway, "aborted", false).await;
    assert_eq!(statuses.keys().collect::<Vec<_>>(), [&200], "{record:#}");
}

#[tokio::test]
async fn a_shadow_that_is_down_harms_nobody_and_is_aborted() {
    let (v1, down) = (Upstream::fixed(200, "v1").await, Upstream::nobody().await);
    let rollout = shadow(100, 1_000_000, "abortWhen: {errorRate: \"+0.3\"}");
    let gateway = Gateway::start(&plain(&v1.url(), &down, &rollout)).await;
    let (record, statuses) = until(&gateway, "aborted", false).await;
    assert_eq!(statuses.keys().collect::<Vec<_>>(), [&200], "{record:#}");
}

/// Of a request that may change something no copy is sent, unless the file says so.
#[tokio::test]
async fn requests_that_may_change_something_are_not_copied() {
    let (v1, v2) = (Upstream::fixed(200, "v1").await, Upstream::fixed(200, "v1").await);
    for (writes, copies) in [(false, 1), (true, 3)] {
        let rollout = shadow(100, 1_000_000, &format!("shadow: {{writes: {writes}}}"));
        let gateway = Gateway::start(&plain(&v1.url(), &v2.url(), &rollout)).await;
        eventually("the shadow begins", || async { (state(&gateway).await == "running").then_some(()) }).await;
        let (client, before) = (gateway.client(), v2.count());
        for method in ["POST", "DELETE", "GET"] {
            let body = if method == "GET" { "" } else { "body" };
            assert_eq!(client.send(client.request(method, "/", &[], body)).await.status, 200);
        }
        gateway.metric_becomes(&pairs("compared"), f64::from(copies)).await;
        assert_eq!(v2.count() - before, usize::try_from(copies).unwrap());
    }
}

#[tokio::test]
async fn a_shadow_with_other_answers_is_aborted_and_one_with_the_same_is_not() {
    let city = "{\"city\": \"Bonn\"}";
    let v1 = answering("weather", city, city).await;
    // The same values in other words, other values, and a tool that is not there.
    for (name, arguments, text, metric) in [
        ("weather", "{\"city\":\"Bonn\"}", "{ \"city\" : \"Bonn\" }", None),
        ("weather", city, "{\"city\": \"Ulm\"}", Some("shadowDifference")),
        ("wether", city, city, Some("toolCallErrors")),
    ] {
        let v2 = answering(name, arguments, text).await;
        let judged = match metric {
            Some(metric) => format!("abortWhen: {{{metric}: 0.3}}"),
            None => "abortWhen: {shadowDifference: 0.3, toolCallErrors: \"+0.3\", structuredOutputErrors: \"+0.3\"}"
                .to_owned(),
        };
        let requests = if metric.is_some() { 1_000_000 } else { 150 };
        let gateway = Gateway::start(&models(&v1.url(), &v2.url(), &shadow(100, requests, &judged))).await;
        let wanted = if metric.is_some() { "aborted" } else { "promoted" };
        let (record, statuses) = until_by(&gateway, wanted, async |client, n| ask(client, n, n % 3 == 0).await).await;
        assert_eq!(statuses.keys().collect::<Vec<_>>(), [&200]);
        if let Some(metric) = metric {
            assert!(record["reason"].as_str().unwrap().contains(metric), "{record:#}");
        }
    }
}

/// Server of the Open Inference Protocol with these scores.
async fn scoring(scores: [f64; 2]) -> Upstream {
    Upstream::start(move |_| async move {
        let body = json!({
            "model_name": "m", "id": scores[0].to_string(),
            "outputs": [{"name": "y", "datatype": "FP64", "shape": [1, 2], "data": scores}]
        });
        Some(reply(200, &[("content-type", "application/json")], body.to_string()))
    })
    .await
}

#[tokio::test]
async fn tensors_of_a_shadow_are_compared_within_the_tolerance() {
    let v1 = scoring([0.9, 0.1]).await;
    for (scores, wanted) in [([0.9001, 0.1], "promoted"), ([0.1, 0.9], "aborted")] {
        let v2 = scoring(scores).await;
        let requests = if wanted == "promoted" { 60 } else { 1_000_000 };
        let rollout = shadow(100, requests, "abortWhen: {shadowDifference: 0.3}");
        let yaml = models(&v1.url(), &v2.url(), &rollout).replace("protocol: openai", "protocol: oip");
        let gateway = Gateway::start(&yaml).await;
        let body = json!({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}).to_string();
        let send = async |client: &Client, _| {
            client.post("/v2/models/m/infer", &[("content-type", "application/json")], body.clone()).await
        };
        let (_, statuses) = until_by(&gateway, wanted, send).await;
        assert_eq!(statuses.keys().collect::<Vec<_>>(), [&200]);
    }
}

/// Two real llama.cpp servers of one model; the second has a chat template after which the model goes on counting.
fn right_and_wrong_template(folder: &Path) -> (LlamaServer, LlamaServer) {
    let file = folder.join("other.gguf");
    with_template(
        &model(),
        &file,
        Some("{%- for message in messages %}{{ message.content }}{%- endfor %} 1 2 3 4 5 6 7"),
    );
    (LlamaServer::start(2), LlamaServer::start_with(2, &["--model", file.to_str().unwrap()]))
}

/// The first server answers the callers, the other gets copies, and the pairs are compared.
#[tokio::test]
async fn a_shadow_over_two_real_servers_is_aborted_for_its_other_answers() {
    let folder = tempfile::tempdir().unwrap();
    let (v1, v2) = right_and_wrong_template(folder.path());
    let rollout = shadow(100, 1_000_000, "abortWhen: {shadowDifference: 0.1}, shadow: {timeout: 5m}");
    let gateway = Gateway::start(&models(&v1.url, &v2.url, &rollout)).await;
    let send = async |client: &Client, n: usize| {
        let user = n.to_string();
        client.chat("m", &[("x-user", &user)]).await
    };
    let (record, statuses) = until_by(&gateway, "aborted", send).await;
    assert_eq!(statuses.keys().collect::<Vec<_>>(), [&200]);
    assert!(record["reason"].as_str().unwrap().contains("shadowDifference"), "{record:#}");
    let share = record["judgement"]["metrics"][0]["candidate"]["estimate"].as_f64();
    assert!(share > Some(0.5), "{record:#}");
}

/// A canary whose template is wrong does not find an end; the version that stays answers in a sentence. After the abort every
/// caller gets that sentence, and a candidate that is the same server as the stable one is promoted.
#[tokio::test]
async fn a_canary_over_two_real_servers_is_aborted_for_its_endless_answers_and_an_equal_one_is_promoted() {
    let folder = tempfile::tempdir().unwrap();
    let (v1, v2) = right_and_wrong_template(folder.path());
    let same = LlamaServer::start(2);
    let asked = json!({
        "model": "m", "max_tokens": 12, "temperature": 0,
        "messages": [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    })
    .to_string();
    let ask = async |client: &Client, n: usize| {
        let (user, kind) = (n.to_string(), "application/json");
        client.post("/v1/chat/completions", &[("content-type", kind), ("x-user", &user)], asked.clone()).await
    };
    let rollout = "steps: [{weight: 50, hold: {requests: 60}}], abortWhen: {truncationRate: \"+0.3\"}";
    let configuration = |candidate: &LlamaServer| models(&v1.url, &candidate.url, rollout);

    let gateway = Gateway::start(&configuration(&v2)).await;
    let (record, statuses) = until_by(&gateway, "aborted", ask).await;
    assert_eq!(statuses.keys().collect::<Vec<_>>(), [&200]);
    assert!(record["reason"].as_str().unwrap().contains("truncationRate"), "{record:#}");
    for n in 0..8 {
        let answer = ask(&gateway.client(), n).await.json();
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    }

    let gateway = Gateway::start(&configuration(&same)).await;
    let (record, _) = until_by(&gateway, "promoted", ask).await;
    assert!(!events(&record).contains(&"aborted"), "{record:#}");
}
