//! The order of those who wait for a place. It has no clock, no lock and wakes nobody: time comes in as an argument, so
//! that its algebra is tested exactly.
//!
//! *Who is next*: the highest priority; in it, tenants in turn, one place each, so that none can crowd out another; of a
//! tenant, the oldest. Once the line has not been empty for as long as a request may wait, the newest: this is adaptive
//! LIFO (Maurer, "Fail at Scale", ACM Queue 13(8), 2015). A line that stands for longer than a wait is no burst; first
//! come, first served would then serve everybody at the last moment and the rest too late, newest first serves most at
//! once. CoDel's second half, a shorter allowance while the line stands, is had from the measured rate instead of a
//! constant: whoever cannot be reached in time at that rate is moved on at once.
//!
//! *Who gets in*: up to `max_depth`. In a full line a higher priority displaces a lower one, and a tenant with fewer
//! places one with more, so that the places are shared as the turns are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::drain_rate::DrainRate;

/// Whose turn it is: a tenant, or the address of an anonymous caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Party {
    /// A tenant.
    Tenant(Arc<str>),
    /// An anonymous caller, by its address; of IPv6 the first 64 bits.
    Address(IpAddr),
}

/// Someone in the line: who, and when its wait must be over.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Age: smaller is older.
    seq: u64,
    priority: i32,
    party: Party,
    until: Instant,
}

impl Place {
    /// What it is known by.
    pub(super) fn id(&self) -> u64 {
        self.seq
    }
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoEntry {
    /// Every place is taken, by those with a better claim.
    Full,
    /// Its turn would come too late.
    TooLate,
}

/// How a line is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) max_depth: usize,
    /// Longest wait: after this time without a moment in which it was empty, a line is served newest first.
    pub(super) max_wait: Duration,
}

#[derive(Debug, Default)]
struct Tier {
    parties: HashMap<Party, BTreeMap<u64, Place>>,
    /// Parties with somebody in the line, the next one first.
    turns: VecDeque<Party>,
}

/// The line.
#[derive(Debug)]
pub(super) struct Line {
    rules: Rules,
    tiers: BTreeMap<Reverse<i32>, Tier>,
    next_seq: u64,
    /// Those in the tiers.
    waiting: usize,
    /// Those who were called and have not said what became of it. They keep their place.
    called: usize,
    /// Since when it has not been empty.
    standing: Option<Instant>,
    rate: DrainRate,
}

impl Line {
    pub(super) fn new(rules: Rules) -> Self {
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

    /// Changes the rules; nobody loses a place.
    pub(super) fn adopt(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// How many hold a place.
    pub(super) fn depth(&self) -> usize {
        self.waiting + self.called
    }

    /// Time passes.
    fn pass(&mut self, now: Instant) {
        let depth = self.depth();
        self.rate.pass(now, depth > 0);
        self.standing = if depth > 0 { self.standing.or(Some(now)) } else { None };
    }

    fn newest_first(&self, now: Instant) -> bool {
        self.standing.is_some_and(|since| now.saturating_duration_since(since) >= self.rules.max_wait)
    }

    /// Somebody comes, whose wait must be over at `until`. Those who lose their place by it are added to `moved_on`.
    pub(super) fn enter(
        &mut self,
        now: Instant,
        party: Party,
        priority: i32,
        until: Instant,
        moved_on: &mut Vec<u64>,
    ) -> Result<Place, NoEntry> {
        self.pass(now);
        let newest_first = self.newest_first(now);
        let ahead = self.ahead(priority, &party, newest_first, None);
        if self.is_too_late(now, ahead, until) {
            return Err(NoEntry::TooLate);
        }
        if self.depth() >= self.rules.max_depth {
            moved_on.push(self.displace(priority, &party, newest_first).ok_or(NoEntry::Full)?);
        }
        let place = Place { seq: self.next_seq, priority, party, until };
        self.next_seq += 1;
        self.insert(place.clone(), false);
        self.standing = self.standing.or(Some(now));
        if newest_first {
            // The newcomer pushes its own party's oldest further back.
            while let Some(lost) = self.unreachable(now, priority, &place.party) {
                self.remove(priority, &place.party, lost);
                moved_on.push(lost);
            }
        }
        Ok(place)
    }

    fn insert(&mut self, place: Place, at_once: bool) {
        let tier = self.tiers.entry(Reverse(place.priority)).or_default();
        if !tier.parties.contains_key(&place.party) {
            if at_once {
                tier.turns.push_front(place.party.clone());
            } else {
                tier.turns.push_back(place.party.clone());
            }
        }
        tier.parties.entry(place.party.clone()).or_default().insert(place.seq, place);
        self.waiting += 1;
    }

    fn remove(&mut self, priority: i32, party: &Party, seq: u64) -> Option<Place> {
        let tier = self.tiers.get_mut(&Reverse(priority))?;
        let own = tier.parties.get_mut(party)?;
        let place = own.remove(&seq)?;
        if own.is_empty() {
            tier.parties.remove(party);
            tier.turns.retain(|other| other != party);
        }
        if tier.parties.is_empty() {
            self.tiers.remove(&Reverse(priority));
        }
        self.waiting -= 1;
        Some(place)
    }

    /// Calls the next one, who keeps its place until it says what became of it.
    pub(super) fn call(&mut self, now: Instant) -> Option<Place> {
        self.pass(now);
        let newest_first = self.newest_first(now);
        let mut tier = self.tiers.first_entry()?;
        let party = tier.get_mut().turns.pop_front()?;
        tier.get_mut().turns.push_back(party.clone());
        let own = tier.get().parties.get(&party)?;
        let (seq, _) = if newest_first { own.last_key_value()? } else { own.first_key_value()? };
        let (seq, priority) = (*seq, tier.key().0);
        let place = self.remove(priority, &party, seq)?;
        self.called += 1;
        Some(place)
    }

    /// One who was called found no place: it stands where it stood, and its party is next again.
    pub(super) fn back(&mut self, now: Instant, place: Place) {
        self.pass(now);
        self.called = self.called.saturating_sub(1);
        if let Some(tier) = self.tiers.get_mut(&Reverse(place.priority))
            && tier.parties.contains_key(&place.party)
        {
            tier.turns.retain(|other| *other != place.party);
            tier.turns.push_front(place.party.clone());
        }
        self.insert(place, true);
    }

    /// One who was called has its place.
    pub(super) fn admitted(&mut self, now: Instant) {
        self.pass(now);
        self.called = self.called.saturating_sub(1);
        self.rate.admitted();
    }

    /// One who was called goes away without a place.
    pub(super) fn gone_called(&mut self, now: Instant) {
        self.pass(now);
        self.called = self.called.saturating_sub(1);
    }

    /// One who waits goes away. False when it was not waiting.
    pub(super) fn leave(&mut self, now: Instant, place: &Place) -> bool {
        self.pass(now);
        self.remove(place.priority, &place.party, place.seq).is_some()
    }

    /// How long until all who are in the line now, and one more, have had their turn.
    pub(super) fn drained_in(&mut self, now: Instant) -> Option<Duration> {
        self.pass(now);
        self.rate.time_for(self.depth() + 1)
    }

    /// How many are served before somebody of this party: a newcomer, or one at place `seq` that waits already.
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
        // Each other party has had as many turns as this one before its turn comes; those before it in the round one more.
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
        // Whoever is first may always wait: without it, a line that was found to be slow once would never be tried again.
        ahead > 0 && self.rate.sure_time_for(ahead + 1).is_some_and(|wait| wait > until.saturating_duration_since(now))
    }

    /// The oldest of a party, when its turn would come too late.
    fn unreachable(&self, now: Instant, priority: i32, party: &Party) -> Option<u64> {
        let own = self.tiers.get(&Reverse(priority))?.parties.get(party)?;
        let (seq, oldest) = own.first_key_value()?;
        if own.len() < 2 {
            return None;
        }
        let ahead = self.ahead(priority, party, true, Some(*seq));
        self.is_too_late(now, ahead, oldest.until).then_some(*seq)
    }

    /// Takes a place from whoever has the least claim to one, for somebody of this party; `None` when that is itself.
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
