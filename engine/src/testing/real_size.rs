//! Checks of a GPU on a model of real size: its logits and texts against the plain executor's, and its rates. `make
//! test-gpu` runs them; the model is made of random weights, so that no file has to travel to the GPU's machine.

#![allow(clippy::print_stdout, reason = "figures for people")]

use std::path::Path;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::gguf::Gguf;
use crate::artifact::{ModelFile, TensorType};
use crate::device::{self, DeviceChoice};
use crate::exec::gpu::Gpu;
use crate::exec::plain::Plain;
use crate::exec::{Batch, Executor, Row, Sizes};
use crate::model::{Decoder, DecoderShape};
use crate::{Engine, Event, Generate, LoadOptions, Prompt, Sampling};

/// Variable that names the device of the tests of the GPU's kernels: `gpu` for the best GPU; software Vulkan if unset.
const DEVICE: &str = "SPILLWAY_TEST_DEVICE";
/// Shape of SmolLM2-135M (its `config.json`): vocabulary, width, layers, heads, heads of keys, feed-forward.
const VOCABULARY: usize = 49_152;
const WIDTH: usize = 576;
const LAYERS: usize = 30;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const FEED_FORWARD: usize = 1536;
const HEAD_DIM: usize = WIDTH / HEADS;
const CONTEXT: usize = 2048;
/// Largest difference of a logit, as a part of the largest logit of its row. Through thirty layers of random weights, the
/// rounding of sums in another order grows to 0.015 on software Vulkan.
const TOLERANCE: f32 = 0.03;

/// Device of the tests of the GPU's kernels.
pub(crate) fn gpu_under_test() -> DeviceChoice {
    match std::env::var(DEVICE).as_deref() {
        Err(_) | Ok("software") => DeviceChoice::Software,
        // A GPU, or an error: only `LoadOptions` let the CPU replace one.
        Ok("gpu") => DeviceChoice::Auto,
        Ok(name) => DeviceChoice::Name(name.to_owned()),
    }
}

/// Name of the adapter under test. An engine asked for it by name cannot fall back to the CPU.
fn adapter() -> String {
    let found = device::find(&gpu_under_test()).unwrap();
    println!("{} ({}, {}, driver {})", found.name, found.kind, found.backend, found.driver);
    found.name
}

/// A model of SmolLM2's shape with the tensor types of the demo model's file, and random weights.
fn model() -> tempfile::NamedTempFile {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut file = Gguf::gentle();
    file.text("general.architecture", "llama");
    for (key, value) in [
        ("context_length", CONTEXT),
        ("embedding_length", WIDTH),
        ("block_count", LAYERS),
        ("feed_forward_length", FEED_FORWARD),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
    ] {
        file.number(&format!("llama.{key}"), value);
    }
    file.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    file.float("llama.rope.freq_base", 100_000.0);
    let mut tokens = super::byte_tokens();
    tokens.extend((tokens.len()..VOCABULARY - 1).map(|n| format!("word{n}")));
    tokens.push("<|im_end|>".to_owned());
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "smollm");
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.texts("tokenizer.ggml.merges", &[]);
    file.integers("tokenizer.ggml.token_type", &[vec![1; VOCABULARY - 1], vec![3]].concat());
    file.number("tokenizer.ggml.eos_token_id", VOCABULARY - 1);
    file.random("token_embd.weight", TensorType::Q8_0, &[WIDTH, VOCABULARY], &mut rng);
    file.random("output_norm.weight", TensorType::F32, &[WIDTH], &mut rng);
    for n in 0..LAYERS {
        for (name, columns, rows) in super::layer_matrices(WIDTH, HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, FEED_FORWARD) {
            file.random(&format!("blk.{n}.{name}.weight"), TensorType::Q4_1, &[columns, rows], &mut rng);
        }
        for name in ["attn_norm", "ffn_norm"] {
            file.random(&format!("blk.{n}.{name}.weight"), TensorType::F32, &[WIDTH], &mut rng);
        }
    }
    file.write()
}

/// A model on an executor.
struct Placed<E> {
    model: Decoder,
    executor: E,
}

impl<E: Executor> Placed<E> {
    fn new(file: &ModelFile, shape: &DecoderShape, sizes: &Sizes, mut executor: E) -> Self {
        let model = Decoder::load(shape, file, sizes, crate::WeightPrecision::File, &mut executor).unwrap();
        executor.ready().unwrap();
        Self { model, executor }
    }

    fn forward(&mut self, batch: &Batch) -> Vec<f32> {
        self.model.forward(&mut self.executor, batch).unwrap()
    }
}

/// Index and value of the largest logit, and its lead before the next.
fn likeliest(logits: &[f32]) -> (usize, f32) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_unstable_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    (order[0], logits[order[0]] - logits[order[1]])
}

#[test]
#[ignore = "half a minute on a GPU and minutes on software Vulkan: make test-gpu"]
fn a_model_of_real_size_answers_as_the_plain_executor_does() {
    adapter();
    let file = model();
    let file = ModelFile::open(file.path()).unwrap();
    let shape = DecoderShape::of(&file).unwrap();
    let sizes = shape.sizes(128, 1, 1 << 28);
    let mut plain = Placed::new(&file, &shape, &sizes, Plain::new(sizes));
    let opened = device::open(&gpu_under_test()).unwrap();
    let mut gpu = Placed::new(&file, &shape, &sizes, Gpu::new(opened, sizes, None, false).unwrap());
    let pages: Vec<u32> = (1..=u32::try_from(sizes.pages_per_slot()).unwrap()).collect();
    let batch = |rows: Vec<Row>| Batch {
        picks: vec![u32::try_from(rows.len() - 1).unwrap()],
        rows,
        pages: pages.clone(),
        types: vec![],
    };
    let row = |token: usize, position: usize| Row {
        token: u32::try_from(token).unwrap(),
        position: u32::try_from(position).unwrap(),
        slot: 0,
    };
    // A prompt in two chunks, then an answer: the plain executor's choices are read by both.
    let prompt = |from: usize, to: usize| (from..to).map(|n| row(n * 7919 % VOCABULARY, n)).collect();
    let (mut worst, mut same, mut sure) = (0.0f32, 0, 0);
    let mut next = batch(prompt(0, 33));
    for step in 0..24 {
        let (expected, found) = (plain.forward(&next), gpu.forward(&next));
        let most = expected.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let apart = expected.iter().zip(&found).fold(0.0f32, |apart, (e, f)| apart.max((e - f).abs()));
        assert!(most.is_finite() && apart <= most * TOLERANCE, "step {step}: {apart} apart, up to {most}");
        worst = worst.max(apart / most);
        let (token, lead) = likeliest(&expected);
        let chosen = likeliest(&found).0;
        // A lead that rounding can turn around says nothing.
        if lead > 2.0 * apart {
            assert_eq!(chosen, token, "step {step}: the next token");
            sure += 1;
        }
        same += usize::from(chosen == token);
        next = match step {
            0 => batch(prompt(33, 48)),
            _ => batch(vec![row(token, 47 + step)]),
        };
    }
    println!("logits: at most {:.3} % apart; next tokens: {same} of 24 the same, {sure} certain", 100.0 * worst);
    assert!(sure > 0, "no choice was certain, so no text was compared");
}

/// Answers of `tokens` tokens to `prompts`, together. Returns the tokens written and the times of the first token and
/// of the last.
fn answer(engine: &Engine, prompts: &[Prompt], tokens: u32) -> (u32, Duration, Duration) {
    let started = Instant::now();
    let streams: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            let sampling = Sampling { seed: Some(1), ..Sampling::default() };
            let request = Generate { max_tokens: Some(tokens), sampling, ..Generate::new(prompt.clone()) };
            let mut stream = engine.submit(request).unwrap();
            std::thread::spawn(move || {
                let mut first = None;
                while let Some(event) = stream.blocking_next() {
                    match event {
                        Event::Text { .. } => _ = first.get_or_insert_with(Instant::now),
                        Event::Finished(end) => return (end.completion_tokens, first),
                        Event::Failed(e) => panic!("{e}"),
                        _ => {}
                    }
                }
                panic!("the stream ended without an end");
            })
        })
        .collect();
    let ends: Vec<_> = streams.into_iter().map(|stream| stream.join().unwrap()).collect();
    let first = ends.iter().filter_map(|(_, first)| *first).min().unwrap_or(started);
    (ends.iter().map(|(written, _)| written).sum(), first.duration_since(started), started.elapsed())
}

/// Names of the measured results that a folder of pipelines holds.
fn chosen_kernels(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter_map(|file| std::fs::read_to_string(file).ok()).filter(|text| text.len() < 16).collect()
}

#[test]
#[ignore = "measures and prints: make test-gpu"]
#[allow(clippy::cast_precision_loss, reason = "byte counts as figures for people")]
fn rates_of_a_model_of_real_size() {
    let (device, file, cache) = (adapter(), model(), tempfile::tempdir().unwrap());
    let bytes = std::fs::metadata(file.path()).unwrap().len() as f64;
    let began = Instant::now();
    let engine = Engine::load(LoadOptions {
        device: DeviceChoice::Name(device),
        max_queue_wait: Duration::from_secs(600),
        stall_timeout: Duration::from_secs(60),
        cache_dir: Some(cache.path().to_owned()),
        ..LoadOptions::new(file.path())
    })
    .unwrap();
    let placement = engine.placement();
    println!(
        "loaded {:.0} MB in {:.2} s, {} MiB of device memory, kernels {:?}",
        bytes / 1e6,
        began.elapsed().as_secs_f64(),
        placement.memory_bytes >> 20,
        chosen_kernels(cache.path())
    );
    println!("set-up measured {:.0} tok/s, {:.1} GB/s of weights", placement.rate, placement.bandwidth / 1e9);
    let prompt = |tokens: u32, seed: u32| {
        let tokens = (0..tokens).map(|n| (n * 7919 + seed * 104_729) % 49_000).collect();
        engine.prompt(tokens).unwrap()
    };
    answer(&engine, &[prompt(16, 0)], 8);
    for round in 0..3 {
        let (written, first, all) = answer(&engine, &[prompt(16, 1 + round)], 256);
        let rate = f64::from(written - 1) / (all - first).as_secs_f64();
        println!("one sequence: {written} tokens, {rate:.1} tok/s, {:.1} GB/s of weights", rate * bytes / 1e9);
        let prompts: Vec<Prompt> = (0..16).map(|n| prompt(16, 100 + 16 * round + n)).collect();
        let (written, first, all) = answer(&engine, &prompts, 128);
        let rate = f64::from(written) / (all - first).as_secs_f64();
        println!("sixteen sequences: {written} tokens, {rate:.1} tok/s together");
        let (_, first, _) = answer(&engine, &[prompt(1800, 1000 + round)], 1);
        println!("a prompt of 1800 tokens: {:.2} s, {:.0} tok/s", first.as_secs_f64(), 1800.0 / first.as_secs_f64());
    }
}
