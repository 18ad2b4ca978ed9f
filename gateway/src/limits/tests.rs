//! Promises to the rest of the gateway: all rules reserve together or not at all, and are settled by what was used.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use http::{HeaderName, HeaderValue};
use serde_json::json;
use spillway_config::schema::{ConsumerLimits, OnExceeded};
use spillway_filter::{Caller, Fields, LimitBy, LimitSpec, Quota, Refusal, RequestView};

use super::*;
use crate::commit_steps::CommitSteps;
use crate::telemetry::{Metrics, Samples};

struct Asked<'a> {
    consumer: Option<&'a str>,
    address: &'a str,
    credential: Option<Credential>,
    headers: Fields,
    model: Option<&'a str>,
    expected: Option<(Estimate, u64)>,
}

impl Default for Asked<'_> {
    fn default() -> Self {
        let headers = Fields::default();
        Self { consumer: Some("a"), address: "10.0.0.1", credential: None, headers, model: None, expected: None }
    }
}

fn limits() -> (Limits, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    (Limits::new(1024, metrics.clone()), metrics)
}

fn rules(limits: &Limits, json: serde_json::Value) -> Rules {
    let written: ConsumerLimits = serde_json::from_value(json).unwrap();
    let commit_steps = CommitSteps::default();
    let mut rules = limits.of_consumers("consumer a", &written, &commit_steps).unwrap();
    commit_steps.run();
    rules.extend(written.budget.as_ref().map(|budget| limits.budget("consumer a", "this consumer", "a", budget)));
    rules
}

fn by(limits: &Limits, by: LimitBy, count: u32) -> Rules {
    let quota = Quota { rate: format!("{count}/h").parse().unwrap(), burst: NonZeroU32::new(count).unwrap() };
    let spec = LimitSpec {
        by,
        subject: "x".into(),
        requests: Some(quota),
        cost: None,
        tokens: None,
        concurrency: None,
        on_exceeded: OnExceeded::Reject,
    };
    let commit_steps = CommitSteps::default();
    let (mut guards, filters) = limits.of_filter("r", &spec, &commit_steps).unwrap();
    commit_steps.run();
    guards.extend(filters);
    guards
}

fn take(rules: &Rules, asked: &Asked<'_>, ledger: &mut Ledger) -> Result<(), Box<Refusal>> {
    let claims = serde_json::Value::Null;
    let view = RequestView {
        method: &http::Method::POST,
        path: "/",
        host: None,
        secure: false,
        headers: &asked.headers,
        client: asked.address.parse().unwrap(),
        caller: asked.consumer.map(|consumer| Caller { consumer, tenant: "t", scopes: &[], claims: &claims }),
        route: "r",
        query: "",
        is_repeatable: false,
        system: None,
        prompt_tokens: None,
        model: asked.model,
        body: None,
    };
    let subject = Subject { view: &view, credential: asked.credential };
    let wanted: Vec<ReservationRequest<'_>> =
        rules.iter().filter_map(|rule| rule.reservation(subject, asked.expected)).collect();
    reserve(&wanted, ledger).now_or_never().expect("levels that are here are never waited for")
}

fn passes(rules: &Rules, asked: &Asked<'_>) -> bool {
    take(rules, asked, &mut Ledger::default()).is_ok()
}

fn tokens(input: u64, output: u64) -> Option<(Estimate, u64)> {
    Some((Estimate { input, output }, 0))
}

#[test]
fn a_burst_passes_and_then_the_rate() {
    let (limits, metrics) = limits();
    let rules = rules(&limits, json!({"requests": "1/min", "burst": 3}));
    for left in [2, 1, 0] {
        let mut ledger = Ledger::default();
        take(&rules, &Asked::default(), &mut ledger).unwrap();
        assert_eq!(ledger.shown().next().unwrap().remaining, left);
    }
    let mut ledger = Ledger::default();
    let refusal = take(&rules, &Asked::default(), &mut ledger).unwrap_err();
    assert_eq!((refusal.status.as_u16(), refusal.code), (429, "rate_limit_exceeded"));
    let wait = refusal.retry_after.unwrap();
    assert!(wait > Duration::from_secs(58) && wait <= Duration::from_secs(60), "{wait:?}");
    let shown = ledger.shown().next().unwrap();
    assert!(shown.reset > Duration::from_secs(178) && shown.reset <= Duration::from_secs(180), "{:?}", shown.reset);
    assert_eq!(shown.policy.as_ref().unwrap(), "\"requests\";q=1;w=60");
    assert!(passes(&rules, &Asked { consumer: Some("b"), ..Asked::default() }), "another has its own level");
    assert!(
        metrics
            .encode(&Samples::default(), crate::telemetry::MetricsFormat::OpenMetrics)
            .contains("spillway_limit_refusals_total{limit=\"consumer a/requests/60\"} 1")
    );
}

#[test]
fn all_rules_take_or_none() {
    let (limits, _) = limits();
    let wide = by(&limits, LimitBy::Route, 2);
    let mut both = wide.clone();
    both.extend(rules(&limits, json!({"requests": "1/h"})));
    assert!(passes(&both, &Asked::default()));
    for _ in 0..3 {
        assert!(!passes(&both, &Asked::default()), "the narrow one is spent");
    }
    assert!(passes(&wide, &Asked::default()), "and the wide one has lost nothing by that");
    assert!(!passes(&wide, &Asked::default()));
    // Reservations of one step are released when a later step refuses.
    let (early, late) = (by(&limits, LimitBy::Model, 1), by(&limits, LimitBy::ApiKey, 1));
    let asked = Asked { credential: Some(9), ..Asked::default() };
    assert!(passes(&late, &asked));
    let mut ledger = Ledger::default();
    take(&early, &asked, &mut ledger).unwrap();
    take(&late, &asked, &mut ledger).unwrap_err();
    assert!(passes(&early, &asked));
}

#[test]
fn the_wait_that_is_told_is_that_of_the_slowest_rule() {
    let (limits, _) = limits();
    let mut all = rules(&limits, json!({"requests": "1/min"}));
    all.extend(by(&limits, LimitBy::Route, 1));
    assert!(passes(&all, &Asked::default()));
    let refusal = take(&all, &Asked::default(), &mut Ledger::default()).unwrap_err();
    assert!(refusal.retry_after.unwrap() > Duration::from_secs(3500));
}

#[test]
fn tokens_are_reserved_by_estimate_and_settled_by_use() {
    let (limits, _) = limits();
    let rules = rules(&limits, json!({"tokens": "1000/h"}));
    let asked = Asked { expected: tokens(100, 500), ..Asked::default() };
    let mut first = Ledger::default();
    take(&rules, &asked, &mut first).unwrap();
    assert!(first.counts_tokens());
    let refusal = take(&rules, &asked, &mut Ledger::default()).unwrap_err();
    assert_eq!(refusal.code, "rate_limit_exceeded");
    // 200 more than there are: 200 x 3.6 s.
    let wait = refusal.retry_after.unwrap().as_secs();
    assert!((719..=720).contains(&wait), "{wait}");
    first.settle(Used { input: 90, output: 10, ..Used::default() });
    drop(first);
    let mut second = Ledger::default();
    take(&rules, &asked, &mut second).unwrap();
    assert_eq!(second.shown().next().unwrap().remaining, 300);
    // Far more than was expected: the bucket owes it.
    second.settle(Used { input: 100, output: 1_400, ..Used::default() });
    drop(second);
    let small = Asked { expected: tokens(1, 1), ..Asked::default() };
    let refusal = take(&rules, &small, &mut Ledger::default()).unwrap_err();
    let wait = refusal.retry_after.unwrap().as_secs();
    assert!((602 * 36 / 10 - 2..=602 * 36 / 10).contains(&wait), "{wait}");
}

#[test]
fn a_request_that_was_not_answered_uses_no_tokens() {
    let (limits, _) = limits();
    let rules = rules(&limits, json!({"tokens": "600/h"}));
    let asked = Asked { expected: tokens(100, 500), ..Asked::default() };
    for _ in 0..3 {
        assert!(passes(&rules, &asked), "dropped unsettled, it gave all back");
    }
    assert!(passes(&rules, &Asked { expected: None, ..Asked::default() }), "a request without tokens needs none");
}

#[test]
fn what_never_fits_is_told_so() {
    let (limits, _) = limits();
    let rules = rules(&limits, json!({"tokens": "100/h", "tokenBurst": 50}));
    let refusal =
        take(&rules, &Asked { expected: tokens(10, 41), ..Asked::default() }, &mut Ledger::default()).unwrap_err();
    assert_eq!((refusal.status.as_u16(), refusal.code), (400, "tokens_exceed_limit"));
    assert!(refusal.retry_after.is_none());
}

#[test]
fn a_limit_on_trial_only_counts() {
    let (limits, metrics) = limits();
    let rules = rules(&limits, json!({"requests": "1/h", "tokens": "10/h", "onExceeded": "shadow"}));
    let asked = Asked { expected: tokens(50, 50), ..Asked::default() };
    for _ in 0..3 {
        assert!(passes(&rules, &asked));
    }
    let text = metrics.encode(&Samples::default(), crate::telemetry::MetricsFormat::OpenMetrics);
    assert!(text.contains("spillway_limit_shadow_refusals_total{limit=\"consumer a/requests/3600\"} 2"), "{text}");
    assert!(text.contains("spillway_limit_shadow_refusals_total{limit=\"consumer a/tokens/3600\"} 3"), "{text}");
    assert!(text.contains("spillway_limit_refusals_total{limit=\"consumer a/tokens/3600\"} 0"), "{text}");
}

#[test]
fn so_many_run_at_the_same_time() {
    let (limits, _) = limits();
    let rules = rules(&limits, json!({"concurrency": 2}));
    let mut ledgers = [Ledger::default(), Ledger::default()];
    for ledger in &mut ledgers {
        take(&rules, &Asked::default(), ledger).unwrap();
    }
    let refusal = take(&rules, &Asked::default(), &mut Ledger::default()).unwrap_err();
    assert_eq!((refusal.status.as_u16(), refusal.retry_after), (429, Some(Duration::from_secs(1))));
    assert!(passes(&rules, &Asked { consumer: Some("b"), ..Asked::default() }));
    drop(ledgers);
    assert!(passes(&rules, &Asked::default()));
}

#[test]
fn a_spent_budget_refuses_with_its_own_code() {
    let (limits, _) = limits();
    let rules = rules(&limits, json!({"budget": {"tokens": 1000, "usd": 0.001, "per": "month"}}));
    let asked =
        |total, nanos| Asked { expected: Some((Estimate { input: total, output: 0 }, nanos)), ..Asked::default() };
    let mut ledger = Ledger::default();
    take(&rules, &asked(600, 0), &mut ledger).unwrap();
    ledger.settle(Used { input: 100, nanos: 900_000, ..Used::default() });
    drop(ledger);
    assert!(passes(&rules, &asked(800, 100_000)));
    let refusal = take(&rules, &asked(10, 100_001), &mut Ledger::default()).unwrap_err();
    assert_eq!((refusal.status.as_u16(), refusal.code), (429, "insufficient_quota"));
    assert!(refusal.message.contains("month") && refusal.retry_after.unwrap() <= Duration::from_secs(31 * 86_400));
    assert!(take(&rules, &asked(901, 0), &mut Ledger::default()).is_err());
}

#[test]
fn whoever_a_rule_is_by_has_a_level() {
    let (limits, _) = limits();
    let header = || {
        let mut headers = Fields::default();
        headers.insert(HeaderName::from_static("x-user"), HeaderValue::from_static("mia"));
        headers
    };
    type Case<'c> = (LimitBy, Asked<'c>, Asked<'c>, bool);
    let cases: Vec<Case<'_>> = vec![
        (LimitBy::Consumer, Asked::default(), Asked { address: "10.0.0.2", ..Asked::default() }, true),
        (LimitBy::Consumer, Asked::default(), Asked { consumer: Some("b"), ..Asked::default() }, false),
        (LimitBy::Tenant, Asked::default(), Asked { consumer: Some("b"), ..Asked::default() }, true),
        (
            LimitBy::ApiKey,
            Asked { credential: Some(1), ..Asked::default() },
            Asked { credential: Some(2), ..Asked::default() },
            false,
        ),
        (
            LimitBy::ClientAddress,
            Asked { address: "2001:db8::1", ..Asked::default() },
            Asked { address: "2001:db8::f:1", ..Asked::default() },
            true,
        ),
        (
            LimitBy::ClientAddress,
            Asked { address: "2001:db8::1", ..Asked::default() },
            Asked { address: "2001:db8:0:1::1", ..Asked::default() },
            false,
        ),
        (LimitBy::ClientAddress, Asked { address: "::ffff:10.0.0.1", ..Asked::default() }, Asked::default(), true),
        (
            LimitBy::Consumer,
            Asked { consumer: None, ..Asked::default() },
            Asked { consumer: None, address: "10.0.0.9", ..Asked::default() },
            false,
        ),
        (LimitBy::Route, Asked::default(), Asked { consumer: None, address: "10.0.0.9", ..Asked::default() }, true),
        (
            LimitBy::Model,
            Asked { model: Some("m"), ..Asked::default() },
            Asked { model: Some("n"), ..Asked::default() },
            false,
        ),
        (
            LimitBy::Header(HeaderName::from_static("x-user")),
            Asked { headers: header(), ..Asked::default() },
            Asked { headers: header(), address: "10.0.0.9", ..Asked::default() },
            true,
        ),
        // Without the header the address counts: leaving it out is no escape.
        (LimitBy::Header(HeaderName::from_static("x-user")), Asked::default(), Asked::default(), true),
    ];
    for (n, (limit_by, first, second, shared)) in cases.into_iter().enumerate() {
        let (limits, _) = (limits.clone(), ());
        let spec = by(&limits, limit_by, 1);
        assert!(passes(&spec, &first), "case {n}");
        assert_eq!(!passes(&spec, &second), shared, "case {n}");
        drop(spec);
    }
}

#[test]
fn a_reload_keeps_levels_in_proportion() {
    let (limits, _) = limits();
    let before = rules(&limits, json!({"requests": "4/h"}));
    assert!(passes(&before, &Asked::default()) && passes(&before, &Asked::default()));
    let after = rules(&limits, json!({"requests": "8/h"}));
    drop(before);
    let mut ledger = Ledger::default();
    take(&after, &Asked::default(), &mut ledger).unwrap();
    assert_eq!(ledger.shown().next().unwrap().remaining, 3, "half of 8 was left, one is taken now");
}
