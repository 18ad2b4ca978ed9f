//! In-process language models: model files, text, execution on a GPU or the CPU, and serving of several requests at
//! once. The crate knows tensors and tokens; no HTTP, no YAML, no async runtime. One thread for each loaded model
//! owns its device. Inputs are a model file and requests as [`Generate`]; tokens come back as a [`TokenStream`].

pub mod artifact;
mod device;
mod encoder;
mod engine;
mod error;
pub mod exec;
mod grammar;
mod info;
mod model;
mod options;
mod request;
mod runner;
mod sampling;
mod scheduler;
pub mod text;

pub use device::{DeviceChoice, DeviceInfo};
pub use engine::{Engine, check};
pub use error::{Busy, BusyReason, EngineError, GrammarError, LoadError, PromptError};
pub use exec::cpu::{Cores, CpuUnit};
pub use grammar::{CallSyntax, Grammar, Structure};
pub use info::{Embedding, EngineStats, ModelInfo, Placement, Scores, Scoring, Task};
pub use model::{ArtifactInfo, Needs, inspect};
pub use options::{CpuOptions, Hold, LoadOptions, WeightPrecision};
pub use request::{
    EmbedInput, Event, FinishReason, Finished, Generate, Prompt, TokenProbability, TokenStream, WrittenToken,
};
pub use sampling::Sampling;
pub use text::{ChatMessage, Conversation, Tool, ToolCall, ToolStyle};

/// Memory that a model file needs under these options. Opens no device.
pub fn needs(options: &LoadOptions) -> Result<Needs, LoadError> {
    model::needs(&artifact::ModelFile::open(&options.source)?, options)
}

/// Device that a load would choose, and the reason. Opens no device.
pub fn device_for(choice: &DeviceChoice) -> Result<DeviceInfo, LoadError> {
    model::device_for(choice)
}

#[cfg(test)]
mod testing;
