//! Handles on the series of limit rules.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;

use super::{Families, Labels, labels};

/// Series of one rule.
pub struct LimitMetrics {
    /// Refused requests.
    pub refused: Counter,
    /// Requests that the rule would have refused outside shadow mode.
    pub shadow: Counter,
    families: Arc<Families>,
    name: String,
    own: Labels,
}

impl LimitMetrics {
    pub(super) fn new(families: &Arc<Families>, name: &str) -> Self {
        let own = labels([("limit", name)]);
        Self {
            refused: families.limit_refusals.get_or_create_owned(&own),
            shadow: families.limit_shadow_refusals.get_or_create_owned(&own),
            families: families.clone(),
            name: name.to_owned(),
            own,
        }
    }
}

impl Drop for LimitMetrics {
    fn drop(&mut self) {
        let f = &self.families;
        f.live_limits.gone(&self.name, || {
            f.limit_refusals.remove(&self.own);
            f.limit_shadow_refusals.remove(&self.own);
        });
    }
}
