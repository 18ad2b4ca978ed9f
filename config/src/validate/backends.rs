//! Checks of `backends` and `models`.

use std::collections::HashSet;

use http::HeaderName;

use super::{Context, Segment, at};
use crate::schema::{Backend, BackendProtocol, BackendTls, CallerCredentials, Credentials, Device, OpenAiApi};

/// Checks of `tls`: the name asked for, trusted authorities, the certificate of the gateway.
fn tls(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    let tls = &backend.tls;
    // Endpoints from elsewhere come and go; their scheme stays.
    let is_known = !is_unread(backend) && !backend.discovered;
    if is_known && *tls != BackendTls::default() && !backend.endpoints.iter().any(|endpoint| endpoint.url.https) {
        cx.error(
            at!["backends", n, "tls"],
            "no effect, because no endpoint of the backend has an https URL: write one, or remove this",
        );
    }
    if tls.sni.as_ref().is_some_and(|name| !is_host_name(name)) {
        cx.error(at!["backends", n, "tls", "sni"], "not a host name; expected one such as api.example.com");
    }
    if let Some(file) = &tls.ca_file {
        super::listeners::authorities(cx, at!["backends", n, "tls", "caFile"], file);
    }
    if let Some(pair) = &tls.client_certificate {
        super::listeners::certificate(cx, at!["backends", n, "tls", "clientCertificate"], pair, false);
    }
}

/// Checks of the names of models, which are compared in one form for all spellings that Ollama reads as one name.
fn model_names(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    if backend.protocol != BackendProtocol::Ollama {
        return;
    }
    for (m, name) in backend.models.iter().flatten().enumerate() {
        ollama_name(cx, at!["backends", n, "models", m], name);
    }
}

/// Reports a name that no request has in the form in which names of Ollama are compared.
pub(super) fn ollama_name(cx: &mut Context<'_>, at: Vec<Segment>, name: &str) {
    let form = crate::ollama_name(name);
    if form != name {
        let message = format!(
            "`{name}`: Ollama reads several spellings as one name, which is compared in small letters and without \
             `registry.ollama.ai/`, `library/`, `:latest` and `:local`; expected `{form}`"
        );
        cx.error(at, message);
    }
}

/// Checks of `callerCredentials`, which says if credentials of callers reach the servers.
fn caller_credentials(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    if backend.caller_credentials == Some(CallerCredentials::Pass) && backend.credentials.is_some() {
        let message = "no effect beside `credentials`, which replace those of every caller: leave one of them out";
        cx.error(at!["backends", n, "callerCredentials"], message);
    }
    // A model server behind https mostly requires a key, and on an open route it could only be the caller's.
    let wants_key = backend.protocol.calls_models() && backend.endpoints.iter().any(|e| e.url.https);
    let is_silent = backend.caller_credentials.is_none()
        && backend.credentials.is_none()
        && !cx.index.personal.contains(backend.name.as_str());
    if wants_key && is_silent && cx.index.open.contains(backend.name.as_str()) {
        cx.warn(
            at!["backends", n],
            "no credentials reach these servers: callers' own are removed; give `credentials`, or say \
             `callerCredentials: pass` (or `remove`, if the servers need none)",
        );
    }
}

/// Headers that carry no credential: those of the connection, of the body, and of the gateway.
const NO_CREDENTIALS: [&str; 7] =
    ["connection", "content-length", "content-type", "host", "te", "transfer-encoding", "upgrade"];

/// Checks that credentials have one of their forms.
pub(super) fn credentials(cx: &mut Context<'_>, at: Vec<Segment>, written: &Credentials) {
    match (&written.bearer, &written.header, &written.secret) {
        (Some(_), None, None) => {}
        (None, Some(name), Some(_)) => {
            let is_plain = |name: &HeaderName| {
                !NO_CREDENTIALS.contains(&name.as_str()) && !name.as_str().starts_with("x-spillway-")
            };
            if !HeaderName::from_bytes(name.as_bytes()).is_ok_and(|name| is_plain(&name)) {
                let mut at = at;
                at.push(Segment::from("header"));
                cx.error(at, format!("`{name}` is no header for a credential; expected one such as `x-api-key`"));
            }
        }
        _ => cx.error(at, "expected either `bearer`, or `header` with `secret`"),
    }
}

/// Checks of `apis`: those of OpenAI's, with the one that the others are translated to.
fn apis(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    let Some(apis) = &backend.apis else { return };
    if backend.protocol != BackendProtocol::Openai {
        cx.error(at!["backends", n, "apis"], "no effect without `protocol: openai`: remove it");
    } else if !apis.contains(&OpenAiApi::Chat) {
        cx.error(at!["backends", n, "apis"], "expected `chat` among them, to which other requests are translated");
    }
}

/// Shortest time between two questions for models: the lists are for people and their tools.
const LEAST_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// Checks of `modelList`: servers with a list, of which anything may be shown.
fn model_list(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    let Some(list) = &backend.model_list else { return };
    let here = || at!["backends", n, "modelList"];
    let has_list =
        matches!(backend.protocol, BackendProtocol::Openai | BackendProtocol::Anthropic | BackendProtocol::Ollama);
    if !has_list {
        cx.error(here(), "no effect with this `protocol`, which has no list of models: name them in `models`");
    } else if backend.model.is_some() {
        cx.error(here(), "no effect beside `model`, the one name that these servers get: remove it");
    } else if backend.models.iter().flatten().all(|name| !name.contains('*')) && backend.models.is_some() {
        cx.error(here(), "no effect, because `models` names each model already: remove it, or write a pattern there");
    }
    if list.every.0 < LEAST_EVERY {
        cx.error(
            at!["backends", n, "modelList", "every"],
            "too often for a list that seldom changes; expected 1s or more",
        );
    }
    if list.timeout.0.is_zero() {
        cx.error(at!["backends", n, "modelList", "timeout"], "no server answers in 0s; expected a time such as 10s");
    }
    if list.path.as_ref().is_some_and(|path| !path.starts_with('/') || path.contains(['?', '#', ' '])) {
        let message = "not the path of a list; expected one such as `/openai/v1/models`, without a query";
        cx.error(at!["backends", n, "modelList", "path"], message);
    }
}

/// Fields without which a request means nothing.
const NEEDED_FIELDS: [&str; 7] = ["input", "max_tokens", "messages", "model", "prompt", "stream", "system"];

/// Check of `streamUsage`: only servers of OpenAI's API are asked.
fn stream_usage(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    if backend.stream_usage.is_some() && !matches!(backend.protocol, BackendProtocol::Openai | BackendProtocol::Ollama)
    {
        let message = "no effect with this `protocol`, whose servers tell the usage of a stream unasked: remove it";
        cx.error(at!["backends", n, "streamUsage"], message);
    }
}

/// Checks of `maxTokensField` and `noReasoning`: only requests for servers of OpenAI's API are written with them.
fn written_fields(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    let keys =
        [("maxTokensField", backend.max_tokens_field.is_some()), ("noReasoning", backend.no_reasoning.is_some())];
    for (key, _) in
        keys.into_iter().filter(|(_, is_written)| *is_written && backend.protocol != BackendProtocol::Openai)
    {
        cx.error(at!["backends", n, key], "no effect without `protocol: openai`: remove it");
    }
}

/// Checks of `dropFields`: names of fields that can be dropped.
fn dropped_fields(cx: &mut Context<'_>, n: usize, backend: &Backend) {
    if !backend.drop_fields.is_empty() && !backend.protocol.calls_models() {
        let message = "no effect with `protocol: http`, whose requests are not read: remove it";
        cx.error(at!["backends", n, "dropFields"], message);
    }
    for (f, name) in backend.drop_fields.iter().enumerate() {
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
        if !is_name {
            let message = format!("`{name}` is no name of a field; expected one such as `temperature`");
            cx.error(at!["backends", n, "dropFields", f], message);
        } else if NEEDED_FIELDS.contains(&name.as_str()) {
            cx.error(at!["backends", n, "dropFields", f], format!("a request needs `{name}`: remove it here"));
        }
    }
}

/// True if the endpoints of a file are missing, because it does not exist.
fn is_unread(backend: &Backend) -> bool {
    backend.endpoints_file.as_ref().is_some_and(|file| !file.is_file())
}

fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    name.parse::<std::net::IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(label))
}

pub(super) fn all(cx: &mut Context<'_>) {
    let config = cx.config;
    for (n, backend) in config.backends.iter().enumerate() {
        if backend.endpoints.is_empty() {
            // A file that does not exist is reported by itself, and may hold some.
            if !(backend.discovered || is_unread(backend) || (cx.options.offline && backend.endpoints_file.is_some())) {
                cx.error(
                    at!["backends", n, "endpoints"],
                    "no endpoint; a backend needs at least one endpoint: add its `url`",
                );
            }
        } else if backend.endpoints.iter().all(|e| e.weight == 0) {
            cx.error(
                at!["backends", n, "endpoints"],
                "all weights are zero, so no endpoint would get a request; expected one above zero",
            );
        }
        let mut seen = HashSet::new();
        for (e, endpoint) in backend.endpoints.iter().enumerate() {
            if !seen.insert(&endpoint.url) {
                cx.error(
                    at!["backends", n, "endpoints", e, "url"],
                    "duplicate endpoint, which is in the list already: remove one",
                );
            }
        }
        caller_credentials(cx, n, backend);
        if let Some(written) = &backend.credentials {
            credentials(cx, at!["backends", n, "credentials"], written);
        }
        dropped_fields(cx, n, backend);
        apis(cx, n, backend);
        stream_usage(cx, n, backend);
        written_fields(cx, n, backend);
        model_list(cx, n, backend);
        super::balancing::all(cx, n, backend);
        tls(cx, n, backend);
        model_names(cx, n, backend);
        if !(1 << 10..=1 << 20).contains(&backend.limits.max_header_bytes.0) {
            let found = backend.limits.max_header_bytes;
            let message = format!("found {found}; expected 1KiB to 1MiB");
            cx.error(at!["backends", n, "limits", "maxHeaderBytes"], message);
        }
        if !(1 << 10..=64 << 20).contains(&backend.limits.max_translated_bytes.0) {
            let message = format!("found {}; expected 1KiB to 64MiB", backend.limits.max_translated_bytes);
            cx.error(at!["backends", n, "limits", "maxTranslatedBytes"], message);
        }
        let t = &backend.timeouts;
        for (key, value) in [("connect", Some(t.connect)), ("firstByte", t.first_byte), ("idle", t.idle)] {
            if value.is_some_and(|value| value.0.is_zero()) {
                cx.error(
                    at!["backends", n, "timeouts", key],
                    "a time limit of zero lets nothing pass; expected a longer time",
                );
            }
        }
    }
    for (n, model) in config.models.iter().enumerate() {
        if model.source.exists()
            && let Err(why) = cx.options.files.model(&model.source)
        {
            cx.error(at!["models", n, "source"], why.to_string());
        }
        if model.max_sequences().get() > 64 {
            cx.error(
                at!["models", n, "maxSequences"],
                format!("found {}; expected at most 64 answers at a time", model.max_sequences()),
            );
        }
        if model.cores.is_some() && !matches!(model.device, Device::Auto | Device::Cpu) {
            let message = "no effect with this `device`, because `cores` counts threads on the CPU: remove it";
            cx.error(at!["models", n, "cores"], message);
        }
    }
}
