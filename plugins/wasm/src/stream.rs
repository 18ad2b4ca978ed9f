//! The stream of one exchange in an instance: what happens of the exchange is shown to the module, and what the module has
//! decided is read back. Ends with the exchange, however that ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use http::{StatusCode, header};
use parking_lot::Mutex;
use spillway_filter::{
    Answer, AnswerHead, EventChange, ExchangeEnd, Fields, HeaderChange, Headers, HttpClient, Observer, Refusal,
    RequestView, ResponseEvent, Rewrite, Rewriter, Waited,
};

use crate::context::{CallAnswer, CallAsked, Context};
use crate::failure::Failure;
use crate::instance::{Action, Instance};
use crate::pool::{Place, Pool, refused};

/// Most bytes of a stream of events that a module may hold back.
const MAX_HELD: usize = 1 << 20;

/// Decision of a module about a request.
pub(crate) enum Verdict {
    /// The request goes on.
    Pass,
    /// The module answers it.
    Answer(Box<Answer>),
    /// Waits for these calls.
    Wait(Vec<CallAsked>),
}

/// Stream of an exchange.
pub(crate) struct Stream {
    pool: Arc<Pool>,
    place: Place,
    id: u32,
    /// Changes of the answer's head that were decided before the head is sent, and what became of them.
    head: Mutex<HeadState>,
    has_ended: AtomicBool,
}

#[derive(Default)]
enum HeadState {
    /// The module has not seen the head.
    #[default]
    Unseen,
    /// Done, with these changes.
    Seen(Vec<HeaderChange>),
    /// Failed.
    Failed,
}

impl Stream {
    /// Begins a stream, and shows it the request. `shows_body` is false where the module must not read it.
    ///
    /// # Errors
    ///
    /// The module fails, or no instance is there.
    pub(crate) fn begin(
        pool: &Arc<Pool>,
        view: &RequestView<'_>,
        shows_body: bool,
    ) -> Result<(Self, Verdict), Failure> {
        let mut context = Context::of(view);
        let body = view.body.filter(|_| shows_body).unwrap_or_default();
        context.request_body = crate::context::Buffer::of(Bytes::copy_from_slice(body));
        let ends = if view.body.is_some() { view.body.is_none_or(<[u8]>::is_empty) } else { has_no_body(view.headers) };
        let has_body = !body.is_empty();
        let (place, (id, verdict)) = pool.with_any(|instance| {
            let id = instance.create(context)?;
            match show_request(instance, id, ends, has_body) {
                Ok(verdict) => Ok((id, verdict)),
                Err(failure) => {
                    // Nobody ends a stream that has not begun. An instance that has crashed is gone with it.
                    if !failure.is_crash() {
                        let _ = instance.end(id);
                    }
                    Err(failure)
                }
            }
        })?;
        let (head, has_ended) = (Mutex::default(), AtomicBool::new(false));
        Ok((Self { pool: pool.clone(), place, id, head, has_ended }, verdict))
    }

    fn with<R>(&self, work: impl FnOnce(&mut Instance) -> Result<R, Failure>) -> Result<R, Failure> {
        self.pool.with(self.place, work)
    }

    /// Makes calls and tells the module of their answers, until it decides.
    pub(crate) async fn wait(self, calls: Vec<CallAsked>, http: Arc<dyn HttpClient>, rewrites: bool) -> Waited {
        let deadline = Instant::now() + self.pool.facts().wait;
        let mut pending = FuturesUnordered::new();
        let begin = |call: CallAsked| {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = call.timeout.min(left);
            let answer = http.call(call.request, timeout);
            async move { (call.id, answer.await) }
        };
        pending.extend(calls.into_iter().map(begin));
        while let Some((call, answer)) = pending.next().await {
            if let Err(error) = &answer {
                let (route, module) = (self.pool.facts().route.as_str(), self.pool.facts().name.as_str());
                tracing::debug!(event = "wasm_call_failed", route, module, reason = %error);
            }
            let (id, others) = (self.id, !pending.is_empty());
            let verdict = self.with(|instance| {
                instance.call_answered(call, answer.ok().map(CallAnswer::of))?;
                judge(instance, id, others)
            });
            match verdict {
                Ok(Verdict::Answer(answer)) => return Waited { served: Some(answer), ..Waited::default() },
                Ok(Verdict::Wait(calls)) => pending.extend(calls.into_iter().map(begin)),
                // An answer of another call may still change the request.
                Ok(Verdict::Pass) if pending.is_empty() => return self.passes(rewrites),
                Ok(Verdict::Pass) => {}
                Err(failure) => return failed(&self.pool, &failure),
            }
        }
        failed(&self.pool, &Failure::PausedForever)
    }

    fn passes(self, rewrites: bool) -> Waited {
        let pool = self.pool.clone();
        match self.follow(rewrites) {
            Ok(rewrite) => Waited { rewrite, ..Waited::default() },
            Err(failure) => failed(&pool, &failure),
        }
    }

    /// Lets the request pass with the changes of the module, and follows the exchange.
    ///
    /// # Errors
    ///
    /// The instance has crashed.
    pub(crate) fn follow(self, rewrites: bool) -> Result<Rewrite, Failure> {
        let id = self.id;
        let (request_headers, body) = self.with(|instance| {
            let context = instance.context(id)?;
            context.request.is_settled = true;
            context.may_answer = false;
            Ok((context.request.take_changes(), context.request_body.take_changed()))
        })?;
        let hooks = self.pool.hooks();
        let rewrites = rewrites && hooks.response_body;
        if !rewrites && !hooks.response_headers && !hooks.end {
            return Ok(Rewrite { body, request_headers, ..Rewrite::default() });
        }
        let stream = Arc::new(self);
        let rewriter = rewrites.then(|| Box::new(Body { stream: stream.clone(), held: 0 }) as Box<dyn Rewriter>);
        Ok(Rewrite {
            body,
            request_headers,
            rewriter,
            observer: Some(Box::new(Follower(stream))),
            ..Rewrite::default()
        })
    }

    /// Shows the head of the answer to the module.
    fn show_head(&self, status: StatusCode, headers: &dyn Headers) -> Result<Vec<HeaderChange>, Failure> {
        let id = self.id;
        let length = headers.get(&header::CONTENT_LENGTH);
        let ends =
            matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) || length.is_some_and(|n| n == "0");
        self.with(|instance| {
            instance.context(id)?.answered(status, headers);
            instance.response_headers(id, ends)?;
            let response = instance.context(id)?.response.as_mut();
            Ok(response.map(|response| {
                let changes = response.take_changes();
                response.is_settled = true;
                changes
            }))
        })
        .map(Option::unwrap_or_default)
    }

    /// Ends the stream, once.
    fn end(&self) {
        if !self.has_ended.swap(true, Ordering::AcqRel) {
            self.pool.end(self.place, self.id);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end();
    }
}

/// Shows a request to the module.
fn show_request(instance: &mut Instance, id: u32, ends: bool, has_body: bool) -> Result<Verdict, Failure> {
    let action = instance.request_headers(id, ends)?;
    instance.context(id)?.is_paused = action == Action::Pause;
    // A module that pauses at the head may want to read the body first.
    if has_body && instance.context(id)?.local.is_none() {
        let action = instance.request_body(id)?;
        instance.context(id)?.is_paused = action == Action::Pause;
    }
    judge(instance, id, false)
}

/// Decision of the module after a hook. `waits` is true while calls are under way.
fn judge(instance: &mut Instance, id: u32, waits: bool) -> Result<Verdict, Failure> {
    let context = instance.context(id)?;
    if let Some(answer) = context.local.take() {
        return Ok(Verdict::Answer(Box::new(answer)));
    }
    let asked = std::mem::take(&mut context.asked);
    if !asked.is_empty() {
        return Ok(Verdict::Wait(asked));
    }
    if context.is_paused && !waits { Err(Failure::PausedForever) } else { Ok(Verdict::Pass) }
}

/// Result of a wait that failed.
pub(crate) fn failed(pool: &Pool, failure: &Failure) -> Waited {
    pool.report(failure);
    let refusal = (!pool.is_open()).then(refused);
    Waited { refusal, failure: Some(failure.to_string()), ..Waited::default() }
}

/// True for a request whose headers announce no body.
fn has_no_body(headers: &Fields) -> bool {
    !headers.contains_key(header::TRANSFER_ENCODING)
        && headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0")
}

/// Follows the exchange for a module.
struct Follower(Arc<Stream>);

impl Observer for Follower {
    fn on_response_head(&mut self, status: StatusCode, headers: &mut dyn Headers) {
        let seen = std::mem::take(&mut *self.0.head.lock());
        let changes = match seen {
            HeadState::Seen(changes) => changes,
            HeadState::Failed => return,
            HeadState::Unseen if !self.0.pool.hooks().response_headers => return,
            HeadState::Unseen => match self.0.show_head(status, headers) {
                Ok(changes) => changes,
                Err(failure) => return self.0.pool.report(&failure),
            },
        };
        changes.iter().for_each(|change| change.apply(headers));
    }

    fn on_end(&mut self, _: &ExchangeEnd<'_>) {
        self.0.end();
    }
}

/// Shows the body of the answer to a module, and changes it.
struct Body {
    stream: Arc<Stream>,
    /// Bytes of a stream of events that the module holds back.
    held: usize,
}

impl Body {
    fn show(&mut self, part: &[u8], ends: bool) -> Result<Shown, Failure> {
        let id = self.stream.id;
        let has_failed = matches!(*self.stream.head.lock(), HeadState::Failed);
        if has_failed {
            return Err(Failure::Gone);
        }
        let held = self.held;
        let shown = self.stream.with(|instance| {
            let buffer = &mut instance.context(id)?.response_body;
            let whole =
                if held == 0 { Bytes::copy_from_slice(part) } else { [&buffer.bytes()[..], part].concat().into() };
            if whole.len() > MAX_HELD && held > 0 {
                return Err(Failure::HeldTooMuch(MAX_HELD));
            }
            *buffer = crate::context::Buffer::of(whole);
            let action = instance.response_body(id, ends)?;
            let buffer = &mut instance.context(id)?.response_body;
            let changed = buffer.take_changed();
            if action == Action::Pause && !ends {
                return Ok(Shown::Held(buffer.bytes().len()));
            }
            Ok(match changed {
                None if held == 0 => Shown::Kept,
                None => Shown::Changed(buffer.bytes().clone()),
                Some(changed) => Shown::Changed(changed),
            })
        })?;
        self.held = if let Shown::Held(length) = shown { length } else { 0 };
        Ok(shown)
    }

    /// Refusal of an answer whose module has failed; `None` where it passes.
    fn failed(&self, failure: &Failure) -> Option<Box<Refusal>> {
        self.stream.pool.report(failure);
        (!self.stream.pool.is_open()).then(refused)
    }
}

/// Result for a part of an answer.
enum Shown {
    Kept,
    Changed(Bytes),
    Held(usize),
}

impl Rewriter for Body {
    fn reads(&self, head: &AnswerHead<'_>) -> bool {
        let mut seen = self.stream.head.lock();
        if matches!(*seen, HeadState::Unseen) {
            // The module sees the head before the body, and the body is read before the head is sent.
            *seen = match self.stream.show_head(head.status, head.headers) {
                Ok(changes) => HeadState::Seen(changes),
                Err(failure) => {
                    self.stream.pool.report(&failure);
                    HeadState::Failed
                }
            };
        }
        !matches!(*seen, HeadState::Failed) || !self.stream.pool.is_open()
    }

    fn whole(&mut self, body: &[u8]) -> Result<Option<Bytes>, Box<Refusal>> {
        match self.show(body, true) {
            Ok(Shown::Changed(changed)) => Ok(Some(changed)),
            Ok(Shown::Kept | Shown::Held(_)) => Ok(None),
            Err(failure) => self.failed(&failure).map_or(Ok(None), Err),
        }
    }

    fn event(&mut self, event: &ResponseEvent<'_>) -> EventChange {
        match self.show(event.bytes, false) {
            Ok(Shown::Kept) => EventChange::Keep,
            Ok(Shown::Changed(changed)) => EventChange::Replace(changed),
            Ok(Shown::Held(_)) => EventChange::Drop,
            Err(failure) => self.failed(&failure).map_or(EventChange::Keep, EventChange::Refuse),
        }
    }

    fn end(&mut self) -> Result<Bytes, Box<Refusal>> {
        match self.show(b"", true) {
            Ok(Shown::Changed(rest)) => Ok(rest),
            Ok(Shown::Kept | Shown::Held(_)) => Ok(Bytes::new()),
            Err(failure) => self.failed(&failure).map_or(Ok(Bytes::new()), Err),
        }
    }
}
