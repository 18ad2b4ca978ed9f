//! What a request asks for. [`peek`] reads the few fields that routing needs; [`ChatRequest`] is the whole request as
//! the model inside understands it. A field that it does not implement is never ignored: with another value than its
//! default the request is refused by name, or does not spill.

use std::borrow::Cow;

use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use spillway_filter::{ErrorKind, Refusal};

/// Messages of one request.
const MAX_MESSAGES: usize = 4096;
/// Stop strings (as OpenAI's) and their length.
const MAX_STOPS: usize = 4;
const MAX_STOP_BYTES: usize = 256;

/// What routing needs of a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Peek<'a> {
    /// The model named.
    pub model: Option<Cow<'a, str>>,
    /// Whether the answer shall be an event stream.
    pub stream: bool,
}

/// Reads what routing needs. The body must be a JSON object that names its model at most once, so that no server
/// behind us can read another one than we did.
pub fn peek(body: &[u8]) -> Result<Peek<'_>, Refusal> {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow, default)]
        model: Option<Cow<'a, str>>,
        #[serde(default)]
        stream: Option<bool>,
    }
    // serde reads a struct from an array too.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(Refusal::invalid("invalid_json", "the body must be a JSON object"));
    }
    // Strings in fields that are skipped are not looked at by serde: JSON is UTF-8 throughout (RFC 8259, 8.1).
    let text = std::str::from_utf8(body).map_err(|e| {
        Refusal::invalid("invalid_json", format!("the body is not UTF-8 from byte {} on", e.valid_up_to()))
    })?;
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|e| malformed(&e))?;
    Ok(Peek { model: fields.model, stream: fields.stream.unwrap_or(false) })
}

fn malformed(e: &serde_json::Error) -> Refusal {
    Refusal::invalid("invalid_json", format!("the body is not the JSON object that this API takes: {e}"))
}

/// No model of this name can be had here.
pub fn model_not_found(name: &str) -> Refusal {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
    Refusal::new(
        StatusCode::NOT_FOUND,
        ErrorKind::NotFound,
        "model_not_found",
        format!("the model `{shown}` does not exist here; GET /v1/models lists those that do"),
    )
    .param("model")
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// A chat request as the model inside understands it.
#[derive(Debug, Clone, Default)]
pub struct ChatRequest {
    /// The model named.
    pub model: Option<String>,
    /// The conversation.
    pub messages: Vec<Message>,
    /// Whether the answer shall be an event stream.
    pub stream: bool,
    /// Whether the stream shall end with its usage.
    pub include_usage: bool,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// 0 to 2; 1 when left out.
    pub temperature: Option<f32>,
    /// Above 0, to 1.
    pub top_p: Option<f32>,
    /// An extension that many servers have.
    pub top_k: Option<u32>,
    /// For repeatable sampling.
    pub seed: Option<u64>,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    unsupported: Option<Refusal>,
}

impl ChatRequest {
    /// Reads a request. An error means that it is wrong by itself, for any server.
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let value: Value = serde_json::from_slice(body).map_err(|e| malformed(&e))?;
        let Value::Object(fields) = value else {
            return Err(Refusal::invalid("invalid_json", "the body must be a JSON object"));
        };
        let mut request = Self::default();
        let mut seen_messages = false;
        for (name, value) in fields {
            if name == "messages" {
                seen_messages = true;
                request.messages(value)?;
            } else if !value.is_null() {
                request.field(&name, value)?;
            }
        }
        if !seen_messages {
            return Err(Refusal::invalid("missing_required_parameter", "`messages` is missing").param("messages"));
        }
        Ok(request)
    }

    /// What the model inside does not do, if the request asks for such a thing.
    pub fn unsupported(&self) -> Option<&Refusal> {
        self.unsupported.as_ref()
    }

    /// Whether it names the model `name`, for a route that goes to that model directly.
    pub fn addressed_to(&self, name: &str) -> Result<(), Refusal> {
        match self.model.as_deref() {
            Some(model) if model == name => Ok(()),
            Some(model) => Err(model_not_found(model)),
            None => Err(Refusal::invalid("missing_required_parameter", "`model` is missing").param("model")),
        }
    }

    fn field(&mut self, name: &str, value: Value) -> Result<(), Refusal> {
        match name {
            "model" => self.model = Some(text(name, value)?),
            "stream" => self.stream = boolean(name, &value)?,
            "stream_options" => {
                self.include_usage = value.get("include_usage").and_then(Value::as_bool).unwrap_or(false)
            }
            // The newer name wins where both are given.
            "max_completion_tokens" => self.max_tokens = Some(count(name, &value)?),
            "max_tokens" => self.max_tokens = self.max_tokens.or(Some(count(name, &value)?)),
            "temperature" => self.temperature = Some(number(name, &value, 0.0, 2.0)?),
            "top_p" => self.top_p = Some(number(name, &value, 0.0, 1.0)?),
            "top_k" => self.top_k = Some(count(name, &value)?),
            "seed" => self.seed = Some(seed(&value)?),
            "stop" => self.stop = stops(value)?,
            // Without effect on an answer.
            "user"
            | "metadata"
            | "store"
            | "safety_identifier"
            | "prompt_cache_key"
            | "parallel_tool_calls"
            | "service_tier"
            | "verbosity"
            | "top_logprobs" => {}
            "n" if value == 1 => {}
            "presence_penalty" | "frequency_penalty" if value.as_f64() == Some(0.0) => {}
            "logprobs" if value == false => {}
            "logit_bias" if value.as_object().is_some_and(serde_json::Map::is_empty) => {}
            "tools" | "functions" if value.as_array().is_some_and(Vec::is_empty) => {}
            "tool_choice" | "function_call" if matches!(value.as_str(), Some("none" | "auto")) => {}
            "response_format" if value.get("type").and_then(Value::as_str) == Some("text") => {}
            "modalities" if value.as_array().is_some_and(|m| m.iter().all(|m| m == "text")) => {}
            "reasoning_effort" if value == "none" => {}
            _ => self.cannot(name, format!("the model inside the gateway does not implement `{name}` with this value")),
        }
        Ok(())
    }

    fn cannot(&mut self, param: &str, message: String) {
        if self.unsupported.is_none() {
            let param: String = param.chars().take(64).collect();
            self.unsupported = Some(Refusal::invalid("unsupported_parameter", message).param(param));
        }
    }

    fn messages(&mut self, value: Value) -> Result<(), Refusal> {
        let wrong = |message: String| Refusal::invalid("invalid_value", message).param("messages");
        let Value::Array(messages) = value else { return Err(wrong("`messages` must be an array".into())) };
        if messages.is_empty() || messages.len() > MAX_MESSAGES {
            return Err(wrong(format!("`messages` must have 1 to {MAX_MESSAGES} entries")));
        }
        for (n, message) in messages.into_iter().enumerate() {
            let Value::Object(mut message) = message else {
                return Err(wrong(format!("messages[{n}] must be an object")));
            };
            let role = match message.get("role").and_then(Value::as_str) {
                Some("developer") => "system",
                Some(role @ ("system" | "user" | "assistant")) => role,
                Some("tool" | "function") => {
                    self.cannot("messages", format!("messages[{n}]: the model inside the gateway has no tools"));
                    "user"
                }
                Some(_) => {
                    return Err(wrong(format!(
                        "messages[{n}].role must be system, developer, user, assistant or tool"
                    )));
                }
                None => return Err(wrong(format!("messages[{n}].role is missing"))),
            }
            .to_owned();
            if message.get("tool_calls").is_some_and(|calls| calls.as_array().is_none_or(|calls| !calls.is_empty())) {
                self.cannot("messages", format!("messages[{n}]: the model inside the gateway has no tools"));
            }
            let content = match message.remove("content") {
                Some(Value::String(content)) => content,
                Some(Value::Array(parts)) => self.parts(n, parts)?,
                None | Some(Value::Null) if role == "assistant" => String::new(),
                _ => return Err(wrong(format!("messages[{n}].content must be a string or an array of parts"))),
            };
            self.messages.push(Message { role, content });
        }
        Ok(())
    }

    fn parts(&mut self, n: usize, parts: Vec<Value>) -> Result<String, Refusal> {
        let mut text = String::new();
        for part in parts {
            match part.get("type").and_then(Value::as_str) {
                Some("text") => match part.get("text").and_then(Value::as_str) {
                    Some(part) => text.push_str(part),
                    None => {
                        let message = format!("messages[{n}].content: a text part without `text`");
                        return Err(Refusal::invalid("invalid_value", message).param("messages"));
                    }
                },
                Some(other) => {
                    let other: String = other.chars().take(32).collect();
                    self.cannot(
                        "messages",
                        format!("messages[{n}].content: the model inside the gateway reads text, not `{other}`"),
                    );
                }
                None => {
                    let message = format!("messages[{n}].content: a part without `type`");
                    return Err(Refusal::invalid("invalid_value", message).param("messages"));
                }
            }
        }
        Ok(text)
    }
}

fn wrong(name: &str, expected: &str) -> Refusal {
    Refusal::invalid("invalid_value", format!("`{name}` must be {expected}")).param(name.to_owned())
}

fn text(name: &str, value: Value) -> Result<String, Refusal> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(wrong(name, "a string")),
    }
}

fn boolean(name: &str, value: &Value) -> Result<bool, Refusal> {
    value.as_bool().ok_or_else(|| wrong(name, "true or false"))
}

fn count(name: &str, value: &Value) -> Result<u32, Refusal> {
    match value.as_u64().map(u32::try_from) {
        Some(Ok(count)) if count > 0 => Ok(count),
        _ => Err(wrong(name, "a whole number above 0")),
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the range is checked; sampling wants f32")]
fn number(name: &str, value: &Value, min: f64, max: f64) -> Result<f32, Refusal> {
    match value.as_f64() {
        Some(number) if (min..=max).contains(&number) => Ok(number as f32),
        _ => Err(wrong(name, &format!("a number from {min} to {max}"))),
    }
}

fn seed(value: &Value) -> Result<u64, Refusal> {
    value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned)).ok_or_else(|| wrong("seed", "a whole number"))
}

fn stops(value: Value) -> Result<Vec<String>, Refusal> {
    let list = match value {
        Value::String(one) => vec![Value::String(one)],
        Value::Array(list) => list,
        _ => return Err(wrong("stop", "a string or an array of strings")),
    };
    if list.len() > MAX_STOPS {
        return Err(wrong("stop", "at most 4 strings"));
    }
    list.into_iter()
        .map(|stop| match stop {
            Value::String(stop) if !stop.is_empty() && stop.len() <= MAX_STOP_BYTES => Ok(stop),
            _ => Err(wrong("stop", "strings of 1 to 256 bytes")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HI: &str = r#""messages":[{"role":"user","content":"hi"}]"#;

    fn parse(fields: &str) -> Result<ChatRequest, Refusal> {
        ChatRequest::parse(format!("{{{HI}{fields}}}").as_bytes())
    }

    #[test]
    fn routing_reads_a_model_that_nobody_can_read_differently() {
        assert_eq!(
            peek(br#"{"x":[1,{"model":"no"}],"model":"m","stream":true}"#).unwrap(),
            Peek { model: Some("m".into()), stream: true }
        );
        assert_eq!(peek(br#"{"model":null}"#).unwrap().model, None);
        assert_eq!(peek(br#"{"model":"a\u0062"}"#).unwrap().model.unwrap(), "ab");
        for bad in [
            &b"{"[..],
            b"[]",
            b"3",
            b"",
            br#"{"model":1}"#,
            br#"{"model":"a","model":"b"}"#,
            b"{} x",
            b"{\"a\":\"\xff\"}",
        ] {
            let refusal = peek(bad).unwrap_err();
            assert_eq!((refusal.status, refusal.code), (StatusCode::BAD_REQUEST, "invalid_json"), "{bad:?}");
        }
        let deep = [b"{\"a\":".to_vec(), vec![b'['; 100_000]].concat();
        assert!(peek(&deep).is_err(), "depth is bounded");
    }

    #[test]
    fn what_has_no_effect_is_taken() {
        let request = parse(
            r#","n":1,"presence_penalty":0,"logprobs":false,"tools":[],"tool_choice":"auto","user":"u",
            "response_format":{"type":"text"},"stop":["a"],"max_tokens":5,"max_completion_tokens":7,"temperature":0,
            "top_p":0.5,"seed":-1,"stream_options":{"include_usage":true},"logit_bias":{},"unknown":null"#,
        )
        .unwrap();
        assert!(request.unsupported().is_none());
        assert_eq!((request.max_tokens, request.include_usage, request.seed), (Some(7), true, Some(u64::MAX)));
    }

    #[test]
    fn what_is_not_implemented_is_named() {
        for (field, param) in [
            (r#","n":2"#, "n"),
            (r#","presence_penalty":0.5"#, "presence_penalty"),
            (r#","logprobs":true"#, "logprobs"),
            (r#","tools":[{}]"#, "tools"),
            (r#","response_format":{"type":"json_object"}"#, "response_format"),
            (r#","frobnicate":1"#, "frobnicate"),
        ] {
            let request = parse(field).unwrap();
            assert_eq!(request.unsupported().unwrap().param.as_deref(), Some(param));
        }
        let image = br#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]}"#;
        assert!(ChatRequest::parse(image).unwrap().unsupported().is_some());
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_field() {
        for (field, param) in [
            (r#","temperature":3"#, "temperature"),
            (r#","temperature":"hot""#, "temperature"),
            (r#","max_tokens":0"#, "max_tokens"),
            (r#","max_tokens":1.5"#, "max_tokens"),
            (r#","stop":["a","b","c","d","e"]"#, "stop"),
            (r#","stop":"""#, "stop"),
            (r#","stream":1"#, "stream"),
            (r#","model":{}"#, "model"),
        ] {
            assert_eq!(parse(field).unwrap_err().param.as_deref(), Some(param), "{field}");
        }
        for body in [
            "{}",
            r#"{"messages":[]}"#,
            r#"{"messages":[{"content":"x"}]}"#,
            r#"{"messages":[{"role":"king","content":"x"}]}"#,
            r#"{"messages":[{"role":"user"}]}"#,
            r#"{"messages":"x"}"#,
        ] {
            assert_eq!(ChatRequest::parse(body.as_bytes()).unwrap_err().param.as_deref(), Some("messages"), "{body}");
        }
    }

    #[test]
    fn parts_of_text_are_joined() {
        let body =
            br#"{"messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}"#;
        let request = ChatRequest::parse(body).unwrap();
        assert_eq!(request.messages, [Message { role: "system".into(), content: "ab".into() }]);
    }
}
