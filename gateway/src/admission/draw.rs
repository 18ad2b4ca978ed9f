//! The order in which the targets of a request are tried: by priority, and among equals drawn by weight. On a sticky route
//! weighted rendezvous hashing draws: a caller moves only to a target whose share grew, in any order of the file.

use std::hash::Hash;

use crate::balancing::unit;
use crate::topology::{Answerers, Route, Target};
use rand::RngExt;

/// Seeds of the sticky hash. They must not change between processes or versions: every gateway of a fleet, and the next
/// process after a restart, has to put the same caller on the same target.
const SEEDS: (u64, u64, u64, u64) = (0x5350_494c, 0x4c57_4159, 0x7374_6963, 0x6b79_0001);

/// Indices of a route's targets, the drawn one first.
#[derive(Debug, Default, Clone)]
pub struct Order {
    indices: Vec<usize>,
}

impl Order {
    /// Indices, the drawn one first.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }

    /// Removes a target. The next one of its priority is the one that would have been drawn without it: the order is drawn
    /// anew for none.
    pub(super) fn remove(&mut self, index: usize) {
        self.indices.retain(|kept| *kept != index);
    }

    /// Draws the order of those targets that may answer a request. `key` is the value of the sticky header, if the route and
    /// the request have one.
    pub fn draw(route: &Route, answerers: &Answerers, key: Option<&[u8]>) -> Self {
        if let [_] = route.targets.as_slice() {
            return Self { indices: if answerers.has(0) { vec![0] } else { Vec::new() } };
        }
        let mut rng = rand::rng();
        // Available targets come first, and of those the lowest priority: the draw is among them. The others follow for the
        // time when that changes. Availability is read once: it must not change while the order is sorted.
        let mut scored: Vec<(bool, u32, f64, usize)> = route
            .targets
            .iter()
            .enumerate()
            .filter(|(index, target)| target.weight > 0 && answerers.has(*index))
            .map(|(index, target)| {
                let uniform = match key {
                    Some(key) => rendezvous(&route.name, key, target),
                    None => rng.random::<f64>(),
                };
                (!target.is_available(), target.priority, score(uniform, target.weight), index)
            })
            .collect();
        scored.sort_by(|(gone, priority, score, _), (other_gone, other_priority, other_score, _)| {
            (gone, priority).cmp(&(other_gone, other_priority)).then(score.total_cmp(other_score))
        });
        Self { indices: scored.into_iter().map(|(_, _, _, index)| index).collect() }
    }
}

/// Time of the first event of a Poisson process with rate `weight`. Each target has the smallest of several times with the
/// probability of its share, and raising one weight never moves a caller between the others.
fn score(uniform: f64, weight: u32) -> f64 {
    // 1 - u keeps the argument of the logarithm above zero.
    -(1.0 - uniform).ln() / f64::from(weight)
}

fn rendezvous(route: &str, key: &[u8], target: &Target) -> f64 {
    let mut hasher = fixed_hasher();
    (route, key, target.name.as_str()).hash(&mut hasher);
    unit(std::hash::Hasher::finish(&hasher))
}

fn fixed_hasher() -> impl std::hash::Hasher {
    siphasher::sip::SipHasher13::new_with_keys(SEEDS.0 ^ SEEDS.1.rotate_left(32), SEEDS.2 ^ SEEDS.3.rotate_left(32))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use super::*;
    use crate::topology::TargetKind;

    fn route(weights: &[(&str, u32)]) -> Route {
        let mut route = Route::for_tests("r");
        route.targets = weights
            .iter()
            .map(|(name, weight)| Target {
                name: (*name).to_owned(),
                weight: *weight,
                priority: 0,
                kind: TargetKind::Backend(Arc::new(crate::topology::Backend::for_tests(name))),
            })
            .collect();
        route
    }

    fn shares(route: &Route, sticky: bool) -> HashMap<String, usize> {
        let mut shares = HashMap::new();
        for caller in 0..20_000u32 {
            let key = caller.to_string();
            let order = Order::draw(route, &Answerers::All, sticky.then_some(key.as_bytes()));
            *shares.entry(route.targets[order.indices()[0]].name.clone()).or_insert(0) += 1;
        }
        shares
    }

    #[test]
    fn shares_follow_the_weights_drawn_or_sticky() {
        let route = route(&[("a", 90), ("b", 9), ("c", 1), ("none", 0)]);
        for sticky in [false, true] {
            let shares = shares(&route, sticky);
            assert!(!shares.contains_key("none"));
            for (name, expected) in [("a", 18_000.0f64), ("b", 1_800.0), ("c", 200.0)] {
                // Five standard deviations of a binomial with these shares.
                let deviation = (expected * (1.0 - expected / 20_000.0)).sqrt();
                let got = shares[name] as f64;
                assert!((got - expected).abs() < 5.0 * deviation, "{name}: {got} instead of {expected}");
            }
        }
    }

    #[test]
    fn the_lowest_priority_that_is_available_comes_first() {
        let mut route = route(&[("a", 1), ("b", 99), ("c", 99)]);
        for (target, priority) in route.targets.iter_mut().zip([0, 1, 0]) {
            target.priority = priority;
        }
        let TargetKind::Backend(c) = &route.targets[2].kind else { panic!() };
        c.balancer.endpoints().all()[0].state.set_healthy(false, 1);
        for _ in 0..100 {
            assert_eq!(Order::draw(&route, &Answerers::All, None).indices(), [0, 1, 2]);
        }
    }

    #[test]
    fn a_sticky_caller_moves_only_to_a_target_whose_share_grew() {
        let before = route(&[("a", 90), ("b", 10)]);
        let after = route(&[("c", 20), ("b", 10), ("a", 90)]);
        let mut moved = 0;
        for caller in 0..5_000u32 {
            let key = caller.to_string();
            let name = |route: &Route| {
                let order = Order::draw(route, &Answerers::All, Some(key.as_bytes()));
                route.targets[order.indices()[0]].name.clone()
            };
            let (was, is) = (name(&before), name(&after));
            if was != is {
                assert_eq!(is, "c");
                moved += 1;
            }
        }
        assert!(moved > 500, "a sixth of the callers moves to the new target, {moved} did");
    }
}
