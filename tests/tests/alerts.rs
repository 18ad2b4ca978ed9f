//! The rules for Prometheus in `deploy/prometheus/alerts.yaml`: they fire where they should by Prometheus' own tester, name metrics and
//! labels that there are, and are those of the page.

use std::process::Command;

use spillway_tests::{Family, families, promtool, repository, series_of_query};

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

fn is_in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

const RULES: &str = "deploy/prometheus/alerts.yaml";

/// Expressions of the rules of one kind, `alert` or `record`, by their names.
fn expressions<'r>(rules: &'r str, kind: &str) -> Vec<(&'r str, &'r str)> {
    let begin = format!("- {kind}: ");
    let lines: Vec<&str> = rules.lines().map(str::trim).collect();
    let named = lines.windows(2).filter_map(|pair| Some((pair[0].strip_prefix(&begin)?, pair[1])));
    named.map(|(name, next)| (name, next.strip_prefix("expr: ").expect(name))).collect()
}

#[test]
fn the_rules_are_those_of_the_page_and_name_metrics_and_labels_that_there_are() {
    let (rules, page) = (read(RULES), read("docs/operate/alerts.md"));
    let (alerts, records) = (expressions(&rules, "alert"), expressions(&rules, "record"));
    assert_eq!(rules.matches("expr: ").count(), alerts.len() + records.len());
    let mut families = families();
    for (_, expression) in &records {
        series_of_query("alerts", expression, &families);
    }
    families.extend(records.iter().map(|(name, _)| Family { name, kind: "gauge", labels: vec!["http_route"] }));
    let blocks: Vec<&str> = page.split("```text\n").skip(1).map(|block| block.split("\n```").next().unwrap()).collect();
    for (name, expression) in &alerts {
        assert!(blocks.contains(expression), "the page has no block with the expression of {name}");
    }
    let all = alerts.iter().map(|(_, expression)| *expression).chain(blocks);
    let checked: usize = all.map(|expression| series_of_query("alerts", expression, &families)).sum();
    assert!(checked > 40, "{checked}");
    for label in rules.split("$labels.").skip(1).map(|rest| rest.split(|c| !is_in_name(c)).next().unwrap()) {
        assert!(families.iter().any(|family| family.labels.contains(&label)), "{label}");
    }
}

#[test]
fn each_rule_fires_where_it_should() {
    let (rules, tests) = (read(RULES), read("tests/alerts/rules.test.yaml"));
    for name in rules.split("alert: ").skip(1).map(|rest| rest.lines().next().unwrap()) {
        assert!(tests.contains(&format!("alertname: {name}\n")), "no test in which {name} fires");
    }
    for arguments in [["check", "rules", RULES], ["test", "rules", "tests/alerts/rules.test.yaml"]] {
        let out = Command::new(promtool()).args(arguments).current_dir(repository()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&[out.stdout, out.stderr].concat()));
    }
}
