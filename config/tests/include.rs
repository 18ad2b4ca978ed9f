//! `include`: one configuration from several files.

use std::path::{Path, PathBuf};

use spillway_config::{Loaded, Report, load};

use crate::common::options;

const FIRST: &str = "include: [routes.d/*.yaml, extra.yaml]
listeners: [{address: \"127.0.0.1:0\"}]
backends: [{name: a, endpoints: [{url: \"http://127.0.0.1:1\"}]}]
routes: [{name: first, matches: [{path: {prefix: /first}}], backendRefs: [{name: a}]}]
";
const EXTRA: &str = "backends: [{name: b, endpoints: [{url: \"http://127.0.0.1:2\"}]}]\n";

/// Folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("routes.d/nested")).unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn judge(folder: &Path) -> Result<Loaded, Report> {
    load(&folder.join("spillway.yaml"), &options())
}

/// Messages about the files, each with its file, line and path in the document.
fn told(files: &[(&str, &str)]) -> Vec<String> {
    let folder = folder(files);
    let report = match judge(folder.path()) {
        Ok(loaded) => loaded.warnings,
        Err(report) => report,
    };
    let file = |path: &Path| path.strip_prefix(folder.path()).unwrap_or(path).display().to_string();
    let line = |d: &spillway_config::Diagnostic| format!("{}:{} {} | {}", file(&d.file), d.line, d.path, d.message);
    report.diagnostics.iter().map(line).collect()
}

fn route(name: &str, to: &str) -> String {
    format!("routes: [{{name: {name}, matches: [{{path: {{prefix: /{name}}}}}], backendRefs: [{{name: {to}}}]}}]\n")
}

#[test]
fn lists_are_joined_in_the_order_of_the_names_and_paths_belong_to_their_files() {
    let two = "x-a: &a {name: two, matches: [{path: {prefix: /two}}], backendRefs: [{name: b}]}\nroutes: [*a]\nshutdown: {drainTimeout: 7s}\nmodels: [{name: m, source: m.gguf}]\n";
    let folder = folder(&[
        ("spillway.yaml", FIRST),
        ("extra.yaml", EXTRA),
        ("routes.d/2.yaml", two),
        ("routes.d/1.yaml", &route("one", "b")),
        ("routes.d/.hidden.yaml", "never: read\n"),
        ("routes.d/3.yml", "never: read\n"),
        ("routes.d/4.yaml", "# nothing yet\n"),
        ("routes.d/nested/5.yaml", "never: read\n"),
    ]);
    let loaded = judge(folder.path()).unwrap_or_else(|report| panic!("{report}"));
    let names: Vec<_> = loaded.config.routes.iter().map(|route| route.name.clone().unwrap()).collect();
    assert_eq!(names, ["first", "one", "two"]);
    assert_eq!(loaded.config.shutdown.drain_timeout.0.as_secs(), 7);
    let at = |name: &str| folder.path().join(name);
    assert_eq!(&*loaded.config.models[0].source, at("routes.d/m.gguf"), "relative to the file that names it");
    assert!(loaded.config.state.budgets.sqlite.starts_with(folder.path().join("state")), "a default is of the first");
    let watched: Vec<PathBuf> =
        ["spillway.yaml", "extra.yaml", "routes.d/1.yaml", "routes.d/2.yaml", "routes.d/4.yaml", "routes.d/*.yaml"]
            .map(at)
            .into();
    for file in watched {
        assert!(loaded.files.contains(&file), "{}: {:?}", file.display(), loaded.files);
    }
}

#[test]
fn every_message_names_its_own_file_and_the_place_in_it() {
    let first = ("spillway.yaml", FIRST);
    let extra = ("extra.yaml", EXTRA);
    let one = route("one", "b");
    let good = ("routes.d/1.yaml", one.as_str());
    let wrong = format!("# second\n{}", route("two", "c"));
    let all = told(&[first, extra, good, ("routes.d/2.yaml", &wrong)]);
    assert_eq!(all.len(), 1, "{all:?}");
    assert!(all[0].starts_with("routes.d/2.yaml:2 routes[0].backendRefs[0].name | unknown backend `c`"), "{all:?}");

    let all = told(&[first, extra, good, ("routes.d/2.yaml", &one)]);
    assert!(
        all.iter()
            .any(|m| m.starts_with("routes.d/2.yaml:1 routes[0].name | duplicate name `one`, first of routes[0] in ")
                && m.contains("routes.d/1.yaml")),
        "{all:?}"
    );

    let all = told(&[first, extra, ("routes.d/1.yaml", "routes: [\n")]);
    assert!(all.len() == 1 && all[0].starts_with("routes.d/1.yaml:1 ") && all[0].contains("invalid YAML"), "{all:?}");

    let all =
        told(&[first, extra, ("routes.d/1.yaml", "a: 1\n\nroute: []\n"), ("routes.d/2.yaml", "routes: [{nmae: x}]\n")]);
    for expected in [
        "routes.d/1.yaml:1 a | unknown key `a` at the top level",
        "routes.d/1.yaml:3 route | unknown key `route` at the top level",
        "routes.d/2.yaml:1 routes[0].nmae | unknown key `nmae` in `routes[",
    ] {
        assert!(all.iter().any(|m| m.starts_with(expected)), "{expected}: {all:?}");
    }

    let all = told(&[first, extra, ("routes.d/1.yaml", "models: [{name: m, source: \"${UNSET}\"}]\n")]);
    assert!(
        all.iter().any(|m| m.starts_with("routes.d/1.yaml:1 models[0].source | the environment variable")),
        "{all:?}"
    );
}

#[test]
fn what_cannot_be_joined_is_refused() {
    let first = ("spillway.yaml", FIRST);
    let extra = ("extra.yaml", EXTRA);
    for (text, expected) in [
        (
            "admin: {address: \"127.0.0.1:0\"}\nroutes: {}\n",
            "routes.d/1.yaml:2 routes | duplicate key `routes`, first in ",
        ),
        ("include: [../more.yaml]\n", "routes.d/1.yaml:1 include | an included file includes no further ones"),
        ("- a list\n", "routes.d/1.yaml:1  | found a list; expected keys such as"),
        ("a: !!str b\n", "routes.d/1.yaml:1  | unexpected YAML tag"),
    ] {
        let all = told(&[first, extra, ("routes.d/1.yaml", text)]);
        assert!(all.iter().any(|m| m.starts_with(expected)), "{expected}: {all:?}");
    }
    let both = "shutdown: {drainTimeout: 1s}\n";
    let all = told(&[first, extra, ("routes.d/1.yaml", both), ("routes.d/2.yaml", both)]);
    assert!(all[0].starts_with("routes.d/2.yaml:1 shutdown | duplicate key `shutdown`, first in "), "{all:?}");
    assert!(all[0].contains("routes.d/1.yaml on line 1: keep one of them"), "{all:?}");
    // A file that is named must be there, one that is searched need not.
    let all = told(&[first]);
    assert!(
        all.iter().any(|m| m.starts_with("spillway.yaml:1 include | cannot read ") && m.contains("extra.yaml")),
        "{all:?}"
    );
    let all = told(&[first, extra]);
    assert_eq!(
        all,
        [
            "spillway.yaml:1 include | no file matches `routes.d/*.yaml`: correct it, or ignore this until there are some"
        ]
    );
    let all = told(&[("spillway.yaml", &FIRST.replace("[routes.d/*.yaml, extra.yaml]", "routes.d/*.yaml"))]);
    assert!(all[0].contains("expected a list"), "{all:?}");
    // A file twice is one file; the first one matches, too.
    let all = told(&[("spillway.yaml", &FIRST.replace("routes.d/*.yaml", "\"*.yaml\"")), extra]);
    assert!(all.is_empty(), "{all:?}");
}

#[test]
fn files_that_were_read_are_watched_when_one_has_a_mistake() {
    let folder = folder(&[("spillway.yaml", FIRST), ("extra.yaml", EXTRA), ("routes.d/1.yaml", "routes: 1\n")]);
    let report = judge(folder.path()).unwrap_err();
    for name in ["routes.d/1.yaml", "routes.d/*.yaml", "extra.yaml"] {
        assert!(report.files.contains(&folder.path().join(name)), "{name}: {:?}", report.files);
    }
}
