//! `cache`: answers that are kept for requests that ask the same again.

mod counts;
mod key;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;
use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::values::{Duration, Size};
use spillway_filter::{
    Answer, AnswerHead, BuildContext, EventChange, FieldError, Fields, Filter, FilterFactory, Flow, Headers,
    KeptAnswers, Observer, Refusal, RequestView, ResponseEvent, Rewrite, Rewriter, Waited, define,
};

use counts::{Counts, Said, Tokens, Unkept};
use key::Key;

/// Header that says whether the answer was kept (`hit`), or is kept from now on (`miss`).
static RESULT: HeaderName = HeaderName::from_static("x-spillway-cache");
/// Number of the next filter.
static FILTERS: AtomicU64 = AtomicU64::new(0);
/// Memory of an entry beside its answer, bytes.
const ENTRY: usize = 256;

/// Keeps answers of model APIs in memory, and gives them to requests that ask the same again: chats, completions, embeddings,
/// rankings and inferences whose body is the same but for the order of its members. Whole answers and streams are kept apart. Put
/// it behind limits, and behind `transform` and `guard`: what they change is not kept.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cache {
    /// Requests that ask exactly the same. Must be true.
    exact: bool,
    /// Time for which an answer is kept.
    #[serde(default = "ten_minutes")]
    ttl: Duration,
    /// Callers who get the same answer. A caller who is not identified shares answers with its address alone, but on `route`.
    #[serde(default)]
    scope: Scope,
    /// Memory for the answers of this filter. The ones that are asked for least make room.
    #[serde(default = "memory")]
    max_size: Size,
    /// Longest answer that is kept.
    #[serde(default = "entry")]
    max_entry: Size,
}

fn ten_minutes() -> Duration {
    Duration(std::time::Duration::from_secs(600))
}

fn memory() -> Size {
    Size(64 << 20)
}

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
        let why = "found false; expected true: there is no other cache in this version".to_owned();
        errors.push(FieldError::at(["exact"], why));
    }
    if written.ttl.0.is_zero() {
        errors.push(FieldError::at(["ttl"], "found no time; expected some, such as 10m"));
    }
    if written.max_entry.0 > written.max_size.0 {
        let why = format!("found {} bytes; expected at most `maxSize` ({})", written.max_entry.0, written.max_size.0);
        errors.push(FieldError::at(["maxEntry"], why));
    }
    if written.max_entry.0 >= u64::from(u32::MAX) {
        errors.push(FieldError::at(
            ["maxEntry"],
            format!("found {} bytes; expected less than 4 GiB", written.max_entry.0),
        ));
    }
    errors
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define("cache", check, |written: Cache, cx: &BuildContext<'_>| {
        // An edit of its size or time begins an empty one.
        let name = format!("{} {:?} {}", cx.route, written.ttl.0, written.max_size.0);
        let state = cx.states.get_or_insert(&name, || Kept::new(written.max_size.0, written.ttl.0));
        let max_entry = usize::try_from(written.max_entry.0).unwrap_or(usize::MAX);
        let number = FILTERS.fetch_add(1, Ordering::Relaxed);
        let counts = Arc::new(Counts::new(cx)?);
        Ok(Arc::new(Caching { number, state, scope: written.scope, max_entry, counts }) as Arc<dyn Filter>)
    })
}

/// Answer that is kept.
#[derive(Debug, Clone)]
struct Entry {
    since: Instant,
    content_type: HeaderValue,
    body: Bytes,
    tokens: Tokens,
}

impl Entry {
    fn answer(&self) -> Box<Answer> {
        let age = HeaderValue::from(self.since.elapsed().as_secs());
        let headers = vec![
            (header::CONTENT_TYPE, self.content_type.clone()),
            (header::AGE, age),
            (RESULT.clone(), HeaderValue::from_static("hit")),
        ];
        Box::new(Answer { status: StatusCode::OK, headers, body: self.body.clone() })
    }
}

/// Answers that are kept, and the requests whose answers are on their way.
struct Kept {
    answers: moka::sync::Cache<Key, Entry>,
    flights: Mutex<Flights>,
}

/// Requests whose answers are on their way.
#[derive(Default)]
struct Flights {
    by_key: HashMap<Key, Flight>,
    /// Number of times that all answers were forgotten. An answer to a request from before is not kept.
    purges: u64,
}

/// Request whose answer is on its way.
#[derive(Clone)]
struct Flight {
    /// Filter that it passed.
    filter: u64,
    ended: Shared<oneshot::Receiver<()>>,
}

impl Kept {
    fn new(max_size: u64, ttl: std::time::Duration) -> Self {
        let weight = |_: &Key, entry: &Entry| u32::try_from(entry.body.len() + ENTRY).unwrap_or(u32::MAX);
        let answers = moka::sync::Cache::builder().max_capacity(max_size).weigher(weight).time_to_live(ttl).build();
        Self { answers, flights: Mutex::default() }
    }

    /// Leads the requests that ask the same, or tells when the one that does has ended.
    fn lead(self: &Arc<Self>, key: Key, filter: u64) -> Result<Leader, Flight> {
        let mut flights = self.flights();
        if let Some(flight) = flights.by_key.get(&key) {
            return Err(flight.clone());
        }
        let (end, ended) = oneshot::channel();
        flights.by_key.insert(key, Flight { filter, ended: ended.shared() });
        Ok(Leader { state: self.clone(), key, purges: flights.purges, _end: end })
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all answers, or only counts them.
    fn purge(&self, dry_run: bool) -> KeptAnswers {
        self.answers.run_pending_tasks();
        let kept = KeptAnswers { answers: self.answers.entry_count(), bytes: self.answers.weighted_size() };
        if !dry_run {
            let mut flights = self.flights();
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
    state: Arc<Kept>,
    key: Key,
    /// Purges before it.
    purges: u64,
    _end: oneshot::Sender<()>,
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.state.flights().by_key.remove(&self.key);
    }
}

/// Filter.
struct Caching {
    /// Number of the filter. Two filters of one route share what they keep, and a request must not wait for itself.
    number: u64,
    state: Arc<Kept>,
    scope: Scope,
    max_entry: usize,
    counts: Arc<Counts>,
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

    fn purge(&self, dry_run: bool) -> Option<KeptAnswers> {
        Some(self.state.purge(dry_run))
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        let wishes = Wishes::of(x.headers);
        let Some(key) = key::of(x, self.scope).filter(|_| wishes.reads || wishes.stores) else {
            self.counts.bypassed.inc();
            return Flow::Continue;
        };
        if let Some(entry) = self.state.answers.get(&key).filter(|entry| wishes.takes(entry)) {
            self.counts.hit.inc();
            self.counts.saved(entry.tokens);
            return Flow::Answer(entry.answer());
        }
        if !wishes.stores {
            self.counts.bypassed.inc();
            return Flow::Continue;
        }
        let (max_entry, number, state, counts) = (self.max_entry, self.number, self.state.clone(), self.counts.clone());
        let kept = move |leader, counts: Arc<Counts>| {
            counts.miss.inc();
            Rewrite {
                rewriter: Some(Box::new(Storing::new(leader, max_entry, counts)) as Box<dyn Rewriter>),
                observer: Some(Box::new(Missed) as Box<dyn Observer>),
                ..Rewrite::default()
            }
        };
        match state.lead(key, number) {
            Ok(leader) => Flow::Rewrite(Box::new(kept(leader, counts))),
            Err(flight) if wishes.reads && flight.filter == number => Flow::Wait(Box::pin(async move {
                // It ends with the request that leads, which has a deadline.
                let _ = flight.ended.await;
                if let Some(entry) = state.answers.get(&key).filter(|entry| wishes.takes(entry)) {
                    counts.joined.inc();
                    counts.saved(entry.tokens);
                    return Waited { served: Some(entry.answer()), ..Waited::default() };
                }
                // Nothing was kept. The first one that comes here leads, the others ask for themselves: an answer that
                // cannot be kept must not make them wait one by one.
                match state.lead(key, number) {
                    Ok(leader) => Waited { rewrite: kept(leader, counts), ..Waited::default() },
                    Err(_) => {
                        counts.bypassed.inc();
                        Waited::default()
                    }
                }
            })),
            // It wants an answer of its own, and another one is on its way to be kept.
            Err(_) => {
                counts.bypassed.inc();
                Flow::Continue
            }
        }
    }
}

/// Marks an answer that was not there.
struct Missed;

impl Observer for Missed {
    fn on_response_head(&mut self, _: StatusCode, headers: &mut dyn Headers) {
        headers.set(&RESULT, HeaderValue::from_static("miss"));
    }
}

/// Keeps one answer.
struct Storing {
    leader: Leader,
    max_entry: usize,
    counts: Arc<Counts>,
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
            self.counts.unkept(self.spoiled.or(self.unkept.get().copied()).unwrap_or(Unkept::Cut));
        }
    }
}

impl Storing {
    fn new(leader: Leader, max_entry: usize, counts: Arc<Counts>) -> Self {
        Self {
            leader,
            max_entry,
            counts,
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
        let content_type = content_type.unwrap_or(HeaderValue::from_static("application/json"));
        let entry = Entry { since: Instant::now(), content_type, body, tokens };
        let flights = self.leader.state.flights();
        if flights.purges == self.leader.purges {
            self.leader.state.answers.insert(self.leader.key, entry);
            self.is_kept = true;
        } else {
            self.spoiled = Some(Unkept::Purged);
        }
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
        } else if let Some(kind) = head.content_type() {
            let _ = self.content_type.set(kind.clone());
        }
        unkept.is_none()
    }

    fn whole(&mut self, body: &[u8]) -> Result<Option<Bytes>, Box<Refusal>> {
        if body.len() > self.max_entry {
            self.spoiled = Some(Unkept::TooLong);
            return Ok(None);
        }
        let said: Option<Said<'_>> = serde_json::from_slice(body).ok();
        // A response of OpenAI's that goes on in the background is not there yet.
        let is_answer =
            |said: &Said<'_>| said.error.is_null() && said.status.as_ref().is_none_or(|status| status == "completed");
        match said.filter(is_answer) {
            Some(said) => self.keep(Bytes::copy_from_slice(body), said.tokens()),
            None => self.spoiled = Some(Unkept::Error),
        }
        Ok(None)
    }

    fn event(&mut self, event: &ResponseEvent<'_>) -> EventChange {
        if !event.is_whole || self.stream.len() + event.bytes.len() > self.max_entry {
            self.spoiled = self.spoiled.or(Some(Unkept::TooLong));
        }
        if self.spoiled.is_some() {
            self.stream = Vec::new();
            return EventChange::Keep;
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
            self.spoiled = Some(Unkept::Error);
        }
        self.tokens = self.tokens.max(said.tokens());
        self.is_finished |=
            said.done == Some(true) || matches!(said.kind.as_deref(), Some("message_stop" | "response.completed"));
        EventChange::Keep
    }

    fn end(&mut self) -> Result<Bytes, Box<Refusal>> {
        if self.is_finished && self.spoiled.is_none() {
            let stream = std::mem::take(&mut self.stream);
            self.keep(stream.into(), self.tokens);
        }
        Ok(Bytes::new())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use spillway_filter::testing::{FilterBuilder, TestRequest, headers, split_events};

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
        let counted = filter.purge(true).unwrap();
        assert_eq!((counted.answers, counted.bytes > 2), (1, true));
        assert!(hit(&*filter, &request()).is_some(), "a dry run forgets nothing");
        assert_eq!(filter.purge(false), Some(counted));
        assert_eq!(filter.purge(true), Some(KeptAnswers::default()));
        assert!(hit(&*filter, &request()).is_none());
        answer(&mut *late, 200, pairs, false, "{}");
        drop(late);
        assert!(hit(&*filter, &request().model("n")).is_none(), "its server may have answered before");
        assert_eq!(builder.count("spillway_filter_cache_unkept_answers", &["purged"]), 1);
        answer(&mut *lead(&*filter, &request()), 200, pairs, false, "{}");
        assert!(hit(&*filter, &request()).is_some());
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
            let name = format!("route {:?} {size}", std::time::Duration::from_secs(600));
            builder.states().get_or_insert(&name, || panic!("it is there"))
        };
        state.answers.run_pending_tasks();
        assert!(state.answers.weighted_size() <= 16 << 10, "{}", state.answers.weighted_size());
        assert!(state.answers.entry_count() > 0 && state.flights().by_key.is_empty());
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (config, path) in [
            (json!({"exact": false}), "exact"),
            (json!({"exact": true, "ttl": "0s"}), "ttl"),
            (json!({"exact": true, "maxSize": "1KiB"}), "maxEntry"),
        ] {
            let errors = factory().check(&config);
            assert_eq!(errors.len(), 1, "{config}: {errors:?}");
            assert_eq!(errors[0].path, [path], "{config}");
        }
    }
}
