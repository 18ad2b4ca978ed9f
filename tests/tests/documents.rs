//! Documentation tests: commands run, YAML is accepted, and the reference matches the schema.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

use std::process::{Command, Output};

use spillway_tests::{Gateway, binary, model, python, reference, repository};

const DOCUMENTS: [&str; 3] = ["README.md", "docs/guide.md", "ARCHITECTURE.md"];

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

/// Fenced blocks of one language in a document.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(name)) => open = Some((name == language, String::new())),
            (Some((wanted, block)), Some(_)) => {
                if *wanted {
                    found.push(std::mem::take(block));
                }
                open = None;
            }
            (Some((_, block)), None) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    found
}

/// Commands of a block: one a line, continued to the line where its quotes are closed.
fn commands(block: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut one = String::new();
    for line in block.lines() {
        one.push_str(line);
        if one.matches('\'').count() % 2 == 1 {
            one.push('\n');
            continue;
        }
        let whole = std::mem::take(&mut one);
        let command = whole.split("  #").next().unwrap().trim();
        if !command.is_empty() && !command.starts_with('#') {
            all.push(command.to_owned());
        }
    }
    assert!(one.is_empty(), "quotes are left open in {block}");
    all
}

fn good(what: &str, out: &Output) -> String {
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{what}\nfailed:\n{said}");
    said
}

/// Demo configuration for the harness, which puts addresses in front.
fn demo() -> String {
    let yaml = read("config/examples/demo.yaml");
    let rest = &yaml[yaml.find("models:").unwrap()..];
    rest.replace("../../models/smollm2-135m-instruct-q4_1.gguf", model().to_str().unwrap())
}

/// Runs a text with the documented addresses replaced by those of this test.
fn run(gateway: &Gateway, program: &[&str], text: &str) -> Output {
    let text = text.replace("127.0.0.1:8080", &gateway.address.to_string());
    let text = text.replace("127.0.0.1:9901", &gateway.admin.to_string());
    assert!(!text.contains(":8080") && !text.contains(":9901"), "an address that the test does not know: {text}");
    Command::new(program[0]).args(&program[1..]).arg(text).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_documents_runs() {
    let gateway = Gateway::start(&demo()).await;
    let makefile = read("Makefile");
    let folder = tempfile::tempdir().unwrap();
    let mut asked = 0;
    for document in DOCUMENTS {
        for command in blocks(&read(document), "sh").iter().flat_map(|block| commands(block)) {
            let what = format!("{document}: {command}");
            if let Some(target) = command.strip_prefix("make ") {
                assert!(makefile.contains(&format!("\n{target}: ##")), "{what}: there is no such target");
            } else if command.starts_with("curl ") {
                let said = good(
                    &what,
                    &run(&gateway, &["bash", "-c"], &command.replacen("curl", "curl -sS --fail-with-body", 1)),
                );
                assert!(said.contains("Paris"), "{what}: {said}");
                asked += 1;
            } else if let Some(rest) =
                command.strip_prefix("target/release/spillway ").or(command.strip_prefix("spillway "))
            {
                let line = format!("{} {rest}", binary().display());
                let out = Command::new("bash").args(["-c", &line]).current_dir(folder.path()).output().unwrap();
                good(&what, &out);
            } else {
                panic!("{what}: no test runs this kind of command");
            }
        }
    }
    assert!(asked > 0, "the README asks nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_make_run_prints_to_try_works() {
    let gateway = Gateway::start(&demo()).await;
    let script = read("scripts/run.sh");
    let printed = script.split("<<'EOF'\n").nth(1).unwrap().split("\nEOF").next().unwrap();
    let indented = |begin: &str| -> String {
        let from = printed.find(begin).unwrap();
        let lines = printed[from..]
            .lines()
            .take_while(|line| line.is_empty() || (line.starts_with("  ") && !line.starts_with("  http")));
        lines.map(|line| line.strip_prefix("  ").unwrap_or(line)).collect::<Vec<_>>().join("\n")
    };
    let curl = indented("  curl ").replacen("curl", "curl -sS --fail-with-body", 1);
    assert!(good("curl", &run(&gateway, &["bash", "-c"], &curl)).contains("Paris"));
    let python = python();
    let script = indented("  from openai");
    let said = good("openai", &run(&gateway, &[python.to_str().unwrap(), "-c"], &script));
    assert!(!said.trim().is_empty(), "the client printed nothing");
}

#[test]
fn every_yaml_of_the_documents_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let minimal = read("config/examples/minimal.yaml")
        .replace("../../models/smollm2-135m-instruct-q4_1.gguf", model().to_str().unwrap());
    let mut seen = 0;
    for document in DOCUMENTS {
        for block in blocks(&read(document), "yaml") {
            // A fragment is checked as part of the smallest file.
            let whole = if block.contains("routes:") { block.clone() } else { format!("{minimal}{block}") };
            let file = folder.path().join("spillway.yaml");
            std::fs::write(&file, whole).unwrap();
            good(&block, &Command::new(binary()).arg("check").arg(&file).output().unwrap());
            seen += 1;
        }
    }
    assert!(seen > 0);
}

#[test]
fn every_subcommand_of_the_documents_exists() {
    for document in DOCUMENTS {
        let text = read(document);
        for named in text.split("`spillway ").skip(1) {
            let words = named.split('`').next().unwrap().split_whitespace();
            let words: Vec<_> = words.take_while(|word| word.chars().all(char::is_lowercase)).collect();
            let out = Command::new(binary()).args(&words).arg("--help").output().unwrap();
            good(&format!("{document}: spillway {}", words.join(" ")), &out);
        }
    }
}

#[test]
fn the_reference_and_the_schema_file_are_what_the_program_checks() {
    let out = Command::new(binary()).arg("schema").output().unwrap();
    assert!(out.status.success());
    let printed = String::from_utf8(out.stdout).unwrap();
    let schema = serde_json::from_str(&printed).unwrap();
    let update = std::env::var_os("SPILLWAY_UPDATE_DOCS").is_some();
    for (path, wanted) in [("docs/configuration.md", reference(&schema)), ("config/spillway.schema.json", printed)] {
        if update {
            std::fs::write(repository().join(path), &wanted).unwrap();
        }
        assert!(read(path) == wanted, "{path} is out of date: run with SPILLWAY_UPDATE_DOCS=1 and look at the change");
    }
}

#[test]
fn every_attack_of_the_table_is_tried_by_a_test() {
    fn read_all(folder: &std::path::Path, sources: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read_all(&path, sources);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                *sources += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut sources = String::new();
    for folder in ["tests/tests", "gateway/src", "plugins", "config/src", "engine/src"] {
        read_all(&repository().join(folder), &mut sources);
    }
    let text = read("docs/attacks.md");
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 20);
    for row in rows {
        let test = row.trim_end_matches(" |").rsplit("| ").next().unwrap().trim_matches('`');
        assert!(sources.contains(&format!("fn {test}()")), "{row}: there is no test {test}");
    }
    // Every test of attacks is in the table.
    let attacks = read("tests/tests/attacks.rs") + &read("tests/tests/floods.rs");
    for test in attacks.split("#[tokio::test]\nasync fn ").skip(1) {
        let name = test.split('(').next().unwrap();
        assert!(text.contains(name), "{name} is not in docs/attacks.md");
    }
}

#[test]
fn every_example_names_the_schema_for_editors() {
    for entry in std::fs::read_dir(repository().join("config/examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|kind| kind != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let line = "# yaml-language-server: $schema=../spillway.schema.json\n";
        assert!(text.starts_with(line), "{} does not begin with {line}", path.display());
    }
}
