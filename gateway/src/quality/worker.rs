//! The one task that owns the sketches, on a thread of its own: takes what was handed over, judges, stores, and publishes what
//! operators see. No request waits for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::examples::{Example, Examples, ExamplesError, Keeping};
use super::facts::Facts;
use super::notices::{Notice, Notices};
use super::reference::ReferenceFile;
use super::report::RouteReport;
use super::sampled::{Counters, Sampled, Waiting};
use super::signals::Signal;
use super::state::{Crossing, RouteState, Rules};
use super::{Published, files};
use crate::builtin::{LoadedModel, idle_vector};
use crate::clock::unix_fraction;
use crate::restarting;
use crate::telemetry::{LogThrottle, names};

/// Messages that wait.
pub(super) const MOST_MESSAGES: usize = 1024;
/// Interval of judgements.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Length of the pause after a judgement in lengths of it: judging takes at most a fiftieth of a processor.
const LOOK_PAUSE: u32 = 50;
/// Time after which a route is judged even without a new request: its panes end by the clock.
const LOOK_AT_LEAST: Duration = Duration::from_secs(60);
/// Interval of writes of what has changed, and so the most that a crash loses.
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// Least time from one embedding to the next: at most ten a second, whatever the rate of requests.
const EMBED_EVERY: Duration = Duration::from_millis(100);
/// Longest time for one embedding.
const EMBED_TIMEOUT: Duration = Duration::from_secs(10);

/// Channel for the answer to a message about examples; its error is that of the file.
pub(super) type ExamplesAnswer<T> = oneshot::Sender<Result<T, String>>;

/// Message to the task.
pub(super) enum Message {
    /// A request of a route was answered.
    Sampled(Arc<str>, Box<Sampled>, Waiting),
    /// A configuration is active.
    Adopt(Vec<Watched>, PathBuf),
    /// Texts that were kept are wanted, of one route or of all.
    Examples(Option<String>, ExamplesAnswer<Vec<Example>>),
    /// Texts that were kept are to be deleted, of one route or of all.
    DeleteExamples(Option<String>, ExamplesAnswer<usize>),
    /// Sketches for a reference file are wanted; `None` is sent for an unknown route.
    Reference(String, oneshot::Sender<Option<ReferenceFile>>),
    /// The process ends; what has changed is written first.
    Stop(oneshot::Sender<()>),
    /// Stores what has changed, and neither counts nor writes from then on.
    Pause(oneshot::Sender<()>),
    /// Counts and writes again.
    Resume,
    /// A defect, to test what follows.
    #[cfg(test)]
    Panic,
}

/// Route that is watched.
#[derive(Clone)]
pub(super) struct Watched {
    /// Name.
    pub name: Arc<str>,
    /// Rules.
    pub rules: Rules,
    /// Share of requests.
    pub share: f64,
    /// Model for embeddings.
    pub model: Option<Arc<LoadedModel>>,
    /// Counters.
    pub counters: Arc<Counters>,
    /// Rules of the texts that are kept.
    pub keeping: Option<Keeping>,
    /// Folder of the stored sketches.
    pub folder: PathBuf,
}

struct Kept {
    watched: Watched,
    state: RouteState,
    signals: HashMap<(Box<str>, &'static str), u64>,
    /// True if there is something to write.
    is_dirty: bool,
    /// True if there is something to judge.
    is_fresh: bool,
    /// Time of the last judgement.
    looked: Option<Instant>,
}

/// Prompt that is turned into an embedding.
struct Embedding {
    route: Arc<str>,
    target: Box<str>,
    vector: oneshot::Receiver<Option<Vec<f32>>>,
    began: Instant,
    span: crate::telemetry::Span,
}

/// The task.
pub(super) struct Worker {
    routes: HashMap<Arc<str>, Kept>,
    published: Arc<Published>,
    notices: Notices,
    examples: Option<Examples>,
    embedding: Option<Embedding>,
    embedded: Option<Instant>,
    unwritten: LogThrottle,
    /// True while another process owns the files.
    is_paused: bool,
}

/// Starts the thread of the task.
///
/// # Errors
/// The system has no thread.
pub(super) fn start(
    messages: mpsc::Receiver<Message>,
    published: Arc<Published>,
    notices: Notices,
) -> std::io::Result<()> {
    start_with(messages, published, notices, restarting::FIRST_PAUSE)
}

fn start_with(
    mut messages: mpsc::Receiver<Message>,
    published: Arc<Published>,
    notices: Notices,
    first_pause: Duration,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    crate::idle_thread::spawn("quality", move || {
        let mut adopted = None;
        // The sample that met a defect is gone, the sketches are read again as they were written last.
        let life =
            || runtime.block_on(Worker::new(published.clone(), notices.clone()).run(&mut messages, &mut adopted));
        restarting::until_end(first_pause, life, |reason, pause| {
            published.panicked();
            tracing::error!(event = "quality_panicked", reason, retry_after = pause.as_secs_f64());
        });
    })?;
    Ok(())
}

fn now() -> f64 {
    unix_fraction(SystemTime::now())
}

impl Worker {
    fn new(published: Arc<Published>, notices: Notices) -> Self {
        Self {
            routes: HashMap::new(),
            published,
            notices,
            examples: None,
            embedding: None,
            embedded: None,
            unwritten: LogThrottle::default(),
            is_paused: false,
        }
    }

    /// Runs until it is stopped. `adopted` has the routes of the running configuration and the folder of examples, for the next
    /// life after a panic.
    async fn run(mut self, messages: &mut mpsc::Receiver<Message>, adopted: &mut Option<(Vec<Watched>, PathBuf)>) {
        if let Some((watched, folder)) = adopted.clone() {
            self.adopt(watched);
            self.adopt_examples(&folder);
        }
        let mut write = tokio::time::interval(WRITE_EVERY);
        write.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = Instant::now();
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    None => break,
                    Some(Message::Sampled(route, sampled, waiting)) => {
                        if !self.is_paused {
                            self.sampled(&route, *sampled);
                        }
                        drop(waiting);
                    }
                    Some(Message::Adopt(watched, folder)) => {
                        *adopted = Some((watched.clone(), folder.clone()));
                        self.adopt(watched);
                        self.adopt_examples(&folder);
                        self.look();
                    }
                    #[cfg(test)]
                    Some(Message::Panic) => panic!("as the test wants it"),
                    Some(Message::Reference(route, answer)) => {
                        let file = self.routes.get(route.as_str()).map(|kept| kept.state.to_reference(&route, now()));
                        let _ = answer.send(file);
                    }
                    Some(Message::Examples(route, answer)) => {
                        let newest = |file: &Examples| file.newest(route.as_deref()).map_err(|e| e.to_string());
                        let _ = answer.send(self.examples.as_ref().map_or(Ok(Vec::new()), newest));
                    }
                    Some(Message::DeleteExamples(route, answer)) => {
                        let delete = |file: &mut Examples| file.delete(route.as_deref()).map_err(|e| e.to_string());
                        let _ = answer.send(self.examples.as_mut().map_or(Ok(0), delete));
                    }
                    Some(Message::Pause(done)) => {
                        self.write();
                        self.is_paused = true;
                        let _ = done.send(());
                    }
                    Some(Message::Resume) => self.is_paused = false,
                    Some(Message::Stop(done)) => {
                        self.write();
                        let _ = done.send(());
                        break;
                    }
                },
                vector = vector_of(&mut self.embedding) => self.embedded(vector),
                () = tokio::time::sleep_until(look.into()) => {
                    let began = Instant::now();
                    self.look();
                    look = Instant::now() + LOOK_EVERY.max(began.elapsed() * LOOK_PAUSE);
                }
                _ = write.tick() => {
                    self.write();
                    self.expire();
                }
            }
        }
    }

    /// Takes the routes of a configuration over; state of the others is written and forgotten.
    fn adopt(&mut self, watched: Vec<Watched>) {
        self.write();
        let mut before = std::mem::take(&mut self.routes);
        for watched in watched {
            let name = watched.name.clone();
            let (mut state, signals) = match before.remove(&name) {
                Some(kept) if kept.watched.folder == watched.folder => (kept.state, kept.signals),
                _ => (restored(&watched.folder, &name), HashMap::new()),
            };
            state.adopt(&watched.rules);
            self.routes.insert(name, Kept { watched, state, signals, is_dirty: false, is_fresh: true, looked: None });
        }
    }

    /// Opens the file of examples where a route keeps some, or where there are some of routes that do so no longer.
    fn adopt_examples(&mut self, folder: &Path) {
        if self.examples.as_ref().is_some_and(|file| file.folder() != folder) {
            self.examples = None;
        }
        let keeps = self.routes.values().any(|kept| kept.watched.keeping.is_some());
        if self.examples.is_none() && (keeps || Examples::is_in(folder)) {
            match Examples::open(folder) {
                Ok(file) => self.examples = Some(file),
                Err(e) => self.unkept(&e),
            }
        }
        self.expire();
    }

    /// Deletes examples that are too old, or of routes that keep none.
    fn expire(&mut self) {
        if self.is_paused {
            return;
        }
        let Some(file) = &mut self.examples else { return };
        let rules = self.routes.iter().filter_map(|(name, kept)| Some((&**name, kept.watched.keeping?)));
        if let Err(e) = file.expire(now(), &rules.collect::<Vec<_>>()) {
            self.unkept(&e);
        }
    }

    fn unkept(&self, reason: &ExamplesError) {
        self.published.write_failed();
        self.unwritten.add(1, |times| tracing::warn!(event = "examples_not_kept", %reason, times));
    }

    /// Keeps the texts of a request, if it is drawn.
    fn keep(&mut self, route: &Arc<str>, facts: &Facts, sampled: &Sampled) {
        let (Some(kept), Some(file)) = (self.routes.get(route), &mut self.examples) else { return };
        let Some(keeping) = kept.watched.keeping.filter(|_| sampled.may_be_kept) else { return };
        if facts.last.is_empty() || rand::random::<f64>() >= keeping.share {
            return;
        }
        let example = Example {
            id: 0,
            route: route.to_string(),
            target: sampled.version.to_string(),
            at: unix_fraction(sampled.ended),
            prompt: facts.last.kept(keeping.redacts),
            answer: facts.said.kept(keeping.redacts),
            finish: sampled.finish.clone(),
        };
        match file.add(&example, &keeping) {
            Ok(()) => {
                kept.watched.counters.kept.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => self.unkept(&e),
        }
    }

    fn sampled(&mut self, route: &Arc<str>, sampled: Sampled) {
        if !self.routes.contains_key(route) {
            return;
        }
        let facts = Facts::of(&sampled);
        if !facts.is_call {
            return;
        }
        self.keep(route, &facts, &sampled);
        let Some(kept) = self.routes.get_mut(route) else { return };
        let Sampled { version, caller, mut span, ended, .. } = sampled;
        if facts.is_unreadable {
            kept.watched.counters.unreadable.fetch_add(1, Ordering::Relaxed);
        }
        if !kept.state.add(&version, caller, &facts, unix_fraction(ended), &kept.watched.rules) {
            return;
        }
        (kept.is_dirty, kept.is_fresh) = (true, true);
        if let Some(signal) = facts.signal.filter(|signal| *signal != Signal::None) {
            *kept.signals.entry((version.clone(), signal.as_str())).or_default() += 1;
            span.set(names::SPILLWAY_QUALITY_SIGNAL, signal.as_str());
        }
        if let Some(language) = facts.language {
            span.set(names::SPILLWAY_QUALITY_LANGUAGE, language);
        }
        span.set(names::SPILLWAY_QUALITY_REFUSAL, facts.is_refusal);
        let (Some(model), Some(text)) = (&kept.watched.model, facts.text) else { return };
        let is_early = self.embedded.is_some_and(|then| then.elapsed() < EMBED_EVERY);
        if self.embedding.is_some() || is_early {
            kept.watched.counters.not_embedded.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.embedded = Some(Instant::now());
        let (model, (answer, vector)) = (model.clone(), oneshot::channel());
        tokio::spawn(async move {
            let _ = answer.send(idle_vector(&model, text, Instant::now() + EMBED_TIMEOUT).await);
        });
        let (route, began) = (route.clone(), Instant::now());
        self.embedding = Some(Embedding { route, target: version, vector, began, span });
    }

    fn embedded(&mut self, vector: Option<Vec<f32>>) {
        let Some(Embedding { route, target, began, mut span, .. }) = self.embedding.take() else { return };
        let Some(kept) = self.routes.get_mut(&route) else { return };
        let counters = &kept.watched.counters;
        let Some(vector) = vector else {
            counters.not_embedded.fetch_add(1, Ordering::Relaxed);
            return;
        };
        counters.embedded.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        counters.embedding_micros.fetch_add(micros, Ordering::Relaxed);
        kept.is_fresh = true;
        if let Some(topic) = kept.state.add_vector(&target, &vector, now(), &kept.watched.rules) {
            span.set(names::SPILLWAY_QUALITY_TOPIC, i64::try_from(topic).unwrap_or(0));
        }
    }

    /// Judges the routes with something new, and publishes what operators see.
    fn look(&mut self) {
        let at = now();
        for (name, kept) in &mut self.routes {
            let is_due =
                kept.looked.is_none_or(|then| then.elapsed() >= LOOK_AT_LEAST.min(kept.watched.rules.half_pane()));
            if !(std::mem::take(&mut kept.is_fresh) || is_due) {
                continue;
            }
            kept.looked = Some(Instant::now());
            for crossing in kept.state.look(at, &kept.watched.rules) {
                report(name, &crossing, &self.notices);
                kept.is_dirty = true;
            }
            let report = RouteReport::of(name, kept.watched.share, &kept.state, &kept.watched.rules, at);
            self.published.put(name.clone(), report, &kept.watched.counters, &kept.signals);
        }
        self.published.retain(|name| self.routes.contains_key(name));
    }

    fn write(&mut self) {
        if self.is_paused {
            return;
        }
        for (name, kept) in &mut self.routes {
            if !std::mem::take(&mut kept.is_dirty) {
                continue;
            }
            if let Err(e) = files::write(&kept.watched.folder, name, &kept.state) {
                kept.is_dirty = true;
                self.published.write_failed();
                let folder = kept.watched.folder.display();
                self.unwritten.add(1, |times| {
                    tracing::warn!(event = "quality_not_stored", route = %name, folder = %folder, reason = %e, times);
                });
            }
        }
    }
}

/// Embedding of the prompt under way, if there is one.
async fn vector_of(embedding: &mut Option<Embedding>) -> Option<Vec<f32>> {
    match embedding {
        Some(embedding) => (&mut embedding.vector).await.unwrap_or(None),
        None => std::future::pending().await,
    }
}

fn report(route: &str, crossing: &Crossing, notices: &Notices) {
    let Crossing { target, feature, recipe, distance, limit, is_drift } = crossing;
    let recipe = recipe.as_str();
    if *is_drift {
        tracing::warn!(event = "drift", %route, served_by = %target, %feature, recipe, distance, limit);
    } else {
        tracing::info!(event = "drift_over", %route, served_by = %target, %feature, recipe, distance, limit);
    }
    let notice = if *is_drift { Notice::FeatureDrifted } else { Notice::FeatureBack };
    let data = json!({"route": route, "target": target, "feature": feature.to_string(), "recipe": recipe,
        "distance": distance, "limit": limit});
    notices.send(notice, route, data);
}

/// State of a route as it was stored; an empty one where there is none. One that cannot be read is logged, and written over
/// when there is a new one.
fn restored(folder: &Path, route: &str) -> RouteState {
    match files::read(folder, route) {
        Ok(state) => state.unwrap_or_default(),
        Err(e) => {
            tracing::error!(event = "quality_not_restored", route = %route, folder = %folder.display(), reason = %e);
            RouteState::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::Notifier;
    use crate::quality::Reference;
    use crate::telemetry::Metrics;

    #[tokio::test]
    async fn after_a_panic_the_task_begins_again_with_the_routes_that_it_watched() {
        let folder = tempfile::tempdir().unwrap();
        let (queue, messages) = mpsc::channel(8);
        let published = Arc::new(Published::default());
        let notices = Notices::new(Arc::new(Notifier::new(Arc::new(Metrics::new()))));
        start_with(messages, published.clone(), notices, Duration::from_millis(1)).unwrap();
        let rules = Rules {
            reference: Reference::Window(3600.0),
            inputs: 0.2,
            outputs: 0.2,
            targets: vec!["a".into()],
            embedding: None,
        };
        let (name, counters, folder) = ("r".into(), Arc::default(), folder.path().to_owned());
        let watched = Watched { name, rules, share: 1.0, model: None, counters, keeping: None, folder: folder.clone() };
        assert!(queue.send(Message::Adopt(vec![watched], folder)).await.is_ok());
        for panics in 1..4 {
            assert!(queue.send(Message::Panic).await.is_ok());
            let (answer, file) = oneshot::channel();
            assert!(queue.send(Message::Reference("r".to_owned(), answer)).await.is_ok());
            assert!(file.await.unwrap().is_some(), "the route is watched again");
            assert_eq!(published.panics(), panics);
        }
    }
}
