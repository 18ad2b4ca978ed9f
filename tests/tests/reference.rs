//! Checks `docs/reference/` with the running program: examples load, the paths of the admin address answer as documented,
//! metrics have the documented labels, and commands end with the documented codes.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};

use spillway_tests::{
    Client, Gateway, Sample, Upstream, binary, eventually, examples, families, minilm, model, operations, plain_module,
    repository, restarts, whole, word_classifier,
};

fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn check(arguments: &[&str]) -> Output {
    Command::new(binary()).arg("check").args(arguments).output().unwrap()
}

#[test]
fn every_example_of_the_reference_loads() {
    // The examples of objects are parts of this file. Its certificates and servers are nowhere.
    let file = repository().join("config/examples/gateway.yaml");
    let out = check(&["--offline", file.to_str().unwrap()]);
    assert!(out.status.success(), "{}", said(&out));
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("plugins")).unwrap();
    std::fs::write(folder.path().join("plugins/words.wasm"), plain_module()).unwrap();
    std::fs::create_dir(folder.path().join("models")).unwrap();
    let minilm = std::fs::canonicalize(minilm()).unwrap();
    std::os::unix::fs::symlink(minilm.parent().unwrap(), folder.path().join("models/all-minilm-l6-v2")).unwrap();
    word_classifier(&folder.path().join("models/prompt-injection"));
    let file = folder.path().join("spillway.yaml");
    let defaults = [
        ("listeners:", "listeners: [{address: 127.0.0.1:8080}]\n"),
        ("backends:", "backends: [{name: chat, endpoints: [{url: \"http://127.0.0.1:8081\"}]}]\n"),
        ("routes:", "routes: [{backendRefs: [{name: chat}]}]\n"),
    ];
    for example in examples() {
        let has = |key: &str| example.yaml.lines().any(|line| line.starts_with(key));
        let missing = defaults.iter().filter(|(key, _)| !has(key)).map(|(_, yaml)| *yaml);
        std::fs::write(&file, missing.collect::<String>() + example.yaml).unwrap();
        let out = check(&[file.to_str().unwrap()]);
        assert!(out.status.success(), "{}:\n{}\n{}", example.path, example.yaml, said(&out));
    }
}

/// Starts a gateway with [`yaml`].
async fn started(yaml: &str) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("hook.secret"), "a secret of more than 24 bytes").unwrap();
    Gateway::start_in(folder, &format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{yaml}")).await
}

fn yaml(upstream: &Upstream) -> String {
    format!(
        "backends:
  - {{name: chat, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: next, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}
models: [{{name: smollm2, source: \"{1}\", contextLength: 256, device: cpu}}]
authentication: {{keysByApi: {{}}}}
consumers:
  - name: acme
    keys: [{{sha256: \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"}}]
    limits: {{requests: 100/s, budget: {{tokens: 1000, usd: 1, per: day}}}}
prices: [{{model: \"*\", input: 1, output: 1}}]
state: {{budgets: {{sqlite: budgets.db}}}}
feedback: {{}}
routes:
  - name: chat
    authentication: optional
    filters: [{{clientAddress: {{deny: [192.0.2.0/24]}}}}, {{cache: {{exact: true}}}}]
    quality: {{sample: 1.0}}
    backendRefs: [{{name: chat}}, {{name: next}}]
    rollout: {{to: next, steps: [{{weight: 1, hold: {{for: 1h}}}}], abortWhen: {{errorRate: \"+0.5\"}}}}
notifications:
  - {{webhook: {{url: \"{0}/hook\", secret: {{file: hook.secret}}}}, events: [rollout]}}
",
        upstream.url(),
        model().display()
    )
}

/// Body that asks for a key.
const KEY_ORDER: &str = "{\"consumer\":\"acme\"}";

/// Makes a key at run time; returns its id.
async fn made_key(admin: &Client) -> String {
    let answer = admin.post("/api/keys", &[("x-spillway-admin", "1")], KEY_ORDER).await;
    answer.json()["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_paths_of_the_admin_address_answer_as_documented() {
    let upstream = Upstream::fixed(200, "{}").await;
    let gateway = started(&yaml(&upstream)).await;
    let admin = Client::new(gateway.admin);
    for operation in operations() {
        let path = operation.path.replace("{backend}", "chat").replace("{route}", "chat");
        let path = path.replace("{endpoint}", upstream.url().strip_prefix("http://").unwrap());
        let path = path.replace("/assets/{name}", "/assets/main.js");
        let is_of_keys = operation.path.starts_with("/api/keys");
        let path = path.replace("{name}", "chat").replace("{command}", if is_of_keys { "rotate" } else { "abort" });
        let path = if path.contains("{id}") { path.replace("{id}", &made_key(&admin).await) } else { path };
        let what = format!("{} {path}", operation.method);
        let headers: &[(&str, &str)] = if operation.method == "GET" { &[] } else { &[("x-spillway-admin", "1")] };
        let body = match operation.path {
            "/api/playground/{route}" => "{\"model\":\"m\",\"messages\":[]}",
            "/api/keys" if operation.method == "POST" => KEY_ORDER,
            _ => "",
        };
        let request = admin.request(operation.method, &path, headers, body);
        if operation.content_type == "text/event-stream" {
            // It has no end of its own within a test.
            let stream = admin.stream(request).await.unwrap();
            assert_eq!(stream.status.as_u16(), operation.answers[0].0, "{what}");
            assert_eq!(stream.headers["content-type"], operation.content_type, "{what}");
            continue;
        }
        let answer = admin.send(request).await;
        if operation.path.starts_with("/auth/") && operation.path != "/auth/session" {
            // Nobody logs in at this gateway.
            assert_eq!(answer.status, 404, "{what}: {}", answer.text());
            continue;
        }
        if operation.path == "/api/quality/examples" {
            // Texts are shown with a token alone, which this gateway has not.
            assert_eq!(answer.status, operation.answers[1].0, "{what}: {}", answer.text());
            continue;
        }
        assert_eq!(answer.status.as_u16(), operation.answers[0].0, "{what}: {}", answer.text());
        // Of the playground it is that of the server.
        if operation.path != "/api/playground/{route}" {
            assert_eq!(answer.header("content-type"), operation.content_type, "{what}");
        }
        if operation.method == "POST" {
            assert_eq!(admin.post(&path, &[], "").await.status, 403, "{what}");
            let other = path.replace("/chat/", "/nobody/").replace("playground/chat", "playground/nobody");
            let other = if is_of_keys { other.replace("/rotate", "/turn") } else { other };
            if other != path {
                assert_eq!(admin.post(&other, headers, body).await.status, 404, "{other}");
            }
        }
        let foreign = admin.send(admin.request(operation.method, &path, &[("host", "example.com")], "")).await;
        assert_eq!(foreign.status == 421, operation.guarded, "{what} for a foreign host: {}", foreign.status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_need_a_restart_are_kept_out_of_a_running_gateway() {
    let upstream = Upstream::fixed(200, "{}").await;
    let yaml = yaml(&upstream);
    let gateway = started(&yaml).await;
    let running = whole(&format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{yaml}"));
    for (n, (path, key, value)) in restarts().iter().enumerate() {
        let others: Vec<&str> = running.lines().filter(|line| !line.starts_with(&format!("{key}:"))).collect();
        std::fs::write(gateway.config(), format!("{}\n{key}: {value}\n", others.join("\n"))).unwrap();
        let result = gateway.reloads(n).await;
        assert_eq!(result["event"], "config_rejected", "{path}: {result}");
        assert!(result.to_string().contains("restart"), "{path}: {result}");
    }
}

/// Names of the labels of a sample, without the bucket's.
fn labels(line: &str) -> BTreeSet<&str> {
    Sample::read(line).labels.into_keys().filter(|label| *label != "le").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_of_a_gateway_are_those_of_the_reference() {
    let upstream = Upstream::fixed(200, "{\"usage\": {\"prompt_tokens\": 1, \"completion_tokens\": 1}}").await;
    let gateway = started(&yaml(&upstream)).await;
    assert_eq!(gateway.client().chat("m", &[]).await.status, 200);
    let labelled = gateway.client().chat("m", &[("x-api-key", "test"), ("x-request-id", "r")]).await;
    let label =
        r#"{"request_id": "r", "score": 1, "label": "good", "predicted": "a", "expected": "a", "confidence": 1}"#;
    let taken = gateway.client().post("/v1/feedback", &[("x-api-key", "test")], label).await;
    assert_eq!((labelled.status.as_u16(), taken.status.as_u16()), (200, 200), "{}", taken.text());
    eventually("the request is counted", || async {
        gateway.shown("/metrics").await.contains("http_server_request_duration_seconds_count{").then_some(())
    })
    .await;
    let documented: BTreeMap<&str, BTreeSet<&str>> =
        families().into_iter().map(|family| (family.name, family.labels.into_iter().collect())).collect();
    let text = gateway.shown("/metrics").await;
    let mut family = "";
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            family = declared.split(' ').next().unwrap();
            assert!(documented.contains_key(family), "{family} is not documented");
        } else if !line.starts_with('#') {
            assert_eq!(labels(line), documented[family], "{line}");
            seen.insert(family);
        }
    }
    assert!(seen.len() > 40, "only {} families had a value", seen.len());
}

#[test]
fn commands_end_with_the_documented_codes() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bad.yaml"), "listeners: 1\n").unwrap();
    for (arguments, code) in [
        (&["schema"][..], 0),
        (&["version"], 0),
        (&["drain", "chat", "127.0.0.1:1", "--admin", "http://127.0.0.1:1"], 1),
        (&["top", "--once", "--admin", "http://127.0.0.1:1"], 1),
        (&["check", "bad.yaml"], 2),
        (&["serve", "-c", "bad.yaml"], 2),
        (&["serve", "-c", "nothing.yaml"], 2),
        (&["nonsense"], 2),
    ] {
        let out = Command::new(binary()).args(arguments).current_dir(folder.path()).output().unwrap();
        assert_eq!(out.status.code(), Some(code), "spillway {}\n{}", arguments.join(" "), said(&out));
    }
}
