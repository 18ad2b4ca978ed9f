//! Health checks and scrapes of endpoints, as data.

use std::sync::Arc;

use super::EndpointState;
use super::health::{CheckPlan, ScrapePlan, Server};
use crate::connect::EndpointKey;

/// Recurring request to an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Work {
    /// Health check.
    Check(CheckPlan),
    /// Scrape of its metrics.
    Scrape(ScrapePlan),
}

/// A check or scrape of one endpoint.
pub struct RecurringCheck {
    pub(super) key: EndpointKey,
    pub(super) server: Server,
    pub(super) work: Work,
    pub(super) state: Arc<EndpointState>,
}
