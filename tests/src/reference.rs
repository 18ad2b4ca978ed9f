//! Configuration reference, generated from the output of `spillway schema`, so that the page matches the checks.

use std::fmt::Write;

use serde_json::Value;

const HEAD: &str = "# Configuration reference

Every key, as `spillway schema` knows it; made from that schema (`SPILLWAY_UPDATE_DOCS=1 make test` writes it anew). The
language by example is [config/examples/gateway.yaml](../config/examples/gateway.yaml). A key that is not here is refused.

";

/// Renders the page.
pub fn reference(schema: &Value) -> String {
    let mut page = HEAD.to_owned();
    page.push_str("## The file\n\n");
    table(&mut page, schema);
    let defs = schema["$defs"].as_object().unwrap();
    for (name, def) in defs.iter().filter(|(_, def)| is_section(def)) {
        write!(page, "\n## {name}\n\n{}\n\n", def["description"].as_str().unwrap_or_default()).unwrap();
        if def["properties"].is_object() {
            table(&mut page, def);
        } else {
            page.push_str("One of:\n\n");
            for branch in def["oneOf"].as_array().unwrap() {
                let text = branch["description"].as_str().unwrap_or_default();
                if let Some(value) = branch.get("const") {
                    writeln!(page, "- `{}`: {text}", value.as_str().unwrap()).unwrap();
                    continue;
                }
                for (key, value) in branch["properties"].as_object().unwrap() {
                    let text = if text.is_empty() { value["description"].as_str().unwrap_or_default() } else { text };
                    if value["properties"].is_object() {
                        write!(page, "\n### {key}\n\n{text}\n\n").unwrap();
                        table(&mut page, value);
                    } else {
                        writeln!(page, "- `{{{key}: ...}}` ({}): {text}", kind(value)).unwrap();
                    }
                }
            }
        }
    }
    page.push_str("\n## Values\n\n| type | how it is written | for example |\n|---|---|---|\n");
    for (name, def) in defs.iter().filter(|(_, def)| !is_section(def)) {
        let examples = def["examples"].as_array().map(|all| all.iter().map(code).collect::<Vec<_>>().join(", "));
        let said = def["description"].as_str().unwrap_or_default();
        let row = format!(
            "| <a id=\"{}\"></a>{name} | {} | {} |",
            name.to_lowercase(),
            cell(said),
            examples.unwrap_or_default()
        );
        writeln!(page, "{row}").unwrap();
    }
    page
}

/// True for definitions with keys or branches, which get a section; the others are lines in the table of values.
fn is_section(def: &Value) -> bool {
    let branches = def["oneOf"].as_array();
    def["properties"].is_object()
        || branches.is_some_and(|all| all.iter().all(|b| b.get("const").is_some() || b["properties"].is_object()))
}

fn table(page: &mut String, object: &Value) {
    page.push_str("| key | type | default | |\n|---|---|---|---|\n");
    let required = object["required"].as_array().cloned().unwrap_or_default();
    for (key, value) in object["properties"].as_object().unwrap() {
        let default = match value.get("default") {
            _ if required.contains(&Value::from(key.as_str())) => "required".to_owned(),
            None | Some(Value::Null) => String::new(),
            Some(value) => code(value),
        };
        let text = cell(value["description"].as_str().unwrap_or_default());
        writeln!(page, "| `{key}` | {} | {} | {text} |", kind(value), default.replace('|', "\\|")).unwrap();
    }
}

/// Renders a type, with a link if it has a section.
fn kind(value: &Value) -> String {
    if let Some(to) = value["$ref"].as_str() {
        let name = to.rsplit('/').next().unwrap();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(value) = value.get("const") {
        return code(value);
    }
    if let Some(values) = value["enum"].as_array() {
        return values.iter().filter(|v| !v.is_null()).map(code).collect::<Vec<_>>().join(" or ");
    }
    for several in ["anyOf", "oneOf"] {
        if let Some(kinds) = value[several].as_array() {
            let kinds = kinds.iter().filter(|kind| kind["type"] != "null").map(kind);
            return kinds.collect::<Vec<_>>().join(" or ");
        }
    }
    let named = match &value["type"] {
        Value::Array(all) => all.iter().find(|kind| *kind != "null").and_then(Value::as_str),
        one => one.as_str(),
    };
    match named {
        Some("array") => format!("list of {}", kind(&value["items"])),
        Some("object") if value["additionalProperties"].is_object() => {
            format!("names, each with {}", kind(&value["additionalProperties"]))
        }
        Some("boolean") => "`true` or `false`".to_owned(),
        Some("integer") => match value["minimum"].as_u64() {
            Some(least) if least > 0 => format!("whole number from {least}"),
            _ => "whole number".to_owned(),
        },
        Some(other) => other.to_owned(),
        None => "anything".to_owned(),
    }
}

fn code(value: &Value) -> String {
    match value {
        Value::String(text) => format!("`{text}`"),
        Value::Array(all) if all.is_empty() => "none".to_owned(),
        Value::Object(all) if all.is_empty() => "none".to_owned(),
        other => format!("`{other}`"),
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
