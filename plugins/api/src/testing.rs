//! Builders for unit tests of filters: a filter from its configuration, a request as the gateway would show it, the
//! variables of an answer. No gateway, no socket and no runtime is needed. What a test leaves out has a plain default.

#![allow(clippy::panic, reason = "a mistake in a test must fail the test")]

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake};
use std::thread::Thread;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};

use crate::{
    AnswerStores, BuildContext, Call, Caller, Classifier, Classifiers, Classifying, Counters, Embedded, Embedder,
    Embedders, Embedding, EventSplitter, ExchangeEnd, ExchangeView, FieldError, Fields, Filter, FilterFactory, Flow,
    GrpcClient, HttpClient, HttpError, Judgement, NoClassifiers, NoEmbedders, NoGrpc, NoHttp, NoPrices, NotEmbedded,
    Pricing, RequestView, ResponseEvent, ServerView, SharedStates, SystemPlace, Variables, Waited,
};

/// Builds filters as the gateway does when it compiles a configuration. Filters of one builder share their states, as the
/// filters of one gateway do.
pub struct FilterBuilder {
    route: String,
    prefixes: Vec<String>,
    states: SharedStates,
    http: Arc<dyn HttpClient>,
    grpc: Arc<dyn GrpcClient>,
    counters: Counters,
    answers: Option<Arc<dyn AnswerStores>>,
    prices: Arc<dyn Pricing>,
    embedder: Option<Arc<dyn Embedder>>,
    classifier: Option<Arc<dyn Classifier>>,
}

impl FilterBuilder {
    /// Builder for a route `route` that matches every path, with calls to other servers disabled.
    pub fn new() -> Self {
        let http: Arc<dyn HttpClient> = Arc::new(NoHttp);
        Self {
            route: "route".to_owned(),
            prefixes: Vec::new(),
            states: SharedStates::default(),
            http,
            grpc: Arc::new(NoGrpc),
            counters: Counters::default(),
            answers: None,
            prices: Arc::new(NoPrices),
            embedder: None,
            classifier: None,
        }
    }

    /// Sets the name of the route.
    #[must_use]
    pub fn route(mut self, name: &str) -> Self {
        name.clone_into(&mut self.route);
        self
    }

    /// Adds a path prefix that the route matches.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefixes.push(spillway_config::path::key(prefix).into());
        self
    }

    /// States that the filters of this builder share.
    pub fn states(&self) -> &SharedStates {
        &self.states
    }

    /// Value of a counter of the filters: its name, and the values of its labels without the route. 0 where no filter holds it.
    pub fn count(&self, name: &str, values: &[&str]) -> u64 {
        let samples = self.counters.samples();
        let series = samples.iter().filter(|sample| sample.spec.name == name).flat_map(|sample| &sample.series);
        series.filter(|(own, _)| own.iter().skip(1).eq(values.iter())).map(|(_, count)| count).sum()
    }

    /// Sets the client for calls to other servers.
    #[must_use]
    pub fn http(mut self, client: Arc<dyn HttpClient>) -> Self {
        self.http = client;
        self
    }

    /// Sets the client for streams of gRPC messages.
    #[must_use]
    pub fn grpc(mut self, client: Arc<dyn GrpcClient>) -> Self {
        self.grpc = client;
        self
    }

    /// Sets the store of answers that several gateways share.
    #[must_use]
    pub fn answers(mut self, answers: Arc<dyn AnswerStores>) -> Self {
        self.answers = Some(answers);
        self
    }

    /// Sets the prices of models.
    #[must_use]
    pub fn prices(mut self, prices: Arc<dyn Pricing>) -> Self {
        self.prices = prices;
        self
    }

    /// Sets the built-in model that turns texts into vectors, whatever its name.
    #[must_use]
    pub fn embedder(mut self, embedder: Arc<dyn Embedder>) -> Self {
        self.embedder = Some(embedder);
        self
    }

    /// Sets the built-in model that classifies texts, whatever its name.
    #[must_use]
    pub fn classifier(mut self, classifier: Arc<dyn Classifier>) -> Self {
        self.classifier = Some(classifier);
        self
    }

    /// Checks a configuration and builds the filter.
    ///
    /// # Panics
    ///
    /// If the configuration has a mistake.
    pub fn build(&self, factory: &dyn FilterFactory, config: &serde_json::Value) -> Arc<dyn Filter> {
        let errors = factory.check(config);
        assert!(errors.is_empty(), "{config}: {errors:?}");
        self.try_build(factory, config).unwrap_or_else(|error| panic!("{config}: {error:?}"))
    }

    /// Builds the filter of a configuration that passes its check.
    ///
    /// # Errors
    ///
    /// A mistake that only the build can find.
    pub fn try_build(
        &self,
        factory: &dyn FilterFactory,
        config: &serde_json::Value,
    ) -> Result<Arc<dyn Filter>, FieldError> {
        let prefixes: Vec<&str> = self.prefixes.iter().map(String::as_str).collect();
        let cx = BuildContext {
            route: &self.route,
            prefixes: &prefixes,
            states: &self.states,
            http: &self.http,
            grpc: &self.grpc,
            embedders: self,
            classifiers: self,
            counters: &self.counters,
            answers: self.answers.as_deref(),
            prices: &self.prices,
        };
        factory.build(config, &cx)
    }
}

impl Embedders for FilterBuilder {
    fn embedder(&self, model: &str) -> Result<Arc<dyn Embedder>, String> {
        self.embedder.clone().map_or_else(|| NoEmbedders.embedder(model), Ok)
    }
}

impl Classifiers for FilterBuilder {
    fn classifier(&self, model: &str) -> Result<Arc<dyn Classifier>, String> {
        self.classifier.clone().map_or_else(|| NoClassifiers.classifier(model), Ok)
    }
}

/// Classifier with these labels whose judgement of several texts a function makes at once.
pub struct FixedClassifier<F>(pub Vec<String>, pub F);

impl<F: Fn(&[String]) -> Judgement + Send + Sync> Classifier for FixedClassifier<F> {
    fn labels(&self) -> &[String] {
        &self.0
    }

    fn classify(&self, texts: Vec<String>, _: Duration) -> Classifying {
        Box::pin(std::future::ready((self.1)(&texts)))
    }

    fn classify_later(&self, texts: Vec<String>, _: Duration, done: Box<dyn FnOnce(Judgement) + Send>) {
        done((self.1)(&texts));
    }
}

/// Embedder whose vectors a function makes at once.
pub struct FixedEmbedder<F>(pub F);

impl<F: Fn(&str) -> Option<Vec<f32>> + Send + Sync> Embedder for FixedEmbedder<F> {
    fn embed(&self, text: String, _: Duration) -> Embedding {
        Box::pin(std::future::ready((self.0)(&text)))
    }

    fn embed_whole(&self, text: String, _: Duration) -> Embedded {
        Box::pin(std::future::ready((self.0)(&text).map(|vector| vec![vector]).ok_or(NotEmbedded::Failed)))
    }

    fn version(&self) -> u64 {
        1
    }
}

impl Default for FilterBuilder {
    fn default() -> Self {
        Self::new()
    }
}

/// A request, from which filters get their view.
#[derive(Debug, Clone)]
pub struct TestRequest {
    method: Method,
    path: String,
    query: String,
    secure: bool,
    headers: Fields,
    client: IpAddr,
    caller: Option<TestCaller>,
    route: String,
    model: Option<String>,
    system: Option<SystemPlace>,
    prompt_tokens: Option<u64>,
    is_repeatable: bool,
    body: Option<Bytes>,
}

#[derive(Debug, Clone, Default)]
struct TestCaller {
    consumer: String,
    tenant: String,
    scopes: Vec<String>,
    claims: serde_json::Value,
}

impl TestRequest {
    /// An anonymous request from 127.0.0.1 without headers and body. `target` is a path, with a query behind `?`.
    pub fn new(method: Method, target: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Self {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            secure: false,
            headers: Fields::default(),
            client: [127, 0, 0, 1].into(),
            caller: None,
            route: "route".to_owned(),
            model: None,
            system: None,
            prompt_tokens: None,
            is_repeatable: false,
            body: None,
        }
    }

    /// A GET request.
    pub fn get(target: &str) -> Self {
        Self::new(Method::GET, target)
    }

    /// A POST request whose body is held.
    pub fn post(target: &str, body: impl Into<Bytes>) -> Self {
        Self { body: Some(body.into()), ..Self::new(Method::POST, target) }
    }

    /// Adds a header. `host` is the host of the request as well.
    ///
    /// # Panics
    ///
    /// If a header cannot have this name or value.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let (name, value) = header(name, value);
        self.headers.append(name, value);
        self
    }

    /// Marks the request as sent over TLS.
    #[must_use]
    pub fn secure(mut self) -> Self {
        self.secure = true;
        self
    }

    /// Sets the address of the client.
    #[must_use]
    pub fn client(mut self, address: impl Into<IpAddr>) -> Self {
        self.client = address.into();
        self
    }

    /// Sets the caller: an API key of a consumer.
    #[must_use]
    pub fn caller(mut self, consumer: &str, tenant: &str) -> Self {
        let known = self.caller.take().unwrap_or_default();
        self.caller = Some(TestCaller { consumer: consumer.to_owned(), tenant: tenant.to_owned(), ..known });
        self
    }

    /// Sets scopes and claims of the caller's token; [`Self::caller`] sets whose it is.
    #[must_use]
    pub fn token(mut self, scopes: &[&str], claims: serde_json::Value) -> Self {
        let known = self.caller.take().unwrap_or_default();
        let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
        self.caller = Some(TestCaller { scopes, claims, ..known });
        self
    }

    /// Sets the name of the route.
    #[must_use]
    pub fn route(mut self, name: &str) -> Self {
        name.clone_into(&mut self.route);
        self
    }

    /// Sets the model that the body names. The gateway reads it from the body; a test says it.
    #[must_use]
    pub fn model(mut self, name: &str) -> Self {
        self.model = Some(name.to_owned());
        self
    }

    /// Sets the place of the system prompt. The gateway knows it from the path; a test says it.
    #[must_use]
    pub fn system(mut self, place: SystemPlace) -> Self {
        self.system = Some(place);
        self
    }

    /// Sets the estimate of the tokens in the prompt. The gateway counts them; a test says them.
    #[must_use]
    pub fn prompt_tokens(mut self, tokens: u64) -> Self {
        self.prompt_tokens = Some(tokens);
        self
    }

    /// Marks the request as a call whose answer depends on what it says. The gateway knows it from the path; a test says it.
    #[must_use]
    pub fn repeatable(mut self) -> Self {
        self.is_repeatable = true;
        self
    }

    /// Shows the request as filters see it.
    pub fn view(&self) -> RequestView<'_> {
        RequestView {
            method: &self.method,
            path: &self.path,
            host: self.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()),
            secure: self.secure,
            headers: &self.headers,
            client: self.client,
            caller: self.caller.as_ref().map(|caller| Caller {
                consumer: &caller.consumer,
                tenant: &caller.tenant,
                scopes: &caller.scopes,
                claims: &caller.claims,
            }),
            route: &self.route,
            query: &self.query,
            model: self.model.as_deref(),
            is_repeatable: self.is_repeatable,
            system: self.system,
            prompt_tokens: self.prompt_tokens,
            body: self.body.as_deref(),
        }
    }

    /// Has a filter decide on the request.
    pub fn decide(&self, filter: &dyn Filter) -> Flow {
        filter.on_request(&mut self.view())
    }
}

/// Exchange of a request in which the caller's credential is in `authorization`, at the stable version of a rollout.
impl ExchangeView for TestRequest {
    fn request(&self) -> RequestView<'_> {
        self.view()
    }

    fn version(&self) -> &'static str {
        "stable"
    }

    fn is_secret(&self, name: &HeaderName) -> bool {
        *name == http::header::AUTHORIZATION
    }
}

/// Client of a filter's calls that answers each at once in the same way, and keeps the requests.
pub struct FixedHttp {
    answer: Result<http::Response<Bytes>, HttpError>,
    requests: Mutex<Vec<http::Request<Bytes>>>,
}

impl FixedHttp {
    /// Client whose calls get this answer.
    pub fn answering(answer: http::Response<Bytes>) -> Arc<Self> {
        Arc::new(Self { answer: Ok(answer), requests: Mutex::default() })
    }

    /// Client whose calls fail.
    pub fn failing(message: &str) -> Arc<Self> {
        Arc::new(Self { answer: Err(HttpError(message.to_owned())), requests: Mutex::default() })
    }

    /// Returns the requests of all calls so far.
    pub fn requests(&self) -> Vec<http::Request<Bytes>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl HttpClient for FixedHttp {
    fn call(&self, request: http::Request<Bytes>, _: Duration) -> Call {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        Box::pin(std::future::ready(self.answer.clone()))
    }
}

/// Runs the wait of a filter to its end, on this thread.
///
/// # Panics
///
/// If the filter does not wait.
pub fn wait(flow: Flow) -> Waited {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let Flow::Wait(mut waiting) = flow else { panic!("the filter does not wait") };
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut cx = Context::from_waker(&waker);
    loop {
        match waiting.as_mut().poll(&mut cx) {
            Poll::Ready(waited) => return waited,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Headers of these names and values.
///
/// # Panics
///
/// If a header cannot have this name or value.
pub fn headers<const N: usize>(pairs: [(&str, &str); N]) -> Fields {
    let mut headers = Fields::default();
    for (name, value) in pairs {
        let (name, value) = header(name, value);
        headers.append(name, value);
    }
    headers
}

fn header(name: &str, value: &str) -> (HeaderName, HeaderValue) {
    match (name.parse(), value.parse()) {
        (Ok(name), Ok(value)) => (name, value),
        _ => panic!("no header can be `{name}: {value}`"),
    }
}

/// Splits an event stream as the gateway does, and calls `emit` with each event.
pub fn split_events(stream: impl AsRef<[u8]>, emit: impl FnMut(&ResponseEvent<'_>)) {
    EventSplitter::default().feed(stream.as_ref(), emit);
}

/// End of a plain exchange: a whole answer of `backend` with status 200. A test changes some of it by
/// `ExchangeEnd { status: 502, ..exchange_end() }`.
pub fn exchange_end() -> ExchangeEnd<'static> {
    ExchangeEnd {
        status: 200,
        is_whole: true,
        bytes_in: 0,
        bytes_out: 0,
        duration: Duration::ZERO,
        first_token: None,
        served_by: "backend",
        endpoint: None,
        attempts: 1,
        prompt_tokens: None,
        cached_tokens: None,
        cache_written_tokens: None,
        cache_written_1h_tokens: None,
        completion_tokens: None,
        model: None,
        error_code: None,
    }
}

/// Variables of a plain exchange: route `route`, backend `backend`, request id `request-id`, no origin, no TLS. A test
/// changes some of them by `Variables { secure: true, ..variables() }`.
pub fn variables() -> Variables<'static> {
    Variables {
        backend: "backend",
        route: "route",
        request_id: "request-id",
        origin: None,
        secure: false,
        status: None,
        exchange: None,
    }
}

/// Server of a plain exchange: `http://10.0.0.11:8000`, which got the `Host` of the caller, `api.example.com`, without TLS
/// and with the path of the caller. A test changes some of it by `ServerView { secure: true, ..server_view() }`.
pub fn server_view() -> ServerView<'static> {
    let host = Some("api.example.com");
    ServerView {
        https: false,
        host: "10.0.0.11",
        port: 8000,
        sent_host: host,
        caller_host: host,
        secure: false,
        caller_path: &|_| None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_shows_what_the_builder_was_given() {
        let request = TestRequest::post("/v1/chat?debug=1", r#"{"n":1}"#)
            .header("host", "api.test")
            .header("x-team", "red")
            .header("x-team", "blue")
            .client([10, 0, 0, 7])
            .token(&["chat.write"], serde_json::json!({"org": 7}))
            .caller("acme", "north")
            .route("chat")
            .model("m")
            .secure();
        let view = request.view();
        assert_eq!((view.method, view.path, view.query), (&Method::POST, "/v1/chat", "debug=1"));
        assert_eq!((view.host, view.route, view.model, view.secure), (Some("api.test"), "chat", Some("m"), true));
        assert_eq!(view.headers.get_all("x-team").iter().collect::<Vec<_>>(), ["red", "blue"]);
        assert_eq!((view.client, view.body), (IpAddr::from([10, 0, 0, 7]), Some(&br#"{"n":1}"#[..])));
        let caller = view.caller.unwrap();
        assert_eq!((caller.consumer, caller.tenant, caller.scopes), ("acme", "north", &["chat.write".to_owned()][..]));
        assert_eq!(caller.claims["org"], 7);

        let request = TestRequest::get("/");
        let plain = request.view();
        assert!(plain.caller.is_none() && plain.body.is_none() && plain.host.is_none() && plain.query.is_empty());
    }

    #[test]
    #[should_panic(expected = "no header can be `b@d: 1`")]
    fn an_impossible_header_fails_the_test() {
        let _ = TestRequest::get("/").header("b@d", "1");
    }
}
