//! Answers with vectors and ranks, in the shapes of OpenAI (embeddings) and of Jina, Cohere and vLLM (reranking).

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::protocol::chat::EncodeRequest;
use crate::protocol::json;

#[derive(Serialize)]
struct Embeddings<'a> {
    object: &'static str,
    data: Vec<Vector<'a>>,
    model: &'a str,
    usage: EncodeUsage,
}

#[derive(Serialize)]
struct Vector<'a> {
    object: &'static str,
    index: usize,
    embedding: Values<'a>,
    /// Only where the text was cut to the model's context.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

enum Values<'a> {
    Float(&'a [f32]),
    Base64(&'a [f32]),
}

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Float(values) => values.serialize(to),
            Self::Base64(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                STANDARD.encode(bytes).serialize(to)
            }
        }
    }
}

#[derive(Serialize)]
struct EncodeUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}

/// Answer to a request for embeddings. `vectors` has, in the order of the texts, each vector and whether its text was cut.
pub(super) fn embeddings(model: &str, vectors: &[(Vec<f32>, bool)], base64: bool, tokens: u64) -> Bytes {
    let data = vectors.iter().enumerate().map(|(index, (values, truncated))| Vector {
        object: "embedding",
        index,
        embedding: if base64 { Values::Base64(values) } else { Values::Float(values) },
        truncated: *truncated,
    });
    let usage = EncodeUsage { prompt_tokens: tokens, total_tokens: tokens };
    json(&Embeddings { object: "list", data: data.collect(), model, usage })
}

#[derive(Serialize)]
struct Ranking<'a> {
    id: &'a str,
    model: &'a str,
    usage: EncodeUsage,
    results: Vec<Ranked<'a>>,
}

#[derive(Serialize)]
struct Ranked<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
    relevance_score: f32,
}

#[derive(Serialize)]
struct Document<'a> {
    text: Cow<'a, str>,
}

/// Answer to a reranking, the best document first and of equal ones the earlier. `scores` are probabilities in the order of
/// the documents.
pub(super) fn ranking(id: &str, model: &str, request: &EncodeRequest, scores: &[f32], tokens: u64) -> Bytes {
    let mut order: Vec<(usize, f32)> = scores.iter().copied().enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let most = request.top_n.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let results = order.into_iter().take(most).map(|(index, relevance_score)| {
        let document = request.texts.get(index).filter(|_| request.return_documents);
        Ranked { index, document: document.map(|text| Document { text: text.into() }), relevance_score }
    });
    let usage = EncodeUsage { prompt_tokens: tokens, total_tokens: tokens };
    json(&Ranking { id, model, usage, results: results.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::chat::Encode;
    use crate::protocol::openai::request;

    #[test]
    fn vectors_and_ranks_have_the_shape_that_clients_read() {
        let vectors = [(vec![0.5, -1.0], false), (vec![1.0, 0.0], true)];
        assert_eq!(
            embeddings("m", &vectors, false, 5),
            concat!(
                r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5,-1.0]},"#,
                r#"{"object":"embedding","index":1,"embedding":[1.0,0.0],"truncated":true}],"#,
                r#""model":"m","usage":{"prompt_tokens":5,"total_tokens":5}}"#
            )
        );
        let text = embeddings("m", &vectors[..1], true, 5);
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["data"][0]["embedding"], "AAAAPwAAgL8=");
        let body = br#"{"query":"q","documents":["a","b","c"],"top_n":2}"#;
        let request = request::encode(body, Encode::Rerank).unwrap();
        assert_eq!(
            ranking("rerank-1", "m", &request, &[0.25, 0.75, 0.5], 9),
            concat!(
                r#"{"id":"rerank-1","model":"m","usage":{"prompt_tokens":9,"total_tokens":9},"#,
                r#""results":[{"index":1,"document":{"text":"b"},"relevance_score":0.75},"#,
                r#"{"index":2,"document":{"text":"c"},"relevance_score":0.5}]}"#
            )
        );
    }
}
