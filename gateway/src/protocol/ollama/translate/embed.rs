//! Vectors of texts for servers of OpenAI's API: `/api/embed`, and the older `/api/embeddings` with one prompt and one vector. The
//! numbers of a vector pass as the server wrote them.

use http::{HeaderName, Method};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use spillway_filter::Refusal;

use super::super::bare;
use super::Chat;
use crate::protocol::json;
use crate::protocol::named;
use crate::protocol::openai::ChatCompletions;
use crate::protocol::refusals::shown;
use crate::protocol::translate::{
    Api, CallAnswer, CallTranslator, CallerCall, Fields, Lossy, ReadCallAnswer, ServerAnswer, Unreadable, WrittenCall,
    json_headers, json_object, read_json_answer,
};

/// Name of the servers' API in refusals.
const OPENAI: &str = "openai";

/// Most texts in one request, as in OpenAI's API.
const MAX_TEXTS: usize = 2048;

/// Answer without the vectors that were asked for.
const NO_VECTORS: Unreadable = Unreadable("the backend's answer has no vector for each text");

/// Translator of both paths.
pub(in crate::protocol) struct Embeddings;

/// Reads the texts of a request, and whether it has the older form.
fn inputs(fields: &mut Fields) -> Result<(Vec<String>, bool), Refusal> {
    let is_filled = |text: &String| !text.is_empty();
    match (fields.take("input"), fields.take("prompt")) {
        (Some(_), Some(_)) => Err(fields.wrong("invalid_value", "prompt", "stands beside `input`: send one of them")),
        (None, None) => Err(fields.missing("input")),
        (None, Some(Value::String(text))) if is_filled(&text) => Ok((vec![text], true)),
        (None, Some(_)) => Err(fields.wrong("invalid_value", "prompt", "must be a text")),
        (Some(Value::String(text)), None) if is_filled(&text) => Ok((vec![text], false)),
        (Some(Value::Array(list)), None) if (1..=MAX_TEXTS).contains(&list.len()) => {
            let texts = list.into_iter().map(|entry| match entry {
                Value::String(text) if is_filled(&text) => Ok(text),
                _ => Err(fields.wrong("invalid_value", "input", "must have texts alone, and no empty one")),
            });
            Ok((texts.collect::<Result<_, _>>()?, false))
        }
        (Some(_), None) => {
            Err(fields.wrong("invalid_value", "input", format!("must be a text or a list of 1 to {MAX_TEXTS} texts")))
        }
    }
}

impl CallTranslator for Embeddings {
    fn is_callers_header(&self, name: &HeaderName) -> bool {
        Chat.is_own_header(name)
    }

    fn is_servers_header(&self, name: &HeaderName) -> bool {
        ChatCompletions.is_own_header(name)
    }

    fn write(&self, call: &CallerCall<'_>, lossy: &mut Lossy<'_>) -> Result<WrittenCall, Refusal> {
        let mut fields = Fields::new(json_object(call.body)?, "");
        let written = fields.text("model")?;
        let asked = named(written.as_deref().map(bare))?;
        let model = call.renamed.unwrap_or(asked);
        let (texts, is_single) = inputs(&mut fields)?;
        let count = texts.len();
        let mut body = Map::new();
        body.insert("model".to_owned(), model.into());
        body.insert("input".to_owned(), if count == 1 { texts.into_iter().collect() } else { texts.into() });
        body.insert("encoding_format".to_owned(), "float".into());
        if let Some(dimensions) = fields.count("dimensions")?
            && !lossy.drops("dimensions", None)
        {
            body.insert("dimensions".to_owned(), dimensions.into());
        }
        // The time for which a server keeps the model in memory. Servers refuse a text that is too long, as `truncate: false` asks.
        if fields.take("keep_alive").is_some() {
            lossy.hint("keep_alive");
        }
        if fields.flag("truncate")? == Some(true) {
            lossy.hint("truncate");
        }
        if let Some(options) = fields.object("options")? {
            for name in options.rest_names() {
                lossy.without(&name, OPENAI)?;
            }
        }
        for (name, _) in fields.rest() {
            lossy.without(&shown(&name), OPENAI)?;
        }
        let reader = Box::new(Reader { asked: asked.to_owned(), model: model.to_owned(), count, is_single });
        Ok(WrittenCall {
            method: Method::POST,
            path: "/v1/embeddings".to_owned(),
            body: json(&body),
            headers: json_headers(),
            reader,
        })
    }
}

/// Reader of the answer to one request.
struct Reader {
    /// Model that the caller named.
    asked: String,
    /// Model that the server was asked for.
    model: String,
    /// Texts of the request.
    count: usize,
    /// True if the answer is one vector.
    is_single: bool,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    data: Vec<Vector<'a>>,
    model: Option<String>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Vector<'a> {
    index: Option<usize>,
    #[serde(borrow)]
    embedding: &'a RawValue,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
}

#[derive(Serialize)]
struct Many<'a> {
    model: &'a str,
    embeddings: Vec<&'a RawValue>,
    prompt_eval_count: u64,
}

#[derive(Serialize)]
struct One<'a> {
    embedding: &'a RawValue,
}

impl Reader {
    /// Answer with the vectors in the order of the texts; `None` where the server's is of another form.
    fn answer(&self, body: &[u8], stands_in: bool) -> Option<bytes::Bytes> {
        let Answer { mut data, model, usage } = serde_json::from_slice(body).ok()?;
        data.sort_by_key(|vector| vector.index);
        let is_whole = data.len() == self.count
            && data.iter().enumerate().all(|(n, vector)| vector.index.is_none_or(|index| index == n))
            && data.iter().all(|vector| vector.embedding.get().starts_with('['));
        if !is_whole {
            return None;
        }
        let mut vectors = data.iter().map(|vector| vector.embedding);
        if self.is_single {
            return Some(json(&One { embedding: vectors.next()? }));
        }
        let model = model.filter(|model| stands_in || *model != self.model);
        Some(json(&Many {
            model: model.as_deref().unwrap_or(&self.asked),
            embeddings: vectors.collect(),
            prompt_eval_count: usage.and_then(|usage| usage.prompt_tokens).unwrap_or(0),
        }))
    }
}

impl ReadCallAnswer for Reader {
    fn read(&self, answer: &ServerAnswer<'_>) -> CallAnswer {
        read_json_answer(answer, (&ChatCompletions, &Chat), NO_VECTORS, |body| self.answer(body, answer.stands_in))
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use spillway_filter::Fields as Headers;

    use super::*;
    use crate::protocol::operation::Operation;
    use crate::protocol::translate::MostKept;

    fn write(body: &Value, dropped: &[String]) -> Result<(WrittenCall, Option<String>), Refusal> {
        let (headers, bytes) = (Headers::default(), body.to_string());
        let call = CallerCall {
            operation: Operation::Embeddings,
            method: &Method::POST,
            path: "/api/embed",
            headers: &headers,
            body: bytes.as_bytes(),
            model: Some("m"),
            renamed: Some("theirs"),
            takes_trailers: false,
        };
        let mut lossy = Lossy::new(dropped);
        let written = Embeddings.write(&call, &mut lossy)?;
        Ok((written, lossy.header().map(|value| value.to_str().unwrap().to_owned())))
    }

    fn read(written: &WrittenCall, status: u16, body: &str) -> CallAnswer {
        written.reader.read(&ServerAnswer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: &Headers::default(),
            body: Ok(body.as_bytes()),
            most_kept: MostKept::default(),
            trailers: None,
            stands_in: false,
            request_id: "",
        })
    }

    #[test]
    fn texts_go_and_vectors_come_in_their_order_as_they_are_written() {
        let body = json!({"model": "m:latest", "input": ["a", "b"], "dimensions": 2, "truncate": true, "keep_alive": "5m", "options": {}});
        let (written, dropped) = write(&body, &[]).unwrap();
        let sent: Value = serde_json::from_slice(&written.body).unwrap();
        let expected = json!({"model": "theirs", "input": ["a", "b"], "encoding_format": "float", "dimensions": 2});
        assert_eq!((sent, &*written.path), (expected, "/v1/embeddings"));
        assert_eq!(dropped.as_deref(), Some("keep_alive, truncate"));
        let answer = r#"{"object":"list","data":[{"index":1,"embedding":[0.30000000000000004,1e-7]},{"index":0,"embedding":[1,2]}],
            "model":"theirs","usage":{"prompt_tokens":7,"total_tokens":7}}"#;
        let told = read(&written, 200, answer);
        let expected = r#"{"model":"m","embeddings":[[1,2],[0.30000000000000004,1e-7]],"prompt_eval_count":7}"#;
        assert_eq!((told.status.as_u16(), &*told.body), (200, expected.as_bytes()));

        let (written, _) = write(&json!({"model": "m", "prompt": "a"}), &[]).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&written.body).unwrap()["input"], json!(["a"]));
        let told = read(&written, 200, r#"{"data":[{"embedding":[1]}]}"#);
        assert_eq!(&*told.body, br#"{"embedding":[1]}"#);
    }

    #[test]
    fn answers_of_another_form_and_errors_are_told_as_such() {
        let (written, _) = write(&json!({"model": "m", "input": "a"}), &[]).unwrap();
        for body in
            ["{}", r#"{"data":[]}"#, r#"{"data":[{"embedding":"AAA="}]}"#, r#"{"data":[{"index":1,"embedding":[1]}]}"#]
        {
            let told = read(&written, 200, body);
            assert_eq!((told.status.as_u16(), told.unreadable), (502, Some(NO_VECTORS)), "{body}");
        }
        let told = read(&written, 200, r#"{"error":{"message":"no such model","code":404}}"#);
        let expected = (404, &br#"{"error":"no such model"}"#[..], None);
        assert_eq!((told.status.as_u16(), &*told.body, told.unreadable), expected);
        let told = read(&written, 404, r#"{"error":{"message":"no such model","type":"invalid_request_error"}}"#);
        assert_eq!((told.status.as_u16(), &*told.body), (404, &br#"{"error":"no such model"}"#[..]));
    }

    #[test]
    fn what_the_other_api_lacks_is_refused_by_name() {
        for (body, name) in [
            (json!({"input": "a"}), "model"),
            (json!({"model": "m"}), "input"),
            (json!({"model": "m", "input": []}), "input"),
            (json!({"model": "m", "input": [1]}), "input"),
            (json!({"model": "m", "input": "a", "prompt": "b"}), "prompt"),
            (json!({"model": "m", "input": "a", "options": {"num_ctx": 9}}), "options.num_ctx"),
            (json!({"model": "m", "input": "a", "surprise": 1}), "surprise"),
        ] {
            assert_eq!(write(&body, &[]).err().unwrap().param.as_deref(), Some(name), "{body}");
        }
        let (_, dropped) =
            write(&json!({"model": "m", "input": "a", "surprise": 1}), &["surprise".to_owned()]).unwrap();
        assert_eq!(dropped.as_deref(), Some("surprise"));
    }
}
