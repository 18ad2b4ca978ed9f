//! Filters of a route or of one of its targets.

use std::sync::Arc;

use spillway_filter::Filter;

use crate::limits::Rules;

/// Filter with its name in the configuration.
pub struct NamedFilter {
    /// Name in metrics and spans.
    pub name: String,
    /// Compiled filter.
    pub filter: Arc<dyn Filter>,
    /// Rules of its limits that are judged here, before the filter itself is asked.
    pub rules: Rules,
    /// True where the hooks are called: in one list at most. A filter may have rules in the other list too.
    pub acts: bool,
}
