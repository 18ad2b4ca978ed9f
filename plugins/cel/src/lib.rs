//! CEL (Common Expression Language) over a request. An expression is compiled and checked with the configuration,
//! then evaluated for each request in time linear in the size of the request. Owns the language's names (`request`,
//! `consumer`, `route`) and its bounds; callers decide what follows from a value.

mod check;
#[cfg(test)]
mod tests;
mod values;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use cel::extractors::This;
use cel::{Context, Env, ExecutionError, Program, Value};
use regex::Regex;

pub use values::{Asked, Seen};

/// Longest expression, in bytes.
pub const MAX_EXPRESSION: usize = 4096;
/// Longest body that an expression can read, in bytes.
pub const MAX_BODY: usize = 1 << 20;
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

/// Names that an expression may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Head of the request only.
    Head,
    /// Request, body, consumer and route.
    All,
}

/// A compiled expression.
pub struct Expression {
    program: Program,
    patterns: Arc<HashMap<String, Regex>>,
    asked: Asked,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Expression({})", self.program.source_info().source)
    }
}

fn environment() -> Arc<Env> {
    static ENVIRONMENT: OnceLock<Arc<Env>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| Arc::new(Env::stdlib())).clone()
}

impl Expression {
    /// Compiles an expression whose value is a boolean.
    pub fn condition(text: &str, scope: Scope) -> Result<Self, String> {
        let expression = Self::compile(text, scope)?;
        expression.try_out(|value| matches!(value, Value::Bool(_)), "true or false")?;
        Ok(expression)
    }

    /// Compiles an expression whose value can be rendered as text.
    pub fn value(text: &str, scope: Scope) -> Result<Self, String> {
        let expression = Self::compile(text, scope)?;
        expression.try_out(|value| as_text(value).is_some(), "a string, a number or true or false")?;
        Ok(expression)
    }

    fn compile(text: &str, scope: Scope) -> Result<Self, String> {
        if text.len() > MAX_EXPRESSION {
            return Err(format!("an expression has at most {MAX_EXPRESSION} bytes"));
        }
        let program = environment().compile(text).map_err(|errors| {
            let first = errors.errors.first().map(|e| format!("column {}: {}", e.pos.1, e.msg));
            format!("invalid CEL expression: {}", first.unwrap_or_else(|| errors.to_string()))
        })?;
        let mut found = check::Found::default();
        check::walk(program.expression(), scope, &mut Vec::new(), &mut found)?;
        let mut patterns = HashMap::new();
        for pattern in found.patterns {
            let compiled = regex::RegexBuilder::new(&pattern).size_limit(PATTERN_SIZE).build().map_err(|e| {
                format!("`{pattern}` is not a regular expression: {}", e.to_string().lines().last().unwrap_or_default())
            })?;
            patterns.insert(pattern, compiled);
        }
        Ok(Self { program, patterns: Arc::new(patterns), asked: found.asked })
    }

    /// Evaluates the expression for sample requests with every kind of value, to find mistakes that always fail.
    fn try_out(&self, fits: impl Fn(&Value) -> bool, wanted: &str) -> Result<(), String> {
        values::with_samples(|sample| match self.run(sample) {
            Ok(value) if fits(&value) => Ok(()),
            Ok(value) => Err(format!("the value is {}; expected {wanted}", value.type_of())),
            // A request may have what a sample lacks.
            Err(ExecutionError::NoSuchKey(_) | ExecutionError::IndexOutOfBounds(_)) => Ok(()),
            Err(ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_)) => Ok(()),
            // Types of values from the body or a token are not known yet.
            Err(_) if self.asked.body || self.asked.claims => Ok(()),
            Err(e) => Err(short(&e)),
        })
    }

    /// Costly parts of a request that the expression needs.
    pub fn asked(&self) -> Asked {
        self.asked
    }

    /// Evaluates a condition for a request.
    pub fn holds(&self, x: &Seen<'_>) -> Result<bool, EvaluationError> {
        match self.evaluate(x)? {
            Value::Bool(holds) => Ok(holds),
            other => Err(EvaluationError::Failed(format!("the value is {}; expected true or false", other.type_of()))),
        }
    }

    /// Value for a request as text; `None` if it has none that can be rendered.
    pub fn text(&self, x: &Seen<'_>) -> Option<String> {
        self.evaluate(x).ok().as_ref().and_then(as_text)
    }

    fn evaluate(&self, x: &Seen<'_>) -> Result<Value, EvaluationError> {
        self.run(x).map_err(|e| match e {
            ExecutionError::NoSuchKey(_) => EvaluationError::Missing(short(&e)),
            e => EvaluationError::Failed(short(&e)),
        })
    }

    fn run(&self, x: &Seen<'_>) -> Result<Value, ExecutionError> {
        let mut context = Context::with_env(environment());
        values::bind(&mut context, x, self.asked)?;
        if !self.patterns.is_empty() {
            let patterns = self.patterns.clone();
            let matches = move |This(text): This<Arc<String>>, pattern: Arc<String>| {
                patterns.get(pattern.as_str()).is_some_and(|pattern| pattern.is_match(&text))
            };
            context.add_function("matches", matches).map_err(|e| ExecutionError::function_error("matches", e))?;
        }
        self.program.execute(&context)
    }
}

fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.to_string()),
        Value::Int(n) => Some(n.to_string()),
        Value::UInt(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        _ => None,
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

/// Checks an expression over the head of a request, as in `matches[].when`.
pub fn check_head(text: &str) -> Result<(), String> {
    Expression::condition(text, Scope::Head).map(|_| ())
}
