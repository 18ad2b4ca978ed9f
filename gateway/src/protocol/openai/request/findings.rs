//! Faults found while a request is read, and the fields that are ignored.

use std::borrow::Cow;
use std::fmt;

use spillway_filter::Refusal;

use crate::protocol::chat::Ignored;

/// First invalid field, first unsupported field and the ignored fields of a request.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) wrong: Option<Refusal>,
    pub(super) unsupported: Option<Refusal>,
    pub(super) ignored: Ignored,
}

impl Findings {
    /// Records a field that is not read and changes no form of the answer.
    pub(super) fn ignore(&mut self, param: impl Into<String>) {
        self.ignored.push(param.into());
    }

    /// Records a refusal of an invalid field that was made elsewhere.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.wrong.get_or_insert(refusal);
    }

    /// Refusal of the first invalid field, else of the first unsupported one.
    pub(super) fn first(self) -> Option<Refusal> {
        self.wrong.or(self.unsupported)
    }

    /// Records an invalid field, which any server would refuse. `what` completes the sentence that begins with its name.
    pub(super) fn wrong(&mut self, code: &'static str, param: impl Into<Cow<'static, str>>, what: impl fmt::Display) {
        if self.wrong.is_none() {
            let param = param.into();
            self.wrong = Some(Refusal::invalid(code, format!("`{param}` {what}.")).param(param));
        }
    }

    /// Records a field that the built-in model cannot honour. `why` is a sentence without its full stop.
    pub(super) fn unsupported(
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
}
