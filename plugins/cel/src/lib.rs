//! CEL (Common Expression Language) over a request. An expression is compiled and checked with the configuration,
//! then evaluated for each request within a bound of steps. Owns the language's names ([`NAMES`]) and its bounds; callers decide what
//! follows from a value.

mod check;
mod facts;
mod fast;
mod meter;
mod schema;
#[cfg(test)]
mod tests;
mod values;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use cel::common::types::{CelBool, CelDouble, CelInt, CelString, CelUInt};
use cel::common::value::{CowVal, Val};
use cel::{Context, Env, ExecutionError, FunctionContext, IdedExpr, Program, Value};
use http::HeaderName;
use regex::Regex;

use facts::{Facts, ReadSignal};
use fast::Fast;
pub use schema::{Asked, Fact, NAMES, Name, Type};
use spillway_filter::{ExpressionPlace, SignalName};
pub use values::{Prompt, REDACTED, Seen, Served, SignalValue};

/// Longest expression, in bytes.
pub const MAX_EXPRESSION: usize = 4096;
/// Longest body that an expression can read, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// Longest body that an expression reads where requests are served ([`Seen::on_loop`]), in bytes: reading it takes some hundred
/// microseconds.
pub const MAX_BODY_ON_LOOP: usize = 64 << 10;
/// Most steps of the loops of an expression for one request. One is an operation on one element, or the reading of one value or 512 bytes
/// of text that a loop reads in every turn. Enough for a condition of 8 parts over 25,000 elements.
pub const MAX_STEPS: usize = 200_000;
/// Most memory of one compiled pattern, in bytes.
const PATTERN_SIZE: usize = 1 << 20;

/// Reason why an expression has no value for a request. An access check must treat this as a refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    /// The request lacks something that the expression reads.
    #[error("{0}")]
    Missing(String),
    /// The expression's operation does not fit its values.
    #[error("{0}")]
    Failed(String),
}

/// Place of an expression, which decides what names it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Match of a route: the head of the request and its conversation.
    Head,
    /// Filter in front of the choice of a server: the request and its caller.
    Request,
    /// Header of the request for a server.
    Upstream,
    /// Header of the answer.
    Answer,
    /// Field of the access log or a span, when the exchange has ended.
    End,
}

impl Scope {
    /// All places.
    pub const ALL: [Self; 5] = [Self::Head, Self::Request, Self::Upstream, Self::Answer, Self::End];

    /// The place in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Head => "a match",
            Self::Request => "a filter",
            Self::Upstream => "a request header",
            Self::Answer => "a response header",
            Self::End => "a field",
        }
    }
}

/// A compiled expression.
pub struct Expression {
    program: Program,
    /// The program's expression with its loops counted; `None` if there is nothing to count.
    metered: Option<IdedExpr>,
    /// The expression in a form that needs no interpreter, where it is plain enough.
    fast: Option<Fast>,
    patterns: Arc<HashMap<String, Regex>>,
    asked: Asked,
    headers: Vec<HeaderName>,
    all_headers: bool,
    signals: Vec<ReadSignal>,
    kind: Type,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({})", self.program.source_info().source)
    }
}

fn environment() -> Arc<Env> {
    static ENVIRONMENT: OnceLock<Arc<Env>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| Arc::new(Env::stdlib())).clone()
}

impl Expression {
    /// Compiles an expression whose value is a boolean.
    ///
    /// # Errors
    /// The mistake, with its position in the text.
    pub fn condition(text: &str, scope: Scope) -> Result<Self, String> {
        Self::condition_with(text, scope, &[])
    }

    /// Compiles an expression whose value is a boolean, and which may read these signals.
    ///
    /// # Errors
    /// The mistake, with its position in the text.
    pub fn condition_with(text: &str, scope: Scope, signals: &[SignalName]) -> Result<Self, String> {
        let expression = Self::compile(text, scope, signals)?;
        expression.must_be(|kind| kind == Type::Bool, "true or false")?;
        expression.try_out(signals, |value| value.downcast_ref::<CelBool>().is_some(), "true or false")?;
        Ok(expression)
    }

    /// Compiles an expression whose value can be rendered as text.
    ///
    /// # Errors
    /// The mistake, with its position in the text.
    pub fn value(text: &str, scope: Scope) -> Result<Self, String> {
        let wanted = "a string, a number or true or false";
        let expression = Self::compile(text, scope, &[])?;
        let fits = |kind| matches!(kind, Type::String | Type::Int | Type::Uint | Type::Bool);
        expression.must_be(fits, wanted)?;
        expression.try_out(&[], |value| as_text(value).is_some(), wanted)?;
        Ok(expression)
    }

    /// Compiles an expression whose value is a text, a number, or true or false.
    ///
    /// # Errors
    /// The mistake, with its position in the text.
    pub fn scalar(text: &str, scope: Scope) -> Result<Self, String> {
        let wanted = "a string, a number or true or false";
        let expression = Self::compile(text, scope, &[])?;
        let fits = |kind| matches!(kind, Type::String | Type::Int | Type::Uint | Type::Double | Type::Bool);
        expression.must_be(fits, wanted)?;
        expression.try_out(&[], |value| as_scalar(value).is_some(), wanted)?;
        Ok(expression)
    }

    /// Compiles an expression whose value is a number.
    ///
    /// # Errors
    /// The mistake, with its position in the text.
    pub fn number(text: &str, scope: Scope) -> Result<Self, String> {
        let expression = Self::compile(text, scope, &[])?;
        expression.must_be(|kind| matches!(kind, Type::Int | Type::Uint | Type::Double), "a number")?;
        let is_number = |value: &dyn Val| matches!(as_scalar(value), Some(Scalar::Int(_) | Scalar::Double(_)));
        expression.try_out(&[], |value| is_number(value), "a number")?;
        Ok(expression)
    }

    /// Compiles an expression of any value.
    ///
    /// # Errors
    /// The mistake, with its position in the text.
    pub fn any(text: &str, scope: Scope) -> Result<Self, String> {
        Self::any_with(text, scope, &[])
    }

    /// Compiles an expression of any value that may read these signals.
    ///
    /// # Errors
    /// The mistake, with its position in the text.
    pub fn any_with(text: &str, scope: Scope, signals: &[SignalName]) -> Result<Self, String> {
        let expression = Self::compile(text, scope, signals)?;
        expression.try_out(signals, |_| true, "a value")?;
        Ok(expression)
    }

    fn must_be(&self, fits: impl Fn(Type) -> bool, wanted: &str) -> Result<(), String> {
        if self.kind == Type::Any || fits(self.kind) {
            return Ok(());
        }
        Err(format!("the value is of type {}; expected {wanted}", self.kind))
    }

    fn compile(text: &str, scope: Scope, signals: &[SignalName]) -> Result<Self, String> {
        if text.len() > MAX_EXPRESSION {
            return Err(format!("an expression has at most {MAX_EXPRESSION} bytes"));
        }
        let program = environment().compile(text).map_err(|errors| {
            let first = errors.errors.first().map(|e| format!("{}{}", position(e.pos.0, e.pos.1), e.msg));
            format!("invalid CEL expression: {}", first.unwrap_or_else(|| errors.to_string()))
        })?;
        let (kind, found) = check::check(program.expression(), scope, signals).map_err(|mistake| {
            let place = program.source_info().offset_for(mistake.node).and_then(|(start, _)| {
                let before = text.get(..start as usize)?;
                let line = before.matches('\n').count() + 1;
                let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
                Some(position(line, column))
            });
            format!("{}{}", place.unwrap_or_default(), mistake.message)
        })?;
        let mut patterns = HashMap::new();
        for pattern in found.patterns {
            let compiled = regex::RegexBuilder::new(&pattern).size_limit(PATTERN_SIZE).build().map_err(|e| {
                format!("`{pattern}` is not a regular expression: {}", e.to_string().lines().last().unwrap_or_default())
            })?;
            patterns.insert(pattern, compiled);
        }
        let headers = found
            .headers
            .iter()
            .map(|name| HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is not a header name")));
        let headers = headers.collect::<Result<Vec<_>, String>>()?;
        let (asked, all_headers) = (found.asked, found.all_headers);
        let metered = meter::counted(program.expression());
        let fast = Fast::new(program.expression());
        let (patterns, signals) = (Arc::new(patterns), found.signals);
        Ok(Self { program, metered, fast, patterns, asked, headers, all_headers, signals, kind })
    }

    /// Evaluates the expression for sample requests with every kind of value, to find mistakes that always fail.
    fn try_out(&self, signals: &[SignalName], fits: impl Fn(&dyn Val) -> bool, wanted: &str) -> Result<(), String> {
        values::with_samples(signals, |sample| {
            let tried = self.run(sample, |value| {
                if fits(value) {
                    return Ok(());
                }
                Err(format!("the value is {}; expected {wanted}", value.get_type().name()))
            });
            match tried {
                Ok(judged) => judged,
                // A request may have what a sample lacks.
                Err(ExecutionError::NoSuchKey(_) | ExecutionError::IndexOutOfBounds(_)) => Ok(()),
                Err(ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_)) => Ok(()),
                // Types of values from the body or a token are not known yet.
                Err(_) if self.reads_open_types() => Ok(()),
                Err(e) => Err(short(&e)),
            }
        })
    }

    fn reads_open_types(&self) -> bool {
        [Fact::Body, Fact::ConsumerClaims, Fact::Claims].iter().any(|fact| self.asked.reads(*fact))
    }

    /// Facts of a request that the expression reads.
    pub fn asked(&self) -> Asked {
        self.asked
    }

    /// Places of the signals that the expression reads, among the names with which it was compiled.
    pub fn signals(&self) -> impl Iterator<Item = usize> {
        self.signals.iter().map(|signal| signal.at)
    }

    /// Evaluates a condition for a request.
    pub fn holds(&self, x: &Seen<'_>) -> Result<bool, EvaluationError> {
        if let Some(Fast::Bool(fast)) = &self.fast
            && let Some(holds) = fast.value(x)
        {
            return Ok(holds);
        }
        self.interpreted(x)
    }

    /// Evaluates a condition by the interpreter.
    fn interpreted(&self, x: &Seen<'_>) -> Result<bool, EvaluationError> {
        self.evaluate(x, |value| match value.downcast_ref::<CelBool>() {
            Some(holds) => Ok(*holds.inner()),
            None => {
                let kind = value.get_type().name();
                Err(EvaluationError::Failed(format!("the value is {kind}; expected true or false")))
            }
        })?
    }

    /// Value for a request as JSON, and the name of its type.
    ///
    /// # Errors
    /// The request has no value for the expression.
    pub fn json(&self, x: &Seen<'_>) -> Result<(serde_json::Value, String), EvaluationError> {
        let value = self.evaluate(x, |value| Value::try_from(value))?.map_err(|e| failed(&e))?;
        Ok((values::to_json(&value), values::type_name(&value).to_owned()))
    }

    /// Value for a request as a text, a number, or true or false; `None` if it has none of these, and for a number that is not finite.
    pub fn scalar_of(&self, x: &Seen<'_>) -> Option<Scalar> {
        if let Some(value) = self.fast.as_ref().and_then(|fast| fast.value(x)) {
            return Some(value);
        }
        self.evaluate(x, as_scalar).ok().flatten().filter(|value| !matches!(value, Scalar::Double(n) if !n.is_finite()))
    }

    /// Value for a request as text; `None` if it has none that can be rendered.
    pub fn text(&self, x: &Seen<'_>) -> Option<String> {
        match self.fast.as_ref().and_then(|fast| fast.value(x)) {
            Some(Scalar::Text(text)) => Some(text),
            Some(Scalar::Bool(holds)) => Some(holds.to_string()),
            _ => self.evaluate(x, as_text).ok().flatten(),
        }
    }

    fn evaluate<T>(&self, x: &Seen<'_>, read: impl FnOnce(&dyn Val) -> T) -> Result<T, EvaluationError> {
        self.run(x, read).map_err(|e| failed(&e))
    }

    fn run<T>(&self, x: &Seen<'_>, read: impl FnOnce(&dyn Val) -> T) -> Result<T, ExecutionError> {
        let facts = Facts::new(x, self);
        let mut context = Context::with_env(environment());
        context.set_variable_resolver(&facts);
        if !self.patterns.is_empty() {
            let patterns = self.patterns.clone();
            let matches: Matches = Box::new(move |call| matches(&patterns, call));
            context.add_function("matches", matches).map_err(|e| ExecutionError::function_error("matches", e))?;
        }
        let expression = self.metered.as_ref().unwrap_or_else(|| self.program.expression());
        let value = Value::resolve_val(expression, &context);
        // Some operators put up with an error of one operand: whatever the value is, it was not computed to the end.
        if facts.is_exhausted() {
            return Err(ExecutionError::function_error("loop", format!("it takes more than {MAX_STEPS} steps")));
        }
        Ok(read(value?.as_ref()))
    }
}

/// Function as the interpreter holds it.
type Matches = Box<
    dyn for<'context, 'call> Fn(
            &mut FunctionContext<'context, 'call>,
        ) -> Result<CowVal<'context, 'call>, ExecutionError>
        + Send
        + Sync,
>;

/// `text.matches(pattern)` and `matches(text, pattern)`.
fn matches<'context, 'call>(
    patterns: &HashMap<String, Regex>,
    call: &FunctionContext<'context, 'call>,
) -> Result<CowVal<'context, 'call>, ExecutionError> {
    let mut operands = call.this.iter().chain(&call.args);
    let mut text = || {
        let operand = operands.next().ok_or_else(ExecutionError::missing_argument_or_target)?;
        let unexpected =
            || ExecutionError::UnexpectedType { got: operand.get_type().name().to_owned(), want: "string".to_owned() };
        operand.downcast_ref::<CelString>().ok_or_else(unexpected)
    };
    let (text, pattern) = (text()?, text()?);
    let found = patterns.get(pattern.inner()).is_some_and(|pattern| pattern.is_match(text.inner()));
    Ok(CowVal::owned(CelBool::from(found)))
}

fn failed(e: &ExecutionError) -> EvaluationError {
    match e {
        ExecutionError::NoSuchKey(_) => EvaluationError::Missing(short(e)),
        e => EvaluationError::Failed(short(e)),
    }
}

/// Position of a mistake, as the beginning of a message; the line only where there are several.
fn position(line: impl fmt::Display + PartialOrd + From<u8>, column: impl fmt::Display) -> String {
    if line > 1.into() { format!("line {line}, column {column}: ") } else { format!("column {column}: ") }
}

/// Text, number, or true or false.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// Text.
    Text(String),
    /// Whole number.
    Int(i64),
    /// Number with a fraction.
    Double(f64),
    /// True or false.
    Bool(bool),
}

fn as_scalar(value: &dyn Val) -> Option<Scalar> {
    if let Some(n) = value.downcast_ref::<CelDouble>() {
        Some(Scalar::Double(*n.inner()))
    } else if let Some(n) = value.downcast_ref::<CelInt>() {
        Some(Scalar::Int(*n.inner()))
    } else if let Some(holds) = value.downcast_ref::<CelBool>() {
        Some(Scalar::Bool(*holds.inner()))
    } else if let Some(n) = value.downcast_ref::<CelUInt>() {
        #[allow(clippy::cast_precision_loss, reason = "what is larger than the largest `Int` is rounded")]
        let rounded = |_| Scalar::Double(*n.inner() as f64);
        Some(i64::try_from(*n.inner()).map_or_else(rounded, Scalar::Int))
    } else {
        value.downcast_ref::<CelString>().map(|text| Scalar::Text(text.inner().to_owned()))
    }
}

fn as_text(value: &dyn Val) -> Option<String> {
    if let Some(text) = value.downcast_ref::<CelString>() {
        Some(text.inner().to_owned())
    } else if let Some(n) = value.downcast_ref::<CelInt>() {
        Some(n.inner().to_string())
    } else if let Some(n) = value.downcast_ref::<CelUInt>() {
        Some(n.inner().to_string())
    } else {
        value.downcast_ref::<CelBool>().map(|holds| holds.inner().to_string())
    }
}

/// Shortened error, without the full values of a request.
fn short(e: &ExecutionError) -> String {
    let mut text = e.to_string();
    if let Some((end, _)) = text.char_indices().nth(200) {
        text.truncate(end);
    }
    text
}

/// Checks an expression outside filters.
///
/// # Errors
/// The mistake, with its position in the text.
pub fn check(text: &str, place: ExpressionPlace<'_>) -> Result<(), String> {
    match place {
        ExpressionPlace::Match(signals) => Expression::condition_with(text, Scope::Head, signals).map(drop),
        ExpressionPlace::Request => Expression::condition(text, Scope::Request).map(drop),
        ExpressionPlace::Field => Expression::scalar(text, Scope::End).map(drop),
    }
}
