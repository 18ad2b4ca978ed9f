//! The process log and its one writer, which the access log shares so that lines never interleave. Lines go through a
//! bounded queue to a thread of its own: a reader that stands still costs lines, which are counted, never requests.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use spillway_config::schema::LogFormat;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for the writer.
const QUEUE: usize = 8192;
/// Longest time that a line waits in the writer's buffer.
const FLUSH_EVERY: Duration = Duration::from_millis(50);
/// What is logged unless SPILLWAY_LOG or RUST_LOG says otherwise.
const DEFAULT_FILTER: &str = "info,pingora=warn,pingora_core=warn,wgpu_core=error,wgpu_hal=error,naga=error,\
    opentelemetry=off,opentelemetry_sdk=off,opentelemetry-otlp=off,h2=warn,hyper=warn,tower=warn";

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("the log cannot be set up: {0}")]
pub struct LogError(String);

enum Line {
    Text(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Writes lines to standard output. Clones share the queue.
#[derive(Clone)]
pub struct LogWriter {
    queue: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl LogWriter {
    /// Starts the writing thread.
    pub fn start(out: impl Write + Send + 'static) -> Result<Self, LogError> {
        let (queue, lines) = sync_channel(QUEUE);
        let spare = Arc::new(Mutex::new(Vec::new()));
        let returned = spare.clone();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(&lines, out, &returned))
            .map_err(|e| LogError(e.to_string()))?;
        Ok(Self { queue, dropped: Arc::new(AtomicU64::new(0)), spare })
    }

    /// Lines that found the queue full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// An empty buffer, used before where there is one.
    pub fn buffer(&self) -> Vec<u8> {
        self.spare.lock().pop().unwrap_or_else(|| Vec::with_capacity(512))
    }

    /// Queues a line, with its line break.
    pub fn write(&self, line: Vec<u8>) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Line::Text(line)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits, for a bounded time, until everything queued so far is written.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.queue.try_send(Line::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(Duration::from_secs(1));
        }
    }
}

fn write_lines(lines: &Receiver<Line>, out: impl Write, spare: &Mutex<Vec<Vec<u8>>>) {
    let mut out = std::io::BufWriter::with_capacity(64 << 10, out);
    loop {
        match lines.recv_timeout(FLUSH_EVERY) {
            Ok(Line::Text(mut line)) => {
                // Standard output may be closed; the gateway goes on without a log.
                let _ = out.write_all(&line);
                line.clear();
                let mut spare = spare.lock();
                if spare.len() < 64 && line.capacity() <= 4096 {
                    spare.push(line);
                }
            }
            Ok(Line::Flush(done)) => {
                let _ = out.flush();
                let _ = done.send(());
            }
            Err(RecvTimeoutError::Timeout) => {
                let _ = out.flush();
                // Nothing to write: sleep until there is, instead of waking twenty times a second.
                match lines.recv() {
                    Ok(Line::Text(line)) => {
                        let _ = out.write_all(&line);
                    }
                    Ok(Line::Flush(done)) => {
                        let _ = done.send(());
                    }
                    Err(_) => return,
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                let _ = out.flush();
                return;
            }
        }
    }
}

/// One event of the process log on its way to the queue.
pub struct Event {
    writer: LogWriter,
    line: Vec<u8>,
}

impl Write for Event {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        self.line.extend_from_slice(part);
        Ok(part.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.writer.write(std::mem::take(&mut self.line));
        }
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Event;
    fn make_writer(&'a self) -> Event {
        Event { writer: self.clone(), line: self.buffer() }
    }
}

/// Sets up the process log.
pub fn init(format: LogFormat) -> Result<LogWriter, LogError> {
    let writer = LogWriter::start(std::io::stdout())?;
    let filter = ["SPILLWAY_LOG", "RUST_LOG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
        .unwrap_or_else(|| DEFAULT_FILTER.to_owned());
    let filter = EnvFilter::try_new(&filter).map_err(|e| LogError(format!("SPILLWAY_LOG `{filter}`: {e}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer.clone()).with_target(false);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
        LogFormat::Text => builder.with_ansi(false).try_init(),
    }
    .map_err(|e| LogError(e.to_string()))?;
    Ok(writer)
}
