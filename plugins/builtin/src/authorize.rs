//! `authorize` and `cel`: conditions on a request, in CEL. An expression without a value refuses the request, so that
//! leaving something out helps nobody.

use std::sync::Arc;

use http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_cel::{EvaluationError, Expression, Fact, Scope, Seen};
use spillway_config::values::Status;
use spillway_filter::{BuildContext, ErrorKind, FieldError, Filter, FilterFactory, Flow, Refusal, RequestView, define};

/// A CEL expression that must be true, else the request is refused with 403.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
struct Authorize(String);

pub(crate) fn authorize() -> Box<dyn FilterFactory> {
    let compile = |config: &Authorize| {
        Expression::condition(&config.0, Scope::Request).map_err(|message| FieldError { path: Vec::new(), message })
    };
    define(
        "authorize",
        move |config: &Authorize| compile(config).err().into_iter().collect(),
        move |config: Authorize, _: &BuildContext<'_>| Ok(Arc::new(Allowed(compile(&config)?)) as Arc<dyn Filter>),
    )
}

struct Allowed(Expression);

impl Filter for Allowed {
    fn needs_body(&self) -> bool {
        self.0.asked().needs_body()
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        match self.0.holds(&Seen::from(&*x)) {
            Ok(true) => Flow::Continue,
            // Details are for the operator, who sees the refusal counted, not for the caller.
            Ok(false) | Err(_) => Flow::Refuse(Box::new(Refusal::new(
                StatusCode::FORBIDDEN,
                ErrorKind::Permission,
                "permission_denied",
                "you may not make this request",
            ))),
        }
    }
}

/// Refuses requests by a CEL expression.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cel {
    /// CEL expression; the request is refused if it is true or has no value. An
    /// expression that reads the body is skipped for a request without one.
    deny: String,
    /// Status of the refusal, from 400 to 499.
    #[serde(default = "bad_request")]
    status: Status,
    /// Message for the caller.
    #[serde(default = "message")]
    message: String,
}

fn bad_request() -> Status {
    Status(400)
}

fn message() -> String {
    "this request is not accepted here".to_owned()
}

pub(crate) fn cel() -> Box<dyn FilterFactory> {
    define("cel", check, build)
}

fn check(config: &Cel) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Err(message) = Expression::condition(&config.deny, Scope::Request) {
        errors.push(FieldError::at(["deny"], message));
    }
    if !(400..500).contains(&config.status.0) {
        errors.push(FieldError::at(["status"], format!("status {}; expected 400 to 499", config.status.0)));
    }
    errors
}

fn build(config: Cel, _: &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError> {
    let deny = Expression::condition(&config.deny, Scope::Request).map_err(|m| FieldError::at(["deny"], m))?;
    let status = StatusCode::from_u16(config.status.0).unwrap_or(StatusCode::BAD_REQUEST);
    Ok(Arc::new(Denied { deny, status, message: config.message }))
}

struct Denied {
    deny: Expression,
    status: StatusCode,
    message: String,
}

impl Denied {
    fn refuse(&self, code: &'static str, message: String) -> Flow {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => ErrorKind::Authentication,
            StatusCode::FORBIDDEN => ErrorKind::Permission,
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::TOO_MANY_REQUESTS => ErrorKind::RateLimited,
            _ => ErrorKind::InvalidRequest,
        };
        Flow::Refuse(Box::new(Refusal::new(self.status, kind, code, message)))
    }
}

impl Filter for Denied {
    fn needs_body(&self) -> bool {
        self.deny.asked().needs_body()
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        if self.deny.asked().reads(Fact::Body) && x.body.is_none_or(<[u8]>::is_empty) {
            return Flow::Continue;
        }
        match self.deny.holds(&Seen::from(&*x)) {
            Ok(false) => Flow::Continue,
            Ok(true) => self.refuse("request_denied", self.message.clone()),
            Err(EvaluationError::Missing(what) | EvaluationError::Failed(what)) => {
                self.refuse("request_not_judged", format!("{} ({what})", self.message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::{FilterBuilder, TestRequest};

    use super::*;

    fn run(factory: &dyn FilterFactory, config: serde_json::Value, consumer: Option<&str>, body: &[u8]) -> Option<u16> {
        let filter = FilterBuilder::new().build(factory, &config);
        let mut request = TestRequest::post("/", body.to_vec());
        if let Some(consumer) = consumer {
            request = request.caller(consumer, "t");
        }
        match request.decide(&*filter) {
            Flow::Refuse(refusal) => Some(refusal.status.as_u16()),
            _ => None,
        }
    }

    #[test]
    fn only_who_is_allowed_passes() {
        let rule = serde_json::json!("consumer.name == 'a'");
        assert_eq!(run(&*authorize(), rule.clone(), Some("a"), b""), None);
        assert_eq!(run(&*authorize(), rule.clone(), Some("b"), b""), Some(403));
        assert_eq!(run(&*authorize(), rule, None, b""), Some(403));
        let by_header = serde_json::json!("request.headers['x-role'] != 'guest'");
        assert_eq!(run(&*authorize(), by_header, Some("a"), b""), Some(403), "nobody passes by leaving something out");
    }

    #[test]
    fn what_is_denied_or_cannot_be_judged_is_refused() {
        let rule = serde_json::json!({"deny": "size(request.body.messages) > 1", "status": 422, "message": "too many"});
        assert_eq!(run(&*cel(), rule.clone(), None, br#"{"messages":[1]}"#), None);
        assert_eq!(run(&*cel(), rule.clone(), None, br#"{"messages":[1,2]}"#), Some(422));
        assert_eq!(run(&*cel(), rule.clone(), None, b"{}"), Some(422));
        assert_eq!(run(&*cel(), rule, None, b""), None, "there is no body to judge");
        assert!(!cel().check(&serde_json::json!({"deny": "true", "status": 200})).is_empty());
        assert!(!authorize().check(&serde_json::json!("consumer.nme == 'a'")).is_empty());
    }
}
