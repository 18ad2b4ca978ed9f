//! Reader of a chat request. Fields with the value that the API takes without them are left out: they ask for nothing.

use serde_json::{Map, Value};
use spillway_filter::Refusal;

use super::messages;
use crate::protocol::refusals::shown;
use crate::protocol::translate::{
    Conversation, Effort, Fields, Format, Setting, Thinking, ToolPick, ToolSpec, Wrong, choice_without_tools,
    json_object,
};

/// Fields that change no answer: marks for a cache, accounting, service levels.
const HINTS: [&str; 8] = [
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
    "store",
    "verbosity",
];

/// Values that ask for nothing, of fields that few other APIs have. An empty object may ask for something with its defaults.
fn asks_for_nothing(name: &str, value: &Value) -> bool {
    let is_empty = match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty() && name == "metadata",
        Value::Bool(flag) => !flag,
        _ => false,
    };
    is_empty
        || match name {
            "modalities" => value.as_array().is_some_and(|list| list.iter().all(|one| one == "text")),
            "best_of" => value == 1,
            "function_call" => value == "none" || value == "auto",
            "presence_penalty" | "frequency_penalty" => value.as_f64() == Some(0.0),
            "repetition_penalty" => value.as_f64() == Some(1.0),
            _ => false,
        }
}

/// Reads a request.
pub(super) fn read(body: &[u8]) -> Result<Conversation, Refusal> {
    let mut fields = Fields::new(json_object(body)?, "");
    let mut request = Conversation { model: fields.text("model")?, ..Conversation::default() };
    stream(&mut fields, &mut request)?;
    messages::read(&mut fields, &mut request)?;
    sampling(&mut fields, &mut request)?;
    tools(&mut fields, &mut request)?;
    format(&mut fields, &mut request)?;
    if let Some(word) = fields.text("reasoning_effort")? {
        let setting = match (word.as_str(), Effort::of(&word)) {
            ("none", _) => Setting::Thinking(Thinking::Off),
            (_, Some(effort)) => Setting::Effort(effort),
            (_, None) => Setting::Other(Value::String(word)),
        };
        request.settings.push("reasoning_effort", setting);
    }
    finish(fields, &mut request)?;
    Ok(request)
}

/// Reads whether the answer is wanted as an event stream, and what that ends with.
pub(super) fn stream(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    request.stream = fields.flag("stream")?.unwrap_or(false);
    if let Some(mut options) = fields.object("stream_options")? {
        request.include_usage = options.flag("include_usage")?.unwrap_or(false);
        // Padding against eavesdroppers: none is added.
        if options.flag("include_obfuscation")? == Some(true) {
            request.hints.push("stream_options.include_obfuscation".to_owned());
        }
        request.hints.extend(options.rest_names());
    }
    Ok(())
}

/// Reads the end user, hints, and the fields that are not known.
pub(super) fn finish(mut fields: Fields, request: &mut Conversation) -> Result<(), Wrong> {
    // The newer name wins.
    let safety = fields.text("safety_identifier")?;
    let user = fields.text("user")?;
    if safety.is_some() && user.is_some() {
        request.hints.push("user".to_owned());
    }
    match (safety, user) {
        (Some(user), _) => request.settings.push("safety_identifier", Setting::User(user)),
        (None, Some(user)) => request.settings.push("user", Setting::User(user)),
        (None, None) => {}
    }
    for name in HINTS {
        if let Some(value) = fields.take(name)
            && !asks_for_nothing(name, &value)
        {
            request.hints.push(name.to_owned());
        }
    }
    for (name, value) in fields.rest().filter(|(name, value)| !asks_for_nothing(name, value)) {
        request.settings.push(shown(&name), Setting::Unknown(value));
    }
    Ok(())
}

/// Reads the fields of sampling and of the length of an answer.
pub(super) fn sampling(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let Conversation { settings, hints, .. } = request;
    // Where both are given, the newer name wins.
    let older = fields.count("max_tokens")?;
    match (fields.count("max_completion_tokens")?, older) {
        (Some(most), older) => {
            settings.push("max_completion_tokens", Setting::MaxTokens(most));
            hints.extend(older.map(|_| "max_tokens".to_owned()));
        }
        (None, Some(most)) => settings.push("max_tokens", Setting::MaxTokens(most)),
        (None, None) => {}
    }
    for (name, setting) in [
        ("temperature", Setting::Temperature as fn(_) -> _),
        ("top_p", Setting::TopP),
        ("min_p", Setting::MinP),
        ("seed", Setting::Seed),
        ("presence_penalty", Setting::PresencePenalty),
        ("frequency_penalty", Setting::FrequencyPenalty),
        ("repetition_penalty", Setting::RepetitionPenalty),
    ] {
        if let Some(number) = fields.number(name)?
            && !asks_for_nothing(name, &number.clone().into())
        {
            settings.push(name, setting(number));
        }
    }
    if let Some(count) = fields.count("top_k")? {
        settings.push("top_k", Setting::TopK(count));
    }
    match fields.take("stop") {
        None => {}
        Some(Value::String(stop)) => settings.push("stop", Setting::Stop(vec![stop])),
        Some(Value::Array(list)) if list.is_empty() => {}
        Some(Value::Array(list)) => {
            let texts = list.into_iter().map(|value| match value {
                Value::String(text) => Ok(text),
                _ => Err(fields.wrong("invalid_type", "stop", "must be a string or a list of strings")),
            });
            settings.push("stop", Setting::Stop(texts.collect::<Result<_, _>>()?));
        }
        Some(_) => return Err(fields.wrong("invalid_type", "stop", "must be a string or a list of strings")),
    }
    if let Some(count) = fields.count("n")?.filter(|count| *count != 1) {
        settings.push("n", Setting::Choices(count));
    }
    let likeliest = fields.count("top_logprobs")?.unwrap_or(0);
    if fields.flag("logprobs")? == Some(true) {
        settings.push("logprobs", Setting::Logprobs(likeliest));
    } else if likeliest > 0 {
        hints.push("top_logprobs".to_owned());
    }
    if let Some(biases) = fields.object("logit_bias")? {
        let biases = biases.into_map();
        if !biases.is_empty() {
            settings.push("logit_bias", Setting::LogitBias(biases));
        }
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
        let mut function = tool.object("function")?.ok_or_else(|| tool.missing("function"))?;
        let name = function.required_text("name")?;
        let description = function.text("description")?;
        let parameters = function.object("parameters")?.map(Fields::into_map);
        let strict = function.flag("strict")?;
        request.hints.extend(function.rest_names().into_iter().chain(tool.rest_names()));
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
        Some(Value::Object(choice)) => match named_function(&choice) {
            Some(name) => Some(ToolPick::Named(name)),
            None => {
                request.settings.push("tool_choice", Setting::Other(Value::Object(choice)));
                None
            }
        },
        Some(_) => return Err(fields.wrong("invalid_type", "tool_choice", "must be a string or an object")),
    };
    choice_without_tools(fields, request)
}

fn named_function(choice: &Map<String, Value>) -> Option<String> {
    let is_function = choice.get("type").is_some_and(|kind| kind == "function");
    choice.get("function").filter(|_| is_function)?.get("name")?.as_str().map(str::to_owned)
}

fn format(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(()) };
    let setting = match format.required_text("type")?.as_str() {
        "text" => return Ok(()),
        "json_object" => Setting::Format(Format::JsonObject),
        "json_schema" => {
            let mut schema = format.object("json_schema")?.ok_or_else(|| format.missing("json_schema"))?;
            let name = schema.text("name")?;
            let strict = schema.flag("strict")?;
            schema.hint("description", &mut request.hints);
            let value = schema.take("schema").ok_or_else(|| schema.missing("schema"))?;
            request.hints.extend(schema.rest_names());
            Setting::Format(Format::JsonSchema { name, schema: value, strict })
        }
        kind => Setting::Other(Value::String(kind.to_owned())),
    };
    request.settings.push("response_format", setting);
    request.hints.extend(format.rest_names());
    Ok(())
}
