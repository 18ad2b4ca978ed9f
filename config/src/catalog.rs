//! Catalogue of filters: names, schemas and checks. The caller provides it, so that built-in and users' filters enter
//! in one place and this crate knows none of them.

use schemars::{Schema, SchemaGenerator};

/// Mistake inside a value, with its path relative to that value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Keys from the value down to the mistake, such as `set.x-served-by`; empty for the value itself.
    pub path: Vec<String>,
    /// Fault, and what to write instead.
    pub message: String,
}

impl FieldError {
    /// Mistake at `path` (keys in order).
    pub fn at<const N: usize>(path: [&str; N], message: impl Into<String>) -> Self {
        Self { path: path.map(str::to_owned).to_vec(), message: message.into() }
    }
}

/// Type of a signal's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalKind {
    /// True or false.
    Bool,
    /// Number.
    Double,
}

/// Name below `signals` that an expression may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalName {
    /// Name of the signal, or that name and a label with a dot between.
    pub name: String,
    /// Type of the value.
    pub kind: SignalKind,
}

/// Place of an expression outside filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpressionPlace<'a> {
    /// `matches[].when`: a condition over the head of a request, its conversation and these signals.
    Match(&'a [SignalName]),
    /// `spill.when`: a condition over a request and its caller.
    Request,
    /// Field of a line or attribute of a span: a text, a number, or true or false of a request that has ended.
    Field,
}

/// Filters that a configuration may name.
pub trait FilterCatalog: Send + Sync {
    /// All names, sorted.
    fn names(&self) -> Vec<&'static str>;
    /// JSON Schema of the configuration of `name`; `None` for an unknown one.
    fn schema(&self, name: &str, generator: &mut SchemaGenerator) -> Option<Schema>;
    /// Checks that the schema cannot express: conflicts, and values that decode but make no sense.
    fn check(&self, name: &str, config: &serde_json::Value) -> Vec<FieldError>;
    /// Checks a CEL expression. The error is a message.
    fn check_expression(&self, _expression: &str, _place: ExpressionPlace<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// A catalogue without filters.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFilters;

impl FilterCatalog for NoFilters {
    fn names(&self) -> Vec<&'static str> {
        Vec::new()
    }
    fn schema(&self, _: &str, _: &mut SchemaGenerator) -> Option<Schema> {
        None
    }
    fn check(&self, _: &str, _: &serde_json::Value) -> Vec<FieldError> {
        Vec::new()
    }
}
