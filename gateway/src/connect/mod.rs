//! Connections to endpoints: peers prepared at reload, dialling, the pools of open connections, and the bound on the header
//! of an answer. The room knows no request; its inputs are the addresses and TLS of a configuration.

mod dial;
mod handshake;
mod http1;
mod http2;
mod key;
mod peer;
mod pool;
mod session;
mod shared;
mod transport;
mod tunnel;

pub use dial::{Connections, NO_CONNECTION};
pub use handshake::{MAX_FIELDS, is_unprocessed, is_unsent};
pub use key::EndpointKey;
pub use peer::{Connector, MAX_STREAMS, Peer};
pub use session::{Follows, UpstreamSession};
pub use tunnel::ServerTunnel;

/// True if an error means that a server's header exceeded a bound on its size.
pub fn is_over(error: &pingora::Error) -> bool {
    http1::is_over(error) || handshake::is_over(error)
}
