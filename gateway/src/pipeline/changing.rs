//! Changes of a filter to the bodies of an exchange. Another body of the request is read anew for what the gateway knows of it,
//! but for the model: route, limits and permissions were judged by that name.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use spillway_filter::{ErrorKind, Refusal, Rewrite};

use super::asking::peek;
use crate::coding::DIGESTS;
use crate::downstream::ClientSession;
use crate::exchange::{Asked, End, Exchange, Naming, RequestBody};

/// Applies the changes of a filter.
///
/// # Errors
///
/// The end of a request whose new body is not one that the gateway can send.
pub(super) async fn apply(
    rewrite: Rewrite,
    filter: &str,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    if let Some(body) = rewrite.body {
        replace_body(body, filter, session, exchange).await?;
    }
    if !rewrite.request_headers.is_empty() {
        // Later filters read the client's head; what is set again for an endpoint, such as a credential, is not taken from it.
        let headers = &mut session.req_header_mut().headers;
        rewrite.request_headers.iter().for_each(|change| change.apply(headers));
        exchange.header_changes.extend(rewrite.request_headers);
    }
    if let Some(rewriter) = rewrite.rewriter {
        exchange.rewriting.get_or_insert_default().add(rewriter);
    }
    if let Some(processor) = rewrite.processor {
        exchange.rewriting.get_or_insert_default().add_processor(processor);
    }
    if let Some(observer) = rewrite.observer {
        exchange.observers.add(filter, observer);
    }
    Ok(())
}

/// Puts another body in place of the request's, which is held.
async fn replace_body(
    body: Bytes,
    filter: &str,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    let most = exchange.route.as_ref().map_or(u64::MAX, |route| route.max_body);
    let RequestBody::Held(held) = &mut exchange.body else {
        return Err(at_fault(filter, "it changes a body that is not held for it"));
    };
    let length = HeaderValue::from(body.len());
    let Some(before) = held.replace(body, most)? else {
        return Err(at_fault(filter, "it adds a body to a request without one"));
    };
    let head = session.req_header_mut();
    for name in &DIGESTS {
        head.remove_header(name);
    }
    if head.headers.contains_key(header::CONTENT_LENGTH) {
        let _ = head.insert_header(header::CONTENT_LENGTH, length);
    }
    let Some(known) = &exchange.asked else { return Ok(()) };
    if known.naming == Naming::Path {
        return Ok(());
    }
    let is_named_before = known.model_at.clone();
    let read =
        peek(session, exchange, true).await.map_err(|_| at_fault(filter, "the gateway cannot read its new body"))?;
    let (Some(read), Some(known), RequestBody::Held(held)) = (read, exchange.asked.take(), &exchange.body) else {
        return Ok(());
    };
    let is_same = read.naming == known.naming
        && named(&before, is_named_before, known.naming) == named(&held.bytes, read.model_at.clone(), read.naming);
    exchange.asked = Some(Asked { model: known.model, alias: known.alias, is_folded: known.is_folded, ..read });
    if is_same { Ok(()) } else { Err(at_fault(filter, "its new body names another model")) }
}

/// Model that a body names, in one spelling.
fn named(body: &[u8], at: Option<Range<usize>>, naming: Naming) -> Option<Bytes> {
    let raw = body.get(at?)?;
    // The same string of JSON may be written in several ways.
    let text = || serde_json::from_slice::<String>(raw).ok();
    match naming {
        Naming::Json => text().map_or_else(|| Some(Bytes::copy_from_slice(raw)), |text| Some(text.into())),
        _ => Some(Bytes::copy_from_slice(raw)),
    }
}

/// End of a request whose filter made what cannot be sent. The caller is not at fault.
fn at_fault(filter: &str, why: &str) -> End {
    tracing::warn!(event = "filter_failed", filter, reason = why);
    End::refuse(Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        ErrorKind::Internal,
        "filter_failed",
        format!("the filter `{filter}` of the route failed: {why}"),
    ))
}
