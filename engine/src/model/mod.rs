//! Model architectures: which operations in which order. A file is checked against the shapes of its architecture
//! before anything is uploaded.

mod bert;
mod decoder;
mod inspect;
mod shape;
mod target;
mod weights;

pub(crate) use bert::{Bert, BertShape};
pub(crate) use decoder::Decoder;
pub use inspect::{ArtifactInfo, inspect};
pub(crate) use shape::{DecoderShape, vocabulary};
pub(crate) use weights::quantization;

use crate::artifact::{MetaValue, ModelFile};
use crate::exec::{Executor, PAGE, Sizes};
use crate::{DeviceInfo, LoadError, LoadOptions, Scoring, Task, WeightPrecision};

/// Default of tokens of prompt and answer together.
const DEFAULT_CONTEXT: u64 = 2048;
/// Default KV cache in bytes: half the file's size, so that a small model stays small, and at least room for a few
/// short conversations. One full context fits in any case.
fn default_cache(file: &ModelFile) -> u64 {
    (file.bytes() / 2).max(16 << 20)
}
/// Most rows of a step: prompt tokens and one row for each decoding sequence. A GPU wants many at once; the scheduler
/// limits the rows of a step by their measured cost.
pub(crate) const MAX_ROWS: usize = 256;
/// Most sequences at a time.
const MAX_SEQUENCES: usize = 64;

/// A decoder on a device, ready to run.
pub(crate) struct Loaded {
    pub(crate) model: Decoder,
    pub(crate) executor: Box<dyn Executor>,
    pub(crate) sizes: Sizes,
    pub(crate) device: DeviceInfo,
    pub(crate) context_length: u32,
    pub(crate) vocabulary: u32,
    pub(crate) memory: u64,
}

/// Error for an unsupported architecture.
fn unknown(file: &ModelFile) -> LoadError {
    file.unsupported(format!(
        "the architecture is `{}`; this version runs {}: use a model of one of these",
        file.architecture().chars().take(80).flat_map(char::escape_debug).collect::<String>(),
        [&shape::DECODERS[..], &[ENCODER]].concat().join(", ")
    ))
}

/// Device that a load would choose, and the reason. Opens no device.
pub(crate) fn device_for(choice: &crate::DeviceChoice) -> Result<DeviceInfo, LoadError> {
    target::find(choice)
}

/// Architecture name of encoders.
const ENCODER: &str = "bert";

/// Task of a model file.
pub(crate) fn task(file: &ModelFile) -> Task {
    match file.architecture() {
        ENCODER if file.has("cls.output.weight") => Task::Classify,
        ENCODER => Task::Embed,
        _ => Task::Generate,
    }
}

/// Labels of a classifier, and the way to their probabilities.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Head {
    pub(crate) labels: Vec<String>,
    pub(crate) scoring: Option<Scoring>,
}

/// Reads the head of a classifier; without labels for other models.
pub(crate) fn head(file: &ModelFile) -> Result<Head, LoadError> {
    if task(file) != Task::Classify {
        return Ok(Head { labels: Vec::new(), scoring: None });
    }
    let count = file.rows("cls.output.weight").unwrap_or(0);
    let labels = match file.meta("bert.classifier.output_labels") {
        Some(MetaValue::Strings(labels)) if labels.len() == count => labels.clone(),
        Some(MetaValue::Strings(labels)) if !labels.is_empty() => {
            let named = labels.len();
            return Err(file.corrupt(format!("the file names {named} labels; the classifier head has {count}")));
        }
        _ => (0..count).map(|n| format!("LABEL_{n}")).collect(),
    };
    let problem = match file.meta("bert.problem_type") {
        Some(MetaValue::String(problem)) => problem.as_str(),
        _ => "",
    };
    let scoring = match problem {
        "regression" if count > 1 => {
            let why = "its `problem_type` is `regression` with several values; this version runs classifiers \
                       (`single_label_classification`, `multi_label_classification`) and rankings by one value";
            return Err(file.unsupported(why));
        }
        "regression" => None,
        "multi_label_classification" => Some(Scoring::Sigmoid),
        // Softmax over one label is always 1.
        _ if count == 1 => Some(Scoring::Sigmoid),
        _ => Some(Scoring::Softmax),
    };
    Ok(Head { labels, scoring })
}

/// An encoder on a device, ready to run.
pub(crate) struct LoadedEncoder {
    pub(crate) model: Bert,
    pub(crate) executor: Box<dyn Executor>,
    pub(crate) shape: BertShape,
    pub(crate) device: DeviceInfo,
    pub(crate) memory: u64,
}

/// Shape of an encoder with the requested context, which has room for two texts and their special tokens.
fn encoder_shape(file: &ModelFile, options: &LoadOptions) -> Result<BertShape, LoadError> {
    let mut shape = BertShape::of(file)?;
    shape.check(file)?;
    if let Some(context) = options.context_length {
        shape.limit_context(context);
    }
    Ok(shape)
}

/// Loads an encoder onto the requested device.
pub(crate) fn load_encoder(file: &ModelFile, options: &LoadOptions) -> Result<LoadedEncoder, LoadError> {
    let shape = encoder_shape(file, options)?;
    let sizes = shape.sizes();
    let needs = encoder_needs(file, &shape, &sizes, options.weights);
    check_needed(needs, options)?;
    let target =
        target::load(file, sizes, options, |executor| Bert::load(&shape, file, &sizes, options.weights, executor))?;
    let target::ModelOnDevice { model, executor, device } = target;
    let memory = executor.memory();
    check_taken(memory, needs, options)?;
    Ok(LoadedEncoder { model, executor, shape, device, memory })
}

/// Checks, without a device, that a file can be run under these options and fits their memory.
pub(crate) fn check_fit(file: &ModelFile, options: &LoadOptions) -> Result<(), LoadError> {
    check(file)?;
    check_needed(needs(file, options)?, options)
}

/// Rows of an encoder's token table.
pub(crate) fn encoder_vocabulary(file: &ModelFile) -> Result<usize, LoadError> {
    Ok(BertShape::of(file)?.vocabulary)
}

/// Checks, without a device, that a file can be run.
pub(crate) fn check(file: &ModelFile) -> Result<(), LoadError> {
    match task(file) {
        Task::Generate => DecoderShape::of(file)?.check(file),
        Task::Embed | Task::Classify => {
            head(file)?;
            BertShape::of(file)?.check(file)
        }
    }
}

/// Device memory that a model needs, in bytes, and the tokens that follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Bytes of the weights.
    pub weights: u64,
    /// Bytes of the KV cache.
    pub kv_cache: u64,
    /// Bytes of the activations of a step.
    pub activations: u64,
    /// Tokens of prompt and answer together.
    pub context: u64,
    /// Capacity of the KV cache in tokens, for all sequences.
    pub kv_tokens: u64,
}

/// Memory of an encoder, which keeps nothing between steps.
fn encoder_needs(file: &ModelFile, shape: &BertShape, sizes: &Sizes, precision: WeightPrecision) -> Needs {
    let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let activations = wide(shape.activation_bytes());
    Needs {
        weights: weights::bytes(file, precision),
        kv_cache: 0,
        activations,
        context: wide(sizes.context),
        kv_tokens: 0,
    }
}

/// Memory that a file needs under these options, computed without a device.
pub(crate) fn needs(file: &ModelFile, options: &LoadOptions) -> Result<Needs, LoadError> {
    if task(file) != Task::Generate {
        let shape = encoder_shape(file, options)?;
        return Ok(encoder_needs(file, &shape, &shape.sizes(), options.weights));
    }
    let shape = DecoderShape::of(file)?;
    shape.check(file)?;
    let sizes = sizes(file, &shape, options)?;
    let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    Ok(Needs {
        weights: weights::bytes(file, options.weights),
        kv_cache: cache_bytes(&sizes),
        activations: wide(shape.activation_bytes(&sizes)),
        context: wide(sizes.context),
        kv_tokens: wide((sizes.pages - 1) * PAGE),
    })
}

/// Sizes of a decoder under these options.
fn sizes(file: &ModelFile, shape: &DecoderShape, options: &LoadOptions) -> Result<Sizes, LoadError> {
    let trained = u64::try_from(shape.context).unwrap_or(u64::MAX);
    let context = options.context_length.map_or(DEFAULT_CONTEXT, u64::from).min(trained).max(1);
    let context = usize::try_from(context).unwrap_or(usize::MAX);
    let slots = usize::try_from(options.max_sequences).unwrap_or(1).clamp(1, MAX_SEQUENCES);
    let budget = options.kv_cache.unwrap_or_else(|| default_cache(file));
    let sizes = shape.sizes(context, slots, usize::try_from(budget).unwrap_or(usize::MAX));
    let needed = cache_bytes(&sizes);
    if options.kv_cache.is_some() && needed > budget {
        return Err(LoadError::Cache { context, needed: needed.div_ceil(1 << 20), allowed: budget >> 20 });
    }
    Ok(sizes)
}

/// Loads a decoder onto the requested device.
pub(crate) fn load(file: &ModelFile, options: &LoadOptions) -> Result<Loaded, LoadError> {
    let shape = DecoderShape::of(file)?;
    let needs = needs(file, options)?;
    let sizes = sizes(file, &shape, options)?;
    check_needed(needs, options)?;
    let target =
        target::load(file, sizes, options, |executor| Decoder::load(&shape, file, &sizes, options.weights, executor))?;
    let target::ModelOnDevice { model, executor, device } = target;
    let memory = executor.memory();
    check_taken(memory, needs, options)?;
    let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(Loaded {
        model,
        executor,
        sizes,
        device,
        context_length: narrow(sizes.context),
        vocabulary: narrow(shape.vocabulary),
        memory,
    })
}

/// Bytes of the KV cache: a key and a value in f16 for each layer, head and position. Page 0, which belongs to no
/// sequence, is not counted.
fn cache_bytes(sizes: &Sizes) -> u64 {
    let places = (sizes.pages - 1) * PAGE;
    u64::try_from(sizes.layers * places * sizes.kv_heads * sizes.head_dim * 4).unwrap_or(u64::MAX)
}

/// Checks the memory that was taken against the limit: an executor that repacks weights can take more than the file
/// has.
fn check_taken(memory: u64, needs: Needs, options: &LoadOptions) -> Result<(), LoadError> {
    match options.memory {
        Some(allowed) if memory > allowed => Err(LoadError::Memory {
            needed: memory.div_ceil(1 << 20),
            parts: format!("{}, as this device keeps them", parts(needs)),
            allowed: allowed >> 20,
        }),
        _ => Ok(()),
    }
}

fn parts(needs: Needs) -> String {
    let Needs { weights, kv_cache, activations, .. } = needs;
    format!("weights {}, KV cache {}, activations {}", weights >> 20, kv_cache >> 20, activations >> 20)
}

/// Checks the memory that the model will need against the limit, before any of it is taken.
fn check_needed(needs: Needs, options: &LoadOptions) -> Result<(), LoadError> {
    let Some(allowed) = options.memory else { return Ok(()) };
    let Needs { weights, kv_cache, activations, .. } = needs;
    let needed = weights.saturating_add(kv_cache).saturating_add(activations);
    if needed <= allowed {
        return Ok(());
    }
    Err(LoadError::Memory { needed: needed.div_ceil(1 << 20), parts: parts(needs), allowed: allowed >> 20 })
}
