//! Fields of lines and attributes of spans that expressions make, once for a request that has ended. Bounded in number and length;
//! a header that may hold a credential is never read.

use http::HeaderName;
use opentelemetry::Key;
use spillway_cel::{Expression, Scalar, Scope, Seen};
use spillway_config::schema::{ComputedField, Telemetry};
use spillway_filter::NameSet;

use super::json::clipped;

/// Expressions of the configuration for lines and spans.
#[derive(Debug)]
pub struct ComputedFields {
    /// Of lines.
    pub of_lines: Vec<Field>,
    /// Of spans.
    pub of_spans: Vec<Field>,
    /// Headers that no field may show (`redactHeaders`).
    redacted: NameSet,
}

/// Field that an expression makes.
#[derive(Debug)]
pub struct Field {
    name: Key,
    value: Expression,
}

/// Fields of one request with their values.
pub type FieldValues<'f> = Vec<(&'f Key, Scalar)>;

impl ComputedFields {
    /// Compiles the configuration; `None` where it has no expressions.
    ///
    /// # Errors
    /// The first expression that cannot be compiled. Validation reports all of them before.
    pub fn new(telemetry: &Telemetry) -> Result<Option<Box<Self>>, String> {
        let compiled = |fields: &[ComputedField]| -> Result<Vec<Field>, String> {
            let one = |field: &ComputedField| {
                let name = Key::from(std::sync::Arc::<str>::from(field.name.as_str()));
                let value = Expression::scalar(&field.value, Scope::End);
                value.map(|value| Field { name, value }).map_err(|why| format!("field `{}`: {why}", field.name))
            };
            fields.iter().map(one).collect()
        };
        let logs = &telemetry.logs;
        let of_lines = if logs.access { compiled(&logs.fields)? } else { Vec::new() };
        let of_spans = telemetry.tracing.as_ref().map_or(Ok(Vec::new()), |tracing| compiled(&tracing.attributes))?;
        if of_lines.is_empty() && of_spans.is_empty() {
            return Ok(None);
        }
        let redacted = logs.redact_headers.iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok());
        Ok(Some(Box::new(Self { of_lines, of_spans, redacted: redacted.collect() })))
    }

    /// True for a header that `redactHeaders` names, or that may hold a credential whatever its name says.
    pub fn hides(&self, name: &HeaderName) -> bool {
        // A client of WebSocket in a browser has no other place for its key.
        self.redacted.contains(name) || *name == http::header::SEC_WEBSOCKET_PROTOCOL
    }
}

/// Values of some fields for a request; those without one are left out.
pub fn values<'f>(fields: &'f [Field], seen: &Seen<'_>) -> FieldValues<'f> {
    let value = |field: &'f Field| {
        let value = match field.value.scalar_of(seen)? {
            Scalar::Text(text) => Scalar::Text(clipped(&text).to_owned()),
            other => other,
        };
        Some((&field.name, value))
    };
    fields.iter().filter_map(value).collect()
}
