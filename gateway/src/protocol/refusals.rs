//! Refusals that several APIs share; each dialect renders them in its own shape.

use http::StatusCode;
use spillway_filter::{ErrorKind, Refusal};

use super::dialect::Dialect;

/// Characters of a caller's text that a message repeats: enough to recognise a name.
const SHOWN: usize = 64;

/// Text of a caller in the form in which a message may repeat it: without control characters, cut to 64 characters.
pub fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(SHOWN).collect()
}

/// Refusal of a model name that does not exist here or that the caller, who speaks `dialect`, may not use.
pub fn model_not_found(name: &str, dialect: &dyn Dialect) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        ErrorKind::NotFound,
        "model_not_found",
        format!("The model `{}` does not exist here. GET {} lists those that do.", shown(name), dialect.list_path()),
    )
    .param("model")
}

/// Returns the model that a request names.
///
/// # Errors
/// Refuses a request that names none.
pub fn named(model: Option<&str>) -> Result<&str, Refusal> {
    model.ok_or_else(|| Refusal::invalid("missing_required_parameter", "`model` is missing.").param("model"))
}

/// Refusal of a gRPC call over HTTP/1, whose trailers reach no client of gRPC.
pub fn http2_required() -> Refusal {
    Refusal::new(
        StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        ErrorKind::InvalidRequest,
        "http2_required",
        "a call of gRPC needs HTTP/2 (`protocol: h2c` or `https` of the listener)",
    )
}

/// Refusal of a field that appears twice: two readers could each read another one.
pub(super) fn duplicate(name: &str) -> Refusal {
    Refusal::invalid("duplicate_parameter", format!("`{name}` appears more than once in the body."))
        .param(name.to_owned())
}
