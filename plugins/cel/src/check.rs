//! Static check of an expression: unknown names are reported, and loops whose cost would grow faster than the request
//! are refused.

use cel::IdedExpr;
use cel::common::ast::{EntryExpr, Expr, LiteralValue};

use crate::{Asked, Scope};

const REQUEST: [&str; 8] = ["method", "path", "query", "host", "headers", "clientAddress", "model", "body"];
const CONSUMER: [&str; 4] = ["name", "tenant", "scopes", "claims"];

/// Findings in an expression.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) asked: Asked,
    pub(crate) patterns: Vec<String>,
}

fn known(fields: &[&str], field: &str, of: &str) -> Result<(), String> {
    if fields.contains(&field) {
        return Ok(());
    }
    Err(format!("`{of}` has no `{field}`; expected {}", listed(fields)))
}

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

pub(crate) fn walk<'e>(
    expr: &'e IdedExpr,
    scope: Scope,
    variables: &mut Vec<&'e str>,
    found: &mut Found,
) -> Result<(), String> {
    match &expr.expr {
        Expr::Unspecified | Expr::Literal(_) => Ok(()),
        Expr::Ident(name) => ident(name, scope, variables, found),
        Expr::Select(select) => {
            if let Expr::Ident(name) = &select.operand.expr
                && !variables.contains(&name.as_str())
            {
                field(name, &select.field, scope, found)?;
            }
            match &select.operand.expr {
                // Only the field is needed, not the whole value.
                Expr::Ident(name) if matches!(name.as_str(), "request" | "consumer") => {
                    ident_exists(name, scope, variables)
                }
                _ => walk(&select.operand, scope, variables, found),
            }
        }
        Expr::Call(call) => {
            if call.func_name == "matches" {
                match call.args.last().map(|arg| &arg.expr) {
                    Some(Expr::Literal(LiteralValue::String(pattern))) => {
                        found.patterns.push(pattern.inner().to_owned());
                    }
                    _ => return Err("computed pattern of `matches`; expected a string in quotes".to_owned()),
                }
            }
            for part in call.target.iter().map(AsRef::as_ref).chain(&call.args) {
                walk(part, scope, variables, found)?;
            }
            Ok(())
        }
        Expr::List(list) => list.elements.iter().try_for_each(|part| walk(part, scope, variables, found)),
        Expr::Map(map) => map.entries.iter().try_for_each(|entry| self::entry(&entry.expr, scope, variables, found)),
        Expr::Struct(s) => s.entries.iter().try_for_each(|entry| self::entry(&entry.expr, scope, variables, found)),
        Expr::Comprehension(c) => {
            let is_inner = !variables.is_empty();
            if is_inner && !root(&c.iter_range).is_some_and(|name| variables.contains(&name)) {
                return Err(
                    "a loop inside a loop, whose cost would grow with the square of the request; expected it to go over \
                     the variable of the outer loop"
                        .to_owned(),
                );
            }
            walk(&c.iter_range, scope, variables, found)?;
            let before = variables.len();
            variables.push(&c.iter_var);
            variables.extend(c.iter_var2.as_deref());
            variables.push(&c.accu_var);
            for part in [&c.accu_init, &c.loop_cond, &c.loop_step, &c.result] {
                walk(part, scope, variables, found)?;
            }
            variables.truncate(before);
            Ok(())
        }
    }
}

fn entry<'e>(
    entry: &'e EntryExpr,
    scope: Scope,
    variables: &mut Vec<&'e str>,
    found: &mut Found,
) -> Result<(), String> {
    match entry {
        EntryExpr::StructField(field) => walk(&field.value, scope, variables, found),
        EntryExpr::MapEntry(entry) => {
            walk(&entry.key, scope, variables, found)?;
            walk(&entry.value, scope, variables, found)
        }
    }
}

fn ident_exists(name: &str, scope: Scope, variables: &[&str]) -> Result<(), String> {
    let all = ["request", "consumer", "route"];
    let types = ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];
    if variables.contains(&name) || types.contains(&name) {
        return Ok(());
    }
    match scope {
        Scope::Head if name == "request" => Ok(()),
        Scope::Head if all.contains(&name) => {
            Err(format!("`{name}` is not known yet when a route is chosen: use the filter `authorize`"))
        }
        Scope::All if all.contains(&name) => Ok(()),
        Scope::Head => Err(format!("unknown name `{name}`; expected `request`")),
        Scope::All => Err(format!("unknown name `{name}`; expected {}", listed(&all))),
    }
}

fn ident(name: &str, scope: Scope, variables: &[&str], found: &mut Found) -> Result<(), String> {
    ident_exists(name, scope, variables)?;
    if !variables.contains(&name) {
        match name {
            "request" => {
                let is_read = scope == Scope::All;
                found.asked = Asked { headers: true, query: true, model: is_read, body: is_read, ..found.asked };
            }
            "consumer" => found.asked.claims = true,
            _ => {}
        }
    }
    Ok(())
}

fn field(name: &str, field: &str, scope: Scope, found: &mut Found) -> Result<(), String> {
    match name {
        "request" => {
            known(&REQUEST, field, name)?;
            if scope == Scope::Head && matches!(field, "body" | "model") {
                let message =
                    format!("`request.{field}` is not read yet when a route is chosen: use `model` of the match");
                return Err(message);
            }
            found.asked.headers |= field == "headers";
            found.asked.query |= field == "query";
            found.asked.body |= field == "body";
            found.asked.model |= field == "model";
        }
        "consumer" => {
            known(&CONSUMER, field, name)?;
            found.asked.claims |= field == "claims";
        }
        _ => {}
    }
    Ok(())
}
