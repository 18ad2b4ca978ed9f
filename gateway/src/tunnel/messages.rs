//! Seam between a socket and what reads the messages that pass it.

use std::task::Context;

use super::Side;

/// Reader of the messages that pass a socket. It sees each part as it comes, in fixed memory whatever the length of a message,
/// and holds back no more than a name that it writes anew.
pub trait Messages: Send {
    /// Reads a part of a message's payload, unmasked.
    fn part(&mut self, from: Side, payload: &[u8]);

    /// True if the text of messages is written anew on its way.
    fn rewrites(&self) -> bool {
        false
    }

    /// Writes what goes on in place of a part of a text, which has been read.
    fn write(&mut self, _from: Side, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(payload);
    }

    /// Writes what was held back of a text that has ended.
    fn write_end(&mut self, _from: Side, _out: &mut Vec<u8>) {}

    /// Reads the end of a message, which is text or binary. False if the message must not pass; the socket then ends.
    fn end(&mut self, from: Side, is_text: bool, cx: &mut Context<'_>) -> bool;

    /// True if the socket must end for a reason that was found since a message passed.
    fn must_end(&mut self, cx: &mut Context<'_>) -> bool;

    /// Reason for which the socket must end, for the client.
    fn reason(&self) -> &str;
}
