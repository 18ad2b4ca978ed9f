//! Checks of backends that speak the Open Inference Protocol.

use super::{Context, at};
use crate::schema::BackendProtocol;

pub(super) fn all(cx: &mut Context<'_>) {
    let config = cx.config;
    for (n, backend) in config.backends.iter().enumerate() {
        if backend.protocol == BackendProtocol::OipGrpc && !backend.http2 {
            cx.error(
                at!["backends", n, "protocol"],
                "gRPC needs HTTP/2, and the backend does not have it: it must say `http2: true`",
            );
        }
    }
}
