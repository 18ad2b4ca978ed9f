//! Reader of JSON objects of requests field by field, with the name of each for messages. The parser bounds the depth of a
//! body; its size is bounded by the route.

use std::fmt::Display;

use serde_json::{Map, Number, Value};
use spillway_filter::Refusal;

use super::{Conversation, ToolPick};
use crate::protocol::refusals::shown;

/// Refusal of an invalid field.
pub(in crate::protocol) type Wrong = Refusal;

/// Name of a field below another one.
pub(in crate::protocol) fn named(at: &str, field: &str) -> String {
    if at.is_empty() { field.to_owned() } else { format!("{at}.{field}") }
}

/// Reads a body that must be one JSON object.
pub(in crate::protocol) fn json_object(body: &[u8]) -> Result<Map<String, Value>, Wrong> {
    serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            // The library's message would repeat the value.
            return Refusal::invalid("invalid_json", "The body must be a JSON object.");
        }
        Refusal::invalid("invalid_json", format!("The body is not valid JSON: {error}."))
    })
}

/// Object whose fields are taken one after another; `null` counts as absent.
pub(in crate::protocol) struct Fields {
    map: Map<String, Value>,
    at: String,
}

impl Fields {
    /// Fields of an object under `at`, which is empty for a body.
    pub(in crate::protocol) fn new(map: Map<String, Value>, at: impl Into<String>) -> Self {
        Self { map, at: at.into() }
    }

    /// Fields of a value that must be an object.
    pub(in crate::protocol) fn of(value: Value, at: impl Into<String>) -> Result<Self, Wrong> {
        let at = at.into();
        match value {
            Value::Object(map) => Ok(Self { map, at }),
            _ => Err(wrong("invalid_type", &at, "must be an object")),
        }
    }

    /// Name of a field in the request.
    pub(in crate::protocol) fn name(&self, field: &str) -> String {
        named(&self.at, field)
    }

    /// Field of the request that holds the object.
    pub(in crate::protocol) fn at(&self) -> &str {
        &self.at
    }

    /// Refusal of a field of the object.
    pub(in crate::protocol) fn wrong(&self, code: &'static str, field: &str, what: impl Display) -> Wrong {
        wrong(code, &self.name(field), what)
    }

    /// Refusal of a field that must be there.
    pub(in crate::protocol) fn missing(&self, field: &str) -> Wrong {
        self.wrong("missing_required_parameter", field, "is missing")
    }

    /// Takes any value.
    pub(in crate::protocol) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.shift_remove(field).filter(|value| !value.is_null())
    }

    /// Takes a text.
    pub(in crate::protocol) fn text(&mut self, field: &str) -> Result<Option<String>, Wrong> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong("invalid_type", field, "must be a string")),
        }
    }

    /// Takes a text that must be there.
    pub(in crate::protocol) fn required_text(&mut self, field: &str) -> Result<String, Wrong> {
        self.text(field)?.ok_or_else(|| self.missing(field))
    }

    /// Takes true or false.
    pub(in crate::protocol) fn flag(&mut self, field: &str) -> Result<Option<bool>, Wrong> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.wrong("invalid_type", field, "must be true or false")),
        }
    }

    /// Takes a whole number that is not below zero.
    pub(in crate::protocol) fn count(&mut self, field: &str) -> Result<Option<u64>, Wrong> {
        match self.take(field) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(count) => Ok(Some(count)),
                None if value.is_number() => {
                    Err(self.wrong("invalid_value", field, "must be a whole number that is not below 0"))
                }
                None => Err(self.wrong("invalid_type", field, "must be a whole number")),
            },
        }
    }

    /// Takes a number.
    pub(in crate::protocol) fn number(&mut self, field: &str) -> Result<Option<Number>, Wrong> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(Some(number)),
            Some(_) => Err(self.wrong("invalid_type", field, "must be a number")),
        }
    }

    /// Takes a list.
    pub(in crate::protocol) fn list(&mut self, field: &str) -> Result<Option<Vec<Value>>, Wrong> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong("invalid_type", field, "must be a list")),
        }
    }

    /// Takes an object.
    pub(in crate::protocol) fn object(&mut self, field: &str) -> Result<Option<Fields>, Wrong> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self::new(map, self.name(field)))),
            Some(_) => Err(self.wrong("invalid_type", field, "must be an object")),
        }
    }

    /// Takes a list of texts.
    pub(in crate::protocol) fn texts(&mut self, field: &str) -> Result<Option<Vec<String>>, Wrong> {
        let Some(list) = self.list(field)? else { return Ok(None) };
        let texts = list.into_iter().map(|value| match value {
            Value::String(text) => Ok(text),
            _ => Err(self.wrong("invalid_type", field, "must be a list of strings")),
        });
        texts.collect::<Result<_, _>>().map(Some)
    }

    /// Takes a field that changes no answer; adds its name to `hints` if it is there.
    pub(in crate::protocol) fn hint(&mut self, field: &str, hints: &mut Vec<String>) {
        if self.take(field).is_some() {
            hints.push(self.name(field));
        }
    }

    /// The fields that are left, without those that are `null`.
    pub(in crate::protocol) fn rest(self) -> impl Iterator<Item = (String, Value)> {
        self.map.into_iter().filter(|(_, value)| !value.is_null())
    }

    /// Names of the fields that are left, as in the request.
    pub(in crate::protocol) fn rest_names(self) -> Vec<String> {
        let at = self.at.clone();
        self.rest().map(|(field, _)| named(&at, &shown(&field))).collect()
    }

    /// The object as it is now.
    pub(in crate::protocol) fn into_map(self) -> Map<String, Value> {
        self.map
    }
}

/// Settles the choice between tools of a request without any: one that wants a call is refused, as OpenAI's servers do, and any
/// other has no effect.
///
/// # Errors
/// `tool_choice` wants a call.
pub(in crate::protocol) fn choice_without_tools(fields: &Fields, request: &mut Conversation) -> Result<(), Wrong> {
    if !request.tools.is_empty() {
        return Ok(());
    }
    if matches!(request.tool_pick, Some(ToolPick::Required | ToolPick::Named(_))) {
        return Err(fields.wrong("invalid_value", "tool_choice", "needs `tools`"));
    }
    let without_effect = [
        ("tool_choice", request.tool_pick.take().is_some()),
        ("parallel_tool_calls", std::mem::take(&mut request.one_tool_call)),
    ];
    request.hints.extend(without_effect.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name.to_owned()));
    Ok(())
}

fn wrong(code: &'static str, name: &str, what: impl Display) -> Wrong {
    let name = if name.is_empty() { "body".to_owned() } else { shown_path(name) };
    Refusal::invalid(code, format!("`{name}` {what}.")).param(name)
}

/// Name of a field, whose parts a caller may have chosen, in the form in which a message may repeat it.
fn shown_path(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(128).collect()
}

/// Sets a field of a value that is an object.
pub(in crate::protocol) fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Value::Object(map) = object {
        map.insert(field.to_owned(), value.into());
    }
}
