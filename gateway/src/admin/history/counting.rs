//! Differences between two samples of the counters that requests count in. A counter that began again, because its route or
//! model was removed and added, counts from zero.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::rings::Figures;
use crate::telemetry::{BUCKETS, Metrics, ModelCounts, ModelMetrics, RouteCounts, RouteMetrics};

/// Most reasons with a count of their own; further ones count as the last.
const MAX_REASONS: usize = 64;
/// Name of the reasons above the limit.
const OTHER: &str = "other";

/// Kind of a reason, by the counter that it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReasonKind {
    /// A fallback answered.
    Spill,
    /// The request was refused: no target could answer it, or a filter ended it.
    Refusal,
}

/// Names of reasons by their numbers.
#[derive(Debug, Default)]
pub(super) struct Reasons(Vec<(ReasonKind, Box<str>)>);

impl Reasons {
    fn number(&mut self, kind: ReasonKind, name: &str) -> u16 {
        let known = self.0.iter().position(|(of, known)| *of == kind && **known == *name);
        let index = known.unwrap_or_else(|| {
            if self.0.len() + 1 < MAX_REASONS {
                self.0.push((kind, name.into()));
            } else if self.0.len() < MAX_REASONS {
                self.0.push((ReasonKind::Refusal, OTHER.into()));
            }
            self.0.len() - 1
        });
        u16::try_from(index).unwrap_or(u16::MAX)
    }

    /// Kind and name of a number.
    pub(super) fn name(&self, number: u16) -> (ReasonKind, &str) {
        self.0.get(usize::from(number)).map_or((ReasonKind::Refusal, OTHER), |(kind, name)| (*kind, name))
    }
}

/// Last reading of a handle's counters.
struct Reading<H, C> {
    handle: Weak<H>,
    counts: C,
}

/// Last readings of all counters.
#[derive(Default)]
pub(super) struct Readings {
    routes: HashMap<Arc<str>, Reading<RouteMetrics, RouteCounts>>,
    models: HashMap<Box<str>, Reading<ModelMetrics, ModelCounts>>,
    pub(super) reasons: Reasons,
}

impl Readings {
    /// Reads all counters. Returns the figures since the last reading of each route that has any, and those of all model
    /// calls.
    pub(super) fn read(&mut self, metrics: &Metrics) -> (Vec<(Arc<str>, Figures)>, Figures) {
        self.routes.retain(|_, reading| reading.handle.strong_count() > 0);
        self.models.retain(|_, reading| reading.handle.strong_count() > 0);
        let mut routes = Vec::new();
        for handle in metrics.routes() {
            let counts = handle.counts();
            if counts.latency == [0; BUCKETS] && counts.refusals.is_empty() {
                continue;
            }
            let before = self.routes.get(handle.route()).filter(|reading| is_same(&reading.handle, &handle));
            if before.is_some_and(|reading| reading.counts == counts) {
                continue;
            }
            let none = RouteCounts::default();
            let figures = since(&counts, before.map_or(&none, |reading| &reading.counts), &mut self.reasons);
            routes.push((handle.route().clone(), figures));
            self.routes.insert(handle.route().clone(), Reading { handle: Arc::downgrade(&handle), counts });
        }
        let mut models = Figures::default();
        for handle in metrics.models() {
            let counts = handle.counts();
            let known = self.models.get(handle.key()).filter(|reading| is_same(&reading.handle, &handle));
            let before = known.map_or(ModelCounts::default(), |reading| reading.counts);
            if before == counts {
                continue;
            }
            models.add(&Figures {
                input: counts.input.saturating_sub(before.input),
                output: counts.output.saturating_sub(before.output),
                first_token: less(counts.first_token, before.first_token),
                ..Figures::default()
            });
            self.models.insert(handle.key().into(), Reading { handle: Arc::downgrade(&handle), counts });
        }
        (routes, models)
    }
}

fn is_same<T>(known: &Weak<T>, handle: &Arc<T>) -> bool {
    std::ptr::eq(known.as_ptr(), Arc::as_ptr(handle))
}

fn count(now: u64, before: u64) -> u32 {
    u32::try_from(now.saturating_sub(before)).unwrap_or(u32::MAX)
}

fn less(now: [u64; BUCKETS], before: [u64; BUCKETS]) -> [u32; BUCKETS] {
    let mut pairs = now.into_iter().zip(before);
    std::array::from_fn(|_| pairs.next().map_or(0, |(now, before)| count(now, before)))
}

/// Figures of a route between two readings.
fn since(now: &RouteCounts, before: &RouteCounts, reasons: &mut Reasons) -> Figures {
    let mut figures = Figures {
        errors: count(now.errors, before.errors),
        latency: less(now.latency, before.latency),
        ..Figures::default()
    };
    let spills = now.spills.iter().map(|(name, times)| (ReasonKind::Spill, *name, *times, &before.spills));
    let sheds = now.sheds.iter().map(|(name, times)| (ReasonKind::Refusal, *name, *times, &before.sheds));
    for (kind, name, times, earlier) in spills.chain(sheds) {
        let earlier = earlier.iter().find(|(known, _)| *known == name).map_or(0, |(_, times)| *times);
        if times > earlier {
            figures.add_reason(reasons.number(kind, name), count(times, earlier));
        }
    }
    for (name, times) in &now.refusals {
        let earlier = before.refusals.iter().find(|(known, _)| known == name).map_or(0, |(_, times)| *times);
        if *times > earlier {
            figures.add_reason(reasons.number(ReasonKind::Refusal, name), count(*times, earlier));
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Method;

    use super::*;
    use crate::telemetry::{CallStats, SpillReason};

    #[test]
    fn a_reading_has_what_came_since_the_last_one() {
        let metrics = Metrics::new();
        let (route, model) = (metrics.route("a"), metrics.model("openai", "b"));
        let mut readings = Readings::default();
        assert_eq!(readings.read(&metrics), (Vec::new(), Figures::default()));
        route.ended(&Method::POST, 200, Duration::from_millis(20), None);
        route.ended(&Method::POST, 503, Duration::from_millis(1), None);
        route.ended(&Method::GET, 0, Duration::from_millis(1), None);
        route.ended(&Method::GET, 499, Duration::from_millis(1), None);
        route.spilled(SpillReason::Saturated);
        route.shed(SpillReason::Unavailable);
        route.refused_by("rateLimit");
        let first = Some(Duration::from_millis(30));
        model.called(CallStats { input: Some(5), output: Some(7), first, ..CallStats::default() }, Duration::ZERO);
        let (routes, models) = readings.read(&metrics);
        let (name, figures) = &routes[0];
        assert_eq!((&**name, routes.len(), figures.errors, figures.requests()), ("a", 1, 2, 4));
        assert_eq!(figures.latency[..3], [3, 0, 1]);
        let named: Vec<_> =
            figures.reasons.iter().map(|(number, times)| (readings.reasons.name(*number), *times)).collect();
        let expected = [
            ((ReasonKind::Spill, "saturated"), 1),
            ((ReasonKind::Refusal, "unavailable"), 1),
            ((ReasonKind::Refusal, "rateLimit"), 1),
        ];
        assert_eq!(named, expected);
        assert_eq!((models.input, models.output, models.first_token[2]), (5, 7, 1));
        assert_eq!(readings.read(&metrics), (Vec::new(), Figures::default()));
        // Another route of the name begins anew, and a route that is gone is forgotten.
        drop((route, model));
        let again = metrics.route("a");
        again.ended(&Method::POST, 200, Duration::ZERO, None);
        assert_eq!(readings.read(&metrics).0[0].1.requests(), 1);
        drop(again);
        readings.read(&metrics);
        assert!(readings.routes.is_empty() && readings.models.is_empty());
    }

    #[test]
    fn reasons_are_bounded() {
        let mut reasons = Reasons::default();
        for n in 0..200 {
            let number = reasons.number(ReasonKind::Refusal, &format!("filter{n}"));
            let name = reasons.name(number).1;
            assert_eq!(name == OTHER, n >= MAX_REASONS - 1, "{n} {name}");
        }
        assert_eq!(reasons.0.len(), MAX_REASONS);
    }
}
