//! Consistent hashing with bounded loads: each endpoint has many points on a ring. A request goes to the first eligible
//! endpoint from its key on with at most 1.25 times its share of the requests in flight. When endpoints are added or
//! removed, only their keys move. (Karger et al. 1997; Mirrokni, Thorup, Zadimoghaddam 2018.)

use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use super::draw::least_of_all;
use super::{PickContext, Policy, mix};
use crate::balancing::Endpoint;

/// Keys of the hash. They must not change between processes or versions: every gateway of a fleet, and the next process
/// after a restart, has to send the same key to the same endpoint.
const KEYS: (u64, u64) = (0x5350_494c_4c57_4159, 0x656e_6470_6f69_6e74);

/// Points of an endpoint with the mean weight, and the most of all endpoints together.
const POINTS: usize = 160;
const MAX_POINTS: usize = 1 << 16;

/// Multiple of its share of the available endpoints that an endpoint may have in flight.
const BOUND: f64 = 1.25;

/// Points of the ring that are tried before all endpoints are.
const MAX_STEPS: usize = 256;

/// Hash of a value, for [`PickContext::key`].
pub fn hash_key(value: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(KEYS.0, KEYS.1);
    hasher.write(value);
    hasher.finish()
}

/// Sends the same key to the same endpoint.
pub struct Hash {
    /// Points of the ring, sorted.
    positions: Vec<u64>,
    /// Index of the endpoint at each point.
    owners: Vec<u32>,
    total_weight: f64,
}

impl Hash {
    /// Ring of these endpoints.
    pub fn new(endpoints: &[Arc<Endpoint>]) -> Self {
        let total_weight: f64 = endpoints.iter().map(|e| f64::from(e.weight)).sum();
        let all = endpoints.len().saturating_mul(POINTS).min(MAX_POINTS.max(endpoints.len()));
        let mut ring: Vec<(u64, u32)> = Vec::with_capacity(all);
        for (endpoint, index) in endpoints.iter().zip(0u32..) {
            #[allow(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of some thousand points"
            )]
            let count = (f64::from(endpoint.weight) / total_weight * all as f64).round().max(1.0) as u64;
            let own = hash_key(endpoint.address.as_bytes());
            ring.extend((0..count).map(|n| (mix(own ^ mix(n.wrapping_add(1))), index)));
        }
        ring.sort_unstable();
        let (positions, owners) = ring.into_iter().unzip();
        Self { positions, owners, total_weight }
    }
}

impl Policy for Hash {
    fn pick(&self, endpoints: &[Arc<Endpoint>], cx: &mut PickContext<'_>) -> Option<usize> {
        let load = |e: &Endpoint| (f64::from(e.state.in_flight()) + 1.0) / f64::from(e.weight);
        let Some(key) = cx.key else { return least_of_all(endpoints, cx, load) };
        let in_backend = f64::from(endpoints.first()?.state.in_backend()) + 1.0;
        let bounded = |e: &Endpoint| {
            let share = in_backend * f64::from(e.weight) / (self.total_weight * cx.available);
            f64::from(e.state.in_flight()) < (share * BOUND).ceil()
        };
        let start = self.positions.partition_point(|position| *position < mix(key));
        let (before, after) = self.owners.split_at_checked(start)?;
        let mut busy = None;
        let mut last = None;
        for index in after.iter().chain(before).take(MAX_STEPS) {
            if last == Some(*index) {
                continue;
            }
            last = Some(*index);
            let Ok(index) = usize::try_from(*index) else { continue };
            let Some(endpoint) = endpoints.get(index) else { continue };
            if !(cx.eligible)(index, endpoint) {
                continue;
            }
            if bounded(endpoint) {
                return Some(index);
            }
            busy.get_or_insert(index);
        }
        // Around the key all are closed or busy: better a busy one there than an empty cache elsewhere.
        busy.or_else(|| least_of_all(endpoints, cx, load))
    }
}
