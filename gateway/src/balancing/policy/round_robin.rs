//! Smooth weighted round robin without a lock: the order of a whole cycle is computed when the endpoints are known, and a
//! counter walks through it.

use std::cmp::Ordering as Order;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{PickContext, Policy, below, unit};
use crate::balancing::Endpoint;

/// Longest cycle. Weights that need a longer one are rounded.
const MAX_CYCLE: u64 = 1 << 14;
/// The golden ratio's fraction.
const GOLDEN: f64 = 0.618_033_988_749_894_9;
/// Turns of ineligible endpoints that are skipped before all endpoints are tried.
const TURNS: usize = 64;

/// Policy that picks each endpoint exactly by its weight over a full cycle, and never in bursts.
pub struct RoundRobin {
    cycle: Vec<u32>,
    turn: AtomicU64,
}

/// Next turn of an endpoint: the earliest is first, and the following one is `1 / weight` later.
struct CycleTurn {
    at: f64,
    step: f64,
    index: u32,
}

impl PartialEq for CycleTurn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}
impl Eq for CycleTurn {}
impl PartialOrd for CycleTurn {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}
impl Ord for CycleTurn {
    fn cmp(&self, other: &Self) -> Order {
        // The heap's greatest is the earliest.
        other.at.total_cmp(&self.at).then(other.index.cmp(&self.index))
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl RoundRobin {
    /// Cycle of these endpoints, begun at a random turn.
    pub fn new(endpoints: &[Arc<Endpoint>], seed: u64) -> Self {
        let weights: Vec<u64> = endpoints.iter().map(|e| u64::from(e.weight)).collect();
        let common = weights.iter().copied().fold(0, gcd).max(1);
        let total = weights.iter().sum::<u64>() / common;
        let longest = MAX_CYCLE.max(u64::try_from(weights.len()).unwrap_or(u64::MAX));
        let shares: Vec<u64> = weights
            .iter()
            .map(|weight| match weight / common {
                share if total <= longest => share,
                share => (share * longest / total).max(1),
            })
            .collect();
        let mut turns: BinaryHeap<CycleTurn> = shares
            .iter()
            .zip(0u32..)
            .map(|(share, index)| {
                #[allow(clippy::cast_precision_loss, reason = "at most the length of a cycle")]
                let step = 1.0 / (*share).max(1) as f64;
                // The first turns lie apart by the golden ratio: no two orders are as far from bursts.
                let start = (f64::from(index) * GOLDEN).fract();
                CycleTurn { at: step * start, step, index }
            })
            .collect();
        let mut cycle = Vec::new();
        for _ in 0..shares.iter().sum::<u64>() {
            let Some(mut turn) = turns.pop() else { break };
            cycle.push(turn.index);
            turn.at += turn.step;
            turns.push(turn);
        }
        let start = below(seed, cycle.len().max(1));
        Self { cycle, turn: AtomicU64::new(u64::try_from(start).unwrap_or(0)) }
    }

    fn next(&self) -> Option<usize> {
        let length = u64::try_from(self.cycle.len()).ok().filter(|length| *length > 0)?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % length;
        let index = self.cycle.get(usize::try_from(turn).ok()?)?;
        usize::try_from(*index).ok()
    }
}

impl Policy for RoundRobin {
    fn pick(&self, endpoints: &[Arc<Endpoint>], cx: &mut PickContext<'_>) -> Option<usize> {
        let mut cold = None;
        for _ in 0..TURNS.min(self.cycle.len()) {
            let index = self.next()?;
            let Some(endpoint) = endpoints.get(index) else { continue };
            if !(cx.eligible)(index, endpoint) {
                continue;
            }
            let warmth = endpoint.warmth(cx.now);
            if warmth >= 1.0 || unit(cx.next_random()) < warmth {
                return Some(index);
            }
            cold = Some(index);
        }
        // Concurrent picks may have used the turns of the few that are eligible: then the next one of the list.
        let start = self.next()?;
        let (before, after) = endpoints.split_at_checked(start)?;
        let from_there = after.iter().enumerate().map(|(n, e)| (start + n, e));
        let mut open = from_there.chain(before.iter().enumerate()).filter(|(index, e)| (cx.eligible)(*index, e));
        open.find(|(_, e)| e.warmth(cx.now) >= 1.0).map(|(index, _)| index).or(cold).or_else(|| {
            endpoints.iter().enumerate().find(|(index, e)| (cx.eligible)(*index, e)).map(|(index, _)| index)
        })
    }
}
