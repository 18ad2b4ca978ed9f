//! Health checks and scrapes of endpoints, as data.

use std::sync::Arc;

use super::EndpointState;
use super::health::{CheckPlan, ListPlan, ScrapePlan, Server};
use crate::connect::EndpointKey;

/// Recurring request to an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Work {
    /// Health check.
    Check(CheckPlan),
    /// Scrape of its metrics.
    Scrape(ScrapePlan),
    /// Question which models it has.
    List(ListPlan),
}

/// A check, scrape or question to one endpoint.
pub struct RecurringCheck {
    pub(super) key: EndpointKey,
    pub(super) server: Server,
    pub(super) work: Work,
    pub(super) state: Arc<EndpointState>,
}
