//! `cache`: answers that are kept for requests that ask the same again.

mod counts;
mod key;
mod shared;
mod told;
mod vectors;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;
use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};
use moka::notification::RemovalCause;
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_cel::{Expression, Seen};
use spillway_config::values::{Duration, Size};
use spillway_filter::{
    Answer, AnswerHead, BuildContext, Counter, Embedder, EventChange, ExchangeEnd, FieldError, Fields, Filter,
    FilterFactory, Flow, Headers, KeptAnswers, Observer, Pricing, Purging, Refusal, RequestView, ResponseEvent,
    Rewrite, Rewriter, Waited, define,
};

use crate::condition::Condition;
use counts::{Counts, Said, Tokens, Unkept};
use key::{Asked, Key, LastText};
use shared::{Fresh, Generations, SharedKept, Unsent};
use told::Told;
use vectors::Vectors;

/// Header that says whether the answer was kept (`hit`), or is kept from now on (`miss`).
static RESULT: HeaderName = HeaderName::from_static("x-spillway-cache");
/// Content type of an answer that says none.
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Number of the next filter.
static FILTERS: AtomicU64 = AtomicU64::new(0);
/// Memory of an entry beside its answer, bytes.
const ENTRY: usize = 448;

/// Keeps answers of model APIs, and gives them to requests that ask the same again: chats, completions, embeddings,
/// rankings and inferences whose body is the same but for the order of its members. Whole answers and streams are kept apart. Put
/// it behind limits, and behind `transform` and `guard`: what they change is not kept.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cache {
    /// Requests that ask exactly the same. Must be true.
    exact: bool,
    /// Requests that ask nearly the same, in place of a miss: all but the last text of the user is the same, and that one is near
    /// in meaning. Conversations of chats, messages and responses alone.
    #[serde(default)]
    semantic: Option<Semantic>,
    /// Time for which an answer is kept.
    #[serde(default = "ten_minutes")]
    ttl: Duration,
    /// Callers who get the same answer. A caller who is not identified shares answers with its address alone, but on `route`.
    #[serde(default)]
    scope: Scope,
    /// Place of the answers.
    #[serde(default)]
    store: Store,
    /// Memory for the answers of this filter, 64MiB when left out. The ones that are asked for least make room. Not for
    /// `store: shared`, whose server bounds its own memory.
    #[serde(default)]
    max_size: Option<Size>,
    /// Longest answer that is kept.
    #[serde(default = "entry")]
    max_entry: Size,
    /// Condition in CEL on the request. Where it is false or has no value, the answer is neither looked for nor kept. All requests when
    /// left out.
    #[serde(default)]
    when: Option<String>,
    /// Text, number, or true or false in CEL that requests must have in common beside all else, such as
    /// `request.headers['x-locale']`. A request without a value passes by the cache.
    #[serde(default)]
    key: Option<String>,
}

/// Place of answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Store {
    /// Memory of this process.
    #[default]
    Memory,
    /// Server of `state.cache.redis`, for all gateways that use it. Not together with `semantic`.
    Shared,
}

/// Comparison of texts by their meaning.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Semantic {
    /// Built-in model for embeddings.
    model: String,
    /// Least similarity, from 0.8 to 1: the cosine of the angle between the vectors of two texts. Which one fits depends on the
    /// model and the texts: a no in one of them moves it little.
    #[serde(default = "threshold")]
    threshold: f32,
    /// Longest time for the vector of a text, at most 10s. Without one in time the request is a miss.
    #[serde(default = "embedding_time")]
    timeout: Duration,
}

/// Bounds of `threshold`: below, texts on one subject are near.
const THRESHOLD: std::ops::RangeInclusive<f32> = 0.8..=1.0;
/// Longest `timeout`.
const MAX_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

fn threshold() -> f32 {
    0.95
}

fn embedding_time() -> Duration {
    Duration(std::time::Duration::from_millis(200))
}

fn ten_minutes() -> Duration {
    Duration(std::time::Duration::from_secs(600))
}

/// Memory for answers where none is written.
const MEMORY: u64 = 64 << 20;

fn entry() -> Size {
    Size(1 << 20)
}

/// Callers who get the same answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Scope {
    /// The consumer of the request alone.
    #[default]
    Consumer,
    /// All consumers of a tenant.
    Tenant,
    /// All callers of the route.
    Route,
}

fn check(written: &Cache) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !written.exact {
        let why = "found false; expected true: `semantic` comes beside it".to_owned();
        errors.push(FieldError::at(["exact"], why));
    }
    if let Some(semantic) = &written.semantic {
        if !THRESHOLD.contains(&semantic.threshold) {
            let why = format!("found {}; expected 0.8 to 1", semantic.threshold);
            errors.push(FieldError::at(["semantic", "threshold"], why));
        }
        if semantic.timeout.0.is_zero() || semantic.timeout.0 > MAX_TIMEOUT {
            let why = format!("found {:?}; expected more than 0s and at most 10s", semantic.timeout.0);
            errors.push(FieldError::at(["semantic", "timeout"], why));
        }
    }
    if written.ttl.0.is_zero() {
        errors.push(FieldError::at(["ttl"], "found no time; expected some, such as 10m"));
    }
    let max_size = written.max_size.map_or(MEMORY, |size| size.0);
    if written.store == Store::Shared {
        if written.semantic.is_some() {
            let why = "no effect with `store: shared`, where answers are found by the exact request alone: remove one of them";
            errors.push(FieldError::at(["semantic"], why));
        }
        if written.max_size.is_some() {
            let why = "no effect with `store: shared`, whose server bounds its own memory (`maxmemory`): remove it";
            errors.push(FieldError::at(["maxSize"], why));
        }
    } else if written.max_entry.0 > max_size {
        let why = format!("found {} bytes; expected at most `maxSize` ({max_size})", written.max_entry.0);
        errors.push(FieldError::at(["maxEntry"], why));
    }
    if written.max_entry.0 >= u64::from(u32::MAX) {
        errors.push(FieldError::at(
            ["maxEntry"],
            format!("found {} bytes; expected less than 4 GiB", written.max_entry.0),
        ));
    }
    errors.extend(Condition::new(written.when.as_ref()).err());
    errors.extend(FurtherKey::new(written.key.as_ref()).err());
    errors
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define("cache", check, |written: Cache, cx: &BuildContext<'_>| {
        let embedder = written.semantic.as_ref().map(|semantic| {
            let found = cx.embedders.embedder(&semantic.model);
            found.map_err(|why| FieldError::at(["semantic", "model"], why))
        });
        let embedder = embedder.transpose()?;
        let place = match written.store {
            Store::Memory => {
                // An edit of its size, time or model begins an empty one.
                let model = embedder.as_ref().map(|embedder| embedder.version());
                let max_size = written.max_size.map_or(MEMORY, |size| size.0);
                let name = format!("{} {:?} {max_size} {model:?}", cx.route, written.ttl.0);
                Place::Memory(cx.states.get_or_insert(&name, || Kept::new(max_size, written.ttl.0, embedder)))
            }
            Store::Shared => Place::Shared(Arc::new(SharedKept::new(cx, written.ttl.0)?)),
        };
        let max_entry = usize::try_from(written.max_entry.0).unwrap_or(usize::MAX);
        let number = FILTERS.fetch_add(1, Ordering::Relaxed);
        let counts = Counts::new(cx)?;
        let semantic =
            written.semantic.map(|written| Near { threshold: written.threshold, timeout: written.timeout.0 });
        let when = Condition::new(written.when.as_ref())?;
        let further = FurtherKey::new(written.key.as_ref())?;
        let prices = cx.prices.clone();
        let inner = Inner { number, place, scope: written.scope, max_entry, counts, prices, semantic, when, further };
        Ok(Arc::new(Caching(Arc::new(inner))) as Arc<dyn Filter>)
    })
}

/// Texts that are near enough.
#[derive(Debug)]
struct Near {
    threshold: f32,
    /// Longest time for a vector.
    timeout: std::time::Duration,
}

/// Answer that is kept.
#[derive(Debug, Clone)]
struct Entry {
    since: Instant,
    content_type: HeaderValue,
    body: Bytes,
    /// Tokens that it took, and its model.
    told: Arc<Told>,
    /// Memory of its vector, bytes; 0 without one.
    vector: usize,
}

impl Entry {
    fn answer(&self, result: HeaderValue) -> Box<Answer> {
        let age = HeaderValue::from(self.since.elapsed().as_secs());
        let headers =
            vec![(header::CONTENT_TYPE, self.content_type.clone()), (header::AGE, age), (RESULT.clone(), result)];
        Box::new(Answer { status: StatusCode::OK, headers, body: self.body.clone() })
    }
}

/// Place where answers are kept.
enum Place {
    Memory(Arc<Kept>),
    Shared(Arc<SharedKept>),
}

/// Answers that are kept in memory, and the requests whose answers are on their way.
struct Kept {
    answers: moka::sync::Cache<Key, Entry>,
    flights: Arc<Flights>,
    /// Vectors of those answers. Its lock is taken behind that of the flights, and nothing is asked of the answers under it.
    vectors: Arc<RwLock<Vectors>>,
    /// Model that made them, which must not make way for another one while they are kept.
    embedder: Option<Arc<dyn Embedder>>,
}

/// Requests whose answers are on their way.
#[derive(Default)]
struct Flights(Mutex<FlightTable>);

/// Requests whose answers are on their way, by their keys.
#[derive(Default)]
struct FlightTable {
    by_key: HashMap<Key, Flight>,
    /// Number of times that all answers were forgotten. An answer to a request from before is not kept.
    purges: u64,
}

/// Request whose answer is on its way.
#[derive(Clone)]
struct Flight {
    /// Filter that it passed.
    filter: u64,
    /// Answer for those who wait, of a shared store alone; an error where they look again.
    ended: Shared<oneshot::Receiver<Fresh>>,
}

impl Flights {
    fn table(&self) -> MutexGuard<'_, FlightTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leads the requests that ask the same, or tells when the one that does has ended.
    fn lead(self: &Arc<Self>, key: Key, filter: u64) -> Result<Leader, Flight> {
        let mut flights = self.table();
        if let Some(flight) = flights.by_key.get(&key) {
            return Err(flight.clone());
        }
        let (end, ended) = oneshot::channel();
        flights.by_key.insert(key, Flight { filter, ended: ended.shared() });
        Ok(Leader { flights: self.clone(), key, purges: flights.purges, end: Some(end) })
    }
}

impl Kept {
    fn new(max_size: u64, ttl: std::time::Duration, embedder: Option<Arc<dyn Embedder>>) -> Self {
        let weight =
            |_: &Key, entry: &Entry| u32::try_from(entry.body.len() + entry.vector + ENTRY).unwrap_or(u32::MAX);
        let vectors: Arc<RwLock<Vectors>> = Arc::default();
        let others = vectors.clone();
        let removed = move |key: Arc<Key>, entry: Entry, why: RemovalCause| {
            // An answer that takes the place of another one has its vector already.
            if entry.vector > 0 && why != RemovalCause::Replaced {
                others.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
            }
        };
        let answers = moka::sync::Cache::builder().max_capacity(max_size).weigher(weight).time_to_live(ttl);
        let answers = answers.eviction_listener(removed).build();
        Self { answers, flights: Arc::default(), vectors, embedder }
    }

    fn vectors(&self) -> RwLockReadGuard<'_, Vectors> {
        self.vectors.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an answer, with the vector of the text that it answers.
    fn keep(&self, key: Key, mut entry: Entry, vector: Option<&Vector>) {
        if let Some(Vector { group, values }) = vector {
            let mut vectors = self.vectors.write().unwrap_or_else(PoisonError::into_inner);
            if vectors.insert(*group, key, values) {
                entry.vector = vectors::memory(values.len());
            }
        } else if self.embedder.is_some() {
            self.vectors.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
        }
        self.answers.insert(key, entry);
    }

    /// Forgets all answers, or only counts them.
    fn purge(&self, dry_run: bool) -> KeptAnswers {
        self.answers.run_pending_tasks();
        let kept = KeptAnswers { answers: self.answers.entry_count(), bytes: self.answers.weighted_size() };
        if !dry_run {
            let mut flights = self.flights.table();
            flights.purges += 1;
            self.answers.invalidate_all();
            drop(flights);
            self.answers.run_pending_tasks();
        }
        kept
    }
}

/// Request whose answer others wait for. They go on when it is dropped.
struct Leader {
    flights: Arc<Flights>,
    key: Key,
    /// Purges before it.
    purges: u64,
    end: Option<oneshot::Sender<Fresh>>,
}

impl Leader {
    /// Ends with an answer for those who wait.
    fn finish(mut self, fresh: Fresh) {
        if let Some(end) = self.end.take() {
            let _ = end.send(fresh);
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.flights.table().by_key.remove(&self.key);
    }
}

/// Filter.
struct Caching(Arc<Inner>);

/// Parts of the filter, which waits of its requests share.
struct Inner {
    /// Number of the filter. Two filters of one route share what they keep, and a request must not wait for itself.
    number: u64,
    place: Place,
    scope: Scope,
    max_entry: usize,
    counts: Counts,
    prices: Arc<dyn Pricing>,
    semantic: Option<Near>,
    when: Condition,
    further: Option<FurtherKey>,
}

/// Further part of the key, which an expression makes.
struct FurtherKey {
    written: String,
    expression: Expression,
}

impl FurtherKey {
    fn new(written: Option<&String>) -> Result<Option<Self>, FieldError> {
        let Some(written) = written else { return Ok(None) };
        let expression = Expression::value(written, spillway_cel::Scope::Request);
        let expression = expression.map_err(|why| FieldError::at(["key"], why))?;
        Ok(Some(Self { written: written.clone(), expression }))
    }
}

/// Wishes of a caller about answers that are kept (RFC 9111, 5.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wishes {
    /// An answer that is kept will do.
    reads: bool,
    /// The answer may be kept.
    stores: bool,
    /// Greatest age in seconds.
    max_age: Option<u64>,
}

impl Wishes {
    fn of(headers: &Fields) -> Self {
        let mut wishes = Self { reads: true, stores: true, max_age: None };
        for directive in directives(headers) {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "no-store" => (wishes.reads, wishes.stores) = (false, false),
                "no-cache" => wishes.reads = false,
                "max-age" => wishes.max_age = Some(value.trim().trim_matches('"').parse().unwrap_or(0)),
                _ => {}
            }
        }
        wishes
    }

    /// True if an answer will do.
    fn takes(self, entry: &Entry) -> bool {
        self.reads && self.max_age.is_none_or(|most| entry.since.elapsed().as_secs() <= most)
    }
}

fn directives(headers: &Fields) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

impl Filter for Caching {
    fn needs_body(&self) -> bool {
        true
    }

    fn purge(&self, dry_run: bool) -> Option<Purging> {
        Some(match &self.0.place {
            Place::Memory(kept) => Box::pin(std::future::ready(Ok(kept.purge(dry_run)))),
            Place::Shared(shared) => shared.purge(dry_run),
        })
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        let this = &self.0;
        let wishes = Wishes::of(x.headers);
        let is_meant = (wishes.reads || wishes.stores) && this.when.holds(x, false);
        let further = match this.further.as_ref().filter(|_| is_meant) {
            None => Some(None),
            // Two filters of one route share what they keep: equal values of other expressions are not the same.
            Some(further) => {
                further.expression.text(&Seen::from(&*x)).map(|text| Some((further.written.as_str(), text)))
            }
        };
        let asked = match further.filter(|_| is_meant) {
            Some(None) => key::of(x, this.scope, this.semantic.is_some(), None),
            Some(Some((of, text))) => key::of(x, this.scope, this.semantic.is_some(), Some((of, &text))),
            None => None,
        };
        let Some(Asked { key, last }) = asked else {
            this.counts.bypassed.inc();
            return Flow::Continue;
        };
        let asked = || x.model.map(Into::into);
        let kept = match &this.place {
            Place::Memory(kept) => kept,
            Place::Shared(shared) => {
                return Flow::Wait(Box::pin(this.clone().look_into(shared.clone(), key, wishes, asked())));
            }
        };
        if let Some(entry) = kept.answers.get(&key).filter(|entry| wishes.takes(entry)) {
            return Flow::Answer(this.hit(&entry, &this.counts.hit, HeaderValue::from_static("hit")));
        }
        if !wishes.stores {
            this.counts.bypassed.inc();
            return Flow::Continue;
        }
        match kept.flights.lead(key, this.number) {
            Ok(leader) if last.is_none() || this.semantic.is_none() => {
                let to = Destination::Memory { kept: kept.clone(), vector: None };
                Flow::Rewrite(Box::new(this.clone().led(leader, to, asked())))
            }
            Ok(leader) => Flow::Wait(Box::pin(this.clone().look(kept.clone(), Some(leader), last, wishes, asked()))),
            Err(flight) if wishes.reads && flight.filter == this.number => {
                let (this, kept, asked) = (this.clone(), kept.clone(), asked());
                Flow::Wait(Box::pin(async move {
                    // It ends with the request that leads, which has a deadline.
                    let _ = flight.ended.await;
                    if let Some(entry) = kept.answers.get(&key).filter(|entry| wishes.takes(entry)) {
                        let served = this.hit(&entry, &this.counts.joined, HeaderValue::from_static("hit"));
                        return Waited { served: Some(served), ..Waited::default() };
                    }
                    // Nothing was kept. The first one that comes here leads, the others ask for themselves: an answer that
                    // cannot be kept must not make them wait one by one.
                    let leader = kept.flights.lead(key, this.number).ok();
                    this.look(kept, leader, last, wishes, asked).await
                }))
            }
            // It wants an answer of its own, and another one is on its way to be kept.
            Err(_) => {
                this.counts.bypassed.inc();
                Flow::Continue
            }
        }
    }
}

impl Inner {
    /// Answer that is given again, counted by `counter`.
    fn hit(&self, entry: &Entry, counter: &Counter, result: HeaderValue) -> Box<Answer> {
        counter.inc();
        if entry.told.counts_now() {
            self.count_saved(&entry.told, 1);
        }
        entry.answer(result)
    }

    fn count_saved(&self, told: &Told, times: u64) {
        self.counts.saved(told.tokens(), told.nanos(&*self.prices), times);
    }

    /// As [`Self::hit`], for a request that has waited.
    fn served(&self, entry: &Entry, counter: &Counter) -> Waited {
        let served = self.hit(entry, counter, HeaderValue::from_static("hit"));
        Waited { served: Some(served), ..Waited::default() }
    }

    /// Lets a request pass whose answer is not kept.
    fn passed_by(&self) -> Waited {
        self.counts.bypassed.inc();
        Waited::default()
    }

    /// Passes a request on, whose answer is kept. `asked` is the model that it names.
    fn led(self: Arc<Self>, leader: Leader, to: Destination, asked: Option<Box<str>>) -> Rewrite {
        self.counts.miss.inc();
        let told = Arc::new(Told::new(asked));
        let unsent = match &to {
            Destination::Memory { .. } => None,
            Destination::Shared { .. } => Some(Arc::new(Unsent::default())),
        };
        let observer = Missed { told: told.clone(), unsent: unsent.clone(), filter: self.clone() };
        Rewrite {
            rewriter: Some(Box::new(Storing::new(leader, to, (told, unsent), self))),
            observer: Some(Box::new(observer)),
            ..Rewrite::default()
        }
    }

    /// Looks for an answer in a shared store. Without one the request passes, and its answer is kept if it leads.
    async fn look_into(
        self: Arc<Self>,
        shared: Arc<SharedKept>,
        key: Key,
        wishes: Wishes,
        asked: Option<Box<str>>,
    ) -> Waited {
        // What is on its way to the store counts as kept. It may arrive there just after the look, and be gone from here just
        // before the next lines: so it is taken before.
        let on_its_way = shared.on_its_way(&key);
        let (generation, found) = shared.look(key, wishes.reads.then_some(self.max_entry), asked.as_deref()).await;
        if let Some(entry) = found.filter(|entry| wishes.takes(entry)) {
            return self.served(&entry, &self.counts.hit);
        }
        let counts = |fresh: &Fresh| fresh.generation == generation && wishes.takes(&fresh.entry);
        let fresh = || shared.on_its_way(&key).filter(counts);
        if let Some(Fresh { entry, .. }) = on_its_way.filter(counts).or_else(fresh) {
            return self.served(&entry, &self.counts.hit);
        }
        if !wishes.stores {
            return self.passed_by();
        }
        let to = Destination::Shared { shared: shared.clone(), generation };
        match shared.flights().lead(key, self.number) {
            Ok(leader) => {
                // The request that led before may have ended since the look.
                if let Some(Fresh { entry, .. }) = fresh() {
                    drop(leader);
                    return self.served(&entry, &self.counts.hit);
                }
                Waited { rewrite: self.led(leader, to, asked), ..Waited::default() }
            }
            Err(flight) if wishes.reads && flight.filter == self.number => {
                // It ends with the request that leads, which has a deadline. An answer of before a purge is none to a
                // request of after it.
                if let Some(fresh) = flight.ended.await.ok().filter(counts) {
                    return self.served(&fresh.entry, &self.counts.joined);
                }
                match shared.flights().lead(key, self.number) {
                    Ok(leader) => Waited { rewrite: self.led(leader, to, asked), ..Waited::default() },
                    Err(_) => self.passed_by(),
                }
            }
            Err(_) => self.passed_by(),
        }
    }

    /// Looks for an answer to a text that is near. Without one the request passes, and its answer is kept if it leads.
    async fn look(
        self: Arc<Self>,
        kept: Arc<Kept>,
        leader: Option<Leader>,
        last: Option<LastText>,
        wishes: Wishes,
        asked: Option<Box<str>>,
    ) -> Waited {
        let vector = self.embed(&kept, last).await;
        if let (true, Some(vector), Some(semantic)) = (wishes.reads, &vector, &self.semantic) {
            let near = kept.vectors().nearest(&vector.group, &vector.values, semantic.threshold);
            let found = near.and_then(|(key, similarity)| Some((kept.answers.get(&key)?, similarity)));
            if let Some((entry, similarity)) = found.filter(|(entry, _)| wishes.takes(entry)) {
                let result = HeaderValue::try_from(format!("semantic; similarity={similarity:.3}"));
                let result = result.unwrap_or(HeaderValue::from_static("semantic"));
                let served = self.hit(&entry, &self.counts.semantic, result);
                return Waited { served: Some(served), ..Waited::default() };
            }
        }
        match leader {
            Some(leader) => {
                let to = Destination::Memory { kept, vector };
                Waited { rewrite: self.led(leader, to, asked), ..Waited::default() }
            }
            None => self.passed_by(),
        }
    }

    /// Vector of a text; `None` without one in time.
    async fn embed(&self, kept: &Kept, last: Option<LastText>) -> Option<Vector> {
        let (LastText { group, text }, semantic) = (last?, self.semantic.as_ref()?);
        let embedder = kept.embedder.as_ref()?;
        let values = embedder.embed(text, semantic.timeout).await;
        if values.is_some() { &self.counts.embedded } else { &self.counts.not_embedded }.inc();
        Some(Vector { group, values: values? })
    }
}

/// Vector of the last text of a request.
#[derive(Debug)]
struct Vector {
    /// Fingerprint of the rest of the request.
    group: Key,
    values: Vec<f32>,
}

/// Place where an answer is to be kept.
enum Destination {
    Memory {
        kept: Arc<Kept>,
        vector: Option<Vector>,
    },
    Shared {
        shared: Arc<SharedKept>,
        /// Generation before the answer was asked for; `None` where the store did not say it.
        generation: Generations,
    },
}

/// Marks an answer that was not there, and reads what it took.
struct Missed {
    told: Arc<Told>,
    /// Answer that goes to a shared store once that is known.
    unsent: Option<Arc<Unsent>>,
    filter: Arc<Inner>,
}

impl Observer for Missed {
    fn on_response_head(&mut self, _: StatusCode, headers: &mut dyn Headers) {
        headers.set(&RESULT, HeaderValue::from_static("miss"));
    }

    fn on_end(&mut self, end: &ExchangeEnd<'_>) {
        self.told.ended(end);
    }
}

impl Drop for Missed {
    fn drop(&mut self) {
        let hits = self.told.close();
        if hits > 0 {
            self.filter.count_saved(&self.told, hits);
        }
        if let Some(unsent) = &self.unsent {
            unsent.send(&self.told);
        }
    }
}

/// Longest time for which a stream that is on its way to be kept holds those who ask the same: its client may read slowly.
const LONGEST_LEAD: std::time::Duration = std::time::Duration::from_secs(60);

/// Keeps one answer.
struct Storing {
    /// Guard for which requests that ask the same wait: dropped once the answer is kept, or is known not to be.
    leader: Mutex<Option<Leader>>,
    flights: Arc<Flights>,
    to: Destination,
    told: Arc<Told>,
    unsent: Option<Arc<Unsent>>,
    key: Key,
    /// Purges before the request.
    purges: u64,
    began: Instant,
    filter: Arc<Inner>,
    content_type: OnceLock<HeaderValue>,
    /// Reason why the answer is not kept, by its head.
    unkept: OnceLock<Unkept>,
    /// Events so far.
    stream: Vec<u8>,
    /// Tokens that they say.
    tokens: Tokens,
    /// True once the stream has come to its last event.
    is_finished: bool,
    /// Reason why the stream so far is not kept.
    spoiled: Option<Unkept>,
    is_kept: bool,
}

impl Drop for Storing {
    fn drop(&mut self) {
        if !self.is_kept {
            self.filter.counts.unkept(self.spoiled.or(self.unkept.get().copied()).unwrap_or(Unkept::Cut));
        }
    }
}

impl Storing {
    fn new(
        leader: Leader,
        to: Destination,
        (told, unsent): (Arc<Told>, Option<Arc<Unsent>>),
        filter: Arc<Inner>,
    ) -> Self {
        Self {
            flights: leader.flights.clone(),
            to,
            told,
            unsent,
            key: leader.key,
            purges: leader.purges,
            leader: Mutex::new(Some(leader)),
            began: Instant::now(),
            filter,
            content_type: OnceLock::new(),
            unkept: OnceLock::new(),
            stream: Vec::new(),
            tokens: Tokens::default(),
            is_finished: false,
            spoiled: None,
            is_kept: false,
        }
    }

    fn keep(&mut self, body: Bytes, tokens: Tokens) {
        let content_type = self.content_type.get().cloned();
        let content_type = content_type.unwrap_or(JSON);
        self.told.said(tokens);
        let entry = Entry { since: Instant::now(), content_type, body, told: self.told.clone(), vector: 0 };
        let flights = self.flights.table();
        if flights.purges != self.purges {
            self.spoiled = Some(Unkept::Purged);
            drop(flights);
            return self.let_go();
        }
        match &self.to {
            Destination::Memory { kept, vector } => {
                kept.keep(self.key, entry, vector.as_ref());
                self.is_kept = true;
                drop(flights);
            }
            Destination::Shared { shared, generation } => {
                drop(flights);
                let fresh = Fresh { entry, generation: *generation };
                match &self.unsent {
                    Some(unsent) if shared.keep(self.key, &fresh, unsent) => self.is_kept = true,
                    _ => self.spoiled = Some(Unkept::Store),
                }
                let leader = self.leader.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(leader) = leader {
                    leader.finish(fresh);
                }
            }
        }
        self.let_go();
    }

    /// Lets those who ask the same go on.
    fn let_go(&self) {
        let leader = self.leader.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Outside its lock, because it takes that of the flights.
        drop(leader);
    }

    fn spoil(&mut self, reason: Unkept) {
        self.spoiled = self.spoiled.or(Some(reason));
        self.let_go();
    }
}

impl Rewriter for Storing {
    fn reads(&self, head: &AnswerHead<'_>) -> bool {
        const KEPT_BY_NOBODY: [&str; 4] = ["no-store", "no-cache", "private", "max-age=0"];
        let may_keep = directives(head.headers).all(|directive| {
            !KEPT_BY_NOBODY
                .iter()
                .any(|name| directive.get(..name.len()).is_some_and(|it| it.eq_ignore_ascii_case(name)))
        });
        let unkept = if head.status != StatusCode::OK {
            Some(Unkept::Status)
        } else if head.is_spilled {
            // What stands in for the route's own must not be given when those are back.
            Some(Unkept::Spilled)
        } else if !head.is_json() && !head.is_stream() {
            Some(Unkept::Form)
        } else {
            (!may_keep).then_some(Unkept::Forbidden)
        };
        if let Some(reason) = unkept {
            let _ = self.unkept.set(reason);
            self.let_go();
        } else if let Some(kind) = head.content_type() {
            // Its own bytes alone: a value of a head that was read shares the memory of the whole head.
            let _ = self.content_type.set(HeaderValue::from_bytes(kind.as_bytes()).unwrap_or(JSON));
        }
        unkept.is_none()
    }

    fn whole(&mut self, body: &[u8]) -> Result<Option<Bytes>, Box<Refusal>> {
        if body.len() > self.filter.max_entry {
            self.spoil(Unkept::TooLong);
            return Ok(None);
        }
        let said: Option<Said<'_>> = serde_json::from_slice(body).ok();
        // A response of OpenAI's that goes on in the background is not there yet.
        let is_answer =
            |said: &Said<'_>| said.error.is_null() && said.status.as_ref().is_none_or(|status| status == "completed");
        match said.filter(is_answer) {
            Some(said) => self.keep(Bytes::copy_from_slice(body), said.tokens()),
            None => self.spoil(Unkept::Error),
        }
        Ok(None)
    }

    fn event(&mut self, event: &ResponseEvent<'_>) -> EventChange {
        if !event.is_whole || self.stream.len() + event.bytes.len() > self.filter.max_entry {
            self.spoil(Unkept::TooLong);
        }
        if self.spoiled.is_some() {
            self.stream = Vec::new();
            return EventChange::Keep;
        }
        if self.began.elapsed() > LONGEST_LEAD {
            self.let_go();
        }
        self.stream.extend_from_slice(event.bytes);
        let Some(data) = event.data() else { return EventChange::Keep };
        if &*data == b"[DONE]" {
            self.is_finished = true;
            return EventChange::Keep;
        }
        let said: Option<Said<'_>> = serde_json::from_slice(&data).ok();
        let Some(said) = said else { return EventChange::Keep };
        if !said.error.is_null() || matches!(said.kind.as_deref(), Some("error" | "response.failed")) {
            self.spoil(Unkept::Error);
        }
        self.tokens = self.tokens.max(said.tokens());
        self.is_finished |=
            said.done == Some(true) || matches!(said.kind.as_deref(), Some("message_stop" | "response.completed"));
        EventChange::Keep
    }

    fn end(&mut self) -> Result<Bytes, Box<Refusal>> {
        if self.is_finished && self.spoiled.is_none() {
            // Not the room that it grew into.
            let stream = Bytes::copy_from_slice(&self.stream);
            self.stream = Vec::new();
            self.keep(stream, self.tokens);
        }
        Ok(Bytes::new())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use spillway_filter::testing::{FilterBuilder, FixedEmbedder, TestRequest, headers, split_events};
    use spillway_filter::{SystemPlace, TokenUse};

    use super::*;

    const ASKED: &str = r#"{"model":"m","messages":[]}"#;

    fn request() -> TestRequest {
        TestRequest::post("/v1/chat/completions", ASKED).repeatable().caller("a", "t").model("m")
    }

    fn build(config: &serde_json::Value) -> Arc<dyn Filter> {
        FilterBuilder::new().build(&*factory(), config)
    }

    fn lead(filter: &dyn Filter, request: &TestRequest) -> Box<dyn Rewriter> {
        match request.decide(filter) {
            Flow::Rewrite(rewrite) => rewrite.rewriter.unwrap(),
            _ => panic!("it does not lead"),
        }
    }

    fn hit(filter: &dyn Filter, request: &TestRequest) -> Option<(String, String)> {
        match request.decide(filter) {
            Flow::Answer(answer) => {
                let kind = answer.headers.iter().find(|(name, _)| name == header::CONTENT_TYPE).unwrap();
                Some((kind.1.to_str().unwrap().to_owned(), String::from_utf8(answer.body.to_vec()).unwrap()))
            }
            _ => None,
        }
    }

    fn answer(rewriter: &mut dyn Rewriter, status: u16, pairs: [(&str, &str); 2], is_spilled: bool, body: &str) {
        let headers = headers(pairs);
        let head = AnswerHead { status: StatusCode::from_u16(status).unwrap(), headers: &headers, is_spilled };
        if !rewriter.reads(&head) {
            return;
        }
        if head.is_stream() {
            split_events(body, |event| assert!(matches!(rewriter.event(event), EventChange::Keep)));
            assert!(rewriter.end().unwrap().is_empty());
        } else {
            assert!(rewriter.whole(body.as_bytes()).unwrap().is_none());
        }
    }

    #[test]
    fn conditions_and_further_keys_part_what_is_kept() {
        let config = json!({
            "exact": true, "when": "request.headers['x-cache'] != 'no'", "key": "request.headers['x-locale']"
        });
        let filter = build(&config);
        let of = |cached: &str, locale: &str| request().header("x-cache", cached).header("x-locale", locale);
        let mut first = lead(&*filter, &of("yes", "de"));
        answer(&mut *first, 200, [("content-type", "application/json"), ("x-a", "b")], false, "{}");
        drop(first);
        assert!(hit(&*filter, &of("yes", "de")).is_some());
        let mut other = lead(&*filter, &of("yes", "en"));
        answer(&mut *other, 200, [("content-type", "application/json"), ("x-a", "b")], false, "[]");
        for passed in [of("no", "de"), request().header("x-locale", "de"), request().header("x-cache", "yes")] {
            assert!(matches!(passed.decide(&*filter), Flow::Continue), "{passed:?}");
        }
        let paths = |config| factory().check(&config).into_iter().map(|e| e.path).collect::<Vec<_>>();
        assert_eq!(paths(json!({"exact": true, "when": "1", "key": "consumer"})), [["when"], ["key"]]);
    }

    #[test]
    fn an_answer_is_given_again_to_the_same_caller_alone() {
        let filter = build(&json!({"exact": true}));
        let mut first = lead(&*filter, &request());
        answer(&mut *first, 200, [("content-type", "application/json"), ("x", "y")], false, r#"{"id":"c"}"#);
        drop(first);
        assert_eq!(hit(&*filter, &request()), Some(("application/json".into(), r#"{"id":"c"}"#.into())));
        assert!(hit(&*filter, &request().caller("b", "t")).is_none());
        assert!(hit(&*filter, &request().header("cache-control", "no-cache")).is_none());
        assert!(hit(&*filter, &request().header("cache-control", "max-age=0, No-Store")).is_none());
        assert!(hit(&*filter, &request().header("cache-control", "max-age=5")).is_some());
    }

    #[test]
    fn only_whole_answers_of_the_routes_own_are_kept() {
        let (json, events) = (("content-type", "application/json"), ("content-type", "text/event-stream"));
        let nothing = ("x", "y");
        let done = "data: {\"id\":1}\n\ndata: [DONE]\n\n";
        for (status, pairs, is_spilled, body, is_kept) in [
            (200, [json, nothing], false, r#"{"id":1}"#, true),
            (200, [json, nothing], true, r#"{"id":1}"#, false),
            (201, [json, nothing], false, r#"{"id":1}"#, false),
            (500, [json, nothing], false, r#"{"id":1}"#, false),
            (200, [json, nothing], false, r#"{"error":{"message":"x"}}"#, false),
            (200, [json, nothing], false, r#"{"error":null,"status":"completed"}"#, true),
            (200, [json, nothing], false, r#"{"error":null,"status":"in_progress"}"#, false),
            (200, [json, nothing], false, r#"{"id":"#, false),
            (200, [json, ("cache-control", "no-store")], false, r#"{"id":1}"#, false),
            (200, [json, ("cache-control", "Private, max-age=9")], false, r#"{"id":1}"#, false),
            (200, [json, ("cache-control", "max-age=60")], false, r#"{"id":1}"#, true),
            (200, [("content-type", "text/plain"), nothing], false, "x", false),
            (200, [events, nothing], false, done, true),
            (200, [events, nothing], false, "data: {\"id\":1}\n\n", false),
            (200, [events, nothing], false, "data: {\"error\":{}}\n\ndata: [DONE]\n\n", false),
            (200, [events, nothing], false, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", true),
            (200, [events, nothing], false, "data: {\"type\":\"response.completed\"}\n\n", true),
            (200, [events, nothing], false, "data: {\"type\":\"response.failed\"}\n\ndata: [DONE]\n\n", false),
            (200, [json, nothing], false, &format!("{{\"a\":\"{}\"}}", "x".repeat(4096)), false),
        ] {
            let filter = build(&json!({"exact": true, "maxEntry": "4KiB"}));
            let mut rewriter = lead(&*filter, &request());
            answer(&mut *rewriter, status, pairs, is_spilled, body);
            drop(rewriter);
            let found = hit(&*filter, &request());
            assert_eq!(found.map(|(_, body)| body), is_kept.then(|| body.to_owned()), "{status} {pairs:?} {body}");
        }
    }

    #[test]
    fn requests_answers_and_saved_tokens_are_counted() {
        let builder = FilterBuilder::new();
        let filter = builder.build(&*factory(), &json!({"exact": true, "maxEntry": "4KiB"}));
        let (json, events) = (("content-type", "application/json"), ("content-type", "text/event-stream"));
        let usage = r#"{"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
        for (reason, status, kind, is_spilled, body) in [
            ("status", 500, json, false, "{}".to_owned()),
            ("spilled", 200, json, true, "{}".to_owned()),
            ("form", 200, ("content-type", "text/plain"), false, "x".to_owned()),
            ("error", 200, json, false, r#"{"error":{}}"#.to_owned()),
            ("too_long", 200, json, false, format!("{{\"a\":\"{}\"}}", "x".repeat(4096))),
            ("cut", 200, events, false, "data: {\"id\":1}\n\n".to_owned()),
        ] {
            answer(&mut *lead(&*filter, &request()), status, [kind, ("x", "y")], is_spilled, &body);
            assert_eq!(builder.count("spillway_filter_cache_unkept_answers", &[reason]), 1, "{reason}");
        }
        let no_store = ("cache-control", "no-store");
        answer(&mut *lead(&*filter, &request()), 200, [json, no_store], false, "{}");
        assert_eq!(builder.count("spillway_filter_cache_unkept_answers", &["forbidden"]), 1);
        let mut first = lead(&*filter, &request());
        let waiting = request().decide(&*filter);
        answer(&mut *first, 200, [json, ("x", "y")], false, usage);
        drop(first);
        spillway_filter::testing::wait(waiting).served.unwrap();
        hit(&*filter, &request()).unwrap();
        let _ = request().header(no_store.0, no_store.1).decide(&*filter);
        for (result, count) in [("miss", 8), ("joined", 1), ("hit", 1), ("bypassed", 1)] {
            assert_eq!(builder.count("spillway_filter_cache_requests", &[result]), count, "{result}");
        }
        let stream = format!("data: {usage}\n\ndata: [DONE]\n\n");
        answer(&mut *lead(&*filter, &request().model("n")), 200, [events, ("x", "y")], false, &stream);
        hit(&*filter, &request().model("n")).unwrap();
        assert_eq!(
            ["prompt", "completion"].map(|kind| builder.count("spillway_filter_cache_saved_tokens", &[kind])),
            [9, 15]
        );
    }

    /// Prices of a cent for each token read and two for each written, by the names of models.
    struct Cents;

    impl Pricing for Cents {
        fn nanos(&self, tokens: TokenUse, answered: Option<&str>, asked: Option<&str>, is_built_in: bool) -> u64 {
            let price = match (answered, is_built_in) {
                (Some("m-large"), false) => 10,
                (None, false) if asked == Some("m") => 1,
                _ => 0,
            };
            10_000_000 * price * (tokens.input + 2 * tokens.output)
        }
    }

    #[test]
    fn the_money_of_a_hit_is_that_of_the_answer_by_the_prices_now() {
        let builder = FilterBuilder::new().prices(Arc::new(Cents));
        let filter = builder.build(&*factory(), &json!({"exact": true}));
        let saved = || builder.count("spillway_filter_cache_saved_usd", &[]);
        let body = r#"{"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
        let pairs = [("content-type", "application/json"), ("x", "y")];
        let Flow::Rewrite(rewrite) = request().decide(&*filter) else { panic!("it does not lead") };
        let (mut rewriter, mut observer) = (rewrite.rewriter.unwrap(), rewrite.observer.unwrap());
        answer(&mut *rewriter, 200, pairs, false, body);
        hit(&*filter, &request()).unwrap();
        assert_eq!(saved(), 0, "it is not known what the answer has cost");
        let end = ExchangeEnd {
            model: Some("m-large"),
            prompt_tokens: Some(4),
            completion_tokens: Some(5),
            ..spillway_filter::testing::exchange_end()
        };
        observer.on_end(&end);
        drop(observer);
        hit(&*filter, &request()).unwrap();
        assert_eq!(saved(), 2 * 1_400_000_000);
        let Flow::Rewrite(rewrite) = request().model("n").decide(&*filter) else { panic!("it does not lead") };
        answer(&mut *rewrite.rewriter.unwrap(), 200, pairs, false, body);
        rewrite.observer.unwrap().on_end(&ExchangeEnd { served_by: "builtin/m-large", ..end });
        hit(&*filter, &request().model("n")).unwrap();
        assert_eq!(saved(), 2 * 1_400_000_000, "a built-in model is free");
        // A connection that is cut tells no end; the answer has said its tokens.
        let cut = TestRequest::post("/v1/chat/completions", r#"{"model":"m","n":2}"#).repeatable().model("m");
        answer(&mut *lead(&*filter, &cut), 200, pairs, false, body);
        hit(&*filter, &cut).unwrap();
        assert_eq!(saved(), 2 * 1_400_000_000 + 130_000_000);
    }

    #[test]
    fn requests_that_ask_the_same_wait_for_the_first() {
        let filter = build(&json!({"exact": true}));
        let mut first = lead(&*filter, &request());
        let waiting: Vec<Flow> = (0..3).map(|_| request().decide(&*filter)).collect();
        // Another request is not held up.
        assert!(matches!(request().caller("b", "t").decide(&*filter), Flow::Rewrite(_)));
        // Nor is one that wants an answer of its own.
        assert!(matches!(request().header("cache-control", "no-cache").decide(&*filter), Flow::Continue));
        answer(&mut *first, 200, [("content-type", "application/json"), ("x", "y")], false, "{}");
        drop(first);
        for flow in waiting {
            assert_eq!(spillway_filter::testing::wait(flow).served.unwrap().body, "{}");
        }
    }

    /// Who leads may read slowly; the others must not wait for that.
    #[test]
    fn those_who_wait_go_on_as_soon_as_the_answer_is_kept_or_known_not_to_be() {
        let (json, events) = (("content-type", "application/json"), ("content-type", "text/event-stream"));
        for (status, kind, body, is_kept) in [
            (200, json, "{}".to_owned(), true),
            (200, events, "data: {\"id\":1}\n\ndata: [DONE]\n\n".to_owned(), true),
            (500, json, "{}".to_owned(), false),
            (200, json, r#"{"error":{}}"#.to_owned(), false),
            (200, json, format!("{{\"a\":\"{}\"}}", "x".repeat(4096)), false),
        ] {
            let filter = build(&json!({"exact": true, "maxEntry": "4KiB"}));
            let mut first = lead(&*filter, &request());
            let waiting = request().decide(&*filter);
            answer(&mut *first, status, [kind, ("x", "y")], false, &body);
            let waited = spillway_filter::testing::wait(waiting);
            assert_eq!(waited.served.is_some(), is_kept, "{body}");
            assert_eq!(waited.rewrite.rewriter.is_some(), !is_kept, "{body}");
            drop(first);
        }
        // A stream of which too much has come already.
        let filter = build(&json!({"exact": true, "maxEntry": "4KiB"}));
        let mut first = lead(&*filter, &request());
        let waiting = request().decide(&*filter);
        let headers = headers([events]);
        assert!(first.reads(&AnswerHead { status: StatusCode::OK, headers: &headers, is_spilled: false }));
        split_events(format!("data: {}\n\n", "x".repeat(4096)), |event| drop(first.event(event)));
        assert!(spillway_filter::testing::wait(waiting).rewrite.rewriter.is_some());
    }

    #[test]
    fn of_requests_that_waited_for_nothing_one_leads_and_none_waits_again() {
        let filter = build(&json!({"exact": true}));
        let first = lead(&*filter, &request());
        let waiting: Vec<Flow> = (0..3).map(|_| request().decide(&*filter)).collect();
        drop(first);
        let waited: Vec<Waited> = waiting.into_iter().map(spillway_filter::testing::wait).collect();
        let leads: Vec<bool> = waited.iter().map(|waited| waited.rewrite.rewriter.is_some()).collect();
        assert_eq!(leads, [true, false, false]);
        assert!(waited.iter().all(|waited| waited.served.is_none() && waited.refusal.is_none()));
    }

    #[test]
    fn a_request_that_passes_two_caches_does_not_wait_for_itself() {
        let builder = FilterBuilder::new();
        let two = [(); 2].map(|()| builder.build(&*factory(), &json!({"exact": true})));
        let _first = lead(&*two[0], &request());
        assert!(matches!(request().decide(&*two[1]), Flow::Continue));
    }

    #[test]
    fn a_purge_forgets_what_is_kept_and_what_is_on_its_way() {
        let builder = FilterBuilder::new();
        let filter = builder.build(&*factory(), &json!({"exact": true}));
        let pairs = [("content-type", "application/json"), ("x", "y")];
        answer(&mut *lead(&*filter, &request()), 200, pairs, false, "{}");
        let mut late = lead(&*filter, &request().model("n"));
        let purge = |dry_run| filter.purge(dry_run).unwrap().now_or_never().unwrap().unwrap();
        let counted = purge(true);
        assert_eq!((counted.answers, counted.bytes > 2), (1, true));
        assert!(hit(&*filter, &request()).is_some(), "a dry run forgets nothing");
        assert_eq!(purge(false), counted);
        assert_eq!(purge(true), KeptAnswers::default());
        assert!(hit(&*filter, &request()).is_none());
        answer(&mut *late, 200, pairs, false, "{}");
        drop(late);
        assert!(hit(&*filter, &request().model("n")).is_none(), "its server may have answered before");
        assert_eq!(builder.count("spillway_filter_cache_unkept_answers", &["purged"]), 1);
        answer(&mut *lead(&*filter, &request()), 200, pairs, false, "{}");
        assert!(hit(&*filter, &request()).is_some());
    }

    /// Cache by meaning whose vectors tell the length of a text alone, but for texts with `?`, which have none.
    fn by_length() -> (FilterBuilder, Arc<dyn Filter>) {
        let vector = |text: &str| {
            let angle = text.len() as f32 / 100.0;
            (!text.contains('?')).then(|| [vec![angle.cos(), angle.sin()], vec![0.0; 30]].concat())
        };
        let builder = FilterBuilder::new().embedder(Arc::new(FixedEmbedder(vector)));
        let filter =
            builder.build(&*factory(), &json!({"exact": true, "semantic": {"model": "m", "threshold": 0.999}}));
        (builder, filter)
    }

    fn says(text: &str) -> TestRequest {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": text}]}).to_string();
        let request = TestRequest::post("/v1/chat/completions", body).repeatable().model("m");
        request.system(SystemPlace::Messages).caller("a", "t")
    }

    /// Keeps an answer, or returns the one that is kept with what its header says.
    fn keep_or_hit(filter: &dyn Filter, request: &TestRequest, said: &str) -> Option<(String, String)> {
        let kept = match request.decide(filter) {
            Flow::Answer(answer) => Err(answer),
            Flow::Wait(waiting) => {
                let waited = spillway_filter::testing::wait(Flow::Wait(waiting));
                waited.served.map_or_else(|| Ok(waited.rewrite.rewriter.unwrap()), Err)
            }
            _ => panic!("it waits for a vector"),
        };
        match kept {
            Ok(mut rewriter) => {
                let body = json!({"said": said}).to_string();
                answer(&mut *rewriter, 200, [("content-type", "application/json"), ("x", "y")], false, &body);
                None
            }
            Err(answer) => {
                let result = answer.headers.iter().find(|(name, _)| *name == RESULT).unwrap();
                let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
                Some((result.1.to_str().unwrap().to_owned(), body["said"].as_str().unwrap().to_owned()))
            }
        }
    }

    #[test]
    fn a_text_that_is_near_gets_the_answer_of_the_other() {
        let (builder, filter) = by_length();
        assert_eq!(keep_or_hit(&*filter, &says("12345"), "first"), None);
        let near = keep_or_hit(&*filter, &says("abcdef"), "second").unwrap();
        assert_eq!(near, ("semantic; similarity=1.000".to_owned(), "first".to_owned()));
        assert_eq!(keep_or_hit(&*filter, &says("12345"), "x").unwrap().0, "hit");
        assert_eq!(keep_or_hit(&*filter, &says(&"x".repeat(50)), "far"), None);
        assert_eq!(keep_or_hit(&*filter, &says("123?"), "without a vector"), None);
        assert_eq!(keep_or_hit(&*filter, &says("1234?"), "nor this one"), None);
        for (result, count) in [("hit", 1), ("semantic", 1), ("miss", 4)] {
            assert_eq!(builder.count("spillway_filter_cache_requests", &[result]), count, "{result}");
        }
        assert_eq!(builder.count("spillway_filter_cache_embeddings", &["left_out"]), 2);
        filter.purge(false).unwrap().now_or_never().unwrap().unwrap();
        assert_eq!(keep_or_hit(&*filter, &says("abcdef"), "again"), None);
    }

    proptest::proptest! {
        #[test]
        fn callers_never_get_the_answers_of_others(
            asked in proptest::collection::vec((0_usize..3, 0_usize..2, 1_usize..9), 1..60),
        ) {
            let (_builder, filter) = by_length();
            for (caller, model, length) in asked {
                let own = format!("{caller} {model}");
                let request = says(&"x".repeat(length)).caller(&format!("c{caller}"), "t").model(["m", "n"][model]);
                if let Some((_, said)) = keep_or_hit(&*filter, &request, &own) {
                    proptest::prop_assert_eq!(said, own);
                }
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_survives_an_edit_elsewhere() {
        let builder = FilterBuilder::new();
        let config = json!({"exact": true, "maxSize": "16KiB", "maxEntry": "8KiB"});
        let filter = builder.build(&*factory(), &config);
        for n in 0..100 {
            let body = format!(r#"{{"model":"m","n":{n}}}"#);
            let request = TestRequest::post("/v1/chat/completions", body).repeatable().model("m");
            let mut rewriter = lead(&*filter, &request);
            let text = format!("{{\"a\":\"{}\"}}", "x".repeat(4000));
            answer(&mut *rewriter, 200, [("content-type", "application/json"), ("x", "y")], false, &text);
        }
        let state: Arc<Kept> = {
            let again = builder.build(&*factory(), &config);
            drop(again);
            let size = 16 << 10;
            let name = format!("route {:?} {size} None", std::time::Duration::from_secs(600));
            builder.states().get_or_insert(&name, || panic!("it is there"))
        };
        state.answers.run_pending_tasks();
        assert!(state.answers.weighted_size() <= 16 << 10, "{}", state.answers.weighted_size());
        assert!(state.answers.entry_count() > 0 && state.flights.table().by_key.is_empty());
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (config, path) in [
            (json!({"exact": false}), "exact"),
            (json!({"exact": true, "ttl": "0s"}), "ttl"),
            (json!({"exact": true, "semantic": {"model": "m", "threshold": 0.5}}), "semantic"),
            (json!({"exact": true, "semantic": {"model": "m", "timeout": "11s"}}), "semantic"),
            (json!({"exact": true, "maxSize": "1KiB"}), "maxEntry"),
            (json!({"exact": true, "store": "shared", "maxSize": "64MiB"}), "maxSize"),
            (json!({"exact": true, "store": "shared", "semantic": {"model": "m"}}), "semantic"),
        ] {
            let errors = factory().check(&config);
            assert_eq!(errors.len(), 1, "{config}: {errors:?}");
            assert_eq!(errors[0].path[0], path, "{config}");
        }
        let shared = json!({"exact": true, "store": "shared", "maxEntry": "128MiB"});
        assert!(factory().check(&shared).is_empty());
        let error = FilterBuilder::new().try_build(&*factory(), &shared).err().unwrap();
        assert!(error.message.contains("add `state.cache.redis`"), "{error:?}");
    }
}
