//! Configuration of the filter `wasm`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::values::{Duration, FilePath, Size, quoted_url};
use spillway_filter::FieldError;

/// Decision while the module fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum OnFailure {
    /// The request is refused with 503.
    #[default]
    Closed,
    /// The request passes as if the filter were not there.
    Open,
}

/// Runs a proxy-wasm module (ABI 0.2.0 or 0.2.1) for each request.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Wasm {
    /// File of the module, in WebAssembly's binary form.
    pub(crate) module: FilePath,
    /// Configuration of the module: it gets a string as it is, and anything else as JSON.
    #[serde(default)]
    pub(crate) config: serde_json::Value,
    /// Root id of the module, for a module that has several.
    #[serde(default)]
    pub(crate) root_id: String,
    /// Bounds of the module.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// Decision if the module traps, exceeds a limit or is being started again.
    #[serde(default)]
    #[schemars(extend("default" = "closed"))]
    pub(crate) on_failure: OnFailure,
    /// Most instances of the module; a processor each without it. Each has a memory of its own, and works for one request at a time.
    #[serde(default)]
    #[schemars(range(min = 1, max = 256))]
    pub(crate) instances: Option<u16>,
    /// False keeps the request's body from the module, which is then not held for it. Without it the body is held where the
    /// module has `proxy_on_request_body`, as each module of the Rust SDK has.
    #[serde(default = "yes")]
    pub(crate) request_body: bool,
    /// False keeps the answer's body from the module, which then passes as it comes. Without it an answer is read whole, and a
    /// stream event by event, where the module has `proxy_on_response_body`, as each module of the Rust SDK has.
    #[serde(default = "yes")]
    pub(crate) response_body: bool,
    /// Servers that the module may call by `proxy_http_call`: the name that it gives as upstream, and the URL of the server.
    #[serde(default)]
    pub(crate) calls: BTreeMap<String, String>,
}

/// Bounds of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Longest memory of an instance.
    #[schemars(extend("default" = "16MiB"))]
    pub(crate) memory: Size,
    /// Longest time of one call into the module, of which a request makes several. It is kept to a millisecond or two.
    #[schemars(extend("default" = "5ms"))]
    pub(crate) time: Duration,
    /// Longest time for which a request waits for the module's calls to servers, all together.
    #[schemars(extend("default" = "2s"))]
    pub(crate) wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory: Size::mib(16), time: Duration::millis(5), wait: Duration::millis(2_000) }
    }
}

fn yes() -> bool {
    true
}

/// Longest memory that may be written: what a 32-bit module can address is four times that.
const MAX_MEMORY: Size = Size::mib(1_024);
/// A page of WebAssembly.
const MIN_MEMORY: Size = Size::kib(64);
/// Longest time of a call: a request's worker waits for it.
pub(crate) const MAX_TIME: std::time::Duration = std::time::Duration::from_secs(1);
/// Longest wait for calls.
const MAX_WAIT: std::time::Duration = std::time::Duration::from_secs(30);
/// Most servers that a module may call.
const MAX_CALLS: usize = 64;

/// Mistakes that the schema cannot express.
pub(crate) fn mistakes(config: &Wasm) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let Limits { memory, time, wait } = config.limits;
    if memory < MIN_MEMORY || memory > MAX_MEMORY {
        let message = format!("found {memory}; expected {MIN_MEMORY} to {MAX_MEMORY}");
        errors.push(FieldError::at(["limits", "memory"], message));
    }
    if time.0 < std::time::Duration::from_millis(1) || time.0 > MAX_TIME {
        errors.push(FieldError::at(["limits", "time"], format!("found {time}; expected 1ms to 1s")));
    }
    if wait.0 > MAX_WAIT {
        errors.push(FieldError::at(["limits", "wait"], format!("found {wait}; expected at most 30s")));
    }
    if config.calls.len() > MAX_CALLS {
        let message = format!("found {} servers; expected at most {MAX_CALLS}", config.calls.len());
        errors.push(FieldError::at(["calls"], message));
    }
    for (name, url) in &config.calls {
        if server(url).is_none() {
            let quoted = quoted_url(url);
            let message = format!("{quoted} is not the URL of a server: write http://HOST:PORT, without a query");
            errors.push(FieldError::at(["calls", name], message));
        }
    }
    errors
}

/// URL of a server without the slash at its end.
pub(crate) fn server(text: &str) -> Option<String> {
    let url = url::Url::parse(text).ok()?;
    let is_plain =
        url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    let is_server = matches!(url.scheme(), "http" | "https") && url.has_host() && is_plain;
    is_server.then(|| url.as_str().trim_end_matches('/').to_owned())
}

/// Configuration as the module reads it.
pub(crate) fn bytes_of(config: &serde_json::Value) -> Vec<u8> {
    match config {
        serde_json::Value::Null => Vec::new(),
        serde_json::Value::String(text) => text.as_bytes().to_vec(),
        other => other.to_string().into_bytes(),
    }
}
