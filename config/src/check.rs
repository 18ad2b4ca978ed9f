//! Holds a tree against the JSON Schema of the language, so that every wrong key, type and value is told at once, with
//! its place, before anything is decoded.

use serde_json::{Map, Value as Json};

use crate::tree::{Key, Node, Place, Value};
use crate::values::{Date, Duration, KeyDigest, ListenAddress, Network, Rate, ServerUrl, Size};

/// Words that one would expect, and why they are not there.
const NOT_HERE: &[(&str, &str)] =
    &[("ES512", "the library that verifies tokens has no P-521; let the issuer sign with ES384 or EdDSA")];

/// Keys of the language that this version does not know yet: they are unknown keys, but no typing mistakes.
const NOT_YET: &[&str] = &[
    "include",
    "rollout",
    "cache",
    "wasm",
    "priority",
    "keepWarm",
    "idleUnload",
    "task",
    "serverTiming",
    "metrics",
    "redactHeaders",
    "captureContent",
    "modelAlias",
];

/// A mistake at a place.
pub(crate) struct Mistake {
    pub(crate) place: Place,
    pub(crate) path: String,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

pub(crate) struct Checker<'s> {
    pub(crate) definitions: &'s Map<String, Json>,
    pub(crate) mistakes: Vec<Mistake>,
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl<'s> Checker<'s> {
    fn wrong(&mut self, place: Place, path: &str, message: impl Into<String>, help: Option<String>) {
        self.mistakes.push(Mistake { place, path: path.to_owned(), message: message.into(), help });
    }

    fn resolve(&self, mut schema: &'s Json) -> &'s Json {
        // References of a generated schema do not form a circle; the bound is for one that is not.
        for _ in 0..16 {
            let Some(reference) = schema.get("$ref").and_then(Json::as_str) else { break };
            match reference.strip_prefix("#/$defs/").and_then(|name| self.definitions.get(name)) {
                Some(target) => schema = target,
                None => break,
            }
        }
        schema
    }

    /// Checks a node and all nodes in it.
    pub(crate) fn walk(&mut self, node: &Node, schema: &'s Json, path: &str) {
        let schema = self.resolve(schema);
        if let Some(branches) = schema.get("oneOf").or_else(|| schema.get("anyOf")).and_then(Json::as_array) {
            return self.one_of(node, branches, path);
        }
        if let Some(names) = schema.get("enum").and_then(Json::as_array) {
            let names: Vec<&str> = names.iter().filter_map(Json::as_str).collect();
            return self.word(node, &names, &[], path);
        }
        let types: Vec<&str> = match schema.get("type") {
            Some(Json::String(kind)) => vec![kind],
            Some(Json::Array(kinds)) => kinds.iter().filter_map(Json::as_str).collect(),
            _ => return,
        };
        if matches!(node.value, Value::Null) && types.contains(&"null") {
            return;
        }
        match types.iter().find(|kind| **kind != "null").copied() {
            Some("object") => self.object(node, schema, path),
            Some("array") => match &node.value {
                Value::Sequence(items) => {
                    if let Some(schema) = schema.get("items") {
                        for (n, item) in items.iter().enumerate() {
                            self.walk(item, schema, &format!("{path}[{n}]"));
                        }
                    }
                }
                _ => self.mismatch(node, "a list", path),
            },
            Some("string") => self.string(node, schema, path),
            Some("integer") => match node.value {
                Value::Int(n) => self.range(node, n as f64, schema, path),
                _ => self.mismatch(node, "a whole number", path),
            },
            Some("number") => match node.value {
                Value::Int(n) => self.range(node, n as f64, schema, path),
                Value::Float(n) => self.range(node, n, schema, path),
                _ => self.mismatch(node, "a number", path),
            },
            Some("boolean") if !matches!(node.value, Value::Bool(_)) => self.mismatch(node, "true or false", path),
            _ => {}
        }
    }

    fn mismatch(&mut self, node: &Node, expected: &str, path: &str) {
        self.wrong(node.place, path, format!("expected {expected}, found {}", node.describe()), None);
    }

    fn range(&mut self, node: &Node, n: f64, schema: &Json, path: &str) {
        let bound = |key: &str| schema.get(key).and_then(Json::as_f64);
        let unsigned = schema.get("format").and_then(Json::as_str).is_some_and(|f| f.starts_with("uint"));
        let most = bound("maximum").or(unsigned.then_some(f64::from(u32::MAX)));
        if let Some(least) = bound("minimum").filter(|least| n < *least) {
            self.wrong(node.place, path, format!("{n} is too small: the least is {least}"), None);
        } else if let Some(most) = most.filter(|most| n > *most) {
            self.wrong(node.place, path, format!("{n} is too large: the most is {most}"), None);
        }
    }

    fn string(&mut self, node: &Node, schema: &Json, path: &str) {
        let format = schema.get("format").and_then(Json::as_str).unwrap_or_default();
        let Value::String(text) = &node.value else {
            let expected = match format {
                "duration" => "a duration such as 30s",
                "size" => "a size such as 20MiB",
                "rate" => "a rate such as 100/s",
                "sha256" => "64 hexadecimal digits in quotes",
                "date" => "a day such as 2027-01-31",
                _ => "a string",
            };
            return self.mismatch(node, expected, path);
        };
        let judged = match format {
            "duration" => text.parse::<Duration>().err(),
            "size" => text.parse::<Size>().err(),
            "rate" => text.parse::<Rate>().err(),
            "listen-address" => text.parse::<ListenAddress>().err(),
            "server-url" => text.parse::<ServerUrl>().err(),
            "network" => text.parse::<Network>().err(),
            "sha256" => text.parse::<KeyDigest>().err(),
            "date" => text.parse::<Date>().err(),
            _ => None,
        };
        if let Some(error) = judged {
            return self.wrong(node.place, path, error.to_string(), None);
        }
        if let Some(pattern) = schema.get("pattern").and_then(Json::as_str)
            && regex::Regex::new(pattern).is_ok_and(|pattern| !pattern.is_match(text))
        {
            let expected = schema.get("description").and_then(Json::as_str).unwrap_or(pattern).trim_end_matches('.');
            self.wrong(node.place, path, format!("expected {expected}, found {}", node.describe()), None);
        }
    }

    fn object(&mut self, node: &Node, schema: &'s Json, path: &str) {
        let Value::Mapping(entries) = &node.value else { return self.mismatch(node, "a mapping", path) };
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Json::as_object);
        let names: Vec<&str> = properties.unwrap_or(&empty).keys().map(String::as_str).collect();
        for (key, child) in entries {
            let at = joined(path, &key.name);
            match (properties.and_then(|p| p.get(&key.name)), schema.get("additionalProperties")) {
                (Some(schema), _) => self.walk(child, schema, &at),
                (None, Some(Json::Bool(false))) => self.unknown(key, &names, &at),
                (None, Some(schema @ Json::Object(_))) => self.walk(child, schema, &at),
                _ => {}
            }
        }
        for name in schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str) {
            if !entries.iter().any(|(key, _)| key.name == name) {
                self.wrong(node.place, path, format!("`{name}` is missing"), None);
            }
        }
    }

    fn unknown(&mut self, key: &Key, names: &[&str], path: &str) {
        let near = nearest(&key.name, names);
        if near.is_none() && NOT_YET.contains(&key.name.as_str()) {
            let message = format!("unknown key `{}`: this version does not support it yet", key.name);
            return self.wrong(key.place, path, message, None);
        }
        let help = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are {}", listed(names)),
        };
        self.wrong(key.place, path, format!("unknown key `{}`", key.name), Some(help));
    }

    /// Checks a value that is one of some words, or one of some mappings with one key.
    fn word(&mut self, node: &Node, words: &[&str], keys: &[&str], path: &str) {
        match &node.value {
            Value::String(text) if words.contains(&text.as_str()) => {}
            Value::String(text) => {
                if let Some((_, why)) = NOT_HERE.iter().find(|(word, _)| word == text) {
                    return self.wrong(node.place, path, format!("`{text}` is not supported: {why}"), None);
                }
                let help = match nearest(text, words) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if keys.is_empty() => format!("there are {}", listed(words)),
                    None => format!("there are {}, and mappings of one key: {}", listed(words), listed(keys)),
                };
                self.wrong(node.place, path, format!("`{text}` is none of the values here"), Some(help));
            }
            _ => self.mismatch(node, &format!("one of {}", listed(words)), path),
        }
    }

    fn one_of(&mut self, node: &Node, branches: &'s [Json], path: &str) {
        let branches: Vec<&Json> = branches.iter().map(|branch| self.resolve(branch)).collect();
        let is_null = |branch: &&Json| branch.get("type").and_then(Json::as_str) == Some("null");
        if matches!(node.value, Value::Null) && branches.iter().any(is_null) {
            return;
        }
        let branches: Vec<&Json> = branches.into_iter().filter(|branch| !is_null(branch)).collect();
        if let [only] = branches.as_slice() {
            return self.walk(node, only, path);
        }
        let words: Vec<&str> = branches
            .iter()
            .flat_map(|b| {
                b.get("const").into_iter().chain(b.get("enum").and_then(Json::as_array).into_iter().flatten())
            })
            .filter_map(Json::as_str)
            .collect();
        let keyed: Vec<(&str, &Json)> = branches
            .iter()
            .filter_map(|b| {
                let name = b.get("required")?.as_array()?.first()?.as_str()?;
                Some((name, b.get("properties")?.get(name)?))
            })
            .collect();
        let keys: Vec<&str> = keyed.iter().map(|(name, _)| *name).collect();
        match &node.value {
            Value::Mapping(entries) if !keyed.is_empty() => {
                for (key, child) in entries {
                    match keyed.iter().find(|(name, _)| *name == key.name) {
                        Some((_, schema)) => self.walk(child, schema, &joined(path, &key.name)),
                        None => self.unknown(key, &keys, &joined(path, &key.name)),
                    }
                }
                if entries.len() != 1 {
                    let message = format!("expected exactly one of {}, found {} keys", listed(&keys), entries.len());
                    self.wrong(node.place, path, message, None);
                }
            }
            Value::String(_) if !words.is_empty() => self.word(node, &words, &keys, path),
            _ if words.is_empty() => self.mismatch(node, &format!("a mapping with one key: {}", listed(&keys)), path),
            _ => self.mismatch(node, &format!("one of {}", listed(&words)), path),
        }
    }
}

/// The name that was most likely meant.
pub(crate) fn nearest<'n>(name: &str, names: &[&'n str]) -> Option<&'n str> {
    let name = name.to_lowercase();
    let distance = |known: &str| {
        let known = known.to_lowercase();
        // `match` for `matches`, `backends` for `backend`.
        let begins = name.len().min(known.len()) >= 4 && (known.starts_with(&name) || name.starts_with(&known));
        if begins { 1 } else { strsim::damerau_levenshtein(&name, &known) }
    };
    let best = names.iter().map(|known| (distance(known), *known)).min()?;
    let most = (name.chars().count() / 3).max(1);
    (best.0 <= most).then_some(best.1)
}

fn listed(names: &[&str]) -> String {
    match names {
        [] => "none".into(),
        [one] => format!("`{one}`"),
        [rest @ .., last] => {
            format!("{} and `{last}`", rest.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "))
        }
    }
}
