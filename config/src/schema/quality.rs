//! `routes[].quality`: what is sampled, the reference, and the limits of drift.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, FilePath, StatePath};

/// Watch over what callers ask and what each target answers. A sample of requests is looked at off the request path, and only
/// sketches of them are kept, never a text.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Quality {
    /// Share of the requests that are looked at, above 0 and up to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sample: f64,
    /// Requests that the recent ones are compared with.
    pub reference: QualityReference,
    /// Distances from the reference that count as drift.
    pub drift: DriftLimits,
    /// Built-in model for embeddings by which the meaning of prompts is followed: their centre, and the shares of their
    /// topics. It works on at most ten prompts a second, only while it has nothing else to do.
    pub embedding: Option<String>,
}

impl Default for Quality {
    fn default() -> Self {
        Self {
            sample: 0.1,
            reference: QualityReference::Window(Duration::seconds(7 * 86_400)),
            drift: DriftLimits::default(),
            embedding: None,
        }
    }
}

/// Requests that the recent ones are compared with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum QualityReference {
    /// Requests of so long a time before, at the same target. The recent ones are those of the last 28th to 14th of it: six to
    /// twelve hours of `7d`.
    Window(Duration),
    /// Requests of a file that `spillway drift reference` wrote. The recent ones are those of the last one to two hours.
    File(FilePath),
    /// Requests of the last one to two hours at the other target with the largest weight, which is the stable version.
    Stable,
}

/// Distances from the reference that count as drift: the greatest difference of the distribution functions of a number
/// (Kolmogorov-Smirnov), the Jensen-Shannon distance of shares, the cosine distance of the centres of embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DriftLimits {
    /// For what callers ask.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub inputs: f64,
    /// For what targets answer.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub outputs: f64,
}

impl Default for DriftLimits {
    fn default() -> Self {
        Self { inputs: 0.2, outputs: 0.2 }
    }
}

/// Store of the sketches of `routes[].quality`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct QualityState {
    /// Folder with a file for each route; created when it does not exist.
    pub folder: StatePath,
}

impl Default for QualityState {
    fn default() -> Self {
        Self { folder: std::path::PathBuf::from("state/quality").into() }
    }
}
