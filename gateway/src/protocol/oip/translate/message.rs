//! Neutral form of the messages of `infer`. Elements of tensors are in binary form: little-endian, row by row, with a length of
//! four bytes before each element of `BYTES`. Their lengths agree with shape and datatype, whichever transport they came over.

use std::borrow::Cow;

use crate::protocol::oip::tensor::DataType;
use crate::protocol::translate::{CallerCall, ServerAnswer};

/// Most tensors, or wanted outputs, of a message: far more than any model has.
pub(super) const MOST_TENSORS: usize = 256;
/// Most dimensions of a shape.
pub(super) const MOST_DIMENSIONS: usize = 32;
/// Most parameters of a message, a tensor or a wanted output.
pub(super) const MOST_PARAMETERS: usize = 64;

/// Begin of the names of the parameters by which HTTP frames binary data. They belong to the transport.
pub(super) const BINARY: &str = "binary_data";

/// Value of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Parameter<'a> {
    Bool(bool),
    Int(i64),
    /// Number above those of `Int`.
    Unsigned(u64),
    Double(f64),
    Text(Cow<'a, str>),
}

/// Parameters in their order, each name once.
pub(super) type Parameters<'a> = Vec<(Cow<'a, str>, Parameter<'a>)>;

/// Tensor of a message.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) datatype: DataType,
    /// Dimensions, none negative.
    pub(super) shape: Vec<i64>,
    pub(super) parameters: Parameters<'a>,
    /// Elements in binary form.
    pub(super) data: Cow<'a, [u8]>,
}

/// Output that a call asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) parameters: Parameters<'a>,
}

/// Call or answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Message<'a> {
    /// Model that it names; `None` where only a path does.
    pub(super) model: Option<Cow<'a, str>>,
    /// Version of the model; empty for none.
    pub(super) version: Cow<'a, str>,
    /// Id; empty for none.
    pub(super) id: Cow<'a, str>,
    pub(super) parameters: Parameters<'a>,
    /// Inputs of a call, or outputs of an answer.
    pub(super) tensors: Vec<Tensor<'a>>,
    /// Outputs that a call asks for; empty for all, and in an answer.
    pub(super) wanted: Vec<Wanted<'a>>,
}

/// Names of a model at the server and for the caller.
#[derive(Debug, Clone)]
pub(super) struct ModelNames<'a> {
    /// Name that the caller knows; empty in calls that name no model.
    pub(super) caller: &'a str,
    /// Name that the server knows.
    pub(super) server: Cow<'a, str>,
}

impl<'a> ModelNames<'a> {
    /// Names of a call.
    pub(super) fn of(call: &CallerCall<'a>) -> Self {
        let caller = call.model.unwrap_or_default();
        Self { caller, server: call.renamed.unwrap_or(caller).into() }
    }

    /// Names that outlive the call.
    pub(super) fn owned(&self) -> AnswerNames {
        AnswerNames { caller: self.caller.into(), server: self.server.as_ref().into() }
    }
}

/// Names of the model of an answer.
#[derive(Debug, Clone)]
pub(super) struct AnswerNames {
    pub(super) caller: Box<str>,
    pub(super) server: Box<str>,
}

impl AnswerNames {
    /// Name for the caller of a model that the server names: that of the call has the caller's own name.
    pub(super) fn for_caller<'n>(&'n self, named: &'n str, answer: &ServerAnswer<'_>) -> &'n str {
        if !answer.stands_in && named == &*self.server && !self.caller.is_empty() { &self.caller } else { named }
    }
}
