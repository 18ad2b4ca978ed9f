//! Notifications about drift: what the log says, for receivers that want `drift`.

use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use spillway_config::schema::NotificationEvent;

use crate::notify::{Event, Notifier};

/// Source of all notifications about drift.
const SOURCE: &str = "/spillway/quality";

/// Kind of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// A feature has passed its limit.
    FeatureDrifted,
    /// A feature is back.
    FeatureBack,
    /// A probe fails.
    ProbeFailed,
    /// A probe passes again.
    ProbeBack,
    /// A provider names another model or fingerprint, or a mean similarity has moved.
    ProbeChanged,
}

impl Notice {
    fn kind(self) -> &'static str {
        match self {
            Self::FeatureDrifted => "dev.spillway.drift.featureDrifted",
            Self::FeatureBack => "dev.spillway.drift.featureBack",
            Self::ProbeFailed => "dev.spillway.drift.probeFailed",
            Self::ProbeBack => "dev.spillway.drift.probeBack",
            Self::ProbeChanged => "dev.spillway.drift.probeChanged",
        }
    }
}

/// Sender of notifications about drift.
#[derive(Clone)]
pub(super) struct Notices(Arc<Notifier>);

impl Notices {
    /// Sender by this notifier.
    pub(super) fn new(notifier: Arc<Notifier>) -> Self {
        Self(notifier)
    }

    /// Sends a notification about a route to those that want it, without waiting for them.
    pub(super) fn send<D: Serialize>(&self, notice: Notice, route: &str, data: D) {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let event =
            Event { id: &id, kind: notice.kind(), source: SOURCE, subject: route, time: SystemTime::now(), data };
        self.0.send(NotificationEvent::Drift, &event);
    }
}
