//! Checks of `batch`, and of the routes that say `batch: true`.

use std::ops::RangeInclusive;

use super::{Context, at, callers};
use crate::schema::{Batch, Config, PathMatch, RouteAuthentication};
use crate::values::Size;

/// Name of the gateway's own route in metrics, logs and spans.
const ROUTE: &str = "batches";
/// Paths that the gateway answers itself.
const PATHS: [&str; 2] = ["/v1/files", "/v1/batches"];
/// Longest `completion_window`, in seconds: 30 days.
const MAX_WINDOW: u64 = 30 * 24 * 3600;
/// Longest time for which files are kept, in seconds: a year.
const MAX_KEEP: u64 = 365 * 24 * 3600;
/// Bounds of one line and of one answer, bytes. Each is held in memory.
const LINE: RangeInclusive<u64> = 1 << 10..=64 << 20;
/// Bounds of one file, bytes.
const FILE: RangeInclusive<u64> = 1 << 10..=4 << 30;

pub(super) fn all(cx: &mut Context<'_>) {
    let config = cx.config;
    let Some(batch) = &config.batch else {
        if let Some(n) = config.routes.iter().position(|route| route.batch) {
            let message =
                "no effect without `batch`, which says where files of requests are kept; add it, or remove this";
            cx.error(at!["routes", n, "batch"], message);
        }
        return;
    };
    if !callers::anybody(cx) {
        let message = "no caller can be identified, so files and batches would belong to nobody: give consumers keys, tokens \
                       or certificates, or remove `batch`";
        cx.error(at!["batch"], message);
    }
    routes(cx);
    if let Some(named) = &batch.listener {
        let known: Vec<&str> = config.listeners.iter().filter_map(|listener| listener.name.as_deref()).collect();
        if !known.contains(&named.as_str()) {
            cx.unknown(at!["batch", "listener"], "listener", named, &known);
        }
    }
    if batch.max_share.is_nan() || batch.max_share <= 0.0 || batch.max_share > 1.0 {
        let message = format!("found {}; expected more than 0 and at most 1", batch.max_share);
        cx.error(at!["batch", "maxShare"], message);
    }
    sizes(cx, batch);
    if !(1..=MAX_WINDOW).contains(&batch.max_window.0.as_secs()) {
        cx.error(at!["batch", "maxWindow"], format!("found {}; expected 1s to 30d", batch.max_window));
    }
    if !(60..=MAX_KEEP).contains(&batch.keep.0.as_secs()) {
        cx.error(at!["batch", "keep"], format!("found {}; expected 1m to 365d", batch.keep));
    }
    served_paths(cx, config);
}

fn sizes(cx: &mut Context<'_>, batch: &Batch) {
    let mut within = |key: &str, found: Size, bounds: RangeInclusive<u64>, expected: &str| {
        if !bounds.contains(&found.0) {
            cx.error(at!["batch", key], format!("found {found}; expected {expected}"));
        }
    };
    within("maxFile", batch.max_file, FILE, "1KiB to 4GiB");
    within("maxLine", batch.max_line, LINE, "1KiB to 64MiB");
    within("maxAnswer", batch.max_answer, LINE, "1KiB to 64MiB");
    for (key, found, least, least_key) in [
        ("maxStored", batch.max_stored, batch.max_file, "maxFile"),
        ("maxStoredByAll", batch.max_stored_by_all, batch.max_stored, "maxStored"),
    ] {
        if found.0 < least.0 {
            let message = format!("{found} is less than `{least_key}` ({least}); expected at least as much");
            cx.error(at!["batch", key], message);
        }
    }
}

/// Checks that lines have a route, and that their callers are known there.
fn routes(cx: &mut Context<'_>) {
    let config = cx.config;
    if !config.routes.iter().any(|route| route.batch) {
        // Routes of another source do not take batches.
        cx.error(at!["batch"], "no effect: no route says `batch: true`, so no line would be answered; let one say it");
    }
    for (n, route) in config.routes.iter().enumerate().filter(|(_, route)| route.batch) {
        if route.authentication == Some(RouteAuthentication::None) {
            let message =
                "the route has `authentication: none`, and a line belongs to a caller: let the route identify callers";
            cx.error(at!["routes", n, "batch"], message);
        }
        let mut targets = route.backend_refs.iter();
        let calls_models = targets.any(|target| match &target.name {
            Some(backend) => cx.index.calls_models(backend),
            None => target.model.is_some(),
        });
        if !calls_models {
            let message = "no target of the route calls models, and lines are calls of models: remove this";
            cx.error(at!["routes", n, "batch"], message);
        }
    }
}

/// Checks that nothing else was written to answer the paths of files and batches.
fn served_paths(cx: &mut Context<'_>, config: &Config) {
    let is_here = |path: &str| {
        PATHS.iter().any(|own| path == *own || path.strip_prefix(own).is_some_and(|rest| rest.starts_with('/')))
    };
    for (n, route) in config.routes.iter().enumerate() {
        if route.name.as_deref() == Some(ROUTE) {
            let message = "`batches` is the name of the gateway's own route in metrics and logs: give this one another";
            cx.error(at!["routes", n, "name"], message);
        }
        for (m, one) in route.matches.iter().enumerate() {
            if let Some(PathMatch::Exact(path) | PathMatch::Prefix(path)) = &one.path
                && is_here(path)
            {
                let message = format!(
                    "the gateway answers `{path}` itself, by `batch`, so the route would never get it: remove the match, or \
                     `batch`"
                );
                cx.error(at!["routes", n, "matches", m, "path"], message);
            }
        }
    }
}
