//! TensorFlow Serving over HTTP: `POST /v1/models/{m}[/versions/{v}|/labels/{l}]:predict`, `:classify` and `:regress`
//! (tensorflow.org, "RESTful API"). KServe's first protocol has the same form. `GET` on these paths is told from OpenAI's list
//! of models by the protocol of the backends alone.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderValue, Method};
use serde::Serialize;
use spillway_filter::Refusal;

use crate::protocol::dialect::Dialect;
use crate::protocol::json;
use crate::protocol::operation::{Known, ModelPlace, Operation};

/// Prefix of all paths.
pub(super) const MODELS: &str = "/v1/models/";

/// Verbs behind the colon of a path.
const VERBS: [&str; 4] = ["predict", "classify", "regress", "explain"];

/// Dialect of TensorFlow Serving.
pub(in crate::protocol) struct TensorFlow;

/// True if the last segment of a path ends with a colon and what is asked of a model. No id of a model of OpenAI's API is
/// posted to.
pub(in crate::protocol) fn is_verb(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap_or_default();
    last.rsplit_once(':').is_some_and(|(_, verb)| VERBS.contains(&verb))
}

/// Range of the model's name in a path.
fn model_at(path: &str) -> Option<Range<usize>> {
    let rest = path.strip_prefix(MODELS).filter(|_| is_verb(path))?;
    // Without a version the verb follows the name.
    let end = rest.find('/').or_else(|| rest.rfind(':'))?;
    (end > 0).then(|| MODELS.len()..MODELS.len() + end)
}

#[derive(Serialize)]
struct Failed<'a> {
    error: &'a str,
}

impl Dialect for TensorFlow {
    fn name(&self) -> &'static str {
        "tensorflow"
    }

    fn operation(&self, method: &Method, path: &str) -> Option<Known> {
        let is_known = method == Method::POST && path.starts_with(MODELS) && is_verb(path);
        is_known.then_some(Known { operation: Operation::Other, is_own_path: true, must_be_json: false })
    }

    fn model_place(&self) -> ModelPlace {
        ModelPlace::Path
    }

    fn model_in_path(&self, path: &str) -> Option<Range<usize>> {
        model_at(path)
    }

    fn error(&self, refusal: &Refusal, _request_id: &str) -> (HeaderValue, Bytes) {
        (HeaderValue::from_static("application/json"), json(&Failed { error: &refusal.message }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_ends_at_its_version_or_at_the_verb() {
        for (path, model) in [
            ("/v1/models/m:predict", Some("m")),
            ("/v1/models/m/versions/2:predict", Some("m")),
            ("/v1/models/m/labels/a:b:classify", Some("m")),
            ("/v1/models/a:b:regress", Some("a:b")),
            ("/v1/models/m", None),
            ("/v1/models/m/metadata", None),
            ("/v1/models/:predict", None),
            ("/v1/models//versions/2:predict", None),
            ("/v1/models/m:delete", None),
            ("/v1/modelsx/m:predict", None),
        ] {
            assert_eq!(model_at(path).map(|at| &path[at]), model, "{path}");
            let is_known = TensorFlow.operation(&Method::POST, path).is_some();
            assert_eq!(is_known, path.starts_with("/v1/models/") && is_verb(path), "{path}");
            assert!(TensorFlow.operation(&Method::GET, path).is_none());
        }
    }
}
