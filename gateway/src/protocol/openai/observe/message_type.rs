//! Type of a message of a socket, by the name that it has in the message.

use crate::protocol::dialect::SocketEvent;

/// Type of a message while it is read. One that names several counts as unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MessageType {
    event: Option<SocketEvent>,
    is_known: bool,
}

impl MessageType {
    /// Takes note of a type; `None` for one that is too long to be known.
    pub(super) fn named(&mut self, name: Option<&[u8]>) {
        let event = name.map_or(SocketEvent::Other, event);
        self.is_known = self.event.is_none();
        self.event = Some(event);
    }

    /// True once the message has named a type.
    pub(super) fn is_named(self) -> bool {
        self.event.is_some()
    }

    /// Meaning of the message.
    pub(super) fn event(self) -> SocketEvent {
        self.event.filter(|_| self.is_known).unwrap_or_default()
    }
}

/// Meaning of a message by its type.
fn event(name: &[u8]) -> SocketEvent {
    match name {
        b"response.create" => SocketEvent::Asks,
        b"input_audio_buffer.append" => SocketEvent::Hears,
        b"session.update"
        | b"transcription_session.update"
        | b"input_audio_buffer.clear"
        | b"output_audio_buffer.clear"
        | b"conversation.item.create"
        | b"conversation.item.retrieve"
        | b"conversation.item.truncate"
        | b"conversation.item.delete"
        | b"response.cancel" => SocketEvent::Quiet,
        b"response.created" => SocketEvent::Begins,
        b"response.output_audio.delta" | b"response.audio.delta" => SocketEvent::Sound,
        b"response.done" | b"response.completed" | b"response.incomplete" | b"response.failed" => SocketEvent::Ends,
        b"error" => SocketEvent::Fails,
        name if name.starts_with(b"conversation.item.input_audio_transcription.")
            || name.starts_with(b"transcription.") =>
        {
            SocketEvent::Transcript
        }
        _ => SocketEvent::Other,
    }
}
