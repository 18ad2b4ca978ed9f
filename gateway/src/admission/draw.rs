//! The order in which the targets of a request are tried: by priority, and among equals drawn by weight. On a sticky route
//! weighted rendezvous hashing draws: a caller moves only to a target whose share grew, in any order of the file.

use std::hash::Hash;

use rand::RngExt;
use spillway_statistics::Version;

use crate::balancing::unit;
use crate::rollout::{Present, Split, UnitOf};
use crate::topology::{Answerers, Route, RouteRollout, Target};

/// Seeds of the sticky hash. They must not change between processes or versions: every gateway of a fleet, and the next
/// process after a restart, has to put the same caller on the same target.
const SEEDS: (u64, u64, u64, u64) = (0x5350_494c, 0x4c57_4159, 0x7374_6963, 0x6b79_0001);

/// Version of a rollout that a request was given to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Assigned {
    /// Version that was drawn, available or not.
    pub version: Version,
    /// True if no target of the version is available.
    pub is_gone: bool,
    /// Number of the weight under which it was drawn.
    pub epoch: u32,
    /// Number of the unit that the judge counts the request for ([`crate::rollout::LiveRollout::unit`]).
    pub unit: u64,
}

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
                (!target.is_available(), target.priority, score(uniform, f64::from(target.weight)), index)
            })
            .collect();
        scored.sort_by(|(gone, priority, score, _), (other_gone, other_priority, other_score, _)| {
            (gone, priority).cmp(&(other_gone, other_priority)).then(score.total_cmp(other_score))
        });
        Self { indices: scored.into_iter().map(|(_, _, _, index)| index).collect() }
    }
}

/// Target of a rollout in a draw.
struct Drawn {
    index: usize,
    is_candidate: bool,
    is_gone: bool,
    score: f64,
}

impl Order {
    /// Draws the order of those targets of a rollout that may answer a request, and the version that it is assigned to; `None`
    /// where only one version may answer it, or nothing is compared now. The targets of that version come first, but for those
    /// that are not available.
    ///
    /// A caller's lot decides between the versions, and stays the same while the candidate's share grows, so a sticky caller that
    /// came to the candidate stays there. Among the stable targets the key alone draws, as it does without a rollout.
    pub fn draw_version(
        route: &Route,
        rollout: &RouteRollout,
        answerers: &Answerers,
        of: UnitOf<'_>,
    ) -> (Self, Option<Assigned>) {
        let Present { split, epoch } = rollout.live.present();
        let is_candidate = |index: usize| index == rollout.candidate;
        let may_answer = |index: usize, target: &Target| target.weight > 0 && answerers.has(index);
        let all = || route.targets.iter().enumerate().filter(|(index, target)| may_answer(*index, target));
        let stable: f64 =
            all().filter(|(index, _)| !is_candidate(*index)).map(|(_, target)| f64::from(target.weight)).sum();
        let has_candidate = all().any(|(index, _)| is_candidate(index));
        let takes_part = |index: usize| match split {
            Split::Stable | Split::Waiting | Split::Shadow(_) => !is_candidate(index),
            Split::Both(_) | Split::Switched => true,
            Split::Candidate => is_candidate(index),
        };
        let mut rng = rand::rng();
        let mut drawn: smallvec::SmallVec<[Drawn; 4]> = all()
            .filter(|(index, _)| takes_part(*index))
            .map(|(index, target)| {
                let uniform = match of.key {
                    Some(key) => rendezvous(&route.name, key, target),
                    None => rng.random::<f64>(),
                };
                let score = score(uniform, f64::from(target.weight));
                Drawn { index, is_candidate: is_candidate(index), is_gone: !target.is_available(), score }
            })
            .collect();
        let to_candidate = drawn.iter().any(|one| one.is_candidate)
            && match split {
                Split::Both(share) if stable > 0.0 => rollout.live.lot(of) < share,
                _ => true,
            };
        let is_gone = drawn.iter().all(|one| one.is_candidate != to_candidate || one.is_gone);
        drawn.sort_by(|one, other| {
            let key = |drawn: &Drawn| (drawn.is_gone, drawn.is_candidate != to_candidate);
            key(one).cmp(&key(other)).then(one.score.total_cmp(&other.score))
        });
        let order = Self { indices: drawn.into_iter().map(|one| one.index).collect() };
        let is_compared = match split {
            // Of a shadow, pairs of answers are compared, and no request is assigned.
            Split::Stable | Split::Candidate | Split::Shadow(_) => false,
            Split::Waiting | Split::Both(_) => has_candidate && stable > 0.0,
            Split::Switched => has_candidate,
        };
        let assigned = is_compared.then(|| Assigned {
            version: if to_candidate { Version::Candidate } else { Version::Stable },
            is_gone,
            epoch,
            unit: rollout.live.unit(of),
        });
        (order, assigned)
    }

    /// Moves the targets of the other version of a rollout to the front. False where no target of it is there.
    pub(super) fn change_version(&mut self, candidate: usize) -> bool {
        let Some(first) = self.indices.first().copied() else { return false };
        let is_other = |index: &usize| (*index == candidate) != (first == candidate);
        self.indices.sort_by_key(|index| !is_other(index));
        self.indices.first().is_some_and(|now| *now != first)
    }
}

/// Time of the first event of a Poisson process with rate `weight`. Each target has the smallest of several times with the
/// probability of its share, and raising one weight never moves a caller between the others.
fn score(uniform: f64, weight: f64) -> f64 {
    // 1 - u keeps the argument of the logarithm above zero.
    -(1.0 - uniform).ln() / weight
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

    use prometheus_client::metrics::counter::Counter;
    use proptest::prelude::*;

    use super::*;
    use crate::rollout::LiveRollout;
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
                filters: Vec::new(),
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

    fn rollout(route: &Route, candidate: &str, split: Split) -> RouteRollout {
        let index = route.targets.iter().position(|target| target.name == candidate).unwrap();
        let live = LiveRollout::new(
            candidate,
            "one",
            false,
            None,
            Present { split, epoch: 7 },
            Counter::default(),
            Arc::default(),
        );
        RouteRollout { candidate: index, live: Arc::new(live), shadow: None }
    }

    /// Name of the first target in the order of a request, and the version that it was assigned to.
    fn first(route: &Route, rollout: &RouteRollout, key: Option<&[u8]>) -> (String, Option<Assigned>) {
        let (order, assigned) = Order::draw_version(route, rollout, &Answerers::All, UnitOf { consumer: None, key });
        (route.targets[order.indices()[0]].name.clone(), assigned)
    }

    #[test]
    fn the_candidate_gets_its_share_whatever_its_weight_drawn_or_sticky() {
        let route = route(&[("a", 30), ("b", 10), ("new", 1)]);
        for (split, expected) in [
            (Split::Stable, 0.0),
            (Split::Waiting, 0.0),
            (Split::Both(0.1), 2_000.0),
            (Split::Both(0.5), 10_000.0),
            (Split::Switched, 20_000.0),
            (Split::Candidate, 20_000.0),
        ] {
            let rollout = rollout(&route, "new", split);
            for sticky in [false, true] {
                let mut shares: HashMap<String, usize> = HashMap::new();
                for caller in 0..20_000u32 {
                    let key = caller.to_string();
                    let (name, assigned) = first(&route, &rollout, sticky.then_some(key.as_bytes()));
                    let is_candidate = name == "new";
                    if let Some(assigned) = assigned {
                        assert_eq!(assigned.version == Version::Candidate, is_candidate);
                        assert_eq!(assigned.epoch, 7);
                    }
                    *shares.entry(name).or_insert(0) += 1;
                }
                let near = |name: &str, expected: f64| {
                    let got = shares.get(name).copied().unwrap_or(0) as f64;
                    let deviation = (expected * (1.0 - expected / 20_000.0)).sqrt();
                    assert!((got - expected).abs() <= 5.0 * deviation, "{split:?} {name}: {got}, not {expected}");
                };
                near("new", expected);
                near("a", (20_000.0 - expected) * 0.75);
            }
        }
    }

    #[test]
    fn what_is_not_compared_is_not_observed() {
        let route = route(&[("a", 1), ("new", 1)]);
        for (split, is_compared) in [
            (Split::Stable, false),
            (Split::Waiting, true),
            (Split::Both(0.5), true),
            (Split::Switched, true),
            (Split::Candidate, false),
        ] {
            assert_eq!(first(&route, &rollout(&route, "new", split), None).1.is_some(), is_compared, "{split:?}");
        }
        let both = rollout(&route, "new", Split::Both(0.5));
        for (only, expected) in [(0, vec![0]), (1, vec![1])] {
            let (order, assigned) = Order::draw_version(&route, &both, &Answerers::Some(vec![only]), UnitOf::default());
            assert_eq!((order.indices(), assigned), (expected.as_slice(), None), "only one version may answer it");
        }
        let stable = rollout(&route, "new", Split::Stable);
        assert!(
            Order::draw_version(&route, &stable, &Answerers::Some(vec![1]), UnitOf::default()).0.indices().is_empty()
        );
    }

    #[test]
    fn a_version_that_is_not_available_is_assigned_and_stands_behind_the_other() {
        let route = route(&[("a", 1), ("b", 1), ("new", 1)]);
        let TargetKind::Backend(new) = &route.targets[2].kind else { panic!() };
        new.balancer.endpoints().all()[0].state.set_healthy(false, 1);
        let switched = rollout(&route, "new", Split::Switched);
        for _ in 0..100 {
            let (order, assigned) = Order::draw_version(&route, &switched, &Answerers::All, UnitOf::default());
            let assigned = assigned.unwrap();
            assert_eq!((assigned.version, assigned.is_gone), (Version::Candidate, true));
            assert_eq!(order.indices()[2], 2);
        }
        let unit = |key: &[u8]| first(&route, &switched, Some(key)).1.unwrap().unit;
        assert_eq!(unit(b"x"), unit(b"x"));
        assert_ne!(unit(b"x"), unit(b"y"));
    }

    #[test]
    fn a_key_that_leads_one_consumer_to_the_candidate_leads_another_where_its_own_lot_falls() {
        let route = route(&[("a", 1), ("new", 1)]);
        let rollout = rollout(&route, "new", Split::Both(0.1));
        let is_candidate = |consumer: u128, key: &[u8]| {
            let of = UnitOf { consumer: Some(consumer), key: Some(key) };
            let (_, assigned) = Order::draw_version(&route, &rollout, &Answerers::All, of);
            assigned.unwrap().version == Version::Candidate
        };
        let found: Vec<String> =
            (0..20_000).map(|n| n.to_string()).filter(|key| is_candidate(1, key.as_bytes())).collect();
        let shared = found.iter().filter(|key| is_candidate(2, key.as_bytes())).count();
        // A tenth of some 2,000, five standard deviations about it.
        assert!((130..270).contains(&shared), "{shared} of {}", found.len());
    }

    proptest! {
        /// Over any growing shares and weights, a caller that came to the candidate stays there, and one at a stable target
        /// moves to no other stable one.
        #[test]
        fn a_sticky_caller_never_flips_back(
            weights in prop::collection::vec(1u32..1000, 1..4),
            mut shares in prop::collection::vec(0.001f64..0.999, 1..8),
            callers in prop::collection::vec("[a-z0-9]{1,12}", 1..40),
        ) {
            let names: Vec<String> = (0..weights.len()).map(|n| format!("v{n}")).collect();
            let mut all: Vec<(&str, u32)> = names.iter().map(String::as_str).zip(weights).collect();
            all.push(("new", 1));
            let route = route(&all);
            shares.sort_by(f64::total_cmp);
            let splits = [Split::Waiting].into_iter().chain(shares.into_iter().map(Split::Both)).chain([Split::Switched, Split::Candidate]);
            let mut before: HashMap<&String, String> = HashMap::new();
            for split in splits {
                let rollout = rollout(&route, "new", split);
                for caller in &callers {
                    let (now, _) = first(&route, &rollout, Some(caller.as_bytes()));
                    if let Some(was) = before.insert(caller, now.clone()) {
                        prop_assert!(now == was || now == "new", "{was} to {now} at {split:?}");
                    }
                }
            }
        }
    }
}
