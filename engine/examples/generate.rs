//! Loads a model, answers a prompt in some sequences at once, prints the first answer and the measured rates.
//!
//! `cargo run --release -p spillway-engine --example generate -- MODEL [SEQUENCES] [TOKENS] [PROMPT] [software |
//! CORES UNIT]`
//!
//! CORES and UNIT (`AVX2`) choose threads and vector unit of the CPU, in place of a GPU; `software` is software
//! Vulkan.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::cast_precision_loss, reason = "a program to try things")]

use std::time::{Duration, Instant};

use spillway_engine::{
    ChatMessage, CpuOptions, CpuUnit, DeviceChoice, Engine, Event, Generate, LoadOptions, Sampling, TokenStream,
    WeightPrecision,
};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let source = arguments.next().unwrap_or_else(|| "models/smollm2-135m-instruct-q4_1.gguf".into());
    let sequences: u32 = arguments.next().map_or(1, |n| n.parse().unwrap());
    let tokens: u32 = arguments.next().map_or(64, |n| n.parse().unwrap());
    let prompt = arguments.next().unwrap_or_else(|| "What is the capital of France? Answer in one sentence.".into());
    let place = arguments.next();
    let software = place.as_deref() == Some("software");
    let cores = place.filter(|_| !software).map(|n| n.parse().unwrap());
    let unit = arguments.next().map(|name| CpuUnit::named(&name).unwrap());
    let engine = Engine::load(LoadOptions {
        name: "model".into(),
        source: source.into(),
        weights: WeightPrecision::File,
        device: match cores {
            _ if software => DeviceChoice::Software,
            Some(_) => DeviceChoice::Cpu,
            None => DeviceChoice::Auto,
        },
        cpu: CpuOptions { cores, unit },
        context_length: None,
        max_sequences: sequences.max(1),
        max_queue: 64,
        max_queue_wait: Duration::from_secs(600),
        stall_timeout: Duration::from_secs(10),
        memory: None,
        kv_cache: None,
        token_pause: Duration::from_millis(50),
        cache_dir: None,
    })
    .unwrap_or_else(|e| {
        println!("{e}");
        std::process::exit(1)
    });
    let (info, placement) = (engine.info(), engine.placement());
    println!(
        "{} on {} in {:.2} s, {} MiB",
        info.architecture,
        placement.device.name,
        info.load_time.as_secs_f64(),
        placement.memory_bytes >> 20
    );
    let prompt = if engine.has_template() {
        engine.encode_chat(&[ChatMessage::new("user", prompt)]).unwrap()
    } else {
        engine.encode_text(&prompt).unwrap()
    };
    let started = Instant::now();
    // Each has a consumer of its own: an answer that nobody reads is parked.
    let readers: Vec<_> = (0..sequences)
        .map(|n| {
            let request =
                Generate { max_tokens: Some(tokens), sampling: Sampling::greedy(), ..Generate::new(prompt.clone()) };
            let stream = engine.submit(request).unwrap();
            std::thread::spawn(move || read(stream, n == 0))
        })
        .collect();
    let written: u32 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
    println!(
        "{sequences} sequences: {written} tokens, {:.1} tok/s",
        f64::from(written) / started.elapsed().as_secs_f64()
    );
}

/// Reads an answer to its end and prints it if requested. Returns the number of its tokens.
fn read(mut stream: TokenStream, print: bool) -> u32 {
    while let Some(event) = stream.blocking_next() {
        match event {
            Event::Text { text, .. } if print => print!("{text}"),
            Event::Finished(f) => {
                let prefill = f64::from(f.prompt_tokens) / f.prefill.as_secs_f64();
                let decode = f64::from(f.completion_tokens) / f.decode.as_secs_f64();
                if print {
                    println!(
                        "\nprompt {} at {prefill:.1} tok/s, answer {} at {decode:.1} tok/s",
                        f.prompt_tokens, f.completion_tokens
                    );
                }
                return f.completion_tokens;
            }
            Event::Failed(e) => println!("{e}"),
            _ => {}
        }
    }
    0
}
