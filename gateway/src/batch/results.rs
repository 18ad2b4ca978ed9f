//! Lines of the files of results.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::record::BatchUsage;

/// Line of a file of results.
#[derive(Serialize)]
struct Written<'a> {
    id: String,
    custom_id: &'a str,
    response: Option<Response<'a>>,
    error: Option<Failure<'a>>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: u16,
    request_id: &'a str,
    body: Body<'a>,
}

/// Body of an answer.
#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    /// JSON as it was written, on one line.
    Json(&'a RawValue),
    /// Another text.
    Text(&'a str),
}

#[derive(Serialize)]
struct Failure<'a> {
    code: &'a str,
    message: &'a str,
}

/// Line for an answer of a server or of the gateway.
pub(super) fn answered(custom_id: &str, status: u16, request_id: &str, body: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(body);
    // Within JSON a line feed stands between tokens only, where a blank is as good.
    let one_line = text.replace(['\n', '\r'], " ");
    let body = match serde_json::from_str::<&RawValue>(&one_line) {
        Ok(json) => Body::Json(json),
        Err(_) => Body::Text(&text),
    };
    let response = Some(Response { status_code: status, request_id, body });
    written(&Written { id: new_id(), custom_id, response, error: None })
}

/// Line for a request without an answer.
pub(super) fn failed(custom_id: &str, code: &str, message: &str) -> Vec<u8> {
    written(&Written { id: new_id(), custom_id, response: None, error: Some(Failure { code, message }) })
}

fn new_id() -> String {
    format!("batch_req_{}", uuid::Uuid::new_v4().simple())
}

fn written(line: &Written<'_>) -> Vec<u8> {
    // The parts are texts, numbers and JSON that was read before.
    serde_json::to_vec(line).unwrap_or_default()
}

/// Tokens that an answer reports, in the words of OpenAI's or Anthropic's API.
pub(super) fn usage(body: &[u8]) -> BatchUsage {
    #[derive(Deserialize)]
    struct Answer {
        usage: Option<Usage>,
    }
    #[derive(Deserialize)]
    struct Usage {
        #[serde(alias = "prompt_tokens")]
        input_tokens: Option<u64>,
        #[serde(alias = "completion_tokens")]
        output_tokens: Option<u64>,
        #[serde(alias = "prompt_tokens_details")]
        input_tokens_details: Option<Details>,
    }
    #[derive(Deserialize)]
    struct Details {
        cached_tokens: Option<u64>,
    }
    let usage = serde_json::from_slice::<Answer>(body).ok().and_then(|answer| answer.usage);
    usage.map_or_else(BatchUsage::default, |usage| BatchUsage {
        input: usage.input_tokens.unwrap_or(0),
        cached: usage.input_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0),
        output: usage.output_tokens.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_answer_stands_on_one_line_as_it_was() {
        let line = answered("a", 200, "r", b"{\n  \"n\": 1.50,\r\n  \"text\": \"x\\ny\"\n}");
        let text = String::from_utf8(line).unwrap();
        assert!(!text.contains('\n') && text.contains("1.50"), "{text}");
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["response"]["body"]["text"], "x\ny");
        assert_eq!((&read["custom_id"], &read["error"]), (&json!("a"), &Value::Null));
    }

    #[test]
    fn what_is_no_json_is_a_text() {
        for body in [&b"<html>\n</html>"[..], b"", b"\xff", b"{} {}", b"{\"a\":\"x\ny\"}"] {
            let text = String::from_utf8(answered("a", 502, "r", body)).unwrap();
            assert!(!text.contains('\n'), "{text}");
            let read: Value = serde_json::from_str(&text).unwrap();
            // A raw line feed within a string is no JSON; a blank in its place makes it some.
            assert!(read["response"]["body"].is_string() || body.starts_with(b"{\"a\""), "{text}");
        }
    }

    #[test]
    fn usage_is_read_in_either_api() {
        let openai =
            br#"{"usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}"#;
        assert_eq!(usage(openai), BatchUsage { input: 3, cached: 2, output: 4 });
        let other = br#"{"usage":{"input_tokens":3,"output_tokens":4}}"#;
        assert_eq!(usage(other), BatchUsage { input: 3, cached: 0, output: 4 });
        for body in [&b"{}"[..], b"x", br#"{"usage":null}"#, br#"{"usage":{"prompt_tokens":-1}}"#] {
            assert_eq!(usage(body), BatchUsage::default());
        }
    }
}
