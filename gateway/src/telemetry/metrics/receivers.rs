//! Handles on the series of receivers of notifications.

use std::sync::Arc;

use super::Families;
use super::held::{Count, Holder, Running, held};
use crate::telemetry::label::{ByLabel, NotificationEnd};

/// Series of a receiver.
pub struct ReceiverMetrics {
    /// Failed attempts.
    pub failures: Count,
    /// Notifications that wait.
    pub pending: Running,
    ends: ByLabel<NotificationEnd, Count>,
    families: Arc<Families>,
    name: Arc<str>,
}

impl ReceiverMetrics {
    pub(super) fn new(families: &Arc<Families>, name: &Arc<str>) -> Self {
        Self {
            failures: Count::default(),
            pending: Running::default(),
            ends: ByLabel::new(|_| Count::default()),
            families: families.clone(),
            name: name.clone(),
        }
    }

    /// Counts notifications that ended so.
    pub fn count(&self, end: NotificationEnd, times: usize) {
        if let Some(count) = self.ends.get(end) {
            count.add(u64::try_from(times).unwrap_or(u64::MAX));
        }
    }
}

impl Holder for ReceiverMetrics {
    const LABEL: &'static str = "receiver";

    fn name(&self) -> &str {
        &self.name
    }
}

held! {
    register_receivers(ReceiverMetrics) {
        /// Notifications by how they ended
        notifications: Counter = "spillway_notifications", |receiver, values| values.counts("result", &receiver.ends);
        /// Failed attempts at notifications
        failures: Counter = "spillway_notification_failures", |receiver, values| values.count(&receiver.failures);
        /// Notifications that wait for a receiver
        pending: Gauge = "spillway_notifications_pending", |receiver, values| values.running(&receiver.pending);
    }
}

impl Drop for ReceiverMetrics {
    fn drop(&mut self) {
        self.families.live_receivers.gone(&self.name, || {});
    }
}
