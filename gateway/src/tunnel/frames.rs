//! Boundaries of WebSocket frames in a stream of bytes, whatever its cuts (RFC 6455, 5.2), and the messages in them for a
//! reader where there is one.

use std::task::Context;

use super::messages::Messages;

/// Side that sends the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client, whose frames are masked.
    Client,
    /// The server, whose frames are not.
    Server,
}

/// Violation that makes the boundaries of further frames uncertain, or that a server may not have to find (RFC 6455, 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A client sent a frame without a mask.
    #[error("a frame of a client is not masked")]
    Unmasked,
    /// A server sent a frame with a mask.
    #[error("a frame of a server is masked")]
    Masked,
    /// A control frame is in fragments, or longer than 125 bytes.
    #[error("a control frame is in fragments or longer than 125 bytes")]
    Control,
    /// A length uses the highest of its 64 bits.
    #[error("a length has more than 63 bits")]
    Length,
}

/// Longest header of a frame: two bytes, a length of eight, a mask of four.
const LONGEST_HEADER: usize = 14;

const FIN: u8 = 0x80;
const MASK: u8 = 0x80;
const CONTROL: u8 = 0x08;
const CONTINUATION: u8 = 0x00;
const TEXT: u8 = 0x01;
/// Bits of extensions, none of which is negotiated where messages are read.
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const CLOSE: u8 = 0x08;
const LENGTH: u8 = 0x7f;
/// Length that says that two further bytes hold it.
const IN_TWO: u8 = 126;
/// Length that says that eight further bytes hold it.
const IN_EIGHT: u8 = 127;
/// Longest payload of a control frame.
const MOST_OF_CONTROL: u8 = 125;

/// Payload that is unmasked at a time for a reader, bytes.
const UNMASKED: usize = 512;

/// Beginning of the frame by which a message ends that must not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stopped {
    /// Number of the bytes before it that may pass.
    pub(super) at: usize,
    /// True if the frame begins there; false if it began before these bytes, and a part of it has passed.
    pub(super) is_between: bool,
}

/// Follower of the frames that one side sends. Holds at most a header that is not whole yet.
#[derive(Debug, Clone)]
pub struct Frames {
    side: Side,
    header: [u8; LONGEST_HEADER],
    /// Bytes of the header that have come.
    have: usize,
    /// Bytes of the payload that are still to come; meaningful behind a whole header.
    left: u64,
    /// True within a payload.
    in_payload: bool,
    /// Mask of the payload, and the place in it of the next byte.
    mask: ([u8; 4], usize),
    /// True if the message that has begun is text that can be read.
    is_text: bool,
    /// True once a close frame was followed to its end.
    has_closed: bool,
}

impl Frames {
    /// Begins before the first frame of a side.
    pub fn new(side: Side) -> Self {
        Self {
            side,
            header: [0; LONGEST_HEADER],
            have: 0,
            left: 0,
            in_payload: false,
            mask: ([0; 4], 0),
            is_text: false,
            has_closed: false,
        }
    }

    /// True between two frames.
    pub fn is_between(&self) -> bool {
        self.have == 0 && !self.in_payload
    }

    /// True once the side has sent a whole close frame, behind which it sends nothing (RFC 6455, 5.5.1).
    pub fn has_closed(&self) -> bool {
        self.has_closed
    }

    /// Follows all of `bytes`.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let passed = self.step(rest)?;
            rest = rest.get(passed..).unwrap_or_default();
        }
        Ok(())
    }

    /// Follows all of `bytes` and shows the messages in them. Returns where the bytes end that may pass, if a message must not.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        messages: &mut dyn Messages,
        cx: &mut Context<'_>,
    ) -> Result<Option<Stopped>, FrameError> {
        let (mut at, mut stopped) = (0, None);
        let mut frame = Stopped { at: 0, is_between: false };
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            if self.is_between() {
                frame = Stopped { at, is_between: true };
            }
            let is_payload = self.in_payload;
            let (mask, place) = self.mask;
            let passed = self.step(rest)?;
            let [first, ..] = self.header;
            if first & CONTROL == 0 {
                if is_payload {
                    self.show(rest.get(..passed).unwrap_or_default(), (mask, place), messages);
                }
                let has_ended = self.is_between();
                if has_ended && first & FIN != 0 && !messages.end(self.side, self.is_text, cx) {
                    stopped = stopped.or(Some(frame));
                }
            }
            at += passed;
        }
        Ok(stopped)
    }

    /// Shows a part of a payload, unmasked.
    fn show(&self, payload: &[u8], (mask, place): ([u8; 4], usize), messages: &mut dyn Messages) {
        if self.side == Side::Server {
            return messages.part(self.side, payload);
        }
        let mut clear = [0; UNMASKED];
        let mut masks = mask.iter().cycle().skip(place);
        for part in payload.chunks(UNMASKED) {
            for ((to, from), mask) in clear.iter_mut().zip(part).zip(&mut masks) {
                *to = from ^ mask;
            }
            messages.part(self.side, clear.get(..part.len()).unwrap_or_default());
        }
    }

    /// Follows `bytes` to the end of the frame that has begun before them, and returns the number of bytes up to there: none
    /// between two frames, all of them where the frame goes on.
    pub fn follow_to_boundary(&mut self, bytes: &[u8]) -> Result<usize, FrameError> {
        let mut passed = 0;
        while !self.is_between()
            && let Some(rest) = bytes.get(passed..).filter(|rest| !rest.is_empty())
        {
            passed += self.step(rest)?;
        }
        Ok(passed)
    }

    /// Follows bytes of one header or one payload, and returns their number, which is above zero for some bytes.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, FrameError> {
        if self.in_payload {
            let here = u64::try_from(bytes.len()).unwrap_or(u64::MAX).min(self.left);
            self.left -= here;
            let passed = usize::try_from(here).unwrap_or(bytes.len());
            self.mask.1 = self.mask.1.wrapping_add(passed) % self.mask.0.len();
            if self.left == 0 {
                self.end_frame();
            }
            return Ok(passed);
        }
        let Some(byte) = bytes.first() else { return Ok(0) };
        if let Some(place) = self.header.get_mut(self.have) {
            *place = *byte;
        }
        self.have += 1;
        self.judge_header()?;
        Ok(1)
    }

    /// Judges a header after each of its bytes, and begins its payload behind the last one.
    fn judge_header(&mut self) -> Result<(), FrameError> {
        let [first, second, long @ ..] = self.header;
        if self.have < 2 {
            return Ok(());
        }
        let is_masked = second & MASK != 0;
        match self.side {
            Side::Client if !is_masked => return Err(FrameError::Unmasked),
            Side::Server if is_masked => return Err(FrameError::Masked),
            Side::Client | Side::Server => {}
        }
        let length = second & LENGTH;
        if first & CONTROL != 0 && (first & FIN == 0 || length > MOST_OF_CONTROL) {
            return Err(FrameError::Control);
        }
        let of_length = match length {
            IN_TWO => 2,
            IN_EIGHT => 8,
            _ => 0,
        };
        if self.have < 2 + of_length + if is_masked { 4 } else { 0 } {
            return Ok(());
        }
        let mask = long.get(of_length..).and_then(|mask| mask.first_chunk());
        self.mask = (mask.copied().unwrap_or_default(), 0);
        if first & CONTROL == 0 && first & OPCODE != CONTINUATION {
            self.is_text = first & OPCODE == TEXT && first & RESERVED == 0;
        }
        let long = long.get(..of_length).unwrap_or_default();
        let long = long.iter().fold(0, |sum: u64, byte| (sum << 8) | u64::from(*byte));
        if long > i64::MAX.unsigned_abs() {
            return Err(FrameError::Length);
        }
        self.left = if of_length == 0 { u64::from(length) } else { long };
        self.in_payload = true;
        if self.left == 0 {
            self.end_frame();
        }
        Ok(())
    }

    fn end_frame(&mut self) {
        let [first, ..] = self.header;
        self.has_closed |= first & OPCODE == CLOSE;
        (self.have, self.in_payload) = (0, false);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Frame of a side, with a mask of zeros for a client.
    fn frame(side: Side, first: u8, payload: &[u8], widest: bool) -> Vec<u8> {
        let mask = if side == Side::Client { MASK } else { 0 };
        let mut bytes = vec![first];
        match payload.len() {
            length @ 0..=125 if !widest || first & CONTROL != 0 => bytes.push(u8::try_from(length).unwrap() | mask),
            length @ 0..=0xffff if !widest => {
                bytes.push(IN_TWO | mask);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                bytes.push(IN_EIGHT | mask);
                bytes.extend(u64::try_from(length).unwrap().to_be_bytes());
            }
        }
        bytes.extend(vec![0x5a; if side == Side::Client { 4 } else { 0 }]);
        bytes.extend(payload);
        bytes
    }

    fn sides() -> impl Strategy<Value = Side> {
        prop_oneof![Just(Side::Client), Just(Side::Server)]
    }

    /// Frames of a side: data and control, of every width of length.
    fn frames(side: Side) -> impl Strategy<Value = Vec<Vec<u8>>> {
        let data = (0..=2u8, any::<bool>(), prop::collection::vec(any::<u8>(), 0..400), any::<bool>()).prop_map(
            move |(opcode, fin, payload, widest)| frame(side, opcode | if fin { FIN } else { 0 }, &payload, widest),
        );
        let control = (9..=10u8, prop::collection::vec(any::<u8>(), 0..=125))
            .prop_map(move |(opcode, payload)| frame(side, opcode | FIN, &payload, false));
        prop::collection::vec(prop_oneof![data, control], 0..8)
    }

    proptest! {
        #[test]
        fn boundaries_are_found_wherever_the_bytes_are_cut(
            (side, frames) in sides().prop_flat_map(|side| (Just(side), frames(side))),
            cuts in prop::collection::vec(1..90usize, 1..200),
        ) {
            let bytes = frames.concat();
            let mut ends: Vec<usize> = frames.iter().scan(0, |end, f| { *end += f.len(); Some(*end) }).collect();
            ends.insert(0, 0);
            let (mut follower, mut at) = (Frames::new(side), 0);
            for cut in cuts.iter().cycle() {
                prop_assert_eq!(follower.is_between(), ends.contains(&at), "{}", at);
                let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) else { break };
                let part = &rest[..rest.len().min(*cut)];
                let next = *ends.iter().find(|end| **end >= at).unwrap();
                prop_assert_eq!(follower.clone().follow_to_boundary(part).unwrap(), part.len().min(next - at));
                follower.follow(part).unwrap();
                at += part.len();
            }
            prop_assert!(!follower.has_closed());
            follower.follow(&frame(side, CLOSE | FIN, &[3, 0xe9], false)).unwrap();
            prop_assert!(follower.has_closed() && follower.is_between());
        }

        #[test]
        fn any_bytes_are_followed_or_refused_the_same_in_one_piece_and_in_many(
            side in sides(), bytes in prop::collection::vec(any::<u8>(), 0..200), size in 1..20usize,
        ) {
            let (mut whole, mut parts) = (Frames::new(side), Frames::new(side));
            let once = whole.follow(&bytes);
            let many = bytes.chunks(size).try_for_each(|part| parts.follow(part));
            prop_assert_eq!(once, many);
            if once.is_ok() {
                prop_assert_eq!(whole.is_between(), parts.is_between());
                prop_assert_eq!(whole.has_closed(), parts.has_closed());
            }
        }
    }

    /// Reader that keeps messages, and lets those that begin with `no` not pass.
    #[derive(Default)]
    struct Kept {
        begun: Vec<u8>,
        whole: Vec<(bool, Vec<u8>)>,
    }

    impl Messages for Kept {
        fn part(&mut self, _: Side, payload: &[u8]) {
            self.begun.extend_from_slice(payload);
        }

        fn end(&mut self, _: Side, is_text: bool, _: &mut Context<'_>) -> bool {
            let message = std::mem::take(&mut self.begun);
            let passes = !message.starts_with(b"no");
            self.whole.push((is_text, message));
            passes
        }

        fn must_end(&mut self, _: &mut Context<'_>) -> bool {
            false
        }

        fn reason(&self) -> &str {
            ""
        }
    }

    fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut bytes = frame(Side::Client, first, payload, false);
        let at = bytes.len() - payload.len();
        bytes[at - 4..at].copy_from_slice(&mask);
        bytes[at..].iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        bytes
    }

    fn cx() -> Context<'static> {
        Context::from_waker(std::task::Waker::noop())
    }

    proptest! {
        #[test]
        fn messages_are_read_wherever_their_bytes_are_cut_and_whatever_control_frames_come_between(
            fragments in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..700), any::<bool>(), any::<[u8; 4]>()), 1..8),
            is_text in any::<bool>(), cuts in prop::collection::vec(1..90usize, 1..200),
        ) {
            let (mut bytes, last) = (Vec::new(), fragments.len() - 1);
            for (n, (payload, pings, mask)) in fragments.iter().enumerate() {
                let opcode = if n > 0 { CONTINUATION } else if is_text { TEXT } else { 2 };
                bytes.extend(masked(opcode | if n == last { FIN } else { 0 }, payload, *mask));
                if *pings {
                    bytes.extend(masked(0x89, b"no ping is a message", *mask));
                }
            }
            let (mut kept, mut frames, mut rest) = (Kept::default(), Frames::new(Side::Client), bytes.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (part, behind) = rest.split_at(rest.len().min(*cut));
                frames.read(part, &mut kept, &mut cx()).unwrap();
                rest = behind;
            }
            let whole: Vec<u8> = fragments.iter().flat_map(|(payload, ..)| payload.clone()).collect();
            prop_assert_eq!(kept.whole, vec![(is_text, whole)]);
            prop_assert!(frames.is_between());
        }
    }

    #[test]
    fn a_message_that_must_not_pass_ends_before_its_last_frame() {
        let stopped = |parts: &[&[u8]]| {
            let (mut frames, mut kept) = (Frames::new(Side::Client), Kept::default());
            parts.iter().map(|part| frames.read(part, &mut kept, &mut cx()).unwrap()).collect::<Vec<_>>()
        };
        let (yes, no) = (masked(0x81, b"yes", [1, 2, 3, 4]), masked(0x81, b"no", [1, 2, 3, 4]));
        let (both, behind) = ([yes.clone(), no.clone(), yes.clone()].concat(), yes.len());
        assert_eq!(stopped(&[&both]), [Some(Stopped { at: behind, is_between: true })]);
        assert_eq!(stopped(&[&yes, &no]), [None, Some(Stopped { at: 0, is_between: true })]);
        let (begin, end) = no.split_at(3);
        assert_eq!(stopped(&[begin, end]), [None, Some(Stopped { at: 0, is_between: false })]);
        let fragments = [masked(0x01, b"no", [9; 4]), masked(0x80, b"", [9; 4])].concat();
        assert_eq!(stopped(&[&fragments]), [Some(Stopped { at: 8, is_between: true })], "a part of a message may pass");
        // Bits of extensions: the message is no text that can be read.
        let (mut frames, mut kept) = (Frames::new(Side::Client), Kept::default());
        frames.read(&masked(0xc1, b"{}", [0; 4]), &mut kept, &mut cx()).unwrap();
        assert_eq!(kept.whole, [(false, b"{}".to_vec())]);
    }

    #[test]
    fn what_no_endpoint_may_send_is_refused() {
        for (side, bytes, expected) in [
            (Side::Client, &[0x81, 0x01][..], FrameError::Unmasked),
            (Side::Server, &[0x81, 0x81], FrameError::Masked),
            (Side::Server, &[0x09, 0x00], FrameError::Control),
            (Side::Server, &[0x88, 0x7e], FrameError::Control),
            (Side::Server, &[0x82, 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 0], FrameError::Length),
        ] {
            assert_eq!(Frames::new(side).follow(bytes), Err(expected), "{bytes:x?}");
        }
    }

    #[test]
    fn a_frame_of_the_longest_length_is_followed() {
        let mut follower = Frames::new(Side::Server);
        follower.follow(&[0x82, 0x7f, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2]).unwrap();
        assert!(!follower.is_between());
    }
}
