//! Architectures: which operations in which order. A file is checked against the shapes that its architecture wants
//! before anything is uploaded.

mod bert;
mod decoder;
mod shape;
mod target;

pub(crate) use bert::{Bert, Shape as BertShape};
pub(crate) use decoder::Decoder;
pub(crate) use shape::Shape;

use crate::artifact::ModelFile;
use crate::exec::{Executor, PAGE, Sizes};
use crate::{DeviceInfo, LoadError, LoadOptions, Task};

/// Tokens of prompt and answer together, where nobody says otherwise.
const DEFAULT_CONTEXT: u64 = 2048;
/// KV cache, where nobody says otherwise: four full contexts of the demo model.
const KV_BUDGET: usize = 192 << 20;
/// Rows of a step: parts of prompts and one row for each running answer.
pub(crate) const MAX_ROWS: usize = 64;

/// A model on a device, ready to run.
pub(crate) struct Loaded {
    pub(crate) model: Decoder,
    pub(crate) executor: Box<dyn Executor>,
    pub(crate) sizes: Sizes,
    pub(crate) device: DeviceInfo,
    pub(crate) context_length: u32,
    pub(crate) vocabulary: u32,
    pub(crate) memory: u64,
}

/// What is said of an architecture that is not run.
fn unknown(file: &ModelFile) -> LoadError {
    file.unsupported(format!(
        "its architecture is `{}`: this version runs {}",
        file.architecture().chars().take(80).flat_map(char::escape_debug).collect::<String>(),
        [&shape::DECODERS[..], &[ENCODER]].concat().join(", ")
    ))
}

/// The architecture of encoders.
const ENCODER: &str = "bert";

/// What a model is for.
pub(crate) fn task(file: &ModelFile) -> Task {
    match file.architecture() {
        ENCODER if file.has("cls.output.weight") => Task::Classify,
        ENCODER => Task::Embed,
        _ => Task::Generate,
    }
}

/// An encoder on a device, ready to run.
pub(crate) struct LoadedEncoder {
    pub(crate) model: Bert,
    pub(crate) executor: Box<dyn Executor>,
    pub(crate) shape: BertShape,
    pub(crate) sizes: Sizes,
    pub(crate) device: DeviceInfo,
    pub(crate) memory: u64,
}

/// Loads an encoder onto the device that is wanted.
pub(crate) fn load_encoder(file: &ModelFile, options: &LoadOptions) -> Result<LoadedEncoder, LoadError> {
    let mut shape = BertShape::of(file)?;
    shape.check(file)?;
    if let Some(context) = options.context_length {
        shape.context = shape.context.min(usize::try_from(context).unwrap_or(usize::MAX)).max(3);
    }
    let sizes = shape.sizes();
    allow(file, &sizes, shape.activation_bytes(), options)?;
    let target = target::load(file, sizes, options, |executor| Bert::load(&shape, file, &sizes, executor))?;
    let target::Target { model, executor, device } = target;
    let memory = executor.memory();
    Ok(LoadedEncoder { model, executor, shape, sizes, device, memory })
}

/// Checks that a file can be run, without a device.
pub(crate) fn check(file: &ModelFile) -> Result<(), LoadError> {
    match task(file) {
        Task::Generate => Shape::of(file)?.check(file),
        Task::Embed | Task::Classify => BertShape::of(file)?.check(file),
    }
}

/// Loads a file onto the device that is wanted.
pub(crate) fn load(file: &ModelFile, options: &LoadOptions) -> Result<Loaded, LoadError> {
    let shape = Shape::of(file)?;
    shape.check(file)?;
    let trained = u64::try_from(shape.context).unwrap_or(u64::MAX);
    let context = options.context_length.map_or(DEFAULT_CONTEXT, u64::from).min(trained).max(1);
    let context = usize::try_from(context).unwrap_or(usize::MAX);
    let slots = usize::try_from(options.max_sequences).unwrap_or(1).clamp(1, MAX_ROWS);
    let sizes = shape.sizes(context, slots, KV_BUDGET);
    allow(file, &sizes, shape.activation_bytes(&sizes), options)?;
    let target = target::load(file, sizes, options, |executor| Decoder::load(&shape, file, &sizes, executor))?;
    let target::Target { model, executor, device } = target;
    let memory = executor.memory();
    let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(Loaded {
        model,
        executor,
        sizes,
        device,
        context_length: narrow(context),
        vocabulary: narrow(shape.vocabulary),
        memory,
    })
}

/// Holds what the model will take against what it may, before any of it is taken.
fn allow(file: &ModelFile, sizes: &Sizes, activations: usize, options: &LoadOptions) -> Result<(), LoadError> {
    let Some(allowed) = options.memory else { return Ok(()) };
    let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let cache = wide(sizes.layers * sizes.pages * PAGE * sizes.kv_heads * sizes.head_dim * 4);
    let activations = wide(activations);
    let needed = file.bytes().saturating_add(cache).saturating_add(activations);
    if needed <= allowed {
        return Ok(());
    }
    let parts = format!("weights {}, KV cache {}, activations {}", file.bytes() >> 20, cache >> 20, activations >> 20);
    Err(LoadError::Memory { needed: needed.div_ceil(1 << 20), parts, allowed: allowed >> 20 })
}
