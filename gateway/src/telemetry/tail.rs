//! Live tail of the requests that have ended, for operators who watch: the lines of the access log, filtered, at most some a
//! second for each watcher. A request looks at one flag while nobody watches. What a watcher does not get, because it reads
//! slowly or too much happens, is counted and told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::AccessRecord;
use crate::clock::now_millis;

/// Most watchers: each costs every request a comparison.
const MAX_WATCHERS: usize = 8;
/// Most lines for a watcher in a second: more cannot be read.
const MAX_PER_SECOND: u64 = 20;
/// Lines that wait for a watcher: three seconds of them.
const RING: usize = 64;
/// Bits of a budget that count lines; those above are its second.
const COUNT_BITS: u32 = 16;

/// Requests that a watcher wants to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TailFilter {
    /// Name of the route.
    pub route: Option<String>,
    /// Name of the consumer.
    pub consumer: Option<String>,
    /// Lowest and highest status.
    pub status: Option<(u16, u16)>,
}

/// Text that names no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no status; expected a number such as 503, or a class such as 5xx")]
pub struct NoStatus(String);

impl TailFilter {
    /// Filter by a status such as `503`, or by a class such as `5xx`.
    ///
    /// # Errors
    /// The text is neither.
    pub fn with_status(self, text: &str) -> Result<Self, NoStatus> {
        let wrong = || NoStatus(text.chars().take(16).collect());
        let class =
            text.strip_suffix("xx").and_then(|class| class.parse::<u16>().ok()).filter(|class| (1..=9).contains(class));
        let range = match class {
            Some(class) => (class * 100, class * 100 + 99),
            None => text.parse().map(|status| (status, status)).map_err(|_| wrong())?,
        };
        Ok(Self { status: Some(range), ..self })
    }

    fn takes(&self, record: &AccessRecord<'_>) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| wanted.is_none() || wanted.as_deref() == found;
        is(&self.route, record.route)
            && is(&self.consumer, record.consumer)
            && self.status.is_none_or(|(low, high)| (low..=high).contains(&record.status))
    }
}

/// Watcher, as requests see it.
struct Watcher {
    filter: TailFilter,
    lines: mpsc::Sender<Bytes>,
    missed: AtomicU64,
    taken: PerSecond,
}

/// Budget of each second: the second, and the number of what was taken in it.
#[derive(Debug, Default)]
pub(super) struct PerSecond(AtomicU64);

impl PerSecond {
    /// Takes one of at most `most` of a second; false if they are spent.
    pub(super) fn take(&self, second: u64, most: u64) -> bool {
        let next = |taken: u64| {
            let count = if taken >> COUNT_BITS == second { taken & ((1 << COUNT_BITS) - 1) } else { 0 };
            (count < most).then_some(second << COUNT_BITS | (count + 1))
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

/// Watchers of the process.
#[derive(Default)]
pub struct Tail {
    is_watched: AtomicBool,
    watchers: ArcSwap<Vec<Arc<Watcher>>>,
    /// Held while the list of watchers changes.
    changing: Mutex<()>,
}

impl Tail {
    /// True while somebody watches.
    pub fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Relaxed)
    }

    /// Shows a request that has ended to those who watch.
    pub fn show(&self, record: &AccessRecord<'_>) {
        let watchers = self.watchers.load();
        let mut line: Option<Bytes> = None;
        for watcher in watchers.iter().filter(|watcher| watcher.filter.takes(record)) {
            let is_sent = watcher.taken.take(now_millis() / 1000, MAX_PER_SECOND) && {
                let line = line.get_or_insert_with(|| record.object().trim_ascii_end().to_vec().into());
                watcher.lines.try_send(line.clone()).is_ok()
            };
            if !is_sent {
                watcher.missed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Begins to watch; `None` if as many watch as may.
    pub fn watch(self: &Arc<Self>, filter: TailFilter) -> Option<TailReader> {
        let _changing = self.changing.lock();
        let mut watchers = Vec::clone(&self.watchers.load());
        if watchers.len() >= MAX_WATCHERS {
            return None;
        }
        let (lines, receiver) = mpsc::channel(RING);
        let watcher = Arc::new(Watcher { filter, lines, missed: AtomicU64::new(0), taken: PerSecond::default() });
        watchers.push(watcher.clone());
        self.set(watchers);
        Some(TailReader { tail: self.clone(), watcher, receiver })
    }

    fn set(&self, watchers: Vec<Arc<Watcher>>) {
        self.is_watched.store(!watchers.is_empty(), Ordering::Relaxed);
        self.watchers.store(Arc::new(watchers));
    }
}

/// Lines of one watcher, who stops watching when it is dropped.
pub struct TailReader {
    tail: Arc<Tail>,
    watcher: Arc<Watcher>,
    receiver: mpsc::Receiver<Bytes>,
}

impl TailReader {
    /// Next line, an object of JSON without a line break.
    pub async fn next(&mut self) -> Bytes {
        // The watcher, which this reader holds, has the other end.
        match self.receiver.recv().await {
            Some(line) => line,
            None => std::future::pending().await,
        }
    }

    /// Lines since the last call that the watcher did not get.
    pub fn take_missed(&self) -> u64 {
        self.watcher.missed.swap(0, Ordering::Relaxed)
    }
}

impl Drop for TailReader {
    fn drop(&mut self) {
        let _changing = self.tail.changing.lock();
        let watchers = self.tail.watchers.load();
        self.tail.set(watchers.iter().filter(|other| !Arc::ptr_eq(other, &self.watcher)).cloned().collect());
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn filter(route: Option<&str>, consumer: Option<&str>) -> TailFilter {
        TailFilter { route: route.map(str::to_owned), consumer: consumer.map(str::to_owned), status: None }
    }

    #[test]
    fn a_watcher_sees_what_its_filter_takes_and_nobody_pays_for_none() {
        let tail = Arc::new(Tail::default());
        assert!(!tail.is_watched());
        tail.show(&AccessRecord::example("/", "a"));
        let all = TailFilter::default();
        let mut wanted = [
            (all.clone(), true),
            (filter(Some("chat"), Some("acme")), true),
            (filter(Some("other"), None), false),
            (filter(None, Some("other")), false),
            (all.clone().with_status("200").unwrap(), true),
            (all.clone().with_status("2xx").unwrap(), true),
            (all.with_status("5xx").unwrap(), false),
        ]
        .map(|(filter, sees)| (tail.watch(filter).unwrap(), sees));
        assert!(tail.is_watched());
        tail.show(&AccessRecord::example("/a\"b\n", "a"));
        for (reader, sees) in &mut wanted {
            let line = reader.next().now_or_never();
            assert_eq!(line.is_some(), *sees);
            let Some(line) = line else { continue };
            let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
            assert_eq!((&read["path"], &read["route"]), (&"/a\"b\n".into(), &"chat".into()));
            assert!(!line.contains(&b'\n'));
        }
        drop(wanted);
        assert!(!tail.is_watched() && tail.watchers.load().is_empty());
    }

    #[test]
    fn a_status_is_a_number_or_a_class() {
        let range = |text: &str| TailFilter::default().with_status(text).map(|filter| filter.status.unwrap());
        assert_eq!((range("503"), range("5xx"), range("499")), (Ok((503, 503)), Ok((500, 599)), Ok((499, 499))));
        for wrong in ["", "xx", "5x", "0xx", "10xx", "-1", "abc", "70000", "5xxx"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn watchers_and_what_each_gets_are_bounded_and_the_rest_is_counted() {
        let tail = Arc::new(Tail::default());
        let mut readers: Vec<_> = (0..MAX_WATCHERS).map(|_| tail.watch(TailFilter::default()).unwrap()).collect();
        assert!(tail.watch(TailFilter::default()).is_none());
        let watcher = readers[0].watcher.clone();
        let take = |second| watcher.taken.take(second, MAX_PER_SECOND);
        assert!((0..MAX_PER_SECOND).all(|_| take(7)) && !take(7) && take(8));
        for _ in 0..500 {
            tail.show(&AccessRecord::example("/", "a"));
        }
        // However many seconds that took, at most the ring is kept.
        let reader = &mut readers[1];
        let got = std::iter::from_fn(|| reader.next().now_or_never()).count() as u64;
        assert!(got <= RING as u64 && got >= MAX_PER_SECOND, "{got}");
        assert_eq!(got + reader.take_missed(), 500);
        assert_eq!(reader.take_missed(), 0);
        readers.pop();
        assert!(tail.watch(TailFilter::default()).is_some());
    }
}
