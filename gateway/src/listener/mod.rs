//! Where clients connect: the sockets, the limits of connections, the life of one connection from request to request.
//! It owns listening sockets and connection tasks; it knows no route. What a request means is the pipeline's business.
//! Listeners can be added and removed while the process runs.

mod accept;
mod connection;
mod socket;

pub use accept::{ListenError, ListenerSet};
pub use connection::ConnectionInfo;
