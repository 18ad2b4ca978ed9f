//! Answers in a store that several gateways share. The store keeps them; this process keeps those alone that are on their way
//! there, for requests that come meanwhile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use spillway_filter::{AnswerPut, AnswerStore, BuildContext, FieldError, Generation, Looked, Purging, StoredAnswer};

use super::key::Key;
use super::told::Told;
use super::{Entry, Flights};

/// Generation of a route as a look found it; `None` where the store did not say it.
pub(super) type Generations = Option<Generation>;

/// Answer that a request has just got.
#[derive(Debug, Clone)]
pub(super) struct Fresh {
    pub(super) entry: Entry,
    /// Generation before it was asked for.
    pub(super) generation: Generations,
}

/// Requests and answers of a route that are on their way, over edits of its filters.
#[derive(Default)]
struct OnTheirWay {
    flights: Arc<Flights>,
    /// Answers until the store has them, each with a number of its own.
    answers: Mutex<HashMap<Key, (u64, Fresh)>>,
    numbers: AtomicU64,
}

/// Removes an answer from those that are on their way.
struct Arrival {
    on_their_way: Arc<OnTheirWay>,
    key: Key,
    number: u64,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut answers = self.on_their_way.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            answers.remove(&self.key);
        }
    }
}

/// Answers of a route in a shared store.
pub(super) struct SharedKept {
    store: Arc<dyn AnswerStore>,
    on_their_way: Arc<OnTheirWay>,
    ttl: Duration,
}

impl SharedKept {
    /// Answers of the route of a filter.
    ///
    /// # Errors
    /// The configuration has no store.
    pub(super) fn new(cx: &BuildContext<'_>, ttl: Duration) -> Result<Self, FieldError> {
        let why = "`store: shared` of `cache` needs a store that gateways share: add `state.cache.redis`, or remove it";
        let stores = cx.answers.ok_or_else(|| FieldError::at(["store"], why))?;
        let on_their_way = cx.states.get_or_insert(cx.route, OnTheirWay::default);
        Ok(Self { store: stores.of_route(cx.route), on_their_way, ttl })
    }

    pub(super) fn flights(&self) -> &Arc<Flights> {
        &self.on_their_way.flights
    }

    /// Looks for an answer of at most `longest` bytes, or reads the generation alone. `asked` is the model of the request.
    pub(super) async fn look(
        &self,
        key: Key,
        longest: Option<usize>,
        asked: Option<&str>,
    ) -> (Generations, Option<Entry>) {
        let looking = match longest {
            Some(longest) => self.store.look(key, longest),
            None => self.store.generation(),
        };
        let Looked { generation, found } = looking.await;
        let entry = found.and_then(|(answer, age)| {
            // An answer may have been kept for longer than this filter keeps one now.
            let since = Instant::now().checked_sub(age).filter(|_| age < self.ttl)?;
            let told = Arc::new(Told::of(&answer, asked));
            Some(Entry { since, content_type: answer.content_type, body: answer.body, told, vector: 0 })
        });
        (generation, entry)
    }

    /// Answer on its way to the store. It counts for requests that read its generation.
    pub(super) fn on_its_way(&self, key: &Key) -> Option<Fresh> {
        let answers = self.on_their_way.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(key).map(|(_, fresh)| fresh.clone())
    }

    /// Keeps an answer until the store has it, which gets it from `unsent`. False where the store said no generation.
    pub(super) fn keep(&self, key: Key, fresh: &Fresh, unsent: &Unsent) -> bool {
        let Some(generation) = fresh.generation else { return false };
        let number = self.on_their_way.numbers.fetch_add(1, Ordering::Relaxed);
        let arrival = Arrival { on_their_way: self.on_their_way.clone(), key, number };
        let mut answers = self.on_their_way.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.insert(key, (number, fresh.clone()));
        drop(answers);
        let entry = &fresh.entry;
        let put = AnswerPut {
            key,
            generation,
            answer: StoredAnswer {
                content_type: entry.content_type.clone(),
                body: entry.body.clone(),
                tokens: entry.told.tokens(),
                model: None,
                is_built_in: false,
            },
            ttl: self.ttl,
            until_done: Box::new(arrival),
        };
        unsent.hold(self.store.clone(), put);
        true
    }

    /// Forgets all answers, or only counts them.
    pub(super) fn purge(&self, dry_run: bool) -> Purging {
        if !dry_run {
            self.flights().table().purges += 1;
            self.on_their_way.answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        self.store.purge(dry_run)
    }
}

/// Answer that waits for the end of its exchange, which says what it took, before it goes to the store.
#[derive(Default)]
pub(super) struct Unsent(Mutex<Option<(Arc<dyn AnswerStore>, AnswerPut)>>);

impl Unsent {
    fn hold(&self, store: Arc<dyn AnswerStore>, put: AnswerPut) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((store, put));
    }

    /// Sends the answer, if there is one.
    pub(super) fn send(&self, told: &Told) {
        let unsent = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((store, mut put)) = unsent {
            let (model, is_built_in) = told.model();
            put.answer.tokens = told.tokens();
            (put.answer.model, put.answer.is_built_in) = (model.cloned(), is_built_in);
            store.put(put);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::FutureExt;
    use http::{HeaderValue, StatusCode};
    use serde_json::json;
    use spillway_filter::testing::{FilterBuilder, TestRequest, exchange_end, headers, wait};
    use spillway_filter::{
        AnswerHead, AnswerStores, ExchangeEnd, Filter, Flow, KeptAnswers, Looking, Rewrite, TokenUse, Waited,
    };

    use super::super::factory;
    use super::*;

    /// Store in memory, which can be away and which writes when a test says so.
    #[derive(Default)]
    struct Scripted(Mutex<Script>);

    #[derive(Default)]
    struct Script {
        is_away: bool,
        generation: u8,
        kept: HashMap<Key, (StoredAnswer, Generation)>,
        age: Duration,
        puts: Vec<AnswerPut>,
        looks: usize,
    }

    impl Scripted {
        fn write(&self) {
            let mut script = self.0.lock().unwrap();
            for put in std::mem::take(&mut script.puts) {
                script.kept.insert(put.key, (put.answer.clone(), put.generation));
            }
        }
    }

    struct OfRoute(Arc<Scripted>);

    struct OfAll(Arc<Scripted>);

    impl AnswerStores for OfAll {
        fn of_route(&self, _: &str) -> Arc<dyn AnswerStore> {
            Arc::new(OfRoute(self.0.clone()))
        }
    }

    impl AnswerStore for OfRoute {
        fn look(&self, key: Key, longest: usize) -> Looking {
            let mut script = self.0.0.lock().unwrap();
            script.looks += 1;
            if script.is_away {
                return Box::pin(std::future::ready(Looked::default()));
            }
            let now = Generation([script.generation; 16]);
            let kept = script.kept.get(&key).filter(|(answer, of)| *of == now && answer.body.len() <= longest);
            let found = kept.map(|(answer, _)| (answer.clone(), script.age));
            Box::pin(std::future::ready(Looked { generation: Some(now), found }))
        }

        fn generation(&self) -> Looking {
            Box::pin(self.look([0; 32], 0).map(|looked| Looked { found: None, ..looked }))
        }

        fn put(&self, put: AnswerPut) {
            self.0.0.lock().unwrap().puts.push(put);
        }

        fn purge(&self, dry_run: bool) -> Purging {
            let mut script = self.0.0.lock().unwrap();
            let kept = KeptAnswers { answers: script.kept.len() as u64, bytes: 0 };
            script.generation += u8::from(!dry_run);
            Box::pin(std::future::ready(Ok(kept)))
        }
    }

    fn request() -> TestRequest {
        TestRequest::post("/v1/chat/completions", r#"{"model":"m","messages":[]}"#)
            .repeatable()
            .caller("a", "t")
            .model("m")
    }

    fn built() -> (Arc<Scripted>, FilterBuilder, Arc<dyn Filter>) {
        let store = Arc::new(Scripted::default());
        let builder = FilterBuilder::new().answers(Arc::new(OfAll(store.clone())));
        let filter = builder.build(&*factory(), &json!({"exact": true, "store": "shared", "maxEntry": "4KiB"}));
        (store, builder, filter)
    }

    /// Answers a request that leads; the exchange is still under way.
    fn answer(rewrite: &mut Rewrite, body: &str) {
        let headers = headers([("content-type", "application/json")]);
        let rewriter = rewrite.rewriter.as_mut().expect("it leads");
        assert!(rewriter.reads(&AnswerHead { status: StatusCode::OK, headers: &headers, is_spilled: false }));
        assert!(rewriter.whole(body.as_bytes()).unwrap().is_none());
    }

    fn end(mut rewrite: Rewrite) {
        rewrite.observer.as_mut().unwrap().on_end(&ExchangeEnd { prompt_tokens: Some(9), ..exchange_end() });
    }

    fn ask(filter: &dyn Filter, request: &TestRequest) -> Waited {
        wait(request.decide(filter))
    }

    fn body(waited: &Waited) -> Option<&Bytes> {
        waited.served.as_ref().map(|answer| &answer.body)
    }

    #[test]
    fn an_answer_is_given_again_from_the_moment_at_which_it_is_there() {
        let (store, builder, filter) = built();
        let mut first = ask(&*filter, &request()).rewrite;
        answer(&mut first, r#"{"usage":{"prompt_tokens":3,"completion_tokens":5}}"#);
        // Its client still reads, then it waits to be written, then it is in the store.
        assert!(body(&ask(&*filter, &request())).is_some());
        end(first);
        assert!(body(&ask(&*filter, &request())).is_some());
        assert_eq!(store.0.lock().unwrap().puts.len(), 1);
        store.write();
        let again = ask(&*filter, &request());
        assert!(body(&again).is_some());
        assert!(body(&ask(&*filter, &request().caller("b", "t"))).is_none(), "another caller");
        let stored = store.0.lock().unwrap().kept.values().next().unwrap().0.clone();
        assert_eq!(stored.tokens, TokenUse { input: 9, output: 5, ..TokenUse::default() });
        assert_eq!(builder.count("spillway_filter_cache_requests", &["hit"]), 3);
        assert_eq!(builder.count("spillway_filter_cache_saved_tokens", &["prompt"]), 27);
    }

    #[test]
    fn ages_and_wishes_count_as_in_memory() {
        let (store, _builder, filter) = built();
        let mut first = ask(&*filter, &request()).rewrite;
        answer(&mut first, "{}");
        end(first);
        store.write();
        store.0.lock().unwrap().age = Duration::from_secs(7);
        let age = |waited: &Waited| {
            let answer = waited.served.as_ref().unwrap();
            answer.headers.iter().find(|(name, _)| name == http::header::AGE).unwrap().1.clone()
        };
        assert_eq!(age(&ask(&*filter, &request())), HeaderValue::from(7));
        let with = |value| request().header("cache-control", value);
        assert!(body(&ask(&*filter, &with("max-age=7"))).is_some());
        assert!(matches!(with("no-store").decide(&*filter), Flow::Continue));
        assert!(ask(&*filter, &with("no-cache")).rewrite.rewriter.is_some(), "it leads");
        assert!(ask(&*filter, &with("max-age=6")).rewrite.rewriter.is_some());
        store.0.lock().unwrap().age = Duration::from_secs(600);
        assert!(body(&ask(&*filter, &request())).is_none(), "older than this filter keeps one");
    }

    #[test]
    fn of_requests_that_ask_the_same_one_goes_on_and_the_others_get_its_answer() {
        for is_away in [false, true] {
            let (store, builder, filter) = built();
            store.0.lock().unwrap().is_away = is_away;
            let mut first = ask(&*filter, &request()).rewrite;
            let mut waiting: Vec<_> = (0..3)
                .map(|_| match request().decide(&*filter) {
                    Flow::Wait(waiting) => waiting,
                    _ => panic!("it does not wait"),
                })
                .collect();
            assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
            answer(&mut first, "{}");
            for waiting in &mut waiting {
                assert!(body(&waiting.now_or_never().unwrap()).is_some(), "away: {is_away}");
            }
            end(first);
            assert_eq!(store.0.lock().unwrap().puts.len(), usize::from(!is_away));
            assert_eq!(builder.count("spillway_filter_cache_requests", &["joined"]), 3);
            assert_eq!(builder.count("spillway_filter_cache_unkept_answers", &["store"]), u64::from(is_away));
        }
    }

    #[test]
    fn a_purge_anywhere_is_felt_by_those_who_come_after_it() {
        let (store, builder, filter) = built();
        let mut first = ask(&*filter, &request()).rewrite;
        // Another gateway purges while the answer is on its way.
        store.0.lock().unwrap().generation += 1;
        let mut late = match request().decide(&*filter) {
            Flow::Wait(waiting) => waiting,
            _ => panic!("it does not wait"),
        };
        assert!((&mut late).now_or_never().is_none());
        answer(&mut first, "{}");
        assert!(body(&late.now_or_never().unwrap()).is_none(), "its server may have answered before");
        assert!(body(&ask(&*filter, &request())).is_none());
        end(first);
        store.write();
        assert!(body(&ask(&*filter, &request())).is_none());
        // This one purges.
        let mut second = ask(&*filter, &request().model("n")).rewrite;
        let purged = filter.purge(false).unwrap().now_or_never().unwrap().unwrap();
        assert_eq!(purged.answers, 1);
        answer(&mut second, "{}");
        end(second);
        assert!(store.0.lock().unwrap().puts.is_empty());
        assert_eq!(builder.count("spillway_filter_cache_unkept_answers", &["purged"]), 1);
    }

    #[test]
    fn what_is_never_written_is_forgotten_at_once() {
        let (store, _builder, filter) = built();
        let mut first = ask(&*filter, &request()).rewrite;
        answer(&mut first, "{}");
        end(first);
        store.0.lock().unwrap().puts.clear();
        assert!(body(&ask(&*filter, &request())).is_none());
        // Neither does a connection that breaks leave anything.
        let mut cut = ask(&*filter, &request().model("n")).rewrite;
        answer(&mut cut, "{}");
        drop(cut.observer);
        assert_eq!(store.0.lock().unwrap().puts.len(), 1);
    }
}
