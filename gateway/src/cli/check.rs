//! `spillway check`: judges configurations without running them, for persons, programs and services that build and review.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::ValueEnum;
use serde_json::{Value, json};
use spillway_config::values::Size;
use spillway_config::{Diagnostic, Loaded, Report, Severity};
use spillway_filter::Registry;

use super::WRONG;
use crate::load::{read, read_text};
use crate::server;

/// Name of standard input in messages.
const STANDARD_INPUT: &str = "<stdin>";

/// Rules of a SARIF log, which has no others: a configuration is wrong, or is most likely not what was meant.
const RULES: [(Severity, &str, &str); 2] = [
    (Severity::Error, "configuration-error", "The configuration cannot be used."),
    (Severity::Warning, "configuration-warning", "The configuration can be used, but may not be what was meant."),
];

/// Form of what is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum CheckFormat {
    /// Words for a terminal.
    #[default]
    Text,
    /// One JSON object.
    Json,
    /// SARIF 2.1.0, for services that show findings beside the code.
    Sarif,
    /// Workflow commands of GitHub Actions, which mark the lines of a change.
    Github,
}

/// Configuration that is judged.
enum Input<'f> {
    /// A file.
    File(&'f Path),
    /// Standard input, read once.
    Standard(std::io::Result<String>),
}

impl<'f> Input<'f> {
    fn of(file: &'f Path) -> Self {
        if file == Path::new("-") {
            Self::Standard(spillway_config::read_input(std::io::stdin().lock()))
        } else {
            Self::File(file)
        }
    }

    fn name(&self) -> &'f Path {
        match self {
            Self::File(file) => file,
            Self::Standard(_) => Path::new(STANDARD_INPUT),
        }
    }

    fn read(&self, registry: &Registry, offline: bool) -> Result<Loaded, Report> {
        match self {
            Self::File(file) => read(file, registry, offline),
            Self::Standard(Ok(text)) => read_text(self.name(), text, registry, offline),
            Self::Standard(Err(e)) => Err(Report::of_file(self.name(), format!("cannot read standard input: {e}"))),
        }
    }
}

/// Findings about one configuration.
struct CheckedFile {
    name: PathBuf,
    report: Report,
    /// Reasons not to run it that have no place in the file.
    faults: Vec<String>,
}

impl CheckedFile {
    fn counts(&self) -> (usize, usize) {
        let (errors, warnings) = self.report.counts();
        (errors + self.faults.len(), warnings)
    }

    /// Result in a line of words.
    fn summary(&self) -> String {
        let (errors, warnings) = self.counts();
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        match errors {
            0 => format!("{}: ok ({})", self.name.display(), count(warnings, "warning")),
            _ => format!("{}: {}, {}", self.name.display(), count(errors, "error"), count(warnings, "warning")),
        }
    }

    /// All findings, those without a place at the file as a whole.
    fn diagnostics(&self) -> impl Iterator<Item = Diagnostic> + '_ {
        let faults = self.faults.iter().flat_map(|fault| Report::of_file(&self.name, fault.as_str()).diagnostics);
        self.report.diagnostics.iter().cloned().chain(faults)
    }
}

/// Judges files and prints what is found.
pub(super) fn run(files: &[PathBuf], registry: &Arc<Registry>, offline: bool, format: CheckFormat) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut all = Vec::new();
    for file in files {
        let input = Input::of(file);
        let read_file = input.read(registry, offline);
        let report = match &read_file {
            Ok(loaded) => loaded.warnings.clone(),
            Err(report) => report.clone(),
        };
        let mut faults = Vec::new();
        // Missing files were reported as warnings; without them the rest cannot be compiled.
        if let Some(mut loaded) = read_file.ok().filter(|_| !offline || input.read(registry, false).is_ok()) {
            if offline {
                // The memory of this machine says nothing of the machine that will serve.
                loaded.config.limits.model_memory.get_or_insert(Size(u64::MAX));
            }
            let judged = match &runtime {
                Ok(runtime) => runtime.block_on(server::judge(&loaded, registry, true)).map(|_| ()),
                Err(e) => Err(vec![format!("the runtime cannot be started: {e}")]),
            };
            faults = judged.err().unwrap_or_default();
        }
        let judged = CheckedFile { name: input.name().to_owned(), report, faults };
        if format == CheckFormat::Text {
            eprint!("{}", judged.report);
            for fault in &judged.faults {
                eprintln!("error: {fault}\n");
            }
            println!("{}", judged.summary());
        }
        all.push(judged);
    }
    match format {
        CheckFormat::Text => {}
        CheckFormat::Json => println!("{}", written(&json_of(&all))),
        CheckFormat::Sarif => println!("{}", written(&sarif_of(&all))),
        CheckFormat::Github => print!("{}", commands_of(&all)),
    }
    if all.iter().all(|judged| judged.counts().0 == 0) { ExitCode::SUCCESS } else { ExitCode::from(WRONG) }
}

fn written(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn json_of(all: &[CheckedFile]) -> Value {
    let file = |judged: &CheckedFile| {
        let (errors, warnings) = judged.counts();
        let diagnostics: Vec<Diagnostic> = judged.diagnostics().collect();
        json!({
            "file": judged.name, "ok": errors == 0, "errors": errors, "warnings": warnings, "diagnostics": diagnostics,
        })
    };
    json!({"files": all.iter().map(file).collect::<Vec<_>>()})
}

/// SARIF log of one run (OASIS, Static Analysis Results Interchange Format 2.1.0).
fn sarif_of(all: &[CheckedFile]) -> Value {
    let rules = RULES.map(|(severity, id, text)| {
        json!({
            "id": id,
            "shortDescription": {"text": text},
            "defaultConfiguration": {"level": level(severity)},
        })
    });
    let results: Vec<Value> = all.iter().flat_map(CheckedFile::diagnostics).map(|found| result(&found)).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "spillway", "semanticVersion": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

fn result(found: &Diagnostic) -> Value {
    let place = RULES.iter().position(|(severity, _, _)| *severity == found.severity).unwrap_or_default();
    let id = RULES.get(place).map_or("", |(_, id, _)| id);
    let file = json!({"uri": uri(&found.file)});
    // The end is the column behind the last one.
    let column = found.column.max(1);
    let region = json!({"startLine": found.line, "startColumn": column, "endColumn": column + found.width.max(1)});
    let physical = match found.line {
        0 => json!({"artifactLocation": file}),
        _ => json!({"artifactLocation": file, "region": region}),
    };
    let location = match found.path.as_str() {
        "" => json!({"physicalLocation": physical}),
        path => json!({"physicalLocation": physical, "logicalLocations": [{"fullyQualifiedName": path}]}),
    };
    json!({
        "ruleId": id, "ruleIndex": place, "level": level(found.severity),
        "message": {"text": text(found)}, "locations": [location],
    })
}

/// Message with its advice.
fn text(found: &Diagnostic) -> String {
    match &found.help {
        Some(help) => format!("{}\nhelp: {help}", found.message),
        None => found.message.clone(),
    }
}

/// Reference to a file: relative as it was named, or absolute with its scheme (RFC 3986).
fn uri(file: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let escaped: String = file
        .as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(*byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    if file.is_absolute() { format!("file://{escaped}") } else { escaped }
}

/// Workflow commands of GitHub Actions. All text is escaped, since a file may come from a stranger: a line of it must not be read
/// as a command.
fn commands_of(all: &[CheckedFile]) -> String {
    let mut out = String::new();
    for judged in all {
        for found in judged.diagnostics() {
            let mut properties = vec![format!("file={}", property(&found.file.to_string_lossy()))];
            if found.line > 0 {
                let column = found.column.max(1);
                properties.push(format!("line={},endLine={0}", found.line));
                properties.push(format!("col={column},endColumn={}", column + found.width.max(1) - 1));
            }
            if !found.path.is_empty() {
                properties.push(format!("title={}", property(&found.path)));
            }
            let command = level(found.severity);
            out.push_str(&format!("::{command} {}::{}\n", properties.join(","), data(&text(&found))));
        }
        out.push_str(&format!("spillway check: {}\n", data(&judged.summary())));
    }
    out
}

/// Text of a command, escaped as the runner of GitHub Actions undoes it.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Value of a property of a command.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged() -> CheckedFile {
        let diagnostic = Diagnostic {
            severity: Severity::Warning,
            file: "a b/über,x.yaml".into(),
            line: 3,
            column: 5,
            width: 4,
            path: "routes[0].name".to_owned(),
            message: "100% wrong:\n::error::injected".to_owned(),
            help: Some("write, say, `a`".to_owned()),
            source: String::new(),
        };
        let report = Report { diagnostics: vec![diagnostic], files: Vec::new() };
        CheckedFile { name: "/etc/spill\nway.yaml".into(), report, faults: vec!["two\nlines".to_owned()] }
    }

    #[test]
    fn commands_are_one_line_each_whatever_the_file_says() {
        assert_eq!(
            commands_of(&[judged()]),
            "::warning file=a b/über%2Cx.yaml,line=3,endLine=3,col=5,endColumn=8,title=routes[0].name::\
             100%25 wrong:%0A::error::injected%0Ahelp: write, say, `a`\n\
             ::error file=/etc/spill%0Away.yaml::two%0Alines\n\
             spillway check: /etc/spill%0Away.yaml: 1 error, 1 warning\n"
        );
    }

    #[test]
    fn a_sarif_log_names_places_in_files() {
        let log = sarif_of(&[judged()]);
        let results = log["runs"][0]["results"].as_array().unwrap();
        let places: Vec<&Value> = results.iter().map(|result| &result["locations"][0]["physicalLocation"]).collect();
        assert_eq!(places[0]["artifactLocation"]["uri"], "a%20b/%C3%BCber%2Cx.yaml");
        assert_eq!(places[0]["region"], json!({"startLine": 3, "startColumn": 5, "endColumn": 9}));
        assert_eq!(places[1], &json!({"artifactLocation": {"uri": "file:///etc/spill%0Away.yaml"}}));
        let rules = log["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap();
        for result in results {
            let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
            assert_eq!(rules[index]["id"], result["ruleId"]);
            assert_eq!(rules[index]["defaultConfiguration"]["level"], result["level"]);
        }
    }
}
