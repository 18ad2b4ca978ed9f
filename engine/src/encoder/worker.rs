//! Thread of an encoder: receives requests, fills steps with their texts in turn, and answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender, TryRecvError};

use super::input::{place, tokens_of};
use super::{EncodeJob, EncodeResult, Encoded, EncoderState, narrow};
use crate::EngineError;
use crate::exec::{Batch, Sizes};
use crate::model::BertShape;
use crate::runner::{self, Measured, Rebuildable, Recipient, RecoverableWorker, Tuning, Watch};
use crate::text::Tokenizer;

/// Tokens of each text in the full step that is measured at load.
const WARM_TOKENS: usize = 64;
/// Duration of the measurement of a step at load.
const WARM_TIME: Duration = Duration::from_millis(200);

/// Request that is being worked on.
pub(super) struct RunningRequest {
    job: EncodeJob,
    /// The first input that is not in a step yet.
    next: usize,
    done: Vec<Option<Encoded>>,
    /// Error of the request: one of its texts has no tokens.
    refused: Option<EngineError>,
}

/// Text of a step.
struct Placed {
    /// Index of the running request, and of the input within it.
    work: usize,
    input: usize,
    tokens: usize,
    truncated: bool,
}

pub(super) struct EncoderWorker {
    pub(super) name: String,
    pub(super) model: Rebuildable,
    pub(super) shape: BertShape,
    pub(super) sizes: Sizes,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) shared: Arc<EncoderState>,
    pub(super) jobs: Receiver<EncodeJob>,
    pub(super) running: VecDeque<RunningRequest>,
    pub(super) tuning: Tuning,
    pub(super) watch: Watch<Sender<EncodeResult>>,
}

impl RecoverableWorker for EncoderWorker {
    fn name(&self) -> &str {
        &self.name
    }

    fn requests(&self) -> usize {
        self.running.len()
    }

    fn model(&mut self) -> &mut Rebuildable {
        &mut self.model
    }

    /// Measures a short text, which reads all weights for one row, then a full step.
    fn warm_up(&mut self) -> Result<Measured, EngineError> {
        let step = self.measure(1, 1)?;
        let length = WARM_TOKENS.min(self.shape.context).max(1);
        let texts = (self.sizes.max_rows / length).clamp(1, self.sizes.max_picks);
        let full = self.measure(texts, length)?;
        let rows = u32::try_from(texts * length).unwrap_or(u32::MAX);
        let cost = full / rows.max(1);
        self.shared.cost.store(u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(Measured { rate: f64::from(rows) / full.as_secs_f64().max(f64::MIN_POSITIVE), step })
    }

    fn refuse(&mut self, fault: &EngineError) {
        while let Ok(job) = self.jobs.try_recv() {
            self.shared.left(&job);
            job.answer.fail(fault.clone());
        }
    }

    fn is_stopped(&self) -> bool {
        self.shared.health.is_stopped() || self.jobs.is_closed()
    }
}

impl EncoderWorker {
    /// Duration of a step over this many texts of this length.
    fn measure(&mut self, texts: usize, length: usize) -> Result<Duration, EngineError> {
        let mut batch = Batch { pages: vec![0; self.sizes.slots * self.sizes.pages_per_slot()], ..Batch::default() };
        for _ in 0..texts {
            place(&mut batch, &vec![0; length], length);
        }
        self.model.measure(self.tuning.first_step, &self.watch, &batch, WARM_TIME)
    }

    /// Works until the engine ends, then fails what is left.
    pub(super) fn work(&mut self) {
        let end = runner::run_until_end(self, Self::run);
        // First, so that a caller who is answered below and asks again at once is refused.
        self.shared.health.stop();
        self.jobs.close();
        self.fail_all(&end);
        self.refuse(&end);
    }

    fn run(&mut self) {
        while self.receive() {
            let shared = &self.shared;
            self.running.retain(|work| {
                let gone = work.job.answer.is_closed();
                if gone {
                    shared.left(&work.job);
                }
                !gone
            });
            if !self.running.is_empty()
                && let Err(fault) = self.step()
                && !self.recover(&fault)
            {
                break;
            }
            self.shared.waiting.store(self.running.len(), Ordering::Relaxed);
        }
    }

    fn fail_all(&mut self, error: &EngineError) {
        self.shared.waiting.store(0, Ordering::Relaxed);
        for work in self.running.drain(..) {
            self.shared.left(&work.job);
            work.job.answer.fail(error.clone());
        }
    }

    /// Fails the running requests after a device fault and sets the device up again. Returns false when the engine
    /// ends meanwhile.
    fn recover(&mut self, fault: &EngineError) -> bool {
        self.shared.health.set_recovering(true);
        tracing::error!(event = "device_failed", model = %self.name, reason = %fault, requests = self.running.len());
        self.fail_all(fault);
        let pause = self.tuning.retry_first;
        let recovered = runner::recover(self, fault, pause);
        if recovered {
            self.shared.health.set_recovering(false);
        }
        recovered
    }

    /// Receives new requests; blocks for one when idle. Returns false when the engine ends.
    fn receive(&mut self) -> bool {
        if self.running.is_empty() {
            match self.jobs.recv_blocking() {
                Ok(job) => self.begin(job),
                Err(_) => return false,
            }
        }
        // Running requests have the same bound as queued ones.
        while self.running.len() < self.jobs.capacity().unwrap_or(1) {
            match self.jobs.try_recv() {
                Ok(job) => self.begin(job),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Closed) => return false,
            }
        }
        !self.jobs.is_closed()
    }

    fn begin(&mut self, job: EncodeJob) {
        self.shared.waiting.store(self.running.len() + 1, Ordering::Relaxed);
        let done = vec![None; job.inputs.len()];
        self.running.push_back(RunningRequest { job, next: 0, done, refused: None });
    }

    /// Fills a step with one text of each request in turn, runs it and answers completed requests.
    fn step(&mut self) -> Result<(), EngineError> {
        let mut batch = Batch { pages: vec![0; self.sizes.slots * self.sizes.pages_per_slot()], ..Batch::default() };
        let mut placed: Vec<Placed> = Vec::new();
        'full: loop {
            let before = placed.len();
            for (n, work) in self.running.iter_mut().enumerate() {
                let Some(input) = work.job.inputs.get(work.next) else { continue };
                let (tokens, first, truncated) = match tokens_of(&self.tokenizer, &self.shape, input) {
                    Ok(read) => read,
                    Err(error) => {
                        work.refused = Some(EngineError::Input(error.to_string()));
                        work.next = work.job.inputs.len();
                        continue;
                    }
                };
                if placed.len() == self.sizes.max_picks || batch.rows.len() + tokens.len() > self.sizes.max_rows {
                    break 'full;
                }
                place(&mut batch, &tokens, if self.shape.has_second_type() { first } else { tokens.len() });
                placed.push(Placed { work: n, input: work.next, tokens: tokens.len(), truncated });
                work.next += 1;
            }
            if placed.len() == before {
                break;
            }
        }
        if !placed.is_empty() {
            self.run_step(&batch, &placed)?;
        }
        self.answer();
        Ok(())
    }

    /// Runs a step and stores the results of its texts.
    fn run_step(&mut self, batch: &Batch, placed: &[Placed]) -> Result<(), EngineError> {
        let started = Instant::now();
        let usual = Duration::from_nanos(self.shared.cost.load(Ordering::Relaxed));
        self.watch.recipients(self.running.iter().map(|work| work.job.answer.clone()).collect());
        let within = self.tuning.hang(usual.saturating_mul(narrow(batch.rows.len())));
        let values = self.model.forward_within(within, &self.watch, batch)?;
        let rows = u64::try_from(batch.rows.len()).unwrap_or(1).max(1);
        let cost = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX) / rows;
        self.shared.cost.store(cost, Ordering::Relaxed);
        self.shared.tokens.fetch_add(rows, Ordering::Relaxed);
        for (text, values) in placed.iter().zip(values.chunks_exact(self.shape.outputs())) {
            let slot = self.running.get_mut(text.work).and_then(|work| work.done.get_mut(text.input));
            if let Some(slot) = slot {
                let (values, tokens) = (values.to_vec(), narrow(text.tokens));
                *slot = Some(Encoded { values, tokens, truncated: text.truncated });
            }
        }
        Ok(())
    }

    /// Answers requests that are complete or refused.
    fn answer(&mut self) {
        // Before the answers go out, so that a caller who has one finds no finished request counted.
        let is_open = |work: &RunningRequest| work.refused.is_none() && work.done.iter().any(Option::is_none);
        let open = self.running.iter().filter(|work| is_open(work)).count();
        self.shared.waiting.store(open, Ordering::Relaxed);
        let mut left = VecDeque::with_capacity(self.running.len());
        for mut work in self.running.drain(..) {
            if is_open(&work) {
                left.push_back(work);
                continue;
            }
            self.shared.left(&work.job);
            let answer = work.refused.take().map_or_else(|| Ok(work.done.drain(..).flatten().collect()), Err);
            let _ = work.job.answer.try_send(answer);
        }
        // The last request of this step is the first of the next.
        left.rotate_right(usize::from(left.len() > 1));
        self.running = left;
    }
}
