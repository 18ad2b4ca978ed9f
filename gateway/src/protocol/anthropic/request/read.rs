//! Reader of a request of the Messages API, field by field. Shapes are those of the official client (`anthropic` 2.14,
//! `types/message_create_params.py`).

use serde_json::Value;
use spillway_filter::Refusal;

use super::content::Blocks;
use super::tools;
use crate::protocol::refusals::shown;
use crate::protocol::translate::{
    Conversation, Effort, Fields, Format, Role, Setting, Thinking, Turn, Wrong, json_object, named,
};

/// Fields that change no answer: marks for a cache, accounting, diagnosis.
const HINTS: [&str; 5] = ["cache_control", "diagnostics", "service_tier", "user_profile_id", "workspace_id"];

/// Fields that ask for what only Anthropic's servers have.
const SPECIAL: [&str; 6] = ["betas", "container", "context_management", "inference_geo", "mcp_servers", "speed"];

/// Use of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::protocol::anthropic) enum Purpose {
    /// The next message, for which `max_tokens` is required.
    Message,
    /// The number of tokens of the prompt.
    Count,
}

/// Reads a request.
pub(in crate::protocol::anthropic) fn read(body: &[u8], purpose: Purpose) -> Result<Conversation, Refusal> {
    let mut fields = Fields::new(json_object(body)?, "");
    let mut request = Conversation { model: fields.text("model")?, include_usage: true, ..Conversation::default() };
    request.stream = fields.flag("stream")?.unwrap_or(false);
    system(&mut fields, &mut request)?;
    messages(&mut fields, &mut request)?;
    match fields.count("max_tokens")? {
        Some(most) => request.settings.push("max_tokens", Setting::MaxTokens(most)),
        None if purpose == Purpose::Message => return Err(fields.missing("max_tokens")),
        None => {}
    }
    sampling(&mut fields, &mut request)?;
    tools::read(&mut fields, &mut request)?;
    thinking(&mut fields, &mut request)?;
    output(&mut fields, &mut request)?;
    if let Some(mut metadata) = fields.object("metadata")? {
        if let Some(user) = metadata.text("user_id")? {
            request.settings.push("metadata.user_id", Setting::User(user));
        }
        request.hints.extend(metadata.rest_names());
    }
    for name in HINTS {
        fields.hint(name, &mut request.hints);
    }
    for (name, value) in fields.rest() {
        let is_default = name == "speed" && value == "standard";
        if is_default {
            continue;
        }
        let setting = if SPECIAL.contains(&&*name) { Setting::Other(value) } else { Setting::Unknown(value) };
        request.settings.push(shown(&name), setting);
    }
    Ok(request)
}

/// Reads `system`: a text, or blocks of text.
fn system(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let Some(system) = fields.take("system") else { return Ok(()) };
    let mut blocks = Blocks::new(&mut request.hints);
    let parts = blocks.read(system, "system", Role::System)?;
    if !parts.is_empty() {
        request.turns.push(Turn { role: Role::System, parts, at: "system".to_owned() });
    }
    Ok(())
}

fn messages(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let list = fields.list("messages")?.ok_or_else(|| fields.missing("messages"))?;
    if list.is_empty() {
        return Err(fields.wrong("empty_array", "messages", "must have at least one message"));
    }
    for (n, message) in list.into_iter().enumerate() {
        let at = format!("messages[{n}]");
        let mut message = Fields::of(message, &at)?;
        let role = match message.required_text("role")?.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "system" => Role::System,
            _ => return Err(message.wrong("invalid_value", "role", "must be user, assistant or system")),
        };
        let content = message.take("content").ok_or_else(|| message.missing("content"))?;
        let parts = Blocks::new(&mut request.hints).read(content, &message.name("content"), role)?;
        if parts.is_empty() && role == Role::User {
            return Err(message.wrong("empty_array", "content", "must have at least one block"));
        }
        request.hints.extend(message.rest_names());
        request.turns.push(Turn { role, parts, at });
    }
    Ok(())
}

fn sampling(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let settings = &mut request.settings;
    if let Some(number) = fields.number("temperature")? {
        settings.push("temperature", Setting::Temperature(number));
    }
    if let Some(number) = fields.number("top_p")? {
        settings.push("top_p", Setting::TopP(number));
    }
    if let Some(count) = fields.count("top_k")? {
        settings.push("top_k", Setting::TopK(count));
    }
    if let Some(stop) = fields.texts("stop_sequences")?.filter(|stop| !stop.is_empty()) {
        settings.push("stop_sequences", Setting::Stop(stop));
    }
    Ok(())
}

fn thinking(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let Some(mut thinking) = fields.object("thinking")? else { return Ok(()) };
    let kind = thinking.required_text("type")?;
    // Only the amount that is shown differs.
    thinking.hint("display", &mut request.hints);
    let setting = match kind.as_str() {
        "disabled" => Setting::Thinking(Thinking::Off),
        "adaptive" => Setting::Thinking(Thinking::Adaptive),
        "enabled" => {
            let budget = thinking.count("budget_tokens")?.ok_or_else(|| thinking.missing("budget_tokens"))?;
            Setting::Thinking(Thinking::Budget(budget))
        }
        _ => Setting::Other(Value::String(kind)),
    };
    request.settings.push("thinking", setting);
    for (name, value) in thinking.rest() {
        request.settings.push(named("thinking", &shown(&name)), Setting::Unknown(value));
    }
    Ok(())
}

/// Reads `output_config`: effort, and the form of the answer.
fn output(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let Some(mut output) = fields.object("output_config")? else { return Ok(()) };
    if let Some(word) = output.text("effort")? {
        let setting = match Effort::of(&word) {
            Some(effort) => Setting::Effort(effort),
            None => Setting::Other(Value::String(word)),
        };
        request.settings.push("output_config.effort", setting);
    }
    if let Some(mut format) = output.object("format")? {
        let kind = format.required_text("type")?;
        if kind == "json_schema" {
            let schema = format.take("schema").ok_or_else(|| format.missing("schema"))?;
            if !schema.is_object() {
                return Err(format.wrong("invalid_type", "schema", "must be a JSON Schema"));
            }
            // The API holds each answer to its schema.
            request.hints.extend(format.rest_names());
            let format = Format::JsonSchema { name: None, schema, strict: Some(true) };
            request.settings.push("output_config.format", Setting::Format(format));
        } else {
            request.settings.push("output_config.format", Setting::Other(Value::String(kind)));
        }
    }
    for (name, value) in output.rest() {
        request.settings.push(named("output_config", &shown(&name)), Setting::Unknown(value));
    }
    Ok(())
}
