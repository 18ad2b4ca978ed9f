//! `answerTiming`: tells browsers how long a route took (`Server-Timing`), and logs event streams that stood still.

use std::sync::Arc;
use std::time::{Duration as Time, Instant};

use http::{HeaderName, HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::values::Duration;
use spillway_filter::{
    BuildContext, ExchangeEnd, Filter, FilterFactory, Flow, Headers, Observer, RequestView, ResponseEvent, define,
};

static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Measures answers: tells browsers the time to the head, and logs event streams with a long pause.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AnswerTiming {
    /// Longest pause between two events that is not logged.
    longest_pause: Duration,
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    let check = |_: &AnswerTiming| Vec::new();
    define("answerTiming", check, |config: AnswerTiming, _: &BuildContext<'_>| Ok(Arc::new(config) as Arc<dyn Filter>))
}

impl Filter for AnswerTiming {
    fn on_request(&self, _: &mut RequestView<'_>) -> Flow {
        Flow::Observe(Box::new(Timing {
            began: Instant::now(),
            allowed: self.longest_pause.0,
            events: 0,
            last: None,
            longest: Time::ZERO,
        }))
    }
}

/// Times of one exchange.
struct Timing {
    began: Instant,
    allowed: Time,
    events: u64,
    last: Option<Instant>,
    longest: Time,
}

impl Observer for Timing {
    fn on_response_head(&mut self, _: StatusCode, headers: &mut dyn Headers) {
        let text = format!("gateway;dur={:.1}", self.began.elapsed().as_secs_f64() * 1e3);
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.append(&SERVER_TIMING, value);
        }
    }

    fn reads_events(&self) -> bool {
        true
    }

    fn on_response_event(&mut self, _: &ResponseEvent<'_>) {
        self.events += 1;
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.longest = self.longest.max(now.duration_since(last));
        }
    }

    fn on_end(&mut self, end: &ExchangeEnd<'_>) {
        if self.longest > self.allowed {
            let (pause, events, served_by) = (self.longest.as_secs_f64(), self.events, end.served_by);
            tracing::info!(
                event = "answer_paused",
                pause,
                events,
                served_by,
                bytes = end.bytes_out,
                whole = end.is_whole
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::{FilterBuilder, TestRequest, headers, split_events};

    use super::*;

    #[test]
    fn the_head_tells_the_time_and_pauses_between_events_are_kept() {
        let filter = FilterBuilder::new().build(&*factory(), &serde_json::json!({"longestPause": "2s"}));
        let Flow::Observe(mut observer) = TestRequest::post("/", "").decide(&*filter) else { panic!("it observes") };
        let mut answer = headers([("content-type", "text/event-stream")]);
        observer.on_response_head(StatusCode::OK, &mut answer);
        assert!(answer["server-timing"].to_str().unwrap().starts_with("gateway;dur="));
        assert!(observer.reads_events());

        let mut timing =
            Timing { began: Instant::now(), allowed: Time::ZERO, events: 0, last: None, longest: Time::ZERO };
        split_events("data: 1\n\n", |event| timing.on_response_event(event));
        assert_eq!(timing.longest, Time::ZERO, "one event has no pause");
        timing.last = timing.last.and_then(|last| last.checked_sub(Time::from_secs(3)));
        split_events("data: 2\n\ndata: 3\n\n", |event| timing.on_response_event(event));
        assert!(timing.longest >= Time::from_secs(3));
        assert_eq!(timing.events, 3);
    }
}
