//! Any text as a configuration: it is accepted or refused with a report, in bounded time and memory. What is accepted is shown,
//! and its text is accepted again.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use spillway_config::{LoadOptions, NoFileChecks, NoFilters, load_text};

fuzz_target!(|text: &str| {
    let options = LoadOptions { catalog: &NoFilters, env: &|_| None, files: &NoFileChecks, offline: true, kubernetes: true };
    // No such folder: `include` finds nothing.
    let load = |text: &str| load_text(Path::new("/nonexistent/spillway.yaml"), text, &options);
    match load(text) {
        Ok(loaded) => {
            let _ = loaded.shown();
            assert!(load(text).is_ok());
        }
        Err(report) => assert!(!report.to_string().is_empty()),
    }
});
