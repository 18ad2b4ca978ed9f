//! The answers of the model inside in OpenAI's shape: events of a stream, a whole completion, the list of models.

use bytes::Bytes;
use serde::Serialize;

/// What all parts of one answer share.
#[derive(Debug, Clone)]
pub struct Answer {
    /// `chatcmpl-…`.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The model that answers.
    pub model: std::sync::Arc<str>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [ChunkChoice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [CompletionChoice<'a>; 1],
    usage: Usage,
}

#[derive(Serialize)]
struct CompletionChoice<'a> {
    index: u32,
    message: WholeMessage<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct WholeMessage<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize, Clone, Copy)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

fn usage(prompt: u64, completion: u64) -> Usage {
    Usage { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt.saturating_add(completion) }
}

impl Answer {
    fn event(&self, out: &mut Vec<u8>, choices: &[ChunkChoice<'_>], usage: Option<Usage>) {
        out.extend_from_slice(b"data: ");
        let chunk = Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            choices,
            usage,
        };
        // Writing strings and numbers to memory does not fail.
        let _ = serde_json::to_writer(&mut *out, &chunk);
        out.extend_from_slice(b"\n\n");
    }

    /// The first event, which carries the role.
    pub fn first(&self, out: &mut Vec<u8>) {
        let delta = Delta { role: Some("assistant"), content: Some("") };
        self.event(out, &[ChunkChoice { index: 0, delta, finish_reason: None }], None);
    }

    /// An event with a piece of the answer.
    pub fn piece(&self, out: &mut Vec<u8>, text: &str) {
        let delta = Delta { role: None, content: Some(text) };
        self.event(out, &[ChunkChoice { index: 0, delta, finish_reason: None }], None);
    }

    /// The last events: why it ended, the usage where it was asked for, `[DONE]`.
    pub fn last(&self, out: &mut Vec<u8>, reason: &'static str, prompt: u64, completion: u64, include_usage: bool) {
        let delta = Delta { role: None, content: None };
        self.event(out, &[ChunkChoice { index: 0, delta, finish_reason: Some(reason) }], None);
        if include_usage {
            self.event(out, &[], Some(usage(prompt, completion)));
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// A whole answer.
    pub fn whole(&self, text: &str, reason: &'static str, prompt: u64, completion: u64) -> Bytes {
        super::super::json(&Completion {
            id: &self.id,
            object: "chat.completion",
            created: self.created,
            model: &self.model,
            choices: [CompletionChoice {
                index: 0,
                message: WholeMessage { role: "assistant", content: text, refusal: None },
                logprobs: None,
                finish_reason: reason,
            }],
            usage: usage(prompt, completion),
        })
    }
}

/// A model in the list.
#[derive(Debug, Serialize)]
pub struct ModelCard<'a> {
    /// Its name.
    pub id: &'a str,
    /// Unix seconds.
    pub created: u64,
    /// Whose it is.
    pub owned_by: &'a str,
}

#[derive(Serialize)]
struct Card<'a, 'b> {
    object: &'static str,
    #[serde(flatten)]
    card: &'b ModelCard<'a>,
}

/// The answer to `GET /v1/models`.
pub fn models_list<'a>(cards: impl IntoIterator<Item = ModelCard<'a>>) -> Bytes {
    let cards: Vec<_> = cards.into_iter().collect();
    let data: Vec<_> = cards.iter().map(|card| Card { object: "model", card }).collect();
    super::super::json(&serde_json::json!({ "object": "list", "data": data }))
}

/// The answer to `GET /v1/models/ID`.
pub fn model(card: &ModelCard<'_>) -> Bytes {
    super::super::json(&Card { object: "model", card })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_what_the_official_clients_read() {
        let answer = Answer { id: "chatcmpl-1".into(), created: 7, model: "m".into() };
        let mut out = Vec::new();
        answer.first(&mut out);
        answer.piece(&mut out, "Hi \"you\"\n");
        answer.last(&mut out, "stop", 3, 2, true);
        let head = r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":"#;
        let expected = [
            format!(r#"{head}[{{"index":0,"delta":{{"role":"assistant","content":""}},"finish_reason":null}}]}}"#),
            format!(r#"{head}[{{"index":0,"delta":{{"content":"Hi \"you\"\n"}},"finish_reason":null}}]}}"#),
            format!(r#"{head}[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}"#),
            format!(r#"{head}[],"usage":{{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}}}"#),
            "data: [DONE]".to_owned(),
        ];
        assert_eq!(String::from_utf8(out).unwrap(), expected.join("\n\n") + "\n\n");
    }
}
