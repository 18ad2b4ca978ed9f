//! The pages below `docs/reference/`, `docs/apis.md` and the dashboards in `deploy/grafana/`, generated so that they match the
//! program: the configuration from `spillway schema`, the command line from its help, everything else from the source text. Causes, remedies and meanings that the sources do not
//! have are written beside the generators, and a name without a row, or a row without a name, fails.

mod admin;
mod apis;
mod cli;
mod configuration;
mod dashboards;
mod errors;
mod examples;
mod headers;
mod logs;
mod metrics;
mod source;
mod spans;

use std::collections::BTreeSet;

use serde_json::Value;

pub use admin::{Operation, operations};
pub use apis::{BACKENDS, Call, Fate, Kind, calls, check_tests};
pub use configuration::restarts;
pub use dashboards::series_of_query;
pub use examples::{Example, examples};
pub use metrics::{Family, Sample, families, family_of};

/// The line below the title of every page.
const GENERATED: &str = "Generated from the program by `SPILLWAY_UPDATE_DOCS=1 make test`.";

/// Renders every page: its path from the root of the repository, and its text. `help` runs the program with some words and
/// `-h`, and returns what it prints.
pub fn reference(schema: &Value, help: &dyn Fn(&[&str]) -> String) -> Vec<(String, String)> {
    let mut pages = configuration::pages(schema);
    pages.extend([
        ("cli.md".to_owned(), cli::page(help)),
        ("admin-api.md".to_owned(), admin::page()),
        ("admin-api.openapi.json".to_owned(), admin::openapi()),
        ("metrics.md".to_owned(), metrics::page()),
        ("logs.md".to_owned(), logs::page()),
        ("spans.md".to_owned(), spans::page()),
        ("headers.md".to_owned(), headers::page()),
        ("errors.md".to_owned(), errors::page()),
    ]);
    let mut pages: Vec<_> = pages.into_iter().map(|(name, text)| (format!("docs/reference/{name}"), text)).collect();
    pages.push(("docs/apis.md".to_owned(), apis::page()));
    pages.extend(dashboards::files(&families()));
    pages
}

/// Asserts that rows and what the sources have are the same names.
fn compare<'n>(what: &str, rows: &[&'n str], found: impl Iterator<Item = &'n str>) {
    let written: BTreeSet<&str> = rows.iter().copied().collect();
    assert_eq!(written.len(), rows.len(), "{what}: a name has two rows");
    let found: BTreeSet<&str> = found.collect();
    let missing: Vec<_> = found.difference(&written).collect();
    let gone: Vec<_> = written.difference(&found).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "{what}: write a row for {missing:?} and remove those of {gone:?} (tests/src/reference)"
    );
}

/// A text as a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
