//! Reference file: sketches of the targets of a route, made by `spillway drift reference`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use spillway_statistics::drift::embedding::Clusters;

use super::pane::Pane;

/// Version of the form of the file, and of the hashes of words and texts in it.
pub(super) const VERSION: u32 = 2;
/// Longest file.
const MOST_BYTES: usize = 16 << 20;

/// Content of a reference file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceFile {
    /// Version of the form.
    pub version: u32,
    /// Route whose requests were sketched.
    pub route: String,
    /// Time at which the file was made, in Unix seconds.
    pub made: f64,
    /// Sketches by target.
    pub targets: BTreeMap<Box<str>, Pane>,
    /// Topics of prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topics: Option<Clusters>,
    /// Model of the embeddings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Box<str>>,
    /// Names of the tensors of calls that are followed.
    #[serde(default)]
    pub inputs: Vec<Box<str>>,
    /// Names of the tensors of answers that are followed.
    #[serde(default)]
    pub outputs: Vec<Box<str>>,
}

/// Fault of a reference file.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// The file is too long.
    #[error("it has more than {MOST_BYTES} bytes; make it with `spillway drift reference`")]
    TooLong,
    /// The content is no reference.
    #[error("it is no reference ({0}); make it with `spillway drift reference`")]
    Form(#[from] serde_json::Error),
    /// The content is of another version, or contradicts itself.
    #[error("it is of another version, or was changed by hand; make it with `spillway drift reference`")]
    Inconsistent,
    /// No request was sketched.
    #[error("it has no request; make it when the route has answered some")]
    Empty,
}

impl ReferenceFile {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, is no reference, or has no requests.
    pub fn open(path: &Path) -> Result<Self, ReferenceError> {
        let mut content = Vec::new();
        let most = u64::try_from(MOST_BYTES).unwrap_or(u64::MAX);
        File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut content)?;
        Self::read(&content)
    }

    /// Reads the content of a file.
    ///
    /// # Errors
    /// The content is no reference, or has no requests.
    pub fn read(content: &[u8]) -> Result<Self, ReferenceError> {
        if content.len() > MOST_BYTES {
            return Err(ReferenceError::TooLong);
        }
        let file: Self = serde_json::from_slice(content)?;
        let names = file.inputs.iter().chain(&file.outputs);
        let is_consistent = file.version == VERSION
            && file.targets.len() <= super::MAX_TARGETS
            && file.targets.values().all(Pane::is_consistent)
            && names.clone().count() <= 2 * super::MOST_TENSORS
            && names.into_iter().all(|name| name.len() <= super::MAX_NAME)
            && file.topics.as_ref().is_none_or(|topics| topics.clusters().len() <= super::TOPICS);
        if !is_consistent {
            return Err(ReferenceError::Inconsistent);
        }
        if file.targets.values().all(|pane| pane.rows == 0) {
            return Err(ReferenceError::Empty);
        }
        Ok(file)
    }

    /// Sketches of a target; of all targets together for one that the file does not have.
    pub fn pane_of(&self, target: &str) -> Pane {
        match self.targets.get(target) {
            Some(pane) => pane.clone(),
            None => self.targets.values().fold(Pane::default(), |mut all, pane| {
                all.merge(pane);
                all
            }),
        }
    }
}
