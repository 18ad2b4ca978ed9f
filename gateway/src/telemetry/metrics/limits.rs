//! Handles on the series of limit rules.

use std::sync::Arc;

use super::Families;
use super::held::{Count, Holder, held};

/// Series of one rule.
pub struct LimitMetrics {
    /// Refused requests.
    pub refused: Count,
    /// Requests that the rule would have refused outside shadow mode.
    pub shadow: Count,
    families: Arc<Families>,
    name: Arc<str>,
}

impl LimitMetrics {
    pub(super) fn new(families: &Arc<Families>, name: &Arc<str>) -> Self {
        Self { refused: Count::default(), shadow: Count::default(), families: families.clone(), name: name.clone() }
    }
}

impl Holder for LimitMetrics {
    const LABEL: &'static str = "limit";

    fn name(&self) -> &str {
        &self.name
    }
}

held! {
    register_limits(LimitMetrics) {
        /// Requests that a limit refused
        refused: Counter = "spillway_limit_refusals", |limit, values| values.count(&limit.refused);
        /// Requests that a limit in shadow mode would have refused
        shadow: Counter = "spillway_limit_shadow_refusals", |limit, values| values.count(&limit.shadow);
    }
}

impl Drop for LimitMetrics {
    fn drop(&mut self) {
        self.families.live_limits.gone(&self.name, || {});
    }
}
