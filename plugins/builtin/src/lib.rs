//! The filters that come with Spillway, one file each, and the registry that names them.
//! They see requests through `spillway_filter` only and know no proxy.

mod headers;
mod mirror;
mod rate_limit;

use spillway_filter::Registry;

/// All filters that come with Spillway.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add(headers::request()).add(headers::response()).add(mirror::factory()).add(rate_limit::factory());
    registry
}
