//! Built-in filters, one file each, and their registry. They see requests through `spillway_filter` only and know no
//! proxy.

mod authorize;
mod azure;
mod basic_auth;
mod cache;
mod client_address;
mod compression;
mod condition;
mod cors;
mod deltas;
mod external_authorization;
mod fault;
mod guard;
mod headers;
mod json_edit;
mod list_file;
mod methods;
mod mirror;
mod path_pattern;
mod prompt_limits;
mod prompt_template;
mod public_location;
mod rate_limit;
mod respond;
mod strict_json;
mod system_prompt;
mod target;
mod transform;
mod transport_security;
mod user_agent;
mod validate;

use spillway_filter::Registry;

/// Registry of all built-in filters.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add(headers::request()).add(headers::response()).add(mirror::factory()).add(rate_limit::factory());
    registry
        .add(client_address::factory())
        .add(user_agent::factory())
        .add(cors::factory())
        .add(transport_security::factory());
    registry.add(target::redirect()).add(target::rewrite()).add(public_location::factory()).add(respond::factory());
    registry.add(validate::factory()).add(transform::factory()).add(guard::factory()).add(cache::factory());
    registry
        .add(prompt_template::factory())
        .add(prompt_limits::factory())
        .add(methods::factory())
        .add(fault::factory());
    registry.add(basic_auth::factory()).add(compression::factory());
    registry.add(authorize::authorize()).add(authorize::cel()).add(external_authorization::factory());
    registry.add(spillway_extproc::factory());
    registry.expressions(spillway_cel::check);
    registry
}
