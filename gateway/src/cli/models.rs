//! `spillway models`: lists the built-in models of a configuration, and inspects model files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use spillway_config::schema::Model;
use spillway_engine::{DeviceChoice, Engine, LoadOptions, Task};
use spillway_filter::Registry;

use super::{FAILED, WRONG, fail, find_config};
use crate::builtin::options;
use crate::load::read;

#[derive(Subcommand)]
pub(super) enum ModelsCommand {
    /// List the built-in models of a configuration.
    List {
        /// The configuration; without it ./spillway.yaml, then /etc/spillway/spillway.yaml.
        #[arg(short, long, value_name = "FILE", env = "SPILLWAY_CONFIG")]
        config: Option<PathBuf>,
    },
    /// Show what a model file holds and its memory need; load it, and show its device, the reason for it, and its speed.
    Inspect {
        /// A GGUF file, or model.safetensors with what belongs to it beside.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Where to load it: auto, cpu, software, a part of an adapter's name, or its index.
        #[arg(long, value_name = "DEVICE", default_value = "auto", conflicts_with = "no_load")]
        device: String,
        /// Load nothing: show only the device that would be used.
        #[arg(long)]
        no_load: bool,
    },
}

pub(super) fn run(command: ModelsCommand, registry: &Registry) -> ExitCode {
    match command {
        ModelsCommand::List { config } => list(config, registry),
        ModelsCommand::Inspect { file, device, no_load } => inspect(&file, &device, no_load),
    }
}

fn list(config: Option<PathBuf>, registry: &Registry) -> ExitCode {
    let loaded = match find_config(config).map(|path| read(&path, registry, false)) {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(report)) => return fail(WRONG, &report),
        Err(e) => return fail(WRONG, &e),
    };
    let models = &loaded.config.models;
    if models.is_empty() {
        println!("The configuration has no built-in models.");
        return ExitCode::SUCCESS;
    }
    let rows: Vec<_> = models.iter().map(row).collect();
    let heads = ["NAME", "ARCHITECTURE", "TYPE", "CONTEXT", "MEMORY", "KEPT WARM", "FILE"].map(str::to_owned);
    let width = |n: usize| rows.iter().chain([&heads]).filter_map(|row| row.get(n)).map(|c| c.chars().count()).max();
    let widths: Vec<_> = (0..heads.len()).map(|n| width(n).unwrap_or(0)).collect();
    for row in [&heads].into_iter().chain(&rows) {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
    ExitCode::SUCCESS
}

fn row(model: &Model) -> [String; 7] {
    let unknown = || "?".to_owned();
    // `read` has found the file to be valid; it may be gone since.
    let info = spillway_engine::inspect(&model.source).ok();
    let needs = options(model, None).ok().and_then(|options| spillway_engine::needs(&options).ok());
    [
        model.name.clone(),
        info.as_ref().map_or_else(unknown, |info| info.architecture.clone()),
        info.as_ref().map_or_else(unknown, |info| info.quantization.clone()),
        needs.as_ref().map_or_else(unknown, |needs| needs.context.to_string()),
        needs.map_or_else(unknown, |needs| mebibytes(needs.weights + needs.kv_cache + needs.activations)),
        if model.keep_warm { "yes" } else { "no" }.to_owned(),
        model.source.display().to_string(),
    ]
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

fn device(text: &str) -> DeviceChoice {
    match text {
        "auto" => DeviceChoice::Auto,
        "cpu" => DeviceChoice::Cpu,
        "software" => DeviceChoice::Software,
        text => text.parse().map_or_else(|_| DeviceChoice::Name(text.to_owned()), DeviceChoice::Index),
    }
}

/// Labels of a classifier that are shown; most have a handful, and some a thousand.
const SHOWN_LABELS: usize = 32;

fn inspect(file: &Path, wanted: &str, no_load: bool) -> ExitCode {
    let options = LoadOptions { device: device(wanted), ..LoadOptions::new(file) };
    let (info, needs) = match (spillway_engine::inspect(file), spillway_engine::needs(&options)) {
        (Ok(info), Ok(needs)) => (info, needs),
        (Err(e), _) | (_, Err(e)) => return fail(FAILED, &e),
    };
    let line = |name: &str, value: &dyn std::fmt::Display| println!("{name:<14}{value}");
    line("file", &file.display());
    line("architecture", &info.architecture);
    line("for", &info.task);
    if !info.labels.is_empty() {
        let labels: Vec<_> =
            info.labels.iter().take(SHOWN_LABELS).map(|label| label.escape_debug().to_string()).collect();
        let more = if info.labels.len() > SHOWN_LABELS { ", ..." } else { "" };
        line("labels", &(labels.join(", ") + more));
    }
    line("parameters", &millions(info.parameters));
    line("type", &info.quantization);
    line("tensors", &info.tensors);
    line("context", &format!("{} tokens, {} by default", info.context_length, needs.context));
    line("file size", &mebibytes(info.file_bytes));
    line(
        "memory",
        &format!(
            "{}: weights {}, KV cache {} for {} tokens, activations {}",
            mebibytes(needs.weights + needs.kv_cache + needs.activations),
            mebibytes(needs.weights),
            mebibytes(needs.kv_cache),
            needs.kv_tokens,
            mebibytes(needs.activations)
        ),
    );
    if no_load {
        match spillway_engine::device_for(&options.device) {
            Ok(device) => line("would take", &format!("{} ({}, {})", device.name, device.kind, device.driver)),
            Err(e) => return fail(FAILED, &e),
        }
        return ExitCode::SUCCESS;
    }
    let engine = match Engine::load(options) {
        Ok(engine) => engine,
        Err(e) => return fail(FAILED, &e),
    };
    let placement = engine.placement();
    let device = &placement.device;
    line("device", &format!("{} ({}, {})", device.name, device.kind, device.driver));
    line("taken for", &device.reason);
    line(
        "loaded in",
        &format!("{:.2} s, {}", engine.info().load_time.as_secs_f64(), mebibytes(placement.memory_bytes)),
    );
    let work = if engine.info().task == Task::Generate { "written by one sequence" } else { "read in a full step" };
    line("measured", &format!("{:.0} tokens a second {work}", placement.rate));
    line("", &format!("{:.1} GB of weights a second in a step of one token", placement.bandwidth / 1e9));
    ExitCode::SUCCESS
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn millions(count: u64) -> String {
    format!("{:.1} million", count as f64 / 1e6)
}
