//! Readers of `/api/chat` and `/api/generate` for the built-in model. A field with an empty value counts as absent, because
//! official clients send all fields.

use serde_json::value::RawValue;
use spillway_filter::Refusal;

use super::{bare, messages, options};
use crate::protocol::chat::{ChatRequest, FieldNames, Message, PromptInput, ResponseFormat, ToolChoice};
use crate::protocol::members::{Members, entries, probe, text};
use crate::protocol::openai::request::findings::Findings;
use crate::protocol::openai::request::format::Raw;
use crate::protocol::openai::request::tools;
use crate::protocol::openai::request::values::Probe;
use crate::protocol::refusals::shown;

/// Most likeliest tokens reported beside each written one (`top_logprobs`, 0 to 20).
const MAX_TOP_LOGPROBS: u64 = 20;

/// Longest body of a request that only loads a model: it has a name, options, and no text.
const MAX_LOADING: usize = 8 << 10;

/// Reads a request of `/api/chat`. An error means that the request is invalid for any server.
pub(super) fn chat(body: &[u8]) -> Result<ChatRequest, Refusal> {
    let mut reader = Reader::begin(body, FieldNames { prompt: "messages", format: "format" })?;
    match reader.members.take("messages") {
        Some(list) => reader.request.messages = messages::read(list, &mut reader.findings),
        None => reader.findings.wrong("missing_required_parameter", "messages", "is missing"),
    }
    reader.common();
    reader.tools();
    reader.finish()
}

/// Reads a request of `/api/generate`: a prompt that is put into the model's template or, if it is `raw`, is continued as it
/// is.
pub(super) fn generate(body: &[u8]) -> Result<ChatRequest, Refusal> {
    let mut reader = Reader::begin(body, FieldNames { prompt: "prompt", format: "format" })?;
    reader.prompt();
    reader.common();
    reader.finish()
}

/// True if a request asks for no text, only for the model to be loaded: a conversation without messages, or an empty prompt.
pub(super) fn only_loads(body: &[u8]) -> bool {
    if body.len() > MAX_LOADING {
        return false;
    }
    let Ok(mut members) = Members::of_body(body) else { return false };
    let is_empty =
        |list: Option<&RawValue>| list.is_none_or(|list| entries(list, 1).is_some_and(|l| l.list.is_empty()));
    let is_blank = |field: Option<&RawValue>| field.is_none_or(|field| field.get() == "\"\"");
    let blank = ["prompt", "suffix", "system"].into_iter().all(|name| is_blank(members.take(name)));
    blank && ["messages", "images"].into_iter().all(|name| is_empty(members.take(name)))
}

struct Reader<'a> {
    members: Members<'a>,
    request: ChatRequest,
    findings: Findings,
}

impl<'a> Reader<'a> {
    fn begin(body: &'a [u8], fields: FieldNames) -> Result<Self, Refusal> {
        let members = Members::of_body(body)?;
        let request = ChatRequest { fields, stream: true, ..ChatRequest::default() };
        Ok(Self { members, request, findings: Findings::default() })
    }

    fn finish(mut self) -> Result<ChatRequest, Refusal> {
        for (name, _) in std::mem::take(&mut self.members).rest() {
            self.findings.ignore(shown(&name));
        }
        let Findings { wrong, unsupported, ignored } = self.findings;
        match wrong {
            Some(refusal) => Err(refusal),
            None => Ok(ChatRequest { unsupported, ignored, ..self.request }),
        }
    }

    /// Takes a string out; `None` where it is absent or empty.
    fn string(&mut self, name: &'static str) -> Option<String> {
        let value = self.members.take(name)?;
        let text = text(value);
        if text.is_none() {
            self.findings.wrong_type(name, "must be a string");
        }
        text.filter(|text| !text.is_empty()).map(Into::into)
    }

    fn truth(&mut self, name: &'static str) -> Option<bool> {
        let value = self.members.take(name)?;
        self.findings.truth(name, &probe(value))
    }

    /// Reads the fields of both requests.
    fn common(&mut self) {
        self.request.model = self.string("model").map(|model| bare(&model).to_owned());
        if let Some(stream) = self.truth("stream") {
            self.request.stream = stream;
        }
        options::defaults(&mut self.request);
        if let Some(written) = self.members.take("options") {
            options::read(written, &mut self.request, &mut self.findings);
        }
        if let Some(format) = self.members.take("format") {
            self.request.response_format = self.format(format);
        }
        self.think();
        self.logprobs();
        if self.members.take("keep_alive").is_some() {
            self.findings.ignore("keep_alive");
        }
    }

    fn format(&mut self, format: &RawValue) -> ResponseFormat {
        match text(format).as_deref() {
            Some("") => ResponseFormat::Text,
            Some("json") => ResponseFormat::JsonObject,
            None if format.get().starts_with('{') => ResponseFormat::JsonSchema(format.get().into()),
            _ => {
                self.findings.wrong("invalid_value", "format", "must be `json` or a JSON Schema");
                ResponseFormat::Text
            }
        }
    }

    fn think(&mut self) {
        let thinks = self.members.take("think").is_some_and(|think| probe(think) != Probe::Bool(false));
        if thinks {
            self.findings.unsupported("unsupported_value", "think", "the built-in model does not think apart");
        }
    }

    fn logprobs(&mut self) {
        self.request.logprobs = self.truth("logprobs").unwrap_or(false);
        match self.members.take("top_logprobs").map(probe) {
            None => {}
            Some(Probe::Unsigned(count)) if count <= MAX_TOP_LOGPROBS => {
                self.request.top_logprobs = u32::try_from(count).unwrap_or(0);
            }
            Some(_) => {
                let what = format!("must be a whole number of 0 to {MAX_TOP_LOGPROBS}");
                self.findings.wrong("invalid_value", "top_logprobs", what);
            }
        }
    }

    /// Reads the prompt, and the fields around it.
    fn prompt(&mut self) {
        let prompt = self.string("prompt").unwrap_or_default();
        let (system, raw) = (self.string("system"), self.truth("raw").unwrap_or(false));
        for (name, why) in [
            ("suffix", "the built-in model writes behind a text only"),
            ("template", "the built-in model uses its own template: send `raw` to use none"),
        ] {
            if self.string(name).is_some() {
                self.findings.unsupported("unsupported_value", name, why);
            }
        }
        if self.members.take("context").is_some_and(|context| entries(context, 1).is_none_or(|c| !c.list.is_empty())) {
            let why = "the built-in model keeps no conversation: send its messages to /api/chat";
            self.findings.unsupported("unsupported_value", "context", why);
        }
        messages::images("", &mut self.members, &mut self.findings);
        if raw {
            // Where no template is used, there is no place for a system message.
            if system.is_some() {
                self.findings.ignore("system");
            }
            self.request.prompt = Some(PromptInput::Text(prompt));
            return;
        }
        let message = |role, content| Message { role, content, ..Message::default() };
        self.request.messages.extend(system.map(|system| message("system", system)));
        self.request.messages.push(message("user", prompt));
    }

    /// Reads the tools that the answer may call.
    fn tools(&mut self) {
        let raw = Raw { text: self.members.take("tools").map(|tools| tools.get().into()), is_bad: false };
        self.request.tools = tools::tools(&raw, &mut self.findings);
        if self.request.tools.is_empty() {
            return;
        }
        self.request.tool_choice = ToolChoice::Auto;
        if self.request.logprobs {
            let why = "the built-in model reports no probabilities of an answer that may call tools";
            self.findings.unsupported("unsupported_value", "logprobs", why);
        }
        if self.request.response_format != ResponseFormat::Text {
            let why = "the built-in model cannot hold an answer that may call tools to a format";
            self.findings.unsupported("unsupported_value", "format", why);
        }
    }
}
