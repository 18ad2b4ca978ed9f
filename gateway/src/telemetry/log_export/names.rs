//! Names of attributes that records have and spans do not. Names of OpenTelemetry's semantic conventions 1.38 where those
//! have one; ours start with `spillway.`.

#![allow(missing_docs, reason = "each constant is the name it holds")]

pub const ERROR_MESSAGE: &str = "error.message";
pub const HTTP_REQUEST_BODY_SIZE: &str = "http.request.body.size";
pub const HTTP_RESPONSE_BODY_SIZE: &str = "http.response.body.size";
pub const NETWORK_PROTOCOL_NAME: &str = "network.protocol.name";
pub const SPILLWAY_AUDIT_ACTION: &str = "spillway.audit.action";
pub const SPILLWAY_AUDIT_REASON: &str = "spillway.audit.reason";
pub const SPILLWAY_AUDIT_WHO: &str = "spillway.audit.who";
pub const SPILLWAY_CAUSE: &str = "spillway.cause";
pub const SPILLWAY_DURATION_SECONDS: &str = "spillway.duration.seconds";
pub const SPILLWAY_FAILED_ENDPOINT: &str = "spillway.failed_endpoint";
pub const SPILLWAY_HEADERS_CUT: &str = "spillway.headers_cut";
pub const SPILLWAY_LIMIT: &str = "spillway.limit";
pub const SPILLWAY_LISTENER: &str = "spillway.listener";
pub const SPILLWAY_NOT_SPILLED_FIELD: &str = "spillway.not_spilled.field";
pub const SPILLWAY_NOT_SPILLED_REASON: &str = "spillway.not_spilled.reason";
