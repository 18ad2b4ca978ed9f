//! Readers of `/api/chat` and `/api/generate`. A field with an empty value counts as absent, because official clients send all
//! fields.

use serde_json::Value;
use spillway_filter::Refusal;

use super::{messages, options};
use crate::protocol::ollama::bare;
use crate::protocol::refusals::shown;
use crate::protocol::translate::{
    Conversation, Effort, Fields, Format, Part, Role, Setting, Thinking, ToolSpec, Turn, Wrong, json_object,
};

/// Fields that change no answer: the time for which a server keeps the model in memory.
const HINTS: [&str; 1] = ["keep_alive"];

/// Fields by which a prompt is not put into the model's own template, or goes on from the tokens of an earlier answer.
const SPECIAL: [&str; 4] = ["context", "raw", "suffix", "template"];

/// Reads a request of `/api/chat`.
pub(super) fn chat(body: &[u8]) -> Result<Conversation, Refusal> {
    let mut fields = Fields::new(json_object(body)?, "");
    let mut request = begin(&mut fields)?;
    messages::read(&mut fields, &mut request)?;
    tools(&mut fields, &mut request)?;
    finish(fields, request)
}

/// Reads a request of `/api/generate`: a prompt, which is a message of the user.
pub(super) fn generate(body: &[u8]) -> Result<Conversation, Refusal> {
    let mut fields = Fields::new(json_object(body)?, "");
    let mut request = begin(&mut fields)?;
    let system = fields.text("system")?.filter(|text| !text.is_empty());
    request.turns.extend(system.map(|text| Turn {
        role: Role::System,
        parts: vec![Part::Text(text)],
        at: "system".to_owned(),
    }));
    let mut parts = messages::images(&mut fields)?;
    let prompt = fields.text("prompt")?.filter(|text| !text.is_empty()).ok_or_else(|| fields.missing("prompt"))?;
    parts.push(Part::Text(prompt));
    request.turns.push(Turn { role: Role::User, parts, at: "prompt".to_owned() });
    finish(fields, request)
}

/// Reads the fields before the conversation.
fn begin(fields: &mut Fields) -> Result<Conversation, Wrong> {
    let model = fields.text("model")?.map(|model| bare(&model).to_owned());
    let stream = fields.flag("stream")?.unwrap_or(true);
    Ok(Conversation { model, stream, include_usage: true, ..Conversation::default() })
}

/// Reads the fields of both requests.
fn finish(mut fields: Fields, mut request: Conversation) -> Result<Conversation, Refusal> {
    options::read(&mut fields, &mut request)?;
    format(&mut fields, &mut request)?;
    think(&mut fields, &mut request)?;
    let likeliest = fields.count("top_logprobs")?.unwrap_or(0);
    if fields.flag("logprobs")? == Some(true) {
        request.settings.push("logprobs", Setting::Logprobs(likeliest));
    } else if likeliest > 0 {
        request.hints.push("top_logprobs".to_owned());
    }
    for name in HINTS {
        fields.hint(name, &mut request.hints);
    }
    for (name, value) in fields.rest().filter(|(_, value)| !is_empty(value)) {
        let setting = if SPECIAL.contains(&&*name) { Setting::Other(value) } else { Setting::Unknown(value) };
        request.settings.push(shown(&name), setting);
    }
    Ok(request)
}

/// True for a value that asks for nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Bool(flag) => !flag,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

fn format(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let format = match fields.take("format") {
        None => return Ok(()),
        Some(Value::String(word)) if word.is_empty() => return Ok(()),
        Some(Value::String(word)) if word == "json" => Format::JsonObject,
        Some(schema @ Value::Object(_)) => Format::JsonSchema { name: None, schema, strict: None },
        Some(_) => return Err(fields.wrong("invalid_value", "format", "must be `json` or a JSON Schema")),
    };
    request.settings.push("format", Setting::Format(format));
    Ok(())
}

/// Reads `think`: true or false, or an effort.
fn think(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let setting = match fields.take("think") {
        None => return Ok(()),
        Some(Value::Bool(false)) => Setting::Thinking(Thinking::Off),
        Some(Value::Bool(true)) => Setting::Thinking(Thinking::Adaptive),
        Some(Value::String(word)) => match Effort::of(&word) {
            Some(effort) => Setting::Effort(effort),
            None => return Err(fields.wrong("invalid_value", "think", "must be true, false, low, medium or high")),
        },
        Some(_) => return Err(fields.wrong("invalid_type", "think", "must be true, false or a string")),
    };
    request.settings.push("think", setting);
    Ok(())
}

fn tools(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    for (n, tool) in fields.list("tools")?.unwrap_or_default().into_iter().enumerate() {
        let mut tool = Fields::of(tool, format!("tools[{n}]"))?;
        let kind = tool.text("type")?.unwrap_or_else(|| "function".to_owned());
        if kind != "function" {
            request.tools.push(ToolSpec::Other { at: tool.at().to_owned(), kind });
            continue;
        }
        let mut function = tool.object("function")?.ok_or_else(|| tool.missing("function"))?;
        let name = function.required_text("name")?;
        let description = function.text("description")?;
        let parameters = function.object("parameters")?.map(Fields::into_map);
        request.hints.extend(function.rest_names().into_iter().chain(tool.rest_names()));
        request.tools.push(ToolSpec::Function { name, description, parameters, strict: None });
    }
    Ok(())
}
