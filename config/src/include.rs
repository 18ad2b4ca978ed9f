//! `include`: further files, found by patterns beside the first one. Their keys are added to those of the first: lists are
//! joined, and every other key stands in one file. Nodes keep the number of their file, so that each message names its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::check::Mistake;
use crate::diagnostic::Severity;
use crate::files::{is_pattern, matching, read_text};
use crate::reporter::Reporter;
use crate::tree::{self, Key, MAX_MEMORY, Node, Place, Value};

/// Most files that `include` adds: each is read and watched.
const MAX_FILES: usize = 1_000;
/// Key with the patterns.
const INCLUDE: &str = "include";

/// Adds the files that `include` names to the document of the first file, and reports mistakes about them. `path` is the
/// absolute path of the first file. Returns the files and patterns to watch.
pub(crate) fn include(root: &mut Node, path: &Path, reporter: &mut Reporter) -> BTreeSet<PathBuf> {
    let mut watched = BTreeSet::from([path.to_owned()]);
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut memory = tree::size(root).memory;
    for (place, pattern) in patterns(root) {
        let whole = folder.join(&pattern);
        let files = if is_pattern(&whole) { matching(&whole) } else { vec![whole.clone()] };
        watched.insert(whole);
        if files.is_empty() {
            let message = format!("no file matches `{pattern}`: correct it, or ignore this until there are some");
            reporter.add(Severity::Warning, mistake(place, message));
        }
        for file in files {
            watched.insert(file.clone());
            if reporter.is_known(&file) {
                continue;
            }
            if reporter.files() > MAX_FILES {
                let message = format!("more than {MAX_FILES} files; expected at most that: join some of them");
                reporter.add(Severity::Error, mistake(place, message));
                return watched;
            }
            let Some(document) = read(&file, place, reporter) else { continue };
            memory = memory.saturating_add(tree::size(&document).memory);
            if memory > MAX_MEMORY {
                let most = MAX_MEMORY >> 20;
                let message = format!("the values of all files together take more than {most} MiB; expected fewer");
                reporter.add(Severity::Error, mistake(place, message));
                return watched;
            }
            add(root, document, reporter);
        }
    }
    watched
}

fn mistake(place: Place, message: String) -> Mistake {
    Mistake { place, path: INCLUDE.to_owned(), message, help: None }
}

/// Patterns of the document; values that are none are left to the check of its keys.
fn patterns(root: &Node) -> Vec<(Place, String)> {
    let Some(Value::Sequence(items)) = root.get(INCLUDE).map(|node| &node.value) else { return Vec::new() };
    let texts = items.iter().filter_map(|item| match &item.value {
        Value::String(text) => Some((item.place, text.clone())),
        _ => None,
    });
    texts.collect()
}

/// Reads one file as a document whose nodes have its number.
fn read(file: &Path, place: Place, reporter: &mut Reporter) -> Option<Node> {
    if file.to_str().is_none() {
        let message = format!(
            "the path {} is not UTF-8; expected UTF-8, because paths of the file are joined to it",
            file.display()
        );
        reporter.add(Severity::Error, mistake(place, message));
        return None;
    }
    let text = match read_text(file) {
        Ok(text) => text,
        Err(e) => {
            reporter.add(Severity::Error, mistake(place, format!("cannot read {}: {e}", file.display())));
            return None;
        }
    };
    let number = reporter.add_file(file, &text);
    match tree::parse(&text) {
        Ok(mut document) => {
            document.set_file(number);
            document.remove_extensions();
            Some(document)
        }
        Err(e) => {
            let place = Place { file: number, ..e.place };
            let mistake = Mistake { place, path: String::new(), message: e.message, help: None };
            reporter.add(Severity::Error, mistake);
            None
        }
    }
}

/// Adds the keys of a document to those of the first.
fn add(root: &mut Node, document: Node, reporter: &mut Reporter) {
    let found = document.describe();
    let entries = match document.value {
        Value::Mapping(entries) => entries,
        // An empty file.
        Value::Null => return,
        _ => {
            let message = format!("found {found}; expected keys such as `routes` and `backends`");
            reporter.add(Severity::Error, Mistake { path: String::new(), ..mistake(document.place, message) });
            return;
        }
    };
    let Value::Mapping(all) = &mut root.value else { return };
    for (key, node) in entries {
        if *key.name == *INCLUDE {
            let message = "an included file includes no further ones; expected them in the first file: name them there";
            reporter.add(Severity::Error, mistake(key.place, message.to_owned()));
            continue;
        }
        match all.iter_mut().find(|(known, _)| known.name == key.name) {
            None => all.push((key, node)),
            Some((first, known)) => join(first, known, &key, node, reporter),
        }
    }
}

/// Joins two lists; reports two values of a key that is no list.
fn join(first: &Key, known: &mut Node, key: &Key, node: Node, reporter: &mut Reporter) {
    match (&mut known.value, node.value) {
        (Value::Sequence(items), Value::Sequence(more)) => items.extend(more),
        _ => {
            let (name, line) = (&key.name, first.place.line);
            let other = reporter.file(first.place.file).display().to_string();
            let message = format!("duplicate key `{name}`, first in {other} on line {line}: keep one of them");
            reporter.add(Severity::Error, Mistake { path: name.to_string(), ..mistake(key.place, message) });
        }
    }
}
