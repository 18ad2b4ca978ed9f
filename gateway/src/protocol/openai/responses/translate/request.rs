//! Reader of a request of the Responses API. Fields with the value that the API takes without them are left out: they ask for
//! nothing.

use serde_json::{Map, Value, json};
use spillway_filter::Refusal;

use super::items;
use crate::protocol::refusals::shown;
use crate::protocol::translate::{
    Conversation, Effort, Fields, Format, Part, Role, Setting, Thinking, ToolPick, ToolSpec, Turn, Wrong,
    choice_without_tools, json_object, named,
};

/// Fields that change no answer: marks for a cache, accounting, service levels, bounds of tools that a provider runs.
const HINTS: [&str; 7] = [
    "background_options",
    "max_tool_calls",
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
];

/// Fields that need something stored, or a service of the provider's.
const SPECIAL: [&str; 8] = [
    "access_programs",
    "background",
    "context_management",
    "conversation",
    "moderation",
    "previous_response_id",
    "prompt",
    "store",
];

/// Members that an answer repeats, with the value of requests without them.
fn repeated() -> [(&'static str, Value); 16] {
    [
        ("background", false.into()),
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("metadata", json!({})),
        ("parallel_tool_calls", true.into()),
        ("previous_response_id", Value::Null),
        ("prompt_cache_key", Value::Null),
        ("reasoning", json!({"effort": null, "summary": null})),
        ("safety_identifier", Value::Null),
        ("store", false.into()),
        ("temperature", Value::Null),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", "auto".into()),
        ("tools", json!([])),
        ("top_p", Value::Null),
        ("truncation", "disabled".into()),
    ]
}

/// Values that ask for nothing. An empty object may ask for something with its defaults.
fn asks_for_nothing(name: &str, value: &Value) -> bool {
    let is_empty = match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty() && name == "metadata",
        Value::Bool(flag) => !flag,
        _ => false,
    };
    is_empty || name == "truncation" && value == "disabled"
}

/// Reads a request.
pub(in crate::protocol::openai) fn read(body: &[u8]) -> Result<Conversation, Refusal> {
    let map = json_object(body)?;
    let echoed = echo(&map);
    let mut fields = Fields::new(map, "");
    let mut request =
        Conversation { model: fields.text("model")?, include_usage: true, echoed, ..Conversation::default() };
    request.stream = fields.flag("stream")?.unwrap_or(false);
    if let Some(mut options) = fields.object("stream_options")? {
        // Padding against eavesdroppers: none is added.
        if options.flag("include_obfuscation")? == Some(true) {
            request.hints.push("stream_options.include_obfuscation".to_owned());
        }
        request.hints.extend(options.rest_names());
    }
    if let Some(text) = fields.text("instructions")? {
        let turn = Turn { role: Role::System, parts: vec![Part::Text(text)], at: "instructions".to_owned() };
        request.turns.push(turn);
    }
    items::read(&mut fields, &mut request)?;
    sampling(&mut fields, &mut request)?;
    tools(&mut fields, &mut request)?;
    text(&mut fields, &mut request)?;
    reasoning(&mut fields, &mut request)?;
    // The newer name wins.
    let (safety, user) = (fields.text("safety_identifier")?, fields.text("user")?);
    if safety.is_some() && user.is_some() {
        request.hints.push("user".to_owned());
    }
    match (safety, user) {
        (Some(user), _) => request.settings.push("safety_identifier", Setting::User(user)),
        (None, Some(user)) => request.settings.push("user", Setting::User(user)),
        (None, None) => {}
    }
    others(fields, &mut request);
    Ok(request)
}

/// Reads the fields that no other API has.
fn others(mut fields: Fields, request: &mut Conversation) {
    // Conversations that are too long are not shortened here.
    for name in HINTS.into_iter().chain(["truncation"]) {
        if let Some(value) = fields.take(name)
            && !asks_for_nothing(name, &value)
        {
            request.hints.push(name.to_owned());
        }
    }
    for (name, value) in fields.rest().filter(|(name, value)| !asks_for_nothing(name, value)) {
        let setting = if SPECIAL.contains(&&*name) { Setting::Other(value) } else { Setting::Unknown(value) };
        request.settings.push(shown(&name), setting);
    }
}

/// Members that the answer repeats, as JSON text without braces. What is stored nowhere is repeated as such.
fn echo(map: &Map<String, Value>) -> Box<str> {
    const NEVER: [&str; 3] = ["background", "previous_response_id", "store"];
    let members = repeated().map(|(name, otherwise)| {
        let written = map.get(name).filter(|value| !value.is_null() && !NEVER.contains(&name));
        format!("\"{name}\":{}", written.unwrap_or(&otherwise))
    });
    members.join(",").into()
}

fn sampling(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let settings = &mut request.settings;
    if let Some(most) = fields.count("max_output_tokens")? {
        settings.push("max_output_tokens", Setting::MaxTokens(most));
    }
    if let Some(number) = fields.number("temperature")? {
        settings.push("temperature", Setting::Temperature(number));
    }
    if let Some(number) = fields.number("top_p")? {
        settings.push("top_p", Setting::TopP(number));
    }
    let likeliest = fields.count("top_logprobs")?.unwrap_or(0);
    let mut wants_logprobs = likeliest > 0;
    for (n, one) in fields.texts("include")?.unwrap_or_default().into_iter().enumerate() {
        match one.as_str() {
            "message.output_text.logprobs" => wants_logprobs = true,
            // Proofs of reasoning are in every answer that has them.
            "reasoning.encrypted_content" => {}
            // Parts of answers of tools that a provider runs, of which there are none.
            _ => request.hints.push(format!("include[{n}]")),
        }
    }
    if wants_logprobs {
        settings.push("top_logprobs", Setting::Logprobs(likeliest));
    }
    Ok(())
}

fn tools(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    for (n, tool) in fields.list("tools")?.unwrap_or_default().into_iter().enumerate() {
        let mut tool = Fields::of(tool, format!("tools[{n}]"))?;
        let kind = tool.required_text("type")?;
        if kind != "function" {
            request.tools.push(ToolSpec::Other { at: tool.at().to_owned(), kind });
            continue;
        }
        let name = tool.required_text("name")?;
        let description = tool.text("description")?;
        let parameters = tool.object("parameters")?.map(Fields::into_map);
        let strict = tool.flag("strict")?;
        request.hints.extend(tool.rest_names());
        request.tools.push(ToolSpec::Function { name, description, parameters, strict });
    }
    request.one_tool_call = fields.flag("parallel_tool_calls")? == Some(false);
    request.tool_pick = match fields.take("tool_choice") {
        None => None,
        Some(Value::String(word)) => Some(match word.as_str() {
            "auto" => ToolPick::Auto,
            "none" => ToolPick::None,
            "required" => ToolPick::Required,
            _ => {
                let what = "must be none, auto, required, or name a function";
                return Err(fields.wrong("invalid_value", "tool_choice", what));
            }
        }),
        Some(Value::Object(choice)) => {
            let is_function = choice.get("type").is_some_and(|kind| kind == "function");
            match choice.get("name").and_then(Value::as_str).filter(|_| is_function) {
                Some(name) => Some(ToolPick::Named(name.to_owned())),
                None => {
                    request.settings.push("tool_choice", Setting::Other(Value::Object(choice)));
                    None
                }
            }
        }
        Some(_) => return Err(fields.wrong("invalid_type", "tool_choice", "must be a string or an object")),
    };
    choice_without_tools(fields, request)
}

/// Reads the form of the text.
fn text(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let Some(mut text) = fields.object("text")? else { return Ok(()) };
    if let Some(mut format) = text.object("format")? {
        let setting = match format.required_text("type")?.as_str() {
            "text" => None,
            "json_object" => Some(Setting::Format(Format::JsonObject)),
            "json_schema" => {
                let name = format.text("name")?;
                let strict = format.flag("strict")?;
                format.hint("description", &mut request.hints);
                let schema = format.take("schema").ok_or_else(|| format.missing("schema"))?;
                Some(Setting::Format(Format::JsonSchema { name, schema, strict }))
            }
            kind => Some(Setting::Other(Value::String(kind.to_owned()))),
        };
        if let Some(setting) = setting {
            request.settings.push("text.format", setting);
        }
        request.hints.extend(format.rest_names());
    }
    // The length of a text is the model's own.
    if text.text("verbosity")?.is_some_and(|word| word != "medium") {
        request.hints.push("text.verbosity".to_owned());
    }
    for (name, value) in text.rest() {
        request.settings.push(named("text", &shown(&name)), Setting::Unknown(value));
    }
    Ok(())
}

fn reasoning(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let Some(mut reasoning) = fields.object("reasoning")? else { return Ok(()) };
    if let Some(word) = reasoning.text("effort")? {
        let setting = match (word.as_str(), Effort::of(&word)) {
            ("none", _) => Setting::Thinking(Thinking::Off),
            (_, Some(effort)) => Setting::Effort(effort),
            (_, None) => Setting::Other(Value::String(word)),
        };
        request.settings.push("reasoning.effort", setting);
    }
    // The amount that is shown differs, and no other API names it so.
    for name in ["summary", "generate_summary"] {
        reasoning.hint(name, &mut request.hints);
    }
    for (name, value) in reasoning.rest() {
        request.settings.push(named("reasoning", &shown(&name)), Setting::Unknown(value));
    }
    Ok(())
}
