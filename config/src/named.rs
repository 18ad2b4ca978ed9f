//! Files and secrets that a configuration names, found by the types of the schema: a field of another type is no file here
//! and is neither watched nor looked for. Paths become absolute before anything is decoded.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde_json::Value as Json;

use crate::check::{branches, resolve};
use crate::validate::Segment;
use crate::values::{FilePath, ModelPath, Secret, StatePath};

/// File or secret at a path in the document.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) at: Vec<Segment>,
    pub(crate) what: Reference,
}

/// Kind of what is named, with the absolute path or the secret.
#[derive(Debug)]
pub(crate) enum Reference {
    /// File that is read, and watched.
    File(PathBuf),
    /// File or folder of a model, which is read and watched.
    Model(PathBuf),
    /// File or folder that the gateway writes. Not watched.
    State,
    /// Secret of the environment or of a file. The file is found as well, as an entry of its own.
    Secret(Secret),
}

impl Reference {
    /// Path that is watched.
    pub(crate) fn watched(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Model(path) => Some(path),
            Self::State | Self::Secret(_) => None,
        }
    }
}

/// Makes the paths of a configuration absolute, adds those that have a default and were left out, and returns all files
/// and secrets. `folder` gives the folder of the file in which a value is written, in UTF-8. Files that the gateway writes begin at
/// `state` instead, where it is given.
pub(crate) fn resolve_names(
    config: &mut Json,
    schema: &Json,
    folder: &dyn Fn(&[Segment]) -> PathBuf,
    state: Option<&Path>,
) -> Vec<Named> {
    let mut finder = Finder { root: schema, folder, state, at: Vec::new(), found: Vec::new() };
    finder.walk(config, schema);
    finder.found
}

struct Finder<'s> {
    root: &'s Json,
    folder: &'s dyn Fn(&[Segment]) -> PathBuf,
    state: Option<&'s Path>,
    at: Vec<Segment>,
    found: Vec<Named>,
}

impl Finder<'_> {
    fn walk(&mut self, value: &mut Json, written: &Json) {
        let schema = resolve(self.root, written);
        if schema.get("oneOf").or_else(|| schema.get("anyOf")).is_some() {
            branches(schema).iter().for_each(|branch| self.walk(value, branch));
        }
        match value {
            Json::String(text) => self.path(text, written),
            Json::Array(items) => {
                let Some(schema) = schema.get("items") else { return };
                for (n, item) in items.iter_mut().enumerate() {
                    self.below(n.into(), item, schema);
                }
            }
            Json::Object(entries) => {
                let properties = schema.get("properties").and_then(Json::as_object);
                for (name, schema) in properties.into_iter().flatten() {
                    if let Some(child) = entries.get_mut(name) {
                        self.below(name.as_str().into(), child, schema);
                    } else if let Some(mut default) = schema.get("default").cloned() {
                        let before = self.found.len();
                        self.below(name.as_str().into(), &mut default, schema);
                        if self.found.len() > before {
                            entries.insert(name.clone(), default);
                        }
                    }
                }
                if let Some(schema) = schema.get("additionalProperties").filter(|schema| schema.is_object()) {
                    for (name, child) in entries.iter_mut() {
                        self.below(name.as_str().into(), child, schema);
                    }
                }
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
        // The secret is read after the path of its file was made absolute.
        if is::<Secret>(written)
            && let Ok(secret) = serde_json::from_value(value.clone())
        {
            self.add(Reference::Secret(secret));
        }
    }

    fn below(&mut self, segment: Segment, value: &mut Json, schema: &Json) {
        self.at.push(segment);
        self.walk(value, schema);
        self.at.pop();
    }

    fn path(&mut self, text: &mut String, schema: &Json) {
        let state = self.state.filter(|_| is::<StatePath>(schema));
        let join = |text: &str| state.map_or_else(|| (self.folder)(&self.at), Path::to_owned).join(text);
        let what = if is::<FilePath>(schema) {
            Reference::File(join(text))
        } else if is::<ModelPath>(schema) {
            Reference::Model(join(text))
        } else if is::<StatePath>(schema) {
            Reference::State
        } else {
            return;
        };
        *text = join(text).to_string_lossy().into_owned();
        self.add(what);
    }

    fn add(&mut self, what: Reference) {
        self.found.push(Named { at: self.at.clone(), what });
    }
}

/// True if a schema refers to this type.
fn is<T: JsonSchema>(schema: &Json) -> bool {
    let name = schema.get("$ref").and_then(Json::as_str).and_then(|name| name.strip_prefix("#/$defs/"));
    name == Some(&*T::schema_name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::text;

    /// Properties of the language, each with its schema.
    fn properties(schema: &Json) -> Vec<(String, &Json)> {
        let definitions = schema["$defs"].as_object().unwrap().values().chain([schema]);
        let objects = definitions.flat_map(|definition| branches(definition).iter().chain([definition]));
        let entries = objects.filter_map(|object| object.get("properties")?.as_object()).flatten();
        entries.map(|(name, schema)| (name.clone(), schema)).collect()
    }

    #[test]
    fn a_field_that_names_a_file_or_a_secret_has_their_type() {
        let schema = crate::json_schema(&crate::NoFilters);
        let (mut files, mut secrets) = (0, 0);
        for (name, written) in properties(&schema) {
            let forms = || branches(written).iter().chain([written]);
            let lower = name.to_lowercase();
            // `maxFile` is the size of one.
            let is_file = !lower.starts_with("max")
                && (["source", "sqlite", "storage"].contains(&lower.as_str())
                    || ["file", "folder", "dir", "directories"].iter().any(|end| lower.ends_with(end)));
            if is_file {
                let typed = |s: &Json| is::<FilePath>(s) || is::<ModelPath>(s) || is::<StatePath>(s);
                assert!(forms().any(typed), "`{name}` names a file and is no path: {written}");
                files += 1;
            }
            let is_text = |s: &Json| {
                let kind = resolve(&schema, s).get("type");
                kind == Some(&"string".into()) || kind == Some(&serde_json::json!(["string", "null"]))
            };
            if ["password", "secret", "bearer", "token", "hmackey"].contains(&lower.as_str()) {
                assert!(forms().any(is::<Secret>) && !forms().any(is_text), "`{name}` is no secret: {written}");
                secrets += 1;
            }
        }
        assert!(files >= 12 && secrets >= 4, "{files} {secrets}");
    }

    #[test]
    fn no_field_is_a_path_without_a_meaning() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/schema");
        for entry in std::fs::read_dir(folder).unwrap() {
            let file = entry.unwrap().path();
            let source = std::fs::read_to_string(&file).unwrap();
            for line in source.lines().map(str::trim).filter(|line| line.ends_with(',')) {
                let is_field = line.starts_with("pub ") || line.starts_with(|c: char| c.is_ascii_uppercase());
                assert!(
                    !(is_field && line.contains("PathBuf")),
                    "{}: `{line}`; expected FilePath, ModelPath or StatePath",
                    file.display()
                );
            }
        }
    }

    #[test]
    fn paths_are_joined_and_found_with_their_places_defaults_too() {
        let schema = crate::json_schema(&crate::NoFilters);
        let mut config = serde_json::json!({
            "listeners": [{"address": "127.0.0.1:1", "tls": {"acme": {"domains": ["a.test"]}}}],
            "models": [{"name": "m", "source": "m.gguf"}],
            "consumers": [{"name": "c", "credentials": {"b": {"bearer": {"file": "key"}}}}],
            "admin": {"address": "127.0.0.1:2", "token": {"env": "TOKEN"}},
        });
        let mut elsewhere = config.clone();
        let found = resolve_names(&mut config, &schema, &|_| PathBuf::from("/etc/spillway"), None);
        let mut shown: Vec<_> = found.iter().map(|named| format!("{} {:?}", text(&named.at), named.what)).collect();
        shown.sort();
        assert_eq!(
            shown,
            [
                "admin.token Secret(Env(\"TOKEN\"))",
                "consumers[0].credentials.b.bearer Secret(File(FilePath(\"/etc/spillway/key\")))",
                "consumers[0].credentials.b.bearer.file File(\"/etc/spillway/key\")",
                "listeners[0].tls.acme.storage State",
                "models[0].source Model(\"/etc/spillway/m.gguf\")",
                "state.budgets.sqlite State",
                "state.quality.folder State",
                "state.store State",
            ]
        );
        assert_eq!(config["listeners"][0]["tls"]["acme"]["storage"], "/etc/spillway/state/acme");
        assert_eq!(config["state"]["budgets"]["sqlite"], "/etc/spillway/state/budgets.db");
        assert_eq!(config["state"]["store"], "/etc/spillway/state/spillway.db");
        assert_eq!(config["models"][0]["source"], "/etc/spillway/m.gguf");
        let state = Path::new("/var/lib/spillway");
        resolve_names(&mut elsewhere, &schema, &|_| PathBuf::from("/etc/spillway"), Some(state));
        assert_eq!(elsewhere["listeners"][0]["tls"]["acme"]["storage"], "/var/lib/spillway/state/acme");
        assert_eq!(elsewhere["state"]["store"], "/var/lib/spillway/state/spillway.db");
        assert_eq!(elsewhere["models"][0]["source"], "/etc/spillway/m.gguf", "what it reads stands beside the file");
    }
}
