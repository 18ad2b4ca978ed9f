//! Serving: which sequences run in the next step. One thread owns the executor and all sequences; callers reach it over
//! a bounded channel and hear from it over one channel for each request.
//!
//! A step has one row for each answer that is being written and, in what is left, a part of the next prompt: a long
//! prompt costs the others one bounded delay a token instead of standing in their way. A request is admitted when a
//! place and the KV pages for its whole length are free, so that nothing that runs is ever put out again.

mod pages;
mod sequence;
mod shared;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender, TryRecvError};

use crate::exec::{Batch, Executor, Row, Sizes};
use crate::model::{Decoder, Loaded, MAX_ROWS};
use crate::text::{TextModel, Tokenizer};
use crate::{Busy, EngineError, EngineStats, Event, FinishReason, Generate, LoadError, LoadOptions};
use pages::Pages;
use sequence::{Phase, Sequence};
use shared::Shared;

/// Prompt tokens of a step while answers are being written.
const CHUNK_IN_COMPANY: usize = 16;
/// How long the thread sleeps when all that runs waits for its readers.
const PARKED_NAP: Duration = Duration::from_millis(2);
/// Events of an answer that wait for its reader; one more parks the sequence.
const EVENTS: usize = 64;
/// How much nicer than the proxy's threads the engine is.
const NICENESS: i32 = 5;

/// A request on its way to the thread.
struct Job {
    request: Generate,
    events: Sender<Event>,
    submitted: Instant,
}

/// The callers' side of the thread.
pub(crate) struct Handle {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
}

impl Handle {
    /// Takes a request if it can be begun in time.
    pub(crate) fn submit(&self, request: Generate) -> Result<Receiver<Event>, Busy> {
        self.shared.enter(&request)?;
        let prompt = request.prompt.len();
        let (events, receiver) = async_channel::bounded(EVENTS);
        match self.jobs.try_send(Job { request, events, submitted: Instant::now() }) {
            Ok(()) => Ok(receiver),
            Err(_) => {
                self.shared.leave_queue(prompt);
                Err(self.shared.stopped())
            }
        }
    }

    pub(crate) fn stats(&self) -> EngineStats {
        self.shared.stats()
    }

    pub(crate) fn estimated_wait(&self, prompt_tokens: usize) -> Duration {
        self.shared.estimated_wait(prompt_tokens)
    }

    pub(crate) fn shutdown(&self) {
        self.shared.stop();
        self.jobs.close();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Starts the thread and waits until the model has run once.
pub(crate) fn start(loaded: Loaded, text: &TextModel, options: &LoadOptions) -> Result<Handle, LoadError> {
    let places = loaded.sizes.slots;
    let queue = usize::try_from(options.max_queue).unwrap_or(usize::MAX);
    let (jobs, received) = async_channel::bounded(places.saturating_add(queue).max(1));
    let shared = Arc::new(Shared::new(loaded.sizes, queue, options.max_queue_wait));
    let (ready, wait) = std::sync::mpsc::sync_channel(1);
    let device = loaded.device.name.clone();
    let mut worker = Worker {
        model: loaded.model,
        executor: loaded.executor,
        sizes: loaded.sizes,
        tokenizer: text.tokenizer().clone(),
        shared: shared.clone(),
        jobs: received,
        stall_timeout: options.stall_timeout,
        waiting: VecDeque::new(),
        running: Vec::new(),
        pages: Pages::new(loaded.sizes),
        batch: Batch::default(),
        turn: 0,
    };
    let refused = |reason: String| LoadError::Device { device: device.clone(), reason };
    std::thread::Builder::new()
        .name(format!("engine-{}", options.name))
        .spawn(move || {
            be_nice();
            let warm = worker.warm_up();
            let well = warm.is_ok();
            let _ = ready.send(warm);
            if well {
                worker.run();
            }
        })
        .map_err(|e| refused(format!("its thread cannot be started: {e}")))?;
    match wait.recv() {
        Ok(Ok(())) => Ok(Handle { jobs, shared }),
        Ok(Err(e)) => Err(refused(e.to_string())),
        Err(_) => Err(refused("its thread ended while it started".into())),
    }
}

/// The engine gives way to the proxy's threads where both want a core.
pub(crate) fn be_nice() {
    // SAFETY: changes the niceness of the calling thread, which on Linux has one of its own, and touches no memory.
    let _ = unsafe { libc::nice(NICENESS) };
}

struct Worker {
    model: Decoder,
    executor: Box<dyn Executor>,
    sizes: Sizes,
    tokenizer: Arc<Tokenizer>,
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    stall_timeout: Duration,
    waiting: VecDeque<Job>,
    running: Vec<Sequence>,
    pages: Pages,
    batch: Batch,
    /// Counts steps, so that prompts take turns.
    turn: usize,
}

impl Worker {
    /// Runs each shape of step once, so that nothing is compiled and no cost is unknown when the first request comes.
    fn warm_up(&mut self) -> Result<(), EngineError> {
        for rows in [1, 8.min(self.sizes.context)] {
            let row = |position: usize| Row { token: 0, position: narrow(position), slot: 0 };
            self.batch.rows = (0..rows).map(row).collect();
            self.batch.picks = vec![narrow(rows - 1)];
            self.batch.pages = self.pages.table().to_vec();
            // The first run of a shape pays for its compilation; the second is what a step costs.
            for measured in [false, true] {
                let started = Instant::now();
                self.model.forward(self.executor.as_mut(), &self.batch)?;
                if measured {
                    self.shared.measured(rows, 1, started.elapsed());
                }
            }
        }
        Ok(())
    }

    fn run(&mut self) {
        loop {
            if !self.receive() {
                break;
            }
            self.admit();
            self.settle();
            if self.plan() {
                self.step();
            } else if !self.running.is_empty() || !self.waiting.is_empty() {
                std::thread::sleep(PARKED_NAP);
            }
        }
        for sequence in self.running.drain(..) {
            sequence.fail(EngineError::Shutdown);
        }
        while let Some(job) = self.waiting.pop_front().or_else(|| self.jobs.try_recv().ok()) {
            let _ = job.events.force_send(Event::Failed(EngineError::Shutdown));
        }
        self.shared.set_running(0, 0);
    }

    /// Takes new requests; waits for one when there is nothing else to do. False when the engine ends.
    fn receive(&mut self) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
            match self.jobs.recv_blocking() {
                Ok(job) => self.waiting.push_back(job),
                Err(_) => return false,
            }
        }
        loop {
            match self.jobs.try_recv() {
                Ok(job) => self.waiting.push_back(job),
                Err(TryRecvError::Empty) => return !self.shared.is_stopped(),
                Err(TryRecvError::Closed) => return false,
            }
        }
    }

    /// Gives places and pages to those who wait, in their order.
    fn admit(&mut self) {
        let now = Instant::now();
        let shared = &self.shared;
        self.waiting.retain(|job| {
            let gone = job.events.is_closed();
            let late = job.request.deadline.is_some_and(|deadline| now >= deadline);
            if late && !gone {
                let _ = job.events.force_send(Event::Failed(EngineError::Deadline));
            }
            if gone || late {
                shared.leave_queue(job.request.prompt.len());
            }
            !(gone || late)
        });
        while self.running.len() < self.sizes.slots {
            let Some(job) = self.waiting.front() else { break };
            let length = Sequence::length(&job.request, &self.sizes);
            let Some(slot) = self.pages.take(length) else { break };
            let Some(job) = self.waiting.pop_front() else { break };
            self.shared.admitted();
            self.running.push(Sequence::new(job.request, job.events, job.submitted, slot, length));
        }
    }

    /// Ends what nobody wants any more and lets go of those that are done.
    fn settle(&mut self) {
        let now = Instant::now();
        let mut at = 0;
        while let Some(sequence) = self.running.get_mut(at) {
            sequence.flush();
            let fault = if sequence.is_abandoned() || (sequence.is_over() && sequence.is_told()) {
                Some(None)
            } else if sequence.deadline().is_some_and(|deadline| now >= deadline) && !sequence.is_over() {
                Some(Some(EngineError::Deadline))
            } else if sequence.stalled_for(now) > self.stall_timeout {
                Some(Some(EngineError::Stalled))
            } else {
                None
            };
            let Some(fault) = fault else {
                at += 1;
                continue;
            };
            let sequence = self.running.swap_remove(at);
            self.pages.give_back(sequence.slot());
            self.shared.left(&sequence);
            if let Some(fault) = fault {
                sequence.fail(fault);
            }
        }
        self.shared.set_running(self.running.len(), self.running.iter().map(Sequence::position).sum());
    }

    /// Fills the batch of the next step. False when nothing can run.
    fn plan(&mut self) -> bool {
        self.batch.rows.clear();
        self.batch.picks.clear();
        for sequence in &mut self.running {
            sequence.in_step = 0;
            if sequence.phase() == Phase::Decode && sequence.is_told() {
                self.batch.picks.push(narrow(self.batch.rows.len()));
                self.batch.rows.push(sequence.next_row());
                sequence.in_step = 1;
            }
        }
        let room = if self.batch.rows.is_empty() { MAX_ROWS } else { CHUNK_IN_COMPANY };
        let mut room = room.min(MAX_ROWS.saturating_sub(self.batch.rows.len()));
        // Prompts take turns by step, so that a long one does not keep a short one behind it waiting.
        let count = self.running.len().max(1);
        self.turn = self.turn.wrapping_add(1);
        for n in 0..self.running.len() {
            let Some(sequence) = self.running.get_mut((self.turn + n) % count) else { continue };
            if sequence.phase() != Phase::Prefill || room == 0 {
                continue;
            }
            sequence.begin();
            let rows = sequence.prompt_rows(room);
            room -= rows.len();
            sequence.in_step = rows.len();
            self.batch.rows.extend_from_slice(&rows);
            if sequence.prompt_left() == rows.len() {
                self.batch.picks.push(narrow(self.batch.rows.len() - 1));
            }
        }
        !self.batch.rows.is_empty()
    }

    fn step(&mut self) {
        self.batch.pages.clear();
        self.batch.pages.extend_from_slice(self.pages.table());
        let started = Instant::now();
        let logits = match self.model.forward(self.executor.as_mut(), &self.batch) {
            Ok(logits) => logits,
            Err(fault) => {
                // The step's sequences cannot go on; those that wait may have better luck.
                for sequence in self.running.drain(..) {
                    self.pages.give_back(sequence.slot());
                    self.shared.left(&sequence);
                    sequence.fail(fault.clone());
                }
                return;
            }
        };
        self.shared.measured(self.batch.rows.len(), self.batch.picks.len(), started.elapsed());
        let width = logits.len().checked_div(self.batch.picks.len()).unwrap_or(0).max(1);
        let picked = self.batch.picks.iter().zip(logits.chunks_exact(width));
        for (pick, logits) in picked {
            let Some(row) = usize::try_from(*pick).ok().and_then(|pick| self.batch.rows.get(pick)) else { continue };
            let Some(sequence) = self.running.iter_mut().find(|s| s.slot() == row.slot as usize) else { continue };
            let token = sequence.choose(logits);
            if self.tokenizer.is_end(token) {
                sequence.finish(FinishReason::Stop);
            } else {
                self.shared.wrote();
                sequence.push(token, self.tokenizer.bytes_of(token));
            }
        }
        for sequence in &mut self.running {
            let read = sequence.advance();
            self.shared.read(read);
        }
    }
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
