//! Draws of endpoints by weight in constant time, and two ways to find a good one: compare all, or two drawn ones. The better
//! of two is nearly as good as the best of all (Mitzenmacher 2001). Gateways that see the same figures then do not all pick
//! the same endpoint.

use std::sync::Arc;

use super::{PickContext, below, unit};
use crate::balancing::Endpoint;

/// Draws of an eligible endpoint before all are compared.
const DRAWS: usize = 8;

/// Draws indices by weight (Walker's alias method, as Vose built it in 1991).
pub(super) struct Alias {
    count: usize,
    /// Empty where all weights are equal. Otherwise for each index the probability to stay, and the index to move to.
    columns: Vec<(f64, usize)>,
}

impl Alias {
    #[allow(clippy::cast_precision_loss, reason = "counts of endpoints")]
    pub(super) fn new(endpoints: &[Arc<Endpoint>]) -> Self {
        let count = endpoints.len();
        let first = endpoints.first().map_or(1, |e| e.weight);
        if endpoints.iter().all(|e| e.weight == first) {
            return Self { count, columns: Vec::new() };
        }
        let total: f64 = endpoints.iter().map(|e| f64::from(e.weight)).sum();
        let mut scaled: Vec<f64> = endpoints.iter().map(|e| f64::from(e.weight) * count as f64 / total).collect();
        let mut columns: Vec<(f64, usize)> = (0..count).map(|index| (1.0, index)).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..count).partition(|index| scaled.get(*index).is_some_and(|p| *p < 1.0));
        while let (Some(less), Some(more)) = (small.pop(), large.pop()) {
            let part = scaled.get(less).copied().unwrap_or(1.0);
            if let Some(column) = columns.get_mut(less) {
                *column = (part, more);
            }
            let mut rest = 0.0;
            if let Some(of) = scaled.get_mut(more) {
                *of -= 1.0 - part;
                rest = *of;
            }
            if rest < 1.0 { small.push(more) } else { large.push(more) }
        }
        Self { count, columns }
    }

    fn draw(&self, cx: &mut PickContext<'_>) -> usize {
        let index = below(cx.next_random(), self.count);
        match self.columns.get(index) {
            Some((stay, other)) if unit(cx.next_random()) >= *stay => *other,
            _ => index,
        }
    }

    /// An eligible endpoint other than `not`, if [`DRAWS`] draws find one.
    fn draw_eligible(
        &self,
        endpoints: &[Arc<Endpoint>],
        cx: &mut PickContext<'_>,
        not: Option<usize>,
    ) -> Option<usize> {
        for _ in 0..DRAWS {
            let index = self.draw(cx);
            if Some(index) != not
                && let Some(endpoint) = endpoints.get(index)
                && (cx.eligible)(index, endpoint)
            {
                return Some(index);
            }
        }
        None
    }

    /// The better of two drawn endpoints; the best of all where draws find none.
    pub(super) fn better_of_two(
        &self,
        endpoints: &[Arc<Endpoint>],
        cx: &mut PickContext<'_>,
        better: impl Fn(&Endpoint, &Endpoint) -> bool,
    ) -> Option<usize> {
        if self.count == 0 {
            return None;
        }
        let Some(first) = self.draw_eligible(endpoints, cx, None) else { return best_of_all(endpoints, cx, better) };
        let Some(second) = self.draw_eligible(endpoints, cx, Some(first)) else { return Some(first) };
        match (endpoints.get(first), endpoints.get(second)) {
            (Some(a), Some(b)) if better(b, a) => Some(second),
            _ => Some(first),
        }
    }
}

/// The eligible endpoint with the least cost; of equal ones the first from a random index on.
pub(super) fn least_of_all(
    endpoints: &[Arc<Endpoint>],
    cx: &mut PickContext<'_>,
    cost: impl Fn(&Endpoint) -> f64,
) -> Option<usize> {
    if endpoints.is_empty() {
        return None;
    }
    let (before, after) = endpoints.split_at_checked(below(cx.next_random(), endpoints.len()))?;
    let start = before.len();
    let from_there = after.iter().enumerate().map(|(n, e)| (start + n, e));
    let mut best: Option<(usize, f64)> = None;
    for (index, endpoint) in from_there.chain(before.iter().enumerate()) {
        // A comparison costs less than the question whether an endpoint is open.
        let own = cost(endpoint);
        if best.is_none_or(|(_, least)| own < least) && (cx.eligible)(index, endpoint) {
            best = Some((index, own));
        }
    }
    best.map(|(index, _)| index)
}

/// The best eligible endpoint; of equal ones the first from a random index on.
pub(super) fn best_of_all(
    endpoints: &[Arc<Endpoint>],
    cx: &mut PickContext<'_>,
    better: impl Fn(&Endpoint, &Endpoint) -> bool,
) -> Option<usize> {
    if endpoints.is_empty() {
        return None;
    }
    let (before, after) = endpoints.split_at_checked(below(cx.next_random(), endpoints.len()))?;
    let start = before.len();
    let from_there = after.iter().enumerate().map(|(n, e)| (start + n, e));
    let mut best: Option<(usize, &Endpoint)> = None;
    for (index, endpoint) in from_there.chain(before.iter().enumerate()) {
        if best.is_none_or(|(_, best)| better(endpoint, best)) && (cx.eligible)(index, endpoint) {
            best = Some((index, endpoint));
        }
    }
    best.map(|(index, _)| index)
}
