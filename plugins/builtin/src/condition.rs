//! Conditions of filters (`when`): CEL expressions over the request that decide whether a filter has to do with it.

use spillway_cel::{Expression, Scope, Seen};
use spillway_filter::{FieldError, RequestView};

/// Condition of a filter; without one it always holds.
#[derive(Debug, Default)]
pub(crate) struct Condition(Option<Expression>);

impl Condition {
    /// Compiles `when` of a filter.
    pub(crate) fn new(written: Option<&String>) -> Result<Self, FieldError> {
        let compiled = written.map(|text| Expression::condition(text, Scope::Request)).transpose();
        compiled.map(Self).map_err(|why| FieldError::at(["when"], why))
    }

    /// True if the body must be held for it.
    pub(crate) fn needs_body(&self) -> bool {
        self.0.as_ref().is_some_and(|when| when.asked().needs_body())
    }

    /// As [`Self::holds`], on a thread that serves requests.
    pub(crate) fn holds_on_loop(&self, x: &RequestView<'_>, without_value: bool) -> bool {
        self.0.as_ref().is_none_or(|when| when.holds(&Seen::from(x).on_loop()).unwrap_or(without_value))
    }

    /// Decides about a request. `without_value` is the answer where the expression has no value.
    pub(crate) fn holds(&self, x: &RequestView<'_>, without_value: bool) -> bool {
        self.0.as_ref().is_none_or(|when| when.holds(&Seen::from(x)).unwrap_or(without_value))
    }
}
