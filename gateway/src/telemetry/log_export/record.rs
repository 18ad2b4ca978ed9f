//! Records: attributes with bounded texts, and the memory they take.

use std::time::SystemTime;

use opentelemetry::logs::{AnyValue, LogRecord, Severity};
use opentelemetry::trace::{SpanId, TraceFlags};
use opentelemetry::{Key, StringValue};
use opentelemetry_sdk::logs::SdkLogRecord;

use super::queue::Waiting;
use crate::telemetry::trace::SpanIds;

/// Longest text of a record, in bytes: errors of configurations are the longest that are logged.
const MAX_TEXT: usize = 4 << 10;
/// Prefix of the names of headers, by OpenTelemetry's conventions.
const HEADER: &str = "http.request.header.";

/// Record of the log that is being filled. Its time is when it was begun.
pub struct Record {
    record: SdkLogRecord,
    bytes: usize,
}

impl Record {
    pub(super) fn new(mut record: SdkLogRecord) -> Self {
        let now = SystemTime::now();
        record.set_timestamp(now);
        record.set_observed_timestamp(now);
        Self { record, bytes: size_of::<Waiting>() }
    }

    pub(super) fn finished(self) -> Waiting {
        Waiting { record: self.record, bytes: u64::try_from(self.bytes).unwrap_or(u64::MAX) }
    }

    /// Sets the kind of the record, `event` of its line.
    pub fn event(&mut self, name: &'static str) {
        self.record.set_event_name(name);
    }

    /// Sets how grave it is.
    pub(super) fn severity(&mut self, severity: Severity) {
        self.record.set_severity_number(severity);
        self.record.set_severity_text(severity.name());
    }

    /// Marks it as information.
    pub fn info(&mut self) {
        self.severity(Severity::Info);
    }

    /// Marks it as a warning.
    pub fn warning(&mut self) {
        self.severity(Severity::Warn);
    }

    /// Marks it as an error.
    pub fn error(&mut self) {
        self.severity(Severity::Error);
    }

    /// Sets the words that stand for it.
    pub fn body(&mut self, text: &str) {
        let text = self.owned(text);
        self.record.set_body(AnyValue::String(text));
    }

    /// Sets the part of the program that it is from.
    pub(super) fn target(&mut self, target: &'static str) {
        self.record.set_target(target);
    }

    /// Sets the span that it belongs to.
    pub fn span(&mut self, ids: SpanIds) {
        let flags = if ids.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        self.record.set_trace_context(ids.trace, ids.span.unwrap_or(SpanId::INVALID), Some(flags));
    }

    /// Adds a text.
    pub fn text(&mut self, key: impl Into<Key>, text: &str) {
        let text = self.owned(text);
        self.add(key.into(), AnyValue::String(text));
    }

    /// Adds a text, if there is one.
    pub fn text_if_any(&mut self, key: &'static str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    /// Adds a number.
    pub fn number(&mut self, key: impl Into<Key>, number: impl TryInto<i64>) {
        self.add(key.into(), AnyValue::Int(number.try_into().unwrap_or(i64::MAX)));
    }

    /// Adds a number with a fraction.
    pub fn fraction(&mut self, key: impl Into<Key>, number: f64) {
        self.add(key.into(), AnyValue::Double(number));
    }

    /// Adds true or false.
    pub fn flag(&mut self, key: impl Into<Key>, is: bool) {
        self.add(key.into(), AnyValue::Boolean(is));
    }

    /// Adds a header of the request.
    pub(in crate::telemetry) fn header(&mut self, name: &str, value: &str) {
        let key = format!("{HEADER}{name}");
        let value = self.owned(value);
        self.bytes += key.len() + size_of::<AnyValue>();
        self.add(Key::from(key), [value].into_iter().collect());
    }

    fn add(&mut self, key: Key, value: AnyValue) {
        self.bytes += size_of::<(Key, AnyValue)>();
        self.record.add_attribute(key, value);
    }

    /// Text of the record's own, cut at a boundary of characters.
    fn owned(&mut self, text: &str) -> StringValue {
        let text = text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default().to_owned();
        self.bytes += text.len();
        StringValue::from(text)
    }
}
