//! `trial`: a route for trials. Each address has a limit, and callers who agree share their requests with a second backend.

use std::sync::Arc;

use http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::schema::OnExceeded;
use spillway_config::values::Rate;
use spillway_filter::{
    BuildContext, ErrorKind, Filter, FilterFactory, Flow, LimitBy, LimitSpec, MirrorSpec, Quota, Refusal, RequestView,
    define,
};

/// Header by which callers agree or not.
const AGREEMENT: &str = "x-trial";

/// Limits requests of a trial and copies those whose callers agree to a second backend. Requests say `x-trial: share` or
/// `x-trial: private`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Trial {
    /// Requests of one address in a period, such as 10/h.
    requests: Rate,
    /// Backend that receives the copies.
    copy_to: String,
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    let check = |_: &Trial| Vec::new();
    define("trial", check, |config: Trial, _: &BuildContext<'_>| {
        let limit = LimitSpec {
            by: LimitBy::ClientAddress,
            subject: "trial".to_owned(),
            requests: Some(Quota { rate: config.requests, burst: config.requests.count }),
            cost: None,
            tokens: None,
            concurrency: None,
            on_exceeded: OnExceeded::Reject,
        };
        let mirror = MirrorSpec {
            backend: config.copy_to,
            share: 1.0,
            timeout: std::time::Duration::from_secs(30),
            max_in_flight: 8,
            max_body: 1 << 20,
        };
        Ok(Arc::new(Compiled { limits: [limit], mirrors: [mirror] }) as Arc<dyn Filter>)
    })
}

struct Compiled {
    limits: [LimitSpec; 1],
    mirrors: [MirrorSpec; 1],
}

fn agreement<'a>(request: &RequestView<'a>) -> Option<&'a [u8]> {
    request.headers.get(AGREEMENT).map(|value| value.as_bytes())
}

impl Filter for Compiled {
    fn limits(&self) -> &[LimitSpec] {
        &self.limits
    }

    fn on_request(&self, request: &mut RequestView<'_>) -> Flow {
        match agreement(request) {
            Some(b"share" | b"private") => Flow::Continue,
            _ => Flow::Refuse(Box::new(Refusal::new(
                StatusCode::FORBIDDEN,
                ErrorKind::Permission,
                "trial_not_agreed",
                "requests of the trial say `x-trial: share` or `x-trial: private`",
            ))),
        }
    }

    fn mirrors(&self) -> &[MirrorSpec] {
        &self.mirrors
    }

    fn mirrors_request(&self, request: &RequestView<'_>, _backend: &str) -> bool {
        matches!(agreement(request), Some(b"share"))
    }
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::{FilterBuilder, TestRequest};

    use super::*;

    #[test]
    fn only_who_agrees_passes_and_only_who_shares_is_copied() {
        let config = serde_json::json!({"requests": "10/h", "copyTo": "review"});
        let filter = FilterBuilder::new().build(&*factory(), &config);
        assert_eq!((filter.limits().len(), filter.mirrors()[0].backend.as_str()), (1, "review"));
        for (agreed, passes, copied) in [("share", true, true), ("private", true, false), ("perhaps", false, false)] {
            let request = TestRequest::get("/").header(AGREEMENT, agreed);
            assert_eq!(matches!(request.decide(&*filter), Flow::Continue), passes, "{agreed}");
            assert_eq!(filter.mirrors_request(&request.view(), "review"), copied, "{agreed}");
        }
    }
}
