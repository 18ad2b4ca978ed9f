//! `spillway diff`: what an edit would change in a running gateway, without applying it. Compares the configuration that the
//! gateway runs with a file that is judged as `check` does, both with their defaults. Keys of consumers are not compared, since
//! the gateway shows none.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};
use spillway_filter::Registry;

use super::admin::{AdminArguments, ClientError};
use super::{FAILED, WRONG, block_on, fail};
use crate::load::read;
use crate::reload::FIXED_KEYS;
use crate::server;

/// Further key that an edit cannot change: the budgets are in the file that is open.
const BUDGETS: &str = "state.budgets.sqlite";
/// Members that name an entry of a list, the first that there is.
const NAMES: [&str; 4] = ["name", "model", "url", "issuer"];
/// Longest value that is shown whole, in characters.
const SHOWN: usize = 200;

#[derive(Args)]
pub(super) struct DiffArguments {
    /// The edited configuration.
    file: PathBuf,
    #[command(flatten)]
    admin: AdminArguments,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum ChangeKind {
    Added,
    Removed,
    Changed,
}

/// Change of an entry with a name, or of a key that has no entries.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigChange {
    /// Top-level key, such as `routes`.
    section: String,
    /// Name of the entry; `None` for a part without names.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    kind: ChangeKind,
    /// True if the gateway must be restarted for it.
    needs_restart: bool,
    /// Values that change, of a changed entry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<ValueChange>,
}

/// Value that changes. A missing one is left out.
#[derive(Debug, PartialEq, Serialize)]
struct ValueChange {
    /// Path within the entry, such as `backendRefs[chat-v2].weight`.
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Value>,
}

/// Configuration that the gateway runs, as it tells it.
#[derive(serde::Deserialize)]
struct RunningConfig {
    running: Option<Value>,
}

pub(super) fn run(arguments: &DiffArguments, registry: &Arc<Registry>) -> ExitCode {
    let loaded = match read(&arguments.file, registry, false) {
        Ok(loaded) => loaded,
        Err(report) => return fail(WRONG, &report),
    };
    eprint!("{}", loaded.warnings);
    block_on(async {
        if let Err(errors) = server::judge(&loaded, registry, true).await {
            return fail(WRONG, &errors.join("\n"));
        }
        match running(&arguments.admin).await {
            Ok(Some(running)) => {
                let mut edited = loaded.shown();
                if let Some(folder) =
                    std::path::absolute(&arguments.file).ok().as_deref().and_then(std::path::Path::parent)
                {
                    settle_paths(&running, &mut edited, folder);
                }
                let changes = changes(&running, &edited);
                if arguments.json {
                    let all = serde_json::json!({ "changes": changes });
                    println!("{}", serde_json::to_string_pretty(&all).unwrap_or_default());
                } else {
                    print!("{}", words(&changes));
                }
                ExitCode::SUCCESS
            }
            Ok(None) => fail(FAILED, &"the gateway is starting, and runs no configuration yet: try again"),
            Err(e) => fail(FAILED, &e),
        }
    })
}

async fn running(admin: &AdminArguments) -> Result<Option<Value>, ClientError> {
    let page = admin.get("/api/config").await?;
    Ok(admin.parse::<RunningConfig>(&page)?.running.filter(|running| !running.is_null()))
}

/// Writes paths in the folder of the edited file as the gateway has them in its own: the file may be a copy elsewhere, and the gateway's
/// folder for state another one.
fn settle_paths(running: &Value, edited: &mut Value, folder: &std::path::Path) {
    let mut paths = Vec::new();
    visit(&mut running.clone(), &mut |text| {
        if text.starts_with('/') {
            paths.push(std::mem::take(text));
        }
    });
    visit(edited, &mut |text| {
        let Ok(place) = std::path::Path::new(&*text).strip_prefix(folder) else { return };
        // The folder itself ends every path.
        if place.as_os_str().is_empty() {
            return;
        }
        if let Some(same) = paths.iter().find(|path| std::path::Path::new(path).ends_with(place)) {
            text.clone_from(same);
        }
    });
}

/// Calls `each` with every text in a value.
fn visit(value: &mut Value, each: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(text) => each(text),
        Value::Array(items) => items.iter_mut().for_each(|item| visit(item, each)),
        Value::Object(members) => members.values_mut().for_each(|member| visit(member, each)),
        _ => {}
    }
}

/// Changes from one configuration to another.
fn changes(old: &Value, new: &Value) -> Vec<ConfigChange> {
    let empty = Map::new();
    let [old, new] = [old, new].map(|whole| whole.as_object().unwrap_or(&empty));
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let mut found = Vec::new();
    for section in keys {
        let [before, after] = [old, new].map(|whole| whole.get(section).unwrap_or(&Value::Null));
        match (entries(before), entries(after)) {
            (Some(before), Some(after)) if !(before.is_empty() && after.is_empty()) => {
                of_entries(section, &before, &after, &mut found);
            }
            _ => {
                let mut values = Vec::new();
                compare("", before, after, &mut values);
                if !values.is_empty() {
                    let fixed = values.iter().any(|value| is_fixed(&joined(section, &value.path)));
                    let section = section.clone();
                    found.push(ConfigChange {
                        section,
                        name: None,
                        kind: ChangeKind::Changed,
                        needs_restart: fixed,
                        values,
                    });
                }
            }
        }
    }
    found
}

/// True for a key that only a restart changes.
fn is_fixed(path: &str) -> bool {
    let is_in = |key: &str| path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    FIXED_KEYS.into_iter().chain([BUDGETS]).any(is_in)
}

fn joined(path: &str, key: &str) -> String {
    match (path.is_empty(), key.is_empty()) {
        (true, _) => key.to_owned(),
        (_, true) => path.to_owned(),
        _ => format!("{path}.{key}"),
    }
}

/// Entries of a list by name; `None` where not every entry has a name of its own.
fn entries(list: &Value) -> Option<Vec<(String, &Value)>> {
    let mut seen = BTreeSet::new();
    let list = match list {
        Value::Null => return Some(Vec::new()),
        other => other.as_array()?,
    };
    let named = list.iter().map(|entry| {
        let name = NAMES.into_iter().find_map(|key| entry.get(key)?.as_str())?;
        seen.insert(name).then(|| (name.to_owned(), entry))
    });
    named.collect()
}

fn of_entries(section: &str, before: &[(String, &Value)], after: &[(String, &Value)], found: &mut Vec<ConfigChange>) {
    let entry = |name: &str, kind, values| ConfigChange {
        section: section.to_owned(),
        name: Some(name.to_owned()),
        kind,
        needs_restart: false,
        values,
    };
    for (name, value) in before {
        match after.iter().find(|(other, _)| other == name) {
            None => found.push(entry(name, ChangeKind::Removed, Vec::new())),
            Some((_, now)) => {
                let mut values = Vec::new();
                compare("", value, now, &mut values);
                if !values.is_empty() {
                    found.push(entry(name, ChangeKind::Changed, values));
                }
            }
        }
    }
    for (name, _) in after.iter().filter(|(name, _)| !before.iter().any(|(other, _)| other == name)) {
        found.push(entry(name, ChangeKind::Added, Vec::new()));
    }
    // The order decides between routes that match alike.
    let order = |list: &[(String, &Value)], other: &[(String, &Value)]| -> Vec<Value> {
        let both = list.iter().filter(|(name, _)| other.iter().any(|(known, _)| known == name));
        both.map(|(name, _)| Value::from(name.as_str())).collect()
    };
    let (from, to) = (order(before, after), order(after, before));
    if from != to {
        let values = vec![ValueChange { path: "order".to_owned(), from: Some(from.into()), to: Some(to.into()) }];
        let section = section.to_owned();
        found.push(ConfigChange { section, name: None, kind: ChangeKind::Changed, needs_restart: false, values });
    }
}

/// Adds the values that differ below `path`.
fn compare(path: &str, old: &Value, new: &Value, found: &mut Vec<ValueChange>) {
    if old == new {
        return;
    }
    match (old, new) {
        (Value::Object(before), Value::Object(after)) => {
            let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for key in keys {
                let [before, after] = [before, after].map(|part| part.get(key).unwrap_or(&Value::Null));
                compare(&joined(path, key), before, after, found);
            }
        }
        (Value::Array(before), Value::Array(after)) => match (entries(old), entries(new)) {
            (Some(named_before), Some(named_after)) if !(before.is_empty() || after.is_empty()) => {
                let known = named_before.len();
                for (name, value) in &named_before {
                    let now = named_after.iter().find(|(other, _)| other == name).map_or(&Value::Null, |(_, now)| *now);
                    compare(&format!("{path}[{name}]"), value, now, found);
                }
                for (name, value) in named_after.iter().filter(|(n, _)| !named_before.iter().any(|(o, _)| o == n)) {
                    compare(&format!("{path}[{name}]"), &Value::Null, value, found);
                }
                let names = |list: &[(String, &Value)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
                let (from, to) = (names(&named_before), names(&named_after));
                if known == named_after.len() && from != to && from.iter().all(|name| to.contains(name)) {
                    found.push(ValueChange {
                        path: joined(path, "order"),
                        from: Some(from.into()),
                        to: Some(to.into()),
                    });
                }
            }
            _ if before.len() == after.len() && before.iter().chain(after).all(Value::is_object) => {
                for (place, (before, after)) in before.iter().zip(after).enumerate() {
                    compare(&format!("{path}[{place}]"), before, after, found);
                }
            }
            _ => found.push(value_change(path, old, new)),
        },
        _ => found.push(value_change(path, old, new)),
    }
}

fn value_change(path: &str, old: &Value, new: &Value) -> ValueChange {
    let some = |value: &Value| Some(value.clone()).filter(|value| !value.is_null());
    ValueChange { path: path.to_owned(), from: some(old), to: some(new) }
}

/// Changes as a person reads them.
fn words(changes: &[ConfigChange]) -> String {
    let mut out = String::new();
    let mut section = "";
    for change in changes {
        if change.section != section {
            section = &change.section;
            let _ = writeln!(out, "{section}");
        }
        let restart = if change.needs_restart { " (needs a restart: an edit of it is refused)" } else { "" };
        let mark = match change.kind {
            ChangeKind::Added => '+',
            ChangeKind::Removed => '-',
            ChangeKind::Changed => '~',
        };
        // Escaped, so that no name acts on the terminal.
        let indent = match &change.name {
            Some(name) => {
                let _ = writeln!(out, "  {mark} {}{restart}", name.escape_debug());
                "      "
            }
            None => {
                if !restart.is_empty() {
                    let _ = writeln!(out, " {restart}");
                }
                "  "
            }
        };
        for value in &change.values {
            let path = value.path.escape_debug();
            let _ = match (&value.from, &value.to) {
                (Some(from), Some(to)) => writeln!(out, "{indent}{path}: {} -> {}", shown(from), shown(to)),
                (Some(from), None) => writeln!(out, "{indent}{path}: {} removed", shown(from)),
                (None, Some(to)) => writeln!(out, "{indent}{path}: {} added", shown(to)),
                (None, None) => Ok(()),
            };
        }
    }
    if out.is_empty() {
        out.push_str("no change\n");
    }
    out
}

/// Value without what has no text, in one line.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.escape_debug().to_string(),
        other => without_nulls(other).to_string().escape_debug().to_string().replace("\\\"", "\""),
    };
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.iter().filter(|(_, value)| !value.is_null());
            kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect::<Map<_, _>>().into()
        }
        Value::Array(list) => list.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_in_the_folder_of_a_copy_are_those_of_the_gateway() {
        let running =
            json!({"state": {"store": "/var/lib/spillway/state/spillway.db"}, "tls": ["/etc/spillway/a.pem"]});
        let mut edited =
            json!({"state": {"store": "/work/state/spillway.db"}, "tls": ["/work/a.pem", "/work/b.pem", "/work"]});
        settle_paths(&running, &mut edited, std::path::Path::new("/work"));
        let expected = json!({"state": running["state"], "tls": ["/etc/spillway/a.pem", "/work/b.pem", "/work"]});
        assert_eq!(edited, expected);
    }

    #[test]
    fn entries_are_told_by_name_and_values_by_path() {
        let old = json!({
            "admin": {"address": "127.0.0.1:9901", "hosts": []},
            "routes": [
                {"name": "a", "timeouts": {"request": "10m"}, "backendRefs": [{"name": "x", "weight": 95}, {"name": "y", "weight": 5}]},
                {"name": "b", "filters": [{"cors": {"maxAge": "1h"}}], "retry": null},
                {"name": "gone"},
            ],
            "prices": [{"model": "m", "input": 1.0}],
            "limits": {"bufferedBodies": "512MiB"},
        });
        let new = json!({
            "admin": {"address": "127.0.0.1:9902", "hosts": []},
            "routes": [
                {"name": "new"},
                {"name": "b", "filters": [{"cors": {"maxAge": "2h"}}], "retry": {"attempts": 2}},
                {"name": "a", "timeouts": {"request": "5m"}, "backendRefs": [{"name": "x", "weight": 95}, {"name": "z", "weight": 5}]},
            ],
            "prices": [{"model": "m", "input": 1.0}],
            "limits": {"bufferedBodies": "512MiB"},
        });
        assert_eq!(
            words(&changes(&old, &new)),
            "admin
  (needs a restart: an edit of it is refused)
  address: 127.0.0.1:9901 -> 127.0.0.1:9902
routes
  ~ a
      backendRefs[y]: {\"name\":\"y\",\"weight\":5} removed
      backendRefs[z]: {\"name\":\"z\",\"weight\":5} added
      timeouts.request: 10m -> 5m
  ~ b
      filters[0].cors.maxAge: 1h -> 2h
      retry: {\"attempts\":2} added
  - gone
  + new
  order: [\"a\",\"b\"] -> [\"b\",\"a\"]
"
        );
        assert_eq!(changes(&old, &old), []);
        assert_eq!(words(&[]), "no change\n");
    }

    #[test]
    fn keys_that_need_a_restart_are_known_by_their_paths() {
        for (path, is) in [
            ("admin.address", true),
            ("admin", true),
            ("administrator", false),
            ("telemetry.logs.format", true),
            ("telemetry.logs.access", false),
            ("state.budgets.sqlite", true),
        ] {
            assert_eq!(is_fixed(path), is, "{path}");
        }
    }
}
