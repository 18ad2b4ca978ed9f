//! Messages of a conversation, read to turns. Calls may have no ids in this API; those that are made up here connect a call
//! with its result.

use std::collections::VecDeque;

use serde_json::{Map, Value};

use crate::protocol::translate::{Conversation, Fields, Image, ImageSource, Part, Role, Turn, Wrong};

/// Types of images by the first characters of their base64, as their formats begin.
const IMAGES: [(&str, &str); 4] =
    [("iVBORw0KGgo", "image/png"), ("/9j/", "image/jpeg"), ("R0lGOD", "image/gif"), ("UklGR", "image/webp")];

/// Reads the messages of a request.
pub(super) fn read(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let list = fields.list("messages")?.ok_or_else(|| fields.missing("messages"))?;
    if list.is_empty() {
        // Such a request only loads a model, and the server of another API has it loaded.
        return Err(fields.wrong("empty_array", "messages", "must have at least one message"));
    }
    let mut reader = Reader { hints: &mut request.hints, calls: 0, pending: VecDeque::new() };
    for (n, message) in list.into_iter().enumerate() {
        request.turns.push(reader.message(Fields::of(message, format!("messages[{n}]"))?)?);
    }
    Ok(())
}

struct Reader<'h> {
    hints: &'h mut Vec<String>,
    /// Calls so far.
    calls: usize,
    /// Ids and names of calls without a result, in their order.
    pending: VecDeque<(String, String)>,
}

impl Reader<'_> {
    fn message(&mut self, mut message: Fields) -> Result<Turn, Wrong> {
        let at = message.at().to_owned();
        let role = message.required_text("role")?;
        let text = message.text("content")?.filter(|text| !text.is_empty());
        let mut parts = Vec::new();
        let thinking = message.text("thinking")?.filter(|text| !text.is_empty());
        let images = images(&mut message)?;
        let role = match role.as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => {
                parts.extend(thinking.map(|text| Part::Thinking { text, signature: None }));
                Role::Assistant
            }
            "tool" => {
                let content = text.map(Part::Text).into_iter().chain(images).collect();
                parts.push(self.result(&mut message, content)?);
                self.hints.extend(message.rest_names());
                return Ok(Turn { role: Role::User, parts, at });
            }
            _ => return Err(message.wrong("invalid_value", "role", "must be system, user, assistant or tool")),
        };
        parts.extend(text.map(Part::Text).into_iter().chain(images));
        self.tool_calls(&mut message, &mut parts)?;
        self.hints.extend(message.rest_names());
        Ok(Turn { role, parts, at })
    }

    /// Result of the call that the message names by id, else of the first call of the tool without a result.
    fn result(&mut self, message: &mut Fields, parts: Vec<Part>) -> Result<Part, Wrong> {
        let (id, name) = (message.text("tool_call_id")?, message.text("tool_name")?);
        let id = id.filter(|id| !id.is_empty());
        let at = match (&id, &name) {
            (Some(id), _) => self.pending.iter().position(|(pending, _)| pending == id),
            (None, Some(name)) => self.pending.iter().position(|(_, pending)| pending == name).or(Some(0)),
            (None, None) => Some(0),
        };
        let pending = at.and_then(|at| self.pending.remove(at)).map(|(id, _)| id);
        let id =
            id.or(pending).ok_or_else(|| message.wrong("invalid_value", "role", "has no call of a tool before it"))?;
        Ok(Part::ToolResult { id, parts, is_error: false })
    }

    fn tool_calls(&mut self, message: &mut Fields, parts: &mut Vec<Part>) -> Result<(), Wrong> {
        let at = message.name("tool_calls");
        for (n, call) in message.list("tool_calls")?.unwrap_or_default().into_iter().enumerate() {
            let mut call = Fields::of(call, format!("{at}[{n}]"))?;
            let mut function = call.object("function")?.ok_or_else(|| call.missing("function"))?;
            let name = function.required_text("name")?;
            let arguments = function.object("arguments")?.map_or_else(Map::new, Fields::into_map);
            let id = call.text("id")?.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call_{}", self.calls));
            self.calls = self.calls.saturating_add(1);
            self.pending.push_back((id.clone(), name.clone()));
            // The number of a call in its answer is its place in the list.
            let _ = (function.take("index"), call.take("type"));
            self.hints.extend(function.rest_names().into_iter().chain(call.rest_names()));
            parts.push(Part::ToolCall { id, name, arguments: Value::Object(arguments).to_string() });
        }
        Ok(())
    }
}

/// Takes the images of a message, which are base64 without their type.
pub(super) fn images(fields: &mut Fields) -> Result<Vec<Part>, Wrong> {
    let list = fields.texts("images")?.unwrap_or_default().into_iter().enumerate();
    let parts = list.map(|(n, data)| match IMAGES.iter().find(|(begin, _)| data.starts_with(begin)) {
        Some((_, media_type)) => {
            Ok(Part::Image(Image { source: ImageSource::Base64 { media_type: (*media_type).to_owned(), data } }))
        }
        None => {
            let what = "must be a PNG, JPEG, GIF or WebP image in base64";
            Err(fields.wrong("invalid_value", &format!("images[{n}]"), what))
        }
    });
    parts.collect()
}
