//! Callers that use the paths of Azure OpenAI.

use serde_json::json;
use spillway_tests::{Gateway, Upstream, model, new_key, reply, script};

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_for_azure_is_answered_by_the_model_inside() {
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}], models: [smollm2, nope], limits: {{tokens: 100000/h}}}}]
models: [{{name: smollm2, source: \"{}\", contextLength: 256, maxSequences: 2, maxQueueWait: 60s}}]
routes:
  - {{name: azure, matches: [{{path: {{prefix: /openai}}, model: smollm2}}], filters: [{{urlRewrite: {{azureOpenai: true}}}}], backendRefs: [{{model: smollm2}}]}}
",
        model().display()
    ))
    .await;
    let told = script("azure_client.py", &gateway, &["smollm2", &key]).await;
    let answer = "The capital of France is Paris.";
    assert_eq!(told[0], json!({"older": answer, "streamed": answer, "models": ["smollm2"]}));
    assert_eq!(told[1], json!({"newer": answer, "responses": "response"}));
    assert_eq!(told[2], json!({"refused": "model_not_found"}));
}

#[tokio::test]
async fn servers_get_the_paths_of_openai() {
    let server = Upstream::start(|seen| async move {
        Some(reply(200, &[("content-type", "application/json")], json!({"path": seen.path}).to_string()))
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: own, protocol: openai, model: small, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: azure, matches: [{{path: {{prefix: /openai}}}}], filters: [{{urlRewrite: {{azureOpenai: true}}}}], backendRefs: [{{name: own}}]}}
",
        server.url()
    ))
    .await;
    let client = gateway.client();
    for (from, to) in [
        ("/openai/deployments/gpt-5/chat/completions?api-version=2024-10-21", "/v1/chat/completions"),
        ("/openai/deployments/gpt-5/embeddings?api-version=1&x=y", "/v1/embeddings?x=y"),
        ("/openai/v1/responses", "/v1/responses"),
    ] {
        let answer =
            client.post(from, &[("content-type", "application/json")], r#"{"model":"gpt-5","input":"x"}"#).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["path"]), (200, &json!(to)), "{from}");
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&server.last().body).unwrap()["model"], "small");
    }
    let refused = client.post("/openai/deployments/gpt-5/chat/completions", &[], "no JSON").await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (400, &json!("invalid_json")));
}
