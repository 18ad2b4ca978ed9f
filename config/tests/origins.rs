//! Values from the environment are in no configuration that is shown, and in no message about one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use spillway_config::{LoadOptions, Loaded, NoFileChecks, Report, load_text};

use crate::common::AnyFilter;

fn load(text: &str, env: &BTreeMap<String, String>) -> Result<Loaded, Report> {
    let env = |name: &str| env.get(name).cloned();
    let options = LoadOptions { catalog: &AnyFilter, env: &env, files: &NoFileChecks, offline: true, kubernetes: true };
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/gateway.yaml");
    load_text(&path, text, &options)
}

#[test]
fn every_string_of_the_whole_example_is_shown_as_it_is_written() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gateway.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let mut env = BTreeMap::new();
    let mut out = String::new();
    for line in text.lines() {
        // What stands in quotes is a string; a comment behind it is none.
        let mut parts = line.split('"');
        out.push_str(parts.next().unwrap_or_default());
        while let (Some(inside), Some(after)) = (parts.next(), parts.next()) {
            let is_comment = out.lines().last().is_some_and(|line| line.contains(" #") || line.starts_with('#'));
            if is_comment || inside.contains('\\') {
                out.push_str(&format!("\"{inside}\"{after}"));
                continue;
            }
            let name = format!("V{}", env.len());
            out.push_str(&format!("\"${{{name}}}\"{after}"));
            env.insert(name, inside.to_owned());
        }
        out.push('\n');
    }
    assert!(env.len() > 25, "{}", env.len());
    let loaded = load(&out, &env).unwrap_or_else(|report| panic!("{report}"));
    let shown = loaded.shown().to_string();
    let mut seen = 0;
    for (name, value) in &env {
        let stands_elsewhere = text.matches(value.as_str()).count() > 1;
        if value.len() >= 6 && !stands_elsewhere {
            assert!(!shown.contains(value.as_str()), "{name} = {value}: {shown}");
            seen += 1;
        }
    }
    assert!(seen > 15, "{seen}");
    assert!(shown.matches("${V").count() > 25, "{shown}");
    assert!(!format!("{:?}", loaded.origins).contains("example.com"));
}

#[test]
fn messages_name_the_reference_and_quote_the_line_as_it_is_written() {
    let env =
        BTreeMap::from([("SECRET".to_owned(), "pl4nted-secret-value".to_owned()), ("S".to_owned(), "q7".to_owned())]);
    let with = |backend: &str, route: &str| {
        format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: a, endpoints: [{{url: \"http://127.0.0.1:1\"}}]{backend}}}]
routes: [{{backendRefs: [{{name: a}}]{route}}}]
"
        )
    };
    for (text, told) in [
        (with(", protocol: \"${SECRET}\"", ""), "unknown value `${SECRET}` for `protocol`"),
        (with(", protocol: \"${S}\"", ""), "unknown value `${S}` for `protocol`"),
        (with(", timeouts: {connect: \"${SECRET}\"}", ""), "${SECRET}"),
        (with(", endpointsFile: \"${SECRET}\"", ""), "${SECRET}"),
        (with("", ", whenSaturated: {spillTo: \"${SECRET}\"}"), "unknown model or backend `${SECRET}`"),
        (with("", ", whenSaturated: {spillTo: \"x-${SECRET}\"}"), "unknown model or backend `x-${SECRET}`"),
        (with("", ", matches: [{path: {regex: \"(${SECRET}\"}}]"), "not a regular expression"),
        (with("", ", matches: [{method: \"${SECRET}\"}]"), "`${SECRET}` is not a method"),
        (with("", ", hostnames: [\"a b ${SECRET}\"]"), "${SECRET}"),
        (with("", ", filters: [{cel: {quoted: \"${SECRET}\"}}]"), "`${SECRET}` is wrong, from `…` on"),
        (with(", weight: 7", ", timeouts: {request: \"${SECRET}\"}"), "unknown key `weight`"),
    ] {
        let report = match load(&text, &env) {
            Ok(loaded) => loaded.warnings,
            Err(report) => report,
        };
        for shown in [report.to_string(), serde_json::to_string(&report).unwrap()] {
            assert!(shown.contains(told), "{text}: {shown}");
            for value in ["pl4nted-secret-value", "pl4nted-", "`q7`"] {
                assert!(!shown.contains(value), "{text}: {shown}");
            }
        }
    }
}

#[test]
fn a_default_of_the_file_is_shown_and_what_replaces_it_is_not() {
    let env = BTreeMap::from([("SET".to_owned(), "from-outside".to_owned())]);
    let text = "listeners: [{address: \"127.0.0.1:0\"}]
backends: [{name: \"${UNSET:-written-here}\", model: \"${SET:-other}\", endpoints: [{url: \"http://127.0.0.1:1\"}]}]
routes: [{backendRefs: [{name: written-here}]}]
state: {limits: {redis: {url: \"redis://user@127.0.0.1:1/0\"}}}
";
    let shown = load(text, &env).unwrap_or_else(|report| panic!("{report}")).shown();
    assert_eq!(shown["backends"][0]["name"], "written-here");
    assert_eq!(shown["backends"][0]["model"], "${SET:-other}");
    assert_eq!(shown["state"]["limits"]["redis"]["url"], "redis://***@127.0.0.1:1/0");
}

#[test]
fn nothing_that_is_said_about_a_url_shows_a_password_in_it() {
    const PASSWORD: &str = "s3cr3t/pass";
    for address in [
        format!("http://:{PASSWORD}@127.0.0.1"),
        format!("ftp://u:{PASSWORD}@127.0.0.1"),
        format!("redis://:{PASSWORD}@127.0.0.1:6379"),
        format!(":{PASSWORD}@127.0.0.1:6379"),
        format!("redis:{PASSWORD}@127.0.0.1"),
        "http://:s3cr3t@127.0.0.1".to_owned(),
    ] {
        for written in [
            format!("state: {{limits: {{redis: {{url: \"{address}\"}}}}}}\n"),
            format!("state: {{store: {{redis: {{url: \"{address}\"}}}}}}\n"),
            format!("telemetry: {{tracing: {{endpoint: \"{address}\"}}}}\n"),
            format!("backends: [{{name: a, endpoints: [{{url: \"{address}\"}}]}}]\n"),
            format!(
                "authentication: {{jwt: [{{issuer: \"https://i.test\", audiences: [a], jwks: {{url: \"{address}\"}}}}]}}\n"
            ),
        ] {
            let report = load(&written, &BTreeMap::new()).unwrap_err().to_string();
            assert!(!report.contains("s3cr3t") && !report.contains("pass@"), "{written}{report}");
        }
    }
}
