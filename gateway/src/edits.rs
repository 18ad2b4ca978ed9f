//! Edits of the configuration since the process began: the result of the last one, and the last few with what each changed.
//! Owns nothing of the configurations themselves; what is kept is made from those without secrets.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;
use spillway_config::Report;

use crate::clock::unix_seconds;
use crate::differences::{self, Difference, name_of, named};

/// Edits that are kept: a day of edits by hand, or one rollout by a pipeline.
const MAX_EDITS: usize = 10;
/// Longest text of what an edit changed, in bytes: more than a person reads.
const MAX_DIFF: usize = 64 << 10;
/// Most messages of a kept edit; the last edit has all of them.
const MAX_MESSAGES: usize = 100;

/// Result of the last edit, for operators.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastEdit {
    /// `ok` or `failed`.
    pub result: &'static str,
    /// Time of the edit, in Unix seconds.
    pub at: f64,
    /// Configuration file.
    pub file: PathBuf,
    /// Errors and warnings of the file.
    pub diagnostics: Report,
    /// Reasons why a valid file could not be run.
    pub errors: Vec<String>,
}

impl LastEdit {
    /// Result for the configuration that the process began with.
    pub fn started(path: &Path) -> Self {
        Self {
            result: "ok",
            at: unix_seconds(),
            file: path.to_owned(),
            diagnostics: Report::default(),
            errors: Vec::new(),
        }
    }
}

/// Edit that is kept, with what it changed.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptEdit {
    #[serde(flatten)]
    edit: LastEdit,
    /// Number of the snapshot that the edit made; `None` for one that was kept out.
    generation: Option<u64>,
    /// Lines of values that are gone (`-`) and that are new (`+`); `None` where the file could not be read as a
    /// configuration, and for the one that the process began with.
    diff: Option<String>,
    /// True if the text ends before the changes do.
    diff_cut: bool,
}

/// Edits of the configuration.
pub struct Edits {
    last: ArcSwap<LastEdit>,
    kept: Mutex<VecDeque<KeptEdit>>,
}

/// Values of two configurations without secrets.
#[derive(Debug, Clone, Copy)]
pub struct Change<'v> {
    /// Configuration that ran before the edit.
    pub before: &'v Value,
    /// Configuration of the edit.
    pub after: &'v Value,
}

impl Edits {
    /// Begins with the configuration that the process began with.
    pub fn started(path: &Path) -> Self {
        let edits = Self { last: ArcSwap::from_pointee(LastEdit::started(path)), kept: Mutex::default() };
        edits.keep(Some(1), None);
        edits
    }

    /// Result of the last edit.
    pub fn last(&self) -> Arc<LastEdit> {
        self.last.load_full()
    }

    /// Reports the result of an edit.
    pub fn report(&self, edit: LastEdit) {
        self.last.store(Arc::new(edit));
    }

    /// Keeps the edit that was reported last. Compares configurations: not for the runtime's threads.
    pub fn keep(&self, generation: Option<u64>, change: Option<Change<'_>>) {
        let mut edit = LastEdit::clone(&self.last());
        edit.diagnostics.diagnostics.truncate(MAX_MESSAGES);
        edit.errors.truncate(MAX_MESSAGES);
        let diff = change.map(|change| Diff::between(change.before, change.after));
        let diff_cut = diff.as_ref().is_some_and(|diff| diff.is_cut);
        let mut kept = self.kept.lock();
        kept.push_front(KeptEdit { edit, generation, diff: diff.map(|diff| diff.text), diff_cut });
        kept.truncate(MAX_EDITS);
    }

    /// The last edits, newest first.
    pub fn kept(&self) -> Vec<KeptEdit> {
        self.kept.lock().iter().cloned().collect()
    }
}

/// Text of the differences of two values. A line has the whole path of its value, so that it needs no lines around it.
#[derive(Default)]
struct Diff {
    text: String,
    is_cut: bool,
}

impl Diff {
    /// Writes what differs between two values.
    fn between(before: &Value, after: &Value) -> Self {
        let mut diff = Self::default();
        differences::between(before, after, |path, difference| {
            diff.write(path, difference);
            if diff.is_cut { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        diff
    }

    fn write(&mut self, path: differences::Path<'_>, difference: Difference<'_>) {
        let mut path = path.to_string();
        match difference {
            Difference::Values(before, after) => {
                self.whole('-', &mut path, before);
                self.whole('+', &mut path, after);
            }
            Difference::Lists(before, after) => {
                let differing =
                    (0..before.len().max(after.len())).filter(|place| before.get(*place) != after.get(*place));
                for place in differing {
                    within(&mut path, &format!("[{place}]"), |path| {
                        self.whole('-', path, before.get(place));
                        self.whole('+', path, after.get(place));
                    });
                }
            }
            Difference::Order(before, after) => within(&mut path, " in the order", |path| {
                self.line('-', path, &Value::from(before));
                self.line('+', path, &Value::from(after));
            }),
        }
    }

    /// Writes all values under a path.
    fn whole(&mut self, sign: char, path: &mut String, value: Option<&Value>) {
        match value {
            // A key without a value is not there.
            None | Some(Value::Null) => {}
            Some(Value::Object(members)) if !members.is_empty() => {
                let keys: BTreeSet<&String> = members.keys().collect();
                for key in keys {
                    let part = if path.is_empty() { key.clone() } else { format!(".{key}") };
                    within(path, &part, |path| self.whole(sign, path, members.get(key)));
                }
            }
            Some(Value::Array(items)) if items.iter().any(|item| item.is_object() || item.is_array()) => {
                let has_names = named(items).is_some();
                for (place, item) in items.iter().enumerate() {
                    let name = name_of(item).filter(|_| has_names);
                    let part = name.map_or_else(|| format!("[{place}]"), |name| format!("[{name}]"));
                    within(path, &part, |path| self.whole(sign, path, Some(item)));
                }
            }
            Some(value) => self.line(sign, path, value),
        }
    }

    fn line(&mut self, sign: char, path: &str, value: &Value) {
        let line = format!("{sign}{path}: {value}\n");
        if self.text.len() + line.len() > MAX_DIFF {
            self.is_cut = true;
        }
        if !self.is_cut {
            self.text.push_str(&line);
        }
    }
}

/// Does something with a longer path.
fn within(path: &mut String, part: &str, act: impl FnOnce(&mut String)) {
    let length = path.len();
    path.push_str(part);
    act(path);
    path.truncate(length);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn diff(before: &Value, after: &Value) -> String {
        let diff = Diff::between(before, after);
        assert!(!diff.is_cut);
        diff.text
    }

    #[test]
    fn a_line_names_the_value_that_differs() {
        let before = json!({
            "listeners": [{"address": "127.0.0.1:1", "limits": {"idle": "1m"}}],
            "routes": [{"name": "a", "weight": 1, "hosts": ["x"]}, {"name": "b", "weight": null}],
            "same": {"a": [1, {"b": 2}]},
        });
        let after = json!({
            "listeners": [{"address": "127.0.0.1:1", "limits": {"idle": "2m"}}, {"address": "127.0.0.1:2", "limits": {}}],
            "routes": [{"name": "c", "weight": 3, "tags": [{"name": "t", "of": 1}, 5]}, {"name": "a", "weight": 2, "hosts": ["x", "y"]}],
            "same": {"a": [1, {"b": 2}]},
        });
        let expected = "\
-listeners[0].limits.idle: \"1m\"
+listeners[0].limits.idle: \"2m\"
+listeners[1].address: \"127.0.0.1:2\"
+listeners[1].limits: {}
+routes[a].hosts[1]: \"y\"
-routes[a].weight: 1
+routes[a].weight: 2
-routes[b].name: \"b\"
+routes[c].name: \"c\"
+routes[c].tags[0].name: \"t\"
+routes[c].tags[0].of: 1
+routes[c].tags[1]: 5
+routes[c].weight: 3
";
        assert_eq!(diff(&before, &after), expected);
        assert_eq!(diff(&before, &before), "");
        let other = json!({"routes": [{"name": "b"}, {"name": "a"}]});
        let turned = json!({"routes": [{"name": "a"}, {"name": "c"}, {"name": "b"}]});
        let expected =
            "+routes[c].name: \"c\"\n-routes in the order: [\"b\",\"a\"]\n+routes in the order: [\"a\",\"b\"]\n";
        assert_eq!(diff(&other, &turned), expected);
        // Names that are no names of their own tell nothing apart.
        let twice = json!([{"name": "a", "v": 1}, {"name": "a", "v": 2}]);
        assert_eq!(diff(&twice, &json!([{"name": "a", "v": 1}, {"name": "a", "v": 3}])), "-[1].v: 2\n+[1].v: 3\n");
        assert_eq!(diff(&json!({"a": 1}), &json!({"a": [2]})), "-a: 1\n+a: [2]\n");
    }

    #[test]
    fn few_edits_are_kept_and_little_of_each() {
        let edits = Edits::started(Path::new("spillway.yaml"));
        let first = edits.kept();
        assert_eq!((first.len(), first[0].generation, first[0].diff.is_none()), (1, Some(1), true));
        let large = |of: &str| Value::from((0..5000).map(|n| json!(format!("{of}{n}"))).collect::<Vec<_>>());
        for generation in 2..40 {
            edits.report(LastEdit { errors: vec!["x".to_owned(); 500], ..LastEdit::started(Path::new("a")) });
            edits.keep(Some(generation), Some(Change { before: &large("a"), after: &large("b") }));
        }
        let kept = edits.kept();
        let generations: Vec<_> = kept.iter().filter_map(|edit| edit.generation).collect();
        assert_eq!(generations, (30..40).rev().collect::<Vec<_>>());
        let diff = kept[0].diff.as_ref().unwrap();
        assert!(kept[0].diff_cut && diff.len() <= MAX_DIFF && diff.len() > MAX_DIFF - 100 && diff.ends_with('\n'));
        assert_eq!(kept[0].edit.errors.len(), MAX_MESSAGES);
    }
}
