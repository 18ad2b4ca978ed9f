//! Content blocks of messages: text, images, tool calls and their results, reasoning. A block that no other API knows stays
//! in the conversation by its name.

use serde_json::{Map, Value, json};

use crate::protocol::translate::{Fields, Image, ImageSource, Part, Role, Wrong, set};

/// Reader of blocks.
pub(super) struct Blocks<'h> {
    hints: &'h mut Vec<String>,
}

impl<'h> Blocks<'h> {
    /// Reader that adds the names of fields without effect to `hints`.
    pub(super) fn new(hints: &'h mut Vec<String>) -> Self {
        Self { hints }
    }

    /// Reads a content: a text, or a list of blocks.
    pub(super) fn read(&mut self, content: Value, at: &str, role: Role) -> Result<Vec<Part>, Wrong> {
        match content {
            Value::String(text) => Ok(vec![Part::Text(text)]),
            Value::Array(list) => {
                let blocks = list.into_iter().enumerate();
                blocks.map(|(n, block)| self.block(Fields::of(block, format!("{at}[{n}]"))?, role)).collect()
            }
            _ => Err(Wrong::invalid("invalid_type", format!("`{at}` must be a string or a list of blocks."))
                .param(at.to_owned())),
        }
    }

    fn block(&mut self, mut block: Fields, role: Role) -> Result<Part, Wrong> {
        let kind = block.required_text("type")?;
        block.hint("cache_control", self.hints);
        let part = match (kind.as_str(), role) {
            ("text", _) => {
                block.hint("citations", self.hints);
                Part::Text(block.required_text("text")?)
            }
            ("image", Role::User) => match self.image(&mut block)? {
                Some(image) => Part::Image(image),
                None => return Ok(Part::Other { at: block.at().to_owned(), kind: "image file".to_owned() }),
            },
            ("tool_result", Role::User) => {
                let id = block.required_text("tool_use_id")?;
                let is_error = block.flag("is_error")?.unwrap_or(false);
                let at = block.name("content");
                let parts = match block.take("content") {
                    Some(content) => self.read(content, &at, Role::User)?,
                    None => Vec::new(),
                };
                if parts.iter().any(|part| matches!(part, Part::ToolResult { .. })) {
                    return Err(block.wrong(
                        "invalid_value",
                        "content",
                        "must not have a block of the type tool_result",
                    ));
                }
                Part::ToolResult { id, parts, is_error }
            }
            ("tool_use", Role::Assistant) => {
                let (id, name) = (block.required_text("id")?, block.required_text("name")?);
                let input = block.take("input").ok_or_else(|| block.missing("input"))?;
                if !input.is_object() {
                    return Err(block.wrong("invalid_type", "input", "must be an object"));
                }
                block.hint("caller", self.hints);
                Part::ToolCall { id, name, arguments: input.to_string() }
            }
            ("thinking", Role::Assistant) => {
                let text = block.required_text("thinking")?;
                let signature = block.text("signature")?.filter(|signature| !signature.is_empty());
                Part::Thinking { text, signature }
            }
            ("redacted_thinking", Role::Assistant) => Part::RedactedThinking(block.required_text("data")?),
            _ => return Ok(Part::Other { at: block.at().to_owned(), kind }),
        };
        self.hints.extend(block.rest_names());
        Ok(part)
    }

    /// Reads an image; `None` where its bytes lie in a store of Anthropic's.
    fn image(&mut self, block: &mut Fields) -> Result<Option<Image>, Wrong> {
        let mut source = block.object("source")?.ok_or_else(|| block.missing("source"))?;
        let read = match source.required_text("type")?.as_str() {
            "url" => ImageSource::Url(source.required_text("url")?),
            "base64" => ImageSource::Base64 {
                media_type: source.required_text("media_type")?,
                data: source.required_text("data")?,
            },
            _ => return Ok(None),
        };
        self.hints.extend(source.rest_names());
        Ok(Some(Image { source: read }))
    }
}

/// Block of a part of a request. `None` for a part that has none.
pub(super) fn block_of(part: &Part) -> Option<Value> {
    Some(match part {
        Part::Text(text) | Part::Refusal(text) => json!({"type": "text", "text": text}),
        Part::Image(Image { source: ImageSource::Url(url) }) => {
            json!({"type": "image", "source": {"type": "url", "url": url}})
        }
        Part::Image(Image { source: ImageSource::Base64 { media_type, data } }) => {
            json!({"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}})
        }
        Part::Thinking { text, signature: Some(signature) } => {
            json!({"type": "thinking", "thinking": text, "signature": signature})
        }
        Part::RedactedThinking(data) => json!({"type": "redacted_thinking", "data": data}),
        Part::ToolCall { id, name, arguments } => {
            json!({"type": "tool_use", "id": id, "name": name, "input": input_of(arguments)?})
        }
        Part::ToolResult { id, parts, is_error } => {
            let mut block = json!({"type": "tool_result", "tool_use_id": id});
            let content: Vec<Value> = parts.iter().filter_map(block_of).collect();
            if !content.is_empty() {
                set(&mut block, "content", Value::Array(content));
            }
            if *is_error {
                set(&mut block, "is_error", true);
            }
            block
        }
        Part::Thinking { signature: None, .. } | Part::Other { .. } => return None,
    })
}

/// Arguments of a tool call as the object that the API wants; `None` where they are none.
pub(super) fn input_of(arguments: &str) -> Option<Map<String, Value>> {
    if arguments.trim().is_empty() {
        return Some(Map::new());
    }
    serde_json::from_str(arguments).ok()
}
