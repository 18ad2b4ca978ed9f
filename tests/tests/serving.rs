//! Built-in model beyond plain text, as the official client sees it; models loaded on demand and replaced under
//! running answers; the command line.

use std::process::{Command, Stdio};

use spillway_tests::{Gateway, binary, eventually, model, repository, script};

fn inside(source: &std::path::Path, more: &str) -> String {
    format!(
        "models: [{{name: smollm2, source: \"{}\", contextLength: 256, maxSequences: 8, maxQueueWait: 60s{more}}}]
routes: [{{matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: smollm2}}]}}]
",
        source.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_gets_choices_probabilities_json_and_seeds() {
    let gateway = Gateway::start(&inside(&model(), "")).await;
    let told = script("openai_serving.py", &gateway, &["smollm2"]).await;
    let choices = &told[0];
    assert_eq!(choices["three"][0], choices["one"], "the first of several is what one would be");
    assert_eq!(choices["streamed"], choices["three"]);
    assert_eq!(choices["streamed_reasons"], choices["reasons"]);
    assert_eq!(choices["indexes"], serde_json::json!([0, 1, 2]));
    assert_eq!(choices["cached"], 32, "the page that the same question filled before");
    let probabilities = &told[1];
    assert_eq!((&probabilities["tokens"], &probabilities["bytes"]), (&probabilities["text"], &probabilities["text"]));
    for fact in ["likeliest", "three", "logprobs", "negative"] {
        assert_eq!(probabilities[fact], true, "{fact}");
    }
    let json = &told[2];
    for city in json["schema"].as_array().unwrap() {
        assert!(["Paris", "Rome"].contains(&city["name"].as_str().unwrap()) && city["isCapital"].is_boolean());
    }
    assert_eq!(json["reasons"], serde_json::json!(["stop", "stop", "stop"]));
    assert_eq!((&json["parsed"], &json["free"], &json["streamed"]), (&"City".into(), &"{".into(), &true.into()));
    assert_eq!(told[3]["biased"], 1, "a bias of 100 decides");
    for (told, param) in told[4..8].iter().zip(["n", "top_logprobs", "response_format", "logit_bias"]) {
        assert_eq!(told["param"], param);
    }
    assert_eq!(told[8]["same"], true, "sixteen at once are what each is alone");
    assert!(told[8]["different"].as_u64().unwrap() > 10);
    let cached = gateway.metric("spillway_engine_cached_prompt_tokens_total{model=\"smollm2\"}").await;
    assert!(cached >= 32.0, "{cached}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_not_kept_warm_comes_and_goes() {
    let gateway = Gateway::start(&inside(&model(), ", keepWarm: false, idleUnload: 500ms")).await;
    let loaded = "spillway_engine_loaded{model=\"smollm2\"}";
    gateway.metric_becomes(loaded, 0.0).await;
    for _ in 0..2 {
        // Two concurrent requests load the model once.
        let client = gateway.client();
        let (one, two) = futures::join!(client.chat("smollm2", &[]), client.chat("smollm2", &[]));
        assert_eq!((one.status.as_u16(), two.status.as_u16()), (200, 200), "{}", one.text());
        gateway.metric_becomes(loaded, 1.0).await;
        gateway.metric_becomes(loaded, 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_takes_over_without_an_answer_being_lost() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    std::fs::copy(model(), &file).unwrap();
    let gateway = Gateway::start(&inside(&file, "")).await;
    let client = gateway.client();
    let body = serde_json::json!({
        "model": "smollm2", "stream": true, "max_tokens": 150, "seed": 1, "temperature": 1.2,
        "messages": [{"role": "user", "content": "Write a long story about a river."}]
    });
    let mut stream =
        client.stream(client.request("POST", "/v1/chat/completions", &[], body.to_string())).await.unwrap();
    let mut text = String::new();
    text.push_str(&String::from_utf8_lossy(&stream.part().await.unwrap().unwrap()));
    let reloads = gateway.metric("spillway_config_reloads_total{result=\"ok\"}").await;
    let fresh = folder.path().join("fresh.gguf");
    std::fs::copy(model(), &fresh).unwrap();
    std::fs::rename(&fresh, &file).unwrap();
    let mut told_while_reloading = false;
    while let Some(part) = stream.part().await {
        text.push_str(&String::from_utf8_lossy(&part.unwrap()));
        told_while_reloading |= gateway.metric("spillway_config_reloads_total{result=\"ok\"}").await > reloads;
    }
    assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\""), "{text}");
    eventually("the new file serves", || async {
        (gateway.metric("spillway_config_reloads_total{result=\"ok\"}").await > reloads).then_some(())
    })
    .await;
    assert_eq!(client.chat("smollm2", &[]).await.status, 200);
    // Whether the reload came before the end depends on the machine; the answer is complete in any case.
    let _ = told_while_reloading;
}

fn spillway(arguments: &[&str]) -> std::process::Output {
    Command::new(binary()).args(arguments).current_dir(repository()).output().unwrap()
}

#[test]
fn models_are_listed_and_inspected() {
    let out = spillway(&["models", "inspect", model().to_str().unwrap()]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for fact in ["llama", "generating text", "Q4_1", "134.5 million", "8192 tokens, 2048 by default", "taken for"] {
        assert!(text.contains(fact), "{text}");
    }
    // The measurement is a number.
    let measured = text.lines().find(|line| line.starts_with("measured")).unwrap();
    let rate: f64 = measured.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(rate > 0.0 && measured.contains("tokens a second written by one sequence"), "{text}");
    let out = spillway(&["models", "inspect", "--no-load", model().to_str().unwrap()]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("would take") && !text.contains("measured"), "{text}");
    let out = spillway(&["models", "inspect", "--device", "no such adapter", model().to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    let out = spillway(&["models", "list", "-c", "config/examples/demo.yaml"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("smollm2") && text.contains("Q4_1"), "{text} {}", String::from_utf8_lossy(&out.stderr));
    let out = spillway(&["models", "inspect", "README.md"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("README.md"));
}

#[test]
fn a_conversation_in_the_terminal_remembers_and_can_be_piped() {
    use std::io::Write;
    let file = model();
    let mut chat = Command::new(binary())
        .args(["chat", "-m", file.to_str().unwrap(), "--temperature", "0", "--max-tokens", "16"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    chat.stdin
        .take()
        .unwrap()
        .write_all(b"What is the capital of France? Answer in one sentence.\n\nAnd of Italy?\n")
        .unwrap();
    let out = chat.wait_with_output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(text.starts_with("The capital of France is Paris.\n"), "{text}");
    assert!(text.lines().count() >= 2 && text.contains("Rome"), "{text}");
    let out = spillway(&["chat", "-m", "nobody", "-c", "config/examples/demo.yaml"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("`smollm2`"));
}
