//! The order of waiters. A [`Line`] has no clock and no lock, and wakes nobody: time is an argument, so that tests of its
//! algebra are exact.
//!
//! *Order*: the highest priority first; within it tenants in turn, one waiter each, so that none can crowd out another; of
//! a tenant the oldest. Once the line has not been empty for as long as a request may wait, the newest first: adaptive LIFO
//! (Maurer, "Fail at Scale", ACM Queue 13(8), 2015). A line of that age is no burst. First come, first served would serve
//! some at the last moment and the rest too late; newest first serves most at once. CoDel shortens the allowance while a
//! line persists. Here the measured rate does that: a waiter that cannot be reached in time at that rate is moved on at
//! once.
//!
//! *Entry*: up to `max_depth` waiters. In a full line a higher priority displaces a lower one. A waiter of a tenant with
//! fewer displaces one of a tenant with more, so that entries are shared as the turns are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::drain_rate::DrainRate;

/// Party that takes turns with others: a tenant, or the address of an anonymous caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Party {
    /// A tenant.
    Tenant(Arc<str>),
    /// An anonymous caller, by the network that counts as one address (`limits::network`).
    Address([u8; 9]),
}

/// Entry of a waiter in the line.
#[derive(Debug, Clone)]
pub(super) struct LineEntry {
    /// Number in the order of arrival: smaller is older.
    seq: u64,
    priority: i32,
    party: Party,
    until: Instant,
}

impl LineEntry {
    /// Identity of the entry.
    pub(super) fn id(&self) -> u64 {
        self.seq
    }
}

/// Reason for which a request gets no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoEntry {
    /// The line is full of entries with a better claim.
    Full,
    /// The turn would be too late.
    TooLate,
}

/// Limits of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LineRules {
    /// Most waiters.
    pub(super) max_depth: usize,
    /// Longest wait. A line that was not empty for this time is served newest first.
    pub(super) max_wait: Duration,
}

/// Waiters of one priority.
#[derive(Debug, Default)]
struct PriorityTier {
    parties: HashMap<Party, BTreeMap<u64, LineEntry>>,
    /// Parties with waiters, the next one first.
    turns: VecDeque<Party>,
}

/// Waiters in their order.
#[derive(Debug)]
pub(super) struct Line {
    rules: LineRules,
    tiers: BTreeMap<Reverse<i32>, PriorityTier>,
    next_seq: u64,
    /// Waiters in the tiers.
    waiting: usize,
    /// Waiters that were called and have not reported a result yet. They count for the depth.
    called: usize,
    /// Time since which the line has not been empty.
    standing: Option<Instant>,
    rate: DrainRate,
}

impl Line {
    pub(super) fn new(rules: LineRules) -> Self {
        Self {
            rules,
            tiers: BTreeMap::new(),
            next_seq: 0,
            waiting: 0,
            called: 0,
            standing: None,
            rate: DrainRate::default(),
        }
    }

    /// Changes the limits; no waiter is displaced.
    pub(super) fn adopt(&mut self, rules: LineRules) {
        self.rules = rules;
    }

    /// Waiters, those that were called included.
    pub(super) fn depth(&self) -> usize {
        self.waiting + self.called
    }

    /// Counts the time up to `now`.
    fn pass(&mut self, now: Instant) {
        let depth = self.depth();
        self.rate.pass(now, depth > 0);
        self.standing = if depth > 0 { self.standing.or(Some(now)) } else { None };
    }

    fn newest_first(&self, now: Instant) -> bool {
        self.standing.is_some_and(|since| now.saturating_duration_since(since) >= self.rules.max_wait)
    }

    /// Adds a waiter whose wait must end at `until`. Waiters that are displaced are added to `moved_on`.
    pub(super) fn enter(
        &mut self,
        now: Instant,
        party: Party,
        priority: i32,
        until: Instant,
        moved_on: &mut Vec<u64>,
    ) -> Result<LineEntry, NoEntry> {
        self.pass(now);
        let newest_first = self.newest_first(now);
        let ahead = self.ahead(priority, &party, newest_first, None);
        if self.is_too_late(now, ahead, until) {
            return Err(NoEntry::TooLate);
        }
        if self.depth() >= self.rules.max_depth {
            moved_on.push(self.displace(priority, &party, newest_first).ok_or(NoEntry::Full)?);
        }
        let entry = LineEntry { seq: self.next_seq, priority, party, until };
        self.next_seq += 1;
        self.insert(entry.clone(), false);
        self.standing = self.standing.or(Some(now));
        if newest_first {
            // The newcomer delays the oldest of its own party.
            while let Some(lost) = self.unreachable(now, priority, &entry.party) {
                self.remove(priority, &entry.party, lost);
                moved_on.push(lost);
            }
        }
        Ok(entry)
    }

    fn insert(&mut self, entry: LineEntry, at_once: bool) {
        let tier = self.tiers.entry(Reverse(entry.priority)).or_default();
        if !tier.parties.contains_key(&entry.party) {
            if at_once {
                tier.turns.push_front(entry.party.clone());
            } else {
                tier.turns.push_back(entry.party.clone());
            }
        }
        tier.parties.entry(entry.party.clone()).or_default().insert(entry.seq, entry);
        self.waiting += 1;
    }

    fn remove(&mut self, priority: i32, party: &Party, seq: u64) -> Option<LineEntry> {
        let tier = self.tiers.get_mut(&Reverse(priority))?;
        let own = tier.parties.get_mut(party)?;
        let entry = own.remove(&seq)?;
        if own.is_empty() {
            tier.parties.remove(party);
            tier.turns.retain(|other| other != party);
        }
        if tier.parties.is_empty() {
            self.tiers.remove(&Reverse(priority));
        }
        self.waiting -= 1;
        Some(entry)
    }

    /// Calls the next waiter, which counts for the depth until it reports a result.
    pub(super) fn call(&mut self, now: Instant) -> Option<LineEntry> {
        self.pass(now);
        let newest_first = self.newest_first(now);
        let mut tier = self.tiers.first_entry()?;
        let party = tier.get_mut().turns.pop_front()?;
        tier.get_mut().turns.push_back(party.clone());
        let own = tier.get().parties.get(&party)?;
        let (seq, _) = if newest_first { own.last_key_value()? } else { own.first_key_value()? };
        let (seq, priority) = (*seq, tier.key().0);
        let entry = self.remove(priority, &party, seq)?;
        self.called += 1;
        Some(entry)
    }

    /// Puts a called waiter that found no slot back to its position; its party is next again.
    pub(super) fn back(&mut self, now: Instant, entry: LineEntry) {
        self.pass(now);
        self.called = self.called.saturating_sub(1);
        if let Some(tier) = self.tiers.get_mut(&Reverse(entry.priority))
            && tier.parties.contains_key(&entry.party)
        {
            tier.turns.retain(|other| *other != entry.party);
            tier.turns.push_front(entry.party.clone());
        }
        self.insert(entry, true);
    }

    /// Removes a called waiter that has a slot.
    pub(super) fn admitted(&mut self, now: Instant) {
        self.pass(now);
        self.called = self.called.saturating_sub(1);
        self.rate.admitted();
    }

    /// Removes a called waiter that leaves without a slot.
    pub(super) fn gone_called(&mut self, now: Instant) {
        self.pass(now);
        self.called = self.called.saturating_sub(1);
    }

    /// Removes a waiter. False if it was not waiting.
    pub(super) fn leave(&mut self, now: Instant, entry: &LineEntry) -> bool {
        self.pass(now);
        self.remove(entry.priority, &entry.party, entry.seq).is_some()
    }

    /// Time until all waiters, and one more, have had their turn.
    pub(super) fn drained_in(&mut self, now: Instant) -> Option<Duration> {
        self.pass(now);
        self.rate.time_for(self.depth() + 1)
    }

    /// Waiters that are served before one of this party: before a newcomer, or before the waiter `seq`.
    fn ahead(&self, priority: i32, party: &Party, newest_first: bool, seq: Option<u64>) -> usize {
        let better: usize =
            self.tiers.range(..Reverse(priority)).flat_map(|(_, tier)| tier.parties.values()).map(BTreeMap::len).sum();
        let Some(tier) = self.tiers.get(&Reverse(priority)) else { return better + self.called };
        let own = tier.parties.get(party);
        let before_me = match (own, seq) {
            (None, _) => 0,
            (Some(_), None) if newest_first => 0,
            (Some(own), None) => own.len(),
            (Some(own), Some(seq)) if newest_first => own.range(seq + 1..).count(),
            (Some(own), Some(seq)) => own.range(..seq).count(),
        };
        // Before its turn each other party has had as many turns as this one, and one more if it is earlier in the round.
        let turn = tier.turns.iter().position(|other| other == party).unwrap_or(tier.turns.len());
        let others: usize = tier
            .turns
            .iter()
            .enumerate()
            .filter(|(_, other)| *other != party)
            .map(|(at, other)| {
                let length = tier.parties.get(other).map_or(0, BTreeMap::len);
                length.min(before_me + usize::from(at < turn))
            })
            .sum();
        better + self.called + before_me + others
    }

    fn is_too_late(&self, now: Instant, ahead: usize, until: Instant) -> bool {
        // The first may always wait: otherwise a line that was found to be slow once would never be tried again.
        ahead > 0 && self.rate.sure_time_for(ahead + 1).is_some_and(|wait| wait > until.saturating_duration_since(now))
    }

    /// The oldest waiter of a party, if its turn would be too late.
    fn unreachable(&self, now: Instant, priority: i32, party: &Party) -> Option<u64> {
        let own = self.tiers.get(&Reverse(priority))?.parties.get(party)?;
        let (seq, oldest) = own.first_key_value()?;
        if own.len() < 2 {
            return None;
        }
        let ahead = self.ahead(priority, party, true, Some(*seq));
        self.is_too_late(now, ahead, oldest.until).then_some(*seq)
    }

    /// Removes the waiter with the least claim, for a newcomer of this party; `None` if the newcomer has the least.
    fn displace(&mut self, priority: i32, party: &Party, newest_first: bool) -> Option<u64> {
        let (Reverse(lowest), tier) = self.tiers.last_key_value()?;
        let lowest = *lowest;
        let (largest, length) = tier
            .turns
            .iter()
            .filter_map(|other| Some((other, tier.parties.get(other)?.len())))
            .max_by_key(|(_, length)| *length)?;
        let held = tier.parties.get(party).map_or(0, BTreeMap::len);
        let may = match lowest.cmp(&priority) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Greater => false,
            // Served newest first, the newcomer has the better claim also among its own.
            std::cmp::Ordering::Equal => held + 1 < length || newest_first && held == length,
        };
        if !may {
            return None;
        }
        let largest = if lowest == priority && held == length { party.clone() } else { largest.clone() };
        let own = tier.parties.get(&largest)?;
        let (seq, _) = if newest_first { own.first_key_value()? } else { own.last_key_value()? };
        let seq = *seq;
        self.remove(lowest, &largest, seq);
        Some(seq)
    }
}

#[cfg(test)]
mod tests;
