//! Spans of requests that were not sampled when they began, and that are kept by how they end: held in bounded memory until the
//! request says so. Spans come from the processor of the pipeline and go back to it, or are dropped.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use opentelemetry::trace::{SpanContext, TraceFlags};
use opentelemetry_sdk::trace::SpanData;
use parking_lot::Mutex;

/// Most spans that are held of one request: retries and filters make some ten.
const MAX_OF_ONE: usize = 64;
/// Most spans that are held of all requests, of at most some kilobytes each.
const MAX_HELD: usize = 16_384;

thread_local! {
    /// Request whose span ends in this call of OpenTelemetry's library.
    static ENDING: RefCell<Option<Arc<Tail>>> = const { RefCell::new(None) };
}

/// Queue of the spans that are kept.
pub(super) trait KeptSpans: Send + Sync {
    /// Queues a span for the collector.
    fn send(&self, span: SpanData);
    /// Counts spans that are not sent, with the reason.
    fn lost(&self, spans: usize, why: &dyn std::fmt::Display);
    /// Number of spans whose requests have not ended.
    fn held(&self) -> &HeldSpans;
}

/// Spans of one request until its end.
pub(super) struct Tail {
    state: Mutex<TailState>,
    queue: Arc<dyn KeptSpans>,
}

#[derive(Default)]
struct TailState {
    decision: Option<bool>,
    spans: Vec<SpanData>,
    /// Spans that found no room.
    lost: usize,
}

/// Number of spans that are held.
#[derive(Debug, Default)]
pub(super) struct HeldSpans(AtomicUsize);

impl HeldSpans {
    /// Counts a further span; false where there is no room.
    fn grow(&self) -> bool {
        let is_room = self.0.fetch_add(1, Ordering::Relaxed) < MAX_HELD;
        if !is_room {
            self.shrink(1);
        }
        is_room
    }

    fn shrink(&self, spans: usize) {
        self.0.fetch_sub(spans, Ordering::Relaxed);
    }
}

impl Tail {
    pub(super) fn new(queue: Arc<dyn KeptSpans>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), queue })
    }

    /// Ends a span of the request by `end`, so that its data comes here.
    pub(super) fn collect(self: &Arc<Self>, end: impl FnOnce()) {
        let before = ENDING.replace(Some(self.clone()));
        end();
        ENDING.set(before);
    }

    /// Takes a span that was not sampled and has ended on this thread.
    pub(super) fn take(span: SpanData) {
        if let Some(tail) = ENDING.with_borrow(Clone::clone) {
            tail.ended(span);
        }
    }

    fn ended(&self, span: SpanData) {
        let mut state = self.state.lock();
        match state.decision {
            Some(true) => {
                drop(state);
                self.queue.send(sampled(span));
            }
            Some(false) => {}
            None if state.spans.len() < MAX_OF_ONE && self.queue.held().grow() => state.spans.push(span),
            None => state.lost += 1,
        }
    }

    /// Sends the spans of the request, or drops them; those that end later too.
    pub(super) fn decide(&self, is_kept: bool) {
        let (spans, lost) = {
            let mut state = self.state.lock();
            state.decision = Some(is_kept);
            (std::mem::take(&mut state.spans), std::mem::take(&mut state.lost))
        };
        self.queue.held().shrink(spans.len());
        if is_kept {
            for span in spans {
                self.queue.send(sampled(span));
            }
            if lost > 0 {
                self.queue.lost(lost, &"too many spans wait for the ends of their requests");
            }
        }
    }

    /// True if the spans of the request are sent.
    pub(super) fn is_kept(&self) -> bool {
        self.state.lock().decision == Some(true)
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let spans = self.state.get_mut().spans.len();
        self.queue.held().shrink(spans);
    }
}

/// Marks a span as one of a trace that is sent.
fn sampled(mut span: SpanData) -> SpanData {
    let context = &span.span_context;
    let flags = context.trace_flags() | TraceFlags::SAMPLED;
    let state = context.trace_state().clone();
    span.span_context = SpanContext::new(context.trace_id(), context.span_id(), flags, context.is_remote(), state);
    span
}
