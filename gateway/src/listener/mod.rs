//! Downstream connections: sockets, the opening of a connection (PROXY protocol, TLS, HTTP/2), limits of connections,
//! and the loop from request to request. The room owns listening sockets and connection tasks. It knows no route:
//! requests go to the pipeline. Listeners can be added, removed and changed while the process runs.

mod accept;
mod connection;
mod http1;
mod http2;
mod permit;
mod plan;
mod proxy_protocol;
mod socket;
mod stop;

pub use accept::{ListenError, ListenerReport, ListenerSet};
pub use http1::FIRST_HEAD;
pub use plan::{ListenerPlan, plans};
