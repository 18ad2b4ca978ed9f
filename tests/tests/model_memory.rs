//! Models that are loaded and unloaded within one memory budget.

use std::process::Command;

use spillway_tests::{Gateway, binary, minilm, model, whole};

const VECTORS: &str = r#"{"model":"minilm","input":"a"}"#;

fn both(memory: &str, more: &str) -> String {
    format!(
        "limits: {{modelMemory: {memory}}}
models:
  - {{name: smollm2, source: \"{}\", contextLength: 256, maxQueueWait: 60s, keepWarm: false}}
  - {{name: minilm, source: \"{}\", keepWarm: false{more}}}
routes:
  - {{name: vectors, matches: [{{path: {{prefix: /v1}}, model: minilm}}], backendRefs: [{{model: minilm}}]}}
  - {{name: texts, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: smollm2}}]}}
",
        model().display(),
        minilm().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_model_makes_room_for_one_that_is_needed_and_one_in_use_does_not() {
    // Each fits, and both together do not.
    let gateway = Gateway::start(&both("210MiB", "")).await;
    let client = gateway.client();
    let loaded = async |model: &str| gateway.metric(&format!("spillway_engine_loaded{{model=\"{model}\"}}")).await;
    let counted = async |what: &str, model: &str| {
        gateway.metric(&format!("spillway_engine_{what}_total{{model=\"{model}\"}}")).await
    };
    assert_eq!(client.chat("smollm2", &[]).await.status, 200);
    assert_eq!((loaded("smollm2").await, loaded("minilm").await), (1.0, 0.0));
    let taken = gateway.metric("spillway_models_memory_bytes").await;
    assert!(taken > 90e6 && taken <= gateway.metric("spillway_models_memory_limit_bytes").await, "{taken}");
    let vectors = client.post("/v1/embeddings", &[], VECTORS).await;
    assert_eq!(vectors.status, 200, "{}", vectors.text());
    assert_eq!((loaded("smollm2").await, loaded("minilm").await), (0.0, 1.0));
    assert_eq!(counted("evictions", "smollm2").await, 1.0);
    assert_eq!(client.chat("smollm2", &[]).await.status, 200);
    assert_eq!(counted("evictions", "minilm").await, 1.0);

    // While a request runs on one model, the other must wait.
    let body = serde_json::json!({
        "model": "smollm2", "stream": true, "max_tokens": 220, "seed": 1, "temperature": 1.5,
        "logit_bias": {"2": -100, "0": -100},
        "messages": [{"role": "user", "content": "Count to one hundred."}]
    });
    let mut stream =
        client.stream(client.request("POST", "/v1/chat/completions", &[], body.to_string())).await.unwrap();
    stream.part().await.unwrap().unwrap();
    let refused = client.post("/v1/embeddings", &[], VECTORS).await;
    // The same refusal as for a route whose only backend has no room.
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (503, &"overloaded".into()));
    assert!(!refused.header("retry-after").is_empty(), "{}", refused.text());
    assert_eq!(client.post("/v1/embeddings", &[], VECTORS).await.status, 503);
    assert_eq!(counted("loads_refused", "minilm").await, 2.0);
    while stream.part().await.is_some() {}
    gateway.metric_becomes("spillway_engine_active_sequences{model=\"smollm2\"}", 0.0).await;
    spillway_tests::eventually("it makes room", || async {
        (client.post("/v1/embeddings", &[], VECTORS).await.status == 200).then_some(())
    })
    .await;
    // Later refusals are logged within a minute.
    spillway_tests::eventually("the log says why", || async {
        (!gateway.events("model_not_loaded").is_empty()).then_some(())
    })
    .await;
    assert_eq!(gateway.events("model_not_loaded").len(), 1, "not each request is a line");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoder_that_is_not_kept_warm_comes_and_goes() {
    let gateway = Gateway::start(&both("1GiB", ", idleUnload: 300ms, contextLength: 16")).await;
    let client = gateway.client();
    let loaded = "spillway_engine_loaded{model=\"minilm\"}";
    gateway.metric_becomes(loaded, 0.0).await;
    let long = serde_json::json!({"model": "minilm", "input": "word ".repeat(60)}).to_string();
    for _ in 0..2 {
        let answer = client.post("/v1/embeddings", &[], long.clone()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let told = answer.json();
        assert_eq!((&told["usage"]["prompt_tokens"], &told["data"][0]["truncated"]), (&16.into(), &true.into()));
        gateway.metric_becomes(loaded, 0.0).await;
    }
    gateway.metric_becomes("spillway_models_memory_bytes", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_without_room_beside_the_old_one_is_kept_out_and_the_old_one_serves() {
    let folder = tempfile::tempdir().unwrap();
    let (file, fresh) = (folder.path().join("model.gguf"), folder.path().join("fresh.gguf"));
    std::fs::copy(model(), &file).unwrap();
    let gateway = Gateway::start(&format!(
        "limits: {{modelMemory: 210MiB}}
models: [{{name: smollm2, source: \"{}\", contextLength: 256, maxQueueWait: 60s}}]
routes: [{{matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: smollm2}}]}}]
",
        file.display()
    ))
    .await;
    let taken = gateway.metric("spillway_models_memory_bytes").await;
    std::fs::copy(model(), &fresh).unwrap();
    std::fs::rename(&fresh, &file).unwrap();
    let told = gateway.reloads(0).await;
    assert_eq!(told["event"], "config_rejected", "{told}");
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.contains("model `smollm2`: it needs") && reason.contains("they go on"), "{reason}");
    assert_eq!(gateway.client().chat("smollm2", &[]).await.status, 200);
    assert_eq!(gateway.metric("spillway_models_memory_bytes").await, taken);
    // The change that the log advises.
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    std::fs::write(gateway.config(), text.replace("maxQueueWait: 60s", "maxQueueWait: 60s, keepWarm: false")).unwrap();
    assert_eq!(gateway.reloads(1).await["event"], "config_reloaded");
    spillway_tests::eventually("the new one serves", || async {
        (gateway.client().chat("smollm2", &[]).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(gateway.metric("spillway_models_memory_bytes").await, taken);
}

#[test]
fn a_model_that_can_never_fit_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let listeners = "listeners: [{address: \"127.0.0.1:0\"}]\n";
    let serve = |yaml: &str| {
        std::fs::write(folder.path().join("spillway.yaml"), whole(&format!("{listeners}{yaml}"))).unwrap();
        let out =
            Command::new(binary()).args(["serve", "-c", "spillway.yaml"]).current_dir(folder.path()).output().unwrap();
        assert!(!out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout)
    };
    let told = serve(&both("50MiB", ""));
    assert!(told.contains("model `smollm2`: it needs") && told.contains("limits.modelMemory"), "{told}");
    // A key that an encoder does not use, although it has the default value.
    let told = serve(&both("1GiB", ", maxSequences: 16"));
    assert!(told.contains("`maxSequences` can take no effect"), "{told}");
}
