//! Schemas of callers, compiled once and kept. A caller chooses them, so what one may cost is bounded (`spillway_schemas`). A
//! schema past a bound says nothing about an answer, which then is no observation.

use std::collections::HashMap;

use serde_json::Value;
use spillway_schemas::{Fault, MOST_BYTES, Schema};

/// Most schemas that are kept compiled. When there are more, all are compiled anew.
const MOST_KEPT: usize = 16;

/// Schemas of one thread.
#[derive(Default)]
pub(super) struct Schemas(HashMap<String, Option<Schema>>);

impl Schemas {
    /// True if a value satisfies a schema; `None` where the schema cannot be used, or the check would take too long.
    pub(super) fn holds(&mut self, schema: &Value, value: &Value) -> Option<bool> {
        let text = schema.to_string();
        if text.len() > MOST_BYTES {
            return None;
        }
        if !self.0.contains_key(&text) {
            if self.0.len() >= MOST_KEPT {
                self.0.clear();
            }
            self.0.insert(text.clone(), Schema::new(schema).ok());
        }
        match self.0.get(&text)?.as_ref()?.check(value) {
            Ok(()) => Some(true),
            Err(Fault::Invalid { .. }) => Some(false),
            Err(Fault::Size(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_checked_by_few_schemas() {
        let mut schemas = Schemas::default();
        for n in 0..3 * MOST_KEPT {
            assert_eq!(schemas.holds(&json!({"const": n}), &json!(n)), Some(true));
            assert_eq!(schemas.holds(&json!({"const": n}), &json!(-1)), Some(false));
        }
        assert!(schemas.0.len() <= MOST_KEPT);
    }

    #[test]
    fn a_schema_that_cannot_be_used_says_nothing() {
        let mut schemas = Schemas::default();
        let values = json!((0..100_000).collect::<Vec<_>>());
        for (schema, value) in [
            (json!({"$ref": "file:///etc/passwd"}), json!(1)),
            (json!({"description": "x".repeat(MOST_BYTES)}), json!(1)),
            (json!({"items": {"enum": (0..200).collect::<Vec<_>>()}}), values),
        ] {
            assert_eq!(schemas.holds(&schema, &value), None);
        }
    }
}
