use std::net::{TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use opentelemetry::trace::{SpanId, Status};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::SpanData;
use parking_lot::Mutex;
use spillway_config::schema::{CallersDecide, Keep, Otlp, OtlpProtocol};
use spillway_filter::Fields;

use super::plan::Parent;
use super::*;

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn headers(pairs: &[(&'static str, &'static str)]) -> Fields {
    pairs.iter().map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_static(value))).collect()
}

/// Keeps what is exported.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl opentelemetry_sdk::trace::SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().extend(batch);
        Ok(())
    }
}

fn kept(ratio: f64) -> (Tracer, Kept) {
    kept_by(Parent::TrustedProxies, ratio)
}

fn kept_by(parent: Parent, ratio: f64) -> (Tracer, Kept) {
    kept_with(TracePlan { endpoint: String::new(), ratio, parent, keep: Keep::default() })
}

fn kept_with(plan: TracePlan) -> (Tracer, Kept) {
    let kept = Kept::default();
    let pipeline = Pipeline::build(&plan, &Arc::default(), || Ok(kept.clone())).unwrap();
    (Tracer { active: Some(Arc::new(ActiveTracer::new(plan, pipeline))) }, kept)
}

fn text<'a>(span: &'a SpanData, key: &str) -> Option<Cow<'a, str>> {
    span.attributes.iter().find(|kv| kv.key.as_str() == key).map(|kv| kv.value.as_str())
}

#[test]
fn a_request_is_one_tree_under_the_callers_span() {
    let (tracer, kept) = kept(0.0);
    let start = SystemTime::now() - Duration::from_secs(1);
    let caller = headers(&[("traceparent", CALLER), ("tracestate", "vendor=1")]);
    // A proxy that is trusted has decided to trace, whatever the ratio says.
    let mut server = tracer.server_span(&caller, true, start);
    assert!(server.is_recording());
    server.set(names::HTTP_ROUTE, "chat");
    let mut attempt = server.child("chat gpt-x", SpanKind::Client);
    attempt.error("timeout");
    let mut upstream = Fields::default();
    attempt.inject(&mut upstream);
    drop(attempt);
    server.child_at("prefill", SpanKind::Internal, start).end_at(start + Duration::from_millis(20));
    server.event("refused", "rateLimit");
    server.rename("POST chat".to_owned());
    drop(server);
    tracer.flush();

    let spans = kept.0.lock();
    let [attempt, prefill, server] = &spans[..] else { panic!("{} spans", spans.len()) };
    let trace = TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap();
    assert!(spans.iter().all(|span| span.span_context.trace_id() == trace));
    assert_eq!((&*server.name, &server.span_kind, server.start_time), ("POST chat", &OtelSpanKind::Server, start));
    assert_eq!(server.parent_span_id, SpanId::from_hex("b7ad6b7169203331").unwrap());
    assert!(server.parent_span_is_remote);
    assert_eq!(text(server, "http.route").unwrap(), "chat");
    assert_eq!(server.events.iter().map(|event| &*event.name).collect::<Vec<_>>(), ["refused"]);
    assert_eq!((&*attempt.name, &attempt.span_kind), ("chat gpt-x", &OtelSpanKind::Client));
    assert_eq!(
        (attempt.parent_span_id, prefill.parent_span_id),
        (server.span_context.span_id(), server.span_context.span_id())
    );
    assert_eq!((text(attempt, "error.type").unwrap(), &attempt.status), ("timeout".into(), &Status::error("timeout")));
    assert_eq!(prefill.end_time.duration_since(prefill.start_time).unwrap(), Duration::from_millis(20));
    let sent = format!("00-{trace}-{}-01", attempt.span_context.span_id());
    assert_eq!(
        (upstream["traceparent"].to_str().unwrap(), upstream["tracestate"].to_str().unwrap()),
        (&*sent, "vendor=1")
    );
}

#[test]
fn a_stranger_does_not_decide_that_its_requests_are_traced() {
    // A draw by the trace id would always keep this one.
    let sampled = "00-00000000000000000000000000000001-b7ad6b7169203331-01";
    let not_sampled = "00-00000000000000000000000000000001-b7ad6b7169203331-00";
    let begun = |parent, ratio, flags, from_trusted_proxy| {
        let (tracer, _) = kept_by(parent, ratio);
        let caller = headers(&[("traceparent", flags), ("tracestate", "vendor=1")]);
        (0..400)
            .filter(|_| {
                let span = tracer.server_span(&caller, from_trusted_proxy, SystemTime::now());
                let mut upstream = Fields::default();
                span.inject(&mut upstream);
                let sent = upstream["traceparent"].to_str().unwrap();
                assert!(sent.starts_with("00-00000000000000000000000000000001-"), "the trace goes on: {sent}");
                assert_eq!(sent.ends_with("-01"), span.is_recording(), "and servers are told what was decided");
                assert_eq!(upstream["tracestate"], "vendor=1");
                span.is_recording()
            })
            .count()
    };
    for (parent, ratio, trusted, of_sampled, of_not_sampled) in [
        (Parent::TrustedProxies, 0.0, false, 0..=0, 0..=0),
        (Parent::TrustedProxies, 0.1, false, 5..=120, 0..=0),
        (Parent::TrustedProxies, 1.0, false, 400..=400, 0..=0),
        (Parent::TrustedProxies, 0.0, true, 400..=400, 0..=0),
        (Parent::Everyone, 0.0, false, 400..=400, 0..=0),
        (Parent::Nobody, 0.0, true, 0..=0, 0..=0),
        (Parent::Nobody, 0.1, true, 5..=120, 5..=120),
        (Parent::Nobody, 1.0, false, 400..=400, 400..=400),
    ] {
        let (kept, left) = (begun(parent, ratio, sampled, trusted), begun(parent, ratio, not_sampled, trusted));
        assert!(of_sampled.contains(&kept), "{parent:?} {ratio} {trusted}: {kept}");
        assert!(of_not_sampled.contains(&left), "{parent:?} {ratio} {trusted}: {left}");
    }
}

#[test]
fn a_trace_that_is_not_sampled_says_so_upstream_and_is_not_sent() {
    let (tracer, kept) = kept(1.0);
    let not_sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let mut span = tracer.server_span(&headers(&[("traceparent", not_sampled)]), false, SystemTime::now());
    assert!(!span.is_recording());
    span.set(names::HTTP_ROUTE, "chat");
    let mut upstream = headers(&[("tracestate", "stale=1")]);
    span.child("attempt", SpanKind::Client).inject(&mut upstream);
    let sent = upstream["traceparent"].to_str().unwrap();
    assert!(sent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && sent.ends_with("-00"), "{sent}");
    assert!(!upstream.contains_key("tracestate"), "a state without its parent is nobody's");
    drop(span);
    // A malformed parent begins a trace of our own.
    let fresh = tracer.server_span(&headers(&[("traceparent", "00-nonsense")]), false, SystemTime::now());
    assert!(fresh.is_recording());
    let trace = fresh.ids().unwrap().trace;
    drop(fresh);
    tracer.flush();
    let spans = kept.0.lock();
    assert_eq!(spans.iter().map(|span| span.span_context.trace_id()).collect::<Vec<_>>(), [trace]);
}

#[test]
fn a_gateway_that_does_not_trace_leaves_the_callers_headers_alone() {
    // Flags and versions that this gateway would not write itself.
    let sent = headers(&[
        ("traceparent", "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-later"),
        ("tracestate", "a=1"),
        ("tracestate", "b=2"),
        ("baggage", "k=v"),
    ]);
    let mut upstream = sent.clone();
    let span = Tracer::default().server_span(&sent, false, SystemTime::now());
    let attempt = span.child("attempt", SpanKind::Client);
    attempt.inject(&mut upstream);
    assert_eq!(http::HeaderMap::from(upstream), http::HeaderMap::from(sent));
    assert_eq!(attempt.ids().unwrap().trace.to_string(), "0af7651916cd43dd8448eb211c80319c", "for the log");
    assert!(Tracer::default().server_span(&Fields::default(), false, SystemTime::now()).ids().is_none());
}

#[test]
fn what_a_caller_sends_does_not_make_spans_long() {
    let (tracer, kept) = kept(1.0);
    let long = "ü".repeat(5000);
    let mut span = tracer.server_span(&Fields::default(), false, SystemTime::now());
    span.set(names::URL_PATH, long.clone());
    span.set(names::GEN_AI_RESPONSE_FINISH_REASONS, Value::Array(Array::String(vec![long.clone().into()])));
    span.rename(long.clone());
    span.event("refused", &long);
    span.error(long);
    drop(span);
    tracer.flush();
    let spans = kept.0.lock();
    assert_eq!(spans[0].name.len(), MAX_NAME);
    assert_eq!(text(&spans[0], "url.path").unwrap().len(), MAX_TEXT);
    let size = format!("{:?}", spans[0]).len();
    assert!(size < 8 * MAX_TEXT, "{size} bytes");
}

#[test]
fn requests_are_kept_by_how_they_end() {
    let keep = Keep { errors: true, spilled: true, slower_than: Some(spillway_config::values::Duration::seconds(5)) };
    let plan = TracePlan { endpoint: String::new(), ratio: 0.0, parent: Parent::TrustedProxies, keep };
    let (tracer, kept) = kept_with(plan);
    let good = TraceEnd { is_error: false, is_spilled: false, took: Duration::from_secs(5) };
    let slow = TraceEnd { took: Duration::from_millis(5_001), ..good };
    let not_sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let ends = [good, TraceEnd { is_error: true, ..good }, TraceEnd { is_spilled: true, ..good }, slow];
    for (number, end) in ends.into_iter().enumerate() {
        let mut server = tracer.server_span(&headers(&[("traceparent", not_sampled)]), false, SystemTime::now());
        assert!(server.is_recording() && server.sent_trace().is_none());
        server.set("number", i64::try_from(number).unwrap());
        let attempt = server.child("attempt", SpanKind::Client);
        let mut upstream = Fields::default();
        attempt.inject(&mut upstream);
        assert!(upstream["traceparent"].to_str().unwrap().ends_with("-00"), "nothing is promised to servers");
        drop(attempt.child_at("inner", SpanKind::Internal, SystemTime::now()));
        drop(attempt);
        let late = server.child("late", SpanKind::Internal);
        server.decide(end);
        assert_eq!(server.sent_trace().is_some(), number > 0, "{end:?}");
        drop(server);
        late.end_at(SystemTime::now());
    }
    // A request that is given up without an end leaves nothing.
    let server = tracer.server_span(&Fields::default(), false, SystemTime::now());
    drop(server.child("attempt", SpanKind::Client));
    drop(server);
    let queue = tracer.active.as_ref().unwrap().pipeline.queue.clone();
    tracer.flush();
    let spans = kept.0.lock();
    let mut seen: Vec<&str> = spans.iter().map(|span| &*span.name).collect();
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            "attempt", "attempt", "attempt", "inner", "inner", "inner", "late", "late", "late", "request", "request",
            "request"
        ]
    );
    assert!(spans.iter().all(|span| span.span_context.is_sampled()));
    let servers = spans.iter().filter(|span| span.name == "request");
    let numbers: Vec<_> = servers.map(|span| text(span, "number").unwrap().into_owned()).collect();
    assert_eq!(numbers, ["1", "2", "3"]);
    assert_eq!(format!("{:?}", queue.held), "HeldSpans(0)");
}

#[test]
fn one_request_holds_a_bounded_number_of_spans() {
    let keep = Keep { errors: true, ..Keep::default() };
    let plan = TracePlan { endpoint: String::new(), ratio: 0.0, parent: Parent::TrustedProxies, keep };
    let (tracer, kept) = kept_with(plan);
    let server = tracer.server_span(&Fields::default(), false, SystemTime::now());
    for _ in 0..1000 {
        drop(server.child("attempt", SpanKind::Client));
    }
    server.decide(TraceEnd { is_error: true, is_spilled: false, took: Duration::ZERO });
    drop(server);
    tracer.flush();
    assert_eq!(kept.0.lock().len(), 65, "64 of them, and its own");
}

#[test]
fn texts_of_model_calls_that_wait_are_bounded_together() {
    let (tracer, kept) = kept(1.0);
    const LONG: usize = 64 << 10;
    for _ in 0..600 {
        let mut span = tracer.server_span(&Fields::default(), false, SystemTime::now());
        span.set_long(names::GEN_AI_INPUT_MESSAGES, "x".repeat(LONG));
        span.set(names::GEN_AI_REQUEST_MODEL, "m");
    }
    tracer.flush();
    let spans = kept.0.lock();
    assert_eq!(spans.len(), 600);
    for span in spans.iter() {
        let is_dropped = text(span, names::SPILLWAY_CONTENT_DROPPED).is_some();
        assert_ne!(text(span, names::GEN_AI_INPUT_MESSAGES).is_some(), is_dropped);
        assert_eq!(text(span, names::GEN_AI_REQUEST_MODEL).unwrap(), "m");
    }
}

fn tracing(otlp: Otlp, sample_ratio: f64) -> Tracing {
    let (callers_decide, keep) = (CallersDecide::TrustedProxies, Keep::default());
    Tracing { otlp, sample_ratio, callers_decide, keep, capture_content: false, attributes: Vec::new() }
}

fn exporting_to(address: std::net::SocketAddr) -> (Tracer, Arc<AtomicU64>) {
    let dropped = Arc::<AtomicU64>::default();
    let otlp = Otlp { endpoint: format!("http://{address}"), protocol: OtlpProtocol::Grpc };
    let tracer = Tracer::new(Some(&tracing(otlp, 1.0)), None, &dropped).unwrap();
    (tracer, dropped)
}

/// Ends more spans than may wait and says how long that took.
fn flood(tracer: &Tracer) -> Duration {
    let began = Instant::now();
    for _ in 0..2 * export::QUEUE {
        drop(tracer.server_span(&Fields::default(), false, SystemTime::now()));
    }
    began.elapsed()
}

#[test]
fn a_collector_that_is_down_costs_spans_which_are_counted() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (tracer, dropped) = exporting_to(address);
    let took = flood(&tracer);
    assert!(took < Duration::from_secs(2), "ending spans waits for nobody: {took:?}");
    let began = Instant::now();
    while dropped.load(Ordering::Relaxed) < 2 * export::QUEUE as u64 && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(dropped.load(Ordering::Relaxed), 2 * export::QUEUE as u64, "each one, once");
}

#[test]
fn a_collector_that_hangs_does_not_hold_the_end_of_the_process() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = collector.local_addr().unwrap();
    let held: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let holding = held.clone();
    std::thread::spawn(move || {
        for stream in collector.incoming().flatten() {
            holding.lock().push(stream);
        }
    });
    let (tracer, dropped) = exporting_to(address);
    let took = flood(&tracer);
    assert!(took < Duration::from_secs(2), "ending spans waits for nobody: {took:?}");
    assert!(dropped.load(Ordering::Relaxed) > 0, "the queue is bounded");
    let began = Instant::now();
    tracer.flush();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(!held.lock().is_empty(), "the collector was reached");
}

#[tokio::test]
async fn an_unchanged_tracer_is_kept_and_a_replaced_one_dropped_inside_a_runtime() {
    let otlp = |port| Otlp { endpoint: format!("http://127.0.0.1:{port}"), protocol: OtlpProtocol::Grpc };
    let dropped = Arc::default();
    let one = tracing(otlp(9), 0.5);
    let first = Tracer::new(Some(&one), None, &dropped).unwrap();
    let same = Tracer::new(Some(&one), Some(&first), &dropped).unwrap();
    assert!(Arc::ptr_eq(first.active.as_ref().unwrap(), same.active.as_ref().unwrap()));
    let other = tracing(otlp(10), 0.5);
    let other = Tracer::new(Some(&other), Some(&first), &dropped).unwrap();
    assert!(!Arc::ptr_eq(first.active.as_ref().unwrap(), other.active.as_ref().unwrap()));
    // A span outlives its tracer's replacement.
    let span = first.server_span(&Fields::default(), false, SystemTime::now());
    drop((first, same));
    drop(span);
    let wrong = tracing(Otlp { endpoint: "not a url".into(), protocol: OtlpProtocol::Grpc }, 1.0);
    assert!(Tracer::new(Some(&wrong), None, &dropped).is_err());
}
