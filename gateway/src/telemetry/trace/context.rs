//! Trace of the caller, read by W3C Trace Context. A malformed header counts as none: a new trace begins.

use http::HeaderName;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

use spillway_filter::Fields;

pub(super) static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Reads the span that the caller names, with its vendors' state.
pub(super) fn parent_of(headers: &Fields) -> Option<SpanContext> {
    let (trace, parent, flags) = traceparent(headers)?;
    Some(SpanContext::new(trace, parent, flags, true, tracestate(headers)))
}

/// Copies a span context with the decision to record it or not.
pub(super) fn decided(parent: &SpanContext, is_sampled: bool) -> SpanContext {
    let flags = if is_sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    SpanContext::new(parent.trace_id(), parent.span_id(), flags, true, parent.trace_state().clone())
}

/// Reads the trace that the caller names.
pub(super) fn trace_of(headers: &Fields) -> Option<TraceId> {
    traceparent(headers).map(|(trace, _, _)| trace)
}

/// Reads `00-TRACE-PARENT-FLAGS` in lower case, sent once (section 3.2). A later version may have more behind the flags.
fn traceparent(headers: &Fields) -> Option<(TraceId, SpanId, TraceFlags)> {
    let mut values = headers.get_all(&TRACEPARENT).iter();
    let text = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |s: &str, n| s.len() == n && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !hex(version, 2) || version == "ff" || (version == "00" && parts.next().is_some()) || !hex(flags, 2) {
        return None;
    }
    if !hex(trace, 32) || !hex(parent, 16) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let (trace, parent) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(parent).ok()?);
    (trace != TraceId::INVALID && parent != SpanId::INVALID).then_some((trace, parent, flags))
}

/// Joins several fields into one list (section 3.3). A malformed list is dropped, and the trace continues.
fn tracestate(headers: &Fields) -> TraceState {
    let mut text = String::new();
    for value in headers.get_all(&TRACESTATE) {
        let Ok(value) = value.to_str() else { return TraceState::default() };
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(value);
    }
    text.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(pairs: &[(&HeaderName, &'static str)]) -> Fields {
        let mut headers = Fields::default();
        for (name, value) in pairs {
            headers.append((*name).clone(), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn only_a_well_formed_parent_is_continued() {
        assert!(parent_of(&headers(&[(&TRACEPARENT, GOOD)])).unwrap().is_sampled());
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more";
        assert!(!parent_of(&headers(&[(&TRACEPARENT, later)])).unwrap().is_sampled());
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
        ] {
            assert!(parent_of(&headers(&[(&TRACEPARENT, bad)])).is_none(), "{bad}");
        }
        assert!(parent_of(&headers(&[(&TRACEPARENT, GOOD), (&TRACEPARENT, GOOD)])).is_none(), "two parents");
    }

    #[test]
    fn states_of_several_fields_are_one_list_and_a_malformed_one_is_dropped() {
        let list = |states: &[&'static str]| {
            let mut headers = headers(&[(&TRACEPARENT, GOOD)]);
            for state in states {
                headers.append(TRACESTATE.clone(), HeaderValue::from_static(state));
            }
            parent_of(&headers).unwrap().trace_state().header()
        };
        assert_eq!(list(&["rojo=00f067aa0ba902b7", "congo=t61rcWkgMzE"]), "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE");
        assert_eq!(list(&["no list"]), "");
        assert_eq!(list(&[]), "");
    }
}
