//! Sets of questions with checks of their answers, for a look at a route before it serves: a case in each line, as JSON. Written
//! like probes, judged by the text of an answer, its values, or a schema. The room reads and judges; it asks nobody.

use std::collections::HashSet;
use std::path::Path;

use bytes::Bytes;
use http::uri::PathAndQuery;
use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::probes::{Outcome, ProbesError, checked_name, exact, line_error, pointers, request_of, with_model};
use crate::rollout::{answer_text, satisfies};

/// Most cases of a file.
const MOST_CASES: usize = 10_000;
/// Longest file, in bytes.
const MOST_BYTES: u64 = 64 << 20;
/// Bytes that a compiled pattern may take.
const MOST_PATTERN: usize = 1 << 20;
/// Characters of a text that a reason shows.
const SHOWN: usize = 80;

/// Question with checks of its answer.
#[derive(Debug)]
pub struct EvalCase {
    /// Name in reports, one in the file.
    pub name: Box<str>,
    /// Path of the request, with its query.
    pub path: PathAndQuery,
    request: Map<String, Value>,
    checks: Vec<EvalCheck>,
}

/// Check of an answer.
#[derive(Debug)]
enum EvalCheck {
    /// The text is this one, but for blanks around it.
    Equals(String),
    /// The text has this part.
    Contains(String),
    /// The text has a part of this pattern.
    Matches(Regex),
    /// The answer has these values at these JSON pointers.
    Exact(Vec<(String, Value)>),
    /// The text is JSON of this schema.
    Schema(Value),
}

/// Text, or several of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// Line of the file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EvalLine {
    name: Option<String>,
    path: Option<String>,
    model: Option<String>,
    prompt: Option<String>,
    request: Option<Map<String, Value>>,
    equals: Option<String>,
    contains: Option<OneOrMore>,
    regex: Option<String>,
    exact: Option<Map<String, Value>>,
    json_schema: Option<Value>,
    expected: Option<Value>,
}

impl EvalCase {
    /// Reads a file of cases.
    pub fn read(path: &Path) -> Result<Vec<Self>, ProbesError> {
        if std::fs::metadata(path)?.len() > MOST_BYTES {
            return Err(ProbesError::Whole(format!("the file is longer than {} MiB", MOST_BYTES >> 20)));
        }
        Self::parse(&std::fs::read_to_string(path)?)
    }

    fn parse(text: &str) -> Result<Vec<Self>, ProbesError> {
        let (mut cases, mut names) = (Vec::new(), HashSet::new());
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |reason| ProbesError::Line { line: n + 1, reason };
            let case = Self::of_line(line, n + 1).map_err(wrong)?;
            if !names.insert(case.name.clone()) {
                return Err(wrong(format!("another case has the name `{}` already: give each its own", case.name)));
            }
            if cases.len() == MOST_CASES {
                return Err(wrong(format!("the file has more than {MOST_CASES} cases: split it")));
            }
            cases.push(case);
        }
        if cases.is_empty() {
            return Err(ProbesError::Whole("the file has no case; expected one in each line".to_owned()));
        }
        Ok(cases)
    }

    fn of_line(line: &str, number: usize) -> Result<Self, String> {
        let line: EvalLine = serde_json::from_str(line).map_err(|e| line_error(&e))?;
        if line.expected.is_some() {
            return Err(
                "`expected` (a text of the same meaning) needs a model for embeddings, as probes of a route have; \
                        use `equals`, `contains`, `regex`, `exact` or `jsonSchema`"
                    .to_owned(),
            );
        }
        let name = checked_name(line.name, number)?;
        let (path, request) = request_of(line.path.as_deref(), line.prompt, line.request, line.model)?;
        let mut checks = Vec::new();
        checks.extend(line.equals.map(EvalCheck::Equals));
        checks.extend(match line.contains {
            Some(OneOrMore::One(text)) => vec![EvalCheck::Contains(text)],
            Some(OneOrMore::More(texts)) => texts.into_iter().map(EvalCheck::Contains).collect(),
            None => Vec::new(),
        });
        if let Some(pattern) = &line.regex {
            let compiled = RegexBuilder::new(pattern).size_limit(MOST_PATTERN).build();
            checks.push(EvalCheck::Matches(compiled.map_err(|e| format!("`regex`: {e}"))?));
        }
        if let Some(fields) = line.exact {
            if request.get("stream") == Some(&Value::Bool(true)) {
                return Err("`exact` needs an answer of one value: leave `stream` out".to_owned());
            }
            checks.push(EvalCheck::Exact(pointers(fields)?));
        }
        if let Some(schema) = line.json_schema {
            // A schema that is past a bound, or none, judges nothing: said before anything is asked.
            if satisfies(&schema, &Value::Null).is_none() {
                return Err(
                    "`jsonSchema` is no JSON Schema that can be used: it is too large, refers to itself or to \
                            another document, or has a pattern that cannot be read"
                        .to_owned(),
                );
            }
            checks.push(EvalCheck::Schema(schema));
        }
        if checks.iter().any(|check| matches!(check, EvalCheck::Contains(text) if text.is_empty())) {
            return Err("`contains` is empty, and every text has that".to_owned());
        }
        if checks.is_empty() {
            return Err("expected one of `equals`, `contains`, `regex`, `exact` and `jsonSchema`".to_owned());
        }
        Ok(Self { name: name.into(), path, request, checks })
    }

    /// Body of the request for a target that knows its model by the name `model`, where the case itself names none.
    pub fn body(&self, model: Option<&str>) -> Bytes {
        with_model(&self.request, &self.path, model)
    }

    /// Judges an answer; the error is what is wrong with it.
    pub fn judge(&self, status: u16, body: &[u8]) -> Result<(), String> {
        if !(200..300).contains(&status) {
            return Err(format!("status {status}"));
        }
        let text = answer_text(body);
        for check in &self.checks {
            if let EvalCheck::Exact(fields) = check {
                match exact(body, fields) {
                    Outcome::Wrong(reason) => return Err(reason),
                    _ => continue,
                }
            }
            let Some(text) = &text else { return Err("the answer cannot be read, or reports an error".to_owned()) };
            check.judge(text)?;
        }
        Ok(())
    }
}

impl EvalCheck {
    fn judge(&self, text: &str) -> Result<(), String> {
        match self {
            Self::Equals(expected) if text.trim() != expected.trim() => {
                Err(format!("the text is {}, expected {}", shown(text), shown(expected)))
            }
            Self::Contains(part) if !text.contains(part.as_str()) => {
                Err(format!("the text has no {}: {}", shown(part), shown(text)))
            }
            Self::Matches(pattern) if !pattern.is_match(text) => {
                Err(format!("the text does not match {}: {}", shown(pattern.as_str()), shown(text)))
            }
            Self::Schema(schema) => match serde_json::from_str(text.trim()) {
                Err(e) => Err(format!("the text is no JSON ({e}): {}", shown(text))),
                Ok(value) => match satisfies(schema, &value) {
                    Some(true) => Ok(()),
                    Some(false) => Err(format!("the JSON is not of the schema: {}", shown(text))),
                    None => Err("the JSON is too large to be checked".to_owned()),
                },
            },
            Self::Equals(_) | Self::Contains(_) | Self::Matches(_) | Self::Exact(_) => Ok(()),
        }
    }
}

/// Beginning of a text, as JSON writes it.
fn shown(text: &str) -> String {
    let (start, more) = match text.char_indices().nth(SHOWN) {
        Some((end, _)) => (text.get(..end).unwrap_or_default(), "..."),
        None => (text, ""),
    };
    format!("{}{more}", Value::from(start))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn case(line: &Value) -> EvalCase {
        EvalCase::parse(&line.to_string()).unwrap().pop().unwrap()
    }

    fn chat(text: &str) -> String {
        json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).to_string()
    }

    #[test]
    fn answers_are_judged_by_text_values_and_schema() {
        let schema = json!({"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}});
        for (check, good, bad, said) in [
            (json!({"equals": "4"}), " 4\n", "five", "the text is \"five\", expected \"4\""),
            (
                json!({"contains": ["Paris", "France"]}),
                "Paris is in France",
                "Paris",
                "the text has no \"France\": \"Paris\"",
            ),
            (json!({"contains": "Paris"}), "Paris.", "Rome", "has no \"Paris\""),
            (json!({"regex": "^\\d+ °C$"}), "21 °C", "warm", "does not match"),
            (json!({"exact": {"/choices/0/message/content": "4"}}), "4", "5", "/choices/0/message/content is \"5\""),
            (json!({"jsonSchema": schema.clone()}), "{\"city\": \"Rome\"}", "{\"city\": 1}", "not of the schema"),
            (json!({"jsonSchema": schema}), "{\"city\": \"Rome\"}", "Rome", "the text is no JSON"),
        ] {
            let mut line = json!({"prompt": "q"});
            line.as_object_mut().unwrap().extend(check.as_object().unwrap().clone());
            let case = case(&line);
            assert_eq!(case.judge(200, chat(good).as_bytes()), Ok(()), "{check}");
            let error = case.judge(200, chat(bad).as_bytes()).unwrap_err();
            assert!(error.contains(said), "{check}: {error}");
            assert_eq!(case.judge(429, chat(good).as_bytes()), Err("status 429".to_owned()));
        }
        let long = case(&json!({"prompt": "q", "equals": "x"})).judge(200, chat(&"y".repeat(9000)).as_bytes());
        assert!(long.unwrap_err().len() < 200);
        let whole = case(&json!({"prompt": "q", "contains": "needle"}));
        assert_eq!(whole.judge(200, chat(&format!("{} needle", "hay ".repeat(5000))).as_bytes()), Ok(()));
        let stream = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"nee\"}}]}\n\n\
            data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"dle\"}}]}\n\ndata: [DONE]\n\n";
        assert_eq!(whole.judge(200, stream.as_bytes()), Ok(()));
        assert!(whole.judge(200, b"{\"error\": \"no\"}").unwrap_err().contains("reports an error"));
    }

    #[test]
    fn a_wrong_line_is_named_with_what_is_expected() {
        for (line, said) in [
            ("{", "line 2: column 1: EOF"),
            ("{\"prompt\": \"a\"}", "expected one of `equals`"),
            ("{\"equals\": \"a\"}", "either `prompt` or `request`"),
            ("{\"prompt\": \"a\", \"expected\": \"b\"}", "needs a model for embeddings"),
            ("{\"prompt\": \"a\", \"regex\": \"(\"}", "`regex`: "),
            ("{\"prompt\": \"a\", \"contains\": \"\"}", "`contains` is empty"),
            ("{\"prompt\": \"a\", \"jsonSchema\": {\"type\": 7}}", "is no JSON Schema"),
            ("{\"prompt\": \"a\", \"exact\": {\"x\": 1}}", "no JSON pointer"),
            ("{\"name\": \"first\", \"prompt\": \"a\", \"equals\": \"b\"}", "the name `first` already"),
        ] {
            let first = "{\"name\": \"first\", \"prompt\": \"a\", \"equals\": \"b\"}";
            let error = EvalCase::parse(&format!("{first}\n{line}\n")).unwrap_err().to_string();
            assert!(error.starts_with("line 2: ") && error.contains(said), "{line}: {error}");
        }
        assert!(EvalCase::parse("\n").unwrap_err().to_string().contains("has no case"));
        let body: Value =
            serde_json::from_slice(&case(&json!({"prompt": "q", "equals": "a"})).body(Some("gpt"))).unwrap();
        assert_eq!((&body["model"], &body["messages"][0]["content"]), (&json!("gpt"), &json!("q")));
    }
}
