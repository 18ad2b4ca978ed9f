//! Probes of `routes[].quality`: each target is asked at no caller's cost, a change that nobody announced is noticed, and a
//! target that has no room or is not there is not asked.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use spillway_tests::{
    Client, Gateway, Reply, Seen, Upstream, asked, binary, claude, eventually, families, minilm, model, reply, whole,
};

const JSON: (&str, &str) = ("content-type", "application/json");
/// A question of meaning, and one of a value.
const PROBES: &str = concat!(
    "{\"name\": \"capital\", \"prompt\": \"What is the capital of France?\", \"expected\": \"The capital of France is Paris.\"}\n",
    "{\"name\": \"greeting\", \"request\": {\"messages\": [{\"role\": \"user\", \"content\": \"Greet me\"}], \"max_tokens\": 9},",
    " \"exact\": {\"/choices/0/message/content\": \"Hello \u{fc}.\", \"/choices/0/finish_reason\": \"stop\"}}\n",
);

/// Server of OpenAI's API whose answers a test changes.
#[derive(Clone)]
struct Provider(Arc<Mutex<(String, String, String)>>);

impl Provider {
    fn new() -> Self {
        let paris = "Paris is the capital city of France.".to_owned();
        Self(Arc::new(Mutex::new((paris, "m-0613".to_owned(), "fp_1".to_owned()))))
    }

    fn set(&self, text: &str, model: &str, fingerprint: &str) {
        *self.0.lock().unwrap() = (text.to_owned(), model.to_owned(), fingerprint.to_owned());
    }

    async fn start(&self) -> Upstream {
        let this = self.clone();
        Upstream::start(move |seen| {
            let reply = this.answer(&seen);
            async move { Some(reply) }
        })
        .await
    }

    fn answer(&self, seen: &Seen) -> Reply {
        let (text, model, fingerprint) = self.0.lock().unwrap().clone();
        let said = asked(seen)["messages"][0]["content"].as_str().unwrap().to_owned();
        let text = if said.contains("capital") { text } else { "Hello \u{fc}.".to_owned() };
        let body = json!({"id": "c", "object": "chat.completion", "model": model, "system_fingerprint": fingerprint,
            "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]});
        reply(200, &[JSON], body.to_string())
    }
}

async fn shown(gateway: &Gateway, target: &str) -> Value {
    let all: Value = serde_json::from_str(&gateway.shown("/api/quality").await).unwrap();
    let targets = all["routes"].as_array().unwrap().iter().flat_map(|route| route["probes"].as_array().unwrap());
    targets.into_iter().find(|one| one["target"] == target).cloned().unwrap_or_default()
}

fn probe<'v>(target: &'v Value, name: &str) -> &'v Value {
    let probes = target["probes"].as_array().map(Vec::as_slice).unwrap_or_default();
    probes.iter().find(|one| one["probe"] == name).unwrap_or(&Value::Null)
}

/// Waits until a probe of a target has passed, or has not.
async fn becomes(gateway: &Gateway, target: &str, name: &str, passing: bool) -> Value {
    eventually(&format!("{name} at {target} is {passing}"), || async {
        let target = shown(gateway, target).await;
        (probe(&target, name)["passing"] == passing).then_some(target)
    })
    .await
}

/// Waits until so many probes of a target had this result.
async fn results(gateway: &Gateway, target: &str, result: &str, least: u64) {
    eventually(&format!("{least} probes of {target} are {result}"), || async {
        let target = shown(gateway, target).await;
        (target["results"][result].as_u64().unwrap_or(0) >= least).then_some(())
    })
    .await;
}

fn folder(probes: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("probes.jsonl"), probes).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn each_target_is_asked_at_no_callers_cost_and_a_silent_change_is_noticed() {
    let (old, new, hook) = (Provider::new(), Provider::new(), Upstream::fixed(200, "ok").await);
    let (stable, candidate, other) = (old.start().await, new.start().await, Upstream::start(claude).await);
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
backends:
  - {{name: stable, protocol: openai, endpoints: [{{url: \"{}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}, model: m}}
  - {{name: candidate, protocol: openai, endpoints: [{{url: \"{}\"}}], model: m}}
  - {{name: other, protocol: anthropic, endpoints: [{{url: \"{}\"}}], model: claude}}
models: [{{name: minilm, source: \"{}\", task: embedding}}, {{name: inside, source: \"{}\", contextLength: 256, device: cpu}}]
routes:
  - name: chat
    quality:
      sample: 1.0
      probes: {{file: probes.jsonl, every: 1s, embedding: minilm, minSimilarity: 0.7, maxPerHour: 36000, maxTokensPerHour: 100000000}}
    backendRefs: [{{name: stable}}, {{name: candidate}}, {{name: other, weight: 0}}, {{model: inside, weight: 0}}]
    rollout: {{to: candidate, steps: [{{weight: 1, hold: {{for: 1h}}}}]}}
    filters: [{{rateLimit: {{requests: 1/day, by: route}}}}]
notifications: [{{webhook: {{url: \"{}/hook\", secret: {{env: HOOK}}}}, events: [drift]}}]
",
        stable.url(),
        candidate.url(),
        other.url(),
        minilm().display(),
        model().display(),
        hook.url()
    );
    let secret = [("HOOK", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")];
    let gateway = Gateway::start_with_variables(folder(PROBES), &yaml, &secret).await;
    for target in ["stable", "candidate"] {
        let target = becomes(&gateway, target, "capital", true).await;
        let capital = probe(&target, "capital");
        assert!(capital["similarity"].as_f64().unwrap() > 0.7 && capital["seconds"].as_f64().is_some(), "{target}");
        assert_eq!(target["providers"][0]["models"][0]["value"], "m-0613", "{target}");
        assert_eq!(target["providers"][0]["fingerprints"][0]["value"], "fp_1", "{target}");
    }
    let seen = stable.last();
    assert_eq!(
        (seen.headers["authorization"].to_str().unwrap(), &asked(&seen)["model"]),
        ("Bearer upstream-secret", &json!("m"))
    );
    // The request is translated, and its answer translated back.
    let translated = becomes(&gateway, "other", "greeting", true).await;
    assert_eq!(other.last().path, "/v1/messages");
    assert_eq!(translated["providers"][0]["models"][0]["value"], "claude-x", "{translated}");
    let failing = becomes(&gateway, "other", "capital", false).await;
    assert!(probe(&failing, "capital")["reason"].as_str().unwrap().contains("is below 0.7"), "{failing}");
    becomes(&gateway, "inside", "greeting", false).await;

    old.set("The wheel was invented in Mesopotamia.", "m-1106", "fp_2");
    becomes(&gateway, "stable", "capital", false).await;
    let failed = |event: &str| {
        let events = gateway.events(event).into_iter().filter(|event| event["served_by"] == "stable");
        events.map(|event| format!("{} {}", event["probe"].as_str().unwrap(), event["change"])).collect::<Vec<_>>()
    };
    eventually("the change of model and fingerprint is told once", || async {
        let mut kinds: Vec<String> =
            failed("probe_changed").iter().map(|event| event.split(' ').next_back().unwrap().to_owned()).collect();
        kinds.sort();
        (kinds == ["\"fingerprint\"", "\"model\""]).then_some(())
    })
    .await;
    assert_eq!(failed("probe_failed"), ["capital null"]);
    gateway
        .metric_becomes("spillway_quality_probe_failing{http_route=\"chat\",target=\"stable\",probe=\"capital\"}", 1.0)
        .await;
    let changes = "spillway_quality_probe_changes_total{http_route=\"chat\",target=\"stable\",change=";
    gateway.metric_becomes(&format!("{changes}\"model\"}}"), 1.0).await;
    gateway.metric_becomes(&format!("{changes}\"fingerprint\"}}"), 1.0).await;
    eventually("receivers are told", || async {
        let told = hook.seen.lock().unwrap().clone();
        let kinds: Vec<Value> = told
            .iter()
            .map(asked)
            .filter(|event| event["data"]["target"] == "stable")
            .map(|event| event["type"].clone())
            .collect();
        let has = |kind: &str| kinds.iter().any(|known| known == &format!("dev.spillway.drift.{kind}"));
        (has("probeFailed") && has("probeChanged")).then_some(())
    })
    .await;
    old.set("Paris is the capital city of France.", "m-1106", "fp_2");
    becomes(&gateway, "stable", "capital", true).await;
    eventually("the return is told", || async { (failed("probe_back") == ["capital null"]).then_some(()) }).await;

    let admin = format!("http://{}", gateway.admin);
    let mut report = Command::new(binary());
    report.args(["drift", "report", "--route", "chat", "-o", "-", "--admin", &admin]);
    let page = String::from_utf8(report.output().unwrap().stdout).unwrap();
    for part in ["capital", "m-1106", "fp_2", "similarity"] {
        assert!(page.contains(part), "{part}: {page}");
    }

    // Nothing of all this counts for a caller.
    let metrics = gateway.shown("/metrics").await;
    let counted = |name: &str| {
        metrics.lines().filter(|line| line.starts_with(name)).filter(|line| !line.ends_with(" 0")).collect::<Vec<_>>()
    };
    let families = families();
    for name in [
        "http_server_request_duration_seconds_count",
        "gen_ai_client_operation_duration_seconds_count",
        "gen_ai_client_token_usage_count",
        "spillway_endpoint_attempts_total",
        "spillway_quality_sampled_total",
        "spillway_limit",
    ] {
        let is_known = families.iter().any(|family| name.starts_with(family.name) || family.name.starts_with(name));
        assert!(is_known, "no metric is called {name}");
        let counted: Vec<&str> = counted(name).into_iter().filter(|line| !line.contains("_keys")).collect();
        assert!(counted.is_empty(), "{counted:?}");
    }
    let rollout: Value = serde_json::from_str(&gateway.shown("/api/rollouts/chat").await).unwrap();
    assert_eq!(rollout["state"], "running", "{rollout}");
    assert!(gateway.events("access").is_empty());
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "Greet me"}]}).to_string();
    let answer = gateway.client().post("/v1/chat/completions", &[JSON], body).await;
    assert_eq!(answer.status, 200, "the caller's one request of the day is left: {}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_without_room_or_out_of_service_is_not_asked() {
    let (held, calls) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (holds, counts) = (held.clone(), calls.clone());
    let provider = Provider::new();
    let upstream = Upstream::start(move |seen| {
        let (held, is_caller) = (holds.clone(), asked(&seen)["user"] == "caller");
        if !is_caller {
            counts.fetch_add(1, Ordering::SeqCst);
        }
        let reply = provider.answer(&seen);
        async move {
            while is_caller && held.load(Ordering::SeqCst) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            Some(reply)
        }
    })
    .await;
    let probes = "{\"prompt\": \"Greet me\", \"exact\": {\"/choices/0/finish_reason\": \"stop\"}}\n";
    let route = |quality: &str| {
        format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
backends:
  - {{name: b, protocol: openai, endpoints: [{{url: \"{0}\"}}], capacity: {{maxInFlight: 1}}}}
  - {{name: gone, protocol: openai, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}
routes:
  - {{name: chat, {quality}whenSaturated: {{queue: {{maxWait: 60s}}}}, backendRefs: [{{name: b}}, {{name: gone, weight: 0}}]}}
",
            upstream.url()
        )
    };
    let with =
        route("quality: {probes: {file: probes.jsonl, every: 1s, maxPerHour: 36000, maxTokensPerHour: 100000000}}, ");
    let gateway = Gateway::start_in(folder(probes), &route("")).await;
    let call = || {
        let body = json!({"model": "m", "user": "caller", "messages": [{"role": "user", "content": "Greet me"}]});
        let client = gateway.client();
        tokio::spawn(async move { client.post("/v1/chat/completions", &[JSON], body.to_string()).await.status })
    };
    let first = call();
    eventually("the caller has the only slot", || async { (upstream.count() == 1).then_some(()) }).await;
    std::fs::write(gateway.config(), whole(&with)).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    results(&gateway, "b", "busy", 2).await;
    assert_eq!(calls.load(Ordering::SeqCst), 0, "a server without room was asked");
    held.store(false, Ordering::SeqCst);
    assert_eq!(first.await.unwrap(), 200);
    results(&gateway, "b", "passed", 1).await;
    // No answer is no drift: the health of servers is watched elsewhere.
    results(&gateway, "gone", "unanswered", 1).await;
    assert!(gateway.events("probe_failed").is_empty());

    let address = upstream.url().replace("http://", "");
    let admin = Client::new(gateway.admin);
    let drain = format!("/api/backends/b/endpoints/{address}/drain");
    assert_eq!(admin.post(&drain, &[("x-spillway-admin", "1")], "").await.status, 200);
    results(&gateway, "b", "unavailable", 1).await;
    let before = calls.load(Ordering::SeqCst);
    results(&gateway, "b", "unavailable", 3).await;
    assert_eq!(calls.load(Ordering::SeqCst), before, "a drained server was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_read_again_and_a_wrong_line_is_named_and_a_restart_forgets_nothing() {
    let provider = Provider::new();
    let upstream = provider.start().await;
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, quality: {{probes: {{file: probes.jsonl, every: 10m}}}}, backendRefs: [{{name: b}}]}}]
",
        upstream.url()
    );
    let line = |name: &str| {
        format!(
            "{{\"name\": \"{name}\", \"prompt\": \"Greet me\", \"exact\": {{\"/choices/0/finish_reason\": \"stop\"}}}}\n"
        )
    };
    let gateway = Gateway::start_in(folder(&line("one")), &yaml).await;
    becomes(&gateway, "b", "one", true).await;
    let file = gateway.folder().join("probes.jsonl");
    std::fs::write(&file, line("one") + &line("two")).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    becomes(&gateway, "b", "two", true).await;
    assert_eq!(upstream.count(), 2, "only the new probe is asked before the next round");

    std::fs::write(&file, line("one") + "{\"prompt\": \"a\", \"check\": \"true\"}\n").unwrap();
    let rejected = gateway.reloads(1).await;
    assert_eq!(rejected["event"], "config_rejected");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let out =
            Command::new(binary()).args(["check", "spillway.yaml"]).current_dir(gateway.folder()).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{text}");
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
    };
    for (text, said) in [
        (
            line("one") + "{\"prompt\": \"a\", \"check\": \"true\"}\n",
            "probes.jsonl: line 2: `check` (an expression) is not supported",
        ),
        (line("one") + "\n{\"prompt\": \"a\"}", "probes.jsonl: line 3: expected either `expected` or `exact`"),
        ("{\"prompt\": \"a\", \"expected\": \"b\"}".to_owned(), "`line 1` has `expected`: name a built-in model"),
        ((0..64).map(|n| line(&format!("p{n}"))).collect(), "384 in an hour, and `maxPerHour` is 240"),
    ] {
        let printed = check(&text);
        assert!(printed.contains(said), "{said}: {printed}");
    }

    std::fs::write(&file, line("one") + &line("three")).unwrap();
    let edits = gateway.edits();
    gateway.reloads(edits.saturating_sub(1)).await;
    becomes(&gateway, "b", "three", true).await;
    provider.set("", "m-1106", "fp_1");
    std::fs::write(&file, line("one") + &line("four")).unwrap();
    let stored = gateway.folder().join("state/quality");
    eventually("what is known is stored", || async {
        let files: Vec<_> = std::fs::read_dir(&stored).ok()?.map(|entry| entry.unwrap().path()).collect();
        let texts = files.iter().filter(|path| path.to_string_lossy().ends_with(".probes.json"));
        texts.map(|path| std::fs::read_to_string(path).unwrap()).any(|text| text.contains("m-0613")).then_some(())
    })
    .await;
    let gateway = gateway.crash_and_restart_in(&yaml).await;
    eventually("the change over the restart is noticed", || async {
        let known = shown(&gateway, "b").await;
        let models = known["providers"][0]["models"].as_array()?;
        (models.len() == 2 && probe(&known, "four")["passing"] == true).then_some(())
    })
    .await;
}
