//! Built-in embedding model, over HTTP, compared with sentence-transformers in its own process, on the same files,
//! texts and number of threads.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::http;
use crate::process::{Process, free_port, named, wait_for};
use crate::spread;

/// Texts of a run.
const TEXTS: usize = 512;
/// Texts of a request, and of a batch of the peer.
const BATCH: usize = 32;
/// Concurrent requests.
const TOGETHER: usize = 4;

/// Makes the text of a number.
type MakeText = fn(usize) -> String;

/// Parameters of the comparison.
pub(crate) struct Comparison {
    pub(crate) rounds: usize,
    pub(crate) cores: usize,
    /// Model file, in the folder that sentence-transformers reads.
    pub(crate) model: PathBuf,
    pub(crate) unit: Option<String>,
    /// Python interpreter with sentence-transformers, or with ONNX Runtime.
    pub(crate) python: Option<PathBuf>,
    /// Model file of ONNX Runtime, of the same model.
    pub(crate) onnx: Option<PathBuf>,
    /// Weights in 8 bits.
    pub(crate) int8: bool,
}

/// The peer process, controlled line by line.
struct Peer {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    version: String,
}

impl Peer {
    fn start(python: &Path, model: &Path, onnx: Option<&Path>, cores: usize) -> Self {
        let mut command = Command::new(python);
        command
            .args(["scripts/embeddings_peer.py", "--threads", &cores.to_string(), "--batch", &BATCH.to_string()])
            .arg("--model")
            .arg(model);
        if let Some(onnx) = onnx {
            command.arg("--onnx").arg(onnx);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let version = lines.next().expect("the peer loads").unwrap();
        Self { child, lines, version }
    }

    /// Seconds for all texts, and the first embedding.
    fn embed(&mut self, texts: &[String]) -> (f64, Vec<f64>) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{}", serde_json::json!(texts)).unwrap();
        let line = self.lines.next().expect("an answer").unwrap();
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        (answer["seconds"].as_f64().unwrap(), numbers(&answer["first"]))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// Runs the scenario and prints the results.
pub(crate) fn run(Comparison { rounds, cores, model, unit, python, onnx, int8 }: &Comparison) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let port = free_port();
    let folder = std::env::temp_dir().join(format!("spillway-loadtest-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let model = longer(model.parent().unwrap(), &folder);
    let weights = if *int8 { "int8" } else { "file" };
    let config = folder.join("embeddings.yaml");
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:{port}\"}}]\nmodels: [{{name: m, source: \"{}\", device: cpu, cores: {cores}, weights: {weights}, maxQueueWait: 10m}}]\nroutes: [{{backendRefs: [{{model: m}}]}}]\n",
        model.display()
    );
    std::fs::write(&config, yaml).unwrap();
    let mut command = Command::new(named("SPILLWAY_BIN"));
    command.args(["serve", "-c"]).arg(&config);
    if let Some(unit) = unit {
        command.env("SPILLWAY_CPU_UNIT", unit);
    }
    let gateway = Process::start(&mut command);
    wait_for(port);
    let mut peer = python.as_ref().map(|python| Peer::start(python, &model, onnx.as_deref(), *cores));
    let unit = unit.as_deref().unwrap_or("the fastest unit");
    let version = peer.as_ref().map_or("no peer: --python names a Python with one", |p| &p.version);
    println!(
        "\ntexts per second, {rounds} rounds in turn, {cores} threads each, {unit}, weights: {weights}; {version}"
    );
    // What two engines that round may differ in.
    let alike = if *int8 || onnx.is_some() { 0.95 } else { 0.999 };
    let kinds: [(&str, usize, MakeText); 3] = [
        ("short texts (some 10 words)", TEXTS, |n| text(n, 10)),
        ("paragraphs (some 100 words)", TEXTS, |n| text(n, 100)),
        ("long texts (some 500 tokens)", TEXTS / 8, long_text),
    ];
    for (what, count, make) in kinds {
        let texts: Vec<String> = (0..count).map(make).collect();
        let (mut ours, mut theirs, mut least_alike) = (Vec::new(), Vec::new(), 1.0f64);
        for round in 0..=*rounds {
            let started = Instant::now();
            let first = runtime.block_on(embed(port, &texts));
            let took = started.elapsed().as_secs_f64();
            let other = peer.as_mut().map(|peer| peer.embed(&texts));
            if let Some((_, other)) = &other {
                let cosine: f64 = first.iter().zip(other).map(|(a, b)| a * b).sum();
                least_alike = least_alike.min(cosine);
                assert!(cosine > alike, "the two sides do not say the same: cosine {cosine}");
            }
            // The first round warms up.
            if round > 0 {
                ours.push(count as f64 / took);
                theirs.extend(other.map(|(took, _)| count as f64 / took));
            }
        }
        let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a / b).collect();
        let (a, least, most) = spread(&ours);
        print!("{what}: inside {a:.1} ({least:.1}..{most:.1})");
        if !theirs.is_empty() {
            let [(b, b_least, b_most), (ratio, least, most)] = [spread(&theirs), spread(&ratios)];
            print!(
                ", peer {b:.1} ({b_least:.1}..{b_most:.1}), ratio {ratio:.2} ({least:.2}..{most:.2}), \
                 cosine of at least {least_alike:.4}"
            );
        }
        println!();
    }
    println!("the gateway takes {:.0} MiB", gateway.resident());
    let _ = std::fs::remove_dir_all(folder);
}

/// The model's folder with a context of 512 tokens, the most that BERT's positions allow, in `folder`: that of MiniLM
/// says 256.
fn longer(model: &Path, folder: &Path) -> PathBuf {
    let model = std::path::absolute(model).unwrap();
    let longer = folder.join("model");
    std::fs::create_dir_all(&longer).unwrap();
    for entry in std::fs::read_dir(&model).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "sentence_bert_config.json" {
            let _ = std::fs::remove_file(longer.join(entry.file_name()));
            std::os::unix::fs::symlink(entry.path(), longer.join(entry.file_name())).unwrap();
        }
    }
    std::fs::write(longer.join("sentence_bert_config.json"), r#"{"max_seq_length": 512, "do_lower_case": false}"#)
        .unwrap();
    longer
}

/// Text of some 500 tokens: nearly each word of [`text`] is one.
fn long_text(n: usize) -> String {
    text(n, 1500).split(' ').take(480).collect::<Vec<_>>().join(" ")
}

/// Text of about `words` words, from half to one and a half times as many, because padding is costly.
fn text(n: usize, words: usize) -> String {
    const WORDS: [&str; 24] = [
        "gateway", "model", "the", "queue", "of", "answers", "when", "server", "is", "full", "and", "a", "request",
        "waits", "for", "its", "turn", "while", "tokens", "are", "written", "to", "another", "client",
    ];
    let count = words / 2 + (n * 7919) % (words + 1);
    (0..count.max(1)).map(|w| WORDS[(n * 31 + w * w * 7 + w * 13) % WORDS.len()]).collect::<Vec<_>>().join(" ")
}

/// Embeds all texts with concurrent requests. Returns the first embedding.
async fn embed(port: u16, texts: &[String]) -> Vec<f64> {
    let batches: Vec<_> = texts.chunks(BATCH).collect();
    let next = std::cell::Cell::new(0);
    let worker = async || {
        let mut first = None;
        loop {
            let n = next.replace(next.get() + 1);
            let Some(batch) = batches.get(n) else { return first };
            let answer = http::post(port, "/v1/embeddings", &serde_json::json!({"model": "m", "input": batch})).await;
            let vectors = answer["data"].as_array().unwrap_or_else(|| panic!("{answer}"));
            assert_eq!(vectors.len(), batch.len());
            if n == 0 {
                first = Some(numbers(&vectors[0]["embedding"]));
            }
        }
    };
    let found = futures::future::join_all((0..TOGETHER).map(|_| worker())).await;
    found.into_iter().flatten().next().unwrap()
}
