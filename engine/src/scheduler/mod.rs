//! Continuous batching: chooses the sequences of the next step. One thread owns the executor and all sequences;
//! callers submit over a bounded channel and receive over one channel for each request.
//!
//! A step has one row for each decoding sequence and, as far as the time of a step allows, chunks of prompts (chunked
//! prefill): a long prompt costs the others one bounded delay a token instead of blocking them. A request is admitted
//! when it is its tenant's turn, slots are free and the KV pages of its prompt are available; pages of its answer are
//! allocated as it grows. When none is left, the youngest sequence is preempted in favour of the oldest and prefilled
//! again later. So the oldest always proceeds, and nothing grows past the KV cache.

mod cost;
mod masks;
mod pace;
mod pages;
mod plan;
mod prefixes;
mod queue;
mod request;
mod sequence;
mod shared;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender, TryRecvError};

use crate::exec::{Batch, PAGE, Row, Sizes};
use crate::runner::{self, Measured, ModelThread, Rebuildable, Recipient, RecoverableWorker, Tuning, Watch};
use crate::text::Tokenizer;
use crate::{Busy, EngineError, EngineStats, Event, Generate, LoadError, LoadOptions};
use cost::Cost;
use masks::Masks;
use pace::place;
use pages::Pages;
use plan::PendingPrompts;
use queue::Queue;
use request::Request;
use sequence::SequenceState;
use shared::SchedulerState;

/// Sleep of the thread while all running requests wait for their consumers.
const PARKED_SLEEP: Duration = Duration::from_millis(2);
/// Events of an answer buffered for its consumer; one more parks the request. The last events of a complete answer are
/// buffered beside them, so that its consumer needs the engine no more: those of one step, since a parked request takes
/// no other.
const EVENTS: usize = 64;
/// Time after which a parked request is ended in favour of one that waits for its slot, if its consumer has read
/// nothing. Far shorter than the stall timeout, which applies when no request waits.
const PARKED_LIMIT: Duration = Duration::from_secs(2);
/// Niceness added to engine threads, so that the proxy's threads get a core first.
const NICENESS: i32 = 5;

/// Message to the scheduler's thread.
pub(crate) enum Command {
    Serve(Job),
    /// Measures a step of prompts, unless requests run and so measure it.
    Measure,
}

/// Request on its way to the scheduler's thread.
pub(crate) struct Job {
    request: Generate,
    events: Sender<Event>,
    submitted: Instant,
}

impl Job {
    fn fail(&self, error: EngineError) {
        let _ = self.events.try_send(Event::Failed(error));
    }
}

impl Recipient for Sender<Event> {
    fn fail(self, error: EngineError) {
        let _ = self.try_send(Event::Failed(error));
        self.close();
    }
}

/// Callers' side of the scheduler's thread.
pub(crate) struct SchedulerHandle {
    pub(crate) thread: ModelThread<Command>,
    shared: Arc<SchedulerState>,
}

impl SchedulerHandle {
    /// Submits a request if its first token can be produced in time.
    pub(crate) fn submit(&self, request: Generate) -> Result<Receiver<Event>, Busy> {
        if let Err(refused) = self.shared.enter(&request) {
            if refused.wants_pace {
                // A full queue has requests, which measure it.
                let _ = self.thread.send(Command::Measure);
            }
            return Err(refused.busy);
        }
        let (events, receiver) = async_channel::unbounded();
        match self.thread.send(Command::Serve(Job { request, events, submitted: Instant::now() })) {
            Ok(()) => Ok(receiver),
            Err(refused) => {
                if let Command::Serve(job) = refused.into_inner() {
                    self.shared.leave_queue(&job.request);
                }
                Err(self.shared.stopped())
            }
        }
    }

    pub(crate) fn stats(&self) -> EngineStats {
        self.shared.stats()
    }

    pub(crate) fn estimated_wait(&self, prompt_tokens: usize, tenant: Option<&str>) -> Duration {
        self.shared.estimated_wait(prompt_tokens, &tenant.map(Arc::from))
    }
}

/// Starts the thread and waits until the model has run once.
pub(crate) fn start(
    model: Rebuildable,
    sizes: Sizes,
    tokenizer: &Arc<Tokenizer>,
    options: &LoadOptions,
) -> Result<SchedulerHandle, LoadError> {
    begin(model, sizes, tokenizer, options, Tuning::default())
}

fn begin(
    model: Rebuildable,
    sizes: Sizes,
    tokenizer: &Arc<Tokenizer>,
    options: &LoadOptions,
    tuning: Tuning,
) -> Result<SchedulerHandle, LoadError> {
    let queue = usize::try_from(options.max_queue).unwrap_or(usize::MAX);
    // One more than requests, for a command to measure.
    let (jobs, received) = async_channel::bounded(sizes.slots.saturating_add(queue).saturating_add(1));
    let shared = Arc::new(SchedulerState::new(sizes, queue, options.max_queue_wait));
    let placement = model.placement();
    let watched = shared.health.clone();
    let on_hang = move |at_first| watched.note_hang(at_first);
    let worker = |watch| SchedulerWorker {
        name: options.name.clone(),
        model,
        sizes,
        tokenizer: tokenizer.clone(),
        shared: shared.clone(),
        jobs: received,
        stall_timeout: options.stall_timeout,
        token_pause: options.token_pause,
        tuning,
        waiting: Queue::default(),
        running: Vec::new(),
        wants_pace: false,
        is_starved: false,
        free_slots: (0..sizes.slots).rev().collect(),
        pages: Pages::new(sizes, shared.prefixes.clone()),
        batch: Batch::default(),
        picked: Vec::new(),
        rows_read: 0,
        readers: PendingPrompts::default(),
        cost: Cost::default(),
        masks: Masks::default(),
        watch,
    };
    runner::launch(options, placement.clone(), on_hang, worker, SchedulerWorker::work)?;
    let thread = ModelThread::new(jobs, shared.health.clone(), placement);
    Ok(SchedulerHandle { thread, shared })
}

/// Lowers the priority of the calling thread, so that the proxy's threads get a core first.
pub(crate) fn lower_priority() {
    // SAFETY: changes the niceness of the calling thread, which on Linux has one of its own, and touches no memory.
    let _ = unsafe { libc::nice(NICENESS) };
}

struct SchedulerWorker {
    name: String,
    model: Rebuildable,
    sizes: Sizes,
    tokenizer: Arc<Tokenizer>,
    shared: Arc<SchedulerState>,
    jobs: Receiver<Command>,
    stall_timeout: Duration,
    token_pause: Duration,
    tuning: Tuning,
    waiting: Queue,
    /// Requests with slots, oldest first.
    running: Vec<Request>,
    /// An idle engine refused a prompt by an old estimate.
    wants_pace: bool,
    /// True if a request, or a preempted sequence, found no slot or pages at the last admission.
    is_starved: bool,
    free_slots: Vec<usize>,
    pages: Pages,
    batch: Batch,
    /// Request and sequence of each pick of the batch, by index.
    picked: Vec<(usize, usize)>,
    /// Prompt rows since the start: the clock that orders prompts.
    rows_read: u64,
    readers: PendingPrompts,
    cost: Cost,
    masks: Masks,
    watch: Watch<Sender<Event>>,
}

impl RecoverableWorker for SchedulerWorker {
    fn name(&self) -> &str {
        &self.name
    }

    fn requests(&self) -> usize {
        self.running.len()
    }

    fn model(&mut self) -> &mut Rebuildable {
        &mut self.model
    }

    fn warm_up(&mut self) -> Result<Measured, EngineError> {
        let mut step = Duration::MAX;
        for rows in [1, 8.min(self.sizes.context).min(self.sizes.max_rows)] {
            let row = |position: usize| Row { token: 0, position: narrow(position), slot: 0 };
            self.batch.rows = (0..rows).map(row).collect();
            self.batch.picks = vec![narrow(rows - 1)];
            self.batch.pages = self.pages.table().to_vec();
            let took = self.model.measure(self.tuning.first_step, &self.watch, &self.batch, Duration::MAX)?;
            self.shared.measured(rows > 1, took);
            self.cost.measured(rows, took);
            step = step.min(took);
        }
        // Until steps are as large as they will be: the first prompts are judged by their cost.
        while self.idle_rows() > self.cost.most() && self.measure_prompt_step()? {}
        self.plan_nothing();
        Ok(Measured { rate: 1.0 / step.as_secs_f64().max(f64::MIN_POSITIVE), step })
    }

    fn refuse(&mut self, fault: &EngineError) {
        while let Ok(command) = self.jobs.try_recv() {
            self.obey(command);
        }
        for job in self.waiting.drain() {
            self.shared.leave_queue(&job.request);
            job.fail(fault.clone());
        }
    }

    fn is_stopped(&self) -> bool {
        self.shared.health.is_stopped()
    }
}

impl SchedulerWorker {
    /// Works until the engine ends, then fails what is left.
    fn work(&mut self) {
        let end = runner::run_until_end(self, Self::run);
        // First, so that a caller who is answered below and asks again at once is refused.
        self.shared.health.stop();
        self.jobs.close();
        self.shared.set_running(0, 0, 0);
        self.running.drain(..).for_each(|request| request.fail(end.clone()));
        self.waiting.drain().iter().for_each(|job| job.fail(end.clone()));
        while let Ok(command) = self.jobs.try_recv() {
            if let Command::Serve(job) = command {
                job.fail(end.clone());
            }
        }
    }

    fn run(&mut self) {
        while self.receive() {
            if std::mem::take(&mut self.wants_pace)
                && self.is_idle()
                && let Err(fault) = self.measure_prompt_step()
                && !self.recover(&fault)
            {
                break;
            }
            self.settle();
            self.admit();
            if self.plan() {
                if let Err(fault) = self.step()
                    && !self.recover(&fault)
                {
                    break;
                }
            } else if !self.is_idle() {
                std::thread::sleep(PARKED_SLEEP);
            }
        }
    }

    /// Fails the running requests after a device fault and sets the device up again. Returns false when the engine
    /// ends meanwhile.
    fn recover(&mut self, fault: &EngineError) -> bool {
        self.shared.health.set_recovering(true);
        tracing::error!(event = "device_failed", model = %self.name, reason = %fault, requests = self.running.len());
        for request in std::mem::take(&mut self.running) {
            self.release(&request);
            request.fail(fault.clone());
        }
        self.update_watch();
        self.pages = Pages::new(self.sizes, self.shared.prefixes.clone());
        self.masks = Masks::default();
        self.shared.set_running(0, 0, 0);
        let pause = self.tuning.retry_first;
        let recovered = runner::recover(self, fault, pause);
        if recovered {
            self.shared.health.set_recovering(false);
        }
        recovered
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Serve(job) => self.waiting.push(job),
            Command::Measure => self.wants_pace = true,
        }
    }

    /// Measures a step of prompts while nothing runs, of as many rows as have free pages and fit the context. Returns true if
    /// these are all that such a step may have.
    fn measure_prompt_step(&mut self) -> Result<bool, EngineError> {
        let most = self.idle_rows();
        let rows = most.min(self.pages.free() * PAGE).min(self.sizes.context);
        if rows == 0 || self.pages.take(0, &vec![0; rows], 0).is_none() {
            return Ok(false);
        }
        self.batch.rows = (0..rows).map(|position| Row { token: 0, position: narrow(position), slot: 0 }).collect();
        self.batch.picks = vec![narrow(rows - 1)];
        self.batch.pages = self.pages.table().to_vec();
        let started = Instant::now();
        let ran = self.model.forward_within(self.tuning.first_step, &self.watch, &self.batch);
        self.pages.release_slot(0);
        self.cost.measured_anew(rows, started.elapsed());
        ran.map(|_| rows == most)
    }

    /// Receives new requests; blocks for one when idle. Returns false when the engine ends.
    fn receive(&mut self) -> bool {
        if self.is_idle() {
            self.plan_nothing();
            match self.jobs.recv_blocking() {
                Ok(command) => self.obey(command),
                Err(_) => return false,
            }
        }
        loop {
            match self.jobs.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return !self.shared.health.is_stopped(),
                Err(TryRecvError::Closed) => return false,
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Ends abandoned, late and stalled requests, and releases those that are finished.
    fn settle(&mut self) {
        let now = Instant::now();
        let mut changed = false;
        let mut at = 0;
        while let Some(request) = self.running.get_mut(at) {
            request.flush();
            let fault = if request.is_abandoned() || request.is_finished() {
                None
            } else {
                match request.fault(now, self.stall_timeout) {
                    Some(fault) => Some(fault),
                    None => {
                        at += 1;
                        continue;
                    }
                }
            };
            changed = true;
            let request = self.running.remove(at);
            self.release(&request);
            if let Some(fault) = fault {
                request.fail(fault);
            }
        }
        changed |= self.end_parked(now);
        if changed {
            self.update_watch();
        }
        let sequences = || self.running.iter().flat_map(|request| &request.sequences);
        let used = sequences().map(|sequence| sequence.read()).sum();
        self.shared.set_running(self.sizes.slots - self.free_slots.len(), used, self.pages.idle() * PAGE);
    }

    /// Ends the longest parked request if another waits for its slot. Returns true if one was ended.
    fn end_parked(&mut self, now: Instant) -> bool {
        // A refused request would have needed a slot or pages: a parked request keeps both.
        let is_short = self.free_slots.is_empty() || self.pages.available() < self.running.len();
        let was_refused = self.shared.take_refused() && is_short;
        if !was_refused && !self.is_starved {
            return false;
        }
        let parked = self.running.iter().enumerate().filter_map(|(at, request)| Some((request.parked_since()?, at)));
        let Some((since, at)) = parked.min() else { return false };
        if now.saturating_duration_since(since) < PARKED_LIMIT {
            return false;
        }
        let request = self.running.remove(at);
        self.release(&request);
        request.fail(EngineError::Stalled);
        true
    }

    /// Releases the slots and pages of a request.
    fn release(&mut self, request: &Request) {
        for sequence in &request.sequences {
            self.pages.release_slot(sequence.slot);
            self.free_slots.push(sequence.slot);
        }
        let answers = request.is_finished().then(|| request.answered() / request.sequences.len().max(1));
        self.shared.left(answers);
        self.waiting.left(&request.tenant);
    }

    fn update_watch(&self) {
        self.watch.recipients(self.running.iter().map(Request::reader).collect());
    }

    /// Allocates slots and pages: to preempted sequences, oldest first, then to waiting requests, in turn.
    fn admit(&mut self) {
        self.is_starved = false;
        let now = Instant::now();
        let shared = &self.shared;
        self.waiting.retain(|job| {
            let gone = job.events.is_closed();
            let late = job.request.deadline.is_some_and(|deadline| now >= deadline);
            if late && !gone {
                job.fail(EngineError::Deadline);
            }
            if gone || late {
                shared.leave_queue(&job.request);
            }
            !(gone || late)
        });
        // Each running sequence may soon need another page; with that many to spare, none has to be preempted for a
        // new one.
        let sequences = self.running.iter().flat_map(|request| &request.sequences);
        let mut spare = sequences.filter(|sequence| sequence.can_run()).count();
        for request in &mut self.running {
            let is_prefilled = request.is_prefilled();
            for n in 0..request.sequences.len() {
                let Some(sequence) = request.sequences.get_mut(n) else { continue };
                if sequence.state != SequenceState::Runs || sequence.has_pages {
                    continue;
                }
                let Some(read) = self.pages.take(sequence.slot, sequence.tokens(), spare) else {
                    self.is_starved = true;
                    return;
                };
                sequence.has_pages = true;
                sequence.set_read(read);
                spare += 1;
                if !is_prefilled {
                    request.set_cached(read);
                    self.shared.read(read, true);
                }
            }
        }
        let mut changed = false;
        while let Some(job) = self.waiting.front() {
            let choices = usize::try_from(job.request.choices.get()).unwrap_or(usize::MAX);
            let Some(rest) = self.free_slots.len().checked_sub(choices) else { break };
            let Some(slot) = self.free_slots.get(rest).copied() else { break };
            let Some(read) = self.pages.take(slot, job.request.prompt.tokens(), spare) else { break };
            let Some(job) = self.waiting.pop() else { break };
            self.shared.admitted(&job.request);
            self.shared.read(read, true);
            let slots = self.free_slots.split_off(rest);
            let unread = job.request.prompt.len().saturating_sub(read);
            let mut request = Request::new(&job, slots, self.sizes.context, place(self.rows_read, unread));
            request.set_cached(read);
            if let Some(first) = request.sequences.first_mut() {
                first.has_pages = true;
                first.set_read(read);
            }
            self.running.push(request);
            spare += 1;
            changed = true;
        }
        self.is_starved = self.waiting.front().is_some();
        if changed {
            self.update_watch();
        }
    }
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
