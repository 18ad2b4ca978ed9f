//! File of probes: a question and what is expected of its answer in each line, as JSON. An error has the number of its line.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use http::Method;
use http::uri::PathAndQuery;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::protocol::{InferenceCall, ModelPlace, OLLAMA, OPENAI, Operation, ResolvedOperation};

/// Most probes of a file: each has series of its own in the metrics.
const MOST_PROBES: usize = 64;
/// Longest file, in bytes.
const MOST_BYTES: u64 = 4 << 20;
/// Longest name, in bytes.
const MOST_NAME: usize = 64;
/// Path of a probe that names none.
const CHAT: &str = "/v1/chat/completions";
/// Tokens that the answer to a `prompt` may have.
const ANSWER_TOKENS: u64 = 256;
/// Tokens that are set aside for an answer whose request names no number.
const UNNAMED_TOKENS: u64 = 1024;
/// Bytes of a request that are about one token.
const BYTES_A_TOKEN: u64 = 4;
/// Fields of requests with the most tokens of an answer, in all APIs.
const LIMITS: [&str; 4] = ["max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict"];

/// Fault of a file of probes.
#[derive(Debug, thiserror::Error)]
pub enum ProbesError {
    /// The file cannot be read.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// The file as a whole is none of probes.
    #[error("{0}")]
    Whole(String),
    /// A line is no probe.
    #[error("line {line}: {reason}")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// Fault, and what is expected instead.
        reason: String,
    },
}

/// Expectation of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Wanted {
    /// A text of this meaning.
    Similar(String),
    /// These values at these JSON pointers.
    Exact(Vec<(String, Value)>),
}

/// Question with what is expected of its answer.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    /// Name in reports, one in the file.
    pub(super) name: Box<str>,
    /// Path of the request, with its query.
    pub(super) path: PathAndQuery,
    /// Body of the request.
    request: Map<String, Value>,
    /// Expectation of the answer.
    pub(super) wanted: Wanted,
    /// Number by which an edited probe is told from the one before of the same name.
    pub(super) identity: u64,
}

/// Line of the file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    name: Option<String>,
    path: Option<String>,
    model: Option<String>,
    prompt: Option<String>,
    request: Option<Map<String, Value>>,
    expected: Option<String>,
    exact: Option<Map<String, Value>>,
    check: Option<Value>,
}

/// Reads a file of probes.
pub(super) fn read(path: &Path) -> Result<Vec<Probe>, ProbesError> {
    if fs::metadata(path)?.len() > MOST_BYTES {
        return Err(ProbesError::Whole(format!("the file is longer than {} MiB", MOST_BYTES >> 20)));
    }
    parse(&fs::read_to_string(path)?)
}

fn parse(text: &str) -> Result<Vec<Probe>, ProbesError> {
    let (mut probes, mut names) = (Vec::new(), HashSet::new());
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |reason| ProbesError::Line { line: n + 1, reason };
        let probe = Probe::parse(line, n + 1).map_err(wrong)?;
        if !names.insert(probe.name.clone()) {
            return Err(wrong(format!("another probe has the name `{}` already: give each its own", probe.name)));
        }
        if probes.len() == MOST_PROBES {
            return Err(wrong(format!("the file has more than {MOST_PROBES} probes: leave some out")));
        }
        probes.push(probe);
    }
    if probes.is_empty() {
        return Err(ProbesError::Whole("the file has no probe; expected one in each line".to_owned()));
    }
    Ok(probes)
}

impl Probe {
    fn parse(line: &str, number: usize) -> Result<Self, String> {
        let line: Line = serde_json::from_str(line).map_err(|e| line_error(&e))?;
        if line.check.is_some() {
            return Err(
                "`check` (an expression) is not supported by this version; use `expected` or `exact`".to_owned()
            );
        }
        let name = checked_name(line.name, number)?;
        let (path, request) = request_of(line.path.as_deref(), line.prompt, line.request, line.model)?;
        let operation = resolve(path.path()).operation;
        let wanted = match (line.expected, line.exact) {
            (Some(_), None) if !operation.asks_for_text() => {
                return Err("`expected` compares texts, and the answer has none; use `exact`".to_owned());
            }
            (Some(text), None) if text.trim().is_empty() => return Err("`expected` is empty".to_owned()),
            (Some(text), None) => Wanted::Similar(text),
            (None, Some(fields)) => {
                if request.get("stream") == Some(&Value::Bool(true)) {
                    return Err("`exact` needs an answer of one value: leave `stream` out".to_owned());
                }
                Wanted::Exact(pointers(fields)?)
            }
            _ => return Err("expected either `expected` or `exact`".to_owned()),
        };
        let content = format!("{path} {} {wanted:?}", Value::Object(request.clone()));
        let identity = Sha256::digest(content).first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Ok(Self { name: name.into(), path, request, wanted, identity })
    }

    /// Body of the request for a target that knows its model by the name `model`, where the probe itself names none.
    pub(super) fn body(&self, model: Option<&str>) -> Bytes {
        with_model(&self.request, &self.path, model)
    }

    /// Tokens that the prompt and the answer may have, at about.
    pub(super) fn tokens(&self) -> u64 {
        let (request, options) = (&self.request, self.request.get("options"));
        let named = |field| request.get(field).or_else(|| options?.get(field)).and_then(Value::as_u64);
        let answer = LIMITS.iter().find_map(|field| named(*field)).unwrap_or(UNNAMED_TOKENS);
        let prompt = u64::try_from(Value::Object(request.clone()).to_string().len()).unwrap_or(u64::MAX);
        (prompt / BYTES_A_TOKEN).saturating_add(answer)
    }
}

/// Fault of a line of JSON.
pub(in crate::quality) fn line_error(e: &serde_json::Error) -> String {
    // Every text is of one line: its number is that of the file.
    let text = e.to_string();
    let told = text.rsplit_once(" at line 1").map_or(text.as_str(), |(told, _)| told);
    format!("column {}: {told}", e.column())
}

/// Name of the question in a line, by its number where it has none.
pub(in crate::quality) fn checked_name(name: Option<String>, number: usize) -> Result<String, String> {
    let name = name.unwrap_or_else(|| format!("line {number}"));
    if name.is_empty() || name.len() > MOST_NAME || name.chars().any(char::is_control) {
        return Err(format!("`name` must have 1 to {MOST_NAME} bytes and no control characters"));
    }
    Ok(name)
}

/// Path and body of a call of a model: one that asks `prompt`, or `request` as it is.
pub(in crate::quality) fn request_of(
    path: Option<&str>,
    prompt: Option<String>,
    request: Option<Map<String, Value>>,
    model: Option<String>,
) -> Result<(PathAndQuery, Map<String, Value>), String> {
    let path = path.unwrap_or(CHAT);
    let path: PathAndQuery = path
        .parse()
        .ok()
        .filter(|_| path.starts_with('/'))
        .ok_or("`path` is no path; expected one such as /v1/chat/completions")?;
    let ResolvedOperation { operation, model_place, .. } = resolve(path.path());
    let mut request = match (prompt, request) {
        (Some(prompt), None) => question(&prompt, path.path())?,
        (None, Some(request)) => request,
        _ => return Err("expected either `prompt` or `request`".to_owned()),
    };
    if let Some(model) = model {
        request.insert("model".to_owned(), model.into());
    }
    let is_call = operation.asks_for_text()
        || matches!(operation, Operation::Embeddings | Operation::Rerank | Operation::Inference(InferenceCall::Infer));
    if !is_call || model_place == ModelPlace::Message {
        return Err(format!("`path`: `{path}` is no call of a model with a body of JSON that the gateway knows"));
    }
    Ok((path, request))
}

/// Body of a request for a target that knows its model by the name `model`, where the request itself names none.
pub(in crate::quality) fn with_model(request: &Map<String, Value>, path: &PathAndQuery, model: Option<&str>) -> Bytes {
    let mut request = request.clone();
    if let Some(model) = model
        && resolve(path.path()).model_place == ModelPlace::Body
    {
        request.entry("model").or_insert_with(|| model.into());
    }
    Value::Object(request).to_string().into()
}

/// Request that asks one question, in the API of the path.
fn question(prompt: &str, path: &str) -> Result<Map<String, Value>, String> {
    let said = json!([{"role": "user", "content": prompt}]);
    let resolved = resolve(path);
    let request = match resolved.operation {
        Operation::Chat if resolved.api == OPENAI => {
            json!({"messages": said, "max_tokens": ANSWER_TOKENS, "temperature": 0})
        }
        Operation::Completions if resolved.api == OPENAI => {
            json!({"prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0})
        }
        Operation::Messages => json!({"messages": said, "max_tokens": ANSWER_TOKENS, "temperature": 0}),
        Operation::Responses => json!({"input": prompt, "max_output_tokens": ANSWER_TOKENS, "temperature": 0}),
        Operation::Chat | Operation::Completions if resolved.api == OLLAMA => {
            let (field, content) =
                if resolved.operation == Operation::Chat { ("messages", said) } else { ("prompt", prompt.into()) };
            json!({field: content, "stream": false, "options": {"num_predict": ANSWER_TOKENS, "temperature": 0}})
        }
        _ => Value::Null,
    };
    match request {
        Value::Object(request) => Ok(request),
        _ => Err(format!("`prompt` cannot be written for `{path}`: write the body as `request`")),
    }
}

/// Operation of a call on a route that calls models.
fn resolve(path: &str) -> ResolvedOperation {
    ResolvedOperation::of(&Method::POST, path).on_models()
}

/// Values by JSON pointers.
pub(in crate::quality) fn pointers(fields: Map<String, Value>) -> Result<Vec<(String, Value)>, String> {
    if fields.is_empty() {
        return Err("`exact` is empty; expected values by JSON pointers such as /choices/0/message/content".to_owned());
    }
    let is_pointer = |text: &str| {
        // A tilde stands before 0 or 1 only (RFC 6901, 3).
        text.starts_with('/') && text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']))
    };
    match fields.keys().find(|key| !is_pointer(key)) {
        Some(key) => {
            Err(format!("`exact`: `{key}` is no JSON pointer; expected one such as /choices/0/message/content"))
        }
        None => Ok(fields.into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_question_and_what_is_expected_of_its_answer() {
        let text = "{\"prompt\": \"Capital of France?\", \"expected\": \"Paris.\"}\n\n\
            {\"name\": \"sum\", \"model\": \"m\", \"path\": \"/v1/messages\", \"request\": {\"max_tokens\": 5, \"messages\": []},\
             \"exact\": {\"/content/0/text\": \"4\"}}\n";
        let probes = parse(text).unwrap();
        let body: Value = serde_json::from_slice(&probes[0].body(Some("gpt"))).unwrap();
        assert_eq!((&*probes[0].name, probes[0].path.as_str(), &body["model"]), ("line 1", CHAT, &json!("gpt")));
        assert_eq!(body["messages"][0]["content"], "Capital of France?");
        assert_eq!(probes[1].wanted, Wanted::Exact(vec![("/content/0/text".to_owned(), json!("4"))]));
        let body: Value = serde_json::from_slice(&probes[1].body(Some("gpt"))).unwrap();
        assert_eq!(body["model"], "m", "the model of the probe");
        assert!(probes[1].tokens() < 40 && probes[0].tokens() > ANSWER_TOKENS);
        assert_ne!(probes[0].identity, parse(&text.replace("Paris", "Rome")).unwrap()[0].identity);
    }

    #[test]
    fn a_wrong_line_is_named_with_what_is_expected() {
        for (line, said) in [
            ("{", "line 2: column 1: EOF"),
            ("{\"promt\": \"a\"}", "unknown field `promt`"),
            ("{\"prompt\": \"a\"}", "either `expected` or `exact`"),
            ("{\"expected\": \"a\"}", "either `prompt` or `request`"),
            ("{\"prompt\": \"a\", \"expected\": \"b\", \"exact\": {}}", "either `expected` or `exact`"),
            ("{\"prompt\": \"a\", \"check\": \"true\"}", "`check` (an expression) is not supported"),
            ("{\"prompt\": \"a\", \"exact\": {\"choices\": 1}}", "`choices` is no JSON pointer"),
            ("{\"prompt\": \"a\", \"exact\": {\"/a~2\": 1}}", "no JSON pointer"),
            ("{\"prompt\": \"a\", \"exact\": {}}", "`exact` is empty"),
            ("{\"prompt\": \"a\", \"expected\": \" \"}", "`expected` is empty"),
            ("{\"path\": \"/v1/models\", \"request\": {}, \"expected\": \"b\"}", "is no call of a model"),
            ("{\"path\": \"v1\", \"prompt\": \"a\", \"expected\": \"b\"}", "`path` is no path"),
            ("{\"path\": \"/v1/embeddings\", \"request\": {\"input\": \"a\"}, \"expected\": \"b\"}", "use `exact`"),
            ("{\"path\": \"/v1/embeddings\", \"prompt\": \"a\", \"expected\": \"b\"}", "cannot be written"),
            ("{\"request\": {\"stream\": true}, \"exact\": {\"/a\": 1}}", "leave `stream` out"),
            ("{\"name\": \"\", \"prompt\": \"a\", \"expected\": \"b\"}", "`name` must have"),
            ("{\"name\": \"first\", \"prompt\": \"a\", \"expected\": \"b\"}", "the name `first` already"),
        ] {
            let first = "{\"name\": \"first\", \"prompt\": \"a\", \"expected\": \"b\"}";
            let error = parse(&format!("{first}\n{line}\n")).unwrap_err().to_string();
            assert!(error.starts_with("line 2: ") && error.contains(said), "{line}: {error}");
        }
        assert!(parse("\n\n").unwrap_err().to_string().contains("has no probe"));
        let many: String = (0..65).map(|_| "{\"prompt\": \"a\", \"expected\": \"b\"}\n").collect();
        assert!(parse(&many).unwrap_err().to_string().starts_with("line 65: the file has more than 64"));
    }
}
