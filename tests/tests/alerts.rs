//! The rules for Prometheus in `docs/operate/alerts.yaml`: they fire where they should by Prometheus' own tester, name metrics and
//! labels that there are, and are those of the page.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

use std::process::Command;

use spillway_tests::{families, promtool, repository, series_of_query};

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

fn is_in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[test]
fn the_rules_are_those_of_the_page_and_name_metrics_and_labels_that_there_are() {
    let (rules, page) = (read("docs/operate/alerts.yaml"), read("docs/operate/alerts.md"));
    let families = families();
    let in_rules = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let in_rules: Vec<&str> =
        in_rules.inspect(|expression| assert!(page.contains(expression), "{expression}")).collect();
    let blocks = page.split("```text\n").skip(1).map(|block| block.split("\n```").next().unwrap());
    let all = in_rules.iter().copied().chain(blocks);
    let checked: usize = all.map(|expression| series_of_query("alerts", expression, &families)).sum();
    assert!(checked > 40, "{checked}");
    assert_eq!(rules.matches("alert: ").count(), in_rules.len());
    for label in rules.split("$labels.").skip(1).map(|rest| rest.split(|c| !is_in_name(c)).next().unwrap()) {
        assert!(families.iter().any(|family| family.labels.contains(&label)), "{label}");
    }
}

#[test]
fn each_rule_fires_where_it_should() {
    let (rules, tests) = (read("docs/operate/alerts.yaml"), read("tests/alerts/rules.test.yaml"));
    for name in rules.split("alert: ").skip(1).map(|rest| rest.lines().next().unwrap()) {
        assert!(tests.contains(&format!("alertname: {name}\n")), "no test in which {name} fires");
    }
    for arguments in [["check", "rules", "docs/operate/alerts.yaml"], ["test", "rules", "tests/alerts/rules.test.yaml"]]
    {
        let out = Command::new(promtool()).args(arguments).current_dir(repository()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&[out.stdout, out.stderr].concat()));
    }
}
