//! Vectors of the examples of signals: made by a task of their own once a configuration is active, never for a request, and kept over
//! reloads while model and text stay. Owns the task; it ends with the last configuration that has the examples.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use spillway_filter::Embedder;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::telemetry::SignalMetrics;

/// Longest wait for the vectors of one example, while the model loads or has other work.
const TIMEOUT: Duration = Duration::from_secs(60);
/// First wait after a failure; each further one is twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest wait after a failure.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Vectors of one text: one for each of its windows.
type TextVectors = [Vec<f32>];

/// Model and text by which vectors are found again.
type Key = (u64, [u8; 32]);

/// Vectors of the examples of all configurations that are in use.
#[derive(Debug, Default)]
pub(super) struct Book {
    known: Mutex<HashMap<Key, Weak<TextVectors>>>,
    /// Turns at texts whose vectors are being made: signals that share a text make them once.
    turns: Mutex<HashMap<Key, Weak<Turn>>>,
}

type Turn = tokio::sync::Mutex<()>;

impl Book {
    fn find(&self, key: &Key) -> Option<Arc<TextVectors>> {
        self.known.lock().get(key).and_then(Weak::upgrade)
    }

    fn keep(&self, key: Key, vectors: &Arc<TextVectors>) {
        let mut known = self.known.lock();
        known.retain(|_, vectors| vectors.strong_count() > 0);
        known.insert(key, Arc::downgrade(vectors));
    }

    fn turn(&self, key: Key) -> Arc<Turn> {
        let mut turns = self.turns.lock();
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = turns.get(&key).and_then(Weak::upgrade).unwrap_or_default();
        turns.insert(key, Arc::downgrade(&turn));
        turn
    }
}

/// Example of a signal.
#[derive(Debug, Clone)]
struct Example {
    text: Arc<str>,
    /// Index of its label.
    label: usize,
    /// Its vectors, where an earlier set had them: that one may go before the vectors are used.
    known: Option<Arc<TextVectors>>,
}

/// Vectors of an example, with the index of its label.
pub(super) type Labelled = (usize, Arc<TextVectors>);

/// Examples of a signal.
pub(super) struct ExampleSet {
    embedder: Arc<dyn Embedder>,
    examples: Arc<[Example]>,
    book: Arc<Book>,
    metrics: Arc<SignalMetrics>,
    signal: Arc<str>,
    ready: watch::Sender<Option<Arc<[Labelled]>>>,
    task: Mutex<Option<AbortHandle>>,
}

impl ExampleSet {
    /// Creates the set of examples with the indices of their labels. Vectors that another set has are there at once.
    pub(super) fn new<'t>(
        signal: &str,
        embedder: Arc<dyn Embedder>,
        examples: impl Iterator<Item = (usize, &'t str)>,
        book: Arc<Book>,
        metrics: Arc<SignalMetrics>,
    ) -> Self {
        let version = embedder.version();
        let example = |(label, text): (usize, &str)| {
            let known = book.find(&key(version, text));
            Example { text: text.into(), label, known }
        };
        let examples = examples.map(example).collect();
        let ready = watch::Sender::new(None);
        let set = Self { embedder, examples, book, metrics, signal: signal.into(), ready, task: Mutex::default() };
        let known = |example: &Example| Some((example.label, example.known.clone()?));
        let all: Option<Vec<Labelled>> = set.examples.iter().map(known).collect();
        if let Some(all) = all {
            set.ready.send_replace(Some(all.into()));
        }
        set
    }

    /// Begins to make the vectors that are missing.
    pub(super) fn make(&self) {
        if self.ready.borrow().is_some() {
            return;
        }
        let (embedder, examples, book) = (self.embedder.clone(), self.examples.clone(), self.book.clone());
        let (metrics, signal, ready) = (self.metrics.clone(), self.signal.clone(), self.ready.clone());
        let work = async move {
            let (version, mut all) = (embedder.version(), Vec::with_capacity(examples.len()));
            for example in examples.iter() {
                let key = key(version, &example.text);
                let mut pause = FIRST_RETRY;
                let turn = book.turn(key);
                let _turn = turn.lock().await;
                let vectors = loop {
                    if let Some(known) = example.known.clone().or_else(|| book.find(&key)) {
                        break known;
                    }
                    match embedder.embed_whole(example.text.to_string(), TIMEOUT).await {
                        Ok(vectors) => {
                            metrics.example_vectors.add(u64::try_from(vectors.len()).unwrap_or(u64::MAX));
                            let vectors = vectors.into();
                            book.keep(key, &vectors);
                            break vectors;
                        }
                        Err(why) => {
                            let retry_after = pause.as_secs_f64();
                            tracing::warn!(event = "signal_examples_failed", %signal, reason = ?why, retry_after);
                            tokio::time::sleep(pause).await;
                            pause = (pause * 2).min(LAST_RETRY);
                        }
                    }
                };
                all.push((example.label, vectors));
            }
            ready.send_replace(Some(all.into()));
        };
        let task = tokio::spawn(work).abort_handle();
        if let Some(before) = self.task.lock().replace(task) {
            before.abort();
        }
    }

    /// Vectors of all examples, once they are made.
    pub(super) async fn vectors(&self) -> Option<Arc<[Labelled]>> {
        let mut ready = self.ready.subscribe();
        ready.wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl Drop for ExampleSet {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}

fn key(version: u64, text: &str) -> Key {
    (version, Sha256::digest(text.as_bytes()).into())
}

/// Greatest cosine similarity of a text to the examples of each label; `None` for a label without a vector of the same width.
pub(super) fn similarities(text: &[Vec<f32>], examples: &[Labelled], labels: usize) -> Vec<Option<f64>> {
    let mut greatest: Vec<Option<f64>> = vec![None; labels];
    for (label, example) in examples {
        let Some(greatest) = greatest.get_mut(*label) else { continue };
        for own in text {
            for other in example.iter().filter(|other| other.len() == own.len()) {
                let product: f32 = own.iter().zip(other).map(|(a, b)| a * b).sum();
                let product = f64::from(product).clamp(-1.0, 1.0);
                *greatest = Some(greatest.map_or(product, |before| before.max(product)));
            }
        }
    }
    greatest
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::FixedEmbedder;

    use super::*;
    use crate::telemetry::Metrics;

    fn set(texts: &[&str], book: &Arc<Book>, metrics: &Metrics) -> ExampleSet {
        let vector = |text: &str| if text == "east" { Some(vec![1.0, 0.0]) } else { Some(vec![0.0, 1.0]) };
        let texts = texts.iter().map(|text| (0, *text));
        ExampleSet::new("s", Arc::new(FixedEmbedder(vector)), texts, book.clone(), metrics.signal("s"))
    }

    #[tokio::test]
    async fn vectors_are_made_once_and_kept_while_a_set_has_them() {
        let (book, metrics) = (Arc::default(), Metrics::new());
        let count = metrics.signal("s");
        let first = set(&["east", "north"], &book, &metrics);
        assert!(first.ready.borrow().is_none());
        first.make();
        let vectors = first.vectors().await.unwrap();
        assert_eq!((vectors.len(), count.example_vectors.get()), (2, 2));
        let second = set(&["north", "east"], &book, &metrics);
        assert!(second.ready.borrow().is_some(), "known vectors are there at once");
        let third = set(&["west", "east"], &book, &metrics);
        assert!(third.ready.borrow().is_none());
        // What it has in common with those before outlives them.
        drop((first, second, vectors));
        third.make();
        third.vectors().await.unwrap();
        assert_eq!(count.example_vectors.get(), 3);
        drop(third);
        assert!(set(&["east"], &book, &metrics).ready.borrow().is_none());
    }

    #[test]
    fn the_greatest_similarity_counts() {
        let example = |vectors: &[Vec<f32>]| -> Arc<TextVectors> { vectors.to_vec().into() };
        let examples = [
            (0, example(&[vec![1.0, 0.0]])),
            (1, example(&[vec![0.0, 1.0], vec![0.6, 0.8]])),
            (2, example(&[vec![1.0, 0.0, 0.0]])),
        ];
        let found = similarities(&[vec![0.0, -1.0], vec![0.6, 0.8]], &examples, 4);
        let near = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-6;
        assert!(near(found[0], 0.6) && near(found[1], 1.0), "{found:?}");
        assert_eq!((found[2], found[3]), (None, None));
    }
}
