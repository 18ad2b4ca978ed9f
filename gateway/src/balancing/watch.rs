//! What is asked of an endpoint again and again, beside its requests.

use std::sync::Arc;

use super::EndpointState;
use super::health::{CheckPlan, ScrapePlan, Server};
use crate::connect::EndpointKey;

/// What is asked of an endpoint, again and again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Work {
    /// Whether it is well.
    Check(CheckPlan),
    /// How loaded it is.
    Scrape(ScrapePlan),
}

/// One endpoint and one thing that is asked of it.
pub struct Watch {
    pub(super) key: EndpointKey,
    pub(super) server: Server,
    pub(super) work: Work,
    pub(super) state: Arc<EndpointState>,
}
