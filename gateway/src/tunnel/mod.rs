//! Connections behind an upgrade (RFC 9110, 7.8): the handshake of WebSocket, bytes both ways, and the end of a socket in
//! order. WebSocket frames are followed only as far as their boundaries are known (RFC 6455, 5.2), so that a close frame of the
//! gateway's own never cuts into another one; no payload is kept. Where a reader of messages is given, it sees them as they pass. Tunnels
//! of other protocols pass as they are.
//!
//! The room knows no request and no route. Its inputs are two byte streams, the limits of a socket, and the edits that end it.

mod direction;
mod end;
mod frames;
mod handshake;
mod messages;
mod relay;
mod sockets;

pub use frames::{FrameError, Frames, Side};
pub use handshake::{
    HandshakeError, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, Upgrade,
    UpgradeProtocol, WEBSOCKET, asks_to_upgrade, check_opening, new_key,
};
pub use messages::Messages;
pub use relay::{SocketLimits, SocketReport, relay};
pub use sockets::{EndAt, OpenSockets, SocketFacts, SocketGuard, caller_end, earlier};
