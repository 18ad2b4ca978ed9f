//! Planning of the next step: sequences and rows of its batch.

use std::time::Duration;

use super::pace::{Pace, PendingPrompt, share};
use super::sequence::{Sequence, SequenceState};
use super::{SchedulerWorker, narrow};
use crate::exec::PAGE;

/// Prompts of a step; buffers reused from step to step.
#[derive(Default)]
pub(super) struct PendingPrompts {
    /// Request and sequence of each prompt, by index.
    places: Vec<(usize, usize)>,
    prompts: Vec<PendingPrompt>,
    order: Vec<usize>,
    parts: Vec<usize>,
}

impl PendingPrompts {
    fn clear(&mut self) {
        self.places.clear();
        self.prompts.clear();
    }
}

/// Most times that prompt rows may multiply the duration of a step that decodes only; the pause allowed between
/// tokens applies if it is longer. A device with slow steps must still prefill.
const SLOWER_BY_PROMPTS: u32 = 2;
/// Prompt rows of a step, whatever they cost, while no sequence decodes. More are planned if they fit the pause
/// allowed between tokens, so that arrivals and cancellations do not wait longer.
const PROMPT_ROWS: usize = 64;

impl SchedulerWorker {
    /// Fills the batch of the next step. Returns false if nothing can run.
    pub(super) fn plan(&mut self) -> bool {
        self.batch.rows.clear();
        self.batch.picks.clear();
        self.picked.clear();
        for at in 0..self.running.len() {
            if !self.running.get(at).is_some_and(|request| request.is_delivered()) {
                continue;
            }
            for n in 0..self.running.get(at).map_or(0, |request| request.sequences.len()) {
                if self.sequence(at, n).is_some_and(|s| s.can_run() && s.unread() == 1) && self.make_room(at, n) {
                    self.enter(at, n, 1);
                }
            }
        }
        let writing = self.batch.rows.len();
        let most = self.sizes.max_rows;
        let room = if writing == 0 {
            self.idle_rows()
        } else {
            let pause = self.token_pause.max(self.cost.of(writing) * SLOWER_BY_PROMPTS);
            self.rows_within(pause, writing, most)
        };
        self.read_prompts(writing, room);
        !self.batch.rows.is_empty()
    }

    /// Rows of a step that has nothing but prompts.
    pub(super) fn idle_rows(&self) -> usize {
        let most = self.sizes.max_rows;
        self.cost.rows_within(self.token_pause, PROMPT_ROWS.min(most), most)
    }

    /// Publishes the cost of a step for callers' estimates while nothing runs.
    pub(super) fn plan_nothing(&mut self) {
        let rows = self.idle_rows();
        let pace = Pace { rows, bare: Duration::ZERO, full: self.cost.of(rows) };
        self.shared.planned(pace, &[], self.rows_read, self.pages.available() * PAGE);
    }

    /// Adds chunks of prompts to the batch, `room` rows in all.
    fn read_prompts(&mut self, writing: usize, room: usize) {
        let mut readers = std::mem::take(&mut self.readers);
        readers.clear();
        for at in 0..self.running.len() {
            for n in 0..self.running.get(at).map_or(0, |request| request.sequences.len()) {
                if self.sequence(at, n).is_some_and(|s| s.can_run() && s.in_step == 0 && s.unread() > 0)
                    && self.running.get(at).is_some_and(|request| request.is_delivered())
                {
                    self.catch_up(at, n);
                    readers.places.push((at, n));
                    let place = self.running.get(at).map_or(0, |request| request.place);
                    readers
                        .prompts
                        .push(PendingPrompt { unread: self.sequence(at, n).map_or(0, Sequence::unread), place });
                }
            }
        }
        share(&readers.prompts, room, &mut readers.order, &mut readers.parts);
        for ((at, n), rows) in readers.places.iter().zip(&readers.parts) {
            if *rows > 0 {
                self.enter(*at, *n, *rows);
            }
        }
        let pace = Pace { rows: room, bare: self.cost.of(writing), full: self.cost.of(writing + room) };
        self.shared.planned(pace, &readers.prompts, self.rows_read, self.pages.available() * PAGE);
        let read: usize = readers.parts.iter().sum();
        self.rows_read = self.rows_read.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        self.readers = readers;
    }

    /// Prompt rows that fit into a step beside `writing` decoding rows; at least one, so that prompts proceed.
    fn rows_within(&self, pause: Duration, writing: usize, most: usize) -> usize {
        if writing >= most {
            return 0;
        }
        self.cost.rows_within(pause, writing + 1, most) - writing
    }

    fn sequence(&self, at: usize, n: usize) -> Option<&Sequence> {
        self.running.get(at)?.sequences.get(n)
    }

    /// Adds the next rows of a sequence to the batch, and requests logits with its last row.
    fn enter(&mut self, at: usize, n: usize, rows: usize) {
        let Some(request) = self.running.get_mut(at) else { return };
        request.begin();
        let Some(sequence) = request.sequences.get_mut(n) else { return };
        self.batch.rows.extend(sequence.rows(rows));
        sequence.in_step = rows;
        if sequence.unread() == rows {
            self.batch.picks.push(narrow(self.batch.rows.len() - 1));
            self.picked.push((at, n));
        }
    }

    /// Shares pages of the same prompt that other sequences have filled since.
    fn catch_up(&mut self, at: usize, n: usize) {
        let Some(request) = self.running.get_mut(at) else { return };
        let Some(sequence) = request.sequences.get_mut(n) else { return };
        let read = self.pages.catch_up(sequence.slot, sequence.tokens(), sequence.read());
        let found = read - sequence.read();
        sequence.set_read(read);
        if found > 0 && !request.is_prefilled() {
            request.add_cached(found);
            self.shared.read(found, true);
        }
    }

    /// Ensures a page for the next token of a sequence, preempting another if necessary. Returns false if the
    /// sequence itself was preempted.
    fn make_room(&mut self, at: usize, n: usize) -> bool {
        loop {
            let Some((slot, next)) = self.sequence(at, n).map(|s| (s.slot, s.read() + 1)) else { return false };
            if self.pages.room(slot) >= next || self.pages.grow(slot) {
                return true;
            }
            let youngest = self.youngest_after(at, n);
            let (at_other, n_other) = youngest.unwrap_or((at, n));
            self.preempt(at_other, n_other);
            if youngest.is_none() {
                return false;
            }
        }
    }

    /// The youngest sequence with pages that is younger than this one.
    fn youngest_after(&self, at: usize, n: usize) -> Option<(usize, usize)> {
        let all = self.running.iter().enumerate().flat_map(|(at, request)| {
            request.sequences.iter().enumerate().map(move |(n, sequence)| ((at, n), sequence))
        });
        all.filter(|(place, s)| *place > (at, n) && s.state == SequenceState::Runs && s.has_pages && s.in_step == 0)
            .map(|(place, _)| place)
            .next_back()
    }

    /// Preempts a sequence: releases its pages; its tokens will be prefilled again.
    fn preempt(&mut self, at: usize, n: usize) {
        let Some(request) = self.running.get_mut(at) else { return };
        let Some(sequence) = request.sequences.get_mut(n) else { return };
        self.pages.release_slot(sequence.slot);
        sequence.lose_pages();
        self.shared.preempted();
    }
}
