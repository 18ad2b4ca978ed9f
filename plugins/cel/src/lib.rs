//! CEL (Common Expression Language) over a request. An expression is compiled and checked when the configuration is, and
//! then evaluated for each request in time that grows with the size of the request and no faster. It owns the language's
//! names (`request`, `consumer`, `route`) and its bounds; what follows from a value is for whoever asked.

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
/// Longest body that an expression looks at, in bytes.
pub const MAX_BODY: usize = 1 << 20;
/// Memory of one compiled pattern.
const PATTERN_SIZE: usize = 1 << 20;

/// Why an expression has no value for a request. Whoever guards with it must take this for a refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    /// It asks for something that the request does not have.
    #[error("{0}")]
    Missing(String),
    /// It does something that its values do not allow.
    #[error("{0}")]
    Failed(String),
}

/// What an expression may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The head of the request alone.
    Head,
    /// The request, its body, the consumer, the route.
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
    /// Compiles an expression that is true or false.
    pub fn condition(text: &str, scope: Scope) -> Result<Self, String> {
        let expression = Self::compile(text, scope)?;
        expression.try_out(|value| matches!(value, Value::Bool(_)), "true or false")?;
        Ok(expression)
    }

    /// Compiles an expression whose value can be written as text.
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
            format!("this is no CEL expression: {}", first.unwrap_or_else(|| errors.to_string()))
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

    /// Evaluates it for requests that show every kind of value, to find what would never work.
    fn try_out(&self, fits: impl Fn(&Value) -> bool, wanted: &str) -> Result<(), String> {
        values::with_samples(|sample| match self.run(sample) {
            Ok(value) if fits(&value) => Ok(()),
            Ok(value) => Err(format!("its value is {} and must be {wanted}", value.type_of())),
            // What a sample does not have, a request may have.
            Err(ExecutionError::NoSuchKey(_) | ExecutionError::IndexOutOfBounds(_)) => Ok(()),
            Err(ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_)) => Ok(()),
            // What comes from the body or a token has a type that nobody knows yet.
            Err(_) if self.asked.body || self.asked.claims => Ok(()),
            Err(e) => Err(short(&e)),
        })
    }

    /// Which parts of a request it needs.
    pub fn asked(&self) -> Asked {
        self.asked
    }

    /// Whether it holds for a request.
    pub fn holds(&self, x: &Seen<'_>) -> Result<bool, EvaluationError> {
        match self.evaluate(x)? {
            Value::Bool(holds) => Ok(holds),
            other => Err(EvaluationError::Failed(format!("its value is {}, not true or false", other.type_of()))),
        }
    }

    /// Its value for a request as text; `None` where it has none that can be written.
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

/// What went wrong, without the values of a request in full.
fn short(e: &ExecutionError) -> String {
    let mut text = e.to_string();
    if let Some((end, _)) = text.char_indices().nth(200) {
        text.truncate(end);
    }
    text
}

/// What is wrong with an expression over the head of a request, as `matches[].when` has it.
pub fn check_head(text: &str) -> Result<(), String> {
    Expression::condition(text, Scope::Head).map(|_| ())
}
