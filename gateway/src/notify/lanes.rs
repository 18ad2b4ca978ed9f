//! Messages that wait for one receiver, as plain data on a clock that is passed in. A lane holds the messages about one subject,
//! which are sent one after another; lanes wait for each other never, but for the time that the receiver asks for.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use tokio::time::Instant;

use super::event::Message;

/// Message that waits.
#[derive(Debug)]
struct Waiting {
    message: Message,
    /// Order of arrival over all lanes.
    number: u64,
    since: Instant,
}

/// Messages about one subject, of which the first is sent.
#[derive(Debug)]
struct Lane {
    waiting: VecDeque<Waiting>,
    /// Attempts at the first message.
    attempts: u32,
    /// Time of the next attempt at it.
    due: Instant,
    in_flight: bool,
}

/// Bounds on what waits, and on the attempts at a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Most messages that wait.
    pub(super) pending: usize,
    /// Most attempts at one message.
    pub(super) attempts: u32,
    /// Bound of the pause after a first attempt; it doubles with each further one.
    pub(super) base: Duration,
    /// Bound of every pause.
    pub(super) max: Duration,
    /// Age at which a message is given up.
    pub(super) age: Duration,
}

/// Consequence of a failed attempt.
#[derive(Debug)]
pub(super) enum Failed {
    /// There will be another attempt.
    Waits,
    /// The message is given up after so many attempts.
    GivenUp(u32),
}

/// Messages that wait for one receiver.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<Arc<str>, Lane, RandomState>,
    pending: usize,
    next: u64,
    /// Time before which the receiver wants no message.
    not_before: Option<Instant>,
}

impl Lanes {
    /// Number of messages that wait or are being sent.
    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    /// Adds a message. Returns the number of those that are dropped for it: the oldest that are not being sent, or itself, since
    /// the latest news matter most.
    pub(super) fn push(&mut self, message: Message, now: Instant, most: usize) -> usize {
        let mut dropped = 0;
        while self.pending >= most {
            dropped += 1;
            if !self.drop_oldest() {
                return dropped;
            }
        }
        let lane = self.lanes.entry(message.subject.clone()).or_insert_with(|| Lane {
            waiting: VecDeque::new(),
            attempts: 0,
            due: now,
            in_flight: false,
        });
        lane.waiting.push_back(Waiting { message, number: self.next, since: now });
        self.next += 1;
        self.pending += 1;
        dropped
    }

    /// Drops the oldest message that is not being sent; false if there is none.
    fn drop_oldest(&mut self) -> bool {
        let oldest = |lane: &Lane| {
            let place = usize::from(lane.in_flight);
            lane.waiting.get(place).map(|waiting| (waiting.number, place))
        };
        let found = self.lanes.iter().filter_map(|(subject, lane)| Some((oldest(lane)?, subject.clone()))).min();
        let Some(((_, place), subject)) = found else { return false };
        if let Some(lane) = self.lanes.get_mut(&subject) {
            lane.waiting.remove(place);
            self.pending -= 1;
            // The next one has its own attempts, and the same pause.
            lane.attempts = if place == 0 { 0 } else { lane.attempts };
        }
        self.clear(&subject);
        true
    }

    /// Takes the message whose turn it is; it is being sent until [`Self::delivered`] or [`Self::failed`].
    pub(super) fn take(&mut self, now: Instant) -> Option<Message> {
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let due = self.lanes.values_mut().filter(|lane| !lane.in_flight && lane.due <= now);
        let lane = due.min_by_key(|lane| lane.waiting.front().map(|waiting| waiting.number))?;
        let message = lane.waiting.front()?.message.clone();
        lane.in_flight = true;
        lane.attempts += 1;
        Some(message)
    }

    /// Time of the next attempt; `None` if nothing waits for one.
    pub(super) fn due(&self) -> Option<Instant> {
        let first = self.lanes.values().filter(|lane| !lane.in_flight).map(|lane| lane.due).min()?;
        Some(self.not_before.map_or(first, |at| at.max(first)))
    }

    /// True if something is being sent, or was not tried yet.
    pub(super) fn has_news(&self) -> bool {
        self.lanes.values().any(|lane| lane.in_flight || lane.attempts == 0)
    }

    /// The message about `subject` that was being sent has arrived.
    pub(super) fn delivered(&mut self, subject: &Arc<str>, now: Instant) {
        self.end_first(subject, now);
    }

    /// The attempt at the message about `subject` has failed. `chance` from 0 to 1 is the part of the pause, `wait` the shortest
    /// time that the receiver asks for.
    pub(super) fn failed(
        &mut self,
        subject: &Arc<str>,
        now: Instant,
        bounds: &Bounds,
        chance: f64,
        wait: Option<Duration>,
    ) -> Failed {
        let wait = wait.map(|wait| wait.min(bounds.age));
        if let Some(wait) = wait {
            self.not_before = Some(now + wait);
        }
        let Some(lane) = self.lanes.get_mut(subject) else { return Failed::Waits };
        lane.in_flight = false;
        let pause = bounds.base.saturating_mul(1 << (lane.attempts.max(1) - 1).min(16)).min(bounds.max);
        // At least half of it: a pause of nothing would be no pause.
        let pause = pause.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0));
        lane.due = now + wait.map_or(pause, |wait| wait.max(pause));
        let since = lane.waiting.front().map_or(now, |waiting| waiting.since);
        if lane.attempts >= bounds.attempts || lane.due.saturating_duration_since(since) > bounds.age {
            let attempts = lane.attempts;
            self.end_first(subject, now);
            return Failed::GivenUp(attempts);
        }
        Failed::Waits
    }

    /// Removes all messages, and returns how many there were. Attempts under way end without effect.
    pub(super) fn drain(&mut self) -> usize {
        self.lanes.clear();
        self.not_before = None;
        std::mem::take(&mut self.pending)
    }

    fn end_first(&mut self, subject: &Arc<str>, now: Instant) {
        if let Some(lane) = self.lanes.get_mut(subject)
            && lane.waiting.pop_front().is_some()
        {
            self.pending -= 1;
            (lane.in_flight, lane.attempts, lane.due) = (false, 0, now);
        }
        self.clear(subject);
    }

    fn clear(&mut self, subject: &Arc<str>) {
        if self.lanes.get(subject).is_some_and(|lane| lane.waiting.is_empty()) {
            self.lanes.remove(subject);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bounds() -> Bounds {
        Bounds { pending: 4, attempts: 3, base: SECOND, max: 4 * SECOND, age: 60 * SECOND }
    }

    fn message(subject: &str, id: &str) -> Message {
        Message { id: id.into(), kind: "test".into(), subject: subject.into(), body: bytes::Bytes::new() }
    }

    fn id(message: Option<Message>) -> Option<String> {
        message.map(|message| message.id.to_string())
    }

    #[test]
    fn messages_about_one_subject_are_sent_one_after_another() {
        let (mut lanes, now) = (Lanes::default(), Instant::now());
        for (subject, id) in [("a", "a1"), ("a", "a2"), ("b", "b1")] {
            assert_eq!(lanes.push(message(subject, id), now, 4), 0);
        }
        assert_eq!(id(lanes.take(now)).as_deref(), Some("a1"));
        assert_eq!(id(lanes.take(now)).as_deref(), Some("b1"), "another subject does not wait");
        assert_eq!(id(lanes.take(now)), None, "the second about `a` waits for the first");
        assert!(matches!(lanes.failed(&"a".into(), now, &bounds(), 1.0, None), Failed::Waits));
        assert_eq!(id(lanes.take(now)), None, "also while it waits for its next attempt");
        assert_eq!(lanes.due(), Some(now + SECOND));
        lanes.delivered(&"b".into(), now);
        assert_eq!(id(lanes.take(now + SECOND)).as_deref(), Some("a1"));
        lanes.delivered(&"a".into(), now + SECOND);
        assert_eq!(id(lanes.take(now + SECOND)).as_deref(), Some("a2"));
        assert_eq!(lanes.pending(), 1);
        lanes.delivered(&"a".into(), now + SECOND);
        assert_eq!((lanes.pending(), lanes.due(), lanes.lanes.len()), (0, None, 0));
    }

    #[test]
    fn pauses_double_and_a_message_is_given_up_after_its_attempts() {
        let (mut lanes, mut now) = (Lanes::default(), Instant::now());
        let bounds = Bounds { attempts: 5, ..bounds() };
        lanes.push(message("a", "a1"), now, 4);
        lanes.push(message("a", "a2"), now, 4);
        for pause in [1, 2, 4, 4] {
            assert_eq!(id(lanes.take(now)).as_deref(), Some("a1"));
            assert!(matches!(lanes.failed(&"a".into(), now, &bounds, 1.0, None), Failed::Waits));
            assert_eq!(lanes.due(), Some(now + pause * SECOND));
            now += pause * SECOND;
        }
        lanes.take(now);
        assert!(matches!(lanes.failed(&"a".into(), now, &bounds, 1.0, None), Failed::GivenUp(5)));
        assert_eq!(id(lanes.take(now)).as_deref(), Some("a2"), "its successor has attempts of its own");
    }

    #[test]
    fn a_message_is_given_up_at_its_age() {
        let (mut lanes, now) = (Lanes::default(), Instant::now());
        let bounds = Bounds { age: 2 * SECOND, attempts: 100, ..bounds() };
        lanes.push(message("a", "a1"), now, 4);
        lanes.take(now);
        assert!(matches!(lanes.failed(&"a".into(), now, &bounds, 0.0, None), Failed::Waits));
        lanes.take(now + SECOND);
        assert!(matches!(lanes.failed(&"a".into(), now + SECOND, &bounds, 1.0, None), Failed::GivenUp(2)));
        assert_eq!(lanes.pending(), 0);
    }

    #[test]
    fn a_receiver_that_asks_for_time_gets_it_for_every_subject() {
        let (mut lanes, now) = (Lanes::default(), Instant::now());
        lanes.push(message("a", "a1"), now, 4);
        lanes.push(message("b", "b1"), now, 4);
        lanes.take(now);
        lanes.failed(&"a".into(), now, &bounds(), 1.0, Some(10 * SECOND));
        assert_eq!(id(lanes.take(now + 9 * SECOND)), None);
        assert_eq!(lanes.due(), Some(now + 10 * SECOND));
        assert_eq!(id(lanes.take(now + 10 * SECOND)).as_deref(), Some("a1"));
        assert_eq!(id(lanes.take(now + 10 * SECOND)).as_deref(), Some("b1"));
    }

    #[test]
    fn a_full_queue_drops_the_oldest_that_is_not_being_sent() {
        let (mut lanes, now) = (Lanes::default(), Instant::now());
        for (subject, id) in [("a", "a1"), ("a", "a2"), ("b", "b1")] {
            lanes.push(message(subject, id), now, 3);
        }
        lanes.take(now);
        assert_eq!(lanes.push(message("c", "c1"), now, 3), 1);
        assert_eq!(lanes.pending(), 3);
        lanes.delivered(&"a".into(), now);
        let left: Vec<_> = std::iter::from_fn(|| id(lanes.take(now))).collect();
        assert_eq!(left, ["b1", "c1"], "a2 is gone");
        assert_eq!(lanes.push(message("d", "d1"), now, 1), 1, "all are being sent: the new one is dropped");
        assert_eq!(lanes.pending(), 2);
        assert_eq!(lanes.drain(), 2);
        lanes.delivered(&"b".into(), now);
        assert_eq!(lanes.pending(), 0, "an attempt that was under way ends without effect");
    }
}
