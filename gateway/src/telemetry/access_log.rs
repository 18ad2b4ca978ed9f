//! Access log: a line for each request that has ended, made on the thread that ended it and queued for the log's writer.
//! Writing never waits. Texts of callers and upstreams are shortened, and their control characters are escaped.

use spillway_config::schema::LogFormat;

use super::LogWriter;
use super::json::ObjectLine;

/// Longest text of a caller or an upstream in a line, in bytes: longer paths and agents say no more and fill disks.
const MAX_TEXT: usize = 1024;

/// Fields of a line. The query of the path is not logged: it may hold secrets.
#[derive(Debug)]
#[allow(missing_docs, reason = "each field is the key it is written as, in camel case")]
pub struct AccessRecord<'a> {
    pub timestamp: &'a str,
    /// Always `access`, to tell these lines from those of the process log.
    pub event: &'static str,
    pub request_id: &'a str,
    pub trace_id: Option<String>,
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
                    "{} {} {} {} {} {} {:.1}ms {}{}{}{}{}{}{}{} {}",
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
                    self.request_id,
                );
                if written.is_ok() {
                    log.write(&line);
                }
            }
        }
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
        text_if_any(&mut line, "traceId", self.trace_id.as_deref());
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
            trace_id: None,
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
        }
    }
}

/// Cuts `text` to the length that a line may hold, at a boundary of characters.
fn clipped(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default()
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
