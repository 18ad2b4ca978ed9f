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

/// Payload of a frame that is held until the frame is whole, bytes; a longer one goes on in fragments (RFC 6455, 5.4).
const MOST_HELD: usize = 16 << 10;

/// Writer of frames whose text may become longer or shorter. Whatever it writes ends between two frames.
#[derive(Debug, Default)]
pub(super) struct Rewriter {
    /// Payload of the frame under way, as it goes on.
    payload: Vec<u8>,
    /// True once a fragment of that frame was written.
    has_begun: bool,
}

impl Rewriter {
    /// Writes the payload so far: the last fragment of the frame with this first byte, or one before it.
    fn put(&mut self, first: u8, is_last: bool, mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
        let payload = std::mem::take(&mut self.payload);
        let kind = if self.has_begun { CONTINUATION } else { first & !FIN };
        self.has_begun = !is_last;
        out.push(kind | if is_last { first & FIN } else { 0 });
        let bit = if mask.is_some() { MASK } else { 0 };
        match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
            (Ok(length @ ..IN_TWO), _) => out.push(length | bit),
            (_, Ok(length)) => {
                out.push(IN_TWO | bit);
                out.extend_from_slice(&length.to_be_bytes());
            }
            (_, Err(_)) => {
                out.push(IN_EIGHT | bit);
                out.extend_from_slice(&u64::try_from(payload.len()).unwrap_or(u64::MAX).to_be_bytes());
            }
        }
        match mask {
            None => out.extend_from_slice(&payload),
            Some(mask) => {
                out.extend_from_slice(&mask);
                out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
            }
        }
    }
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

    /// Follows all of `bytes`, shows the messages in them, and writes their frames to `out` with what `messages` makes of the text.
    /// False if a message must not pass: its last frame is left out, and all behind it.
    pub(super) fn rewrite(
        &mut self,
        bytes: &[u8],
        messages: &mut dyn Messages,
        rewriter: &mut Rewriter,
        out: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Result<bool, FrameError> {
        let (mut at, mut passes) = (0, true);
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let is_payload = self.in_payload;
            let masks = self.mask;
            let passed = self.step(rest)?;
            let [first, ..] = self.header;
            let is_data = first & CONTROL == 0;
            let (side, is_text) = (self.side, is_data && self.is_text);
            if is_payload {
                self.unmasked(rest.get(..passed).unwrap_or_default(), masks, |clear| {
                    if is_data {
                        messages.part(side, clear);
                    }
                    match is_text {
                        true => messages.write(side, clear, &mut rewriter.payload),
                        false => rewriter.payload.extend_from_slice(clear),
                    }
                });
            }
            let has_ended = self.is_between();
            if has_ended && is_data && first & FIN != 0 {
                if is_text {
                    messages.write_end(side, &mut rewriter.payload);
                }
                passes &= messages.end(side, self.is_text, cx);
            }
            if !passes {
                rewriter.payload = Vec::new();
            } else if has_ended || rewriter.payload.len() >= MOST_HELD {
                let (mask, _) = self.mask;
                rewriter.put(first, has_ended, (side == Side::Client).then_some(mask), out);
            }
            at += passed;
        }
        Ok(passes)
    }

    /// Shows a part of a payload, unmasked.
    fn show(&self, payload: &[u8], masks: ([u8; 4], usize), messages: &mut dyn Messages) {
        self.unmasked(payload, masks, |clear| messages.part(self.side, clear));
    }

    /// Unmasks a part of a payload, piece by piece.
    fn unmasked(&self, payload: &[u8], (mask, place): ([u8; 4], usize), mut take: impl FnMut(&[u8])) {
        if self.side == Side::Server {
            return take(payload);
        }
        let mut clear = [0; UNMASKED];
        let mut masks = mask.iter().cycle().skip(place);
        for part in payload.chunks(UNMASKED) {
            for ((to, from), mask) in clear.iter_mut().zip(part).zip(&mut masks) {
                *to = from ^ mask;
            }
            take(clear.get(..part.len()).unwrap_or_default());
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
        /// Text that waits for its end.
        held: Vec<u8>,
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

        /// Writes `a` twice and leaves `b` out; the last byte waits.
        fn write(&mut self, _: Side, payload: &[u8], out: &mut Vec<u8>) {
            self.held.extend_from_slice(payload);
            let last = self.held.pop();
            out.extend(changed(&self.held));
            self.held = last.into_iter().collect();
        }

        fn write_end(&mut self, _: Side, out: &mut Vec<u8>) {
            out.extend(changed(&std::mem::take(&mut self.held)));
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

    fn changed(text: &[u8]) -> Vec<u8> {
        let twice = |byte: &u8| if *byte == b'a' { vec![b'a', b'a'] } else { vec![*byte] };
        text.iter().filter(|byte| **byte != b'b').flat_map(twice).collect()
    }

    /// Frames that are written anew of bytes that come in parts, each part alone, with whether all passed.
    fn rewritten(side: Side, parts: &[&[u8]]) -> Result<(Vec<Vec<u8>>, bool), FrameError> {
        let (mut frames, mut kept, mut rewriter) = (Frames::new(side), Kept::default(), Rewriter::default());
        let (mut all, mut passes) = (Vec::new(), true);
        for part in parts {
            let mut out = Vec::new();
            passes &= frames.rewrite(part, &mut kept, &mut rewriter, &mut out, &mut cx())?;
            all.push(out);
            assert!(rewriter.payload.len() < MOST_HELD, "no more is held");
        }
        Ok((all, passes))
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

    proptest! {
        #[test]
        fn text_is_written_anew_wherever_its_bytes_are_cut_and_all_else_stays(
            side in sides(), mask in any::<[u8; 4]>(), cuts in prop::collection::vec(1..40_000usize, 1..60),
            messages in prop::collection::vec((any::<bool>(), prop::collection::vec(
                ("[abc]{0,300}", 1..200usize, any::<bool>()), 1..4)), 1..4),
        ) {
            let framed = |first: u8, payload: &[u8]| match side {
                Side::Client => masked(first, payload, mask),
                Side::Server => frame(side, first, payload, false),
            };
            let (mut bytes, mut expected, mut pings) = (Vec::new(), Vec::new(), 0);
            for (is_text, fragments) in &messages {
                let (mut whole, last) = (Vec::new(), fragments.len() - 1);
                for (n, (text, times, is_pinged)) in fragments.iter().enumerate() {
                    let opcode = if n > 0 { CONTINUATION } else if *is_text { TEXT } else { 2 };
                    let payload = text.repeat(*times);
                    bytes.extend(framed(opcode | if n == last { FIN } else { 0 }, payload.as_bytes()));
                    if *is_pinged {
                        bytes.extend(framed(0x89, b"a ping with ab"));
                        pings += 1;
                    }
                    whole.extend(payload.into_bytes());
                }
                expected.push((*is_text, if *is_text { changed(&whole) } else { whole }));
            }
            let (mut parts, mut rest) = (Vec::new(), bytes.as_slice());
            for cut in cuts.iter().cycle() {
                let (part, behind) = rest.split_at(rest.len().min(*cut));
                parts.push(part);
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            let (out, passes) = rewritten(side, &parts).unwrap();
            prop_assert!(passes);
            let (mut frames, mut kept, mut control) = (Frames::new(side), Kept::default(), 0);
            for part in &out {
                frames.read(part, &mut kept, &mut cx()).unwrap();
                prop_assert!(frames.is_between(), "what goes out ends between two frames");
            }
            let all = out.concat();
            let (mut counting, mut at) = (Frames::new(side), 0);
            while at < all.len() {
                let is_begin = counting.is_between();
                control += usize::from(is_begin && all[at] == 0x89);
                at += counting.step(&all[at..]).unwrap();
            }
            prop_assert_eq!((kept.whole, control), (expected, pings));
        }

        #[test]
        fn any_bytes_are_written_anew_or_refused_where_they_are_followed_or_refused(
            side in sides(), bytes in prop::collection::vec(any::<u8>(), 0..200), size in 1..20usize,
        ) {
            let parts: Vec<&[u8]> = bytes.chunks(size).collect();
            prop_assert_eq!(rewritten(side, &parts).map(|_| ()), Frames::new(side).follow(&bytes));
        }
    }

    #[test]
    fn a_frame_that_is_not_changed_passes_as_it_is_and_a_long_one_in_fragments() {
        let short = [masked(0x81, b"ccc", [7; 4]), masked(0x80, &[b'c'; 300], [1, 2, 3, 4]), masked(0x8a, b"", [3; 4])];
        for frame in &short {
            assert_eq!(rewritten(Side::Client, &[frame]).unwrap().0.concat(), *frame);
        }
        let long = frame(Side::Server, 0x81, &[b'c'; 40 << 10], false);
        let out = rewritten(Side::Server, &[&long[..20 << 10], &long[20 << 10..]]).unwrap().0;
        let firsts: Vec<u8> = out.iter().map(|frames| frames[0]).collect();
        assert_eq!((firsts, out[0].len() > MOST_HELD), (vec![0x01, 0x80], true));
        let refused =
            [masked(0x81, b"yes", [1; 4]), masked(0x81, b"no", [1; 4]), masked(0x81, b"yes", [1; 4])].concat();
        assert_eq!(rewritten(Side::Client, &[&refused]).unwrap(), (vec![masked(0x81, b"yes", [1; 4])], false));
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
