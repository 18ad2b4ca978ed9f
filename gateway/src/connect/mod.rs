//! Connections to endpoints: how each is dialled, prepared at reload, the pools of open ones, and the bound on what is read
//! of a header. It knows no request; its inputs are the addresses and TLS of a configuration.

mod dial;
mod handshake;
mod key;
mod metered;
mod peer;

pub use dial::{Connections, NO_CONNECTION};
pub use handshake::MAX_FIELDS;
pub use key::EndpointKey;
pub use metered::bound;
pub use peer::{Connector, MAX_STREAMS, Peer};

/// True if reading a header of a server ended at a bound on its size.
pub fn is_over(error: &pingora::Error) -> bool {
    metered::is_over(error) || handshake::is_over(error)
}
