//! Check of a tree against the JSON Schema of the language. Reports every wrong key, type and value at once, with its
//! position, before anything is decoded.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value as Json};

use crate::reporter::MAX_MISTAKES;
use crate::tree::{Key, Node, Place, Value};
use crate::values::{
    DailyHours, Date, DnsServer, Duration, HostAddress, KeyDigest, ListenAddress, Network, Rate, ServerUrl, Size,
    Threshold,
};

/// Reason why an event of `notifications` is not supported.
const NO_SUCH_EVENT: &str = "this version sends only `rollout` and `drift`; remove it";

/// Values of keys that a reader may expect, with the reason why they are not supported.
const UNSUPPORTED_VALUES: &[(&str, &str, &str)] = &[
    ("algorithms", "ES512", "the library that verifies tokens has no P-521; let the issuer sign with ES384 or EdDSA"),
    ("events", "spill", NO_SUCH_EVENT),
    ("events", "budget", NO_SUCH_EVENT),
    ("events", "certificate", NO_SUCH_EVENT),
];

/// Words of other gateways, with what they are called here.
const MEANT: &[(&str, &str)] = &[
    ("ip", "clientAddress"),
    ("address", "clientAddress"),
    ("remoteAddress", "clientAddress"),
    ("remote_addr", "clientAddress"),
    ("user", "consumer"),
    ("key", "apiKey"),
    ("token", "apiKey"),
    ("leastConn", "leastRequest"),
    ("least_conn", "leastRequest"),
    ("leastConnections", "leastRequest"),
    ("ip_hash", "hash"),
    ("ringHash", "hash"),
    ("ewma", "peakEwma"),
];

/// Keys of other gateways and of planned features. They are unknown, but no typing mistakes.
const UNSUPPORTED_KEYS: &[&str] = &["mcp"];

/// Places that a message about a key in a wrong place names at most.
const MOST_HOMES: usize = 3;
/// Deepest level of the schema at which keys are looked for.
const MAX_SCHEMA_DEPTH: usize = 16;

/// Mistake with its position.
pub(crate) struct Mistake {
    pub(crate) place: Place,
    pub(crate) path: String,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

pub(crate) struct Checker<'s> {
    /// Schema of a whole configuration, with `$defs`.
    root: &'s Json,
    /// Places of every key, worked out for the first unknown one.
    homes: OnceCell<BTreeMap<String, Vec<String>>>,
    /// Regular expressions of the schema that were needed so far.
    patterns: HashMap<&'s str, Option<regex::Regex>>,
    pub(crate) mistakes: Vec<Mistake>,
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl<'s> Checker<'s> {
    /// Checker for parts of a document with this schema.
    pub(crate) fn new(root: &'s Json) -> Self {
        Self { root, homes: OnceCell::new(), patterns: HashMap::new(), mistakes: Vec::new() }
    }

    fn wrong(&mut self, place: Place, path: &str, message: impl Into<String>, help: Option<String>) {
        if self.mistakes.len() < MAX_MISTAKES {
            self.mistakes.push(Mistake { place, path: path.to_owned(), message: message.into(), help });
        }
    }

    fn resolve(&self, schema: &'s Json) -> &'s Json {
        resolve(self.root, schema)
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
        let root = self.root;
        let expected = || expectation(root, schema);
        if matches!(node.value, Value::Null) && types.contains(&"null") {
            return;
        }
        // Of several types the one that the value has, else the first.
        let own = node.value.json_type().and_then(|own| types.iter().find(|kind| **kind == own));
        match own.or_else(|| types.iter().find(|kind| **kind != "null")).copied() {
            Some("object") => self.object(node, schema, path),
            Some("array") => match &node.value {
                Value::Sequence(items) => {
                    if let Some(schema) = schema.get("items") {
                        for (n, item) in items.iter().enumerate() {
                            self.walk(item, schema, &format!("{path}[{n}]"));
                        }
                    }
                }
                _ => self.mismatch(node, &expected(), path),
            },
            Some("string") => self.string(node, schema, path),
            Some("integer") => match node.value {
                Value::Int(n) => self.range(node, n as f64, schema, path),
                _ => self.mismatch(node, &expected(), path),
            },
            Some("number") => match node.value {
                Value::Int(n) => self.range(node, n as f64, schema, path),
                Value::Float(n) => self.range(node, n, schema, path),
                _ => self.mismatch(node, &expected(), path),
            },
            Some("boolean") if !matches!(node.value, Value::Bool(_)) => self.mismatch(node, &expected(), path),
            _ => {}
        }
    }

    fn mismatch(&mut self, node: &Node, expected: &str, path: &str) {
        let help = match &node.value {
            Value::Null => Some("give the key a value, or remove it".to_owned()),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) if [A_STRING, A_STRING_OR_MAPPING].contains(&expected) => {
                Some("put it in quotes".to_owned())
            }
            Value::Int(n) if expected.starts_with("a duration") => Some(format!("add a unit, such as {n}s or {n}ms")),
            Value::Int(n) if expected.starts_with("a size") => Some(format!("add a unit, such as {n}B or {n}MiB")),
            Value::String(_) | Value::Mapping(_) if expected == A_LIST => {
                Some("write a list: `- ` before each entry, or brackets around all".to_owned())
            }
            _ => None,
        };
        self.wrong(node.place, path, format!("expected {expected}, found {}", node.describe()), help);
    }

    fn range(&mut self, node: &Node, n: f64, schema: &Json, path: &str) {
        let bound = |key: &str| schema.get(key).and_then(Json::as_f64);
        // Numbers of the tree are at most `i64::MAX`, which every 64-bit type holds.
        let (least, most) = match schema.get("format").and_then(Json::as_str) {
            Some("uint16") => (Some(0.0), Some(f64::from(u16::MAX))),
            Some("uint32") => (Some(0.0), Some(f64::from(u32::MAX))),
            Some("int32") => (Some(f64::from(i32::MIN)), Some(f64::from(i32::MAX))),
            _ => (None, None),
        };
        let most = bound("maximum").or(most);
        if let Some(least) = bound("minimum").or(least).filter(|least| n < *least) {
            self.wrong(node.place, path, format!("{n} is too small; expected {least} or more"), None);
        } else if let Some(most) = most.filter(|most| n > *most) {
            self.wrong(node.place, path, format!("{n} is too large; expected {most} or less"), None);
        }
    }

    fn string(&mut self, node: &Node, schema: &'s Json, path: &str) {
        let format = schema.get("format").and_then(Json::as_str).unwrap_or_default();
        let Value::String(text) = &node.value else {
            return self.mismatch(node, &expectation(self.root, schema), path);
        };
        let judged = match format {
            "duration" => text.parse::<Duration>().err(),
            "size" => text.parse::<Size>().err(),
            "rate" => text.parse::<Rate>().err(),
            "listen-address" => text.parse::<ListenAddress>().err(),
            "server-url" => text.parse::<ServerUrl>().err(),
            "network" => text.parse::<Network>().err(),
            "dns-server" => text.parse::<DnsServer>().err(),
            "host-address" => text.parse::<HostAddress>().err(),
            "sha256" => text.parse::<KeyDigest>().err(),
            "date" => text.parse::<Date>().err(),
            "hours" => text.parse::<DailyHours>().err(),
            "threshold" => text.parse::<Threshold>().err(),
            "pause" => text.parse::<Duration>().err(),
            _ => None,
        };
        if let Some(error) = judged {
            return self.wrong(node.place, path, error.to_string(), None);
        }
        if let Some(pattern) = schema.get("pattern").and_then(Json::as_str)
            && self
                .patterns
                .entry(pattern)
                .or_insert_with(|| regex::Regex::new(pattern).ok())
                .as_ref()
                .is_some_and(|pattern| !pattern.is_match(text))
        {
            let expected = schema.get("description").and_then(Json::as_str).unwrap_or(pattern).trim_end_matches('.');
            self.wrong(node.place, path, format!("expected {expected}, found {}", node.describe()), None);
        }
    }

    fn object(&mut self, node: &Node, schema: &'s Json, path: &str) {
        let Value::Mapping(entries) = &node.value else {
            return self.mismatch(node, &expectation(self.root, schema), path);
        };
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Json::as_object);
        let names: Vec<&str> = properties.unwrap_or(&empty).keys().map(String::as_str).collect();
        for (key, child) in entries {
            let at = joined(path, &key.name);
            match (properties.and_then(|p| p.get(&*key.name)), schema.get("additionalProperties")) {
                (Some(schema), _) => self.walk(child, schema, &at),
                (None, Some(Json::Bool(false))) => self.unknown(key, &names, &at),
                (None, Some(schema @ Json::Object(_))) => self.walk(child, schema, &at),
                _ => {}
            }
        }
        for name in schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str) {
            if !entries.iter().any(|(key, _)| *key.name == *name) {
                let property = properties.and_then(|properties| properties.get(name));
                let expected = property.map_or_else(|| "a value".to_owned(), |schema| expectation(self.root, schema));
                self.wrong(node.place, path, format!("`{name}` is missing; expected {expected}: add it"), None);
            }
        }
    }

    fn unknown(&mut self, key: &Key, names: &[&str], path: &str) {
        let name = &*key.name;
        let around = path.strip_suffix(name).map_or(path, |around| around.trim_end_matches('.'));
        let around = if around.is_empty() { "at the top level".to_owned() } else { format!("in `{around}`") };
        let homes = self.homes.get_or_init(|| homes(self.root));
        let (rest, help) = if let Some(near) = nearest(name, names) {
            (String::new(), format!("did you mean `{near}`?"))
        } else if let Some(homes) = homes.get(name) {
            (format!("; it belongs {}", written(homes)), "move it there, or remove it".to_owned())
        } else if UNSUPPORTED_KEYS.contains(&name) {
            ("; this version does not support it".to_owned(), "remove it".to_owned())
        } else {
            (String::new(), format!("expected {}", listed(names)))
        };
        self.wrong(key.place, path, format!("unknown key `{name}` {around}{rest}"), Some(help));
    }

    /// Checks a value that is one of some words, or one of some mappings with one key.
    fn word(&mut self, node: &Node, words: &[&str], keys: &[&str], path: &str) {
        match &node.value {
            Value::String(text) if words.contains(&text.as_str()) => {}
            Value::String(text) => {
                let key = path.rsplit('.').next().and_then(|key| key.split('[').next()).unwrap_or_default();
                let place = if key.is_empty() { String::new() } else { format!(" for `{key}`") };
                let unsupported = UNSUPPORTED_VALUES.iter().find(|(of, word, _)| *of == key && word == text);
                if let Some((.., why)) = unsupported {
                    let message = format!("unsupported value `{text}`{place}: {why}");
                    return self.wrong(node.place, path, message, None);
                }
                let expected = alternatives(words, keys);
                let meant = MEANT.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, meant)| *meant);
                let meant = meant.filter(|meant| words.contains(meant));
                let help = meant.or_else(|| nearest(text, words)).map(|near| format!("did you mean `{near}`?"));
                self.wrong(node.place, path, format!("unknown value `{text}`{place}; expected {expected}"), help);
            }
            _ => self.mismatch(node, &alternatives(words, keys), path),
        }
    }

    fn one_of(&mut self, node: &Node, branches: &'s [Json], path: &str) {
        let branches: Vec<&Json> = branches.iter().map(|branch| self.resolve(branch)).collect();
        let is_null = |branch: &&Json| branch.get("type").and_then(Json::as_str) == Some("null");
        if matches!(node.value, Value::Null) && branches.iter().any(is_null) {
            return;
        }
        let branches: Vec<&Json> = branches.into_iter().filter(|branch| !is_null(branch)).collect();
        // A single word is checked as several are: its branch says nothing else.
        if let [only] = branches.as_slice()
            && only.get("const").and_then(Json::as_str).is_none()
        {
            return self.walk(node, only, path);
        }
        if let Some((text, mapping)) = text_or_mapping(&branches) {
            return match &node.value {
                Value::String(_) => self.walk(node, text, path),
                Value::Mapping(_) => self.walk(node, mapping, path),
                _ => self.mismatch(node, A_STRING_OR_MAPPING, path),
            };
        }
        if let Some((list, mapping)) = list_or_mapping(&branches) {
            return match &node.value {
                Value::Sequence(_) => self.walk(node, list, path),
                Value::Mapping(_) => self.walk(node, mapping, path),
                _ => self.mismatch(node, A_LIST_OR_MAPPING, path),
            };
        }
        let (words, keyed) = forms(&branches);
        let keys: Vec<&str> = keyed.iter().map(|(name, _)| *name).collect();
        let is_text = |branch: &&Json| {
            branch.get("type").and_then(Json::as_str) == Some("string") && branch.get("format").is_some()
        };
        match &node.value {
            Value::Mapping(entries) if !keyed.is_empty() => {
                for (key, child) in entries {
                    match keyed.iter().find(|(name, _)| **name == *key.name) {
                        Some((_, schema)) => self.walk(child, schema, &joined(path, &key.name)),
                        None => self.unknown(key, &keys, &joined(path, &key.name)),
                    }
                }
                if entries.len() != 1 {
                    let message = format!("found {} keys; expected exactly one of {}", entries.len(), listed(&keys));
                    self.wrong(node.place, path, message, None);
                }
            }
            Value::String(_) if !words.is_empty() => self.word(node, &words, &keys, path),
            Value::String(_) if branches.iter().any(is_text) => {
                if let Some(branch) = branches.into_iter().find(is_text) {
                    self.walk(node, branch, path);
                }
            }
            // Not quoted: it may be the secret.
            Value::String(_) if keys == ["env", "file"] => {
                let help = "a secret is not written in the file: write {env: NAME} or {file: PATH}".to_owned();
                self.wrong(node.place, path, "expected a mapping with `env` or `file`, found a string", Some(help));
            }
            _ => self.mismatch(node, &alternatives(&words, &keys), path),
        }
    }
}

const A_STRING: &str = "a string";
const A_STRING_OR_MAPPING: &str = "a string or a mapping";
const A_LIST: &str = "a list";
const A_LIST_OR_MAPPING: &str = "a list or a mapping";

/// Follows the references of a schema.
pub(crate) fn resolve<'s>(root: &'s Json, mut schema: &'s Json) -> &'s Json {
    // References of a generated schema do not form a circle; the bound is for one that is not.
    for _ in 0..MAX_SCHEMA_DEPTH {
        let Some(reference) = schema.get("$ref").and_then(Json::as_str) else { break };
        let target = reference.strip_prefix("#/$defs/").and_then(|name| root.get("$defs")?.get(name));
        match target {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

/// Branches of a schema that is one of several; the schema itself where it is not.
pub(crate) fn branches(schema: &Json) -> &[Json] {
    let branches = schema.get("oneOf").or_else(|| schema.get("anyOf")).and_then(Json::as_array);
    branches.map_or(std::slice::from_ref(schema), Vec::as_slice)
}

/// Schemas of a text and of a mapping with several keys, or with one where any text will do, of which these branches consist.
fn text_or_mapping<'s>(branches: &[&'s Json]) -> Option<(&'s Json, &'s Json)> {
    let [text, mapping] = branches else { return None };
    let is_text = text.get("type").and_then(Json::as_str) == Some("string")
        && text.get("const").or_else(|| text.get("enum")).is_none();
    let properties = mapping.get("properties").and_then(Json::as_object);
    let least = if text.get("format").is_some() { 2 } else { 1 };
    (is_text && properties.is_some_and(|properties| properties.len() >= least)).then_some((*text, *mapping))
}

/// Schemas of a list and of a mapping of which these branches consist.
fn list_or_mapping<'s>(branches: &[&'s Json]) -> Option<(&'s Json, &'s Json)> {
    let [list, mapping] = branches else { return None };
    let is = |branch: &Json, kind: &str| branch.get("type").and_then(Json::as_str) == Some(kind);
    (is(list, "array") && is(mapping, "object")).then_some((*list, *mapping))
}

/// Words and mappings with one key, each with the schema of its value, of which these branches consist.
fn forms<'s>(branches: &[&'s Json]) -> (Vec<&'s str>, Vec<(&'s str, &'s Json)>) {
    let words = branches
        .iter()
        .flat_map(|b| b.get("const").into_iter().chain(b.get("enum").and_then(Json::as_array).into_iter().flatten()))
        .filter_map(Json::as_str)
        .collect();
    let keyed = branches
        .iter()
        .filter_map(|b| {
            let name = b.get("required")?.as_array()?.first()?.as_str()?;
            Some((name, b.get("properties")?.get(name)?))
        })
        .collect();
    (words, keyed)
}

/// Description of the values that a schema accepts.
fn expectation(root: &Json, schema: &Json) -> String {
    let schema = resolve(root, schema);
    let is_null = |branch: &&Json| branch.get("type").and_then(Json::as_str) == Some("null");
    let branches: Vec<&Json> = branches(schema).iter().map(|b| resolve(root, b)).filter(|b| !is_null(b)).collect();
    match branches.as_slice() {
        [only] if !std::ptr::eq(*only, schema) => return expectation(root, only),
        [_] => {}
        several if text_or_mapping(several).is_some() => return A_STRING_OR_MAPPING.to_owned(),
        several if list_or_mapping(several).is_some() => return A_LIST_OR_MAPPING.to_owned(),
        several => {
            let (words, keyed) = forms(several);
            return alternatives(&words, &keyed.iter().map(|(key, _)| *key).collect::<Vec<_>>());
        }
    }
    if let Some(names) = schema.get("enum").and_then(Json::as_array) {
        return listed(&names.iter().filter_map(Json::as_str).collect::<Vec<_>>());
    }
    let kind = match schema.get("type") {
        Some(Json::Array(kinds)) => kinds.iter().filter_map(Json::as_str).find(|kind| *kind != "null"),
        kind => kind.and_then(Json::as_str),
    };
    let text = match (schema.get("format").and_then(Json::as_str), kind) {
        (Some("duration"), _) => "a duration such as 30s",
        (Some("size"), _) => "a size such as 20MiB",
        (Some("rate"), _) => "a rate such as 100/s",
        (Some("sha256"), _) => "64 hexadecimal digits in quotes",
        (Some("date"), _) => "a day such as 2027-01-31",
        (Some("hours"), _) => "hours such as 09:00-17:00",
        (Some("threshold"), _) => "a threshold such as +0.02, 1.3x or 0.2",
        (Some("pause"), _) => "true or a duration such as 1h",
        (Some("listen-address"), _) => "an address such as 127.0.0.1:8080",
        (Some("server-url"), _) => "a URL such as http://10.0.0.11:8000",
        (Some("network"), _) => "a network such as 10.0.0.0/8",
        (Some("dns-server"), _) => "an address such as 10.0.0.53",
        (Some("host-address"), _) => "an IP address such as 0.0.0.0",
        (Some("file-path" | "model-path" | "state-path"), _) => "the path of a file",
        (_, Some("object")) => "a mapping",
        (_, Some("array")) => A_LIST,
        (_, Some("integer")) => "a whole number",
        (_, Some("number")) => "a number",
        (_, Some("boolean")) => "true or false",
        _ => A_STRING,
    };
    text.to_owned()
}

/// Keys of the language, each with its places: `models[]`, or nothing for the top level.
fn homes(root: &Json) -> BTreeMap<String, Vec<String>> {
    fn walk(root: &Json, schema: &Json, path: &str, depth: usize, found: &mut BTreeMap<String, Vec<String>>) {
        if depth >= MAX_SCHEMA_DEPTH {
            return;
        }
        for branch in branches(resolve(root, schema)) {
            let branch = resolve(root, branch);
            for (name, schema) in branch.get("properties").and_then(Json::as_object).into_iter().flatten() {
                let places = found.entry(name.clone()).or_default();
                if !places.iter().any(|known| known == path) {
                    places.push(path.to_owned());
                }
                walk(root, schema, &joined(path, name), depth + 1, found);
            }
            if let Some(schema) = branch.get("items") {
                walk(root, schema, &format!("{path}[]"), depth + 1, found);
            }
            if let Some(schema) = branch.get("additionalProperties").filter(|schema| schema.is_object()) {
                walk(root, schema, &joined(path, "*"), depth + 1, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, "", 0, &mut found);
    // The outermost places first.
    found.values_mut().for_each(|places| places.sort_by_key(|path| path.matches('.').count()));
    found
}

/// Places as a message names them.
fn written(homes: &[String]) -> String {
    let named = |path: &String| if path.is_empty() { "at the top level".to_owned() } else { format!("in `{path}`") };
    let all = homes.iter().take(MOST_HOMES).map(named).collect::<Vec<_>>().join(" or ");
    match homes.len().saturating_sub(MOST_HOMES) {
        0 => all,
        more => format!("{all} (or {more} more places)"),
    }
}

/// Words, or mappings with one key, of which one is expected.
fn alternatives(words: &[&str], keys: &[&str]) -> String {
    match (words, keys) {
        (words, []) => listed(words),
        ([], keys) => format!("a mapping with one key: {}", listed(keys)),
        (words, keys) => format!("{}, or a mapping with one key: {}", listed(words), listed(keys)),
    }
}

/// Most names that a wrong one is compared with.
const MOST_COMPARED: usize = 1000;

/// Name that was most likely meant.
pub fn nearest<'n>(name: &str, names: &[&'n str]) -> Option<&'n str> {
    let name = name.to_lowercase();
    let distance = |known: &str| {
        let known = known.to_lowercase();
        // `match` for `matches`, before `batch`; `backends` for `backend`.
        let begins = name.len().min(known.len()) >= 4 && (known.starts_with(&name) || name.starts_with(&known));
        if begins { (1, 0) } else { (strsim::damerau_levenshtein(&name, &known), 1) }
    };
    let ((best, _), known) = names.iter().take(MOST_COMPARED).map(|known| (distance(known), *known)).min()?;
    let most = (name.chars().count() / 3).max(1);
    (best <= most).then_some(known)
}

/// Names with `or` before the last.
pub(crate) fn listed(names: &[&str]) -> String {
    match names {
        [] => "none".into(),
        [one] => format!("`{one}`"),
        [rest @ .., last] => {
            format!("{} or `{last}`", rest.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_called_unsupported_are_in_no_place_of_the_language() {
        let homes = homes(&crate::json_schema(&crate::NoFilters));
        for key in UNSUPPORTED_KEYS {
            assert_eq!(homes.get(*key), None, "{key}");
        }
        assert_eq!(homes["keepWarm"], ["models[]", "routes[].rollout"]);
        assert_eq!(homes["bearer"], ["backends[].credentials", "consumers[].credentials.*"]);
        assert_eq!(homes["listeners"], ["", "routes[]"]);
    }

    #[test]
    fn every_format_of_the_language_is_checked_with_its_position() {
        let schema = crate::json_schema(&crate::NoFilters);
        let (mut texts, mut numbers) = (0, std::collections::BTreeSet::new());
        for (name, definition) in schema["$defs"].as_object().unwrap() {
            let format = definition.get("format").and_then(Json::as_str).unwrap_or_default();
            if definition.get("type") == Some(&"string".into()) && !format.is_empty() && !format.ends_with("-path") {
                let mut checker = Checker::new(&schema);
                let place = Place { line: 1, column: 1, width: 1, file: 0 };
                checker.walk(&Node { place, value: Value::String("?".into()) }, definition, "key");
                assert_eq!(checker.mistakes.len(), 1, "{name}: `{format}` is not checked");
                let expected = expectation(&schema, definition);
                assert_ne!(expected, A_STRING, "{name}: `{format}` has no example");
                texts += 1;
            }
        }
        fn collect(schema: &Json, found: &mut std::collections::BTreeSet<String>) {
            if let Json::Object(entries) = schema {
                let format = entries.get("format").and_then(Json::as_str);
                found.extend(format.filter(|format| format.contains("int")).map(str::to_owned));
                entries.values().for_each(|value| collect(value, found));
            } else if let Json::Array(items) = schema {
                items.iter().for_each(|item| collect(item, found));
            }
        }
        collect(&schema, &mut numbers);
        assert!(texts >= 9, "{texts}");
        assert!(
            numbers.iter().all(|format| ["uint16", "uint32", "int32", "uint64"].contains(&format.as_str())),
            "{numbers:?}"
        );
    }
}
