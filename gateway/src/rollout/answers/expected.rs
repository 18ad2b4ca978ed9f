//! Tools and form that a request asks of its answer, whatever its API. Unknown members are skipped.

#![allow(clippy::indexing_slicing, reason = "a value of JSON is null where it has no such key")]

use std::collections::BTreeMap;

use serde_json::Value;

/// Deepest level of tools within tools, as some APIs group them.
const MOST_GROUPS: usize = 4;

/// Form that an answer must have.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Form {
    /// Any text.
    #[default]
    Text,
    /// Any JSON.
    Json,
    /// A JSON object.
    Object,
    /// JSON that satisfies this schema.
    Schema(Value),
}

/// Expectation of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Expected {
    /// Schemas of the tools that it declares, by their names; `None` of a tool without one.
    pub tools: BTreeMap<String, Option<Value>>,
    /// True if its server may know further tools, by a prompt that it has stored.
    pub may_have_more: bool,
    /// Form of the answer.
    pub form: Form,
}

impl Expected {
    /// Reads the body of a request; `None` for one that is no JSON object.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok().filter(Value::is_object)?;
        let mut expected = Self { may_have_more: body["prompt"].is_object(), ..Self::default() };
        for list in ["tools", "functions"] {
            expected.tools(&body[list], MOST_GROUPS);
        }
        expected.form = form(&body);
        Some(expected)
    }

    fn tools(&mut self, list: &Value, levels: usize) {
        for tool in list.as_array().into_iter().flatten() {
            if levels > 0 {
                self.tools(&tool["tools"], levels - 1);
            }
            // OpenAI's Chat and Ollama wrap a tool, the other APIs do not.
            let wrapped = [&tool["function"], &tool["custom"]].into_iter().find(|inner| inner.is_object());
            let inner = wrapped.unwrap_or(tool);
            let Some(name) = inner["name"].as_str() else { continue };
            let schema =
                ["parameters", "input_schema"].iter().map(|key| &inner[*key]).find(|schema| schema.is_object());
            self.tools.insert(name.to_owned(), schema.cloned());
        }
    }
}

/// Form that a request asks for in any of the APIs.
fn form(body: &Value) -> Form {
    // Ollama: `json`, or a schema.
    match &body["format"] {
        Value::String(name) if name == "json" => return Form::Json,
        schema @ Value::Object(_) => return Form::Schema(schema.clone()),
        _ => {}
    }
    // Chat Completions, Responses, and both spellings of Messages.
    let places =
        [&body["response_format"], &body["text"]["format"], &body["output_format"], &body["output_config"]["format"]];
    let Some(format) = places.into_iter().find(|format| format.is_object()) else { return Form::Text };
    let schema = [&format["json_schema"]["schema"], &format["schema"]].into_iter().find(|schema| schema.is_object());
    match (format["type"].as_str(), schema) {
        (Some("json_schema" | "json_object"), Some(schema)) => Form::Schema(schema.clone()),
        (Some("json_object"), None) => Form::Object,
        // A server may have one of its own where the request names none.
        (Some("json_schema"), None) => Form::Json,
        _ => Form::Text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tools_of_all_apis_are_read() {
        let schema = json!({"type": "object"});
        for body in [
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}),
            json!({"functions": [{"name": "f", "parameters": schema}]}),
            json!({"tools": [{"type": "function", "name": "f", "parameters": schema}, {"type": "web_search"}]}),
            json!({"tools": [{"type": "namespace", "tools": [{"type": "function", "name": "f", "parameters": schema}]}]}),
            json!({"tools": [{"name": "f", "input_schema": schema}]}),
        ] {
            let read = Expected::read(body.to_string().as_bytes()).unwrap();
            assert_eq!(read.tools, [("f".to_owned(), Some(schema.clone()))].into(), "{body}");
            assert_eq!((read.form, read.may_have_more), (Form::Text, false));
        }
        let custom = br#"{"tools": [{"type": "custom", "custom": {"name": "c"}}], "prompt": {"id": "p"}}"#;
        let read = Expected::read(custom).unwrap();
        assert_eq!((read.tools, read.may_have_more), ([("c".to_owned(), None)].into(), true));
        for garbage in [&b"[1]"[..], b"", b"{", b"\xff"] {
            assert_eq!(Expected::read(garbage), None);
        }
        assert_eq!(Expected::read(br#"{"tools": 5, "format": 7, "text": []}"#), Some(Expected::default()));
    }

    #[test]
    fn forms_of_all_apis_are_read() {
        let schema = json!({"type": "object"});
        let with_schema = Form::Schema(schema.clone());
        for (body, form) in [
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}),
                &with_schema,
            ),
            (json!({"response_format": {"type": "json_object", "schema": schema}}), &with_schema),
            (json!({"response_format": {"type": "json_object"}}), &Form::Object),
            (json!({"response_format": {"type": "text"}}), &Form::Text),
            (json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}}), &with_schema),
            (json!({"text": {"format": {"type": "json_object"}}}), &Form::Object),
            (json!({"output_format": {"type": "json_schema", "schema": schema}}), &with_schema),
            (json!({"output_config": {"format": {"type": "json_schema", "schema": schema}}}), &with_schema),
            (json!({"format": schema}), &with_schema),
            (json!({"format": "json"}), &Form::Json),
            (json!({"format": ""}), &Form::Text),
        ] {
            assert_eq!(&Expected::read(body.to_string().as_bytes()).unwrap().form, form, "{body}");
        }
    }
}
