//! Paths of the Open Inference Protocol over HTTP, and Triton's further ones: the call that a path asks for, and the place of
//! the model and its version in it (KServe, `open_inference_rest.yaml`; Triton, `docs/protocol`).

use std::ops::Range;

use http::Method;
use spillway_config::path as config_path;
use spillway_filter::Refusal;

use crate::protocol::inference::InferenceCall;
use crate::protocol::named;
use crate::protocol::refusals::shown;

/// Prefix of all paths.
const ROOT: &str = "/v2";
/// Prefix of the paths that name a model.
const MODELS: &str = "/v2/models/";
/// Begin of Triton's paths for the server as a whole.
const OF_SERVER: [&str; 5] = ["repository", "systemsharedmemory", "cudasharedmemory", "trace", "logging"];

/// Text out of a path, its escapes decoded once.
pub(super) fn decoded(escaped: &str) -> String {
    let bytes: Vec<u8> = config_path::decoded(escaped).into_iter().map(|(byte, _)| byte).collect();
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// Name as a segment of a path: all but letters, digits and `-._~` is escaped.
pub fn segment_of(name: &str) -> String {
    let mut written = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            written.push(char::from(byte));
        } else {
            config_path::escape(&mut written, byte);
        }
    }
    written
}

/// True for a name that a path may hold. Servers that decode the path before they resolve it leave the folder of the models by a
/// part `..`, and read another name than the one that the caller may use; some decode twice.
fn is_name(name: &str) -> bool {
    let is_sound = |name: &str| {
        !name.split(['/', '\\']).any(|part| matches!(part.trim(), "." | "..")) && !name.contains(char::is_control)
    };
    is_sound(name) && is_sound(&decoded(name))
}

/// Path of a call about a model and its version, which may be empty; `None` for a call that HTTP does not have.
///
/// # Errors
/// Refuses a call that names no model, and names that a path cannot hold.
pub(super) fn of(call: InferenceCall, model: &str, version: &str) -> Result<Option<String>, Refusal> {
    let action = match call {
        InferenceCall::ServerMetadata => return Ok(Some(ROOT.to_owned())),
        InferenceCall::ServerLive => return Ok(Some([ROOT, "/health/live"].concat())),
        InferenceCall::ServerReady => return Ok(Some([ROOT, "/health/ready"].concat())),
        InferenceCall::Infer => "/infer",
        InferenceCall::ModelReady => "/ready",
        InferenceCall::ModelMetadata => "",
        InferenceCall::StreamInfer | InferenceCall::OtherOfModel | InferenceCall::OtherOfServer => return Ok(None),
    };
    named(Some(model).filter(|model| !model.is_empty()))?;
    for (field, name) in [("model_name", model), ("model_version", version)] {
        if !is_name(name) {
            let message = format!("`{field}` is `{}`, which is no name in a path.", shown(name));
            return Err(Refusal::invalid("invalid_value", message).param(field));
        }
    }
    let mut path = [MODELS, &segment_of(model)].concat();
    if !version.is_empty() {
        path.push_str("/versions/");
        path.push_str(&segment_of(version));
    }
    path.push_str(action);
    Ok(Some(path))
}

/// Segment that ends before the next slash, and the rest behind that slash.
fn segment(text: &str) -> (&str, Option<&str>) {
    text.split_once('/').map_or((text, None), |(first, rest)| (first, Some(rest)))
}

/// Parts of a path that names a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ModelTarget<'p> {
    /// Name as it is written: escapes are not decoded.
    pub(super) name: &'p str,
    /// Version, where the path names one.
    pub(super) version: Option<&'p str>,
    /// Rest of the path behind them, without its slash; empty for the model itself.
    action: &'p str,
}

/// Reads a path that names a model.
pub(super) fn target(path: &str) -> Option<ModelTarget<'_>> {
    let (name, rest) = segment(path.strip_prefix(MODELS)?);
    if name.is_empty() {
        return None;
    }
    let versioned = rest.and_then(|rest| rest.strip_prefix("versions/")).map(segment);
    let (version, action) = match versioned {
        Some((version, rest)) if !version.is_empty() => (Some(version), rest),
        _ => (None, rest),
    };
    Some(ModelTarget { name, version, action: action.unwrap_or_default() })
}

/// Range of the model's name in a path.
pub(super) fn model_at(path: &str) -> Option<Range<usize>> {
    let name = target(path)?.name;
    Some(MODELS.len()..MODELS.len() + name.len())
}

/// Call of a method and path; `None` for a path of another API.
pub(super) fn call(method: &Method, path: &str) -> Option<InferenceCall> {
    let is_get = matches!(*method, Method::GET | Method::HEAD);
    if let Some(target) = target(path) {
        return Some(match target.action {
            "infer" if method == Method::POST => InferenceCall::Infer,
            "ready" if is_get => InferenceCall::ModelReady,
            "" if is_get => InferenceCall::ModelMetadata,
            _ => InferenceCall::OtherOfModel,
        });
    }
    let below = path.strip_prefix(ROOT)?;
    Some(match below {
        "" | "/" if is_get => InferenceCall::ServerMetadata,
        "/health/live" if is_get => InferenceCall::ServerLive,
        "/health/ready" if is_get => InferenceCall::ServerReady,
        "" | "/" | "/health/live" | "/health/ready" => InferenceCall::OtherOfServer,
        _ => {
            let (first, _) = segment(below.strip_prefix('/')?);
            OF_SERVER.contains(&first).then_some(InferenceCall::OtherOfServer)?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_what_is_asked_and_of_which_model() {
        use InferenceCall::{
            Infer, ModelMetadata, ModelReady, OtherOfModel, OtherOfServer, ServerLive, ServerMetadata, ServerReady,
        };
        for (method, path, expected, model) in [
            (Method::GET, "/v2", Some(ServerMetadata), None),
            (Method::GET, "/v2/", Some(ServerMetadata), None),
            (Method::POST, "/v2", Some(OtherOfServer), None),
            (Method::GET, "/v2/health/live", Some(ServerLive), None),
            (Method::HEAD, "/v2/health/ready", Some(ServerReady), None),
            (Method::GET, "/v2/health/other", None, None),
            (Method::GET, "/v2/models/m", Some(ModelMetadata), Some("m")),
            (Method::GET, "/v2/models/m/versions/2", Some(ModelMetadata), Some("m")),
            (Method::GET, "/v2/models/m/ready", Some(ModelReady), Some("m")),
            (Method::GET, "/v2/models/a%2Fb/versions/2/ready", Some(ModelReady), Some("a%2Fb")),
            (Method::POST, "/v2/models/m/infer", Some(Infer), Some("m")),
            (Method::POST, "/v2/models/m/versions/2/infer", Some(Infer), Some("m")),
            (Method::GET, "/v2/models/m/infer", Some(OtherOfModel), Some("m")),
            (Method::POST, "/v2/models/m/generate_stream", Some(OtherOfModel), Some("m")),
            (Method::POST, "/v2/models/m/versions//infer", Some(OtherOfModel), Some("m")),
            (Method::POST, "/v2/models/versions/infer", Some(Infer), Some("versions")),
            (Method::POST, "/v2/models//infer", None, None),
            (Method::GET, "/v2/models", None, None),
            (Method::GET, "/v2/models/", None, None),
            (Method::POST, "/v2/repository/index", Some(OtherOfServer), None),
            (Method::POST, "/v2/systemsharedmemory/region/a/register", Some(OtherOfServer), None),
            (Method::POST, "/v2/rerank", None, None),
            (Method::GET, "/v2x/health/live", None, None),
            (Method::GET, "/v1/models/m", None, None),
        ] {
            assert_eq!(call(&method, path), expected, "{method} {path}");
            assert_eq!(model_at(path).map(|at| &path[at]), model, "{path}");
        }
        assert_eq!(target("/v2/models/m/versions/2/infer").unwrap().version, Some("2"));
        assert_eq!(target("/v2/models/m/infer").unwrap().version, None);
    }

    #[test]
    fn a_name_that_leads_elsewhere_makes_no_path() {
        for name in [
            ".",
            "..",
            "ok-/../no",
            "../no",
            "ok/..",
            "a\\..\\b",
            "a/./b",
            "a\n",
            "a\u{85}b",
            "a\0",
            "a/.. /b",
            "a%2F..%2fb",
        ] {
            assert_eq!(of(InferenceCall::Infer, name, "").unwrap_err().code, "invalid_value", "{name:?}");
            assert_eq!(of(InferenceCall::ModelReady, "m", name).unwrap_err().code, "invalid_value", "{name:?}");
        }
        for (name, path) in [
            ("lab/m", "/v2/models/lab%2Fm/ready"),
            ("..m", "/v2/models/..m/ready"),
            ("a..b/c.", "/v2/models/a..b%2Fc./ready"),
        ] {
            assert_eq!(of(InferenceCall::ModelReady, name, "").unwrap().as_deref(), Some(path));
        }
    }
}
