//! Static check of an expression: unknown names and operations that do not fit their types are reported with their position,
//! and loops whose cost would grow faster than the request are refused. What is accepted is counted when it is evaluated (`meter.rs`).

use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SelectExpr};

use spillway_filter::{SignalKind, SignalName, nearest};

use crate::Scope;
use crate::facts::ReadSignal;
use crate::schema::{self, Asked, Fact, NAMES, Name, SIGNALS, Type};

/// Findings in an expression.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) asked: Asked,
    pub(crate) patterns: Vec<String>,
    /// Headers that are read by literal names.
    pub(crate) headers: Vec<String>,
    /// True if the headers are read in another way than by literal names.
    pub(crate) all_headers: bool,
    /// Signals that are read, each once.
    pub(crate) signals: Vec<ReadSignal>,
}

/// Mistake at a node of the expression.
#[derive(Debug)]
pub(crate) struct Mistake {
    pub(crate) node: u64,
    pub(crate) message: String,
}

/// Names of types, as in `type(x) == string`.
const TYPES: [&str; 10] = ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

/// Names with `or` before the last.
fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// Name at the root of `a.b[c].d`.
fn root(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Ident(name) => Some(name),
        Expr::Select(select) => root(&select.operand),
        Expr::Call(call) if call.func_name == "_[_]" => call.args.first().and_then(root),
        _ => None,
    }
}

/// Root of a name that is read without computing anything: `a`, `a.b` and `a['b']`.
fn path_root(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Ident(name) => Some(name),
        Expr::Select(select) => path_root(&select.operand),
        Expr::Call(call) if call.func_name == "_[_]" => match call.args.as_slice() {
            [of, key] => matches!(key.expr, Expr::Literal(_)).then(|| path_root(of)).flatten(),
            _ => None,
        },
        _ => None,
    }
}

fn literal(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

/// Checks an expression and returns the type of its value.
pub(crate) fn check<'e>(expr: &'e IdedExpr, scope: Scope, signals: &'e [SignalName]) -> Result<(Type, Found), Mistake> {
    let (variables, found) = (Vec::new(), Found::default());
    let mut checker = Checker { scope, signals, variables, depth: 0, reads_little: false, found };
    let kind = checker.kind(expr)?;
    Ok((kind, checker.found))
}

/// Variable of a loop.
struct Variable<'e> {
    name: &'e str,
    kind: Type,
    /// Number of loops around its uses, its own one included.
    depth: usize,
}

struct Checker<'e> {
    scope: Scope,
    /// Names below `signals`.
    signals: &'e [SignalName],
    variables: Vec<Variable<'e>>,
    /// Number of loops around the expression.
    depth: usize,
    /// True if what is done with the value of the expression takes no longer than what it is done with is long.
    reads_little: bool,
    found: Found,
}

fn mistake<T>(at: &IdedExpr, message: String) -> Result<T, Mistake> {
    Err(Mistake { node: at.id, message })
}

impl<'e> Checker<'e> {
    fn kind(&mut self, expr: &'e IdedExpr) -> Result<Type, Mistake> {
        match &expr.expr {
            Expr::Unspecified => Ok(Type::Any),
            Expr::Literal(literal) => Ok(match literal {
                LiteralValue::Boolean(_) => Type::Bool,
                LiteralValue::Bytes(_) => Type::Bytes,
                LiteralValue::Double(_) => Type::Double,
                LiteralValue::Int(_) => Type::Int,
                LiteralValue::Null => Type::Null,
                LiteralValue::String(_) => Type::String,
                LiteralValue::UInt(_) => Type::Uint,
            }),
            Expr::Ident(name) => self.ident(expr, name),
            Expr::Select(select) => self.select(expr, select),
            Expr::Call(call) => self.call(expr, call),
            Expr::List(list) => {
                for part in &list.elements {
                    self.kind(part)?;
                }
                Ok(Type::List(&Type::Any))
            }
            Expr::Map(map) => {
                map.entries.iter().try_for_each(|entry| self.entry(&entry.expr))?;
                Ok(Type::Map(&Type::Any))
            }
            Expr::Struct(s) => {
                s.entries.iter().try_for_each(|entry| self.entry(&entry.expr))?;
                Ok(Type::Any)
            }
            Expr::Comprehension(c) => self.comprehension(expr, c),
        }
    }

    fn entry(&mut self, entry: &'e EntryExpr) -> Result<(), Mistake> {
        match entry {
            EntryExpr::StructField(field) => self.kind(&field.value)?,
            EntryExpr::MapEntry(entry) => {
                self.kind(&entry.key)?;
                self.kind(&entry.value)?
            }
        };
        Ok(())
    }

    fn variable(&self, name: &str) -> Option<&Variable<'e>> {
        self.variables.iter().rev().find(|known| known.name == name)
    }

    /// True if the expression is a part of a variable of a loop around the innermost one.
    fn is_outer(&self, expr: &IdedExpr) -> bool {
        path_root(expr).and_then(|name| self.variable(name)).is_some_and(|variable| variable.depth < self.depth)
    }

    /// Type of an operand at `index` of an operator. A variable of an outer loop may be compared, or decide, in an inner one: that costs no
    /// more than what the inner one goes over. Other operations would read all of it in every turn.
    fn operand(&mut self, call: &'e CallExpr, index: usize, part: &'e IdedExpr) -> Result<Type, Mistake> {
        let little = match call.func_name.as_str() {
            "_&&_" | "_||_" | "!_" | "@not_strictly_false" => true,
            "_?_:_" => index == 0,
            "_[_]" => self.reads_little && index == 0,
            "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" => !call.args.iter().all(|part| self.is_outer(part)),
            _ => false,
        };
        let before = std::mem::replace(&mut self.reads_little, little && path_root(part).is_some());
        let kind = self.kind(part);
        self.reads_little = before;
        kind
    }

    fn read(&mut self, name: &Name) -> Type {
        self.found.asked.add(name.fact);
        name.kind
    }

    /// Names below a root in this scope, or the reason for which there are none.
    fn names(&self, at: &IdedExpr, root: &str) -> Result<impl Iterator<Item = &'static Name> + use<>, Mistake> {
        let scope = self.scope;
        let is_in = |scope| schema::roots(scope).contains(&root);
        if !is_in(scope) {
            return mistake(
                at,
                if scope == Scope::Head && is_in(Scope::Request) {
                    format!("`{root}` is not known yet when a route is chosen: use the filter `authorize`")
                } else if Scope::ALL.into_iter().any(is_in) {
                    let known = Scope::ALL.into_iter().filter(|scope| is_in(*scope)).map(Scope::as_str);
                    let (known, here) = (known.collect::<Vec<_>>().join(", "), scope.as_str());
                    let roots = listed(&schema::roots(scope));
                    format!("`{root}` is not known in {here}, only in {known}; expected {roots}")
                } else {
                    format!("unknown name `{root}`; expected {}", listed(&schema::roots(scope)))
                },
            );
        }
        let root = root.to_owned();
        Ok(NAMES.iter().filter(move |name| name.root == root))
    }

    fn ident(&mut self, at: &'e IdedExpr, name: &str) -> Result<Type, Mistake> {
        if let Some(variable) = self.variable(name) {
            if variable.depth < self.depth && !self.reads_little {
                return mistake(
                    at,
                    format!(
                        "`{name}` of the outer loop is read in every turn of the inner one, whose cost would grow with the square of the \
                         request; expected it to be compared with a part of the variable of the inner loop"
                    ),
                );
            }
            return Ok(variable.kind);
        }
        if TYPES.contains(&name) {
            return Ok(Type::Type);
        }
        if name == SIGNALS && schema::roots(self.scope).contains(&SIGNALS) {
            return mistake(
                at,
                format!("`{SIGNALS}` has no value itself; expected one of them, such as `{SIGNALS}.NAME`"),
            );
        }
        let mut kind = Type::Map(&Type::Any);
        let scope = self.scope;
        for known in self.names(at, name)?.filter(|known| known.is_in(scope)) {
            self.read(known);
            self.found.all_headers |= known.fact == Fact::Headers;
            if known.field.is_none() {
                kind = known.kind;
            }
        }
        Ok(kind)
    }

    /// Name that `root.field` spells; `None` where `expr` is another expression.
    fn named(&mut self, at: &IdedExpr, select: &SelectExpr) -> Result<Option<&'static Name>, Mistake> {
        let Expr::Ident(root) = &select.operand.expr else { return Ok(None) };
        if self.variable(root).is_some() || TYPES.contains(&root.as_str()) {
            return Ok(None);
        }
        let names: Vec<_> = self.names(&select.operand, root)?.collect();
        if root == SIGNALS {
            return Ok(None);
        }
        if names.iter().any(|name| name.field.is_none()) {
            return Ok(None);
        }
        let field = select.field.as_str();
        match names.iter().find(|name| name.field == Some(field)) {
            Some(name) if name.is_in(self.scope) => Ok(Some(name)),
            Some(name) if self.scope != Scope::Head => {
                let known = name.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(", ");
                mistake(at, format!("`{root}.{field}` is not known in {}, only in {known}", self.scope.as_str()))
            }
            Some(_) => mistake(
                at,
                format!(
                    "`{root}.{field}` is not read yet when a route is chosen: use `model` of the match, or the filter `authorize`"
                ),
            ),
            None => {
                let fields = names.iter().filter(|name| name.is_in(self.scope)).filter_map(|name| name.field);
                let fields: Vec<_> = fields.collect();
                mistake(at, format!("`{root}` has no `{field}`; expected {}", listed(&fields)))
            }
        }
    }

    /// Fact of `request.headers` or `response.headers` itself; `None` for another expression.
    fn headers(&mut self, expr: &IdedExpr) -> Result<Option<Fact>, Mistake> {
        let Expr::Select(select) = &expr.expr else { return Ok(None) };
        let fact = if select.test { None } else { self.named(expr, select)?.map(|name| name.fact) };
        Ok(fact.filter(|fact| matches!(fact, Fact::Headers | Fact::ResponseHeaders)))
    }

    fn header(&mut self, at: &IdedExpr, of: Fact, name: &str) -> Result<(), Mistake> {
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            let small = name.to_ascii_lowercase();
            return mistake(at, format!("no header is named `{name}`: names are in small letters; write `{small}`"));
        }
        self.found.asked.add(of);
        if of == Fact::Headers {
            self.found.headers.push(name.to_owned());
        }
        Ok(())
    }

    /// Type of the signal that `signals.a` or `signals.a.b` spells; `None` where `select` is something else.
    fn signal(&mut self, at: &IdedExpr, select: &SelectExpr) -> Result<Option<Type>, Mistake> {
        let Some(name) = schema::below(select, SIGNALS).filter(|_| self.variable(SIGNALS).is_none()) else {
            return Ok(None);
        };
        // Refuses other places.
        let _ = self.names(at, SIGNALS)?;
        if let Some(index) = self.signals.iter().position(|known| known.name == name) {
            let signal = ReadSignal { name: name.into(), at: index };
            let kind = match self.signals.get(index).map(|known| known.kind) {
                Some(SignalKind::Bool) => Type::Bool,
                _ => Type::Double,
            };
            self.found.asked.add(Fact::Signals);
            if !self.found.signals.contains(&signal) {
                self.found.signals.push(signal);
            }
            return Ok(Some(kind));
        }
        let (parent, field) = name.rsplit_once('.').map_or(("", name.as_str()), |(parent, field)| (parent, field));
        let is_below = |known: &&str| known.rsplit_once('.').map_or("", |(parent, _)| parent) == parent;
        let known: Vec<&str> = self.signals.iter().map(|known| known.name.as_str()).filter(is_below).collect();
        let shown = if parent.is_empty() { SIGNALS.to_owned() } else { format!("{SIGNALS}.{parent}") };
        let known: Vec<&str> =
            known.iter().map(|known| known.rsplit_once('.').map_or(*known, |(_, own)| own)).collect();
        match (known.as_slice(), parent) {
            ([], "") => mistake(at, format!("unknown signal `{field}`; the file defines none under `signals`")),
            // A value that has no fields.
            ([], _) => Ok(None),
            (known, _) => {
                let near = nearest(field, known).map(|near| format!(" (did you mean `{near}`?)"));
                let message = format!("`{shown}` has no `{field}`; expected {}", listed(known));
                mistake(at, message + &near.unwrap_or_default())
            }
        }
    }

    fn select(&mut self, at: &'e IdedExpr, select: &'e SelectExpr) -> Result<Type, Mistake> {
        if let Some(kind) = self.signal(at, select)? {
            return Ok(if select.test { Type::Bool } else { kind });
        }
        if let Some(name) = self.named(at, select)? {
            self.found.all_headers |= name.fact == Fact::Headers;
            let kind = self.read(name);
            return Ok(if select.test { Type::Bool } else { kind });
        }
        let kind = if let Some(of) = self.headers(&select.operand)? {
            self.header(at, of, &select.field)?;
            Type::String
        } else {
            match self.kind(&select.operand)? {
                Type::Map(of) => *of,
                Type::Any => Type::Any,
                other => return mistake(at, format!("a value of type {other} has no field `{}`", select.field)),
            }
        };
        Ok(if select.test { Type::Bool } else { kind })
    }

    fn call(&mut self, at: &'e IdedExpr, call: &'e CallExpr) -> Result<Type, Mistake> {
        let name = call.func_name.as_str();
        // Of headers with literal names, only those are converted.
        match (name, call.args.as_slice()) {
            ("_[_]", [map, key])
                if let Some(header) = literal(key)
                    && let Some(of) = self.headers(map)? =>
            {
                self.header(key, of, header)?;
                return Ok(Type::String);
            }
            ("@in", [key, map])
                if let Some(header) = literal(key)
                    && let Some(of) = self.headers(map)? =>
            {
                self.header(key, of, header)?;
                return Ok(Type::Bool);
            }
            _ => {}
        }
        if name == "matches" {
            match call.args.last().and_then(literal) {
                Some(pattern) => self.found.patterns.push(pattern.to_owned()),
                None => return mistake(at, "computed pattern of `matches`; expected a string in quotes".to_owned()),
            }
        }
        let mut kinds = Vec::with_capacity(call.args.len() + 1);
        for (index, part) in call.target.iter().map(AsRef::as_ref).chain(&call.args).enumerate() {
            kinds.push(self.operand(call, index, part)?);
        }
        match result(name, &kinds) {
            Some(kind) => Ok(kind),
            None => {
                let shown: Vec<String> = kinds.iter().map(ToString::to_string).collect();
                let operator = name.trim_matches(['_', '@']);
                let operator = if operator == "[" || operator == "[_]" { "[]" } else { operator };
                mistake(at, format!("`{operator}` does not go with {}", shown.join(" and ")))
            }
        }
    }

    fn comprehension(&mut self, at: &'e IdedExpr, c: &'e ComprehensionExpr) -> Result<Type, Mistake> {
        let is_own = |variable: &Variable<'_>| variable.depth == self.depth;
        if self.depth > 0 && root(&c.iter_range).and_then(|name| self.variable(name)).is_none_or(|of| !is_own(of)) {
            return mistake(
                at,
                "a loop inside a loop, whose cost would grow with the square of the request; expected it to go over \
                 the variable of the loop around it"
                    .to_owned(),
            );
        }
        let element = match self.kind(&c.iter_range)? {
            Type::List(of) => *of,
            Type::Map(_) => Type::String,
            Type::Any => Type::Any,
            other => return mistake(&c.iter_range, format!("a loop goes over a list or a map; this is {other}")),
        };
        let accumulated = self.kind(&c.accu_init)?;
        let before = self.variables.len();
        self.depth += 1;
        let depth = self.depth;
        let variable = |name, kind| Variable { name, kind, depth };
        // A second variable is an index or a value; the first is then a key or an index.
        let first = if c.iter_var2.is_some() { Type::Any } else { element };
        self.variables.push(variable(&c.iter_var, first));
        self.variables.extend(c.iter_var2.as_deref().map(|name| variable(name, Type::Any)));
        self.variables.push(variable(&c.accu_var, accumulated));
        self.kind(&c.loop_cond)?;
        self.kind(&c.loop_step)?;
        let result = self.kind(&c.result)?;
        self.variables.truncate(before);
        self.depth -= 1;
        Ok(result)
    }
}

fn is_number(kind: Type) -> bool {
    matches!(kind, Type::Int | Type::Uint | Type::Double)
}

/// True if values of the two types can be equal.
fn comparable(left: Type, right: Type) -> bool {
    match (left, right) {
        (Type::Any | Type::Null, _) | (_, Type::Any | Type::Null) => true,
        (Type::List(a), Type::List(b)) | (Type::Map(a), Type::Map(b)) => comparable(*a, *b),
        (left, right) => left == right || is_number(left) && is_number(right),
    }
}

/// Type of the value of a call; `None` where no value can come of these types. Functions that are not listed are judged by
/// trying the expression.
fn result(name: &str, kinds: &[Type]) -> Option<Type> {
    let is = |kind: Type, wanted: Type| kind == Type::Any || kind == wanted;
    match (name, kinds) {
        ("_&&_" | "_||_", &[left, right]) => (is(left, Type::Bool) && is(right, Type::Bool)).then_some(Type::Bool),
        ("!_" | "@not_strictly_false", &[kind]) => is(kind, Type::Bool).then_some(Type::Bool),
        ("_?_:_", &[condition, left, right]) => {
            is(condition, Type::Bool).then_some(if left == right { left } else { Type::Any })
        }
        ("_==_" | "_!=_", &[left, right]) => comparable(left, right).then_some(Type::Bool),
        ("_<_" | "_<=_" | "_>_" | "_>=_", &[left, right]) => {
            let ordered = |kind| !matches!(kind, Type::List(_) | Type::Map(_) | Type::Null | Type::Type);
            (ordered(left) && ordered(right) && comparable(left, right)).then_some(Type::Bool)
        }
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", &[left, right]) => {
            let fits = |kind| match kind {
                Type::Any | Type::Int | Type::Uint => true,
                Type::Double => name != "_%_",
                Type::String | Type::Bytes | Type::List(_) => name == "_+_",
                _ => false,
            };
            let same = match (left, right) {
                (Type::Any, _) | (_, Type::Any) => true,
                (Type::List(_), Type::List(_)) => true,
                (left, right) => left == right,
            };
            let sum = match (left, right) {
                (Type::List(_), _) | (_, Type::List(_)) => Type::List(&Type::Any),
                (Type::Any, known) | (known, _) => known,
            };
            (fits(left) && fits(right) && same).then_some(sum)
        }
        ("-_", &[kind]) => matches!(kind, Type::Any | Type::Int | Type::Double).then_some(kind),
        ("@in", &[key, of]) => match of {
            Type::Any => Some(Type::Bool),
            Type::List(of) => comparable(key, *of).then_some(Type::Bool),
            Type::Map(&Type::String) => is(key, Type::String).then_some(Type::Bool),
            Type::Map(_) => Some(Type::Bool),
            _ => None,
        },
        ("_[_]", &[of, key]) => match of {
            Type::Any => Some(Type::Any),
            Type::List(of) => (key == Type::Any || is_number(key)).then_some(*of),
            Type::Map(&Type::String) => is(key, Type::String).then_some(Type::String),
            Type::Map(of) => Some(*of),
            _ => None,
        },
        ("size", &[kind]) => {
            let sized = matches!(kind, Type::Any | Type::String | Type::Bytes | Type::List(_) | Type::Map(_));
            sized.then_some(Type::Int)
        }
        ("startsWith" | "endsWith" | "matches" | "contains", &[text, part]) => {
            (is(text, Type::String) && is(part, Type::String)).then_some(Type::Bool)
        }
        ("string", &[_]) => Some(Type::String),
        ("int", &[_]) => Some(Type::Int),
        ("uint", &[_]) => Some(Type::Uint),
        ("double", &[_]) => Some(Type::Double),
        ("bytes", &[_]) => Some(Type::Bytes),
        ("type", &[_]) => Some(Type::Type),
        _ => Some(Type::Any),
    }
}
