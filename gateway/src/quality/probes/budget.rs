//! Budget of a route's probes: requests and tokens of any hour. Pure: the time is given.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Time that the budget is for.
const HOUR: Duration = Duration::from_secs(3600);

/// Budget of the last hour. Holds at most one entry for each request of it.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// Times of requests with their tokens.
    spent: VecDeque<(Instant, u64)>,
    tokens: u64,
}

/// Request that was taken from the budget.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    at: Instant,
    tokens: u64,
}

impl Budget {
    /// Takes a request of about so many tokens; `None` where the hour has no room for it.
    pub(super) fn take(&mut self, now: Instant, tokens: u64, requests: u32, most: u32) -> Option<Taken> {
        while let Some((at, spent)) = self.spent.front().copied().filter(|(at, _)| now.duration_since(*at) >= HOUR) {
            self.tokens = self.tokens.saturating_sub(spent);
            self.spent.pop_front();
            debug_assert!(at <= now);
        }
        let has_room = self.spent.len() < usize::try_from(requests).unwrap_or(usize::MAX)
            && self.tokens.saturating_add(tokens) <= u64::from(most);
        if !has_room {
            return None;
        }
        self.spent.push_back((now, tokens));
        self.tokens = self.tokens.saturating_add(tokens);
        Some(Taken { at: now, tokens })
    }

    /// Puts the tokens that were used in the place of those that were expected; none where the request was not sent.
    pub(super) fn settle(&mut self, taken: Taken, used: Option<u64>) {
        let place = self.spent.iter().rposition(|(at, tokens)| (*at, *tokens) == (taken.at, taken.tokens));
        let Some(place) = place else { return };
        self.tokens = self.tokens.saturating_sub(taken.tokens);
        match used {
            None => {
                self.spent.remove(place);
            }
            Some(used) => {
                self.tokens = self.tokens.saturating_add(used);
                if let Some((_, tokens)) = self.spent.get_mut(place) {
                    *tokens = used;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_has_so_many_requests_and_tokens() {
        let (mut budget, begin) = (Budget::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let first = budget.take(at(0), 50, 2, 100).unwrap();
        let second = budget.take(at(10), 50, 2, 100).unwrap();
        assert!(budget.take(at(11), 0, 2, 100).is_none(), "two requests");
        budget.settle(second, None);
        assert!(budget.take(at(12), 51, 2, 100).is_none(), "a hundred tokens");
        budget.settle(first, Some(5));
        let third = budget.take(at(13), 95, 2, 100).unwrap();
        budget.settle(third, Some(500));
        assert!(budget.take(at(20), 1, 9, 100).is_none(), "an answer that was longer than expected counts");
        assert!(budget.take(at(3600), 1, 9, 100).is_none());
        assert!(budget.take(at(3613), 100, 1, 100).is_some(), "the hour is over");
        assert_eq!((budget.tokens, budget.spent.len()), (100, 1));
    }
}
