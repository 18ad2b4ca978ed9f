//! Models that paths name to servers, whatever the method: calls that have no operation here, such as the status of a model,
//! also say which model they are about.

use super::tensorflow::{MODELS, is_verb};
use super::torchserve::PREDICTIONS;

/// Prefix of calls to a deployment of Azure OpenAI, which decides for its servers whatever model the body names
/// (learn.microsoft.com, "Azure OpenAI REST API reference").
const DEPLOYMENTS: &str = "/openai/deployments/";

/// Name of the model in the path that a server sees, with its escapes; `None` where the path names none. To servers behind
/// routes that call models (`calls_models`), only deployments are named so: their list of models is the gateway's.
pub fn named_by_path(path: &str, calls_models: bool) -> Option<&str> {
    let of_others = [MODELS, PREDICTIONS].into_iter().filter(|_| !calls_models);
    let rest = of_others.chain([DEPLOYMENTS]).find_map(|prefix| path.strip_prefix(prefix))?;
    let segment = rest.split('/').next().unwrap_or_default();
    // Without a version the verb follows the name.
    let name = match segment.rsplit_once(':') {
        Some((name, _)) if segment.len() == rest.len() && is_verb(path) => name,
        _ => segment,
    };
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_models_whatever_the_method() {
        for (path, of_others, of_models) in [
            ("/v1/models/m", Some("m"), None),
            ("/v1/models/m/", Some("m"), None),
            ("/v1/models/m/metadata", Some("m"), None),
            ("/v1/models/m/versions/2:predict", Some("m"), None),
            ("/v1/models/m:predict", Some("m"), None),
            ("/v1/models/a:b", Some("a:b"), None),
            ("/v1/models/%6d", Some("%6d"), None),
            ("/v1/models", None, None),
            ("/v1/models/", None, None),
            ("/predictions/m/2.0", Some("m"), None),
            ("/openai/deployments/d/chat/completions", Some("d"), Some("d")),
            ("/openai/v1/chat/completions", None, None),
            ("/form", None, None),
        ] {
            assert_eq!((named_by_path(path, false), named_by_path(path, true)), (of_others, of_models), "{path}");
        }
    }
}
