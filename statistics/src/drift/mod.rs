//! Drift: distances of a window from a reference, detectors on streams, agreement with labels, embeddings.
//!
//! A distance says how far, not whether by chance. With many rows every test of equality fires, so a threshold on a distance is
//! what to alert on; the chi-squared and Kolmogorov-Smirnov probabilities are for small windows.

pub mod agreement;
pub mod categories;
pub mod distance;
pub mod embedding;
pub mod stream;
