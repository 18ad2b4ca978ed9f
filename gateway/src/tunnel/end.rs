//! Close frames by which the gateway ends a socket (RFC 6455, 5.5.1 and 7.4).

use super::frames::Side;
use crate::telemetry::SocketEnd;

/// Status code of a close frame, and its reason for people.
fn code(end: SocketEnd) -> (u16, &'static str) {
    match end {
        SocketEnd::Idle => (1001, "no byte has passed for the route's timeouts.socketIdle"),
        SocketEnd::Lifetime => (1001, "the route's timeouts.socketLifetime is over"),
        SocketEnd::ClientMalformed | SocketEnd::ServerMalformed => (1002, "the framing of WebSocket is broken"),
        SocketEnd::Policy => (1008, "the caller may no longer use this route"),
        SocketEnd::Limit => (1008, "a limit or budget in tokens of the caller is reached"),
        SocketEnd::ServerLost | SocketEnd::ServerSlow => (1011, "the server of this socket is lost"),
        SocketEnd::ClientLost | SocketEnd::ClientSlow => (1001, "the client of this socket is lost"),
        SocketEnd::Drained => (1001, "the server of this socket is taken out of service: connect again"),
        SocketEnd::ShuttingDown => (1001, "the gateway is being stopped: connect again"),
        // Both sides know already.
        SocketEnd::Client | SocketEnd::Server => (1000, ""),
    }
}

/// Longest reason in a close frame, bytes: a control frame has 125, of which the code takes two.
const LONGEST_REASON: usize = 123;

/// Close frame as the side `from` sends it: masked where that is the client.
pub(super) fn close_frame(end: SocketEnd, from: Side) -> Vec<u8> {
    let (code, reason) = code(end);
    frame(code, reason, from)
}

/// Close frame with a reason in place of the usual one, cut where it is too long.
pub(super) fn close_frame_for(end: SocketEnd, reason: &str, from: Side) -> Vec<u8> {
    let (code, usual) = code(end);
    let reason = reason.get(..reason.floor_char_boundary(LONGEST_REASON)).filter(|reason| !reason.is_empty());
    frame(code, reason.unwrap_or(usual), from)
}

fn frame(code: u16, reason: &str, from: Side) -> Vec<u8> {
    let payload: Vec<u8> = code.to_be_bytes().into_iter().chain(reason.bytes()).collect();
    let length = u8::try_from(payload.len()).unwrap_or_default();
    let mut frame = Vec::with_capacity(payload.len() + 6);
    frame.push(0x88);
    match from {
        Side::Server => {
            frame.push(length);
            frame.extend_from_slice(&payload);
        }
        Side::Client => {
            frame.push(0x80 | length);
            let mask: [u8; 4] = rand::random();
            frame.extend_from_slice(&mask);
            frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        }
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::super::frames::Frames;
    use super::*;
    use crate::telemetry::Label;

    #[test]
    fn a_close_frame_is_whole_and_says_why() {
        for end in SocketEnd::ALL.iter().copied() {
            for from in [Side::Client, Side::Server] {
                let frame = close_frame(end, from);
                let mut frames = Frames::new(from);
                frames.follow(&frame).unwrap();
                assert!(frames.has_closed() && frames.is_between(), "{end:?}");
            }
        }
        let long = close_frame_for(SocketEnd::Limit, &"\u{e4}".repeat(99), Side::Server);
        assert_eq!((long.len(), long[1], &long[4..6]), (2 + 2 + 122, 124, "\u{e4}".as_bytes()));
        let frame = close_frame(SocketEnd::ShuttingDown, Side::Server);
        assert_eq!(frame[2..4], 1001u16.to_be_bytes());
        let masked = close_frame(SocketEnd::Policy, Side::Client);
        let mask = [masked[2], masked[3]];
        assert_eq!([masked[6] ^ mask[0], masked[7] ^ mask[1]], 1008u16.to_be_bytes());
    }
}
