//! Reader of a request of the Responses API for the built-in model, with the members that its answer repeats.

use std::fmt::Write as _;

use serde_json::Value;
use serde_json::value::RawValue;
use spillway_filter::Refusal;

use super::items;
use crate::protocol::chat::{ChatRequest, FieldNames, ResponseFormat, ToolChoice};
use crate::protocol::members::{Members, entries, probe, put_compact, text};
use crate::protocol::openai::request::findings::Findings;
use crate::protocol::openai::request::format::Raw;
use crate::protocol::openai::request::tools;
use crate::protocol::openai::request::values::Probe;
use crate::protocol::refusals::shown;

/// Most likeliest tokens reported beside each written one, as in OpenAI's API.
const MAX_TOP_LOGPROBS: u64 = 20;
/// Most pairs of `metadata`, and the longest name and value in characters, as in OpenAI's API.
const MAX_PAIRS: usize = 16;
const MAX_PAIR_NAME: usize = 64;
const MAX_PAIR_VALUE: usize = 512;
/// Most entries of `include`: more than there are values.
const MAX_INCLUDED: usize = 32;
/// Longest name of a schema in bytes, as in OpenAI's API.
const MAX_SCHEMA_NAME: usize = 64;

/// Fields that need an answer or a conversation that was stored.
const NEEDS_STORE: [&str; 3] = ["previous_response_id", "conversation", "prompt"];
/// Fields that change nothing here: names for the books of a provider, and limits of tools that a provider runs.
const INERT: [&str; 5] =
    ["background_options", "max_tool_calls", "prompt_cache_options", "prompt_cache_retention", "stream_options"];
/// Strings that the answer repeats and that change nothing here.
const REPEATED: [&str; 3] = ["prompt_cache_key", "safety_identifier", "user"];

const NOT_STORED: &str = "the built-in model keeps no answers and no conversations: send the whole conversation";

/// Reads a request of the Responses API. An error means that the request is invalid for any server.
pub(in crate::protocol::openai) fn responses(body: &[u8]) -> Result<ChatRequest, Refusal> {
    let members = Members::of_body(body)?;
    let fields = FieldNames { prompt: "input", format: "text.format" };
    let request = ChatRequest { fields, ..ChatRequest::default() };
    let mut reader = Reader { members, request, findings: Findings::default(), echo: Echo::default() };
    reader.conversation();
    reader.sampling();
    reader.text();
    reader.tools();
    reader.logprobs();
    reader.state();
    reader.others();
    let Reader { mut request, findings, echo, .. } = reader;
    let Findings { wrong, unsupported, ignored } = findings;
    request.echoed = echo.0.into();
    match wrong {
        Some(refusal) => Err(refusal),
        None => Ok(ChatRequest { unsupported, ignored, ..request }),
    }
}

/// Members that the answer repeats, as JSON text.
#[derive(Default)]
struct Echo(String);

impl Echo {
    fn name(&mut self, name: &str) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        let _ = write!(self.0, "\"{name}\":");
    }

    /// Adds a member with a value of the request, or else with `otherwise`.
    fn add(&mut self, name: &str, value: Option<&RawValue>, otherwise: &str) {
        self.name(name);
        match value {
            Some(value) => put_compact(&mut self.0, value),
            None => self.0.push_str(otherwise),
        }
    }
}

struct Reader<'a> {
    members: Members<'a>,
    request: ChatRequest,
    findings: Findings,
    echo: Echo,
}

impl<'a> Reader<'a> {
    /// Reads the model, the instructions and the input.
    fn conversation(&mut self) {
        if let Some(model) = self.members.take("model") {
            self.request.model = text(model).map(Into::into);
            if self.request.model.is_none() {
                self.findings.wrong_type("model", "must be a string");
            }
        }
        let instructions = self.members.take("instructions");
        self.echo.add("instructions", instructions, "null");
        if let Some(instructions) = instructions {
            match text(instructions) {
                Some(text) => items::instruct(&mut self.request.messages, text.into_owned()),
                None => self.findings.wrong_type("instructions", "must be a string"),
            }
        }
        match self.members.take("input") {
            Some(input) => items::read(input, &mut self.request.messages, &mut self.findings),
            None => self.findings.wrong("missing_required_parameter", "input", "is missing"),
        }
    }

    /// Reads the fields that say how the answer is written.
    fn sampling(&mut self) {
        let mut number = |name: &'static str, max: f64, otherwise: &str| {
            let value = self.members.take(name);
            self.echo.add(name, value, otherwise);
            self.findings.number(name, &probe(value?), 0.0, max)
        };
        self.request.temperature = number("temperature", 2.0, "1.0");
        self.request.top_p = number("top_p", 1.0, "1.0");
        let most = self.members.take("max_output_tokens");
        self.echo.add("max_output_tokens", most, "null");
        self.request.max_tokens = most.and_then(|most| self.findings.count("max_output_tokens", &probe(most)));
        self.request.stream = self.truth("stream").unwrap_or(false);
        // Usage is a member of the last event, whatever the caller asks for.
        self.request.include_usage = true;
    }

    fn truth(&mut self, name: &str) -> Option<bool> {
        let value = self.members.take(name)?;
        self.findings.truth(name, &probe(value))
    }

    /// Reads the form of the text.
    fn text(&mut self) {
        const TEXT: &str = r#"{"type":"text"}"#;
        let written = self.members.take("text");
        self.echo.name("text");
        let Some(written) = written else {
            let _ = write!(self.echo.0, r#"{{"format":{TEXT},"verbosity":"medium"}}"#);
            return;
        };
        let Some(mut members) = Members::of(written) else {
            return self.findings.wrong_type("text", "must be an object, with each field once");
        };
        let (format, verbosity) = (members.take("format"), members.take("verbosity"));
        if verbosity.is_some_and(|verbosity| text(verbosity).is_none_or(|word| word != "medium")) {
            self.findings.ignore("text.verbosity");
        }
        for (name, _) in members.rest() {
            self.findings.ignore(format!("text.{}", shown(&name)));
        }
        let mut echo = Echo::default();
        echo.add("format", format, TEXT);
        echo.add("verbosity", verbosity, r#""medium""#);
        let _ = write!(self.echo.0, "{{{}}}", echo.0);
        if let Some(format) = format {
            self.request.response_format = self.format(format);
        }
    }

    fn format(&mut self, written: &'a RawValue) -> ResponseFormat {
        let Some(mut members) = Members::of(written) else {
            self.findings.wrong_type("text.format", "must be an object, with each field once");
            return ResponseFormat::Text;
        };
        let kind = members.take_text("type");
        let schema = members.take("schema");
        let name = members.take_text("name");
        match kind.as_deref() {
            Some("text") => ResponseFormat::Text,
            Some("json_object") => ResponseFormat::JsonObject,
            Some("json_schema") => {
                if !name.is_some_and(|name| is_schema_name(&name)) {
                    let what = format!("must be 1 to {MAX_SCHEMA_NAME} letters, digits, `_` and `-`");
                    self.findings.wrong("invalid_value", "text.format.name", what);
                }
                let Some(schema) = schema else {
                    self.findings.wrong("missing_required_parameter", "text.format.schema", "must be a JSON Schema");
                    return ResponseFormat::Text;
                };
                ResponseFormat::JsonSchema(schema.get().into())
            }
            Some(kind) => {
                let why = format!("the built-in model writes text and JSON, not `{}`", shown(kind));
                self.findings.unsupported("unsupported_value", "text.format.type", why);
                ResponseFormat::Text
            }
            None => {
                self.findings.wrong(
                    "missing_required_parameter",
                    "text.format.type",
                    "must be text, json_object or json_schema",
                );
                ResponseFormat::Text
            }
        }
    }

    /// Reads the tools that the answer may call.
    fn tools(&mut self) {
        let (written, chosen) = (self.members.take("tools"), self.members.take("tool_choice"));
        self.echo.add("tools", written, "[]");
        self.echo.add("tool_choice", chosen, r#""auto""#);
        let parallel = self.truth("parallel_tool_calls").unwrap_or(true);
        self.echo.add("parallel_tool_calls", None, if parallel { "true" } else { "false" });
        self.request.one_tool_call = !parallel;
        let raw = |value: Option<&RawValue>| Raw { text: value.map(|value| value.get().into()), is_bad: false };
        let list = tools::list(&raw(written), &mut self.findings, "", |tool| {
            let mut function = tool.take();
            if let Value::Object(members) = &mut function {
                members.shift_remove("type");
            }
            Some(function)
        });
        let choice = chosen.map(|chosen| self.choice(chosen)).unwrap_or_default();
        match &choice {
            ToolChoice::Required if list.is_empty() => {
                self.findings.wrong("invalid_value", "tool_choice", "needs `tools`");
            }
            ToolChoice::Named(name) if !list.iter().any(|tool| tool.name == *name) => {
                self.findings.wrong("invalid_value", "tool_choice.name", "is none of `tools`");
            }
            _ => {}
        }
        if choice == ToolChoice::None || list.is_empty() {
            return;
        }
        if self.request.response_format != ResponseFormat::Text {
            let why = "the built-in model cannot hold an answer that may call tools to a format";
            self.findings.unsupported("unsupported_value", "text.format", why);
        }
        (self.request.tools, self.request.tool_choice) = (list, choice);
    }

    fn choice(&mut self, chosen: &'a RawValue) -> ToolChoice {
        if let Some(word) = text(chosen) {
            match &*word {
                "auto" => return ToolChoice::Auto,
                "none" => return ToolChoice::None,
                "required" => return ToolChoice::Required,
                _ => {}
            }
        }
        let mut members = Members::of(chosen).unwrap_or_default();
        match members.take_text("type").as_deref() {
            Some("function") => match members.take_text("name") {
                Some(name) => return ToolChoice::Named(name.into_owned()),
                None => self.findings.wrong("missing_required_parameter", "tool_choice.name", "must be a string"),
            },
            Some(_) => {
                let why = "the built-in model does not implement this value";
                self.findings.unsupported("unsupported_value", "tool_choice.type", why);
            }
            None => {
                let what = "must be none, auto, required, or name a function";
                self.findings.wrong("invalid_value", "tool_choice", what);
            }
        }
        ToolChoice::Auto
    }

    /// Reads whether log probabilities are wanted.
    fn logprobs(&mut self) {
        let top = self.members.take("top_logprobs");
        self.echo.add("top_logprobs", top, "0");
        let top = match top.map(probe) {
            None => 0,
            Some(Probe::Unsigned(count)) if count <= MAX_TOP_LOGPROBS => u32::try_from(count).unwrap_or(0),
            Some(_) => {
                let what = format!("must be a whole number of 0 to {MAX_TOP_LOGPROBS}");
                self.findings.wrong("invalid_value", "top_logprobs", what);
                0
            }
        };
        let Some(included) = self.members.take("include") else { return };
        let Some(included) = entries(included, MAX_INCLUDED) else {
            return self.findings.wrong_type("include", "must be a list of strings");
        };
        // Others name parts of answers of tools that a provider runs, or reasoning, of which there is none here.
        let wants = included.list.iter().any(|one| text(one).is_some_and(|one| one == "message.output_text.logprobs"));
        if !wants {
            return;
        }
        (self.request.logprobs, self.request.top_logprobs) = (true, top);
        if !self.request.tools.is_empty() {
            let why = "the built-in model reports no probabilities of an answer that may call tools";
            self.findings.unsupported("unsupported_value", "include", why);
        }
    }

    /// Reads the fields that ask for something to be stored, or that need something stored.
    fn state(&mut self) {
        for name in ["store", "background"] {
            if self.truth(name) == Some(true) {
                self.findings.unsupported("unsupported_value", name, NOT_STORED);
            }
            self.echo.add(name, None, "false");
        }
        for name in NEEDS_STORE {
            if self.members.take(name).is_some() {
                self.findings.unsupported("unsupported_value", name, NOT_STORED);
            }
        }
        self.echo.add("previous_response_id", None, "null");
        if self.members.take("moderation").is_some() {
            let why = "the built-in model does not moderate";
            self.findings.unsupported("unsupported_value", "moderation", why);
        }
    }

    /// Reads the fields that change nothing here, and records those that are ignored.
    fn others(&mut self) {
        let metadata = self.members.take("metadata");
        if metadata.is_some_and(|metadata| !are_pairs(metadata)) {
            let what = format!(
                "must be an object of at most {MAX_PAIRS} strings, with names of at most {MAX_PAIR_NAME} and values of \
                 at most {MAX_PAIR_VALUE} characters"
            );
            self.findings.wrong("invalid_value", "metadata", what);
        }
        self.echo.add("metadata", metadata, "{}");
        for name in REPEATED {
            let value = self.members.take(name);
            if value.is_some_and(|value| text(value).is_none()) {
                self.findings.wrong_type(name, "must be a string");
            }
            self.echo.add(name, value, "null");
        }
        for (name, neutral, otherwise) in
            [("truncation", &["disabled"][..], r#""disabled""#), ("service_tier", &["auto", "default"], r#""default""#)]
        {
            let value = self.members.take(name);
            if value.is_some_and(|value| !text(value).is_some_and(|word| neutral.contains(&&*word))) {
                self.findings.ignore(name);
            }
            self.echo.add(name, None, otherwise);
        }
        self.reasoning();
        for name in INERT {
            self.members.take(name);
        }
        for (name, _) in std::mem::take(&mut self.members).rest() {
            self.findings.ignore(shown(&name));
        }
    }

    fn reasoning(&mut self) {
        self.echo.add("reasoning", None, r#"{"effort":null,"summary":null}"#);
        let Some(written) = self.members.take("reasoning") else { return };
        let Some(members) = Members::of(written) else {
            return self.findings.wrong_type("reasoning", "must be an object, with each field once");
        };
        for (name, value) in members.rest() {
            if !(name == "effort" && text(value).is_some_and(|effort| effort == "none")) {
                self.findings.ignore(format!("reasoning.{}", shown(&name)));
            }
        }
    }
}

/// True for a name that a schema may have.
fn is_schema_name(name: &str) -> bool {
    (1..=MAX_SCHEMA_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// True for an object of strings within the limits of `metadata`.
fn are_pairs(metadata: &RawValue) -> bool {
    let Some(members) = Members::of(metadata) else { return false };
    let mut count = 0usize;
    members.rest().all(|(name, value)| {
        count = count.saturating_add(1);
        let is_short = text(value).is_some_and(|value| value.chars().count() <= MAX_PAIR_VALUE);
        count <= MAX_PAIRS && name.chars().count() <= MAX_PAIR_NAME && is_short
    })
}
