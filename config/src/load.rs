//! Loading of a configuration: text becomes a tree with positions, keys and types are checked against the schema, then it
//! is decoded, and references and sense are checked. All mistakes of a step are reported together.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::catalog::FilterCatalog;
use crate::check::{Checker, Mistake};
use crate::diagnostic::{Report, Severity};
use crate::files::read_text;
use crate::include::include;
use crate::json_schema::json_schema;
use crate::named::resolve_names;
use crate::origin::Origins;
use crate::reporter::Reporter;
use crate::schema::{Config, Endpoint, Model};
use crate::tree::{self, Node, Value};
use crate::validate::{self, Segment};

/// Environment variable with the folder at which relative paths begin that the gateway writes: where the configuration lies in a folder
/// that nobody may write to, as in a container.
const STATE_FOLDER: &str = "SPILLWAY_STATE_DIR";

/// Reason why a file cannot be used; its text becomes the message at the key that names the file.
pub type FileError = Box<dyn std::error::Error + Send + Sync>;

/// Checks of the content of files, which need parsers that this crate does not have. The same for `check` and `serve`.
pub trait FileChecks {
    /// Checks that a model file can be run; the error is a message for the person who wrote the path.
    fn model(&self, path: &Path) -> Result<(), FileError>;
    /// Checks that a certificate and its key belong together; the error names the file that is at fault. Returns warnings:
    /// a certificate that has expired, or one of a server that has no name.
    fn certificate(&self, cert: &Path, key: &Path, server: bool) -> Result<Vec<String>, FileError>;
    /// Checks that a file holds authorities.
    fn authorities(&self, path: &Path) -> Result<(), FileError>;
}

/// Accepts every file unread.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFileChecks;

impl FileChecks for NoFileChecks {
    fn model(&self, _: &Path) -> Result<(), FileError> {
        Ok(())
    }
    fn certificate(&self, _: &Path, _: &Path, _: bool) -> Result<Vec<String>, FileError> {
        Ok(Vec::new())
    }
    fn authorities(&self, _: &Path) -> Result<(), FileError> {
        Ok(())
    }
}

/// Inputs of loading beside the file itself.
pub struct LoadOptions<'a> {
    /// Filters that a configuration may name.
    pub catalog: &'a dyn FilterCatalog,
    /// Environment variables.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Checks of the files that a configuration names.
    pub files: &'a dyn FileChecks,
    /// Missing files and variables are warnings.
    pub offline: bool,
    /// True if the program has a client for Kubernetes.
    pub kubernetes: bool,
}

/// Checked configuration.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Configuration whose paths are absolute.
    pub config: Config,
    /// Warnings; there are no errors.
    pub warnings: Report,
    /// Files that were read or are named, to be watched.
    pub files: Vec<PathBuf>,
    /// Values that came from the environment.
    pub origins: Origins,
}

impl Loaded {
    /// Configuration that may be shown: without digests of keys, and with `${NAME}` as in the file. Secrets of `{env}` and
    /// `{file}` are references, and hold no value.
    pub fn shown(&self) -> serde_json::Value {
        let mut shown = serde_json::to_value(&self.config).unwrap_or_default();
        for consumer in shown.get_mut("consumers").and_then(Json::as_array_mut).into_iter().flatten() {
            for key in ["keys", "keysFile"] {
                if let Some(value) = consumer.get_mut(key) {
                    *value = if value.is_array() { Json::Array(Vec::new()) } else { Json::Null };
                }
            }
        }
        self.origins.redact_config(&mut shown);
        shown
    }
}

/// Reads and checks a file. A report of mistakes names the files that were looked at before they were found.
pub fn load(path: &Path, options: &LoadOptions<'_>) -> Result<Loaded, Report> {
    load_text(path, &read(path)?, options)
}

fn read(path: &Path) -> Result<String, Report> {
    read_text(path).map_err(|e| Report::of_file(path, format!("cannot read the file: {e}")))
}

/// Checks the text of a file, with the files that it includes.
pub fn load_text(path: &Path, text: &str, options: &LoadOptions<'_>) -> Result<Loaded, Report> {
    let mut reporter = Reporter::new(path, text);
    let mut root = match tree::parse(text) {
        Ok(root) => root,
        Err(e) => {
            let mistake = Mistake { place: e.place, path: String::new(), message: e.message, help: None };
            reporter.add(Severity::Error, mistake);
            return Err(reporter.report);
        }
    };
    root.remove_extensions();
    let mut files = include(&mut root, &reporter.absolute(0), &mut reporter);
    reporter.set_owners(&root);
    reporter.note_literals(&root);
    let judged = judge(&root_with_environment(root, options, &mut reporter), &mut files, options, &mut reporter);
    let files = files.into_iter().collect();
    match judged {
        Ok(config) if !reporter.report.has_errors() => {
            let origins = std::mem::take(&mut reporter.origins);
            Ok(Loaded { config, warnings: reporter.finish(), files, origins })
        }
        Ok(_) | Err(Unread::Reported) => Err(Report { files, ..reporter.finish() }),
        Err(Unread::File(report)) => Err(Report { files, ..report }),
    }
}

/// Reason why no configuration was decoded.
enum Unread {
    /// Mistakes that the reporter has.
    Reported,
    /// A mistake of the file as a whole.
    File(Report),
}

/// The document with the values of the environment.
fn root_with_environment(mut root: Node, options: &LoadOptions<'_>, reporter: &mut Reporter) -> Node {
    substitute(&mut root, &mut Vec::new(), options, reporter);
    root
}

/// Checks a document and decodes it; adds its mistakes to `reporter`, and the files that it names to `files`.
fn judge(
    root: &Node,
    files: &mut BTreeSet<PathBuf>,
    options: &LoadOptions<'_>,
    reporter: &mut Reporter,
) -> Result<Config, Unread> {
    let schema = json_schema(options.catalog);
    let mut checker = Checker::new(&schema);
    checker.walk(root, &schema, "");
    for mistake in checker.mistakes {
        reporter.add(Severity::Error, mistake);
    }
    if reporter.report.has_errors() {
        return Err(Unread::Reported);
    }
    if reporter.absolute(0).parent().unwrap_or(Path::new("")).to_str().is_none() {
        let message = "the path of the folder is not UTF-8; expected UTF-8, because paths of the file are joined to it";
        return Err(Unread::File(Report::of_file(reporter.file(0), message)));
    }
    let mut json = root.to_json();
    let folder = |at: &[Segment]| {
        let file = reporter.absolute(locate(root, at).file);
        file.parent().unwrap_or(Path::new("")).to_owned()
    };
    let state = (options.env)(STATE_FOLDER).filter(|folder| !folder.is_empty());
    let state = state.and_then(|folder| std::path::absolute(folder).ok());
    let named = resolve_names(&mut json, &schema, &folder, state.as_deref());
    let mut config: Config = match serde_json::from_value(json) {
        Ok(config) => config,
        Err(e) => {
            // The schema accepted a value that the types do not: a fault of this program, reported all the same.
            let message = reporter.origins.redact(&format!("cannot be decoded: {e}"));
            return Err(Unread::File(Report::of_file(reporter.file(0), message)));
        }
    };
    files.extend(named.iter().filter_map(|named| named.what.watched()).map(Path::to_owned));
    files.extend(config.models.iter().flat_map(Model::files));
    let mut further = Report::default();
    for backend in &mut config.backends {
        // A file that does not exist is reported with all others.
        let Some(file) = backend.endpoints_file.clone().filter(|file| file.is_file()) else { continue };
        match endpoints(&file, &schema) {
            Ok(endpoints) => backend.endpoints.extend(endpoints),
            Err(report) => further.diagnostics.extend(report.diagnostics),
        }
    }
    if further.has_errors() {
        for diagnostic in &mut further.diagnostics {
            diagnostic.file = reporter.origins.redact(&diagnostic.file.to_string_lossy()).into();
        }
        reporter.report.diagnostics.append(&mut further.diagnostics);
        return Err(Unread::Reported);
    }
    let findings = {
        let place = |at: Vec<Segment>| reporter.place(&validate::text(&at), locate(root, &at).file);
        let index = validate::Index::new(&config);
        let mut context = validate::Context {
            config: &config,
            index: &index,
            named: &named,
            options,
            place: &place,
            findings: Vec::new(),
        };
        validate::all(&mut context);
        context.findings
    };
    for finding in findings {
        let place = locate(root, &finding.at);
        let path = validate::text(&finding.at);
        let mistake = Mistake { place, path, message: finding.message, help: finding.help };
        reporter.add(finding.severity, mistake);
    }
    Ok(config)
}

/// Reads the endpoints of a file that other programs write.
fn endpoints(path: &Path, schema: &serde_json::Value) -> Result<Vec<Endpoint>, Report> {
    let text = read(path)?;
    let mut reporter = Reporter::new(path, &text);
    let root = match tree::parse(&text) {
        Ok(root) => root,
        Err(e) => {
            reporter
                .add(Severity::Error, Mistake { place: e.place, path: String::new(), message: e.message, help: None });
            return Err(reporter.report);
        }
    };
    let list = serde_json::json!({"type": "array", "items": {"$ref": "#/$defs/Endpoint"}});
    let mut checker = Checker::new(schema);
    checker.walk(&root, &list, "");
    for mistake in checker.mistakes {
        reporter.add(Severity::Error, mistake);
    }
    if reporter.report.has_errors() {
        return Err(reporter.finish());
    }
    serde_json::from_value(root.to_json()).map_err(|e| Report::of_file(path, format!("cannot be decoded: {e}")))
}

/// Replaces `${NAME}` and `${NAME:-default}` by their values, and records where.
fn substitute(node: &mut Node, at: &mut Vec<Segment>, options: &LoadOptions<'_>, reporter: &mut Reporter) {
    match &mut node.value {
        Value::Sequence(items) => {
            for (n, item) in items.iter_mut().enumerate() {
                at.push(Segment::Index(n));
                substitute(item, at, options, reporter);
                at.pop();
            }
        }
        Value::Mapping(entries) => {
            for (key, child) in entries {
                at.push(Segment::Key(key.name.to_string()));
                substitute(child, at, options, reporter);
                at.pop();
            }
        }
        Value::String(text) if text.contains("${") => {
            let (mut out, mut parts) = (String::new(), Vec::new());
            let mut rest = text.as_str();
            while let Some((before, after)) = rest.split_once("${") {
                out.push_str(before);
                let Some((inside, tail)) = after.split_once('}') else {
                    out.push_str("${");
                    rest = after;
                    continue;
                };
                let (name, default) = inside.split_once(":-").map_or((inside, None), |(n, d)| (n, Some(d)));
                let value = (options.env)(name).filter(|value| !value.is_empty() || default.is_none());
                match (value, default) {
                    (Some(value), _) => {
                        out.push_str(&value);
                        parts.push((format!("${{{inside}}}"), value));
                    }
                    (None, Some(default)) => out.push_str(default),
                    (None, None) => {
                        let severity = if options.offline { Severity::Warning } else { Severity::Error };
                        reporter.add(
                            severity,
                            Mistake {
                                place: node.place,
                                path: validate::text(at),
                                message: format!("the environment variable `{name}` is not set"),
                                help: Some(format!("set it, or give a default: ${{{name}:-value}}")),
                            },
                        );
                    }
                }
                rest = tail;
            }
            out.push_str(rest);
            if !parts.is_empty() {
                reporter.origins.add(at, text, &out, parts);
            }
            *text = out;
        }
        _ => {}
    }
}

/// Position of a value, or of the nearest node around it.
fn locate(root: &Node, at: &[Segment]) -> tree::Place {
    let mut node = root;
    for segment in at {
        let next = match segment {
            Segment::Key(key) => node.get(key),
            Segment::Index(index) => node.at(*index),
        };
        match next {
            Some(next) => node = next,
            None => break,
        }
    }
    node.place
}
