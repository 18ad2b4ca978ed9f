//! The policies: each picks among endpoints, given all that it may depend on, so that a seeded simulation is exact.
//! A policy takes no slot; the caller takes it atomically and asks again if it lost the race.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Endpoint;

/// What a pick may depend on besides the endpoints.
pub struct PickContext<'a> {
    /// Whether the endpoint at a place may be picked: available, with room, not tried before.
    pub eligible: &'a dyn Fn(usize, &Endpoint) -> bool,
    /// A random number.
    pub random: u64,
}

/// Picks among the endpoints of a backend.
pub trait Policy: Send + Sync {
    /// The place of an eligible endpoint, or `None` when there is none.
    fn pick(&self, endpoints: &[Arc<Endpoint>], cx: &PickContext<'_>) -> Option<usize>;
}

/// Smooth weighted round robin: each turn every eligible endpoint gains its weight, the richest is picked and pays the
/// sum. Over a full cycle each is picked exactly by its weight, and never in bursts.
#[derive(Default)]
pub struct RoundRobin {
    credit: Mutex<Vec<i64>>,
}

impl Policy for RoundRobin {
    fn pick(&self, endpoints: &[Arc<Endpoint>], cx: &PickContext<'_>) -> Option<usize> {
        let mut credit = self.credit.lock();
        credit.resize(endpoints.len(), 0);
        let mut total = 0i64;
        let mut best: Option<(usize, i64)> = None;
        for (place, (endpoint, credit)) in endpoints.iter().zip(credit.iter_mut()).enumerate() {
            if !(cx.eligible)(place, endpoint) {
                continue;
            }
            let weight = i64::from(endpoint.weight);
            total += weight;
            *credit += weight;
            if best.is_none_or(|(_, most)| *credit > most) {
                best = Some((place, *credit));
            }
        }
        let (place, _) = best?;
        if let Some(credit) = credit.get_mut(place) {
            *credit -= total;
        }
        Some(place)
    }
}

/// The eligible endpoint with the fewest requests in flight for its weight; ties are broken from a random place on, so
/// that gateways that see the same counts do not all take the same one.
#[derive(Default)]
pub struct LeastRequest;

impl Policy for LeastRequest {
    fn pick(&self, endpoints: &[Arc<Endpoint>], cx: &PickContext<'_>) -> Option<usize> {
        let count = endpoints.len();
        let start = usize::try_from(cx.random % u64::try_from(count.max(1)).unwrap_or(1)).unwrap_or(0);
        let mut best: Option<(usize, u64, u64)> = None;
        for (place, endpoint) in endpoints.iter().enumerate().cycle().skip(start).take(count) {
            if !(cx.eligible)(place, endpoint) {
                continue;
            }
            let load = u64::from(endpoint.state.in_flight()) + 1;
            let weight = u64::from(endpoint.weight);
            // load / weight < best load / best weight, without division
            if best.is_none_or(|(_, least, of)| load * of < least * weight) {
                best = Some((place, load, weight));
            }
        }
        best.map(|(place, _, _)| place)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::balancing::EndpointState;
    use crate::telemetry::EndpointMetrics;
    use crate::upstream::Peer;

    fn endpoints(weights: &[u32]) -> Vec<Arc<Endpoint>> {
        weights
            .iter()
            .enumerate()
            .map(|(n, weight)| {
                let url: spillway_config::values::ServerUrl =
                    format!("http://127.0.0.1:{}", 9_000 + n).parse().unwrap();
                Arc::new(Endpoint {
                    address: url.to_string(),
                    weight: *weight,
                    max_in_flight: None,
                    state: Arc::new(EndpointState::new(Arc::new(EndpointMetrics::default()), true)),
                    peer: Peer::for_tests(),
                    url,
                })
            })
            .collect()
    }

    #[test]
    fn round_robin_is_exact_over_a_cycle_and_never_bursts() {
        let endpoints = endpoints(&[5, 1, 1]);
        let policy = RoundRobin::default();
        let cx = PickContext { eligible: &|_, _| true, random: 0 };
        let picks: Vec<_> = (0..14).filter_map(|_| policy.pick(&endpoints, &cx)).collect();
        let mut counts = HashMap::new();
        for pick in &picks {
            *counts.entry(*pick).or_insert(0) += 1;
        }
        assert_eq!(counts, HashMap::from([(0, 10), (1, 2), (2, 2)]));
        assert!(picks.windows(5).all(|w| w.iter().any(|p| *p != 0)), "never five times the same in a row: {picks:?}");
    }

    #[test]
    fn round_robin_leaves_out_what_is_not_eligible() {
        let endpoints = endpoints(&[1, 1, 1]);
        let policy = RoundRobin::default();
        let cx = PickContext { eligible: &|place, _| place != 1, random: 0 };
        let picks: Vec<_> = (0..6).filter_map(|_| policy.pick(&endpoints, &cx)).collect();
        assert_eq!(picks.iter().filter(|p| **p == 0).count(), 3);
        assert_eq!(picks.iter().filter(|p| **p == 2).count(), 3);
        assert_eq!(policy.pick(&endpoints, &PickContext { eligible: &|_, _| false, random: 0 }), None);
    }

    #[test]
    fn least_request_weighs_what_is_in_flight() {
        let endpoints = endpoints(&[1, 3]);
        let mut slots = Vec::new();
        for turn in 0..8 {
            let cx = PickContext { eligible: &|_, _| true, random: turn };
            let place = LeastRequest.pick(&endpoints, &cx).unwrap();
            slots.push(endpoints[place].state.try_acquire(None).unwrap());
        }
        assert_eq!((endpoints[0].state.in_flight(), endpoints[1].state.in_flight()), (2, 6));
        drop(slots);
        assert_eq!(endpoints[1].state.in_flight(), 0);
    }

    #[test]
    fn a_limit_on_requests_in_flight_is_never_passed() {
        let endpoint = endpoints(&[1]).remove(0);
        let limit = std::num::NonZeroU32::new(3);
        let slots: Vec<_> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..16).map(|_| scope.spawn(|| endpoint.state.try_acquire(limit))).collect();
            takers.into_iter().filter_map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(slots.len(), 3);
        assert_eq!(endpoint.state.in_flight(), 3);
    }
}
