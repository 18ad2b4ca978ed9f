//! `spillway eval`: the value of an expression for a request in a file.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use spillway_cel::{Expression, Fact, Prompt, Scope, Seen, Served, SignalValue};
use spillway_config::path;
use spillway_filter::{Caller, Fields, Refusal, SignalKind, SignalName};

use super::{FAILED, WRONG, fail};
use crate::limits::Estimate;
use crate::prompt_signals::{JudgedRequest, read_prompt};
use crate::protocol::{self, ModelPlace, ResolvedOperation};

/// Most header fields of a request.
const MAX_FIELDS: usize = 256;
/// Request that an expression sees where none is named.
const PLAIN: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Arguments of `eval`.
#[derive(Args)]
#[command(
    after_help = "Exit codes: 0 the value is printed, 1 the request has no value for the expression, 2 a wrong expression or \
    file."
)]
pub(super) struct EvalArguments {
    /// The expression (CEL), with the names of docs/extend/expressions.md.
    #[arg(value_name = "EXPR")]
    expression: String,
    /// The request as HTTP/1.1 writes it: its head, an empty line, its body; `-` reads standard input. Without it, GET /.
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// The caller as JSON: {"name": "", "tenant": "", "scopes": [], "claims": {}}. Without it, an anonymous one.
    #[arg(long, value_name = "FILE")]
    consumer: Option<PathBuf>,
    /// The name of the route.
    #[arg(long, default_value = "", hide_default_value = true)]
    route: String,
    /// The address of the client.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    client: IpAddr,
    /// The caller uses TLS.
    #[arg(long)]
    tls: bool,
    /// Allow only the names that `routes[].matches[].when` knows: as `--place match`.
    #[arg(long, conflicts_with = "place")]
    when: bool,
    /// The place of the expression in the file, which decides what names it knows. Left out: with `--signals` a match, with
    /// `--response` a response header, with `--served` a field, else a filter.
    #[arg(long, value_enum)]
    place: Option<Place>,
    /// The signals as JSON: {"secret": true, "math": 0.8, "topic": {"law": 0.4, "code": 0.7}}; null is a number that is absent.
    #[arg(long, value_name = "FILE")]
    signals: Option<PathBuf>,
    /// The answer as HTTP/1.1 writes it: its head and an empty line.
    #[arg(long, value_name = "FILE")]
    response: Option<PathBuf>,
    /// Who answered, as JSON: {"backend": "", "version": "", "model": "", "usage": {"promptTokens": 0, "cachedTokens": 0,
    /// "completionTokens": 0}}.
    #[arg(long, value_name = "FILE")]
    served: Option<PathBuf>,
}

/// Place of an expression in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Place {
    /// `matches[].when`.
    Match,
    /// A filter that decides on requests.
    Filter,
    /// A header of the request for a server.
    RequestHeader,
    /// A header of the answer.
    ResponseHeader,
    /// A field of the access log or a span.
    Field,
}

impl EvalArguments {
    fn scope(&self) -> Scope {
        match self.place {
            _ if self.when => Scope::Head,
            Some(Place::Match) => Scope::Head,
            Some(Place::Filter) => Scope::Request,
            Some(Place::RequestHeader) => Scope::Upstream,
            Some(Place::ResponseHeader) => Scope::Answer,
            Some(Place::Field) => Scope::End,
            None if self.signals.is_some() => Scope::Head,
            None if self.served.is_some() => Scope::End,
            None if self.response.is_some() => Scope::Answer,
            None => Scope::Request,
        }
    }
}

/// Target and usage, as the file of `--served` has them.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ServedFile {
    backend: String,
    version: String,
    model: String,
    usage: UsageFile,
}

/// Tokens of an answer.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct UsageFile {
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

/// Caller, as the file of `--consumer` has it.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ConsumerFile {
    name: String,
    tenant: String,
    scopes: Vec<String>,
    claims: serde_json::Value,
}

/// Reason for which there is nothing to evaluate.
#[derive(Debug, thiserror::Error)]
enum EvalError {
    /// The text is not an expression.
    #[error("the expression: {0}")]
    Expression(String),
    /// A file cannot be read.
    #[error("{file}: {reason}")]
    File { file: String, reason: std::io::Error },
    /// A file is not what it should be.
    #[error("{file}: {reason}")]
    Content { file: String, reason: String },
}

/// Request of a file.
struct Request {
    method: String,
    path: String,
    query: String,
    headers: Fields,
    body: Vec<u8>,
    model: Option<String>,
}

/// Runs the command.
pub(super) fn run(arguments: &EvalArguments) -> ExitCode {
    match evaluate(arguments) {
        Ok(Ok((value, kind))) => {
            println!("{value} ({kind})");
            ExitCode::SUCCESS
        }
        Ok(Err(e)) => fail(FAILED, &format!("no value: {e}")),
        Err(e) => fail(WRONG, &e),
    }
}

type Value = Result<(serde_json::Value, String), spillway_cel::EvaluationError>;

fn evaluate(arguments: &EvalArguments) -> Result<Value, EvalError> {
    let (names, signals) = arguments.signals.as_deref().map(signals).transpose()?.unwrap_or_default();
    let expression = Expression::any_with(&arguments.expression, arguments.scope(), &names);
    let expression = expression.map_err(EvalError::Expression)?;
    let (file, bytes) = match &arguments.request {
        Some(file) => (file.display().to_string(), read(file)?),
        None => (String::new(), PLAIN.to_vec()),
    };
    let mut request = parse(&bytes).map_err(|reason| EvalError::Content { file: file.clone(), reason })?;
    if expression.asked().reads(Fact::Model) {
        request.model = model(&request).map_err(|reason| EvalError::Content { file, reason })?;
    }
    let prompt = Prompt { signals: signals.into(), ..prompt(&request) };
    let consumer: Option<ConsumerFile> = arguments.consumer.as_deref().map(json).transpose()?;
    let served: ServedFile = arguments.served.as_deref().map(json).transpose()?.unwrap_or_default();
    let answer = arguments.response.as_deref().map(answer).transpose()?;
    let caller = consumer.as_ref().map(|known| Caller {
        consumer: &known.name,
        tenant: &known.tenant,
        scopes: &known.scopes,
        claims: &known.claims,
    });
    Ok(expression.json(&Seen {
        method: &request.method,
        path: &request.path,
        query: &request.query,
        headers: &request.headers,
        client: arguments.client,
        route: &arguments.route,
        model: request.model.as_deref(),
        body: Some(request.body.as_slice()).filter(|body| !body.is_empty()),
        caller,
        secure: arguments.tls,
        now: None,
        served: Served {
            backend: &served.backend,
            version: &served.version,
            status: answer.as_ref().map_or(0, |(status, _)| status.as_u16()),
            headers: answer.as_ref().map(|(_, headers)| headers),
            model: &served.model,
            prompt_tokens: served.usage.prompt_tokens,
            cached_tokens: served.usage.cached_tokens,
            completion_tokens: served.usage.completion_tokens,
        },
        prompt: Some(&prompt),
        hides: None,
    }))
}

fn read(file: &Path) -> Result<Vec<u8>, EvalError> {
    let mut bytes = Vec::new();
    let done = if file == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes).map(drop)
    } else {
        std::fs::read(file).map(|read| bytes = read)
    };
    done.map_err(|reason| EvalError::File { file: file.display().to_string(), reason })?;
    Ok(bytes)
}

fn json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T, EvalError> {
    let bytes = read(file)?;
    let wrong = |e: serde_json::Error| EvalError::Content { file: file.display().to_string(), reason: e.to_string() };
    serde_json::from_slice(&bytes).map_err(wrong)
}

/// Names and values of signals in a file. A signal with labels has the greatest of their values.
fn signals(file: &Path) -> Result<(Vec<SignalName>, Vec<Option<SignalValue>>), EvalError> {
    use serde_json::Value;
    let written: std::collections::BTreeMap<String, Value> = json(file)?;
    let mut all = Vec::new();
    for (name, value) in written {
        let double = |value: &Value| (value.is_null() || value.is_number()).then(|| value.as_f64());
        let named = |name: String, value: Option<f64>| {
            (SignalName { name, kind: SignalKind::Double }, value.map(SignalValue::Double))
        };
        let labels: Option<Vec<(String, Option<f64>)>> = match &value {
            Value::Bool(holds) => {
                all.push((SignalName { name, kind: SignalKind::Bool }, Some(SignalValue::Bool(*holds))));
                continue;
            }
            Value::Object(labels) => {
                labels.iter().map(|(label, value)| Some((label.clone(), double(value)?))).collect()
            }
            value => double(value).map(|value| vec![(String::new(), value)]),
        };
        let Some(labels) = labels else {
            let reason = format!("`{name}` is {value}; expected true, false, a number, null, or an object of numbers");
            return Err(EvalError::Content { file: file.display().to_string(), reason });
        };
        let greatest = labels.iter().filter_map(|(_, value)| *value).max_by(f64::total_cmp);
        all.push(named(name.clone(), greatest));
        let labelled = labels.into_iter().filter(|(label, _)| !label.is_empty());
        all.extend(labelled.map(|(label, value)| named(format!("{name}.{label}"), value)));
    }
    Ok(all.into_iter().unzip())
}

/// Conversation of a request, as a match sees it.
fn prompt(request: &Request) -> Prompt {
    let Ok(method) = Method::from_bytes(request.method.as_bytes()) else { return Prompt::default() };
    let operation = ResolvedOperation::of(&method, &request.path).operation;
    let peeked = protocol::peek(&request.body, true).ok();
    let tokens = peeked.map(|peek| Estimate::new(peek.prompt_bytes, peek.images, peek.sounds, None, false).input);
    // What the gateway refuses has no conversation either.
    let body = tokens.is_some().then_some(request.body.as_slice());
    read_prompt(JudgedRequest { operation, body, tokens })
}

/// Status and headers of the answer in a file; what follows the empty line is not read.
fn answer(file: &Path) -> Result<(StatusCode, Fields), EvalError> {
    let bytes = read(file)?;
    let wrong = |reason: String| EvalError::Content { file: file.display().to_string(), reason };
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    match head.parse(&bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => {
            return Err(wrong("the head of the answer has no end; expected an empty line".to_owned()));
        }
        Err(e) => {
            return Err(wrong(format!(
                "this is not an answer: {e}; expected `HTTP/1.1 200 OK`, its headers, an empty line"
            )));
        }
    }
    let status = StatusCode::from_u16(head.code.unwrap_or_default()).map_err(|e| wrong(e.to_string()))?;
    Ok((status, fields_of(head.headers).map_err(wrong)?))
}

fn fields_of(written: &[httparse::Header<'_>]) -> Result<Fields, String> {
    let mut headers = Fields::with_capacity(written.len());
    for field in written {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|e| format!("`{}`: {e}", field.name))?;
        let value = HeaderValue::from_bytes(field.value).map_err(|e| format!("the value of `{name}`: {e}"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Parses a request; lines may end as text files have it, and the body is what follows the empty line, of any length.
fn parse(bytes: &[u8]) -> Result<Request, String> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let begins = match head.parse(bytes) {
        Ok(httparse::Status::Complete(begins)) => begins,
        Ok(httparse::Status::Partial) => {
            return Err("the head of the request has no end; expected an empty line".to_owned());
        }
        Err(e) => {
            return Err(format!(
                "this is not a request: {e}; expected `GET /path HTTP/1.1`, its headers, an empty line"
            ));
        }
    };
    let target: http::Uri = head.path.unwrap_or_default().parse().map_err(|e| format!("the target: {e}"))?;
    let headers = fields_of(head.headers)?;
    let body = bytes.get(begins..).unwrap_or_default().to_vec();
    if !body.is_empty() && headers.contains_key(header::CONTENT_ENCODING) {
        return Err(
            "a body in a `content-encoding` is not decoded here: write it plain, without this header".to_owned()
        );
    }
    let path = path::normal(target.path()).map_err(|e| format!("the path `{}`: {e}", target.path()))?;
    Ok(Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: path::key(&path).into_owned(),
        query: target.query().unwrap_or_default().to_owned(),
        headers,
        body,
        model: None,
    })
}

/// Model that a request names where the gateway reads it: in the path of an API, in a form, in the message of a gRPC call, or in JSON.
/// A request that the gateway refuses, because readers could find different models in it, is an error.
fn model(request: &Request) -> Result<Option<String>, String> {
    let method = Method::from_bytes(request.method.as_bytes()).map_err(|_| "the method is no token".to_owned())?;
    let resolved = ResolvedOperation::of(&method, &request.path);
    let refused = |refusal: Refusal| format!("the gateway refuses this request: {}", refusal.message);
    let (body, dialect) = (request.body.as_slice(), resolved.dialect);
    match resolved.model_place {
        ModelPlace::Path => {
            let named = resolved.api.model_in_path(&request.path).and_then(|at| request.path.get(at));
            let bytes = |name: &str| path::decoded(name).into_iter().map(|(byte, _)| byte).collect::<Vec<u8>>();
            Ok(named.map(|name| String::from_utf8_lossy(&bytes(name)).into_owned()))
        }
        ModelPlace::Message => Ok(resolved.api.model_in_message(body).map_err(refused)?.map(|named| named.name)),
        ModelPlace::Body => {
            let content_type = request.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
            if !resolved.must_be_json && protocol::is_form(content_type) {
                return Ok(protocol::form_model(content_type, body).map_err(refused)?.map(|(name, _)| name));
            }
            let says_json = content_type.windows(4).any(|part| part.eq_ignore_ascii_case(b"json"));
            if body.is_empty() || !(says_json || resolved.must_be_json || protocol::looks_like_json(body)) {
                return Ok(None);
            }
            let named = protocol::peek(body, true).map_err(refused)?.model;
            Ok(named.map(|name| dialect.bare_model(&name).to_owned()))
        }
    }
}
