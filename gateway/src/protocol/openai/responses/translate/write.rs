//! Writer of a question for the number of tokens of an input (`/v1/responses/input_tokens`) from the neutral types. Only what the
//! model reads is a part of it: fields of sampling change no count.

use serde_json::{Map, Value, json};
use spillway_filter::Refusal;

use crate::protocol::translate::{
    Conversation, Format, Image, ImageSource, Lossy, Part, Role, Setting, ToolPick, ToolSpec, Turn, WrittenRequest, set,
};

/// Name of the API in refusals.
const API: &str = "openai";

/// Name of a schema whose API has none.
const SCHEMA_NAME: &str = "answer";

/// Writes a question for a server that knows the model as `model`.
pub(in crate::protocol::openai) fn count(
    conversation: &Conversation,
    model: &str,
    lossy: &mut Lossy<'_>,
) -> Result<WrittenRequest, Refusal> {
    for hint in &conversation.hints {
        lossy.hint(hint);
    }
    let mut items = Vec::new();
    for turn in &conversation.turns {
        put_turn(turn, &mut items, lossy)?;
    }
    let mut body = Map::new();
    body.insert("model".to_owned(), model.into());
    body.insert("input".to_owned(), items.into());
    let mut tools = Vec::new();
    for tool in &conversation.tools {
        match tool {
            ToolSpec::Function { name, description, parameters, strict } => {
                let mut function =
                    json!({"type": "function", "name": name, "parameters": parameters, "strict": strict});
                if let Some(description) = description {
                    set(&mut function, "description", description.as_str());
                }
                tools.push(function);
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
    }
    for named in conversation.settings.iter() {
        match &named.setting {
            Setting::Format(_) | Setting::Effort(_) if lossy.drops(&named.name, None) => {}
            Setting::Format(format) => {
                body.insert("text".to_owned(), json!({"format": format_of(format)}));
            }
            Setting::Effort(effort) => {
                body.insert("reasoning".to_owned(), json!({"effort": effort.as_str()}));
            }
            Setting::Other(_) | Setting::Unknown(_) => lossy.without(&named.name, API)?,
            _ => {}
        }
    }
    Ok(WrittenRequest { body: crate::protocol::json(&body), headers: Vec::new() })
}

/// Writes the items of a turn. Results of tools come first: they answer the calls before.
fn put_turn(turn: &Turn, items: &mut Vec<Value>, lossy: &mut Lossy<'_>) -> Result<(), Refusal> {
    let (role, text) = match turn.role {
        Role::System => ("system", "input_text"),
        Role::User => ("user", "input_text"),
        Role::Assistant => ("assistant", "output_text"),
    };
    let mut content = Vec::new();
    for part in &turn.parts {
        match part {
            Part::ToolResult { id, parts, is_error } => {
                if *is_error {
                    lossy.hint(&format!("{}.content.is_error", turn.at));
                }
                let output = parts.iter().map(|part| content_of(part, "input_text")).collect::<Result<Vec<_>, _>>()?;
                items.push(json!({"type": "function_call_output", "call_id": id, "output": output}));
            }
            // Reasoning of an earlier answer, whose proof another server cannot read.
            Part::Thinking { .. } | Part::RedactedThinking(_) => lossy.hint(&format!("{}.thinking", turn.at)),
            Part::ToolCall { .. } => {}
            part => content.push(content_of(part, text)?),
        }
    }
    if !content.is_empty() {
        items.push(json!({"type": "message", "role": role, "content": content}));
    }
    for part in &turn.parts {
        if let Part::ToolCall { id, name, arguments } = part {
            items.push(json!({"type": "function_call", "call_id": id, "name": name, "arguments": arguments}));
        }
    }
    Ok(())
}

fn content_of(part: &Part, text_type: &str) -> Result<Value, Refusal> {
    match part {
        Part::Text(text) => Ok(json!({"type": text_type, "text": text})),
        Part::Refusal(text) => Ok(json!({"type": "refusal", "refusal": text})),
        Part::Image(Image { source }) => {
            let url = match source {
                ImageSource::Url(url) => url.clone(),
                ImageSource::Base64 { media_type, data } => format!("data:{media_type};base64,{data}"),
            };
            Ok(json!({"type": "input_image", "image_url": url}))
        }
        Part::Other { at, .. } => Err(Lossy::no_counterpart(at, API)),
        // These are items and no content.
        Part::Thinking { .. } | Part::RedactedThinking(_) | Part::ToolCall { .. } | Part::ToolResult { .. } => {
            Err(Lossy::no_counterpart("content", API))
        }
    }
}

fn pick_of(pick: &ToolPick) -> Value {
    match pick {
        ToolPick::Auto => "auto".into(),
        ToolPick::None => "none".into(),
        ToolPick::Required => "required".into(),
        ToolPick::Named(name) => json!({"type": "function", "name": name}),
    }
}

fn format_of(format: &Format) -> Value {
    match format {
        Format::JsonObject => json!({"type": "json_object"}),
        Format::JsonSchema { name, schema, strict } => {
            let name = name.as_deref().unwrap_or(SCHEMA_NAME);
            let mut written = json!({"type": "json_schema", "name": name, "schema": schema});
            if let Some(strict) = strict {
                set(&mut written, "strict", *strict);
            }
            written
        }
    }
}
