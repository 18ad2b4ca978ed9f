//! `configuration/`: every key by its YAML path, one page for each top-level key, from the schema that the program checks.
//! A type that stands in several places is described at the first and linked from the others.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::examples::examples_of;
use super::{GENERATED, cell};
use crate::pages::{Page, pages as all_pages, slug};

/// Keys that cannot change while the process runs, each with an edit that tries it: a top-level key, and what it is to be.
const RESTART: &[(&str, &str, &str)] = &[
    ("admin", "admin", "{address: \"127.0.0.1:0\", maxConnections: 8}"),
    ("telemetry.logs.format", "telemetry", "{logs: {format: text}}"),
    ("limits.bufferedAnswers", "limits", "{bufferedAnswers: 8MiB}"),
    ("limits.modelMemory", "limits", "{modelMemory: 2GiB}"),
    ("limits.limitKeys", "limits", "{limitKeys: 2048}"),
    ("state.budgets.sqlite", "state", "{budgets: {sqlite: other.db}}"),
];

/// Keys that need a restart, for a test that edits each: its path, a top-level key, and what it is to be.
pub fn restarts() -> &'static [(&'static str, &'static str, &'static str)] {
    RESTART
}

/// An object of the configuration.
struct Section {
    path: String,
    page: String,
    text: String,
    /// Rows of its table.
    rows: Vec<Row>,
}

/// A key.
struct Row {
    key: String,
    path: String,
    kind: String,
    default: String,
    text: String,
    /// Values of a key that has a few, each with its meaning.
    values: Vec<(String, String)>,
}

/// State of the walk through the schema.
struct Walk<'s> {
    defs: &'s Value,
    sections: Vec<Section>,
    /// The first path of each named object, and its page.
    described: BTreeMap<&'s str, (String, String)>,
}

/// The name of a type and its schema; of a type that may be null, of the other.
fn resolve<'s>(defs: &'s Value, schema: &'s Value) -> (Option<&'s str>, &'s Value) {
    if let Some(to) = schema["$ref"].as_str() {
        let name = to.rsplit('/').next().unwrap();
        return (Some(name), &defs[name]);
    }
    if let Some(kinds) = schema["anyOf"].as_array() {
        let mut others = kinds.iter().filter(|kind| kind["type"] != "null");
        if let (Some(one), None) = (others.next(), others.next()) {
            return resolve(defs, one);
        }
    }
    (None, schema)
}

fn is_object(schema: &Value) -> bool {
    schema["properties"].is_object() || (schema["type"] == "object" && schema["additionalProperties"] == false)
}

/// The one property of a branch such as `{header: ...}`.
fn only_property(branch: &Value) -> Option<(&String, &Value)> {
    branch["properties"].as_object()?.iter().next()
}

/// True for a list of objects with one key each, which is how filters are written.
fn is_family(schema: &Value) -> bool {
    let branches = schema["oneOf"].as_array();
    branches.is_some_and(|all| all.iter().any(|b| only_property(b).is_some_and(|(_, value)| is_object(value))))
}

/// A value that is written in one piece, with a line in the table of values.
fn is_value(name: Option<&str>, schema: &Value) -> bool {
    name.is_some_and(|name| name == "Secret") || (name.is_some() && schema["oneOf"].is_null() && !is_object(schema))
}

fn link(from: &str, page: &str, anchor: &str) -> String {
    if from == page { format!("#{anchor}") } else { format!("{page}.md#{anchor}") }
}

impl<'s> Walk<'s> {
    fn object(&mut self, path: &str, page: &str, schema: &'s Value, text: &str) {
        let place = self.sections.len();
        self.sections.push(Section {
            path: path.to_owned(),
            page: page.to_owned(),
            text: text.to_owned(),
            rows: Vec::new(),
        });
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let mut rows = Vec::new();
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let page = if self.sections[place].path.is_empty() { key.clone() } else { page.to_owned() };
            let is_required = required.contains(&Value::from(key.as_str()));
            let mut row = self.row(&path, &page, key, property);
            if is_required {
                row.default = "required".to_owned();
            }
            rows.push(row);
        }
        self.sections[place].rows = rows;
    }

    /// A filter or another member of a family: a section with a row for each, and a section for each object.
    fn family(&mut self, path: &str, page: &str, schema: &'s Value) {
        let place = self.sections.len();
        let text = schema["description"].as_str().unwrap_or_default();
        self.sections.push(Section {
            path: path.to_owned(),
            page: page.to_owned(),
            text: text.to_owned(),
            rows: Vec::new(),
        });
        let branches = schema["oneOf"].as_array().unwrap();
        let rows = branches
            .iter()
            .filter_map(only_property)
            .map(|(key, value)| self.row(&format!("{path}.{key}"), page, key, value));
        self.sections[place].rows = rows.collect();
    }

    fn row(&mut self, path: &str, page: &str, key: &str, property: &'s Value) -> Row {
        let text = property["description"].as_str();
        let (name, schema) = resolve(self.defs, property);
        let text = text.or_else(|| schema["description"].as_str()).unwrap_or_default();
        let mut values = Vec::new();
        let kind = self.kind(path, page, property, &mut values);
        let default = match property.get("default") {
            None | Some(Value::Null) => String::new(),
            Some(Value::Array(all)) if all.is_empty() => "none".to_owned(),
            Some(Value::Object(_)) if is_object(schema) => "as its keys".to_owned(),
            Some(Value::Object(all)) if all.is_empty() => "none".to_owned(),
            Some(value) => code(value),
        };
        let _ = name;
        let mut text = text.to_owned();
        if RESTART.iter().any(|(restart, ..)| *restart == path) {
            text += " A change needs a restart.";
        }
        Row { key: key.to_owned(), path: path.to_owned(), kind, default, text, values }
    }

    /// The type of a key; objects in it get their sections.
    fn kind(&mut self, path: &str, page: &str, schema: &'s Value, values: &mut Vec<(String, String)>) -> String {
        let (name, resolved) = resolve(self.defs, schema);
        if is_value(name, resolved) {
            let name = name.unwrap();
            let constraint = bounds(resolved);
            return format!("[{}](README.md#{}){constraint}", words(name), name.to_ascii_lowercase());
        }
        if is_family(resolved) {
            self.family(path, page, resolved);
            return format!("[filter]({})", link(page, page, &slug(path)));
        }
        if is_object(resolved) {
            if let Some((first, of)) = name.and_then(|name| self.described.get(name)) {
                return format!("object as [`{first}`]({})", link(page, of, &slug(first)));
            }
            if let Some(name) = name {
                self.described.insert(name, (path.to_owned(), page.to_owned()));
            }
            // What the type says goes before what is said of the key, where both speak.
            let text = resolved["description"].as_str().or_else(|| schema["description"].as_str()).unwrap_or_default();
            let text = text.to_owned();
            self.object(path, page, resolved, &text);
            return format!("[object]({})", link(page, page, &slug(path)));
        }
        if let Some(branches) = resolved["oneOf"].as_array() {
            let mut written = Vec::new();
            for branch in branches {
                let text = branch["description"].as_str().unwrap_or_default();
                if let Some(value) = branch.get("const") {
                    written.push(code(value));
                    values.push((code(value), text.to_owned()));
                } else if let Some((key, value)) = only_property(branch) {
                    let inner = self.kind(path, page, value, &mut Vec::new());
                    let text = if text.is_empty() { value["description"].as_str().unwrap_or_default() } else { text };
                    written.push(format!("`{{{key}: ...}}`"));
                    values.push((format!("`{{{key}: ...}}` ({inner})"), text.to_owned()));
                }
            }
            let last = written.pop().unwrap_or_default();
            return if written.is_empty() { last } else { format!("{} or {last}", written.join(", ")) };
        }
        let named = match &resolved["type"] {
            Value::Array(all) => all.iter().find(|kind| *kind != "null").and_then(Value::as_str),
            one => one.as_str(),
        };
        match named {
            Some("array") => format!("list of {}", self.kind(&format!("{path}[]"), page, &resolved["items"], values)),
            Some("object") => {
                let inner = self.kind(&format!("{path}.NAME"), page, &resolved["additionalProperties"], values);
                format!("names, each with {inner}")
            }
            Some("boolean") => "`true` or `false`".to_owned(),
            Some("integer") => format!("whole number{}", bounds(resolved)),
            Some("number") => format!("number{}", bounds(resolved)),
            Some("string") => "text".to_owned(),
            other => other.unwrap_or("anything").to_owned(),
        }
    }
}

/// The least and the greatest value, where the schema has them.
fn bounds(schema: &Value) -> String {
    let number = |key: &str| {
        schema
            .get(key)
            .filter(|value| value.is_number())
            .map(|value| value.to_string().trim_end_matches(".0").to_owned())
    };
    match (number("minimum"), number("maximum")) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        (Some(least), None) if least != "0" => format!(" from {least}"),
        (None, Some(most)) => format!(", at most {most}"),
        _ => String::new(),
    }
}

/// A name such as `ListenAddress` as words.
fn words(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

fn code(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "`\"\"`".to_owned(),
        Value::String(text) => format!("`{text}`"),
        Value::Array(all) => {
            let all: Vec<String> =
                all.iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).collect();
            format!("`[{}]`", all.join(", "))
        }
        other => format!("`{other}`"),
    }
}

/// Links to how-to pages that name a section, by the section's page and anchor.
fn how_to() -> BTreeMap<(String, String), Vec<String>> {
    let mut found: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for Page { path, text } in all_pages().iter().filter(|page| page.path.starts_with("docs/how-to/")) {
        let title = text.lines().next().unwrap().trim_start_matches("# ");
        let page = Page { path: path.clone(), text: text.clone() };
        for target in page.links() {
            let Some((file, anchor)) =
                target.strip_prefix("../reference/configuration/").and_then(|l| l.split_once(".md#"))
            else {
                continue;
            };
            let links = found.entry((file.to_owned(), anchor.to_owned())).or_default();
            let link = format!("[{title}](../../how-to/{})", path.rsplit('/').next().unwrap());
            if !links.contains(&link) {
                links.push(link);
            }
        }
    }
    found
}

fn table(page: &mut String, rows: &[Row]) {
    page.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
    for Row { key, kind, default, text, .. } in rows {
        writeln!(page, "| `{key}` | {} | {} | {} |", cell(kind), cell(default), cell(text)).unwrap();
    }
    for Row { key, values, .. } in rows.iter().filter(|row| !row.values.is_empty()) {
        write!(page, "\nValues of `{key}`:\n\n").unwrap();
        for (value, text) in values {
            writeln!(page, "- {value}: {}", text.replace('\n', " ")).unwrap();
        }
    }
}

/// Renders the pages.
pub(super) fn pages(schema: &Value) -> Vec<(String, String)> {
    let mut walk = Walk { defs: &schema["$defs"], sections: Vec::new(), described: BTreeMap::new() };
    walk.object("", "README", schema, "");
    let how_to = how_to();
    let mut pages: BTreeMap<String, String> = BTreeMap::new();
    let sections = &walk.sections;
    assert!(sections.len() > 70, "only {} sections were made of the schema", sections.len());
    for section in &sections[1..] {
        let page = pages.entry(section.page.clone()).or_insert_with(|| {
            let key = section.page.as_str();
            let top = sections[0].rows.iter().find(|row| row.key == key).unwrap();
            format!("# Configuration: `{key}`\n\n{GENERATED}\n\n{}\n", top.text.replace('\n', " "))
        });
        write!(page, "\n## `{}`\n\n", section.path).unwrap();
        if !section.text.is_empty() {
            write!(page, "{}\n\n", section.text).unwrap();
        }
        if section.rows.is_empty() {
            page.push_str("It has no keys: write `{}`.\n");
        } else {
            table(page, &section.rows);
        }
        for example in examples_of(&section.path) {
            write!(page, "\n```yaml\n{example}```\n").unwrap();
        }
        if let Some(links) = how_to.get(&(section.page.clone(), slug(&section.path))) {
            write!(page, "\nHow-to: {}.\n", links.join(", ")).unwrap();
        }
    }
    pages.insert("README".to_owned(), index(schema, sections));
    pages.into_iter().map(|(name, text)| (format!("configuration/{name}.md"), text)).collect()
}

/// The page of all top-level keys, all values and all paths.
fn index(schema: &Value, sections: &[Section]) -> String {
    let mut page = format!(
        "# Configuration

{GENERATED}

Every key, as `spillway schema` knows it; a key that is not here is refused, except those at the top level that begin with `x-`
([shared parts](../../how-to/files.md#shared-parts)). `[]` stands for each entry of a list, `NAME` for a name that
you choose. [One file with every key](../../../config/examples/gateway.yaml) is the language by example, `spillway check FILE` judges
yours ([check a configuration](../../how-to/check.md)). An edit is applied when the file is saved ([reload](../../how-to/reload.md)); keys
that need a restart say so. In any text `${{NAME}}` stands for a variable of the environment. A relative path begins at the folder of the
configuration.

## Top-level keys

| key | type | default | meaning |
|---|---|---|---|
"
    );
    for row in &sections[0].rows {
        let kind = if row.kind.starts_with("list of") { "list" } else { "object" };
        // A list of texts has no page of its own.
        let has_page = sections[1..].iter().any(|section| section.page == row.key);
        let key = if has_page { format!("[`{0}`]({0}.md)", row.key) } else { format!("`{}`", row.key) };
        writeln!(page, "| {key} | {kind} | {} | {} |", row.default, cell(&row.text)).unwrap();
    }
    page.push_str("\n## Values\n\n| type | how it is written | for example |\n|---|---|---|\n");
    for (name, def) in schema["$defs"].as_object().unwrap() {
        if !is_value(Some(name), def) {
            continue;
        }
        let written = def["examples"].as_array().map(|all| all.iter().map(code).collect::<Vec<_>>().join(", "));
        let (text, example) = match def["oneOf"].as_array() {
            Some(branches) => {
                let forms = branches.iter().filter_map(|branch| {
                    Some(format!("`{{{}: ...}}`: {}", only_property(branch)?.0, branch["description"].as_str()?))
                });
                let forms: Vec<String> = forms.collect();
                (
                    format!("{} {}", def["description"].as_str().unwrap_or_default(), forms.join(" ")),
                    "`{env: NAME}`".to_owned(),
                )
            }
            None => (def["description"].as_str().unwrap_or_default().to_owned(), written.unwrap_or_default()),
        };
        writeln!(page, "| <a id=\"{}\"></a>{} | {} | {example} |", name.to_ascii_lowercase(), words(name), cell(&text))
            .unwrap();
    }
    page.push_str("\n## Every path\n\n| path | type | default |\n|---|---|---|\n");
    for section in &sections[1..] {
        let target = format!("{}.md#{}", section.page, slug(&section.path));
        for row in &section.rows {
            // Links of the type lead from its own page.
            let kind = row.kind.replace("](#", &format!("]({}.md#", section.page));
            writeln!(page, "| [`{}`]({target}) | {} | {} |", row.path, cell(&kind), cell(&row.default)).unwrap();
        }
    }
    page
}
