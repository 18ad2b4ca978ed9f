//! Policies that compare endpoints: by requests in flight, by smoothed latency, by requests that wait.

use std::sync::Arc;

use super::draw::{Alias, best_of_all, least_of_all};
use super::{PickContext, Policy};
use crate::balancing::Endpoint;

/// Most endpoints that are all compared: the best of a few costs no more than two draws from many.
const LOOK_AT_ALL: usize = 16;

/// Requests in flight with this one, for the endpoint's weight and warmth.
fn load(e: &Endpoint, now: u64) -> f64 {
    (f64::from(e.state.in_flight()) + 1.0) / (f64::from(e.weight) * e.warmth(now))
}

/// The eligible endpoint with the fewest requests in flight for its weight; of many, the better of two drawn ones.
pub struct LeastRequest {
    alias: Alias,
}

impl LeastRequest {
    /// Policy for these endpoints.
    pub fn new(endpoints: &[Arc<Endpoint>]) -> Self {
        Self { alias: Alias::new(endpoints) }
    }
}

impl Policy for LeastRequest {
    fn pick(&self, endpoints: &[Arc<Endpoint>], cx: &mut PickContext<'_>) -> Option<usize> {
        let now = cx.now;
        if endpoints.len() <= LOOK_AT_ALL {
            least_of_all(endpoints, cx, |e| load(e, now))
        } else {
            self.alias.better_of_two(endpoints, cx, |a, b| load(a, now) < load(b, now))
        }
    }
}

/// The eligible endpoint with the least smoothed latency times requests in flight (Finagle's `p2cPeakEwma`).
pub struct PeakEwma {
    alias: Alias,
}

/// Most endpoints of which all are compared: of so few, two drawn ones are too often the slowest.
const FEW: usize = 8;

/// Latency of an endpoint that has not answered yet, microseconds. Such an endpoint gets one request, and more only where
/// the other has as many. So a new endpoint does not attract every request because it is thought to be fast.
const UNKNOWN: f64 = 1e18;

impl PeakEwma {
    /// Policy for these endpoints.
    pub fn new(endpoints: &[Arc<Endpoint>]) -> Self {
        Self { alias: Alias::new(endpoints) }
    }

    fn cost(e: &Endpoint, now: u64) -> f64 {
        match e.state.latency.micros(now) {
            Some(micros) => micros.max(1.0) * load(e, now),
            None if e.state.in_flight() == 0 => 0.0,
            None => UNKNOWN * load(e, now),
        }
    }
}

impl Policy for PeakEwma {
    fn pick(&self, endpoints: &[Arc<Endpoint>], cx: &mut PickContext<'_>) -> Option<usize> {
        let now = cx.now;
        if endpoints.len() <= FEW {
            least_of_all(endpoints, cx, |e| Self::cost(e, now))
        } else {
            self.alias.better_of_two(endpoints, cx, |a, b| Self::cost(a, now) < Self::cost(b, now))
        }
    }
}

/// The eligible endpoint that reports the fewest waiting requests; among equals the one with the fewest in flight. Two
/// endpoints of which one has no fresh report are compared by requests in flight.
pub struct ShortestQueue {
    alias: Alias,
    stale_after: u64,
}

impl ShortestQueue {
    /// Policy for these endpoints; `stale_after` in milliseconds.
    pub fn new(endpoints: &[Arc<Endpoint>], stale_after: u64) -> Self {
        Self { alias: Alias::new(endpoints), stale_after }
    }
}

impl Policy for ShortestQueue {
    fn pick(&self, endpoints: &[Arc<Endpoint>], cx: &mut PickContext<'_>) -> Option<usize> {
        let now = cx.now;
        let backlog = |e: &Endpoint| e.state.load.backlog(e.state.in_flight(), now, self.stale_after);
        let better = |a: &Endpoint, b: &Endpoint| match (backlog(a), backlog(b)) {
            (Some(mine), Some(other)) if mine != other => {
                let share = |backlog: u32, e: &Endpoint| f64::from(backlog) / (f64::from(e.weight) * e.warmth(now));
                share(mine, a) < share(other, b)
            }
            _ => load(a, now) < load(b, now),
        };
        if endpoints.len() <= LOOK_AT_ALL {
            best_of_all(endpoints, cx, better)
        } else {
            self.alias.better_of_two(endpoints, cx, better)
        }
    }
}
