//! Where clients connect: the sockets, what comes before a first request (PROXY protocol, TLS, HTTP/2), the limits of
//! connections, the life of one connection from request to request. It owns listening sockets and connection tasks; it
//! knows no route. What a request means is the pipeline's business.
//! Listeners can be added, removed and changed while the process runs.

mod accept;
mod connection;
mod forwarded;
pub mod framing;
mod http1;
mod http2;
mod plan;
mod proxy_protocol;
mod socket;

pub use accept::{ListenError, ListenerSet};
pub use connection::{ConnectionInfo, TlsInfo};
pub use forwarded::Origin;
pub use framing::{MAX_FIELDS, Violation};
pub use plan::{ListenerPlan, plans};
pub use socket::violation_of;
