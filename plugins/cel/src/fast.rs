//! Evaluation of plain expressions without the interpreter: comparisons of names and literals, put together by `&&`, `||` and `!`,
//! and texts. Says nothing where a part has no value; the interpreter decides then. What is said here is what the interpreter says: a
//! property test compares them.

use std::borrow::Cow;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, Expr, LiteralValue, SelectExpr};
use http::HeaderName;

use crate::Scalar;
use crate::facts;
use crate::schema::{Fact, NAMES, Type};
use crate::values::Seen;

/// Expression that needs no interpreter.
#[derive(Debug)]
pub(crate) enum Fast {
    Bool(Bool),
    Text(Text),
}

/// True or false.
#[derive(Debug)]
pub(crate) enum Bool {
    Literal(bool),
    TlsUsed,
    Not(Box<Bool>),
    And(Box<Bool>, Box<Bool>),
    Or(Box<Bool>, Box<Bool>),
    /// Two texts, and true where they must be equal.
    Equal(Text, Text, bool),
    Begins(Text, Text),
    Ends(Text, Text),
    Contains(Text, Text),
    Among(Text, Vec<Box<str>>),
    Scope(Text),
    HasHeader(HeaderName),
    /// Status of the answer and a number, compared.
    Status(Comparison, i64),
}

/// Comparison of numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

/// Text.
#[derive(Debug)]
pub(crate) enum Text {
    Literal(Box<str>),
    Fact(Fact),
    Header(HeaderName),
    Sum(Box<Text>, Box<Text>),
}

impl Fast {
    /// Compiles an expression that was checked; `None` if it needs the interpreter.
    pub(crate) fn new(expr: &IdedExpr) -> Option<Self> {
        Bool::new(expr).map(Self::Bool).or_else(|| Text::new(expr).map(Self::Text))
    }

    /// Value for a request; `None` where the interpreter must decide.
    pub(crate) fn value(&self, x: &Seen<'_>) -> Option<Scalar> {
        match self {
            Self::Bool(fast) => fast.value(x).map(Scalar::Bool),
            Self::Text(fast) => Some(Scalar::Text(fast.value(x)?.into_owned())),
        }
    }
}

fn boxed<T>(pair: (T, T)) -> (Box<T>, Box<T>) {
    (Box::new(pair.0), Box::new(pair.1))
}

impl Bool {
    fn new(expr: &IdedExpr) -> Option<Self> {
        match &expr.expr {
            Expr::Literal(LiteralValue::Boolean(holds)) => Some(Self::Literal(*holds.inner())),
            Expr::Select(select) if select.test => match headers(&select.operand) {
                true => HeaderName::from_bytes(select.field.as_bytes()).ok().map(Self::HasHeader),
                false => None,
            },
            Expr::Select(select) => (field(select)? == Fact::TlsUsed).then_some(Self::TlsUsed),
            Expr::Call(call) => Self::call(call),
            _ => None,
        }
    }

    fn call(call: &CallExpr) -> Option<Self> {
        let texts = |left, right| Some((Text::new(left)?, Text::new(right)?));
        let bools = |left, right| Some(boxed((Self::new(left)?, Self::new(right)?)));
        match (call.func_name.as_str(), call.target.as_deref(), call.args.as_slice()) {
            ("!_", None, [of]) => Some(Self::Not(Box::new(Self::new(of)?))),
            ("_&&_", None, [left, right]) => bools(left, right).map(|(left, right)| Self::And(left, right)),
            ("_||_", None, [left, right]) => bools(left, right).map(|(left, right)| Self::Or(left, right)),
            ("startsWith", Some(of), [part]) => texts(of, part).map(|(of, part)| Self::Begins(of, part)),
            ("endsWith", Some(of), [part]) => texts(of, part).map(|(of, part)| Self::Ends(of, part)),
            ("contains", Some(of), [part]) => texts(of, part).map(|(of, part)| Self::Contains(of, part)),
            ("@in", None, [key, list]) => Self::membership(key, list),
            (operator, None, [left, right]) => {
                let comparison = match operator {
                    "_==_" => Comparison::Equal,
                    "_!=_" => Comparison::NotEqual,
                    "_<_" => Comparison::Less,
                    "_<=_" => Comparison::AtMost,
                    "_>_" => Comparison::Greater,
                    "_>=_" => Comparison::AtLeast,
                    _ => return None,
                };
                if let (Expr::Select(select), Expr::Literal(LiteralValue::Int(n))) = (&left.expr, &right.expr) {
                    let is_status = field(select)? == Fact::ResponseStatus && !select.test;
                    return is_status.then(|| Self::Status(comparison, *n.inner()));
                }
                let must_be_equal = match comparison {
                    Comparison::Equal => true,
                    Comparison::NotEqual => false,
                    _ => return None,
                };
                texts(left, right).map(|(left, right)| Self::Equal(left, right, must_be_equal))
            }
            _ => None,
        }
    }

    fn membership(key: &IdedExpr, of: &IdedExpr) -> Option<Self> {
        if headers(of) {
            return HeaderName::from_bytes(literal(key)?.as_bytes()).ok().map(Self::HasHeader);
        }
        match &of.expr {
            Expr::Select(select) if !select.test && field(select)? == Fact::Scopes => Text::new(key).map(Self::Scope),
            Expr::List(list) => {
                let texts = list.elements.iter().map(|element| literal(element).map(Box::from));
                Some(Self::Among(Text::new(key)?, texts.collect::<Option<_>>()?))
            }
            _ => None,
        }
    }

    pub(crate) fn value(&self, x: &Seen<'_>) -> Option<bool> {
        Some(match self {
            Self::Literal(holds) => *holds,
            Self::TlsUsed => x.secure,
            Self::Not(of) => !of.value(x)?,
            // The other part cannot change it, whether it has a value or not.
            Self::And(left, right) => left.value(x)? && right.value(x)?,
            Self::Or(left, right) => left.value(x)? || right.value(x)?,
            Self::Equal(left, right, must_be_equal) => (left.value(x)? == right.value(x)?) == *must_be_equal,
            Self::Begins(of, part) => of.value(x)?.starts_with(&*part.value(x)?),
            Self::Ends(of, part) => of.value(x)?.ends_with(&*part.value(x)?),
            Self::Contains(of, part) => of.value(x)?.contains(&*part.value(x)?),
            Self::Among(of, all) => {
                let text = of.value(x)?;
                all.iter().any(|one| **one == *text)
            }
            Self::Scope(of) => {
                let text = of.value(x)?;
                x.caller.is_some_and(|caller| caller.scopes.iter().any(|scope| **scope == *text))
            }
            Self::HasHeader(name) => x.headers.contains_key(name),
            Self::Status(comparison, n) => {
                let status = i64::from(x.served.status);
                match comparison {
                    Comparison::Equal => status == *n,
                    Comparison::NotEqual => status != *n,
                    Comparison::Less => status < *n,
                    Comparison::AtMost => status <= *n,
                    Comparison::Greater => status > *n,
                    Comparison::AtLeast => status >= *n,
                }
            }
        })
    }
}

impl Text {
    fn new(expr: &IdedExpr) -> Option<Self> {
        match &expr.expr {
            Expr::Literal(LiteralValue::String(text)) => Some(Self::Literal(text.inner().into())),
            Expr::Ident(name) => known(name, None, Type::String).map(Self::Fact),
            Expr::Select(select) if select.test => None,
            Expr::Select(select) if headers(&select.operand) => Self::header(&select.field),
            Expr::Select(select) => match &select.operand.expr {
                Expr::Ident(root) => known(root, Some(&select.field), Type::String).map(Self::Fact),
                _ => None,
            },
            Expr::Call(call) => match (call.func_name.as_str(), call.target.as_deref(), call.args.as_slice()) {
                ("_[_]", None, [of, key]) if headers(of) => Self::header(literal(key)?),
                ("_+_", None, [left, right]) => {
                    let (left, right) = boxed((Self::new(left)?, Self::new(right)?));
                    Some(Self::Sum(left, right))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn header(name: &str) -> Option<Self> {
        HeaderName::from_bytes(name.as_bytes()).ok().map(Self::Header)
    }

    pub(crate) fn value<'s>(&'s self, x: &'s Seen<'_>) -> Option<Cow<'s, str>> {
        match self {
            Self::Literal(text) => Some(Cow::Borrowed(text)),
            Self::Fact(fact) => facts::text_of(x, *fact),
            Self::Header(name) => facts::header_of(x, name),
            Self::Sum(left, right) => Some(Cow::Owned([&*left.value(x)?, &*right.value(x)?].concat())),
        }
    }
}

fn literal(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

/// Fact of a name that has this type.
fn known(root: &str, field: Option<&str>, kind: Type) -> Option<Fact> {
    let is_named = |name: &&crate::Name| name.root == root && name.field == field && name.kind == kind;
    NAMES.iter().find(is_named).map(|name| name.fact)
}

/// Fact of `root.field`, whatever its type.
fn field(select: &SelectExpr) -> Option<Fact> {
    let Expr::Ident(root) = &select.operand.expr else { return None };
    let is_named = |name: &&crate::Name| name.root == root && name.field == Some(&select.field);
    NAMES.iter().find(is_named).map(|name| name.fact)
}

/// True for `request.headers` itself.
fn headers(expr: &IdedExpr) -> bool {
    matches!(&expr.expr, Expr::Select(select) if !select.test && field(select) == Some(Fact::Headers))
}
