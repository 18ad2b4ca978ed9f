//! Reranking over HTTP by a cross-encoder in safetensors. The reference is a plain forward pass over the same
//! weights.

#![allow(clippy::cast_possible_truncation, reason = "tests")]

use serde_json::json;
use spillway_tests::{CrossEncoder, Gateway};

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_ranked_by_the_scores_of_a_plain_forward_pass() {
    let folder = tempfile::tempdir().unwrap();
    let model = CrossEncoder::new();
    model.write(folder.path());
    let gateway = Gateway::start(&format!(
        "models: [{{name: judge, source: \"{}\", task: rerank, keepWarm: false}}]
routes: [{{matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: judge}}]}}]
",
        folder.path().display()
    ))
    .await;
    let documents = ["a cat sits on a mat", "a proxy is a server", "server", "an unknown word", "mat mat mat proxy"];
    let query = "what is a proxy";
    let client = gateway.client();
    let body = json!({"model": "judge", "query": query, "documents": documents, "return_documents": true});
    let answer = client.post("/v1/rerank", &[], body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let told = answer.json();
    let expected: Vec<f64> = documents
        .iter()
        .map(|document| model.score(&CrossEncoder::tokens(query), &CrossEncoder::tokens(document)))
        .collect();
    let results = told["results"].as_array().unwrap();
    let mut order: Vec<usize> = (0..documents.len()).collect();
    order.sort_by(|a, b| expected[*b].total_cmp(&expected[*a]));
    let ranked: Vec<usize> = results.iter().map(|result| result["index"].as_u64().unwrap() as usize).collect();
    assert_eq!(ranked, order, "{expected:?}");
    for result in results {
        let index = result["index"].as_u64().unwrap() as usize;
        let score = result["relevance_score"].as_f64().unwrap();
        assert!((score - expected[index]).abs() < 1e-4, "{index}: {score}, {expected:?}");
        assert_eq!(result["document"]["text"], documents[index]);
    }
    let spread = expected.iter().copied().fold(f64::MIN, f64::max) - expected.iter().copied().fold(f64::MAX, f64::min);
    assert!(spread > 0.01, "scores that a test can tell apart: {expected:?}");
    // [CLS] four words [SEP], a document, [SEP], five times.
    let read: usize = documents.iter().map(|document| 7 + CrossEncoder::tokens(document).len()).sum();
    assert_eq!(told["usage"]["prompt_tokens"], read);
    let few = json!({"model": "judge", "query": query, "documents": documents, "top_n": 2});
    let few = client.post("/v1/rerank", &[], few.to_string()).await.json();
    assert_eq!(few["results"].as_array().unwrap().len(), 2);
    // A reranker refuses other tasks.
    let other = client.post("/v1/embeddings", &[], r#"{"model":"judge","input":"a"}"#).await;
    assert_eq!(other.status, 400, "{}", other.text());
}
