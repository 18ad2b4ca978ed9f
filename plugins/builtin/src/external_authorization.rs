//! `externalAuthorization`: another server decides whether a request may pass, as with Envoy's `ext_authz` over HTTP.
//! The method, the path and chosen headers are sent to it. A 2xx answer lets the request pass, with added headers; any
//! other answer but 5xx refuses it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::values::{Duration, quoted_url};
use spillway_filter::{
    Answer, BuildContext, ErrorKind, FieldError, Filter, FilterFactory, Flow, HttpClient, Refusal, RequestView, Waited,
    define,
};

/// Decision while the authorization server is unavailable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum OnFailure {
    /// The request is refused with 403.
    #[default]
    Closed,
    /// The request passes.
    Open,
}

/// Asks another server whether a request may pass.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct External {
    /// URL of the authorization server; the path of the request is appended.
    url: String,
    /// Longest wait for the answer.
    #[serde(default = "timeout")]
    timeout: Duration,
    /// Decision if the server is unavailable, too slow, or answers 5xx.
    #[serde(default)]
    on_failure: OnFailure,
    /// Request headers that are sent to the server.
    #[serde(default = "forwarded")]
    forward_headers: Vec<String>,
    /// Headers of the server's answer that are set on the request. A caller's own of these names are removed on every
    /// route.
    #[serde(default)]
    copy_to_request: Vec<String>,
    /// Headers of the server's refusal that the caller gets, such as `location`, `set-cookie` or `www-authenticate`.
    /// With any, the caller also gets the refusal's status and body, in place of an error of the gateway's.
    #[serde(default)]
    copy_to_answer: Vec<String>,
}

fn timeout() -> Duration {
    Duration::millis(200)
}

fn forwarded() -> Vec<String> {
    vec!["authorization".to_owned()]
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define("externalAuthorization", |config: &External| compile(config).err().unwrap_or_default(), build)
}

struct Compiled {
    url: String,
    /// Server without path, for logs.
    server: String,
    forward: Vec<HeaderName>,
    copy: Vec<HeaderName>,
    answer: Vec<HeaderName>,
}

fn compile(config: &External) -> Result<Compiled, Vec<FieldError>> {
    let mut errors = Vec::new();
    let url = match url::Url::parse(&config.url) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none() => url,
        _ => {
            let message = format!(
                "{} is not the URL of a server: write http://HOST:PORT/PATH, without a query",
                quoted_url(&config.url)
            );
            return Err(vec![FieldError::at(["url"], message)]);
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        let message = "a user or password in the URL is not sent, and would be readable in the file: remove it";
        errors.push(FieldError::at(["url"], message));
    }
    if config.timeout.0.is_zero() || config.timeout.0.as_secs() > 10 {
        errors.push(FieldError::at(["timeout"], "must be above zero and at most 10s: every request waits for it"));
    }
    let mut names = |key: &str, written: &[String]| {
        let parsed = written.iter().map(|name| {
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| errors.push(FieldError::at([key], format!("`{name}` is not a header name"))))
        });
        parsed.collect::<Result<Vec<_>, ()>>().unwrap_or_default()
    };
    let forward = names("forwardHeaders", &config.forward_headers);
    let copy = names("copyToRequest", &config.copy_to_request);
    let answer = names("copyToAnswer", &config.copy_to_answer);
    let framing = [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION];
    for name in copy.iter().chain(&forward).chain(&answer).filter(|name| framing.contains(name)) {
        errors.push(FieldError {
            path: Vec::new(),
            message: format!("`{name}` belongs to the connection and is not passed on"),
        });
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let server = url.origin().ascii_serialization();
    Ok(Compiled { server, url: url.as_str().trim_end_matches('/').to_owned(), forward, copy, answer })
}

fn build(config: External, cx: &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError> {
    let compiled = compile(&config).map_err(|mut errors| errors.remove(0))?;
    cx.http.prepare();
    Ok(Arc::new(Asks {
        compiled: Arc::new(compiled),
        timeout: config.timeout.0,
        on_failure: config.on_failure,
        http: cx.http.clone(),
    }))
}

struct Asks {
    compiled: Arc<Compiled>,
    timeout: std::time::Duration,
    on_failure: OnFailure,
    http: Arc<dyn HttpClient>,
}

impl Filter for Asks {
    fn owned_headers(&self) -> &[HeaderName] {
        &self.compiled.copy
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        // As Envoy: the method and path of the request, without its body.
        let query = if x.query.is_empty() { String::new() } else { format!("?{}", x.query) };
        let mut question =
            http::Request::builder().method(x.method.clone()).uri(format!("{}{}{query}", self.compiled.url, x.path));
        if *x.method == Method::CONNECT {
            return Flow::Refuse(Box::new(refused()));
        }
        for name in &self.compiled.forward {
            for value in x.headers.get_all(name) {
                question = question.header(name, value);
            }
        }
        if let Some(host) = x.headers.get(header::HOST) {
            question = question.header("x-forwarded-host", host);
        }
        question = question.header("x-forwarded-for", x.client.to_string());
        if let Some(caller) = x.caller {
            question =
                question.header("x-spillway-consumer", caller.consumer).header("x-spillway-tenant", caller.tenant);
        }
        let Ok(question) = question.body(Bytes::new()) else { return Flow::Refuse(Box::new(refused())) };
        let call = self.http.call(question, self.timeout);
        let (compiled, on_failure) = (self.compiled.clone(), self.on_failure);
        Flow::Wait(Box::pin(async move {
            match (call.await, on_failure) {
                (Ok(answer), _) if answer.status().is_success() => {
                    Waited { request_headers: copied(&compiled.copy, &answer), ..Waited::default() }
                }
                (Ok(answer), _) if !answer.status().is_server_error() => refusal(&compiled, answer),
                (failed, on_failure) => {
                    let failure = match failed {
                        Ok(answer) => format!("{} answered {}", compiled.server, answer.status()),
                        Err(e) => format!("{}: {e}", compiled.server),
                    };
                    let refusal = (on_failure == OnFailure::Closed).then(|| Box::new(refused()));
                    Waited { refusal, failure: Some(failure), ..Waited::default() }
                }
            }
        }))
    }
}

fn copied(names: &[HeaderName], answer: &http::Response<Bytes>) -> Vec<(HeaderName, HeaderValue)> {
    let headers = names.iter().flat_map(|name| answer.headers().get_all(name).iter().map(move |value| (name, value)));
    headers.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Result for a refusal by the authorization server.
fn refusal(compiled: &Compiled, answer: http::Response<Bytes>) -> Waited {
    // A 1xx answer is not final.
    if compiled.answer.is_empty() || answer.status().is_informational() {
        return Waited { refusal: Some(Box::new(passed_on(answer.status()))), ..Waited::default() };
    }
    let mut headers = copied(&compiled.answer, &answer);
    if !compiled.answer.contains(&header::CONTENT_TYPE) && !answer.body().is_empty() {
        headers.extend(answer.headers().get(header::CONTENT_TYPE).map(|value| (header::CONTENT_TYPE, value.clone())));
    }
    let answer = Answer { status: answer.status(), headers, body: answer.into_body() };
    Waited { answer: Some(Box::new(answer)), ..Waited::default() }
}

fn refused() -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, ErrorKind::Permission, "permission_denied", "you may not make this request")
}

/// Refusal with the server's status if that is 401, 404 or 429, else 403.
fn passed_on(status: StatusCode) -> Refusal {
    match status {
        StatusCode::UNAUTHORIZED => {
            Refusal::new(status, ErrorKind::Authentication, "invalid_credentials", "your credentials were not accepted")
        }
        StatusCode::TOO_MANY_REQUESTS => {
            Refusal::new(status, ErrorKind::RateLimited, "rate_limit_exceeded", "too many requests")
        }
        StatusCode::NOT_FOUND => Refusal::new(status, ErrorKind::NotFound, "not_found", "there is no such thing here"),
        _ => refused(),
    }
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::{FilterBuilder, FixedHttp, TestRequest, wait};

    use super::*;

    #[test]
    fn mistakes_are_told_with_their_place() {
        let errors = |json| {
            compile(&serde_json::from_value(json).unwrap()).err().map(|e| e[0].message.clone()).unwrap_or_default()
        };
        assert_eq!(errors(serde_json::json!({"url": "http://127.0.0.1:9/check"})), "");
        for (wrong, part) in [
            (serde_json::json!({"url": "127.0.0.1:9"}), "not the URL"),
            (serde_json::json!({"url": "http://a/", "timeout": "11s"}), "at most 10s"),
            (serde_json::json!({"url": "http://a/", "forwardHeaders": ["x y"]}), "not a header name"),
            (serde_json::json!({"url": "http://a/", "copyToRequest": ["host"]}), "belongs to the connection"),
            (serde_json::json!({"url": "http://a/", "copyToAnswer": ["content-length"]}), "belongs to the connection"),
        ] {
            let told = errors(wrong.clone());
            assert!(told.contains(part), "{wrong}: {told}");
        }
    }

    #[test]
    fn the_answer_of_the_server_decides() {
        let config = serde_json::json!({"url": "http://judge.test/check", "copyToRequest": ["x-user"]});
        let request = TestRequest::get("/a?b=1").header("authorization", "Bearer t").caller("acme", "north");
        let ask = |http: &Arc<FixedHttp>| {
            let filter = FilterBuilder::new().http(http.clone()).build(&*factory(), &config);
            wait(request.decide(&*filter))
        };
        let answer = |status: u16| {
            let answer = http::Response::builder().status(status).header("x-user", "u-1").header("x-other", "1");
            FixedHttp::answering(answer.body(Bytes::new()).unwrap())
        };
        let http = answer(200);
        let waited = ask(&http);
        assert!(waited.refusal.is_none());
        assert_eq!(waited.request_headers, [("x-user".parse().unwrap(), "u-1".parse().unwrap())]);
        let asked = http.requests();
        assert_eq!((asked.len(), asked[0].uri().to_string().as_str()), (1, "http://judge.test/check/a?b=1"));
        assert_eq!(
            (&asked[0].headers()["authorization"], &asked[0].headers()["x-spillway-consumer"]),
            (&HeaderValue::from_static("Bearer t"), &HeaderValue::from_static("acme"))
        );
        for (status, refused) in [(401, 401), (404, 404), (302, 403)] {
            assert_eq!(ask(&answer(status)).refusal.map(|refusal| refusal.status.as_u16()), Some(refused), "{status}");
        }
        for (http, failure) in
            [(answer(503), "http://judge.test answered 503"), (FixedHttp::failing("cut"), "http://judge.test: cut")]
        {
            let waited = ask(&http);
            assert_eq!(waited.refusal.map(|refusal| refusal.status.as_u16()), Some(403));
            assert!(waited.failure.is_some_and(|told| told.starts_with(failure)), "{failure}");
        }
    }
}
