//! Text from a model in twenty lines: `cargo run --release -p spillway-engine --example hello -- MODEL "Who are you?"`

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program to try things")]

use spillway_engine::{ChatMessage, Engine, Event, Generate, LoadOptions, Sampling};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (file, content) = (arguments.next().unwrap(), arguments.next().unwrap());
    let engine = Engine::load(LoadOptions::new(file))?;
    let prompt = engine.encode_chat(&[ChatMessage::new("user", content)])?;
    let sampling = Sampling { temperature: 0.7, ..Sampling::default() };
    let mut stream = engine.submit(Generate { max_tokens: Some(200), sampling, ..Generate::new(prompt) })?;
    while let Some(event) = stream.blocking_next() {
        match event {
            Event::Text { text, .. } => print!("{text}"),
            Event::Failed(error) => return Err(error.into()),
            _ => {}
        }
    }
    println!();
    Ok(())
}
