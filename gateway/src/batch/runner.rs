//! The task that answers lines. It owns which lines run: it reads new input files, takes lines that wait, gives them to the
//! pipeline, writes their ends, and writes the files of results. One process at a time does so, which holds the lock of the store.
//!
//! How many lines of a batch run follows what the admission says: one more for each window of answers, and no more than run when a
//! line finds no room. A batch none of whose lines runs waits a while after that, and one that a limit holds up for as long as
//! that says.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::input::{self, InputBounds, Unread};
use super::record::{BatchRecord, FileRecord, InputFault, Status};
use super::store::{CHUNK, EndedLine, Line, LineState, Store, StoreError};
use super::{Active, BatchOrigin, Batches, OUTPUT, results};
use crate::clock::unix_now;
use crate::telemetry::{Label, LineEnded};

/// Longest wait for the end of what runs when the process leaves.
pub(super) const LEAVING: Duration = Duration::from_secs(3);
/// Time between two looks at batches: for the end of their time, and for what another process has written.
const LOOK: Duration = Duration::from_secs(1);
/// Time between two counts of what is stored.
const FIGURES: Duration = Duration::from_secs(5);
/// Time between two deletions of what is too old.
const EXPIRY: Duration = Duration::from_secs(60);
/// Time without a line after which the store is asked again, after it failed.
const STORE_WAIT: Duration = Duration::from_secs(1);
/// Waits of a batch whose line found no room: the first, and the longest where nothing else was told.
const NO_ROOM: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Longest wait that a server or a limit may ask of a batch.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Times that a line is tried whose server fails.
const TRIES: u32 = 3;
/// Wait of a batch after a line whose server failed, times the number of its tries.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Lines that are taken from the store at a time.
const TAKEN: usize = 64;
/// Batches whose input is read, or whose results are written, at a time.
const FILES_AT_ONCE: usize = 2;

/// Line that is to be answered.
pub struct LineCall {
    /// Name of the consumer.
    pub owner: Arc<str>,
    /// Where it comes from.
    pub origin: Arc<BatchOrigin>,
    /// Path.
    pub endpoint: Arc<str>,
    /// JSON body.
    pub body: Bytes,
    /// Part of the free slots that lines may have together.
    pub share: f64,
    /// Longest answer, bytes.
    pub max_answer: usize,
}

/// End of a line, as the pipeline tells it.
#[derive(Debug)]
pub enum LineEnd {
    /// It was answered.
    Answered {
        /// Status of the answer.
        status: u16,
        /// Id of the request.
        request_id: String,
        /// Body of the answer.
        body: Bytes,
        /// Wait that the answer asks for.
        retry_after: Option<Duration>,
    },
    /// No target had room for it.
    NoRoom,
    /// A caller needed its place.
    Displaced,
    /// There is no answer, and there will be none.
    Failed {
        /// Code for programs.
        code: &'static str,
        /// Reason in words.
        message: String,
    },
}

/// Way of lines through the gateway.
#[async_trait]
pub trait LineRunner: Send + Sync {
    /// Answers a line. Dropped, the line ends.
    async fn answer(&self, line: LineCall) -> LineEnd;
}

/// Batch whose lines run.
struct Running {
    record: BatchRecord,
    owner: Arc<str>,
    origin: Arc<BatchOrigin>,
    endpoint: Arc<str>,
    /// Lines that were taken and wait.
    queue: VecDeque<Line>,
    in_flight: usize,
    /// True once the store has no line that waits.
    is_taken: bool,
    /// Lines that have ended and are not written.
    ended: Vec<EndedLine>,
    /// Lines that may run.
    window: f64,
    /// Time before which no line of it runs.
    not_before: Instant,
    /// Lines in a row that found no room.
    refusals: u32,
    /// True once no further line of it is to run.
    is_stopped: bool,
}

impl Running {
    fn new(record: BatchRecord) -> Self {
        Self {
            owner: record.owner.as_str().into(),
            origin: Arc::new(record.origin.clone()),
            endpoint: record.endpoint.as_str().into(),
            record,
            queue: VecDeque::new(),
            in_flight: 0,
            is_taken: false,
            window: 1.0,
            ended: Vec::new(),
            not_before: Instant::now(),
            refusals: 0,
            is_stopped: false,
        }
    }

    fn is_over(&self) -> bool {
        self.is_taken && self.queue.is_empty() && self.in_flight == 0 && self.ended.is_empty()
    }

    /// True if a further line may run.
    fn has_window(&self) -> bool {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to 65,535")]
        let window = self.window as usize;
        self.in_flight < window.max(1)
    }

    /// Delays what follows a line that was not answered for good; `told` is the wait that was asked for.
    fn again(&mut self, told: Option<Duration>, counted: LineEnded) {
        let wait = match (told, counted) {
            (Some(told), _) => told,
            // Another line of it ends first, and leaves its place.
            (None, LineEnded::NoRoom) if self.in_flight > 0 => Duration::ZERO,
            (None, _) => {
                let (first, longest) = NO_ROOM;
                let wait = first.saturating_mul(1 << self.refusals.min(10)).min(longest);
                self.refusals = self.refusals.saturating_add(1);
                wait
            }
        };
        self.window = f64::from(u16::try_from(self.in_flight).unwrap_or(u16::MAX)).max(1.0);
        self.not_before = self.not_before.max(Instant::now() + wait.min(LONGEST_WAIT));
    }
}

/// End of a line with its place.
struct LineDone {
    batch: String,
    line: Line,
    custom_id: String,
    end: LineEnd,
}

/// End of work on a file of a batch.
struct FileDone {
    batch: String,
    result: Result<(), StoreError>,
}

/// Runs until the process leaves.
pub(super) async fn run(batches: Arc<Batches>, lines: Arc<dyn LineRunner>) {
    while !batches.is_leaving() {
        let Some(active) = batches.active.load_full() else {
            batches.woken(LOOK).await;
            continue;
        };
        let store = active.store.clone();
        let locked = tokio::task::spawn_blocking(move || store.lock()).await;
        match locked {
            Ok(Ok(Some(_lock))) => {
                let mut session = Session::new(batches.clone(), active.store.clone(), lines.clone());
                if let Err(e) = session.run().await {
                    report(&e);
                    batches.woken(STORE_WAIT).await;
                }
                session.end().await;
            }
            // Another process answers lines.
            Ok(Ok(None)) => batches.woken(LOOK).await,
            Ok(Err(e)) => {
                report(&e);
                batches.woken(STORE_WAIT).await;
            }
            Err(e) => tracing::error!(event = "batches_failed", reason = %e),
        }
    }
}

fn report(error: &StoreError) {
    tracing::error!(event = "batches_failed", reason = %error);
}

impl Batches {
    fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    /// Waits until there may be something to do.
    async fn woken(&self, most: Duration) {
        let _ = tokio::time::timeout(most, self.wake.notified()).await;
    }
}

/// Time in which this process holds the lock of one store.
struct Session {
    batches: Arc<Batches>,
    store: Arc<Store>,
    runner: Arc<dyn LineRunner>,
    running: BTreeMap<String, Running>,
    lines: JoinSet<LineDone>,
    /// Batches of the tasks in `lines`, by which they are ended.
    handles: HashMap<tokio::task::Id, (String, Line, tokio::task::AbortHandle)>,
    files: JoinSet<FileDone>,
    /// Batches whose files are worked on.
    filing: HashMap<String, tokio::task::AbortHandle>,
    /// Consumer that was served last, for turns.
    turn: Option<Arc<str>>,
}

impl Session {
    fn new(batches: Arc<Batches>, store: Arc<Store>, runner: Arc<dyn LineRunner>) -> Self {
        Self {
            batches,
            store,
            runner,
            running: BTreeMap::new(),
            lines: JoinSet::new(),
            handles: HashMap::new(),
            files: JoinSet::new(),
            filing: HashMap::new(),
            turn: None,
        }
    }

    /// Settings, while the store is the one of the running configuration.
    fn active(&self) -> Option<Arc<Active>> {
        let is_here = |active: &Arc<Active>| Arc::ptr_eq(&active.store, &self.store);
        self.batches.active.load_full().filter(is_here).filter(|_| !self.batches.is_leaving())
    }

    async fn run(&mut self) -> Result<(), StoreError> {
        self.store.release_all().await?;
        self.store.sweep().await?;
        let now = Instant::now();
        let (mut look, mut expiry, mut figures) = (now, now, now);
        while let Some(active) = self.active() {
            let now = Instant::now();
            if now >= expiry {
                let keep = active.rules.keep.as_secs();
                self.store.expire(unix_now(), unix_now().saturating_sub(keep)).await?;
                expiry = now + EXPIRY;
            }
            if now >= figures {
                let (states, files, bytes) = self.store.figures().await?;
                self.batches.metrics.show(&states, files, bytes);
                figures = now + FIGURES;
            }
            if now >= look {
                self.look(&active).await?;
                look = Instant::now() + LOOK;
            }
            self.write().await?;
            self.dispatch(&active).await?;
            let next = self.next_turn().map_or(look, |turn| turn.min(look));
            tokio::select! {
                Some(done) = self.lines.join_next_with_id(), if !self.lines.is_empty() => {
                    self.line_done(done);
                    while let Some(done) = self.lines.try_join_next_with_id() {
                        self.line_done(done);
                    }
                }
                Some(done) = self.files.join_next(), if !self.files.is_empty() => {
                    match done {
                        Ok(FileDone { batch, result }) => {
                            self.filing.remove(&batch);
                            result?;
                        }
                        Err(e) if e.is_cancelled() => {}
                        Err(e) => tracing::error!(event = "batches_failed", reason = %e),
                    }
                    look = Instant::now();
                }
                () = self.batches.wake.notified() => look = Instant::now(),
                () = sleep_until(next) => {}
            }
        }
        Ok(())
    }

    /// Waits for the lines that run while the process drains, then ends them, and gives the rest back to the store.
    async fn end(&mut self) {
        for handle in self.filing.values() {
            handle.abort();
        }
        let mut is_ended = false;
        while !self.lines.is_empty() {
            let is_draining = self.batches.is_leaving() && !self.batches.is_closing.load(Ordering::Acquire);
            if !is_draining && !std::mem::replace(&mut is_ended, true) {
                for (_, _, handle) in self.handles.values() {
                    handle.abort();
                }
            }
            tokio::select! {
                Some(done) = self.lines.join_next_with_id() => self.line_done(done),
                () = self.batches.wake.notified(), if !is_ended => {}
            }
        }
        while self.files.join_next().await.is_some() {}
        if let Err(e) = self.write().await {
            report(&e);
        }
        for (id, running) in std::mem::take(&mut self.running) {
            if let Err(e) = self.store.release(&id, running.queue.into()).await {
                report(&e);
            }
        }
        self.batches.metrics.in_flight.set(0);
    }

    /// Compares what runs with what is stored.
    async fn look(&mut self, active: &Active) -> Result<(), StoreError> {
        let stored = self.store.unfinished().await?;
        let now = unix_now();
        for record in stored {
            let id = record.id.clone();
            let is_late = record.expires_at <= now;
            match record.status {
                Status::Validating if is_late => {
                    self.stop(&id);
                    self.finalize(active, record, Status::Expired);
                }
                Status::Validating => self.validate(active, record),
                Status::InProgress if is_late => {
                    self.stop(&id);
                    self.finalize(active, record, Status::Expired);
                }
                Status::InProgress => {
                    let running = self.running.entry(id).or_insert_with(|| Running::new(record.clone()));
                    running.record = record;
                }
                Status::Finalizing => self.finalize(active, record, Status::Completed),
                Status::Cancelling => {
                    self.stop(&id);
                    self.finalize(active, record, Status::Cancelled);
                }
                Status::Failed | Status::Completed | Status::Expired | Status::Cancelled => {}
            }
        }
        Ok(())
    }

    /// Ends the lines of a batch that run. Those that wait are ended with the batch.
    fn stop(&mut self, batch: &str) {
        for (of, _, handle) in self.handles.values() {
            if of == batch {
                handle.abort();
            }
        }
        if let Some(running) = self.running.get_mut(batch) {
            running.queue.clear();
            (running.is_taken, running.is_stopped) = (true, true);
        }
    }

    /// Writes what has ended, and begins to write the results of batches without further lines.
    async fn write(&mut self) -> Result<(), StoreError> {
        let mut over = Vec::new();
        for (id, running) in &mut self.running {
            if !running.ended.is_empty() {
                let ended = Arc::new(std::mem::take(&mut running.ended));
                let written = self.store.end_lines(id, ended.clone(), |batch, line| {
                    match line.state {
                        LineState::Completed => batch.completed = batch.completed.saturating_add(1),
                        _ => batch.failed = batch.failed.saturating_add(1),
                    }
                    let usage = line.usage;
                    batch.usage.input = batch.usage.input.saturating_add(usage.input);
                    batch.usage.cached = batch.usage.cached.saturating_add(usage.cached);
                    batch.usage.output = batch.usage.output.saturating_add(usage.output);
                });
                match written.await {
                    Ok(Some(record)) => running.record = record,
                    Ok(None) => {}
                    Err(e) => {
                        // Written with the next ones, if the store answers again.
                        running.ended = Arc::try_unwrap(ended).unwrap_or_default();
                        return Err(e);
                    }
                }
            }
            if running.is_over() {
                over.push(id.clone());
            }
        }
        for id in over {
            self.running.remove(&id);
            self.store
                .change(&id, |batch| {
                    if batch.status == Status::InProgress {
                        batch.status = Status::Finalizing;
                        batch.finalizing_at = Some(unix_now());
                    }
                })
                .await?;
            self.batches.wake.notify_one();
        }
        Ok(())
    }

    /// Time at which a batch that waits may go on.
    fn next_turn(&self) -> Option<Instant> {
        let is_waiting = |running: &&Running| !running.is_stopped && (!running.is_taken || !running.queue.is_empty());
        let waiting = self.running.values().filter(is_waiting);
        let next = waiting.map(|running| running.not_before).min()?;
        // Where the window is full, the end of a line comes first.
        (next > Instant::now()).then_some(next)
    }

    /// Gives lines to the pipeline, consumers in turns.
    async fn dispatch(&mut self, active: &Active) -> Result<(), StoreError> {
        while self.lines.len() < active.rules.max_in_flight {
            let Some(id) = self.next_batch() else { return Ok(()) };
            let Some(running) = self.running.get_mut(&id) else { return Ok(()) };
            self.turn = Some(running.owner.clone());
            if running.queue.is_empty() {
                let taken = self.store.take(&id, TAKEN).await?;
                running.is_taken = taken.is_empty();
                running.queue.extend(taken);
            }
            let Some(line) = running.queue.pop_front() else {
                if running.is_over() {
                    self.batches.wake.notify_one();
                }
                continue;
            };
            running.in_flight += 1;
            let call = Call {
                store: self.store.clone(),
                runner: self.runner.clone(),
                batch: id.clone(),
                input: running.record.input_file.clone(),
                line,
                owner: running.owner.clone(),
                origin: running.origin.clone(),
                endpoint: running.endpoint.clone(),
                share: active.rules.share,
                max_answer: active.rules.max_answer,
            };
            let handle = self.lines.spawn(call.run());
            self.handles.insert(handle.id(), (id, line, handle));
            self.batches.metrics.in_flight.set(self.lines.len().try_into().unwrap_or(i64::MAX));
        }
        Ok(())
    }

    /// The next batch that has lines and does not wait: consumers in turns, whatever the number of their batches is, and of one
    /// consumer the batch whose time is over first.
    fn next_batch(&self) -> Option<String> {
        let now = Instant::now();
        let is_ready = |running: &&Running| {
            !running.is_stopped
                && running.not_before <= now
                && running.has_window()
                && (!running.queue.is_empty() || !running.is_taken)
        };
        let next = self.running.values().filter(is_ready).min_by_key(|running| {
            let has_waited = self.turn.as_ref().is_none_or(|turn| running.owner > *turn);
            (!has_waited, &running.owner, running.record.expires_at, running.record.created_at)
        });
        next.map(|running| running.record.id.clone())
    }

    fn line_done(&mut self, done: Result<(tokio::task::Id, LineDone), tokio::task::JoinError>) {
        let (id, done) = match done {
            Ok((id, done)) => (id, Some(done)),
            Err(e) => {
                if e.is_panic() {
                    tracing::error!(event = "batches_failed", reason = %e);
                }
                (e.id(), None)
            }
        };
        let handle = self.handles.remove(&id);
        self.batches.metrics.in_flight.set(self.lines.len().try_into().unwrap_or(i64::MAX));
        let (batch, line) = match (&done, &handle) {
            (Some(done), _) => (done.batch.clone(), done.line),
            (None, Some((batch, line, _))) => (batch.clone(), *line),
            (None, None) => return,
        };
        let Some(running) = self.running.get_mut(&batch) else { return };
        running.in_flight = running.in_flight.saturating_sub(1);
        let Some(done) = done else {
            // It was ended by us; where its batch goes on, it waits again.
            running.queue.push_front(line);
            return;
        };
        match settle(done) {
            Settled::Ended(ended, counted) => {
                running.ended.push(ended);
                running.refusals = 0;
                running.window = (running.window + 1.0 / running.window).min(f64::from(u16::MAX));
                self.batches.metrics.ended(counted);
            }
            Settled::Again { line, wait, counted } => {
                running.queue.push_front(line);
                running.again(wait, counted);
                self.batches.metrics.ended(counted);
            }
        }
    }

    /// Reads the input of a batch, unless that is under way.
    fn validate(&mut self, active: &Active, record: BatchRecord) {
        if self.filing.len() >= FILES_AT_ONCE || self.filing.contains_key(&record.id) {
            return;
        }
        let (store, bounds, id) = (self.store.clone(), active.rules.input, record.id.clone());
        let batch = id.clone();
        let task = async move { FileDone { result: validate(store, record, bounds).await, batch } };
        self.filing.insert(id, self.files.spawn(task));
    }

    /// Writes the results of a batch, unless that is under way, or lines of it still run.
    fn finalize(&mut self, active: &Active, record: BatchRecord, end: Status) {
        let id = record.id.clone();
        if self.running.get(&id).is_some_and(|running| running.in_flight > 0 || !running.ended.is_empty()) {
            return;
        }
        self.running.remove(&id);
        if self.filing.len() >= FILES_AT_ONCE || self.filing.contains_key(&id) {
            return;
        }
        let (store, keep) = (self.store.clone(), active.rules.keep);
        let batch = id.clone();
        let task = async move { FileDone { result: finalize(store, record, end, keep).await, batch } };
        self.filing.insert(id, self.files.spawn(task));
    }
}

/// Result of a line for its batch.
enum Settled {
    Ended(EndedLine, LineEnded),
    Again { line: Line, wait: Option<Duration>, counted: LineEnded },
}

/// Judges the end of a line.
fn settle(done: LineDone) -> Settled {
    let LineDone { custom_id, line, end, .. } = done;
    let number = line.number;
    let ended = |state, result, usage| EndedLine { number, state, result, usage };
    match end {
        LineEnd::Answered { status: status @ 200..=299, body, request_id, .. } => {
            let result = results::answered(&custom_id, status, &request_id, &body);
            Settled::Ended(ended(LineState::Completed, result, results::usage(&body)), LineEnded::Completed)
        }
        // A limit of its caller, a server that is full, a gateway that stops.
        LineEnd::Answered { status: 429 | 503, retry_after, .. } => {
            Settled::Again { line, wait: retry_after, counted: LineEnded::NoRoom }
        }
        LineEnd::Answered { status: 500 | 502 | 504, .. } if line.tries + 1 < TRIES => {
            let tries = line.tries + 1;
            let wait = Some(AFTER_FAILURE.saturating_mul(tries));
            Settled::Again { line: Line { tries, ..line }, wait, counted: LineEnded::Retried }
        }
        LineEnd::Answered { status, body, request_id, .. } => {
            let result = results::answered(&custom_id, status, &request_id, &body);
            Settled::Ended(ended(LineState::Failed, result, results::usage(&body)), LineEnded::Failed)
        }
        LineEnd::NoRoom => Settled::Again { line, wait: None, counted: LineEnded::NoRoom },
        LineEnd::Displaced => Settled::Again { line, wait: Some(NO_ROOM.0), counted: LineEnded::Displaced },
        LineEnd::Failed { code, message } => {
            let result = results::failed(&custom_id, code, &message);
            Settled::Ended(ended(LineState::Failed, result, super::BatchUsage::default()), LineEnded::Failed)
        }
    }
}

/// One line on its way.
struct Call {
    store: Arc<Store>,
    runner: Arc<dyn LineRunner>,
    batch: String,
    input: String,
    line: Line,
    owner: Arc<str>,
    origin: Arc<BatchOrigin>,
    endpoint: Arc<str>,
    share: f64,
    max_answer: usize,
}

impl Call {
    async fn run(self) -> LineDone {
        let Self { store, runner, batch, input, line, owner, origin, endpoint, share, max_answer } = self;
        let read = read_line(store, input, line, endpoint.clone()).await;
        let (custom_id, end) = match read {
            Ok(request) => {
                let body = request.body.into();
                let call = LineCall { owner, origin, endpoint, body, share, max_answer };
                (request.custom_id, runner.answer(call).await)
            }
            Err(message) => (String::new(), LineEnd::Failed { code: "input_unreadable", message }),
        };
        LineDone { batch, line, custom_id, end }
    }
}

/// Reads the request of a line from the input file.
async fn read_line(
    store: Arc<Store>,
    input: String,
    line: Line,
    endpoint: Arc<str>,
) -> Result<input::LineRequest, String> {
    let read = move || {
        let mut file = std::fs::File::open(store.path(&input)).map_err(|e| e.to_string())?;
        file.seek(SeekFrom::Start(line.at)).map_err(|e| e.to_string())?;
        let mut text = vec![0; usize::try_from(line.length).map_err(|e| e.to_string())?];
        file.read_exact(&mut text).map_err(|e| e.to_string())?;
        input::request(&text, &endpoint).map_err(|fault| fault.message)
    };
    tokio::task::spawn_blocking(read).await.map_err(|e| e.to_string())?
}

/// Reads the input of a batch: its lines are in the store afterwards, or its mistakes.
async fn validate(store: Arc<Store>, record: BatchRecord, bounds: InputBounds) -> Result<(), StoreError> {
    let id = record.id.clone();
    // Of a reading that a dead process did not end.
    store.clear_lines(&id).await?;
    let (path, endpoint) = (store.path(&record.input_file), record.endpoint.clone());
    let (send, mut chunks) = tokio::sync::mpsc::channel::<Vec<Line>>(2);
    let reading = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::open(path).map_err(|e| Unread::Failed(e.to_string()))?;
        input::read(file, &endpoint, bounds, CHUNK, |lines| {
            send.blocking_send(lines).map_err(|_| "the gateway stops".to_owned())
        })
    });
    while let Some(lines) = chunks.recv().await {
        store.add_lines(&id, lines).await?;
    }
    let read = reading.await.unwrap_or_else(|e| Err(Unread::Failed(e.to_string())));
    let now = unix_now();
    let change = move |batch: &mut BatchRecord| {
        // It may have been cancelled meanwhile.
        if batch.status != Status::Validating {
            return;
        }
        match read {
            Ok(input) => {
                batch.status = Status::InProgress;
                batch.in_progress_at = Some(now);
                (batch.total, batch.model) = (input.lines, input.model);
            }
            Err(Unread::Faults(faults)) => {
                (batch.status, batch.failed_at, batch.errors) = (Status::Failed, Some(now), faults);
            }
            Err(Unread::Failed(reason)) => {
                tracing::error!(event = "batches_failed", batch = batch.id, reason);
                let message = "the input file could not be read".to_owned();
                batch.errors =
                    vec![InputFault { code: "input_unreadable".to_owned(), message, param: None, line: None }];
                (batch.status, batch.failed_at) = (Status::Failed, Some(now));
            }
        }
    };
    let changed = store.change(&id, change).await?;
    if changed.status == Status::Failed {
        store.clear_lines(&id).await?;
    }
    Ok(())
}

/// Writes the results of a batch, and ends it.
async fn finalize(store: Arc<Store>, record: BatchRecord, end: Status, keep: Duration) -> Result<(), StoreError> {
    if end == Status::Expired {
        expire_lines(&store, &record).await?;
    }
    let output = write_results(&store, &record, LineState::Completed, keep).await?;
    let errors = match write_results(&store, &record, LineState::Failed, keep).await {
        Ok(errors) => errors,
        Err(e) => {
            if let Some(output) = &output {
                store.remove_bytes(&output.id).await;
            }
            return Err(e);
        }
    };
    let (output_file, error_file) = (output.as_ref().map(|f| f.id.clone()), errors.as_ref().map(|f| f.id.clone()));
    let files: Vec<FileRecord> = output.into_iter().chain(errors).collect();
    let written: Vec<String> = files.iter().map(|file| file.id.clone()).collect();
    let now = unix_now();
    let ended = store.end_batch(&record.id, files, move |batch| {
        batch.status = end;
        (batch.output_file, batch.error_file) = (output_file, error_file);
        match end {
            Status::Expired => batch.expired_at = Some(now),
            Status::Cancelled => batch.cancelled_at = Some(now),
            _ => batch.completed_at = Some(now),
        }
    });
    match ended.await {
        Ok(ended) => {
            let (total, completed, failed) = (ended.total, ended.completed, ended.failed);
            let (batch, consumer, status) = (&ended.id, &ended.owner, end.as_str());
            tracing::info!(event = "batch_ended", batch, consumer, status, total, completed, failed);
            Ok(())
        }
        Err(e) => {
            for id in written {
                store.remove_bytes(&id).await;
            }
            Err(e)
        }
    }
}

/// Ends the lines that were not answered in time.
async fn expire_lines(store: &Arc<Store>, record: &BatchRecord) -> Result<(), StoreError> {
    let endpoint: Arc<str> = record.endpoint.as_str().into();
    loop {
        let lines = store.not_ended(&record.id).await?;
        if lines.is_empty() {
            return Ok(());
        }
        let mut ended = Vec::with_capacity(lines.len());
        for line in lines {
            let read = read_line(store.clone(), record.input_file.clone(), line, endpoint.clone()).await;
            let custom_id = read.map(|request| request.custom_id).unwrap_or_default();
            let message = "The time of the batch was over before this line was answered.";
            let result = results::failed(&custom_id, "batch_expired", message);
            let usage = super::BatchUsage::default();
            ended.push(EndedLine { number: line.number, state: LineState::Failed, result, usage });
        }
        let written =
            store.end_lines(&record.id, Arc::new(ended), |batch, _| batch.failed = batch.failed.saturating_add(1));
        if written.await?.is_none() {
            return Ok(());
        }
    }
}

/// Writes a file of results; `None` where there is none.
async fn write_results(
    store: &Arc<Store>,
    record: &BatchRecord,
    state: LineState,
    keep: Duration,
) -> Result<Option<FileRecord>, StoreError> {
    let (mut behind, mut lines) = store.results(&record.id, state, 0).await?;
    if lines.is_empty() {
        return Ok(None);
    }
    let id = format!("file-{}", uuid::Uuid::new_v4().simple());
    let mut file = store.create(&id)?;
    let mut bytes = 0u64;
    let written = async {
        while !lines.is_empty() {
            let chunk = std::mem::take(&mut lines);
            let wrote = tokio::task::spawn_blocking(move || {
                let mut wrote = 0u64;
                let mut buffer = std::io::BufWriter::with_capacity(super::BUFFER, &mut file);
                for line in chunk {
                    buffer.write_all(&line)?;
                    buffer.write_all(b"\n")?;
                    wrote = wrote.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX)).saturating_add(1);
                }
                buffer.flush()?;
                drop(buffer);
                Ok::<_, std::io::Error>((file, wrote))
            });
            let (back, wrote) =
                wrote.await.map_err(std::io::Error::other).flatten().map_err(|e| store.failed(&id, &e))?;
            file = back;
            bytes = bytes.saturating_add(wrote);
            (behind, lines) = store.results(&record.id, state, behind).await?;
        }
        let synced = tokio::task::spawn_blocking(move || file.sync_all()).await;
        synced.map_err(std::io::Error::other).flatten().map_err(|e| store.failed(&id, &e))
    };
    if let Err(e) = written.await {
        store.remove_bytes(&id).await;
        return Err(e);
    }
    let what = if state == LineState::Completed { "output" } else { "error" };
    let now = unix_now();
    Ok(Some(FileRecord {
        filename: format!("{}_{what}.jsonl", record.id),
        id,
        owner: record.owner.clone(),
        purpose: OUTPUT.to_owned(),
        bytes,
        created_at: now,
        expires_at: now.saturating_add(keep.as_secs()),
    }))
}
