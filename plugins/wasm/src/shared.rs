//! Data that the instances of a module share: values with a number for each change, queues, and metrics. All is bounded by
//! entries and bytes, and lives as long as a filter of the module.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

/// Most entries of each kind.
const MAX_ENTRIES: usize = 1_024;
/// Most bytes of a key or name.
const MAX_KEY: usize = 256;
/// Most bytes of all values, and of all queues.
const MAX_BYTES: usize = 4 << 20;
/// Most queues.
const MAX_QUEUES: usize = 64;

/// Reason for which shared data is not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SharedError {
    /// Another number of change was expected.
    Changed,
    /// There is no such entry.
    Missing,
    /// There is no room, or it is too long.
    Full,
    /// The queue is empty.
    Empty,
    /// The metric is of another kind.
    WrongKind,
}

/// Kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// Shared data of a module.
#[derive(Default)]
pub(crate) struct Shared {
    values: Mutex<Values>,
    queues: Mutex<Queues>,
    metrics: Mutex<Vec<Metric>>,
}

#[derive(Default)]
struct Values {
    by_key: HashMap<Vec<u8>, (Vec<u8>, u32)>,
    bytes: usize,
}

#[derive(Default)]
struct Queues {
    all: Vec<(Vec<u8>, VecDeque<Vec<u8>>)>,
    bytes: usize,
}

struct Metric {
    kind: MetricKind,
    name: Vec<u8>,
    value: u64,
}

impl Shared {
    /// Value of a key, and the number of its last change.
    pub(crate) fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        self.values.lock().by_key.get(key).cloned()
    }

    /// Sets a value, if the number of its last change is `expected`; 0 sets it whatever that is.
    pub(crate) fn set(&self, key: &[u8], value: &[u8], expected: u32) -> Result<(), SharedError> {
        let mut values = self.values.lock();
        let known = values.by_key.get(key).map(|(old, change)| (old.len(), *change));
        let change = known.map_or(0, |(_, change)| change);
        if expected != 0 && expected != change {
            return Err(SharedError::Changed);
        }
        let before = known.map_or(0, |(length, _)| length + key.len());
        let bytes = values.bytes - before + key.len() + value.len();
        if key.len() > MAX_KEY || bytes > MAX_BYTES || (known.is_none() && values.by_key.len() >= MAX_ENTRIES) {
            return Err(SharedError::Full);
        }
        values.bytes = bytes;
        // 0 stands for any number.
        values.by_key.insert(key.to_vec(), (value.to_vec(), change.wrapping_add(1).max(1)));
        Ok(())
    }

    /// Number of the queue of this name, which is made if there is none.
    pub(crate) fn register_queue(&self, name: &[u8]) -> Result<u32, SharedError> {
        let mut queues = self.queues.lock();
        if let Some(at) = queues.all.iter().position(|(known, _)| known == name) {
            return u32::try_from(at + 1).map_err(|_| SharedError::Full);
        }
        if queues.all.len() >= MAX_QUEUES || name.len() > MAX_KEY {
            return Err(SharedError::Full);
        }
        queues.all.push((name.to_vec(), VecDeque::new()));
        u32::try_from(queues.all.len()).map_err(|_| SharedError::Full)
    }

    /// Number of the queue of this name.
    pub(crate) fn find_queue(&self, name: &[u8]) -> Option<u32> {
        let queues = self.queues.lock();
        let at = queues.all.iter().position(|(known, _)| known == name)?;
        u32::try_from(at + 1).ok()
    }

    /// Adds an entry to a queue.
    pub(crate) fn enqueue(&self, id: u32, entry: &[u8]) -> Result<(), SharedError> {
        let mut queues = self.queues.lock();
        let bytes = queues.bytes + entry.len();
        let (_, queue) = at(&mut queues.all, id).ok_or(SharedError::Missing)?;
        if bytes > MAX_BYTES || queue.len() >= MAX_ENTRIES {
            return Err(SharedError::Full);
        }
        queue.push_back(entry.to_vec());
        queues.bytes = bytes;
        Ok(())
    }

    /// Takes the first entry of a queue.
    pub(crate) fn dequeue(&self, id: u32) -> Result<Vec<u8>, SharedError> {
        let mut queues = self.queues.lock();
        let (_, queue) = at(&mut queues.all, id).ok_or(SharedError::Missing)?;
        let entry = queue.pop_front().ok_or(SharedError::Empty)?;
        queues.bytes -= entry.len();
        Ok(entry)
    }

    /// Number of the metric of this name, which is made if there is none.
    pub(crate) fn define_metric(&self, kind: MetricKind, name: &[u8]) -> Result<u32, SharedError> {
        let mut metrics = self.metrics.lock();
        if let Some(at) = metrics.iter().position(|metric| metric.name == name) {
            let is_same = metrics.get(at).is_some_and(|metric| metric.kind == kind);
            let id = u32::try_from(at + 1).map_err(|_| SharedError::Full)?;
            return if is_same { Ok(id) } else { Err(SharedError::WrongKind) };
        }
        if metrics.len() >= MAX_ENTRIES || name.len() > MAX_KEY {
            return Err(SharedError::Full);
        }
        metrics.push(Metric { kind, name: name.to_vec(), value: 0 });
        u32::try_from(metrics.len()).map_err(|_| SharedError::Full)
    }

    /// Sets a gauge, or records a value in a histogram, of which the last is kept.
    pub(crate) fn record_metric(&self, id: u32, value: u64) -> Result<(), SharedError> {
        let mut metrics = self.metrics.lock();
        let metric = at(&mut metrics, id).ok_or(SharedError::Missing)?;
        if metric.kind == MetricKind::Counter {
            metric.value = metric.value.saturating_add(value);
        } else {
            metric.value = value;
        }
        Ok(())
    }

    /// Adds to a counter or gauge.
    pub(crate) fn increment_metric(&self, id: u32, by: i64) -> Result<(), SharedError> {
        let mut metrics = self.metrics.lock();
        let metric = at(&mut metrics, id).ok_or(SharedError::Missing)?;
        if metric.kind == MetricKind::Histogram || (metric.kind == MetricKind::Counter && by < 0) {
            return Err(SharedError::WrongKind);
        }
        metric.value = metric.value.saturating_add_signed(by);
        Ok(())
    }

    /// Value of a metric.
    pub(crate) fn metric(&self, id: u32) -> Result<u64, SharedError> {
        at(&mut self.metrics.lock(), id).map(|metric| metric.value).ok_or(SharedError::Missing)
    }
}

/// Entry of a number, which begins with 1.
fn at<T>(all: &mut [T], id: u32) -> Option<&mut T> {
    all.get_mut(usize::try_from(id.checked_sub(1)?).ok()?)
}
