//! Balancing policies. Each picks among the endpoints of a tier from the inputs that it gets, so that a seeded simulation is
//! exact. A policy acquires no slot and holds no lock; the caller acquires the slot atomically and picks again if it lost
//! the race.

mod draw;
mod hash;
mod least;
mod round_robin;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use spillway_config::schema::PolicyName;

pub use self::hash::{Hash, hash_key};
pub use self::least::{LeastRequest, PeakEwma, ShortestQueue};
pub use self::round_robin::RoundRobin;
use super::Endpoint;

/// Inputs of a pick besides the endpoints.
pub struct PickContext<'a> {
    /// True if the endpoint at this index may be picked: available, with room, not tried before.
    pub eligible: &'a dyn Fn(usize, &Endpoint) -> bool,
    /// Affinity key of the request, made by [`hash_key`].
    pub key: Option<u64>,
    /// Time, as [`crate::clock::now_millis`] reads it.
    pub now: u64,
    /// Seed of this pick's random numbers.
    pub random: u64,
    /// Share of the endpoints, by weight, that are available; above 0.
    pub available: f64,
}

impl PickContext<'_> {
    /// The next random number (SplitMix64; Steele, Lea, Flood 2014).
    pub fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.random)
    }
}

/// The finaliser of SplitMix64: every bit of the input changes about half of those of the output.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// An index below `count`, which is above zero, from a random number (Lemire 2019; the bias is below `count / 2^64`).
#[allow(clippy::cast_possible_truncation, reason = "the product's upper half is below `count`")]
fn below(random: u64, count: usize) -> usize {
    ((u128::from(random) * count as u128) >> 64) as usize
}

/// Maps a random number to 0 up to, not including, 1: its upper 53 bits, which an `f64` holds exactly, divided by 2^53.
#[allow(clippy::cast_precision_loss, reason = "53 bits fit the mantissa")]
pub fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / 9_007_199_254_740_992.0
}

/// Picks among the endpoints of a tier.
pub trait Policy: Send + Sync {
    /// Index of an eligible endpoint, or `None` without one.
    fn pick(&self, endpoints: &[Arc<Endpoint>], cx: &mut PickContext<'_>) -> Option<usize>;
}

/// Policy of this name, prepared for these endpoints. `seed` keeps gateways that reload together from beginning with the
/// same endpoint. `stale_after` is the age in milliseconds from which on reports of a queue do not count.
pub fn policy(name: PolicyName, endpoints: &[Arc<Endpoint>], seed: u64, stale_after: u64) -> Box<dyn Policy> {
    match name {
        PolicyName::RoundRobin => Box::new(RoundRobin::new(endpoints, seed)),
        PolicyName::LeastRequest => Box::new(LeastRequest::new(endpoints)),
        PolicyName::PeakEwma => Box::new(PeakEwma::new(endpoints)),
        PolicyName::Hash => Box::new(Hash::new(endpoints)),
        PolicyName::QueueDepth => Box::new(ShortestQueue::new(endpoints, stale_after)),
    }
}
