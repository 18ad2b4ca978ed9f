//! Schemas of callers, compiled once and kept. A caller chooses them, so what one may cost is bounded before it is compiled:
//! bytes, depth, parts with all references written out, patterns, and the work of one check. Nothing outside a schema is read.
//! Patterns are matched in linear time. A schema past a bound says nothing about an answer, which then is no observation.

use std::collections::HashMap;
use std::error::Error;

use boon::{CompileError, Compiler, SchemaIndex, UrlLoader};
use regex::RegexBuilder;
use serde_json::Value;

/// Longest schema, in bytes of JSON: far above what APIs take.
const MOST_BYTES: usize = 64 << 10;
/// Deepest level of a schema, in levels of JSON with its references written out.
const MOST_DEPTH: usize = 64;
/// Most parts of a schema with its references written out.
const MOST_PARTS: usize = 8_192;
/// Most patterns of a schema with its references written out.
const MOST_PATTERNS: usize = 32;
/// Bytes that a compiled pattern may take.
const MOST_PATTERN_BYTES: usize = 64 << 10;
/// Most work of a check: parts of the schema times values of the answer. A tenth of a second at the worst.
const MOST_WORK: usize = 4_000_000;
/// Schemas that are kept compiled. When there are more, all are compiled anew.
const MOST_KEPT: usize = 16;

/// Address of a schema while it is compiled. Nothing is there.
const ADDRESS: &str = "https://schema.invalid/";

/// Keywords that look at values again whose cost cannot be told beforehand, or that give references another meaning.
const REFUSED_KEYWORDS: [&str; 9] = [
    "$anchor",
    "$dynamicAnchor",
    "$dynamicRef",
    "$recursiveAnchor",
    "$recursiveRef",
    "$vocabulary",
    "unevaluatedItems",
    "unevaluatedProperties",
    "id",
];

/// Schema that was compiled, with its number of parts.
struct Compiled {
    schemas: boon::Schemas,
    index: SchemaIndex,
    parts: usize,
}

/// Loader of what a schema refers to, which loads nothing.
struct Refusing;

impl UrlLoader for Refusing {
    fn load(&self, url: &str) -> Result<Value, Box<dyn Error>> {
        Err(Box::new(CompileError::UnsupportedUrlScheme { url: url.to_owned() }))
    }
}

/// Schemas of one thread.
#[derive(Default)]
pub(super) struct Schemas(HashMap<String, Option<Compiled>>);

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
            self.0.insert(text.clone(), compiled(schema));
        }
        let compiled = self.0.get(&text)?.as_ref()?;
        if compiled.parts.saturating_mul(values(value)) > MOST_WORK {
            return None;
        }
        Some(compiled.schemas.validate(value, compiled.index).is_ok())
    }
}

/// Values that a value consists of.
fn values(value: &Value) -> usize {
    match value {
        Value::Array(list) => list.iter().map(values).sum::<usize>() + 1,
        Value::Object(map) => map.values().map(values).sum::<usize>() + 1,
        _ => 1,
    }
}

fn compiled(schema: &Value) -> Option<Compiled> {
    let mut walk = Walk { root: schema, parts: 0, patterns: 0, open: Vec::new() };
    walk.visit(schema, 0)?;
    let (mut schemas, mut compiler) = (boon::Schemas::new(), Compiler::new());
    compiler.use_loader(Box::new(Refusing));
    compiler.add_resource(ADDRESS, schema.clone()).ok()?;
    let index = compiler.compile(ADDRESS, &mut schemas).ok()?;
    Some(Compiled { schemas, index, parts: walk.parts })
}

/// Walk over a schema with its references written out.
struct Walk<'s> {
    root: &'s Value,
    parts: usize,
    patterns: usize,
    /// References under way.
    open: Vec<&'s str>,
}

impl<'s> Walk<'s> {
    /// Counts a part; `None` past a bound, and for a reference to itself or to anything outside.
    fn visit(&mut self, part: &'s Value, depth: usize) -> Option<()> {
        self.parts += 1;
        if self.parts > MOST_PARTS || depth > MOST_DEPTH {
            return None;
        }
        match part {
            Value::Array(list) => list.iter().try_for_each(|part| self.visit(part, depth + 1)),
            Value::Object(map) => {
                for (key, value) in map {
                    self.keyword(key, value, depth)?;
                    self.visit(value, depth + 1)?;
                }
                Some(())
            }
            _ => Some(()),
        }
    }

    fn keyword(&mut self, key: &str, value: &'s Value, depth: usize) -> Option<()> {
        match (key, value) {
            ("pattern", Value::String(pattern)) => self.pattern(pattern)?,
            ("patternProperties", Value::Object(patterns)) => {
                patterns.keys().try_for_each(|pattern| self.pattern(pattern))?;
            }
            ("$ref", Value::String(reference)) => return self.reference(reference, depth),
            // A name of its own within the schema gives the references there another root.
            ("$id", Value::String(_)) if depth > 0 => return None,
            (key, Value::String(_)) if REFUSED_KEYWORDS.contains(&key) => return None,
            // A property of such a name is an object or a flag too; there are few.
            ("unevaluatedItems" | "unevaluatedProperties" | "$recursiveAnchor" | "$vocabulary", _) => return None,
            _ => {}
        }
        Some(())
    }

    /// Counts a pattern, and tries what it takes: the library has a greater bound.
    fn pattern(&mut self, pattern: &str) -> Option<()> {
        self.patterns += 1;
        if self.patterns > MOST_PATTERNS {
            return None;
        }
        RegexBuilder::new(pattern).size_limit(MOST_PATTERN_BYTES).build().ok().map(|_| ())
    }

    fn reference(&mut self, reference: &'s str, depth: usize) -> Option<()> {
        let pointer = reference.strip_prefix('#').filter(|pointer| !pointer.contains('%'))?;
        if self.open.contains(&reference) {
            return None;
        }
        let target = self.root.pointer(pointer)?;
        self.open.push(reference);
        let visited = self.visit(target, depth + 1);
        self.open.pop();
        visited
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_checked() {
        let mut schemas = Schemas::default();
        let schema = json!({
            "type": "object", "required": ["city"], "additionalProperties": false, "$id": "https://example.com/s",
            "properties": {"city": {"$ref": "#/$defs/name"}, "days": {"type": "integer", "minimum": 1}},
            "$defs": {"name": {"type": "string", "pattern": "^[A-Z]", "minLength": 2}}
        });
        for (value, holds) in [
            (json!({"city": "Bonn"}), true),
            (json!({"city": "Bonn", "days": 2}), true),
            (json!({"city": "bonn"}), false),
            (json!({"city": 5}), false),
            (json!({"city": "Bonn", "days": 0}), false),
            (json!({"city": "Bonn", "other": 1}), false),
            (json!([]), false),
        ] {
            assert_eq!(schemas.holds(&schema, &value), Some(holds), "{value}");
        }
        for n in 0..3 * MOST_KEPT {
            assert_eq!(schemas.holds(&json!({"const": n}), &json!(n)), Some(true));
        }
        assert!(schemas.0.len() <= MOST_KEPT);
    }

    #[test]
    fn a_schema_past_a_bound_says_nothing() {
        let mut schemas = Schemas::default();
        let deep = (0..=MOST_DEPTH).fold(json!({}), |inner, _| json!({"not": inner}));
        let wide: Vec<Value> = (0..MOST_PARTS).map(|n| json!(n)).collect();
        // Twice as many parts at each level, and as few bytes as there are levels.
        let doubling: serde_json::Map<String, Value> = (0..30)
            .map(|n| {
                let next = json!({"$ref": format!("#/$defs/d{}", n + 1)});
                (format!("d{n}"), json!({"anyOf": [next, next]}))
            })
            .chain([("d30".to_owned(), json!({"type": "string"}))])
            .collect();
        let patterns: serde_json::Map<String, Value> =
            (0..=MOST_PATTERNS).map(|n| (format!("p{n}"), json!({"pattern": "a"}))).collect();
        for schema in [
            deep,
            json!({"enum": wide}),
            json!({"description": "x".repeat(MOST_BYTES)}),
            json!({"$ref": "#/$defs/d0", "$defs": doubling}),
            json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}),
            json!({"properties": {"a": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}}),
            json!({"$ref": "https://example.com/schema"}),
            json!({"$ref": "file:///etc/passwd"}),
            json!({"$ref": "other.json"}),
            json!({"$ref": "#/nowhere"}),
            json!({"$schema": "https://example.com/metaschema"}),
            json!({"properties": patterns}),
            json!({"pattern": "((a{1000}){1000}){1000}"}),
            json!({"pattern": "(?=a)b"}),
            json!({"properties": {"a": {"$id": "b", "$ref": "#/c"}}}),
            json!({"unevaluatedProperties": {"unevaluatedProperties": false}}),
            json!({"type": "nothing"}),
            json!({"type": 5}),
        ] {
            assert_eq!(
                schemas.holds(&schema, &json!("a")),
                None,
                "{}",
                schema.to_string().get(..100).unwrap_or("short")
            );
        }
        let many: Vec<Value> = (0..MOST_WORK / 100).map(|n| json!(n)).collect();
        let schema = json!({"items": {"enum": (0..200).map(|n| json!(n)).collect::<Vec<_>>()}});
        assert_eq!(schemas.holds(&schema, &Value::Array(many)), None);
    }

    #[test]
    fn a_pattern_takes_linear_time() {
        let mut schemas = Schemas::default();
        let text = json!(format!("{}b", "a".repeat(100_000)));
        assert_eq!(schemas.holds(&json!({"pattern": "^(a+)+$"}), &text), Some(false));
    }
}
