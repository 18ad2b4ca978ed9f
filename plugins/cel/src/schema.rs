//! Names of expressions with their types. The one table from which the check at reload, the conversion of a request and the
//! reference page come.

use std::fmt;

use cel::common::ast::{Expr, SelectExpr};

use crate::Scope;

/// Type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Any type; known at run time only.
    Any,
    /// True or false.
    Bool,
    /// Whole number of 64 bits.
    Int,
    /// Whole number of 64 bits without a sign.
    Uint,
    /// Floating-point number of 64 bits.
    Double,
    /// Text.
    String,
    /// Bytes.
    Bytes,
    /// `null`.
    Null,
    /// A type, such as the value of `type(1)`.
    Type,
    /// List of one type.
    List(&'static Type),
    /// Map from text to one type.
    Map(&'static Type),
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Null => f.write_str("null"),
            Self::Type => f.write_str("type"),
            Self::List(of) => write!(f, "list of {of}"),
            Self::Map(of) => write!(f, "map of {of}"),
        }
    }
}

/// Fact of a request that an expression can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "`NAMES` says what each is")]
pub enum Fact {
    Method,
    Path,
    Query,
    Host,
    Headers,
    ClientAddress,
    Model,
    Body,
    ConsumerName,
    Tenant,
    Scopes,
    ConsumerClaims,
    Claims,
    Route,
    TlsUsed,
    EpochSeconds,
    Minute,
    Hour,
    Weekday,
    Backend,
    RolloutVersion,
    ResponseStatus,
    ResponseHeaders,
    AnsweringModel,
    PromptTokens,
    CachedTokens,
    CompletionTokens,
    Language,
    Characters,
    EstimatedTokens,
    Turns,
    Reasked,
    ToolLoop,
    Signals,
}

impl Fact {
    /// True if an exchange may be without the fact: it is then absent, and reading it has no value.
    pub(crate) fn may_be_absent(self) -> bool {
        matches!(self, Self::Body | Self::PromptTokens | Self::CachedTokens | Self::CompletionTokens)
            || self.is_of_prompt()
    }

    /// True for a fact about the conversation, which is known when the body was read.
    pub(crate) fn is_of_prompt(self) -> bool {
        OF_PROMPT.contains(&self)
    }
}

/// Facts about the conversation.
const OF_PROMPT: [Fact; 7] = [
    Fact::Language,
    Fact::Characters,
    Fact::EstimatedTokens,
    Fact::Turns,
    Fact::Reasked,
    Fact::ToolLoop,
    Fact::Signals,
];

/// Root of the signals that a configuration declares.
pub(crate) const SIGNALS: &str = "signals";

/// Name of an expression.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    /// Fact for which the name stands.
    pub fact: Fact,
    /// First part, such as `request`.
    pub root: &'static str,
    /// Field of it; `None` where the root is the value.
    pub field: Option<&'static str>,
    /// Type.
    pub kind: Type,
    /// Scopes that know the name.
    pub scopes: &'static [Scope],
    /// Value where a request has none.
    pub absent: &'static str,
    /// Meaning.
    pub doc: &'static str,
}

const fn name(
    fact: Fact,
    root: &'static str,
    field: &'static str,
    kind: Type,
    scopes: &'static [Scope],
    absent: &'static str,
    doc: &'static str,
) -> Name {
    Name { fact, root, field: Some(field), kind, scopes, absent, doc }
}

const ALWAYS: &str = "always there";
const NO_USAGE: &str = "absent where no answer told it: reading it has no value";

const NO_PROMPT: &str = "absent where the request has no conversation that can be read: reading it has no value";

/// The conversation, where it chooses a route.
const PROMPT: &[Scope] = &[Scope::Head];
/// The head of a request, which stays as it came.
const HEAD: &[Scope] = &[Scope::Head, Scope::Request, Scope::Upstream, Scope::Answer, Scope::End];
/// Known with the caller and the route, and kept to the end.
const CALL: &[Scope] = &[Scope::Request, Scope::Upstream, Scope::Answer, Scope::End];
/// Known until the request is with a server.
const BODY: &[Scope] = &[Scope::Request, Scope::Upstream];
/// Known when a target was chosen.
const TARGET: &[Scope] = &[Scope::Upstream, Scope::Answer, Scope::End];
/// Known with the head of the answer.
const ANSWER: &[Scope] = &[Scope::Answer, Scope::End];
/// Known when the answer has ended.
const END: &[Scope] = &[Scope::End];

/// All names.
#[rustfmt::skip]
pub const NAMES: &[Name] = &[
    name(Fact::Method, "request", "method", Type::String, HEAD, ALWAYS, "Method, as sent."),
    name(Fact::Path, "request", "path", Type::String, HEAD, ALWAYS, "Path without query, in the form in which routes compare it."),
    name(Fact::Query, "request", "query", Type::String, HEAD, "empty", "Query without `?`, as sent."),
    name(Fact::Host, "request", "host", Type::String, HEAD, "empty", "Host in small letters, without port and final dot."),
    name(Fact::Headers, "request", "headers", Type::Map(&Type::String), HEAD, "a header that was not sent has no entry", "Headers by names in small letters; several of one name are joined by `, `."),
    name(Fact::ClientAddress, "request", "clientAddress", Type::String, HEAD, ALWAYS, "Address of the client."),
    name(Fact::Model, "request", "model", Type::String, CALL, "empty", "Model that the body names."),
    name(Fact::Body, "request", "body", Type::Any, BODY, "absent without a body, and where it is not JSON or longer than 1 MiB: `has(request.body)` is false, and reading it has no value", "Body as JSON, decoded from its `Content-Encoding`, never a part of it."),
    name(Fact::ConsumerName, "consumer", "name", Type::String, CALL, "empty", "Name of the consumer."),
    name(Fact::Tenant, "consumer", "tenant", Type::String, CALL, "empty", "Tenant of the consumer."),
    name(Fact::Scopes, "consumer", "scopes", Type::List(&Type::String), CALL, "empty", "Scopes of the token."),
    name(Fact::ConsumerClaims, "consumer", "claims", Type::Map(&Type::Any), CALL, "empty", "Claims of the token."),
    Name { fact: Fact::Claims, root: "claims", field: None, kind: Type::Map(&Type::Any), scopes: CALL, absent: "empty", doc: "Claims of the token, as `consumer.claims`." },
    Name { fact: Fact::Route, root: "route", field: None, kind: Type::String, scopes: CALL, absent: ALWAYS, doc: "Name of the route." },
    name(Fact::TlsUsed, "tls", "used", Type::Bool, CALL, ALWAYS, "True if the caller used TLS, to the gateway or to a trusted proxy."),
    name(Fact::EpochSeconds, "time", "epochSeconds", Type::Int, CALL, ALWAYS, "Seconds since 1970."),
    name(Fact::Minute, "time", "minute", Type::Int, CALL, ALWAYS, "Minute of the hour, 0 to 59."),
    name(Fact::Hour, "time", "hour", Type::Int, CALL, ALWAYS, "Hour of the day in UTC, 0 to 23."),
    name(Fact::Weekday, "time", "weekday", Type::Int, CALL, ALWAYS, "Day of the week in UTC, 0 (Sunday) to 6."),
    Name { fact: Fact::Backend, root: "backend", field: None, kind: Type::String, scopes: TARGET, absent: "empty: the gateway answers itself", doc: "Backend that gets the request or has answered, or `builtin/MODEL`." },
    name(Fact::RolloutVersion, "rollout", "version", Type::String, TARGET, "empty: no rollout, or another target", "Version of the route's rollout: `stable` or `candidate`."),
    name(Fact::ResponseStatus, "response", "status", Type::Int, ANSWER, "0: no answer was begun", "Status of the answer; 499 where the client left before there was one."),
    name(Fact::ResponseHeaders, "response", "headers", Type::Map(&Type::String), &[Scope::Answer], "a header that the answer lacks has no entry", "Headers of the answer, as `request.headers`, with the changes of filters before this one."),
    Name { fact: Fact::AnsweringModel, root: "model", field: None, kind: Type::String, scopes: END, absent: "empty", doc: "Model that has answered, as its server names it." },
    name(Fact::PromptTokens, "usage", "promptTokens", Type::Int, END, NO_USAGE, "Tokens of the prompt."),
    name(Fact::CachedTokens, "usage", "cachedTokens", Type::Int, END, NO_USAGE, "Those of them that a cache had."),
    name(Fact::CompletionTokens, "usage", "completionTokens", Type::Int, END, NO_USAGE, "Tokens written."),
    name(Fact::Language, "prompt", "language", Type::String, PROMPT, "absent without a text of at most 16 KiB whose language is clear", "Language of the last text of the user, as three letters of ISO 639-3, such as `eng`."),
    name(Fact::Characters, "prompt", "characters", Type::Int, PROMPT, NO_PROMPT, "Characters of all texts of the conversation, instructions and results of tools included."),
    name(Fact::EstimatedTokens, "prompt", "tokens", Type::Int, PROMPT, NO_PROMPT, "Tokens of the prompt as limits estimate them: a quarter of the bytes of its texts, and a fixed number for an image or sound."),
    name(Fact::Turns, "prompt", "turns", Type::Int, PROMPT, NO_PROMPT, "Texts of the user, the last one included."),
    name(Fact::Reasked, "prompt", "reasked", Type::Bool, PROMPT, "absent without a conversation, and with a text of the user above 16 KiB", "True if the last text of the user repeats or rephrases an earlier one that was answered."),
    name(Fact::ToolLoop, "prompt", "toolLoop", Type::Bool, PROMPT, NO_PROMPT, "True if the conversation ends with a call of a tool or its result: a turn of the user is still being answered."),
    name(Fact::Signals, "signals", "NAME", Type::Any, PROMPT, "absent without a text to read, where it is longer than `maxText`, and where a model was late or failed", "Value of the signal `NAME` of the configuration: true or false for `keywords`, else a double. `signals.NAME.LABEL` is that of a label of its `examples`."),
];

/// Facts of a request that an expression reads. What it does not read is not converted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked(u64);

impl Asked {
    /// True if the expression reads the fact.
    pub fn reads(self, fact: Fact) -> bool {
        self.0 & (1 << fact as u8) != 0
    }

    pub(crate) fn add(&mut self, fact: Fact) {
        self.0 |= 1 << fact as u8;
    }

    /// True if the expression reads the conversation.
    pub fn reads_prompt(self) -> bool {
        OF_PROMPT.iter().any(|fact| self.reads(*fact))
    }

    /// Facts about the conversation that the expression reads, beside signals.
    #[must_use]
    pub fn of_prompt(self) -> Self {
        let mut read = Self::default();
        OF_PROMPT.iter().filter(|fact| **fact != Fact::Signals && self.reads(**fact)).for_each(|fact| read.add(*fact));
        read
    }

    /// These facts and others.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These facts without others.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// True if the expression reads nothing but the conversation.
    pub fn reads_only_prompt(self) -> bool {
        let mut of_prompt = Self::default();
        OF_PROMPT.iter().for_each(|fact| of_prompt.add(*fact));
        self.0 & !of_prompt.0 == 0
    }

    /// True if the body must be read.
    pub fn needs_body(self) -> bool {
        self.reads(Fact::Body) || self.reads(Fact::Model)
    }
}

impl Name {
    /// Name as written in an expression.
    pub fn written(&self) -> String {
        self.field.map_or_else(|| self.root.to_owned(), |field| format!("{}.{field}", self.root))
    }

    /// True if expressions of this scope know the name.
    pub fn is_in(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

/// Roots of the names of a scope, each once.
pub(crate) fn roots(scope: Scope) -> Vec<&'static str> {
    let mut roots: Vec<_> = NAMES.iter().filter(|name| name.is_in(scope)).map(|name| name.root).collect();
    roots.dedup();
    roots
}

/// Fields behind a root with dots between, such as `b.c` of `a.b.c`; `None` for another expression.
pub(crate) fn below(select: &SelectExpr, root: &str) -> Option<String> {
    match &select.operand.expr {
        Expr::Ident(name) => (name == root).then(|| select.field.clone()),
        Expr::Select(inner) if !inner.test => Some(format!("{}.{}", below(inner, root)?, select.field)),
        _ => None,
    }
}
