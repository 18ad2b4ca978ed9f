//! Execution of a step: the device runs while masks are computed, then each sequence with logits chooses its token.

use std::time::Instant;

use super::SchedulerWorker;
use super::sequence::{SequenceOutput, SequenceState};
use crate::EngineError;
use crate::grammar::first_line;

impl SchedulerWorker {
    /// Runs the planned step. Any error is the device's: all running sequences have lost their KV cache.
    pub(super) fn step(&mut self) -> Result<(), EngineError> {
        self.batch.pages.clear();
        self.batch.pages.extend_from_slice(self.pages.table());
        let started = Instant::now();
        for (pick, (at, n)) in self.picked.iter().enumerate() {
            let sequence = self.running.get_mut(*at).and_then(|request| request.sequences.get_mut(*n));
            if let Some(matcher) = sequence.and_then(|sequence| sequence.lend_grammar()) {
                self.masks.ask(&self.name, pick, matcher);
            }
        }
        let rows = self.batch.rows.len();
        let within = self.tuning.hang(self.cost.of(rows));
        let logits = self.model.forward_within(within, &self.watch, &self.batch);
        let masks = self.masks.answers();
        let mut logits = logits?;
        for answer in masks {
            let Some((at, n)) = self.picked.get(answer.pick).copied() else { continue };
            let Some(sequence) = self.running.get_mut(at).and_then(|request| request.sequences.get_mut(n)) else {
                continue;
            };
            let mask = answer
                .mask
                .inspect_err(|e| tracing::warn!(event = "grammar_failed", model = %self.name, reason = %first_line(e)));
            sequence.return_grammar(answer.matcher, mask.ok());
        }
        self.advance();
        let mut failed: Vec<(usize, EngineError)> = Vec::new();
        let width = logits.len().checked_div(self.picked.len()).unwrap_or(0).max(1);
        let picked = std::mem::take(&mut self.picked);
        for ((at, n), logits) in picked.iter().copied().zip(logits.chunks_exact_mut(width)) {
            if let Err(error) = self.choose(at, n, logits) {
                failed.push((at, error));
            }
        }
        // From the end, so that the indexes of the others stay valid.
        failed.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        failed.dedup_by_key(|(at, _)| *at);
        for (at, error) in failed {
            let request = self.running.remove(at);
            self.release(&request);
            request.fail(error);
        }
        let took = started.elapsed();
        self.cost.measured(rows, took);
        self.shared.measured(rows > picked.len(), took);
        self.picked = picked;
        Ok(())
    }

    /// Records the rows of the step in the cache.
    fn advance(&mut self) {
        for request in &mut self.running {
            let is_prefilled = request.is_prefilled();
            for sequence in &mut request.sequences {
                if sequence.in_step == 0 {
                    continue;
                }
                let left = sequence.prompt_left();
                sequence.advance();
                if !is_prefilled {
                    self.shared.read(left - sequence.prompt_left(), false);
                }
                self.pages.filled(sequence.slot, sequence.cached());
            }
        }
    }

    /// Chooses the next token of a sequence. The first answer to a prompt shares its logits with all others, which
    /// begin there, each with its own choice.
    fn choose(&mut self, at: usize, n: usize, logits: &mut [f32]) -> Result<(), EngineError> {
        let Some(request) = self.running.get_mut(at) else { return Ok(()) };
        request.prefilled();
        let follows = request.sequences.iter().any(|sequence| sequence.state == SequenceState::Follows);
        let Some(sequence) = request.sequences.get_mut(n) else { return Ok(()) };
        let (slot, prompt) = (sequence.slot, sequence.tokens().len());
        let first = follows.then(|| (logits.to_vec(), sequence.mask()));
        let output = sequence.choose(logits, &self.tokenizer)?;
        self.output(at, n, output);
        let Some((logits, mask)) = first else {
            self.release_if_over(at, n);
            return Ok(());
        };
        for other in 0..self.running.get(at).map_or(0, |request| request.sequences.len()) {
            let Some(sequence) = self.running.get_mut(at).and_then(|request| request.sequences.get_mut(other)) else {
                continue;
            };
            if sequence.state != SequenceState::Follows {
                continue;
            }
            sequence.state = SequenceState::Runs;
            // Without free pages now, it is placed later like a preempted sequence.
            let Some(read) = self.pages.take(sequence.slot, sequence.tokens(), 0) else { continue };
            sequence.has_pages = true;
            sequence.set_read(read);
            let last = prompt.saturating_sub(1);
            let pages = self.pages.page_of(slot, last).zip(self.pages.page_of(sequence.slot, last));
            if !pages.is_some_and(|(from, to)| self.model.copy_page(from, to)) {
                continue;
            }
            sequence.set_read(prompt);
            sequence.set_mask(mask.clone());
            self.pages.filled(sequence.slot, sequence.cached());
            let output = sequence.choose(&mut logits.clone(), &self.tokenizer)?;
            self.output(at, other, output);
            self.release_if_over(at, other);
        }
        self.release_if_over(at, n);
        Ok(())
    }

    fn output(&mut self, at: usize, n: usize, output: SequenceOutput) {
        let Some(request) = self.running.get_mut(at) else { return };
        let Some(sequence) = request.sequences.get(n) else { return };
        let choice = sequence.choice;
        if output.wrote {
            self.shared.wrote();
            self.waiting.wrote(&request.tenant, 1);
        }
        request.output(choice, output);
    }

    /// Releases the pages of an ended answer, even while others to the same prompt continue.
    fn release_if_over(&mut self, at: usize, n: usize) {
        let sequence = self.running.get_mut(at).and_then(|request| request.sequences.get_mut(n));
        if let Some(sequence) = sequence.filter(|sequence| sequence.state == SequenceState::Over && sequence.has_pages)
        {
            self.pages.release_slot(sequence.slot);
            sequence.has_pages = false;
        }
    }
}
