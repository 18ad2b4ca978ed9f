//! What the language must know of filters: names, schemas and checks. The catalogue is given by the caller, so that
//! built-in and users' filters enter in one place and this crate knows none of them.

use schemars::{Schema, SchemaGenerator};

/// A mistake inside a value: where, relative to that value, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Keys from the value down to the mistake, such as `set.x-served-by`; empty for the value itself.
    pub path: Vec<String>,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl FieldError {
    /// A mistake at `path` (keys in order).
    pub fn at<const N: usize>(path: [&str; N], message: impl Into<String>) -> Self {
        Self { path: path.map(str::to_owned).to_vec(), message: message.into() }
    }
}

/// The filters that a configuration may name.
pub trait FilterCatalog: Send + Sync {
    /// Every name, sorted.
    fn names(&self) -> Vec<&'static str>;
    /// JSON Schema of the configuration of `name`; `None` for an unknown one.
    fn schema(&self, name: &str, generator: &mut SchemaGenerator) -> Option<Schema>;
    /// What the schema cannot say: conflicts and values that decode but make no sense.
    fn check(&self, name: &str, config: &serde_json::Value) -> Vec<FieldError>;
    /// What is wrong with a CEL expression over `request` alone, as `matches[].when` has it.
    fn check_expression(&self, _expression: &str) -> Result<(), String> {
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
