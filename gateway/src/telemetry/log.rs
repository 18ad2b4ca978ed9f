//! Process log and its only writer, which the access log shares so that lines never interleave. It knows where the log is
//! exported to as well. Lines are gathered in
//! bounded memory, and a separate thread writes them in batches: a reader that hangs costs lines, which are counted, and
//! never requests.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use parking_lot::{Condvar, Mutex};
use spillway_config::schema::LogFormat;
use tracing::Dispatch;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::LogExport;
use super::log_export::EventExport;

/// Most bytes of lines that wait or are being written: some ten thousand lines, while a reader hangs.
const MOST_BYTES: usize = 16 << 20;
/// How long lines are gathered: the writing thread is woken once in this time, not for each line.
const GATHER: Duration = Duration::from_millis(50);
/// Longest time that the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Memory kept for the next batch, in bytes.
const KEPT_BYTES: usize = 1 << 20;
/// Filter of the log without SPILLWAY_LOG and RUST_LOG. Pingora, wgpu and naga log through the `log` crate, whose records
/// come in here as well.
const DEFAULT_FILTER: &str = "info,pingora=warn,pingora_core=warn,wgpu=error,wgpu_core=error,wgpu_hal=error,\
    naga=error,opentelemetry=off,opentelemetry_sdk=off,opentelemetry-otlp=off,h2=warn,hyper=warn,tower=warn";

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("the log cannot be set up: {0}")]
pub struct LogError(String);

/// Writes lines to standard output. Clones share the output.
#[derive(Clone)]
pub struct LogWriter(Arc<WriterHandle>);

/// Handle that all writers share; the writing thread ends when it is dropped.
struct WriterHandle {
    queue: Arc<LogQueue>,
    export: ArcSwap<LogExport>,
}

/// Lines on their way from the writers to the thread.
#[derive(Default)]
struct LogQueue {
    state: Mutex<LogQueueState>,
    /// Wakes the thread.
    wake: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct LogQueueState {
    /// Lines that wait.
    lines: Vec<u8>,
    /// Bytes that the thread is writing.
    in_writing: usize,
    /// True if the thread sleeps until a writer wakes it.
    idle: bool,
    /// Signals for callers of `flush` that wait until all earlier lines are written.
    flushing: Vec<SyncSender<()>>,
    /// True after the last writer was dropped.
    ended: bool,
}

impl LogWriter {
    /// Starts the writing thread.
    pub fn start(out: impl Write + Send + 'static) -> Result<Self, LogError> {
        let shared = Arc::new(LogQueue::default());
        let log = Self(Arc::new(WriterHandle { queue: shared.clone(), export: ArcSwap::default() }));
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || shared.write_all(out))
            .map_err(|e| LogError(e.to_string()))?;
        Ok(log)
    }

    /// Number of lines that found the queue full or could not be written.
    pub fn dropped(&self) -> u64 {
        self.0.queue.dropped.load(Ordering::Relaxed)
    }

    /// Queues a line, with its line break. Never waits for the output.
    pub fn write(&self, line: &[u8]) {
        let shared = &self.0.queue;
        let mut state = shared.state.lock();
        if state.lines.len() + state.in_writing + line.len() > MOST_BYTES {
            drop(state);
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.lines.extend_from_slice(line);
        if std::mem::take(&mut state.idle) {
            drop(state);
            shared.wake.notify_one();
        }
    }

    /// Waits until all earlier lines are written, for at most [`LAST_LINES`], and, where the log is exported, until they
    /// are sent, for a bounded time.
    pub fn flush(&self) {
        // First: what it has to say is a line.
        self.export().flush();
        let (done, wait) = sync_channel(1);
        self.0.queue.state.lock().flushing.push(done);
        self.0.queue.wake.notify_one();
        let _ = wait.recv_timeout(LAST_LINES);
    }

    /// Export of the log, by the configuration in force.
    pub fn export(&self) -> Guard<Arc<LogExport>> {
        self.0.export.load()
    }

    /// Exports further lines as a new configuration says.
    pub fn export_by(&self, export: &LogExport) {
        self.0.export.store(Arc::new(export.clone()));
    }
}

impl Drop for WriterHandle {
    fn drop(&mut self) {
        self.queue.state.lock().ended = true;
        self.queue.wake.notify_one();
    }
}

impl LogQueue {
    /// Writes until the last writer is gone.
    fn write_all(&self, mut out: impl Write) {
        let mut lines = Vec::new();
        let mut state = self.state.lock();
        loop {
            while state.lines.is_empty() && !state.is_urgent() {
                state.idle = true;
                self.wake.wait(&mut state);
            }
            state.idle = false;
            let end = Instant::now() + GATHER;
            while !state.is_urgent() && !self.wake.wait_until(&mut state, end).timed_out() {}
            std::mem::swap(&mut state.lines, &mut lines);
            state.in_writing = lines.len();
            let (flushing, ended) = (std::mem::take(&mut state.flushing), state.ended);
            parking_lot::MutexGuard::unlocked(&mut state, || {
                // Standard output may be closed; the gateway goes on without a log.
                if out.write_all(&lines).and_then(|()| out.flush()).is_err() {
                    let lost = memchr::memchr_iter(b'\n', &lines).count();
                    self.dropped.fetch_add(u64::try_from(lost).unwrap_or(u64::MAX), Ordering::Relaxed);
                }
                for done in flushing {
                    let _ = done.send(());
                }
                lines.clear();
                lines.shrink_to(KEPT_BYTES);
            });
            state.in_writing = 0;
            if ended && state.lines.is_empty() {
                return;
            }
        }
    }
}

impl LogQueueState {
    fn is_urgent(&self) -> bool {
        self.ended || !self.flushing.is_empty()
    }
}

/// Event of the process log on its way to the queue.
pub struct Event {
    writer: LogWriter,
    line: Vec<u8>,
}

impl Write for Event {
    /// Adds a part of the line, whose characters that act on a terminal are escaped.
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        match std::str::from_utf8(part) {
            Ok(text) => super::json::write_escaped(&mut self.line, text)?,
            Err(_) => self.line.extend_from_slice(part),
        }
        Ok(part.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.writer.write(&self.line);
        }
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Event;
    fn make_writer(&'a self) -> Event {
        Event { writer: self.clone(), line: Vec::with_capacity(256) }
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

pub(super) fn dispatch(format: LogFormat, filter: EnvFilter, writer: LogWriter) -> Dispatch {
    let events = tracing_subscriber::registry().with(filter).with(EventExport(writer.clone()));
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            Dispatch::new(events.with(lines))
        }
        LogFormat::Text => Dispatch::new(events.with(lines.with_ansi(false))),
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
            log.write(b"line\n");
            std::thread::sleep(GATHER / 5);
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
    fn what_acts_on_a_terminal_is_escaped_in_either_format() {
        for format in [LogFormat::Json, LogFormat::Text] {
            let out = Out::default();
            let log = LogWriter::start(out.clone()).unwrap();
            tracing::dispatcher::with_default(&dispatch(format, EnvFilter::new("info"), log.clone()), || {
                let text = "\u{9b}31m \u{202e}gpj.exe \u{7f} f\u{fc}r";
                tracing::warn!(event = "bad", text, shown = %text);
            });
            log.flush();
            let text = out.text();
            assert!(text.contains("f\u{fc}r") && text.ends_with('\n'), "{text:?}");
            let acts = |c: char| c.is_control() || c == '\u{202e}';
            assert!(!text.trim_end().chars().any(acts), "{text:?}");
        }
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_not_time_and_memory_is_bounded() {
        const LINE: usize = 64 << 10;
        let out = Out::default();
        let turn = out.stuck.lock();
        let log = LogWriter::start(out.clone()).unwrap();
        let lines = 4 * MOST_BYTES / LINE;
        let mut line = vec![b'x'; LINE];
        line[LINE - 1] = b'\n';
        let began = Instant::now();
        for _ in 0..lines {
            log.write(&line);
        }
        assert_eq!(log.dropped(), (lines - MOST_BYTES / LINE) as u64);
        assert!(began.elapsed() < Duration::from_secs(5));
        let began = Instant::now();
        log.flush();
        assert!(began.elapsed() < LAST_LINES + Duration::from_secs(2));
        drop(turn);
        // What waited is written; nothing is cut.
        eventually("the rest is written", || out.written.lock().len() == MOST_BYTES);
        // The thread counts a batch as written a moment after it is.
        log.flush();
        log.write(b"more\n");
        eventually("there is room again", || out.written.lock().len() == MOST_BYTES + 5);
    }

    #[test]
    fn lines_of_several_threads_are_whole_and_all_there() {
        let out = Out::default();
        let log = LogWriter::start(out.clone()).unwrap();
        std::thread::scope(|scope| {
            for n in 0..4 {
                let log = &log;
                scope.spawn(move || {
                    for m in 0..1000 {
                        log.write(format!("{n} {m} end\n").as_bytes());
                    }
                });
            }
        });
        log.flush();
        let text = out.text();
        assert_eq!(text.lines().count(), 4000);
        assert!(text.lines().all(|line| line.ends_with(" end")));
        for n in 0..4 {
            let own: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("{n} "))).collect();
            assert_eq!((own[0], own[999]), (&*format!("{n} 0 end"), &*format!("{n} 999 end")), "in their order");
        }
    }

    #[test]
    fn the_last_lines_are_written_when_the_writer_goes() {
        let out = Out::default();
        let log = LogWriter::start(out.clone()).unwrap();
        log.write(b"last\n");
        drop(log);
        eventually("it is written", || out.text() == "last\n");
    }

    #[test]
    fn a_closed_output_stops_nothing() {
        let log = LogWriter::start(Out { broken: true, ..Out::default() }).unwrap();
        for _ in 0..2000 {
            log.write(b"line\n");
        }
        eventually("lines are counted as lost", || log.dropped() == 2000);
        log.flush();
    }
}
