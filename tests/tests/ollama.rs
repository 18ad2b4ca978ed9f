//! Ollama's API: answered by a built-in model, and passed to backends with its lines read, limited and ended properly.

use bytes::Bytes;
use serde_json::{Value, json};
use spillway_tests::{Gateway, Reply, Seen, Upstream, eventually, minilm, model, reply, script, streamed};

fn inside() -> String {
    format!(
        "models:
  - {{name: smollm2, source: \"{}\", contextLength: 256, maxSequences: 4, maxQueueWait: 60s}}
  - {{name: minilm, source: \"{}\", maxQueueWait: 60s}}
routes:
  - {{name: vectors, matches: [{{model: minilm}}], backendRefs: [{{model: minilm}}]}}
  - {{name: chat, backendRefs: [{{model: smollm2}}]}}
",
        model().display(),
        minilm().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_is_answered_by_the_model_inside() {
    let gateway = Gateway::start(&inside()).await;
    let told = script("ollama_client.py", &gateway, &["smollm2"]).await;
    let (whole, parts) = (&told[0], &told[1]);
    assert_eq!(whole["text"], "The capital of France is Paris.");
    assert_eq!((&whole["role"], &whole["done"], &whole["reason"]), (&json!("assistant"), &json!(true), &json!("stop")));
    assert_eq!((&whole["model"], &whole["timed"]), (&json!("smollm2"), &json!(true)));
    assert_eq!((&parts["text"], &parts["done"], &parts["last"]), (&whole["text"], &json!(1), &json!(true)));
    assert_eq!((&parts["prompt"], &parts["written"]), (&whole["prompt"], &whole["written"]));
    assert_eq!((&told[2]["generated"], &told[2]["streamed"]), (&whole["text"], &whole["text"]));
    assert!(told[2]["raw"].as_str().is_some_and(|text| !text.is_empty()), "{}", told[2]);
    assert_eq!(told[3]["formed"], true);
    assert_eq!(told[4]["models"], json!(["smollm2", "minilm"]));
    assert_eq!((&told[4]["running"], &told[4]["family"]), (&json!(["smollm2"]), &json!("llama")));
    assert_eq!(told[4]["capabilities"][0], "completion");
    assert_eq!(told[5]["loaded"], "load");
    assert_eq!(told[6]["asynchronous"], json!([whole["text"], whole["text"]]));
    let refused = |n: usize| (told[n]["status"].as_u64().unwrap(), told[n]["error"].as_str().unwrap());
    for (n, status, word) in [
        (7, 404, "nope"),
        (8, 400, "images"),
        (9, 400, "think"),
        (10, 400, "suffix"),
        (11, 501, "pull"),
        (12, 400, "temperature"),
    ] {
        let (told, error) = refused(n);
        assert!(told == status && error.contains(word), "{told} {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_and_simple_questions_are_answered() {
    let gateway = Gateway::start(&inside()).await;
    let client = gateway.client();
    let new = client.post("/api/embed", &[], r#"{"model":"minilm:latest","input":["a","b"],"dimensions":8}"#).await;
    assert_eq!(new.status, 200, "{}", new.text());
    let vectors = &new.json()["embeddings"];
    assert_eq!((vectors.as_array().unwrap().len(), vectors[0].as_array().unwrap().len()), (2, 8));
    let old = client.post("/api/embeddings", &[], r#"{"model":"minilm","prompt":"a"}"#).await;
    assert_eq!(old.json()["embedding"].as_array().unwrap().len(), 384);
    // `curl -d` says that the body is a form.
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let asked = r#"{"model":"smollm2","messages":[{"role":"user","content":"Hi"}],"options":{"num_predict":2}}"#;
    let streamed = client.post("/api/chat", &form, asked).await;
    assert_eq!((streamed.status.as_u16(), streamed.header("content-type")), (200, "application/x-ndjson"));
    let lines: Vec<Value> = streamed.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.last().unwrap();
    assert_eq!((&last["done"], &last["done_reason"], &last["eval_count"]), (&json!(true), &json!("length"), &json!(2)));
    assert!(client.get("/api/version").await.json()["version"].is_string());
    assert_eq!(client.send(client.request("HEAD", "/", &[], "")).await.status, 200);
    let dropped = json!({"model": "smollm2", "prompt": "Hi", "stream": false, "keep_alive": "5m", "options": {"num_ctx": 64, "num_predict": 1}});
    let answer = client.post("/api/generate", &[], dropped.to_string()).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-spillway-dropped")), (200, "options.num_ctx, keep_alive"));
}

/// A line of an answer of Ollama.
fn line(text: &str) -> Bytes {
    let message = json!({"role": "assistant", "content": text});
    Bytes::from(format!("{}\n", json!({"model": "llama3", "message": message, "done": false})))
}

fn last_line() -> Bytes {
    let message = json!({"role": "assistant", "content": ""});
    let told = json!({
        "model": "llama3", "message": message, "done": true, "done_reason": "stop", "total_duration": 5,
        "prompt_eval_count": 40, "eval_count": 60,
    });
    Bytes::from(format!("{told}\n"))
}

/// A scripted Ollama. The first message says how it answers: `whole`, `cut` within a line, `silent`, `full`.
async fn ollama(seen: Seen) -> Option<Reply> {
    let lines = [("content-type", "application/x-ndjson")];
    if seen.path.ends_with("/tags") || seen.path.ends_with("/pull") {
        return Some(reply(200, &[("content-type", "application/json")], r#"{"from":"server"}"#));
    }
    let asked: Value = serde_json::from_slice(&seen.body).unwrap();
    let how = asked["messages"][0]["content"].as_str().unwrap().to_owned();
    if how == "full" {
        return Some(reply(
            503,
            &[("content-type", "application/json")],
            r#"{"error":"server busy, please try again.  maximum pending requests exceeded"}"#,
        ));
    }
    let (parts, received) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        // Lines that are cut between parts.
        let first = line("Hello");
        let (a, b) = first.split_at(first.len() / 2);
        for part in [a, b] {
            let _ = parts.send(Ok(Bytes::copy_from_slice(part))).await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        match &*how {
            "cut" => {
                let _ = parts.send(Ok(line("lost").slice(..20))).await;
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                let _ = parts.send(Err(std::io::Error::other("cut"))).await;
            }
            "silent" => tokio::time::sleep(std::time::Duration::from_secs(600)).await,
            _ => {
                let _ = parts.send(Ok(line(" world"))).await;
                let _ = parts.send(Ok(last_line())).await;
            }
        }
    });
    Some(streamed(&lines, received))
}

fn passing(server: &str, more: &str) -> String {
    format!(
        "backends: [{{name: box, protocol: ollama, models: [llama3], endpoints: [{{url: \"{server}\"}}]{more}}}]
routes: [{{name: r, backendRefs: [{{name: box}}]}}]
"
    )
}

fn ask(how: &str) -> String {
    json!({"model": "llama3:latest", "messages": [{"role": "user", "content": how}]}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_passed_to_and_its_usage_read() {
    let server = Upstream::start(ollama).await;
    let gateway = Gateway::start(&passing(&server.url(), "")).await;
    let client = gateway.client();
    let answer = client.post("/api/chat", &[], ask("whole")).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/x-ndjson"));
    let expected = [line("Hello"), line(" world"), last_line()].concat();
    assert_eq!(answer.text().as_bytes(), expected, "lines pass as they come");
    assert_eq!(server.last().body, ask("whole"), "and so does the request");
    eventually("the usage is counted", || async {
        let shown = gateway.shown("/metrics").await;
        let sum = |kind: &str| -> f64 {
            let of = |line: &&str| {
                line.starts_with("gen_ai_client_token_usage_sum") && line.contains(kind) && line.contains("ollama")
            };
            shown.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        ((sum("\"input\"") - 40.0).abs() < 0.5 && (sum("\"output\"") - 60.0).abs() < 0.5).then_some(())
    })
    .await;
    let listed = client.get("/api/tags").await;
    assert_eq!(listed.json()["models"][0]["name"], "llama3", "the list is the gateway's own");
    assert_eq!(client.post("/api/pull", &[], r#"{"model":"llama3"}"#).await.json(), json!({"from": "server"}));
    let unknown = client.post("/api/chat", &[], r#"{"model":"other","messages":[]}"#).await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.json()["error"].is_string(), "{}", unknown.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_renamed_for_the_backend() {
    let server = Upstream::start(ollama).await;
    let backend = format!(
        "backends: [{{name: box, protocol: ollama, model: \"llama3.2:3b\", endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: box}}]}}]
",
        server.url()
    );
    let gateway = Gateway::start(&backend).await;
    let body =
        json!({"model": "any", "messages": [{"role": "user", "content": "whole"}], "options": {"num_predict": 5}});
    assert_eq!(gateway.client().post("/api/chat", &[], body.to_string()).await.status, 200);
    let sent: Value = serde_json::from_slice(&server.last().body).unwrap();
    assert_eq!((&sent["model"], &sent["options"]), (&json!("llama3.2:3b"), &body["options"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_stream_ends_with_a_line_of_error() {
    let server = Upstream::start(ollama).await;
    let gateway = Gateway::start(&passing(&server.url(), "")).await;
    let answer = gateway.client().post("/api/chat", &[], ask("cut")).await;
    let lines: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "half a line is held back: {}", answer.text());
    assert_eq!(lines[0]["message"]["content"], "Hello");
    assert!(lines[1]["error"].is_string(), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_is_known_by_its_status_and_a_silent_one_by_its_silence() {
    let (full, whole) = (Upstream::start(ollama).await, Upstream::start(ollama).await);
    let yaml = format!(
        "backends: [{{name: box, protocol: ollama, timeouts: {{idle: 2s}}, endpoints: [{{url: \"{}\"}}]}}, {{name: other, protocol: ollama, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: box}}], whenSaturated: {{spillTo: other}}}}]
",
        full.url(),
        whole.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let silent = gateway.client().post("/api/chat", &[], ask("silent")).await;
    let lines: Vec<Value> = silent.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{}", silent.text());
    assert!(lines[1]["error"].is_string(), "{}", silent.text());
    let refused = gateway.client().post("/api/chat", &[], ask("full")).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!((full.count(), whole.count()), (2, 1), "it spilled, and the other is full as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_that_call_no_models_keep_the_paths_to_themselves() {
    let server = Upstream::start(|seen| async move { Some(reply(200, &[], seen.body)) }).await;
    let yaml = format!(
        "backends: [{{name: app, protocol: http, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: app}}]}}]
",
        server.url()
    );
    let gateway = Gateway::start(&yaml).await;
    for path in ["/api/chat", "/api/generate", "/api/tags", "/api/pull"] {
        let answer = gateway.client().post(path, &[("content-type", "text/plain")], "no JSON").await;
        assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "no JSON"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_servers_see_decides_where_a_path_is_rewritten() {
    let server = Upstream::fixed(200, "{}").await;
    let yaml = format!(
        "backends: [{{name: own, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: v1, matches: [{{path: {{prefix: /api}}}}], filters: [{{urlRewrite: {{replacePrefix: /v1}}}}], backendRefs: [{{name: own}}]}}
  - {{name: team, matches: [{{path: {{prefix: /team}}}}], filters: [{{urlRewrite: {{replacePrefix: /}}}}], backendRefs: [{{name: own}}]}}
",
        server.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let openai = gateway.client().post("/api/embeddings", &[], "no JSON").await;
    assert_eq!((openai.status.as_u16(), &openai.json()["error"]["code"]), (400, &json!("invalid_json")));
    let ollama = gateway.client().post("/team/api/chat", &[], "no JSON").await;
    assert!(ollama.status == 400 && ollama.json()["error"].is_string(), "{}", ollama.text());
    assert_eq!(server.count(), 0);
}
