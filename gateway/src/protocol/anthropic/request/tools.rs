//! `tools` and `tool_choice`.

use serde_json::{Map, Value, json};

use crate::protocol::translate::{Conversation, Fields, ToolPick, ToolSpec, Wrong, set};

/// Fields of a tool that change no answer.
const HINTS: [&str; 3] = ["cache_control", "eager_input_streaming", "input_examples"];

/// Reads the tools of a request and the choice between them.
pub(super) fn read(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    for (n, tool) in fields.list("tools")?.unwrap_or_default().into_iter().enumerate() {
        let tool = Fields::of(tool, format!("tools[{n}]"))?;
        request.tools.push(one(tool, &mut request.hints)?);
    }
    let Some(mut choice) = fields.object("tool_choice")? else { return Ok(()) };
    let pick = match choice.required_text("type")?.as_str() {
        "auto" => ToolPick::Auto,
        "any" => ToolPick::Required,
        "none" => ToolPick::None,
        "tool" => ToolPick::Named(choice.required_text("name")?),
        _ => return Err(choice.wrong("invalid_value", "type", "must be auto, any, tool or none")),
    };
    let has_tool = |name: &str| {
        request.tools.iter().any(|tool| match tool {
            ToolSpec::Function { name: known, .. } => known == name,
            // It has its name in its own shape.
            ToolSpec::Other { .. } => true,
        })
    };
    match &pick {
        ToolPick::Required if request.tools.is_empty() => {
            return Err(choice.wrong("invalid_value", "type", "needs `tools`"));
        }
        ToolPick::Named(name) if !has_tool(name) => {
            return Err(choice.wrong("invalid_value", "name", "is none of `tools`"));
        }
        _ => {}
    }
    request.one_tool_call = choice.flag("disable_parallel_tool_use")?.unwrap_or(false);
    request.tool_pick = Some(pick);
    request.hints.extend(choice.rest_names());
    if request.tools.is_empty() {
        // Without tools it has no effect.
        (request.one_tool_call, request.tool_pick) = (false, None);
        request.hints.push("tool_choice".to_owned());
    }
    Ok(())
}

fn one(mut tool: Fields, hints: &mut Vec<String>) -> Result<ToolSpec, Wrong> {
    let kind = tool.text("type")?.unwrap_or_else(|| "custom".to_owned());
    if kind != "custom" {
        return Ok(ToolSpec::Other { at: tool.at().to_owned(), kind });
    }
    let name = tool.required_text("name")?;
    let description = tool.text("description")?;
    let parameters = tool.object("input_schema")?.ok_or_else(|| tool.missing("input_schema"))?;
    let strict = tool.flag("strict")?;
    for field in HINTS {
        tool.hint(field, hints);
    }
    let is_deferred = tool.flag("defer_loading")? == Some(true);
    let is_for_code = tool.texts("allowed_callers")?.is_some_and(|callers| callers.iter().any(|one| one != "direct"));
    if is_deferred || is_for_code {
        let kind = if is_deferred { "defer_loading" } else { "allowed_callers" };
        return Ok(ToolSpec::Other { at: tool.at().to_owned(), kind: kind.to_owned() });
    }
    hints.extend(tool.rest_names());
    Ok(ToolSpec::Function { name, description, parameters: Some(parameters.into_map()), strict })
}

/// Writes a function as a tool of the API.
pub(super) fn write(tool: &ToolSpec) -> Option<Value> {
    let ToolSpec::Function { name, description, parameters, strict } = tool else { return None };
    let mut written = Map::new();
    written.insert("name".to_owned(), name.as_str().into());
    if let Some(description) = description {
        written.insert("description".to_owned(), description.as_str().into());
    }
    // The API requires a schema, also of a function without parameters.
    let schema = parameters.clone().map_or_else(|| json!({"type": "object", "properties": {}}), Value::Object);
    written.insert("input_schema".to_owned(), schema);
    if let Some(strict) = strict {
        written.insert("strict".to_owned(), (*strict).into());
    }
    Some(Value::Object(written))
}

/// Writes the choice between tools; `None` where nothing was chosen.
pub(super) fn write_pick(pick: Option<&ToolPick>, one_tool_call: bool) -> Option<Value> {
    let mut written = match pick {
        None if one_tool_call => json!({"type": "auto"}),
        None => return None,
        Some(ToolPick::Auto) => json!({"type": "auto"}),
        Some(ToolPick::None) => return Some(json!({"type": "none"})),
        Some(ToolPick::Required) => json!({"type": "any"}),
        Some(ToolPick::Named(name)) => json!({"type": "tool", "name": name}),
    };
    if one_tool_call {
        set(&mut written, "disable_parallel_tool_use", true);
    }
    Some(written)
}
