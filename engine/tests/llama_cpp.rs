//! Greedy answers, tokens and perplexity of real models against llama.cpp on the same files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use spillway_engine::{ChatMessage, DeviceChoice, Engine, Event, Generate, LoadOptions, Prompt, Sampling, TokenStream};

const PROMPTS: [&str; 20] = [
    "The capital of France is",
    "Once upon a time there was a small village",
    "One, two, three, four,",
    "A proxy server is a program that",
    "Der Kaffee ☕ in der Straße schmeckt",
    "fn main() {\n    println!(\"hi\");\n}\n\n// What does this print?\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "The three laws of thermodynamics are",
    "Question: How many legs has a spider?\nAnswer:",
    "La tour Eiffel se trouve à",
    "My favourite recipe for bread begins with",
    "In the year 1492, Christopher Columbus",
    "The quick brown fox",
    "Water boils at a temperature of",
    "{\"name\": \"Alice\", \"age\": 30, \"city\":",
    "Dear Sir or Madam,\n\nI am writing to",
    "The sun is a star at the centre of",
    "SELECT name FROM users WHERE",
    "To be, or not to be, that is",
    "人工智能是",
];

const CHATS: [&str; 6] = [
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

fn smollm2() -> PathBuf {
    needed("SPILLWAY_TEST_MODEL", "models/smollm2-135m-instruct-q4_1.gguf", "`make model` fetches it")
}

fn gemma3() -> PathBuf {
    needed("SPILLWAY_TEST_GEMMA", "models/gemma-3-270m-q4_k_m.gguf", "`scripts/test-models.sh gemma` fetches it")
}

/// Runs calls of llama.cpp.
fn judge(model: &Path, calls: &[Value]) -> Vec<Value> {
    let python = needed("SPILLWAY_TEST_PYTHON", ".cache/venv/bin/python", "`scripts/test-tools.sh python` installs it");
    let script = needed("SPILLWAY_TEST_JUDGE", "tests/python/llama_judge.py", "it is part of the repository");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), &json!({"model": model, "context": 1024, "calls": calls}))
        .unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "the judge ran");
    serde_json::from_str(String::from_utf8(out.stdout).unwrap().lines().last().unwrap()).unwrap()
}

fn load(model: &Path, sequences: u32) -> Engine {
    load_on(DeviceChoice::Cpu, model, sequences)
}

fn load_on(device: DeviceChoice, model: &Path, sequences: u32) -> Engine {
    Engine::load(LoadOptions {
        device,
        context_length: Some(512),
        max_sequences: sequences,
        max_queue_wait: Duration::from_secs(6000),
        stall_timeout: Duration::from_secs(600),
        ..LoadOptions::new(model)
    })
    .unwrap()
}

fn greedy(engine: &Engine, prompt: Prompt, tokens: u32) -> TokenStream {
    engine.submit(Generate { max_tokens: Some(tokens), sampling: Sampling::greedy(), ..Generate::new(prompt) }).unwrap()
}

fn read(stream: TokenStream) -> String {
    pieces(stream).concat()
}

/// Text events of an answer, each of whole tokens.
fn pieces(mut stream: TokenStream) -> Vec<String> {
    let mut pieces = Vec::new();
    while let Some(event) = stream.blocking_next() {
        match event {
            Event::Text { text, .. } => pieces.push(text),
            Event::Failed(e) => panic!("{e}"),
            _ => {}
        }
    }
    pieces
}

/// Continues all prompts greedily and compares tokens and texts with llama.cpp's. Where two texts diverge,
/// llama.cpp's log probabilities of the two best tokens must differ by less than `close`. At least `least` of the
/// texts are identical.
fn same_as_llama_cpp(model: &Path, least: usize, close: f64) {
    let calls: Vec<_> = PROMPTS
        .iter()
        .flat_map(|prompt| {
            let body =
                json!({"prompt": prompt, "n_predict": 32, "temperature": 0, "n_probs": 2, "cache_prompt": false});
            [
                json!(["/tokenize", {"content": prompt, "add_special": true, "parse_special": false}]),
                json!(["/completion", body]),
            ]
        })
        .collect();
    let answers = judge(model, &calls);
    let engine = load(model, 8);
    let mut streams = Vec::new();
    for (prompt, answers) in PROMPTS.iter().zip(answers.chunks(2)) {
        let encoded = engine.encode_text(prompt).unwrap();
        assert_eq!(json!(encoded.tokens()), answers[0]["tokens"], "tokens of {prompt:?}");
        streams.push(greedy(&engine, encoded, 32));
    }
    let mut equal = 0;
    for ((prompt, stream), answers) in PROMPTS.iter().zip(streams).zip(answers.chunks(2)) {
        let (text, theirs) = (read(stream), answers[1]["content"].as_str().unwrap());
        if text == theirs {
            equal += 1;
            continue;
        }
        let common = text.chars().zip(theirs.chars()).take_while(|(a, b)| a == b).count();
        let mut seen = 0;
        let gap = answers[1]["completion_probabilities"].as_array().unwrap().iter().find_map(|step| {
            seen += step["token"].as_str().unwrap().chars().count();
            let best = |n: usize| step["top_logprobs"][n]["logprob"].as_f64().unwrap();
            (seen > common).then(|| best(0) - best(1))
        });
        println!("{prompt:?}: parts after {common} characters, gap {gap:?}\n  ours   {text:?}\n  theirs {theirs:?}");
        assert!(
            gap.is_some_and(|gap| gap < close),
            "{prompt:?} parts from llama.cpp where the choice was clear: {gap:?}"
        );
    }
    println!("{equal} of {} answers are the same to the letter", PROMPTS.len());
    assert!(equal >= least, "{equal} of {} answers are the same to the letter", PROMPTS.len());
}

/// Where two executors diverge, the choice was close for llama.cpp too: they round alike and sum in other orders.
#[test]
fn the_processor_and_software_vulkan_write_the_same() {
    let prompts = &PROMPTS[..6];
    let write = |device| {
        let engine = load_on(device, &smollm2(), 6);
        let ask = |prompt: &&str| greedy(&engine, engine.encode_text(prompt).unwrap(), 16);
        prompts.iter().map(ask).collect::<Vec<_>>().into_iter().map(pieces).collect::<Vec<_>>()
    };
    let (cpu, vulkan) = (write(DeviceChoice::Cpu), write(DeviceChoice::Software));
    let mut calls = Vec::new();
    for ((prompt, cpu), vulkan) in prompts.iter().zip(&cpu).zip(&vulkan).filter(|((_, a), b)| a != b) {
        let common: String = cpu.iter().zip(vulkan).take_while(|(a, b)| a == b).map(|(a, _)| a.as_str()).collect();
        println!("{prompt:?}: part after {common:?}");
        let prompt = format!("{prompt}{common}");
        calls.push(json!(["/completion", {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": 2}]));
    }
    // The number of divergences is a matter of luck: sums in another order make four or five of them.
    assert!(calls.len() < prompts.len(), "{cpu:?}\n{vulkan:?}");
    for answer in judge(&smollm2(), &calls) {
        let best = |n: usize| answer["completion_probabilities"][0]["top_logprobs"][n]["logprob"].as_f64().unwrap();
        assert!(best(0) - best(1) < 0.3, "the choice was clear: {answer}");
    }
}

#[test]
fn smollm2_continues_texts_as_llama_cpp_does() {
    same_as_llama_cpp(&smollm2(), 6, 0.5);
}

#[test]
fn gemma3_continues_texts_as_llama_cpp_does() {
    // llama.cpp diverges from itself on 14 of these prompts without flash attention, at gaps of up to 0.6.
    // Without its repacked kernels it does so on 12. Activations of this model have outliers that 8 bits resolve badly.
    same_as_llama_cpp(&gemma3(), 4, 0.8);
}

#[test]
fn greedy_answers_to_chats_are_those_of_llama_cpp() {
    let model = needed("SPILLWAY_TEST_MODEL", "models/smollm2-135m-instruct-q4_1.gguf", "`make model` fetches it");
    let python = needed("SPILLWAY_TEST_PYTHON", ".cache/venv/bin/python", "`scripts/test-tools.sh python` installs it");
    let script = needed("SPILLWAY_TEST_REFERENCE", "tests/python/llama_reference.py", "it is part of the repository");
    let input = serde_json::json!({"model": model, "prompts": CHATS, "tokens": 32});
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

    let engine = load(&model, 2);
    let mut equal = 0;
    for (prompt, reference) in CHATS.iter().zip(&reference) {
        let encoded = engine.encode_chat(&[ChatMessage::new("user", *prompt)]).unwrap();
        let tokens: Vec<u64> = encoded.tokens().iter().map(|t| u64::from(*t)).collect();
        assert_eq!(serde_json::json!(tokens), reference["tokens"], "tokens of {prompt:?}");
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let request = Generate { max_tokens: Some(32), sampling, ..Generate::new(encoded) };
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
        // At a divergence the two likeliest tokens must have been almost equally likely to llama.cpp.
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
    assert!(equal >= 3, "{equal} of {} answers are the same to the letter", CHATS.len());
}
