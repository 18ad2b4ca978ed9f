//! Counting of the steps of an expression. The interpreter has no limit of its own, so the expression is rewritten before it is
//! evaluated: every turn of a loop reads a name that takes steps ([`facts::STEP`]), and what is read again in every turn, or copied into
//! a list or map, is counted by its size ([`facts::COUNTED`]). The meaning stays the same.

use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators};
use cel::common::types::CelBool;

use crate::facts::{COUNTED, HAS, HAS_SIGNAL, STEP};
use crate::schema::{self, NAMES, SIGNALS};

/// The expression with its steps counted; `None` if it has none to count.
pub(crate) fn counted(expr: &IdedExpr) -> Option<IdedExpr> {
    let mut meter = Meter { variables: Vec::new(), is_changed: false };
    let mut counted = expr.clone();
    meter.rewrite(&mut counted, false);
    meter.is_changed.then_some(counted)
}

struct Meter {
    /// Variables of the loops around the expression.
    variables: Vec<String>,
    is_changed: bool,
}

impl Meter {
    fn is_fact(&self, name: &str) -> bool {
        NAMES.iter().any(|known| known.root == name) && !self.variables.iter().any(|variable| variable == name)
    }

    /// Rewrites an expression. `again` is true where its value is read more than once, or copied.
    fn rewrite(&mut self, expr: &mut IdedExpr, again: bool) {
        match &mut expr.expr {
            Expr::Unspecified | Expr::Literal(_) => {}
            Expr::Ident(name) => {
                if again && self.is_fact(name) {
                    name.insert_str(0, COUNTED);
                    self.is_changed = true;
                }
            }
            Expr::Select(select) => {
                if select.test
                    && let Some(name) = schema::below(select, SIGNALS)
                    && self.is_fact(SIGNALS)
                {
                    expr.expr = Expr::Ident(format!("{HAS_SIGNAL}{name}"));
                    self.is_changed = true;
                    return;
                }
                if let Expr::Ident(root) = &select.operand.expr
                    && select.test
                    && self.is_fact(root)
                    && let Some(known) =
                        NAMES.iter().find(|known| known.root == root && known.field == Some(&select.field))
                {
                    // All other facts are always there.
                    expr.expr = if known.fact.may_be_absent() {
                        Expr::Ident(format!("{HAS}{}", known.fact as u8))
                    } else {
                        Expr::Literal(LiteralValue::Boolean(CelBool::from(true)))
                    };
                    self.is_changed = true;
                    return;
                }
                // A field is looked for, and nothing is read of it.
                let again = again && !select.test;
                self.rewrite(&mut select.operand, again);
            }
            Expr::Call(call) => {
                // Two lists become a third.
                let again = again || call.func_name == operators::ADD;
                for part in call.target.iter_mut().map(AsMut::as_mut).chain(&mut call.args) {
                    self.rewrite(part, again);
                }
            }
            Expr::List(list) => list.elements.iter_mut().for_each(|element| self.rewrite(element, true)),
            Expr::Map(map) => map.entries.iter_mut().for_each(|entry| self.entry(&mut entry.expr)),
            Expr::Struct(made) => made.entries.iter_mut().for_each(|entry| self.entry(&mut entry.expr)),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, again),
        }
    }

    fn entry(&mut self, entry: &mut EntryExpr) {
        match entry {
            EntryExpr::StructField(field) => self.rewrite(&mut field.value, true),
            EntryExpr::MapEntry(entry) => {
                self.rewrite(&mut entry.key, true);
                self.rewrite(&mut entry.value, true);
            }
        }
    }

    fn comprehension(&mut self, c: &mut ComprehensionExpr, again: bool) {
        self.is_changed = true;
        self.rewrite(&mut c.iter_range, again);
        self.rewrite(&mut c.accu_init, again);
        let before = self.variables.len();
        self.variables.push(c.iter_var.clone());
        self.variables.extend(c.iter_var2.clone());
        self.variables.push(c.accu_var.clone());
        let steps = nodes(&c.loop_step);
        self.rewrite(&mut c.loop_cond, true);
        self.rewrite(&mut c.loop_step, true);
        self.rewrite(&mut c.result, true);
        self.variables.truncate(before);
        count(appended(&mut c.loop_step).unwrap_or(&mut c.loop_cond), steps);
    }
}

/// Part of the step of `map` or `filter` that is evaluated first. Their other parts must stay as they are: the interpreter knows them by
/// their form, and would copy the list in every turn otherwise.
fn appended(step: &mut IdedExpr) -> Option<&mut IdedExpr> {
    let Expr::Call(call) = &mut step.expr else { return None };
    match (call.func_name.as_str(), call.args.as_mut_slice()) {
        (operators::ADD, [_, list]) => match &mut list.expr {
            Expr::List(list) => list.elements.first_mut(),
            _ => None,
        },
        (operators::CONDITIONAL, [guard, step, _]) => appended(step).is_some().then_some(guard),
        _ => None,
    }
}

/// Makes `expr` take steps before it is evaluated; without steps left it has no value.
fn count(expr: &mut IdedExpr, steps: usize) {
    let node = |expr| IdedExpr { id: 0, expr };
    let counted = std::mem::take(expr);
    let step = node(Expr::Ident(format!("{STEP}{steps}")));
    let never = node(Expr::Literal(LiteralValue::Boolean(CelBool::from(false))));
    let (func_name, args) = (operators::CONDITIONAL.to_owned(), vec![step, counted, never]);
    expr.expr = Expr::Call(CallExpr { func_name, target: None, args });
}

/// Number of nodes of an expression.
fn nodes(expr: &IdedExpr) -> usize {
    let entry = |entry: &EntryExpr| match entry {
        EntryExpr::StructField(field) => nodes(&field.value),
        EntryExpr::MapEntry(entry) => nodes(&entry.key) + nodes(&entry.value),
    };
    1 + match &expr.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) => 0,
        Expr::Select(select) => nodes(&select.operand),
        Expr::Call(call) => call.target.iter().map(AsRef::as_ref).chain(&call.args).map(nodes).sum(),
        Expr::List(list) => list.elements.iter().map(nodes).sum(),
        Expr::Map(map) => map.entries.iter().map(|made| entry(&made.expr)).sum(),
        Expr::Struct(made) => made.entries.iter().map(|made| entry(&made.expr)).sum(),
        // Turns of an inner loop count themselves.
        Expr::Comprehension(inner) => nodes(&inner.iter_range) + nodes(&inner.accu_init) + nodes(&inner.result),
    }
}
