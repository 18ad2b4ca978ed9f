//! Built-in model compared with a llama.cpp server on the same file and number of threads, both over HTTP: single
//! answers, concurrent answers, long prompts; then memory, and the time from process start to first token.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::http;
use crate::process::{Process, free_port, named, wait_for};
use crate::spread;

/// Tokens of prompt and answer.
const CONTEXT: usize = 1536;
/// Words of a long prompt; a number has some four tokens.
const WORDS: usize = 250;

/// Parameters of the comparison.
pub(crate) struct Comparison {
    /// Rounds, in each of which both run once.
    pub(crate) rounds: usize,
    /// Threads of each side.
    pub(crate) cores: usize,
    /// Concurrent answers.
    pub(crate) together: usize,
    /// Device of the built-in model, as in the configuration of a model.
    pub(crate) device: String,
    /// Model files; the demo model if empty.
    pub(crate) models: Vec<PathBuf>,
    /// Vector unit of the built-in model; default: the fastest.
    pub(crate) unit: Option<String>,
    /// Path of a `llama-server`; default: that of the Python package.
    pub(crate) llama: Option<PathBuf>,
}

/// One of the compared servers.
#[derive(Clone, Copy)]
struct Side {
    port: u16,
    ours: bool,
    /// True if prompts are conversations, which a file without a chat template cannot take.
    chat: bool,
}

/// Runs the scenario and prints the results.
pub(crate) fn run(comparison: &Comparison) {
    let models =
        if comparison.models.is_empty() { vec![named("SPILLWAY_TEST_MODEL")] } else { comparison.models.clone() };
    models.iter().for_each(|model| compare(comparison, model));
}

fn compare(comparison: &Comparison, model: &Path) {
    let Comparison { rounds, cores, together, device, unit, .. } = comparison;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let chat = has_template(model);
    let (ours, theirs) = (Side { port: free_port(), ours: true, chat }, Side { port: free_port(), ours: false, chat });
    let folder = std::env::temp_dir().join(format!("spillway-loadtest-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let config = folder.join("engine.yaml");
    let cores_key = if device == "cpu" { format!(", cores: {cores}") } else { String::new() };
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:{}\"}}]\nmodels: [{{name: m, source: \"{}\", device: {device}{cores_key}, contextLength: {CONTEXT}, maxSequences: {together}, maxQueueWait: 10m}}]\nroutes: [{{backendRefs: [{{model: m}}]}}]\n",
        ours.port,
        std::path::absolute(model).unwrap().display()
    );
    std::fs::write(&config, yaml).unwrap();
    let mut command = Command::new(named("SPILLWAY_BIN"));
    command.args(["serve", "-c"]).arg(&config);
    if let Some(unit) = unit {
        command.env("SPILLWAY_CPU_UNIT", unit);
    }
    let mut start = || {
        let started = Instant::now();
        let gateway = Process::start(&mut command);
        wait_for(ours.port);
        let ready = started.elapsed().as_secs_f64();
        runtime.block_on(answer(ours, "Say hello.".into(), 1));
        (gateway, ready, started.elapsed().as_secs_f64())
    };
    // The first start may read the file from disk; later ones read the system's cache.
    let (cold, ..) = start();
    drop(cold);
    let mut starts: Vec<_> = (0..*rounds).map(|_| start()).map(|(_, ready, first)| (ready, first)).collect();
    let (gateway, ready, first) = start();
    starts.push((ready, first));
    let (ready, first): (Vec<_>, Vec<_>) = starts.into_iter().unzip();
    let llama = Process::start(&mut llama(comparison, model, theirs.port));
    wait_for(theirs.port);
    let name = model.file_name().unwrap_or_default().display();
    let unit = unit.as_deref().unwrap_or("the fastest unit");
    let place = if device == "cpu" { unit } else { device };
    println!("\n{name}: tokens per second over HTTP, {rounds} rounds in turn, {cores} threads each, {place}");
    for (what, together, words, tokens) in [
        ("one answer", 1, 0, 128),
        (&*format!("{together} answers together"), *together, 0, 64),
        ("a long prompt", 1, WORDS, 1),
    ] {
        let mut rates = [Vec::new(), Vec::new()];
        for round in 0..=*rounds {
            for (side, rates) in [ours, theirs].into_iter().zip(&mut rates) {
                let rate = runtime.block_on(answers(side, round * together, together, words, tokens));
                // The first round warms up.
                if round > 0 {
                    rates.push(rate);
                }
            }
        }
        let ratios: Vec<f64> = rates[0].iter().zip(&rates[1]).map(|(a, b)| a / b).collect();
        let [(a, a_least, a_most), (b, b_least, b_most)] = rates.map(|r| spread(&r));
        let (ratio, least, most) = spread(&ratios);
        println!(
            "{what}: inside {a:.1} ({a_least:.1}..{a_most:.1}), llama.cpp {b:.1} ({b_least:.1}..{b_most:.1}), ratio {ratio:.2} ({least:.2}..{most:.2})"
        );
    }
    let size = std::fs::metadata(model).map_or(0, |m| m.len()) >> 20;
    let [(ready, ..), (first, least, most)] = [spread(&ready), spread(&first)];
    println!(
        "file {size} MiB; the gateway takes {:.0} MiB, llama.cpp {:.0} MiB; from the start of the process ready after {ready:.2} s, first token after {first:.2} s ({least:.2}..{most:.2})",
        gateway.resident(),
        llama.resident(),
    );
    let _ = std::fs::remove_dir_all(folder);
}

/// True if the file has a chat template: the key appears in the header.
fn has_template(model: &Path) -> bool {
    const KEY: &[u8] = b"tokenizer.chat_template";
    let mut head = Vec::new();
    std::fs::File::open(model).unwrap().take(16 << 20).read_to_end(&mut head).unwrap();
    head.windows(KEY.len()).any(|bytes| bytes == KEY)
}

/// Command of llama.cpp's server for a model.
fn llama(Comparison { cores, together, llama, .. }: &Comparison, model: &Path, port: u16) -> Command {
    let (ctx, port) = ((CONTEXT * together).to_string(), port.to_string());
    let (together, cores) = (together.to_string(), cores.to_string());
    let mut command = if let Some(own) = llama {
        let mut command = Command::new(own);
        command.args(["--host", "127.0.0.1", "--ctx-size", &ctx, "--threads-batch", &cores]);
        command
    } else {
        let mut command = Command::new(named("SPILLWAY_TEST_PYTHON"));
        command.args(["scripts/llama_server.py", "--ctx", &ctx]);
        command
    };
    command.arg("--model").arg(model).args(["--port", &port, "--parallel", &together, "--threads", &cores]);
    command
}

/// Tokens per second: generated, or, for a long prompt, read.
async fn answers(side: Side, seed: usize, together: usize, words: usize, tokens: u32) -> f64 {
    let prompt = |n: usize| {
        // A different beginning each time, so that no prefix cache helps.
        let long = (0..words).map(|word| format!(" {}", (n * 7919 + word * 104_729) % 9973)).collect::<String>();
        format!("{n}: write a long story about the number {n}.{long}")
    };
    let started = Instant::now();
    let counts = futures::future::join_all((0..together).map(|n| answer(side, prompt(seed + n), tokens))).await;
    let of = |(read, written): (u64, u64)| if words > 0 { read } else { written };
    counts.into_iter().map(of).sum::<u64>() as f64 / started.elapsed().as_secs_f64()
}

/// Tokens read and generated of one answer.
async fn answer(side: Side, prompt: String, tokens: u32) -> (u64, u64) {
    let (path, mut body) = if side.chat {
        ("/v1/chat/completions", serde_json::json!({"messages": [{"role": "user", "content": prompt}]}))
    } else {
        ("/v1/completions", serde_json::json!({"prompt": prompt}))
    };
    (body["model"], body["temperature"], body["max_tokens"]) = ("m".into(), 0.into(), tokens.into());
    if !side.ours {
        // llama.cpp's own key: switches off its prefix cache.
        body["cache_prompt"] = false.into();
    }
    let answer = http::post(side.port, path, &body).await;
    let count = |key: &str| answer["usage"][key].as_u64().unwrap_or_else(|| panic!("{answer}"));
    let written = count("completion_tokens");
    assert!(
        2 * written >= u64::from(tokens),
        "an answer ended after {written} tokens, too early to be measured: {answer}"
    );
    (count("prompt_tokens"), written)
}
