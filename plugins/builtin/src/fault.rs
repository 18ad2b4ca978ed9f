//! `fault`: delays and errors for a share of the requests, to see how callers cope with them.

use std::time::Duration;

use http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_cel::{Expression, Scope, Seen};
use spillway_config::values;
use spillway_filter::{
    ErrorKind, FieldError, Filter, FilterFactory, Flow, Refusal, RequestView, Waited, define_compiled,
};

/// Longest delay: a request that waits holds its connection and body.
const MAX_DELAY: Duration = Duration::from_mins(10);
/// Delay after which a retry is worth while; each request is drawn anew.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Delays a share of the requests, refuses it, or both, in front of any server. For tests of callers, and of what they do when
/// this route fails.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fault {
    /// Condition in CEL on the request. Where it is false or has no value, the filter does nothing. All requests when left out.
    #[serde(default)]
    when: Option<String>,
    /// Percentage of those requests, drawn at random.
    #[serde(default = "all")]
    #[schemars(range(min = 0.0, max = 100.0))]
    percent: f64,
    /// Delay of a drawn request, at most 10m. It counts against the `timeouts.request` of the route.
    #[serde(default)]
    delay: Option<values::Duration>,
    /// Status with which a drawn request is refused, after `delay`. It reaches no server.
    #[serde(default)]
    #[schemars(range(min = 400, max = 599))]
    abort: Option<u16>,
}

fn all() -> f64 {
    100.0
}

fn compile(written: &Fault) -> Result<Injection, Vec<FieldError>> {
    let mut errors = Vec::new();
    let when = written.when.as_deref().map(|text| Expression::condition(text, Scope::Request)).transpose();
    let when = when.unwrap_or_else(|why| {
        errors.push(FieldError::at(["when"], why));
        None
    });
    if !(written.percent > 0.0 && written.percent <= 100.0) {
        let why = format!(
            "found {}; expected more than 0 and at most 100: remove the filter to end the test",
            written.percent
        );
        errors.push(FieldError::at(["percent"], why));
    }
    let delay = written.delay.map_or(Duration::ZERO, |delay| delay.0);
    if delay > MAX_DELAY || written.delay.is_some_and(|delay| delay.0.is_zero()) {
        errors.push(FieldError::at(
            ["delay"],
            "expected more than zero and at most 10m: a request that waits holds memory",
        ));
    }
    let abort = written.abort.map(|status| {
        let known = StatusCode::from_u16(status).ok().filter(|_| (400..600).contains(&status));
        known.ok_or_else(|| FieldError::at(["abort"], format!("status {status}; expected 400 to 599")))
    });
    let abort = abort.transpose().unwrap_or_else(|error| {
        errors.push(error);
        None
    });
    if written.delay.is_none() && written.abort.is_none() {
        errors
            .push(FieldError { path: Vec::new(), message: "no effect; expected `delay`, `abort` or both".to_owned() });
    }
    if errors.is_empty() { Ok(Injection { when, percent: written.percent, delay, abort }) } else { Err(errors) }
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define_compiled("fault", compile)
}

/// Filter with its fault.
struct Injection {
    when: Option<Expression>,
    percent: f64,
    delay: Duration,
    abort: Option<StatusCode>,
}

impl Injection {
    /// True if a request with this random number, from 0 to below 1, is drawn.
    fn draws(&self, random: f64) -> bool {
        random * 100.0 < self.percent
    }
}

impl Filter for Injection {
    fn needs_body(&self) -> bool {
        self.when.as_ref().is_some_and(|when| when.asked().needs_body())
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        // A fault that nobody asked for helps nobody: without a value the condition does not hold.
        let holds = self.when.as_ref().is_none_or(|when| matches!(when.holds(&Seen::from(&*x)), Ok(true)));
        if !holds || !self.draws(rand::random()) {
            return Flow::Continue;
        }
        let refusal = self.abort.map(|status| Box::new(refusal(status)));
        match refusal {
            Some(refusal) if self.delay.is_zero() => Flow::Refuse(refusal),
            refusal => {
                let waited = Waited { delay: self.delay, refusal, ..Waited::default() };
                Flow::Wait(Box::pin(std::future::ready(waited)))
            }
        }
    }
}

fn refusal(status: StatusCode) -> Refusal {
    let kind = match status.as_u16() {
        401 => ErrorKind::Authentication,
        403 => ErrorKind::Permission,
        404 => ErrorKind::NotFound,
        408 | 504 => ErrorKind::Timeout,
        429 => ErrorKind::RateLimited,
        400..500 => ErrorKind::InvalidRequest,
        503 => ErrorKind::Overloaded,
        502 => ErrorKind::Upstream,
        _ => ErrorKind::Internal,
    };
    let refusal = Refusal::new(status, kind, "fault_injected", "this route fails some requests on purpose, as a test");
    if matches!(status.as_u16(), 429 | 503) { refusal.retry_after(RETRY_AFTER) } else { refusal }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use spillway_filter::testing::{FilterBuilder, TestRequest, wait};

    use super::*;

    fn decided(config: &serde_json::Value, request: &TestRequest) -> Flow {
        request.decide(&*FilterBuilder::new().build(&*factory(), config))
    }

    #[test]
    fn a_drawn_request_is_delayed_then_refused() {
        let request = TestRequest::get("/x");
        let waited = wait(decided(&json!({"delay": "2s"}), &request));
        assert_eq!((waited.delay, waited.refusal.is_none()), (Duration::from_secs(2), true));
        let waited = wait(decided(&json!({"percent": 100, "delay": "2s", "abort": 504}), &request));
        assert_eq!((waited.delay, waited.refusal.unwrap().status.as_u16()), (Duration::from_secs(2), 504));
        let Flow::Refuse(refusal) = decided(&json!({"abort": 503}), &request) else { panic!("not refused") };
        assert_eq!((refusal.status.as_u16(), refusal.code), (503, "fault_injected"));
        assert_eq!(refusal.retry_after, Some(RETRY_AFTER));
    }

    #[test]
    fn the_share_is_that_of_the_file() {
        let injection = compile(&serde_json::from_value(json!({"percent": 5, "abort": 503})).unwrap()).ok().unwrap();
        assert_eq!([0.0, 0.0499, 0.05, 0.999].map(|random| injection.draws(random)), [true, true, false, false]);
        let all = compile(&serde_json::from_value(json!({"abort": 503})).unwrap()).ok().unwrap();
        assert!(all.draws(1.0 - f64::EPSILON));
    }

    #[test]
    fn requests_that_are_not_meant_pass() {
        let config = json!({"when": "request.headers['x-test'] == 'abort'", "abort": 500});
        for (request, passes) in [
            (TestRequest::get("/x").header("x-test", "abort"), false),
            (TestRequest::get("/x").header("x-test", "no"), true),
            (TestRequest::get("/x"), true),
        ] {
            assert_eq!(matches!(decided(&config, &request), Flow::Continue), passes, "{request:?}");
        }
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (json, path) in [
            (json!({}), vec![]),
            (json!({"percent": 0, "abort": 503}), vec!["percent"]),
            (json!({"percent": 101, "abort": 503}), vec!["percent"]),
            (json!({"delay": "0s"}), vec!["delay"]),
            (json!({"delay": "601s"}), vec!["delay"]),
            (json!({"abort": 200}), vec!["abort"]),
            (json!({"abort": 503, "when": "1"}), vec!["when"]),
        ] {
            let errors = factory().check(&json);
            assert_eq!(errors.len(), 1, "{json}: {errors:?}");
            assert_eq!(errors[0].path, path, "{json}");
        }
    }
}
