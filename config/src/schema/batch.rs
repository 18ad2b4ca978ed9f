//! `batch`: files of requests that are answered when there is room.

use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, Size, StatePath};

/// Batches: files with a request on each line, which are answered with capacity that callers leave free. Callers use the API of
/// OpenAI, `/v1/files` and `/v1/batches`, which the gateway answers itself, before any route. A line takes the way of any
/// request of its caller, with the same limits, budgets and filters, on routes that say `batch: true`. A line never waits in a
/// queue, never spills, and gives its place back when a caller waits for one. Files and batches belong to the consumer who made
/// them.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Batch {
    /// Name of the listener that takes files and batches; every listener when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// Folder for files and results; created when it does not exist. Only the gateway's user may read it. Of several gateways that
    /// have the folder, one answers lines at a time.
    pub store: StatePath,
    /// Share of the free slots of an endpoint, or of a built-in model, that lines may have together; more than 0, at most 1. One
    /// free slot is left to callers, unless no caller is there.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_share: f64,
    /// Most lines that are answered at a time, those of all batches together. Each may take the memory of `maxLine` and `maxAnswer`.
    #[schemars(range(min = 1, max = 4096))]
    pub max_in_flight: NonZeroU32,
    /// Most lines of a batch.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_lines: NonZeroU32,
    /// Most bytes of a file that a caller sends. From 1KiB to 4GiB.
    pub max_file: Size,
    /// Most bytes of a line of a batch. From 1KiB to 64MiB.
    pub max_line: Size,
    /// Most bytes of the answer to a line; a longer one fails the line. From 1KiB to 64MiB.
    pub max_answer: Size,
    /// Most bytes of the files of one consumer.
    pub max_stored: Size,
    /// Most bytes of the files of all consumers.
    pub max_stored_by_all: Size,
    /// Most files of one consumer.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_files: NonZeroU32,
    /// Most files that are being sent at a time; one consumer may send a quarter of them, and one at least.
    #[schemars(range(min = 1, max = 1_000))]
    pub max_uploads: NonZeroU32,
    /// Most batches of one consumer that have not ended.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_batches: NonZeroU32,
    /// Longest time that a batch may ask for in `completion_window`. From 1s to 30d.
    pub max_window: Duration,
    /// Time for which files, and batches that have ended, are kept. From 1m to 365d.
    pub keep: Duration,
}

impl Default for Batch {
    fn default() -> Self {
        let number = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        Self {
            listener: None,
            store: PathBuf::from("state/batch").into(),
            max_share: 0.5,
            max_in_flight: number(64),
            max_lines: number(50_000),
            max_file: Size(200 << 20),
            max_line: Size(4 << 20),
            max_answer: Size(4 << 20),
            max_stored: Size(2 << 30),
            max_stored_by_all: Size(20 << 30),
            max_files: number(1_000),
            max_uploads: number(16),
            max_batches: number(100),
            max_window: Duration::seconds(24 * 3600),
            keep: Duration::seconds(30 * 24 * 3600),
        }
    }
}
