//! Serving: which sequences run in the next step. One thread owns the executor and all sequences; callers reach it over
//! a bounded channel and hear from it over one channel for each request.
//!
//! A step has one row for each answer that is being written and, as far as the time for a step goes, parts of prompts:
//! a long prompt costs the others one bounded delay a token instead of standing in their way. A request is admitted when
//! it is its tenant's turn, places are free and the KV pages for its prompt can be had; pages for its answer are taken
//! as it grows. When none is left, the youngest sequence gives its pages to the oldest and is read again later: the
//! oldest always gets on, and nothing grows past the cache.

mod cost;
mod masks;
mod pace;
mod pages;
mod plan;
mod queue;
mod request;
mod sequence;
mod shared;
mod step;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender, TryRecvError};

use crate::exec::{Batch, Row, Sizes};
use crate::runner::{self, Measured, Reader, Rebuildable, Serves, Tuning, Watch};
use crate::text::Tokenizer;
use crate::{Busy, EngineError, EngineStats, Event, Generate, LoadError, LoadOptions, Placement};
use cost::Cost;
use masks::Masks;
use pace::place;
use pages::Pages;
use plan::Readers;
use queue::Queue;
use request::Request;
use sequence::State;
use shared::Shared;

/// How long the thread sleeps when all that runs waits for its readers.
const PARKED_NAP: Duration = Duration::from_millis(2);
/// Events of an answer that wait for its reader; one more parks the request. The last ones of a complete answer wait beside
/// them, so that its reader needs the engine no more: those of one step, since a parked request takes no other.
const EVENTS: usize = 64;
/// A parked request gives way to one that waits for its place when its reader has taken nothing for so long. It is far
/// shorter than the stall timeout, which is for readers whom nobody waits for.
const GIVES_WAY: Duration = Duration::from_secs(2);
/// How much nicer than the proxy's threads the engine is.
const NICENESS: i32 = 5;
/// A request on its way to the thread.
struct Job {
    request: Generate,
    events: Sender<Event>,
    submitted: Instant,
}

impl Job {
    fn fail(&self, error: EngineError) {
        let _ = self.events.try_send(Event::Failed(error));
    }
}

impl Reader for Sender<Event> {
    fn fail(self, error: EngineError) {
        let _ = self.try_send(Event::Failed(error));
        self.close();
    }
}

/// The callers' side of the thread.
pub(crate) struct Handle {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
    placement: Arc<Mutex<Placement>>,
}

impl Handle {
    /// Takes a request if it can be begun in time.
    pub(crate) fn submit(&self, request: Generate) -> Result<Receiver<Event>, Busy> {
        self.shared.enter(&request)?;
        let (events, receiver) = async_channel::unbounded();
        match self.jobs.try_send(Job { request, events, submitted: Instant::now() }) {
            Ok(()) => Ok(receiver),
            Err(refused) => {
                self.shared.leave_queue(&refused.into_inner().request);
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

    /// Where it runs.
    pub(crate) fn placement(&self) -> Placement {
        self.placement.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it has ended and takes nothing any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.shared.is_stopped()
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
pub(crate) fn start(
    made: Rebuildable,
    sizes: Sizes,
    tokenizer: &Arc<Tokenizer>,
    options: &LoadOptions,
) -> Result<Handle, LoadError> {
    begin(made, sizes, tokenizer, options, Tuning::default())
}

fn begin(
    made: Rebuildable,
    sizes: Sizes,
    tokenizer: &Arc<Tokenizer>,
    options: &LoadOptions,
    tuning: Tuning,
) -> Result<Handle, LoadError> {
    let queue = usize::try_from(options.max_queue).unwrap_or(usize::MAX);
    let (jobs, received) = async_channel::bounded(sizes.slots.saturating_add(queue).max(1));
    let shared = Arc::new(Shared::new(sizes, queue, options.max_queue_wait));
    let placement = made.placement();
    let watched = shared.clone();
    let on_hang = move |at_first| {
        if at_first {
            watched.stop();
        }
        watched.set_recovering(true);
    };
    let worker = |watch| Worker {
        name: options.name.clone(),
        made,
        sizes,
        tokenizer: tokenizer.clone(),
        shared: shared.clone(),
        jobs: received,
        stall_timeout: options.stall_timeout,
        token_pause: options.token_pause,
        tuning,
        waiting: Queue::default(),
        running: Vec::new(),
        is_starved: false,
        free_slots: (0..sizes.slots).rev().collect(),
        pages: Pages::new(sizes),
        batch: Batch::default(),
        picked: Vec::new(),
        rows_read: 0,
        readers: Readers::default(),
        cost: Cost::default(),
        masks: Masks::default(),
        watch,
    };
    runner::launch(options, placement.clone(), on_hang, worker, Worker::work)?;
    Ok(Handle { jobs, shared, placement })
}

/// The engine gives way to the proxy's threads where both want a core.
pub(crate) fn be_nice() {
    // SAFETY: changes the niceness of the calling thread, which on Linux has one of its own, and touches no memory.
    let _ = unsafe { libc::nice(NICENESS) };
}

struct Worker {
    name: String,
    made: Rebuildable,
    sizes: Sizes,
    tokenizer: Arc<Tokenizer>,
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    stall_timeout: Duration,
    token_pause: Duration,
    tuning: Tuning,
    waiting: Queue,
    /// Oldest first.
    running: Vec<Request>,
    /// A request, or a sequence that lost its pages, found no room when places were last given.
    is_starved: bool,
    free_slots: Vec<usize>,
    pages: Pages,
    batch: Batch,
    /// Whose picks those of the batch are: request and sequence, by their places.
    picked: Vec<(usize, usize)>,
    /// Rows of prompts since the start: the clock by which prompts have their places.
    rows_read: u64,
    readers: Readers,
    cost: Cost,
    masks: Masks,
    watch: Watch<Sender<Event>>,
}

impl Serves for Worker {
    fn name(&self) -> &str {
        &self.name
    }

    fn requests(&self) -> usize {
        self.running.len()
    }

    fn made(&mut self) -> &mut Rebuildable {
        &mut self.made
    }

    fn warm_up(&mut self) -> Result<Measured, EngineError> {
        let mut step = Duration::MAX;
        for rows in [1, 8.min(self.sizes.context).min(self.sizes.max_rows)] {
            let row = |position: usize| Row { token: 0, position: narrow(position), slot: 0 };
            self.batch.rows = (0..rows).map(row).collect();
            self.batch.picks = vec![narrow(rows - 1)];
            self.batch.pages = self.pages.table().to_vec();
            let took = self.made.measure(self.tuning.first_step, &self.watch, &self.batch, Duration::MAX)?;
            self.shared.measured(rows > 1, took);
            self.cost.measured(rows, took);
            step = step.min(took);
        }
        self.plan_nothing();
        Ok(Measured { rate: 1.0 / step.as_secs_f64().max(f64::MIN_POSITIVE), step })
    }

    fn refuse(&mut self, fault: &EngineError) {
        while let Ok(job) = self.jobs.try_recv() {
            self.waiting.push(job);
        }
        for job in self.waiting.drain() {
            self.shared.leave_queue(&job.request);
            job.fail(fault.clone());
        }
    }

    fn is_stopped(&self) -> bool {
        self.shared.is_stopped()
    }
}

impl Worker {
    /// Works until the engine ends, and ends it.
    fn work(&mut self) {
        let end = runner::until_the_end(self, Self::run);
        // First, so that whoever is told below and asks at once is refused.
        self.shared.stop();
        self.jobs.close();
        self.shared.set_running(0, 0, 0);
        self.running.drain(..).for_each(|request| request.fail(end.clone()));
        self.waiting.drain().iter().for_each(|job| job.fail(end.clone()));
        while let Ok(job) = self.jobs.try_recv() {
            job.fail(end.clone());
        }
    }

    fn run(&mut self) {
        while self.receive() {
            self.settle();
            self.admit();
            if self.plan() {
                if let Err(fault) = self.step()
                    && !self.recover(&fault)
                {
                    break;
                }
            } else if !self.is_idle() {
                std::thread::sleep(PARKED_NAP);
            }
        }
    }

    /// After a fault of the device: ends what ran and sets the device up again. False when the engine ends meanwhile.
    fn recover(&mut self, fault: &EngineError) -> bool {
        self.shared.set_recovering(true);
        tracing::error!(event = "device_failed", model = %self.name, reason = %fault, requests = self.running.len());
        for request in std::mem::take(&mut self.running) {
            self.let_go(&request);
            request.fail(fault.clone());
        }
        self.tell_watch();
        self.pages = Pages::new(self.sizes);
        self.masks = Masks::default();
        self.shared.set_running(0, 0, 0);
        let pause = self.tuning.retry_first;
        let recovered = runner::recover(self, fault, pause);
        if recovered {
            self.shared.set_recovering(false);
        }
        recovered
    }

    /// Takes new requests; waits for one when there is nothing else to do. False when the engine ends.
    fn receive(&mut self) -> bool {
        if self.is_idle() {
            self.plan_nothing();
            match self.jobs.recv_blocking() {
                Ok(job) => self.waiting.push(job),
                Err(_) => return false,
            }
        }
        loop {
            match self.jobs.try_recv() {
                Ok(job) => self.waiting.push(job),
                Err(TryRecvError::Empty) => return !self.shared.is_stopped(),
                Err(TryRecvError::Closed) => return false,
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Ends what nobody wants any more and lets go of those that are done.
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
            self.let_go(&request);
            if let Some(fault) = fault {
                request.fail(fault);
            }
        }
        changed |= self.give_way(now);
        if changed {
            self.tell_watch();
        }
        let sequences = || self.running.iter().flat_map(|request| &request.sequences);
        let used = sequences().map(|sequence| sequence.read()).sum();
        self.shared.set_running(self.sizes.slots - self.free_slots.len(), used, self.pages.idle() * crate::exec::PAGE);
    }

    /// Ends the request that has been parked for longest, where another waits for its place. True when one was ended.
    fn give_way(&mut self, now: Instant) -> bool {
        // Who was refused would have needed a slot or pages: a parked request keeps both.
        let is_short = self.free_slots.is_empty() || self.pages.available() < self.running.len();
        let was_refused = self.shared.take_refused() && is_short;
        if !was_refused && !self.is_starved {
            return false;
        }
        let parked = self.running.iter().enumerate().filter_map(|(at, request)| Some((request.parked_since()?, at)));
        let Some((since, at)) = parked.min() else { return false };
        if now.saturating_duration_since(since) < GIVES_WAY {
            return false;
        }
        let request = self.running.remove(at);
        self.let_go(&request);
        request.fail(EngineError::Stalled);
        true
    }

    /// Takes back what a request held.
    fn let_go(&mut self, request: &Request) {
        for sequence in &request.sequences {
            self.pages.give_back(sequence.slot);
            self.free_slots.push(sequence.slot);
        }
        let answers = request.is_finished().then(|| request.answered() / request.sequences.len().max(1));
        self.shared.left(answers);
        self.waiting.left(&request.tenant);
    }

    fn tell_watch(&self) {
        self.watch.readers(self.running.iter().map(Request::reader).collect());
    }

    /// Gives places and pages: to those who lost their pages, oldest first, then to those who wait, in turn.
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
        // Each that runs may soon want a page more; with that much to spare, none has to give up what it was just given.
        let sequences = self.running.iter().flat_map(|request| &request.sequences);
        let mut spare = sequences.filter(|sequence| sequence.can_run()).count();
        for request in &mut self.running {
            let is_prefilled = request.is_prefilled();
            for n in 0..request.sequences.len() {
                let Some(sequence) = request.sequences.get_mut(n) else { continue };
                if sequence.state != State::Runs || sequence.placed {
                    continue;
                }
                let Some(read) = self.pages.take(sequence.slot, sequence.tokens(), spare) else {
                    self.is_starved = true;
                    return;
                };
                sequence.placed = true;
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
                first.placed = true;
                first.set_read(read);
            }
            self.running.push(request);
            spare += 1;
            changed = true;
        }
        self.is_starved = self.waiting.front().is_some();
        if changed {
            self.tell_watch();
        }
    }
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
