//! Loading of texts as configurations, with a catalogue that takes any filter.

use std::path::Path;

use schemars::{Schema, SchemaGenerator};
use spillway_config::{Diagnostic, FieldError, FilterCatalog, LoadOptions, Loaded, NoFileChecks, Report, load_text};

/// Catalogue of filters by name only. Takes any configuration, except one with the key `quoted`, of which it reports a
/// mistake that quotes the value.
pub(crate) struct AnyFilter;

impl FilterCatalog for AnyFilter {
    fn names(&self) -> Vec<&'static str> {
        vec![
            "authorize",
            "basicAuth",
            "cel",
            "clientAddress",
            "compression",
            "cors",
            "externalAuthorization",
            "mirror",
            "ours",
            "promptTemplate",
            "publicLocation",
            "rateLimit",
            "redirect",
            "requestHeaders",
            "respond",
            "responseHeaders",
            "strictTransportSecurity",
            "urlRewrite",
            "userAgent",
        ]
    }
    fn schema(&self, name: &str, _: &mut SchemaGenerator) -> Option<Schema> {
        let kind = if name == "authorize" { "string" } else { "object" };
        Some(schemars::json_schema!({ "type": kind }))
    }
    fn check(&self, _: &str, config: &serde_json::Value) -> Vec<FieldError> {
        let Some(text) = config.get("quoted").and_then(|text| text.as_str()) else { return Vec::new() };
        vec![FieldError::at(["quoted"], format!("`{text}` is wrong, from `{}` on", &text[..text.len() / 2]))]
    }
}

/// Options of `spillway check --offline`, with one environment variable, `SET`.
pub(crate) fn options() -> LoadOptions<'static> {
    LoadOptions {
        catalog: &AnyFilter,
        env: &|name| (name == "SET").then(|| "value".into()),
        files: &NoFileChecks,
        offline: true,
        kubernetes: true,
    }
}

pub(crate) fn judge(yaml: &str) -> Result<Loaded, Report> {
    load_text(Path::new("test.yaml"), yaml, &options())
}

/// Diagnostics of a text: its errors, else its warnings.
fn diagnostics(yaml: &str) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
    match judge(yaml) {
        Ok(loaded) => (Vec::new(), loaded.warnings.diagnostics),
        Err(report) => (report.diagnostics, Vec::new()),
    }
}

/// Messages about a text, each with its line: the errors, and where there are none the warnings.
pub(crate) fn told(yaml: &str) -> (Vec<String>, Vec<String>) {
    let lines = |all: Vec<Diagnostic>| all.into_iter().map(|d| format!("{}: {}", d.line, d.message)).collect();
    let (errors, warnings) = diagnostics(yaml);
    (lines(errors), lines(warnings))
}

/// Errors of a text, each with its line.
pub(crate) fn errors(yaml: &str) -> Vec<String> {
    told(yaml).0
}

/// Errors of a text, each with its line and column.
pub(crate) fn messages(yaml: &str) -> Vec<String> {
    diagnostics(yaml).0.into_iter().map(|d| format!("{}:{} {}", d.line, d.column, d.message)).collect()
}
