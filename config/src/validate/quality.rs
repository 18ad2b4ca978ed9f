//! Checks of `routes[].quality`: what could never be looked at, and references without a meaning.

use std::collections::HashSet;
use std::time::Duration;

use super::{Context, Segment, at};
use crate::schema::{ModelTask, QualityReference, Route};

/// Most targets of a route that are watched, those of its spill included: their sketches have two megabytes together.
pub(super) const MOST_TARGETS: usize = 6;
/// Shortest reference window: the parts that it is made of last a second at least.
const SHORTEST: Duration = Duration::from_secs(30);
/// Least age of an example.
const SHORTEST_RETENTION: Duration = Duration::from_secs(60);
/// Least time from one round of probes to the next, and for one probe.
const SHORTEST_PROBE: Duration = Duration::from_secs(1);

pub(super) fn all(cx: &mut Context<'_>, n: usize, route: &Route) {
    let Some(quality) = &route.quality else { return };
    if quality.sample <= 0.0 {
        cx.error(at!["routes", n, "quality", "sample"], "0 looks at no request; expected more, or no `quality`");
    }
    for (key, limit) in [("inputs", quality.drift.inputs), ("outputs", quality.drift.outputs)] {
        if limit <= 0.0 {
            let message = "0 is passed by every two samples; expected a distance such as 0.2";
            cx.error(at!["routes", n, "quality", "drift", key], message);
        }
    }
    let index = cx.index;
    let plain = |name: &str| index.backends.contains_key(name) && !index.calls_models(name);
    if let Some(name) = route.backend_refs.iter().filter_map(|r| r.name.as_deref()).find(|name| plain(name)) {
        let message = format!(
            "the backend `{name}` speaks no API of models, so its requests and answers cannot be read: name its `protocol`"
        );
        cx.error(at!["routes", n, "quality"], message);
    }
    let targets = route.backend_refs.iter().filter_map(|r| r.name.as_deref().or(r.model.as_deref()));
    let spills = [
        route.when_saturated.as_ref().and_then(|rule| rule.spill_to.as_deref()),
        route.when_unavailable.as_ref().and_then(|rule| rule.spill_to.as_deref()),
    ];
    let names: HashSet<&str> = targets.chain(spills.into_iter().flatten()).collect();
    if names.is_empty() {
        cx.error(at!["routes", n, "quality"], "no effect, because the route has no target: remove it");
    } else if names.len() > MOST_TARGETS {
        let message = format!("the route has {} targets; expected at most {MOST_TARGETS}: split it", names.len());
        cx.error(at!["routes", n, "quality"], message);
    }
    match &quality.reference {
        QualityReference::Window(window) if window.0 < SHORTEST => {
            let message = format!("too short to compare with; expected at least {} s", SHORTEST.as_secs());
            cx.error(at!["routes", n, "quality", "reference", "window"], message);
        }
        QualityReference::Stable if route.backend_refs.len() < 2 => {
            let message = "the route has one target, so there is no other to compare it with: write {window: 7d}";
            cx.error(at!["routes", n, "quality", "reference"], message);
        }
        QualityReference::Window(_) | QualityReference::File(_) | QualityReference::Stable => {}
    }
    if let Some(keep) = &quality.keep_examples {
        let place = |key: &'static str| at!["routes", n, "quality", "keepExamples", key];
        if keep.percent <= 0.0 {
            cx.error(place("percent"), "0 keeps no example; expected more, or no `keepExamples`");
        }
        if keep.retention.0 < SHORTEST_RETENTION {
            cx.error(place("retention"), "too short to be read; expected at least 1 m");
        }
        if keep.max_bytes.0 == 0 {
            cx.error(place("maxBytes"), "0 keeps no example; expected some MiB");
        }
    }
    if let Some(name) = &quality.embedding {
        embedder(cx, at!["routes", n, "quality", "embedding"], name);
    }
    let Some(probes) = &quality.probes else { return };
    if let Some(name) = &probes.embedding {
        embedder(cx, at!["routes", n, "quality", "probes", "embedding"], name);
    }
    for (key, time) in [("every", probes.every), ("timeout", probes.timeout)] {
        if time.0 < SHORTEST_PROBE {
            cx.error(at!["routes", n, "quality", "probes", key], "too short; expected at least 1 s");
        }
    }
}

/// Checks that a name is that of a built-in model for embeddings.
pub(super) fn embedder(cx: &mut Context<'_>, place: Vec<Segment>, name: &str) {
    let models = &cx.config.models;
    match models.iter().find(|model| model.name == name) {
        None => {
            let known: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
            cx.unknown(place, "model", name, &known);
        }
        Some(model) if model.task.is_some_and(|task| task != ModelTask::Embedding) => {
            cx.error(place, format!("`{name}` is no model for embeddings; name one that is"));
        }
        Some(_) => {}
    }
}
