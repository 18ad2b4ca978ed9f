//! Facts that all exports to an OpenTelemetry collector share: times, and the identity of this process.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::{Key, KeyValue};
use opentelemetry_sdk::Resource;

/// Longest time for one export, from the connection to the collector's answer: batches behind it wait as long.
pub(super) const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two batches: what is exported waits this long for more to be sent with it.
pub(super) const EXPORT_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for the last of what is exported when an exporter ends.
pub(super) const FLUSH: Duration = Duration::from_secs(2);

/// Identity of this process in its spans and records, for its whole life. Values of the standard variables take precedence.
pub(super) fn resource() -> Resource {
    static INSTANCE: OnceLock<String> = OnceLock::new();
    let instance = INSTANCE.get_or_init(|| uuid::Uuid::new_v4().to_string());
    let given = Resource::builder().build();
    let mut ours = vec![KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))];
    let name = given.get(&Key::from_static_str("service.name")).map(|name| name.as_str().into_owned());
    if name.is_none_or(|name| name.starts_with("unknown_service")) {
        ours.push(KeyValue::new("service.name", "spillway"));
    }
    if given.get(&Key::from_static_str("service.instance.id")).is_none() {
        ours.push(KeyValue::new("service.instance.id", instance.clone()));
    }
    Resource::builder().with_attributes(ours).build()
}
