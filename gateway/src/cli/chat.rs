//! `spillway chat`: a conversation with a model in the terminal. Ctrl-C ends an answer, and at the prompt the program.

use std::borrow::Cow;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use spillway_config::Report;
use spillway_engine::{Busy, ChatMessage, Engine, EngineError, Event, Generate, LoadOptions, PromptError, Sampling};
use spillway_filter::Registry;

use super::{FAILED, NoConfig, WRONG, cache_dir, fail, find_config};
use crate::builtin::{ModelError, options};
use crate::load::read;

/// Longest wait for the first token of an answer: no other request waits.
const PATIENCE: Duration = Duration::from_secs(600);

/// Reason why a conversation cannot begin or go on.
#[derive(Debug, thiserror::Error)]
enum ChatError {
    /// No configuration was found.
    #[error(transparent)]
    NoConfig(#[from] NoConfig),
    /// The configuration has errors.
    #[error(transparent)]
    Config(#[from] Report),
    /// The argument names neither a file nor a configured model.
    #[error("there is no file and no model `{name}`; {} has {models}", .path.display())]
    UnknownModel { name: String, path: PathBuf, models: String },
    /// The configuration has no models.
    #[error("{} has no models", .0.display())]
    NoModels(PathBuf),
    /// The model cannot be loaded as configured.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The conversation cannot be encoded.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The engine refuses the request.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The terminal cannot be used.
    #[error(transparent)]
    Terminal(#[from] std::io::Error),
}

#[derive(Args)]
pub(super) struct ChatArguments {
    /// A GGUF file, or the name of a model of the configuration; its first model when left out.
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// The configuration; without it ./spillway.yaml, then /etc/spillway/spillway.yaml.
    #[arg(short, long, value_name = "FILE", env = "SPILLWAY_CONFIG")]
    config: Option<PathBuf>,
    /// System message: instructions before the conversation.
    #[arg(short, long, value_name = "TEXT")]
    system: Option<String>,
    /// 0 always takes the likeliest word; larger is more varied.
    #[arg(short, long, default_value_t = 0.7)]
    temperature: f32,
    /// For answers that can be repeated.
    #[arg(long)]
    seed: Option<u64>,
    /// Longest answer in tokens.
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<u32>,
}

/// Finds the model that the arguments name, with its options.
fn find(arguments: &ChatArguments, registry: &Registry) -> Result<LoadOptions, ChatError> {
    let named = arguments.model.as_deref();
    let is_model = |path: &&Path| path.is_file() || path.join("config.json").is_file();
    if let Some(file) = named.map(Path::new).filter(is_model) {
        return Ok(LoadOptions { cache_dir: cache_dir(), ..LoadOptions::new(file) });
    }
    let path = find_config(arguments.config.clone())?;
    let config = read(&path, registry, false)?.config;
    let model = match named {
        Some(name) => config.models.iter().find(|model| model.name == name).ok_or_else(|| {
            let names: Vec<_> = config.models.iter().map(|model| format!("`{}`", model.name)).collect();
            ChatError::UnknownModel { name: name.to_owned(), path, models: or_none(&names) }
        })?,
        None => config.models.first().ok_or(ChatError::NoModels(path))?,
    };
    Ok(options(model, cache_dir().as_deref())?)
}

fn or_none(names: &[String]) -> String {
    if names.is_empty() { "no models".to_owned() } else { names.join(", ") }
}

pub(super) fn run(arguments: &ChatArguments, registry: &Registry) -> ExitCode {
    let options = match find(arguments, registry) {
        Ok(options) => LoadOptions { max_sequences: 1, max_queue_wait: PATIENCE, ..options },
        Err(e) => return fail(WRONG, &e),
    };
    let name = options.source.display().to_string();
    let engine = match Engine::load(options) {
        Ok(engine) => engine,
        Err(e) => return fail(FAILED, &e),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(FAILED, &format!("the runtime cannot be started: {e}")),
    };
    let is_terminal = std::io::stdin().is_terminal();
    if is_terminal {
        let device = engine.placement().device;
        eprintln!("{name} on {} ({}).", device.name, device.kind);
        eprintln!("/clear begins again, Ctrl-C ends an answer, Ctrl-D the conversation.");
    }
    let ended = runtime.block_on(talk(&engine, arguments, is_terminal));
    // A thread may still wait for a line; it holds no resources.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(FAILED, &e),
    }
}

/// Reads the next line of the input; `None` at its end.
async fn line() -> std::io::Result<Option<String>> {
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|read| (read > 0).then_some(line))
    });
    read.await.map_err(std::io::Error::other)?
}

async fn talk(engine: &Engine, arguments: &ChatArguments, is_terminal: bool) -> Result<(), ChatError> {
    let begin = || -> Vec<ChatMessage> {
        let system = arguments.system.iter();
        system.map(|content| ChatMessage::new("system", content.clone())).collect()
    };
    let mut messages = begin();
    loop {
        if is_terminal {
            eprint!("> ");
        }
        let said = tokio::select! {
            said = line() => said?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(said) = said else { return Ok(()) };
        match said.trim() {
            "" => continue,
            "/clear" => {
                messages = begin();
                continue;
            }
            said => messages.push(ChatMessage::new("user", said)),
        }
        let prompt = match engine.encode_chat(&messages) {
            Ok(prompt) => prompt,
            Err(PromptError::TooLong { context, .. }) => {
                eprintln!(
                    "The conversation has no room for more in the context of {context} tokens: /clear begins again."
                );
                messages.pop();
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        let answer = answer(
            engine,
            Generate {
                max_tokens: arguments.max_tokens,
                sampling: Sampling { temperature: arguments.temperature, seed: arguments.seed, ..Sampling::default() },
                ..Generate::new(prompt)
            },
        )
        .await?;
        messages.push(ChatMessage::new("assistant", answer));
    }
}

/// Text of a model for a terminal: control characters other than line breaks and tabs are replaced, so that a model cannot
/// move the cursor, set the title or write to the clipboard.
pub(super) fn harmless(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(acts) { Cow::Owned(text.replace(acts, "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Prints an answer as it comes, until it ends or Ctrl-C ends it.
async fn answer(engine: &Engine, request: Generate) -> Result<String, ChatError> {
    let mut stream = engine.submit(request)?;
    let is_terminal = std::io::stdout().is_terminal();
    let mut whole = String::new();
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            _ = tokio::signal::ctrl_c() => None,
        };
        match event {
            Some(Event::Text { text, .. }) => {
                print!("{}", if is_terminal { harmless(&text) } else { Cow::Borrowed(&*text) });
                std::io::stdout().flush()?;
                whole.push_str(&text);
            }
            Some(Event::Failed(e)) => return Err(e.into()),
            Some(Event::Finished(_)) | None => {
                println!();
                return Ok(whole);
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_does_not_command_the_terminal() {
        for (text, shown) in [
            ("für\n\tall", "für\n\tall"),
            ("\u{1b}]0;title\u{7}", "\u{fffd}]0;title\u{fffd}"),
            ("\u{9b}2J\r", "\u{fffd}2J\u{fffd}"),
        ] {
            assert_eq!(harmless(text), shown);
        }
    }
}
