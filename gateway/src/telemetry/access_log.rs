//! Access log: a line for each request that has ended, made on the thread that ended it and queued for the log's writer.
//! Writing never waits. Texts of callers and upstreams are shortened, and their control characters are escaped.

use serde::{Serialize, Serializer};
use spillway_config::schema::LogFormat;

use super::LogWriter;

/// Longest text of a caller or an upstream in a line, in bytes: longer paths and agents say no more and fill disks.
const MAX_TEXT: usize = 1024;

/// Fields of a line. The query of the path is not logged: it may hold secrets.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "each field is the key it is written as")]
pub struct AccessRecord<'a> {
    pub timestamp: &'a str,
    /// Always `access`, to tell these lines from those of the process log.
    pub event: &'static str,
    pub request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    pub client: std::net::IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'a str>,
    #[serde(serialize_with = "short")]
    pub method: &'a str,
    #[serde(serialize_with = "short")]
    pub path: &'a str,
    pub protocol: &'static str,
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration_ms: f64,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub served_by: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<&'a str>,
    pub attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_endpoint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spilled: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_spilled: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "short_if_any")]
    pub not_spilled_field: Option<&'a str>,
    /// True if a built-in model continued a stream that died.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub resumed: bool,
    /// Time in a queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "short_if_any")]
    pub model_asked: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "short_if_any")]
    pub model_answered: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "short_if_any")]
    pub user_agent: Option<&'a str>,
}

impl AccessRecord<'_> {
    /// Queues the line.
    pub fn write(&self, log: &LogWriter, format: LogFormat) {
        let mut line = Vec::with_capacity(512);
        let written = match format {
            LogFormat::Json => super::json::write_line(&mut line, self),
            LogFormat::Text => {
                use std::io::Write;
                writeln!(
                    line,
                    "{} {} {} {} {} {} {:.1}ms {}{}{}{}{}{}{} {}",
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
                    self.error_code.map(|code| format!(" error={code}")).unwrap_or_default(),
                    self.cause.map(|cause| format!(" cause={cause}")).unwrap_or_default(),
                    self.failed_endpoint.map(|at| format!(" failed={at}")).unwrap_or_default(),
                    self.limit.map(|limit| format!(" limit={limit}")).unwrap_or_default(),
                    self.request_id,
                )
                .is_ok()
            }
        };
        if written {
            log.write(&line);
        }
    }
}

/// Cuts `text` to the length that a line may hold, at a boundary of characters.
fn clipped(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default()
}

fn short<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(clipped(text))
}

#[allow(clippy::ref_option, reason = "serde calls it so")]
fn short_if_any<S: Serializer>(text: &Option<&str>, to: S) -> Result<S::Ok, S::Error> {
    text.map(clipped).serialize(to)
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

    fn record<'a>(path: &'a str, agent: &'a str) -> AccessRecord<'a> {
        AccessRecord {
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
            completion_tokens: Some(7),
            ttft_ms: Some(0.5),
            error_code: None,
            user_agent: Some(agent),
        }
    }

    #[test]
    fn a_line_is_an_object_whatever_the_caller_sent() {
        let long = "ü".repeat(3000);
        let text = line(&record("/a\"b\n{\u{1b}\u{9b}31m\u{7f}", &long), LogFormat::Json);
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
        let text = line(&record("/a\nfake line\r\u{1b}[31m\u{9b}2J", "agent"), LogFormat::Text);
        assert!(
            text.contains(
                "POST \"/a\\nfake line\\r\\u{1b}[31m\\u{9b}2J\" 200 chat 1.5ms builtin/m spilled=saturated r-1"
            ),
            "{text}"
        );
        assert!(!text.trim_end().contains(char::is_control));
    }
}
