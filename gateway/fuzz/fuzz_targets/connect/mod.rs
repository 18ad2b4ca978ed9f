//! The conversation of `connect/http1.rs` over a stream in memory, with stand-ins for what it has around it.

pub(crate) mod handshake {
    pub(crate) use spillway::connect::MAX_FIELDS;
}
pub(crate) mod transport {
    pub(crate) use tokio::io::DuplexStream as Transport;
}
#[allow(dead_code, reason = "the gateway uses all of it")]
#[path = "../../../src/connect/http1.rs"]
mod http1;
#[allow(dead_code, reason = "no target opens a tunnel")]
#[path = "../../../src/connect/tunnel.rs"]
mod tunnel;

use http::{HeaderMap, Method, StatusCode};
use spillway::message::{RequestHead, ResponseHead};

/// Answer that was read to its end.
pub(crate) struct Answer {
    pub(crate) head: ResponseHead,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: HeaderMap,
    /// True if its connection can be used again.
    pub(crate) can_reuse: bool,
}

/// Sends a request and reads its answer, whose heads may have `most` bytes; `None` if it is refused.
pub(crate) async fn read(method: Method, stream: transport::Transport, most: u64) -> Option<Answer> {
    let mut session = http1::Http1Session::new(stream);
    session.bound_head(most);
    let target = http::uri::PathAndQuery::from_static("/");
    let head = RequestHead::new(method, target, spillway_filter::Fields::default());
    session.write_head(&head, false).await.ok()?;
    session.end_body(&HeaderMap::new()).await.ok()?;
    let head = loop {
        session.read_head().await.ok()?;
        let head = session.take_head()?;
        // hyper passes over early answers, but for 101, which no request here asks for.
        if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
            break head;
        }
    };
    let mut body = Vec::new();
    while let Some(part) = session.read_part().await.ok()? {
        body.extend_from_slice(&part);
    }
    assert!(session.is_done());
    let trailers = session.take_trailers().unwrap_or_default();
    Some(Answer { head, body, trailers, can_reuse: session.into_reusable().is_some() })
}
