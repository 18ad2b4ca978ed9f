//! Reader of `tools`, `tool_choice` and the tool calls of earlier answers. Schemas stay JSON text, for the model and for the
//! grammar compiler.

use serde_json::Value;
use spillway_engine::{Tool, ToolCall};

use super::findings::Findings;
use super::format::Raw;
use crate::protocol::chat::ToolChoice;
use crate::protocol::refusals::shown;

/// Most tools in one request and calls in one message, as many as OpenAI accepts.
pub(in crate::protocol) const MAX_TOOLS: usize = 128;
/// Longest JSON text of the tools, or of the calls of one message, in bytes.
const MAX_BYTES: usize = 256 << 10;
/// Longest name of a tool in bytes, as in OpenAI's API.
const MAX_NAME: usize = 64;

/// Parses a field that was read as text. Returns `None` for `null`, and for invalid values, which `findings` records.
pub(in crate::protocol) fn value(raw: &Raw, param: &str, findings: &mut Findings) -> Option<Value> {
    let text = raw.text.as_deref().filter(|_| !raw.is_bad);
    if raw.is_bad || text.is_some_and(|text| text.len() > MAX_BYTES) {
        findings.wrong("invalid_value", param.to_owned(), "nests too deep, or has more than 256 KiB");
        return None;
    }
    serde_json::from_str(text?).ok()
}

/// Reads the tools of a request, each an object with its `type` and the `function`.
pub(in crate::protocol) fn tools(raw: &Raw, findings: &mut Findings) -> Vec<Tool> {
    list(raw, findings, ".function", |tool| tool.get_mut("function").map(Value::take))
}

/// Reads a list of tools, whose functions `take` takes from `path` below each.
pub(in crate::protocol) fn list(
    raw: &Raw,
    findings: &mut Findings,
    path: &'static str,
    take: impl Fn(&mut Value) -> Option<Value>,
) -> Vec<Tool> {
    let mut tools: Vec<Tool> = Vec::new();
    match value(raw, "tools", findings) {
        None => {}
        Some(Value::Array(list)) if list.len() > MAX_TOOLS => {
            findings.wrong("array_above_max_length", "tools", format!("must have at most {MAX_TOOLS} tools"));
        }
        Some(Value::Array(list)) => {
            for (n, mut tool) in list.into_iter().enumerate() {
                if !is_function(n, &tool, findings) {
                    continue;
                }
                let at = format!("tools[{n}]{path}");
                let Some(tool) = function(&at, take(&mut tool), findings) else { continue };
                if tools.iter().any(|other| other.name == tool.name) {
                    findings.wrong("invalid_value", format!("{at}.name"), "appears more than once");
                }
                tools.push(tool);
            }
        }
        Some(_) => findings.wrong("invalid_type", "tools", "must be a list of tools"),
    }
    tools
}

/// True if the `n`-th tool is a function; reports any other to `findings`.
fn is_function(n: usize, tool: &Value, findings: &mut Findings) -> bool {
    let at = format!("tools[{n}].type");
    match tool.get("type") {
        Some(Value::String(kind)) if kind == "function" => return true,
        Some(Value::String(kind)) => {
            let why = format!("the built-in model calls functions, not `{}`", shown(kind));
            findings.unsupported("unsupported_value", at, why);
        }
        _ => findings.wrong("missing_required_parameter", at, "must be `function`"),
    }
    false
}

/// Reads the function at the path `at`.
fn function(at: &str, written: Option<Value>, findings: &mut Findings) -> Option<Tool> {
    let Some(Value::Object(mut function)) = written else {
        findings.wrong("missing_required_parameter", at.to_owned(), "must be an object");
        return None;
    };
    let at = |field: &str| format!("{at}.{field}");
    let name = function.get("name").and_then(Value::as_str).filter(|name| is_name(name)).map(str::to_owned);
    let Some(name) = name else {
        let what = format!("must be 1 to {MAX_NAME} letters, digits, `_` or `-`");
        findings.wrong("invalid_value", at("name"), what);
        return None;
    };
    if !matches!(function.get("description"), None | Some(Value::Null | Value::String(_))) {
        findings.wrong("invalid_type", at("description"), "must be a string");
    }
    if !matches!(function.get("parameters"), None | Some(Value::Null | Value::Object(_))) {
        findings.wrong("invalid_type", at("parameters"), "must be a JSON Schema");
    }
    let is_strict = match function.shift_remove("strict") {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(_) => {
            findings.wrong("invalid_type", at("strict"), "must be true or false");
            false
        }
    };
    function.retain(|_, field| !field.is_null());
    for other in function.keys().filter(|key| !is_read(key)) {
        findings.ignore(at(&shown(other)));
    }
    function.retain(|key, _| is_read(key));
    Some(Tool { name, function: Value::Object(function).to_string(), is_strict })
}

/// True for the fields of a function that the model sees.
fn is_read(key: &str) -> bool {
    matches!(key, "name" | "description" | "parameters")
}

/// True for a name that a tool may have.
pub(in crate::protocol) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// Reads `tool_choice`.
pub(super) fn choice(raw: &Raw, findings: &mut Findings) -> ToolChoice {
    let Some(choice) = value(raw, "tool_choice", findings) else { return ToolChoice::Auto };
    match &choice {
        Value::String(word) if word == "auto" => return ToolChoice::Auto,
        Value::String(word) if word == "none" => return ToolChoice::None,
        Value::String(word) if word == "required" => return ToolChoice::Required,
        Value::Object(fields) if fields.get("type").is_some_and(|kind| kind == "function") => {
            if let Some(name) = choice.pointer("/function/name").and_then(Value::as_str) {
                return ToolChoice::Named(name.to_owned());
            }
            findings.wrong("missing_required_parameter", "tool_choice.function.name", "must be a string");
        }
        Value::Object(fields) if fields.get("type").is_some_and(Value::is_string) => {
            let why = "the built-in model does not implement this value";
            findings.unsupported("unsupported_value", "tool_choice.type", why);
        }
        _ => findings.wrong("invalid_value", "tool_choice", "must be none, auto, required, or name a function"),
    }
    ToolChoice::Auto
}

/// Reads the tool calls of the message with the index `at`.
pub(in crate::protocol) fn calls(raw: &Raw, at: usize, findings: &mut Findings) -> Vec<ToolCall> {
    let param = format!("messages[{at}].tool_calls");
    let list = match value(raw, &param, findings) {
        None => return Vec::new(),
        Some(Value::Array(list)) if list.len() <= MAX_TOOLS => list,
        Some(_) => {
            findings.wrong("invalid_type", param, format!("must be a list of at most {MAX_TOOLS} calls"));
            return Vec::new();
        }
    };
    let mut calls = Vec::new();
    for (n, call) in list.iter().enumerate() {
        let text = |path: &str| call.pointer(path).and_then(Value::as_str).map(str::to_owned);
        if text("/type").is_some_and(|kind| kind != "function") {
            let why = "the built-in model calls functions only";
            findings.unsupported("unsupported_value", format!("{param}[{n}].type"), why);
            continue;
        }
        match (text("/id"), text("/function/name"), text("/function/arguments")) {
            (Some(id), Some(name), Some(arguments)) if is_name(&name) => calls.push(ToolCall { id, name, arguments }),
            _ => findings.wrong(
                "invalid_value",
                format!("{param}[{n}]"),
                "must have an `id` and a `function` with its `name` and its `arguments` as text",
            ),
        }
    }
    calls
}
