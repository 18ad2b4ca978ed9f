//! `mirror`: copies of some requests to a second backend, whose answers are discarded. The filter only describes the
//! copies; the gateway sends them, without the caller's credentials, within these bounds.

use std::num::NonZeroU32;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::values::{Duration, Size};
use spillway_filter::{BuildContext, FieldError, Filter, FilterFactory, MirrorSpec, RequestView, define};

use crate::condition::Condition;

/// Copies some requests to a second backend. The answers are read and discarded; a copy never delays, changes or
/// fails the request itself, and carries no credentials of the caller.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mirror {
    /// Backend that receives the copies.
    backend: String,
    /// Condition in CEL on the request. Where it is false or has no value, the request is not copied. All requests when left out.
    #[serde(default)]
    when: Option<String>,
    /// Percentage of requests that are copied, drawn at random.
    #[serde(default = "all")]
    #[schemars(range(min = 0.0, max = 100.0))]
    percent: f64,
    /// Longest time of a copy, to the last byte of its answer.
    #[serde(default = "timeout")]
    timeout: Duration,
    /// Most copies at the same time; further requests are not copied.
    #[serde(default = "max_in_flight")]
    #[schemars(range(min = 1, max = 10_000))]
    max_in_flight: NonZeroU32,
    /// Longest body of a copied request; requests with a longer one are not copied.
    #[serde(default = "max_body")]
    max_body: Size,
}

fn all() -> f64 {
    100.0
}
fn timeout() -> Duration {
    Duration::seconds(30)
}
fn max_in_flight() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(31)
}
fn max_body() -> Size {
    Size(256 << 10)
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define("mirror", check, build)
}

fn check(config: &Mirror) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if config.percent == 0.0 {
        errors.push(FieldError::at(["percent"], "no effect: 0 percent of requests are copied; expected more than 0"));
    }
    if config.timeout.0.is_zero() {
        errors.push(FieldError::at(["timeout"], "a time limit of zero lets nothing pass"));
    }
    errors.extend(Condition::new(config.when.as_ref()).err());
    errors
}

fn build(config: Mirror, _: &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError> {
    let when = Condition::new(config.when.as_ref())?;
    let mirrors = [MirrorSpec {
        backend: config.backend,
        share: config.percent / 100.0,
        timeout: config.timeout.0,
        max_in_flight: config.max_in_flight.get(),
        max_body: config.max_body.0,
    }];
    Ok(Arc::new(Mirrored { mirrors, when }))
}

struct Mirrored {
    mirrors: [MirrorSpec; 1],
    when: Condition,
}

impl Filter for Mirrored {
    fn needs_body(&self) -> bool {
        self.when.needs_body()
    }

    fn mirrors(&self) -> &[MirrorSpec] {
        &self.mirrors
    }

    fn mirrors_request(&self, x: &RequestView<'_>, _: &str) -> bool {
        self.when.holds_on_loop(x, false)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use spillway_filter::testing::{FilterBuilder, TestRequest};

    use super::*;

    #[test]
    fn requests_for_which_the_condition_holds_are_copied() {
        let config = json!({"backend": "b", "when": "request.headers['x-copy'] == 'yes'"});
        let filter = FilterBuilder::new().build(&*factory(), &config);
        assert!(!filter.needs_body());
        for (told, copied) in [(Some("yes"), true), (Some("no"), false), (None, false)] {
            let request = TestRequest::get("/");
            let request = told.iter().fold(request, |request, value| request.header("x-copy", value));
            assert_eq!(filter.mirrors_request(&request.view(), "b"), copied, "{told:?}");
        }
        let by_model = json!({"backend": "b", "when": "request.model == 'm'"});
        assert!(FilterBuilder::new().build(&*factory(), &by_model).needs_body());
        let always = FilterBuilder::new().build(&*factory(), &json!({"backend": "b"}));
        assert!(always.mirrors_request(&TestRequest::get("/").view(), "b"));
        assert_eq!(factory().check(&json!({"backend": "b", "when": "response.status == 1"}))[0].path, ["when"]);
    }
}
