//! Checks of a route for lack of room and failed attempts: queues, spills, retries and hedges that could never take
//! effect, or would do harm.

use crate::catalog::ExpressionPlace;
use crate::schema::{BackendProtocol, Queue, Route};

use super::{Context, at};

pub(super) fn all(cx: &mut Context<'_>, n: usize, route: &Route) {
    queue(cx, n, route);
    spill(cx, n, route);
    retry(cx, n, route);
}

/// Checks a queue: it must have room and time, and a backend to wait for.
fn queue(cx: &mut Context<'_>, n: usize, route: &Route) {
    let Some(queue) = route.when_saturated.as_ref().and_then(|w| w.queue.as_ref()) else { return };
    let at = |key: &str| at!["routes", n, "whenSaturated", "queue", key];
    if queue.max_wait.0.is_zero() {
        cx.error(at("maxWait"), "0s is no queue; expected a longer wait, or leave the queue out");
    } else if queue.max_wait >= route.timeouts.request {
        let limit = route.timeouts.request;
        let message = format!(
            "the whole request has only {limit} (timeouts.request), so a request that waited would get no answer; expected less"
        );
        cx.error(at("maxWait"), message);
    } else if let Some(limit) = route.timeouts.first_token.filter(|limit| queue.max_wait >= *limit) {
        let message = format!(
            "a stream's first token must be there within {limit} (timeouts.firstToken), waits included; expected less"
        );
        cx.warn(at("maxWait"), message);
    }
    if queue.max_depth.get() > Queue::MOST {
        cx.error(
            at("maxDepth"),
            format!(
                "found {}; expected at most {}: a longer queue only makes answers late",
                queue.max_depth,
                Queue::MOST
            ),
        );
    }
    if !route.backend_refs.is_empty() && route.backend_refs.iter().all(|reference| reference.name.is_none()) {
        let message = "no backend of this route could become free, and a built-in model has a queue of its own: use its `maxQueue`";
        cx.error(at!["routes", n, "whenSaturated", "queue"], message);
    }
}

/// Checks the limits on spills: the route must have a spill, and some request must meet them.
fn spill(cx: &mut Context<'_>, n: usize, route: &Route) {
    let Some(spill) = &route.spill else { return };
    let saturated = route.when_saturated.as_ref().is_some_and(|w| w.spill_to.is_some());
    if !saturated && route.when_unavailable.as_ref().is_none_or(|w| w.spill_to.is_none()) {
        cx.error(
            at!["routes", n, "spill"],
            "no effect, because this route has no `whenSaturated.spillTo`: name there what answers instead",
        );
    }
    for (key, list) in [("models", &spill.models), ("tenants", &spill.tenants)] {
        if list.as_ref().is_some_and(Vec::is_empty) {
            cx.error(
                at!["routes", n, "spill", key],
                "an empty list lets nothing spill; expected names, or leave `spillTo` out",
            );
        }
    }
    let config = cx.config;
    // Only a warning: tenants may also come from tokens.
    let tenants: Vec<&str> = config.consumers.iter().map(|c| c.tenant.as_deref().unwrap_or(&c.name)).collect();
    for (t, tenant) in spill.tenants.iter().flatten().enumerate() {
        if !tenants.contains(&tenant.as_str()) {
            let message = format!(
                "no consumer of this file belongs to tenant `{tenant}`: name another, or give it to a consumer"
            );
            cx.warn(at!["routes", n, "spill", "tenants", t], message);
        }
    }
    if let Some(when) = &spill.when
        && let Err(message) = cx.options.catalog.check_expression(when, ExpressionPlace::Request)
    {
        cx.error(at!["routes", n, "spill", "when"], message);
    }
    if spill.percent == Some(0.0) {
        cx.warn(
            at!["routes", n, "spill", "percent"],
            "nothing spills at 0 percent; expected more, or leave `spillTo` out",
        );
    }
}

/// Checks retries and hedges: they must be possible, and must not act twice.
fn retry(cx: &mut Context<'_>, n: usize, route: &Route) {
    let retry = &route.retry;
    if retry.backoff.base > retry.backoff.max {
        let message =
            format!("{} is longer than backoff.max ({}); expected at most that", retry.backoff.base, retry.backoff.max);
        cx.error(at!["routes", n, "retry", "backoff", "base"], message);
    }
    let Some(hedge) = &retry.hedge else { return };
    let at = |key: &str| at!["routes", n, "retry", "hedge", key];
    let limit = route.timeouts.backend_request.unwrap_or(route.timeouts.request).min(route.timeouts.request);
    if hedge.after >= limit {
        cx.error(
            at("after"),
            format!("an attempt ends after {limit} at the latest, so there would never be a hedge; expected less"),
        );
    }
    if hedge.max.get() > 3 {
        cx.error(
            at("max"),
            format!("found {}; expected at most 3 attempts beside the first, to spare the servers", hedge.max),
        );
    }
    let index = cx.index;
    let speaks_model =
        |name: &str| index.backends.get(name).is_some_and(|backend| backend.protocol != BackendProtocol::Http);
    let idempotent = |method: &str| matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE");
    let never = !route.matches.is_empty()
        && route.matches.iter().all(|m| m.method.as_deref().is_some_and(|method| !idempotent(method)))
        && !route.backend_refs.iter().any(|r| r.name.as_deref().is_some_and(speaks_model));
    if never {
        let message = "this route takes only methods that are not idempotent, and a second attempt would act twice: remove `hedge`";
        cx.error(at!["routes", n, "retry", "hedge"], message);
    }
}
