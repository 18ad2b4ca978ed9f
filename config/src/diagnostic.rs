//! Messages about a configuration: position, fault, and what to write instead. A report has all of a file.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Longest part of a line that is shown.
const SHOWN: usize = 120;

/// Severity of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// The configuration can be used, but may not be what was meant.
    Warning,
}

/// Message about a configuration.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Width of the fault in characters.
    #[serde(skip)]
    pub width: usize,
    /// Path in the document, such as `routes[0].backendRefs[1].name`.
    pub path: String,
    /// Fault, with the found and the expected value.
    pub message: String,
    /// Advice: what to write instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Text of the line.
    #[serde(skip)]
    pub source: String,
}

/// All messages about a configuration.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct Report {
    /// In the order of their lines.
    pub diagnostics: Vec<Diagnostic>,
    /// Files that the configuration names, where they were read: a change of one may solve the mistakes.
    #[serde(skip)]
    pub files: Vec<PathBuf>,
}

impl Report {
    /// Report of one message about a file as a whole.
    pub fn of_file(file: &Path, message: impl Into<String>) -> Self {
        let diagnostic = Diagnostic {
            severity: Severity::Error,
            file: file.to_owned(),
            line: 0,
            column: 0,
            width: 0,
            path: String::new(),
            message: message.into(),
            help: None,
            source: String::new(),
        };
        Self { diagnostics: vec![diagnostic], files: Vec::new() }
    }

    /// True if there is an error.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }

    /// Counts of errors and warnings.
    pub fn counts(&self) -> (usize, usize) {
        let errors = self.diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
        (errors, self.diagnostics.len() - errors)
    }
}

impl std::error::Error for Report {}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, diagnostic) in self.diagnostics.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        writeln!(f, "{word}: {}", self.message)?;
        if self.line == 0 {
            writeln!(f, "  --> {}", self.file.display())?;
        } else {
            writeln!(f, "  --> {}:{}:{}", self.file.display(), self.line, self.column)?;
            self.excerpt(f)?;
        }
        if !self.path.is_empty() {
            writeln!(f, "   = at: {}", self.path)?;
        }
        if let Some(help) = &self.help {
            writeln!(f, "   = help: {help}")?;
        }
        Ok(())
    }
}

impl Diagnostic {
    /// Writes the line with a caret under the fault.
    fn excerpt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.column.saturating_sub(1);
        // A long line is shown from shortly before the place on.
        let skip = if before > SHOWN / 2 { before - SHOWN / 4 } else { 0 };
        let shown: String =
            self.source.chars().skip(skip).take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let dots = if skip > 0 { "…" } else { "" };
        let gutter = self.line.to_string();
        let pad = " ".repeat(gutter.len());
        let space: String = self
            .source
            .chars()
            .skip(skip)
            .take(before - skip)
            // A wide character takes two columns of a terminal.
            .map(|c| if is_wide(c) { "  " } else { " " })
            .collect();
        let left = SHOWN.saturating_sub(before - skip).max(1);
        let caret = "^".repeat(self.width.clamp(1, left));
        writeln!(f, "{pad} |\n{gutter} | {dots}{shown}\n{pad} | {}{space}{caret}", if skip > 0 { " " } else { "" })
    }
}

/// East Asian wide characters and emoji, by their blocks.
fn is_wide(c: char) -> bool {
    matches!(u32::from(c), 0x1100..=0x115F | 0x2E80..=0xA4CF | 0xAC00..=0xD7A3 | 0xF900..=0xFAFF | 0xFE30..=0xFE6F
        | 0xFF00..=0xFF60 | 0xFFE0..=0xFFE6 | 0x1F300..=0x1FAFF | 0x20000..=0x3FFFD)
}
