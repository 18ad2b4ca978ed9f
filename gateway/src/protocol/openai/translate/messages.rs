//! Messages of a chat request, read to turns. A result of a tool, which is a message of its own here, becomes a part of a
//! turn of the user.

use serde_json::Value;

use crate::protocol::translate::{Conversation, Fields, Image, ImageSource, Part, Role, Turn, Wrong};

/// Reads the messages of a request.
pub(super) fn read(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let list = fields.list("messages")?.ok_or_else(|| fields.missing("messages"))?;
    if list.is_empty() {
        return Err(fields.wrong("empty_array", "messages", "must have at least one message"));
    }
    for (n, message) in list.into_iter().enumerate() {
        let turn = one(Fields::of(message, format!("messages[{n}]"))?, &mut request.hints)?;
        request.turns.push(turn);
    }
    Ok(())
}

fn one(mut message: Fields, hints: &mut Vec<String>) -> Result<Turn, Wrong> {
    let at = message.at().to_owned();
    let role = message.required_text("role")?;
    message.hint("name", hints);
    let (role, parts) = match role.as_str() {
        "system" | "developer" => (Role::System, content(&mut message, hints)?),
        "user" => (Role::User, content(&mut message, hints)?),
        "tool" => {
            let id = message.required_text("tool_call_id")?;
            let parts = content(&mut message, hints)?;
            (Role::User, vec![Part::ToolResult { id, parts, is_error: false }])
        }
        "assistant" => (Role::Assistant, assistant(&mut message, hints)?),
        "function" => (Role::User, vec![Part::Other { at: message.name("role"), kind: "function".to_owned() }]),
        _ => {
            let what = "must be system, developer, user, assistant or tool";
            return Err(message.wrong("invalid_value", "role", what));
        }
    };
    hints.extend(message.rest_names());
    Ok(Turn { role, parts, at })
}

fn content(message: &mut Fields, hints: &mut Vec<String>) -> Result<Vec<Part>, Wrong> {
    match optional_content(message, hints)? {
        Some(parts) => Ok(parts),
        None => Err(message.missing("content")),
    }
}

fn optional_content(message: &mut Fields, hints: &mut Vec<String>) -> Result<Option<Vec<Part>>, Wrong> {
    match message.take("content") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(vec![Part::Text(text)])),
        Some(Value::Array(list)) => {
            let at = message.name("content");
            let parts = list.into_iter().enumerate();
            let parts = parts.map(|(n, part)| self::part(Fields::of(part, format!("{at}[{n}]"))?, hints));
            parts.collect::<Result<_, _>>().map(Some)
        }
        Some(_) => Err(message.wrong("invalid_type", "content", "must be a string or a list of parts")),
    }
}

fn part(mut part: Fields, hints: &mut Vec<String>) -> Result<Part, Wrong> {
    let kind = part.required_text("type")?;
    let read = match kind.as_str() {
        "text" => Part::Text(part.required_text("text")?),
        "refusal" => Part::Refusal(part.required_text("refusal")?),
        "image_url" => {
            let mut image = part.object("image_url")?.ok_or_else(|| part.missing("image_url"))?;
            let url = image.required_text("url")?;
            image.hint("detail", hints);
            hints.extend(image.rest_names());
            Part::Image(Image { source: source_of(url) })
        }
        _ => return Ok(Part::Other { at: part.at().to_owned(), kind }),
    };
    hints.extend(part.rest_names());
    Ok(read)
}

/// Image at an address, which for `data:` is the image itself (RFC 2397).
pub(in crate::protocol) fn source_of(url: String) -> ImageSource {
    let inside = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
    match inside {
        Some((media_type, data)) => ImageSource::Base64 { media_type: media_type.to_owned(), data: data.to_owned() },
        None => ImageSource::Url(url),
    }
}

/// Reads the parts of an earlier answer: reasoning first, then text, then tool calls.
fn assistant(message: &mut Fields, hints: &mut Vec<String>) -> Result<Vec<Part>, Wrong> {
    let mut parts = Vec::new();
    let reasoning = match message.text("reasoning_content")? {
        Some(reasoning) => Some(reasoning),
        None => message.text("reasoning")?,
    };
    let blocks = message.list("thinking_blocks")?.unwrap_or_default();
    if blocks.is_empty() {
        let reasoning = reasoning.filter(|reasoning| !reasoning.is_empty());
        parts.extend(reasoning.map(|text| Part::Thinking { text, signature: None }));
    }
    let at = message.name("thinking_blocks");
    for (n, block) in blocks.into_iter().enumerate() {
        let mut block = Fields::of(block, format!("{at}[{n}]"))?;
        parts.push(match block.required_text("type")?.as_str() {
            "redacted_thinking" => Part::RedactedThinking(block.required_text("data")?),
            "thinking" => {
                let signature = block.text("signature")?.filter(|signature| !signature.is_empty());
                Part::Thinking { text: block.text("thinking")?.unwrap_or_default(), signature }
            }
            _ => return Err(block.wrong("invalid_value", "type", "must be thinking or redacted_thinking")),
        });
    }
    parts.extend(optional_content(message, hints)?.unwrap_or_default());
    parts.extend(message.text("refusal")?.map(Part::Refusal));
    let at = message.name("tool_calls");
    for (n, call) in message.list("tool_calls")?.unwrap_or_default().into_iter().enumerate() {
        let mut call = Fields::of(call, format!("{at}[{n}]"))?;
        let kind = call.text("type")?.unwrap_or_else(|| "function".to_owned());
        if kind != "function" {
            parts.push(Part::Other { at: call.at().to_owned(), kind });
            continue;
        }
        let id = call.required_text("id")?;
        let mut function = call.object("function")?.ok_or_else(|| call.missing("function"))?;
        let name = function.required_text("name")?;
        let arguments = function.text("arguments")?.unwrap_or_default();
        parts.push(Part::ToolCall { id, name, arguments });
    }
    for field in ["audio", "function_call"] {
        if message.take(field).is_some() {
            parts.push(Part::Other { at: message.name(field), kind: field.to_owned() });
        }
    }
    // Citations of an earlier answer are no part of its text.
    message.hint("annotations", hints);
    Ok(parts)
}
