//! Mathematics of rollouts that judge themselves, and of drift.
//!
//! Pure and deterministic: no input or output, no clock, no randomness. Every accumulator has bounded size, merges over
//! gateways and serialises.
//!
//! - [`rollout`]: plan, observations and verdict of a rollout, with one false-alarm rate over its metrics, looks and steps.
//! - `mean`, `share`, `quantile`, [`distance`]: the evidence about one metric, valid at every look.
//! - `units`: callers that repeat.
//! - [`sketch`]: values in bounded memory. [`compact`]: in two kilobytes, for many streams at once.
//! - [`drift`]: distances from a reference, detectors on streams, agreement with labels, embeddings.
//!
//! `docs/rollout-statistics.md` has the formulas side by side, and what simulations found.
#![forbid(unsafe_code)]

pub mod compact;
pub mod distance;
pub mod drift;
mod grid;
mod mean;
mod quantile;
pub mod rollout;
mod share;
pub mod sketch;
mod special;
mod threshold;
mod units;

pub use rollout::{Evidence, Figures, Finding, Judgement, Kind, Metric, Plan, Rollout, RolloutError, Verdict, Version};
pub use threshold::{Threshold, ThresholdError};
