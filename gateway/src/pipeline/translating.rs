//! Requests as they are written anew for some backends before attempts are made there: translated for those of other APIs than
//! the caller's, and without the fields that some do not get. A backend that cannot take the request is excluded from its
//! targets; other targets, which may speak the caller's own API, answer it then.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use spillway_filter::Refusal;

use super::reading::held;
use super::rewritten::path_for_servers;
use crate::admission::TargetSelection;
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange};
use crate::off_loop::BUILDS_VALUES;
use crate::protocol::oip::json_length;
use crate::protocol::{ModelPlace, Operation};
use crate::topology::{Backend, Route};
use crate::upstream::{CallHead, Cut, Translation, cut, translate};

/// Request as it was written for one backend.
#[derive(Clone)]
pub(super) enum Rewritten {
    /// In the API of its servers.
    Translated(Arc<Translation>),
    /// In the API of the caller, without fields that its servers do not get.
    Cut(Arc<Cut>),
}

/// Request that is written anew, on its route.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// Route of the request.
    pub(super) route: &'a Route,
    /// Session with the head of the request.
    pub(super) session: &'a ClientSession,
    /// Facts of the request.
    pub(super) exchange: &'a Exchange,
}

/// True if the request must be translated for the backend.
pub(super) fn is_foreign(backend: &Backend, exchange: &Exchange) -> bool {
    backend.rewrites && backend.foreign.contains(exchange.dialect, exchange.resolved.operation)
}

/// True if the request may have to be written anew for the backend.
pub(super) fn is_rewritten(backend: &Backend, exchange: &Exchange) -> bool {
    backend.rewrites
        && (!backend.drop_fields.is_empty() || backend.foreign.contains(exchange.dialect, exchange.resolved.operation))
}

/// Writes the request for a backend, off the event loop where the body is long; `None` where bytes pass as they are. The inner
/// error gives the reason why the request cannot go there; the outer one ends it.
pub(super) async fn rewritten(
    backend: &Backend,
    source: Source<'_>,
) -> Result<Result<Option<Rewritten>, Box<Refusal>>, End> {
    let Source { route, session, exchange } = source;
    if is_foreign(backend, exchange) {
        let body = held(exchange).unwrap_or_default();
        // It is read to values and written again.
        let weight = body.len().saturating_mul(BUILDS_VALUES).saturating_mul(2);
        let head = session.req_header();
        let target = head.uri.path_and_query();
        let path = target.map(|target| path_for_servers(route, exchange.resolved, &head.method, target));
        let path = path.unwrap_or_default();
        let head =
            CallHead { method: &head.method, path: &path, headers: &head.headers, takes_trailers: session.is_http2() };
        let translated = exchange.off_loop.run(weight, || translate(exchange, backend, head, &body)).await?;
        return Ok(match translated {
            Ok(translation) => Ok(Some(Rewritten::Translated(Arc::new(translation)))),
            Err(refusal) => Err(Box::new(refusal)),
        });
    }
    let cut = match without_dropped(backend, session, exchange).await? {
        Ok(cut) => cut,
        Err(refusal) => return Ok(Err(refusal)),
    };
    Ok(Ok(cut.map(|cut| Rewritten::Cut(Arc::new(cut)))))
}

/// Body of a request that is not translated, without the fields that the servers of a backend do not get.
/// The inner error says that it does not tell where its JSON ends.
pub(super) async fn without_dropped(
    backend: &Backend,
    session: &ClientSession,
    exchange: &Exchange,
) -> Result<Result<Option<Cut>, Box<Refusal>>, End> {
    let Some(body) = held(exchange).filter(|_| !backend.drop_fields.is_empty()) else { return Ok(Ok(None)) };
    let json_length = match exchange.resolved.operation {
        Operation::Inference(_) if exchange.resolved.model_place != ModelPlace::Message => {
            match json_length(&session.req_header().headers, body.len()) {
                Ok(length) => length,
                Err(refusal) => return Ok(Err(Box::new(refusal))),
            }
        }
        _ => None,
    };
    // One pass finds the fields, and one the places of what is left.
    Ok(Ok(exchange.off_loop.run(body.len().saturating_mul(2), || cut(backend, &body, json_length)).await?))
}

/// Body that was written for the rest of an answer, without the fields that the servers of a backend do not get, and the range
/// of its model; `None` where it has none of them.
pub(super) async fn cut_body(
    backend: &Backend,
    body: &Bytes,
    exchange: &Exchange,
) -> Result<Option<(Bytes, Option<Range<usize>>)>, End> {
    if backend.drop_fields.is_empty() {
        return Ok(None);
    }
    let cut = exchange.off_loop.run(body.len().saturating_mul(2), || cut(backend, body, None)).await?;
    Ok(cut.map(Cut::into_parts))
}

/// Targets of one request for which it is written anew, or that cannot take it, as far as that was found out.
#[derive(Default)]
pub(super) struct Translations {
    /// Indices of the targets that can take the request, with what was written for them where that is kept.
    able: Vec<(usize, Option<Rewritten>)>,
    /// Refusal for the case that no target can take the request, with the index of its target.
    refused: Option<(usize, Box<Refusal>)>,
}

impl Translations {
    fn is_able(&self, target: usize) -> bool {
        self.able.iter().any(|(able, _)| *able == target)
    }

    /// Drops the bodies that were written. A request that waits holds none beside its own, which is counted.
    pub(super) fn drop_bodies(&mut self) {
        for (_, written) in &mut self.able {
            *written = None;
        }
    }

    /// Records that a target can take the request, and what was written for it.
    fn add(&mut self, target: usize, written: Option<Rewritten>) {
        match self.able.iter_mut().find(|(able, _)| *able == target) {
            Some((_, kept)) => *kept = written,
            None => self.able.push((target, written)),
        }
    }

    /// Excludes a target that cannot take the request. Of several refusals the one of the first target in the file is kept,
    /// and one that names a field before one of a path that the target does not have.
    pub(super) fn exclude(&mut self, target: usize, refusal: Box<Refusal>, selection: &mut TargetSelection) {
        tracing::debug!(event = "target_cannot_take", reason = %refusal.message);
        selection.exclude(target);
        let rank = |target: usize, refusal: &Refusal| (refusal.status == StatusCode::NOT_FOUND, target);
        let is_kept = self.refused.as_ref().is_some_and(|(kept, other)| rank(*kept, other) < rank(target, &refusal));
        if !is_kept {
            self.refused = Some((target, refusal));
        }
    }

    /// Ends a request that none of its targets can take.
    pub(super) fn check_left(&mut self, selection: &TargetSelection) -> Result<(), End> {
        match self.refused.take_if(|_| selection.is_empty()) {
            Some((_, refusal)) => Err(End::Refuse(refusal)),
            None => Ok(()),
        }
    }
}

/// Request for a target, or the fact that the target cannot take it.
pub(super) enum Prepared {
    /// The target can take the request, as it was written for it or as it came.
    Ready(Option<Rewritten>),
    /// The target cannot take the request, and is excluded.
    Excluded,
}

/// Writes the request for a target that has another API than the caller, or does not get all fields.
pub(super) async fn prepare(
    target: usize,
    backend: &Backend,
    (selection, translations): (&mut TargetSelection, &mut Translations),
    source: Source<'_>,
) -> Result<Prepared, End> {
    let made = translations.able.iter().find(|(able, _)| *able == target);
    if let Some((_, Some(made))) = made {
        return Ok(Prepared::Ready(Some(made.clone())));
    }
    match rewritten(backend, source).await? {
        Ok(made) => {
            translations.add(target, made.clone());
            Ok(Prepared::Ready(made))
        }
        Err(refusal) => {
            translations.exclude(target, refusal, selection);
            Ok(Prepared::Excluded)
        }
    }
}

/// Excludes the targets that cannot take the request, so that it does not wait for them, nor spills or is told to come again
/// for their sake. True if there was one.
pub(super) async fn exclude_unable(
    (selection, translations): (&mut TargetSelection, &mut Translations),
    source: Source<'_>,
) -> Result<bool, End> {
    let mut has_excluded = false;
    while let Some((target, backend)) = next_unknown(source.route, selection, translations, source.exchange) {
        match rewritten(backend, source).await? {
            Ok(_) => translations.add(target, None),
            Err(refusal) => {
                has_excluded = true;
                translations.exclude(target, refusal, selection);
            }
        }
    }
    translations.check_left(selection)?;
    Ok(has_excluded)
}

/// Next target for which the request must be translated, and of which it is not known whether it can take it.
pub(super) fn next_unknown<'r>(
    route: &'r Route,
    selection: &TargetSelection,
    translations: &Translations,
    exchange: &Exchange,
) -> Option<(usize, &'r Backend)> {
    let mut backends = selection.backends(route);
    let found = backends.find(|(target, backend)| is_foreign(backend, exchange) && !translations.is_able(*target));
    found.map(|(target, backend)| (target, &**backend))
}
