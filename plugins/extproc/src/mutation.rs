//! Header changes of a processor. Names that frame a message or lead a request are not for it: a change of them is left out, as
//! Envoy does by default.

use std::collections::BTreeSet;

use http::{HeaderName, HeaderValue, StatusCode, header};
use spillway_filter::Fields;

use crate::messages::{HeaderMutation, HeaderValueOption};

/// Most headers that one answer of a processor may set or remove.
const MOST: usize = 100;

/// Names that belong to a connection or to the framing of a message.
const FRAMING: [HeaderName; 8] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Result of changes to headers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Names whose values may have changed.
    pub(crate) names: BTreeSet<String>,
    /// Status that was set by `:status`.
    pub(crate) status: Option<StatusCode>,
    /// The first change that was left out.
    pub(crate) left_out: Option<String>,
}

/// Applies changes to headers.
pub(crate) fn apply(mutation: &HeaderMutation, headers: &mut Fields) -> Changed {
    let mut changed = Changed::default();
    for name in mutation.remove_headers.iter().take(MOST) {
        if let Some(name) = changed.admit(name) {
            headers.remove(&name);
        }
    }
    for option in mutation.set_headers.iter().take(MOST) {
        set(option, headers, &mut changed);
    }
    if mutation.remove_headers.len().max(mutation.set_headers.len()) > MOST {
        changed.leave_out(|| format!("it changes more than {MOST} headers at once"));
    }
    changed
}

/// True of a status whose answers have no body (RFC 9110, 15.3.5, 15.3.6 and 15.4.5).
pub(crate) fn has_no_body(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED)
}

fn set(option: &HeaderValueOption, headers: &mut Fields, changed: &mut Changed) {
    let Some(written) = &option.header else { return };
    // Processors set one of the two; newer ones `raw_value`.
    let bytes = if written.raw_value.is_empty() { written.value.as_bytes() } else { &written.raw_value };
    if written.key == ":status" {
        let status = std::str::from_utf8(bytes).ok().and_then(|text| StatusCode::from_bytes(text.as_bytes()).ok());
        match status.filter(|status| status.as_u16() >= 200 && !has_no_body(*status)) {
            Some(status) => changed.status = Some(status),
            None => {
                changed.leave_out(|| "it sets `:status` to what is no final status of an answer with a body".to_owned())
            }
        }
        return;
    }
    let Some(name) = changed.admit(&written.key) else { return };
    let Ok(value) = HeaderValue::from_bytes(bytes) else {
        changed.leave_out(|| format!("its value of `{name}` has bytes that no header may have"));
        return;
    };
    let is_there = headers.get(&name).is_some();
    // By Envoy: without an action, `append` decides, and is false where it is left out.
    match (option.append_action, option.append.is_some_and(|append| append.value)) {
        (0, true) => headers.append(name, value),
        (1, _) if is_there => {}
        (3, _) if !is_there => {}
        _ => {
            headers.insert(name, value);
        }
    }
}

impl Changed {
    /// The name, if the processor may change it.
    fn admit(&mut self, written: &str) -> Option<HeaderName> {
        let name = HeaderName::from_bytes(written.as_bytes()).ok().filter(|name| !FRAMING.contains(name));
        match &name {
            Some(name) => {
                self.names.insert(name.as_str().to_owned());
            }
            None => self.leave_out(|| format!("it may not change `{}`", written.escape_debug())),
        }
        name
    }

    fn leave_out(&mut self, why: impl FnOnce() -> String) {
        self.left_out.get_or_insert_with(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{BoolValue, HeaderValue as Written};

    fn option(name: &str, value: &str, action: i32, append: Option<bool>) -> HeaderValueOption {
        let header = Written { key: name.to_owned(), value: String::new(), raw_value: value.to_owned().into() };
        HeaderValueOption {
            header: Some(header),
            append: append.map(|value| BoolValue { value }),
            append_action: action,
        }
    }

    fn applied(set: Vec<HeaderValueOption>, remove: &[&str]) -> (Vec<String>, Changed) {
        let mut headers = Fields::default();
        headers.append("x-there".parse().unwrap(), "1".parse().unwrap());
        let mutation =
            HeaderMutation { set_headers: set, remove_headers: remove.iter().map(|name| (*name).to_owned()).collect() };
        let changed = apply(&mutation, &mut headers);
        let lines = headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        (lines, changed)
    }

    #[test]
    fn actions_are_those_of_envoy() {
        for (action, append, there, absent) in [
            (0, None, &["x-there: 2"][..], &["x-there: 1", "x-new: 2"][..]),
            (0, Some(true), &["x-there: 1", "x-there: 2"], &["x-there: 1", "x-new: 2"]),
            (0, Some(false), &["x-there: 2"], &["x-there: 1", "x-new: 2"]),
            (1, None, &["x-there: 1"], &["x-there: 1", "x-new: 2"]),
            (2, None, &["x-there: 2"], &["x-there: 1", "x-new: 2"]),
            (3, None, &["x-there: 2"], &["x-there: 1"]),
        ] {
            assert_eq!(applied(vec![option("X-There", "2", action, append)], &[]).0, there, "{action} {append:?}");
            assert_eq!(applied(vec![option("x-new", "2", action, append)], &[]).0, absent, "{action} {append:?}");
        }
        assert_eq!(applied(vec![], &["x-there", "x-absent"]).0, [""; 0]);
    }

    #[test]
    fn what_frames_or_leads_a_message_is_left_alone() {
        for name in ["host", "content-length", "Transfer-Encoding", ":path", ":authority", "", "x y", "upgrade"] {
            let (lines, changed) = applied(vec![option(name, "2", 2, None)], &[name]);
            assert_eq!(lines, ["x-there: 1"], "{name}");
            assert!(changed.left_out.is_some() && changed.names.is_empty(), "{name}");
        }
        let (lines, changed) = applied(vec![option("x-a", "a\r\nb: c", 2, None)], &[]);
        assert_eq!((lines.len(), changed.left_out.is_some()), (1, true));
    }

    #[test]
    fn a_status_is_set_if_it_is_final() {
        let status = |text| applied(vec![option(":status", text, 2, None)], &[]).1.status.map(|status| status.as_u16());
        assert_eq!(status("404"), Some(404));
        for wrong in ["100", "204", "304", "9999", "", "-1"] {
            assert_eq!(status(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_number_of_changes_is_bounded() {
        let many = (0..300).map(|n| option(&format!("x-{n}"), "1", 2, None)).collect();
        let (lines, changed) = applied(many, &[]);
        assert_eq!((lines.len(), changed.left_out.is_some()), (1 + MOST, true));
    }
}
