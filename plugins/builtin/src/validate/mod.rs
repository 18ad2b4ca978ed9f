//! `validate`: requests and answers by JSON Schemas.

mod content;

use std::io::ErrorKind as IoErrorKind;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use spillway_config::values::FilePath;
use spillway_filter::{
    AnswerHead, BuildContext, ErrorKind, EventChange, FieldError, Filter, FilterFactory, Flow, Refusal, RequestView,
    ResponseEvent, Rewrite, Rewriter, define,
};
use spillway_schemas::{Fault, Schema};

use crate::strict_json as json;
use content::{Content, Contents, TooLong};

/// Checks the JSON of requests and answers by JSON Schemas. A request that does not pass is 400, an answer 502; the message names the
/// place and what is expected there.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Validate {
    /// Bodies of requests, in the API of the caller. A request without a body passes.
    #[serde(default)]
    request: Option<OfRequest>,
    /// Answers with a status of success, in the API of the caller.
    #[serde(default)]
    response: Option<OfAnswer>,
}

/// Schema of requests: exactly one of `schema` and `file`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OfRequest {
    /// JSON Schema (draft 2020-12, unless its `$schema` names another), at most 64 KiB. Its references lead into itself, and to
    /// none of the parts around them.
    #[serde(default)]
    schema: Option<Value>,
    /// File with such a schema in JSON.
    #[serde(default)]
    file: Option<FilePath>,
}

/// Schema of answers: exactly one of `schema` and `file`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OfAnswer {
    /// JSON Schema, as for requests.
    #[serde(default)]
    schema: Option<Value>,
    /// File with such a schema in JSON.
    #[serde(default)]
    file: Option<FilePath>,
    /// Part of an answer that the schema is for.
    #[serde(default)]
    of: Of,
}

/// Part of an answer that is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Of {
    /// The body, of any request of the route. A stream, which has more than one, does not pass.
    #[default]
    Body,
    /// The text of a model's answer, which must be JSON, in each choice; a choice that calls a tool passes. The end of a stream
    /// is held back until its text is checked, and an error ends the stream in its place. Other requests pass.
    Content,
}

/// Schema that the file has in one of two places; `None` where its file does not exist, which is reported by itself.
fn compile_schema(schema: Option<&Value>, file: Option<&FilePath>) -> Result<Option<Schema>, FieldError> {
    let (key, schema) = match (schema, file) {
        (Some(schema), None) => ("schema", schema.clone()),
        (None, Some(path)) => {
            let text = match spillway_config::read_text(path) {
                Ok(text) => text,
                Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(FieldError::at(["file"], format!("cannot read the file: {error}"))),
            };
            let schema = serde_json::from_str(&text);
            ("file", schema.map_err(|error| FieldError::at(["file"], format!("the file is not JSON: {error}")))?)
        }
        _ => return Err(FieldError::at([], "found both or none; expected exactly one of `schema` and `file`")),
    };
    if !matches!(schema, Value::Object(_) | Value::Bool(_)) {
        return Err(FieldError::at([key], "expected a JSON Schema, which is an object"));
    }
    Schema::new(&schema).map(Some).map_err(|error| FieldError::at([key], error.to_string()))
}

#[derive(Default)]
struct Compiled {
    request: Option<Schema>,
    response: Option<Arc<Schema>>,
    /// False where a file does not exist.
    is_whole: bool,
}

fn compile(written: &Validate) -> Result<Compiled, Vec<FieldError>> {
    let mut errors = Vec::new();
    if written.request.is_none() && written.response.is_none() {
        errors.push(FieldError::at([], "no effect; expected `request`, `response` or both"));
    }
    let mut compiled = Compiled { is_whole: true, ..Compiled::default() };
    let mut schema = |side: &str, schema: Option<&Value>, file: Option<&FilePath>| {
        let result = compile_schema(schema, file);
        compiled.is_whole &= !matches!(result, Ok(None));
        result.unwrap_or_else(|mut error| {
            error.path.insert(0, side.to_owned());
            errors.push(error);
            None
        })
    };
    let request = written.request.as_ref().and_then(|own| schema("request", own.schema.as_ref(), own.file.as_ref()));
    let response = written.response.as_ref().and_then(|own| schema("response", own.schema.as_ref(), own.file.as_ref()));
    compiled.request = request;
    compiled.response = response.map(Arc::new);
    if errors.is_empty() { Ok(compiled) } else { Err(errors) }
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    let check = |written: &Validate| compile(written).err().unwrap_or_default();
    define("validate", check, |written: Validate, _: &BuildContext<'_>| {
        let compiled = compile(&written).map_err(|mut errors| errors.swap_remove(0))?;
        if !compiled.is_whole {
            return Err(FieldError::at([], "the file of a schema does not exist"));
        }
        let of = written.response.map_or(Of::Body, |response| response.of);
        Ok(Arc::new(Checks { request: compiled.request, response: compiled.response, of }) as Arc<dyn Filter>)
    })
}

/// Filter with its schemas.
struct Checks {
    request: Option<Schema>,
    response: Option<Arc<Schema>>,
    of: Of,
}

impl Filter for Checks {
    // For answers too: the gateway then lets no socket pass, whose messages nobody checks.
    fn needs_body(&self) -> bool {
        true
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        if let (Some(schema), Some(body)) = (&self.request, x.body.filter(|body| !body.is_empty())) {
            let judged = json::read(body)
                .map_err(str::to_owned)
                .and_then(|value| schema.check(&value).map_err(|fault| fault.to_string()));
            if let Err(why) = judged {
                let message = format!("the body of the request is not valid here: {why}");
                return Flow::Refuse(Box::new(Refusal::invalid("request_not_valid", message)));
            }
        }
        let Some(schema) = self.response.clone() else { return Flow::Continue };
        let is_checked = match self.of {
            Of::Body => *x.method != Method::HEAD,
            Of::Content => x.system.is_some(),
        };
        if !is_checked {
            return Flow::Continue;
        }
        let answer = AnswerCheck { schema, of: self.of, contents: Contents::default(), is_over: false };
        Flow::Rewrite(Box::new(Rewrite { rewriter: Some(Box::new(answer)), ..Rewrite::default() }))
    }
}

/// Check of one answer.
struct AnswerCheck {
    schema: Arc<Schema>,
    of: Of,
    contents: Contents,
    /// True once the stream has said an error: what came before it is no answer.
    is_over: bool,
}

/// Refusal in place of an answer.
fn refused(why: &str) -> Box<Refusal> {
    let message = format!("the answer of the server is not valid: {why}");
    Box::new(Refusal::new(StatusCode::BAD_GATEWAY, ErrorKind::Upstream, "answer_not_valid", message))
}

impl AnswerCheck {
    fn value(&self, value: &Value) -> Result<(), Box<Refusal>> {
        self.schema.check(value).map_err(|fault: Fault| refused(&fault.to_string()))
    }

    fn contents(&self, contents: &[Content]) -> Result<(), Box<Refusal>> {
        contents.iter().filter(|content| !content.calls).try_for_each(|content| {
            let value = json::read(content.text.as_bytes());
            self.value(&value.map_err(|why| refused(&format!("its text was to be JSON, and {why}")))?)
        })
    }

    fn judged(&mut self, event: &ResponseEvent<'_>) -> Result<(), Box<Refusal>> {
        if self.of == Of::Body {
            return Err(refused("it is a stream, and its body was to be JSON"));
        }
        if !event.is_whole {
            return Err(refused("an event of the stream is too long to be read"));
        }
        let Some(data) = event.data() else { return Ok(()) };
        let Ok(value) = serde_json::from_slice::<Value>(&data) else {
            // `[DONE]`, the end of OpenAI's streams.
            let rest = self.contents.rest();
            return self.contents(&rest);
        };
        if value.get("error").is_some_and(|error| !error.is_null()) {
            self.is_over = true;
            return Ok(());
        }
        let ended = self.contents.add(&value).map_err(|TooLong| refused("its text is longer than 1 MiB"))?;
        self.contents(&ended)
    }
}

impl Rewriter for AnswerCheck {
    fn reads(&self, head: &AnswerHead<'_>) -> bool {
        let is_bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT);
        head.status.is_success() && !is_bodiless
    }

    fn whole(&mut self, body: &[u8]) -> Result<Option<Bytes>, Box<Refusal>> {
        let value = json::read(body).map_err(refused)?;
        match self.of {
            Of::Body => self.value(&value)?,
            Of::Content => self.contents(&content::of_answer(&value).unwrap_or_default())?,
        }
        Ok(None)
    }

    fn event(&mut self, event: &ResponseEvent<'_>) -> EventChange {
        if self.is_over {
            return EventChange::Keep;
        }
        match self.judged(event) {
            Ok(()) => EventChange::Keep,
            Err(refusal) => {
                self.is_over = true;
                EventChange::Refuse(refusal)
            }
        }
    }

    fn end(&mut self) -> Result<Bytes, Box<Refusal>> {
        if !self.is_over {
            let rest = self.contents.rest();
            self.contents(&rest)?;
        }
        Ok(Bytes::new())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use spillway_filter::SystemPlace;
    use spillway_filter::testing::{FilterBuilder, TestRequest, headers, split_events};

    use super::*;

    fn city() -> Value {
        json!({"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}})
    }

    fn build(config: &Value) -> Arc<dyn Filter> {
        FilterBuilder::new().build(&*factory(), config)
    }

    fn rewriter(of: &str) -> Box<dyn Rewriter> {
        let filter = build(&json!({"response": {"schema": city(), "of": of}}));
        let request = TestRequest::post("/v1/chat/completions", "{}").system(SystemPlace::Messages);
        let Flow::Rewrite(rewrite) = request.decide(&*filter) else { panic!("not followed") };
        rewrite.rewriter.unwrap()
    }

    #[test]
    fn a_request_that_is_not_valid_is_refused_with_its_place() {
        let filter = build(&json!({"request": {"schema": city()}}));
        let decide = |body: &str| match TestRequest::post("/x", body.to_owned()).decide(&*filter) {
            Flow::Continue => None,
            Flow::Refuse(refusal) => {
                assert_eq!((refusal.status.as_u16(), refusal.code), (400, "request_not_valid"));
                Some(refusal.message.to_string())
            }
            _ => panic!("{body}"),
        };
        assert_eq!(decide(r#"{"city":"Bonn"}"#), None);
        assert_eq!(decide(""), None);
        for (body, end) in [
            (r#"{"city":7}"#, "at `/city`: expected string, found number"),
            ("{}", "at ``: expected the members `city`"),
            (r#"{"city":"a","city":7}"#, "it has a name twice in one object"),
            ("city=a", "it is not JSON"),
        ] {
            let message = decide(body).unwrap();
            assert!(message.ends_with(end), "{message}");
        }
    }

    #[test]
    fn an_answer_that_is_not_valid_is_refused() {
        let choice = |content: &str| json!({"choices": [{"message": {"content": content}}]}).to_string();
        let called = json!({"choices": [{"message": {"content": null, "tool_calls": [{}]}}]}).to_string();
        for (of, body, end) in [
            ("body", r#"{"city":"Bonn"}"#.to_owned(), None),
            ("body", r#"{"city":7}"#.to_owned(), Some("at `/city`: expected string, found number")),
            ("body", "<html>".to_owned(), Some("it is not JSON")),
            ("content", choice(r#"{"city":"Bonn"}"#), None),
            ("content", choice(r#" {"city":"Bonn"} "#), None),
            ("content", called, None),
            ("content", r#"{"input_tokens":7}"#.to_owned(), None),
            ("content", choice(r#"{"city":7}"#), Some("at `/city`: expected string, found number")),
            ("content", choice("Bonn."), Some("its text was to be JSON, and it is not JSON")),
            ("content", r#"{"unknown":1}"#.to_owned(), Some("its text was to be JSON, and it is not JSON")),
        ] {
            let found = rewriter(of).whole(body.as_bytes());
            match end {
                None => assert_eq!(found.ok(), Some(None), "{body}"),
                Some(end) => {
                    let refusal = found.unwrap_err();
                    assert_eq!((refusal.status.as_u16(), refusal.code), (502, "answer_not_valid"));
                    assert!(refusal.message.ends_with(end), "{}", refusal.message);
                }
            }
        }
    }

    /// Number of events that pass, and the refusal.
    fn streamed(of: &str, stream: &str) -> (usize, Option<String>) {
        let (mut rewriter, mut passed, mut refused) = (rewriter(of), 0, None);
        split_events(stream, |event| match rewriter.event(event) {
            EventChange::Keep if refused.is_none() => passed += 1,
            EventChange::Refuse(refusal) => refused = Some(refusal.message.to_string()),
            _ => {}
        });
        let end = rewriter.end().err().map(|refusal| refusal.message.to_string());
        (passed, refused.or(end))
    }

    #[test]
    fn a_stream_is_judged_before_its_end_passes() {
        let delta = |content: &str| {
            format!(
                "data: {}\n\n",
                json!({"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": null}]})
            )
        };
        let last = format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}));
        let done = "data: [DONE]\n\n";
        let start = delta(r#"{"city":"#);
        let (good, bad) = (delta(r#""Bonn"}"#), delta("7}"));
        assert_eq!(streamed("content", &format!("{start}{good}{last}{done}")), (4, None));
        let fault = Some("the answer of the server is not valid: at `/city`: expected string, found number".to_owned());
        assert_eq!(streamed("content", &format!("{start}{bad}{last}{done}")), (2, fault.clone()));
        // Servers that leave out the reason, the last event, or both.
        assert_eq!(streamed("content", &format!("{start}{bad}{done}")), (2, fault.clone()));
        assert_eq!(streamed("content", &format!("{start}{bad}")), (2, fault));
        let (passed, cut) = streamed("content", &format!("{start}{last}{done}"));
        assert!(passed == 1 && cut.unwrap().ends_with("it is not JSON"));
        // An error of the server passes as it is.
        let error = format!("data: {}\n\n", json!({"error": {"message": "x"}}));
        assert_eq!(streamed("content", &format!("{start}{error}{done}")), (3, None));
        let (passed, refused) = streamed("body", &format!("{start}{good}"));
        assert!(passed == 0 && refused.unwrap().contains("it is a stream"));
    }

    #[test]
    fn only_answers_that_are_meant_are_read() {
        let head = |status| StatusCode::from_u16(status).unwrap();
        for (status, reads) in [(200, true), (201, true), (204, false), (404, false), (502, false)] {
            let fields = headers([("content-type", "application/json")]);
            let head = AnswerHead { status: head(status), headers: &fields, is_spilled: false };
            assert_eq!(rewriter("body").reads(&head), reads, "{status}");
        }
        let filter = build(&json!({"response": {"schema": city(), "of": "content"}}));
        assert!(matches!(TestRequest::post("/v1/embeddings", "{}").decide(&*filter), Flow::Continue));
        let filter = build(&json!({"response": {"schema": city()}}));
        assert!(matches!(TestRequest::new(Method::HEAD, "/x").decide(&*filter), Flow::Continue));
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (no_json, no_schema) = (file("a", "{"), file("b", r#"{"type":"text"}"#));
        for (json, path) in [
            (json!({}), vec![]),
            (json!({"request": {}}), vec!["request"]),
            (json!({"response": {"schema": {}, "file": no_schema}}), vec!["response"]),
            (json!({"request": {"schema": 7}}), vec!["request", "schema"]),
            (json!({"request": {"schema": {"pattern": "("}}}), vec!["request", "schema"]),
            (json!({"request": {"file": no_json}}), vec!["request", "file"]),
            (json!({"response": {"file": no_schema}}), vec!["response", "file"]),
        ] {
            let errors = factory().check(&json);
            assert_eq!(errors.len(), 1, "{json}: {errors:?}");
            assert_eq!(errors[0].path, path, "{json}");
        }
        let both = json!({"request": {}, "response": {"schema": {"type": 5}}});
        assert_eq!(factory().check(&both).len(), 2);
        assert!(factory().check(&json!({"request": {"file": "/nowhere"}})).is_empty(), "reported with all others");
        let good = file("c", &city().to_string());
        build(&json!({"request": {"file": good}}));
    }
}
