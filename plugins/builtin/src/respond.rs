//! `respond`: an answer that the file holds.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_filter::{Answer, FieldError, Filter, FilterFactory, Flow, RequestView, define_compiled};

use crate::headers;

/// Longest body, in bytes: pages of status or maintenance are shorter, and each is held in memory.
const MAX_BODY: usize = 64 << 10;
/// Type of a body whose headers name none.
const PLAIN_TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Answers by itself: health checks, robots.txt, maintenance. Filters before it apply, those of answers (`cors`,
/// `responseHeaders`) too. A route with it needs no `backendRefs`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Respond {
    /// Status of the answer.
    #[serde(default = "ok")]
    #[schemars(range(min = 200, max = 599))]
    status: u16,
    /// Headers of the answer. `content-type` is `text/plain; charset=utf-8` when left out.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Text of the answer, at most 64 KiB.
    #[serde(default)]
    body: String,
    /// Percentage of requests that are answered, drawn at random; the others go on. All when left out.
    #[serde(default = "all")]
    #[schemars(range(min = 0.0, max = 100.0))]
    percent: f64,
}

fn all() -> f64 {
    100.0
}

fn ok() -> u16 {
    200
}

/// True for a status whose answers have no body (RFC 9110, 15.3.5, 15.3.6 and 15.4.5).
fn is_bodiless(status: u16) -> bool {
    matches!(status, 204 | 205 | 304)
}

fn compile(written: &Respond) -> Result<Answer, Vec<FieldError>> {
    let (mut errors, mut compiled) = (Vec::new(), Vec::new());
    let status = StatusCode::from_u16(written.status).ok().filter(|_| (200..600).contains(&written.status));
    if status.is_none() {
        errors.push(FieldError::at(["status"], format!("status {}; expected 200 to 599", written.status)));
    }
    for (name, value) in &written.headers {
        let value = HeaderValue::from_str(value).map_err(|_| {
            "the value has characters that no header may have; expected visible ASCII letters and blanks".to_owned()
        });
        match headers::name(name).and_then(|name| Ok((name, value?))) {
            Ok(header) => compiled.push(header),
            Err(why) => errors.push(FieldError::at(["headers", name], why)),
        }
    }
    if is_bodiless(written.status) && !written.body.is_empty() {
        let why = format!("an answer with status {} has no body: remove it, or choose another status", written.status);
        errors.push(FieldError::at(["body"], why));
    }
    if written.body.len() > MAX_BODY {
        let why =
            format!("found {} bytes; expected at most {MAX_BODY}: let a server answer with it", written.body.len());
        errors.push(FieldError::at(["body"], why));
    }
    if !(written.percent > 0.0 && written.percent <= 100.0) {
        let why =
            format!("found {}; expected more than 0, or the filter answers nothing, and at most 100", written.percent);
        errors.push(FieldError::at(["percent"], why));
    }
    let has_type = |headers: &[(HeaderName, HeaderValue)]| headers.iter().any(|(name, _)| name == header::CONTENT_TYPE);
    if !written.body.is_empty() && !has_type(&compiled) {
        compiled.push((header::CONTENT_TYPE, PLAIN_TEXT));
    }
    match status {
        Some(status) if errors.is_empty() => {
            Ok(Answer { status, headers: compiled, body: Bytes::from(written.body.clone()) })
        }
        _ => Err(errors),
    }
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define_compiled("respond", |written: &Respond| {
        compile(written).map(|answer| Fixed { answer, share: written.percent / 100.0 })
    })
}

/// Filter with its answer.
struct Fixed {
    answer: Answer,
    /// Share of the requests that get it, above 0 and at most 1.
    share: f64,
}

impl Fixed {
    /// True if a number drawn between 0 and 1, without 1, is one of a request that is answered.
    fn is_answered(&self, drawn: f64) -> bool {
        drawn < self.share
    }
}

impl Filter for Fixed {
    fn on_request(&self, _: &mut RequestView<'_>) -> Flow {
        // Most answer each request, and need no number.
        if self.share < 1.0 && !self.is_answered(rand::random()) {
            return Flow::Continue;
        }
        Flow::Answer(Box::new(self.answer.clone()))
    }
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::{FilterBuilder, TestRequest};

    use super::*;

    #[test]
    fn the_answer_is_that_of_the_file_and_text_unless_it_says_otherwise() {
        for (json, status, kind, body) in [
            (serde_json::json!({}), 200, None, ""),
            (serde_json::json!({"body": "ok"}), 200, Some("text/plain; charset=utf-8"), "ok"),
            (serde_json::json!({"status": 204}), 204, None, ""),
            (
                serde_json::json!({"status": 503, "headers": {"Content-Type": "text/html"}, "body": "<p>später</p>"}),
                503,
                Some("text/html"),
                "<p>später</p>",
            ),
        ] {
            let filter = FilterBuilder::new().build(&*factory(), &json);
            let Flow::Answer(answer) = TestRequest::get("/x").decide(&*filter) else { panic!("{json}") };
            let found = answer.headers.iter().find(|(name, _)| name == header::CONTENT_TYPE);
            let found = found.map(|(_, value)| value.to_str().unwrap());
            assert_eq!((answer.status.as_u16(), found, &*answer.body), (status, kind, body.as_bytes()), "{json}");
        }
    }

    #[test]
    fn a_share_of_the_requests_is_answered_and_the_others_go_on() {
        let fixed = Fixed { answer: Answer::default(), share: 0.25 };
        let drawn = [0.0, 0.1, 0.249_999, 0.25, 0.5, 0.999_999];
        assert_eq!(drawn.map(|drawn| fixed.is_answered(drawn)), [true, true, true, false, false, false]);
        let filter = FilterBuilder::new().build(&*factory(), &serde_json::json!({"percent": 50}));
        let answered = (0..400).filter(|_| matches!(TestRequest::get("/x").decide(&*filter), Flow::Answer(_))).count();
        // Either end is less likely than one in 10^100.
        assert!((1..400).contains(&answered), "{answered}");
    }

    #[test]
    fn what_no_answer_may_have_is_refused_with_its_place() {
        for (json, path) in [
            (serde_json::json!({"status": 101}), vec!["status"]),
            (serde_json::json!({"status": 700}), vec!["status"]),
            (serde_json::json!({"status": 304, "body": "x"}), vec!["body"]),
            (serde_json::json!({"body": "x".repeat(MAX_BODY + 1)}), vec!["body"]),
            (serde_json::json!({"percent": 0}), vec!["percent"]),
            (serde_json::json!({"percent": 100.5}), vec!["percent"]),
            (serde_json::json!({"headers": {"b@d": "x"}}), vec!["headers", "b@d"]),
            (serde_json::json!({"headers": {"content-length": "7"}}), vec!["headers", "content-length"]),
            (serde_json::json!({"headers": {"x-a": "a\r\nset-cookie: b"}}), vec!["headers", "x-a"]),
        ] {
            let errors = factory().check(&json);
            assert_eq!(errors.len(), 1, "{json}");
            assert_eq!(errors[0].path, path, "{json}");
        }
    }
}
