//! `docs/apis.md`: calls of every API before every kind of backend, and features of conversations for each pair of APIs. The
//! table of calls is the expectation of `tests/tests/apis.rs`, which makes each of them; the table of features names its
//! tests.

mod calls;
mod features;
mod further;

use std::collections::BTreeSet;
use std::fmt::Write;

pub use calls::{BACKENDS, Call, Fate, Kind, calls};

use self::features::{PAIRS, Shown, features};
use super::{GENERATED, cell};
use crate::repository;

/// Test that makes every call of the first table.
const SWEEP: &str = "apis::every_call_meets_every_backend_as_the_table_says";

const INTRODUCTION: &str = "\
Left: the call that a caller makes. Above: the `protocol` of the backend that its route names, or a built-in model. Cells:

- **passes**: the server gets the call as it came, with the model renamed where the backend has a `model`. Whether the server has such a
  call is the server's to say.
- **translated**: the server gets a call of its own API, the caller an answer of its own.
- **answered**: the gateway answers, without a server.
- a status and a code: [refused](reference/errors.md), and no server is asked.

Servers of `oip-grpc` speak HTTP/2; so do those of `http` before calls of gRPC. The model that a call names is a conversational one for texts,
an embedder or a reranker for the others.";

const FEATURES: &str = "\
Caller → backend. **yes**: the tests named below show it; of several calls, forced tools and reasons, translated, in whole answers. A refusal
names the field.
**unsupported**: the API of the caller or the backend has no such thing, or the gateway does not translate it.";

/// Renders the page.
pub(super) fn page() -> String {
    let mut page = format!("# APIs, backends and features\n\n{GENERATED}\n\n");
    let cells: Vec<&Shown> = features().iter().flat_map(|feature| &feature.cells).collect();
    let count = |what: fn(&Shown) -> bool| cells.iter().filter(|shown| what(shown)).count();
    let all_calls: Vec<_> = calls().iter().flat_map(|call| call.fates).collect();
    let refused = all_calls.iter().filter(|fate| matches!(fate, Fate::Refused(_))).count();
    writeln!(
        page,
        "Calls: {} of {} cells are tested, {refused} of them refusals. Features: {} of {} cells are tested, {} are unsupported.\n",
        all_calls.len(),
        all_calls.len(),
        count(|shown| matches!(shown, Shown::Yes(_) | Shown::Refused(..))),
        cells.len(),
        count(|shown| matches!(shown, Shown::Unsupported)),
    )
    .unwrap();
    calls_section(&mut page);
    features_section(&mut page);
    page
}

fn calls_section(page: &mut String) {
    writeln!(page, "## Calls\n\n{INTRODUCTION}\n").unwrap();
    let mut api = "";
    for call in calls() {
        if call.api != api {
            api = call.api;
            let bars = "---|".repeat(BACKENDS.len());
            writeln!(page, "\n### {api}\n\n| call | {} |\n|---|{bars}", BACKENDS.join(" | ")).unwrap();
        }
        let fates: Vec<String> = call.fates.iter().map(|fate| fate.text()).collect();
        let name = cell(&format!("`{}`", call.name()));
        writeln!(page, "| {name} | {} |", fates.join(" | ")).unwrap();
    }
    writeln!(page, "\n### Tests of calls\n\n`{SWEEP}` makes every call of these tables. Further:\n").unwrap();
    writeln!(page, "| API | backend | tests |\n|---|---|---|").unwrap();
    for (api, backend, tests) in further::FURTHER {
        writeln!(page, "| {api} | {backend} | {} |", list(tests)).unwrap();
    }
    page.push('\n');
}

fn features_section(page: &mut String) {
    writeln!(page, "## Features of conversations\n\n{FEATURES}\n").unwrap();
    let bars = "---|".repeat(PAIRS.len());
    writeln!(page, "| feature | {} |\n|---|{bars}", PAIRS.join(" | ")).unwrap();
    for feature in features() {
        let cells: Vec<&str> = feature.cells.iter().map(Shown::text).collect();
        writeln!(page, "| {} | {} |", feature.name, cells.join(" | ")).unwrap();
    }
    writeln!(page, "\n### Tests of features\n\n| feature | pair | tests |\n|---|---|---|").unwrap();
    for feature in features() {
        for (pair, shown) in PAIRS.iter().zip(&feature.cells) {
            if let Shown::Yes(tests) | Shown::Refused(_, tests) = shown {
                writeln!(page, "| {} | {pair} | {} |", feature.name, list(tests)).unwrap();
            }
        }
    }
}

fn list(tests: &[&str]) -> String {
    tests.iter().map(|test| format!("`{test}`")).collect::<Vec<_>>().join(", ")
}

/// Asserts that every named test exists, as `FILE::FUNCTION` of `tests/tests`.
///
/// # Panics
/// Panics with the names that do not.
pub fn check_tests() {
    let mut named: BTreeSet<&str> = BTreeSet::from([SWEEP]);
    named.extend(further::FURTHER.iter().flat_map(|(_, _, tests)| *tests));
    for shown in features().iter().flat_map(|feature| &feature.cells) {
        if let Shown::Yes(tests) | Shown::Refused(_, tests) = shown {
            named.extend(*tests);
        }
    }
    let missing: Vec<_> = named
        .iter()
        .filter(|name| {
            let (file, function) = name.split_once("::").unwrap();
            let text = std::fs::read_to_string(repository().join(format!("tests/tests/{file}.rs"))).unwrap_or_default();
            !text.contains(&format!("fn {function}()"))
        })
        .collect();
    assert!(missing.is_empty(), "docs/apis.md names tests that do not exist: {missing:?} (tests/src/reference/apis)");
}
