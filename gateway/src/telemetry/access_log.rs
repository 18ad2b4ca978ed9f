//! One line for each request that has ended.

use serde::Serialize;
use spillway_config::schema::LogFormat;

use super::LogWriter;

/// What a line says. The query of the path is not logged: it may hold secrets.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "each field is the key it is written as")]
pub struct AccessRecord<'a> {
    pub time: &'a str,
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
    pub method: &'a str,
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
    pub spilled: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_asked: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_answered: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<&'a str>,
}

impl AccessRecord<'_> {
    /// Queues the line.
    pub fn write(&self, log: &LogWriter, format: LogFormat) {
        let mut line = log.buffer();
        let written = match format {
            LogFormat::Json => serde_json::to_writer(&mut line, self).is_ok(),
            LogFormat::Text => {
                use std::io::Write;
                write!(
                    line,
                    "{} {} {} {} {} {} {:.1}ms {}{}",
                    self.time,
                    self.client,
                    self.method,
                    // Debug escapes control characters.
                    format_args!("{:?}", self.path),
                    self.status,
                    self.route.unwrap_or("-"),
                    self.duration_ms,
                    if self.served_by.is_empty() { "-" } else { self.served_by },
                    self.spilled.map(|reason| format!(" spilled={reason}")).unwrap_or_default(),
                )
                .is_ok()
            }
        };
        if written {
            line.push(b'\n');
            log.write(line);
        }
    }
}
