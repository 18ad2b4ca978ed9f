//! TorchServe's inference API: `POST /predictions/{m}[/{version}]` (pytorch.org/serve, "Inference API"), and any other method
//! (`InferenceRequestHandler.handlePredictions` of pytorch/serve looks at none).

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderValue, Method};
use serde::Serialize;
use spillway_filter::{ErrorKind, Refusal};

use crate::protocol::dialect::Dialect;
use crate::protocol::json;
use crate::protocol::operation::{Known, ModelPlace, Operation};

/// Prefix of the paths that name a model.
pub(super) const PREDICTIONS: &str = "/predictions/";

/// Dialect of TorchServe.
pub(in crate::protocol) struct TorchServe;

#[derive(Serialize)]
struct Failed<'a> {
    code: u16,
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
}

/// Type of an error, as TorchServe names its own.
fn kind(refusal: &Refusal) -> &'static str {
    match refusal.kind {
        ErrorKind::InvalidRequest => "BadRequestException",
        ErrorKind::NotFound if refusal.code == "model_not_found" => "ModelNotFoundException",
        ErrorKind::NotFound => "ResourceNotFoundException",
        ErrorKind::Overloaded | ErrorKind::RateLimited => "ServiceUnavailableException",
        ErrorKind::Timeout => "RequestTimeoutException",
        _ => "InternalServerException",
    }
}

impl Dialect for TorchServe {
    fn name(&self) -> &'static str {
        "torchserve"
    }

    /// Servers predict whatever the method is, and describe the model for OPTIONS.
    fn operation(&self, _method: &Method, path: &str) -> Option<Known> {
        let is_known = self.model_in_path(path).is_some();
        is_known.then_some(Known { operation: Operation::Other, is_own_path: true, must_be_json: false })
    }

    fn model_place(&self) -> ModelPlace {
        ModelPlace::Path
    }

    fn model_in_path(&self, path: &str) -> Option<Range<usize>> {
        let rest = path.strip_prefix(PREDICTIONS)?;
        let end = rest.find('/').unwrap_or(rest.len());
        (end > 0).then(|| PREDICTIONS.len()..PREDICTIONS.len() + end)
    }

    fn error(&self, refusal: &Refusal, _request_id: &str) -> (HeaderValue, Bytes) {
        let failed = Failed { code: refusal.status.as_u16(), kind: kind(refusal), message: &refusal.message };
        (HeaderValue::from_static("application/json"), json(&failed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::model_not_found;

    #[test]
    fn a_path_names_its_model() {
        for (path, model) in [
            ("/predictions/m", Some("m")),
            ("/predictions/m/2.0", Some("m")),
            ("/predictions/", None),
            ("/predictions", None),
            ("/predictionsx/m", None),
            ("/v1/predictions/m", None),
        ] {
            assert_eq!(TorchServe.model_in_path(path).map(|at| &path[at]), model, "{path}");
            for method in [Method::POST, Method::PUT, Method::GET, Method::OPTIONS] {
                assert_eq!(TorchServe.operation(&method, path).is_some(), model.is_some(), "{method} {path}");
            }
        }
    }

    #[test]
    fn an_error_has_the_form_of_torchserve() {
        let (_, body) = TorchServe.error(&model_not_found("m", &TorchServe), "");
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["code"], &body["type"]), (&404.into(), &"ModelNotFoundException".into()));
        assert!(body["message"].as_str().unwrap().contains("`m`"));
    }
}
