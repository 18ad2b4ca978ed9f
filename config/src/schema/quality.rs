//! `routes[].quality`: what is sampled, the reference, and the limits of drift.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, FilePath, Size, StatePath};

/// Watch over what callers ask and what each target answers. A sample of requests is looked at off the request path, and only
/// sketches of them are kept, and no text without `keepExamples`.
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
    /// Questions with known answers that the gateway itself asks each target of the route from time to time. None when left out.
    pub probes: Option<Probes>,
    /// Texts of some of these requests and their answers, kept to be read. None are kept when left out.
    pub keep_examples: Option<KeepExamples>,
}

impl Default for Quality {
    fn default() -> Self {
        Self {
            sample: 0.1,
            reference: QualityReference::Window(Duration::seconds(7 * 86_400)),
            drift: DriftLimits::default(),
            embedding: None,
            probes: None,
            keep_examples: None,
        }
    }
}

/// Texts of requests and answers that are kept, in the file `examples.db` of `state.quality.folder`, which only the gateway's user may
/// read. `GET /api/quality/examples` shows them to those with `admin.token`, and `DELETE` deletes them. Of a prompt the last text of
/// the user is kept, and of each text the first 4 KiB.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KeepExamples {
    /// Percent of the requests that are looked at (`sample`), above 0 and up to 100.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: f64,
    /// True to replace what looks like a card number, an account, an address of a person or machine, or a credential by its kind
    /// before a text is kept. Names and streets are not found.
    pub redact: bool,
    /// Age at which an example is deleted. At least one minute.
    pub retention: Duration,
    /// Most bytes of the texts of the route; the oldest give way.
    pub max_bytes: Size,
}

impl Default for KeepExamples {
    fn default() -> Self {
        Self { percent: 1.0, redact: true, retention: Duration::seconds(7 * 86_400), max_bytes: Size::mib(16) }
    }
}

/// Questions with known answers, asked of each target of the route, also of a rollout's candidate that gets no requests. They go
/// the way of requests but wait for nobody and count for no caller: a target without room, or whose servers are ejected or
/// drained, is not asked.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probes {
    /// File with a probe in each line, as JSON: `prompt` or `request`, and `expected` or `exact`. At most 64 probes.
    pub file: FilePath,
    /// Time from one round of all probes to the next; up to a tenth more or less, at random. At least one second.
    #[serde(default = "Probes::every")]
    pub every: Duration,
    /// Built-in model for embeddings by which answers are compared with what is `expected`; needed where a probe has that. A
    /// model that is not loaded is not loaded for it.
    #[serde(default)]
    pub embedding: Option<String>,
    /// Least similarity of an answer to what is `expected`: the cosine of their embeddings.
    #[serde(default = "Probes::min_similarity")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_similarity: f64,
    /// Longest time of one probe.
    #[serde(default = "Probes::timeout")]
    pub timeout: Duration,
    /// Most probes that are sent in an hour, to all targets of the route together.
    #[serde(default = "Probes::max_per_hour")]
    #[schemars(range(min = 1, max = 36_000))]
    pub max_per_hour: NonZeroU32,
    /// Most tokens of these probes in an hour, those of prompts and answers together.
    #[serde(default = "Probes::max_tokens_per_hour")]
    #[schemars(range(min = 1))]
    pub max_tokens_per_hour: NonZeroU32,
}

impl Probes {
    /// A provider's change is noticed within the hour at which it is announced, at some hundred calls a day for each probe.
    fn every() -> Duration {
        Duration::seconds(600)
    }

    /// Sentences of the same meaning have more by all-MiniLM-L6-v2.
    fn min_similarity() -> f64 {
        0.85
    }

    /// A short answer of a large model takes some seconds.
    fn timeout() -> Duration {
        Duration::seconds(60)
    }

    /// Ten probes at four targets, every ten minutes.
    fn max_per_hour() -> NonZeroU32 {
        NonZeroU32::MIN.saturating_add(239)
    }

    /// Some four hundred tokens for each of them.
    fn max_tokens_per_hour() -> NonZeroU32 {
        NonZeroU32::MIN.saturating_add(99_999)
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
