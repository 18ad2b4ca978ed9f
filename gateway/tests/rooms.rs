//! The rooms of the gateway, which are the folders and files right under `src/`, import each other in one direction only,
//! and files of one folder make no new circles. Read from the `use` lines and paths of the source, without its tests.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot read the source must fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Source without comments and without the test module at its end.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") && !is_test(&path) {
            into.push(path);
        }
    }
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs" | "readers.rs")))
}

/// First names behind each `prefix` in a text, also those of a list in braces.
fn names_behind<'t>(text: &'t str, prefix: &str) -> Vec<&'t str> {
    let word = |text: &'t str| {
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
        &text[..end]
    };
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        if text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let behind = &text[at + prefix.len()..];
        match behind.strip_prefix('{') {
            Some(list) => {
                let mut depth = 0;
                for part in list.split_inclusive([',', '{', '}']) {
                    if depth == 0 {
                        names.push(word(part.trim_start()));
                    }
                    depth += i32::from(part.ends_with('{')) - i32::from(part.ends_with('}'));
                    if depth < 0 {
                        break;
                    }
                }
            }
            None => names.push(word(behind)),
        }
    }
    names
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn no_two_rooms_import_each_other() {
    let src = src();
    let mut all = Vec::new();
    files(&src, &mut all);
    let room = |path: &Path| {
        let first = path.strip_prefix(&src).unwrap().components().next().unwrap();
        first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
    };
    let rooms: BTreeSet<String> = all.iter().map(|path| room(path)).collect();
    let mut imports: BTreeMap<(String, String), BTreeSet<PathBuf>> = BTreeMap::new();
    for path in &all {
        let from = room(path);
        if from == "lib" || from == "main" {
            continue;
        }
        let code = code(path);
        for to in names_behind(&code, "crate::").into_iter().filter(|to| *to != from && rooms.contains(*to)) {
            imports.entry((from.clone(), to.to_owned())).or_default().insert(path.strip_prefix(&src).unwrap().into());
        }
    }
    assert!(imports.len() > 50, "only {} imports were found: the test reads the source wrongly", imports.len());
    let mutual: Vec<String> = imports
        .iter()
        .filter(|((from, to), _)| from < to)
        .filter_map(|((from, to), forth)| {
            let back = imports.get(&(to.clone(), from.clone()))?;
            Some(format!("{from} imports {to} in {forth:?}, and {to} imports {from} in {back:?}"))
        })
        .collect();
    assert!(mutual.is_empty(), "rooms that import each other:\n{}", mutual.join("\n"));
}

/// Modules of a folder: its files, and its folders with all that is in them.
fn modules(folder: &Path, all: &[PathBuf]) -> BTreeMap<String, Vec<PathBuf>> {
    let mut modules: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in all {
        let Ok(inner) = path.strip_prefix(folder) else { continue };
        let first = inner.components().next().unwrap().as_os_str().to_str().unwrap();
        let name = first.trim_end_matches(".rs");
        if name != "mod" {
            modules.entry(name.to_owned()).or_default().push(path.clone());
        }
    }
    modules
}

/// Names that a file imports from the folder that holds its module: by `super::`, once more for each folder between.
fn imports_of(path: &Path, folder: &Path) -> BTreeSet<String> {
    let code = code(path);
    let inner = path.strip_prefix(folder).unwrap();
    let is_root = inner.file_name().is_some_and(|name| name == "mod.rs");
    let depth = inner.components().count() - usize::from(is_root);
    names_behind(&code, &"super::".repeat(depth)).into_iter().map(str::to_owned).collect()
}

#[test]
fn modules_of_a_folder_make_no_circles() {
    let src = src();
    let mut all = Vec::new();
    files(&src, &mut all);
    let mut circles = Vec::new();
    let folders: BTreeSet<PathBuf> = all.iter().filter_map(|path| path.parent().map(Path::to_owned)).collect();
    for folder in folders.iter().filter(|folder| **folder != src) {
        let modules = modules(folder, &all);
        let imports: BTreeMap<&str, BTreeSet<String>> = modules
            .iter()
            .map(|(name, paths)| {
                let names = paths.iter().flat_map(|path| imports_of(path, folder));
                (name.as_str(), names.filter(|to| to != name && modules.contains_key(to)).collect())
            })
            .collect();
        for name in modules.keys() {
            if let Some(way) = way_back(name, &imports) {
                circles.push(format!("{}: {}", folder.strip_prefix(&src).unwrap().display(), way.join(" -> ")));
            }
        }
    }
    assert!(circles.is_empty(), "modules that import each other in a circle:\n{}", circles.join("\n"));
}

/// A way from a file over others back to itself, told once for each circle: from its first file by name.
fn way_back(start: &str, imports: &BTreeMap<&str, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut ways = vec![vec![start.to_owned()]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        let last = way.last()?;
        for next in imports.get(last.as_str()).into_iter().flatten() {
            if next == start {
                return way.iter().all(|file| file.as_str() >= start).then(|| {
                    let mut way = way.clone();
                    way.push(next.clone());
                    way
                });
            }
            if seen.insert(next.clone()) {
                let mut longer = way.clone();
                longer.push(next.clone());
                ways.push(longer);
            }
        }
    }
    None
}
