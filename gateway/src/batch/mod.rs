//! Batches: files of requests that are answered with capacity that callers leave free. The room owns the store of files, batches
//! and lines, kept over reloads and restarts, and the task that answers lines. It reads no HTTP and knows no route: the pipeline
//! brings what callers ask, and answers a line as [`LineRunner`]. Inputs are the settings of `batch` and the clock.

mod input;
mod line;
mod record;
mod results;
mod runner;
mod spare;
mod store;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use spillway_config::schema;
use tokio::io::{AsyncWriteExt, BufWriter};
use tokio::sync::Notify;

pub use input::ENDPOINTS;
pub use line::LineMark;
pub use record::{BatchOrigin, BatchRecord, BatchUsage, FileRecord, InputFault, Status, StoredProof};
pub use runner::{LineCall, LineEnd, LineRunner};
pub use spare::{LineCount, Seat};
pub use store::{Page, StoreError};

use crate::clock::unix_now;
use crate::commit_steps::CommitSteps;
use crate::telemetry::{BatchMetrics, Metrics};
use input::InputBounds;
use store::{Bounds, Store};

/// Purpose of the files that batches read.
pub const INPUT: &str = "batch";
/// Purpose of the files that batches write.
pub const OUTPUT: &str = "batch_output";

/// Buffer of a file that is written, bytes.
const BUFFER: usize = 256 << 10;

/// Settings of `batch`.
#[derive(Debug, Clone, Copy)]
struct Rules {
    bounds: Bounds,
    input: InputBounds,
    max_file: u64,
    max_uploads: u32,
    max_answer: usize,
    max_in_flight: usize,
    share: f64,
    max_window: Duration,
    keep: Duration,
}

impl Rules {
    fn new(written: &schema::Batch) -> Self {
        let wide = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            bounds: Bounds {
                bytes: written.max_stored.0,
                bytes_of_all: written.max_stored_by_all.0,
                files: written.max_files.get(),
                batches: written.max_batches.get(),
            },
            input: InputBounds { lines: written.max_lines.get(), line_bytes: written.max_line.0 },
            max_file: written.max_file.0,
            max_uploads: written.max_uploads.get(),
            max_answer: usize::try_from(written.max_answer.0).unwrap_or(usize::MAX),
            max_in_flight: wide(written.max_in_flight.get()),
            share: written.max_share,
            max_window: written.max_window.0,
            keep: written.keep.0,
        }
    }
}

/// Store and settings of the running configuration.
struct Active {
    store: Arc<Store>,
    rules: Rules,
}

/// Batches of the process.
pub struct Batches {
    active: ArcSwapOption<Active>,
    /// Wakes the runner: a batch is new or cancelled, or the settings have changed.
    wake: Notify,
    is_leaving: AtomicBool,
    is_closing: AtomicBool,
    running: Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// Files that are being sent, by their consumers.
    uploads: Mutex<HashMap<Arc<str>, u32>>,
    metrics: Arc<BatchMetrics>,
}

/// Batch that a caller asks for.
#[derive(Debug)]
pub struct NewBatch {
    /// Name of the consumer.
    pub owner: String,
    /// Where it comes from.
    pub origin: BatchOrigin,
    /// Path of its lines, one of [`ENDPOINTS`].
    pub endpoint: String,
    /// Its file.
    pub input_file: String,
    /// Time for its lines as the caller wrote it, and as it is.
    pub window: (String, Duration),
    /// Pairs of the caller's own.
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Batches {
    /// Creates the room of a new process.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            active: ArcSwapOption::empty(),
            wake: Notify::new(),
            is_leaving: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            running: Mutex::new(None),
            uploads: Mutex::default(),
            metrics: metrics.batches.clone(),
        }
    }

    /// Opens the store of a new configuration, or finds it again, and adopts its settings once the configuration is active.
    ///
    /// # Errors
    /// The store cannot be opened.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        written: Option<&schema::Batch>,
        steps: &CommitSteps,
    ) -> Result<(), StoreError> {
        let active = match written {
            None => None,
            Some(written) => {
                let folder = written.store.to_path_buf();
                let known = self.active.load_full().filter(|active| active.store.folder() == folder);
                let store = match known {
                    Some(active) => active.store.clone(),
                    None => {
                        let shown = folder.clone();
                        let opened = tokio::task::spawn_blocking(move || Store::open(&folder)).await;
                        let failed = |e: tokio::task::JoinError| StoreError::Io { path: shown, reason: e.to_string() };
                        Arc::new(opened.map_err(failed)??)
                    }
                };
                Some(Arc::new(Active { store, rules: Rules::new(written) }))
            }
        };
        let batches = self.clone();
        steps.add(move || {
            batches.active.store(active);
            batches.wake.notify_one();
        });
        Ok(())
    }

    /// Validates the store of a configuration without making or changing anything.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub(crate) async fn judge(written: Option<&schema::Batch>) -> Result<(), StoreError> {
        let Some(written) = written else { return Ok(()) };
        let (folder, shown) = (written.store.to_path_buf(), written.store.to_path_buf());
        let judged = tokio::task::spawn_blocking(move || Store::judge(&folder)).await;
        judged.map_err(|e| StoreError::Io { path: shown, reason: e.to_string() })?
    }

    /// Answers lines by `lines` from now on.
    pub fn run_by(self: &Arc<Self>, lines: Arc<dyn LineRunner>) {
        *self.running.lock() = Some(tokio::spawn(runner::run(self.clone(), lines)));
    }

    /// Takes no further line: at the end of the process, or when it has handed over. Another process takes them once those that
    /// run have ended.
    pub fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Ends what runs, and closes the store.
    pub async fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
        self.leave();
        let running = self.running.lock().take();
        if let Some(running) = running {
            // The runner gives its lines back, and ends by itself; a store that hangs does not keep the process.
            let _ = tokio::time::timeout(runner::LEAVING, running).await;
        }
        if let Some(active) = self.active.swap(None) {
            active.store.close().await;
        }
    }

    fn active(&self) -> Result<Arc<Active>, StoreError> {
        // Only a configuration without `batch` has none, and it has no route to this.
        self.active.load_full().ok_or(StoreError::Unknown)
    }

    /// Begins a file.
    ///
    /// # Errors
    /// As many files are being sent as may, or the disk fails.
    pub async fn upload(self: &Arc<Self>, owner: &str) -> Result<Upload, StoreError> {
        let active = self.active()?;
        let place = UploadPlace::take(self, owner, active.rules.max_uploads).ok_or(StoreError::Uploading)?;
        let id = format!("file-{}", uuid::Uuid::new_v4().simple());
        let (store, name) = (active.store.clone(), id.clone());
        let made = tokio::task::spawn_blocking(move || store.create(&name)).await;
        let made = made.map_err(|e| active.store.failed(&id, &std::io::Error::other(e)))??;
        let file = BufWriter::with_capacity(BUFFER, tokio::fs::File::from_std(made));
        Ok(Upload { active, id, place, file: Some(file), bytes: 0, is_kept: false })
    }

    /// The consumer's file with an id.
    ///
    /// # Errors
    /// There is none, or the disk fails.
    pub async fn file(&self, owner: &str, id: &str) -> Result<FileRecord, StoreError> {
        self.active()?.store.file(owner, id).await
    }

    /// Part of the list of the consumer's files, and whether more follow.
    ///
    /// # Errors
    /// The id that it begins behind is unknown, or the disk fails.
    pub async fn files(&self, owner: &str, page: Page) -> Result<(Vec<FileRecord>, bool), StoreError> {
        self.active()?.store.files(owner, page).await
    }

    /// Bytes of the consumer's file with an id.
    ///
    /// # Errors
    /// There is none, or the disk fails.
    pub async fn content(&self, owner: &str, id: &str) -> Result<(FileRecord, tokio::fs::File), StoreError> {
        let active = self.active()?;
        let file = active.store.file(owner, id).await?;
        let opened = tokio::fs::File::open(active.store.path(id)).await;
        Ok((file, opened.map_err(|e| active.store.failed(id, &e))?))
    }

    /// Deletes the consumer's file with an id.
    ///
    /// # Errors
    /// There is none, a batch that has not ended reads it, or the disk fails.
    pub async fn delete_file(&self, owner: &str, id: &str) -> Result<(), StoreError> {
        self.active()?.store.delete_file(owner, id).await
    }

    /// Longest time that a batch may ask for.
    pub fn max_window(&self) -> Duration {
        self.active.load().as_ref().map_or(Duration::ZERO, |active| active.rules.max_window)
    }

    /// Longest file that a caller may send, bytes.
    pub fn max_file(&self) -> u64 {
        self.active.load().as_ref().map_or(0, |active| active.rules.max_file)
    }

    /// Begins a batch.
    ///
    /// # Errors
    /// The file is unknown, the consumer has as many batches as it may, or the disk fails.
    pub async fn create(&self, new: NewBatch) -> Result<BatchRecord, StoreError> {
        let active = self.active()?;
        let now = unix_now();
        let (window, length) = new.window;
        let batch = BatchRecord {
            id: format!("batch_{}", uuid::Uuid::new_v4().simple()),
            owner: new.owner,
            origin: new.origin,
            endpoint: new.endpoint,
            input_file: new.input_file,
            window,
            status: Status::Validating,
            created_at: now,
            expires_at: now.saturating_add(length.as_secs().max(1)),
            in_progress_at: None,
            finalizing_at: None,
            completed_at: None,
            failed_at: None,
            expired_at: None,
            cancelling_at: None,
            cancelled_at: None,
            errors: Vec::new(),
            total: 0,
            completed: 0,
            failed: 0,
            metadata: new.metadata,
            model: None,
            usage: BatchUsage::default(),
            output_file: None,
            error_file: None,
        };
        active.store.add_batch(batch.clone(), active.rules.bounds).await?;
        self.wake.notify_one();
        Ok(batch)
    }

    /// The consumer's batch with an id.
    ///
    /// # Errors
    /// There is none, or the disk fails.
    pub async fn batch(&self, owner: &str, id: &str) -> Result<BatchRecord, StoreError> {
        self.active()?.store.batch(owner, id).await
    }

    /// Part of the list of the consumer's batches, and whether more follow.
    ///
    /// # Errors
    /// The id that it begins behind is unknown, or the disk fails.
    pub async fn batches(&self, owner: &str, page: Page) -> Result<(Vec<BatchRecord>, bool), StoreError> {
        self.active()?.store.batches(owner, page).await
    }

    /// Cancels the consumer's batch with an id. One that has ended, or writes its results, stays as it is.
    ///
    /// # Errors
    /// There is none, or the disk fails.
    pub async fn cancel(&self, owner: &str, id: &str) -> Result<BatchRecord, StoreError> {
        let active = self.active()?;
        active.store.batch(owner, id).await?;
        let cancelled = active.store.change(id, |batch| {
            if matches!(batch.status, Status::Validating | Status::InProgress) {
                batch.status = Status::Cancelling;
                batch.cancelling_at = Some(unix_now());
            }
        });
        let cancelled = cancelled.await?;
        self.wake.notify_one();
        Ok(cancelled)
    }
}

/// Place of a file that is being sent, counted until it is dropped.
struct UploadPlace {
    batches: Arc<Batches>,
    owner: Arc<str>,
}

impl UploadPlace {
    /// A place for a file of the consumer; `None` where `most` are taken, or the consumer has its quarter of them.
    fn take(batches: &Arc<Batches>, owner: &str, most: u32) -> Option<Self> {
        let mut uploads = batches.uploads.lock();
        let own = uploads.get(owner).copied().unwrap_or(0);
        let all: u32 = uploads.values().sum();
        if all >= most || own >= (most / 4).max(1) {
            return None;
        }
        let owner: Arc<str> = owner.into();
        uploads.insert(owner.clone(), own + 1);
        drop(uploads);
        Some(Self { batches: batches.clone(), owner })
    }
}

impl Drop for UploadPlace {
    fn drop(&mut self) {
        let mut uploads = self.batches.uploads.lock();
        match uploads.get_mut(&self.owner) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                uploads.remove(&self.owner);
            }
        }
    }
}

/// File that a caller sends. What does not come to its end is deleted.
pub struct Upload {
    active: Arc<Active>,
    id: String,
    place: UploadPlace,
    file: Option<BufWriter<tokio::fs::File>>,
    bytes: u64,
    is_kept: bool,
}

impl Upload {
    /// Adds bytes. False where the file is longer than it may be.
    ///
    /// # Errors
    /// The disk fails.
    pub async fn write(&mut self, part: &[u8]) -> Result<bool, StoreError> {
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(length);
        if self.bytes > self.active.rules.max_file {
            return Ok(false);
        }
        if let Some(file) = &mut self.file {
            file.write_all(part).await.map_err(|e| self.active.store.failed(&self.id, &e))?;
        }
        Ok(true)
    }

    /// Ends the file: its bytes are on the disk when it is listed.
    ///
    /// # Errors
    /// The consumer has no room for it, or the disk fails.
    pub async fn finish(mut self, filename: String, keep: Option<Duration>) -> Result<FileRecord, StoreError> {
        let failed = |e: &std::io::Error| self.active.store.failed(&self.id, e);
        if let Some(mut file) = self.file.take() {
            file.flush().await.map_err(|e| failed(&e))?;
            file.get_ref().sync_all().await.map_err(|e| failed(&e))?;
        }
        let now = unix_now();
        let keep = keep.unwrap_or(self.active.rules.keep).min(self.active.rules.keep);
        let record = FileRecord {
            id: self.id.clone(),
            owner: self.place.owner.to_string(),
            filename,
            purpose: INPUT.to_owned(),
            bytes: self.bytes,
            created_at: now,
            expires_at: now.saturating_add(keep.as_secs()),
        };
        self.active.store.add_file(record.clone(), self.active.rules.bounds).await?;
        self.is_kept = true;
        Ok(record)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        self.file = None;
        let path = self.active.store.path(&self.id);
        // At the end of the process the next one finds it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || remove(&path));
        }
    }
}

fn remove(path: &Path) {
    if let Err(e) = std::fs::remove_file(path)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(event = "batch_file_not_deleted", file = %path.display(), reason = %e);
    }
}
