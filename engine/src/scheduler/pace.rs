//! Sharing of a step's rows among prompts, and the resulting time to prefill a prompt. A row is one token of one
//! sequence in the batch of a step. Plain arithmetic without a clock: time is counted in prefilled rows, so that
//! tests hold the estimate to the sharing.

use std::time::Duration;

/// Fraction of a step's rows that goes to short prompts first: a quarter. The rest goes to the oldest, so that short
/// prompts without end delay a long one by a third at most.
const SHORT_DIVISOR: usize = 4;

/// A prompt that is being prefilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PendingPrompt {
    /// Tokens not prefilled yet.
    pub(super) unread: usize,
    /// Priority among short prompts, by [`place`].
    pub(super) place: u64,
}

/// Priority of a new prompt, the lowest first: rows prefilled before it arrived, plus the rows in which the short
/// part alone would prefill it. So a short prompt goes before long ones, and a prompt that has waited for those rows
/// is overtaken by no newcomer.
pub(super) fn place(rows_so_far: u64, prompt: usize) -> u64 {
    rows_so_far.saturating_add(wide(prompt.saturating_mul(SHORT_DIVISOR)))
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Rows of a step that go to short prompts first.
fn short_part(rows: usize) -> usize {
    rows.div_ceil(SHORT_DIVISOR).min(rows / 2)
}

/// Divides the rows of a step among `readers`, listed from the oldest to the newest: the short part by priority, the
/// rest by age. The result is in `parts`; `order` and `parts` are buffers reused from step to step.
pub(super) fn share(readers: &[PendingPrompt], rows: usize, order: &mut Vec<usize>, parts: &mut Vec<usize>) {
    parts.clear();
    parts.resize(readers.len(), 0);
    let mut left = rows;
    let mut give = |n: usize, most: usize| {
        let (Some(reader), Some(part)) = (readers.get(n), parts.get_mut(n)) else { return 0 };
        let more = (reader.unread - *part).min(most);
        *part += more;
        more
    };
    if readers.len() > 1 {
        order.clear();
        order.extend(0..readers.len());
        order.sort_unstable_by_key(|n| (readers.get(*n).map(|reader| reader.place), *n));
        let mut short = short_part(rows);
        for n in order.iter().copied() {
            let given = give(n, short);
            short -= given;
            left -= given;
            if short == 0 {
                break;
            }
        }
    }
    for n in 0..readers.len() {
        left -= give(n, left);
        if left == 0 {
            break;
        }
    }
}

/// Rows until a new prompt is prefilled beside `readers`, by [`share`] in steps of `rows` rows. Allows for prompts
/// that arrive later.
pub(super) fn rows_until_read(
    prompt: usize,
    readers: impl Iterator<Item = PendingPrompt> + Clone,
    rows_so_far: u64,
    rows: usize,
) -> usize {
    let rows = rows.max(1);
    let sum = |readers: &mut dyn Iterator<Item = PendingPrompt>| {
        readers.fold(prompt, |sum, reader| sum.saturating_add(reader.unread))
    };
    let all = sum(&mut readers.clone());
    if all == prompt {
        return prompt;
    }
    let short = short_part(rows);
    let slower = |tokens: usize, part: usize| tokens.saturating_mul(rows).div_ceil(part.max(1));
    let by_age = slower(all, rows - short);
    if short == 0 {
        return by_age;
    }
    let own = place(rows_so_far, prompt);
    let before = sum(&mut readers.filter(|reader| reader.place <= own));
    // The step under way comes first.
    by_age.min(slower(before, short).saturating_add(rows))
}

/// Current cost of a step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// Prompt rows in a step.
    pub(super) rows: usize,
    /// Duration of a step without prompt rows.
    pub(super) bare: Duration,
    /// Duration of a step with all of its prompt rows.
    pub(super) full: Duration,
}

impl Pace {
    /// Time to prefill this many prompt rows.
    pub(super) fn time_of(&self, tokens: usize) -> Duration {
        let rows = self.rows.max(1);
        let (steps, rest) = (tokens / rows, tokens % rows);
        let whole = self.full.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX));
        if rest == 0 {
            return whole;
        }
        let of_rest = self.full.saturating_sub(self.bare).saturating_mul(u32::try_from(rest).unwrap_or(u32::MAX));
        let last = self.bare + of_rest / u32::try_from(rows).unwrap_or(u32::MAX);
        whole.saturating_add(last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A scheduler in virtual time: rows pass, prompts arrive and are prefilled.
    #[derive(Default)]
    struct Virtual {
        rows: usize,
        gone: u64,
        readers: Vec<PendingPrompt>,
        /// Index, arrival and estimate of each.
        came: Vec<(usize, u64, usize)>,
        entered: usize,
        order: Vec<usize>,
        parts: Vec<usize>,
    }

    /// A prefilled prompt: its estimate and its actual time, in rows.
    type Read = (usize, usize);

    impl Virtual {
        fn of(rows: usize) -> Self {
            Self { rows, ..Self::default() }
        }

        fn estimate(&self, prompt: usize) -> usize {
            rows_until_read(prompt, self.readers.iter().copied(), self.gone, self.rows)
        }

        fn enter(&mut self, prompt: usize) {
            self.entered += 1;
            self.came.push((self.entered, self.gone, self.estimate(prompt)));
            self.readers.push(PendingPrompt { unread: prompt, place: place(self.gone, prompt) });
        }

        fn step(&mut self) -> Vec<Read> {
            share(&self.readers, self.rows, &mut self.order, &mut self.parts);
            self.gone += wide(self.parts.iter().sum());
            self.readers.iter_mut().zip(&self.parts).for_each(|(reader, part)| reader.unread -= part);
            let mut read = Vec::new();
            for n in (0..self.readers.len()).rev() {
                if self.readers[n].unread == 0 {
                    self.readers.remove(n);
                    let (_, came, estimate) = self.came.remove(n);
                    read.push((estimate, usize::try_from(self.gone - came).unwrap()));
                }
            }
            read
        }

        fn until_read(&mut self, prompt: usize) -> Read {
            self.enter(prompt);
            let (number, came, estimate) = *self.came.last().unwrap();
            while self.came.iter().any(|(other, ..)| *other == number) {
                let _ = self.step();
            }
            (estimate, usize::try_from(self.gone - came).unwrap())
        }
    }

    fn parts(unread: &[usize], rows: usize) -> Vec<usize> {
        let readers: Vec<PendingPrompt> =
            unread.iter().map(|unread| PendingPrompt { unread: *unread, place: place(0, *unread) }).collect();
        let (mut order, mut parts) = (Vec::new(), Vec::new());
        share(&readers, rows, &mut order, &mut parts);
        parts
    }

    #[test]
    fn a_short_prompt_is_read_beside_any_long_ones() {
        assert_eq!(parts(&[1500, 1500, 1500, 12], 64), [52, 0, 0, 12]);
        assert_eq!(parts(&[1500, 1500, 30, 40], 64), [48, 0, 16, 0]);
        assert_eq!(parts(&[1500], 256), [256]);
        assert_eq!(parts(&[], 256), [0; 0]);
        assert_eq!(parts(&[10, 20, 30], 0), [0, 0, 0]);
        assert_eq!(parts(&[10, 3], 1), [1, 0]);
    }

    #[test]
    fn short_prompts_without_end_delay_a_long_one_by_a_third_at_most() {
        let mut scheduler = Virtual::of(64);
        scheduler.enter(1500);
        let long_is_unread = |scheduler: &Virtual| scheduler.came.iter().any(|(number, ..)| *number == 1);
        while long_is_unread(&scheduler) {
            while scheduler.readers.len() < 8 {
                scheduler.enter(20);
            }
            let _ = scheduler.step();
        }
        // It came first, so the rows so far are its time.
        let took = scheduler.gone;
        assert!((1500..=1500 * 4 / 3 + 64).contains(&took), "{took}");
    }

    #[test]
    fn the_wait_of_a_short_prompt_beside_long_ones_is_that_of_a_few_steps() {
        let pace = Pace { rows: 64, bare: Duration::from_millis(20), full: Duration::from_millis(320) };
        let mut scheduler = Virtual::of(64);
        (0..3).for_each(|_| scheduler.enter(1500));
        let _ = scheduler.step();
        let estimate = scheduler.estimate(40);
        assert_eq!(estimate, 40 * 4 + 64);
        assert!(pace.time_of(estimate) < Duration::from_secs(2), "{:?}", pace.time_of(estimate));
        let (estimate, took) = scheduler.until_read(40);
        assert!(took <= estimate, "{took} rows, {estimate} estimated");
        // A long prompt waits for those before it: it would be too late.
        assert!(pace.time_of(scheduler.estimate(1500)) > Duration::from_secs(20));
        assert_eq!(pace.time_of(64 * 3), Duration::from_millis(960));
        assert_eq!(pace.time_of(32), Duration::from_millis(170));
    }

    proptest! {
        /// Steps are as full as possible, and no prompt gets more rows than it has tokens.
        #[test]
        fn a_step_is_filled(unread in proptest::collection::vec(1usize..400, 0..10), rows in 0usize..300) {
            let parts = parts(&unread, rows);
            prop_assert!(parts.iter().zip(&unread).all(|(part, unread)| part <= unread));
            prop_assert_eq!(parts.iter().sum::<usize>(), rows.min(unread.iter().sum()));
        }

        /// Without later arrivals the estimate is kept, and it is at most a few times the actual time.
        #[test]
        fn the_estimate_is_what_comes_about(
            prompt in 1usize..2000,
            others in proptest::collection::vec(1usize..2000, 0..8),
            rows in 2usize..256,
            steps in 0usize..8,
        ) {
            let mut scheduler = Virtual::of(rows);
            others.iter().for_each(|other| scheduler.enter(*other));
            for _ in 0..steps {
                let _ = scheduler.step();
            }
            let (estimate, took) = scheduler.until_read(prompt);
            prop_assert!(took <= estimate + rows, "{} rows, {} estimated", took, estimate);
            prop_assert!(estimate <= 5 * took + 2 * rows, "{} rows, {} estimated", took, estimate);
        }

        /// Under any overload, a prompt accepted by its estimate waits at most twice as long, and short prompts are
        /// accepted.
        #[test]
        fn overload_makes_nobody_wait_who_was_taken(
            lengths in proptest::collection::vec(prop_oneof![1usize..64, 100usize..600, 1000usize..2000], 200..400),
            every in 1usize..4,
        ) {
            let (limit, slots) = (2000, 8);
            let mut scheduler = Virtual::of(64);
            let (mut taken, mut read) = (0, Vec::new());
            for length in lengths {
                for _ in 0..every {
                    let is_free = scheduler.readers.len() < slots;
                    if is_free && (scheduler.readers.is_empty() || scheduler.estimate(length) <= limit) {
                        scheduler.enter(length);
                        taken += 1;
                    }
                }
                read.extend(scheduler.step());
            }
            while !scheduler.readers.is_empty() {
                read.extend(scheduler.step());
            }
            prop_assert_eq!(read.len(), taken);
            for (estimate, took) in read {
                prop_assert!(took <= 2 * limit + 64, "{} rows, {} estimated", took, estimate);
            }
        }
    }
}
