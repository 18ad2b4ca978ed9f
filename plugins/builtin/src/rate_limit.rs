//! `rateLimit`: requests in a time by consumer, tenant, client address or route. The arithmetic is governor's (GCRA); what
//! is ours is the store, which is bounded, lets a request be judged by all rules before it takes from any, and is kept
//! over a reload.

mod store;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::values::Rate;
use spillway_filter::{
    BuildContext, ErrorKind, FieldError, Filter, FilterFactory, Flow, LimitStatus, Refusal, RequestView, Reservation,
    Stage, define,
};

use store::{Limit, Store, Verdict};

/// Who shares a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum By {
    /// All requests of one consumer; an anonymous caller counts by its address.
    Consumer,
    /// All consumers of one tenant; an anonymous caller counts by its address.
    Tenant,
    /// All requests from one address; of IPv6 the first 64 bits.
    ClientAddress,
    /// All requests of the route.
    Route,
}

/// Requests in a time.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RateLimit {
    /// Who shares the limit.
    by: By,
    /// How many requests in how long.
    requests: Rate,
    /// How many may come at once; as many as `requests` names when left out.
    #[serde(default)]
    burst: Option<NonZeroU32>,
}

/// `rateLimit`.
pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define("rateLimit", |_: &RateLimit| Vec::new(), build)
}

fn build(config: RateLimit, cx: &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError> {
    let burst = config.burst.unwrap_or(config.requests.count);
    let limit = Limit::new(config.requests.period / config.requests.count.get(), burst)
        .ok_or_else(|| FieldError::at(["requests"], "this rate is too high to be kept"))?;
    // The period is part of the name, so that two rules of one kind (10/s and 1000/h) do not share a level.
    let name = format!("{}/{:?}/{}", cx.route, config.by, config.requests.period.as_secs());
    let store = cx.states.get_or_insert(&name, || Store::new(limit));
    store.adopt(limit);
    Ok(Arc::new(Filtered { by: config.by, rate: config.requests, burst, store, hasher: hasher() }))
}

/// One key for the process: callers cannot choose addresses or names that collide.
fn hasher() -> RandomState {
    static HASHER: std::sync::OnceLock<RandomState> = std::sync::OnceLock::new();
    HASHER.get_or_init(RandomState::new).clone()
}

struct Filtered {
    by: By,
    rate: Rate,
    burst: NonZeroU32,
    store: Arc<Store>,
    hasher: RandomState,
}

impl Filtered {
    fn key(&self, x: &RequestView<'_>) -> u64 {
        match (self.by, x.caller) {
            (By::Route, _) => 0,
            (By::Consumer, Some(caller)) => self.hasher.hash_one(("c", caller.consumer)),
            (By::Tenant, Some(caller)) => self.hasher.hash_one(("t", caller.tenant)),
            _ => self.hasher.hash_one(("a", network(x.client))),
        }
    }
}

/// What counts as one address: a household or server has a /64 of IPv6.
fn network(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6) >> 64 << 64 | 1 << 63,
    }
}

struct Taken {
    store: Arc<Store>,
    key: u64,
}

impl Reservation for Taken {
    fn give_back(&self) {
        self.store.give_back(self.key);
    }
}

impl Filter for Filtered {
    fn stage(&self) -> Stage {
        if self.by == By::ClientAddress { Stage::Guard } else { Stage::Route }
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        let key = self.key(x);
        let status = |remaining: u32, reset: Duration| LimitStatus { limit: self.burst.get(), remaining, reset };
        match self.store.take(key) {
            Verdict::Taken { remaining, reset } => {
                x.ledger.add(Box::new(Taken { store: self.store.clone(), key }));
                x.ledger.show(status(remaining, reset));
                Flow::Continue
            }
            Verdict::Refused { wait, reset } => {
                x.ledger.show(status(0, reset));
                let by = match self.by {
                    By::Consumer => "consumer",
                    By::Tenant => "tenant",
                    By::ClientAddress => "client address",
                    By::Route => "route",
                };
                let message = format!("the limit of {} requests for this {by} is reached", self.rate);
                Flow::Refuse(Box::new(
                    Refusal::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::RateLimited, "rate_limit_exceeded", message)
                        .retry_after(wait),
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use spillway_filter::{Caller, Ledger, SharedStates};

    use super::*;

    fn view<'a>(
        headers: &'a http::HeaderMap,
        caller: Option<&'a str>,
        address: &str,
        ledger: &'a mut Ledger,
    ) -> RequestView<'a> {
        RequestView {
            method: &http::Method::GET,
            path: "/",
            query: None,
            host: None,
            secure: false,
            headers,
            client: address.parse().unwrap(),
            caller: caller.map(|name| Caller { consumer: name, tenant: "t" }),
            ledger,
        }
    }

    fn filter(states: &SharedStates, json: serde_json::Value) -> Arc<dyn Filter> {
        build(serde_json::from_value(json).unwrap(), &BuildContext { route: "r", prefixes: &[], states }).unwrap()
    }

    fn passes(filter: &Arc<dyn Filter>, caller: Option<&str>, address: &str) -> Result<Ledger, Box<(Refusal, Ledger)>> {
        let headers = http::HeaderMap::new();
        let mut ledger = Ledger::default();
        match filter.on_request(&mut view(&headers, caller, address, &mut ledger)) {
            Flow::Continue => Ok(ledger),
            Flow::Refuse(refusal) => Err(Box::new((*refusal, ledger))),
            Flow::Answer(answer) => panic!("{answer:?}"),
        }
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let states = SharedStates::default();
        let filter = filter(&states, serde_json::json!({"by": "consumer", "requests": "1/min", "burst": 3}));
        for left in [2, 1, 0] {
            let ledger = passes(&filter, Some("a"), "10.0.0.1").unwrap_or_else(|_| panic!("within the burst"));
            assert_eq!(ledger.tightest().unwrap().remaining, left);
        }
        let (refusal, ledger) = *passes(&filter, Some("a"), "10.0.0.1").err().unwrap();
        assert_eq!((refusal.status.as_u16(), refusal.code), (429, "rate_limit_exceeded"));
        let wait = refusal.retry_after.unwrap();
        assert!(wait > Duration::from_secs(58) && wait <= Duration::from_secs(60), "{wait:?}");
        let reset = ledger.tightest().unwrap().reset;
        assert!(reset > Duration::from_secs(178) && reset <= Duration::from_secs(180), "{reset:?}");
        assert!(passes(&filter, Some("b"), "10.0.0.1").is_ok(), "another consumer has its own level");
        assert!(passes(&filter, None, "10.0.0.1").is_ok(), "an anonymous caller counts by its address");
    }

    #[test]
    fn a_refused_request_takes_nothing_from_any_rule() {
        let states = SharedStates::default();
        let wide = filter(&states, serde_json::json!({"by": "clientAddress", "requests": "1/h", "burst": 2}));
        let mut ledger = passes(&wide, None, "10.0.0.1").unwrap_or_else(|_| panic!());
        ledger.give_back();
        for _ in 0..2 {
            assert!(passes(&wide, None, "10.0.0.1").is_ok());
        }
        assert!(passes(&wide, None, "10.0.0.1").is_err());
    }

    #[test]
    fn neighbours_of_an_ipv6_network_share_a_limit() {
        let states = SharedStates::default();
        let filter = filter(&states, serde_json::json!({"by": "clientAddress", "requests": "1/h"}));
        assert_eq!(filter.stage(), Stage::Guard);
        assert!(passes(&filter, None, "2001:db8::1").is_ok());
        assert!(passes(&filter, None, "2001:db8::ffff:1").is_err());
        assert!(passes(&filter, None, "2001:db8:0:1::1").is_ok());
        assert!(passes(&filter, None, "::ffff:10.0.0.1").is_ok());
        assert!(passes(&filter, None, "10.0.0.1").is_err(), "a mapped address is the IPv4 one");
    }

    #[test]
    fn a_reload_keeps_the_level_in_proportion() {
        let states = SharedStates::default();
        let before = filter(&states, serde_json::json!({"by": "route", "requests": "1/h", "burst": 4}));
        for _ in 0..2 {
            assert!(passes(&before, None, "10.0.0.1").is_ok());
        }
        let after = filter(&states, serde_json::json!({"by": "route", "requests": "1/h", "burst": 8}));
        let ledger = passes(&after, None, "10.0.0.1").unwrap_or_else(|_| panic!());
        assert_eq!(ledger.tightest().unwrap().remaining, 3, "half of 8 was left, one is taken now");
    }
}
