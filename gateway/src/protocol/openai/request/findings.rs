//! What is found wrong while a request is read.

use std::borrow::Cow;
use std::fmt;

use spillway_filter::Refusal;

/// What is wrong with a request and what it asks for in vain; the first of each counts.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) wrong: Option<Refusal>,
    pub(super) unsupported: Option<Refusal>,
}

impl Findings {
    /// A refusal that was made elsewhere.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.wrong.get_or_insert(refusal);
    }

    /// What is wrong, else what is asked for in vain.
    pub(super) fn first(self) -> Option<Refusal> {
        self.wrong.or(self.unsupported)
    }

    /// A field that no server could take; `what` completes the sentence that begins with its name.
    pub(super) fn wrong(&mut self, code: &'static str, param: impl Into<Cow<'static, str>>, what: impl fmt::Display) {
        if self.wrong.is_none() {
            let param = param.into();
            self.wrong = Some(Refusal::invalid(code, format!("`{param}` {what}.")).param(param));
        }
    }

    /// A field that the model inside cannot honour; `why` is a sentence without its full stop.
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
