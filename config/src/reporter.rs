//! Messages about a configuration while it is read: each with its file, its line and the path in that file. Values of the
//! environment are removed from them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::check::Mistake;
use crate::diagnostic::{Diagnostic, Report, Severity};
use crate::literal;
use crate::origin::{Origins, shown_line};
use crate::tree::{Node, Value};

/// Most messages of a report; more of them have one cause.
pub(crate) const MAX_MISTAKES: usize = 100;

/// File of a configuration, as messages show it.
struct SourceFile {
    /// Path as messages name it.
    shown: PathBuf,
    /// Absolute path.
    whole: PathBuf,
    text: Box<str>,
}

impl SourceFile {
    fn new(shown: PathBuf, whole: PathBuf, text: &str) -> Self {
        Self { shown, whole, text: text.into() }
    }
}

/// Collects the messages about a configuration, which may have several files.
pub(crate) struct Reporter {
    first: SourceFile,
    /// Files that the first includes; their numbers begin with 1.
    further: Vec<SourceFile>,
    /// Numbers of the files of the items of each list at the top level, where there are several files.
    owners: BTreeMap<String, Vec<u32>>,
    /// Messages so far.
    pub(crate) report: Report,
    /// Values that messages must not show.
    pub(crate) origins: Origins,
}

impl Reporter {
    /// Reporter of a configuration whose first file is `path`.
    pub(crate) fn new(path: &Path, text: &str) -> Self {
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut origins = Origins::default();
        literal::of_text(text, &mut |literal| origins.add_literal(literal));
        Self {
            first: SourceFile::new(path.to_owned(), whole, text),
            further: Vec::new(),
            owners: BTreeMap::new(),
            report: Report::default(),
            origins,
        }
    }

    /// Adds a file that is included, by its absolute path; returns its number.
    pub(crate) fn add_file(&mut self, whole: &Path, text: &str) -> u32 {
        literal::of_text(text, &mut |literal| self.origins.add_literal(literal));
        // Named as the first file is: relative where that is.
        let folder = |path: &Path| path.parent().unwrap_or(Path::new("")).to_owned();
        let below = whole.strip_prefix(folder(&self.first.whole)).ok();
        let shown = below.map_or_else(|| whole.to_owned(), |below| folder(&self.first.shown).join(below));
        self.further.push(SourceFile::new(shown, whole.to_owned(), text));
        u32::try_from(self.further.len()).unwrap_or(u32::MAX)
    }

    /// Number of the files.
    pub(crate) fn files(&self) -> usize {
        self.further.len() + 1
    }

    /// True for a file that was added.
    pub(crate) fn is_known(&self, whole: &Path) -> bool {
        self.first.whole == whole || self.further.iter().any(|file| file.whole == whole)
    }

    fn source(&self, file: u32) -> &SourceFile {
        usize::try_from(file)
            .ok()
            .and_then(|file| file.checked_sub(1))
            .and_then(|n| self.further.get(n))
            .unwrap_or(&self.first)
    }

    /// Path of a file as messages name it.
    pub(crate) fn file(&self, file: u32) -> &Path {
        &self.source(file).shown
    }

    /// Absolute path of a file.
    pub(crate) fn absolute(&self, file: u32) -> PathBuf {
        self.source(file).whole.clone()
    }

    /// Notes the credentials that stand in a document.
    pub(crate) fn note_literals(&mut self, root: &Node) {
        literal::of_document(root, &mut |literal| self.origins.add_literal(literal));
    }

    /// Notes which items of the lists at the top level stand in which file.
    pub(crate) fn set_owners(&mut self, root: &Node) {
        let Value::Mapping(entries) = &root.value else { return };
        if self.further.is_empty() {
            return;
        }
        for (key, node) in entries {
            if let Value::Sequence(items) = &node.value {
                self.owners.insert(key.name.to_string(), items.iter().map(|item| item.place.file).collect());
            }
        }
    }

    /// Path in the document of one file, for a path in the document of all.
    fn own_path(&self, path: &str, file: u32) -> String {
        let own = || {
            let (key, rest) = path.split_once('[')?;
            let (index, rest) = rest.split_once(']')?;
            let owners = self.owners.get(key)?.get(..index.parse().ok()?)?;
            Some(format!("{key}[{}]{rest}", owners.iter().filter(|owner| **owner == file).count()))
        };
        own().unwrap_or_else(|| path.to_owned())
    }

    /// Path in the document as text; with its file where there are several.
    pub(crate) fn place(&self, path: &str, file: u32) -> String {
        let own = self.own_path(path, file);
        if self.further.is_empty() { own } else { format!("{own} in {}", self.file(file).display()) }
    }

    /// Adds a message.
    pub(crate) fn add(&mut self, severity: Severity, mistake: Mistake) {
        if self.report.diagnostics.len() >= MAX_MISTAKES {
            // Warnings must not hide that there is an error.
            if severity == Severity::Warning || self.report.has_errors() {
                return;
            }
            self.report.diagnostics.pop();
        }
        let source = self.source(mistake.place.file);
        let whole = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        let line = whole(mistake.place.line).saturating_sub(1);
        let diagnostic = Diagnostic {
            severity,
            file: source.shown.clone(),
            line: whole(mistake.place.line),
            column: whole(mistake.place.column),
            width: whole(mistake.place.width),
            message: self.origins.redact_at(&mistake.path, &mistake.message),
            help: mistake.help.map(|help| self.origins.redact_at(&mistake.path, &help)),
            path: self.own_path(&mistake.path, mistake.place.file),
            source: shown_line(source.text.lines().nth(line).unwrap_or_default(), &self.origins),
        };
        self.report.diagnostics.push(diagnostic);
    }

    /// Report in the order of the files and lines.
    pub(crate) fn finish(mut self) -> Report {
        let files = [&self.first].into_iter().chain(&self.further);
        let order: BTreeMap<&Path, usize> = files.enumerate().map(|(n, file)| (file.shown.as_path(), n)).collect();
        let number = |file: &Path| order.get(file).copied().unwrap_or(usize::MAX);
        self.report.diagnostics.sort_by_key(|d| (number(&d.file), d.line, d.column));
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Place;

    #[test]
    fn many_warnings_hide_no_error() {
        let mut reporter = Reporter::new(Path::new("a.yaml"), "a: 1\n");
        let mistake =
            |n: usize| Mistake { place: Place::default(), path: String::new(), message: n.to_string(), help: None };
        for n in 0..2 * MAX_MISTAKES {
            reporter.add(Severity::Warning, mistake(n));
        }
        assert!(!reporter.report.has_errors());
        reporter.add(Severity::Error, mistake(7));
        reporter.add(Severity::Error, mistake(8));
        let report = reporter.finish();
        assert!(report.has_errors());
        assert_eq!(report.diagnostics.len(), MAX_MISTAKES);
    }
}
