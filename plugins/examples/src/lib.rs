//! Filters as a user would write them, in a crate of their own. `docs/extend/filter.md` teaches them.

mod answer_timing;
mod message_limit;
mod trial;
mod upload_kind;

use spillway_filter::Registry;

/// Registry of the filters of this crate.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add(message_limit::factory()).add(answer_timing::factory()).add(upload_kind::factory());
    registry.add(trial::factory());
    registry
}
