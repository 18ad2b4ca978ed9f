//! Reader of `response_format`. A schema is kept as its text; the grammar compiler decides whether the engine can hold an
//! answer to it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::findings::Findings;
use super::values::{BorrowedText, Probe, Skip, SkipVisitor};
use crate::protocol::chat::ResponseFormat;
use crate::protocol::refusals::shown;

/// Longest name of a schema in bytes, as in OpenAI's API.
const MAX_NAME: usize = 64;

/// Value of `response_format` as the caller wrote it.
#[derive(Default)]
pub(super) struct Format {
    is_null: bool,
    is_object: bool,
    kind: Option<String>,
    wrong_kind: bool,
    schema: Option<Box<str>>,
    json_schema: Option<JsonSchema>,
    further: Option<String>,
    duplicate: bool,
    /// True if a schema is no JSON, or nests too deep.
    is_bad: bool,
}

/// Value of `json_schema` as the caller wrote it.
#[derive(Default)]
struct JsonSchema {
    is_object: bool,
    name: Option<String>,
    schema: Option<Box<str>>,
    further: Option<String>,
    duplicate: bool,
    /// True if the schema is no JSON, or nests too deep.
    is_bad: bool,
}

/// JSON text of a value, which must not nest deeper than the rest of a body may.
#[derive(Default)]
pub(in crate::protocol) struct Raw {
    pub(in crate::protocol) text: Option<Box<str>>,
    pub(in crate::protocol) is_bad: bool,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw: &RawValue = Deserialize::deserialize(deserializer)?;
        // `RawValue` does not count nesting; this does.
        let is_bad = serde_json::from_str::<Skip>(raw.get()).is_err();
        Ok(Self { text: (raw.get() != "null").then(|| raw.get().into()), is_bad })
    }
}

/// Methods of a visitor of an object for every other value, which is read and forgotten.
macro_rules! ignore_others {
    ($null:expr) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value")
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($null)
        }
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            SkipVisitor.visit_seq(list)?;
            Ok(Self::Value::default())
        }
    };
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FormatVisitor;
        impl<'de> Visitor<'de> for FormatVisitor {
            type Value = Format;
            ignore_others!(Format { is_null: true, ..Format::default() });
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Format, A::Error> {
                let mut format = Format { is_object: true, ..Format::default() };
                let (mut kinds, mut schemas, mut json_schemas) = (0u32, 0u32, 0u32);
                while let Some(BorrowedText(key)) = map.next_key()? {
                    match &*key {
                        "type" => {
                            kinds += 1;
                            match map.next_value::<Probe<'de>>()? {
                                Probe::Text(kind) => format.kind = Some(kind.into_owned()),
                                _ => format.wrong_kind = true,
                            }
                        }
                        "schema" => {
                            schemas += 1;
                            let raw: Raw = map.next_value()?;
                            format.is_bad |= raw.is_bad;
                            format.schema = raw.text;
                        }
                        "json_schema" => {
                            json_schemas += 1;
                            format.json_schema = Some(map.next_value()?);
                        }
                        _ => {
                            if map.next_value::<Probe<'de>>()? != Probe::Null {
                                format.further = Some(shown(&key));
                            }
                        }
                    }
                }
                format.duplicate = kinds > 1 || schemas > 1 || json_schemas > 1;
                Ok(format)
            }
        }
        deserializer.deserialize_any(FormatVisitor)
    }
}

impl<'de> Deserialize<'de> for JsonSchema {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SchemaVisitor;
        impl<'de> Visitor<'de> for SchemaVisitor {
            type Value = JsonSchema;
            ignore_others!(JsonSchema::default());
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonSchema, A::Error> {
                let mut read = JsonSchema { is_object: true, ..JsonSchema::default() };
                let (mut names, mut schemas) = (0u32, 0u32);
                while let Some(BorrowedText(key)) = map.next_key()? {
                    match &*key {
                        "name" => {
                            names += 1;
                            if let Probe::Text(name) = map.next_value::<Probe<'de>>()? {
                                read.name = Some(name.into_owned());
                            }
                        }
                        "schema" => {
                            schemas += 1;
                            let raw: Raw = map.next_value()?;
                            read.is_bad |= raw.is_bad;
                            read.schema = raw.text;
                        }
                        // The answer follows the schema whether `strict` asks for that or not.
                        "strict" | "description" => {
                            map.next_value::<Skip>()?;
                        }
                        _ => {
                            if map.next_value::<Probe<'de>>()? != Probe::Null {
                                read.further = Some(shown(&key));
                            }
                        }
                    }
                }
                read.duplicate = names > 1 || schemas > 1;
                Ok(read)
            }
        }
        deserializer.deserialize_any(SchemaVisitor)
    }
}

/// Value of vLLM's `structured_outputs` as the caller wrote it.
#[derive(Default)]
pub(super) struct StructuredOutputs {
    schema: Raw,
    /// First other form that is asked for.
    other: Option<String>,
    is_wrong: bool,
}

impl<'de> Deserialize<'de> for StructuredOutputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OutputsVisitor;
        impl<'de> Visitor<'de> for OutputsVisitor {
            type Value = StructuredOutputs;
            ignore_others!(StructuredOutputs::default());
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StructuredOutputs, A::Error> {
                let mut outputs = StructuredOutputs::default();
                while let Some(BorrowedText(key)) = map.next_key()? {
                    if &*key == "json" {
                        outputs.is_wrong |= outputs.schema.text.is_some();
                        outputs.schema = map.next_value()?;
                    } else if map.next_value::<Probe<'de>>()? != Probe::Null {
                        outputs.other.get_or_insert_with(|| shown(&key));
                    }
                }
                Ok(outputs)
            }
        }
        deserializer.deserialize_any(OutputsVisitor)
    }
}

impl StructuredOutputs {
    /// Returns the schema asked for; reports to `findings` any other form.
    pub(super) fn validate(self, findings: &mut Findings) -> Raw {
        if self.is_wrong {
            findings.wrong("duplicate_parameter", "structured_outputs", "has a field that appears more than once");
        }
        if let Some(key) = self.other {
            let why = "the built-in model holds answers to a JSON Schema only";
            findings.unsupported("unsupported_value", format!("structured_outputs.{key}"), why);
        }
        self.schema
    }
}

impl Format {
    /// Returns the format asked for; reports to `findings` whatever is invalid or unsupported.
    pub(super) fn validate(self, findings: &mut Findings) -> ResponseFormat {
        const UNKNOWN: &str = "the built-in model does not know this";
        if self.is_null {
            return ResponseFormat::Text;
        }
        if !self.is_object {
            findings.wrong("invalid_type", "response_format", "must be an object");
            return ResponseFormat::Text;
        }
        if self.duplicate {
            findings.wrong("duplicate_parameter", "response_format", "has a field that appears more than once");
        }
        if self.is_bad || self.json_schema.as_ref().is_some_and(|schema| schema.is_bad) {
            findings.wrong("invalid_value", "response_format", "has a schema that is no JSON or nests deeper than 128");
        }
        if let Some(key) = self.further {
            findings.unsupported("unknown_parameter", format!("response_format.{key}"), UNKNOWN);
        }
        match self.kind.as_deref() {
            Some("text") if self.schema.is_none() && self.json_schema.is_none() => ResponseFormat::Text,
            Some("text") => {
                findings.wrong("invalid_value", "response_format", "has a schema, which needs the type json_schema");
                ResponseFormat::Text
            }
            // llama.cpp and others accept a schema here too.
            Some("json_object") => self.schema.map_or(ResponseFormat::JsonObject, ResponseFormat::JsonSchema),
            Some("json_schema") => match self.json_schema {
                Some(schema) if schema.is_object => schema.validate(findings),
                _ => {
                    let param = "response_format.json_schema";
                    findings.wrong("missing_required_parameter", param, "must be an object");
                    ResponseFormat::Text
                }
            },
            Some(kind) => {
                let why = format!("the built-in model writes text and JSON, not `{}`", shown(kind));
                findings.unsupported("unsupported_value", "response_format.type", why);
                ResponseFormat::Text
            }
            None => {
                let code = if self.wrong_kind { "invalid_type" } else { "missing_required_parameter" };
                findings.wrong(code, "response_format.type", "must be text, json_object or json_schema");
                ResponseFormat::Text
            }
        }
    }
}

impl JsonSchema {
    fn validate(self, findings: &mut Findings) -> ResponseFormat {
        const PARAM: &str = "response_format.json_schema";
        if self.duplicate {
            findings.wrong("duplicate_parameter", PARAM, "has a field that appears more than once");
        }
        if let Some(key) = self.further {
            let why = "the built-in model does not know this";
            findings.unsupported("unknown_parameter", format!("{PARAM}.{key}"), why);
        }
        let is_name = |name: &str| {
            (1..=MAX_NAME).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        };
        match self.name.as_deref() {
            Some(name) if is_name(name) => {}
            Some(_) => {
                let what = format!("must be 1 to {MAX_NAME} letters, digits, `_` and `-`");
                findings.wrong("invalid_value", format!("{PARAM}.name"), what);
            }
            None => findings.wrong("missing_required_parameter", format!("{PARAM}.name"), "must be a string"),
        }
        self.schema.map_or_else(
            || {
                findings.wrong("missing_required_parameter", format!("{PARAM}.schema"), "must be a JSON Schema");
                ResponseFormat::Text
            },
            ResponseFormat::JsonSchema,
        )
    }
}
