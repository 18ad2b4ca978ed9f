//! Batches: files and batches in the API of OpenAI, lines beside callers, limits that hold for lines as for any request, and what
//! is left after a crash.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use spillway_tests::{
    Answer, Client, Gateway, Reply, Seen, Upstream, asked, binary, eventually, new_key, reply, script,
};

const PATH: &str = "/v1/chat/completions";

/// Answer of a server to a chat: the text of its question.
fn echoed(seen: &Seen) -> Reply {
    let question = asked(seen)["messages"][0]["content"].clone();
    let answer = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": question}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    });
    reply(200, &[("content-type", "application/json")], answer.to_string())
}

/// Server that repeats questions, each answer after `time`, and the most that it has answered at a time.
async fn slow(time: Duration) -> (Upstream, Arc<AtomicUsize>) {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen_most = most.clone();
    let server = Upstream::start(move |seen| {
        let (now, most) = (now.clone(), most.clone());
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(time).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Some(echoed(&seen))
        }
    });
    (server.await, seen_most)
}

/// Count that is one less when this is dropped, as when a caller leaves.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Fixture {
    gateway: Gateway,
    yaml: String,
    key: String,
    other: String,
}

impl Fixture {
    /// Gateway with the consumers `acme` and `globex`, a backend with `capacity`, and further settings of consumer, route and batch.
    async fn start(server: &str, backend: &str, consumer: &str, route: &str, batch: &str) -> Self {
        let ((key, first), (other, second)) = (new_key(), new_key());
        let yaml = format!(
            "consumers:
  - {{name: acme, keys: [{{sha256: {first}}}]{consumer}}}
  - {{name: globex, keys: [{{sha256: {second}}}]}}
backends: [{{name: pool, protocol: openai, endpoints: [{{url: \"{server}\"}}]{backend}}}]
routes: [{{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: pool}}], batch: true, retry: {{attempts: 0}}{route}}}]
batch: {{{batch}}}
"
        );
        Self { gateway: Gateway::start(&yaml).await, yaml, key, other }
    }

    fn client(&self) -> Client {
        self.gateway.client()
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.key)
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> Answer {
        let bearer = self.bearer();
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.client().send(self.client().request(method, path, &headers, body)).await
    }

    /// Sends a form with these fields.
    async fn form(&self, fields: &[(&str, Option<&str>, &str)]) -> Answer {
        let mut body = String::new();
        for (name, file, text) in fields {
            let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
            body.push_str(&format!("--xx\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n{text}\r\n"));
        }
        body.push_str("--xx--\r\n");
        let bearer = self.bearer();
        let headers = [("authorization", bearer.as_str()), ("content-type", "multipart/form-data; boundary=xx")];
        self.client().post("/v1/files", &headers, body).await
    }

    async fn send(&self, lines: &str) -> String {
        let sent = self.form(&[("purpose", None, "batch"), ("file", Some("input.jsonl"), lines)]).await;
        assert_eq!(sent.status, 200, "{}", sent.text());
        sent.json()["id"].as_str().unwrap().to_owned()
    }

    async fn batch_of(&self, file: &str, window: &str) -> String {
        let body = json!({"input_file_id": file, "endpoint": PATH, "completion_window": window});
        let made = self.ask("POST", "/v1/batches", body).await;
        assert_eq!(made.status, 200, "{}", made.text());
        made.json()["id"].as_str().unwrap().to_owned()
    }

    async fn batch(&self, lines: usize, window: &str) -> String {
        let file = self.send(&questions(lines)).await;
        self.batch_of(&file, window).await
    }

    async fn shown(&self, batch: &str) -> Value {
        self.ask("GET", &format!("/v1/batches/{batch}"), Value::Null).await.json()
    }

    /// The batch once it has ended.
    async fn ended(&self, batch: &str) -> Value {
        eventually("the batch has ended", || async {
            let shown = self.shown(batch).await;
            let status = shown["status"].as_str().unwrap_or_default().to_owned();
            ["completed", "failed", "expired", "cancelled"].contains(&status.as_str()).then_some(shown)
        })
        .await
    }

    /// Lines of a file of results, none where there is no file.
    async fn results(&self, file: &Value) -> Vec<Value> {
        let Some(file) = file.as_str() else { return Vec::new() };
        let content = self.ask("GET", &format!("/v1/files/{file}/content"), Value::Null).await;
        assert_eq!(content.status, 200, "{}", content.text());
        content.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn question(id: &str, text: &str) -> String {
    let body = json!({"model": "gpt", "messages": [{"role": "user", "content": text}]});
    json!({"custom_id": id, "method": "POST", "url": PATH, "body": body}).to_string()
}

fn questions(count: usize) -> String {
    (0..count).map(|n| question(&format!("q-{n}"), &format!("text {n}")) + "\n").collect()
}

/// Ids of the lines of results, in order.
fn ids(results: &[Value]) -> Vec<String> {
    let mut ids: Vec<_> = results.iter().map(|line| line["custom_id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

fn expected_ids(count: usize) -> Vec<String> {
    let mut ids: Vec<_> = (0..count).map(|n| format!("q-{n}")).collect();
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_client_runs_a_batch() {
    let server = Upstream::start(|seen| async move {
        Some(if asked(&seen)["model"] == "nothing" {
            reply(404, &[("content-type", "application/json")], r#"{"error":{"message":"none","code":"no"}}"#)
        } else {
            echoed(&seen)
        })
    })
    .await;
    let this = Fixture::start(&server.url(), "", "", "", "").await;
    let told = script("batches_client.py", &this.gateway, &[&this.key, &this.other]).await;
    let step = |name: &str| told.iter().find(|told| told["step"] == name).unwrap_or_else(|| panic!("{name}: {told:?}"));
    assert_eq!((&step("file")["object"], &step("file")["purpose"]), (&json!("file"), &json!("batch")));
    assert_eq!(step("created")["window"], 24 * 3600);
    let ended = step("ended");
    assert_eq!((&ended["status"], &ended["counts"]), (&json!("completed"), &json!([21, 20, 1])));
    assert_eq!((&ended["metadata"], &ended["model"]), (&json!({"job": "nightly"}), &json!("gpt")));
    assert_eq!((&ended["usage"], &ended["ordered"]), (&json!([60, 40, 100]), &json!(true)));
    let results = step("results");
    assert_eq!((results["ids"].as_array().unwrap().len(), &results["requests"]), (20, &json!(20)));
    assert_eq!(results["texts"].as_array().unwrap().len(), 20, "each line has its own answer");
    assert_eq!((&results["statuses"], &results["errors"]), (&json!([200]), &json!([["q-20", 404]])));
    let lists = step("lists");
    assert_eq!(lists["files"], json!(["batch", "batch_output", "batch_output"]));
    assert_eq!(
        (&lists["inputs"], &lists["batches"], &lists["other"]),
        (&json!([true]), &json!([true]), &json!([0, 0]))
    );
    let others = step("others");
    for what in ["file", "content", "deleted", "batch", "cancelled"] {
        assert_eq!(others[what], json!([404, "not_found", null]), "{what}");
    }
    assert_eq!(others["made"], json!([400, "invalid_value", "input_file_id"]));
    assert_eq!(step("failed")["status"], "failed");
    let missing = json!([1, "missing_required_parameter", "method"]);
    assert_eq!(step("failed")["errors"], json!([missing, [3, "duplicate_custom_id", "custom_id"]]));
    let refused = step("refused");
    assert_eq!(refused["endpoint"], json!([400, "invalid_value", "endpoint"]));
    assert_eq!(refused["window"], json!([400, "invalid_value", "completion_window"]));
    assert_eq!(refused["purpose"], json!([400, "invalid_value", "purpose"]));
    assert_eq!(refused["cancelled"], json!([409, "batch_has_ended", null]));
    assert_eq!((&step("deleted")["deleted"], &step("deleted")["again"][0]), (&json!(true), &json!(404)));
    assert_eq!(step("expires")["seconds"], 3600);
    this.gateway.metric_becomes("spillway_batch_lines_total{end=\"completed\"}", 20.0).await;
    assert_eq!(this.gateway.metric("spillway_batch_lines_in_flight").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loses_no_line_and_doubles_none() {
    let (server, _) = slow(Duration::from_millis(30)).await;
    let mut this = Fixture::start(&server.url(), "", "", "", "maxInFlight: 4").await;
    let batch = this.batch(120, "1h").await;
    for done in [10, 50] {
        eventually("lines have ended", || async {
            (this.shown(&batch).await["request_counts"]["completed"].as_u64()? >= done).then_some(())
        })
        .await;
        let Fixture { gateway, yaml, key, other } = this;
        let gateway = gateway.crash_and_restart(&yaml).await;
        this = Fixture { gateway, yaml, key, other };
    }
    let ended = this.ended(&batch).await;
    assert_eq!((&ended["status"], &ended["request_counts"]["completed"]), (&json!("completed"), &json!(120)));
    let results = this.results(&ended["output_file_id"]).await;
    assert_eq!(ids(&results), expected_ids(120));
    for line in &results {
        let number = line["custom_id"].as_str().unwrap().trim_start_matches("q-");
        let text = &line["response"]["body"]["choices"][0]["message"]["content"];
        assert_eq!(text, &json!(format!("text {number}")), "each line has its own answer");
    }
    assert!(server.count() < 120 + 2 * 4 + 1, "only what was under way is asked again: {}", server.count());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_gives_its_lines_to_the_next() {
    let (server, _) = slow(Duration::from_millis(50)).await;
    let this = Fixture::start(&server.url(), "", "", "", "maxInFlight: 4").await;
    let batch = this.batch(40, "1h").await;
    eventually("lines have ended", || async {
        (this.shown(&batch).await["request_counts"]["completed"].as_u64()? >= 8).then_some(())
    })
    .await;
    let (status, pid) = this.gateway.upgrade().await;
    assert_eq!(status, Some(0), "{pid}");
    let ended = this.ended(&batch).await;
    assert_eq!(ended["request_counts"], json!({"total": 40, "completed": 40, "failed": 0}));
    assert_eq!(ids(&this.results(&ended["output_file_id"]).await), expected_ids(40));
    assert_eq!(server.count(), 40, "no line was asked twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_leave_slots_to_callers_and_give_theirs_back() {
    let (now, most, holds) =
        (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let (seen_most, held) = (most.clone(), holds.clone());
    let server = Upstream::start(move |seen| {
        let (now, most, held) = (now.clone(), most.clone(), held.clone());
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let counted = Counted(now);
            // A line takes very long while callers are to come.
            let is_line = asked(&seen)["messages"][0]["content"].as_str().unwrap_or_default().starts_with("text");
            while is_line && held.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(counted);
            Some(echoed(&seen))
        }
    })
    .await;
    let (backend, queue) = (", capacity: {maxInFlight: 4}", ", whenSaturated: {queue: {maxDepth: 50, maxWait: 30s}}");
    let this = Fixture::start(&server.url(), backend, "", queue, "maxShare: 0.5").await;
    let batch = this.batch(60, "1h").await;
    eventually("two lines at a time", || async { (seen_most.load(Ordering::SeqCst) >= 2).then_some(()) }).await;
    holds.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(seen_most.load(Ordering::SeqCst), 2, "half of the slots are for callers");
    // More callers than slots: lines give way.
    let bearer = this.bearer();
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..12 {
        let (client, bearer) = (this.client(), bearer.clone());
        callers.spawn(async move {
            let body = json!({"model": "gpt", "messages": [{"role": "user", "content": format!("caller {n}")}]});
            let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
            client.post(PATH, &headers, body.to_string()).await.status
        });
    }
    while let Some(status) = callers.join_next().await {
        assert_eq!(status.unwrap(), StatusCode::OK);
    }
    let displaced = this.gateway.metric("spillway_batch_lines_total{end=\"displaced\"}").await;
    assert!(displaced >= 1.0, "callers who waited got the places of lines: {displaced}");
    holds.store(false, Ordering::SeqCst);
    let ended = this.ended(&batch).await;
    assert_eq!(ended["request_counts"], json!({"total": 60, "completed": 60, "failed": 0}));
    assert!(seen_most.load(Ordering::SeqCst) <= 4);
    // Looks for a place are no requests: dashboards would show a gateway that fails.
    let looked = this.gateway.metric("spillway_batch_lines_total{end=\"no_room\"}").await;
    assert!(looked >= 1.0);
    assert!(this.gateway.events("access").iter().all(|line| line["status"] != 503), "{}", this.gateway.log());
    let shed = this.gateway.metrics().await;
    let shed = shed.lines().find(|line| line.starts_with("spillway_sheds_total{") && !line.ends_with(" 0"));
    assert_eq!(shed, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_one_slot_takes_lines_while_nobody_calls() {
    let (server, most) = slow(Duration::from_millis(10)).await;
    let this = Fixture::start(&server.url(), ", capacity: {maxInFlight: 1}", "", "", "").await;
    let batch = this.batch(10, "1h").await;
    let ended = this.ended(&batch).await;
    assert_eq!((&ended["status"], most.load(Ordering::SeqCst)), (&json!("completed"), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_access_hold_for_lines() {
    let (server, _) = slow(Duration::ZERO).await;
    let limits = ", limits: {requests: 20/s}, models: [gpt]";
    let this = Fixture::start(&server.url(), "", limits, "", "").await;
    let lines = questions(40) + &question("forbidden", "x").replace("\"gpt\"", "\"secret\"") + "\n";
    let file = this.send(&lines).await;
    let batch = this.batch_of(&file, "1h").await;
    // Questions for the batch take from the same limit, so that it may refuse them too.
    let ended = eventually("the batch has ended", || async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let shown = this.shown(&batch).await;
        (shown["status"] == "completed").then_some(shown)
    })
    .await;
    assert_eq!(ended["request_counts"], json!({"total": 41, "completed": 40, "failed": 1}));
    assert!(
        this.gateway.metric("spillway_batch_lines_total{end=\"no_room\"}").await >= 1.0,
        "lines waited for the limit"
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    let errors = this.results(&ended["error_file_id"]).await;
    assert_eq!(ids(&errors), ["forbidden"]);
    assert!(errors[0]["response"]["status_code"].as_u64().unwrap() >= 400, "{}", errors[0]);
    assert!(server.seen.lock().unwrap().iter().all(|seen| asked(seen)["model"] == "gpt"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_is_gone_has_no_lines_answered() {
    let (server, _) = slow(Duration::from_millis(100)).await;
    let this = Fixture::start(&server.url(), "", "", "", "maxInFlight: 1").await;
    let file = this.send(&questions(20)).await;
    let batch = this.batch_of(&file, "1h").await;
    eventually("a line has ended", || async {
        (this.shown(&batch).await["request_counts"]["completed"].as_u64()? >= 1).then_some(())
    })
    .await;
    // Another key of the consumer, which did not make the batch, sees what became of it.
    let (key, digest) = new_key();
    let before = this.yaml.lines().find(|line| line.contains("name: acme")).unwrap();
    let after = format!("  - {{name: acme, keys: [{{sha256: {digest}}}]}}");
    let yaml = this.yaml.replace(before, &after);
    let edits = this.gateway.edits();
    let whole = spillway_tests::whole(&format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{yaml}"));
    std::fs::write(this.gateway.config(), whole).unwrap();
    assert_eq!(this.gateway.reloads(edits).await["event"], "config_reloaded");
    let this = Fixture { key, ..this };
    let ended = this.ended(&batch).await;
    assert_eq!(ended["status"], "completed");
    let errors = this.results(&ended["error_file_id"]).await;
    assert!(!errors.is_empty());
    for line in &errors {
        assert_eq!(line["response"]["status_code"], 401, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_cancelled_with_what_it_has() {
    let (server, _) = slow(Duration::from_millis(50)).await;
    let this = Fixture::start(&server.url(), "", "", "", "maxInFlight: 2").await;
    let file = this.send(&questions(200)).await;
    let batch = this.batch_of(&file, "1h").await;
    eventually("lines have ended", || async {
        (this.shown(&batch).await["request_counts"]["completed"].as_u64()? >= 4).then_some(())
    })
    .await;
    let in_use = this.ask("DELETE", &format!("/v1/files/{file}"), Value::Null).await;
    assert_eq!((in_use.status.as_u16(), &in_use.json()["error"]["code"]), (409, &json!("file_in_use")));
    let cancelled = this.ask("POST", &format!("/v1/batches/{batch}/cancel"), Value::Null).await;
    assert_eq!((cancelled.status.as_u16(), &cancelled.json()["status"]), (200, &json!("cancelling")));
    let ended = this.ended(&batch).await;
    assert_eq!(ended["status"], "cancelled");
    let done = ended["request_counts"]["completed"].as_u64().unwrap();
    assert!((4..200).contains(&done));
    assert_eq!(this.results(&ended["output_file_id"]).await.len() as u64, done);
    assert_eq!(this.ask("DELETE", &format!("/v1/files/{file}"), Value::Null).await.status, 200);
    let asked = server.count();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.count(), asked, "no further line is asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_late_is_told() {
    let (server, _) = slow(Duration::from_millis(200)).await;
    let this = Fixture::start(&server.url(), "", "", "", "maxInFlight: 1").await;
    let batch = this.batch(60, "2s").await;
    let ended = this.ended(&batch).await;
    assert_eq!(ended["status"], "expired");
    let (output, errors) = (this.results(&ended["output_file_id"]).await, this.results(&ended["error_file_id"]).await);
    assert!(!output.is_empty());
    for line in &errors {
        assert_eq!(line["error"]["code"], "batch_expired", "{line}");
    }
    assert_eq!(ids(&[output, errors].concat()), expected_ids(60));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_is_asked_again_and_one_that_is_away_is_waited_for() {
    let failures = Arc::new(AtomicUsize::new(0));
    let count = failures.clone();
    let server = Upstream::start(move |seen| {
        let count = count.clone();
        async move {
            let text = asked(&seen)["messages"][0]["content"].as_str().unwrap_or_default().to_owned();
            let fails = match text.as_str() {
                "text 0" => true,
                "text 1" => count.fetch_add(1, Ordering::SeqCst) == 0,
                _ => false,
            };
            Some(if fails { reply(500, &[], "broken") } else { echoed(&seen) })
        }
    })
    .await;
    let this =
        Fixture::start(&server.url(), ", outlierDetection: {consecutiveErrors: 100, errorRate: 0}", "", "", "").await;
    let batch = this.batch(4, "1h").await;
    let ended = this.ended(&batch).await;
    assert_eq!(ended["request_counts"], json!({"total": 4, "completed": 3, "failed": 1}));
    let errors = this.results(&ended["error_file_id"]).await;
    assert_eq!((errors[0]["custom_id"].as_str(), &errors[0]["response"]["status_code"]), (Some("q-0"), &json!(500)));
    assert_eq!(errors[0]["response"]["body"], "broken");
    let asked_for = |text: &str| {
        server.seen.lock().unwrap().iter().filter(|seen| asked(seen)["messages"][0]["content"] == text).count()
    };
    assert_eq!((asked_for("text 0"), asked_for("text 1"), asked_for("text 2")), (3, 2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_routes_that_take_batches_answer_lines() {
    let (server, _) = slow(Duration::ZERO).await;
    let this = Fixture::start(&server.url(), "", "", "", "").await;
    let yaml = this.yaml.replace(
        "routes: [",
        "routes: [{name: own, matches: [{path: {prefix: /v1}, model: own}], backendRefs: [{name: pool}]}, ",
    );
    let Fixture { gateway, key, other, .. } = this;
    let gateway = gateway.crash_and_restart(&yaml).await;
    let this = Fixture { gateway, yaml, key, other };
    let lines = question("a", "x") + "\n" + &question("b", "x").replace("\"gpt\"", "\"own\"");
    let file = this.send(&lines).await;
    let batch = this.batch_of(&file, "1h").await;
    let ended = this.ended(&batch).await;
    let errors = this.results(&ended["error_file_id"]).await;
    assert_eq!(ids(&errors), ["b"]);
    assert_eq!(errors[0]["response"]["body"]["error"]["code"], "unsupported_in_batch");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_runs_a_file() {
    let server = Upstream::start(|seen| async move {
        let fails = asked(&seen)["messages"][0]["content"] == "text 1";
        Some(if fails { reply(400, &[], "no") } else { echoed(&seen) })
    })
    .await;
    let this = Fixture::start(&server.url(), "", "", "", "").await;
    let folder = tempfile::tempdir().unwrap();
    let run = |file: &str, lines: String| {
        std::fs::write(folder.path().join(file), lines).unwrap();
        let mut command = std::process::Command::new(binary());
        command.args(["batch", "run", file, "--url", &format!("http://{}", this.gateway.address), "--window", "1h"]);
        command.current_dir(folder.path()).env("SPILLWAY_API_KEY", &this.key);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let there = |file: &str| std::fs::read_to_string(folder.path().join(file)).ok();
    let out = run("good.jsonl", question("a", "x")).await.unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    let told = String::from_utf8(out.stdout).unwrap();
    assert!(told.ends_with("completed: 1 of 1 lines answered, 0 failed\n"), "{told}");
    assert!(there("good.output.jsonl").unwrap().contains("\"custom_id\":\"a\""));
    assert_eq!(there("good.errors.jsonl"), None);
    let out = run("half.jsonl", questions(2)).await.unwrap();
    assert_eq!(out.status.code(), Some(3));
    assert!(there("half.errors.jsonl").unwrap().contains("q-1"));
    let out = run("bad.jsonl", questions(1) + "{}\n").await.unwrap();
    assert_eq!(out.status.code(), Some(3));
    assert!(String::from_utf8(out.stdout).unwrap().contains("line 2: `custom_id` is missing."));
    let out = run("none.jsonl", "x".to_owned()).await.unwrap();
    assert_eq!(out.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_that_are_none_are_refused_and_leave_nothing() {
    let server = Upstream::fixed(200, "{}").await;
    let this = Fixture::start(&server.url(), "", "", "", "maxFile: 1MiB, maxStored: 1536KiB, maxFiles: 2").await;
    let (long, half) = ("x".repeat(1_100_000), "x".repeat(700_000));
    let file = |text| ("file", Some("a"), text);
    let purpose = ("purpose", None, "batch");
    for (fields, status, code) in [
        (vec![purpose], 400, "missing_required_parameter"),
        (vec![file("x")], 400, "missing_required_parameter"),
        (vec![purpose, file(&long)], 413, "file_too_large"),
        (vec![("purpose", None, &*long), file("x")], 400, "string_above_max_length"),
        (vec![purpose, purpose, file("x")], 400, "unsupported_parameter"),
        (vec![purpose, ("other", None, "x"), file("x")], 400, "unsupported_parameter"),
        (vec![purpose, ("file", Some("a\u{1}b"), "x")], 400, "invalid_form"),
        (vec![purpose, ("file", Some(&"n".repeat(600)), "x")], 400, "invalid_value"),
        (vec![purpose, ("expires_after[seconds]", None, "3600"), file("x")], 400, "invalid_value"),
        (vec![purpose, file(&half)], 200, ""),
        (vec![purpose, file(&half)], 200, ""),
        (vec![purpose, file("x")], 429, "storage_full"),
    ] {
        let answer = this.form(&fields).await;
        let said = answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned();
        assert_eq!((answer.status.as_u16(), said.as_str()), (status, code), "{}", answer.text());
    }
    let bearer = this.bearer();
    let endless = format!("--xx\r\nx-long: {}", "x".repeat(1 << 20));
    for (kind, body) in [
        ("application/json", "{}"),
        ("multipart/form-data; boundary=xx", "--xx\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\nabc"),
        ("multipart/form-data; boundary=xx", "nothing"),
        ("multipart/form-data; boundary=xx", &*endless),
        ("multipart/form-data", "--xx--"),
    ] {
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        let answer = this.client().post("/v1/files", &headers, body.to_owned()).await;
        let said = answer.json()["error"]["code"].clone();
        assert_eq!((answer.status.as_u16(), said), (400, json!("invalid_form")), "{kind} {}", answer.text());
    }
    let anonymous = this.client().get("/v1/files").await;
    assert_eq!(anonymous.status, 401);
    eventually("what was refused is gone from the disk", || async {
        let kept = std::fs::read_dir(this.gateway.folder().join("state/batch/files")).unwrap().count();
        (kept == 2).then_some(())
    })
    .await;
    for (method, path, status) in [
        ("PUT", "/v1/files", 405),
        ("POST", "/v1/files/file-1/content", 405),
        ("GET", "/v1/files/..%2f..%2fbatch.db/content", 404),
        ("GET", "/v1/batches/a/b/c", 404),
        ("GET", "/v1/files?limit=0", 400),
        ("GET", "/v1/batches?limit=101", 400),
        ("GET", "/v1/batches?after=batch_0", 404),
        ("GET", "/v1/files?order=up", 400),
    ] {
        let answer = this.ask(method, path, Value::Null).await;
        let expected = if path.contains("%2f") { vec![400, 404] } else { vec![status] };
        assert!(expected.contains(&answer.status.as_u16()), "{method} {path}: {}", answer.status);
    }
}
