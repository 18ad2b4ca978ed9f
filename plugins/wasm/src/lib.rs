//! Host of proxy-wasm modules (ABI 0.2.0 and 0.2.1), and the filter `wasm` that runs one for the requests of a route. Owns the
//! compiler, the clock that ends calls which take too long, and the instances of modules; the embedder is `wasmtime`. Knows no
//! proxy: a module sees an exchange through `spillway_filter` alone. A module is foreign code: its memory, its time and the
//! size of what it hands over are bounded, and nothing that it does ends the gateway.

mod abi;
mod compiled;
mod config;
mod context;
mod factory;
mod failure;
mod filter;
mod host;
mod instance;
mod pool;
mod shared;
mod state;
mod stream;
#[cfg(test)]
mod tests;

use spillway_filter::Registry;

/// Registry of the filter `wasm`.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add(factory::factory());
    registry
}
