//! Step 5: limits and filters, in the order of the file behind the consumer's own limits. Rules that stand next to each
//! other are judged together. At the end, what was reserved is settled by what was used.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use spillway_config::schema::RouteAuthentication;
use spillway_filter::{Flow, Refusal, RequestView};
use tokio::time::sleep_until;

use super::access::{is_open_to, refused_by_targets, refused_operation};
use super::answers::too_late;
use super::{changing, rewritten};
use crate::clock;
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange, Judged, RequestBody, ServedBy};
use crate::limits::{Estimate, Exhausted, ReservationRequest, Rule, Rules, Subject, Used, exhausted, reserve};
use crate::off_loop::BUILDS_VALUES;
use crate::protocol::OLLAMA;
use crate::telemetry::SpanKind;
use crate::topology::{NamedFilter, Route, TargetKind};

/// Name of a caller's own limits where filters have names.
const OWN_LIMITS: &str = "limits";

/// Runs the filters that need no caller.
pub(super) async fn guards(route: &Route, session: &mut ClientSession, exchange: &mut Exchange) -> Result<(), End> {
    run(&Rules::new(), &route.guards, Judged::default(), session, exchange).await
}

/// Judges what needs only the head and the caller, before a byte of the body is read: rules that count requests are taken
/// from, so that a body which is still on its way counts among those that run; of tokens and budgets it is looked whether
/// anything is left. `route` is `None` while it is not certain.
pub(super) async fn before_body(
    route: Option<&Route>,
    calls_model: bool,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    let consumer = exchange.caller.clone();
    let own = consumer.iter().flat_map(|consumer| consumer.rules.iter());
    let filters = route.map_or(&[][..], |route| &route.filters);
    let all = own.chain(filters.iter().flat_map(|named| &named.rules));
    let mut rules: SmallVec<[&Arc<Rule>; 8]> = all.clone().filter(|rule| rule.is_known_by_head()).collect();
    let limiting = filters.iter().rfind(|named| named.rules.iter().any(|rule| rule.is_known_by_head()));
    let name = limiting.map_or(OWN_LIMITS, |named| &named.name);
    let before = exchange.ledger.entries();
    take(&mut rules, name, session, exchange).await?;
    exchange.judged = Judged { own: true, route: route.is_some(), taken: (before, exchange.ledger.entries()) };
    let refused = {
        let view = view(session, exchange);
        let subject = Subject { view: &view, credential: exchange.credential };
        exhausted(all.filter(|rule| rule.counts_tokens()), subject, calls_model).await
    };
    match refused {
        None => Ok(()),
        Some(spent) => {
            exchange.ledger.release();
            Err(refuse(By::Limit(spent), OWN_LIMITS, exchange))
        }
    }
}

/// Rule or filter that would refuse a request, judged by its head.
enum By<'r> {
    Limit(Exhausted<'r>),
    Filter(Box<Refusal>),
    /// The operation is not for the route.
    Operation(Box<Refusal>),
}

/// Refuses a request, of which nothing is taken.
fn refuse(by: By<'_>, name: &str, exchange: &mut Exchange) -> End {
    if let By::Operation(refusal) = by {
        return End::Refuse(refusal);
    }
    exchange.refused_by = Some(name.to_owned());
    match by {
        By::Operation(refusal) | By::Filter(refusal) => End::Refuse(refusal),
        By::Limit(spent) => {
            let (refusal, shown) = spent.refuse();
            if let Some(shown) = shown {
                exchange.ledger.show(shown);
            }
            End::Refuse(refusal)
        }
    }
}

/// Judges a request whose route only its body can tell, and refuses it where every candidate would refuse it whatever the
/// body says: as the first of them does. Takes nothing. The route is `None` where that is not there for the caller.
pub(super) async fn refused_by_all<'r>(
    candidates: impl Iterator<Item = &'r Arc<Route>>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Option<(Option<&'r Arc<Route>>, End)> {
    let mut first = None;
    for route in candidates {
        let refused =
            if !may_be_open(route, exchange) { None } else { Some(refused_unread(route, session, exchange).await?) };
        first.get_or_insert((route, refused));
    }
    match first? {
        (_, None) => Some((None, super::access::no_route(session))),
        (route, Some((by, name))) => Some((Some(route), refuse(by, name, exchange))),
    }
}

/// True if the caller, or one that is identified once the route is certain, may use the route.
fn may_be_open(route: &Route, exchange: &Exchange) -> bool {
    let is_settled = exchange.caller.is_some() || route.authentication == RouteAuthentication::None;
    !is_settled || is_open_to(route, exchange)
}

/// Refusal of a request by one of the routes that may take it, whatever its body says; `None` where there is none.
async fn refused_unread<'r>(
    route: &'r Arc<Route>,
    session: &ClientSession,
    exchange: &Exchange,
) -> Option<(By<'r>, &'r str)> {
    let mut resolved = exchange.resolved;
    if !resolved.is_certain() {
        let head = session.req_header();
        resolved = rewritten::operation(&head.method, head.uri.path_and_query(), std::iter::once(route));
    }
    if route.calls_models && resolved.is_shared() {
        resolved = resolved.on_models();
    }
    let by_operation = |refusal| (By::Operation(Box::new(refusal)), OWN_LIMITS);
    if let Some(refusal) = refused_operation(route, resolved, exchange) {
        return Some(by_operation(refusal));
    }
    match refused_by_head(route, session, exchange).await {
        ByHead::Refused(by, name) => Some((by, name)),
        ByHead::Answered => None,
        // A filter behind the caller may answer what no server takes.
        ByHead::Passed if route.filters.iter().any(|named| named.acts) => None,
        ByHead::Passed => refused_by_targets(route, resolved).map(by_operation),
    }
}

/// Judgement of a request by its head.
enum ByHead<'r> {
    /// A limit or filter of this name refuses it.
    Refused(By<'r>, &'r str),
    /// A filter answers it, or has to wait for more than the head.
    Answered,
    /// Nothing refuses it.
    Passed,
}

async fn refused_by_head<'r>(route: &'r Route, session: &ClientSession, exchange: &Exchange) -> ByHead<'r> {
    for named in &route.guards {
        let mut view = view(session, exchange);
        let subject = Subject { view: &view, credential: exchange.credential };
        if let Some(spent) = exhausted(named.rules.iter(), subject, false).await {
            return ByHead::Refused(By::Limit(spent), &named.name);
        }
        if !named.acts {
            continue;
        }
        match named.filter.on_request(&mut view) {
            Flow::Refuse(refusal) => return ByHead::Refused(By::Filter(refusal), &named.name),
            // It is asked again when the route is certain; until then there is nothing to observe.
            Flow::Continue | Flow::Observe(_) | Flow::Rewrite(_) => {}
            Flow::Answer(_) | Flow::Wait(_) => return ByHead::Answered,
        }
    }
    // Who is not known yet has another level than it will have.
    if exchange.caller.is_none() && route.authentication != RouteAuthentication::None {
        return ByHead::Passed;
    }
    for named in &route.filters {
        let view = view(session, exchange);
        let subject = Subject { view: &view, credential: exchange.credential };
        if let Some(spent) = exhausted(named.rules.iter(), subject, route.calls_models).await {
            return ByHead::Refused(By::Limit(spent), &named.name);
        }
    }
    ByHead::Passed
}

/// Takes from the consumer's own limits and runs the other filters.
pub(super) async fn filters(route: &Route, session: &mut ClientSession, exchange: &mut Exchange) -> Result<(), End> {
    if let Some(consumer) = exchange.caller.clone() {
        count_with_tokenizer(route, &consumer.rules, exchange).await;
        run(&consumer.rules, &route.filters, exchange.judged, session, exchange).await?;
    } else {
        count_with_tokenizer(route, &Rules::new(), exchange).await;
        run(&Rules::new(), &route.filters, exchange.judged, session, exchange).await?;
    }
    show_held_body(exchange).await
}

/// Shows a body that is held to the observers, whole and once, whatever attempts follow.
async fn show_held_body(exchange: &mut Exchange) -> Result<(), End> {
    let RequestBody::Held(held) = &exchange.body else { return Ok(()) };
    if exchange.observers.is_empty() {
        return Ok(());
    }
    let (body, off_loop) = (held.bytes.clone(), exchange.off_loop.clone());
    // What reads a large body must not hold up the other requests of this thread.
    match off_loop.run(body.len(), || exchange.show_request_body(&body)).await {
        Ok(shown) => Ok(shown?),
        Err(busy) => {
            exchange.ledger.release();
            Err(busy.into())
        }
    }
}

/// Where a model inside will answer, its tokenizer says what the prompt is; only where somebody asks.
async fn count_with_tokenizer(route: &Route, own: &Rules, exchange: &mut Exchange) {
    let counts = own.iter().chain(route.filters.iter().flat_map(|named| &named.rules)).any(|rule| rule.counts_tokens());
    let [target] = route.targets.as_slice() else { return };
    let (TargetKind::Model(model), RequestBody::Held(body), true) = (&target.kind, &exchange.body, counts) else {
        return;
    };
    let deadline = exchange.deadline(route).into_std();
    let asked = (exchange.dialect, exchange.resolved.operation);
    let counted = crate::builtin::prompt_tokens(model, asked, &body.bytes, &exchange.off_loop, deadline).await;
    if let (Some(input), Some(asked)) = (counted, &mut exchange.asked) {
        asked.expected.input = input;
    }
}

/// Request as filters see it.
pub(super) fn view<'a>(session: &'a ClientSession, exchange: &'a Exchange) -> RequestView<'a> {
    exchange.request_view(session.req_header())
}

async fn run(
    own: &Rules,
    filters: &[NamedFilter],
    judged: Judged,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    if own.is_empty() && filters.is_empty() {
        return Ok(());
    }
    let mut span = exchange.span.child("filters", SpanKind::Internal);
    let left = |judged: bool| move |rule: &&Arc<Rule>| !(judged && rule.is_known_by_head());
    let mut rules: SmallVec<[&Arc<Rule>; 8]> = own.iter().filter(left(judged.own)).collect();
    let mut limits = OWN_LIMITS;
    for named in filters {
        if !named.rules.is_empty() {
            rules.extend(named.rules.iter().filter(left(judged.route)));
            limits = &named.name;
        }
        if !named.acts {
            continue;
        }
        take(&mut rules, limits, session, exchange).await?;
        let flow = if named.filter.needs_body() {
            // What reads a large body must not hold up the other requests of this thread.
            let off_loop = exchange.off_loop.clone();
            let mut view = view(session, exchange);
            let weight = view.body.map_or(0, <[u8]>::len).saturating_mul(BUILDS_VALUES);
            let judged = off_loop.run(weight, || named.filter.on_request(&mut view)).await;
            judged.inspect_err(|_| exchange.ledger.release())?
        } else {
            named.filter.on_request(&mut view(session, exchange))
        };
        let refusal = match flow {
            Flow::Continue => None,
            Flow::Observe(observer) => {
                exchange.observers.add(&named.name, observer);
                None
            }
            Flow::Rewrite(rewrite) => {
                // Boxed, because few filters change bodies: the other requests need not hold this state.
                Box::pin(changing::apply(*rewrite, &named.name, session, exchange)).await?;
                None
            }
            Flow::Answer(answer) => {
                span.event("answered", &named.name);
                return Err(End::Answer(answer));
            }
            Flow::Refuse(refusal) => Some(refusal),
            Flow::Wait(waiting) => {
                let waited = Box::pin(awaited(waiting, session, exchange)).await?;
                if !waited.delay.is_zero() {
                    Box::pin(hold_up(waited.delay, session, exchange)).await?;
                }
                if let Some(reason) = &waited.failure
                    && let Some(route) = &exchange.route
                {
                    route.metrics.filter_failures.inc();
                    tracing::debug!(event = "filter_failed", route = route.name, filter = named.name, reason);
                }
                if let Some(answer) = waited.served {
                    span.event("answered", &named.name);
                    return Err(End::Answer(answer));
                }
                if let Some(answer) = waited.answer {
                    exchange.refused_by = Some(named.name.clone());
                    span.event("refused", &named.name);
                    return Err(End::Answer(answer));
                }
                if let Some(picked) = waited.endpoints {
                    exchange.picked = Some(picked.into());
                }
                exchange.request_headers.extend(waited.request_headers);
                if waited.refusal.is_none() {
                    if let Some(observer) = waited.observer {
                        exchange.observers.add(&named.name, observer);
                    }
                    if !waited.rewrite.is_empty() {
                        Box::pin(changing::apply(waited.rewrite, &named.name, session, exchange)).await?;
                    }
                }
                waited.refusal
            }
        };
        if let Some(refusal) = refusal {
            // It stays counted as a request: a limit in front of a server that judges also limits guesses. The tokens that
            // were reserved for it come back at its end.
            exchange.refused_by = Some(named.name.clone());
            span.event("refused", &named.name);
            return Err(End::Refuse(refusal));
        }
    }
    take(&mut rules, limits, session, exchange).await
}

/// Holds a request up for a filter, until its deadline at most and while its client stays.
async fn hold_up(delay: Duration, session: &mut ClientSession, exchange: &Exchange) -> Result<(), End> {
    awaited(sleep_until(clock::now() + delay), session, exchange).await
}

/// Result of a filter's wait, which ends at the deadline of the request at the latest, and with its client.
async fn awaited<T>(
    waiting: impl Future<Output = T>,
    session: &mut ClientSession,
    exchange: &Exchange,
) -> Result<T, End> {
    let route = exchange.route.as_ref();
    let late = async {
        match route {
            Some(route) => {
                sleep_until(exchange.deadline(route)).await;
                route
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        waited = waiting => Ok(waited),
        route = late => Err(too_late(route, exchange)),
        _ = session.read_body_or_idle(true) => Err(End::ClientGone),
    }
}

/// Takes from rules, all together, and forgets them.
async fn take(
    rules: &mut SmallVec<[&Arc<Rule>; 8]>,
    name: &str,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    if rules.is_empty() {
        return Ok(());
    }
    // Only a call of a model uses tokens.
    let is_model_call = exchange.route.as_ref().is_some_and(|route| route.calls_models);
    let asked = exchange.asked.as_ref().filter(|_| is_model_call);
    let expected =
        asked.map(|asked| (asked.expected, exchange.snapshot.prices.expected(asked.expected, asked.model.as_deref())));
    let claims: SmallVec<[ReservationRequest<'_>; 8]> = {
        let view = view(session, exchange);
        let subject = Subject { view: &view, credential: exchange.credential };
        rules.iter().filter_map(|rule| rule.reservation(subject, expected)).collect()
    };
    let reserved = reserve(&claims, &mut exchange.ledger).await;
    drop(claims);
    rules.clear();
    if let Some(refusal) = exchange.ledger.take_exceeded() {
        exchange.over_limit.get_or_insert((name.to_owned(), refusal));
    }
    reserved.map_err(|refusal| {
        exchange.refused_by = Some(name.to_owned());
        End::Refuse(refusal)
    })
}

/// Corrects what was reserved: by the usage that the answer told, else by counting, else to nothing where nobody answered or
/// the answer is an error. The prompt of a caller who leaves while it is worked on counts: else leaving before the first byte
/// would make every prompt free.
pub(super) fn settle(exchange: &mut Exchange) {
    let is_priced =
        exchange.route.as_ref().is_some_and(|route| route.calls_models) && !exchange.snapshot.prices.is_empty();
    if !is_priced && !exchange.ledger.counts_tokens() {
        return;
    }
    let used = used(exchange);
    exchange.ledger.settle(used);
    if is_priced && used.tokens() > 0 {
        count_cost(exchange, used);
    }
}

/// Adds an answer to the costs of its caller. What a socket used is counted with each of its answers.
fn count_cost(exchange: &Exchange, used: Used) {
    let is_inside = matches!(exchange.outcome.served_by, ServedBy::Model(_));
    let answered = answered_model(exchange);
    let asked = exchange.asked.as_ref().and_then(|asked| asked.model.as_deref());
    let model = exchange.snapshot.prices.name_of(answered.as_deref(), asked, is_inside);
    // A built-in model without a price costs nothing on purpose; a server without one is missed in a bill.
    if model.is_some() || !is_inside {
        exchange.snapshot.limits.costs().add(exchange.payer(), model, used);
    }
}

/// Name of the model that answered, in the spelling that all names of it have in common.
pub(super) fn answered_model(exchange: &Exchange) -> Option<Cow<'_, str>> {
    let is_folded = exchange.asked.as_ref().is_some_and(|asked| asked.is_folded);
    // The server repeats the spelling that it got.
    let answered = exchange.outcome.model_answered.as_deref();
    answered.map(|name| if is_folded { Cow::Owned(OLLAMA.folded_model(name)) } else { Cow::Borrowed(name) })
}

/// Tokens that a request has used, and their cost.
pub(super) fn used(exchange: &Exchange) -> Used {
    let o = &exchange.outcome;
    let is_inside = matches!(o.served_by, ServedBy::Model(_));
    let answered = !matches!(o.served_by, ServedBy::Gateway) && (200..300).contains(&o.status);
    let mut used = Used::default();
    // An error in place of an answer costs as little with a status of success as with its own.
    // An answer whose head was sent is judged by its status: a client that leaves an error pays no more than one that stays.
    if (answered && !o.is_error) || (o.left_at_work && o.status == 0) || o.is_answer_unread {
        let expected = exchange.asked.as_ref().map(|asked| asked.expected).unwrap_or_default();
        used.input = o.prompt_tokens.unwrap_or(expected.input);
        used.cached = o.cached_tokens.unwrap_or(0);
        used.cache_written = o.cache_written_tokens.unwrap_or(0);
        used.cache_written_1h = o.cache_written_1h_tokens.unwrap_or(0);
        used.output = written(exchange, expected);
        let asked = exchange.asked.as_ref().and_then(|asked| asked.model.as_deref());
        let answered = answered_model(exchange);
        used.nanos = exchange.snapshot.prices.of(used, answered.as_deref(), asked, is_inside);
    }
    used
}

/// Tokens written: those that the usage of the answer told, and those of the text that came after it. A server may tell its
/// usage at the end of an answer that its caller does not wait for. Where the text is not found, all bytes count; where it is
/// written later, what was expected.
fn written(exchange: &Exchange, expected: Estimate) -> u64 {
    let o = &exchange.outcome;
    let told = o.completion_tokens.unwrap_or(0);
    if !exchange.resolved.writes_tokens {
        return told;
    }
    if o.is_deferred && o.completion_tokens.is_none() {
        return expected.output;
    }
    if o.completion_tokens.is_some() || o.is_text_known {
        return told.saturating_add(Estimate::of_written(o.unreported.bytes, o.unreported.events));
    }
    // What a caller left unread was written for it all the same.
    Estimate::of_written(o.bytes_out.max(o.bytes_answered), 0)
}
