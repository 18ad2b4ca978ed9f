//! Entry point of a program that is a gateway: collects the filters and hands them to the command line.

use std::process::ExitCode;

use spillway_filter::Registry;

/// A gateway with the built-in filters and further ones. The program has the commands and options of `spillway`.
#[must_use = "`run` runs the gateway"]
pub struct Builder {
    registry: Registry,
}

impl Builder {
    /// Begins with the built-in filters.
    pub fn new() -> Self {
        Self { registry: built_in() }
    }

    /// Adds the filters of `registry`; one that has the name of a filter added before replaces it.
    pub fn filters(mut self, registry: Registry) -> Self {
        self.registry.extend(registry);
        self
    }

    /// Runs the command that the arguments of the process name, to its end.
    pub fn run(self) -> ExitCode {
        crate::cli::run(self.registry)
    }
}

/// Registry of the filters that this build has.
#[cfg(feature = "wasm")]
fn built_in() -> Registry {
    let mut registry = spillway_filters::registry();
    registry.extend(spillway_wasm::registry());
    registry
}

/// Registry of the filters that this build has: without `wasm`, which is refused by name.
#[cfg(not(feature = "wasm"))]
fn built_in() -> Registry {
    let mut registry = spillway_filters::registry();
    let reason = "this build of the gateway has no WebAssembly: use the container image or a binary of `make dist`, or build with \
                  `--features wasm`";
    registry.add(spillway_filter::absent("wasm", reason));
    registry
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}
