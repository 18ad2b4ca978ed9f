//! JSON Schemas (draft 2020-12 unless `$schema` names another), compiled once. What one may cost is bounded before it is compiled:
//! bytes, depth, parts with all references written out, patterns, and the work of one check. Nothing outside a schema is read.
//! Patterns are matched in linear time.

use std::error::Error;

use boon::{CompileError, Compiler, ErrorKind, SchemaIndex, UrlLoader, ValidationError};
use regex::RegexBuilder;
use serde_json::Value;

/// Longest schema, in bytes of JSON: far above what APIs take.
pub const MOST_BYTES: usize = 64 << 10;
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
/// Longest place and longest expectation of a fault, in bytes: they stand in messages for callers.
const MOST_TEXT: usize = 256;

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

/// Reason for which a schema cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// More bytes of JSON than a schema may have.
    #[error("the schema has {0} bytes; expected at most {MOST_BYTES}")]
    Length(usize),
    /// More levels than a schema may have.
    #[error("the schema has more than {MOST_DEPTH} levels with its references written out")]
    Depth,
    /// More parts than a schema may have.
    #[error("the schema has more than {MOST_PARTS} parts with its references written out")]
    Parts,
    /// More patterns than a schema may have.
    #[error("the schema has more than {MOST_PATTERNS} patterns with its references written out")]
    Patterns,
    /// A pattern that is none, or too large.
    #[error("`{0}` is not a regular expression (RE2) that takes at most 64 KiB compiled")]
    Pattern(String),
    /// A keyword that is not supported.
    #[error("`{0}` is not supported here: its cost cannot be told beforehand; expected a schema without it")]
    Keyword(String),
    /// A reference that leads nowhere, outside the schema, or into itself.
    #[error("the reference `{0}` leads outside the schema, nowhere or into itself; expected `#/$defs/NAME`")]
    Reference(String),
    /// No schema of its draft.
    #[error("not a JSON Schema: {0}")]
    Invalid(String),
}

/// Reason for which a value does not pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The value does not satisfy the schema.
    #[error("at `{place}`: expected {expected}")]
    Invalid {
        /// JSON Pointer to the value that is at fault; empty for the whole.
        place: String,
        /// What is expected there, without anything of the value.
        expected: String,
    },
    /// The check would take too long.
    #[error("the value has {0} parts, too many to be checked by this schema")]
    Size(usize),
}

/// Schema that was compiled.
pub struct Schema {
    schemas: boon::Schemas,
    index: SchemaIndex,
    parts: usize,
}

impl std::fmt::Debug for Schema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Schema({} parts)", self.parts)
    }
}

/// Loader of what a schema refers to, which loads nothing.
struct Refusing;

impl UrlLoader for Refusing {
    fn load(&self, url: &str) -> Result<Value, Box<dyn Error>> {
        Err(Box::new(CompileError::UnsupportedUrlScheme { url: url.to_owned() }))
    }
}

impl Schema {
    /// Compiles a schema.
    ///
    /// # Errors
    ///
    /// The bound that it exceeds, or its first mistake.
    pub fn new(schema: &Value) -> Result<Self, SchemaError> {
        let length = schema.to_string().len();
        if length > MOST_BYTES {
            return Err(SchemaError::Length(length));
        }
        let mut walk = Walk { root: schema, parts: 0, patterns: 0, open: Vec::new() };
        walk.visit(schema, 0)?;
        let (mut schemas, mut compiler) = (boon::Schemas::new(), Compiler::new());
        compiler.use_loader(Box::new(Refusing));
        let invalid = |error: &CompileError| SchemaError::Invalid(mistake(error));
        compiler.add_resource(ADDRESS, schema.clone()).map_err(|e| invalid(&e))?;
        let index = compiler.compile(ADDRESS, &mut schemas).map_err(|e| invalid(&e))?;
        Ok(Self { schemas, index, parts: walk.parts })
    }

    /// Checks a value.
    ///
    /// # Errors
    ///
    /// The first fault, or that the check would take too long.
    pub fn check(&self, value: &Value) -> Result<(), Fault> {
        let values = values(value);
        if self.parts.saturating_mul(values) > MOST_WORK {
            return Err(Fault::Size(values));
        }
        self.schemas.validate(value, self.index).map_err(|error| fault(&error))
    }
}

/// Text of a mistake, on one line.
fn mistake(error: &CompileError) -> String {
    let text = match error {
        // The place within the schema, and what its draft expects there.
        CompileError::ValidationError { src, .. } => {
            let first = first(src);
            format!("at `{}`: expected {}", first.instance_location, expected(&first.kind))
        }
        other => other.to_string(),
    };
    bounded(&text.replace(ADDRESS, "").split_whitespace().collect::<Vec<_>>().join(" "))
}

/// First of the faults below one that says no more than that there are some.
fn first<'e, 's, 'v>(mut error: &'e ValidationError<'s, 'v>) -> &'e ValidationError<'s, 'v> {
    while let (
        ErrorKind::Group | ErrorKind::Schema { .. } | ErrorKind::Reference { .. } | ErrorKind::AllOf,
        Some(cause),
    ) = (&error.kind, error.causes.first())
    {
        error = cause;
    }
    error
}

fn fault(error: &ValidationError<'_, '_>) -> Fault {
    let first = first(error);
    Fault::Invalid { place: bounded(&first.instance_location.to_string()), expected: bounded(&expected(&first.kind)) }
}

/// Text of bounded length.
fn bounded(text: &str) -> String {
    match text.char_indices().nth(MOST_TEXT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// What is expected of a value: from the schema alone, since messages go where values may not.
fn expected(kind: &ErrorKind<'_, '_>) -> String {
    let names = |names: &[&str]| format!("`{}`", names.join("`, `"));
    let values = |values: &[Value]| values.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");
    match kind {
        ErrorKind::Type { got, want } => {
            let want: Vec<String> = want.iter().map(|kind| kind.to_string()).collect();
            format!("{}, found {got}", want.join(" or "))
        }
        ErrorKind::Enum { want } => format!("one of {}", values(want)),
        ErrorKind::Const { want } => want.to_string(),
        ErrorKind::Format { want, .. } => format!("a value of the format `{want}`"),
        ErrorKind::MinProperties { got, want } => format!("at least {want} members, found {got}"),
        ErrorKind::MaxProperties { got, want } => format!("at most {want} members, found {got}"),
        ErrorKind::AdditionalProperties { got } => format!("no other members, found {}", got.len()),
        ErrorKind::Required { want } => format!("the members {}", names(want)),
        ErrorKind::Dependency { missing, .. } | ErrorKind::DependentRequired { missing, .. } => {
            format!("the members {} as well", names(missing))
        }
        ErrorKind::MinItems { got, want } => format!("at least {want} elements, found {got}"),
        ErrorKind::MaxItems { got, want } => format!("at most {want} elements, found {got}"),
        ErrorKind::Contains => "an element that satisfies `contains`".to_owned(),
        ErrorKind::MinContains { got, want } => format!("at least {want} elements by `contains`, found {}", got.len()),
        ErrorKind::MaxContains { got, want } => format!("at most {want} elements by `contains`, found {}", got.len()),
        ErrorKind::UniqueItems { got: [one, other] } => format!("different elements; {one} and {other} are equal"),
        ErrorKind::AdditionalItems { got } => format!("no further elements, found {got}"),
        ErrorKind::MinLength { got, want } => format!("at least {want} characters, found {got}"),
        ErrorKind::MaxLength { got, want } => format!("at most {want} characters, found {got}"),
        ErrorKind::Pattern { want, .. } => format!("a string by the pattern `{want}`"),
        ErrorKind::ContentEncoding { want, .. } | ErrorKind::ContentMediaType { want, .. } => {
            format!("a string of `{want}`")
        }
        ErrorKind::Minimum { want, .. } => format!("{want} or more"),
        ErrorKind::Maximum { want, .. } => format!("{want} or less"),
        ErrorKind::ExclusiveMinimum { want, .. } => format!("more than {want}"),
        ErrorKind::ExclusiveMaximum { want, .. } => format!("less than {want}"),
        ErrorKind::MultipleOf { want, .. } => format!("a multiple of {want}"),
        ErrorKind::PropertyName { .. } => "other names of members (`propertyNames`)".to_owned(),
        ErrorKind::FalseSchema => "no value".to_owned(),
        ErrorKind::Not => "a value that `not` does not have".to_owned(),
        ErrorKind::AnyOf => "a value by `anyOf`".to_owned(),
        ErrorKind::OneOf(None) => "a value by `oneOf`, found none that fits".to_owned(),
        ErrorKind::OneOf(Some((one, other))) => format!("a value by one of `oneOf`; {one} and {other} both fit"),
        _ => "a value by the schema".to_owned(),
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

/// Walk over a schema with its references written out.
struct Walk<'s> {
    root: &'s Value,
    parts: usize,
    patterns: usize,
    /// References under way.
    open: Vec<&'s str>,
}

impl<'s> Walk<'s> {
    /// Counts a part and what it refers to.
    fn visit(&mut self, part: &'s Value, depth: usize) -> Result<(), SchemaError> {
        self.parts += 1;
        if self.parts > MOST_PARTS {
            return Err(SchemaError::Parts);
        }
        if depth > MOST_DEPTH {
            return Err(SchemaError::Depth);
        }
        match part {
            Value::Array(list) => list.iter().try_for_each(|part| self.visit(part, depth + 1)),
            Value::Object(map) => {
                for (key, value) in map {
                    self.keyword(key, value, depth)?;
                    self.visit(value, depth + 1)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn keyword(&mut self, key: &str, value: &'s Value, depth: usize) -> Result<(), SchemaError> {
        match (key, value) {
            ("pattern", Value::String(pattern)) => self.pattern(pattern)?,
            ("patternProperties", Value::Object(patterns)) => {
                patterns.keys().try_for_each(|pattern| self.pattern(pattern))?;
            }
            ("$ref", Value::String(reference)) => return self.reference(reference, depth),
            // A name of its own within the schema gives the references there another root.
            ("$id", Value::String(_)) if depth > 0 => return Err(SchemaError::Keyword(key.to_owned())),
            (key, Value::String(_)) if REFUSED_KEYWORDS.contains(&key) => {
                return Err(SchemaError::Keyword(key.to_owned()));
            }
            // A property of such a name is an object or a flag too; there are few.
            ("unevaluatedItems" | "unevaluatedProperties" | "$recursiveAnchor" | "$vocabulary", _) => {
                return Err(SchemaError::Keyword(key.to_owned()));
            }
            _ => {}
        }
        Ok(())
    }

    /// Counts a pattern, and tries what it takes: the library has a greater bound.
    fn pattern(&mut self, pattern: &str) -> Result<(), SchemaError> {
        self.patterns += 1;
        if self.patterns > MOST_PATTERNS {
            return Err(SchemaError::Patterns);
        }
        let built = RegexBuilder::new(pattern).size_limit(MOST_PATTERN_BYTES).build();
        built.map(|_| ()).map_err(|_| SchemaError::Pattern(bounded(pattern)))
    }

    fn reference(&mut self, reference: &'s str, depth: usize) -> Result<(), SchemaError> {
        let wrong = || SchemaError::Reference(bounded(reference));
        let pointer = reference.strip_prefix('#').filter(|pointer| !pointer.contains('%')).ok_or_else(wrong)?;
        if self.open.contains(&reference) {
            return Err(wrong());
        }
        let target = self.root.pointer(pointer).ok_or_else(wrong)?;
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

    fn schema(schema: &Value) -> Schema {
        Schema::new(schema).unwrap()
    }

    #[test]
    fn values_are_checked() {
        let schema = schema(&json!({
            "type": "object", "required": ["city"], "additionalProperties": false, "$id": "https://example.com/s",
            "properties": {"city": {"$ref": "#/$defs/name"}, "days": {"type": "integer", "minimum": 1}},
            "$defs": {"name": {"type": "string", "pattern": "^[A-Z]", "minLength": 2}}
        }));
        for (value, holds) in [
            (json!({"city": "Bonn"}), true),
            (json!({"city": "Bonn", "days": 2}), true),
            (json!({"city": "bonn"}), false),
            (json!({"city": 5}), false),
            (json!({"city": "Bonn", "days": 0}), false),
            (json!({"city": "Bonn", "other": 1}), false),
            (json!([]), false),
        ] {
            assert_eq!(schema.check(&value).is_ok(), holds, "{value}");
        }
    }

    #[test]
    fn a_schema_past_a_bound_is_refused() {
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
            assert!(Schema::new(&schema).is_err(), "{}", schema.to_string().get(..100).unwrap_or("short"));
        }
        let many: Vec<Value> = (0..MOST_WORK / 100).map(|n| json!(n)).collect();
        let schema = schema(&json!({"items": {"enum": (0..200).map(|n| json!(n)).collect::<Vec<_>>()}}));
        assert_eq!(schema.check(&Value::Array(many)), Err(Fault::Size(MOST_WORK / 100 + 1)));
    }

    #[test]
    fn a_pattern_takes_linear_time() {
        let text = json!(format!("{}b", "a".repeat(100_000)));
        assert!(schema(&json!({"pattern": "^(a+)+$"})).check(&text).is_err());
    }

    #[test]
    fn a_fault_names_its_place_and_what_is_expected_and_nothing_of_the_value() {
        let schema = schema(&json!({
            "properties": {
                "a": {"type": ["string", "null"]}, "b": {"enum": ["x", 1]}, "c": {"items": {"maximum": 5}},
                "d": {"$ref": "#/$defs/d"}, "e": {"pattern": "^y"}, "f": {"anyOf": [{"type": "null"}, {"minimum": 9, "type": "number"}]},
                "g/~": {"maxLength": 2},
            },
            "required": ["a"], "additionalProperties": false, "$defs": {"d": {"allOf": [{"minLength": 9}]}},
        }));
        for (value, place, expected) in [
            (json!([]), "", None),
            (json!({}), "", Some("the members `a`")),
            (json!({"a": 7}), "/a", Some("null or string, found number")),
            (json!({"a": null, "b": "secret"}), "/b", Some("one of \"x\", 1")),
            (json!({"a": null, "c": [1, 7]}), "/c/1", Some("5 or less")),
            (json!({"a": null, "d": "secret"}), "/d", Some("at least 9 characters, found 6")),
            (json!({"a": null, "e": "secret"}), "/e", Some("a string by the pattern `^y`")),
            (json!({"a": null, "f": "secret"}), "/f", Some("a value by `anyOf`")),
            (json!({"a": null, "g/~": "secret"}), "/g~1~0", Some("at most 2 characters, found 6")),
            (json!({"a": null, "secret": 1}), "", Some("no other members, found 1")),
        ] {
            let fault = expected.map(|expected| Fault::Invalid { place: place.into(), expected: expected.into() });
            assert_eq!(schema.check(&value).err(), fault, "{value}");
        }
        let long = Schema::new(&json!({"const": "x".repeat(1000)})).unwrap().check(&json!(1)).unwrap_err();
        assert!(long.to_string().len() < 2 * MOST_TEXT);
    }

    #[test]
    fn mistakes_of_a_schema_are_told() {
        for (schema, message) in [
            (json!({"type": "text"}), "not a JSON Schema: at `/type`: expected"),
            (
                json!({"$ref": "#/$defs/x"}),
                "the reference `#/$defs/x` leads outside the schema, nowhere or into itself",
            ),
            (json!({"pattern": "("}), "`(` is not a regular expression"),
            (json!({"unevaluatedProperties": false}), "`unevaluatedProperties` is not supported here"),
            (json!({"description": "x".repeat(MOST_BYTES)}), "the schema has 65554 bytes; expected at most 65536"),
        ] {
            let found = Schema::new(&schema).unwrap_err().to_string();
            assert!(found.starts_with(message), "{found}");
        }
    }
}
