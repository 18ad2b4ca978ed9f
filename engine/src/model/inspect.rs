//! Inspection of a model file without loading it.

use std::path::Path;

use crate::artifact::ModelFile;
use crate::{LoadError, Scoring, Task};

/// Facts of a model file, read without a device.
#[derive(Debug, Clone)]
pub struct ArtifactInfo {
    /// `general.architecture`.
    pub architecture: String,
    /// Task of the model.
    pub task: Task,
    /// Names of a classifier's labels, in the order of its scores.
    pub labels: Vec<String>,
    /// Way to a classifier's probabilities, as [`ModelInfo::scoring`](crate::ModelInfo::scoring).
    pub scoring: Option<Scoring>,
    /// Number of weights.
    pub parameters: u64,
    /// Most frequent type of the matrices.
    pub quantization: String,
    /// `context_length` of the file.
    pub context_length: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Size of the file in bytes.
    pub file_bytes: u64,
}

/// Reads header and tensor table of a file and checks that this engine can run it.
pub fn inspect(path: &Path) -> Result<ArtifactInfo, LoadError> {
    let file = ModelFile::open(path)?;
    super::check(&file)?;
    let head = super::head(&file)?;
    Ok(ArtifactInfo {
        architecture: file.architecture().to_owned(),
        task: super::task(&file),
        labels: head.labels,
        scoring: head.scoring,
        parameters: file.parameters(),
        quantization: file.quantization(),
        context_length: file.number("context_length").unwrap_or(0),
        tensors: file.names().count(),
        file_bytes: file.bytes(),
    })
}
