//! Faults found while a request is read, and the fields that are ignored.

use std::borrow::Cow;
use std::fmt;

use spillway_filter::Refusal;

use super::values::Probe;
use crate::protocol::chat::Ignored;

/// First invalid field, first unsupported field and the ignored fields of a request.
#[derive(Default)]
pub(in crate::protocol) struct Findings {
    pub(in crate::protocol) wrong: Option<Refusal>,
    pub(in crate::protocol) unsupported: Option<Refusal>,
    pub(in crate::protocol) ignored: Ignored,
}

impl Findings {
    /// Records a field that is not read and changes no form of the answer.
    pub(in crate::protocol) fn ignore(&mut self, param: impl Into<String>) {
        self.ignored.push(param.into());
    }

    /// Records a refusal of an invalid field that was made elsewhere.
    pub(in crate::protocol) fn refuse(&mut self, refusal: Refusal) {
        self.wrong.get_or_insert(refusal);
    }

    /// Refusal of the first invalid field, else of the first unsupported one.
    pub(in crate::protocol) fn first(self) -> Option<Refusal> {
        self.wrong.or(self.unsupported)
    }

    /// Records an invalid field, which any server would refuse. `what` completes the sentence that begins with its name.
    pub(in crate::protocol) fn wrong(
        &mut self,
        code: &'static str,
        param: impl Into<Cow<'static, str>>,
        what: impl fmt::Display,
    ) {
        if self.wrong.is_none() {
            let param = param.into();
            self.wrong = Some(Refusal::invalid(code, format!("`{param}` {what}.")).param(param));
        }
    }

    /// Records a field that the built-in model cannot honour. `why` is a sentence without its full stop.
    pub(in crate::protocol) fn unsupported(
        &mut self,
        code: &'static str,
        param: impl Into<Cow<'static, str>>,
        why: impl fmt::Display,
    ) {
        if self.unsupported.is_none() {
            let param = param.into();
            self.unsupported = Some(Refusal::invalid(code, format!("`{param}`: {why}.")).param(param));
        }
    }

    /// Records a field of a wrong type.
    pub(in crate::protocol) fn wrong_type(&mut self, name: &str, what: &str) {
        self.wrong("invalid_type", name.to_owned(), what);
    }

    /// Reads a whole number of at least 1.
    pub(in crate::protocol) fn count(&mut self, name: &str, value: &Probe<'_>) -> Option<u32> {
        match value {
            // The engine cuts a larger count to the rest of the context.
            Probe::Unsigned(count) if *count > 0 => Some(u32::try_from(*count).unwrap_or(u32::MAX)),
            Probe::Unsigned(_) | Probe::Negative(_) => {
                self.wrong("integer_below_min_value", name.to_owned(), "must be at least 1");
                None
            }
            _ => {
                self.wrong_type(name, "must be a whole number");
                None
            }
        }
    }

    /// Reads a number of `min` to `max`.
    #[allow(clippy::cast_possible_truncation, reason = "the range is checked; sampling is done in f32")]
    pub(in crate::protocol) fn number(&mut self, name: &str, value: &Probe<'_>, min: f64, max: f64) -> Option<f32> {
        let Some(number) = value.number() else {
            self.wrong_type(name, "must be a number");
            return None;
        };
        if number < min {
            self.wrong("decimal_below_min_value", name.to_owned(), format!("must be at least {min}"));
        } else if number > max {
            self.wrong("decimal_above_max_value", name.to_owned(), format!("must be at most {max}"));
        }
        Some(number as f32)
    }

    /// Reads `true` or `false`.
    pub(in crate::protocol) fn truth(&mut self, name: &str, value: &Probe<'_>) -> Option<bool> {
        let Probe::Bool(value) = value else {
            self.wrong_type(name, "must be true or false");
            return None;
        };
        Some(*value)
    }
}
