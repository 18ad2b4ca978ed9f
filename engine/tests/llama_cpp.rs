//! Greedy answers of the demo model against llama.cpp on the same file, and its tokens.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests"
)]

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use spillway_engine::{ChatMessage, Engine, Event, Generate, LoadOptions, Sampling};

const PROMPTS: [&str; 6] = [
    "What is the capital of France? Answer in one sentence.",
    "Write a sentence about the sea.",
    "Count from one to ten.",
    "Explain what a proxy server does.",
    "Schreibe einen Satz über Kaffee ☕ und Straßen.",
    "fn main() {\n    println!(\"hi\");\n}\n\nWhat does this print?",
];

fn needed(variable: &str, default: &str, how: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
    let path = std::env::var_os(variable).map_or_else(|| root.join(default), PathBuf::from);
    assert!(path.exists(), "{} is not there: {how} ({variable} names another place)", path.display());
    path
}

#[test]
fn greedy_answers_are_those_of_llama_cpp() {
    let model = needed("SPILLWAY_TEST_MODEL", "models/smollm2-135m-instruct-q4_1.gguf", "`make model` fetches it");
    let python = needed("SPILLWAY_TEST_PYTHON", ".cache/venv/bin/python", "`scripts/test-tools.sh python` installs it");
    let script = needed("SPILLWAY_TEST_REFERENCE", "tests/python/llama_reference.py", "it is part of the repository");
    let input = serde_json::json!({"model": model, "prompts": PROMPTS, "tokens": 32});
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), &input).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "the reference ran");
    let told = String::from_utf8(out.stdout).unwrap();
    let reference: Vec<serde_json::Value> = serde_json::from_str(told.lines().last().unwrap()).unwrap();

    let engine = Engine::load(LoadOptions {
        context_length: Some(512),
        max_sequences: 2,
        max_queue_wait: Duration::from_secs(600),
        ..LoadOptions::new(model)
    })
    .unwrap();
    let mut equal = 0;
    for (prompt, reference) in PROMPTS.iter().zip(&reference) {
        let encoded = engine.encode_chat(&[ChatMessage { role: "user".into(), content: (*prompt).into() }]).unwrap();
        let tokens: Vec<u64> = encoded.tokens().iter().map(|t| u64::from(*t)).collect();
        assert_eq!(serde_json::json!(tokens), reference["tokens"], "tokens of {prompt:?}");
        let request = Generate { max_tokens: Some(32), sampling: Sampling::greedy(), ..Generate::new(encoded) };
        let mut stream = engine.submit(request).unwrap();
        let mut text = String::new();
        while let Some(event) = stream.blocking_next() {
            if let Event::Text { text: piece, .. } = event {
                text.push_str(&piece);
            }
        }
        let theirs = reference["text"].as_str().unwrap();
        if text == theirs {
            equal += 1;
            continue;
        }
        // Where they part, the two likeliest tokens must have been almost equally likely to llama.cpp.
        let common = text.chars().zip(theirs.chars()).take_while(|(a, b)| a == b).count();
        let mut seen = 0;
        let gap = reference["steps"].as_array().unwrap().iter().find_map(|step| {
            seen += step["text"].as_str().unwrap().chars().count();
            (seen > common).then(|| step["gap"].as_f64().unwrap())
        });
        println!("{prompt:?}: parts after {common} characters, gap {gap:?}\n  ours   {text:?}\n  theirs {theirs:?}");
        assert!(
            gap.is_some_and(|gap| gap < 0.5),
            "{prompt:?} parts from llama.cpp where the choice was clear: {gap:?}"
        );
    }
    assert!(equal >= 3, "{equal} of {} answers are the same to the letter", PROMPTS.len());
}
