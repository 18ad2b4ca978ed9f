//! Built-in encoders, and continued texts, as the official client sees them.

use spillway_tests::{Gateway, minilm, model, script};

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_gets_vectors_and_continued_texts() {
    let gateway = Gateway::start(&format!(
        "models:
  - {{name: minilm, source: \"{}\", task: embedding, keepWarm: false}}
  - {{name: smollm2, source: \"{}\", contextLength: 256}}
routes:
  - {{name: vectors, matches: [{{path: {{prefix: /v1}}, model: minilm}}], backendRefs: [{{model: minilm}}]}}
  - {{name: texts, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: smollm2}}]}}
",
        minilm().display(),
        model().display()
    ))
    .await;
    let told = script("openai_encoding.py", &gateway, &["minilm", "smollm2"]).await;
    let vectors = &told[0];
    assert_eq!(vectors["dimensions"], serde_json::json!([384, 384, 384]));
    assert_eq!(vectors["indexes"], serde_json::json!([0, 1, 2]));
    assert_eq!(vectors["norms"], serde_json::json!([1.0, 1.0, 1.0]));
    assert_eq!((&vectors["alone"], &vectors["short"], &vectors["near"]), (&true.into(), &64.into(), &true.into()));
    assert_eq!(vectors["usage"][0], vectors["usage"][1]);
    assert_eq!(vectors["chat"], "messages", "an encoder does not converse");
    let text = &told[1];
    assert_eq!((&text["object"], &text["reason"]), (&"text_completion".into(), &"length".into()));
    assert!(text["text"].as_str().unwrap().contains("Paris"), "{text}");
    assert_eq!((&text["streamed"], &text["usage"]), (&text["text"], &serde_json::json!([4, 4])));
    assert_eq!(told[2]["tools"], "tools", "its template knows none");
}
