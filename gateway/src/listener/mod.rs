//! Where clients connect: the sockets, what comes before a first request (PROXY protocol, TLS, HTTP/2), the limits of
//! connections, the life of one connection from request to request. It owns listening sockets and connection tasks; it
//! knows no route. What a request means is the pipeline's business.
//! Listeners can be added, removed and changed while the process runs.

mod accept;
mod connection;
mod http1;
mod http2;
mod plan;
mod proxy_protocol;
mod socket;

pub use accept::{ListenError, ListenerSet};
pub use plan::{ListenerPlan, plans};
