//! Checks of `feedback`.

use super::{Context, at, callers};
use crate::path;
use crate::schema::{Config, Feedback, PathMatch, RouteAuthentication};

/// Name of the gateway's own route in metrics, logs and spans.
const ROUTE: &str = "feedback";
/// Longest time for labels, in seconds: 90 days. Of an older answer no caller knows what it was.
const MAX_KEEP: u64 = 90 * 24 * 3600;

pub(super) fn all(cx: &mut Context<'_>) {
    let config = cx.config;
    let Some(feedback) = &config.feedback else { return };
    if !callers::anybody(cx) {
        let message = "no caller can be identified, so anybody could label any request: give consumers keys, tokens or \
                       certificates, or remove `feedback`";
        cx.error(at!["feedback"], message);
    } else if feedback.scopes.is_empty() && config.routes.iter().all(|route| is_anonymous(route.authentication)) {
        let message = "no effect: every route has `authentication: none`, so no request belongs to a consumer that may label \
                       it; let a route require callers, or name `scopes`";
        cx.error(at!["feedback"], message);
    }
    if !calls_models(cx) {
        cx.error(at!["feedback"], "no effect: no route calls models, and only their answers can be labelled");
    }
    listener(cx, feedback);
    served_path(cx, feedback);
    if config.authentication.as_ref().is_none_or(|authentication| authentication.jwt.is_empty()) {
        if !feedback.scopes.is_empty() {
            let message =
                "no effect without `authentication.jwt`: only tokens have scopes; add an issuer, or remove this";
            cx.error(at!["feedback", "scopes"], message);
        }
    } else if let Some(n) = feedback.scopes.iter().position(|scope| scope.is_empty() || scope.contains(' ')) {
        cx.error(at!["feedback", "scopes", n], "no token has this scope; expected a name without blanks");
    }
    if !(1..=MAX_KEEP).contains(&feedback.remember.keep.0.as_secs()) {
        let message = format!("found {}; expected 1s to 90d", feedback.remember.keep);
        cx.error(at!["feedback", "remember", "for"], message);
    }
    if !(1 << 10..=1 << 20).contains(&feedback.max_body.0) {
        cx.error(at!["feedback", "maxBody"], format!("found {}; expected 1KiB to 1MiB", feedback.max_body));
    }
}

/// True for a route whose callers are never identified.
fn is_anonymous(authentication: Option<RouteAuthentication>) -> bool {
    authentication == Some(RouteAuthentication::None)
}

/// True if a route has a target that calls models.
fn calls_models(cx: &Context<'_>) -> bool {
    let mut references = cx.config.routes.iter().flat_map(|route| &route.backend_refs);
    references.any(|reference| match &reference.name {
        Some(backend) => cx.index.calls_models(backend),
        None => reference.model.is_some(),
    })
}

fn listener(cx: &mut Context<'_>, feedback: &Feedback) {
    let Some(named) = &feedback.listener else { return };
    let known: Vec<&str> = cx.config.listeners.iter().filter_map(|listener| listener.name.as_deref()).collect();
    if !known.contains(&named.as_str()) {
        cx.unknown(at!["feedback", "listener"], "listener", named, &known);
    }
}

/// Checks that requests can have the path, and that nothing else was written to answer it.
fn served_path(cx: &mut Context<'_>, feedback: &Feedback) {
    let (at, written) = (at!["feedback", "path"], &feedback.path);
    let normal = path::normal(written).ok().filter(|normal| normal == written);
    if !written.starts_with('/') || written.contains(['?', '#', '%']) || normal.is_none() {
        let message = format!("`{written}` is not a path in its normal form; expected one such as /v1/feedback");
        cx.error(at, message);
        return;
    }
    let is_health = |listener: &crate::schema::Listener| {
        let is_here = feedback.listener.is_none() || feedback.listener == listener.name;
        is_here && listener.health_path.as_deref() == Some(written)
    };
    if cx.config.listeners.iter().any(is_health) {
        cx.error(at.clone(), format!("`{written}` is the `healthPath` of a listener: give one of them another"));
    }
    if let Some((route, n, m)) = exact(cx.config, written) {
        let place = (cx.place)(at!["routes", n, "matches", m, "path"]);
        let message = format!(
            "route `{route}` serves exactly `{written}` ({place}), and would never get it: give `feedback` another `path`, or \
             remove the match"
        );
        cx.error(at, message);
    }
    if let Some(n) = cx.config.routes.iter().position(|route| route.name.as_deref() == Some(ROUTE)) {
        let message = "`feedback` is the name of the gateway's own route in metrics and logs: give this one another";
        cx.error(at!["routes", n, "name"], message);
    }
}

/// Name and place of the first match that was made for a path.
fn exact<'c>(config: &'c Config, path: &str) -> Option<(&'c str, usize, usize)> {
    config.routes.iter().enumerate().find_map(|(n, route)| {
        let m =
            route.matches.iter().position(|one| matches!(&one.path, Some(PathMatch::Exact(exact)) if exact == path))?;
        Some((route.name.as_deref().unwrap_or("default"), n, m))
    })
}
