//! Rollouts as persons, pipelines and other programs steer and see them: the command line with its exit codes, the admin API, and
//! notifications that the reference implementation of Standard Webhooks verifies.

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use spillway_tests::{Client, Collector, Gateway, PythonServer, Upstream, binary, eventually};

/// Key that `tests/python/webhook_receiver.py` verifies with.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A route whose rollout has these keys, and two versions that name themselves.
struct Bed {
    stable: Upstream,
    candidate: Upstream,
}

impl Bed {
    async fn start(candidate: u16) -> Self {
        Self { stable: Upstream::fixed(200, "stable").await, candidate: Upstream::fixed(candidate, "candidate").await }
    }

    fn yaml(&self, rollout: &str, further: &str) -> String {
        format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
backends:
  - {{name: v1, endpoints: [{{url: \"{}\"}}]}}
  - {{name: v2, endpoints: [{{url: \"{}\"}}], outlierDetection: {{consecutiveErrors: 1000, errorRate: 0}}}}
routes:
  - name: chat
    backendRefs: [{{name: v1}}, {{name: v2}}]
    rollout: {{to: v2, {rollout}}}
{further}",
            self.stable.url(),
            self.candidate.url()
        )
    }

    async fn gateway(&self, rollout: &str, further: &str) -> Gateway {
        let folder = tempfile::tempdir().unwrap();
        Gateway::start_with_variables(folder, &self.yaml(rollout, further), &[("HOOK", SECRET)]).await
    }
}

fn receivers(receiver: &PythonServer) -> String {
    let one = |path: &str| {
        format!(
            "  - {{webhook: {{url: \"{}/{path}\", secret: {{env: HOOK}}, retry: {{base: 20ms, max: 40ms}}}}, events: [rollout]}}\n",
            receiver.url
        )
    };
    format!("notifications:\n{}{}{}", one("ok"), one("flaky"), one("gone"))
}

/// Runs `spillway rollout` against a gateway; returns its exit code and what it printed.
async fn rollout(gateway: &Gateway, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(binary());
    command.arg("rollout").args(arguments).env("SPILLWAY_ADMIN", format!("http://{}", gateway.admin));
    let out: Output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let printed = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (out.status.code().unwrap(), printed)
}

async fn expect(gateway: &Gateway, arguments: &[&str], code: i32, parts: &[&str]) -> String {
    let (ended, printed) = rollout(gateway, arguments).await;
    assert_eq!(ended, code, "{arguments:?}\n{printed}");
    for part in parts {
        assert!(printed.contains(part), "{arguments:?} does not print {part}:\n{printed}");
    }
    printed
}

async fn record(gateway: &Gateway) -> Value {
    serde_json::from_str(&gateway.shown("/api/rollouts/chat").await).unwrap()
}

async fn becomes(gateway: &Gateway, state: &str) -> Value {
    eventually(&format!("the rollout is {state}"), || async {
        let record = record(gateway).await;
        (record["state"] == state).then_some(record)
    })
    .await
}

/// Sends requests one after another until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
}

impl Load {
    fn start(gateway: &Gateway) -> Self {
        let (stop, client) = (Arc::new(AtomicBool::new(false)), Client::new(gateway.address));
        let stopped = stop.clone();
        tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let _ = client.try_send(client.request("GET", "/", &[], "")).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Self { stop }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_steer_a_rollout_and_every_receiver_hears_of_each() {
    let (bed, receiver) = (Bed::start(200).await, PythonServer::start("webhook_receiver.py"));
    let steps = "steps: [{weight: 10, hold: {for: 1h}}, {weight: 50, hold: {for: 1h}}]";
    let gateway = bed.gateway(steps, &receivers(&receiver)).await;
    becomes(&gateway, "running").await;
    expect(&gateway, &["status"], 0, &["ROLLOUT", "chat", "running", "1/2", "10%", "v2"]).await;
    expect(&gateway, &["status", "chat"], 0, &["chat: running", "v2 against v1 (canary)", "weight 10%"]).await;
    expect(&gateway, &["pause", "chat", "--reason", "look at it"], 0, &["chat: paused", "look at it"]).await;
    expect(&gateway, &["status", "chat"], 3, &["chat: paused"]).await;
    // Nothing to pause.
    expect(&gateway, &["pause", "chat"], 1, &["409", "`pause` has no effect"]).await;
    expect(&gateway, &["resume", "chat"], 0, &["chat: running"]).await;
    expect(&gateway, &["promote", "chat"], 0, &["chat: promoted", "weight 100%"]).await;
    expect(&gateway, &["status", "chat"], 0, &["chat: promoted"]).await;
    let answered = bed.stable.count();
    for _ in 0..10 {
        assert_eq!(gateway.client().get("/").await.text(), "candidate");
    }
    assert_eq!(bed.stable.count(), answered);
    expect(&gateway, &["resume", "chat"], 1, &["409", "it has ended; `start` begins it anew"]).await;
    expect(&gateway, &["start", "chat"], 0, &["chat: "]).await;
    becomes(&gateway, "running").await;
    let admin = Client::new(gateway.admin);
    let own = [("x-spillway-admin", "1")];
    let aborted = admin.post("/api/rollouts/chat/abort", &own, "{\"reason\": \"bad answers\"}").await;
    assert_eq!((aborted.status.as_u16(), aborted.json()["state"].clone()), (200, json!("aborted")));
    expect(&gateway, &["status", "chat"], 1, &["chat: aborted", "bad answers"]).await;
    assert_eq!(gateway.client().get("/").await.text(), "stable");
    // Of the history, and of the flat record that Argo's `web` metric reads.
    let history = expect(&gateway, &["history", "chat"], 0, &["look at it", "loopback 127.0.0.1", "bad answers"]).await;
    assert!(history.find("promoted").unwrap() < history.find("started").unwrap(), "{history}");
    let printed = expect(&gateway, &["history", "chat", "--json"], 0, &[]).await;
    let entries: Value = serde_json::from_str(&printed).unwrap();
    let kinds: Vec<&str> = entries.as_array().unwrap().iter().map(|entry| entry["event"].as_str().unwrap()).collect();
    let expected = ["begun", "paused", "resumed", "promoted", "started", "begun", "aborted"];
    assert_eq!(kinds, expected);
    let shown = record(&gateway).await;
    for scalar in ["state", "step", "weight", "candidateRequests", "stableRequests", "reason", "verdict", "falseAlarm"]
    {
        assert!(!shown[scalar].is_object() && !shown[scalar].is_array() && !shown[scalar].is_null(), "{scalar}");
    }
    heard(&receiver, &expected).await;
    told(&gateway).await;
}

/// Asserts what the receivers got: each event once, signed, in its order, whatever happened on the way.
async fn heard(receiver: &PythonServer, expected: &[&str]) {
    let client = Client::new(receiver.url.strip_prefix("http://").unwrap().parse().unwrap());
    let at = |all: &[Value], path: &str, confirmed: bool| -> Vec<Value> {
        let is_meant =
            |one: &&Value| one["path"] == path && (one["status"] == 200 || one["status"] == 204) == confirmed;
        all.iter().filter(is_meant).cloned().collect()
    };
    let all = eventually("every event is confirmed", || async {
        let all: Vec<Value> = serde_json::from_value(client.get("/received").await.json()).unwrap();
        let is_whole = |path: &str| at(&all, path, true).len() == expected.len();
        (is_whole("/ok") && is_whole("/flaky")).then_some(all)
    })
    .await;
    assert!(all.iter().all(|one| one["verified"] == true), "{all:?}");
    for path in ["/ok", "/flaky"] {
        let confirmed = at(&all, path, true);
        let kinds: Vec<String> = confirmed.iter().map(|one| one["type"].as_str().unwrap().to_owned()).collect();
        let kinds: Vec<&str> = kinds.iter().map(|kind| kind.strip_prefix("dev.spillway.rollout.").unwrap()).collect();
        assert_eq!(kinds, expected, "{path}");
    }
    assert_eq!(at(&all, "/flaky", false).len(), 2 * expected.len(), "each is sent three times");
    assert_eq!(all.iter().filter(|one| one["path"] == "/gone").count(), 1, "one that is gone is left alone");
    let last = at(&all, "/ok", true).pop().unwrap();
    assert_eq!(
        (&last["source"], &last["subject"], &last["specVersion"]),
        (&json!("/spillway/rollouts"), &json!("chat"), &json!("1.0"))
    );
    assert_eq!(last["id"], last["webhookId"]);
    assert!(last["contentType"].as_str().unwrap().starts_with("application/cloudevents+json"));
    let data = &last["data"];
    assert_eq!((&data["entry"]["reason"], &data["rollout"]["state"]), (&json!("bad answers"), &json!("aborted")));
    assert_eq!(data["rollout"]["history"], json!([]), "the history is for those who ask");
}

/// Asserts what the log, the audit log and the metrics say.
async fn told(gateway: &Gateway) {
    let states = |state: &str| format!("spillway_rollout_state{{http_route=\"chat\",state=\"{state}\"}}");
    assert_eq!(gateway.metric(&states("aborted")).await, 1.0);
    assert_eq!(gateway.metric(&states("running")).await, 0.0);
    for result in ["promoted", "aborted"] {
        let ends = format!("spillway_rollout_ends_total{{http_route=\"chat\",result=\"{result}\"}}");
        gateway.metric_becomes(&ends, 1.0).await;
    }
    assert_eq!(gateway.events("rollout_promoted").len(), 1);
    let aborted = &gateway.events("rollout_aborted")[0];
    assert_eq!((&aborted["rollout"], &aborted["reason"]), (&json!("chat"), &json!("bad answers")));
    assert_eq!(gateway.events("rollout_command").len(), 5);
    let audited: Vec<Value> = gateway.events("audit");
    let paths: Vec<&str> = audited.iter().map(|line| line["path"].as_str().unwrap()).collect();
    assert!(paths.contains(&"/api/rollouts/chat/pause") && paths.contains(&"/api/rollouts/chat/abort"), "{paths:?}");
    assert!(!audited.iter().any(|line| line.to_string().contains("bad answers")), "no body is in the audit log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_waits_for_the_end_and_reads_it_from_the_exit_code() {
    let bed = Bed::start(200).await;
    let gateway = bed.gateway("steps: [{weight: 50, hold: {requests: 10}}, {pause: true}]", "").await;
    becomes(&gateway, "running").await;
    // Held, with nobody calling.
    expect(&gateway, &["status", "chat", "--wait", "--timeout", "1s"], 4, &["is still running after 1s"]).await;
    let load = Load::start(&gateway);
    let paused = expect(&gateway, &["status", "chat", "--wait", "--timeout", "60s"], 3, &["chat: paused"]).await;
    assert!(paused.contains("resume"), "{paused}");
    expect(&gateway, &["resume", "chat", "--wait"], 0, &["chat: promoted"]).await;
    drop(load);
    let printed = expect(&gateway, &["status", "chat", "--json"], 0, &[]).await;
    let shown: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&shown["state"], &shown["weight"]), (&json!("promoted"), &json!(100.0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_learns_of_an_abort_with_its_evidence() {
    let (bed, receiver) = (Bed::start(500).await, PythonServer::start("webhook_receiver.py"));
    let collector = Collector::start().await;
    let further = format!(
        "{}telemetry: {{tracing: {{otlp: {{endpoint: \"{}\"}}, sampleRatio: 0}}}}\n",
        receivers(&receiver),
        collector.url()
    );
    let rollout = "steps: [{weight: 50, hold: {for: 1h}}], abortWhen: {errorRate: \"+0.05\"}";
    let gateway = bed.gateway(rollout, &further).await;
    let _load = Load::start(&gateway);
    let told =
        expect(&gateway, &["status", "chat", "--wait", "--timeout", "90s"], 1, &["chat: aborted", "errorRate"]).await;
    let row = told.lines().find(|line| line.starts_with("errorRate")).unwrap();
    assert!(row.contains("+0.05") && row.contains("worse"), "{told}");
    assert_eq!(
        gateway.metric("spillway_rollout_finding{http_route=\"chat\",metric=\"errorRate\",finding=\"worse\"}").await,
        1.0
    );
    heard_of_abort(&receiver).await;
    // No request is traced, and every decision is.
    eventually("the decisions are traced", || async {
        let bytes = collector.bytes();
        let has = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        (has("rollout begun") && has("rollout aborted") && has("spillway.rollout.reason")).then_some(())
    })
    .await;
}

/// Asserts that the last event brings the evidence.
async fn heard_of_abort(receiver: &PythonServer) {
    let client = Client::new(receiver.url.strip_prefix("http://").unwrap().parse().unwrap());
    let aborted = eventually("the abort is told", || async {
        let all: Vec<Value> = serde_json::from_value(client.get("/received").await.json()).unwrap();
        all.into_iter().find(|one| one["path"] == "/ok" && one["type"] == "dev.spillway.rollout.aborted")
    })
    .await;
    let evidence = &aborted["data"]["entry"]["judgement"]["metrics"][0];
    assert_eq!((&evidence["name"], &evidence["finding"]), (&json!("errorRate"), &json!("worse")));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_use_is_refused_by_name() {
    let bed = Bed::start(200).await;
    let gateway = bed.gateway("steps: [{weight: 10, hold: {for: 1h}}]", "").await;
    becomes(&gateway, "running").await;
    expect(&gateway, &["status", "nobody"], 2, &["404", "there is no such rollout"]).await;
    expect(&gateway, &["abort", "nobody"], 2, &["404", "no route `nobody` with a `rollout`"]).await;
    expect(&gateway, &["history", "../config"], 2, &["404"]).await;
    let long = "x".repeat(501);
    expect(&gateway, &["abort", "chat", "--reason", &long], 2, &["400", "longer than 500 characters"]).await;
    for arguments in [&["pause"][..], &["status", "--wait"], &["status", "chat", "--timeout", "5s"], &["stop", "chat"]]
    {
        expect(&gateway, arguments, 2, &["Usage: spillway rollout"]).await;
    }
    expect(&gateway, &["status", "chat", "--wait", "--timeout", "soon"], 2, &["`soon` is not a duration"]).await;
    assert_eq!(record(&gateway).await["state"], "running", "nothing was changed");
    // Nobody answers.
    let mut command = Command::new(binary());
    command.args(["rollout", "status", "--admin", "http://127.0.0.1:1"]);
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(out.status.code(), Some(1));
    let admin = Client::new(gateway.admin);
    assert_eq!(admin.post("/api/rollouts/chat/abort", &[], "").await.status, 403, "without the header of operators");
    assert_eq!(admin.get("/api/rollouts/chat/abort").await.status, 405);
    assert_eq!(admin.post("/api/rollouts/chat", &[("x-spillway-admin", "1")], "").await.status, 405);
}
