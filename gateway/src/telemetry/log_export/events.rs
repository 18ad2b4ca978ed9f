//! Events of the process as records: the same that the process log has, with the same fields.

use std::fmt::Debug;

use opentelemetry::logs::Severity;
use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::record::Record;
use super::{EXPORTS, names};
use crate::telemetry::LogWriter;

/// Most names of events that are kept. They are texts of the program and of plugins in it, of which there are a few hundred.
const MOST_NAMES: usize = 1024;
/// Prefix of the names of fields.
const PREFIX: &str = "spillway.";

/// Gives events to the export of the log, where there is one.
pub(in crate::telemetry) struct EventExport(pub(in crate::telemetry) LogWriter);

impl<S: Subscriber> Layer<S> for EventExport {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let export = self.0.export();
        if !export.is_on() || EXPORTS.get() {
            return;
        }
        export.send(|record| {
            record.severity(match *event.metadata().level() {
                Level::ERROR => Severity::Error,
                Level::WARN => Severity::Warn,
                Level::INFO => Severity::Info,
                Level::DEBUG => Severity::Debug,
                Level::TRACE => Severity::Trace,
            });
            record.target(event.metadata().target());
            let mut fields = EventFields { record, has_body: false, name: None };
            event.record(&mut fields);
            // Events without words are known by their names.
            if let EventFields { record, has_body: false, name: Some(name) } = fields {
                record.body(name);
            }
        });
    }
}

/// Fields of an event on their way into its record.
struct EventFields<'r> {
    record: &'r mut Record,
    has_body: bool,
    name: Option<&'static str>,
}

impl EventFields<'_> {
    fn text(&mut self, field: &Field, text: &str) {
        match field.name() {
            "message" => {
                self.record.body(text);
                self.has_body = true;
            }
            "event" => match lasting(text) {
                Some(name) => {
                    self.record.event(name);
                    self.name = Some(name);
                }
                None => self.record.text(key(field), text),
            },
            "error" => self.record.text(names::ERROR_MESSAGE, text),
            _ => self.record.text(key(field), text),
        }
    }
}

fn key(field: &Field) -> String {
    format!("{PREFIX}{}", field.name())
}

impl Visit for EventFields<'_> {
    fn record_str(&mut self, field: &Field, text: &str) {
        self.text(field, text);
    }
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, &format!("{value:?}"));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.record.number(key(field), value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.record.number(key(field), value);
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.record.fraction(key(field), value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.record.flag(key(field), value);
    }
}

/// Name that lasts as long as the process, which OpenTelemetry wants; `None` for one beyond those that are kept.
fn lasting(name: &str) -> Option<&'static str> {
    static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    let mut names = NAMES.lock();
    let place = match names.binary_search(&name) {
        Ok(place) => return names.get(place).copied(),
        Err(place) => place,
    };
    if names.len() >= MOST_NAMES || name.len() > 128 {
        return None;
    }
    let name: &'static str = Box::leak(name.into());
    names.insert(place, name);
    Some(name)
}
