//! `rateLimit`: requests, tokens and concurrent requests, counted by an attribute of the request. The filter only
//! names the rule; the gateway keeps the levels and judges all rules of a request together.

use std::num::NonZeroU32;
use std::sync::Arc;

use http::HeaderName;
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_cel::{Expression, Scalar, Scope, Seen};
use spillway_config::schema::OnExceeded;
use spillway_config::values::Rate;
use spillway_filter::{
    BuildContext, FieldError, Filter, FilterFactory, LimitBy, LimitCost, LimitKey, LimitSpec, Quota, RequestView,
    Stage, define,
};

/// Limits the rate of use. At least one of `requests`, `tokens` and `concurrency`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RateLimit {
    /// Requests that share the limit.
    by: LimitBy<String, String>,
    /// Requests in a period, such as 10/s.
    #[serde(default)]
    requests: Option<Rate>,
    /// Requests allowed at once; as many as `requests` names if left out.
    #[serde(default)]
    burst: Option<NonZeroU32>,
    /// Amount that a request takes of `requests`, in CEL: a number, rounded up, which is at most `burst`; 0 takes nothing. All
    /// of `burst` where the expression has no value, or a negative one; 1 for a request without a body that it reads, and when left out.
    #[serde(default)]
    cost: Option<String>,
    /// Tokens, read and written, in a period.
    #[serde(default)]
    tokens: Option<Rate>,
    /// Tokens allowed at once; as many as `tokens` names if left out.
    #[serde(default)]
    token_burst: Option<NonZeroU32>,
    /// Requests allowed at the same time.
    #[serde(default)]
    concurrency: Option<NonZeroU32>,
    /// Treatment of a request over the limit.
    #[serde(default)]
    on_exceeded: OnExceeded,
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define("rateLimit", check, build)
}

fn check(config: &RateLimit) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if config.requests.is_none() && config.tokens.is_none() && config.concurrency.is_none() {
        let message = "a limit is of `requests`, `tokens`, `concurrency` or several of them";
        errors.push(FieldError { path: Vec::new(), message: message.to_owned() });
    }
    if config.burst.is_some() && config.requests.is_none() {
        errors.push(FieldError::at(
            ["burst"],
            "this is how many `requests` may come at once; for tokens write `tokenBurst`",
        ));
    }
    if config.token_burst.is_some() && config.tokens.is_none() {
        errors.push(FieldError::at(
            ["tokenBurst"],
            "this is how many `tokens` may be taken at once, and there is no `tokens`",
        ));
    }
    for (key, rate) in [("requests", config.requests), ("tokens", config.tokens)] {
        if rate.is_some_and(|rate| (rate.period / rate.count.get()).is_zero()) {
            errors.push(FieldError::at([key], "this rate is too high to be kept"));
        }
    }
    if config.cost.is_some() && config.requests.is_none() {
        errors.push(FieldError::at(
            ["cost"],
            "this is how much of `requests` a request takes, and there is no `requests`",
        ));
    }
    errors.extend(cost(config.cost.as_ref()).err());
    if let Err(error) = compile(&config.by) {
        errors.push(error);
    }
    errors
}

struct Computed(Expression);

impl LimitKey for Computed {
    fn of(&self, x: &RequestView<'_>) -> Option<String> {
        self.0.text(&Seen::from(x).on_loop())
    }
}

/// Amount that an expression makes.
struct ComputedCost(Expression);

impl LimitCost for ComputedCost {
    fn of(&self, x: &RequestView<'_>) -> u32 {
        match self.0.scalar_of(&Seen::from(x).on_loop()) {
            Some(Scalar::Int(n)) if n >= 0 => u32::try_from(n).unwrap_or(u32::MAX),
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "not negative; a cast saturates"
            )]
            Some(Scalar::Double(n)) if n >= 0.0 => n.ceil() as u32,
            // There is nothing that the body could have made dear.
            _ if self.0.asked().needs_body() && x.body.is_none_or(<[u8]>::is_empty) => 1,
            // What a caller sends must not make a request cheap: a body that is too long to be read, or for the steps of the
            // expression, or with a number of another form.
            _ => u32::MAX,
        }
    }
}

/// Compiles `cost`.
fn cost(written: Option<&String>) -> Result<Option<ComputedCost>, FieldError> {
    let compiled = written.map(|text| Expression::number(text, Scope::Request)).transpose();
    compiled.map(|cost| cost.map(ComputedCost)).map_err(|why| FieldError::at(["cost"], why))
}

/// Compiles `by`; returns its name and whether it reads the body as well.
fn compile(by: &LimitBy<String, String>) -> Result<(LimitBy, String, bool), FieldError> {
    let mut reads_body = matches!(by, LimitBy::Model);
    let compiled = by.compile(
        |name| {
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| FieldError::at(["by", "header"], format!("`{name}` is not a header name")))
        },
        |text| {
            let expression =
                Expression::value(text, Scope::Request).map_err(|message| FieldError::at(["by", "value"], message))?;
            reads_body = expression.asked().needs_body();
            Ok(Arc::new(Computed(expression)))
        },
    )?;
    let name = match by {
        LimitBy::Consumer => "consumer".to_owned(),
        LimitBy::Tenant => "tenant".to_owned(),
        LimitBy::ApiKey => "API key".to_owned(),
        LimitBy::ClientAddress => "client address".to_owned(),
        LimitBy::Route => "route".to_owned(),
        LimitBy::Model => "model".to_owned(),
        LimitBy::Header(name) => format!("value of the header {}", name.to_ascii_lowercase()),
        LimitBy::Value(text) => format!("value of {text}"),
    };
    Ok((compiled, name, reads_body))
}

fn build(config: RateLimit, _: &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError> {
    let (by, subject, reads_body) = compile(&config.by)?;
    let cost = cost(config.cost.as_ref())?;
    let reads_body = reads_body || cost.as_ref().is_some_and(|cost| cost.0.asked().needs_body());
    let quota = |rate: Option<Rate>, burst: Option<NonZeroU32>| {
        rate.map(|rate| Quota { rate, burst: burst.unwrap_or(rate.count) })
    };
    let stage = if matches!(by, LimitBy::ClientAddress) && cost.is_none() { Stage::Guard } else { Stage::Route };
    let spec = LimitSpec {
        by,
        subject,
        requests: quota(config.requests, config.burst),
        cost: cost.map(|cost| Arc::new(cost) as Arc<dyn LimitCost>),
        tokens: quota(config.tokens, config.token_burst),
        concurrency: config.concurrency,
        on_exceeded: config.on_exceeded,
    };
    Ok(Arc::new(RateLimited { spec, stage, reads_body }))
}

struct RateLimited {
    spec: LimitSpec,
    stage: Stage,
    reads_body: bool,
}

impl Filter for RateLimited {
    fn stage(&self) -> Stage {
        self.stage
    }
    fn limits(&self) -> &[LimitSpec] {
        std::slice::from_ref(&self.spec)
    }
    fn only_declares(&self) -> bool {
        true
    }
    fn needs_body(&self) -> bool {
        self.reads_body
    }
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::{FilterBuilder, TestRequest};

    use super::*;

    fn errors(json: serde_json::Value) -> Vec<String> {
        check(&serde_json::from_value(json).unwrap()).into_iter().map(|e| e.message).collect()
    }

    #[test]
    fn a_limit_that_limits_nothing_is_told() {
        assert!(errors(serde_json::json!({"by": "consumer", "requests": "10/s"})).is_empty());
        assert!(errors(serde_json::json!({"by": {"header": "x-user"}, "tokens": "10/s", "concurrency": 3})).is_empty());
        assert!(errors(serde_json::json!({"by": {"value": "request.headers['x-org']"}, "requests": "1/s"})).is_empty());
        for (wrong, part) in [
            (serde_json::json!({"by": "consumer"}), "a limit is of"),
            (serde_json::json!({"by": "consumer", "tokens": "9/s", "burst": 3}), "write `tokenBurst`"),
            (serde_json::json!({"by": "consumer", "requests": "9/s", "tokenBurst": 3}), "no `tokens`"),
            (serde_json::json!({"by": "consumer", "requests": "4000000000/s"}), "too high"),
            (serde_json::json!({"by": {"header": "x user"}, "requests": "9/s"}), "not a header name"),
            (serde_json::json!({"by": {"value": "request.nothing"}, "requests": "9/s"}), "has no `nothing`"),
            (serde_json::json!({"by": "route", "requests": "9/s", "cost": "request.method"}), "expected a number"),
            (serde_json::json!({"by": "route", "tokens": "9/s", "cost": "2"}), "there is no `requests`"),
        ] {
            let told = errors(wrong.clone());
            assert!(told.len() == 1 && told[0].contains(part), "{wrong}: {told:?}");
        }
    }

    #[test]
    fn a_cost_is_a_number_that_is_not_negative_whatever_a_caller_sends() {
        let costs = |expression: &str, body: &str| {
            let config = serde_json::json!({"by": "clientAddress", "requests": "10/s", "cost": expression});
            let filter = FilterBuilder::new().build(&*factory(), &config);
            assert_eq!(filter.stage(), Stage::Route, "the body is known");
            assert_eq!(filter.needs_body(), expression.contains("body"));
            let cost = filter.limits()[0].cost.clone().unwrap();
            cost.of(&TestRequest::post("/", body.to_owned()).view())
        };
        for (expression, body, expected) in [
            ("3", "", 3),
            ("request.method == 'POST' ? 5 : 0", "", 5),
            ("size(request.body.list)", r#"{"list": [1, 2]}"#, 2),
            ("size(request.body.list)", r#"{"list": []}"#, 0),
            ("size(request.body.list)", "{}", u32::MAX),
            ("request.body.n", "", 1),
            ("request.body.n", "no JSON", u32::MAX),
            ("request.body.n / 100", r#"{"n": 5000.0}"#, u32::MAX),
            ("request.body.n", r#"{"n": 2.1}"#, 3),
            ("request.body.n", r#"{"n": -5}"#, u32::MAX),
            ("request.body.n", r#"{"n": -0.5}"#, u32::MAX),
            ("request.body.n", r#"{"n": "9"}"#, u32::MAX),
            ("request.body.n", r#"{"n": 1e300}"#, u32::MAX),
            ("request.body.n", r#"{"n": 99999999999999999999}"#, u32::MAX),
            ("request.body.n", r#"{"n": 18446744073709551615}"#, u32::MAX),
            ("request.body.n / 0.0", r#"{"n": 1.0}"#, u32::MAX),
            ("request.body.n / request.body.n", r#"{"n": 0.0}"#, u32::MAX),
        ] {
            assert_eq!(costs(expression, body), expected, "{expression} of {body}");
        }
    }
}
