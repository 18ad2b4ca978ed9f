//! `spillway diff`: what an edit would change in a running gateway, without applying it. Compares the configuration that the
//! gateway runs with a file that is judged as `check` does, both with their defaults, and tells which of the requests that the
//! gateway had lately would go elsewhere. Keys of consumers are not compared, since the gateway shows none.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};
use spillway_config::schema::{Config, Listener};
use spillway_filter::Registry;

use super::admin::{AdminArguments, ClientError};
use super::{FAILED, WRONG, block_on, fail};
use crate::differences::{self, Difference, Part, Path};
use crate::load::read;
use crate::pipeline::replay;
use crate::reload::FIXED_KEYS;
use crate::server;
use crate::snapshot::Snapshot;
use crate::telemetry::RecentHead;

/// Further key that an edit cannot change: the budgets are in the file that is open.
const BUDGETS: &str = "state.budgets.sqlite";
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
        let snapshot = match server::judge(&loaded, registry, true).await {
            Ok(snapshot) => snapshot,
            Err(errors) => return fail(WRONG, &errors.join("\n")),
        };
        match running(&arguments.admin).await {
            Ok(Some(running)) => {
                let mut edited = loaded.shown();
                if let Some(folder) =
                    std::path::absolute(&arguments.file).ok().as_deref().and_then(std::path::Path::parent)
                {
                    settle_paths(&running, &mut edited, folder);
                }
                let changes = changes(&running, &edited);
                let requests = match recent(&arguments.admin).await {
                    Ok(heads) => Replay::of(&snapshot, &loaded.config, &heads),
                    Err(e) => return fail(FAILED, &e),
                };
                if arguments.json {
                    let all = serde_json::json!({ "changes": changes, "requests": requests });
                    println!("{}", serde_json::to_string_pretty(&all).unwrap_or_default());
                } else {
                    print!("{}", words(&changes));
                    // The same configuration sends every request to the same place.
                    if !changes.is_empty() {
                        print!("{}", requests.words());
                    }
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

/// Heads of the requests that the gateway had lately.
async fn recent(admin: &AdminArguments) -> Result<Vec<ShownHead>, ClientError> {
    let page = admin.get("/api/requests/recent").await?;
    Ok(admin.parse::<RecentRequests>(&page)?.heads)
}

/// Page of the admin address with these heads.
#[derive(serde::Deserialize)]
struct RecentRequests {
    heads: Vec<ShownHead>,
}

/// Head of a request, with where the gateway sends it.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct ShownHead {
    #[serde(flatten)]
    head: RecentHead,
    first_target: Option<String>,
}

/// Place to which a request goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Place {
    /// Route; `None` where none takes the request.
    route: Option<String>,
    /// Target that is tried first, or those among which is drawn, with their weights.
    target: Option<String>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.route, self.target.as_deref().filter(|target| !target.is_empty())) {
            (None, _) => f.write_str("no route"),
            (Some(route), None) => write!(f, "{}", route.escape_debug()),
            (Some(route), Some(target)) => write!(f, "{} ({})", route.escape_debug(), target.escape_debug()),
        }
    }
}

/// Requests that go from one place to another.
#[derive(Debug, Serialize)]
struct Moved {
    from: Place,
    to: Place,
    requests: usize,
    /// The last of them: method, host and path.
    example: String,
}

/// Requests for which it cannot be told where they go.
#[derive(Debug, Serialize)]
struct Unknown {
    reason: String,
    requests: usize,
    /// The last of them.
    example: String,
}

/// Places of the requests of late in the edited configuration.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Replay {
    /// Number of requests of which the gateway keeps the heads.
    kept: usize,
    moved: Vec<Moved>,
    not_replayed: Vec<Unknown>,
}

impl Replay {
    fn of(snapshot: &Snapshot, config: &Config, heads: &[ShownHead]) -> Self {
        let listeners: HashSet<String> = config.listeners.iter().map(Listener::shown_name).collect();
        let mut moved: BTreeMap<(Place, Place), (usize, String)> = BTreeMap::new();
        let mut unknown: BTreeMap<String, (usize, String)> = BTreeMap::new();
        for shown in heads {
            let head = &shown.head;
            let example = || format!("{} {}{}", head.method, head.host.as_deref().unwrap_or_default(), head.path);
            let replayed = if listeners.contains(&head.listener) {
                replay(snapshot, head).map_err(|why| why.to_string())
            } else {
                Err(format!("the file has no listener `{}`", head.listener))
            };
            match replayed {
                Ok(route) => {
                    let from = Place { route: head.route.clone(), target: shown.first_target.clone() };
                    let target = route.as_ref().map(|route| route.first_targets(head.model.as_deref()));
                    let to = Place { route: route.map(|route| route.name.clone()), target };
                    if from != to {
                        moved.entry((from, to)).or_insert_with(|| (0, example())).0 += 1;
                    }
                }
                Err(why) => unknown.entry(why).or_insert_with(|| (0, example())).0 += 1,
            }
        }
        let mut moved: Vec<Moved> =
            moved.into_iter().map(|((from, to), (requests, example))| Moved { from, to, requests, example }).collect();
        moved.sort_by_key(|moved| std::cmp::Reverse(moved.requests));
        let not_replayed =
            unknown.into_iter().map(|(reason, (requests, example))| Unknown { reason, requests, example }).collect();
        Self { kept: heads.len(), moved, not_replayed }
    }

    /// Places as a person reads them.
    fn words(&self) -> String {
        let count = |requests: usize| format!("{requests} request{}", if requests == 1 { "" } else { "s" });
        let mut out = String::new();
        if self.kept == 0 {
            out.push_str("requests: the gateway has kept none since its last edit\n");
            return out;
        }
        let known = self.kept - self.not_replayed.iter().map(|unknown| unknown.requests).sum::<usize>();
        let _ = writeln!(out, "requests: {known} of the last {} tried", self.kept);
        for Moved { from, to, requests, example } in &self.moved {
            let _ = writeln!(out, "  {from} -> {to}: {}, such as {}", count(*requests), example.escape_debug());
        }
        if self.moved.is_empty() && known > 0 {
            out.push_str("  none goes elsewhere\n");
        }
        for Unknown { reason, requests, example } in &self.not_replayed {
            let reason = reason.escape_debug();
            let _ = writeln!(out, "  not tried: {}, such as {}: {reason}", count(*requests), example.escape_debug());
        }
        out
    }
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
    let mut found: Vec<ConfigChange> = Vec::new();
    differences::between(old, new, |path, difference| {
        add(path, difference, &mut found);
        ControlFlow::Continue(())
    });
    found
}

/// Adds a difference to the change of its entry, or of its part without entries. Those of one entry follow one another.
fn add(path: Path<'_>, difference: Difference<'_>, found: &mut Vec<ConfigChange>) {
    let [Part::Member(section), within @ ..] = path.0 else { return };
    let is_fixed = is_fixed(&path.to_string());
    let (name, within) = match within {
        [Part::Entry(name), within @ ..] => (Some(*name), within),
        within => (None, within),
    };
    let path = Path(within).to_string();
    let (kind, value) = match difference {
        Difference::Values(None, Some(_)) if name.is_some() && within.is_empty() => (ChangeKind::Added, None),
        Difference::Values(Some(_), None) if name.is_some() && within.is_empty() => (ChangeKind::Removed, None),
        Difference::Values(from, to) => {
            (ChangeKind::Changed, Some(ValueChange { path, from: from.cloned(), to: to.cloned() }))
        }
        Difference::Lists(from, to) => {
            (ChangeKind::Changed, Some(ValueChange { path, from: Some(from.into()), to: Some(to.into()) }))
        }
        // The order decides between routes that match alike.
        Difference::Order(from, to) => {
            let path = if path.is_empty() { "order".to_owned() } else { format!("{path}.order") };
            (ChangeKind::Changed, Some(ValueChange { path, from: Some(from.into()), to: Some(to.into()) }))
        }
    };
    let is_same = |last: &&mut ConfigChange| {
        last.section == *section && last.name.as_deref() == name && last.kind == ChangeKind::Changed
    };
    match found.last_mut().filter(|last| kind == ChangeKind::Changed && is_same(last)) {
        Some(last) => {
            last.needs_restart |= is_fixed;
            last.values.extend(value);
        }
        None => found.push(ConfigChange {
            section: (*section).to_owned(),
            name: name.map(str::to_owned),
            kind,
            needs_restart: is_fixed,
            values: value.into_iter().collect(),
        }),
    }
}

/// True for a key that only a restart changes.
fn is_fixed(path: &str) -> bool {
    let is_in = |key: &str| path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    FIXED_KEYS.into_iter().chain([BUDGETS]).any(is_in)
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
