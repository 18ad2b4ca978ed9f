//! Writer of a chat request from the neutral types.

use serde_json::{Map, Value, json};
use spillway_filter::Refusal;

use crate::protocol::translate::{
    Conversation, Effort, Format, Image, ImageSource, Lossy, NamedSetting, Part, Role, ServerWords, Setting, Thinking,
    ToolPick, ToolSpec, Turn, set,
};

/// Name of the API in refusals.
const API: &str = "openai";

/// Name of a schema whose API has none.
const SCHEMA_NAME: &str = "answer";

/// Most tokens of reasoning that count as low effort, and as medium; more is high.
const EFFORTS: [(u64, Effort); 2] = [(4096, Effort::Low), (16_384, Effort::Medium)];

/// Writes a request for a server that knows the model as `model`, in its words.
pub(in crate::protocol::openai) fn request(
    conversation: &Conversation,
    (model, words): (&str, ServerWords),
    lossy: &mut Lossy<'_>,
) -> Result<Value, Refusal> {
    for hint in &conversation.hints {
        lossy.hint(hint);
    }
    let mut body = Map::new();
    body.insert("model".to_owned(), model.into());
    let mut messages = Vec::new();
    for turn in &conversation.turns {
        write_turn(turn, &mut messages, lossy)?;
    }
    body.insert("messages".to_owned(), messages.into());
    let mut tools = Vec::new();
    for tool in &conversation.tools {
        match tool {
            ToolSpec::Function { name, description, parameters, strict } => {
                tools.push(function(name, description.as_deref(), parameters.as_ref(), *strict));
            }
            ToolSpec::Other { at, .. } => lossy.without(at, API)?,
        }
    }
    if !tools.is_empty() {
        body.insert("tools".to_owned(), tools.into());
        if let Some(pick) = &conversation.tool_pick {
            body.insert("tool_choice".to_owned(), pick_of(pick));
        }
        if conversation.one_tool_call {
            body.insert("parallel_tool_calls".to_owned(), false.into());
        }
    } else if conversation.tool_pick.is_some() || conversation.one_tool_call {
        // The tools between which it chooses were dropped.
        lossy.hint("tool_choice");
    }
    let has_effort =
        conversation.settings.find(|setting| matches!(setting, Setting::Effort(_)).then_some(())).is_some();
    for named in conversation.settings.iter() {
        if has_effort && matches!(named.setting, Setting::Thinking(Thinking::Off | Thinking::Budget(_))) {
            // The effort says more exactly how much the model is to reason.
            lossy.hint(&named.name);
            continue;
        }
        setting(named, words, &mut body, lossy)?;
    }
    if conversation.stream {
        body.insert("stream".to_owned(), true.into());
        if conversation.include_usage {
            body.insert("stream_options".to_owned(), json!({"include_usage": true}));
        }
    }
    Ok(Value::Object(body))
}

fn function(
    name: &str,
    description: Option<&str>,
    parameters: Option<&Map<String, Value>>,
    strict: Option<bool>,
) -> Value {
    let mut function = json!({"name": name});
    if let Some(description) = description {
        set(&mut function, "description", description);
    }
    if let Some(parameters) = parameters {
        set(&mut function, "parameters", Value::Object(parameters.clone()));
    }
    if let Some(strict) = strict {
        set(&mut function, "strict", strict);
    }
    json!({"type": "function", "function": function})
}

fn pick_of(pick: &ToolPick) -> Value {
    match pick {
        ToolPick::Auto => "auto".into(),
        ToolPick::None => "none".into(),
        ToolPick::Required => "required".into(),
        ToolPick::Named(name) => json!({"type": "function", "function": {"name": name}}),
    }
}

/// Writes the messages of a turn. Results of tools come first: they answer the message before.
fn write_turn(turn: &Turn, messages: &mut Vec<Value>, lossy: &mut Lossy<'_>) -> Result<(), Refusal> {
    match turn.role {
        Role::System => {
            let content = contents(&turn.parts, lossy)?;
            messages.push(json!({"role": "system", "content": content_of(content)}));
        }
        Role::User => {
            let mut content = Vec::new();
            for part in &turn.parts {
                let Part::ToolResult { id, parts, is_error } = part else { continue };
                if *is_error {
                    lossy.hint(&format!("{}.content.is_error", turn.at));
                }
                // A message of a tool has text only: its images follow with the words of the user.
                let (texts, others): (Vec<_>, Vec<_>) =
                    contents(parts, lossy)?.into_iter().partition(|part| part["type"] == "text");
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": content_of(texts)}));
                content.extend(others);
            }
            let is_result = |part: &&Part| matches!(part, Part::ToolResult { .. });
            let own: Vec<Part> = turn.parts.iter().filter(|part| !is_result(part)).cloned().collect();
            content.extend(contents(&own, lossy)?);
            if !content.is_empty() {
                messages.push(json!({"role": "user", "content": content_of(content)}));
            }
        }
        Role::Assistant => messages.push(assistant(turn, lossy)?),
    }
    Ok(())
}

/// Content of a message: one text alone is a string, which every server reads.
fn content_of(mut parts: Vec<Value>) -> Value {
    match parts.as_mut_slice() {
        [] => Value::String(String::new()),
        [only] if only["type"] == "text" => only["text"].take(),
        _ => Value::Array(parts),
    }
}

fn contents(parts: &[Part], lossy: &mut Lossy<'_>) -> Result<Vec<Value>, Refusal> {
    let mut written = Vec::new();
    for part in parts {
        match part {
            Part::Text(text) => written.push(json!({"type": "text", "text": text})),
            Part::Refusal(text) => written.push(json!({"type": "refusal", "refusal": text})),
            Part::Image(Image { source }) => {
                let url = match source {
                    ImageSource::Url(url) => url.clone(),
                    ImageSource::Base64 { media_type, data } => format!("data:{media_type};base64,{data}"),
                };
                written.push(json!({"type": "image_url", "image_url": {"url": url}}));
            }
            Part::Other { at, .. } => return Err(Lossy::no_counterpart(at, API)),
            Part::Thinking { .. } | Part::RedactedThinking(_) => lossy.hint("thinking"),
            Part::ToolCall { .. } | Part::ToolResult { .. } => {}
        }
    }
    Ok(written)
}

fn assistant(turn: &Turn, lossy: &mut Lossy<'_>) -> Result<Value, Refusal> {
    let (mut reasoning, mut blocks, mut calls, mut texts, mut proven) =
        (String::new(), Vec::new(), Vec::new(), Vec::new(), false);
    for part in &turn.parts {
        match part {
            Part::Thinking { text, signature } => {
                reasoning.push_str(text);
                let mut block = json!({"type": "thinking", "thinking": text});
                if let Some(signature) = signature {
                    proven = true;
                    set(&mut block, "signature", signature.as_str());
                }
                blocks.push(block);
            }
            Part::RedactedThinking(data) => {
                proven = true;
                blocks.push(json!({"type": "redacted_thinking", "data": data}));
            }
            Part::ToolCall { id, name, arguments } => {
                calls.push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
            }
            other => texts.push(other.clone()),
        }
    }
    let content = contents(&texts, lossy)?;
    let mut message = json!({"role": "assistant"});
    set(
        &mut message,
        "content",
        if content.is_empty() && !calls.is_empty() { Value::Null } else { content_of(content) },
    );
    if !reasoning.is_empty() {
        set(&mut message, "reasoning_content", reasoning);
    }
    // Only a server that proves its reasoning reads the blocks.
    if proven {
        set(&mut message, "thinking_blocks", blocks);
    }
    if !calls.is_empty() {
        set(&mut message, "tool_calls", calls);
    }
    Ok(message)
}

fn setting(
    named: &NamedSetting,
    words: ServerWords,
    body: &mut Map<String, Value>,
    lossy: &mut Lossy<'_>,
) -> Result<(), Refusal> {
    let NamedSetting { name, setting } = named;
    let (field, value): (&str, Value) = match setting {
        Setting::MaxTokens(most) if *most > 0 => {
            let field = if words.has_newer_max_tokens { "max_completion_tokens" } else { "max_tokens" };
            (field, (*most).into())
        }
        Setting::Temperature(number) => ("temperature", number.clone().into()),
        Setting::TopP(number) => ("top_p", number.clone().into()),
        Setting::TopK(count) => ("top_k", (*count).into()),
        Setting::MinP(number) => ("min_p", number.clone().into()),
        Setting::Seed(number) => ("seed", number.clone().into()),
        Setting::Stop(stop) => ("stop", stop.clone().into()),
        Setting::PresencePenalty(number) => ("presence_penalty", number.clone().into()),
        Setting::FrequencyPenalty(number) => ("frequency_penalty", number.clone().into()),
        Setting::RepetitionPenalty(number) => ("repetition_penalty", number.clone().into()),
        Setting::LogitBias(biases) => ("logit_bias", biases.clone().into()),
        Setting::Choices(count) => ("n", (*count).into()),
        Setting::Logprobs(_) => ("logprobs", true.into()),
        Setting::Format(format) => ("response_format", format_of(format)),
        Setting::User(user) => ("user", user.as_str().into()),
        Setting::Effort(effort) => ("reasoning_effort", effort.as_str().into()),
        // Servers find out by themselves how much is useful.
        Setting::Thinking(Thinking::Adaptive) => return Ok(()),
        Setting::Thinking(Thinking::Off) if name.ends_with("effort") => ("reasoning_effort", "none".into()),
        Setting::Thinking(Thinking::Off) => match words.no_reasoning {
            Some(word) => ("reasoning_effort", word.into()),
            None => {
                lossy.hint(name);
                return Ok(());
            }
        },
        Setting::Thinking(Thinking::Budget(tokens)) => {
            let effort = EFFORTS.iter().find(|(most, _)| tokens <= most).map_or(Effort::High, |(_, effort)| *effort);
            ("reasoning_effort", effort.as_str().into())
        }
        Setting::MaxTokens(_) | Setting::Other(_) | Setting::Unknown(_) => return lossy.without(name, API),
    };
    if lossy.drops(name, Some(field)) {
        return Ok(());
    }
    if let Setting::Logprobs(likeliest) = setting
        && *likeliest > 0
    {
        body.insert("top_logprobs".to_owned(), (*likeliest).into());
    }
    body.insert(field.to_owned(), value);
    Ok(())
}

fn format_of(format: &Format) -> Value {
    match format {
        Format::JsonObject => json!({"type": "json_object"}),
        Format::JsonSchema { name, schema, strict } => {
            let name = name.as_deref().unwrap_or(SCHEMA_NAME);
            let mut written = json!({"name": name, "schema": schema});
            if let Some(strict) = strict {
                set(&mut written, "strict", *strict);
            }
            json!({"type": "json_schema", "json_schema": written})
        }
    }
}
