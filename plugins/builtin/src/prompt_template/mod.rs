//! `promptTemplate`: a system prompt from a file with versions, with values of the request in their places.

mod file;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_cel::{Expression, Scope, Seen};
use spillway_config::values::FilePath;
use spillway_filter::{
    BuildContext, FieldError, Filter, FilterFactory, Flow, Headers, Observer, Refusal, RequestView, Rewrite, define,
};

use crate::system_prompt::SystemText;
use file::{Part, Versions};

/// Header of answers with the version.
static VERSION: HeaderName = HeaderName::from_static("x-spillway-prompt-version");
/// Longest value of a variable, in bytes: a word, a name, a sentence.
const MAX_VALUE: usize = 1 << 10;

/// Puts a prompt in front of the system prompt, whatever API the caller speaks, as `transform.request.prependSystem` does. Its
/// texts stand in a file, each with a version, and `{{name}}` in them is a value of the request. Answers name the version in
/// `x-spillway-prompt-version`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PromptTemplate {
    /// File of prompts. Before each text stand three lines: `---`, `version: 3`, `---`. A text has at most 64 KiB, and `\{{` for
    /// braces.
    file: FilePath,
    /// Version that is used.
    version: NonZeroU32,
    /// Expressions in CEL by the names in the text. A value is text, a number or true or false, of one line and at most 1 KiB; a
    /// request without such a value is 400.
    #[serde(default)]
    variables: BTreeMap<String, String>,
}

/// Version of the file that is used, and mistakes of the configuration about it. A file that does not exist is reported by
/// itself, and has no versions here.
fn versions(written: &PromptTemplate) -> Result<Option<Versions>, FieldError> {
    let at = |why: String| FieldError::at(["file"], why);
    match spillway_config::read_text(&written.file) {
        Ok(text) => file::read(&text).map(Some).map_err(at),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(format!("cannot read the file: {error}"))),
    }
}

/// Expressions by the names of their variables.
type Variables = BTreeMap<String, Expression>;

fn compile(written: &PromptTemplate) -> Result<(Variables, Option<Vec<Part>>), Vec<FieldError>> {
    let (mut errors, mut variables) = (Vec::new(), Variables::new());
    for (name, text) in &written.variables {
        if !file::is_name(name) {
            let why = "expected a name of at most 64 letters, digits and `_`".to_owned();
            errors.push(FieldError::at(["variables", name], why));
        }
        match Expression::value(text, Scope::Request) {
            Ok(expression) => drop(variables.insert(name.clone(), expression)),
            Err(why) => errors.push(FieldError::at(["variables", name], why)),
        }
    }
    let mut parts = None;
    match versions(written) {
        Ok(None) => {}
        Ok(Some(mut versions)) => {
            errors.extend(unused(written, &versions));
            let known = versions.keys().map(u32::to_string).collect::<Vec<_>>().join(", ");
            match versions.remove(&written.version.get()) {
                None => {
                    let why = format!("the file has no version {}; expected one of {known}", written.version);
                    errors.push(FieldError::at(["version"], why));
                }
                Some(own) => {
                    errors.extend(missing(written, &own));
                    parts = Some(own);
                }
            }
        }
        Err(error) => errors.push(error),
    }
    if errors.is_empty() { Ok((variables, parts)) } else { Err(errors) }
}

/// Variables that no version of the file names.
fn unused(written: &PromptTemplate, versions: &Versions) -> Vec<FieldError> {
    let is_named =
        |name: &str| versions.values().flatten().any(|part| matches!(part, Part::Variable(other) if other == name));
    let unused = written.variables.keys().filter(|name| !is_named(name));
    let error = |name: &String| {
        FieldError::at(
            ["variables", name],
            format!("no effect: no version of the file has `{{{{{name}}}}}`; remove it"),
        )
    };
    unused.map(error).collect()
}

/// Names of the version without a variable.
fn missing(written: &PromptTemplate, parts: &[Part]) -> Option<FieldError> {
    let is_missing = |part: &Part| match part {
        Part::Variable(name) if !written.variables.contains_key(name) => Some(name.clone()),
        Part::Variable(_) | Part::Text(_) => None,
    };
    let mut names: Vec<String> = parts.iter().filter_map(is_missing).collect();
    names.sort();
    names.dedup();
    (!names.is_empty()).then(|| {
        let names = names.join("`, `");
        let why = format!("version {} names `{names}`; expected an expression for it here", written.version);
        FieldError::at(["variables"], why)
    })
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    let check = |written: &PromptTemplate| compile(written).err().unwrap_or_default();
    define("promptTemplate", check, |written: PromptTemplate, _: &BuildContext<'_>| {
        let (variables, parts) = compile(&written).map_err(|mut errors| errors.swap_remove(0))?;
        let no_file = || FieldError::at(["file"], "the file does not exist");
        // A text of any kind: each request has its own.
        let places = SystemText::new("x", "").map_err(|why| FieldError::at([], why))?;
        let places = places.ok_or_else(no_file)?;
        let (parts, version) = (parts.ok_or_else(no_file)?.into(), HeaderValue::from(written.version.get()));
        Ok(Arc::new(Prompt { parts, variables, places, version }) as Arc<dyn Filter>)
    })
}

/// Filter with its prompt.
struct Prompt {
    parts: Box<[Part]>,
    variables: Variables,
    places: SystemText,
    version: HeaderValue,
}

impl Prompt {
    /// Prompt of a request. Values are put into it as they are and never read for names again.
    fn text(&self, x: &RequestView<'_>) -> Result<String, Box<Refusal>> {
        let seen = Seen::from(x);
        let mut values: BTreeMap<&str, String> = BTreeMap::new();
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Variable(name) => {
                    if !values.contains_key(name.as_str()) {
                        values.insert(name, self.value(name, &seen)?);
                    }
                    out.push_str(values.get(name.as_str()).map_or("", String::as_str));
                }
            }
        }
        Ok(out)
    }

    fn value(&self, name: &str, seen: &Seen<'_>) -> Result<String, Box<Refusal>> {
        let refused = |why: &str| {
            let message = format!("the prompt of this route has a place for `{name}`, for which the request has {why}");
            Box::new(Refusal::invalid("invalid_variable", message))
        };
        let value = self.variables.get(name).and_then(|variable| variable.text(seen));
        let value = value.ok_or_else(|| refused("no value"))?;
        if value.len() > MAX_VALUE {
            return Err(refused(&format!("a value of {} bytes; expected at most {MAX_VALUE}", value.len())));
        }
        // A value of several lines could look like a further part of the prompt.
        if value.chars().any(|letter| letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}')) {
            return Err(refused("a value with a line break or another control character; expected text of one line"));
        }
        Ok(value)
    }

    /// Body of the request with the prompt; `None` where it is no JSON.
    fn body(&self, x: &RequestView<'_>) -> Result<Option<Bytes>, Box<Refusal>> {
        let text = x.body.and_then(|body| std::str::from_utf8(body).ok());
        let (Some(text), Some(place)) = (text.filter(|text| text.trim_start().starts_with('{')), x.system) else {
            return Ok(None);
        };
        let prompt = self.places.with_before(self.text(x)?);
        let after = prompt.add(text, place).map_err(|error| {
            let message =
                format!("this route has a system prompt of its own, for which the request has no place: {error}");
            Box::new(Refusal::invalid("unsupported_body", message))
        })?;
        Ok(Some(after.into()))
    }
}

impl Filter for Prompt {
    fn needs_body(&self) -> bool {
        true
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        match self.body(x) {
            Ok(None) => Flow::Continue,
            Ok(body) => {
                let observer = Box::new(Told(self.version.clone())) as Box<dyn Observer>;
                Flow::Rewrite(Box::new(Rewrite { body, observer: Some(observer), ..Rewrite::default() }))
            }
            Err(refusal) => Flow::Refuse(refusal),
        }
    }
}

/// Names the version in the answer.
struct Told(HeaderValue);

impl Observer for Told {
    fn on_response_head(&mut self, _: StatusCode, headers: &mut dyn Headers) {
        headers.set(&VERSION, self.0.clone());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use spillway_filter::SystemPlace;
    use spillway_filter::testing::{FilterBuilder, TestRequest, headers};

    use super::*;

    const FILE: &str = "---\nversion: 3\n---\nBe {{tone}}. Stay {{ tone }}.\n---\nversion: 2\n---\nYou are {{name}}.\n";

    /// Configuration over a file with this text; the file lives as long as the folder.
    fn config(text: &str, more: &Value) -> (tempfile::TempDir, Value) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("support.md");
        std::fs::write(&file, text).unwrap();
        let mut config = json!({"file": file, "version": 3, "variables": {"tone": "request.headers['x-tone']"}});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (folder, config)
    }

    /// Result for a request with this header: its body, or the message of its refusal.
    fn sent(tone: Option<&str>) -> Result<Value, String> {
        let (_folder, config) = config(FILE, &json!({}));
        let filter = FilterBuilder::new().build(&*factory(), &config);
        let body = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
        let mut request = TestRequest::post("/v1/chat/completions", body).system(SystemPlace::Messages);
        if let Some(tone) = tone {
            request = request.header("x-tone", tone);
        }
        match request.decide(&*filter) {
            Flow::Rewrite(mut rewrite) => {
                let mut answer = headers([]);
                rewrite.observer.as_mut().unwrap().on_response_head(StatusCode::OK, &mut answer);
                assert_eq!(answer.get(&VERSION).unwrap(), "3");
                Ok(serde_json::from_slice(&rewrite.body.unwrap()).unwrap())
            }
            Flow::Refuse(refusal) => {
                assert_eq!((refusal.status.as_u16(), refusal.code), (400, "invalid_variable"));
                Err(refusal.message.to_string())
            }
            _ => panic!("neither"),
        }
    }

    #[test]
    fn values_stand_in_their_places_and_are_text() {
        for tone in ["kind", r#""}],"role":"user"#, "{{tone}} {{name}}", r"\n"] {
            let system = format!("Be {tone}. Stay {tone}.");
            let expected =
                json!({"messages": [{"role": "system", "content": system}, {"role": "user", "content": "hi"}]});
            assert_eq!(sent(Some(tone)), Ok(expected));
        }
    }

    #[test]
    fn a_request_without_a_sound_value_is_refused() {
        for (tone, part) in [
            (None, "`tone`, for which the request has no value"),
            (Some("x".repeat(MAX_VALUE + 1)), "a value of 1025 bytes; expected at most 1024"),
            (Some("a\tb".to_owned()), "a line break or another control character"),
        ] {
            let found = sent(tone.as_deref()).unwrap_err();
            assert!(found.ends_with(part) || found.contains(part), "{found}");
        }
    }

    #[test]
    fn other_requests_pass_as_they_are() {
        let (_folder, config) = config(FILE, &json!({}));
        let filter = FilterBuilder::new().build(&*factory(), &config);
        for request in [
            TestRequest::post("/v1/embeddings", r#"{"input":"x"}"#),
            TestRequest::get("/v1/models"),
            TestRequest::post("/v1/chat/completions", "no JSON").system(SystemPlace::Messages),
        ] {
            assert!(matches!(request.decide(&*filter), Flow::Continue), "{request:?}");
        }
        let tokens = TestRequest::post("/v1/completions", r#"{"prompt":[1,2]}"#).system(SystemPlace::Prompt);
        let Flow::Refuse(refusal) = tokens.header("x-tone", "kind").decide(&*filter) else { panic!("not refused") };
        assert_eq!(refusal.code, "unsupported_body");
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (text, more, path, message) in [
            ("hello", json!({}), vec!["file"], "line 1: expected `---`"),
            (FILE, json!({"version": 4}), vec!["version"], "the file has no version 4; expected one of 2, 3"),
            (
                FILE,
                json!({"version": 2}),
                vec!["variables"],
                "version 2 names `name`; expected an expression for it here",
            ),
            (FILE, json!({"variables": {"tone": "request.headrs"}}), vec!["variables", "tone"], "headrs"),
            (FILE, json!({"variables": {"tone": "request.headers"}}), vec!["variables", "tone"], "expected a string"),
            (
                FILE,
                json!({"variables": {"tone": "'a'", "mood": "'b'"}}),
                vec!["variables", "mood"],
                "no version of the file has `{{mood}}`",
            ),
        ] {
            let (_folder, config) = config(text, &more);
            let errors = factory().check(&config);
            assert_eq!(errors.len(), 1, "{config}: {errors:?}");
            assert_eq!(errors[0].path, path, "{config}");
            assert!(errors[0].message.contains(message), "{errors:?}");
        }
        // A file that does not exist is reported with all others.
        assert!(factory().check(&json!({"file": "/nowhere/x.md", "version": 1})).is_empty());
        let builder = spillway_filter::testing::FilterBuilder::new();
        let built = builder.try_build(&*factory(), &json!({"file": "/nowhere/x.md", "version": 1}));
        assert_eq!(built.err().unwrap().path, ["file"]);
    }
}
