//! Rewrites of a JSON Schema before it is compiled, each to a schema whose values the written one allows too.
//!
//! An object that lists its properties and says no more is closed, because a small model that may always add one more
//! property seldom ends. Bounds that the grammar library reads as weaker than they are become tighter ones.

use std::collections::BTreeSet;

use serde_json::{Map, Number, Value};

/// Keys that say nothing of which other properties an object may have.
const SAYS_NO_MORE: [&str; 12] = [
    "$defs",
    "$id",
    "$schema",
    "$comment",
    "default",
    "definitions",
    "description",
    "examples",
    "properties",
    "required",
    "title",
    "type",
];

/// Keys that only describe a schema or hold others to refer to.
const ANNOTATIONS: [&str; 10] =
    ["$defs", "$id", "$schema", "$comment", "$anchor", "default", "definitions", "description", "examples", "title"];

/// Distance of a bound from an exclusive bound that it replaces.
const STEP: f64 = 1e-9;
/// Largest exclusive bound that is replaced: `STEP` must not vanish beside it.
const MAX_BOUND: f64 = 1e6;

/// Place of a schema among others.
#[derive(Clone, Copy)]
struct Place {
    /// True if the schema holds together with another one for the same value.
    merged: bool,
    /// True if a value is to be refused, or told apart, by the schema: a tighter one there allows more.
    negated: bool,
}

/// Rewrites a schema and those within it. An error is an exclusive bound that cannot be kept.
pub(super) fn rewrite(schema: &mut Value) -> Result<(), String> {
    let mut merged = BTreeSet::new();
    let whole = Place { merged: false, negated: false };
    find_merged(schema, whole, &mut merged);
    walk(schema, "#", whole, &merged)
}

/// Keys with one schema.
const ONE: [&str; 11] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "unevaluatedProperties",
    "unevaluatedItems",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
];
/// Keys with a list of schemas.
const LIST: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
/// Keys with schemas by name.
const NAMED: [&str; 5] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];

/// Place of the schemas under a key.
fn place_within(key: &str, fields: &Map<String, Value>, place: Place) -> Place {
    let says_more = fields.keys().any(|other| other != key && !ANNOTATIONS.contains(&other.as_str()));
    let merged = match key {
        "allOf" | "if" | "then" | "else" | "dependentSchemas" => true,
        "anyOf" | "oneOf" | "not" => says_more || place.merged,
        _ => false,
    };
    Place { merged, negated: place.negated || matches!(key, "not" | "if" | "contains") }
}

/// Calls `each` for the schemas within a schema, with the end of their JSON pointer.
fn within<E>(
    fields: &mut Map<String, Value>,
    place: Place,
    mut each: impl FnMut(&mut Value, String, Place) -> Result<(), E>,
) -> Result<(), E> {
    let places: Vec<Place> = fields.keys().map(|key| place_within(key, fields, place)).collect();
    for ((key, field), place) in fields.iter_mut().zip(places) {
        match field {
            Value::Array(list) if LIST.contains(&key.as_str()) => {
                for (n, schema) in list.iter_mut().enumerate() {
                    each(schema, format!("/{key}/{n}"), place)?;
                }
            }
            Value::Object(named) if NAMED.contains(&key.as_str()) => {
                for (name, schema) in named.iter_mut() {
                    each(schema, format!("/{key}/{name}"), place)?;
                }
            }
            schema if ONE.contains(&key.as_str()) => each(schema, format!("/{key}"), place)?,
            _ => {}
        }
    }
    Ok(())
}

/// Collects the references to schemas that hold together with others.
fn find_merged(schema: &mut Value, place: Place, merged: &mut BTreeSet<String>) {
    let Value::Object(fields) = schema else { return };
    let says_more = fields.keys().any(|key| key != "$ref" && !ANNOTATIONS.contains(&key.as_str()));
    if let Some(Value::String(target)) = fields.get("$ref")
        && (place.merged || place.negated || says_more)
    {
        merged.insert(target.clone());
    }
    let _ = within(fields, place, |schema, _, place| -> Result<(), std::convert::Infallible> {
        find_merged(schema, place, merged);
        Ok(())
    });
}

fn walk(schema: &mut Value, pointer: &str, place: Place, merged: &BTreeSet<String>) -> Result<(), String> {
    let Value::Object(fields) = schema else { return Ok(()) };
    let place = Place { merged: place.merged || merged.contains(pointer), ..place };
    if !place.negated {
        if !place.merged {
            close(fields);
        }
        let is_merged = place.merged || ["$ref", "allOf", "anyOf", "oneOf"].iter().any(|key| fields.contains_key(*key));
        tighten(fields, is_merged)?;
    }
    within(fields, place, |schema, end, place| walk(schema, &format!("{pointer}{end}"), place, merged))
}

/// Closes an object that lists its properties and says no more.
fn close(fields: &mut Map<String, Value>) {
    let Some(Value::Object(properties)) = fields.get("properties") else { return };
    let is_listed = |name: &Value| name.as_str().is_some_and(|name| properties.contains_key(name));
    let lists_all = match fields.get("required") {
        None => true,
        Some(Value::Array(required)) => required.iter().all(is_listed),
        Some(_) => false,
    };
    if lists_all && !properties.is_empty() && fields.keys().all(|key| SAYS_NO_MORE.contains(&key.as_str())) {
        fields.insert("additionalProperties".into(), Value::Bool(false));
    }
}

/// Replaces an exclusive bound that is a whole number by an inclusive one beside it, where the library (llguidance 1.9) would
/// let the bound itself through: where the other bound has the same whole part, as in `0 < x <= 0.5`. Where the schema
/// holds together with another (`is_merged`), the other bound may be there.
fn tighten(fields: &mut Map<String, Value>, is_merged: bool) -> Result<(), String> {
    for (exclusive, inclusive, others, direction) in [
        ("exclusiveMinimum", "minimum", ["maximum", "exclusiveMaximum"], 1.0),
        ("exclusiveMaximum", "maximum", ["minimum", "exclusiveMinimum"], -1.0),
    ] {
        let number = |key: &str| fields.get(key).and_then(Value::as_f64);
        let Some(bound) = number(exclusive).filter(|bound| bound.fract() == 0.0) else { continue };
        let is_weak = others.iter().filter_map(|key| number(key)).any(|other| {
            // The bound and the numbers next to it, seen from zero.
            (other - bound).abs() < 1.0
        });
        if !is_weak && !is_merged {
            continue;
        }
        let next = bound + direction * STEP;
        let Some(next) = Number::from_f64(next).filter(|_| bound.abs() <= MAX_BOUND) else {
            if is_weak {
                return Err(format!("`{exclusive}`: {bound} is too large beside the other bound to be kept exactly"));
            }
            continue;
        };
        // A stricter bound may be there already.
        let is_stricter = number(inclusive).is_some_and(|other| (other - bound) * direction > 0.0);
        if !is_stricter {
            fields.insert(inclusive.into(), Value::Number(next));
        }
        fields.shift_remove(exclusive);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rewritten(mut schema: Value) -> Value {
        rewrite(&mut schema).unwrap();
        schema
    }

    #[test]
    fn objects_that_list_their_properties_and_say_no_more_are_closed() {
        let open = json!({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {}}}}});
        let closed = rewritten(open);
        assert_eq!(closed["additionalProperties"], false);
        assert_eq!(closed["properties"]["a"]["additionalProperties"], false);
        for path in ["/items", "/items/anyOf/0", "/$defs/d", "/prefixItems/0"] {
            let object = json!({"properties": {"b": {"type": "string"}}, "required": ["b"], "title": "t"});
            let schema = match path {
                "/items" => json!({"type": "array", "items": object}),
                "/items/anyOf/0" => json!({"items": {"anyOf": [object, {"type": "null"}]}}),
                "/$defs/d" => json!({"$ref": "#/$defs/d", "$defs": {"d": object}}),
                _ => json!({"prefixItems": [object]}),
            };
            assert_eq!(rewritten(schema).pointer(path).unwrap()["additionalProperties"], false, "{path}");
        }
    }

    #[test]
    fn objects_that_say_more_stay_open() {
        let object = json!({"type": "object", "properties": {"a": {}}});
        let with = |key: &str, value: Value| {
            let mut schema = object.clone();
            schema[key] = value;
            schema
        };
        for schema in [
            with("additionalProperties", json!(true)),
            with("additionalProperties", json!({"type": "integer"})),
            with("patternProperties", json!({"^x": {}})),
            with("required", json!(["a", "z"])),
            with("minProperties", json!(2)),
            with("allOf", json!([{"properties": {"b": {}}}])),
            json!({"type": "object"}),
            json!({"allOf": [object.clone(), {"properties": {"b": {}}}]}),
            json!({"properties": {"b": {}}, "anyOf": [object.clone()]}),
            json!({"$ref": "#/$defs/d", "properties": {"b": {}}, "$defs": {"d": object.clone()}}),
            json!({"allOf": [{"$ref": "#/$defs/d"}, {"properties": {"b": {}}}], "$defs": {"d": object.clone()}}),
            json!({"not": object.clone()}),
            json!({"const": object.clone(), "default": object.clone(), "enum": [object.clone()]}),
        ] {
            let text = schema.to_string();
            assert_eq!(rewritten(schema).to_string(), text);
        }
    }

    #[test]
    fn bounds_that_would_let_themselves_through_become_tighter() {
        let at = |schema: Value| rewritten(schema);
        let schema = at(json!({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}));
        assert_eq!((schema["minimum"].as_f64(), schema.get("exclusiveMinimum")), (Some(1e-9), None));
        let schema = at(json!({"exclusiveMaximum": -1, "exclusiveMinimum": -1.25}));
        assert_eq!(
            (schema["maximum"].as_f64(), schema["exclusiveMinimum"].as_f64()),
            (Some(-1.000000001), Some(-1.25))
        );
        let schema = at(json!({"allOf": [{"exclusiveMinimum": 3}, {"maximum": 3.5}]}));
        assert_eq!(schema["allOf"][0]["minimum"].as_f64(), Some(3.000000001));
        // A stricter bound stays.
        let schema = at(json!({"exclusiveMinimum": 0, "minimum": 0.25, "maximum": 0.5}));
        assert_eq!(schema["minimum"].as_f64(), Some(0.25));
        for kept in [
            json!({"exclusiveMinimum": 0}),
            json!({"exclusiveMinimum": 0, "maximum": 5}),
            json!({"exclusiveMinimum": 0.1, "maximum": 0.5}),
            json!({"not": {"exclusiveMinimum": 0, "maximum": 0.5}}),
        ] {
            let text = kept.to_string();
            assert_eq!(rewritten(kept).to_string(), text);
        }
        assert!(rewrite(&mut json!({"exclusiveMinimum": 1e15, "maximum": 1e15 + 0.5})).is_err());
    }
}
