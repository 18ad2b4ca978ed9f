//! The process log and its one writer, which the access log shares so that lines never interleave. Lines go through a
//! bounded queue to a thread of its own: a reader that stands still costs lines, which are counted, never requests.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spillway_config::schema::LogFormat;
use tracing::Dispatch;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that wait for the writer.
const QUEUE: usize = 8192;
/// Bytes of the lines that wait.
const QUEUE_BYTES: usize = 16 << 20;
/// Longest time that a line waits in the writer's buffer.
const FLUSH_EVERY: Duration = Duration::from_millis(50);
/// Longest time that the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Buffers of lines that are kept for the next ones, and the largest one that is.
const SPARE: usize = 64;
const SPARE_BYTES: usize = 4096;
/// What is logged unless SPILLWAY_LOG or RUST_LOG says otherwise. Pingora, wgpu and naga log through the `log` crate,
/// whose records come in here as well.
const DEFAULT_FILTER: &str = "info,pingora=warn,pingora_core=warn,wgpu=error,wgpu_core=error,wgpu_hal=error,\
    naga=error,opentelemetry=off,opentelemetry_sdk=off,opentelemetry-otlp=off,h2=warn,hyper=warn,tower=warn";

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
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl LogWriter {
    /// Starts the writing thread.
    pub fn start(out: impl Write + Send + 'static) -> Result<Self, LogError> {
        let (queue, lines) = sync_channel(QUEUE);
        let log = Self { queue, waiting: Arc::default(), dropped: Arc::default(), spare: Arc::default() };
        let thread = Lines { waiting: log.waiting.clone(), dropped: log.dropped.clone(), spare: log.spare.clone() };
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || thread.write_all(&lines, out))
            .map_err(|e| LogError(e.to_string()))?;
        Ok(log)
    }

    /// Lines that found the queue full or could not be written.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// An empty buffer, used before where there is one.
    pub fn buffer(&self) -> Vec<u8> {
        self.spare.lock().pop().unwrap_or_else(|| Vec::with_capacity(512))
    }

    /// Queues a line, with its line break. Never waits.
    pub fn write(&self, line: Vec<u8>) {
        let bytes = line.len();
        let fits = self.waiting.fetch_add(bytes, Ordering::AcqRel) <= QUEUE_BYTES;
        if !fits || self.queue.try_send(Line::Text(line)).is_err() {
            self.waiting.fetch_sub(bytes, Ordering::AcqRel);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits, for a bounded time, until everything queued so far is written.
    pub fn flush(&self) {
        let end = Instant::now() + LAST_LINES;
        let (done, wait) = sync_channel(1);
        let mut message = Line::Flush(done);
        loop {
            match self.queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < end => message = back,
                Err(_) => return,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = wait.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

/// The writing thread's side of the queue.
struct Lines {
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Lines {
    /// Writes until the last sender is gone. Lines that come close together are written together.
    fn write_all(&self, lines: &Receiver<Line>, out: impl Write) {
        let mut out = std::io::BufWriter::with_capacity(64 << 10, out);
        while let Ok(first) = lines.recv() {
            let end = Instant::now() + FLUSH_EVERY;
            let mut next = Some(first);
            while let Some(line) = next {
                match line {
                    Line::Text(line) => self.write(line, &mut out),
                    Line::Flush(done) => {
                        let _ = out.flush();
                        let _ = done.send(());
                    }
                }
                let left = end.saturating_duration_since(Instant::now());
                next = if left.is_zero() { None } else { lines.recv_timeout(left).ok() };
            }
            // Standard output may be closed; the gateway goes on without a log.
            let _ = out.flush();
        }
    }

    fn write(&self, mut line: Vec<u8>, out: &mut impl Write) {
        if out.write_all(&line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.waiting.fetch_sub(line.len(), Ordering::AcqRel);
        line.clear();
        let mut spare = self.spare.lock();
        if spare.len() < SPARE && line.capacity() <= SPARE_BYTES {
            spare.push(line);
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
        .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()).map(|v| (*name, v)));
    let (name, filter) = filter.unwrap_or_else(|| ("SPILLWAY_LOG", DEFAULT_FILTER.to_owned()));
    let filter = EnvFilter::try_new(&filter).map_err(|e| LogError(format!("{name} `{filter}`: {e}")))?;
    dispatch(format, filter, writer.clone()).try_init().map_err(|e| LogError(e.to_string()))?;
    Ok(writer)
}

fn dispatch(format: LogFormat, filter: EnvFilter, writer: LogWriter) -> Dispatch {
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(false).with_span_list(false);
            Dispatch::new(builder.finish())
        }
        LogFormat::Text => Dispatch::new(builder.with_ansi(false).finish()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what is written; `broken` fails instead, as a closed pipe does, and `stuck` waits for its turn.
    #[derive(Clone, Default)]
    struct Out {
        written: Arc<Mutex<Vec<u8>>>,
        broken: bool,
        stuck: Arc<Mutex<()>>,
    }

    impl Out {
        fn text(&self) -> String {
            String::from_utf8(self.written.lock().clone()).unwrap()
        }
    }

    impl Write for Out {
        fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
            let _turn = self.stuck.lock();
            if self.broken {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            self.written.lock().extend_from_slice(part);
            Ok(part.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn eventually(what: &str, is: impl Fn() -> bool) {
        let began = Instant::now();
        while !is() {
            assert!(began.elapsed() < Duration::from_secs(10), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_steady_trickle_is_written_on_time() {
        let out = Out::default();
        let log = LogWriter::start(out.clone()).unwrap();
        // Each line comes before the last one's time is over.
        let began = Instant::now();
        while out.text().is_empty() {
            assert!(began.elapsed() < Duration::from_secs(10), "no line is written while further ones come");
            log.write(b"line\n".to_vec());
            std::thread::sleep(FLUSH_EVERY / 5);
        }
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn events_are_objects_with_their_fields_at_the_top() {
        let out = Out::default();
        let log = LogWriter::start(out.clone()).unwrap();
        let dispatch = dispatch(LogFormat::Json, EnvFilter::new("info"), log.clone());
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::info!(event = "listening", address = %"127.0.0.1:8080");
            tracing::warn!(event = "bad", text = "a\nb \u{1b}[31m");
            tracing::debug!(event = "unseen");
        });
        log.flush();
        let lines: Vec<serde_json::Value> =
            out.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [listening, bad] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((&listening["event"], &listening["address"]), (&"listening".into(), &"127.0.0.1:8080".into()));
        assert_eq!((&listening["level"], &bad["text"]), (&"INFO".into(), &"a\nb \u{1b}[31m".into()));
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_not_time() {
        let out = Out::default();
        let turn = out.stuck.lock();
        let log = LogWriter::start(out.clone()).unwrap();
        let began = Instant::now();
        // The writer takes some lines into its buffer before it stands.
        for _ in 0..4 * QUEUE {
            log.write(vec![b'x'; 32]);
        }
        assert!(log.dropped() >= QUEUE as u64, "{}", log.dropped());
        assert!(began.elapsed() < Duration::from_secs(5));
        let began = Instant::now();
        log.flush();
        assert!(began.elapsed() < LAST_LINES + Duration::from_secs(2));
        drop(turn);
        // What waited is written; nothing is cut.
        let kept = 4 * QUEUE as u64 - log.dropped();
        eventually("the rest is written", || out.written.lock().len() as u64 == 32 * kept);
    }

    #[test]
    fn large_lines_are_bounded_by_their_bytes() {
        let out = Out::default();
        let turn = out.stuck.lock();
        let log = LogWriter::start(out.clone()).unwrap();
        for _ in 0..100 {
            log.write(vec![b'x'; 1 << 20]);
        }
        assert!(log.waiting.load(Ordering::Relaxed) <= QUEUE_BYTES + (1 << 20));
        assert!(log.dropped() >= 80, "{}", log.dropped());
        drop(turn);
        eventually("what waited is let go", || log.waiting.load(Ordering::Relaxed) == 0);
    }

    #[test]
    fn a_closed_output_stops_nothing() {
        let log = LogWriter::start(Out { broken: true, ..Out::default() }).unwrap();
        for _ in 0..2000 {
            log.write(vec![b'x'; 1024]);
        }
        eventually("lines are counted as lost", || log.dropped() > 0);
        eventually("none waits", || log.waiting.load(Ordering::Relaxed) == 0);
        log.flush();
    }
}
