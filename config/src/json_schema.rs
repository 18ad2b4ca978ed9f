//! The JSON Schema of the language, from the same types that decode it, with a branch for each filter.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::catalog::FilterCatalog;
use crate::schema::{Config, TargetFilter};

/// JSON Schema, draft 2020-12, of a configuration that may use the filters of `catalog`.
pub fn json_schema(catalog: &dyn FilterCatalog) -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let branches: Vec<(&str, Value)> = catalog
        .names()
        .into_iter()
        .filter_map(|name| {
            let schema = catalog.schema(name, &mut generator)?;
            let properties = Map::from_iter([(name.to_owned(), schema.to_value())]);
            let branch =
                json!({ "type": "object", "properties": properties, "required": [name], "additionalProperties": false });
            Some((name, branch))
        })
        .collect();
    let mut schema = generator.into_root_schema_for::<Config>().to_value();
    let of_all: Vec<&Value> = branches.iter().map(|(_, branch)| branch).collect();
    let is_of_target = |name: &&str| TargetFilter::NAMES.contains(name);
    let of_target: Vec<&Value> =
        branches.iter().filter(|(name, _)| is_of_target(name)).map(|(_, branch)| branch).collect();
    for (name, description, branches) in [
        ("Filter", "One step of a route's filter chain.", of_all),
        ("TargetFilter", "Change of headers for one target.", of_target),
    ] {
        if let Some(filter) = schema.get_mut("$defs").and_then(|defs| defs.get_mut(name)) {
            *filter = json!({ "description": description, "oneOf": branches });
        }
    }
    if let Value::Object(root) = &mut schema {
        let description = "Parts that other places share, by anchors (`&name`, `*name`, `<<: *name`).";
        root.insert("patternProperties".to_owned(), json!({ "^x-": { "description": description } }));
    }
    schema
}
