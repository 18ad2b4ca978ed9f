//! Rewrites of a JSON Schema before it is compiled, each to a schema whose values the written one allows too.
//!
//! An object that lists its properties and says no more is closed, because a small model that may always add one more
//! property seldom ends, and numbers have an end for the same reason. Bounds that the grammar library reads as weaker than
//! they are become tighter ones.

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

/// Largest exclusive bound that is replaced: `GRID` must not vanish beside it.
const MAX_BOUND: f64 = 1e6;

/// Largest number, where a schema has no bound: 15 digits, which every reader of JSON keeps exactly.
const MAX_NUMBER: i64 = 999_999_999_999_999;
/// Distance of two numbers, where a schema has none, and of a bound from an exclusive one that it replaces: 8 digits behind
/// the point.
const GRID: f64 = 1e-8;
/// Most digits behind the point of `multipleOf`, and its largest value in units of the last digit: beyond them the library
/// (derivre 0.3) computes with numbers that overflow.
const MAX_DECIMALS: u32 = 8;
const MAX_MULTIPLE: f64 = 3e8;

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
        check_multiple(fields)?;
        if !is_merged {
            end_numbers(fields);
        }
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
        let next = bound + direction * GRID;
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

/// Refuses a `multipleOf` with which the library cannot compute.
fn check_multiple(fields: &Map<String, Value>) -> Result<(), String> {
    let Some(multiple) = fields.get("multipleOf").and_then(Value::as_f64) else { return Ok(()) };
    let (mut units, mut decimals) = (multiple, 0);
    // As the library does.
    while units.fract() != 0.0 && decimals <= MAX_DECIMALS {
        units *= 10.0;
        decimals += 1;
    }
    if decimals <= MAX_DECIMALS && units <= MAX_MULTIPLE {
        return Ok(());
    }
    Err(format!("`multipleOf` is {multiple}; expected at most {MAX_DECIMALS} digits behind the point, and 9 in all"))
}

/// Bounds the digits of a number whose schema does not.
fn end_numbers(fields: &mut Map<String, Value>) {
    let is_of = |kind: &str| match fields.get("type") {
        Some(Value::String(only)) => only == kind,
        Some(Value::Array(several)) => several.iter().any(|one| one == kind),
        _ => false,
    };
    let (is_number, is_integer) = (is_of("number"), is_of("integer"));
    if !(is_number || is_integer) || ["enum", "const"].iter().any(|key| fields.contains_key(*key)) {
        return;
    }
    let bounds = |keys: [&str; 2]| keys.map(|key| fields.get(key));
    let (below, above) = (bounds(["minimum", "exclusiveMinimum"]), bounds(["maximum", "exclusiveMaximum"]));
    let values: Vec<f64> = below.iter().chain(&above).filter_map(|bound| bound.and_then(Value::as_f64)).collect();
    #[allow(clippy::cast_precision_loss, reason = "15 digits are exact")]
    let fits = values.iter().all(|value| value.abs() < MAX_NUMBER as f64);
    let steps = |value: &f64| value / GRID;
    let is_on_grid = values.iter().map(steps).all(|steps| (steps - steps.round()).abs() < 1e-6);
    let (no_below, no_above) = (below.iter().all(Option::is_none), above.iter().all(Option::is_none));
    if fits && no_below {
        fields.insert("minimum".into(), Value::from(-MAX_NUMBER));
    }
    if fits && no_above {
        fields.insert("maximum".into(), Value::from(MAX_NUMBER));
    }
    if is_number && is_on_grid && !fields.contains_key("multipleOf") {
        fields.insert("multipleOf".into(), Value::from(GRID));
    }
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
            with("additionalProperties", json!({"type": "string"})),
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
    fn numbers_have_an_end() {
        let least = -999_999_999_999_999i64;
        let number = rewritten(json!({"type": "number"}));
        assert_eq!((number["minimum"].as_i64(), number["multipleOf"].as_f64()), (Some(least), Some(1e-8)));
        let integer = rewritten(json!({"type": ["integer", "null"], "minimum": 3}));
        assert_eq!((integer["minimum"].as_i64(), integer["maximum"].as_i64()), (Some(3), Some(-least)));
        assert!(integer.get("multipleOf").is_none());
        for kept in [
            json!({"type": "integer", "minimum": 1e300}),
            json!({"type": "number", "minimum": 0, "maximum": 0.00000000015}),
            json!({"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25}),
            json!({"type": "number", "enum": [1, 2.5]}),
            json!({"allOf": [{"type": "number"}, {"maximum": 3}]}),
            json!({"minimum": 3}),
        ] {
            let text = kept.to_string();
            assert_eq!(rewritten(kept).to_string(), text);
        }
    }

    #[test]
    fn bounds_that_would_let_themselves_through_become_tighter() {
        let at = |schema: Value| rewritten(schema);
        let schema = at(json!({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}));
        assert_eq!((schema["minimum"].as_f64(), schema.get("exclusiveMinimum")), (Some(1e-8), None));
        let schema = at(json!({"exclusiveMaximum": -1, "exclusiveMinimum": -1.25}));
        assert_eq!((schema["maximum"].as_f64(), schema["exclusiveMinimum"].as_f64()), (Some(-1.00000001), Some(-1.25)));
        let schema = at(json!({"allOf": [{"exclusiveMinimum": 3}, {"maximum": 3.5}]}));
        assert_eq!(schema["allOf"][0]["minimum"].as_f64(), Some(3.00000001));
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
        for multiple in [json!(1e-9), json!(0.1234567891), json!(4_000_000_000u64)] {
            assert!(rewrite(&mut json!({"type": "number", "multipleOf": multiple})).is_err(), "{multiple}");
        }
        for multiple in [json!(1e-8), json!(0.25), json!(300_000_000)] {
            assert!(rewrite(&mut json!({"type": "number", "multipleOf": multiple})).is_ok(), "{multiple}");
        }
    }
}
