//! Items of a request, read to turns. Reasoning, text and calls of one answer are items behind one another here and become one
//! turn of the assistant; a result of a tool becomes a part of a turn of the user.

use serde_json::Value;

use super::{REDACTED, SIGNATURE};
use crate::protocol::openai::translate::image_source;
use crate::protocol::translate::{Conversation, Fields, Image, Part, Role, Turn, Wrong};

/// Reads the input of a request: a text, or a list of items.
pub(super) fn read(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let list = match fields.take("input") {
        None => return Err(fields.missing("input")),
        Some(Value::String(text)) => {
            let parts = vec![Part::Text(text)];
            request.turns.push(Turn { role: Role::User, parts, at: "input".to_owned() });
            return Ok(());
        }
        Some(Value::Array(list)) if list.is_empty() => {
            return Err(fields.wrong("empty_array", "input", "must have at least one item"));
        }
        Some(Value::Array(list)) => list,
        Some(_) => return Err(fields.wrong("invalid_type", "input", "must be a string or a list of items")),
    };
    for (n, item) in list.into_iter().enumerate() {
        let item = Fields::of(item, format!("input[{n}]"))?;
        let at = item.at().to_owned();
        let (role, mut parts) = one(item, &mut request.hints)?;
        match request.turns.last_mut().filter(|last| last.role == role && role == Role::Assistant) {
            Some(last) => last.parts.append(&mut parts),
            None => request.turns.push(Turn { role, parts, at }),
        }
    }
    Ok(())
}

fn one(mut item: Fields, hints: &mut Vec<String>) -> Result<(Role, Vec<Part>), Wrong> {
    let kind = item.text("type")?.unwrap_or_else(|| "message".to_owned());
    let read = match kind.as_str() {
        "message" => message(&mut item, hints)?,
        "reasoning" => (Role::Assistant, reasoning(&mut item, hints)?),
        "function_call" => {
            let (id, name) = (item.required_text("call_id")?, item.required_text("name")?);
            let arguments = item.text("arguments")?.unwrap_or_default();
            (Role::Assistant, vec![Part::ToolCall { id, name, arguments }])
        }
        "function_call_output" => {
            let id = item.required_text("call_id")?;
            let parts = content(&mut item, "output", hints)?;
            (Role::User, vec![Part::ToolResult { id, parts, is_error: false }])
        }
        _ => {
            let parts = vec![Part::Other { at: item.at().to_owned(), kind }];
            return Ok((Role::User, parts));
        }
    };
    // Ids and states of items, and the phase of a message, are of the answer that they were read from.
    for name in ["id", "status", "phase"] {
        let _ = item.take(name);
    }
    hints.extend(item.rest_names());
    Ok(read)
}

fn message(item: &mut Fields, hints: &mut Vec<String>) -> Result<(Role, Vec<Part>), Wrong> {
    let role = match item.required_text("role")?.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => return Err(item.wrong("invalid_value", "role", "must be system, developer, user or assistant")),
    };
    Ok((role, content(item, "content", hints)?))
}

/// Reads a text, or parts.
fn content(item: &mut Fields, field: &str, hints: &mut Vec<String>) -> Result<Vec<Part>, Wrong> {
    match item.take(field) {
        None => Err(item.missing(field)),
        Some(Value::String(text)) => Ok(vec![Part::Text(text)]),
        Some(Value::Array(list)) => {
            let at = item.name(field);
            let parts = list.into_iter().enumerate();
            parts.map(|(n, part)| self::part(Fields::of(part, format!("{at}[{n}]"))?, hints)).collect()
        }
        Some(_) => Err(item.wrong("invalid_type", field, "must be a string or a list of parts")),
    }
}

fn part(mut part: Fields, hints: &mut Vec<String>) -> Result<Part, Wrong> {
    let kind = part.required_text("type")?;
    let read = match kind.as_str() {
        "input_text" | "output_text" | "text" => Part::Text(part.required_text("text")?),
        "refusal" => Part::Refusal(part.required_text("refusal")?),
        "input_image" => match part.text("image_url")? {
            Some(url) => Part::Image(Image { source: image_source(url) }),
            // The bytes lie in a store of the provider's.
            None => return Ok(Part::Other { at: part.at().to_owned(), kind: "image file".to_owned() }),
        },
        _ => return Ok(Part::Other { at: part.at().to_owned(), kind }),
    };
    part.hint("detail", hints);
    // Citations and probabilities of an earlier answer are no part of its text; empty ones say nothing.
    for name in ["annotations", "logprobs"] {
        if part.take(name).is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
            hints.push(part.name(name));
        }
    }
    hints.extend(part.rest_names());
    Ok(read)
}

/// Reads reasoning. `encrypted_content` that this gateway did not write is its server's, which is another one.
fn reasoning(item: &mut Fields, hints: &mut Vec<String>) -> Result<Vec<Part>, Wrong> {
    let (content, summary) = (texts(item, "content")?, texts(item, "summary")?);
    let text = if content.is_empty() { summary } else { content };
    let proof = item.text("encrypted_content")?.filter(|proof| !proof.is_empty());
    let signature = match &proof {
        None => None,
        Some(proof) => match (proof.strip_prefix(SIGNATURE), proof.strip_prefix(REDACTED)) {
            (_, Some(data)) => return Ok(vec![Part::RedactedThinking(data.to_owned())]),
            (Some(signature), None) => Some(signature.to_owned()).filter(|signature| !signature.is_empty()),
            (None, None) => {
                hints.push(item.name("encrypted_content"));
                None
            }
        },
    };
    let says_nothing = text.is_empty() && signature.is_none();
    Ok(if says_nothing { Vec::new() } else { vec![Part::Thinking { text, signature }] })
}

/// Joins the texts of a list of parts.
fn texts(item: &mut Fields, field: &str) -> Result<String, Wrong> {
    let at = item.name(field);
    let mut joined = String::new();
    for (n, part) in item.list(field)?.unwrap_or_default().into_iter().enumerate() {
        joined.push_str(&Fields::of(part, format!("{at}[{n}]"))?.required_text("text")?);
    }
    Ok(joined)
}
