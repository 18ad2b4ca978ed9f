//! Access log: a line for each request that has ended, made on the thread that ended it and queued for the log's writer.
//! Writing never waits. Texts of callers and upstreams are shortened, and their control characters are escaped.

use http::HeaderName;
use spillway_cel::Scalar;
use spillway_config::schema::{LogFormat, Logs};
use spillway_filter::{Fields, NameSet};

use super::fields::FieldValues;
use super::json::{MAX_TEXT, ObjectLine, clipped};
use super::log_export::names as own;
use super::{LogExport, LogWriter, SpanIds, names};

/// Most bytes of names and values of headers in a line.
const MAX_HEADERS: usize = 8 << 10;
/// Value that stands for one that is not shown.
const REDACTED: &str = "[redacted]";

/// Headers of requests that lines show, from the configuration.
#[derive(Debug)]
pub struct LoggedHeaders {
    /// Names; `None` for all.
    names: Option<Vec<HeaderName>>,
    redacted: NameSet,
}

/// Headers of one request as its line shows them.
#[derive(Debug, Default)]
pub struct ShownHeaders<'a> {
    values: Vec<(&'a HeaderName, String)>,
    /// True if some were left out.
    is_cut: bool,
}

impl LoggedHeaders {
    /// Reads the configuration; `None` where no header is shown.
    pub fn new(logs: &Logs) -> Option<Box<Self>> {
        let names = |names: &[String]| -> Vec<_> {
            // Validation has refused what is no name; `*` is one.
            names.iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect()
        };
        let is_all = logs.headers.iter().any(|name| name == "*");
        let shown = names(&logs.headers);
        let redacted = names(&logs.redact_headers).into_iter().collect();
        (logs.access && !shown.is_empty()).then(|| Box::new(Self { names: (!is_all).then_some(shown), redacted }))
    }

    /// Headers of a request; `is_secret` is true for one that may hold a credential.
    pub fn of<'a>(&'a self, headers: &'a Fields, is_secret: impl Fn(&HeaderName) -> bool) -> ShownHeaders<'a> {
        let mut shown = ShownHeaders::default();
        let mut room = MAX_HEADERS;
        let mut show = |name: &'a HeaderName| {
            if shown.values.iter().any(|(known, _)| *known == name) {
                return;
            }
            let mut values = headers.get_all(name).iter().peekable();
            if values.peek().is_none() {
                return;
            }
            // A client of WebSocket in a browser has no other place for its key.
            let is_redacted = self.redacted.contains(name)
                || is_secret(name)
                || *name == http::header::SEC_WEBSOCKET_PROTOCOL
                || *name == http::header::PROXY_AUTHORIZATION;
            let mut text = String::new();
            for value in values {
                if is_redacted {
                    text.push_str(REDACTED);
                    break;
                }
                if !text.is_empty() {
                    text.push_str(", ");
                }
                text.push_str(clipped(&String::from_utf8_lossy(value.as_bytes())));
                if text.len() > MAX_TEXT {
                    break;
                }
            }
            let text = clipped(&text).to_owned();
            match room.checked_sub(name.as_str().len() + text.len()) {
                Some(left) => {
                    room = left;
                    shown.values.push((name, text));
                }
                None => shown.is_cut = true,
            }
        };
        match &self.names {
            Some(names) => names.iter().for_each(&mut show),
            None => headers.keys().for_each(&mut show),
        }
        shown
    }
}

/// Fields of a line. The query of the path is not logged: it may hold secrets.
#[derive(Debug)]
#[allow(missing_docs, reason = "each field is the key it is written as, in camel case")]
pub struct AccessRecord<'a> {
    pub timestamp: &'a str,
    /// Always `access`, to tell these lines from those of the process log.
    pub event: &'static str,
    pub request_id: &'a str,
    /// Written as `traceId` and `spanId`.
    pub span: Option<SpanIds>,
    pub client: std::net::IpAddr,
    pub consumer: Option<&'a str>,
    pub route: Option<&'a str>,
    pub method: &'a str,
    pub path: &'a str,
    pub protocol: &'static str,
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration_ms: f64,
    pub served_by: &'a str,
    pub endpoint: Option<&'a str>,
    pub attempts: u32,
    pub cause: Option<&'static str>,
    pub failed_endpoint: Option<&'a str>,
    pub limit: Option<&'static str>,
    pub spilled: Option<&'static str>,
    pub not_spilled: Option<&'static str>,
    pub not_spilled_field: Option<&'a str>,
    /// True if a built-in model continued a stream that died.
    pub resumed: bool,
    /// Time in a queue.
    pub queue_ms: Option<f64>,
    pub model_asked: Option<&'a str>,
    pub model_answered: Option<&'a str>,
    pub prompt_tokens: Option<u64>,
    /// Tokens of the prompt that a cache had.
    pub cached_tokens: Option<u64>,
    /// Tokens of the prompt that were written to a cache.
    pub cache_written_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    pub ttft_ms: Option<f64>,
    /// Reason for which a socket ended.
    pub socket_end: Option<&'static str>,
    pub error_code: Option<&'static str>,
    pub user_agent: Option<&'a str>,
    /// Headers of the request; `None` where none are shown.
    pub headers: Option<ShownHeaders<'a>>,
    /// Fields that expressions made.
    pub fields: FieldValues<'a>,
}

impl ShownHeaders<'_> {
    /// Headers for a line of words.
    fn words(&self) -> String {
        // Debug escapes control characters.
        let words = self.values.iter().map(|(name, text)| format!(" {name}={text:?}"));
        words.chain(self.is_cut.then(|| " headers_cut".to_owned())).collect()
    }
}

impl AccessRecord<'_> {
    /// Queues the line.
    pub fn write(&self, log: &LogWriter, format: LogFormat) {
        match format {
            LogFormat::Json => log.write(&self.object()),
            LogFormat::Text => {
                use std::io::Write;
                let mut line = Vec::with_capacity(512);
                let written = writeln!(
                    line,
                    "{} {} {} {} {} {} {:.1}ms {}{}{}{}{}{}{}{}{}{} {}",
                    self.timestamp,
                    self.client,
                    clipped(self.method),
                    // Debug escapes control characters.
                    format_args!("{:?}", clipped(self.path)),
                    self.status,
                    self.route.unwrap_or("-"),
                    self.duration_ms,
                    if self.served_by.is_empty() { "-" } else { self.served_by },
                    self.spilled.map(|reason| format!(" spilled={reason}")).unwrap_or_default(),
                    self.not_spilled.map(|reason| format!(" not_spilled={reason}")).unwrap_or_default(),
                    self.socket_end.map(|end| format!(" socket_end={end}")).unwrap_or_default(),
                    self.error_code.map(|code| format!(" error={code}")).unwrap_or_default(),
                    self.cause.map(|cause| format!(" cause={cause}")).unwrap_or_default(),
                    self.failed_endpoint.map(|at| format!(" failed={at}")).unwrap_or_default(),
                    self.limit.map(|limit| format!(" limit={limit}")).unwrap_or_default(),
                    self.headers.as_ref().map(ShownHeaders::words).unwrap_or_default(),
                    self.field_words(),
                    self.request_id,
                );
                if written.is_ok() {
                    log.write(&line);
                }
            }
        }
    }

    /// Fields for a line of words.
    fn field_words(&self) -> String {
        let words = self.fields.iter().map(|(name, value)| match value {
            // Debug escapes control characters.
            Scalar::Text(text) => format!(" {name}={text:?}"),
            Scalar::Int(n) => format!(" {name}={n}"),
            Scalar::Double(n) => format!(" {name}={n}"),
            Scalar::Bool(is) => format!(" {name}={is}"),
        });
        words.collect()
    }

    /// Exports the line as a record: what it shows, by the names of OpenTelemetry where there are some.
    pub fn send(&self, export: &LogExport) {
        export.send(|record| {
            record.event(self.event);
            if self.status >= 500 {
                record.error()
            } else {
                record.info()
            }
            record.body(&format!("{} {} {}", clipped(self.method), clipped(self.path), self.status));
            if let Some(ids) = self.span {
                record.span(ids);
            }
            let text = |record: &mut super::Record, key, text: Option<&str>| record.text_if_any(key, text.map(clipped));
            text(record, names::SPILLWAY_REQUEST_ID, Some(self.request_id));
            text(record, names::CLIENT_ADDRESS, Some(&self.client.to_string()));
            text(record, names::SPILLWAY_CONSUMER, self.consumer);
            text(record, names::HTTP_ROUTE, self.route);
            text(record, names::HTTP_REQUEST_METHOD, Some(self.method));
            text(record, names::URL_PATH, Some(self.path));
            if let Some((name, version)) = self.protocol.split_once('/') {
                text(record, own::NETWORK_PROTOCOL_NAME, Some(&name.to_ascii_lowercase()));
                text(record, names::NETWORK_PROTOCOL_VERSION, Some(version));
            }
            record.number(names::HTTP_RESPONSE_STATUS_CODE, self.status);
            record.number(own::HTTP_REQUEST_BODY_SIZE, self.bytes_in);
            record.number(own::HTTP_RESPONSE_BODY_SIZE, self.bytes_out);
            record.fraction(own::SPILLWAY_DURATION_SECONDS, self.duration_ms / 1e3);
            text(record, names::SPILLWAY_BACKEND, Some(self.served_by).filter(|name| !name.is_empty()));
            text(record, names::SPILLWAY_ENDPOINT, self.endpoint);
            record.number(names::SPILLWAY_ATTEMPTS, self.attempts);
            text(record, own::SPILLWAY_CAUSE, self.cause);
            text(record, own::SPILLWAY_FAILED_ENDPOINT, self.failed_endpoint);
            text(record, own::SPILLWAY_LIMIT, self.limit);
            text(record, names::SPILLWAY_SPILL_REASON, self.spilled);
            text(record, own::SPILLWAY_NOT_SPILLED_REASON, self.not_spilled);
            text(record, own::SPILLWAY_NOT_SPILLED_FIELD, self.not_spilled_field);
            if self.resumed {
                record.flag(names::SPILLWAY_RESUMED, true);
            }
            if let Some(millis) = self.queue_ms {
                record.fraction(names::SPILLWAY_QUEUE_SECONDS, millis / 1e3);
            }
            text(record, names::GEN_AI_REQUEST_MODEL, self.model_asked);
            text(record, names::GEN_AI_RESPONSE_MODEL, self.model_answered);
            for (key, tokens) in [
                (names::GEN_AI_USAGE_INPUT_TOKENS, self.prompt_tokens),
                (names::GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, self.cached_tokens),
                (names::GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS, self.cache_written_tokens),
                (names::GEN_AI_USAGE_OUTPUT_TOKENS, self.completion_tokens),
            ] {
                if let Some(tokens) = tokens {
                    record.number(key, tokens);
                }
            }
            if let Some(millis) = self.ttft_ms {
                record.fraction(names::GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, millis / 1e3);
            }
            text(record, names::SPILLWAY_SOCKET_END, self.socket_end);
            text(record, names::ERROR_TYPE, self.error_code);
            text(record, names::USER_AGENT_ORIGINAL, self.user_agent);
            for (name, value) in self.headers.iter().flat_map(|headers| &headers.values) {
                record.header(name.as_str(), value);
            }
            for (name, value) in &self.fields {
                let key = (*name).clone();
                match value {
                    Scalar::Text(text) => record.text(key, text),
                    Scalar::Int(n) => record.number(key, *n),
                    Scalar::Double(n) => record.fraction(key, *n),
                    Scalar::Bool(is) => record.flag(key, *is),
                }
            }
            if self.headers.as_ref().is_some_and(|headers| headers.is_cut) {
                record.flag(own::SPILLWAY_HEADERS_CUT, true);
            }
        });
    }

    /// The line as an object.
    pub(super) fn object(&self) -> Vec<u8> {
        let mut line = ObjectLine::with_capacity(512);
        let text_if_any = |line: &mut ObjectLine, key: &'static str, text: Option<&str>| {
            if let Some(text) = text {
                line.text(key, clipped(text));
            }
        };
        line.text("timestamp", clipped(self.timestamp));
        line.text("event", clipped(self.event));
        line.text("requestId", clipped(self.request_id));
        if let Some(ids) = self.span {
            line.text("traceId", &ids.trace.to_string());
            text_if_any(&mut line, "spanId", ids.span.map(|span| span.to_string()).as_deref());
        }
        line.value("client", self.client);
        text_if_any(&mut line, "consumer", self.consumer);
        text_if_any(&mut line, "route", self.route);
        line.text("method", clipped(self.method));
        line.text("path", clipped(self.path));
        line.text("protocol", clipped(self.protocol));
        line.value("status", self.status);
        line.value("bytesIn", self.bytes_in);
        line.value("bytesOut", self.bytes_out);
        line.value("durationMs", self.duration_ms);
        text_if_any(&mut line, "servedBy", Some(self.served_by).filter(|name| !name.is_empty()));
        text_if_any(&mut line, "endpoint", self.endpoint);
        line.value("attempts", self.attempts);
        text_if_any(&mut line, "cause", self.cause);
        text_if_any(&mut line, "failedEndpoint", self.failed_endpoint);
        text_if_any(&mut line, "limit", self.limit);
        text_if_any(&mut line, "spilled", self.spilled);
        text_if_any(&mut line, "notSpilled", self.not_spilled);
        text_if_any(&mut line, "notSpilledField", self.not_spilled_field);
        if self.resumed {
            line.value("resumed", true);
        }
        if let Some(value) = self.queue_ms {
            line.value("queueMs", value);
        }
        text_if_any(&mut line, "modelAsked", self.model_asked);
        text_if_any(&mut line, "modelAnswered", self.model_answered);
        if let Some(value) = self.prompt_tokens {
            line.value("promptTokens", value);
        }
        if let Some(value) = self.cached_tokens {
            line.value("cachedTokens", value);
        }
        if let Some(value) = self.cache_written_tokens {
            line.value("cacheWrittenTokens", value);
        }
        if let Some(value) = self.completion_tokens {
            line.value("completionTokens", value);
        }
        if let Some(value) = self.ttft_ms {
            line.value("ttftMs", value);
        }
        text_if_any(&mut line, "socketEnd", self.socket_end);
        text_if_any(&mut line, "errorCode", self.error_code);
        text_if_any(&mut line, "userAgent", self.user_agent);
        if let Some(headers) = &self.headers {
            line.object("requestHeaders", headers.values.iter().map(|(name, text)| (name.as_str(), text.as_str())));
            if headers.is_cut {
                line.value("requestHeadersCut", true);
            }
        }
        if !self.fields.is_empty() {
            line.scalars("fields", self.fields.iter().map(|(name, value)| (name.as_str(), value)));
        }
        line.end()
    }
}

#[cfg(test)]
impl<'r> AccessRecord<'r> {
    /// Record of a request that spilled, for tests.
    pub(super) fn example(path: &'r str, agent: &'r str) -> Self {
        Self {
            timestamp: "2026-11-24T12:34:56.000Z",
            event: "access",
            request_id: "r-1",
            span: None,
            client: [127, 0, 0, 1].into(),
            consumer: Some("acme"),
            route: Some("chat"),
            method: "POST",
            path,
            protocol: "HTTP/1.1",
            status: 200,
            bytes_in: 10,
            bytes_out: 20,
            duration_ms: 1.5,
            served_by: "builtin/m",
            endpoint: None,
            attempts: 0,
            cause: None,
            failed_endpoint: None,
            limit: None,
            spilled: Some("saturated"),
            not_spilled: None,
            not_spilled_field: None,
            resumed: false,
            queue_ms: Some(0.5),
            model_asked: Some("gpt-x"),
            model_answered: Some("m"),
            prompt_tokens: Some(5),
            cached_tokens: None,
            cache_written_tokens: None,
            completion_tokens: Some(7),
            ttft_ms: Some(0.5),
            socket_end: None,
            error_code: None,
            user_agent: Some(agent),
            headers: None,
            fields: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl Write for Out {
        fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(part);
            Ok(part.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn line(record: &AccessRecord<'_>, format: LogFormat) -> String {
        let out = Out::default();
        let log = LogWriter::start(out.clone()).unwrap();
        record.write(&log, format);
        log.flush();
        let text = String::from_utf8(out.0.lock().clone()).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "one line: {text}");
        text
    }

    #[test]
    fn a_line_is_an_object_whatever_the_caller_sent() {
        let long = "ü".repeat(3000);
        let text = line(&AccessRecord::example("/a\"b\n{\u{1b}\u{9b}31m\u{7f}", &long), LogFormat::Json);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (key, expected) in [
            ("event", serde_json::json!("access")),
            ("requestId", "r-1".into()),
            ("client", "127.0.0.1".into()),
            ("path", "/a\"b\n{\u{1b}\u{9b}31m\u{7f}".into()),
            ("status", 200.into()),
            ("durationMs", 1.5.into()),
            ("servedBy", "builtin/m".into()),
            ("spilled", "saturated".into()),
            ("modelAsked", "gpt-x".into()),
            ("completionTokens", 7.into()),
            ("ttftMs", 0.5.into()),
        ] {
            assert_eq!(value[key], expected, "{key} in {text}");
        }
        assert!(!text.trim_end().contains(char::is_control), "no terminal obeys it: {text:?}");
        assert!(value.get("traceId").is_none() && value.get("errorCode").is_none());
        assert_eq!(value["userAgent"].as_str().unwrap().len(), MAX_TEXT);
    }

    #[test]
    fn headers_are_shown_by_name_and_secrets_never() {
        let logs = |names: &[&str], redacted: &[&str]| {
            let all = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            LoggedHeaders::new(&Logs { headers: all(names), redact_headers: all(redacted), ..Logs::default() })
        };
        assert!(logs(&[], &["x-user"]).is_none());
        let pairs = [
            ("x-tenant", "a\u{9b}"),
            ("X-User", "me"),
            ("x-tenant", "b"),
            ("authorization", "Bearer s3cret"),
            ("sec-websocket-protocol", "openai-insecure-api-key.s3cret"),
            ("accept", "*/*"),
        ];
        let headers: Fields = pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), http::HeaderValue::from_bytes(value.as_bytes()).unwrap()))
            .collect();
        let is_secret = |name: &HeaderName| name == "authorization";
        let written = |names: &[&str], redacted: &[&str], format| {
            let logged = logs(names, redacted).unwrap();
            let headers = Some(logged.of(&headers, is_secret));
            line(&AccessRecord { headers, ..AccessRecord::example("/", "agent") }, format)
        };
        let some = written(&["X-Tenant", "absent", "x-user", "authorization"], &["x-USER"], LogFormat::Json);
        let some: serde_json::Value = serde_json::from_str(&some).unwrap();
        let expected =
            serde_json::json!({"x-tenant": "a\u{9b}, b", "x-user": "[redacted]", "authorization": "[redacted]"});
        assert_eq!((&some["requestHeaders"], some.get("requestHeadersCut")), (&expected, None));
        let all = written(&["*"], &[], LogFormat::Json);
        assert!(!all.contains("s3cret"), "{all}");
        let all: serde_json::Value = serde_json::from_str(&all).unwrap();
        assert_eq!((&all["requestHeaders"]["accept"], &all["requestHeaders"]["x-user"]), (&"*/*".into(), &"me".into()));
        assert_eq!(all["requestHeaders"]["sec-websocket-protocol"], "[redacted]");
        let words = written(&["x-tenant", "authorization"], &[], LogFormat::Text);
        assert!(words.contains(r#" x-tenant="a\u{9b}, b" authorization="[redacted]" r-1"#), "{words}");
    }

    #[test]
    fn headers_of_a_request_do_not_make_a_line_long() {
        let headers: Fields = (0..100)
            .map(|n| (format!("x-{n}").parse().unwrap(), http::HeaderValue::from_bytes(&[b'v'; 4000]).unwrap()))
            .collect();
        let logs = Logs { headers: vec!["*".to_owned()], ..Logs::default() };
        let logged = LoggedHeaders::new(&logs).unwrap();
        let shown = logged.of(&headers, |_| false);
        assert!(shown.is_cut);
        let text = line(&AccessRecord { headers: Some(shown), ..AccessRecord::example("/", "agent") }, LogFormat::Json);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["requestHeadersCut"], value["requestHeaders"]["x-0"].as_str().unwrap().len()),
            (&true.into(), MAX_TEXT)
        );
        assert!(text.len() < 2 * MAX_HEADERS, "{} bytes", text.len());
    }

    #[test]
    fn words_stay_on_one_line_too() {
        let text = line(&AccessRecord::example("/a\nfake line\r\u{1b}[31m\u{9b}2J", "agent"), LogFormat::Text);
        assert!(
            text.contains(
                "POST \"/a\\nfake line\\r\\u{1b}[31m\\u{9b}2J\" 200 chat 1.5ms builtin/m spilled=saturated r-1"
            ),
            "{text}"
        );
        assert!(!text.trim_end().contains(char::is_control));
    }
}
