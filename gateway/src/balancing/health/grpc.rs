//! The two messages of the gRPC health protocol (github.com/grpc/grpc-proto/blob/master/grpc/health/v1/health.proto).

/// Path of the method.
pub(super) const CHECK: &str = "/grpc.health.v1.Health/Check";

/// `HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckRequest {
    /// Name of the service; empty for the server as a whole.
    #[prost(string, tag = "1")]
    pub(super) service: String,
}

/// `HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckResponse {
    /// `ServingStatus`.
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

/// `ServingStatus.SERVING`.
pub(super) const SERVING: i32 = 1;

/// Description of any other status, for the log.
pub(super) fn describe(status: i32) -> String {
    match status {
        0 => "the service says UNKNOWN".to_owned(),
        2 => "the service says NOT_SERVING".to_owned(),
        3 => "the server does not know the service".to_owned(),
        other => format!("the service says {other}"),
    }
}
