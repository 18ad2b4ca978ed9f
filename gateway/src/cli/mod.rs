//! Command line. Exit codes: 0 success, 1 a failure while running, 2 wrong usage or configuration; `rollout` and `upgrade` have
//! more.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is what a command line is for")]

mod admin;
mod batch;
mod chat;
mod check;
mod diff;
mod drift;
mod eval;
mod eval_set;
mod keys;
mod models;
mod rollout;
mod top;
mod upgrade;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use clap::{Parser, Subcommand};
use spillway_filter::Registry;

use self::admin::{AdminArguments, ClientError, segment};
use crate::handover::{self, Launch, Program};
use crate::identity::NewKey;
use crate::load::{file_states_as_read, read};
use crate::signals::Signals;
use crate::{server, telemetry};

/// Exit code of a failure while running.
const FAILED: u8 = 1;
/// Exit code of wrong usage or configuration.
const WRONG: u8 = 2;

/// Files that are tried as configuration if none is named.
const CONFIG_FILES: [&str; 2] = ["./spillway.yaml", "/etc/spillway/spillway.yaml"];

/// No configuration is named, and none exists at the usual paths.
#[derive(Debug, thiserror::Error)]
#[error("no configuration: name one with -c FILE or SPILLWAY_CONFIG, or write {}", CONFIG_FILES.join(" or "))]
struct NoConfig;

/// A programmable reverse proxy and inference gateway that answers from a model of its own when its backends are full.
#[derive(Parser)]
#[command(name = "spillway", version = version(), max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    Serve {
        /// The configuration; without it ./spillway.yaml, then /etc/spillway/spillway.yaml.
        #[arg(short, long, value_name = "FILE", env = "SPILLWAY_CONFIG")]
        config: Option<PathBuf>,
    },
    /// Validate configurations without running them.
    Check {
        /// The files; `-` reads standard input, whose paths are relative to the current folder.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Report missing files and unset variables as warnings.
        #[arg(long)]
        offline: bool,
        /// The form of what is found; `json`, `sarif` and `github` go to standard output alone.
        #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
        format: check::CheckFormat,
    },
    /// Show what an edited configuration would change in a running gateway, without applying it.
    Diff(diff::DiffArguments),
    /// Print the value of an expression for a request.
    Eval(eval::EvalArguments),
    /// Ask the questions of a file, and check their answers.
    EvalSet(eval_set::EvalSetArguments),
    /// Batches of requests.
    #[command(subcommand)]
    Batch(batch::BatchCommand),
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// API keys for the configuration.
    #[command(subcommand)]
    Key(KeyCommand),
    /// API keys that a running gateway makes, rotates and revokes.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Built-in models.
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// Talk to a model in the terminal.
    Chat(chat::ChatArguments),
    /// Watch the routes, endpoints and built-in models of a running gateway; `q` ends it.
    Top {
        #[command(flatten)]
        admin: AdminArguments,
        /// Seconds between two readings.
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
        interval: f64,
        /// Print one frame and end.
        #[arg(long)]
        once: bool,
    },
    /// Drift of what callers ask and targets answer, as a running gateway sees it.
    #[command(subcommand)]
    Drift(drift::DriftCommand),
    /// Drain an endpoint of a running gateway: it gets no new requests, and running ones finish.
    Drain {
        /// The backend's name.
        backend: String,
        /// IP:PORT, or the URL as configured for all addresses of a name.
        endpoint: String,
        /// Put it back.
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        admin: AdminArguments,
    },
    /// Watch and steer the rollouts of a running gateway.
    #[command(subcommand)]
    Rollout(rollout::RolloutCommand),
    /// Hand a running gateway over to a new process of the program as it is installed now, without a failed request.
    Upgrade(upgrade::UpgradeArguments),
    /// Print the version, and what this build lacks.
    Version,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make a key; print it and the digest that a configuration stores.
    New,
}

/// Version, and below it what this build was told to leave out.
fn version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let parts = [
            (cfg!(feature = "gpu"), "GPUs for built-in models"),
            (cfg!(feature = "kubernetes"), "discovery.kubernetes"),
            (cfg!(feature = "wasm"), "the filter wasm"),
        ];
        let lacking: Vec<_> = parts.iter().filter(|(is_there, _)| !is_there).map(|(_, part)| *part).collect();
        let version = env!("CARGO_PKG_VERSION");
        if lacking.is_empty() { version.to_owned() } else { format!("{version}\nwithout {}", lacking.join(", ")) }
    });
    &TEXT
}

/// Runs the command that the arguments name, with these filters.
pub fn run(registry: Registry) -> ExitCode {
    let registry = Arc::new(registry);
    match Arguments::parse().command {
        Command::Serve { config } => serve(config, registry),
        Command::Check { files, offline, format } => check::run(&files, &registry, offline, format),
        Command::Diff(arguments) => diff::run(&arguments, &registry),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::EvalSet(arguments) => eval_set::run(&arguments),
        Command::Batch(command) => batch::run(&command),
        Command::Schema => {
            let schema = spillway_config::json_schema(&*registry);
            println!("{}", serde_json::to_string_pretty(&schema).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Command::Key(KeyCommand::New) => match NewKey::generate() {
            Ok(key) => {
                println!("key:    {}\nsha256: {}", key.key, key.digest);
                eprintln!(
                    "Give the key to the caller; it is not stored anywhere. The digest goes into consumers[].keys[].sha256."
                );
                ExitCode::SUCCESS
            }
            Err(e) => fail(FAILED, &e),
        },
        Command::Keys(command) => keys::run(command),
        Command::Models(command) => models::run(command, &registry),
        Command::Chat(arguments) => chat::run(&arguments, &registry),
        Command::Top { admin, interval, once } => {
            let interval = std::time::Duration::from_secs_f64(interval.clamp(0.1, 3_600.0));
            client(top::run(&admin, interval, once))
        }
        Command::Drift(command) => client(drift::run(command)),
        Command::Drain { backend, endpoint, undo, admin } => client(drain(&admin, &backend, &endpoint, undo)),
        Command::Rollout(command) => rollout::run(command),
        Command::Upgrade(arguments) => upgrade::run(&arguments),
        Command::Version => {
            println!("spillway {}", version());
            ExitCode::SUCCESS
        }
    }
}

/// Runs a command that asks a running gateway.
fn client(work: impl Future<Output = Result<(), ClientError>>) -> ExitCode {
    block_on(async { work.await.map_or_else(|e| fail(FAILED, &e), |()| ExitCode::SUCCESS) })
}

/// Runs a command on a runtime of this thread.
fn block_on(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(e) => fail(FAILED, &format!("the runtime cannot be started: {e}")),
    }
}

async fn drain(admin: &AdminArguments, backend: &str, endpoint: &str, undo: bool) -> Result<(), ClientError> {
    let verb = if undo { "undrain" } else { "drain" };
    let path = format!("/api/backends/{}/endpoints/{}/{verb}", segment(backend), segment(endpoint));
    let answer = admin.post(&path).await?;
    let answer: serde_json::Value = admin.parse(&answer)?;
    for entry in answer.get("endpoints").and_then(|list| list.as_array()).into_iter().flatten() {
        let name = entry.get("endpoint").and_then(|name| name.as_str()).unwrap_or_default();
        let changed = entry.get("changed") == Some(&serde_json::Value::Bool(true));
        println!("{name}: {verb}ed{}", if changed { "" } else { " already" });
    }
    Ok(())
}

fn fail(code: u8, message: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{message}");
    ExitCode::from(code)
}

fn find_config(named: Option<PathBuf>) -> Result<PathBuf, NoConfig> {
    if let Some(path) = named {
        return Ok(path);
    }
    CONFIG_FILES.iter().map(PathBuf::from).find(|path| path.is_file()).ok_or(NoConfig)
}

/// Folder for compiled GPU pipelines of models, kept between runs.
fn cache_dir() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    folder("SPILLWAY_CACHE_DIR").or_else(|| {
        folder("XDG_CACHE_HOME")
            .or_else(|| folder("HOME").map(|home| home.join(".cache")))
            .map(|cache| cache.join("spillway"))
    })
}

fn serve(config: Option<PathBuf>, registry: Arc<Registry>) -> ExitCode {
    // Before anything else opens a descriptor.
    let program = Program::running();
    let (inherited, predecessor) = match handover::inherit() {
        Ok(inherited) => inherited,
        Err(e) => return fail(FAILED, &e),
    };
    let launch = Launch { program, inherited: Arc::new(inherited), predecessor };
    let fail = |code: u8, message: &dyn std::fmt::Display| {
        launch.failed(message);
        fail(code, message)
    };
    let path = match find_config(config) {
        Ok(path) => path,
        Err(e) => return fail(WRONG, &e),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("proxy").build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(FAILED, &format!("the runtime cannot be started: {e}")),
    };
    // Installed first: an unhandled signal would end a process that is still reading its files.
    let mut signals = match runtime.block_on(async { Signals::install() }) {
        Ok(signals) => signals,
        Err(e) => return fail(FAILED, &format!("signals cannot be handled: {e}")),
    };
    let began = SystemTime::now();
    let (file, filters) = (path.clone(), registry.clone());
    let reading = runtime.spawn_blocking(move || read(&file, &filters, false));
    let read = runtime.block_on(signals.unless_ended(reading));
    let loaded = match read {
        Ok(Ok(Ok(loaded))) => loaded,
        Ok(Ok(Err(report))) => return fail(WRONG, &report),
        Ok(Err(e)) => return fail(FAILED, &e),
        Err(signal) => return ended_before(signal, runtime),
    };
    let states = file_states_as_read(&loaded.files, began);
    match runtime.block_on(signals.unless_ended(server::judge(&loaded, &registry, false))) {
        Ok(Ok(_)) => {}
        Ok(Err(errors)) => return fail(WRONG, &errors.join("\n")),
        Err(signal) => return ended_before(signal, runtime),
    }
    crate::memory::give_back();
    let origins = loaded.origins.clone();
    eprint!("{}", loaded.warnings);
    let log = match telemetry::init_log(loaded.config.telemetry.logs.format) {
        Ok(log) => log,
        Err(e) => return fail(FAILED, &e),
    };
    raise_file_limit();
    let process = server::Process { signals, launch: &launch };
    let serving = server::serve(absolute(&path), loaded, states, registry, log.clone(), cache_dir(), process);
    let served = runtime.block_on(serving);
    // Tasks that still run after the drain do not keep the process.
    runtime.shutdown_background();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log.flush();
            fail(FAILED, &origins.redact(&e.to_string()))
        }
    }
}

/// Ends the process on a signal that came while the configuration was read, without waiting for the reader.
fn ended_before(signal: &str, runtime: tokio::runtime::Runtime) -> ExitCode {
    runtime.shutdown_background();
    eprintln!("{signal}: ended before the configuration was read");
    ExitCode::SUCCESS
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Raises the limit of file descriptors to the hard limit: each connection needs one, on both sides.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a pointer to a `rlimit` that lives until they return.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if !raised {
        tracing::debug!(event = "file_limit_not_raised");
    }
}
